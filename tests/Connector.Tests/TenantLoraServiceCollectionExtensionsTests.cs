using Microsoft.Extensions.AI;
using Microsoft.Extensions.DependencyInjection;

namespace TenantLora.Connector.Tests;

public sealed class TenantLoraServiceCollectionExtensionsTests
{
    [Fact]
    public async Task Clients_are_registered_with_and_without_a_key()
    {
        var runtime = FakeRuntime.Saying("ok");
        var catalog = new AdapterCatalog("base");
        catalog.Set("harbor", "support", "sha256:aa");
        var services = new ServiceCollection();
        services.AddSingleton(new TenantLoraClient(runtime, catalog));
        services.AddTenantLoraChatClient("harbor");
        services.AddTenantLoraChatClient("ledger", serviceKey: "books");
        services.AddTenantLoraChatClient(new Uri("http://host"), "tl_key", "remote", serviceKey: "far");
        var provider = services.BuildServiceProvider();

        await provider.GetRequiredService<IChatClient>().GetResponseAsync("Hi");
        Assert.Equal(("harbor", "sha256:aa"), (runtime.Request.Tenant, runtime.Request.Adapter));
        await provider.GetRequiredKeyedService<IChatClient>("books").GetResponseAsync("Hi");
        Assert.Equal(("ledger", null), (runtime.Request.Tenant, runtime.Request.Adapter));
        Assert.Equal("remote", provider.GetRequiredKeyedService<IChatClient>("far").GetService<ChatClientMetadata>()!.DefaultModelId);
        Assert.Same(provider.GetRequiredService<IChatClient>(), provider.GetRequiredService<IChatClient>());

        await provider.DisposeAsync();
        Assert.False(runtime.Disposed);
    }
}
