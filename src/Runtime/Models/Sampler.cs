using System.Buffers;
using System.Numerics.Tensors;

namespace TenantLora.Runtime.Models;

/// <summary>A drawn token, with log-probabilities where they were asked for.</summary>
internal readonly record struct Sampled(int Token, float LogProbability, (int Token, float LogProbability)[] Top);

/// <summary>
/// How one sequence's tokens are chosen, and what it has said so far. Options hold no nulls but for bias, seed and log-probabilities.
/// </summary>
internal sealed class SamplingState
{
    private readonly Dictionary<int, int> answered = [];
    private readonly HashSet<int> prompt;
    private readonly float temperature, topP, minP, repetition, frequency, presence;
    private readonly int topK;

    public SamplingState(SamplingOptions options, SamplingOptions defaults, long seed, ReadOnlySpan<int> prompt)
    {
        Options = options;
        Seed = (ulong)seed;
        temperature = options.Temperature ?? defaults.Temperature ?? 1;
        topK = options.TopK ?? defaults.TopK ?? 0;
        topP = options.TopP ?? defaults.TopP ?? 1;
        minP = options.MinP ?? defaults.MinP ?? 0;
        repetition = options.RepetitionPenalty ?? defaults.RepetitionPenalty ?? 1;
        frequency = options.FrequencyPenalty ?? 0;
        presence = options.PresencePenalty ?? 0;
        this.prompt = repetition == 1 ? [] : [.. prompt];
    }

    public SamplingOptions Options { get; }

    public ulong Seed { get; }

    public bool Greedy => temperature == 0;

    public float Temperature => temperature;

    public int TopK => topK;

    public float TopP => topP;

    public float MinP => minP;

    /// <summary>Tokens accepted so far: the counter that, with the seed, makes every draw independent of its neighbours.</summary>
    public int Position { get; private set; }

    public void Accept(int token)
    {
        answered[token] = answered.GetValueOrDefault(token) + 1;
        Position++;
    }

    /// <summary>Whether penalties or bias change the logits at all.</summary>
    public bool Adjusts => repetition != 1 || (frequency != 0 || presence != 0) && answered.Count > 0 || Options.LogitBias is { Count: > 0 };

    public void Adjust(Span<float> logits)
    {
        if (repetition != 1)
        {
            foreach (var token in prompt) Repeat(ref logits[token]);
            foreach (var token in answered.Keys)
                if (!prompt.Contains(token)) Repeat(ref logits[token]);
        }
        if (frequency != 0 || presence != 0)
            foreach (var (token, count) in answered) logits[token] -= (frequency * count) + presence;
        foreach (var (token, bias) in Options.LogitBias ?? EmptyBias) logits[token] += bias;
    }

    private static readonly Dictionary<int, float> EmptyBias = [];

    private void Repeat(ref float logit) => logit = logit > 0 ? logit / repetition : logit * repetition;
}

/// <summary>
/// Chooses tokens from logits, a row at a time: a row sees nothing of its neighbours, and the same state and logits give the same
/// token. The engine thread alone uses it.
/// </summary>
internal sealed class Sampler(int vocabulary)
{
    private readonly float[] work = new float[vocabulary];
    private readonly int[] order = new int[vocabulary];

    /// <summary>Null when the row holds a NaN or an infinity, or nothing is left to choose from.</summary>
    public Sampled? Sample(ReadOnlySpan<float> logits, SamplingState state)
    {
        // Max is NaN if any is; +∞ and a row of only −∞ show as such.
        if (!float.IsFinite(TensorPrimitives.Max(logits)) || float.IsNegativeInfinity(TensorPrimitives.Min(logits))) return null;
        if (!state.Adjusts && state.Greedy) return Report(TensorPrimitives.IndexOfMax(logits), logits, state);

        var scores = work.AsSpan();
        logits.CopyTo(scores);
        if (state.Adjusts) state.Adjust(scores);
        return Report(state.Greedy ? TensorPrimitives.IndexOfMax(scores) : Draw(scores, state), logits, state);
    }

    /// <summary>Turns <paramref name="scores"/> into weights, exp((s − max)/T), keeps top-k, top-p and min-p of them, and draws.</summary>
    private int Draw(Span<float> scores, SamplingState state)
    {
        TensorPrimitives.Subtract(scores, TensorPrimitives.Max(scores), scores);
        TensorPrimitives.Divide(scores, state.Temperature, scores);
        TensorPrimitives.Exp(scores, scores);

        var all = state.TopK <= 0 || state.TopK >= scores.Length;
        var u = Uniform(state.Seed, state.Position);
        if (all && state.TopP >= 1)
        {
            if (state.MinP > 0) Zero(scores, state.MinP);                       // the likeliest weighs 1
            return Walk(scores, u * Total(scores));
        }

        var kept = Likeliest(scores, all ? scores.Length : state.TopK, state.TopP);
        while (scores[kept[^1]] < state.MinP) kept = kept[..^1];                // the first weighs 1
        u *= Sum(scores, kept);
        foreach (var token in kept)
            if ((u -= scores[token]) < 0) return token;
        return kept[^1];
    }

    /// <summary>
    /// Tokens by falling weight, ties by id, until k of them or a share p of the weight is reached (with k, of the weight of those k).
    /// Sorts only those above a floor that is lowered until it suffices: of a large vocabulary a few hundred tokens carry nearly all.
    /// </summary>
    private Span<int> Likeliest(ReadOnlySpan<float> weights, int k, float p)
    {
        var everyone = k >= weights.Length;
        var total = everyone ? Total(weights) : 0;
        for (var floor = 1e-3f; ; floor = floor < 1e-9f ? 0 : floor * 1e-3f)
        {
            var count = 0;
            for (var token = 0; token < weights.Length; token++)
                if (weights[token] >= floor) order[count++] = token;
            var found = order.AsSpan(0, count);
            if (floor > 0 && (everyone ? Sum(weights, found) < p * total : count < k)) continue;

            var kept = Sorted(weights, found);
            if (kept.Length > k) kept = kept[..k];
            var target = p * (everyone ? total : Sum(weights, kept));
            var sum = 0.0;
            for (var i = 0; i < kept.Length; i++)
                if ((sum += weights[kept[i]]) >= target) return kept[..(i + 1)];
            return kept;
        }
    }

    private static Span<int> Sorted(ReadOnlySpan<float> weights, Span<int> tokens)
    {
        var keys = ArrayPool<float>.Shared.Rent(tokens.Length);
        for (var i = 0; i < tokens.Length; i++) keys[i] = -weights[tokens[i]];
        keys.AsSpan(0, tokens.Length).Sort(tokens);
        for (int i = 0, j; i < tokens.Length; i = j)                            // the sort is not stable: put ties in order of id
        {
            for (j = i + 1; j < tokens.Length && keys[j] == keys[i];) j++;
            if (j - i > 1) tokens[i..j].Sort();
        }
        ArrayPool<float>.Shared.Return(keys);
        return tokens;
    }

    private static double Sum(ReadOnlySpan<float> weights, ReadOnlySpan<int> tokens)
    {
        var sum = 0.0;
        foreach (var token in tokens) sum += weights[token];
        return sum;
    }

    private static double Total(ReadOnlySpan<float> weights)
    {
        var sum = 0.0;
        foreach (var weight in weights) sum += weight;
        return sum;
    }

    private static void Zero(Span<float> weights, float below)
    {
        foreach (ref var weight in weights)
            if (weight < below) weight = 0;
    }

    private static int Walk(ReadOnlySpan<float> weights, double u)
    {
        var last = 0;
        for (var token = 0; token < weights.Length; token++)
        {
            if (weights[token] == 0) continue;
            last = token;
            if ((u -= weights[token]) < 0) return token;
        }
        return last;
    }

    private Sampled Report(int token, ReadOnlySpan<float> logits, SamplingState state)
    {
        if (state.Options.LogProbabilities is not { } top) return new Sampled(token, 0, []);
        var shift = TensorPrimitives.Max(logits);
        TensorPrimitives.Subtract(logits, shift, work);
        TensorPrimitives.Exp(work, work);
        var logTotal = (float)Math.Log(Total(work)) + shift;
        var rivals = top == 0 ? [] : Likeliest(work, top, 1);
        var reported = new (int, float)[rivals.Length];
        for (var i = 0; i < rivals.Length; i++) reported[i] = (rivals[i], logits[rivals[i]] - logTotal);
        return new Sampled(token, logits[token] - logTotal, reported);
    }

    /// <summary>[0, 1) from (seed, position) alone: two rounds of SplitMix64 (Steele et al., OOPSLA 2014).</summary>
    internal static double Uniform(ulong seed, int position) =>
        (Mix(Mix(seed) + (0x9E3779B97F4A7C15UL * ((ulong)position + 1))) >> 11) * (1.0 / (1UL << 53));

    private static ulong Mix(ulong z)
    {
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9UL;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBUL;
        return z ^ (z >> 31);
    }
}
