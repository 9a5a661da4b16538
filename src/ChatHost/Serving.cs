using System.Collections.Concurrent;
using System.Runtime.CompilerServices;
using Microsoft.Extensions.Options;
using TenantLora.ChatHost.Adapters;
using TenantLora.ChatHost.Runtimes;
using TenantLora.Connector;
using TenantLora.Runtime;

namespace TenantLora.ChatHost;

/// <summary>What this host serves: what answers, who may name which adapter, and what there is to say about each. Owns the runtime.</summary>
/// <param name="runtime">Answers.</param>
/// <param name="catalog">Each tenant's names; null where other hosts ask, who name the base model or an adapter's digest.</param>
internal sealed class Serving(IServedRuntime runtime, AdapterCatalog? catalog) : IAsyncDisposable
{
    private readonly ConcurrentDictionary<string, AdapterInfo> adapters = new(StringComparer.Ordinal);

    public IServedRuntime Runtime => runtime;

    public EngineInfo Info => runtime.Info;

    public AdapterCatalog Catalog => catalog ?? throw new InvalidOperationException("This host knows no tenants' names.");

    public DateTimeOffset Started { get; } = TimeProvider.System.GetUtcNow();

    /// <summary>The model that the tenant means; null names its first.</summary>
    /// <exception cref="TenantLoraException"><see cref="ErrorCodes.ModelNotFound"/>: the same answer whether it exists elsewhere or nowhere.</exception>
    public CatalogModel Resolve(string tenant, string? name) => Catalog.Resolve(tenant, name);

    /// <summary>The model that a request means, and the request bound to it: whatever happens to the name meanwhile, it runs under this version.</summary>
    /// <exception cref="TenantLoraException">As <see cref="Resolve"/>; or the adapter cannot be brought to the runtime.</exception>
    public async ValueTask<PinnedRequest> PinAsync(GenerationRequest request, CancellationToken cancellationToken)
    {
        while (true)
        {
            var model = Find(request);
            try
            {
                return new PinnedRequest(model, request with { Model = model.Name, Adapter = model.Digest }, model.Digest is null ? null : await runtime.HoldAsync(model.Digest, request.Tenant, cancellationToken));
            }
            catch (TenantLoraException) when (Find(request).Digest != model.Digest)
            {
                // The name was moved and what it meant deleted, just now.
            }
        }
    }

    private CatalogModel Find(GenerationRequest request) =>
        catalog is not null ? catalog.Resolve(request.Tenant, request.Model, AdapterCatalog.ConversationOf(request))
        : request.Model == Info.Model ? new CatalogModel(Info.Model, null)
        : request.Model is { } digest && AdapterFolders.IsDigest(digest) ? new CatalogModel(digest, digest)
        : throw new TenantLoraException(ErrorCodes.ModelNotFound, $"The model '{request.Model}' does not exist here: expected '{Info.Model}' or an adapter's digest.") { Parameter = "model" };

    /// <summary>Told of each answer that has ended, however it did.</summary>
    public Action<PinnedRequest, AnswerEnd> Ended { get; set; } = (_, _) => { };

    /// <summary>Answers a pinned request.</summary>
    public async IAsyncEnumerable<GenerationEvent> GenerateAsync(PinnedRequest pinned, [EnumeratorCancellation] CancellationToken cancellationToken)
    {
        var end = new AnswerEnd(null, false);
        try
        {
            await using var events = runtime.GenerateAsync(pinned.Request, cancellationToken).GetAsyncEnumerator(cancellationToken);
            while (true)
            {
                try
                {
                    if (!await events.MoveNextAsync()) break;
                }
                catch (Exception e) when (e is not OperationCanceledException)
                {
                    end = end with { Failed = true };
                    throw;
                }
                if (events.Current is GenerationDone done) end = end with { Done = done };
                yield return events.Current;
            }
        }
        finally
        {
            Ended(pinned, end);
        }
    }

    /// <summary>What the tenant may name: its adapters, then the base model.</summary>
    public IReadOnlyList<CatalogModel> Models(string tenant) => Catalog.List(tenant);

    public void Know(AdapterInfo adapter) => adapters[adapter.Digest] = adapter;

    public void ForgetAdapter(string digest) => adapters.TryRemove(digest, out _);

    /// <summary>What is known of a model's adapter; null for the base model.</summary>
    public AdapterInfo? Adapter(CatalogModel model) => model.Digest is null ? null : adapters.GetValueOrDefault(model.Digest);

    public ValueTask DisposeAsync() => runtime.DisposeAsync();

    /// <summary>The model's folder and the configured adapters', as far as the host's role needs them, by the paths that the configuration gives.</summary>
    /// <exception cref="OptionsValidationException">Names all that are not there.</exception>
    public static Dictionary<string, string> Folders(TenantLoraOptions options)
    {
        (string Option, string Path)[] wanted =
        [
            .. options.Role is HostRole.Web ? [] : new[] { ("Model", options.Model) },
            .. options.Role is HostRole.Runtime ? [] : options.Tenants.SelectMany(t => t.Value.Adapters.Select(a => ($"Tenants:{t.Key}:Adapters:{a.Key}", a.Value))),
        ];
        var missing = wanted.Where(w => Places.Find(w.Path) is null)
            .Select(w => $"{TenantLoraOptions.Section}:{w.Option}: there is no folder '{w.Path}' here, beside the program or above it.").ToArray();
        if (missing.Length > 0) throw new OptionsValidationException("", typeof(TenantLoraOptions), missing);
        return wanted.DistinctBy(w => w.Path).ToDictionary(w => w.Path, w => Places.Find(w.Path)!);
    }
}

/// <summary>How an answer ended.</summary>
/// <param name="Done">Null: it failed, or its reader went away.</param>
/// <param name="Failed">By the runtime's doing.</param>
internal sealed record AnswerEnd(GenerationDone? Done, bool Failed);

/// <summary>A request bound to what its model's name meant when it came. Its adapter stays where it is until this is disposed of.</summary>
internal sealed class PinnedRequest(CatalogModel model, GenerationRequest request, IDisposable? lease) : IDisposable
{
    public CatalogModel Model { get; } = model;

    public GenerationRequest Request { get; } = request;

    public void Dispose() => lease?.Dispose();
}
