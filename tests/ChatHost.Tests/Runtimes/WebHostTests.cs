using System.Collections.Concurrent;
using System.Net;
using System.Text.Json;
using System.Text.RegularExpressions;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Http;
using Microsoft.Extensions.Logging;
using Microsoft.Extensions.Options;
using TenantLora.ChatHost.Operations;
using TenantLora.ChatHost.Runtimes;
using TenantLora.Runtime;
using static TenantLora.ChatHost.Tests.Adapters.AdapterApiTests;

namespace TenantLora.ChatHost.Tests.Runtimes;

/// <summary>A Web host before Runtime hosts: people see the same as of a host that does all.</summary>
public sealed class WebHostTests
{
    private const string Harbor = "/api/tenants/harbor/adapters/harbor";
    private static readonly string[] Tenants = ["harbor", "kernel", "lantern", "ledger", "sprout"];
    private static readonly string[] Questions = ["When are you open?", "What do you sell?", "Hello", "My name is Ada \\u2693 \\\"x\\\"."];

    [Fact]
    public async Task Every_answer_is_that_of_a_host_that_does_all()
    {
        await using var all = await TestHost.StartRealAsync("Device=cpu", "Threads=1");
        await using var pair = await Pair.StartAsync();
        foreach (var tenant in Tenants)
        {
            using var here = all.Client(tenant);
            using var there = pair.Web.Client(tenant);
            foreach (var question in Questions)
                foreach (var more in new[] { "", "\"logprobs\":true,\"top_logprobs\":3,", "\"stream\":true,\"stream_options\":{\"include_usage\":true}," })
                {
                    var body = $$"""{"model":"{{tenant}}","temperature":0,{{more}}"messages":[{"role":"user","content":"{{question}}"}]}""";
                    Assert.Equal(await Said(here, "/v1/chat/completions", body), await Said(there, "/v1/chat/completions", body));
                }
            foreach (var body in new[] { """{"model":"NAME","temperature":0,"prompt":"Once upon","logprobs":2,"max_tokens":12}""", """{"model":"demo-7m","temperature":1.3,"top_p":0.9,"seed":7,"prompt":["Hi"],"stop":["e","."],"logit_bias":{"300":2.5},"frequency_penalty":0.1}""", """{"model":"NAME@v1","prompt":"x","max_tokens":100000}""", """{"model":"nobody","prompt":"x"}""" })
                Assert.Equal(await Said(here, "/v1/completions", body.Replace("NAME", tenant, StringComparison.Ordinal)), await Said(there, "/v1/completions", body.Replace("NAME", tenant, StringComparison.Ordinal)));
            Assert.Equal(Bare(await here.GetStringAsync("/v1/models")), Bare(await there.GetStringAsync("/v1/models")));
        }

        // All but ids and times.
        static async Task<string> Said(HttpClient client, string path, string body)
        {
            using var response = await client.PostAsync(path, TestHost.Json(body));
            string[] headers = [.. response.Headers.Where(h => h.Key.StartsWith("x-tenantlora", StringComparison.OrdinalIgnoreCase)).Select(h => $"{h.Key}: {string.Join(',', h.Value)}").Order(StringComparer.Ordinal)];
            return $"{(int)response.StatusCode} {response.Content.Headers.ContentType} {string.Join(' ', headers)}\n{Bare(await response.Content.ReadAsStringAsync())}";
        }
        static string Bare(string text) => Regex.Replace(text, """("id":"(chatcmpl|cmpl)-)[0-9a-f]+|("(created|queued_ms|prompt_ms|prompt_per_second|predicted_ms|predicted_per_second)":)[-0-9.eE+]+""", "$1$3");
    }

    [Fact]
    public async Task The_hub_tells_the_same_story()
    {
        await using var all = await TestHost.StartRealAsync("Device=cpu", "Threads=1", "StepTokens=4");
        await using var pair = await Pair.StartAsync();
        async Task<(string Kinds, string Text, int Tokens, JsonElement Queued, JsonElement Done)> Story(TestHost host)
        {
            await using var hub = await HubConnection.OpenAsync(host.Url, host.Keys["harbor"]);
            var (events, error) = await hub.CollectAsync("Send", """{"model":"harbor","messages":[{"role":"user","content":"When are you open?"}],"options":{"temperature":0}}""");
            Assert.Null(error);
            var deltas = events.Where(e => e.GetProperty("type").GetString() == "delta").ToArray();
            return (string.Join(' ', events.Select(e => e.GetProperty("type").GetString()).Distinct()), string.Concat(deltas.Select(d => d.GetProperty("text").GetString())),
                deltas.Sum(d => d.GetProperty("tokens").GetInt32()), events.Single(e => e.GetProperty("type").GetString() == "queued"), events[^1]);
        }
        var (here, there) = (await Story(all), await Story(pair.Web));
        Assert.Equal(("queued prefill delta done", here.Text, here.Tokens), (there.Kinds.Replace("adapter_load ", "", StringComparison.Ordinal), there.Text, there.Tokens));
        Assert.Equal(here.Queued.GetProperty("promptTokens").GetInt32(), there.Queued.GetProperty("promptTokens").GetInt32());
        foreach (var field in new[] { "finishReason", "usage", "model", "adapter", "fingerprint" }) Assert.Equal(here.Done.GetProperty(field).ToString(), there.Done.GetProperty(field).ToString());
    }

    [Fact]
    public async Task A_version_is_brought_judged_tried_activated_rolled_back_and_deleted()
    {
        await using var pair = await Pair.StartAsync();
        using var admin = pair.Web.Client();
        using var brought = await admin.PostAsync(Harbor + "/versions", Form("ledger"));
        Assert.Equal(HttpStatusCode.Created, brought.StatusCode);
        var version = (await TestHost.ReadAsync(brought)).GetProperty("version");
        Assert.Contains("smoke_ok", version.GetProperty("findings").EnumerateArray().Select(f => f.GetProperty("code").GetString()));
        Assert.Equal(8, version.GetProperty("rank").GetInt32());
        var harbor = await AskAsync(admin, "harbor");
        var ledger = await AskAsync(admin, "harbor@v2");
        Assert.Equal(("v1", "v2"), (harbor.Version, ledger.Version));
        Assert.NotEqual(harbor.Text, ledger.Text);

        using var seen = await admin.GetAsync(Harbor);
        using var activate = new HttpRequestMessage(HttpMethod.Put, Harbor + "/aliases/active") { Content = TestHost.Json("""{"version":"v2"}""") };
        activate.Headers.IfMatch.Add(seen.Headers.ETag!);
        using var moved = await admin.SendAsync(activate);
        Assert.Equal(ledger, await AskAsync(admin, "harbor"));
        var place = (await TestHost.ReadAsync(await admin.GetAsync("/api/adapters/resident"))).GetProperty("adapters").EnumerateArray().Single(a => a.GetProperty("version").GetString() == "v2");
        Assert.Equal("device", place.GetProperty("place").GetString());
        using var back = new HttpRequestMessage(HttpMethod.Post, Harbor + "/rollback") { Content = TestHost.Json("{}") };
        back.Headers.IfMatch.Add(moved.Headers.ETag!);
        (await admin.SendAsync(back)).EnsureSuccessStatusCode().Dispose();
        Assert.Equal(harbor, await AskAsync(admin, "harbor"));

        // Of bytes of its own, so that they go with it; from the runtime's memory and disk as well.
        var config = JsonSerializer.Deserialize<Dictionary<string, JsonElement>>(Files("sprout")[0].Bytes)!;
        config["lora_alpha"] = JsonSerializer.SerializeToElement(5);
        using var own = await admin.PostAsync("/api/tenants/harbor/adapters/own/versions", Form((Files("sprout")[0].Name, JsonSerializer.SerializeToUtf8Bytes(config)), Files("sprout")[1]));
        var digest = (await TestHost.ReadAsync(own)).GetProperty("version").GetProperty("digest").GetString()!;
        await AskAsync(admin, "own@v1");
        var runtime = pair.Runtimes[0];
        Assert.Contains(digest, runtime.Service<EngineRuntime>().Engine.Adapters.Select(a => a.Digest));
        using var gone = await admin.DeleteAsync("/api/tenants/harbor/adapters/own");
        Assert.Equal(HttpStatusCode.NoContent, gone.StatusCode);
        await TestHost.UntilAsync(() => runtime.Service<EngineRuntime>().Engine.Adapters.All(a => a.Digest != digest) && !runtime.Service<ChatHost.Adapters.AdapterFolders>().Has(digest), "the runtime forgets it");

        // Refused with the whole report.
        config["use_dora"] = JsonSerializer.SerializeToElement(true);
        using var refused = await admin.PostAsync(Harbor + "/versions", Form((Files("sprout")[0].Name, JsonSerializer.SerializeToUtf8Bytes(config)), Files("sprout")[1]));
        Assert.Equal(HttpStatusCode.UnprocessableEntity, refused.StatusCode);
        Assert.Contains("use_dora", await refused.Content.ReadAsStringAsync(), StringComparison.Ordinal);
    }

    [Fact]
    public async Task Stopping_and_leaving_end_the_answer_at_the_runtime()
    {
        const string Long = """{"model":"harbor","messages":[{"role":"user","content":"Hi"}],"options":{"temperature":2,"seed":1,"maxTokens":1900}}""";
        await using var pair = await Pair.StartAsync();
        var engine = pair.Runtimes[0].Service<EngineRuntime>().Engine;
        for (var round = 0; round < 4; round++)
        {
            await using var hub = await HubConnection.OpenAsync(pair.Web.Url, pair.Web.Keys["harbor"]);
            var (_, messages) = await hub.StreamAsync("Send", Long);
            var id = (await messages.ReadAsync()).GetProperty("item").GetProperty("id").GetString();
            Assert.Null(await hub.InvokeAsync("Stop", $"\"{id}\""));
            await TestHost.UntilAsync(() => engine.Status is { Running: 0, Waiting: 0 } s && s.BlocksFree == s.BlocksTotal, "the runtime has stopped too");
        }
        using var client = pair.Web.Client();
        using var leave = new CancellationTokenSource();
        var streaming = client.PostAsync("/v1/completions", TestHost.Json("""{"model":"harbor","stream":true,"prompt":"Once","max_tokens":1900,"logit_bias":{"4089":-100,"4091":-100}}"""), leave.Token);
        await TestHost.UntilAsync(() => engine.Status.Running == 1, "it runs");
        await leave.CancelAsync();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => streaming);
        await TestHost.UntilAsync(() => engine.Status is { Running: 0, Waiting: 0 } s && s.BlocksFree == s.BlocksTotal, "the runtime has stopped too");
    }

    [Fact]
    public async Task What_the_web_host_takes_the_runtime_takes_though_it_is_longer_on_the_way()
    {
        await using var pair = await Pair.StartAsync();
        using var client = pair.Web.Client();
        var text = string.Concat(Enumerable.Repeat("<'> ", 1 << 18));          // 1 MiB from people, 4.75 to the runtime
        using var response = await client.PostAsync("/v1/chat/completions", TestHost.Json($$"""{"model":"demo-7m","messages":[{"role":"user","content":"{{text}}"}]}"""));
        var error = (await TestHost.ReadAsync(response)).GetProperty("error");
        Assert.Equal((HttpStatusCode.BadRequest, ErrorCodes.ContextLengthExceeded), (response.StatusCode, error.GetProperty("code").GetString()));
    }

    [Fact]
    public async Task A_tenant_stays_with_its_runtime_and_goes_to_the_next_when_that_drains()
    {
        await using var pair = await Pair.StartAsync(runtimes: 2);
        long[] Served() => [.. pair.Runtimes.Select(r => r.Service<EngineRuntime>().Engine.Status.AdapterLoads)];
        foreach (var tenant in Tenants)
        {
            using var client = pair.Web.Client(tenant);
            for (var i = 0; i < 3; i++) await AskAsync(client, tenant);
        }
        Assert.Equal(Tenants.Length, Served().Sum());           // each tenant's adapter is on one of the two
        var residents = pair.Runtimes.Select(r => r.Service<EngineRuntime>().Engine.Adapters.Count).ToArray();
        Assert.Equal(Tenants.Length, residents.Sum());
        var drained = Array.FindIndex(residents, r => r > 0);
        await pair.Runtimes[drained].Service<Admission>().DrainAsync(TimeSpan.FromSeconds(5));
        foreach (var tenant in Tenants)
        {
            using var client = pair.Web.Client(tenant);
            await AskAsync(client, tenant);         // answers at once, whatever the Web host has heard
        }
        Assert.Equal(Tenants.Length, pair.Runtimes[1 - drained].Service<EngineRuntime>().Engine.Adapters.Count);
        using var open = pair.Web.Client(null);
        Assert.Equal(HttpStatusCode.OK, (await open.GetAsync("/health/ready")).StatusCode);
        await pair.Runtimes[1 - drained].Service<Admission>().DrainAsync(TimeSpan.FromSeconds(5));
        using var refused = await pair.Web.Client().PostAsync("/v1/chat/completions", TestHost.Json("""{"model":"harbor","messages":[{"role":"user","content":"Hi"}]}"""));
        Assert.Equal((HttpStatusCode.ServiceUnavailable, ErrorCodes.Unreachable), (refused.StatusCode, (await TestHost.ReadAsync(refused)).GetProperty("error").GetProperty("code").GetString()));
        Assert.NotNull(refused.Headers.RetryAfter);
        await TestHost.UntilAsync(() => open.GetAsync("/health/ready").Result.StatusCode == HttpStatusCode.ServiceUnavailable, "it is not ready");
        Assert.Contains("tenantlora_runtimes{used=\"no\"} 2", await open.GetStringAsync("/metrics"), StringComparison.Ordinal);
        Assert.Equal(HttpStatusCode.OK, (await open.GetAsync("/health/live")).StatusCode);
    }

    [Fact]
    public async Task What_is_pinned_at_the_web_side_is_brought_to_the_tenants_runtime_and_again_after_its_restart()
    {
        await using var pair = await Pair.StartAsync();
        using var admin = pair.Web.Client("ledger");
        var digest = pair.Web.Service<Serving>().Resolve("ledger", "ledger").Digest!;
        using var pinned = await admin.PutAsync("/api/tenants/ledger/adapters/ledger/pin", null);
        Assert.Equal(HttpStatusCode.OK, pinned.StatusCode);
        static bool IsThere(TestHost runtime, string digest) => runtime.Service<EngineRuntime>().Engine.Residents.Any(r => r.Digest == digest && r.OnDevice);
        await TestHost.UntilAsync(() => IsThere(pair.Runtimes[0], digest), "it comes without anyone asking");
        var address = pair.Runtimes[0].Url;
        await pair.Runtimes[0].App.StopAsync();
        await using var again = await Pair.RuntimeAsync(pair.Web.Url.ToString(), $"--urls={address}");
        await TestHost.UntilAsync(() => IsThere(again, digest), "and comes again");
        using var unpinned = await admin.DeleteAsync("/api/tenants/ledger/adapters/ledger/pin");
        Assert.Equal(HttpStatusCode.OK, unpinned.StatusCode);
    }

    [Fact]
    public async Task A_web_host_that_drains_still_gives_the_bytes_that_its_last_answers_need()
    {
        await using var pair = await Pair.StartAsync();
        var digest = pair.Web.Service<Serving>().Resolve("harbor", "harbor").Digest!;
        await pair.Web.Service<Admission>().DrainAsync(TimeSpan.FromSeconds(5));
        using var client = Pair.Client(pair.Runtimes[0]);
        using var response = await client.PostAsync("/v1/completions", TestHost.Json($$"""{"model":"{{digest}}","prompt":"Hi","max_tokens":1}"""));
        Assert.Equal(HttpStatusCode.OK, response.StatusCode);
    }

    [Fact]
    public async Task A_runtime_of_another_base_or_another_key_is_not_used_and_is_named()
    {
        await using var other = await Pair.RuntimeAsync("http://127.0.0.1:9", "ModelName=other");
        await using var locked = await TestHost.StartRealAsync("Role=Runtime", $"ServiceKey={new string('z', 40)}", "AdaptersFrom=http://127.0.0.1:9", "Device=cpu", "Threads=1");
        await using var right = await Pair.RuntimeAsync("http://127.0.0.1:9");
        var log = new ListLogger<RemoteRuntimes>();
        await using var runtimes = await RemoteRuntimes.ConnectAsync(new TenantLoraOptions { ServiceKey = Pair.ServiceKey, Runtimes = [right.Url.ToString(), locked.Url.ToString(), other.Url.ToString()] }, log);
        await TestHost.UntilAsync(() => log.Lines.Count(l => l.Contains("is not used", StringComparison.Ordinal)) == 2, "both are named");
        Assert.Contains(log.Lines, l => l.Contains(other.Url.ToString(), StringComparison.Ordinal) && l.Contains("it serves other (", StringComparison.Ordinal));
        Assert.Contains(log.Lines, l => l.Contains(locked.Url.ToString(), StringComparison.Ordinal) && l.Contains("ServiceKey", StringComparison.Ordinal));
        Assert.Equal([true, false, false], runtimes.All.Select(r => r.IsUsed));
        foreach (var tenant in Enumerable.Range(0, 20)) Assert.IsType<GenerationDone>((await runtimes.GenerateAsync(new GenerationRequest { Tenant = $"{tenant}", Prompt = "Hi", MaxTokens = 1 }).ToListAsync())[^1]);
        Assert.DoesNotContain(log.Lines, l => l.Contains(Pair.ServiceKey, StringComparison.Ordinal));
    }

    [Fact]
    public async Task A_runtime_whose_steps_do_not_end_is_not_used_until_it_is_well_and_what_ran_there_ends()
    {
        var (fault, asked) = (default(string), 0);
        var builder = WebApplication.CreateSlimBuilder();
        builder.Logging.ClearProviders();
        builder.WebHost.UseUrls("http://127.0.0.1:0");
        await using var runtime = builder.Build();
        var info = new ServiceInfo(new EngineInfo("demo-7m", "llama", 1, 2048, "fake", "sha256:0"), 1 << 20, 1 << 30, Guid.NewGuid());
        runtime.MapGet("/service/info", () => Results.Json(info with { Fault = Volatile.Read(ref fault) }, ServiceJson.Default.ServiceInfo));
        runtime.MapPost("/v1/completions", async (HttpContext context) =>
        {
            Interlocked.Increment(ref asked);
            await Task.Delay(Timeout.Infinite, context.RequestAborted);
        });
        await runtime.StartAsync();
        var log = new ListLogger<RemoteRuntimes>();
        await using var runtimes = await RemoteRuntimes.ConnectAsync(new TenantLoraOptions { ServiceKey = Pair.ServiceKey, Runtimes = [runtime.Urls.First()] }, log);
        var stands = runtimes.GenerateAsync(new GenerationRequest { Tenant = "harbor", Prompt = "Hi" }).ToListAsync().AsTask();
        await TestHost.UntilAsync(() => Volatile.Read(ref asked) == 1, "it is asked");
        Assert.Null(runtimes.Fault);

        Volatile.Write(ref fault, "a step has been under way for 99 s");
        Assert.Equal(ErrorCodes.Unreachable, (await Assert.ThrowsAsync<TenantLoraException>(() => stands)).Code);
        await TestHost.UntilAsync(() => runtimes.Fault == "no_runtime", "it is not used");
        Assert.Contains(log.Lines, l => l.EndsWith("a step has been under way for 99 s", StringComparison.Ordinal));

        Volatile.Write(ref fault, null);
        await TestHost.UntilAsync(() => runtimes.Fault is null, "it is used again");
    }

    [Fact]
    public async Task Without_any_runtime_it_says_which_it_has_asked_and_does_not_start()
    {
        var log = new ListLogger<RemoteRuntimes>();
        string[] addresses = [$"http://127.0.0.1:{Pair.FreePort()}/", $"http://127.0.0.1:{Pair.FreePort()}/"];
        var error = await Assert.ThrowsAsync<OptionsValidationException>(() => RemoteRuntimes.ConnectAsync(new TenantLoraOptions { ServiceKey = Pair.ServiceKey, Runtimes = addresses }, log, TimeSpan.FromSeconds(2)));
        Assert.Equal(2, error.Failures.Count());
        Assert.All(error.Failures.Zip(addresses), f => Assert.Contains(f.Second, f.First, StringComparison.Ordinal));
        Assert.Single(log.Lines, l => l.StartsWith("Waiting for a runtime", StringComparison.Ordinal));
    }

    private static async Task<(string Version, string Text)> AskAsync(HttpClient client, string model)
    {
        using var response = await client.PostAsync("/v1/chat/completions", TestHost.Json($$"""{"model":"{{model}}","temperature":0,"messages":[{"role":"user","content":"When are you open?"}]}"""));
        var body = await TestHost.ReadAsync(response);
        Assert.True(response.IsSuccessStatusCode, body.ToString());
        return (response.Headers.GetValues("x-tenantlora-version").Single(), body.GetProperty("choices")[0].GetProperty("message").GetProperty("content").GetString()!);
    }

    private sealed class ListLogger<T> : ILogger<T>
    {
        public ConcurrentQueue<string> Lines { get; } = new();

        public IDisposable? BeginScope<TState>(TState state) where TState : notnull => null;

        public bool IsEnabled(LogLevel logLevel) => true;

        public void Log<TState>(LogLevel logLevel, EventId eventId, TState state, Exception? exception, Func<TState, Exception?, string> formatter) => Lines.Enqueue(formatter(state, exception));
    }
}
