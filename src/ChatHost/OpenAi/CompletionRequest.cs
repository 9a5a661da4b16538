using System.Collections.Frozen;
using System.Globalization;
using System.Text.Json;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.OpenAi;

/// <summary>What a /v1 body asks for.</summary>
/// <param name="Generation">For the runtime, but for the tenant.</param>
/// <param name="Model">As the caller spelt it; answers echo it.</param>
/// <param name="Chat">Chat completions, as against plain completions.</param>
/// <param name="Stream">Server-sent events.</param>
/// <param name="IncludeUsage">One more chunk at the end, with the token counts.</param>
/// <param name="Ignored">Fields that nobody here knows.</param>
internal sealed record CompletionRequest(GenerationRequest Generation, string Model, bool Chat, bool Stream, bool IncludeUsage, IReadOnlyList<string> Ignored)
{
    private const int MostMessages = 10_000;
    private const int MostBiases = 1024;
    private const int LongestStop = 1024;
    internal const int LongestModel = 256;

    /// <exception cref="TenantLoraException">With every finding.</exception>
    public static CompletionRequest Read(ReadOnlyMemory<byte> body, string tenant, bool chat)
    {
        using var document = JsonFields.Parse(body);
        return JsonFields.Read(new JsonFields(document.RootElement), fields => chat ? ReadChat(fields, tenant) : ReadPlain(fields, tenant));
    }

    private static CompletionRequest ReadChat(JsonFields fields, string tenant)
    {
        var ignored = CheckNames(fields, RequestNames.Chat);
        RefuseUnservedChat(fields);
        var limit = fields.Integer("max_tokens", 1);
        var newer = fields.Integer("max_completion_tokens", 1);
        if (limit is not null && newer is not null && limit != newer) fields.Refuse("max_completion_tokens", $"is {newer}, but max_tokens is {limit}. Send one of them.");
        var rivals = fields.Integer("top_logprobs", 0, 20);
        var report = fields.Flag("logprobs");
        if (rivals is not null && !report) fields.Refuse("top_logprobs", "needs logprobs to be true.");
        return Finish(fields, chat: true, ignored, new GenerationRequest
        {
            Tenant = tenant,
            Messages = ReadMessages(fields, ignored),
            MaxTokens = newer ?? limit,
            StopStrings = ReadStops(fields),
            Sampling = ReadSampling(fields) with { LogitBias = ReadBias(fields), LogProbabilities = report ? rivals ?? 0 : null },
        });
    }

    private static CompletionRequest ReadPlain(JsonFields fields, string tenant)
    {
        var ignored = CheckNames(fields, RequestNames.Completions);
        if (fields.Integer("best_of", 1) is > 1) NotServed(fields, "best_of");
        if (fields.Flag("echo")) NotServed(fields, "echo");
        if (fields.Text("suffix") is { Length: > 0 }) NotServed(fields, "suffix");
        return Finish(fields, chat: false, ignored, new GenerationRequest
        {
            Tenant = tenant,
            Prompt = ReadPrompt(fields),
            MaxTokens = fields.Integer("max_tokens", 1) ?? 16, // OpenAI's default, on this endpoint only
            StopStrings = ReadStops(fields),
            Sampling = ReadSampling(fields) with { LogitBias = ReadBias(fields), LogProbabilities = fields.Integer("logprobs", 0, 20) },
        });
    }

    private static CompletionRequest Finish(JsonFields fields, bool chat, List<string> ignored, GenerationRequest generation)
    {
        if (fields.Integer("n", 1) is > 1) NotServed(fields, "n", "more than one answer a request is not served; send it several times.");
        if (fields.Get("model") is null) fields.Expected("model", "the name of a model", null);
        var model = fields.Text("model", LongestModel) ?? "";
        var stream = fields.Flag("stream");
        if (fields.Get("stream_options") is not null && !stream) fields.Refuse("stream_options", "needs stream to be true.");
        var includeUsage = fields.Object("stream_options")?.Flag("include_usage") ?? false;
        return new CompletionRequest(generation with { Model = model }, model, chat, stream, includeUsage, ignored);
    }

    /// <summary>The sampling that the hub has too.</summary>
    public static SamplingOptions ReadSampling(JsonFields fields) => new()
    {
        Temperature = fields.Number("temperature", 0, 2),
        TopK = fields.Integer("top_k", -1),
        TopP = fields.Number("top_p", 0, 1, leastIsOut: true),
        MinP = fields.Number("min_p", 0, 1, mostIsOut: true),
        RepetitionPenalty = fields.Number("repetition_penalty", 0, double.PositiveInfinity, leastIsOut: true),
        FrequencyPenalty = fields.Number("frequency_penalty", -2, 2),
        PresencePenalty = fields.Number("presence_penalty", -2, 2),
        Seed = fields.Long("seed"),
    };

    /// <summary>One string or up to four.</summary>
    public static IReadOnlyList<string> ReadStops(JsonFields fields)
    {
        if (fields.Get("stop") is not { } value) return [];
        JsonElement[] stops = value.ValueKind == JsonValueKind.Array ? [.. value.EnumerateArray()] : [value];
        if (stops.Length <= 4 && stops.All(s => s.ValueKind == JsonValueKind.String && s.GetString() is { Length: > 0 and <= LongestStop }))
            return [.. stops.Select(s => s.GetString()!)];
        fields.Expected("stop", $"a string or at most 4, each of 1 to {LongestStop} characters", value);
        return [];
    }

    /// <summary>The conversation: text turns of system, user and assistant.</summary>
    public static IReadOnlyList<Message> ReadMessages(JsonFields fields, List<string>? ignored = null)
    {
        if (fields.Array("messages") is not { } turns)
        {
            if (fields.Get("messages") is null) fields.Expected("messages", "an array of messages", null);
            return [];
        }
        if (turns.Length is 0 or > MostMessages) fields.Refuse("messages", $"expected 1 to {MostMessages} messages, found {turns.Length}.");
        else return [.. turns.Select((turn, i) => ReadMessage(fields, turn, $"messages[{i}]", ignored)).OfType<Message>()];
        return [];
    }

    private static Message? ReadMessage(JsonFields fields, JsonElement turn, string at, List<string>? ignored)
    {
        if (fields.Object(turn, at) is not { } message) return null;
        if (message.Get("name") is not null && ignored?.Contains("messages[].name") == false) ignored.Add("messages[].name");
        foreach (var call in (string[])["tool_calls", "tool_call_id", "function_call", "audio"])
            if (message.Get(call) is { } value && !IsOff(value)) NotServed(message, call);
        switch (message.Text("role"))
        {
            case "developer": return new Message("system", ReadContent(message));
            case { } role when role is "system" or "user" or "assistant": return new Message(role, ReadContent(message));
            case "tool" or "function": NotServed(message, "role", "tool turns are not served yet."); return null;
            case var other:
                if (other is not null || message.Get("role") is null) message.Expected("role", "system, developer, user or assistant", message.Get("role"));
                return null;
        }
    }

    private static string ReadContent(JsonFields message)
    {
        switch (message.Get("content"))
        {
            case { ValueKind: JsonValueKind.String } text: return text.GetString()!;
            case { ValueKind: JsonValueKind.Array } parts: return string.Concat(parts.EnumerateArray().Select((part, i) => ReadPart(message, part, $"content[{i}]")));
            case var other:
                message.Expected("content", "a string or an array of text parts", other);
                return "";
        }
    }

    private static string ReadPart(JsonFields message, JsonElement element, string at)
    {
        if (message.Object(element, at) is not { } part) return "";
        switch (part.Text("type"))
        {
            case "text":
                if (part.Get("text") is null) part.Expected("text", "a string", null);
                return part.Text("text") ?? "";
            case { } kind when kind is "image_url" or "input_audio" or "file" or "refusal":
                NotServed(part, "type", $"parts of type {kind} are not served; this model reads text.");
                return "";
            default:
                part.Expected("type", "text", part.Get("type"));
                return "";
        }
    }

    private static string ReadPrompt(JsonFields fields)
    {
        switch (fields.Get("prompt"))
        {
            case { ValueKind: JsonValueKind.String } text: return text.GetString()!;
            case { ValueKind: JsonValueKind.Array } one when one.GetArrayLength() == 1 && one[0].ValueKind == JsonValueKind.String: return one[0].GetString()!;
            case { ValueKind: JsonValueKind.Array }:
                NotServed(fields, "prompt", "only one text is served: no token ids and no list of prompts.");
                return "";
            case var other:
                fields.Expected("prompt", "a string", other);
                return "";
        }
    }

    private static Dictionary<int, float>? ReadBias(JsonFields fields)
    {
        if (fields.Object("logit_bias") is not { } biases) return null;
        var names = biases.Names.ToArray();
        if (names.Length > MostBiases)
        {
            fields.Refuse("logit_bias", $"expected at most {MostBiases} entries, found {names.Length}.");
            return null;
        }
        Dictionary<int, float> result = new(names.Length);
        foreach (var name in names)
            if (!int.TryParse(name, NumberStyles.None, CultureInfo.InvariantCulture, out var token)) biases.Refuse(name.Length <= 40 ? name : name[..40], "expected a token id as name.");
            else if (biases.Number(name, -100, 100) is { } bias) result[token] = bias;
        return result;
    }

    private static void RefuseUnservedChat(JsonFields fields)
    {
        if (fields.Array("tools") is { Length: > 0 }) NotServed(fields, "tools");
        if (fields.Get("tool_choice") is { } choice && !(choice.ValueKind == JsonValueKind.String && choice.GetString() is "none" or "auto")) NotServed(fields, "tool_choice");
        if (fields.Object("response_format") is { } format && format.Text("type") is not "text") NotServed(fields, "response_format", "only {\"type\":\"text\"} is served.");
    }

    // A value that says "off" is as good as none: clients send their defaults.
    private static bool IsOff(JsonElement value) => value.ValueKind switch
    {
        JsonValueKind.False => true,
        JsonValueKind.Array => value.GetArrayLength() == 0 || value.GetRawText() is "[\"text\"]",
        JsonValueKind.String => value.GetString() is "" or "none",
        JsonValueKind.Number => value.TryGetDouble(out var number) && number == 0,
        JsonValueKind.Object => !value.EnumerateObject().Any(),
        _ => false,
    };

    private static List<string> CheckNames(JsonFields fields, FrozenSet<string> served)
    {
        List<string> ignored = [];
        foreach (var name in fields.Names.Where(n => !served.Contains(n) && !RequestNames.Harmless.Contains(n)))
            if (RequestNames.NotServed.Contains(name) || (RequestNames.Chat.Contains(name) || RequestNames.Completions.Contains(name)))
            {
                if (fields.Get(name) is { } value && !IsOff(value)) NotServed(fields, name);
            }
            else if (RequestNames.MeantBy(name, served) is { } meant) fields.Refuse(name, $"there is no such field; did you mean {meant}?");
            else ignored.Add(name);
        return ignored;
    }

    private static void NotServed(JsonFields fields, string name, string why = "is understood but not served here; leave it out.") =>
        fields.Refuse(name, why, ErrorCodes.Unsupported);
}
