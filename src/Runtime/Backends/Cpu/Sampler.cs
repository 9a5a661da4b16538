using System.Buffers;
using System.Collections.Frozen;
using System.Numerics.Tensors;

namespace TenantLora.Runtime.Backends.Cpu;

/// <summary>Draws tokens as <see cref="DrawRule"/> says, a row at a time: a row sees nothing of its neighbours.</summary>
internal sealed class Sampler
{
    private float[] work = [];
    private int[] order = [];

    public Drawn Draw(ReadOnlySpan<float> logits, DrawRule rule)
    {
        // Max is NaN if any is; +∞ and a row of only −∞ show as such.
        if (!float.IsFinite(TensorPrimitives.Max(logits)) || float.IsNegativeInfinity(TensorPrimitives.Min(logits))) return new Drawn(-1, 0, []);
        var adjusts = Adjusts(rule);
        if (!adjusts && rule.Temperature == 0) return Report(TensorPrimitives.IndexOfMax(logits), logits, rule);

        var scores = Work(logits.Length);
        logits.CopyTo(scores);
        if (adjusts) Adjust(scores, rule);
        return Report(rule.Temperature == 0 ? TensorPrimitives.IndexOfMax(scores) : Choose(scores, rule), logits, rule);
    }

    private static bool Adjusts(DrawRule rule) =>
        rule.Repetition != 1 || ((rule.Frequency != 0 || rule.Presence != 0) && rule.Answered is { Count: > 0 }) || rule.Bias is { Count: > 0 };

    private static void Adjust(Span<float> logits, DrawRule rule)
    {
        if (rule.Repetition != 1)
        {
            foreach (var token in rule.Prompt ?? NoTokens) Repeat(ref logits[token], rule.Repetition);
            foreach (var token in (rule.Answered ?? NoCounts).Keys)
                if (rule.Prompt?.Contains(token) != true) Repeat(ref logits[token], rule.Repetition);
        }
        if (rule.Frequency != 0 || rule.Presence != 0)
            foreach (var (token, count) in rule.Answered ?? NoCounts) logits[token] -= (rule.Frequency * count) + rule.Presence;
        foreach (var (token, bias) in rule.Bias ?? NoBias) logits[token] += bias;
    }

    private static void Repeat(ref float logit, float by) => logit = logit > 0 ? logit / by : logit * by;

    private static readonly IReadOnlySet<int> NoTokens = FrozenSet<int>.Empty;
    private static readonly IReadOnlyDictionary<int, int> NoCounts = FrozenDictionary<int, int>.Empty;
    private static readonly IReadOnlyDictionary<int, float> NoBias = FrozenDictionary<int, float>.Empty;

    private Span<float> Work(int vocabulary)
    {
        if (work.Length < vocabulary) (work, order) = (new float[vocabulary], new int[vocabulary]);
        return work.AsSpan(0, vocabulary);
    }

    /// <summary>Turns <paramref name="scores"/> into weights, exp((s − max)/T), keeps top-k, top-p and min-p of them, and draws.</summary>
    private int Choose(Span<float> scores, DrawRule rule)
    {
        TensorPrimitives.Subtract(scores, TensorPrimitives.Max(scores), scores);
        TensorPrimitives.Divide(scores, rule.Temperature, scores);
        TensorPrimitives.Exp(scores, scores);

        var all = rule.TopK <= 0 || rule.TopK >= scores.Length;
        if (all && rule.TopP >= 1)
        {
            if (rule.MinP > 0) Zero(scores, rule.MinP);                         // the likeliest weighs 1
            return Walk(scores, rule.Uniform);
        }
        var kept = Likeliest(scores, all ? scores.Length : rule.TopK, rule.TopP);
        while (scores[kept[^1]] < rule.MinP) kept = kept[..^1];                 // the first weighs 1
        kept.Sort();
        return Walk(scores, kept, rule.Uniform);
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

    /// <summary>The token at which the running sum first exceeds u · total.</summary>
    private static int Walk(ReadOnlySpan<float> weights, double u)
    {
        var (target, sum, last) = (u * Total(weights), 0.0, 0);
        for (var token = 0; token < weights.Length; token++)
        {
            if (weights[token] == 0) continue;
            last = token;
            if ((sum += weights[token]) > target) return token;
        }
        return last;
    }

    private static int Walk(ReadOnlySpan<float> weights, ReadOnlySpan<int> kept, double u)
    {
        var (target, sum) = (u * Sum(weights, kept), 0.0);
        foreach (var token in kept)
            if ((sum += weights[token]) > target) return token;
        return kept[^1];
    }

    private Drawn Report(int token, ReadOnlySpan<float> logits, DrawRule rule)
    {
        if (rule.LogProbabilities is not { } top) return new Drawn(token, 0, []);
        var weights = Work(logits.Length);
        var shift = TensorPrimitives.Max(logits);
        TensorPrimitives.Subtract(logits, shift, weights);
        TensorPrimitives.Exp(weights, weights);
        var logTotal = (float)Math.Log(Total(weights)) + shift;
        var rivals = top == 0 ? [] : Likeliest(weights, Math.Min(top, weights.Length), 1);
        var reported = new (int, float)[rivals.Length];
        for (var i = 0; i < rivals.Length; i++) reported[i] = (rivals[i], logits[rivals[i]] - logTotal);
        return new Drawn(token, logits[token] - logTotal, reported);
    }
}
