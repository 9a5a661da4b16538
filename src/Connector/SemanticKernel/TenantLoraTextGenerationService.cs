using System.Runtime.CompilerServices;
using Microsoft.Extensions.AI;
using Microsoft.SemanticKernel;
using Microsoft.SemanticKernel.Services;
using Microsoft.SemanticKernel.TextGeneration;
using TenantLora.Runtime;
using TextContent = Microsoft.SemanticKernel.TextContent;

namespace TenantLora.Connector;

/// <summary>Continues a text as it stands, without a chat template.</summary>
/// <param name="chat">A <see cref="TenantLoraChatClient"/> in a <see cref="MetadataChatClient"/>.</param>
internal sealed class TenantLoraTextGenerationService(IChatClient chat) : ITextGenerationService
{
    public IReadOnlyDictionary<string, object?> Attributes { get; } = Describe(chat.GetRequiredService<ChatClientMetadata>());

    public async Task<IReadOnlyList<TextContent>> GetTextContentsAsync(
        string prompt, PromptExecutionSettings? executionSettings = null, Kernel? kernel = null, CancellationToken cancellationToken = default)
    {
        var response = await chat.GetResponseAsync([], Options(prompt, executionSettings, kernel), cancellationToken).ConfigureAwait(false);
        return [new TextContent(response.Text, response.ModelId, response.RawRepresentation, metadata: Metadata(response.Messages[^1].AdditionalProperties, response.Usage))];
    }

    public async IAsyncEnumerable<StreamingTextContent> GetStreamingTextContentsAsync(
        string prompt, PromptExecutionSettings? executionSettings = null, Kernel? kernel = null, [EnumeratorCancellation] CancellationToken cancellationToken = default)
    {
        await foreach (var update in chat.GetStreamingResponseAsync([], Options(prompt, executionSettings, kernel), cancellationToken).ConfigureAwait(false))
            yield return new StreamingTextContent(update.Text, modelId: update.ModelId, innerContent: update.RawRepresentation,
                metadata: Metadata(update.AdditionalProperties, update.Contents.OfType<UsageContent>().FirstOrDefault()?.Details));
    }

    /// <summary>The chat road with a raw prompt in the place of messages, so settings mean the same on both.</summary>
    private static ChatOptions Options(string prompt, PromptExecutionSettings? settings, Kernel? kernel)
    {
        ArgumentNullException.ThrowIfNull(prompt);
        var options = settings.ToChatOptions(kernel) ?? new ChatOptions();
        options.RawRepresentationFactory = _ => new GenerationRequest { Tenant = "", Prompt = prompt };
        return options;
    }

    private static Dictionary<string, object?> Metadata(AdditionalPropertiesDictionary? facts, UsageDetails? usage)
    {
        Dictionary<string, object?> metadata = new(facts ?? []);
        if (usage is not null) metadata["Usage"] = usage;
        return metadata;
    }

    private static Dictionary<string, object?> Describe(ChatClientMetadata metadata)
    {
        Dictionary<string, object?> attributes = new() { [AIServiceExtensions.ModelIdKey] = metadata.DefaultModelId };
        if (metadata.ProviderUri is not null) attributes[AIServiceExtensions.EndpointKey] = metadata.ProviderUri.AbsoluteUri;
        return attributes;
    }
}
