using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace TenantLora.Runtime.Backends.Cuda;

/// <summary>
/// Weights on the GPU. A matrix is bf16 whatever its file has, each row padded to 16 bytes; a vector is fp32. One row may be either, so it is both.
/// </summary>
internal sealed class CudaWeights(CudaDevice device, DType type, int rows, int cols) : DeviceTensor(type, rows, cols)
{
    /// <summary>bf16 (rows, Stride).</summary>
    public ulong Matrix { get; init; }

    /// <summary>fp32, all parts after one another.</summary>
    public ulong Vector { get; init; }

    /// <summary>Elements between rows of the matrix.</summary>
    public int Stride { get; init; }

    /// <summary>Blocks that share the matrix's bytes in a product of few rows.</summary>
    public int Blocks { get; init; }

    /// <summary>u8: into how many parts each tile of 128 rows falls, and the most of them.</summary>
    public ulong PartsOfTile { get; init; }

    public int MostParts { get; init; }

    public TensorMap Map { get; init; }

    public override void Dispose()
    {
        base.Dispose();
        device.Free(Matrix);
        device.Free(Vector);
        device.Free(PartsOfTile);
    }
}

/// <summary>
/// A step's activations. Room is taken when something is written, so what only passes from a linear to its reader takes none but the linear's
/// sums; until the reader has finished them, they are what this tensor is.
/// </summary>
internal sealed class CudaScratch(CudaArena arena, int rows, int cols, Precision precision) : DeviceTensor(precision == Precision.Full ? DType.F32 : DType.BF16, rows, cols)
{
    private ulong pointer, sums, squares;
    private long sumsBytes;

    public Precision Precision { get; } = precision;

    /// <summary>Elements between rows: whole 16 bytes.</summary>
    public int Stride { get; } = (cols + 7) / 8 * 8;

    public ulong Pointer => pointer != 0 ? pointer : pointer = arena.Take((long)Rows * Stride * (Precision == Precision.Full ? 4 : 2));

    /// <summary>Where to write: what was here before counts no more.</summary>
    public ulong Written()
    {
        (Sums, Site, Pending, Norm) = (default, default, null, null);
        return Pointer;
    }

    /// <summary>What a linear has left here, if one has, or will once <see cref="Pending"/> has run.</summary>
    public Sums Sums { get; set; }

    /// <summary>Whose adapters' part the sums of many rows still lack; what they make of it is in <see cref="Backends.Cuda.Site.Whole"/> until the next linear's.</summary>
    public Site Site { get; set; }

    /// <summary>The linear that makes this and waits for its reader, so that both become one.</summary>
    public PendingLinear? Pending { get; set; }

    /// <summary>What this is the norm of, if it is one: its values still lack the row's factor.</summary>
    public Normed? Norm { get; set; }

    /// <summary>Its rows are those whose logits are wanted.</summary>
    public bool OfLogitRows { get; set; }

    /// <summary>Rotated queries, bf16 [row][head][dimStride], once <see cref="CudaBackend.RopeAndStore"/> has been here.</summary>
    public ulong Queries { get; set; }

    /// <summary>fp32 (rows, tiles of 128 columns): room for the squares of what this is the norm of.</summary>
    public ulong Squares => squares != 0 ? squares : squares = arena.Take((long)Rows * TilesOf(Cols) * sizeof(float));

    /// <summary>Tiles of 128 columns, by which sums are finished.</summary>
    public static int TilesOf(int columns) => (columns + 127) / 128;

    /// <summary>Room for so many parts of sums.</summary>
    public ulong TakeSums(int parts)
    {
        var bytes = (long)parts * Rows * Stride * sizeof(float);
        if (sumsBytes < bytes) (sums, sumsBytes) = (arena.Take(bytes), bytes);
        return sums;
    }
}

/// <summary>A product of few rows that has not been launched.</summary>
/// <param name="Op">It, but for its finishing and its counters.</param>
/// <param name="W">Its weight.</param>
/// <param name="X">Its rows.</param>
internal sealed record PendingLinear(Op Op, CudaWeights W, CudaScratch X);

/// <summary>x·weight, to be multiplied by 1 / sqrt(mean(x²) + ε).</summary>
internal sealed record Normed(CudaScratch X, CudaWeights Weight, float Epsilon);

/// <summary>Device room for one step's activations, in pieces that never move: a recorded step finds them where they were.</summary>
internal sealed class CudaArena(CudaDevice device) : IDisposable
{
    private const long Smallest = 64 << 20, Alignment = 256;
    private readonly List<(ulong Pointer, long Bytes)> pieces = [];
    private int piece;
    private long used;

    /// <summary>One piece that should do for all steps.</summary>
    public void Reserve(long bytes)
    {
        if (pieces.Count == 0) pieces.Add((device.Allocate(bytes), bytes));
    }

    public ulong Take(long bytes)
    {
        bytes = (bytes + Alignment - 1) & -Alignment;
        for (; ; piece++, used = 0)
        {
            if (piece == pieces.Count)
            {
                var size = Math.Max(bytes, Smallest);
                pieces.Add((device.Allocate(size), size));
            }
            if (used + bytes > pieces[piece].Bytes) continue;
            var taken = pieces[piece].Pointer + (ulong)used;
            used += bytes;
            return taken;
        }
    }

    public void Reset() => Mark = default;

    /// <summary>What is taken: all before it.</summary>
    public (int Piece, long Used) Mark
    {
        get => (piece, used);
        set => (piece, used) = value;
    }

    public void Dispose()
    {
        foreach (var (pointer, _) in pieces) device.Free(pointer);
        pieces.Clear();
    }
}

/// <summary>bf16 keys and values of each layer: [block][kvHead][position][dimStride], dimStride = headDim rounded up to 16.</summary>
internal sealed class CudaKvCache : KvCache
{
    private readonly CudaDevice device;
    private readonly ulong data;
    private readonly long layerBytes;

    public CudaKvCache(CudaDevice device, int blocks, int blockSize, AttentionShape shape) : base(blocks, blockSize, shape)
    {
        this.device = device;
        layerBytes = BlockBytes(shape, blockSize) / shape.Layers * blocks;
        data = device.Allocate(layerBytes * shape.Layers);
        Frequencies = device.Allocate(shape.InverseFrequencies.Length * sizeof(float));
    }

    /// <summary>fp32 (headDim / 2)</summary>
    public ulong Frequencies { get; }

    public int DimStride => DimStrideOf(Shape);

    public static int DimStrideOf(AttentionShape shape) => (shape.HeadDim + 15) / 16 * 16;

    /// <summary>Of one block in all layers.</summary>
    public static long BlockBytes(AttentionShape shape, int blockSize) => 2L * shape.Layers * shape.KvHeads * blockSize * DimStrideOf(shape) * 2;

    public ulong Keys(int layer) => data + (ulong)(layerBytes * layer);

    public ulong Values(int layer) => Keys(layer) + (ulong)(layerBytes / 2);

    public CacheLayout Layout(int layer) => new()
    {
        Keys = Keys(layer),
        Values = Values(layer),
        BlockSize = BlockSize,
        KvHeads = Shape.KvHeads,
        HeadDim = Shape.HeadDim,
        DimStride = DimStride,
    };

    public override void Dispose()
    {
        device.Free(data);
        device.Free(Frequencies);
    }
}

// What the kernels take by value; the names are theirs.

[StructLayout(LayoutKind.Sequential)]
internal struct Sums
{
    public ulong Y;
    public long Part;
    public ulong Parts, Bias, Extra, Squares;
    public int Stride, Inputs;
    public float Epsilon;
    public int ExtraStride, FirstRow, FirstColumn, SecondColumn;
    private readonly int reserved;
}

internal enum SiteKind
{
    Qkv,
    Output,
    GateUp,
    Down,
}

[StructLayout(LayoutKind.Sequential)]
internal struct Site
{
    public ulong Table;
    public int PerAdapter, Parts;
    public SiteKind Kind;
    public int ZStride;
    public ulong Z, Whole;
    public int ZPart, WholePart;
    public int Second, Third, Columns, FirstRuns, SecondRuns, ThirdRuns;

    public static SiteKind KindOf(Projection projection) => projection switch
    {
        < Projection.Output => SiteKind.Qkv,
        Projection.Output => SiteKind.Output,
        < Projection.Down => SiteKind.GateUp,
        _ => SiteKind.Down,
    };
}

internal enum FinishKind
{
    Nothing,
    Residual,
    Rope,
    SwiGlu,
    Plain,
}

[StructLayout(LayoutKind.Sequential)]
internal struct Finish
{
    public FinishKind Kind;
    public int Columns;
    public ulong X, Out, Squares, Weight;
    public int XStride, OutStride;
    public ulong Slots, Turns, QueryNorm, KeyNorm;
    public float Epsilon;
    public int Heads;
    public CacheLayout Cache;
}

[StructLayout(LayoutKind.Sequential)]
internal struct Op
{
    public ulong W, X;
    public int Outputs, Inputs, WStride, XStride, Blocks;
    private readonly int reserved;
    public ulong Rows, Tiles, Counters;
    public Sums Sums;
    public Site Site;
    public Finish Finish;
}

[StructLayout(LayoutKind.Sequential, Size = 2432)]
internal struct Chain
{
    public const int Most = 4;
    public FourMaps W, X;
    public FourOps Ops;
    public ulong Step, AdapterOf;
    public int Count, Stages;

    [InlineArray(Most)]
    internal struct FourMaps
    {
        private TensorMap first;
    }

    [InlineArray(Most)]
    internal struct FourOps
    {
        private Op first;
    }
}

[StructLayout(LayoutKind.Sequential)]
internal struct CacheLayout
{
    public ulong Keys, Values;
    public int BlockSize, KvHeads, HeadDim, DimStride;
}

[StructLayout(LayoutKind.Sequential)]
internal struct LogitsView
{
    public ulong Sums, PartsOfTile;
    public long PartStride;
    public int TileShift, Stride, Vocabulary;
    private readonly int reserved;
}
