using Microsoft.Extensions.AI;
using TenantLora.Connector;

namespace Microsoft.Extensions.DependencyInjection;

/// <summary>Registers TenantLora as an <see cref="IChatClient"/>.</summary>
public static class TenantLoraServiceCollectionExtensions
{
    /// <summary>
    /// One tenant's client over the <see cref="TenantLoraClient"/> found among the services, under <paramref name="serviceKey"/> first and without one then.
    /// </summary>
    /// <param name="services">Where to register.</param>
    /// <param name="tenant">Whom the client speaks for, always.</param>
    /// <param name="model">As in <see cref="TenantLoraClient.GetChatClient"/>.</param>
    /// <param name="serviceKey">Tells several clients apart; null registers an unkeyed service.</param>
    public static IServiceCollection AddTenantLoraChatClient(this IServiceCollection services, string tenant, string? model = null, object? serviceKey = null)
    {
        ArgumentNullException.ThrowIfNull(services);
        ArgumentException.ThrowIfNullOrWhiteSpace(tenant);
        return services.AddKeyedSingleton<IChatClient>(serviceKey, (provider, key) => provider.GetTenantLoraChatClient(key, tenant, model));
    }

    /// <summary>A client of a TenantLora server, as the tenant that <paramref name="apiKey"/> belongs to.</summary>
    /// <param name="services">Where to register.</param>
    /// <param name="server">As in <see cref="TenantLoraChatClient(Uri, string, string, HttpClient?)"/>, like the next two.</param>
    /// <param name="apiKey">Decides the tenant.</param>
    /// <param name="model">What requests without a ModelId run under.</param>
    /// <param name="serviceKey">Tells several clients apart; null registers an unkeyed service.</param>
    public static IServiceCollection AddTenantLoraChatClient(this IServiceCollection services, Uri server, string apiKey, string model, object? serviceKey = null)
    {
        ArgumentNullException.ThrowIfNull(services);
        var client = new TenantLoraChatClient(server, apiKey, model);
        return services.AddKeyedSingleton<IChatClient>(serviceKey, (_, _) => client);
    }

    internal static TenantLoraChatClient GetTenantLoraChatClient(this IServiceProvider provider, object? serviceKey, string tenant, string? model) =>
        (provider.GetKeyedService<TenantLoraClient>(serviceKey) ?? provider.GetRequiredService<TenantLoraClient>()).GetChatClient(tenant, model);
}
