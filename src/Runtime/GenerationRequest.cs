using System.Text.Json;

namespace TenantLora.Runtime;

/// <summary>
/// One wanted answer. Exactly one of <see cref="Messages"/> (rendered by the model's chat template) and <see cref="Prompt"/>
/// (raw, no template) is set. Immutable; the runtime never changes it.
/// </summary>
public sealed record GenerationRequest
{
    /// <summary>An opaque key that isolates and shares fairly. The runtime attaches no meaning to it.</summary>
    public required string Tenant { get; init; }

    /// <summary>What the caller called the model; a remote runtime resolves it. Null in process: <see cref="Adapter"/> decides.</summary>
    public string? Model { get; init; }

    /// <summary>The digest (<c>sha256:…</c>) of the adapter to run under; null runs the base model.</summary>
    public string? Adapter { get; init; }

    /// <summary>The conversation so far, oldest first.</summary>
    public IReadOnlyList<Message>? Messages { get; init; }

    /// <summary>Functions that the model may ask for; rendered by the chat template.</summary>
    public IReadOnlyList<ToolDefinition> Tools { get; init; } = [];

    /// <summary>Text that the model continues as it stands.</summary>
    public string? Prompt { get; init; }

    /// <summary>How tokens are chosen.</summary>
    public SamplingOptions Sampling { get; init; } = new();

    /// <summary>At most this many tokens are generated, 1 or more; null: the model's own limit, or as many as fit the context.</summary>
    public int? MaxTokens { get; init; }

    /// <summary>Generation ends before the first of these texts; they are found across token borders and never shown in part.</summary>
    public IReadOnlyList<string> StopStrings { get; init; } = [];

    /// <exception cref="TenantLoraException">Names every field that is out of range; its parameter is the first of them.</exception>
    internal void Check(int vocabulary)
    {
        var findings = new List<(string Field, string Text)>();
        void Expect(bool good, string field, string expected, object? found)
        {
            if (!good) findings.Add((field, $"'{field}' must be {expected}, not {found}."));
        }
        // Every range is written so that NaN fails it.
        var s = Sampling;
        Expect(Messages is null != Prompt is null, Messages is null ? "prompt" : "messages", "given, either it or the other", Messages is null ? "neither" : "both");
        Expect(Messages is not { Count: 0 }, "messages", "at least one message", "an empty list");
        foreach (var message in Messages ?? [])
            Expect(message.Role is "system" or "user" or "assistant" or "tool", "messages", "of role system, user, assistant or tool", $"'{message.Role}'");
        Expect(MaxTokens is null or >= 1, "max_tokens", "1 or more", MaxTokens);
        Expect(s.Temperature is null or (>= 0 and <= 2), "temperature", "from 0 to 2", s.Temperature);
        Expect(s.TopP is null or (> 0 and <= 1), "top_p", "above 0 and at most 1", s.TopP);
        Expect(s.MinP is null or (>= 0 and < 1), "min_p", "from 0 to below 1", s.MinP);
        Expect(s.TopK is null or >= -1, "top_k", "-1 or more", s.TopK);
        Expect(s.RepetitionPenalty is null or (> 0 and <= 10), "repetition_penalty", "above 0 and at most 10", s.RepetitionPenalty);
        Expect(s.FrequencyPenalty is null or (>= -2 and <= 2), "frequency_penalty", "from -2 to 2", s.FrequencyPenalty);
        Expect(s.PresencePenalty is null or (>= -2 and <= 2), "presence_penalty", "from -2 to 2", s.PresencePenalty);
        Expect(s.LogProbabilities is null or (>= 0 and <= 20), "top_logprobs", "from 0 to 20", s.LogProbabilities);
        foreach (var (token, bias) in s.LogitBias ?? new Dictionary<int, float>())
        {
            Expect(token >= 0 && token < vocabulary, "logit_bias", $"keyed by token ids from 0 to {vocabulary - 1}", token);
            Expect(bias is >= -100 and <= 100, "logit_bias", "from -100 to 100", bias);
        }
        Expect(StopStrings.All(t => !string.IsNullOrEmpty(t)), "stop", "texts that are not empty", "an empty one");
        if (findings.Count > 0)
            throw new TenantLoraException(ErrorCodes.InvalidRequest, string.Join(" ", findings.Select(f => f.Text).Distinct().Take(8))) { Parameter = findings[0].Field };
    }
}

/// <summary>One turn of a conversation.</summary>
/// <param name="Role"><c>system</c>, <c>user</c>, <c>assistant</c> or <c>tool</c>.</param>
/// <param name="Content">The text; may be empty for an assistant turn that only calls tools. Special tokens in it are text.</param>
public sealed record Message(string Role, string Content)
{
    /// <summary>The calls an assistant turn made.</summary>
    public IReadOnlyList<ToolCall> ToolCalls { get; init; } = [];

    /// <summary>Of a tool turn: the id of the call that this answers.</summary>
    public string? ToolCallId { get; init; }
}

/// <summary>A function call made by the model.</summary>
/// <param name="Id">Unique in its conversation.</param>
/// <param name="Name">The function's name.</param>
/// <param name="Arguments">A JSON object.</param>
public sealed record ToolCall(string Id, string Name, JsonElement Arguments);

/// <summary>A function that the model may call.</summary>
/// <param name="Name">As the model will spell it.</param>
/// <param name="Description">What it does, for the model.</param>
/// <param name="Parameters">A JSON schema of its arguments.</param>
public sealed record ToolDefinition(string Name, string? Description, JsonElement? Parameters);

/// <summary>
/// How tokens are chosen. Null means the model's own default (<c>generation_config.json</c>), and where that is silent the neutral
/// value. The order is: penalties and bias on the logits, temperature, top-k, top-p, min-p, draw.
/// </summary>
public sealed record SamplingOptions
{
    /// <summary>0 to 2; 0 is greedy.</summary>
    public float? Temperature { get; init; }

    /// <summary>Keep the k likeliest tokens; 0 or less keeps all.</summary>
    public int? TopK { get; init; }

    /// <summary>Keep the smallest set of likeliest tokens whose probabilities reach this; in (0, 1].</summary>
    public float? TopP { get; init; }

    /// <summary>Drop tokens less likely than this share of the likeliest; in [0, 1).</summary>
    public float? MinP { get; init; }

    /// <summary>Divides (positive) or multiplies (negative) the logits of tokens seen in prompt or answer (CTRL, Keskar et al. 2019); above 0, 1 is neutral.</summary>
    public float? RepetitionPenalty { get; init; }

    /// <summary>Subtracted per occurrence in the answer; −2 to 2.</summary>
    public float? FrequencyPenalty { get; init; }

    /// <summary>Subtracted once for tokens that occur in the answer; −2 to 2.</summary>
    public float? PresencePenalty { get; init; }

    /// <summary>Added to the logits of these token ids; −100 to 100.</summary>
    public IReadOnlyDictionary<int, float>? LogitBias { get; init; }

    /// <summary>Same seed, same model, same adapter: same tokens, whatever else runs. Null draws a seed.</summary>
    public long? Seed { get; init; }

    /// <summary>Report the log-probability of each token, and of this many (0 to 20) of its likeliest rivals. Null reports none.</summary>
    public int? LogProbabilities { get; init; }
}
