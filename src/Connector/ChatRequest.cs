using System.Collections;
using System.Globalization;
using System.Text.Json;
using Microsoft.Extensions.AI;
using TenantLora.Runtime;

namespace TenantLora.Connector;

/// <summary>From chat messages and options to a request. Changes neither, and keeps no reference to them.</summary>
internal static class ChatRequest
{
    private static readonly string[] TenantKeys = ["tenant", "tenant_id"];

    /// <param name="client">For whose tenant, and what a RawRepresentationFactory is called with.</param>
    /// <param name="model">What to run under where nothing else is named.</param>
    public static GenerationRequest From(IEnumerable<ChatMessage> messages, ChatOptions? options, TenantLoraChatClient client, string model)
    {
        ChatMessage[] turns = [.. messages];
        RefuseUnsupported(turns, options);

        var given = options?.RawRepresentationFactory?.Invoke(client) as GenerationRequest;
        RefuseOtherTenant(client.Tenant, options?.AdditionalProperties, given);

        return new GenerationRequest
        {
            Tenant = client.Tenant,
            Model = given?.Model ?? options?.ModelId ?? model,
            Prompt = given?.Prompt,
            Messages = given?.Messages ?? (given?.Prompt is null ? Messages(turns, options?.Instructions) : null),
            Tools = given?.Tools ?? [],
            MaxTokens = given?.MaxTokens ?? options?.MaxOutputTokens,
            StopStrings = given is { StopStrings.Count: > 0 } ? given.StopStrings : [.. options?.StopSequences ?? []],
            Sampling = Sampling(given?.Sampling ?? new SamplingOptions(), options),
        };
    }

    private static Message[] Messages(ChatMessage[] turns, string? instructions)
    {
        var messages = turns.Select(t => new Message(t.Role == Developer ? "system" : t.Role.Value, t.Text));
        return string.IsNullOrEmpty(instructions) ? [.. messages] : [new Message("system", instructions), .. messages];
    }

    private static readonly ChatRole Developer = new("developer");

    private static SamplingOptions Sampling(SamplingOptions given, ChatOptions? options)
    {
        if (options is null) return given;
        var extras = new Extras(options.AdditionalProperties);
        var sampling = given with
        {
            Temperature = given.Temperature ?? options.Temperature,
            TopK = given.TopK ?? options.TopK,
            TopP = given.TopP ?? options.TopP,
            MinP = given.MinP ?? extras.Single("min_p"),
            RepetitionPenalty = given.RepetitionPenalty ?? extras.Single("repetition_penalty"),
            FrequencyPenalty = given.FrequencyPenalty ?? options.FrequencyPenalty,
            PresencePenalty = given.PresencePenalty ?? options.PresencePenalty,
            LogitBias = given.LogitBias ?? extras.Bias("logit_bias"),
            Seed = given.Seed ?? options.Seed,
            LogProbabilities = given.LogProbabilities ?? extras.LogProbabilities(),
        };
        extras.ThrowIfAnyUnread();
        return sampling;
    }

    /// <summary>A tool or an image that is silently dropped gives an answer to another question, so each is refused, all at once.</summary>
    private static void RefuseUnsupported(ChatMessage[] turns, ChatOptions? options)
    {
        List<string> found = [];
        if (options?.ToolMode is not NoneChatToolMode && (options?.Tools is { Count: > 0 } || options?.ToolMode is RequiredChatToolMode)) found.Add("Tools");
        if (options?.ResponseFormat is not (null or ChatResponseFormatText)) found.Add("ResponseFormat other than text");
        if (options?.ConversationId is not null) found.Add("ConversationId (no conversation is kept here: send its messages)");
        if (options?.ContinuationToken is not null) found.Add("ContinuationToken");
        // Usage and reasoning are facts about earlier answers, not something that was said.
        found.AddRange(turns.SelectMany((turn, i) => turn.Contents.Where(c => c is not (TextContent or UsageContent or TextReasoningContent))
            .Select(c => $"{c.GetType().Name} (message {i}, {turn.Role})")));
        if (found.Count > 0) throw new NotSupportedException($"TenantLora does not support: {string.Join("; ", found)}.");
    }

    private static void RefuseOtherTenant(string tenant, AdditionalPropertiesDictionary? properties, GenerationRequest? given)
    {
        if (given is { Tenant.Length: > 0 } && given.Tenant != tenant) throw OtherTenant("tenant");
        if (given?.Adapter is not null)
            throw new TenantLoraException(ErrorCodes.InvalidRequest, "Name the adapter by Model: digests are resolved from the tenant's own names.") { Parameter = "model" };
        foreach (var key in TenantKeys)
            if (properties?.TryGetValue(key, out var value) == true && value is not null && value.ToString() != tenant) throw OtherTenant(key);
    }

    private static TenantLoraException OtherTenant(string key) => new(ErrorCodes.InvalidRequest,
        $"'{key}' in the options is not the tenant that this client is bound to. Options never choose the tenant: ask trusted code for that tenant's client.")
    { Parameter = key };

    /// <summary>
    /// Values of AdditionalProperties. Semantic Kernel sends numbers as double, configuration as text, JSON as <see cref="JsonElement"/>:
    /// all are read, and what cannot be is remembered.
    /// </summary>
    private sealed class Extras(AdditionalPropertiesDictionary? properties)
    {
        private readonly List<(string Key, string Expected, object Found)> unread = [];

        public float? Single(string key) => Read(key, "a number", v => Number(v) is { } n && float.IsFinite((float)n) ? (float)n : (float?)null);

        public int? LogProbabilities()
        {
            var wanted = Read("logprobs", "true or false", Truth);
            var rivals = Read("top_logprobs", "a whole number", v => Number(v) is { } n && n == (int)n ? (int)n : (int?)null);
            return wanted == false ? null : rivals ?? (wanted == true ? 0 : null);
        }

        public Dictionary<int, float>? Bias(string key)
        {
            if (Value(key) is not { } value) return null;
            var pairs = value is JsonElement { ValueKind: JsonValueKind.Object } json ? json.EnumerateObject().Select(p => ((object?)p.Name, (object?)p.Value))
                : value is IDictionary map ? map.Keys.Cast<object?>().Select(k => (k, map[k!]))
                : null;
            Dictionary<int, float> bias = [];
            foreach (var (token, amount) in pairs ?? [(null, null)])
            {
                if (Number(token) is { } id && id == (int)id && Number(amount) is { } by) bias[(int)id] = (float)by;
                else
                {
                    unread.Add((key, "token ids with numbers", value));
                    return null;
                }
            }
            return bias;
        }

        public void ThrowIfAnyUnread()
        {
            if (unread.Count == 0) return;
            throw new TenantLoraException(ErrorCodes.InvalidRequest,
                string.Join(" ", unread.Select(u => $"'{u.Key}' must be {u.Expected}, found '{u.Found}' ({u.Found.GetType().Name}).")))
            {
                Parameter = unread[0].Key,
            };
        }

        private T? Read<T>(string key, string expected, Func<object, T?> read) where T : struct
        {
            if (Value(key) is not { } value) return null;
            var result = read(value);
            if (result is null) unread.Add((key, expected, value));
            return result;
        }

        private object? Value(string key) =>
            properties?.TryGetValue(key, out var value) == true && value is not JsonElement { ValueKind: JsonValueKind.Null } ? value : null;

        private static bool? Truth(object value) => value switch
        {
            bool b => b,
            JsonElement { ValueKind: JsonValueKind.True } => true,
            JsonElement { ValueKind: JsonValueKind.False } => false,
            string or JsonElement { ValueKind: JsonValueKind.String } => bool.TryParse(value.ToString(), out var b) ? b : null,
            _ => null,
        };

        private static double? Number(object? value)
        {
            var number = value switch
            {
                JsonElement { ValueKind: JsonValueKind.Number } json => json.GetDouble(),
                string or JsonElement { ValueKind: JsonValueKind.String } =>
                    double.TryParse(value.ToString(), NumberStyles.Float, CultureInfo.InvariantCulture, out var parsed) ? parsed : double.NaN,
                bool or char or DateTime => double.NaN,
                IConvertible convertible => convertible.ToDouble(CultureInfo.InvariantCulture),
                _ => double.NaN,
            };
            return double.IsFinite(number) ? number : null;
        }
    }
}
