using System.Globalization;
using System.Numerics.Tensors;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;

namespace TenantLora.Runtime.Backends.Cuda;

/// <summary>
/// The adapters on the GPU: one piece of memory that they share, and a table of where each one's factors lie and how they are cut, by which
/// kernels find them. So a recorded step does not know which adapters it will meet. Loading goes through two rooms of pinned memory on a stream
/// of its own: one is packed by all cores while the other is on its way.
/// </summary>
internal sealed unsafe class CudaAdapters : IDisposable
{
    /// <summary>Entries of the table, whatever their size.</summary>
    public const int Most = 2048;

    /// <summary>Bytes of a room of staging: a piece of an adapter that is still in the cache when it is sent. A larger module makes it larger.</summary>
    private const long UsualRoom = 8 << 20;

    private readonly Lock gate = new();
    private readonly Lock loading = new();
    private readonly CudaDevice device;
    private readonly int layers, maxRank;
    private readonly ulong pool;
    private readonly SortedDictionary<long, long> free = [];          // offset -> bytes
    private readonly Stack<int> indices = new(Enumerable.Range(0, Most).Reverse());
    private readonly nint[] sent = new nint[2];                      // events: a room of staging is free again
    private Pinned staging;                                         // two rooms, then an adapter's entries

    public CudaAdapters(CudaDevice device, int layers, long bytes, int maxRank)
    {
        this.maxRank = maxRank;
        this.device = device;
        this.layers = layers;
        pool = device.Allocate(bytes);
        Table = device.Allocate(TableBytes(layers));
        free.Add(0, bytes);
        staging = device.AllocatePinned((2 * UsualRoom) + EntryBytes);
        for (var i = 0; i < sent.Length; i++) Driver.Check(Driver.cuEventCreate(out sent[i], 2), "cuEventCreate");         // 2: no timing
    }

    public int Layers => layers;

    private ulong Table { get; }

    /// <summary>Of one adapter.</summary>
    private int EntryBytes => layers * 7 * sizeof(LoraEntry);

    private long RoomBytes => (staging.Bytes - EntryBytes) / 2;

    /// <summary>A projection's entry for the first adapter; those of the others follow at layers·7 entries.</summary>
    public ulong EntriesOf(int layer, Projection projection) => Table + (ulong)(((layer * 7) + (int)projection) * sizeof(LoraEntry));

    public static long TableBytes(int layers) => (long)Most * layers * 7 * sizeof(LoraEntry);

    public static long SizeOf(LoraModules modules) => modules.All.Sum(m => AdapterPacking.Of(m).Bytes);

    public CudaAdapter Load(LoraModules modules)
    {
        if (modules.Layers != layers) throw new ArgumentException($"The adapter has {modules.Layers} layers, the model {layers}.");
        if (modules.All.FirstOrDefault(m => m.SharedRank + m.UnsharedRank > maxRank) is { } high) throw new ArgumentException($"The adapter has rank {high.SharedRank + high.UnsharedRank}, and this device serves up to {maxRank}.");
        var bytes = Math.Max(SizeOf(modules), 16);
        var (index, offset) = Take(bytes);
        try
        {
            lock (loading) Copy(modules, index, offset);
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

    private void Copy(LoraModules modules, int index, long offset)
    {
        var forms = modules.All.Select(AdapterPacking.Of).ToArray();
        var largest = forms.Select(f => f.Bytes).DefaultIfEmpty(0).Max();
        if (largest > RoomBytes)
        {
            device.FreePinned(staging);
            staging = default;
            staging = device.AllocatePinned((2 * largest) + EntryBytes);
        }
        device.Enter();
        var (room, to) = (RoomBytes, pool + (ulong)offset);
        var places = new long[forms.Length];
        for (int first = 0, end, turn = 0; first < forms.Length; first = end, turn ^= 1)
        {
            var bytes = 0L;
            for (end = first; end < forms.Length && bytes + forms[end].Bytes <= room; bytes += forms[end++].Bytes) places[end] = bytes;
            var host = staging.Address + (nint)(turn * room);
            Driver.Check(Driver.cuEventSynchronize(sent[turn]), "loading an adapter");
            Parallel.For(first * 2, end * 2, half =>
            {
                var (form, at) = (forms[half / 2], host + (nint)places[half / 2]);
                if (half % 2 == 0) form.PackA((ushort*)at);
                else form.PackB((ushort*)(at + (nint)form.BytesA));
            });
            Driver.Check(Driver.cuMemcpyHtoDAsync_v2(to, (void*)host, (nuint)bytes, device.LoadStream), "copying an adapter");
            Driver.Check(Driver.cuEventRecord(sent[turn], device.LoadStream), "copying an adapter");
            to += (ulong)bytes;
        }
        var table = (LoraEntry*)(staging.Host + (2 * room));
        Describe(modules, table, pool + (ulong)offset);
        Driver.Check(Driver.cuMemcpyHtoDAsync_v2(Table + (ulong)((long)index * EntryBytes), table, (nuint)EntryBytes, device.LoadStream), "copying an adapter's entries");
        Driver.Check(Driver.cuStreamSynchronize(device.LoadStream), "loading an adapter");
    }

    /// <summary>An adapter's entries of the table, its factors beginning at <paramref name="at"/>.</summary>
    private void Describe(LoraModules modules, LoraEntry* table, ulong at)
    {
        new Span<byte>(table, EntryBytes).Clear();
        for (var layer = 0; layer < layers; layer++)
            for (var projection = Projection.Query; projection <= Projection.Down; projection++)
            {
                if (modules[layer, projection] is not { } m) continue;
                var form = AdapterPacking.Of(m);
                table[(layer * 7) + (int)projection] = new LoraEntry
                {
                    A = at,
                    B = at + (ulong)form.BytesA,
                    Shared = m.SharedRank,
                    Unshared = m.UnsharedRank,
                    ChunksA = m.ChunksA,
                    ChunksB = m.ChunksB,
                    ShiftA = m.SharedRank > 0 ? m.ShiftA % m.SharedRank : 0,
                    ShiftB = m.SharedRank > 0 ? m.ShiftB % m.SharedRank : 0,
                    ChunkWidth = m.ChunkWidth,
                    ChunkHeight = m.ChunkHeight,
                    RowsA = form.RowsA,
                    RowsB = form.RowsB,
                    Inputs = m.Inputs,
                    Outputs = m.Outputs,
                    Scale = m.Scale,
                    SliceWidth = AdapterPacking.SliceWidthOf(m.ChunkWidth),
                    Slices = AdapterPacking.SlicesOf(m.ChunkWidth),
                    Tiles = form.Tiles,
                };
                at += (ulong)form.Bytes;
            }
    }

    public void Dispose()
    {
        device.Free(pool);
        device.Free(Table);
        if (staging.Bytes > 0) device.FreePinned(staging);
        foreach (var one in sent) _ = Driver.cuEventDestroy_v2(one);
    }

    /// <summary>Lora in lora.cuh.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct LoraEntry
    {
        public ulong A, B;
        public int Shared, Unshared, ChunksA, ChunksB, ShiftA, ShiftB, ChunkWidth, ChunkHeight, RowsA, RowsB, Inputs, Outputs;
        public float Scale;
        public int SliceWidth, Slices, Tiles;
    }
}

/// <summary>An adapter on the GPU. Disposed when no step reads it any more.</summary>
internal sealed class CudaAdapter : DeviceAdapter
{
    private readonly CudaAdapters owner;
    private readonly long offset;
    private readonly int[] slices = new int[4];
    private bool disposed;

    public CudaAdapter(CudaAdapters owner, int index, long offset, long bytes, LoraModules modules)
    {
        (this.owner, Index, this.offset, Bytes) = (owner, index, offset, bytes);
        for (var layer = 0; layer < modules.Layers; layer++)
            for (var p = Projection.Query; p <= Projection.Down; p++)
            {
                var kind = (int)Site.KindOf(p);
                if (modules[layer, p] is { } m) slices[kind] = Math.Max(slices[kind], AdapterPacking.SlicesOf(m.ChunkWidth));
            }
        MaxRank = modules.All.Select(m => m.SharedRank + m.UnsharedRank).DefaultIfEmpty(0).Max();
    }

    public int Index { get; }

    public int MaxRank { get; }

    public override long Bytes { get; }

    /// <summary>Into how many slices of A's columns a row's work falls, at most, at sites of a <see cref="SiteKind"/>; 0: it adapts none.</summary>
    public int Slices(int kind) => slices[kind];

    public override void Dispose()
    {
        if (disposed) return;
        disposed = true;
        owner.Return(Index, offset, Bytes);
    }
}

/// <summary>How a module's factors lie on the device: Lora in lora.cuh, A first, both in bf16 and in the order in which tensor cores read them.</summary>
internal readonly unsafe record struct AdapterPacking(LoraModule Module, int RowsA, int RowsB)
{
    private const int TileRows = 32, Together = 256;

    /// <summary>Into which a row's z falls, at most.</summary>
    public const int MostSlices = 16;

    public static AdapterPacking Of(LoraModule m) => new(m, m.SharedRank + (m.UnsharedRank * m.ChunksA), m.SharedRank + (m.UnsharedRank * m.ChunksB));

    public long BytesA => 2L * RowsA * ColumnsA;

    public long BytesB => 2L * Pairs * 2 * Tiles * TileRows;

    public long Bytes => BytesA + BytesB;

    private int ColumnsA => (Module.ChunkWidth + 7) / 8 * 8;

    public int Tiles => (Module.ChunkHeight + TileRows - 1) / TileRows;

    private int Pairs => (RowsB + 1) / 2;

    /// <summary>Columns of a chunk that make a slice of z: 64, or as many as make 16 slices.</summary>
    public static int SliceWidthOf(int chunkWidth) => Math.Max(64, (((chunkWidth + MostSlices - 1) / MostSlices) + 31) / 32 * 32);

    public static int SlicesOf(int chunkWidth) => (chunkWidth + SliceWidthOf(chunkWidth) - 1) / SliceWidthOf(chunkWidth);

    /// <summary>[t / 8][row][t % 8]: of each row a few cache lines at a time.</summary>
    public void PackA(ushort* to)
    {
        var (m, r, rows, columns, width) = (Module, Module.SharedRank, RowsA, ColumnsA, Module.ChunkWidth);
        var piece = stackalloc ushort[Together];
        for (var first = 0; first < columns; first += Together)
            for (var row = 0; row < rows; row++)
            {
                var (k, j) = row < r ? (row, 0) : Math.DivRem(row - r, m.ChunksA);
                var from = row < r ? m.A! : m.AVec!;
                var begin = ((long)k * from.Cols) + (j * width);
                var (count, valid) = (Math.Min(columns - first, Together), Math.Clamp(Math.Min(from.Cols - (j * width), width) - first, 0, Together));
                var source = (ushort*)from.Data + begin + first;
                if (from.Type != DType.BF16 || valid < count) Bf16.Copy(from, begin + first, valid, source = piece, count);
                var at = to + ((long)first * rows) + (row * 8);
                for (var t = 0; t < count; t += 8, at += rows * 8) Vector128.Store(Vector128.Load(source + t), at);
            }
    }

    /// <summary>[t / 32][row / 2][t % 8][t % 32 / 8][row % 2].</summary>
    public void PackB(ushort* to)
    {
        var (m, r, rows, pairs, height) = (Module, Module.SharedRank, RowsB, Pairs, Module.ChunkHeight);
        var rounded = stackalloc ushort[m.B is null or { Type: DType.BF16 } ? 0 : TileRows * r];
        var piece = stackalloc ushort[TileRows];
        for (var first = 0; first < height; first += TileRows, to += pairs * 2 * TileRows)
        {
            var count = Math.Min(TileRows, height - first);
            new Span<ushort>(to, pairs * 2 * TileRows).Clear();
            if (m.B is { } b)
            {
                if (b.Type != DType.BF16) Bf16.Copy(b, (long)first * r, count * r, rounded, count * r);
                Transpose(b.Type == DType.BF16 ? (ushort*)b.Data + ((long)first * r) : rounded, count, r, to);
            }
            for (var row = r; row < rows; row++)
            {
                var (k, i) = Math.DivRem(row - r, m.ChunksB);
                var begin = (i * height) + first;
                Bf16.Copy(m.BVec!, ((long)k * m.Outputs) + begin, Math.Clamp(m.Outputs - begin, 0, count), piece, TileRows);
                var at = to + PlaceOf(row, 0);
                for (var t = 0; t < TileRows; t++) at[PlaceOf(0, t)] = piece[t];
            }
        }
    }

    private static int PlaceOf(int row, int t) => (row / 2 * 2 * TileRows) + (t % 8 * 8) + (t / 8 * 2) + (row % 2);

    /// <summary>A tile of the shared ranks; (rows, ranks) in the file.</summary>
    private static void Transpose(ushort* from, int count, int ranks, ushort* to)
    {
        if (count == TileRows)
            for (var t = 0; t < 8; t++)
            {
                var eight = 8 * ranks;
                ushort* row = from + (t * ranks), at = to + PlaceOf(0, t);
                for (var k = 0; k + 2 <= ranks; k += 2, row += 2, at += 2 * TileRows)
                    Vector128.Store(Vector128.Create(*(uint*)row, *(uint*)(row + eight), *(uint*)(row + (2 * eight)), *(uint*)(row + (3 * eight))), (uint*)at);
            }
        for (var t = 0; t < count; t++)
            for (var k = count == TileRows ? ranks / 2 * 2 : 0; k < ranks; k++) to[PlaceOf(k, t)] = from[(t * ranks) + k];
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
        else if (from.Type == DType.F32) Round((float*)from.Data + first, count, to);
        else
        {
            const int Piece = 256;
            var widened = stackalloc float[Piece];
            for (var i = 0; i < count; i += Piece)
            {
                var some = Math.Min(Piece, count - i);
                TensorPrimitives.ConvertToSingle(new ReadOnlySpan<Half>((Half*)from.Data + first + i, some), new Span<float>(widened, some));
                Round(widened, some, to + i);
            }
        }
        new Span<ushort>(to + count, stride - count).Clear();
    }

    public static float Widen(HostTensor from, long index) => from.Type switch
    {
        DType.BF16 => BitConverter.UInt32BitsToSingle((uint)((ushort*)from.Data)[index] << 16),
        DType.F16 => (float)((Half*)from.Data)[index],
        _ => ((float*)from.Data)[index],
    };

    private static void Round(float* from, int count, ushort* to)
    {
        static Vector256<uint> Of(Vector256<uint> v)
        {
            var isNaN = Vector256.GreaterThan(v & Vector256.Create(0x7FFFFFFFu), Vector256.Create(0x7F800000u));
            return Vector256.ConditionalSelect(isNaN, Vector256.Create(0x7FFFu), (v + Vector256.Create(0x7FFFu) + ((v >>> 16) & Vector256<uint>.One)) >>> 16);
        }
        var i = 0;
        for (; i + 16 <= count; i += 16)
            Vector256.Store(Vector256.Narrow(Of(Vector256.Load((uint*)from + i)), Of(Vector256.Load((uint*)from + i + 8))), to + i);
        for (; i < count; i++) to[i] = Round(from[i]);
    }

    private static ushort Round(float value)
    {
        var bits = BitConverter.SingleToUInt32Bits(value);
        if ((bits & 0x7FFFFFFF) > 0x7F800000) return 0x7FFF;
        return (ushort)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
    }
}
