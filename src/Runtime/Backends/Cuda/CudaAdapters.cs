using System.Globalization;
using System.Runtime.InteropServices;

namespace TenantLora.Runtime.Backends.Cuda;

/// <summary>
/// The adapters on the GPU: one piece of memory that they share, and a table of where each one's factors lie and how they are cut, by which
/// kernels find them. So a recorded step does not know which adapters it will meet. Loading goes through pinned memory on a stream of its own.
/// </summary>
internal sealed unsafe class CudaAdapters : IDisposable
{
    /// <summary>Entries of the table, whatever their size.</summary>
    public const int Most = 2048;

    private readonly Lock gate = new();
    private readonly Lock loading = new();
    private readonly CudaDevice device;
    private readonly int layers, maxRank;
    private readonly ulong pool;
    private readonly SortedDictionary<long, long> free = [];          // offset -> bytes
    private readonly Stack<int> indices = new(Enumerable.Range(0, Most).Reverse());
    private Pinned staging;

    public CudaAdapters(CudaDevice device, int layers, long bytes, int maxRank)
    {
        this.maxRank = maxRank;
        this.device = device;
        this.layers = layers;
        pool = device.Allocate(bytes);
        Table = device.Allocate(TableBytes(layers));
        free.Add(0, bytes);
    }

    public int Layers => layers;

    private ulong Table { get; }

    /// <summary>A projection's entry for the first adapter; those of the others follow at layers·7 entries.</summary>
    public ulong EntriesOf(int layer, Projection projection) => Table + (ulong)(((layer * 7) + (int)projection) * sizeof(LoraEntry));

    public static long TableBytes(int layers) => (long)Most * layers * 7 * sizeof(LoraEntry);

    /// <summary>bf16, rows padded to 16 bytes.</summary>
    public static long SizeOf(LoraModules modules) => modules.All.Sum(m =>
        2L * (((m.SharedRank + (m.UnsharedRank * m.ChunksA)) * (long)Round8(m.ChunkWidth)) + ((m.SharedRank + (m.UnsharedRank * m.ChunksB)) * (long)Round8(m.ChunkHeight))));

    public CudaAdapter Load(LoraModules modules)
    {
        if (modules.Layers != layers) throw new ArgumentException($"The adapter has {modules.Layers} layers, the model {layers}.");
        if (modules.All.FirstOrDefault(m => m.SharedRank + m.UnsharedRank > maxRank) is { } high) throw new ArgumentException($"The adapter has rank {high.SharedRank + high.UnsharedRank}, and this device serves up to {maxRank}.");
        var bytes = Math.Max(SizeOf(modules), 16);
        var (index, offset) = Take(bytes);
        try
        {
            lock (loading) Copy(modules, index, offset, bytes);
        }
        catch
        {
            Return(index, offset, bytes);
            throw;
        }
        return new CudaAdapter(this, index, offset, bytes, modules);
    }

    public void Return(int index, long offset, long bytes)
    {
        lock (gate)
        {
            indices.Push(index);
            // Join with the neighbours.
            if (free.Remove(offset + bytes, out var after)) bytes += after;
            foreach (var (start, length) in free)
                if (start + length == offset)
                {
                    free[start] = length + bytes;
                    return;
                }
            free.Add(offset, bytes);
        }
    }

    private (int Index, long Offset) Take(long bytes)
    {
        bytes = (bytes + 15) & -16;
        lock (gate)
        {
            if (indices.Count == 0) throw new OutOfDeviceMemoryException($"{Most} adapters are on the GPU, and its table holds no more.");
            foreach (var (offset, length) in free)
            {
                if (length < bytes) continue;
                free.Remove(offset);
                if (length > bytes) free.Add(offset + bytes, length - bytes);
                return (indices.Pop(), offset);
            }
            throw new OutOfDeviceMemoryException(string.Create(CultureInfo.InvariantCulture, $"An adapter needs {bytes / 1e6:F1} MB in one piece, and the adapters' room has {(free.Count == 0 ? 0 : free.Values.Max()) / 1e6:F1} MB left."));
        }
    }

    private void Copy(LoraModules modules, int index, long offset, long bytes)
    {
        var tableBytes = layers * 7 * sizeof(LoraEntry);
        if (staging.Bytes < bytes + tableBytes)
        {
            if (staging.Bytes > 0) device.FreePinned(staging);
            staging = device.AllocatePinned((bytes + tableBytes) * 5 / 4);
        }
        var table = (LoraEntry*)staging.Host;
        new Span<byte>(table, tableBytes).Clear();
        var data = (ushort*)(staging.Host + tableBytes);
        long next = 0;      // elements
        ulong Place(Action<nint> fill, long elements)
        {
            var at = pool + (ulong)(offset + (next * 2));
            fill((nint)(data + next));
            next += elements;
            return elements == 0 ? 0 : at;
        }
        for (var layer = 0; layer < layers; layer++)
            for (var projection = Projection.Query; projection <= Projection.Down; projection++)
            {
                if (modules[layer, projection] is not { } m) continue;
                var (r, u, width, height) = (m.SharedRank, m.UnsharedRank, Round8(m.ChunkWidth), Round8(m.ChunkHeight));
                table[(layer * 7) + (int)projection] = new LoraEntry
                {
                    A = Place(to => Rows(m.A, r, m.ChunkWidth, width, (ushort*)to), (long)r * width),
                    AVec = Place(to => Chunks(m.AVec, u, m.ChunksA, m.ChunkWidth, width, (ushort*)to), (long)u * m.ChunksA * width),
                    B = Place(to => Transposed(m.B, r, m.ChunkHeight, height, (ushort*)to), (long)r * height),
                    BVec = Place(to => Chunks(m.BVec, u, m.ChunksB, m.ChunkHeight, height, (ushort*)to), (long)u * m.ChunksB * height),
                    Shared = r,
                    Unshared = u,
                    ChunksA = m.ChunksA,
                    ChunksB = m.ChunksB,
                    ShiftA = m.ShiftA,
                    ShiftB = m.ShiftB,
                    ChunkWidth = m.ChunkWidth,
                    ChunkHeight = m.ChunkHeight,
                    StrideA = width,
                    StrideB = height,
                    Scale = m.Scale,
                    Inputs = m.Inputs,
                    Outputs = m.Outputs,
                };
            }
        device.Enter();
        Driver.Check(Driver.cuMemcpyHtoDAsync_v2(pool + (ulong)offset, data, (nuint)(next * 2), device.LoadStream), "copying an adapter");
        Driver.Check(Driver.cuMemcpyHtoDAsync_v2(Table + (ulong)((long)index * tableBytes), table, (nuint)tableBytes, device.LoadStream), "copying an adapter's entries");
        Driver.Check(Driver.cuStreamSynchronize(device.LoadStream), "loading an adapter");
    }

    private static int Round8(int count) => (count + 7) / 8 * 8;

    private static void Rows(HostTensor? from, int rows, int cols, int stride, ushort* to)
    {
        for (var r = 0; r < rows; r++) Bf16.Copy(from!, (long)r * cols, cols, to + ((long)r * stride), stride);
    }

    /// <summary>(cols, rows) in the file becomes (rows, stride).</summary>
    private static void Transposed(HostTensor? from, int rows, int cols, int stride, ushort* to)
    {
        if (from is null) return;
        new Span<ushort>(to, rows * stride).Clear();
        if (from.Type == DType.BF16)
        {
            // A few cache lines of each row at a time; long strides would miss on every value.
            var source = (ushort*)from.Data;
            for (var first = 0; first < cols; first += 64)
                for (var k = 0; k < rows; k++)
                    for (var t = first; t < Math.Min(cols, first + 64); t++) to[((long)k * stride) + t] = source[((long)t * rows) + k];
            return;
        }
        for (var t = 0; t < cols; t++)
            for (var k = 0; k < rows; k++) to[((long)k * stride) + t] = Bf16.At(from, ((long)t * rows) + k);
    }

    private static void Chunks(HostTensor? from, int rows, int chunks, int width, int stride, ushort* to)
    {
        for (var r = 0; r < rows; r++)
            for (var j = 0; j < chunks; j++, to += stride)
                Bf16.Copy(from!, ((long)r * from!.Cols) + (j * width), Math.Clamp(from.Cols - (j * width), 0, width), to, stride);
    }

    public void Dispose()
    {
        device.Free(pool);
        device.Free(Table);
        if (staging.Bytes > 0) device.FreePinned(staging);
    }

    /// <summary>Lora in lora.cuh.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct LoraEntry
    {
        public ulong A, B, AVec, BVec;
        public int Shared, Unshared, ChunksA, ChunksB, ShiftA, ShiftB, ChunkWidth, ChunkHeight, StrideA, StrideB;
        public float Scale;
        public int Inputs, Outputs;
        private readonly int reserved;
    }
}

/// <summary>An adapter on the GPU. Disposed when no step reads it any more.</summary>
internal sealed class CudaAdapter : DeviceAdapter
{
    private const int MostSlices = 16;
    private readonly CudaAdapters owner;
    private readonly long offset;
    private readonly (int Slices, int Rows)[][] pieces;
    private bool disposed;

    public CudaAdapter(CudaAdapters owner, int index, long offset, long bytes, LoraModules modules)
    {
        (this.owner, Index, this.offset, Bytes) = (owner, index, offset, bytes);
        pieces = new (int, int)[4][];
        for (var kind = 0; kind < 4; kind++)
        {
            var of = kind switch { 0 => (Projection.Query, 3), 1 => (Projection.Output, 1), 2 => (Projection.Gate, 2), _ => (Projection.Down, 1) };
            var found = new HashSet<(int, int)>();
            for (var layer = 0; layer < modules.Layers; layer++)
                for (var p = 0; p < of.Item2; p++)
                    if (modules[layer, of.Item1 + p] is { } m) found.Add((Slices((m.ChunkWidth + 7) / 8 * 8), Math.Max(1, 32 / m.ChunksA)));
            pieces[kind] = [.. found];
        }
        MaxRank = modules.All.Select(m => m.SharedRank + m.UnsharedRank).DefaultIfEmpty(0).Max();
    }

    public int Index { get; }

    public int MaxRank { get; }

    public override long Bytes { get; }

    /// <summary>Pieces into which so many rows' work at a kind of site falls: slices of A's columns, and runs of rows. As in lora.cuh.</summary>
    public int Units(int kind, int rows)
    {
        var most = 0;
        foreach (var (slices, each) in pieces[kind]) most = Math.Max(most, slices * ((rows + each - 1) / each));
        return most;
    }

    private static int Slices(int stride)
    {
        var width = Math.Max(256, (((stride + MostSlices - 1) / MostSlices) + 31) / 32 * 32);
        return (stride + width - 1) / width;
    }

    public override void Dispose()
    {
        if (disposed) return;
        disposed = true;
        owner.Return(Index, offset, Bytes);
    }
}

/// <summary>Stored weights as bf16, rounded to nearest even.</summary>
internal static unsafe class Bf16
{
    public static ushort At(HostTensor from, long index) => from.Type switch
    {
        DType.BF16 => ((ushort*)from.Data)[index],
        DType.F16 => Round((float)((Half*)from.Data)[index]),
        _ => Round(((float*)from.Data)[index]),
    };

    /// <summary>Copies <paramref name="count"/> values and fills up to <paramref name="stride"/> with zeros.</summary>
    public static void Copy(HostTensor from, long first, int count, ushort* to, int stride)
    {
        if (from.Type == DType.BF16) new ReadOnlySpan<ushort>((ushort*)from.Data + first, count).CopyTo(new Span<ushort>(to, count));
        else for (var i = 0; i < count; i++) to[i] = At(from, first + i);
        new Span<ushort>(to + count, stride - count).Clear();
    }

    public static float Widen(HostTensor from, long index) => from.Type switch
    {
        DType.BF16 => BitConverter.UInt32BitsToSingle((uint)((ushort*)from.Data)[index] << 16),
        DType.F16 => (float)((Half*)from.Data)[index],
        _ => ((float*)from.Data)[index],
    };

    private static ushort Round(float value)
    {
        var bits = BitConverter.SingleToUInt32Bits(value);
        if ((bits & 0x7FFFFFFF) > 0x7F800000) return 0x7FFF;
        return (ushort)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
    }
}
