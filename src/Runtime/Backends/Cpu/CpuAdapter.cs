using System.Runtime.InteropServices;

namespace TenantLora.Runtime.Backends.Cpu;

/// <summary>
/// An adapter's compact factors in one piece of memory, in their stored types, so that unloading gives it all back. A and A_vec lie as
/// in the file. B and B_vec are turned into tiles of outputs, for each tile rank rows of so many, so that expanding reads one straight
/// stream of whole registers; the last tile is narrower, and its last register filled up with zeros.
/// </summary>
internal sealed unsafe class CpuAdapter : DeviceAdapter
{
    private readonly CpuLora?[] modules;
    private byte* data;

    public CpuAdapter(LoraModules source, int tileOutputs, int lanes)
    {
        modules = new CpuLora?[source.Layers * 7];
        Bytes = SizeOf(source, lanes);
        data = (byte*)NativeMemory.AlignedAlloc((nuint)Math.Max(Bytes, 1), Alignment);
        var free = data;
        for (var layer = 0; layer < source.Layers; layer++)
            for (var projection = Projection.Query; projection <= Projection.Down; projection++)
            {
                if (source[layer, projection] is not { } m) continue;
                var rank = m.SharedRank;
                modules[(layer * 7) + (int)projection] = new CpuLora(m)
                {
                    A = Copy(m.A, ref free),
                    B = Tile(m.B, m.ChunkHeight, rank, outputStride: rank, rankStride: 1, tileOutputs, lanes, ref free),
                    AVec = Copy(m.AVec, ref free),
                    BVec = Tile(m.BVec, m.Outputs, m.UnsharedRank, outputStride: 1, rankStride: m.Outputs, tileOutputs, lanes, ref free),
                };
                MaxRank = Math.Max(MaxRank, Math.Max(rank, m.UnsharedRank));
            }
    }

    private const int Alignment = 64;

    public override long Bytes { get; }

    /// <summary>The highest shared or unshared rank of any module.</summary>
    public int MaxRank { get; }

    public CpuLora? this[int layer, Projection projection] => modules[(layer * 7) + (int)projection];

    public static long SizeOf(LoraModules source, int lanes) => source.All.Sum(m =>
        Size(m.A) + TiledSize(m.B, m.ChunkHeight, m.SharedRank, lanes) + Size(m.AVec) + TiledSize(m.BVec, m.Outputs, m.UnsharedRank, lanes));

    /// <summary>Outputs in a tile, given how many are left from its first.</summary>
    public static int TileWidth(int left, int tileOutputs, int lanes) => Math.Min(tileOutputs, RoundUp(left, lanes));

    private static long Size(HostTensor? tensor) => Align(tensor?.Bytes ?? 0);

    private static long TiledSize(HostTensor? tensor, int outputs, int rank, int lanes) =>
        tensor is null ? 0 : Align((long)RoundUp(outputs, lanes) * rank * tensor.Type.Size());

    private static int RoundUp(int count, int to) => (count + to - 1) / to * to;

    private static long Align(long bytes) => (bytes + Alignment - 1) & -Alignment;

    private static Factor Copy(HostTensor? tensor, ref byte* free)
    {
        if (tensor is null) return default;
        var to = free;
        Buffer.MemoryCopy(tensor.Data, to, tensor.Bytes, tensor.Bytes);
        free += Size(tensor);
        return new Factor(to, tensor.Type);
    }

    private static Factor Tile(
        HostTensor? tensor, int outputs, int rank, int outputStride, int rankStride, int tileOutputs, int lanes, ref byte* free)
    {
        if (tensor is null) return default;
        var to = free;
        free += TiledSize(tensor, outputs, rank, lanes);
        new Span<byte>(to, (int)(free - to)).Clear();
        var size = tensor.Type.Size();
        for (var o = 0; o < outputs; o++)
        {
            var first = o / tileOutputs * tileOutputs;
            var width = TileWidth(outputs - first, tileOutputs, lanes);
            for (var k = 0; k < rank; k++)
            {
                var cell = to + (((nint)first * rank) + ((nint)k * width) + (o - first)) * size;
                var from = tensor.Data + (((nint)o * outputStride) + ((nint)k * rankStride)) * size;
                if (size == 4) *(uint*)cell = *(uint*)from;
                else *(ushort*)cell = *(ushort*)from;
            }
        }
        return new Factor(to, tensor.Type);
    }

    public override void Dispose()
    {
        NativeMemory.AlignedFree(data);
        data = null;
    }
}

/// <summary>Where a factor lies; no data means the module lacks it.</summary>
internal readonly unsafe struct Factor(byte* data, DType type)
{
    public readonly byte* Data = data;
    public readonly DType Type = type;
}

/// <summary>One adapted linear: the geometry of <see cref="LoraModule"/> and its factors as <see cref="CpuAdapter"/> lays them out.</summary>
internal sealed class CpuLora(LoraModule m)
{
    public readonly int Inputs = m.Inputs, Outputs = m.Outputs;
    public readonly int ChunksA = m.ChunksA, ChunksB = m.ChunksB;
    public readonly int ChunkWidth = m.ChunkWidth, ChunkHeight = m.ChunkHeight;
    public readonly int ShiftA = m.ShiftA, ShiftB = m.ShiftB;
    public readonly int SharedRank = m.SharedRank, UnsharedRank = m.UnsharedRank;
    public readonly float Scale = m.Scale;
    public Factor A, B, AVec, BVec;
}
