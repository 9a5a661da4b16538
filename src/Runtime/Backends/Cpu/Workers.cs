using System.Diagnostics;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace TenantLora.Runtime.Backends.Cpu;

/// <summary>One parallel region's work: <see cref="Run"/> is called once for each item, on any thread, in any order.</summary>
internal interface IJob
{
    /// <param name="item">0 … items − 1.</param>
    /// <param name="worker">Which thread runs it, 0 … threads − 1: an index into room of one's own.</param>
    void Run(int item, int worker);
}

/// <summary>
/// A team of threads for regions of a few microseconds, of which a step has a hundred. Items are taken one by one from a shared
/// counter, and a region ends when its items are done, not when every worker has been seen: one that sleeps or was descheduled
/// holds nobody up. Workers wait for the next region spinning, and park after <see cref="SpinTime"/> so that an idle engine burns nothing.
/// One thread calls <see cref="Run"/>.
/// </summary>
internal sealed unsafe class Workers : IDisposable
{
    private static readonly long SpinTime = Stopwatch.Frequency / 10_000; // 100 µs

    private readonly Thread[] threads;
    private readonly SemaphoreSlim work = new(0);
    private Shared shared;
    private delegate*<void*, int, int, void> run;
    private void* job;
    private int items;
    private uint region;
    private volatile bool stopping;

    /// <param name="count">Threads, the caller's among them.</param>
    public Workers(int count)
    {
        threads = new Thread[count - 1];
        for (var i = 0; i < threads.Length; i++)
        {
            var worker = i + 1;
            threads[i] = new Thread(() => Work(worker)) { IsBackground = true, Name = $"cpu backend {worker}" };
            threads[i].Start();
        }
    }

    /// <summary>Threads, the caller's among them.</summary>
    public int Count => threads.Length + 1;

    /// <summary>Threads that sleep now.</summary>
    public int Parked => Volatile.Read(ref shared.Parked);

    public void Run<TJob>(int items, TJob job) where TJob : struct, IJob
    {
        if (items <= 1 || threads.Length == 0)
        {
            for (var i = 0; i < items; i++) job.Run(i, 0);
            return;
        }
        // The job lies on this stack, which outlives the region.
        this.job = Unsafe.AsPointer(ref job);
        this.items = items;
        run = &Call<TJob>;
        shared.Finished = 0;
        Interlocked.Exchange(ref shared.Ticket, ((long)++region << 32) | (uint)items);
        Wake();
        TakeItems(0);
        AwaitEnd(items);
    }

    private static void Call<TJob>(void* job, int item, int worker) where TJob : struct, IJob => Unsafe.AsRef<TJob>(job).Run(item, worker);

    /// <summary>Takes items until none is left. A ticket is the region's number and the items left in it, so that a late worker cannot take from a region that it read of too early.</summary>
    private bool TakeItems(int worker)
    {
        var any = false;
        while (true)
        {
            var ticket = Volatile.Read(ref shared.Ticket);
            var left = (int)(uint)ticket;
            if (left == 0) return any;
            if (Interlocked.CompareExchange(ref shared.Ticket, ticket - 1, ticket) != ticket) continue;
            run(job, items - left, worker);
            Interlocked.Increment(ref shared.Finished);
            any = true;
        }
    }

    private void AwaitEnd(int items)
    {
        for (var spins = 0; Volatile.Read(ref shared.Finished) != items; spins++)
            if (spins < 1000) Thread.SpinWait(8);
            else Thread.Yield();
    }

    private void Work(int worker)
    {
        var idleSince = Stopwatch.GetTimestamp();
        while (!stopping)
        {
            if (TakeItems(worker)) idleSince = Stopwatch.GetTimestamp();
            else if (Stopwatch.GetTimestamp() - idleSince < SpinTime) Thread.SpinWait(4);
            else
            {
                Park();
                idleSince = Stopwatch.GetTimestamp();
            }
        }
    }

    private void Park()
    {
        Interlocked.Increment(ref shared.Parked); // a full fence: either we see the caller's ticket below, or it sees us parked
        var awake = (int)Volatile.Read(ref shared.Ticket) != 0 || stopping;
        if (!awake || !TryUnpark()) work.Wait(); // not unparked by ourselves: someone has taken us off the count and releases us
    }

    private bool TryUnpark()
    {
        while (true)
        {
            var parked = Volatile.Read(ref shared.Parked);
            if (parked == 0) return false;
            if (Interlocked.CompareExchange(ref shared.Parked, parked - 1, parked) == parked) return true;
        }
    }

    private void Wake()
    {
        while (Volatile.Read(ref shared.Parked) > 0 && TryUnpark()) work.Release();
    }

    public void Dispose()
    {
        stopping = true;
        Interlocked.MemoryBarrier();
        Wake();
        foreach (var thread in threads) thread.Join();
        work.Dispose();
    }

    /// <summary>What threads fight for, each on cache lines of its own.</summary>
    [StructLayout(LayoutKind.Explicit, Size = 512)]
    private struct Shared
    {
        [FieldOffset(128)] public long Ticket;
        [FieldOffset(256)] public int Finished;
        [FieldOffset(384)] public int Parked;
    }
}
