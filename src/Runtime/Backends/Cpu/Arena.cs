using System.Runtime.InteropServices;

namespace TenantLora.Runtime.Backends.Cpu;

/// <summary>Room for one step's activations: taken piece by piece, given back all at once. Grows to what a step has needed and stays there.</summary>
internal sealed unsafe class Arena : IDisposable
{
    private const nuint Alignment = 64;
    private const nuint Smallest = 1 << 20;
    private readonly List<nint> outgrown = [];
    private byte* data;
    private nuint size;
    private nuint used;

    /// <summary>Uncleared room, aligned to cache lines, valid until <see cref="Reset"/>.</summary>
    public float* Take(nint floats)
    {
        var bytes = ((nuint)floats * sizeof(float) + Alignment - 1) & ~(Alignment - 1);
        if (used + bytes > size) Grow(bytes);
        var taken = (float*)(data + used);
        used += bytes;
        return taken;
    }

    public void Reset()
    {
        foreach (var old in outgrown) NativeMemory.AlignedFree((void*)old);
        outgrown.Clear();
        used = 0;
    }

    // What was handed out this step stays where it is; the new piece is large enough for a whole step like this one.
    private void Grow(nuint bytes)
    {
        if (data is not null) outgrown.Add((nint)data);
        size = Math.Max(Math.Max(Smallest, 2 * size), used + bytes);
        data = (byte*)NativeMemory.AlignedAlloc(size, Alignment);
        used = 0;
    }

    public void Dispose()
    {
        Reset();
        NativeMemory.AlignedFree(data);
        data = null;
        size = 0;
    }
}
