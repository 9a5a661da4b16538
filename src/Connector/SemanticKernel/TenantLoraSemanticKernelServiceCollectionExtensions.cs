using Microsoft.Extensions.AI;
using Microsoft.Extensions.Logging;
using Microsoft.SemanticKernel;
using Microsoft.SemanticKernel.ChatCompletion;
using Microsoft.SemanticKernel.TextGeneration;
using TenantLora.Connector;

namespace Microsoft.Extensions.DependencyInjection;

/// <summary>
/// Registers TenantLora as Semantic Kernel's services: one tenant's, over the <see cref="TenantLoraClient"/> found among the services, or over
/// HTTP as the tenant that a key belongs to. With both an <see cref="IChatClient"/> and an <see cref="IChatCompletionService"/> registered, Semantic
/// Kernel takes the latter.
/// </summary>
public static class TenantLoraSemanticKernelServiceCollectionExtensions
{
    /// <summary>Chat, with the kernel's functions and filters.</summary>
    /// <param name="services">Where to register.</param>
    /// <param name="tenant">Whom the service speaks for, always.</param>
    /// <param name="model">As in <see cref="TenantLoraClient.GetChatClient"/>.</param>
    /// <param name="serviceId">Tells several services apart; null registers an unkeyed one.</param>
    public static IServiceCollection AddTenantLoraChatCompletion(this IServiceCollection services, string tenant, string? model = null, string? serviceId = null) =>
        services.AddChatCompletion(serviceId, (provider, key) => provider.GetTenantLoraChatClient(key, tenant, model));

    /// <summary>Chat over HTTP, with the kernel's functions and filters.</summary>
    /// <param name="services">Where to register.</param>
    /// <param name="server">As in <see cref="TenantLoraChatClient(Uri, string, string, HttpClient?)"/>, like the next two.</param>
    /// <param name="apiKey">Decides the tenant.</param>
    /// <param name="model">What requests without a ModelId run under.</param>
    /// <param name="serviceId">Tells several services apart; null registers an unkeyed one.</param>
    public static IServiceCollection AddTenantLoraChatCompletion(this IServiceCollection services, Uri server, string apiKey, string model, string? serviceId = null) =>
        services.AddChatCompletion(serviceId, (_, _) => new TenantLoraChatClient(server, apiKey, model));

    /// <summary>Continues a text as it stands, without a chat template.</summary>
    /// <inheritdoc cref="AddTenantLoraChatCompletion(IServiceCollection, string, string?, string?)"/>
    public static IServiceCollection AddTenantLoraTextGeneration(this IServiceCollection services, string tenant, string? model = null, string? serviceId = null) =>
        services.AddTextGeneration(serviceId, (provider, key) => provider.GetTenantLoraChatClient(key, tenant, model));

    /// <summary>Continues a text as it stands, without a chat template, over HTTP.</summary>
    /// <inheritdoc cref="AddTenantLoraChatCompletion(IServiceCollection, Uri, string, string, string?)"/>
    public static IServiceCollection AddTenantLoraTextGeneration(this IServiceCollection services, Uri server, string apiKey, string model, string? serviceId = null) =>
        services.AddTextGeneration(serviceId, (_, _) => new TenantLoraChatClient(server, apiKey, model));

    /// <summary>The function loop outside, so each round of it is logged and has its own metadata.</summary>
    internal static IChatClient ForKernel(this TenantLoraChatClient client, IServiceProvider services)
    {
        var loggers = services.GetService<ILoggerFactory>();
        var pipeline = client.AsBuilder().UseKernelFunctionInvocation(loggers);
        if (loggers is not null) pipeline.UseLogging(loggers);
        return pipeline.Use(inner => new MetadataChatClient(inner)).Build(services);
    }

    private static IServiceCollection AddChatCompletion(this IServiceCollection services, string? serviceId, Func<IServiceProvider, object?, TenantLoraChatClient> client) =>
        services.AddKeyedSingleton(serviceId, (provider, key) => client(provider, key).ForKernel(provider).AsChatCompletionService(provider));

    private static IServiceCollection AddTextGeneration(this IServiceCollection services, string? serviceId, Func<IServiceProvider, object?, TenantLoraChatClient> client) =>
        services.AddKeyedSingleton<ITextGenerationService>(serviceId, (provider, key) => new TenantLoraTextGenerationService(new MetadataChatClient(client(provider, key))));
}
