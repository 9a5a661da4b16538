namespace TenantLora.Runtime.Scheduling;

/// <summary>What became of a sequence.</summary>
internal enum SequenceState
{
    Waiting,
    Running,

    /// <summary>Left the scheduler: it holds no block, whatever the reason.</summary>
    Finished,
}

/// <summary>One generation in flight: its tokens, how many of them the cache holds, and where.</summary>
internal class Sequence(string tenant, string? adapter, int[] prompt, int maxTokens, IReadOnlySet<int> endTokens)
{
    private volatile bool cancelled;

    /// <summary>Whom its tokens are counted for.</summary>
    public string Tenant { get; } = tenant;

    /// <summary>Digest of its adapter, or null: rows with one adapter are scheduled as neighbours.</summary>
    public string? Adapter { get; } = adapter;

    /// <summary>Prompt, then answer.</summary>
    public List<int> Tokens { get; } = [.. prompt];

    public int PromptLength { get; } = prompt.Length;

    public int Generated => Tokens.Count - PromptLength;

    /// <summary>Tokens that steps under way draw: they count, but what they are is not known yet.</summary>
    public int InFlight { get; set; }

    /// <summary>Tokens, those in flight included.</summary>
    public int Length => Tokens.Count + InFlight;

    /// <summary>Which draw of the last step gives its newest token, while that is in flight.</summary>
    public int DrawnAt { get; set; }

    /// <summary>Whether its last token is drawn or in flight, so that no step is left to run.</summary>
    public bool Exhausted => Length - PromptLength >= maxTokens;

    /// <summary>Leading tokens whose keys and values are in the cache, or come there with the steps under way.</summary>
    public int Computed { get; set; }

    public BlockTable Blocks { get; } = new();

    public SequenceState State { get; set; }

    /// <summary>Set by whoever reads the answer; seen by the scheduler before its next step.</summary>
    public bool Cancelled => cancelled;

    public void Cancel() => cancelled = true;

    /// <summary>Why the answer ends with its last token, or null if it goes on.</summary>
    public FinishReason? Finish =>
        Generated == 0 ? null
        : endTokens.Contains(Tokens[^1]) ? FinishReason.Stop
        : Generated >= maxTokens ? FinishReason.Length
        : null;
}
