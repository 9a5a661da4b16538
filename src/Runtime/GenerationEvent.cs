namespace TenantLora.Runtime;

/// <summary>
/// What happens to a request, in this order: <see cref="GenerationQueued"/>, <see cref="AdapterLoading"/> (only when the adapter is
/// not at hand), <see cref="PrefillProgress"/>*, <see cref="TextDelta"/>*, one <see cref="GenerationDone"/>. A failure is a
/// <see cref="TenantLoraException"/> thrown by the stream, in the place of what would have come next.
/// </summary>
public abstract record GenerationEvent;

/// <summary>Accepted.</summary>
/// <param name="Ahead">Requests that wait in front of this one.</param>
/// <param name="PromptTokens">Length of the encoded prompt; 0 where a remote runtime has not said.</param>
public sealed record GenerationQueued(int Ahead, int PromptTokens) : GenerationEvent;

/// <summary>The adapter is being brought to the device.</summary>
/// <param name="Adapter">Its digest.</param>
public sealed record AdapterLoading(string Adapter) : GenerationEvent;

/// <summary>The prompt is being read. Sent when the sequence first runs and after each chunk.</summary>
/// <param name="Done">Prompt tokens read so far.</param>
/// <param name="Total">Prompt tokens in all.</param>
public sealed record PrefillProgress(int Done, int Total) : GenerationEvent;

/// <summary>More of the answer: whole characters, never part of a stop string.</summary>
/// <param name="Text">May be empty when only <see cref="LogProbabilities"/> come.</param>
public sealed record TextDelta(string Text) : GenerationEvent
{
    /// <summary>Tokens generated since the last delta: more than one when a character or a possible stop string was held back. Over HTTP 1 where nobody says.</summary>
    public int Tokens { get; init; } = 1;

    /// <summary>One entry a generated token since the last delta, when asked for.</summary>
    public IReadOnlyList<TokenLogProbability> LogProbabilities { get; init; } = [];
}

/// <summary>A token and how likely the model thought it, after temperature-free softmax of the raw logits.</summary>
/// <param name="Token">Its text; a part of a character shows as U+FFFD.</param>
/// <param name="Bytes">Its exact bytes.</param>
/// <param name="LogProbability">Natural logarithm.</param>
/// <param name="Top">The likeliest tokens at this place, best first; empty inside such a list.</param>
public sealed record TokenLogProbability(string Token, ReadOnlyMemory<byte> Bytes, float LogProbability, IReadOnlyList<TokenLogProbability> Top);

/// <summary>The end of an answer.</summary>
public sealed record GenerationDone(FinishReason Reason, GenerationUsage Usage, GenerationTimings Timings) : GenerationEvent
{
    /// <summary>Digest of the adapter that answered; null for the base model.</summary>
    public string? Adapter { get; init; }

    /// <summary>Names base model and adapter version by content: OpenAI's <c>system_fingerprint</c>.</summary>
    public string? Fingerprint { get; init; }
}

/// <summary>Why generation ended.</summary>
public enum FinishReason
{
    /// <summary>An end token or a stop string.</summary>
    Stop,

    /// <summary>The token limit or the end of the context.</summary>
    Length,
}

/// <summary>Token counts.</summary>
/// <param name="PromptTokens">Tokens read.</param>
/// <param name="CompletionTokens">Tokens generated, the end token and a matched stop string's included.</param>
public sealed record GenerationUsage(int PromptTokens, int CompletionTokens)
{
    /// <summary>Both together.</summary>
    public int TotalTokens => PromptTokens + CompletionTokens;
}

/// <summary>Where the time went.</summary>
/// <param name="Queued">From arrival to the first step.</param>
/// <param name="Prefill">From the first step to the first token.</param>
/// <param name="Decode">From the first token to the last.</param>
public sealed record GenerationTimings(TimeSpan Queued, TimeSpan Prefill, TimeSpan Decode);
