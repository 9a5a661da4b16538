using System.Globalization;
using System.Net;
using System.Text.Json;
using TenantLora.ChatHost.Store;
using static TenantLora.ChatHost.Tests.Adapters.AdapterApiTests;

namespace TenantLora.ChatHost.Tests.Adapters;

/// <summary>Who stays in memory while others take turns, how much of it that may be, and what the tiers are measured by.</summary>
public sealed class AdapterPinTests
{
    private const string Path = "/api/tenants/ledger/adapters/ledger";

    [Fact]
    public async Task A_pinned_adapter_stays_while_others_take_turns_and_is_back_after_a_restart()
    {
        var data = Directory.CreateTempSubdirectory("tenantlora-").FullName;
        // Room for about two of the five, of which ledger's is one of the small: its share is 188 kB.
        string[] settings = [$"Data={data}", "AdapterHostMegabytes=1", "AdapterPinPercent=90", "Device=cpu"];
        await using (var host = await TestHost.StartRealAsync(settings))
        {
            using var admin = host.Client("ledger");
            await AskAsync(host, "ledger");
            await TurnsAsync(host);
            await TestHost.UntilAsync(() => Place(host, "ledger") == "disk", "it has gone to the disk as any other");

            using var pinned = await admin.PutAsync(Path + "/pin", null);
            var detail = await TestHost.ReadAsync(pinned);
            Assert.Equal((HttpStatusCode.OK, true), (pinned.StatusCode, detail.GetProperty("pinned").GetBoolean()));
            await TestHost.UntilAsync(() => Place(host, "ledger") == "device", "it comes without anyone asking");
            for (var i = 0; i < 3; i++)
            {
                await TurnsAsync(host);
                Assert.Equal("device", Place(host, "ledger"));
            }
            await TestHost.UntilAsync(() => host.Service<Serving>().Engine!.Residents.Count <= 3, "the others went");

            var text = await admin.GetStringAsync("/metrics");
            Assert.Equal(host.Service<AdapterStore>().Digests().Sum(d => Directory.GetFiles(System.IO.Path.Combine(data, "adapters", d[7..9], d[9..])).Sum(f => new FileInfo(f).Length)),
                Value(text, """tenantlora_host_adapters_bytes{tier="disk"}"""));
            Assert.InRange(Value(text, """tenantlora_host_adapters_bytes{tier="host"}"""), 156_000, 1 << 20);
            Assert.True(Value(text, "tenantlora_host_adapter_evictions_total") >= 4, text);
            Assert.True(Value(text, "tenantlora_host_adapter_load_seconds_count") >= 5, text);
            Assert.DoesNotContain("ledger", text, StringComparison.Ordinal);
        }
        await using (var host = await TestHost.StartRealAsync(settings))
        {
            await TestHost.UntilAsync(() => Place(host, "ledger") == "device", "it comes at the start");
            Assert.Equal("disk", Place(host, "harbor"));
            using var admin = host.Client("ledger");
            using var unpinned = await admin.DeleteAsync(Path + "/pin");
            Assert.False((await TestHost.ReadAsync(unpinned)).GetProperty("pinned").GetBoolean());
            await TurnsAsync(host);
            await TestHost.UntilAsync(() => Place(host, "ledger") == "disk", "it takes turns again");
            Assert.Equal([("unpin", "demo"), ("pin", "demo")], host.Service<AdapterStore>().Audit("ledger", long.MaxValue, 2).Select(e => (e.Action, e.Who)));
        }
        Directory.Delete(data, recursive: true);
    }

    [Fact]
    public async Task Pins_are_for_what_is_active_and_fits_the_tenants_share()
    {
        await using var host = await TestHost.StartRealAsync("AdapterHostMegabytes=1", "AdapterPinPercent=90", "Device=cpu");
        async Task<(int, string?)> Pin(string tenant, string name)
        {
            using var client = host.Client(tenant);
            using var response = await client.PutAsync($"/api/tenants/{tenant}/adapters/{name}/pin", null);
            return ((int)response.StatusCode, response.IsSuccessStatusCode ? null : (await TestHost.ReadAsync(response)).GetProperty("code").GetString());
        }
        Assert.Equal((409, "pin_limit"), await Pin("harbor", "harbor"));
        Assert.Equal((404, "unknown_url"), await Pin("harbor", "absent"));
        using var ledger = host.Client("ledger");
        (await ledger.PostAsync("/api/tenants/ledger/adapters/new/versions", Form("ledger"))).Dispose();
        (await ledger.PostAsync("/api/tenants/ledger/adapters/big/versions", Form("sprout"))).Dispose();
        Assert.Equal((409, "nothing_active"), await Pin("ledger", "new"));
        Assert.Equal((200, null), await Pin("ledger", "ledger"));
        Assert.Equal((200, null), await Pin("ledger", "ledger"));
        Assert.Single(host.Service<AdapterStore>().Audit("ledger", long.MaxValue, 10), e => e.Action == "pin");
        await ActivateAsync(ledger, "new", "v1");
        Assert.Equal((200, null), await Pin("ledger", "new"));              // the same bytes take no more
        await ActivateAsync(ledger, "big", "v1");
        Assert.Equal((409, "pin_limit"), await Pin("ledger", "big"));       // one more does

        // The name moves, and with it what is kept; a version that is too large for the share takes turns.
        var pins = host.Service<ChatHost.Adapters.AdapterPins>();
        var before = Assert.Single(pins.Kept);
        (await ledger.DeleteAsync("/api/tenants/ledger/adapters/new")).Dispose();
        (await ledger.PostAsync(Path + "/versions", Form("sprout"))).Dispose();
        await ActivateAsync(ledger, "ledger", "v2");
        Assert.NotEqual(before, Assert.Single(pins.Kept));
        (await ledger.PostAsync(Path + "/versions", Form("kernel"))).Dispose();
        await ActivateAsync(ledger, "ledger", "v3");
        Assert.Empty(pins.Kept);
        (await ledger.DeleteAsync(Path)).Dispose();
        Assert.Equal((404, "unknown_url"), await Pin("ledger", "ledger"));
    }

    private static async Task ActivateAsync(HttpClient admin, string name, string version)
    {
        using var seen = await admin.GetAsync($"/api/tenants/ledger/adapters/{name}");
        using var request = new HttpRequestMessage(HttpMethod.Put, $"/api/tenants/ledger/adapters/{name}/aliases/active") { Content = TestHost.Json($$"""{"version":"{{version}}"}""") };
        request.Headers.IfMatch.Add(seen.Headers.ETag!);
        using var moved = await admin.SendAsync(request);
        Assert.Equal(HttpStatusCode.OK, moved.StatusCode);
    }

    /// <summary>All but ledger's are asked for, one after the other.</summary>
    private static async Task TurnsAsync(TestHost host)
    {
        foreach (var tenant in new[] { "harbor", "kernel", "lantern", "sprout" }) await AskAsync(host, tenant);
    }

    private static async Task AskAsync(TestHost host, string tenant)
    {
        using var client = host.Client(tenant);
        using var answer = await client.PostAsync("/v1/completions", TestHost.Json($$"""{"model":"{{tenant}}","prompt":"Hi","max_tokens":1}"""));
        Assert.Equal(HttpStatusCode.OK, answer.StatusCode);
    }

    private static string Place(TestHost host, string tenant)
    {
        using var client = host.Client(tenant);
        var page = JsonDocument.Parse(client.GetStringAsync("/api/adapters/resident").Result).RootElement;
        return page.GetProperty("adapters").EnumerateArray().Single(a => a.GetProperty("name").GetString() == tenant && a.GetProperty("version").GetString() == "v1").GetProperty("place").GetString()!;
    }

    private static double Value(string metrics, string series) =>
        double.Parse(metrics.Split('\n').Single(l => l.StartsWith(series + " ", StringComparison.Ordinal))[(series.Length + 1)..], CultureInfo.InvariantCulture);
}
