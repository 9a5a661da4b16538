using System.Reflection;
using System.Runtime.InteropServices;

namespace TenantLora.Runtime.Backends.Cuda;

/// <summary>A call into the driver, NVRTC or cuBLASLt came back with an error.</summary>
internal sealed class CudaException(string call, string error) : Exception($"{call}: {error}")
{
    public string Error { get; } = error;
}

/// <summary>
/// The three libraries by the names they have on this system. NVRTC and cuBLASLt carry the toolkit's major version in theirs; the newest found is taken.
/// The functions used are the same in CUDA 12 and 13.
/// </summary>
internal static class Libraries
{
    public const string Driver = "cuda", Nvrtc = "nvrtc", Blas = "cublasLt";

    private static readonly Dictionary<string, nint> Loaded = [];

    static Libraries() => NativeLibrary.SetDllImportResolver(typeof(Libraries).Assembly, Resolve);

    /// <summary>Null when it loads; otherwise what was looked for.</summary>
    public static string? Missing(string library) => Find(library) != 0 ? null : string.Join(" or ", Names(library).Take(2));

    private static nint Resolve(string library, Assembly assembly, DllImportSearchPath? path) => library is Driver or Nvrtc or Blas ? Find(library) : 0;

    private static nint Find(string library)
    {
        lock (Loaded)
        {
            if (Loaded.TryGetValue(library, out var handle)) return handle;
            foreach (var name in Names(library))
                if (NativeLibrary.TryLoad(name, out handle)) break;
            return Loaded[library] = handle;
        }
    }

    private static IEnumerable<string> Names(string library)
    {
        var windows = OperatingSystem.IsWindows();
        if (library == Driver) return windows ? ["nvcuda.dll"] : ["libcuda.so.1", "libcuda.so"];
        // A driver runs libraries of its own major version and of those before.
        int[] majors = Find(Driver) != 0 && Cuda.Driver.cuDriverGetVersion(out var version) == 0 && version < 13000 ? [12] : [13, 12];
        return majors.SelectMany(major => windows
            ? [library == Nvrtc ? $"nvrtc64_{major}0_0.dll" : $"cublasLt64_{major}.dll"]
            : (string[])[$"lib{library}.so.{major}", $"/usr/local/cuda/lib64/lib{library}.so.{major}"]);
    }
}

/// <summary>The driver API, as far as it is used. Names and numbers are those of cuda.h.</summary>
internal static unsafe partial class Driver
{
    public const int Success = 0, OutOfMemory = 2;

    [LibraryImport(Libraries.Driver)] public static partial int cuInit(uint flags);
    [LibraryImport(Libraries.Driver)] public static partial int cuDriverGetVersion(out int version);
    [LibraryImport(Libraries.Driver)] public static partial int cuDeviceGetCount(out int count);
    [LibraryImport(Libraries.Driver)] public static partial int cuDeviceGet(out int device, int ordinal);
    [LibraryImport(Libraries.Driver)] public static partial int cuDeviceGetName(byte* name, int length, int device);
    [LibraryImport(Libraries.Driver)] public static partial int cuDeviceGetAttribute(out int value, int attribute, int device);
    [LibraryImport(Libraries.Driver)] public static partial int cuDevicePrimaryCtxRetain(out nint context, int device);
    [LibraryImport(Libraries.Driver)] public static partial int cuDevicePrimaryCtxRelease_v2(int device);
    [LibraryImport(Libraries.Driver)] public static partial int cuCtxSetCurrent(nint context);
    [LibraryImport(Libraries.Driver)] public static partial int cuMemGetInfo_v2(out nuint free, out nuint total);
    [LibraryImport(Libraries.Driver)] public static partial int cuMemAlloc_v2(out ulong pointer, nuint bytes);
    [LibraryImport(Libraries.Driver)] public static partial int cuMemFree_v2(ulong pointer);
    [LibraryImport(Libraries.Driver)] public static partial int cuMemHostAlloc(out nint pointer, nuint bytes, uint flags);
    [LibraryImport(Libraries.Driver)] public static partial int cuMemFreeHost(nint pointer);
    [LibraryImport(Libraries.Driver)] public static partial int cuMemHostGetDevicePointer_v2(out ulong device, nint host, uint flags);
    [LibraryImport(Libraries.Driver)] public static partial int cuMemcpyHtoDAsync_v2(ulong to, void* from, nuint bytes, nint stream);
    [LibraryImport(Libraries.Driver)] public static partial int cuMemcpyDtoHAsync_v2(void* to, ulong from, nuint bytes, nint stream);
    [LibraryImport(Libraries.Driver)] public static partial int cuMemcpyDtoDAsync_v2(ulong to, ulong from, nuint bytes, nint stream);
    [LibraryImport(Libraries.Driver)] public static partial int cuMemsetD8Async(ulong to, byte value, nuint bytes, nint stream);
    [LibraryImport(Libraries.Driver)] public static partial int cuStreamCreate(out nint stream, uint flags);
    [LibraryImport(Libraries.Driver)] public static partial int cuStreamDestroy_v2(nint stream);
    [LibraryImport(Libraries.Driver)] public static partial int cuStreamSynchronize(nint stream);
    [LibraryImport(Libraries.Driver)] public static partial int cuEventCreate(out nint e, uint flags);
    [LibraryImport(Libraries.Driver)] public static partial int cuEventDestroy_v2(nint e);
    [LibraryImport(Libraries.Driver)] public static partial int cuEventRecord(nint e, nint stream);
    [LibraryImport(Libraries.Driver)] public static partial int cuEventSynchronize(nint e);
    [LibraryImport(Libraries.Driver)] public static partial int cuEventElapsedTime(out float milliseconds, nint from, nint to);
    [LibraryImport(Libraries.Driver)] public static partial int cuModuleLoadData(out nint module, void* image);
    [LibraryImport(Libraries.Driver)] public static partial int cuModuleUnload(nint module);
    [LibraryImport(Libraries.Driver, StringMarshalling = StringMarshalling.Utf8)] public static partial int cuModuleGetFunction(out nint function, nint module, string name);
    [LibraryImport(Libraries.Driver)] public static partial int cuFuncSetAttribute(nint function, int attribute, int value);
    [LibraryImport(Libraries.Driver)] public static partial int cuLaunchKernelEx(LaunchConfig* config, nint function, void** arguments, void** extra);
    [LibraryImport(Libraries.Driver)] public static partial int cuStreamBeginCapture_v2(nint stream, int mode);
    [LibraryImport(Libraries.Driver)] public static partial int cuStreamEndCapture(nint stream, out nint graph);
    [LibraryImport(Libraries.Driver)] public static partial int cuGraphInstantiateWithFlags(out nint exec, nint graph, ulong flags);
    [LibraryImport(Libraries.Driver)] public static partial int cuGraphDestroy(nint graph);
    [LibraryImport(Libraries.Driver)] public static partial int cuGraphExecDestroy(nint exec);
    [LibraryImport(Libraries.Driver)] public static partial int cuGraphLaunch(nint exec, nint stream);
    [LibraryImport(Libraries.Driver)] public static partial int cuTensorMapEncodeTiled(TensorMap* map, int type, uint rank, void* address, ulong* sizes, ulong* strides, uint* box, uint* elementStrides, int interleave, int swizzle, int promotion, int fill);
    [LibraryImport(Libraries.Driver)] private static partial int cuGetErrorName(int error, out byte* name);
    [LibraryImport(Libraries.Driver)] private static partial int cuGetErrorString(int error, out byte* text);

    /// <exception cref="OutOfDeviceMemoryException">There is no room.</exception>
    /// <exception cref="CudaException">Anything else went wrong.</exception>
    public static void Check(int result, string call)
    {
        if (result == Success) return;
        if (result == OutOfMemory) throw new OutOfDeviceMemoryException($"{call}: the GPU has no room left.");
        throw new CudaException(call, Describe(result));
    }

    public static string Describe(int result)
    {
        cuGetErrorName(result, out var name);
        cuGetErrorString(result, out var text);
        return $"{Marshal.PtrToStringUTF8((nint)name)} ({result}): {Marshal.PtrToStringUTF8((nint)text)}";
    }

    /// <summary>CUlaunchConfig.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct LaunchConfig
    {
        public uint GridX, GridY, GridZ, BlockX, BlockY, BlockZ, SharedBytes;
        public nint Stream;
        public LaunchAttribute* Attributes;
        public uint AttributeCount;
    }

    /// <summary>CUlaunchAttribute; the only one used is 6, programmatic stream serialization.</summary>
    [StructLayout(LayoutKind.Sequential, Size = 72)]
    public struct LaunchAttribute
    {
        public int Id;
        private readonly int pad;
        public int Value;
    }
}

/// <summary>CUtensorMap, made by the driver; kernels take it by value, 64-byte aligned.</summary>
[StructLayout(LayoutKind.Sequential, Size = 128)]
internal struct TensorMap
{
    public ulong First;
}

/// <summary>NVRTC: CUDA C++ to machine code, at run time.</summary>
internal static unsafe partial class Nvrtc
{
    [LibraryImport(Libraries.Nvrtc)] private static partial int nvrtcVersion(out int major, out int minor);
    [LibraryImport(Libraries.Nvrtc, StringMarshalling = StringMarshalling.Utf8)] private static partial int nvrtcCreateProgram(out nint program, string source, string name, int headers, nint headerSources, nint headerNames);
    [LibraryImport(Libraries.Nvrtc)] private static partial int nvrtcCompileProgram(nint program, int count, byte** options);
    [LibraryImport(Libraries.Nvrtc)] private static partial int nvrtcGetProgramLogSize(nint program, out nuint size);
    [LibraryImport(Libraries.Nvrtc)] private static partial int nvrtcGetProgramLog(nint program, byte* log);
    [LibraryImport(Libraries.Nvrtc)] private static partial int nvrtcGetCUBINSize(nint program, out nuint size);
    [LibraryImport(Libraries.Nvrtc)] private static partial int nvrtcGetCUBIN(nint program, byte* code);
    [LibraryImport(Libraries.Nvrtc)] private static partial int nvrtcDestroyProgram(ref nint program);

    public static (int Major, int Minor) Version
    {
        get
        {
            _ = nvrtcVersion(out var major, out var minor);
            return (major, minor);
        }
    }

    /// <exception cref="CudaException">It does not compile; the message is the compiler's.</exception>
    public static byte[] Compile(string name, string source, IReadOnlyList<string> options)
    {
        if (nvrtcCreateProgram(out var program, source, name, 0, 0, 0) != 0) throw new CudaException("nvrtcCreateProgram", name);
        var texts = options.Select(Marshal.StringToCoTaskMemUTF8).ToArray();
        try
        {
            int result;
            fixed (nint* pointers = texts) result = nvrtcCompileProgram(program, texts.Length, (byte**)pointers);
            if (result != 0)
            {
                _ = nvrtcGetProgramLogSize(program, out var size);
                var log = new byte[size];
                fixed (byte* at = log) _ = nvrtcGetProgramLog(program, at);
                throw new CudaException($"Compiling {name}", System.Text.Encoding.UTF8.GetString(log).TrimEnd('\0'));
            }
            if (nvrtcGetCUBINSize(program, out var bytes) != 0 || bytes == 0) throw new CudaException($"Compiling {name}", "NVRTC gave no machine code.");
            var code = new byte[bytes];
            fixed (byte* at = code) _ = nvrtcGetCUBIN(program, at);
            return code;
        }
        finally
        {
            foreach (var text in texts) Marshal.FreeCoTaskMem(text);
            _ = nvrtcDestroyProgram(ref program);
        }
    }
}
