using TenantLora.Runtime;

namespace TenantLora.Connector;

/// <summary>
/// The door to a runtime, for trusted code that serves many tenants. Safe for concurrent use. It does not own the runtime.
/// </summary>
public sealed class TenantLoraClient(IRuntime runtime, AdapterCatalog? catalog)
{
    /// <summary>
    /// Streams one answer. <see cref="GenerationRequest.Model"/> is looked up among the tenant's names (null: the tenant's first
    /// adapter, or the base model) and pinned to a digest; a remote runtime, which has no catalog here, is given the name as it is.
    /// </summary>
    /// <exception cref="TenantLoraException">As <see cref="IRuntime.GenerateAsync"/>; <see cref="ErrorCodes.ModelNotFound"/> for a name that is not the tenant's.</exception>
    public IAsyncEnumerable<GenerationEvent> GenerateAsync(GenerationRequest request, CancellationToken cancellationToken = default) =>
        runtime.GenerateAsync(catalog is null ? request : Resolve(request, catalog), cancellationToken);

    private static GenerationRequest Resolve(GenerationRequest request, AdapterCatalog catalog)
    {
        var model = request.Model is null ? catalog.List(request.Tenant)[0] : catalog.Find(request.Tenant, request.Model);
        return model is null
            ? throw new TenantLoraException(ErrorCodes.ModelNotFound, $"The model '{request.Model}' does not exist or you do not have access to it.") { Parameter = "model" }
            : request with { Model = model.Name, Adapter = model.Digest };
    }
}
