using System.Diagnostics;
using System.Runtime.InteropServices;

namespace TenantLora.Runtime.Backends.Cuda;

/// <summary>
/// Draw rules as <c>draw.cu</c> reads them and its results as it leaves them. A buffer holds a <see cref="Row"/> for each rule, then the pairs
/// they point to: (token, count ≪ 1 | in the prompt) for penalties, (token, value) for bias.
/// </summary>
internal static unsafe class CudaDraws
{
    /// <summary>Most of the likeliest that can be reported; the results' lists are so far apart.</summary>
    public const int MostReported = 20;

    /// <summary>The rules' bytes in the buffer.</summary>
    public static long Bytes(ReadOnlySpan<DrawRule> rules)
    {
        var bytes = (long)rules.Length * sizeof(Row);
        foreach (var rule in rules) bytes += (HistoryCount(rule) + (rule.Bias?.Count ?? 0)) * (long)sizeof(Pair);
        return bytes;
    }

    /// <summary>Writes the rules to the front of <paramref name="buffer"/>, which has at least their <see cref="Bytes"/>, 8-byte aligned.</summary>
    public static void Pack(ReadOnlySpan<DrawRule> rules, Span<byte> buffer)
    {
        Debug.Assert(Bytes(rules) <= buffer.Length);
        var rows = MemoryMarshal.Cast<byte, Row>(buffer)[..rules.Length];
        var pairs = MemoryMarshal.Cast<byte, Pair>(buffer);
        var next = rules.Length * (sizeof(Row) / sizeof(Pair));
        for (var i = 0; i < rules.Length; i++)
        {
            var rule = rules[i];
            Debug.Assert(rule.LogProbabilities is null or (>= 0 and <= MostReported));
            var history = next;
            if (Penalises(rule))
            {
                foreach (var (token, count) in rule.Answered ?? NoAnswer)
                    pairs[next++] = new Pair(token, (count << 1) | (rule.Prompt?.Contains(token) == true ? 1 : 0));
                if (rule.Repetition != 1)
                    foreach (var token in rule.Prompt ?? NoPrompt)
                        if (rule.Answered?.ContainsKey(token) != true) pairs[next++] = new Pair(token, 1);
            }
            var bias = next;
            foreach (var (token, value) in rule.Bias ?? NoBias) pairs[next++] = new Pair(token, BitConverter.SingleToInt32Bits(value));

            rows[i] = new Row
            {
                Temperature = rule.Temperature,
                TopP = rule.TopP,
                MinP = rule.MinP,
                Repetition = rule.Repetition,
                Frequency = rule.Frequency,
                Presence = rule.Presence,
                TopK = rule.TopK,
                LogProbabilities = rule.LogProbabilities ?? -1,
                Uniform = rule.Uniform,
                History = history,
                HistoryCount = bias - history,
                Bias = bias,
                BiasCount = next - bias,
            };
        }
    }

    /// <summary>What was drawn; <paramref name="tops"/> is (rows, <see cref="MostReported"/>).</summary>
    public static Drawn[] Read(ReadOnlySpan<Result> results, ReadOnlySpan<Top> tops)
    {
        var drawn = new Drawn[results.Length];
        for (var i = 0; i < results.Length; i++)
        {
            var top = results[i].Top == 0 ? [] : new (int, float)[results[i].Top];
            for (var j = 0; j < top.Length; j++)
            {
                var reported = tops[(i * MostReported) + j];
                top[j] = (reported.Token, reported.LogProbability);
            }
            drawn[i] = new Drawn(results[i].Token, results[i].LogProbability, top);
        }
        return drawn;
    }

    private static readonly Dictionary<int, int> NoAnswer = [];
    private static readonly HashSet<int> NoPrompt = [];
    private static readonly Dictionary<int, float> NoBias = [];

    private static bool Penalises(DrawRule rule) => rule.Repetition != 1 || rule.Frequency != 0 || rule.Presence != 0;

    private static int HistoryCount(DrawRule rule)
    {
        if (!Penalises(rule)) return 0;
        var count = rule.Answered?.Count ?? 0;
        if (rule.Repetition != 1)
            foreach (var token in rule.Prompt ?? NoPrompt)
                if (rule.Answered?.ContainsKey(token) != true) count++;
        return count;
    }

    /// <summary>A rule; History and Bias are offsets in pairs from the buffer's beginning.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct Row
    {
        public float Temperature, TopP, MinP, Repetition, Frequency, Presence;
        public int TopK;
        public int LogProbabilities;        // −1: none
        public double Uniform;
        public int History, HistoryCount;
        public int Bias, BiasCount;
    }

    /// <param name="Value">A count with the prompt's bit, or the bits of a bias.</param>
    internal readonly record struct Pair(int Token, int Value);

    [StructLayout(LayoutKind.Sequential)]
    internal struct Result
    {
        public int Token;
        public float LogProbability;
        public int Top;                     // reported tokens
        public int Reserved;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal struct Top
    {
        public int Token;
        public float LogProbability;
    }
}
