namespace TenantLora.Runtime;

/// <summary>
/// What answers requests: <see cref="Engine"/> in this process, or one reached over HTTP by the connector.
/// Safe for concurrent use.
/// </summary>
public interface IRuntime : IAsyncDisposable
{
    /// <summary>
    /// Streams one answer. Nothing happens before the first <c>MoveNextAsync</c>; cancelling, or leaving the loop, frees the
    /// sequence's memory within one step.
    /// </summary>
    /// <exception cref="TenantLoraException">The request was refused or failed; thrown by <c>MoveNextAsync</c>.</exception>
    IAsyncEnumerable<GenerationEvent> GenerateAsync(GenerationRequest request, CancellationToken cancellationToken = default);

    /// <summary>The models that <paramref name="tenant"/>'s key may name, where the runtime knows; in process the base model only.</summary>
    ValueTask<IReadOnlyList<string>> ListModelsAsync(string tenant, CancellationToken cancellationToken = default);
}
