using System.Runtime.CompilerServices;

namespace TenantLora.Runtime.Backends.Cpu;

/// <summary>Rows of one sequence that are attended together.</summary>
internal readonly record struct AttendTile(int[] Blocks, int FirstRow, int Rows, int FirstPosition)
{
    public const int MostRows = 8;
}

/// <summary>
/// Attention over cached blocks where they lie, an item being a tile of rows and a key-value head. Four queries (heads that share the
/// keys, then neighbouring rows) go over the cache together: scores of all positions first, then softmax, then the values, so a sum's
/// order is that of the positions and knows nothing of prompt chunks or of where blocks lie.
/// </summary>
internal readonly unsafe struct AttendJob<V>(
    CpuActivations qkv, CpuKvCache cache, int layer, List<AttendTile> tiles, CpuActivations y, float* room, int maxBlocks) : IJob
    where V : struct, ILanes<V>
{
    private const int Queries = 4;

    /// <summary>Floats of <c>room</c> for each worker: scores, and sums of values.</summary>
    public static nint RoomFor(CpuKvCache cache, int maxBlocks) => Queries * (((nint)maxBlocks * cache.PositionStride) + cache.DimStride);

    public void Run(int item, int worker)
    {
        var shape = cache.Shape;
        var tile = tiles[item / shape.KvHeads];
        var kvHead = item % shape.KvHeads;
        var group = shape.Heads / shape.KvHeads;
        var scores = room + (worker * RoomFor(cache, maxBlocks));
        for (var first = 0; first < tile.Rows * group; first += Queries)
            Attend(tile, kvHead, group, first, Math.Min(Queries, (tile.Rows * group) - first), scores);
    }

    /// <summary>Queries first … first + count − 1 of the tile, counted over rows and, within a row, over the heads of the group.</summary>
    private void Attend(AttendTile tile, int kvHead, int group, int first, int count, float* room)
    {
        var shape = cache.Shape;
        var scoreStride = (nint)maxBlocks * cache.PositionStride;
        var window = shape.Windows[layer] > 0 ? shape.Windows[layer] : int.MaxValue;
        var q = stackalloc float*[Queries];
        var scores = stackalloc float*[Queries];
        var sums = stackalloc float*[Queries];
        var from = stackalloc int[Queries];
        var to = stackalloc int[Queries]; // exclusive
        for (var i = 0; i < Queries; i++)
        {
            var query = first + Math.Min(i, count - 1); // fewer than four: the last again, whose results are the same
            var position = tile.FirstPosition + (query / group);
            q[i] = qkv.Row(tile.FirstRow + (query / group)) + (((kvHead * group) + (query % group)) * shape.HeadDim);
            scores[i] = room + (Math.Min(i, count - 1) * scoreStride);
            sums[i] = room + (Queries * scoreStride) + (Math.Min(i, count - 1) * cache.DimStride);
            from[i] = Math.Max(0, position - window + 1);
            to[i] = position + 1;
        }
        // Rows ascend, so the first query sees furthest back and the last furthest ahead.
        int firstBlock = from[0] / cache.BlockSize, endBlock = ((to[Queries - 1] - 1) / cache.BlockSize) + 1;
        for (var b = firstBlock; b < endBlock; b++)
            Score(q, cache.Keys(layer, tile.Blocks[b], kvHead), scores, (nint)b * cache.PositionStride);
        for (var i = 0; i < count; i++) Softmax(scores[i], firstBlock, endBlock, from[i], to[i]);

        new Span<float>(sums[0], count * cache.DimStride).Clear();
        for (var b = firstBlock; b < endBlock; b++)
        {
            var start = b * cache.BlockSize;
            var end = start + cache.BlockSize;
            var values = cache.Values(layer, tile.Blocks[b], kvHead);
            var at = (nint)b * cache.PositionStride;
            if (from[Queries - 1] <= start && end <= to[0])
                Mix(scores[0] + at, scores[1] + at, scores[2] + at, scores[3] + at, values, 0, cache.BlockSize, sums[0], sums[1], sums[2], sums[3]);
            else
                // At the edges each query has its own range: a weight of zero would still let a NaN beyond it through.
                for (var i = 0; i < count; i++)
                    Mix(scores[i] + at, scores[i] + at, scores[i] + at, scores[i] + at, values,
                        Math.Max(from[i] - start, 0), Math.Min(to[i] - start, cache.BlockSize), sums[i], sums[i], sums[i], sums[i]);
        }
        for (var i = 0; i < count; i++)
        {
            var (row, head) = (tile.FirstRow + ((first + i) / group), (kvHead * group) + ((first + i) % group));
            new ReadOnlySpan<float>(sums[i], shape.HeadDim).CopyTo(new Span<float>(y.Row(row) + (head * shape.HeadDim), shape.HeadDim));
        }
    }

    /// <summary>scores[i, at + p] = q[i]·k[p] / sqrt(headDim) for the block's positions; what lies behind its last is not looked at.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void Score(float** q, float* keys, float** scores, nint at)
    {
        float* q0 = q[0], q1 = q[1], q2 = q[2], q3 = q[3];
        var scale = V.Broadcast(1 / MathF.Sqrt(cache.Shape.HeadDim));
        var stride = cache.PositionStride;
        for (var p = 0; p < stride; p += 2 * V.Count)
        {
            V s00 = default, s01 = default, s10 = default, s11 = default, s20 = default, s21 = default, s30 = default, s31 = default;
            var k = keys + p;
            var second = p + V.Count < stride ? V.Count : 0; // 16 lanes and one register of positions: it is computed twice
            for (var d = 0; d < cache.Shape.HeadDim; d++, k += stride)
            {
                var k0 = V.Load(k);
                var k1 = V.Load(k + second);
                var qd = V.Broadcast(q0[d]);
                s00 = V.MultiplyAdd(qd, k0, s00);
                s01 = V.MultiplyAdd(qd, k1, s01);
                qd = V.Broadcast(q1[d]);
                s10 = V.MultiplyAdd(qd, k0, s10);
                s11 = V.MultiplyAdd(qd, k1, s11);
                qd = V.Broadcast(q2[d]);
                s20 = V.MultiplyAdd(qd, k0, s20);
                s21 = V.MultiplyAdd(qd, k1, s21);
                qd = V.Broadcast(q3[d]);
                s30 = V.MultiplyAdd(qd, k0, s30);
                s31 = V.MultiplyAdd(qd, k1, s31);
            }
            Keep(scores[0] + at + p, s00, s01);
            Keep(scores[1] + at + p, s10, s11);
            Keep(scores[2] + at + p, s20, s21);
            Keep(scores[3] + at + p, s30, s31);

            void Keep(float* to, V a, V b)
            {
                (a * scale).Store(to);
                (b * scale).Store(to + second);
            }
        }
    }

    /// <summary>Scores of positions from … to − 1 become weights that add up to 1; everything else in the blocks becomes 0.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void Softmax(float* scores, int firstBlock, int endBlock, int from, int to)
    {
        var stride = cache.PositionStride;
        var start = scores + ((nint)firstBlock * stride);
        var end = scores + ((nint)endBlock * stride);
        for (var b = firstBlock; b < endBlock; b++)
        {
            // Positions of the block that count; all of them but at the edges.
            var first = Math.Max(from - (b * cache.BlockSize), 0);
            var last = Math.Min(to - (b * cache.BlockSize), cache.BlockSize);
            var block = scores + ((nint)b * stride);
            for (var p = 0; p < Math.Min(first, stride); p++) block[p] = float.NegativeInfinity;
            for (var p = Math.Max(last, 0); p < stride; p++) block[p] = float.NegativeInfinity;
        }

        var max = V.Load(start);
        for (var s = start + V.Count; s < end; s += V.Count) max = V.Max(max, V.Load(s));
        var lanes = stackalloc float[Lanes.Most];
        max.Store(lanes);
        for (var i = 1; i < V.Count; i++) lanes[0] = MathF.Max(lanes[0], lanes[i]);
        max = V.Broadcast(lanes[0]);

        V sum = default;
        for (var s = start; s < end; s += V.Count)
        {
            var e = V.Exp(V.Load(s) - max);
            e.Store(s);
            sum += e;
        }
        var share = V.Broadcast(1 / V.Sum(sum));
        for (var s = start; s < end; s += V.Count) (V.Load(s) * share).Store(s);
    }

    /// <summary>sums[i, d] += Σ_p weight[i, p]·v[p, d] over positions first … end − 1 of a block, in order.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void Mix(float* w0, float* w1, float* w2, float* w3, float* values, int first, int end, float* y0, float* y1, float* y2, float* y3)
    {
        var stride = cache.DimStride;
        for (var d = 0; d < stride; d += 2 * V.Count)
        {
            var second = d + V.Count < stride ? d + V.Count : d;
            V s00 = V.Load(y0 + d), s01 = V.Load(y0 + second), s10 = V.Load(y1 + d), s11 = V.Load(y1 + second);
            V s20 = V.Load(y2 + d), s21 = V.Load(y2 + second), s30 = V.Load(y3 + d), s31 = V.Load(y3 + second);
            for (var p = first; p < end; p++)
            {
                var v0 = V.Load(values + (p * stride) + d);
                var v1 = V.Load(values + (p * stride) + second);
                var w = V.Broadcast(w0[p]);
                s00 = V.MultiplyAdd(w, v0, s00);
                s01 = V.MultiplyAdd(w, v1, s01);
                w = V.Broadcast(w1[p]);
                s10 = V.MultiplyAdd(w, v0, s10);
                s11 = V.MultiplyAdd(w, v1, s11);
                w = V.Broadcast(w2[p]);
                s20 = V.MultiplyAdd(w, v0, s20);
                s21 = V.MultiplyAdd(w, v1, s21);
                w = V.Broadcast(w3[p]);
                s30 = V.MultiplyAdd(w, v0, s30);
                s31 = V.MultiplyAdd(w, v1, s31);
            }
            s00.Store(y0 + d);
            s10.Store(y1 + d);
            s20.Store(y2 + d);
            s30.Store(y3 + d);
            s01.Store(y0 + second);
            s11.Store(y1 + second);
            s21.Store(y2 + second);
            s31.Store(y3 + second);
        }
    }
}
