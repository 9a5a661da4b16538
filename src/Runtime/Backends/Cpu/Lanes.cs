using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace TenantLora.Runtime.Backends.Cpu;

/// <summary>
/// A register of floats. Kernels are written once over this and compiled for the width of the machine (AVX-512, AVX2, NEON or SSE).
/// </summary>
internal unsafe interface ILanes<V> where V : struct, ILanes<V>
{
    static abstract int Count { get; }
    static abstract V Broadcast(float value);
    static abstract V Load(float* from);

    /// <summary>Count bf16 values widened: the upper half of an fp32.</summary>
    static abstract V LoadBF16(ushort* from);

    /// <summary>Count fp16 values widened, subnormals, infinities and NaN included.</summary>
    static abstract V LoadF16(ushort* from);

    void Store(float* to);

    static abstract V operator +(V a, V b);
    static abstract V operator -(V a, V b);
    static abstract V operator *(V a, V b);
    static abstract V operator /(V a, V b);

    /// <summary>a·b + c, in one rounding where the machine can.</summary>
    static abstract V MultiplyAdd(V a, V b, V c);
    static abstract V Max(V a, V b);
    static abstract V Exp(V a);

    /// <summary>The lanes added in a fixed order.</summary>
    static abstract float Sum(V a);
}

internal static class Lanes
{
    /// <summary>The most lanes any machine has; buffers are padded to multiples of it.</summary>
    public const int Most = 16;

    // An fp16 exponent is biased by 15, an fp32 one by 127.
    public const float HalfToSingle = 5.192296858534828e33f; // 2^112
    public const uint HalfInfinity = 0x7C00 << 13;

    public static int RoundUp(int count) => (count + Most - 1) & ~(Most - 1);
}

internal readonly unsafe struct Lanes128(Vector128<float> v) : ILanes<Lanes128>
{
    private readonly Vector128<float> v = v;

    public static int Count => 4;
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes128 Broadcast(float value) => new(Vector128.Create(value));
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes128 Load(float* from) => new(Vector128.Load(from));
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes128 LoadBF16(ushort* from) => new((Widen(from) << 16).AsSingle());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes128 LoadF16(ushort* from)
    {
        var bits = Widen(from);
        var magnitude = (bits & Vector128.Create(0x7FFFu)) << 13;
        var special = Vector128.GreaterThanOrEqual(magnitude, Vector128.Create(Lanes.HalfInfinity)) & Vector128.Create(0x7F800000u);
        var value = (magnitude.AsSingle() * Lanes.HalfToSingle).AsUInt32();
        return new((value | special | ((bits & Vector128.Create(0x8000u)) << 16)).AsSingle());
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)] private static Vector128<uint> Widen(ushort* from) => Vector128.WidenLower(Vector64.Load(from).ToVector128Unsafe());
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public void Store(float* to) => v.Store(to);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes128 operator +(Lanes128 a, Lanes128 b) => new(a.v + b.v);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes128 operator -(Lanes128 a, Lanes128 b) => new(a.v - b.v);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes128 operator *(Lanes128 a, Lanes128 b) => new(a.v * b.v);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes128 operator /(Lanes128 a, Lanes128 b) => new(a.v / b.v);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes128 MultiplyAdd(Lanes128 a, Lanes128 b, Lanes128 c) => new(Vector128.MultiplyAddEstimate(a.v, b.v, c.v));
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes128 Max(Lanes128 a, Lanes128 b) => new(Vector128.Max(a.v, b.v));
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes128 Exp(Lanes128 a) => new(Vector128.Exp(a.v));
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static float Sum(Lanes128 a) => Vector128.Sum(a.v);
}

internal readonly unsafe struct Lanes256(Vector256<float> v) : ILanes<Lanes256>
{
    private readonly Vector256<float> v = v;

    public static int Count => 8;
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes256 Broadcast(float value) => new(Vector256.Create(value));
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes256 Load(float* from) => new(Vector256.Load(from));

    // Zen takes two cycles to widen across lanes (vpmovzxwd); loading 16 bytes into both halves is free and a shuffle within them one:
    // twice the decoding speed, 52 against 26 GFLOP/s from L2 with one row.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 LoadBF16(ushort* from) => Avx2.IsSupported
        ? new(Avx2.Shuffle(Avx2.BroadcastVector128ToVector256((byte*)from), Vector256.Create(
            0x0100_FFFFu, 0x0302_FFFFu, 0x0504_FFFFu, 0x0706_FFFFu, 0x0908_FFFFu, 0x0B0A_FFFFu, 0x0D0C_FFFFu, 0x0F0E_FFFFu).AsByte()).AsSingle())
        : new((Widen(from) << 16).AsSingle());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes256 LoadF16(ushort* from)
    {
        var bits = Widen(from);
        var magnitude = (bits & Vector256.Create(0x7FFFu)) << 13;
        var special = Vector256.GreaterThanOrEqual(magnitude, Vector256.Create(Lanes.HalfInfinity)) & Vector256.Create(0x7F800000u);
        var value = (magnitude.AsSingle() * Lanes.HalfToSingle).AsUInt32();
        return new((value | special | ((bits & Vector256.Create(0x8000u)) << 16)).AsSingle());
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)] private static Vector256<uint> Widen(ushort* from) => Vector256.WidenLower(Vector128.Load(from).ToVector256Unsafe());
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public void Store(float* to) => v.Store(to);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes256 operator +(Lanes256 a, Lanes256 b) => new(a.v + b.v);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes256 operator -(Lanes256 a, Lanes256 b) => new(a.v - b.v);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes256 operator *(Lanes256 a, Lanes256 b) => new(a.v * b.v);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes256 operator /(Lanes256 a, Lanes256 b) => new(a.v / b.v);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes256 MultiplyAdd(Lanes256 a, Lanes256 b, Lanes256 c) => new(Vector256.MultiplyAddEstimate(a.v, b.v, c.v));
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes256 Max(Lanes256 a, Lanes256 b) => new(Vector256.Max(a.v, b.v));
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes256 Exp(Lanes256 a) => new(Vector256.Exp(a.v));
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static float Sum(Lanes256 a) => Vector256.Sum(a.v);
}

internal readonly unsafe struct Lanes512(Vector512<float> v) : ILanes<Lanes512>
{
    private readonly Vector512<float> v = v;

    public static int Count => 16;
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes512 Broadcast(float value) => new(Vector512.Create(value));
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes512 Load(float* from) => new(Vector512.Load(from));
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes512 LoadBF16(ushort* from) => new((Widen(from) << 16).AsSingle());

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Lanes512 LoadF16(ushort* from)
    {
        var bits = Widen(from);
        var magnitude = (bits & Vector512.Create(0x7FFFu)) << 13;
        var special = Vector512.GreaterThanOrEqual(magnitude, Vector512.Create(Lanes.HalfInfinity)) & Vector512.Create(0x7F800000u);
        var value = (magnitude.AsSingle() * Lanes.HalfToSingle).AsUInt32();
        return new((value | special | ((bits & Vector512.Create(0x8000u)) << 16)).AsSingle());
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)] private static Vector512<uint> Widen(ushort* from) => Vector512.WidenLower(Vector256.Load(from).ToVector512Unsafe());
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public void Store(float* to) => v.Store(to);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes512 operator +(Lanes512 a, Lanes512 b) => new(a.v + b.v);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes512 operator -(Lanes512 a, Lanes512 b) => new(a.v - b.v);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes512 operator *(Lanes512 a, Lanes512 b) => new(a.v * b.v);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes512 operator /(Lanes512 a, Lanes512 b) => new(a.v / b.v);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes512 MultiplyAdd(Lanes512 a, Lanes512 b, Lanes512 c) => new(Vector512.MultiplyAddEstimate(a.v, b.v, c.v));
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes512 Max(Lanes512 a, Lanes512 b) => new(Vector512.Max(a.v, b.v));
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static Lanes512 Exp(Lanes512 a) => new(Vector512.Exp(a.v));
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static float Sum(Lanes512 a) => Vector512.Sum(a.v);
}
