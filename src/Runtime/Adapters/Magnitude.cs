using System.Numerics;
using System.Runtime.InteropServices;
using TenantLora.Runtime.Backends;

namespace TenantLora.Runtime.Adapters;

/// <summary>
/// The largest |value| of a tensor. Without their sign, the bits of IEEE numbers rise with the number, Infinity above all finite ones and
/// NaN above that, so one integer maximum tells zero, huge, infinite and NaN apart.
/// </summary>
internal static unsafe class Magnitude
{
    /// <summary>NaN if any is.</summary>
    public static float Largest(HostTensor tensor)
    {
        var count = (long)tensor.Rows * tensor.Cols;
        return tensor.Type switch
        {
            DType.F32 => BitConverter.UInt32BitsToSingle(LargestBits<uint>(tensor.Data, count, 0x7FFF_FFFF)),
            DType.F16 => (float)BitConverter.UInt16BitsToHalf(LargestBits<ushort>(tensor.Data, count, 0x7FFF)),
            DType.BF16 => BitConverter.UInt32BitsToSingle((uint)LargestBits<ushort>(tensor.Data, count, 0x7FFF) << 16),
            _ => throw new ArgumentOutOfRangeException(nameof(tensor)),
        };
    }

    private static T LargestBits<T>(byte* data, long count, T withoutSign) where T : unmanaged, IBinaryInteger<T>
    {
        var largest = T.Zero;
        const int run = 1 << 28;    // a span ends at 2^31 elements
        for (long at = 0; at < count; at += run)
            largest = T.Max(largest, Largest(new ReadOnlySpan<T>((T*)data + at, (int)Math.Min(run, count - at)), withoutSign));
        return largest;
    }

    private static T Largest<T>(ReadOnlySpan<T> values, T withoutSign) where T : unmanaged, IBinaryInteger<T>
    {
        var mask = new Vector<T>(withoutSign);
        var lanes = Vector<T>.Zero;
        var vectors = MemoryMarshal.Cast<T, Vector<T>>(values);
        foreach (var vector in vectors) lanes = Vector.Max(lanes, vector & mask);

        var largest = T.Zero;
        for (var i = 0; i < Vector<T>.Count; i++) largest = T.Max(largest, lanes[i]);
        foreach (var value in values[(vectors.Length * Vector<T>.Count)..]) largest = T.Max(largest, value & withoutSign);
        return largest;
    }
}
