using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;

namespace TenantLora.Runtime.Backends.Cpu;

/// <summary>
/// y[r, o] = Σ_k w[o, k]·x[r, k]: the arithmetic under Linear and under LoRA's shrink.
/// <para>
/// Every y has one register of partial sums that walks k in order, lane by lane, whatever tile computes it; then the lanes are added
/// in a fixed order, then what k leaves over a whole register, one by one. So a row's result has the same bits in every batch, and
/// parallelism comes from the tile: 12 independent sums are what two FMA units of four or five cycles need, and with 3 weights and a
/// row they fit AVX2's 16 registers.
/// </para>
/// </summary>
internal static unsafe class Dots<V> where V : struct, ILanes<V>
{
    private const int TileOutputs = 3;
    private const int TileRows = 4;

    // Many rows: weights are widened once per panel, into L1, and used by a block of rows from there.
    public const int PanelOutputs = 4 * TileOutputs;
    private const int PanelDepth = 512;
    private const int BlockRows = 64;
    private const int CacheLine = 64;

    private static int TileFloats => TileOutputs * TileRows * V.Count;

    /// <summary>Strides in elements. Reads exactly w[.., 0..k) and x[.., 0..k).</summary>
    public static void Run<T>(byte* w, nint wStride, int outputs, float* x, nint xStride, int rows, int k, float* y, nint yStride) where T : struct, IStored
    {
        if (rows == 1) OneRow<T>(w, wStride, outputs, x, k, y);
        else if (rows <= TileRows) FewRows<T>(w, wStride, outputs, x, xStride, rows, k, y, yStride);
        else
            for (var r = 0; r < rows; r += BlockRows)
                ManyRows<T>(w, wStride, outputs, x + (r * xStride), xStride, Math.Min(BlockRows, rows - r), k, y + (r * yStride), yStride);
    }

    /// <summary>Decoding alone: bound by reading w, so four weight rows stream at once.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void OneRow<T>(byte* w, nint wStride, int outputs, float* x, int k, float* y) where T : struct, IStored
    {
        var whole = k - (k % V.Count);
        for (var o = 0; o < outputs; o += 4)
        {
            // Tiles that reach over the edge compute the last output again.
            int last = outputs - 1, o1 = Math.Min(o + 1, last), o2 = Math.Min(o + 2, last), o3 = Math.Min(o + 3, last);
            byte* w0 = w + (o * wStride * T.Size), w1 = w + (o1 * wStride * T.Size), w2 = w + (o2 * wStride * T.Size), w3 = w + (o3 * wStride * T.Size);
            V s0 = default, s1 = default, s2 = default, s3 = default;
            for (var i = 0; i < whole; i += V.Count)
            {
                var xi = V.Load(x + i);
                s0 = V.MultiplyAdd(T.Load<V>(w0 + (i * T.Size)), xi, s0);
                s1 = V.MultiplyAdd(T.Load<V>(w1 + (i * T.Size)), xi, s1);
                s2 = V.MultiplyAdd(T.Load<V>(w2 + (i * T.Size)), xi, s2);
                s3 = V.MultiplyAdd(T.Load<V>(w3 + (i * T.Size)), xi, s3);
            }
            y[o] = Finish<T>(s0, w0, x, whole, k);
            y[o1] = Finish<T>(s1, w1, x, whole, k);
            y[o2] = Finish<T>(s2, w2, x, whole, k);
            y[o3] = Finish<T>(s3, w3, x, whole, k);
        }
    }

    /// <summary>Up to a tile of rows, straight from the stored weights.</summary>
    [SkipLocalsInit, MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void FewRows<T>(byte* w, nint wStride, int outputs, float* x, nint xStride, int rows, int k, float* y, nint yStride) where T : struct, IStored
    {
        var whole = k - (k % V.Count);
        var sums = stackalloc float[TileFloats];
        for (var o = 0; o < outputs; o += TileOutputs)
        {
            var count = Math.Min(TileOutputs, outputs - o);
            var tile = w + (o * wStride * T.Size);
            new Span<float>(sums, TileFloats).Clear();
            Tile<T>(tile, wStride, count, x, xStride, rows, whole, sums);
            FinishTile<T>(sums, tile, wStride, count, x, xStride, rows, whole, k, y + o, yStride);
        }
    }

    [SkipLocalsInit, MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void ManyRows<T>(byte* w, nint wStride, int outputs, float* x, nint xStride, int rows, int k, float* y, nint yStride) where T : struct, IStored
    {
        var whole = k - (k % V.Count);
        var rowTiles = (rows + TileRows - 1) / TileRows;
        var panelRoom = stackalloc float[(PanelOutputs * PanelDepth) + (CacheLine / sizeof(float))];
        var panel = (float*)(((nint)panelRoom + CacheLine - 1) & -CacheLine);
        var sums = stackalloc float[rowTiles * (PanelOutputs / TileOutputs) * TileFloats]; // [row tile, output tile]
        for (var o = 0; o < outputs; o += PanelOutputs)
        {
            var count = Math.Min(PanelOutputs, outputs - o);
            var panelWeights = w + (o * wStride * T.Size);
            new Span<float>(sums, rowTiles * (PanelOutputs / TileOutputs) * TileFloats).Clear();
            for (var i = 0; i < whole; i += PanelDepth)
            {
                var depth = Math.Min(PanelDepth, whole - i);
                Widen<T>(panelWeights + (i * T.Size), wStride, count, depth, panel);
                // While this panel is worked on, the next one comes from memory, a share with each tile of rows.
                var more = i + PanelDepth < whole;
                var next = more ? panelWeights + ((i + PanelDepth) * T.Size) : panelWeights + (PanelOutputs * wStride * T.Size);
                var nextCount = more ? count : Math.Min(PanelOutputs, outputs - o - PanelOutputs);
                var nextDepth = Math.Min(PanelDepth, more ? whole - i - PanelDepth : whole);
                var tileSums = sums;
                for (var r = 0; r < rowTiles; r++)
                {
                    Prefetch<T>(next, wStride, r * nextCount / rowTiles, (r + 1) * nextCount / rowTiles, nextDepth);
                    for (var p = 0; p < count; p += TileOutputs, tileSums += TileFloats)
                        Tile<StoredF32>((byte*)(panel + (p * PanelDepth)), PanelDepth, Math.Min(TileOutputs, count - p),
                            x + (r * TileRows * xStride) + i, xStride, Math.Min(TileRows, rows - (r * TileRows)), depth, tileSums);
                }
            }
            var finished = sums;
            for (var r = 0; r < rows; r += TileRows)
                for (var p = 0; p < count; p += TileOutputs, finished += TileFloats)
                    FinishTile<T>(finished, panelWeights + (p * wStride * T.Size), wStride, Math.Min(TileOutputs, count - p),
                        x + (r * xStride), xStride, Math.Min(TileRows, rows - r), whole, k, y + (r * yStride) + o + p, yStride);
        }
    }

    /// <summary>Rows first … end − 1 of a panel of weights on their way into L2; what the hardware foresees ends with each row's run. A hint, never a fault.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Prefetch<T>(byte* w, nint wStride, int first, int end, int depth) where T : struct, IStored
    {
        if (!Sse.IsSupported) return;
        for (var o = first; o < end; o++)
            for (var i = 0; i < depth * T.Size; i += CacheLine)
                Sse.Prefetch1(w + (o * wStride * T.Size) + i);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Widen<T>(byte* w, nint wStride, int outputs, int depth, float* panel) where T : struct, IStored
    {
        for (var o = 0; o < outputs; o++, w += wStride * T.Size, panel += PanelDepth)
            for (var i = 0; i < depth; i += V.Count)
                T.Load<V>(w + (i * T.Size)).Store(panel + i);
    }

    /// <summary>
    /// Carries 3×4 sums on over <paramref name="depth"/> values of k, a multiple of the lanes. Fewer outputs or rows than a tile: the
    /// last is computed again and what it gives is not looked at.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Tile<T>(byte* w, nint wStride, int outputs, float* x, nint xStride, int rows, int depth, float* sums) where T : struct, IStored
    {
        byte* w0 = w, w1 = w + (Math.Min(1, outputs - 1) * wStride * T.Size), w2 = w + (Math.Min(2, outputs - 1) * wStride * T.Size);
        float* x0 = x, x1 = x + (Math.Min(1, rows - 1) * xStride), x2 = x + (Math.Min(2, rows - 1) * xStride), x3 = x + (Math.Min(3, rows - 1) * xStride);
        V s00 = Sum(0), s01 = Sum(1), s02 = Sum(2), s10 = Sum(3), s11 = Sum(4), s12 = Sum(5);
        V s20 = Sum(6), s21 = Sum(7), s22 = Sum(8), s30 = Sum(9), s31 = Sum(10), s32 = Sum(11);
        for (var i = 0; i < depth; i += V.Count)
        {
            var v0 = T.Load<V>(w0 + (i * T.Size));
            var v1 = T.Load<V>(w1 + (i * T.Size));
            var v2 = T.Load<V>(w2 + (i * T.Size));
            var xi = V.Load(x0 + i);
            s00 = V.MultiplyAdd(v0, xi, s00);
            s01 = V.MultiplyAdd(v1, xi, s01);
            s02 = V.MultiplyAdd(v2, xi, s02);
            xi = V.Load(x1 + i);
            s10 = V.MultiplyAdd(v0, xi, s10);
            s11 = V.MultiplyAdd(v1, xi, s11);
            s12 = V.MultiplyAdd(v2, xi, s12);
            xi = V.Load(x2 + i);
            s20 = V.MultiplyAdd(v0, xi, s20);
            s21 = V.MultiplyAdd(v1, xi, s21);
            s22 = V.MultiplyAdd(v2, xi, s22);
            xi = V.Load(x3 + i);
            s30 = V.MultiplyAdd(v0, xi, s30);
            s31 = V.MultiplyAdd(v1, xi, s31);
            s32 = V.MultiplyAdd(v2, xi, s32);
        }
        Keep(0, s00); Keep(1, s01); Keep(2, s02); Keep(3, s10); Keep(4, s11); Keep(5, s12);
        Keep(6, s20); Keep(7, s21); Keep(8, s22); Keep(9, s30); Keep(10, s31); Keep(11, s32);

        V Sum(int i) => V.Load(sums + (i * V.Count));
        void Keep(int i, V sum) => sum.Store(sums + (i * V.Count));
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void FinishTile<T>(float* sums, byte* w, nint wStride, int outputs, float* x, nint xStride, int rows, int whole, int k, float* y, nint yStride) where T : struct, IStored
    {
        for (var r = 0; r < rows; r++)
            for (var o = 0; o < outputs; o++)
                y[(r * yStride) + o] = Finish<T>(V.Load(sums + (((r * TileOutputs) + o) * V.Count)), w + (o * wStride * T.Size), x + (r * xStride), whole, k);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Finish<T>(V sums, byte* w, float* x, int whole, int k) where T : struct, IStored
    {
        var sum = V.Sum(sums);
        for (var i = whole; i < k; i++) sum = float.MultiplyAddEstimate(T.Load(w + (i * T.Size)), x[i], sum);
        return sum;
    }
}
