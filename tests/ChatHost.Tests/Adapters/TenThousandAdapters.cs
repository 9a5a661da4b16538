using System.Diagnostics;
using System.Globalization;
using Dapper;
using Microsoft.Extensions.Logging.Abstractions;
using Microsoft.Extensions.Options;
using TenantLora.ChatHost.Adapters;
using TenantLora.ChatHost.Operations;
using TenantLora.ChatHost.Security;
using TenantLora.ChatHost.Store;

namespace TenantLora.ChatHost.Tests.Adapters;

/// <summary>What ten thousand registered adapters cost a host that starts, and one that looks names up. Prints; judges nothing: run it with <c>-explicit only</c>.</summary>
public sealed class TenThousandAdapters : IDisposable
{
    private readonly string data = Directory.CreateTempSubdirectory("tenantlora-").FullName;

    public void Dispose() => Directory.Delete(data, recursive: true);

    [Fact(Explicit = true)]
    public void Start_lookup_and_memory()
    {
        const int Tenants = 100, Each = 100;
        using (var database = Database.Open(data, null))
        {
            database.Change((t, generation) =>
            {
                for (var tenant = 0; tenant < Tenants; tenant++)
                    for (var i = 0; i < Each; i++)
                    {
                        var row = new { tenant = $"tenant-{tenant}", name = $"adapter-{i}", generation, digest = $"sha256:{(tenant * 1000) + i:d64}" };
                        t.Connection!.Execute("INSERT INTO adapters (tenant, name, changed, created_at, next_version, active) VALUES (@tenant, @name, @generation, 0, 2, 1)", row, t);
                        t.Connection!.Execute("INSERT INTO versions VALUES (@tenant, @name, 1, @digest, 'prolora', 16, 28800000, 83900000, 'llama-3.1-8b', '[]', 0, 'admin', 28900000)", row, t);
                    }
                return true;
            });
        }
        var options = Options.Create(new TenantLoraOptions { Data = data });
        var before = GC.GetTotalMemory(forceFullCollection: true);
        var begun = Stopwatch.GetTimestamp();
        using var opened = Database.Open(data, null);
        using var admission = new Admission(options);
        using var metrics = new HostMetrics(admission);
        using var redis = new RedisCache(options, opened, metrics, TimeProvider.System, NullLogger<RedisCache>.Instance);
        var serving = TestHost.Fake(new FakeRuntime());
        using var folders = new AdapterFolders(data);
        using var pins = new AdapterPins(serving, options);
        using var adapters = new TenantAdapters(serving, new AdapterStore(opened, TimeProvider.System), redis, folders, new TenantDirectory(options), pins, metrics, options, NullLogger<TenantAdapters>.Instance);
        adapters.Follow();
        var start = Stopwatch.GetElapsedTime(begun);
        var memory = GC.GetTotalMemory(forceFullCollection: true) - before;

        var random = new Random(1);
        var times = new double[100_000];
        for (var i = 0; i < times.Length; i++)
        {
            var (tenant, name) = ($"tenant-{random.Next(Tenants)}", $"adapter-{random.Next(Each)}");
            begun = Stopwatch.GetTimestamp();
            var found = serving.Catalog.Find(tenant, name);
            times[i] = Stopwatch.GetElapsedTime(begun).TotalMicroseconds;
            Assert.NotNull(found);
        }
        Array.Sort(times);
        TestContext.Current.TestOutputHelper?.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"{Tenants * Each} adapters: known after {start.TotalMilliseconds:f0} ms, {memory / 1e6:f1} MB; lookup {times[50_000]:f2} µs median, {times[99_000]:f2} µs p99, {times[^1]:f0} µs worst of {times.Length}"));
    }
}
