using System.Globalization;
using System.Runtime.InteropServices;

namespace TenantLora.Runtime.Backends.Cuda;

/// <summary>
/// One GPU: its context, one stream for steps and one for loading. A GPU is usable from compute capability 8.0 on, given the driver, NVRTC and
/// cuBLASLt of CUDA 12 or 13; no toolkit is needed.
/// </summary>
internal sealed unsafe class CudaDevice : IDisposable
{
    private const int MultiprocessorCount = 16, SharedPerBlock = 97, Major = 75, Minor = 76;
    [ThreadStatic] private static nint current;
    private readonly int device;
    private readonly nint context;

    /// <summary>
    /// Held while steps are recorded, and while memory comes and goes: freeing waits for the whole GPU, which a recording on any stream does
    /// not survive.
    /// </summary>
    public static readonly Lock Recording = new();

    private CudaDevice(int ordinal, int device)
    {
        this.device = device;
        Ordinal = ordinal;
        Driver.Check(Driver.cuDevicePrimaryCtxRetain(out context, device), "cuDevicePrimaryCtxRetain");
        Enter();
        Multiprocessors = Attribute(MultiprocessorCount, device);
        SharedBytes = Attribute(SharedPerBlock, device);
        Capability = (Attribute(Major, device), Attribute(Minor, device));
        var name = stackalloc byte[128];
        Driver.Check(Driver.cuDeviceGetName(name, 128, device), "cuDeviceGetName");
        Model = Marshal.PtrToStringUTF8((nint)name)!;
        Stream = NewStream();
        LoadStream = NewStream();
    }

    public int Ordinal { get; }

    public string Model { get; }

    public (int Major, int Minor) Capability { get; }

    /// <summary>The GPU has Hopper's copy engine and wide matrix units, and kernels may start while their forerunner ends.</summary>
    public bool IsHopper => Capability.Major == 9;

    public bool OverlapsLaunches => Capability.Major >= 9;

    public int Multiprocessors { get; }

    /// <summary>Shared memory that a block may have.</summary>
    public int SharedBytes { get; }

    public nint Stream { get; }

    public nint LoadStream { get; }

    /// <summary>What libraries and GPUs there are, by number, each with what keeps it from being used (null: nothing).</summary>
    public static (string? Missing, IReadOnlyList<(string Name, string? Unfit)> Devices) Look()
    {
        if (Libraries.Missing(Libraries.Driver) is { } driver) return ($"the NVIDIA driver's library ({driver}) is not there: install the NVIDIA driver, and in a container start it with the GPU (docker: --gpus all)", []);
        if (Driver.cuInit(0) is not Driver.Success and var result) return ($"the NVIDIA driver does not start: {Driver.Describe(result)}", []);
        _ = Driver.cuDriverGetVersion(out var version);
        if (version < 12000) return ($"the NVIDIA driver supports CUDA {version / 1000}.{version % 1000 / 10}, and 12.0 or newer is needed: update the driver to 525 or newer", []);
        var absent = new[] { (Libraries.Nvrtc, "NVRTC"), (Libraries.Blas, "cuBLASLt") }.Select(l => (Name: l.Item2, Found: Libraries.Missing(l.Item1))).Where(l => l.Found is not null).ToArray();
        if (absent.Length > 0)
            return ($"{string.Join(" and ", absent.Select(l => $"{l.Name} ({l.Found})"))} cannot be loaded: install CUDA's runtime libraries (Debian and Ubuntu: libnvrtc and libcublas of CUDA {version / 1000}; pip: nvidia-cuda-nvrtc and nvidia-cublas) and put their folder on the loader's path", []);
        _ = Driver.cuDeviceGetCount(out var count);
        if (count == 0) return ("the driver sees no GPU: see CUDA_VISIBLE_DEVICES, and in a container start it with the GPU (docker: --gpus all)", []);
        return (null, [.. Enumerable.Range(0, count).Select(Describe)]);
    }

    public static CudaDevice Open(int ordinal)
    {
        Driver.Check(Driver.cuInit(0), "cuInit");
        Driver.Check(Driver.cuDeviceGet(out var device, ordinal), "cuDeviceGet");
        return new CudaDevice(ordinal, device);
    }

    /// <summary>Makes the GPU the calling thread's.</summary>
    public void Enter()
    {
        if (current == context) return;
        Driver.Check(Driver.cuCtxSetCurrent(context), "cuCtxSetCurrent");
        current = context;
    }

    public (long Free, long Total) Memory()
    {
        Enter();
        Driver.Check(Driver.cuMemGetInfo_v2(out var free, out var total), "cuMemGetInfo");
        return ((long)free, (long)total);
    }

    public ulong Allocate(long bytes)
    {
        Enter();
        lock (Recording)
        {
            Driver.Check(Driver.cuMemAlloc_v2(out var pointer, (nuint)Math.Max(bytes, 1)), string.Create(CultureInfo.InvariantCulture, $"cuMemAlloc of {bytes / 1e6:F1} MB"));
            return pointer;
        }
    }

    public void Free(ulong pointer)
    {
        if (pointer == 0) return;
        Enter();
        lock (Recording) _ = Driver.cuMemFree_v2(pointer);
    }

    /// <summary>Host memory that the GPU reads and writes at full speed; mapped, so that kernels can write to it.</summary>
    public Pinned AllocatePinned(long bytes)
    {
        Enter();
        lock (Recording)
        {
            Driver.Check(Driver.cuMemHostAlloc(out var host, (nuint)bytes, 1 | 2), string.Create(CultureInfo.InvariantCulture, $"cuMemHostAlloc of {bytes / 1e6:F1} MB"));
            Driver.Check(Driver.cuMemHostGetDevicePointer_v2(out var there, host, 0), "cuMemHostGetDevicePointer");
            return new Pinned((byte*)host, there, bytes);
        }
    }

    public void FreePinned(Pinned pinned)
    {
        Enter();
        lock (Recording) _ = Driver.cuMemFreeHost((nint)pinned.Host);
    }

    public void Dispose()
    {
        Enter();
        lock (Recording)
        {
            _ = Driver.cuStreamDestroy_v2(Stream);
            _ = Driver.cuStreamDestroy_v2(LoadStream);
            _ = Driver.cuDevicePrimaryCtxRelease_v2(device);
        }
        current = 0;
    }

    private static (string, string?) Describe(int ordinal)
    {
        _ = Driver.cuDeviceGet(out var device, ordinal);
        var name = stackalloc byte[128];
        _ = Driver.cuDeviceGetName(name, 128, device);
        var (major, minor) = (Attribute(Major, device), Attribute(Minor, device));
        return (Marshal.PtrToStringUTF8((nint)name)!, major >= 8 ? null : $"its compute capability is {major}.{minor}, and 8.0 or newer is needed (Ampere, 2020)");
    }

    private static int Attribute(int attribute, int device)
    {
        Driver.Check(Driver.cuDeviceGetAttribute(out var value, attribute, device), "cuDeviceGetAttribute");
        return value;
    }

    private static nint NewStream()
    {
        Driver.Check(Driver.cuStreamCreate(out var stream, 1), "cuStreamCreate");       // 1: does not wait for the default stream
        return stream;
    }
}

/// <summary>Page-locked host memory, and where the GPU sees it.</summary>
internal readonly unsafe record struct Pinned(nint Address, ulong Device, long Bytes)
{
    public Pinned(byte* host, ulong device, long bytes) : this((nint)host, device, bytes) { }

    public byte* Host => (byte*)Address;
}
