using TenantLora.Runtime;

namespace TenantLora.Connector.Tests;

public sealed class AdapterCatalogTests
{
    [Fact]
    public void Names_belong_to_tenants_and_the_base_model_to_all()
    {
        var catalog = new AdapterCatalog("base");
        catalog.Set("a", "x", "sha256:1");
        catalog.Set("b", "x", "sha256:2");

        Assert.Equal(new CatalogModel("x", "sha256:1"), catalog.Find("a", "x"));
        Assert.Equal(new CatalogModel("x", "sha256:2"), catalog.Find("b", "x"));
        Assert.Null(catalog.Find("c", "x"));
        Assert.Null(catalog.Find("a", "X"));
        Assert.Equal(new CatalogModel("base", null), catalog.Find("c", "base"));
        Assert.Equal(["x", "base"], catalog.List("a").Select(m => m.Name));
        Assert.Equal(["base"], catalog.List("c").Select(m => m.Name));
        Assert.Throws<ArgumentException>(() => catalog.Set("a", "base", "sha256:3"));
    }

    [Fact]
    public void A_name_can_be_moved_and_taken_away()
    {
        var catalog = new AdapterCatalog("base");
        catalog.Set("a", "x", "sha256:1");
        catalog.Set("a", "x", "sha256:2");
        Assert.Equal("sha256:2", catalog.Find("a", "x")!.Digest);
        Assert.False(catalog.Remove("b", "x"));
        Assert.True(catalog.Remove("a", "x"));
        Assert.False(catalog.Remove("a", "x"));
        Assert.Null(catalog.Find("a", "x"));
    }

    [Fact]
    public async Task A_request_is_pinned_when_it_is_made()
    {
        var catalog = new AdapterCatalog("base");
        catalog.Set("a", "x", "sha256:1");
        var runtime = FakeRuntime.Saying("ok");
        var client = new TenantLoraClient(runtime, catalog);

        var stream = client.GenerateAsync(new GenerationRequest { Tenant = "a", Messages = [] });
        catalog.Set("a", "x", "sha256:2");
        await foreach (var _ in stream)
        {
        }
        Assert.Equal(("x", "sha256:1"), (runtime.Request.Model, runtime.Request.Adapter));
        Assert.Equal(["x", "base"], await client.ListModelsAsync("a"));
    }

    [Fact]
    public async Task Writers_lose_nothing_and_readers_see_whole_snapshots()
    {
        var catalog = new AdapterCatalog("base");
        using var stop = new CancellationTokenSource();
        var reader = Task.Run(() =>
        {
            while (!stop.IsCancellationRequested)
                foreach (var model in catalog.List("t0").SkipLast(1)) Assert.StartsWith("sha256:t0", model.Digest, StringComparison.Ordinal);
        });

        var removed = await Task.WhenAll(Enumerable.Range(0, 4).Select(writer => Task.Run(() =>
        {
            var mine = 0;
            for (var i = 0; i < 500; i++)
            {
                catalog.Set($"t{i % 3}", $"w{writer}-{i}", $"sha256:t{i % 3}-{i}");
                catalog.Set($"t{i % 3}", "contested", $"sha256:t{i % 3}-c");
                if (catalog.Remove("t0", $"w{(writer + 1) % 4}-{i}")) mine++;
            }
            return mine;
        })));
        await stop.CancelAsync();
        await reader;

        var left = Enumerable.Range(0, 3).Sum(t => catalog.List($"t{t}").Count(m => m.Name.StartsWith('w')));
        Assert.Equal(4 * 500, left + removed.Sum());
    }
}
