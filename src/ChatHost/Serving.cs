using Microsoft.Extensions.Options;
using TenantLora.Connector;
using TenantLora.Runtime;

namespace TenantLora.ChatHost;

/// <summary>What this host serves: one runtime, who may name which adapter, and what there is to say about each. Owns the runtime.</summary>
/// <param name="runtime">Answers.</param>
/// <param name="info">The base model.</param>
/// <param name="catalog">Each tenant's names.</param>
/// <param name="adapters">By digest.</param>
internal sealed class Serving(IRuntime runtime, EngineInfo info, AdapterCatalog catalog, IReadOnlyDictionary<string, AdapterInfo> adapters) : IAsyncDisposable
{
    public TenantLoraClient Client { get; } = new(runtime, catalog);

    public EngineInfo Info { get; } = info;

    public DateTimeOffset Started { get; } = TimeProvider.System.GetUtcNow();

    /// <summary>Loads the model and every tenant's adapters.</summary>
    /// <exception cref="OptionsValidationException">A folder is not there.</exception>
    /// <exception cref="ModelFileException">The model cannot be read.</exception>
    /// <exception cref="AdapterRefusedException">An adapter does not fit.</exception>
    public static Serving Start(TenantLoraOptions options, ILoggerFactory loggers)
    {
        var folders = Folders(options);
        var engine = Engine.Start(new EngineOptions
        {
            ModelDirectory = folders[options.Model],
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
        try
        {
            var catalog = new AdapterCatalog(engine.Info.Model);
            foreach (var (id, tenant) in options.Tenants)
                foreach (var (name, directory) in tenant.Adapters)
                    catalog.Set(id, name, engine.AddAdapter(folders[directory]).Digest);
            return new Serving(engine, engine.Info, catalog, engine.Adapters.ToDictionary(a => a.Digest));
        }
        catch
        {
            engine.DisposeAsync().AsTask().GetAwaiter().GetResult();
            throw;
        }
    }

    /// <summary>The model that the tenant means; null names its first.</summary>
    /// <exception cref="TenantLoraException"><see cref="ErrorCodes.ModelNotFound"/>: the same answer whether it exists elsewhere or nowhere.</exception>
    public CatalogModel Resolve(string tenant, string? name) => catalog.Resolve(tenant, name);

    /// <summary>What the tenant may name: its adapters, then the base model.</summary>
    public IReadOnlyList<CatalogModel> Models(string tenant) => catalog.List(tenant);

    /// <summary>What is known of a model's adapter; null for the base model.</summary>
    public AdapterInfo? Adapter(CatalogModel model) => model.Digest is null ? null : adapters.GetValueOrDefault(model.Digest);

    public ValueTask DisposeAsync() => runtime.DisposeAsync();

    private static Dictionary<string, string> Folders(TenantLoraOptions options)
    {
        (string Option, string Path)[] wanted =
        [
            ("Model", options.Model),
            .. options.Tenants.SelectMany(t => t.Value.Adapters.Select(a => ($"Tenants:{t.Key}:Adapters:{a.Key}", a.Value))),
        ];
        var missing = wanted.Where(w => Places.Find(w.Path) is null)
            .Select(w => $"{TenantLoraOptions.Section}:{w.Option}: there is no folder '{w.Path}' here, beside the program or above it.").ToArray();
        if (missing.Length > 0) throw new OptionsValidationException("", typeof(TenantLoraOptions), missing);
        return wanted.DistinctBy(w => w.Path).ToDictionary(w => w.Path, w => Places.Find(w.Path)!);
    }
}
