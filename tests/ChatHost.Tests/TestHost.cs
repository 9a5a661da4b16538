using System.Net.Http.Headers;
using System.Text;
using System.Text.Json;
using Microsoft.AspNetCore.Builder;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Hosting;
using Microsoft.Extensions.Logging;
using TenantLora.ChatHost.Runtimes;
using TenantLora.ChatHost.Security;
using TenantLora.Connector;
using TenantLora.Runtime;
using TenantLora.Tests;

namespace TenantLora.ChatHost.Tests;

/// <summary>The real app on a real port, with another runtime behind it.</summary>
internal sealed class TestHost : IAsyncDisposable
{
    public const string HarborDigest = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
    public const string LedgerDigest = "sha256:2222222222222222222222222222222222222222222222222222222222222222";
    private static readonly AdapterInfo Harbor = new(HarborDigest, "prolora", 16, 456_000, 1_800_000, "demo-7m"), Ledger = new(LedgerDigest, "prolora", 8, 123_000, 900_000, "demo-7m");
    private readonly string data;           // of this host alone, where no other was given

    private TestHost(WebApplication app, string data)
    {
        (App, this.data) = (app, data);
        Data = app.Services.GetRequiredService<Microsoft.Extensions.Options.IOptions<TenantLoraOptions>>().Value.Data;
        Url = new Uri(app.Urls.First());
        Keys = app.Services.GetService<TenantDirectory>()?.DemoKeys ?? new Dictionary<string, string>();
    }

    public WebApplication App { get; }

    public Uri Url { get; }

    /// <summary>The host's data folder.</summary>
    public string Data { get; }

    public IReadOnlyDictionary<string, string> Keys { get; }

    public T Service<T>() where T : notnull => App.Services.GetRequiredService<T>();

    /// <summary>Starts with a fake runtime; <paramref name="settings"/> like <c>KeepSeconds=1</c>, in the section TenantLora.</summary>
    public static Task<TestHost> StartAsync(IRuntime runtime, params string[] settings) =>
        StartAsync(services => services.AddSingleton(_ => Fake(runtime)), settings);

    /// <summary>Starts with the demo model.</summary>
    public static Task<TestHost> StartRealAsync(params string[] settings) => StartAsync(_ => { }, settings);

    /// <summary>Starts with the demo model but for what <paramref name="more"/> puts in its place.</summary>
    public static async Task<TestHost> StartAsync(Action<IServiceCollection> more, string[] settings)
    {
        var data = Directory.CreateTempSubdirectory("tenantlora-").FullName;
        string[] args = ["--urls=http://127.0.0.1:0", $"--TenantLora:Data={data}", $"--webroot={Repo.Path("src", "ChatHost", "wwwroot")}", .. settings.Select(s => s.StartsWith("--", StringComparison.Ordinal) ? s : "--TenantLora:" + s)];
        var app = Program.Build(args, builder =>
        {
            builder.Logging.ClearProviders();
            builder.Services.AddSingleton<IHostLifetime, QuietLifetime>();
            more(builder.Services);
        });
        await app.StartAsync();
        return new TestHost(app, data);
    }

    public HttpClient Client(string? tenant = "harbor", string? token = null)
    {
        var client = new HttpClient { BaseAddress = Url, Timeout = TimeSpan.FromSeconds(60) };
        if ((token ?? (tenant is null ? null : Keys[tenant])) is { } key) client.DefaultRequestHeaders.Authorization = new AuthenticationHeaderValue("Bearer", key);
        return client;
    }

    public static StringContent Json(string json) => new(json, Encoding.UTF8, "application/json");

    public static async Task<JsonElement> ReadAsync(HttpResponseMessage response)
    {
        using var document = JsonDocument.Parse(await response.Content.ReadAsStringAsync());
        return document.RootElement.Clone();
    }

    /// <summary>Waits for what another thread is about to make true.</summary>
    public static async Task UntilAsync(Func<bool> happened, string what)
    {
        for (var end = DateTime.UtcNow.AddSeconds(20); !happened(); await Task.Delay(10))
            Assert.True(DateTime.UtcNow < end, $"It did not happen: {what}.");
    }

    public async ValueTask DisposeAsync()
    {
        await App.StopAsync();
        await App.DisposeAsync();
        Directory.Delete(data, recursive: true);
    }

    public static Serving Fake(IRuntime runtime)
    {
        var catalog = new AdapterCatalog("demo-7m");
        catalog.Set("harbor", "harbor", HarborDigest);
        catalog.Set("ledger", "ledger", LedgerDigest);
        var serving = new Serving(runtime as IServedRuntime ?? new FakeServed(runtime), catalog);
        serving.Know(Harbor);
        serving.Know(Ledger);
        return serving;
    }

    /// <summary>A runtime that only answers, as what a host wants of one.</summary>
    private sealed class FakeServed(IRuntime runtime) : IServedRuntime
    {
        public EngineInfo Info { get; } = new("demo-7m", "llama", 7_345_664, 2048, "fake", "sha256:0");

        public long MaxAdapterFileBytes => 1 << 20;

        public long AdapterMemory => 1 << 30;

        public string? Fault => null;

        /// <summary>The configuration's adapters are there at the start, and taken for what the test says of them.</summary>
        public Task<AdapterReport> JudgeAsync(string folder, string tenant, bool tries, CancellationToken cancellationToken) => Task.FromResult(new AdapterReport(tenant switch
        {
            "harbor" => Harbor,
            "ledger" => Ledger,
            _ => Harbor with { Digest = "sha256:" + Convert.ToHexStringLower(System.Security.Cryptography.SHA256.HashData(Encoding.UTF8.GetBytes(tenant))) },
        }, []));

        public ValueTask<IDisposable> HoldAsync(string digest, string? tenant, CancellationToken cancellationToken)
        {
            (runtime as FakeRuntime)?.Held.Enqueue(digest);
            return new(new MemoryStream());
        }

        public bool Forget(string digest, Action whenLeft) => true;

        public Task KeepAsync(System.Collections.Immutable.ImmutableDictionary<string, System.Collections.Immutable.ImmutableHashSet<string>> adapters, CancellationToken cancellationToken) => Task.CompletedTask;

        public Task<Residents> ResidentsAsync(string tenant, CancellationToken cancellationToken) => Task.FromResult(new Residents(0, null, []));

        public IAsyncEnumerable<GenerationEvent> GenerateAsync(GenerationRequest request, CancellationToken cancellationToken = default) => runtime.GenerateAsync(request, cancellationToken);

        public ValueTask<IReadOnlyList<string>> ListModelsAsync(string tenant, CancellationToken cancellationToken = default) => runtime.ListModelsAsync(tenant, cancellationToken);

        public ValueTask DisposeAsync() => runtime.DisposeAsync();
    }

    /// <summary>Leaves the test runner's signals alone.</summary>
    private sealed class QuietLifetime : IHostLifetime
    {
        public Task WaitForStartAsync(CancellationToken cancellationToken) => Task.CompletedTask;

        public Task StopAsync(CancellationToken cancellationToken) => Task.CompletedTask;
    }
}

internal static class ServingExtensions
{
    extension(Serving serving)
    {
        /// <summary>The engine in the host's process, if it has one.</summary>
        public Engine? Engine => (serving.Runtime as EngineRuntime)?.Engine;
    }
}
