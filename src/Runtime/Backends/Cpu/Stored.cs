using System.Runtime.CompilerServices;

namespace TenantLora.Runtime.Backends.Cpu;

/// <summary>A type in which weights are stored, read as fp32. Stateless: used as a type argument, so each kernel is compiled per type.</summary>
internal unsafe interface IStored
{
    static abstract int Size { get; }
    static abstract V Load<V>(byte* from) where V : struct, ILanes<V>;
    static abstract float Load(byte* from);
}

internal readonly unsafe struct StoredF32 : IStored
{
    public static int Size => 4;
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static V Load<V>(byte* from) where V : struct, ILanes<V> => V.Load((float*)from);
    public static float Load(byte* from) => *(float*)from;
}

internal readonly unsafe struct StoredF16 : IStored
{
    public static int Size => 2;
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static V Load<V>(byte* from) where V : struct, ILanes<V> => V.LoadF16((ushort*)from);
    public static float Load(byte* from) => (float)*(Half*)from;
}

internal readonly unsafe struct StoredBF16 : IStored
{
    public static int Size => 2;
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static V Load<V>(byte* from) where V : struct, ILanes<V> => V.LoadBF16((ushort*)from);
    public static float Load(byte* from) => BitConverter.Int32BitsToSingle(*(ushort*)from << 16);
}

internal static unsafe class Stored
{
    public static void Widen(DType type, byte* from, float* to, int count)
    {
        switch (type)
        {
            case DType.F32: Widen<StoredF32>(from, to, count); break;
            case DType.F16: Widen<StoredF16>(from, to, count); break;
            default: Widen<StoredBF16>(from, to, count); break;
        }
    }

    private static void Widen<T>(byte* from, float* to, int count) where T : struct, IStored
    {
        for (var i = 0; i < count; i++) to[i] = T.Load(from + (i * T.Size));
    }
}
