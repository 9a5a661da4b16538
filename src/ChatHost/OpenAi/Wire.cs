using System.Text.Json.Serialization;
using TenantLora.Connector;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.OpenAi;

// OpenAI's answers, as its clients read them. Null is written unless said otherwise: several clients require the name to be there.

/// <summary>A whole answer, or one chunk of a streamed one.</summary>
internal sealed record Completion(string Id, [property: JsonPropertyName("object")] string Kind, long Created, string Model, IReadOnlyList<Choice> Choices)
{
    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public CompletionUsage? Usage { get; init; }

    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public string? SystemFingerprint { get; init; }

    /// <summary>llama.cpp's extension, which chat pages read.</summary>
    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public CompletionTimings? Timings { get; init; }

    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public WireProgress? Progress { get; init; }
}

/// <summary>Exactly one of delta, message and text is set.</summary>
internal sealed record Choice
{
    public int Index { get; init; }

    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public ChoiceText? Delta { get; init; }

    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public ChoiceText? Message { get; init; }

    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public string? Text { get; init; }

    /// <summary>Of <see cref="ChatLogprobs"/> or <see cref="PlainLogprobs"/>.</summary>
    public object? Logprobs { get; init; }

    /// <summary>Null until the end; then <c>stop</c> or <c>length</c>. Any other word makes OpenAI's .NET client throw.</summary>
    public string? FinishReason { get; init; }
}

/// <summary>A message, or a piece of one.</summary>
internal sealed record ChoiceText
{
    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public string? Role { get; init; }

    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public string? Content { get; init; }
}

internal sealed record CompletionUsage(int PromptTokens, int CompletionTokens, int TotalTokens)
{
    public static CompletionUsage From(GenerationUsage usage) => new(usage.PromptTokens, usage.CompletionTokens, usage.TotalTokens);
}

/// <summary>In milliseconds and tokens a second; prompt is what was read, predicted what was written.</summary>
internal sealed record CompletionTimings(
    double QueuedMs, int PromptN, double PromptMs, double PromptPerSecond, int PredictedN, double PredictedMs, double PredictedPerSecond)
{
    public static CompletionTimings From(GenerationDone done) => new(
        Ms(done.Timings.Queued),
        done.Usage.PromptTokens, Ms(done.Timings.Prefill), PerSecond(done.Usage.PromptTokens, done.Timings.Prefill),
        done.Usage.CompletionTokens, Ms(done.Timings.Decode), TokensPerSecond(done.Usage.CompletionTokens, done.Timings.Decode));

    /// <summary>Decode runs from the first token to the last, so it holds one token fewer than there are.</summary>
    public static double TokensPerSecond(int tokens, TimeSpan decode) => PerSecond(tokens - 1, decode);

    public static double Ms(TimeSpan time) => Math.Round(time.TotalMilliseconds, 3);

    private static double PerSecond(int tokens, TimeSpan time) => tokens > 0 && time > TimeSpan.Zero ? Math.Round(tokens / time.TotalSeconds, 2) : 0;
}

internal sealed record ChatLogprobs(IReadOnlyList<ChatLogprob> Content)
{
    public static ChatLogprobs? From(IReadOnlyList<TokenLogProbability> tokens) => tokens is [] ? null : new([.. tokens.Select(ChatLogprob.From)]);
}

internal sealed record ChatLogprob(string Token, float Logprob, int[] Bytes)
{
    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public IReadOnlyList<ChatLogprob>? TopLogprobs { get; init; }

    public static ChatLogprob From(TokenLogProbability token) => Bare(token) with { TopLogprobs = [.. token.Top.Select(Bare)] };

    private static ChatLogprob Bare(TokenLogProbability token) => new(token.Token, token.LogProbability, [.. token.Bytes.ToArray()]);
}

/// <summary>The older form, of plain completions: parallel arrays.</summary>
internal sealed record PlainLogprobs(
    IReadOnlyList<string> Tokens, IReadOnlyList<float> TokenLogprobs, IReadOnlyList<IReadOnlyDictionary<string, float>> TopLogprobs, IReadOnlyList<int> TextOffset)
{
    /// <param name="tokens">The tokens of this answer or chunk.</param>
    /// <param name="offset">UTF-16 units of answer before them.</param>
    public static PlainLogprobs? From(IReadOnlyList<TokenLogProbability> tokens, int offset)
    {
        if (tokens is []) return null;
        List<int> offsets = [];
        foreach (var token in tokens)
        {
            offsets.Add(offset);
            offset += token.Token.Length;
        }
        return new([.. tokens.Select(t => t.Token)], [.. tokens.Select(t => t.LogProbability)], [.. tokens.Select(Rivals)], offsets);
    }

    // Different tokens can show as the same text (parts of characters); the likeliest keeps the name.
    private static Dictionary<string, float> Rivals(TokenLogProbability token) =>
        token.Top.DistinctBy(t => t.Token).ToDictionary(t => t.Token, t => t.LogProbability);
}

internal sealed record ModelList(IReadOnlyList<ModelCard> Data, [property: JsonPropertyName("object")] string Kind = "list");

/// <summary>One model that the key may name. <c>parent</c> and <c>root</c> as in vLLM; no file paths.</summary>
internal sealed record ModelCard(string Id, long Created, string OwnedBy, string? Parent, string Root, [property: JsonPropertyName("object")] string Kind = "model")
{
    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public AdapterCard? Adapter { get; init; }
}

/// <param name="Bytes">Of its tensors as they are kept: compact.</param>
/// <param name="ExpandedBytes">Of the plain LoRA of the same ranks.</param>
internal sealed record AdapterCard(string Kind, int Rank, long Bytes, [property: JsonPropertyName("expandedBytes")] long ExpandedBytes, string Digest)
{
    public static AdapterCard From(AdapterInfo adapter) => new(adapter.Kind, adapter.Rank, adapter.Bytes, adapter.ExpandedBytes, adapter.Digest);
}
