using Microsoft.Extensions.Logging;

namespace TenantLora.Runtime;

/// <summary>
/// One base model, served to many under many adapters: continuous batching over a paged KV cache. Safe for concurrent use.
/// </summary>
public sealed class Engine : IRuntime
{
    private Engine() => throw new NotImplementedException();

    /// <summary>Loads the model and starts the engine's thread.</summary>
    /// <exception cref="ModelFileException">A file is missing, damaged or not understood.</exception>
    /// <exception cref="ArgumentException">An option is out of range.</exception>
    public static Engine Start(EngineOptions options, ILoggerFactory? loggers = null) => throw new NotImplementedException();

    /// <summary>What is served and on what.</summary>
    public EngineInfo Info { get; }

    /// <summary>A look at the engine now.</summary>
    public EngineStatus Status => throw new NotImplementedException();

    /// <summary>The adapters that requests may name.</summary>
    public IReadOnlyCollection<AdapterInfo> Adapters => throw new NotImplementedException();

    /// <summary>Checks a PEFT folder against the base model without keeping it: every finding in one pass.</summary>
    public AdapterReport ValidateAdapter(string directory) => throw new NotImplementedException();

    /// <summary>Checks a PEFT folder and makes it available under its digest. Adding the same bytes again changes nothing.</summary>
    /// <exception cref="AdapterRefusedException">With the whole report.</exception>
    public AdapterInfo AddAdapter(string directory) => throw new NotImplementedException();

    /// <summary>New requests can no longer name it; running ones keep it, and its memory goes with the last of them.</summary>
    public bool RemoveAdapter(string digest) => throw new NotImplementedException();

    /// <inheritdoc/>
    public IAsyncEnumerable<GenerationEvent> GenerateAsync(GenerationRequest request, CancellationToken cancellationToken = default) => throw new NotImplementedException();

    /// <inheritdoc/>
    public ValueTask<IReadOnlyList<string>> ListModelsAsync(string tenant, CancellationToken cancellationToken = default) => throw new NotImplementedException();

    /// <summary>Ends running sequences with <see cref="ErrorCodes.ShuttingDown"/> and frees model and device.</summary>
    public ValueTask DisposeAsync() => throw new NotImplementedException();
}
