using System.Runtime.CompilerServices;
using Microsoft.Extensions.AI;

namespace TenantLora.Connector;

/// <summary>
/// Puts Id, CreatedAt and FinishReason into AdditionalProperties, which Semantic Kernel's bridge makes its Metadata of: of the typed members it
/// passes on none but Usage. The names are the ones that its own connectors use and its diagnostics read.
/// </summary>
internal sealed class MetadataChatClient(IChatClient inner) : DelegatingChatClient(inner)
{
    public override async Task<ChatResponse> GetResponseAsync(IEnumerable<ChatMessage> messages, ChatOptions? options = null, CancellationToken cancellationToken = default)
    {
        var response = await base.GetResponseAsync(messages, options, cancellationToken).ConfigureAwait(false);
        foreach (var message in response.Messages)
            message.AdditionalProperties = With(message.AdditionalProperties, response.ResponseId, response.CreatedAt, response.FinishReason);
        return response;
    }

    public override async IAsyncEnumerable<ChatResponseUpdate> GetStreamingResponseAsync(
        IEnumerable<ChatMessage> messages, ChatOptions? options = null, [EnumeratorCancellation] CancellationToken cancellationToken = default)
    {
        await foreach (var update in base.GetStreamingResponseAsync(messages, options, cancellationToken).ConfigureAwait(false))
        {
            update.AdditionalProperties = With(update.AdditionalProperties, update.ResponseId, update.CreatedAt, update.FinishReason);
            yield return update;
        }
    }

    private static AdditionalPropertiesDictionary With(AdditionalPropertiesDictionary? properties, string? id, DateTimeOffset? createdAt, ChatFinishReason? reason)
    {
        properties ??= [];
        properties["Id"] = id;
        properties["CreatedAt"] = createdAt;
        if (reason is not null) properties["FinishReason"] = reason.Value.Value;
        return properties;
    }
}
