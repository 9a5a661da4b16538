using System.Diagnostics;
using System.Runtime.InteropServices;

namespace TenantLora.Runtime.Backends.Cpu;

/// <summary>fp32 in the step's arena, rows after one another.</summary>
internal sealed unsafe class CpuActivations(float* data, int rows, int cols) : DeviceTensor(DType.F32, rows, cols)
{
    public float* Data { get; } = data;
    public float* Row(int row) => Data + ((nint)row * Cols);
}

/// <summary>Weights where they lie in the host's memory, in their stored type: parts stacked as rows of one matrix, nothing copied.</summary>
internal sealed unsafe class CpuWeights : DeviceTensor
{
    private readonly HostTensor[] parts;
    private readonly int[] starts;
    private float* vector;

    private CpuWeights(HostTensor[] parts, int rows, int cols) : base(parts[0].Type, rows, cols)
    {
        this.parts = parts;
        starts = new int[parts.Length];
        for (var i = 1; i < parts.Length; i++) starts[i] = starts[i - 1] + parts[i - 1].Rows;
    }

    public static CpuWeights Create(ReadOnlySpan<HostTensor> parts)
    {
        var rows = 0;
        foreach (var part in parts)
        {
            Debug.Assert(part.Type == parts[0].Type && (part.Cols == parts[0].Cols || part.Rows == 1));
            rows += part.Rows;
        }
        return new CpuWeights(parts.ToArray(), rows, parts[0].Cols);
    }

    public int Parts => parts.Length;

    /// <summary>The part's first row, its rows, and where they lie.</summary>
    public (int Start, int Rows, nint Data) Part(int part) => (starts[part], parts[part].Rows, (nint)parts[part].Data);

    public byte* Row(int row)
    {
        var part = parts.Length - 1;
        while (starts[part] > row) part--;
        return parts[part].Data + ((nint)(row - starts[part]) * Cols * Type.Size());
    }

    /// <summary>
    /// All values after one another as fp32, for norms and biases: a few kilobytes, widened once. Biases of stacked linears may come as
    /// one row each and of different lengths.
    /// </summary>
    public float* Vector(int length)
    {
        if (vector is not null) return vector;
        Debug.Assert(parts.Sum(p => p.Rows * p.Cols) == length);
        vector = (float*)NativeMemory.Alloc((nuint)length, sizeof(float));
        var to = vector;
        foreach (var part in parts)
        {
            var count = part.Rows * part.Cols;
            Stored.Widen(part.Type, part.Data, to, count);
            to += count;
        }
        return vector;
    }

    public override void Dispose()
    {
        NativeMemory.Free(vector);
        vector = null;
        base.Dispose();
    }
}

/// <summary>
/// Keys and values as fp32. For each layer, block and key-value head lie together: keys (headDim, <see cref="PositionStride"/>), position
/// last so that scores of neighbouring positions are one register, then values (blockSize, <see cref="DimStride"/>).
/// </summary>
internal sealed unsafe class CpuKvCache : KvCache
{
    private const int PagePositions = 256;
    private readonly List<nint> rope = [];
    private readonly nint headStride;
    private float* data;

    public CpuKvCache(int blocks, int blockSize, AttentionShape shape) : base(blocks, blockSize, shape)
    {
        PositionStride = Lanes.RoundUp(blockSize);
        DimStride = Lanes.RoundUp(shape.HeadDim);
        headStride = ((nint)shape.HeadDim * PositionStride) + ((nint)blockSize * DimStride);
        // Zeroed lazily by the system: a block that no sequence has used takes no memory.
        data = (float*)NativeMemory.AllocZeroed((nuint)headStride * (nuint)shape.Layers * (nuint)blocks * (nuint)shape.KvHeads, sizeof(float));
    }

    public int PositionStride { get; }
    public int DimStride { get; }

    public float* Keys(int layer, int block, int kvHead) => data + (((((nint)layer * Blocks) + block) * Shape.KvHeads) + kvHead) * headStride;
    public float* Values(int layer, int block, int kvHead) => Keys(layer, block, kvHead) + ((nint)Shape.HeadDim * PositionStride);

    /// <summary>Makes RoPE's tables reach up to <paramref name="positions"/>.</summary>
    public void ReachPosition(int positions)
    {
        while (rope.Count * PagePositions < positions) rope.Add((nint)MakeRopePage(rope.Count * PagePositions));
    }

    /// <summary>headDim / 2 cosines of position · inverse frequency, then as many sines.</summary>
    public float* Rope(int position) => (float*)rope[position / PagePositions] + (position % PagePositions * Shape.HeadDim);

    // Angles in fp32, as the reference computes them.
    private float* MakeRopePage(int first)
    {
        var half = Shape.HeadDim / 2;
        var page = (float*)NativeMemory.Alloc((nuint)(PagePositions * Shape.HeadDim), sizeof(float));
        for (var p = 0; p < PagePositions; p++)
            for (var i = 0; i < half; i++)
                (page[(p * 2 * half) + half + i], page[(p * 2 * half) + i]) = MathF.SinCos((first + p) * Shape.InverseFrequencies[i]);
        return page;
    }

    public override void Dispose()
    {
        foreach (var page in rope) NativeMemory.Free((void*)page);
        rope.Clear();
        NativeMemory.Free(data);
        data = null;
    }
}
