using TenantLora.Runtime;

namespace TenantLora.Connector;

/// <summary>
/// The door to a runtime, for trusted code that serves many tenants: whoever holds this object may speak for any of them. Hand a
/// tenant's own code the result of <see cref="GetChatClient"/> instead. Safe for concurrent use. It does not own the runtime.
/// </summary>
/// <param name="runtime">What answers.</param>
/// <param name="catalog">Who may name what; null only for a runtime that resolves names by itself.</param>
public sealed class TenantLoraClient(IRuntime runtime, AdapterCatalog? catalog)
{
    /// <summary>A client of a TenantLora server.</summary>
    /// <param name="server">Its address, with or without <c>/v1</c>.</param>
    /// <param name="apiKeyOf">The API key of a tenant, by which the server knows it; null where there is none.</param>
    /// <param name="http">Carries the requests; its timeout runs until the first token, so give it one that fits the queue. Null: one shared client without a timeout.</param>
    /// <exception cref="ArgumentException">The address is not an absolute http or https one.</exception>
    public TenantLoraClient(Uri server, Func<string, string?> apiKeyOf, HttpClient? http = null)
        : this(new HttpRuntime(server, apiKeyOf, http), null)
    {
    }

    internal IRuntime Runtime => runtime;

    /// <summary>
    /// An <see cref="Microsoft.Extensions.AI.IChatClient"/> that speaks for one tenant and cannot be made to speak for another. Cheap.
    /// </summary>
    /// <param name="tenant">Whose requests these are. Take it from authenticated facts, never from a request's body.</param>
    /// <param name="model">What requests without a <c>ModelId</c> run under; null: the tenant's first adapter, or the base model.</param>
    /// <exception cref="ArgumentException">No tenant; or no model where the names are known to the server only.</exception>
    public TenantLoraChatClient GetChatClient(string tenant, string? model = null)
    {
        ArgumentException.ThrowIfNullOrWhiteSpace(tenant);
        return new TenantLoraChatClient(this, tenant, model ?? catalog?.List(tenant)[0].Name
            ?? throw new ArgumentException("Name a model: which names there are, only the server knows.", nameof(model)));
    }

    /// <summary>
    /// Streams one answer. <see cref="GenerationRequest.Model"/> is looked up among the tenant's names (null: the tenant's first
    /// adapter, or the base model) and pinned to a digest before this returns; a remote runtime, which has no catalog here, is given the name as it is.
    /// </summary>
    /// <exception cref="TenantLoraException">As <see cref="IRuntime.GenerateAsync"/>; <see cref="ErrorCodes.ModelNotFound"/> for a name that is not the tenant's.</exception>
    public IAsyncEnumerable<GenerationEvent> GenerateAsync(GenerationRequest request, CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(request);
        return runtime.GenerateAsync(Resolve(request), cancellationToken);
    }

    /// <summary>What <paramref name="tenant"/> may name as a model.</summary>
    /// <exception cref="TenantLoraException">The server refused or did not answer.</exception>
    public ValueTask<IReadOnlyList<string>> ListModelsAsync(string tenant, CancellationToken cancellationToken = default) =>
        catalog is null ? runtime.ListModelsAsync(tenant, cancellationToken) : ValueTask.FromResult<IReadOnlyList<string>>([.. catalog.List(tenant).Select(m => m.Name)]);

    internal GenerationRequest Resolve(GenerationRequest request)
    {
        if (catalog is null) return request;
        var model = catalog.Resolve(request.Tenant, request.Model, AdapterCatalog.ConversationOf(request));
        return request with { Model = model.Name, Adapter = model.Digest };
    }
}
