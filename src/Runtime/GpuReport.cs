using TenantLora.Runtime.Backends;

namespace TenantLora.Runtime;

/// <summary>Whether an engine of this machine would find a GPU. For diagnosis: an engine finds out by itself.</summary>
/// <param name="Gpu">The one it would take, as <c>cuda:0 (NVIDIA H100)</c>; null: none is usable.</param>
/// <param name="Reason">Why none is, and how to mend it.</param>
public sealed record GpuReport(string? Gpu, string? Reason)
{
    /// <summary>Looks for the driver, the libraries and a GPU that is fit. Takes no memory there.</summary>
    public static GpuReport Look() => Devices.LookForGpu();
}
