using System.Runtime.CompilerServices;
using Microsoft.Extensions.AI;
using TenantLora.Runtime;

namespace TenantLora.Connector;

/// <summary>
/// One tenant's conversation with a shared runtime, as an <see cref="IChatClient"/>. The tenant was bound by whoever made this object
/// and is never read from options; <see cref="ChatOptions.ModelId"/> chooses among that tenant's adapters.
/// <code>IChatClient chat = new TenantLoraChatClient(new Uri("http://127.0.0.1:5080"), key, "harbor");</code>
/// </summary>
/// <remarks>
/// <para>Safe for concurrent use; keeps no conversation. Disposing it does nothing: the runtime belongs to who made it.</para>
/// <para>
/// Options. Instructions go first, as a system message. Sampling fields, StopSequences, MaxOutputTokens and Seed do what they say; ranges are
/// the runtime's to judge. AdditionalProperties: <c>min_p</c>, <c>repetition_penalty</c> (numbers), <c>logit_bias</c> (token id → −100…100),
/// <c>logprobs</c> (bool), <c>top_logprobs</c> (0…20); any numeric type, text or JSON will do, and other keys are ignored, but for
/// <c>tenant</c> and <c>tenant_id</c>, which must name this tenant. A RawRepresentationFactory may return a <see cref="GenerationRequest"/>,
/// which then wins over the rest. Reasoning is ignored: no served model has such a switch. Tools, response formats other than text,
/// ConversationId, continuation tokens and content other than text are refused.
/// </para>
/// <para>
/// Answers. Updates share one ResponseId, MessageId and ModelId and carry the <see cref="GenerationEvent"/> as RawRepresentation; the last has the
/// finish reason, one <see cref="UsageContent"/>, and AdditionalProperties <c>adapter</c> (digest), <c>system_fingerprint</c>,
/// <c>queued_ms</c>, <c>prefill_ms</c>, <c>decode_ms</c>, <c>time_to_first_token_ms</c>, <c>tokens_per_second</c>, and <c>logprobs</c>
/// (a list of <see cref="TokenLogProbability"/>, the whole answer's) when asked for.
/// </para>
/// <para>
/// Errors. A request that cannot be sent throws at the call: <see cref="NotSupportedException"/> for what this client does not do,
/// <see cref="TenantLoraException"/> for a value it cannot read. What the runtime refuses is a <see cref="TenantLoraException"/> from the
/// first step of the stream.
/// </para>
/// </remarks>
public sealed class TenantLoraChatClient : IChatClient
{
    private readonly TenantLoraClient client;
    private readonly string model;
    private readonly ChatClientMetadata metadata;

    /// <summary>A client of a TenantLora server, as the tenant that <paramref name="apiKey"/> belongs to.</summary>
    /// <param name="server">Its address, with or without <c>/v1</c>.</param>
    /// <param name="apiKey">Decides the tenant; the server checks it.</param>
    /// <param name="model">The adapter or base model that requests without a ModelId run under.</param>
    /// <param name="http">As in <see cref="TenantLoraClient(Uri, Func{string, string?}, HttpClient?)"/>.</param>
    /// <exception cref="ArgumentException">No key, no model, or an address that is not an absolute http or https one.</exception>
    public TenantLoraChatClient(Uri server, string apiKey, string model, HttpClient? http = null)
        : this(new TenantLoraClient(server, _ => apiKey, http), tenant: "", model) =>
        ArgumentException.ThrowIfNullOrWhiteSpace(apiKey);

    internal TenantLoraChatClient(TenantLoraClient client, string tenant, string model)
    {
        ArgumentException.ThrowIfNullOrWhiteSpace(model);
        this.client = client;
        this.model = model;
        Tenant = tenant;
        metadata = new ChatClientMetadata("tenantlora", (client.Runtime as HttpRuntime)?.Server, model);
    }

    /// <summary>The tenant this client speaks for; empty where an API key says it and only the server knows.</summary>
    public string Tenant { get; }

    internal TenantLoraClient Client => client;

    /// <inheritdoc/>
    public async Task<ChatResponse> GetResponseAsync(IEnumerable<ChatMessage> messages, ChatOptions? options = null, CancellationToken cancellationToken = default)
    {
        List<ChatResponseUpdate> updates = [];
        await foreach (var update in GetStreamingResponseAsync(messages, options, cancellationToken).ConfigureAwait(false)) updates.Add(update);

        // Updates with a MessageId give their properties to the message; the response is where most callers look.
        var response = updates.ToChatResponse();
        var last = updates[^1];
        response.RawRepresentation = last.RawRepresentation;
        response.AdditionalProperties = last.AdditionalProperties?.Clone();
        response.Messages[^1].RawRepresentation = last.RawRepresentation;
        return response;
    }

    /// <inheritdoc/>
    public IAsyncEnumerable<ChatResponseUpdate> GetStreamingResponseAsync(IEnumerable<ChatMessage> messages, ChatOptions? options = null, CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(messages);
        return StreamAsync(ChatRequest.From(messages, options, this, model), cancellationToken);
    }

    private async IAsyncEnumerable<ChatResponseUpdate> StreamAsync(GenerationRequest request, [EnumeratorCancellation] CancellationToken cancellationToken)
    {
        cancellationToken.ThrowIfCancellationRequested();
        request = client.Resolve(request);
        var id = Guid.NewGuid().ToString("N");
        var created = DateTimeOffset.UtcNow;
        var logProbabilities = request.Sampling.LogProbabilities is null ? null : new List<TokenLogProbability>();

        await foreach (var generated in client.Runtime.GenerateAsync(request, cancellationToken).ConfigureAwait(false))
        {
            switch (generated)
            {
                case TextDelta delta:
                    logProbabilities?.AddRange(delta.LogProbabilities);
                    if (delta.Text.Length > 0) yield return Update(delta, new TextContent(delta.Text));
                    break;
                case GenerationDone done:
                    var last = Update(done, new UsageContent(Usage(done.Usage)));
                    last.FinishReason = done.Reason == FinishReason.Length ? ChatFinishReason.Length : ChatFinishReason.Stop;
                    last.AdditionalProperties = Facts(done, logProbabilities);
                    yield return last;
                    break;
            }
        }

        ChatResponseUpdate Update(GenerationEvent raw, AIContent content) => new(ChatRole.Assistant, [content])
        {
            ResponseId = "chatcmpl-" + id,
            MessageId = "msg-" + id,
            CreatedAt = created,
            ModelId = request.Model ?? model,
            RawRepresentation = raw,
        };
    }

    private static UsageDetails Usage(GenerationUsage usage) => new()
    {
        InputTokenCount = usage.PromptTokens,
        OutputTokenCount = usage.CompletionTokens,
        TotalTokenCount = usage.TotalTokens,
    };

    private static AdditionalPropertiesDictionary Facts(GenerationDone done, List<TokenLogProbability>? logProbabilities)
    {
        var (queued, prefill, decode) = done.Timings;
        var facts = new AdditionalPropertiesDictionary
        {
            ["queued_ms"] = queued.TotalMilliseconds,
            ["prefill_ms"] = prefill.TotalMilliseconds,
            ["decode_ms"] = decode.TotalMilliseconds,
            ["time_to_first_token_ms"] = (queued + prefill).TotalMilliseconds,
        };
        // The first token belongs to the prefill, so n tokens are n - 1 steps of decoding.
        if (done.Usage.CompletionTokens > 1 && decode > TimeSpan.Zero) facts["tokens_per_second"] = (done.Usage.CompletionTokens - 1) / decode.TotalSeconds;
        if (done.Adapter is not null) facts["adapter"] = done.Adapter;
        if (done.Fingerprint is not null) facts["system_fingerprint"] = done.Fingerprint;
        if (logProbabilities is not null) facts["logprobs"] = logProbabilities;
        return facts;
    }

    /// <summary>
    /// Finds <see cref="ChatClientMetadata"/>, this client, its <see cref="TenantLoraClient"/> and its <see cref="IRuntime"/>.
    /// </summary>
    public object? GetService(Type serviceType, object? serviceKey = null)
    {
        ArgumentNullException.ThrowIfNull(serviceType);
        return serviceKey is not null ? null
            : serviceType == typeof(ChatClientMetadata) ? metadata
            : serviceType.IsInstanceOfType(this) ? this
            : serviceType.IsInstanceOfType(client) ? client
            : serviceType.IsInstanceOfType(client.Runtime) ? client.Runtime
            : null;
    }

    /// <summary>Does nothing: the runtime and its connections are shared.</summary>
    public void Dispose()
    {
    }
}
