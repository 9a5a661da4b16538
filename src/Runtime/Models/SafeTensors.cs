using System.IO.MemoryMappedFiles;
using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;
using TenantLora.Runtime.Backends;

namespace TenantLora.Runtime.Models;

/// <summary>
/// An open safetensors file. Values are read where they lie, little-endian as stored; nothing is copied or converted.
/// The memory lives as long as this object or a <see cref="HostTensor"/> of it does; <see cref="Dispose"/> frees it at once, so
/// only who knows that no tensor is in use any more may call it, and nobody must.
/// </summary>
internal sealed unsafe class SafeTensors : IDisposable
{
    private readonly SafeBuffer memory;
    private readonly byte* data;

    private SafeTensors(string path, SafeBuffer memory, long length, SafeTensorsLimits limits)
    {
        // The length is the file's: a mapping's own may be rounded up to pages.
        (Path, this.memory, Length) = (path, memory, length);
        data = (byte*)memory.DangerousGetHandle();
        Entries = SafeTensorsHeader.Read(path, data, Length, limits).ToDictionary(e => e.Name, StringComparer.Ordinal);
    }

    /// <summary>As it was opened.</summary>
    public string Path { get; }

    /// <summary>Bytes of the whole file.</summary>
    public long Length { get; }

    public IReadOnlyDictionary<string, TensorEntry> Entries { get; }

    /// <summary>
    /// Maps a model's file of any size. Whoever changes or cuts the file while it is mapped changes the weights, or ends the process.
    /// </summary>
    /// <exception cref="ModelFileException">It is missing or not what the format allows.</exception>
    public static SafeTensors Open(string path) => Open(path, SafeTensorsLimits.Model, Map);

    /// <summary>
    /// Reads a stranger's file into memory of our own: what was checked and hashed is what will be used, whatever happens to the
    /// file afterwards.
    /// </summary>
    /// <exception cref="ModelFileException">It is missing or not what the format allows.</exception>
    public static SafeTensors Read(string path, SafeTensorsLimits limits) => Open(path, limits, Copy);

    /// <summary>A tensor as a matrix; one with one dimension is a row.</summary>
    /// <exception cref="ModelFileException">None of that name, or not F32, F16 or BF16, or not of one or two dimensions.</exception>
    public HostTensor Find(string name)
    {
        var entry = Entry(name);
        var type = entry.DType switch
        {
            "F32" => DType.F32,
            "F16" => DType.F16,
            "BF16" => DType.BF16,
            _ => throw new ModelFileException(Path, name, "F32, F16 or BF16", entry.Form),
        };
        var (rows, cols) = entry.Shape switch
        {
            [var n] => (1, n),
            [var r, var c] => (r, c),
            _ => throw new ModelFileException(Path, name, "one or two dimensions", entry.Form),
        };
        if (rows > int.MaxValue || cols > int.MaxValue) throw new ModelFileException(Path, name, "dimensions below 2^31", entry.Form);
        return new HostTensor(name, type, (int)rows, (int)cols, data + entry.Offset, this);
    }

    /// <summary>A tensor's bytes, of whatever type, up to 2 GiB.</summary>
    public ReadOnlySpan<byte> Bytes(string name)
    {
        var entry = Entry(name);
        return Span(entry.Offset, checked((int)entry.Bytes));
    }

    /// <summary>Bytes of the file, the header's included.</summary>
    public ReadOnlySpan<byte> Span(long offset, int count)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(offset);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(offset + count, Length);
        return new ReadOnlySpan<byte>(data + offset, count);
    }

    public void Dispose() => memory.Dispose();

    private TensorEntry Entry(string name) =>
        Entries.GetValueOrDefault(name) ?? throw new ModelFileException(Path, Printable.Of(name), "a tensor of that name", "none");

    private static SafeTensors Open(string path, SafeTensorsLimits limits, Func<SafeFileHandle, long, SafeBuffer> bring)
    {
        SafeBuffer memory;
        long length;
        try
        {
            using var file = RegularFile.Open(path);
            length = RandomAccess.GetLength(file);
            if (length > limits.FileBytes) throw new ModelFileException(path, null, $"at most {limits.FileBytes} bytes", $"{length}");
            Span<byte> start = stackalloc byte[8];
            _ = SafeTensorsHeader.LengthOf(path, start[..RandomAccess.Read(file, start, 0)], length, limits);
            memory = bring(file, length);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw JsonFields.Unreadable(path, e);
        }

        try
        {
            return new SafeTensors(path, memory, length, limits);
        }
        catch
        {
            memory.Dispose();
            throw;
        }
    }

    private static SafeBuffer Map(SafeFileHandle file, long length)
    {
        // The view holds the mapping; neither the file nor the mapping object is needed once it exists.
        using var mapping = MemoryMappedFile.CreateFromFile(file, null, 0, MemoryMappedFileAccess.Read, HandleInheritability.None, leaveOpen: true);
        var view = mapping.CreateViewAccessor(0, length, MemoryMappedFileAccess.Read);
        return view.SafeMemoryMappedViewHandle;
    }

    private static OwnMemory Copy(SafeFileHandle file, long length)
    {
        var memory = new OwnMemory(length);
        for (long at = 0; at < length;)
        {
            var read = RandomAccess.Read(file, new Span<byte>((byte*)memory.DangerousGetHandle() + at, (int)Math.Min(length - at, 1 << 30)), at);
            if (read == 0) throw new EndOfStreamException();
            at += read;
        }

        return memory;
    }

    private sealed class OwnMemory : SafeBuffer
    {
        public OwnMemory(long length) : base(ownsHandle: true)
        {
            SetHandle((nint)NativeMemory.Alloc((nuint)length));
            Initialize((ulong)length);
        }

        protected override bool ReleaseHandle()
        {
            NativeMemory.Free((void*)handle);
            return true;
        }
    }
}
