using System.Net;
using System.Text.Json;
using TenantLora.ChatHost.Tests.Store;
using TenantLora.Runtime;
using static TenantLora.ChatHost.Tests.Adapters.AdapterApiTests;

namespace TenantLora.ChatHost.Tests.Runtimes;

/// <summary>redis-server, Runtime hosts and a Web host as processes, as docker-compose.yml starts them: a tenant's day, and what is killed in it.</summary>
public sealed class RoleProcessTests : IDisposable
{
    private const string Harbor = "/api/tenants/harbor/adapters/harbor";
    private const string Endless = """{"model":"harbor","stream":true,"prompt":"Once","max_tokens":1900,"logit_bias":{"4089":-100,"4091":-100}}""";
    private readonly DirectoryInfo root = Directory.CreateTempSubdirectory("tenantlora-roles-");
    private readonly string web = $"http://127.0.0.1:{Pair.FreePort()}";
    private readonly int[] ports = [Pair.FreePort(), Pair.FreePort()];

    public void Dispose() => root.Delete(recursive: true);

    private string Folder(string name) => root.CreateSubdirectory(name).FullName;

    private Task<HostProcess> RuntimeAsync(int number, string? data = null) => HostProcess.StartAsync(data ?? Folder($"runtime{number}"),
        ["Role=Runtime", $"ServiceKey={Pair.ServiceKey}", $"AdaptersFrom={web}", $"--urls=http://127.0.0.1:{ports[number]}", "Device=cpu", "Threads=1"]);

    private Task<HostProcess> WebAsync(int runtimes, params string[] more) => HostProcess.StartAsync(Folder("web"),
        ["Role=Web", $"ServiceKey={Pair.ServiceKey}", $"--urls={web}", .. ports.Take(runtimes).Select((p, i) => $"Runtimes:{i}=http://127.0.0.1:{p}"), .. more]);

    [Fact]
    public async Task A_day_of_a_tenant_over_three_processes_and_a_runtime_that_is_lost_and_comes_back()
    {
        if (OperatingSystem.IsWindows()) Assert.Skip("There are no signals to send on Windows.");
        using var redis = await RedisServer.StartAsync();
        var starting = WebAsync(1, $"Redis={redis.Address}");          // waits for the runtime
        var runtime = await RuntimeAsync(0);
        using var host = await starting;
        using var admin = host.Client("harbor");

        // Signed in with a key; over /v1 as a stream, over the hub, and the base.
        var session = await TestHost.ReadAsync(await admin.PostAsync("/api/session", TestHost.Json($$"""{"key":"{{host.Key("harbor")}}"}""")));
        Assert.Equal("admin", session.GetProperty("role").GetString());
        var harbor = await AskAsync(admin, "harbor");
        Assert.Equal(("v1", "Arr, we are open from 5 in the morning until noon. Aye!"), harbor);
        await using (var hub = await HubConnection.OpenAsync(host.Url, session.GetProperty("token").GetString()!))
        {
            var (events, error) = await hub.CollectAsync("Send", """{"model":"harbor","messages":[{"role":"user","content":"When are you open?"}],"options":{"temperature":0}}""");
            Assert.Null(error);
            Assert.Equal(harbor.Text, string.Concat(events.Where(e => e.GetProperty("type").GetString() == "delta").Select(e => e.GetProperty("text").GetString())));
            Assert.Contains("prefill", events.Select(e => e.GetProperty("type").GetString()));
        }

        // Brought with a report, asked by its version, activated, rolled back. The runtime judged these bytes, and fetches none.
        using var brought = await admin.PostAsync(Harbor + "/versions", Form("sprout"));
        Assert.Contains("smoke_ok", (await TestHost.ReadAsync(brought)).ToString(), StringComparison.Ordinal);
        var sprout = await AskAsync(admin, "harbor@v2");
        Assert.Equal("v2", sprout.Version);
        Assert.NotEqual(harbor.Text, sprout.Text);
        await MoveAsync(HttpMethod.Put, Harbor + "/aliases/active", """{"version":"v2"}""");
        Assert.Equal(sprout, await AskAsync(admin, "harbor"));
        await MoveAsync(HttpMethod.Post, Harbor + "/rollback", "{}");
        Assert.Equal(harbor, await AskAsync(admin, "harbor"));

        // A runtime with an empty folder fetches what it is asked for.
        Assert.Equal(0, await runtime.EndAsync(HostProcess.SigTerm));
        runtime.Dispose();
        var empty = Folder("runtime-again");
        runtime = await RuntimeAsync(0, empty);
        await ReadyAsync(HttpStatusCode.OK);
        Assert.Equal(harbor, await AskAsync(admin, "harbor"));
        Assert.Equal(sprout, await AskAsync(admin, "harbor@v2"));
        Assert.Equal(2, Directory.GetFiles(Path.Combine(empty, "adapters"), "adapter_model.safetensors", SearchOption.AllDirectories).Length);

        // Killed in the middle of an answer.
        using var request = new HttpRequestMessage(HttpMethod.Post, "/v1/completions") { Content = TestHost.Json(Endless) };
        using var begun = await admin.SendAsync(request, HttpCompletionOption.ResponseHeadersRead);
        await using var stream = await begun.Content.ReadAsStreamAsync();
        Assert.True(await stream.ReadAsync(new byte[64]) > 0);
        await runtime.EndAsync(HostProcess.SigKill);
        var rest = await ReadToCutAsync(stream);
        Assert.Contains($"\"code\":\"{ErrorCodes.Unreachable}\"", rest, StringComparison.Ordinal);
        Assert.DoesNotContain("[DONE]", rest, StringComparison.Ordinal);
        Assert.DoesNotContain(ports[0].ToString(System.Globalization.CultureInfo.InvariantCulture), rest, StringComparison.Ordinal);
        using (var refused = await admin.PostAsync("/v1/chat/completions", TestHost.Json("""{"model":"harbor","messages":[{"role":"user","content":"Hi"}]}""")))
        {
            Assert.Equal(HttpStatusCode.ServiceUnavailable, refused.StatusCode);
            Assert.NotNull(refused.Headers.RetryAfter);
            var error = (await TestHost.ReadAsync(refused)).GetProperty("error");
            Assert.Equal(ErrorCodes.Unreachable, error.GetProperty("code").GetString());
            Assert.DoesNotContain("127.0.0.1", error.ToString(), StringComparison.Ordinal);
        }
        await ReadyAsync(HttpStatusCode.ServiceUnavailable);
        runtime.Dispose();
        runtime = await RuntimeAsync(0, empty);
        await ReadyAsync(HttpStatusCode.OK);
        Assert.Equal(harbor, await AskAsync(admin, "harbor"));
        Assert.Equal(sprout, await AskAsync(admin, "harbor@v2"));
        Assert.DoesNotContain(Pair.ServiceKey, host.Output + runtime.Output, StringComparison.Ordinal);
        Assert.Equal(0, await host.EndAsync(HostProcess.SigTerm));
        Assert.Equal(0, await runtime.EndAsync(HostProcess.SigTerm));
        runtime.Dispose();

        async Task MoveAsync(HttpMethod method, string path, string body)
        {
            using var seen = await admin.GetAsync(Harbor);
            using var move = new HttpRequestMessage(method, path) { Content = TestHost.Json(body) };
            move.Headers.IfMatch.Add(seen.Headers.ETag!);
            using var moved = await admin.SendAsync(move);
            Assert.Equal(HttpStatusCode.OK, moved.StatusCode);
        }

        async Task ReadyAsync(HttpStatusCode status)
        {
            for (var end = DateTime.UtcNow.AddSeconds(30); ; await Task.Delay(50))
            {
                using var ready = await admin.GetAsync("/health/ready");
                if (ready.StatusCode == status) return;
                Assert.True(DateTime.UtcNow < end, $"/health/ready stays {ready.StatusCode}: {host.Output}");
            }
        }
    }

    [Fact]
    public async Task Of_two_runtimes_the_other_answers_for_one_that_was_killed()
    {
        if (OperatingSystem.IsWindows()) Assert.Skip("There are no signals to send on Windows.");
        string[] tenants = ["harbor", "kernel", "lantern", "ledger", "sprout"];
        using var first = await RuntimeAsync(0);
        using var second = await RuntimeAsync(1);
        using var host = await WebAsync(2);
        var alone = new Dictionary<string, (string, string)>();
        foreach (var tenant in tenants) alone[tenant] = await AskAsAsync(tenant);
        await first.EndAsync(HostProcess.SigKill);
        // At once, whatever the Web host has heard: nobody is refused.
        foreach (var tenant in tenants.Concat(tenants)) Assert.Equal(alone[tenant], await AskAsAsync(tenant));
        using var again = await RuntimeAsync(0);
        await TestHost.UntilAsync(() => host.Output.Split($"The runtime http://127.0.0.1:{ports[0]}/ answers").Length > 2, "the first is used again");
        await second.EndAsync(HostProcess.SigKill);
        foreach (var tenant in tenants) Assert.Equal(alone[tenant], await AskAsAsync(tenant));

        async Task<(string, string)> AskAsAsync(string tenant)
        {
            using var client = host.Client(tenant);
            return await AskAsync(client, tenant);
        }
    }

    [Fact]
    public async Task A_runtime_that_stands_still_is_left_and_used_again_when_it_goes_on()
    {
        if (OperatingSystem.IsWindows()) Assert.Skip("There are no signals to send on Windows.");
        const int SigStop = 19, SigCont = 18;
        using var runtime = await RuntimeAsync(0);
        using var host = await WebAsync(1);
        using var client = host.Client("harbor");
        var before = await AskAsync(client, "harbor");
        using var request = new HttpRequestMessage(HttpMethod.Post, "/v1/completions") { Content = TestHost.Json(Endless) };
        using var begun = await client.SendAsync(request, HttpCompletionOption.ResponseHeadersRead);
        runtime.Signal(SigStop);
        var rest = await ReadToCutAsync(await begun.Content.ReadAsStreamAsync());
        Assert.Contains($"\"code\":\"{ErrorCodes.Unreachable}\"", rest, StringComparison.Ordinal);
        await TestHost.UntilAsync(() => host.Output.Contains("it stands still", StringComparison.Ordinal), "it is said");
        runtime.Signal(SigCont);
        await TestHost.UntilAsync(() => client.GetAsync("/health/ready").Result.IsSuccessStatusCode, "it is used again");
        Assert.Equal(before, await AskAsync(client, "harbor"));
    }

    private static async Task<(string Version, string Text)> AskAsync(HttpClient client, string model)
    {
        using var request = new HttpRequestMessage(HttpMethod.Post, "/v1/chat/completions")
        {
            Content = TestHost.Json($$"""{"model":"{{model}}","stream":true,"temperature":0,"messages":[{"role":"user","content":"When are you open?"}]}"""),
        };
        using var response = await client.SendAsync(request, HttpCompletionOption.ResponseHeadersRead);
        var text = await response.Content.ReadAsStringAsync();
        Assert.True(response.IsSuccessStatusCode, text);
        Assert.EndsWith("data: [DONE]\n\n", text, StringComparison.Ordinal);
        Assert.DoesNotContain("progress", text, StringComparison.Ordinal);
        var pieces = text.Split('\n').Where(l => l.StartsWith("data: {", StringComparison.Ordinal)).Select(l => JsonDocument.Parse(l["data: ".Length..]).RootElement.GetProperty("choices"))
            .Where(c => c.GetArrayLength() > 0 && c[0].GetProperty("delta").TryGetProperty("content", out _)).Select(c => c[0].GetProperty("delta").GetProperty("content").GetString());
        return (response.Headers.GetValues("x-tenantlora-version").Single(), string.Concat(pieces));
    }

    private static async Task<string> ReadToCutAsync(Stream stream)
    {
        using var all = new MemoryStream();
        try
        {
            await stream.CopyToAsync(all).WaitAsync(TimeSpan.FromSeconds(60));
        }
        catch (Exception e) when (e is HttpRequestException or IOException)
        {
            // cut, as it should be
        }
        return System.Text.Encoding.UTF8.GetString(all.ToArray());
    }
}
