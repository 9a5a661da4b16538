namespace TenantLora.Runtime.Backends;

/// <summary>Types in which weights are stored.</summary>
internal enum DType
{
    F32,
    F16,
    BF16,
}

/// <summary>What scratch holds.</summary>
internal enum Precision
{
    /// <summary>fp32: the residual stream, sums, logits.</summary>
    Full,

    /// <summary>What a Linear multiplies: a backend may round it to the type of the weights.</summary>
    Operand,
}

internal static class DTypes
{
    public static int Size(this DType type) => type == DType.F32 ? 4 : 2;
}

/// <summary>
/// A row-major matrix in host memory, usually a mapped file: never copied, read where it lies. A vector has one row.
/// <paramref name="owner"/> keeps the memory alive as long as this object lives. Addressed by pointer since a span ends at 2 GiB.
/// </summary>
internal sealed unsafe class HostTensor(string name, DType type, int rows, int cols, byte* data, object owner)
{
    public string Name { get; } = name;
    public DType Type { get; } = type;
    public int Rows { get; } = rows;
    public int Cols { get; } = cols;
    public byte* Data { get; } = data;
    public object Owner { get; } = owner;
    public long Bytes => (long)Rows * Cols * Type.Size();
}

/// <summary>A matrix on a device. Each backend knows its own.</summary>
internal abstract class DeviceTensor(DType type, int rows, int cols) : IDisposable
{
    public DType Type { get; } = type;
    public int Rows { get; } = rows;
    public int Cols { get; } = cols;
    public virtual void Dispose() { }
}

/// <summary>What attention needs to know of the model. The same for all layers but for the window.</summary>
/// <param name="InverseFrequencies">RoPE's, headDim / 2 of them, scaling (llama3) already applied. Pair (i, i + headDim/2) is rotated, as in HF's files.</param>
/// <param name="Windows">Per layer: how many positions back a row sees, itself included; 0 is all.</param>
internal sealed record AttentionShape(int Layers, int Heads, int KvHeads, int HeadDim, float[] InverseFrequencies, int[] Windows);

/// <summary>Qwen3's norms of q and k heads; weights (1, headDim).</summary>
internal sealed record HeadNorms(DeviceTensor Query, DeviceTensor Key, float Epsilon);

/// <summary>Keys and values of every layer in blocks. Slot s is position s % BlockSize of block s / BlockSize.</summary>
internal abstract class KvCache(int blocks, int blockSize, AttentionShape shape) : IDisposable
{
    public int Blocks { get; } = blocks;
    public int BlockSize { get; } = blockSize;
    public AttentionShape Shape { get; } = shape;
    public abstract void Dispose();
}

/// <summary>An adapter on a device.</summary>
internal abstract class DeviceAdapter : IDisposable
{
    /// <summary>Device bytes it takes.</summary>
    public abstract long Bytes { get; }
    public abstract void Dispose();
}
