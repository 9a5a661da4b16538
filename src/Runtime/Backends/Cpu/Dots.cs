using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;

namespace TenantLora.Runtime.Backends.Cpu;

/// <summary>
/// y[r, o] = Σ_k w[o, k]·x[r, k]: the arithmetic under Linear and under LoRA's shrink.
/// <para>
/// Every y has one register of partial sums that walks k in order, whatever tile computes it; then its lanes are added in a fixed order,
/// then what k leaves over a whole register, one by one. So a row's result has the same bits in every batch, and parallelism comes from
/// the tile: 3 outputs × 4 rows are 12 independent sums, more than two FMA units of four cycles need, and with 3 weights and a row they
/// fill AVX2's 16 registers. Weights are widened in each tile anew: doing it once per panel of fp32 was slower at every number of rows.
/// </para>
/// </summary>
internal static unsafe class Dots<V> where V : struct, ILanes<V>
{
    private const int TileOutputs = 3;
    private const int TileRows = 4;
    private const int LoneOutputs = 4;

    /// <summary>Rows that pass over a tile of weights before the next one: their x (hidden 2048: 256 KB) stays in L2, the weights in L1.</summary>
    private const int BlockRows = 32;

    /// <summary>Outputs that both kinds of tile divide evenly.</summary>
    public const int EvenOutputs = TileOutputs * LoneOutputs;

    /// <summary>Strides in elements. Reads exactly w[.., 0..k) and x[.., 0..k).</summary>
    public static void Run<T>(byte* w, nint wStride, int outputs, float* x, nint xStride, int rows, int k, float* y, nint yStride)
        where T : struct, IStored
    {
        if (rows == 1) LoneRow<T>(w, wStride, outputs, x, k, y);
        else
            for (var r = 0; r < rows; r += BlockRows)
                Block<T>(w, wStride, outputs, x + (r * xStride), xStride, Math.Min(BlockRows, rows - r), k, y + (r * yStride), yStride);
    }

    /// <summary>Decoding alone: bound by reading w, so four of its rows stream at once.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void LoneRow<T>(byte* w, nint wStride, int outputs, float* x, int k, float* y) where T : struct, IStored
    {
        var whole = k - (k % V.Count);
        var next = LoneOutputs * wStride * T.Size;
        for (var o = 0; o < outputs; o += LoneOutputs)
        {
            // A tile that reaches over the edge computes the last output again.
            int last = outputs - 1, o1 = Math.Min(o + 1, last), o2 = Math.Min(o + 2, last), o3 = Math.Min(o + 3, last);
            byte* w0 = w + (o * wStride * T.Size), w1 = w + (o1 * wStride * T.Size);
            byte* w2 = w + (o2 * wStride * T.Size), w3 = w + (o3 * wStride * T.Size);
            V s0 = default, s1 = default, s2 = default, s3 = default;
            for (var i = 0; i < whole; i += V.Count)
            {
                Prefetch(w0 + next + (i * T.Size));
                Prefetch(w1 + next + (i * T.Size));
                Prefetch(w2 + next + (i * T.Size));
                Prefetch(w3 + next + (i * T.Size));
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

    /// <summary>All outputs for a block of rows: each tile of weights comes from memory once, with the first four rows.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Block<T>(byte* w, nint wStride, int outputs, float* x, nint xStride, int rows, int k, float* y, nint yStride)
        where T : struct, IStored
    {
        for (var o = 0; o < outputs; o += TileOutputs)
            for (var r = 0; r < rows; r += TileRows)
                Tile<T>(w + (o * wStride * T.Size), wStride, Math.Min(TileOutputs, outputs - o), x + (r * xStride), xStride,
                    Math.Min(TileRows, rows - r), k, y + (r * yStride) + o, yStride, fromMemory: r == 0);
    }

    /// <summary>Three outputs of four rows. Of fewer outputs or rows the last is computed again, and that is not looked at.</summary>
    [SkipLocalsInit, MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Tile<T>(
        byte* w, nint wStride, int outputs, float* x, nint xStride, int rows, int k, float* y, nint yStride, bool fromMemory)
        where T : struct, IStored
    {
        var whole = k - (k % V.Count);
        var next = TileOutputs * wStride * T.Size;
        byte* w0 = w, w1 = w + (Math.Min(1, outputs - 1) * wStride * T.Size), w2 = w + (Math.Min(2, outputs - 1) * wStride * T.Size);
        float* x0 = x, x1 = x + (Math.Min(1, rows - 1) * xStride);
        float* x2 = x + (Math.Min(2, rows - 1) * xStride), x3 = x + (Math.Min(3, rows - 1) * xStride);
        V s00 = default, s01 = default, s02 = default, s10 = default, s11 = default, s12 = default;
        V s20 = default, s21 = default, s22 = default, s30 = default, s31 = default, s32 = default;
        for (var i = 0; i < whole; i += V.Count)
        {
            if (fromMemory)
            {
                Prefetch(w0 + next + (i * T.Size));
                Prefetch(w1 + next + (i * T.Size));
                Prefetch(w2 + next + (i * T.Size));
            }
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
        var sums = stackalloc float[TileOutputs * TileRows * Lanes.Most];
        Keep(0, s00); Keep(1, s01); Keep(2, s02); Keep(3, s10); Keep(4, s11); Keep(5, s12);
        Keep(6, s20); Keep(7, s21); Keep(8, s22); Keep(9, s30); Keep(10, s31); Keep(11, s32);
        for (var r = 0; r < rows; r++)
            for (var o = 0; o < outputs; o++)
            {
                var sum = V.Load(sums + (((r * TileOutputs) + o) * V.Count));
                y[(r * yStride) + o] = Finish<T>(sum, w + (o * wStride * T.Size), x + (r * xStride), whole, k);
            }

        void Keep(int i, V sum) => sum.Store(sums + (i * V.Count));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Finish<T>(V sums, byte* w, float* x, int whole, int k) where T : struct, IStored
    {
        var sum = V.Sum(sums);
        for (var i = whole; i < k; i++) sum = float.MultiplyAddEstimate(T.Load(w + (i * T.Size)), x[i], sum);
        return sum;
    }

    /// <summary>
    /// What the hardware foresees ends with each page, and a row of weights is about one: so the next tile is asked for while this one is
    /// worked on. Rows of 4 KB from memory on one Zen 3 core: 15 % faster with one row of x, 30 % with four. A hint: beyond the end it
    /// does nothing.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Prefetch(byte* address)
    {
        if (Sse.IsSupported) Sse.Prefetch0(address);
    }
}
