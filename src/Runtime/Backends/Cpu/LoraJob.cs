using System.Runtime.CompilerServices;

namespace TenantLora.Runtime.Backends.Cpu;

/// <summary>Neighbouring rows of one adapter, few enough that their intermediates stay in L1.</summary>
internal readonly record struct LoraTile(CpuAdapter Adapter, int FirstRow, int Rows)
{
    public const int MostRows = 16;
}

/// <summary>
/// y[r, part] += scale·B·(A·x[r]), an item being a tile of rows and a part of the site, so rows of different adapters and q, k, v run
/// at once. Factors are read where they lie, once for all rows of a tile; what PRoLoRA rotates is where a chunk's r' sums are read,
/// never a matrix. The rank-r intermediate is fp32. An item costs as much as reading its factors: for one row of rank 16 on all
/// linears that is 2 % of the base model's bytes.
/// </summary>
internal readonly unsafe struct LoraJob<V>(CpuActivations x, LoraSite site, List<LoraTile> tiles, CpuActivations y, float* room, int maxRank) : IJob
    where V : struct, ILanes<V>
{
    /// <summary>Outputs of a tile of B: eight registers, as many sums as hide an FMA's latency with one row.</summary>
    public static int TileOutputs => 8 * V.Count;

    /// <summary>Floats of <c>room</c> for each worker: sums of one chunk, z twice over, and a tile of B.</summary>
    public static int RoomFor(int maxRank) => Lanes.RoundUp(maxRank * ((3 * LoraTile.MostRows) + TileOutputs));

    public void Run(int item, int worker)
    {
        var tile = tiles[item / site.Parts.Length];
        var (projection, column) = site.Parts[item % site.Parts.Length];
        if (tile.Adapter[site.Layer, projection] is not { } m) return;
        var sums = room + ((nint)worker * RoomFor(maxRank)); // (rows, r') of one chunk
        var z = sums + (maxRank * LoraTile.MostRows);                 // (rows, 2r'): z after z, so that every rotation is a run of r'
        var widened = z + (2 * maxRank * LoraTile.MostRows);          // (r', outputs of a tile)
        var from = x.Row(tile.FirstRow);
        var to = y.Row(tile.FirstRow) + column;
        if (m.SharedRank > 0)
        {
            Shrink(m.A, m.SharedRank, m.ChunksA, m.ChunkWidth, m.ShiftA, m, from, tile.Rows, sums, z);
            Expand(m.B, m.SharedRank, m.ChunksB, m.ChunkHeight, m.ShiftB, m.Outputs, z, tile.Rows, widened, to);
        }
        if (m.UnsharedRank > 0)
        {
            Shrink(m.AVec, m.UnsharedRank, 1, m.Inputs, 0, m, from, tile.Rows, sums, z);
            Expand(m.BVec, m.UnsharedRank, 1, m.Outputs, 0, m.Outputs, z, tile.Rows, widened, to);
        }
    }

    /// <summary>z[r, k] = scale·Σ_j V[(k + j·shift) mod rank, j], V[k, j] = Σ_t A[k, t]·x[r, j·width + t].</summary>
    private void Shrink(Factor a, int rank, int chunks, int width, int shift, CpuLora m, float* from, int rows, float* sums, float* z)
    {
        new Span<float>(z, rows * 2 * rank).Clear();
        for (var j = 0; j < chunks; j++)
        {
            var start = j * width;
            var length = Math.Min(width, m.Inputs - start);
            if (length <= 0) break;
            Dot(a, width, rank, from + start, rows, length, sums);
            var rotation = (int)((long)j * shift % rank);
            for (var r = 0; r < rows; r++)
                for (var k = 0; k < rank; k++)
                {
                    var rotated = k + rotation < rank ? k + rotation : k + rotation - rank;
                    z[(r * 2 * rank) + k] += sums[(r * rank) + rotated];
                }
        }
        for (var r = 0; r < rows; r++)
            for (var k = 0; k < rank; k++)
                z[(r * 2 * rank) + k] = z[(r * 2 * rank) + rank + k] = m.Scale * z[(r * 2 * rank) + k];
    }

    private void Dot(Factor a, int width, int rank, float* from, int rows, int length, float* sums)
    {
        switch (a.Type)
        {
            case DType.F32: Dots<V>.Run<StoredF32>(a.Data, width, rank, from, x.Cols, rows, length, sums, rank); break;
            case DType.F16: Dots<V>.Run<StoredF16>(a.Data, width, rank, from, x.Cols, rows, length, sums, rank); break;
            default: Dots<V>.Run<StoredBF16>(a.Data, width, rank, from, x.Cols, rows, length, sums, rank); break;
        }
    }

    private void Expand(Factor b, int rank, int chunks, int height, int shift, int outputs, float* z, int rows, float* widened, float* to)
    {
        switch (b.Type)
        {
            case DType.F32: Expand<StoredF32>(b.Data, rank, chunks, height, shift, outputs, z, rows, widened, to); break;
            case DType.F16: Expand<StoredF16>(b.Data, rank, chunks, height, shift, outputs, z, rows, widened, to); break;
            default: Expand<StoredBF16>(b.Data, rank, chunks, height, shift, outputs, z, rows, widened, to); break;
        }
    }

    /// <summary>y[r, i·height + t] += Σ_k B[t, k]·z[r, (k − i·shift) mod rank]; see <see cref="CpuAdapter"/> for how B lies.</summary>
    private void Expand<T>(byte* b, int rank, int chunks, int height, int shift, int outputs, float* z, int rows, float* widened, float* to) where T : struct, IStored
    {
        for (var t = 0; t < height; t += TileOutputs)
        {
            var width = CpuAdapter.TileWidth(height - t, TileOutputs, V.Count);
            if (chunks * rows <= 2) ExpandTile<T>(b, width, t, rank, chunks, height, shift, outputs, z, rows, to);
            else
            {
                Widen<T>(b, rank * width, widened); // once for all chunks and rows
                ExpandTile<StoredF32>((byte*)widened, width, t, rank, chunks, height, shift, outputs, z, rows, to);
            }
            b += rank * width * T.Size;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Widen<T>(byte* from, int count, float* to) where T : struct, IStored
    {
        for (var i = 0; i < count; i += V.Count) T.Load<V>(from + (i * T.Size)).Store(to + i);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void ExpandTile<T>(byte* b, int width, int t, int rank, int chunks, int height, int shift, int outputs, float* z, int rows, float* to) where T : struct, IStored
    {
        for (var i = 0; i < chunks; i++)
        {
            var start = (i * height) + t;
            var count = Math.Min(width, Math.Min(height - t, outputs - start));
            if (count <= 0) break;
            var rotated = z + ((rank - (int)((long)i * shift % rank)) % rank);
            for (var r = 0; r < rows; r++, rotated += 2 * rank)
            {
                var yr = to + ((nint)r * y.Cols) + start;
                if (count == TileOutputs) ExpandWhole<T>(b, rank, rotated, yr);
                else
                    for (var v = 0; v < count; v += V.Count) ExpandRegister<T>(b + (v * T.Size), width, rank, rotated, yr + v, Math.Min(V.Count, count - v));
            }
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void ExpandWhole<T>(byte* b, int rank, float* z, float* y) where T : struct, IStored
    {
        V s0 = default, s1 = default, s2 = default, s3 = default, s4 = default, s5 = default, s6 = default, s7 = default;
        for (var k = 0; k < rank; k++, b += TileOutputs * T.Size)
        {
            var zk = V.Broadcast(z[k]);
            s0 = V.MultiplyAdd(T.Load<V>(b), zk, s0);
            s1 = V.MultiplyAdd(T.Load<V>(b + (V.Count * T.Size)), zk, s1);
            s2 = V.MultiplyAdd(T.Load<V>(b + (2 * V.Count * T.Size)), zk, s2);
            s3 = V.MultiplyAdd(T.Load<V>(b + (3 * V.Count * T.Size)), zk, s3);
            s4 = V.MultiplyAdd(T.Load<V>(b + (4 * V.Count * T.Size)), zk, s4);
            s5 = V.MultiplyAdd(T.Load<V>(b + (5 * V.Count * T.Size)), zk, s5);
            s6 = V.MultiplyAdd(T.Load<V>(b + (6 * V.Count * T.Size)), zk, s6);
            s7 = V.MultiplyAdd(T.Load<V>(b + (7 * V.Count * T.Size)), zk, s7);
        }
        Add(0, s0); Add(1, s1); Add(2, s2); Add(3, s3); Add(4, s4); Add(5, s5); Add(6, s6); Add(7, s7);

        void Add(int i, V sum) => (V.Load(y + (i * V.Count)) + sum).Store(y + (i * V.Count));
    }

    /// <summary>One register of a tile, of which <paramref name="count"/> outputs exist.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void ExpandRegister<T>(byte* b, int width, int rank, float* z, float* y, int count) where T : struct, IStored
    {
        V sum = default;
        for (var k = 0; k < rank; k++, b += width * T.Size) sum = V.MultiplyAdd(T.Load<V>(b), V.Broadcast(z[k]), sum);
        if (count == V.Count) (V.Load(y) + sum).Store(y);
        else
        {
            var edge = stackalloc float[Lanes.Most];
            sum.Store(edge);
            for (var i = 0; i < count; i++) y[i] += edge[i];
        }
    }
}
