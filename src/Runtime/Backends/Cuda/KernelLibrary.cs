using System.Globalization;
using System.Security.Cryptography;
using System.Text;

namespace TenantLora.Runtime.Backends.Cuda;

/// <summary>
/// The kernels of <c>Kernels/*.cu</c>, compiled for the GPU at hand when it is first met; machine code is kept in the user's cache folder under a
/// digest of source, compiler and options, so the next start takes milliseconds. A cache that cannot be written or read, or is damaged, only costs time.
/// </summary>
internal sealed unsafe class KernelLibrary : IDisposable
{
    /// <summary>What each file starts from, and how its kernels' names begin.</summary>
    private static readonly (string Name, string[] Parts, string[] Kernels)[] Files =
    [
        ("chain", ["common.cuh", "lora.cuh", "finish.cuh", "chain.cu"], ["chain_"]),
        ("finish", ["common.cuh", "finish.cuh", "finish.cu"], ["residual", "rope", "swiGlu", "plain", "takeNormed", "turnsOf"]),
        ("attend_any", ["common.cuh", "attend.cuh", "attend_any.cu"], ["attendAny"]),
        ("attend_decode", ["common.cuh", "attend.cuh", "attend_decode.cu"], ["attendDecode"]),
        ("attend_prefill", ["common.cuh", "attend.cuh", "attend_prefill.cu"], ["attendPrefill"]),
        ("draw", ["common.cuh", "draw.cu"], ["draw"]),
        ("embed", ["common.cuh", "embed.cu"], ["embed", "takeRows"]),
        ("lora_prefill", ["common.cuh", "lora.cuh", "finish.cuh", "lora_prefill.cu"], ["shrinkLong", "adapt"]),
    ];

    private readonly CudaDevice device;
    private readonly nint[] modules;
    private readonly Dictionary<string, (nint Function, int SharedBytes)> functions = [];

    public KernelLibrary(CudaDevice device)
    {
        this.device = device;
        device.Enter();
        var target = string.Create(CultureInfo.InvariantCulture, $"sm_{device.Capability.Major}{device.Capability.Minor}{(device.IsHopper ? "a" : "")}");
        string[] options = ["-std=c++17", $"--gpu-architecture={target}", $"-DSHARED_LIMIT={device.SharedBytes}", "-default-device", "--diag-suppress=177"];
        var images = new byte[Files.Length][];
        Parallel.For(0, Files.Length, i => images[i] = Image(Files[i].Name, Files[i].Parts, options));
        modules = new nint[Files.Length];
        for (var i = 0; i < modules.Length; i++)
            lock (CudaDevice.Recording)
                fixed (byte* image = images[i]) Driver.Check(Driver.cuModuleLoadData(out modules[i], image), $"cuModuleLoadData of {Files[i].Name}");
    }

    /// <summary>A kernel by name, ready for so much shared memory.</summary>
    public nint Get(string name, int sharedBytes = 0)
    {
        if (functions.TryGetValue(name, out var known) && known.SharedBytes >= sharedBytes) return known.Function;
        var function = known.Function;
        if (function == 0)
        {
            var file = Array.FindIndex(Files, f => Array.Exists(f.Kernels, k => name.StartsWith(k, StringComparison.Ordinal)));
            Driver.Check(Driver.cuModuleGetFunction(out function, modules[file], name), $"kernel {name}");
        }
        if (sharedBytes > 48 << 10)
        {
            Driver.Check(Driver.cuFuncSetAttribute(function, 8, sharedBytes), $"shared memory of {name}");
            Driver.Check(Driver.cuFuncSetAttribute(function, 9, 100), $"shared memory of {name}");        // of the first level cache, all it can have
        }
        functions[name] = (function, sharedBytes);
        return function;
    }

    private static byte[] Image(string name, string[] parts, string[] options)
    {
        var source = string.Concat(parts.Select(Text));
        var (major, minor) = Nvrtc.Version;
        var key = Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes($"{major}.{minor}\n{string.Join('\n', options)}\n{source}")));
        var folder = Path.Combine(Environment.GetFolderPath(Environment.SpecialFolder.LocalApplicationData, Environment.SpecialFolderOption.DoNotVerify) is { Length: > 0 } user ? user : Path.GetTempPath(), "TenantLora", "kernels");
        return Cached(Path.Combine(folder, $"{name}-{key[..32]}.cubin"), () => Nvrtc.Compile(name, source, options));
    }

    /// <summary>
    /// What is kept at <paramref name="path"/>, or is made and kept there. It lies behind its digest: the driver, not told where an image ends,
    /// must not see a damaged one.
    /// </summary>
    internal static byte[] Cached(string path, Func<byte[]> make)
    {
        const int Digest = SHA256.HashSizeInBytes;
        try
        {
            if (File.Exists(path) && File.ReadAllBytes(path) is { Length: > Digest } kept && SHA256.HashData(kept.AsSpan(Digest)).AsSpan().SequenceEqual(kept.AsSpan(0, Digest)))
                return kept[Digest..];
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException)
        {
        }
        var code = make();
        try
        {
            var folder = Path.GetDirectoryName(path)!;
            Directory.CreateDirectory(folder);
            var temporary = Path.Combine(folder, Path.GetRandomFileName());
            File.WriteAllBytes(temporary, [.. SHA256.HashData(code), .. code]);
            File.Move(temporary, path, overwrite: true);
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException)
        {
        }
        return code;
    }

    private static string Text(string file)
    {
        using var stream = typeof(KernelLibrary).Assembly.GetManifestResourceStream($"Kernels/{file}")
            ?? throw new InvalidOperationException($"The assembly lacks {file}.");
        using var reader = new StreamReader(stream);
        return reader.ReadToEnd() + "\n";
    }

    public void Dispose()
    {
        device.Enter();
        lock (CudaDevice.Recording)
            foreach (var module in modules) _ = Driver.cuModuleUnload(module);
    }
}
