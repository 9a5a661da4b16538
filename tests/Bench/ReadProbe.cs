using System.Diagnostics;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using TenantLora.Runtime.Backends.Cpu;

namespace TenantLora.Bench;

/// <summary>How fast all threads together read memory just now: a buffer far larger than the caches, once through.</summary>
/// <param name="threads">0: one a core.</param>
internal sealed unsafe class ReadProbe(int threads = 0) : IDisposable
{
    private const nint Bytes = 256 << 20;
    private readonly Workers workers = new(threads > 0 ? threads : Environment.ProcessorCount);
    private readonly byte* data = Filled();

    /// <summary>Bytes a second of one pass.</summary>
    public double Measure()
    {
        var begun = Stopwatch.GetTimestamp();
        workers.Run(64, new ReadJob(data, Bytes / 64));
        return Bytes / Stopwatch.GetElapsedTime(begun).TotalSeconds;
    }

    /// <summary>The best of as many passes as fit into the time.</summary>
    public double Best(double seconds)
    {
        var best = 0.0;
        for (var begun = Stopwatch.GetTimestamp(); Stopwatch.GetElapsedTime(begun).TotalSeconds < seconds;) best = Math.Max(best, Measure());
        return best;
    }

    private static byte* Filled()
    {
        var data = (byte*)NativeMemory.AlignedAlloc((nuint)Bytes, 64);
        new Span<byte>(data, (int)Bytes).Fill(1);
        return data;
    }

    public void Dispose()
    {
        workers.Dispose();
        NativeMemory.AlignedFree(data);
    }

    private readonly struct ReadJob(byte* data, nint bytes) : IJob
    {
        public void Run(int item, int worker)
        {
            var from = data + (item * bytes);
            Vector256<long> a = default, b = default, c = default, d = default;
            for (nint i = 0; i < bytes; i += 128)
            {
                a ^= Vector256.Load((long*)(from + i));
                b ^= Vector256.Load((long*)(from + i + 32));
                c ^= Vector256.Load((long*)(from + i + 64));
                d ^= Vector256.Load((long*)(from + i + 96));
            }
            if ((a ^ b ^ c ^ d) == Vector256.Create(12345L)) Console.WriteLine();           // so that the reads stay
        }
    }
}
