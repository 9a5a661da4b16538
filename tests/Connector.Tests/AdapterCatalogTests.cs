using System.Collections.Immutable;
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

        Assert.Equal(new CatalogModel("x", "sha256:1", "v1"), catalog.Find("a", "x"));
        Assert.Equal(new CatalogModel("x", "sha256:2", "v1"), catalog.Find("b", "x"));
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
    public void An_adapters_versions_aliases_and_digests_can_be_named()
    {
        var catalog = new AdapterCatalog("base");
        var versions = new Dictionary<string, string> { ["v1"] = "sha256:1", ["v2"] = "sha256:2", ["v3"] = "sha256:3" }.ToImmutableDictionary();
        catalog.Set("a", "x", new CatalogAdapter(versions, "v2", "v1", new CatalogCanary("v3", 10)));
        catalog.Set("a", "raw", new CatalogAdapter(versions, null));

        foreach (var (name, version) in new[] { ("x", "v2"), ("x@v1", "v1"), ("x@v3", "v3"), ("x@active", "v2"), ("x@previous", "v1"), ("x@canary", "v3"), ("x@sha256:3", "v3"), ("raw@v1", "v1") })
            Assert.Equal(new CatalogModel(name, "sha256:" + version[1..], version), catalog.Find("a", name));
        foreach (var name in new[] { "x@v4", "x@", "x@sha256:4", "x@V1", "@v1", "x@v1@v1", "raw", "raw@active", "raw@canary", "raw@previous", "base@v1" }) Assert.Null(catalog.Find("a", name));
        Assert.Null(catalog.Find("b", "x@v1"));
        Assert.Equal(["x", "base"], catalog.List("a").Select(m => m.Name));
    }

    [Theory]
    [InlineData(1)]
    [InlineData(10)]
    [InlineData(50)]
    [InlineData(99)]
    public void A_canary_gets_its_share_of_conversations_and_each_stays_where_it_is(int share)
    {
        var catalog = new AdapterCatalog("base");
        var versions = new Dictionary<string, string> { ["v1"] = "sha256:1", ["v2"] = "sha256:2" }.ToImmutableDictionary();
        catalog.Set("a", "x", new CatalogAdapter(versions, "v1", null, new CatalogCanary("v2", share)));

        string[] conversations = [.. Enumerable.Range(0, 5000).Select(i => $"conversation {i}")];
        var first = conversations.Where(c => catalog.Find("a", "x", c)!.Version == "v2").ToHashSet();
        Assert.InRange(first.Count, (share * 50) - 150, (share * 50) + 150);          // four deviations of 5,000 draws
        Assert.All(conversations, c => Assert.Equal(first.Contains(c), catalog.Find("a", "x", c)!.Version == "v2"));
        Assert.Equal("v1", catalog.Find("a", "x")!.Version);

        // A larger share takes none back.
        catalog.Set("a", "x", new CatalogAdapter(versions, "v1", null, new CatalogCanary("v2", Math.Min(99, share + 20))));
        Assert.All(first, c => Assert.Equal("v2", catalog.Find("a", "x", c)!.Version));
    }

    [Fact]
    public void A_conversation_is_told_by_how_it_began()
    {
        GenerationRequest Of(params Message[] messages) => new() { Tenant = "a", Messages = messages };
        var (system, hello, more) = (new Message("system", "s"), new Message("user", "hello"), new Message("user", "more"));
        Assert.Equal("hello", AdapterCatalog.ConversationOf(Of(system, hello)));
        Assert.Equal("hello", AdapterCatalog.ConversationOf(Of(hello, new Message("assistant", "hi"), more)));
        Assert.Null(AdapterCatalog.ConversationOf(Of(system)));
        Assert.Equal("once", AdapterCatalog.ConversationOf(new GenerationRequest { Tenant = "a", Prompt = "once" }));
        Assert.Equal(64, AdapterCatalog.ConversationOf(new GenerationRequest { Tenant = "a", Prompt = new string('p', 100) })!.Length);
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
