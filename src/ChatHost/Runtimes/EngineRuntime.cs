using System.Collections.Immutable;
using Microsoft.Extensions.Options;
using TenantLora.ChatHost.Adapters;
using TenantLora.ChatHost.Operations;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Runtimes;

/// <summary>The engine in this process. Owns it, and the adapters in its host memory: those that nobody has asked for longest go when there are too many.</summary>
internal sealed class EngineRuntime : IServedRuntime
{
    private readonly HeldAdapters held;
    private readonly long hostBytes;

    /// <param name="bring">Gives the engine the adapter with a digest, and says what it takes.</param>
    /// <param name="hostBytes">Host memory for adapters.</param>
    public EngineRuntime(Engine engine, Func<Engine, string, Task<long>> bring, long hostBytes, HostMetrics metrics, ILogger log)
    {
        (Engine, this.hostBytes) = (engine, hostBytes);
        held = new HeldAdapters(digest => bring(engine, digest), digest => engine.RemoveAdapter(digest), hostBytes, log, metrics);
    }

    public Engine Engine { get; }

    public EngineInfo Info => Engine.Info;

    public long MaxAdapterFileBytes => Engine.MaxAdapterFileBytes;

    public long AdapterMemory => Math.Min(hostBytes, Engine.Status.AdapterBudget);

    public string? Fault => Engine.Fault;

    /// <summary>Loads the model.</summary>
    /// <exception cref="OptionsValidationException">A folder is not there.</exception>
    /// <exception cref="ModelFileException">The model cannot be read.</exception>
    public static EngineRuntime Start(TenantLoraOptions options, Func<Engine, string, Task<long>> bring, HostMetrics metrics, ILoggerFactory loggers)
    {
        var engine = Engine.Start(new EngineOptions
        {
            ModelDirectory = Serving.Folders(options)[options.Model],
            ModelName = options.ModelName,
            Device = options.Device,
            Threads = options.Threads,
            CacheTokens = options.CacheTokens,
            AdapterMemoryMegabytes = options.AdapterMemoryMegabytes,
            ContextLength = options.ContextLength,
            StepTokens = options.StepTokens,
            MaxSequences = options.MaxSequences,
            MaxQueued = options.MaxQueued,
            MaxAdapterRank = options.MaxAdapterRank,
            ChatTemplate = options.ChatTemplate,
        }, loggers);
        var hostBytes = options.AdapterHostMegabytes > 0 ? (long)options.AdapterHostMegabytes << 20 : GC.GetGCMemoryInfo().TotalAvailableMemoryBytes / 4;
        return new EngineRuntime(engine, bring, hostBytes, metrics, loggers.CreateLogger<EngineRuntime>());
    }

    public async Task<AdapterReport> JudgeAsync(string folder, string tenant, bool tries, CancellationToken cancellationToken)
    {
        if (!tries) return await Task.Run(() => Engine.ValidateAdapter(folder), cancellationToken);
        var report = await Task.Run(() => Engine.TryAddAdapter(folder), cancellationToken);
        if (report.Adapter is not { } adapter) return report;
        // It is there already, unless one with the same bytes was just being let go.
        using var hold = await held.HoldAsync(adapter.Digest, tenant,
            () => Task.FromResult(Engine.Adapters.Any(a => a.Digest == adapter.Digest) ? adapter.Bytes : Engine.AddAdapter(folder).Bytes), CancellationToken.None);
        return report with { Findings = [.. report.Findings, await SmokeRun.TryAsync(Engine, adapter.Digest)] };
    }

    public ValueTask<IDisposable> HoldAsync(string digest, string? tenant, CancellationToken cancellationToken) => held.HoldAsync(digest, tenant, null, cancellationToken);

    public bool Forget(string digest, Action whenLeft) => held.Forget(digest, whenLeft);

    public async Task KeepAsync(ImmutableDictionary<string, ImmutableHashSet<string>> adapters, CancellationToken cancellationToken)
    {
        var digests = adapters.Values.SelectMany(d => d).ToImmutableHashSet(StringComparer.Ordinal);
        held.Kept = digests;
        Engine.KeepOnDevice(digests);
        foreach (var digest in digests)
            try
            {
                (await HoldAsync(digest, null, cancellationToken)).Dispose();
            }
            catch (TenantLoraException)
            {
                // The log has it, and the next request for it asks again.
            }
    }

    public Task<Residents> ResidentsAsync(string tenant, CancellationToken cancellationToken)
    {
        var status = Engine.Status;
        return Task.FromResult(new Residents(status.AdapterBytes, status.AdapterBudget < long.MaxValue ? status.AdapterBudget : null, [.. Engine.Residents]));
    }

    public IAsyncEnumerable<GenerationEvent> GenerateAsync(GenerationRequest request, CancellationToken cancellationToken = default) => Engine.GenerateAsync(request, cancellationToken);

    public ValueTask<IReadOnlyList<string>> ListModelsAsync(string tenant, CancellationToken cancellationToken = default) => Engine.ListModelsAsync(tenant, cancellationToken);

    public ValueTask DisposeAsync() => Engine.DisposeAsync();
}
