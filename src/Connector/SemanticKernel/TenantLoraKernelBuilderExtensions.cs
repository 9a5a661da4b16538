using Microsoft.Extensions.AI;
using Microsoft.Extensions.DependencyInjection;
using TenantLora.Connector;

namespace Microsoft.SemanticKernel;

/// <summary>As <see cref="TenantLoraSemanticKernelServiceCollectionExtensions"/>, on a kernel's builder.</summary>
public static class TenantLoraKernelBuilderExtensions
{
    /// <summary>An <see cref="IChatClient"/> with the kernel's functions and filters, which the kernel's prompts run on.</summary>
    /// <inheritdoc cref="TenantLoraSemanticKernelServiceCollectionExtensions.AddTenantLoraChatCompletion(IServiceCollection, string, string?, string?)"/>
    public static IKernelBuilder AddTenantLoraChatClient(this IKernelBuilder builder, string tenant, string? model = null, string? serviceId = null)
    {
        ArgumentNullException.ThrowIfNull(builder);
        builder.Services.AddKeyedSingleton(serviceId, (provider, key) => provider.GetTenantLoraChatClient(key, tenant, model).ForKernel(provider));
        return builder;
    }

    /// <summary>The same over HTTP.</summary>
    /// <inheritdoc cref="TenantLoraSemanticKernelServiceCollectionExtensions.AddTenantLoraChatCompletion(IServiceCollection, Uri, string, string, string?)"/>
    public static IKernelBuilder AddTenantLoraChatClient(this IKernelBuilder builder, Uri server, string apiKey, string model, string? serviceId = null)
    {
        ArgumentNullException.ThrowIfNull(builder);
        builder.Services.AddKeyedSingleton(serviceId, (provider, _) => new TenantLoraChatClient(server, apiKey, model).ForKernel(provider));
        return builder;
    }

    /// <inheritdoc cref="TenantLoraSemanticKernelServiceCollectionExtensions.AddTenantLoraChatCompletion(IServiceCollection, string, string?, string?)"/>
    public static IKernelBuilder AddTenantLoraChatCompletion(this IKernelBuilder builder, string tenant, string? model = null, string? serviceId = null)
    {
        ArgumentNullException.ThrowIfNull(builder);
        builder.Services.AddTenantLoraChatCompletion(tenant, model, serviceId);
        return builder;
    }

    /// <inheritdoc cref="TenantLoraSemanticKernelServiceCollectionExtensions.AddTenantLoraChatCompletion(IServiceCollection, Uri, string, string, string?)"/>
    public static IKernelBuilder AddTenantLoraChatCompletion(this IKernelBuilder builder, Uri server, string apiKey, string model, string? serviceId = null)
    {
        ArgumentNullException.ThrowIfNull(builder);
        builder.Services.AddTenantLoraChatCompletion(server, apiKey, model, serviceId);
        return builder;
    }

    /// <inheritdoc cref="TenantLoraSemanticKernelServiceCollectionExtensions.AddTenantLoraTextGeneration(IServiceCollection, string, string?, string?)"/>
    public static IKernelBuilder AddTenantLoraTextGeneration(this IKernelBuilder builder, string tenant, string? model = null, string? serviceId = null)
    {
        ArgumentNullException.ThrowIfNull(builder);
        builder.Services.AddTenantLoraTextGeneration(tenant, model, serviceId);
        return builder;
    }

    /// <inheritdoc cref="TenantLoraSemanticKernelServiceCollectionExtensions.AddTenantLoraTextGeneration(IServiceCollection, Uri, string, string, string?)"/>
    public static IKernelBuilder AddTenantLoraTextGeneration(this IKernelBuilder builder, Uri server, string apiKey, string model, string? serviceId = null)
    {
        ArgumentNullException.ThrowIfNull(builder);
        builder.Services.AddTenantLoraTextGeneration(server, apiKey, model, serviceId);
        return builder;
    }
}
