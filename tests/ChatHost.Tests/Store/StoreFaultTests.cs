using System.Collections.Concurrent;
using System.Net;
using System.Net.Http.Json;
using TenantLora.ChatHost.Tests.Adapters;

namespace TenantLora.ChatHost.Tests.Store;

/// <summary>
/// PostgreSQL crashes, freezes or loses its connections while tenants ask and an admin moves a name: every answer is whole and of the version that it says
/// it is of, what was acknowledged is there afterwards, and all goes on without a restart.
/// </summary>
public sealed class StoreFaultTests
{
    private const string Asked = """{"model":"MODEL","temperature":0,"max_tokens":12,"messages":[{"role":"user","content":"When are you open?"}]}""";

    [Theory]
    [InlineData("crashed and started again")]
    [InlineData("frozen and going on")]
    [InlineData("its connections cut")]
    public async Task Whatever_happens_to_the_store_answers_are_right_and_no_move_is_lost(string what)
    {
        using var server = new PostgresServer();
        await using var host = await TestHost.StartRealAsync($"Database={server.NewDatabase()};Command Timeout=5;Timeout=5", "Device=cpu");
        using var admin = host.Client("harbor");
        using (var brought = await admin.PostAsync("api/tenants/harbor/adapters/harbor/versions", UploadLifeTests.Variant("harbor", 1))) Assert.Equal(HttpStatusCode.Created, brought.StatusCode);
        var texts = new Dictionary<string, string> { ["v1"] = (await AskAsync(admin, "harbor@v1")).Text, ["v2"] = (await AskAsync(admin, "harbor@v2")).Text };
        Assert.NotEqual(texts["v1"], texts["v2"]);

        using var end = new CancellationTokenSource();
        var (asked, acknowledged, refused) = (2, new ConcurrentQueue<string>(), 0);
        var askers = Enumerable.Range(0, 4).Select(_ => Task.Run(async () =>
        {
            using var client = host.Client("harbor");
            while (!end.IsCancellationRequested)
            {
                var (version, text) = await AskAsync(client, "harbor");
                Assert.Equal(texts[version], text);
                Interlocked.Increment(ref asked);
            }
        })).ToArray();
        var mover = Task.Run(async () =>
        {
            for (var i = 0; !end.IsCancellationRequested; i++)
            {
                var why = $"move {i}";
                var status = (await MoveAsync(admin, why)).Status;
                if (status == HttpStatusCode.OK) acknowledged.Enqueue(why);
                else
                {
                    Assert.Equal(HttpStatusCode.ServiceUnavailable, status);
                    Interlocked.Increment(ref refused);
                }
                await Task.Delay(20);
            }
        });
        await MovedAsync(5);
        switch (what)
        {
            case "crashed and started again":
                server.Crash();
                await TestHost.UntilAsync(() => Volatile.Read(ref refused) > 3, "moves are refused");
                server.Again();
                break;
            case "frozen and going on":
                server.Freeze();
                var before = Volatile.Read(ref asked);
                await TestHost.UntilAsync(() => Volatile.Read(ref asked) > before + 20, "answers go on");
                server.Freeze(goesOn: true);
                break;
            default:
                for (var i = 0; i < 10; i++) server.Cut();
                break;
        }
        await MovedAsync(5);
        await end.CancelAsync();
        await Task.WhenAll([.. askers, mover]);

        var (last, active) = await MoveAsync(admin, "the last");
        Assert.Equal(HttpStatusCode.OK, last);
        Assert.Equal(active, (await AskAsync(admin, "harbor")).Version);
        asked++;
        var audit = (await admin.GetFromJsonAsync<System.Text.Json.JsonElement>("api/tenants/harbor/audit?limit=500")).GetProperty("entries").EnumerateArray().Select(e => e.TryGetProperty("why", out var why) ? why.GetString() ?? "" : "").ToHashSet();
        Assert.True(audit.IsSupersetOf(acknowledged), $"Lost: {string.Join(", ", acknowledged.Except(audit))} of {acknowledged.Count}; refused {refused}.");
        var used = (await admin.GetFromJsonAsync<System.Text.Json.JsonElement>("api/tenants/harbor/usage?hours=2")).GetProperty("adapters").EnumerateArray().Sum(v => v.GetProperty("requests").GetInt32());
        Assert.Equal(asked, used);
        TestContext.Current.TestOutputHelper?.WriteLine($"{what}: {asked} answers, 0 wrong; {acknowledged.Count} moves acknowledged, 0 lost, {refused} refused");

        async Task MovedAsync(int more)
        {
            var wanted = acknowledged.Count + more;
            await TestHost.UntilAsync(() => acknowledged.Count >= wanted, "moves are acknowledged");
        }
    }

    private static async Task<(string Version, string Text)> AskAsync(HttpClient client, string model)
    {
        using var answer = await client.PostAsync("v1/chat/completions", TestHost.Json(Asked.Replace("MODEL", model, StringComparison.Ordinal)));
        Assert.Equal(HttpStatusCode.OK, answer.StatusCode);
        return (answer.Headers.GetValues("x-tenantlora-version").Single(), (await TestHost.ReadAsync(answer)).GetProperty("choices")[0].GetProperty("message").GetProperty("content").GetString()!);
    }

    /// <summary>To the version that is not active.</summary>
    private static async Task<(HttpStatusCode Status, string Version)> MoveAsync(HttpClient client, string why)
    {
        using var adapter = await client.GetAsync("api/tenants/harbor/adapters/harbor");
        if (!adapter.IsSuccessStatusCode) return (adapter.StatusCode, "");
        var version = (await TestHost.ReadAsync(adapter)).GetProperty("active").GetString() == "v1" ? "v2" : "v1";
        using var move = new HttpRequestMessage(HttpMethod.Put, "api/tenants/harbor/adapters/harbor/aliases/active") { Content = JsonContent.Create(new { version, why }) };
        move.Headers.IfMatch.Add(adapter.Headers.ETag!);
        using var moved = await client.SendAsync(move);
        return (moved.StatusCode, version);
    }
}
