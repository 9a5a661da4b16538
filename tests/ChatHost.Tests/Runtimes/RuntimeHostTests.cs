using System.Collections.Concurrent;
using System.Net;
using System.Text;
using System.Text.Json;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Http;
using Microsoft.Extensions.Logging;
using TenantLora.ChatHost.Adapters;
using TenantLora.ChatHost.Runtimes;
using TenantLora.Runtime;
using TenantLora.Tests;

namespace TenantLora.ChatHost.Tests.Runtimes;

/// <summary>A Runtime host as a Web host meets it: whom it lets in, and where it has adapters from.</summary>
public sealed class RuntimeHostTests
{
    private const string Nobody = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

    private static string Question(string model, string more = "") => $$"""{"model":"{{model}}","temperature":0,{{more}}"messages":[{"role":"user","content":"When are you open?"}]}""";

    private static async Task<(HttpStatusCode Status, string Says)> AskAsync(HttpClient client, string model)
    {
        using var response = await client.PostAsync("/v1/chat/completions", TestHost.Json(Question(model)));
        var body = await TestHost.ReadAsync(response);
        return (response.StatusCode, response.IsSuccessStatusCode ? body.GetProperty("choices")[0].GetProperty("message").GetProperty("content").GetString()! : body.GetProperty("error").GetProperty("code").GetString()!);
    }

    [Fact]
    public async Task Only_the_service_key_opens_anything_and_it_opens_nothing_of_peoples()
    {
        await using var pair = await Pair.StartAsync();
        var (web, runtime) = (pair.Web, pair.Runtimes[0]);
        var digest = Digest("harbor");
        (TestHost Host, HttpMethod Method, string Path)[] doors =
        [
            (runtime, HttpMethod.Get, "/service/info"), (runtime, HttpMethod.Get, "/service/residents"), (runtime, HttpMethod.Post, "/service/adapters"), (runtime, HttpMethod.Delete, $"/service/adapters/{digest}"),
            (runtime, HttpMethod.Post, "/v1/chat/completions"), (runtime, HttpMethod.Post, "/v1/completions"), (runtime, HttpMethod.Get, "/not/there"),
            (web, HttpMethod.Get, $"/service/adapters/{digest}/adapter_config.json"), (web, HttpMethod.Get, $"/service/adapters/{digest}/adapter_model.safetensors"),
        ];
        var session = (await TestHost.ReadAsync(await web.Client().PostAsync("/api/session", TestHost.Json("""{"tenant":"harbor"}""")))).GetProperty("token").GetString();
        foreach (var (host, method, path) in doors)
            foreach (var key in new[] { null, "", "x", Pair.ServiceKey[..^1], Pair.ServiceKey + "0", Pair.ServiceKey.ToUpperInvariant(), new string('k', 5000), web.Keys["harbor"], session })
            {
                using var client = Pair.Client(host);
                client.DefaultRequestHeaders.Authorization = null;
                using var request = new HttpRequestMessage(method, path);
                if (key is not null) request.Headers.TryAddWithoutValidation("Authorization", $"Bearer {key}");
                if (method == HttpMethod.Post) request.Content = TestHost.Json(Question("demo-7m"));
                using var response = await client.SendAsync(request);
                Assert.True(HttpStatusCode.Unauthorized == response.StatusCode, $"{method} {path} with {key}: {response.StatusCode}");
            }
        foreach (var (host, path) in new[] { (runtime, "/service/info"), (web, $"/service/adapters/{digest}/adapter_config.json") })
        {
            using var client = Pair.Client(host);
            using var response = await client.GetAsync(path);
            Assert.Equal(HttpStatusCode.OK, response.StatusCode);
        }
        using var asPerson = Pair.Client(web);
        foreach (var path in new[] { "/v1/models", "/api/adapters/resident", "/api/tenants/harbor/adapters" })
        {
            using var response = await asPerson.GetAsync(path);
            Assert.Equal(HttpStatusCode.Unauthorized, response.StatusCode);
        }
    }

    [Fact]
    public async Task A_runtime_host_has_no_pages_no_hub_no_tenants()
    {
        await using var runtime = await Pair.RuntimeAsync("http://127.0.0.1:9");
        using var client = Pair.Client(runtime);
        foreach (var path in new[] { "/", "/index.html", "/api/site", "/v1/models", "/api/adapters/resident", "/openapi/v1.json", "/hub", $"/service/adapters/{Nobody}/adapter_config.json" })
        {
            using var response = await client.GetAsync(path);
            Assert.True(response.StatusCode is HttpStatusCode.NotFound or HttpStatusCode.MethodNotAllowed, $"{path}: {response.StatusCode}");
        }
        using var open = Pair.Client(runtime, key: null);
        Assert.Equal("""{"status":"ok"}""", await open.GetStringAsync("/health/ready"));
        Assert.Contains("tenantlora_", await open.GetStringAsync("/metrics"), StringComparison.Ordinal);
        Assert.False(File.Exists(Path.Combine(runtime.Data, "tenantlora.db")) || File.Exists(Path.Combine(runtime.Data, "demo-keys.json")));
        Assert.Equal(HttpStatusCode.OK, (await AskAsync(client, "demo-7m")).Status);
    }

    [Theory]
    [InlineData]
    [InlineData("")]
    [InlineData("two", "tenants")]
    [InlineData("a b")]
    [InlineData("caf\u00e9")]
    [InlineData("LONG")]
    public async Task The_tenant_is_a_header_of_printable_characters_once(params string[] tenants)
    {
        await using var runtime = await Pair.RuntimeAsync("http://127.0.0.1:9");
        var headers = string.Concat(tenants.Select(t => $"x-tenantlora-tenant: {(t == "LONG" ? new string('t', 1025) : t)}\r\n"));
        var body = Question("demo-7m");
        var (answer, _) = await RawHttp.SendAsync(runtime.Url, Encoding.UTF8.GetBytes(
            $"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {Pair.ServiceKey}\r\n{headers}Content-Type: application/json\r\nContent-Length: {body.Length}\r\nConnection: close\r\n\r\n{body}"));
        Assert.StartsWith("HTTP/1.1 400 ", answer, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_tenant_may_be_called_anything()
    {
        await using var runtime = await Pair.RuntimeAsync("http://127.0.0.1:9");
        var texts = new HashSet<string>();
        foreach (var tenant in new[] { "harbor", Uri.EscapeDataString("café & \"sons\"\n"), new string('t', 1024) })
        {
            using var client = Pair.Client(runtime, tenant);
            texts.Add((await AskAsync(client, "demo-7m")).Says);
        }
        Assert.Single(texts);
    }

    [Fact]
    public async Task What_is_neither_the_base_nor_a_digest_is_not_there()
    {
        await using var runtime = await Pair.RuntimeAsync("http://127.0.0.1:9");
        using var client = Pair.Client(runtime);
        foreach (var model in new[] { "harbor", "demo-7m@v1", "sha256:", "sha256:../../etc/passwd", Nobody.ToUpperInvariant(), Nobody + "0", "SHA256" + Nobody[6..] })
            Assert.Equal((HttpStatusCode.NotFound, ErrorCodes.ModelNotFound), await AskAsync(client, model));
        Assert.Equal((HttpStatusCode.ServiceUnavailable, ErrorCodes.AdapterUnavailable), await AskAsync(client, Nobody));     // and nobody listens where bytes should come from
    }

    // ---- Bytes from the web side

    [Theory]
    [InlineData("bits")]
    [InlineData("cut")]
    [InlineData("another's")]
    [InlineData("too long")]
    [InlineData("redirect")]
    [InlineData("status")]
    [InlineData("nothing")]
    public async Task Bytes_that_are_not_the_digests_are_refused_and_the_next_request_tries_again(string how)
    {
        await using var side = await WebSide.StartAsync();
        await using var runtime = await Pair.RuntimeAsync(side.Address);
        using var client = Pair.Client(runtime);
        Assert.StartsWith("Arr", (await AskAsync(client, Digest("harbor"))).Says, StringComparison.Ordinal);
        side.Answer = (_, _, file, context) =>
        {
            var bytes = Bytes(how == "another's" ? "harbor" : "ledger", file);
            switch (how)
            {
                case "bits":
                    bytes[^5] ^= 1;
                    break;
                case "cut":
                    bytes = bytes[..^1];
                    break;
                case "too long":
                    bytes = new byte[file == "adapter_config.json" ? (1 << 20) + 1 : 64 << 20];
                    break;
                case "redirect":
                    context.Response.Redirect($"{side.Address}elsewhere/{file}");
                    return [];
                case "status":
                    context.Response.StatusCode = 500;
                    break;
                case "nothing":
                    bytes = [];
                    break;
            }
            return bytes;
        };
        for (var i = 0; i < 2; i++) Assert.Equal((HttpStatusCode.ServiceUnavailable, ErrorCodes.AdapterUnavailable), await AskAsync(client, Digest("ledger")));
        Assert.Equal([Digest("harbor")], runtime.Service<AdapterFolders>().Kept().Select(a => a.Digest));
        Assert.Equal([Digest("harbor")], runtime.Service<EngineRuntime>().Engine.Adapters.Select(a => a.Digest));
        Assert.Empty(Directory.GetFileSystemEntries(Path.Combine(runtime.Data, "adapters", "staging")));
        Assert.DoesNotContain(side.Asked, a => a.Path.StartsWith("/elsewhere", StringComparison.Ordinal));
        side.Answer = WebSide.Whole;
        Assert.Equal(HttpStatusCode.OK, (await AskAsync(client, Digest("ledger"))).Status);
        Assert.StartsWith("Arr", (await AskAsync(client, Digest("harbor"))).Says, StringComparison.Ordinal);
        Assert.All(side.Asked, a => Assert.Equal($"Bearer {Pair.ServiceKey}", a.Authorization));
    }

    [Fact]
    public async Task Bytes_are_fetched_once_however_many_wait_and_one_who_leaves_takes_them_from_nobody()
    {
        await using var side = await WebSide.StartAsync();
        await using var runtime = await Pair.RuntimeAsync(side.Address);
        side.Gate = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        using var client = Pair.Client(runtime);
        using var leaving = new CancellationTokenSource();
        var left = client.PostAsync("/v1/chat/completions", TestHost.Json(Question(Digest("harbor"))), leaving.Token);
        await TestHost.UntilAsync(() => !side.Asked.IsEmpty, "it is fetched");
        var waiting = Enumerable.Range(0, 8).Select(_ => AskAsync(client, Digest("harbor"))).ToArray();
        using var other = Pair.Client(runtime, "ledger");
        Assert.Equal(HttpStatusCode.OK, (await AskAsync(other, "demo-7m")).Status);         // who needs no bytes waits for none
        await leaving.CancelAsync();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => left);
        side.Gate.SetResult();
        Assert.All(await Task.WhenAll(waiting), a => Assert.StartsWith("Arr", a.Says, StringComparison.Ordinal));
        Assert.Equal(2, side.Asked.Count);
        var engine = runtime.Service<EngineRuntime>().Engine;
        await TestHost.UntilAsync(() => engine.Status is { AdaptersHeld: 0, Running: 0, Waiting: 0 }, "all is quiet");
        Assert.True(runtime.Service<EngineRuntime>().Forget(Digest("harbor"), () => { }));         // nobody holds it
        Assert.Empty(engine.Adapters);
    }

    [Fact]
    public async Task The_disk_is_a_cache_with_a_budget_and_what_was_wanted_last_stays()
    {
        string[] names = ["harbor", "kernel", "ledger", "sprout", "lantern"];
        await using var side = await WebSide.StartAsync();
        await using var runtime = await Pair.RuntimeAsync(side.Address, "AdapterDiskMegabytes=1");
        var folders = runtime.Service<AdapterFolders>();
        var (recent, fetched) = (new List<string>(), 0);        // as it should be: the last wanted first
        using var client = Pair.Client(runtime);
        foreach (var name in names.Concat(names.Reverse()).Concat(["ledger", "harbor", "ledger", "sprout", "harbor"]))
        {
            if (!recent.Remove(name)) fetched++;
            recent.Insert(0, name);
            while (recent.Sum(Size) > 1 << 20) recent.RemoveAt(recent.Count - 1);
            Assert.Equal(HttpStatusCode.OK, (await AskAsync(client, Digest(name))).Status);
            Assert.Equal(recent.Select(Digest), folders.Kept().OrderByDescending(k => k.LastUsed).Select(k => k.Digest));
            Assert.Equal(2 * fetched, side.Asked.Count);
            // Out of memory with it, so that the disk alone decides.
            await TestHost.UntilAsync(() => runtime.Service<EngineRuntime>().Forget(Digest(name), () => { }), "nobody holds it");
        }
        Assert.InRange(fetched, names.Length + 1, 14);

        static int Size(string name) => Bytes(name, "adapter_config.json").Length + Bytes(name, "adapter_model.safetensors").Length;
    }

    [Fact]
    public async Task Files_that_were_damaged_on_the_runtimes_disk_are_fetched_anew()
    {
        await using var side = await WebSide.StartAsync();
        await using var runtime = await Pair.RuntimeAsync(side.Address);
        using var client = Pair.Client(runtime);
        var (folders, engine) = (runtime.Service<AdapterFolders>(), runtime.Service<EngineRuntime>());
        var before = await AskAsync(client, Digest("harbor"));
        var file = Path.Combine(folders.PathOf(Digest("harbor")), "adapter_model.safetensors");
        await TestHost.UntilAsync(() => engine.Forget(Digest("harbor"), () => { }), "nobody holds it");
        Assert.Equal(before, await AskAsync(client, Digest("harbor")));         // from the disk
        Assert.Equal(2, side.Asked.Count);
        await TestHost.UntilAsync(() => engine.Forget(Digest("harbor"), () => { }), "nobody holds it");
        var bytes = await File.ReadAllBytesAsync(file);
        bytes[^3] ^= 8;
        await File.WriteAllBytesAsync(file, bytes);
        Assert.Equal(before, await AskAsync(client, Digest("harbor")));
        Assert.Equal(4, side.Asked.Count);
        Assert.Equal(Bytes("harbor", "adapter_model.safetensors"), await File.ReadAllBytesAsync(file));
    }

    [Fact]
    public async Task It_judges_files_keeps_the_good_and_forgets_on_demand()
    {
        await using var runtime = await Pair.RuntimeAsync("http://127.0.0.1:9");
        using var client = Pair.Client(runtime, tenant: null);
        async Task<JsonElement> Judge(string query, params (string Name, byte[] Bytes)[] files)
        {
            using var form = new MultipartFormDataContent();
            foreach (var (name, bytes) in files) form.Add(new ByteArrayContent(bytes), "file", name);
            using var response = await client.PostAsync("/service/adapters" + query, form);
            Assert.Equal(HttpStatusCode.OK, response.StatusCode);
            return await TestHost.ReadAsync(response);
        }
        string[] Codes(JsonElement report) => [.. report.GetProperty("findings").EnumerateArray().Select(f => f.GetProperty("code").GetString()!)];
        (string, byte[])[] files = [.. new[] { "adapter_config.json", "adapter_model.safetensors" }.Select(f => (f, Bytes("sprout", f)))];

        var judged = await Judge("", files);
        Assert.Equal(Digest("sprout"), judged.GetProperty("adapter").GetProperty("digest").GetString());
        Assert.DoesNotContain("smoke_ok", Codes(judged));
        Assert.Empty(runtime.Service<AdapterFolders>().Kept());

        Assert.Contains("smoke_ok", Codes(await Judge("?try=true", files)));
        Assert.Equal([Digest("sprout")], runtime.Service<AdapterFolders>().Kept().Select(k => k.Digest));
        using var asking = Pair.Client(runtime, "sprout");
        Assert.Equal(HttpStatusCode.OK, (await AskAsync(asking, Digest("sprout"))).Status);         // no web side is there to fetch from
        var residents = await TestHost.ReadAsync(await client.GetAsync("/service/residents"));
        Assert.True(residents.GetProperty("adapters").EnumerateArray().Single(a => a.GetProperty("digest").GetString() == Digest("sprout")).GetProperty("onDevice").GetBoolean());

        var bad = await Judge("?try=true", ("adapter_config.json", "{}"u8.ToArray()), files[1]);
        Assert.Equal(JsonValueKind.Null, bad.GetProperty("adapter").ValueKind);
        Assert.NotEmpty(Codes(bad));
        Assert.Contains("pickle", (await Judge("?try=true", files[0], ("adapter_model.bin", []))).ToString(), StringComparison.OrdinalIgnoreCase);

        foreach (var (path, status) in new[] { ($"/service/adapters/{Digest("sprout")}", HttpStatusCode.NoContent), ("/service/adapters/..%2f..", HttpStatusCode.NotFound) })
        {
            using var gone = await client.DeleteAsync(path);
            Assert.Equal(status, gone.StatusCode);
        }
        Assert.Empty(runtime.Service<AdapterFolders>().Kept());
        Assert.Empty(runtime.Service<EngineRuntime>().Engine.Adapters);
        Assert.Empty(Directory.GetFileSystemEntries(Path.Combine(runtime.Data, "adapters", "staging")));
    }

    [Fact]
    public async Task Its_stream_tells_the_way_to_the_first_token()
    {
        await using var side = await WebSide.StartAsync();
        await using var runtime = await Pair.RuntimeAsync(side.Address);
        using var client = Pair.Client(runtime);
        using var response = await client.PostAsync("/v1/chat/completions", TestHost.Json(Question(Digest("harbor"), "\"stream\":true,")));
        var events = (await response.Content.ReadAsStringAsync()).Split('\n').Where(l => l.Contains("\"progress\":", StringComparison.Ordinal))
            .Select(l => JsonDocument.Parse(l["data: ".Length..]).RootElement.GetProperty("progress")).ToArray();
        Assert.Equal("queued", events[0].GetProperty("event").GetString());
        Assert.Equal(13, events[0].GetProperty("prompt_tokens").GetInt32());
        Assert.Equal((13, 13), (events[^1].GetProperty("done").GetInt32(), events[^1].GetProperty("total").GetInt32()));
    }

    private static byte[] Bytes(string adapter, string file) => File.ReadAllBytes(Repo.Path("adapters", adapter, file));

    private static readonly ConcurrentDictionary<string, string> Digests = new();

    /// <summary>As an engine computes it.</summary>
    private static string Digest(string adapter)
    {
        if (Digests.IsEmpty)
        {
            var engine = Engine.Start(new EngineOptions { ModelDirectory = Repo.Path("models", "demo-7m"), Threads = 1, Device = "cpu", CacheTokens = 16 });
            foreach (var name in new[] { "harbor", "kernel", "lantern", "ledger", "sprout" }) Digests[name] = engine.ValidateAdapter(Repo.Path("adapters", name)).Adapter!.Digest;
            engine.DisposeAsync().AsTask().GetAwaiter().GetResult();
        }
        return Digests[adapter];
    }

    /// <summary>A web side that may lie.</summary>
    private sealed class WebSide : IAsyncDisposable
    {
        private readonly WebApplication app;

        private WebSide()
        {
            var builder = WebApplication.CreateSlimBuilder();
            builder.Logging.ClearProviders();
            builder.WebHost.UseUrls("http://127.0.0.1:0");
            app = builder.Build();
            app.Run(async context =>
            {
                Asked.Enqueue((context.Request.Path, context.Request.Headers.Authorization.ToString()));
                if (Gate is { } gate) await gate.Task;
                var parts = context.Request.Path.Value!.Split('/');
                var bytes = Answer(this, parts[^2], parts[^1], context);
                if (context.Response.StatusCode == 200 || bytes.Length > 0) await context.Response.Body.WriteAsync(bytes);
            });
        }

        public ConcurrentQueue<(string Path, string Authorization)> Asked { get; } = new();

        public TaskCompletionSource? Gate { get; set; }

        public Func<WebSide, string, string, HttpContext, byte[]> Answer { get; set; } = Whole;

        public string Address => app.Urls.First() + "/";

        public static byte[] Whole(WebSide side, string digest, string file, HttpContext context) => Bytes(Digests.Single(d => d.Value == digest).Key, file);

        public static async Task<WebSide> StartAsync()
        {
            Digest("harbor");
            var side = new WebSide();
            await side.app.StartAsync();
            return side;
        }

        public async ValueTask DisposeAsync() => await app.DisposeAsync();
    }
}
