using System.Net;
using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using TenantLora.Runtime;

namespace TenantLora.Connector;

/// <summary>
/// OpenAI's JSON, as much of it as crosses here. <c>top_k</c>, <c>min_p</c> and <c>repetition_penalty</c> are vLLM's names, <c>timings</c> llama.cpp's.
/// </summary>
[JsonSourceGenerationOptions(
    PropertyNamingPolicy = JsonKnownNamingPolicy.SnakeCaseLower,
    DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull,
    // NaN goes out as "NaN": the server judges ranges, and says so better than a serializer.
    NumberHandling = JsonNumberHandling.AllowNamedFloatingPointLiterals)]
[JsonSerializable(typeof(CompletionBody))]
[JsonSerializable(typeof(CompletionChunk))]
[JsonSerializable(typeof(ModelList))]
internal sealed partial class Wire : JsonSerializerContext;

/// <summary>The body of <c>chat/completions</c> (messages) and <c>completions</c> (prompt).</summary>
internal sealed record CompletionBody(string? Model, IReadOnlyList<WireMessage>? Messages, string? Prompt)
{
    public bool Stream { get; } = true;
    public WireStreamOptions StreamOptions { get; } = new(IncludeUsage: true);
    public int? MaxTokens { get; init; }
    public IReadOnlyList<string>? Stop { get; init; }
    public float? Temperature { get; init; }
    public int? TopK { get; init; }
    public float? TopP { get; init; }
    public float? MinP { get; init; }
    public float? RepetitionPenalty { get; init; }
    public float? FrequencyPenalty { get; init; }
    public float? PresencePenalty { get; init; }
    public IReadOnlyDictionary<int, float>? LogitBias { get; init; }
    public long? Seed { get; init; }

    /// <summary>A flag for messages, a count for a prompt: OpenAI's two APIs differ here.</summary>
    [JsonPropertyName("logprobs")]
    public JsonValue? LogProbabilities { get; init; }

    [JsonPropertyName("top_logprobs")]
    public int? TopLogProbabilities { get; init; }

    public static CompletionBody From(GenerationRequest request)
    {
        if (request.Tools.Count > 0 || request.Messages?.Any(m => m.ToolCalls.Count > 0 || m.ToolCallId is not null) == true)
            throw new TenantLoraException(ErrorCodes.Unsupported, "Tools do not travel to a remote runtime.") { Parameter = "tools" };

        var sampling = request.Sampling;
        return new CompletionBody(request.Model, request.Messages?.Select(m => new WireMessage(m.Role, m.Content)).ToList(), request.Prompt)
        {
            MaxTokens = request.MaxTokens,
            Stop = request.StopStrings.Count > 0 ? request.StopStrings : null,
            Temperature = sampling.Temperature,
            TopK = sampling.TopK,
            TopP = sampling.TopP,
            MinP = sampling.MinP,
            RepetitionPenalty = sampling.RepetitionPenalty,
            FrequencyPenalty = sampling.FrequencyPenalty,
            PresencePenalty = sampling.PresencePenalty,
            LogitBias = sampling.LogitBias,
            Seed = sampling.Seed,
            LogProbabilities = sampling.LogProbabilities is not { } rivals ? null : request.Prompt is null ? JsonValue.Create(true) : JsonValue.Create(rivals),
            TopLogProbabilities = request.Prompt is null && sampling.LogProbabilities > 0 ? sampling.LogProbabilities : null,
        };
    }
}

internal sealed record WireMessage(string Role, string Content);

internal sealed record WireStreamOptions(bool IncludeUsage);

/// <summary>One <c>data:</c> of the stream.</summary>
internal sealed record CompletionChunk
{
    /// <summary>A response with this header tells its progress in its chunks, from the queue on.</summary>
    public const string ProgressHeader = "x-tenantlora-progress";

    private static readonly CompletionChunk End = new() { IsEnd = true };

    /// <summary>It was <c>[DONE]</c>.</summary>
    [JsonIgnore]
    public bool IsEnd { get; private init; }

    public IReadOnlyList<WireChoice>? Choices { get; init; }
    public WireUsage? Usage { get; init; }
    public WireTimings? Timings { get; init; }
    public string? SystemFingerprint { get; init; }
    public WireProgress? Progress { get; init; }
    public WireError? Error { get; init; }

    /// <exception cref="JsonException">It is not such a chunk.</exception>
    public static CompletionChunk Read(ReadOnlySpan<byte> data) => data.Trim(" \t"u8) is var trimmed && trimmed.SequenceEqual("[DONE]"u8) ? End
        : trimmed.IsEmpty ? new CompletionChunk()
        : JsonSerializer.Deserialize(trimmed, Wire.Default.CompletionChunk) ?? throw new JsonException("An event of the stream is null.");
}

internal sealed record WireChoice(WireDelta? Delta, string? Text, string? FinishReason)
{
    [JsonPropertyName("logprobs")]
    public WireLogProbabilities? LogProbabilities { get; init; }
}

internal sealed record WireDelta(string? Content);

/// <summary>What a runtime tells a host beside the text; both sides of it. Null is not written, whoever writes.</summary>
/// <param name="Event"><c>queued</c>, <c>adapter_load</c>, <c>prefill</c>, or <c>delta</c> beside a text of other than one token.</param>
internal sealed record WireProgress(string? Event)
{
    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public int? Ahead { get; init; }

    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public int? PromptTokens { get; init; }

    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public int? Done { get; init; }

    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public int? Total { get; init; }

    [JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public int? Tokens { get; init; }

    /// <summary>Null: there is nothing to tell.</summary>
    public static WireProgress? From(GenerationEvent happened) => happened switch
    {
        GenerationQueued queued => new("queued") { Ahead = queued.Ahead, PromptTokens = queued.PromptTokens },
        AdapterLoading => new("adapter_load"),
        PrefillProgress prefill => new("prefill") { Done = prefill.Done, Total = prefill.Total },
        TextDelta { Tokens: not 1 } delta => new("delta") { Tokens = delta.Tokens },
        _ => null,
    };

    public GenerationEvent? ToEvent(string? adapter) => Event switch
    {
        "queued" => new GenerationQueued(Ahead ?? 0, PromptTokens ?? 0),
        "adapter_load" => new AdapterLoading(adapter ?? ""),
        "prefill" => new PrefillProgress(Done ?? 0, Total ?? 0),
        _ => null,
    };
}

internal sealed record WireUsage(int PromptTokens, int CompletionTokens);

internal sealed record WireTimings(double? QueuedMs, double? PromptMs, double? PredictedMs);

/// <summary>Log-probabilities in the shape of chat (<c>content</c>) or of completions (parallel lists).</summary>
internal sealed record WireLogProbabilities(
    IReadOnlyList<WireTokenLogProbability>? Content,
    IReadOnlyList<string>? Tokens,
    [property: JsonPropertyName("token_logprobs")] IReadOnlyList<float?>? TokenLogProbabilities,
    [property: JsonPropertyName("top_logprobs")] IReadOnlyList<Dictionary<string, float>?>? TopLogProbabilities)
{
    public List<TokenLogProbability> ToList() => Content is not null
        ? [.. Content.Select(t => t.ToToken())]
        : [.. (Tokens ?? []).Select((text, i) => Token(text, TokenLogProbabilities?.ElementAtOrDefault(i) ?? float.NaN,
            [.. (TopLogProbabilities?.ElementAtOrDefault(i) ?? []).OrderByDescending(t => t.Value).Select(t => Token(t.Key, t.Value, []))]))];

    private static TokenLogProbability Token(string text, float value, IReadOnlyList<TokenLogProbability> top) => new(text, Encoding.UTF8.GetBytes(text), value, top);
}

internal sealed record WireTokenLogProbability(
    string Token,
    [property: JsonPropertyName("logprob")] float LogProbability,
    IReadOnlyList<int>? Bytes,
    [property: JsonPropertyName("top_logprobs")] IReadOnlyList<WireTokenLogProbability>? Top)
{
    public TokenLogProbability ToToken() => new(Token, Bytes is null ? Encoding.UTF8.GetBytes(Token) : Bytes.Select(b => (byte)b).ToArray(), LogProbability,
        [.. (Top ?? []).Select(t => t.ToToken())]);
}

/// <summary>OpenAI's error, in an envelope or in a chunk. <paramref name="Code"/> is a number with some servers.</summary>
internal sealed record WireError(string? Message, string? Param, JsonElement? Code)
{
    /// <summary>The error in a body, or null if the body is not an envelope: a proxy's page, for one.</summary>
    public static WireError? Read(ReadOnlySpan<byte> body)
    {
        try
        {
            return JsonSerializer.Deserialize(body, Wire.Default.CompletionChunk)?.Error;
        }
        catch (JsonException)
        {
            return null;
        }
    }

    public TenantLoraException ToException(HttpStatusCode status, string? requestId, TimeSpan? retryAfter)
    {
        var code = Code is { ValueKind: JsonValueKind.String } named && named.GetString() is { Length: > 0 } name ? name : CodeOf(status);
        return new TenantLoraException(code, Message ?? "The server gave no reason.") { Parameter = Param, RequestId = requestId, RetryAfter = retryAfter };
    }

    private static string CodeOf(HttpStatusCode status) => (int)status switch
    {
        401 or 403 => ErrorCodes.InvalidKey,
        404 => ErrorCodes.ModelNotFound,
        429 => ErrorCodes.QueueFull,
        502 or 504 => ErrorCodes.Unreachable,
        503 => ErrorCodes.ShuttingDown,
        >= 400 and < 500 => ErrorCodes.InvalidRequest,
        _ => ErrorCodes.Internal,
    };
}

internal sealed record ModelList(IReadOnlyList<WireModel> Data);

internal sealed record WireModel(string Id);
