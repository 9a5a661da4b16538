using TenantLora.Runtime.Backends;

namespace TenantLora.Runtime.Adapters;

/// <summary>A checked adapter in host memory, in compact form. Immutable; its file may go away once it is read.</summary>
/// <param name="tensors">The memory.</param>
internal sealed class Adapter(AdapterInfo info, LoraModules modules, IDisposable tensors) : IDisposable
{
    public AdapterInfo Info { get; } = info;
    public LoraModules Modules { get; } = modules;

    /// <summary>Frees the memory at once: only when no backend reads from it any more.</summary>
    public void Dispose() => tensors.Dispose();
}
