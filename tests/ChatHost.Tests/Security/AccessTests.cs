using System.Net;
using System.Net.Http.Headers;
using System.Text.Json;
using Microsoft.AspNetCore.Routing;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Logging;
using TenantLora.ChatHost.Security;

namespace TenantLora.ChatHost.Tests.Security;

/// <summary>Who gets in where.</summary>
public sealed class AccessTests
{
    private static readonly string[] Open = ["/api/site", "/api/session", "/health/live", "/health/ready", "/metrics", "/openapi/{documentName}.json"];

    [Fact]
    public async Task Every_endpoint_but_the_open_ones_wants_a_key()
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime());
        var endpoints = host.Service<EndpointDataSource>().Endpoints.OfType<RouteEndpoint>().ToArray();
        Assert.Contains(endpoints, e => e.RoutePattern.RawText == "/v1/chat/completions");
        using var nobody = host.Client(null);
        using var stranger = host.Client(token: ApiKey.Create());
        foreach (var endpoint in endpoints.Where(e => !Open.Contains(e.RoutePattern.RawText)))
        {
            var path = endpoint.RoutePattern.RawText!.Replace("{**id}", "x", StringComparison.Ordinal);
            foreach (var method in endpoint.Metadata.GetMetadata<HttpMethodMetadata>()?.HttpMethods ?? ["GET", "POST"])
                foreach (var client in new[] { nobody, stranger })
                {
                    using var response = await client.SendAsync(new HttpRequestMessage(new HttpMethod(method), path) { Content = method == "POST" ? TestHost.Json("{}") : null });
                    Assert.True(response.StatusCode == HttpStatusCode.Unauthorized, $"{method} {path}: {response.StatusCode}");
                }
        }
        using var unknown = await nobody.GetAsync("/v1/nothing");
        Assert.Equal(HttpStatusCode.Unauthorized, unknown.StatusCode);
        Assert.Contains("\"code\":\"invalid_api_key\"", await unknown.Content.ReadAsStringAsync(), StringComparison.Ordinal);
        Assert.Equal("Bearer", unknown.Headers.WwwAuthenticate.ToString());
    }

    [Fact]
    public async Task A_key_is_taken_from_the_header_alone()
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime());
        using var client = host.Client(null);
        var key = host.Keys["harbor"];
        await IsAsync(401, $"/v1/models?access_token={key}", _ => { });
        await IsAsync(401, "/v1/models", r => r.Headers.Add("x-api-key", key));
        await IsAsync(401, "/v1/models", r => r.Headers.Add("Cookie", $"access_token={key}"));
        await IsAsync(401, "/v1/models", r => r.Headers.TryAddWithoutValidation("Authorization", key));
        await IsAsync(401, "/v1/models", r => r.Headers.TryAddWithoutValidation("Authorization", $"Basic {key}"));
        await IsAsync(401, "/v1/models", r => r.Headers.TryAddWithoutValidation("Authorization", $"Bearer {key[..^1]}"));
        await IsAsync(401, "/v1/models", r => r.Headers.TryAddWithoutValidation("Authorization", $"Bearer {new string('a', 10_000)}"));
        await IsAsync(200, "/v1/models", r => r.Headers.Authorization = new AuthenticationHeaderValue("bearer", key));

        async Task IsAsync(int status, string path, Action<HttpRequestMessage> with)
        {
            using var request = new HttpRequestMessage(HttpMethod.Get, path);
            with(request);
            using var response = await client.SendAsync(request);
            Assert.Equal(status, (int)response.StatusCode);
        }
    }

    [Fact]
    public async Task A_session_is_the_tenants_and_a_changed_token_is_nobodys()
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime());
        using var client = host.Client(null);
        using var byKey = await client.PostAsync("/api/session", TestHost.Json($$"""{"key":"{{host.Keys["ledger"]}}"}"""));
        var session = await TestHost.ReadAsync(byKey);
        Assert.Equal(("ledger", "Ledger & Quill"), (session.GetProperty("tenant").GetString(), session.GetProperty("name").GetString()));
        Assert.InRange(session.GetProperty("expiresAt").GetDateTimeOffset(), DateTimeOffset.UtcNow.AddHours(11.9), DateTimeOffset.UtcNow.AddHours(12.1));
        var token = session.GetProperty("token").GetString()!;
        using var ledger = host.Client(token: token);
        Assert.Contains("\"ledger\"", await ledger.GetStringAsync("/v1/models"), StringComparison.Ordinal);
        using var changed = host.Client(token: token[..20] + (token[20] == 'A' ? 'B' : 'A') + token[21..]);
        Assert.Equal(HttpStatusCode.Unauthorized, (await changed.GetAsync("/v1/models")).StatusCode);
    }

    [Fact]
    public async Task A_tenant_can_be_chosen_in_demo_mode_only()
    {
        await using var demo = await TestHost.StartAsync(new FakeRuntime());
        using var visitor = demo.Client(null);
        var site = JsonDocument.Parse(await visitor.GetStringAsync("/api/site")).RootElement;
        Assert.Equal("""{"name":"TenantLora","demo":true,"baseModel":"demo-7m"}""", JsonSerializer.Serialize(new { name = site.GetProperty("name"), demo = site.GetProperty("demo"), baseModel = site.GetProperty("baseModel") }));
        Assert.Equal(["harbor", "kernel", "lantern", "ledger", "sprout"], site.GetProperty("tenants").EnumerateArray().Select(t => t.GetProperty("id").GetString()!));
        Assert.Equal(HttpStatusCode.OK, (await visitor.PostAsync("/api/session", TestHost.Json("""{"tenant":"harbor"}"""))).StatusCode);

        var key = ApiKey.Create();
        await using var closed = await TestHost.StartAsync(new FakeRuntime(), "Demo=false", $"Tenants:harbor:KeyHashes:0={Convert.ToHexString(ApiKey.Hash(key))}");
        using var stranger = closed.Client(null);
        Assert.Empty(JsonDocument.Parse(await stranger.GetStringAsync("/api/site")).RootElement.GetProperty("tenants").EnumerateArray());
        Assert.Empty(closed.Keys);
        using var refused = await stranger.PostAsync("/api/session", TestHost.Json("""{"tenant":"harbor"}"""));
        Assert.Equal((HttpStatusCode.Unauthorized, "application/problem+json"), (refused.StatusCode, refused.Content.Headers.ContentType!.MediaType));
        Assert.Equal("This key is not known.", (await TestHost.ReadAsync(refused)).GetProperty("detail").GetString());
        using var known = closed.Client(token: key);
        Assert.Equal(HttpStatusCode.OK, (await known.GetAsync("/v1/models")).StatusCode);
    }

    [Fact]
    public async Task Headers_that_guard_the_page_are_on_everything_and_origins_are_closed()
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime());
        using var client = host.Client(null);
        foreach (var path in new[] { "/", "/api/site", "/v1/models", "/health/live" })
        {
            using var request = new HttpRequestMessage(HttpMethod.Get, path);
            request.Headers.Add("Origin", "http://evil.example");
            using var response = await client.SendAsync(request);
            Assert.StartsWith("default-src 'self';", Assert.Single(response.Headers.GetValues("Content-Security-Policy")), StringComparison.Ordinal);
            Assert.Equal("nosniff", Assert.Single(response.Headers.GetValues("X-Content-Type-Options")));
            Assert.Equal("no-referrer", Assert.Single(response.Headers.GetValues("Referrer-Policy")));
            Assert.False(response.Headers.Contains("Access-Control-Allow-Origin"));
            Assert.False(response.Headers.Contains("Server"));
        }
        await using var open = await TestHost.StartAsync(new FakeRuntime(), "AllowedOrigins:0=https://chat.example");
        using var preflight = new HttpRequestMessage(HttpMethod.Options, "/v1/chat/completions");
        preflight.Headers.Add("Origin", "https://chat.example");
        preflight.Headers.Add("Access-Control-Request-Method", "POST");
        using var other = open.Client(null);
        using var allowed = await other.SendAsync(preflight);
        Assert.Equal("https://chat.example", Assert.Single(allowed.Headers.GetValues("Access-Control-Allow-Origin")));
    }

    [Fact]
    public async Task A_page_that_points_its_own_name_at_this_machine_is_refused()
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime());
        using var client = host.Client();
        using var request = new HttpRequestMessage(HttpMethod.Get, "/api/site");
        request.Headers.Host = $"evil.example:{host.Url.Port}";
        Assert.Equal(HttpStatusCode.BadRequest, (await client.SendAsync(request)).StatusCode);
    }

    [Fact]
    public async Task No_key_token_or_prompt_reaches_the_log_however_much_is_logged()
    {
        using var log = new LogCapture();
        await using var host = await TestHost.StartAsync(services => services.AddSingleton(_ => TestHost.Fake(new FakeRuntime())).AddLogging(logging => logging.AddProvider(log)),
            ["--Logging:LogLevel:Default=Trace", "--Logging:LogLevel:Microsoft=Information", "--Logging:LogLevel:Microsoft.AspNetCore.Hosting=Trace"]);
        await using (var hub = await HubConnection.OpenAsync(host.Url, host.Keys["harbor"]))
            await hub.CollectAsync("Send", """{"messages":[{"role":"user","content":"canary prompt"}]}""");
        using var client = host.Client();
        using var answer = await client.PostAsync("/v1/chat/completions", TestHost.Json("""{"model":"harbor","messages":[{"role":"user","content":"canary prompt"}]}"""));
        using var session = await client.PostAsync("/api/session", TestHost.Json($$"""{"key":"{{host.Keys["harbor"]}}"}"""));
        var text = string.Join('\n', log.Lines);
        Assert.NotEmpty(text);
        Assert.DoesNotContain(host.Keys["harbor"], text, StringComparison.Ordinal);
        Assert.DoesNotContain((await TestHost.ReadAsync(session)).GetProperty("token").GetString()!, text, StringComparison.Ordinal);
        Assert.DoesNotContain("canary", text, StringComparison.Ordinal);
    }

    [Fact]
    public void Demo_keys_are_kept_privately_and_stay()
    {
        var data = Directory.CreateTempSubdirectory("tenantlora-").FullName;
        var options = Microsoft.Extensions.Options.Options.Create(new TenantLoraOptions { Data = data, Tenants = { ["a"] = new() { Name = "A" } } });
        var first = new TenantDirectory(options);
        Assert.Matches("^tl_[0-9a-f]{8}_[A-Za-z0-9_-]{43}$", first.DemoKeys["a"]);
        options.Value.Tenants["b"] = new() { Name = "B" };
        var second = new TenantDirectory(options);
        Assert.Equal(first.DemoKeys["a"], second.DemoKeys["a"]);
        Assert.Equal(("b", Role.Admin), (second.FindByKey(second.DemoKeys["b"])!.Tenant.Id, second.FindByKey(second.DemoKeys["b"])!.Role));
        Assert.Null(first.FindByKey(second.DemoKeys["b"]));
        if (!OperatingSystem.IsWindows()) Assert.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite, File.GetUnixFileMode(Path.Combine(data, "demo-keys.json")));
        Directory.Delete(data, recursive: true);
    }

    private sealed class LogCapture : ILoggerProvider, ILogger
    {
        public System.Collections.Concurrent.ConcurrentQueue<string> Lines { get; } = new();

        public ILogger CreateLogger(string categoryName) => this;

        public IDisposable? BeginScope<TState>(TState state)
            where TState : notnull => null;

        public bool IsEnabled(LogLevel logLevel) => true;

        public void Log<TState>(LogLevel logLevel, EventId eventId, TState state, Exception? exception, Func<TState, Exception?, string> formatter) =>
            Lines.Enqueue(formatter(state, exception));

        public void Dispose()
        {
        }
    }
}
