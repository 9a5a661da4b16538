using System.Runtime.CompilerServices;

namespace TenantLora.Runtime.Backends.Cpu;

/// <summary>y[r] = x[r] / sqrt(mean(x[r]²) + ε) · weight, an item being <c>itemRows</c> rows.</summary>
internal readonly unsafe struct RmsNormJob<V>(CpuActivations x, float* weight, float epsilon, CpuActivations y, int itemRows) : IJob
    where V : struct, ILanes<V>
{
    public void Run(int item, int worker)
    {
        for (var r = item * itemRows; r < Math.Min(x.Rows, (item + 1) * itemRows); r++) Normalise(x.Row(r), weight, x.Cols, epsilon, y.Row(r));
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Normalise(float* x, float* weight, int count, float epsilon, float* y)
    {
        V s0 = default, s1 = default;
        var i = 0;
        for (; i + (2 * V.Count) <= count; i += 2 * V.Count)
        {
            var a = V.Load(x + i);
            var b = V.Load(x + i + V.Count);
            s0 = V.MultiplyAdd(a, a, s0);
            s1 = V.MultiplyAdd(b, b, s1);
        }
        var sum = V.Sum(s0 + s1);
        for (; i < count; i++) sum = float.MultiplyAddEstimate(x[i], x[i], sum);

        var factor = 1 / MathF.Sqrt((sum / count) + epsilon);
        var factors = V.Broadcast(factor);
        for (i = 0; i + V.Count <= count; i += V.Count) (V.Load(x + i) * factors * V.Load(weight + i)).Store(y + i);
        for (; i < count; i++) y[i] = x[i] * factor * weight[i];
    }
}

/// <summary>y[r, i] = silu(gateUp[r, i])·gateUp[r, n + i], an item being <see cref="ItemCols"/> columns of a row.</summary>
internal readonly unsafe struct SwiGluJob<V>(CpuActivations gateUp, CpuActivations y) : IJob where V : struct, ILanes<V>
{
    private const int ItemCols = 2048;

    public int Items => y.Rows * ItemsOfRow;

    private int ItemsOfRow => (y.Cols + ItemCols - 1) / ItemCols;

    [SkipLocalsInit]
    public void Run(int item, int worker)
    {
        var row = item / ItemsOfRow;
        var first = item % ItemsOfRow * ItemCols;
        var count = Math.Min(ItemCols, y.Cols - first);
        float* gate = gateUp.Row(row) + first, up = gate + y.Cols, to = y.Row(row) + first;
        var whole = count - (count % V.Count);
        Multiply(gate, up, to, whole);
        if (whole == count) return;
        // The rest through a padded register, so that its exp is the same function.
        var edge = stackalloc float[3 * Lanes.Most];
        new Span<float>(edge, 3 * Lanes.Most).Clear();
        new ReadOnlySpan<float>(gate + whole, count - whole).CopyTo(new Span<float>(edge, Lanes.Most));
        new ReadOnlySpan<float>(up + whole, count - whole).CopyTo(new Span<float>(edge + Lanes.Most, Lanes.Most));
        Multiply(edge, edge + Lanes.Most, edge + (2 * Lanes.Most), V.Count);
        new ReadOnlySpan<float>(edge + (2 * Lanes.Most), count - whole).CopyTo(new Span<float>(to + whole, count - whole));
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Multiply(float* gate, float* up, float* to, int count)
    {
        var one = V.Broadcast(1);
        for (var i = 0; i < count; i += V.Count)
        {
            var g = V.Load(gate + i);
            (g / (one + V.Exp(default(V) - g)) * V.Load(up + i)).Store(to + i);
        }
    }
}

/// <summary>y += x over neighbouring values, an item being <see cref="ItemFloats"/> of them.</summary>
internal readonly unsafe struct AddJob<V>(CpuActivations x, CpuActivations y) : IJob where V : struct, ILanes<V>
{
    private const int ItemFloats = 16 * 1024;

    public int Items => (int)(((long)y.Rows * y.Cols + ItemFloats - 1) / ItemFloats);

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public void Run(int item, int worker)
    {
        var start = (nint)item * ItemFloats;
        var count = (int)Math.Min(ItemFloats, ((nint)y.Rows * y.Cols) - start);
        float* from = x.Data + start, to = y.Data + start;
        var i = 0;
        for (; i + V.Count <= count; i += V.Count) (V.Load(to + i) + V.Load(from + i)).Store(to + i);
        for (; i < count; i++) to[i] += from[i];
    }
}

/// <summary>Head norms, rotation and the way into the cache; an item is <c>itemRows</c> rows.</summary>
internal readonly unsafe struct RopeJob<V>(
    CpuActivations qkv, float* queryNorm, float* keyNorm, float epsilon, CpuKvCache cache, int layer, Batch batch, int itemRows) : IJob
    where V : struct, ILanes<V>
{
    public void Run(int item, int worker)
    {
        for (var r = item * itemRows; r < Math.Min(qkv.Rows, (item + 1) * itemRows); r++) Row(r);
    }

    private void Row(int row)
    {
        var shape = cache.Shape;
        var rope = cache.Rope(batch.Positions[row]);
        var head = qkv.Row(row);
        for (var h = 0; h < shape.Heads; h++, head += shape.HeadDim) NormaliseAndRotate(head, queryNorm, rope);

        var (block, within) = Math.DivRem(batch.Slots[row], cache.BlockSize);
        for (var h = 0; h < shape.KvHeads; h++, head += shape.HeadDim)
        {
            NormaliseAndRotate(head, keyNorm, rope);
            var keys = cache.Keys(layer, block, h) + within;
            for (var d = 0; d < shape.HeadDim; d++) keys[(nint)d * cache.PositionStride] = head[d];
        }
        for (var h = 0; h < shape.KvHeads; h++, head += shape.HeadDim)
        {
            var values = cache.Values(layer, block, h) + ((nint)within * cache.DimStride);
            new ReadOnlySpan<float>(head, shape.HeadDim).CopyTo(new Span<float>(values, shape.HeadDim));
        }
    }

    /// <summary>Pair (i, i + half) turns by the position's i-th angle; <paramref name="rope"/> has the cosines, then the sines.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void NormaliseAndRotate(float* head, float* norm, float* rope)
    {
        if (norm is not null) RmsNormJob<V>.Normalise(head, norm, cache.Shape.HeadDim, epsilon, head);
        var half = cache.Shape.HeadDim / 2;
        float* other = head + half, cos = rope, sin = rope + half;
        var i = 0;
        for (; i + V.Count <= half; i += V.Count)
        {
            V a = V.Load(head + i), b = V.Load(other + i), c = V.Load(cos + i), s = V.Load(sin + i);
            ((a * c) - (b * s)).Store(head + i);
            ((b * c) + (a * s)).Store(other + i);
        }
        for (; i < half; i++)
        {
            var (a, b) = (head[i], other[i]);
            head[i] = (a * cos[i]) - (b * sin[i]);
            other[i] = (b * cos[i]) + (a * sin[i]);
        }
    }
}
