namespace TenantLora.Runtime.Backends;

/// <summary>
/// How one token is drawn from a row of logits. In this order: repetition (of tokens in Prompt or Answered: a positive logit is divided,
/// another multiplied), frequency·count + presence (of Answered), bias; temperature 0 takes the largest, the lowest id of equals; otherwise
/// weights exp((s − max)/T), of which the top-k, then the smallest head that holds top-p of their sum, then those of at least min-p of the
/// largest are kept, ties by id; the token at which the running sum, in order of id, first exceeds Uniform·total is drawn.
/// </summary>
internal sealed record DrawRule
{
    /// <summary>0: the largest.</summary>
    public float Temperature { get; init; }

    /// <summary>0: all.</summary>
    public int TopK { get; init; }

    /// <summary>1: all.</summary>
    public float TopP { get; init; } = 1;

    public float MinP { get; init; }

    public float Repetition { get; init; } = 1;

    public float Frequency { get; init; }

    public float Presence { get; init; }

    /// <summary>The draw, in [0, 1).</summary>
    public double Uniform { get; init; }

    /// <summary>Null: no log-probabilities; otherwise how many of the likeliest are reported beside the drawn one's.</summary>
    public int? LogProbabilities { get; init; }

    /// <summary>Tokens of the prompt, for Repetition; null where it is 1.</summary>
    public IReadOnlySet<int>? Prompt { get; init; }

    /// <summary>Tokens of the answer so far with their counts; null where no penalty asks for them.</summary>
    public IReadOnlyDictionary<int, int>? Answered { get; init; }

    public IReadOnlyDictionary<int, float>? Bias { get; init; }
}

/// <summary>A drawn token, with log-probabilities (of the logits as they came, unchanged by the rule) where they were asked for.</summary>
/// <param name="Token">−1: the row held a NaN or an infinity, or nothing was left to choose from.</param>
internal readonly record struct Drawn(int Token, float LogProbability, (int Token, float LogProbability)[] Top);
