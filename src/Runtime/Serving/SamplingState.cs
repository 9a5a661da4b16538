using TenantLora.Runtime.Backends;

namespace TenantLora.Runtime.Serving;

/// <summary>How one sequence's tokens are chosen, and what it has said so far: a <see cref="DrawRule"/> for each of its tokens.</summary>
internal sealed class SamplingState
{
    private readonly Dictionary<int, int> answered = [];
    private readonly DrawRule rule;
    private readonly ulong seed;

    public SamplingState(SamplingOptions options, SamplingOptions defaults, long seed, ReadOnlySpan<int> prompt)
    {
        this.seed = (ulong)seed;
        var repetition = options.RepetitionPenalty ?? defaults.RepetitionPenalty ?? 1;
        var (frequency, presence) = (options.FrequencyPenalty ?? 0, options.PresencePenalty ?? 0);
        NeedsHistory = repetition != 1 || frequency != 0 || presence != 0;
        rule = new DrawRule
        {
            Temperature = options.Temperature ?? defaults.Temperature ?? 1,
            TopK = Math.Max(0, options.TopK ?? defaults.TopK ?? 0),
            TopP = options.TopP ?? defaults.TopP ?? 1,
            MinP = options.MinP ?? defaults.MinP ?? 0,
            Repetition = repetition,
            Frequency = frequency,
            Presence = presence,
            LogProbabilities = options.LogProbabilities,
            Prompt = repetition == 1 ? null : prompt.ToArray().ToHashSet(),
            Answered = NeedsHistory ? answered : null,
            Bias = options.LogitBias is { Count: > 0 } bias ? bias : null,
        };
    }

    /// <summary>Whether a rule depends on the tokens before it, so that all of them must be known when it is made.</summary>
    public bool NeedsHistory { get; }

    /// <summary>
    /// How the answer's token number <paramref name="position"/>, from 0, is drawn: that and the seed make every draw independent of its
    /// neighbours. Where history is needed the rule reads it when it is used: before the next <see cref="Accept"/>.
    /// </summary>
    public DrawRule Rule(int position) => rule.Temperature == 0 ? rule : rule with { Uniform = Uniform(seed, position) };

    public void Accept(int token)
    {
        if (NeedsHistory) answered[token] = answered.GetValueOrDefault(token) + 1;
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
