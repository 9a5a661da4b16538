using TenantLora.Runtime.Backends;
using TenantLora.Runtime.Backends.Cpu;

namespace TenantLora.Runtime.Tests.Backends;

/// <summary>The Cpu backend as this machine runs it, with two threads.</summary>
public sealed class CpuBackendTests : BackendTests
{
    public CpuBackendTests() : base(new CpuBackend(2)) { }

    private CpuBackendTests(int threads) : base(new CpuBackend(threads)) { }

    [Fact]
    public void It_says_what_it_runs_on()
    {
        using var one = new CpuBackend(1);
        Assert.StartsWith("cpu, 1 thread, ", one.Name, StringComparison.Ordinal);
        Assert.StartsWith("cpu, 2 threads, ", Backend.Name, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(5)]
    public void The_number_of_threads_changes_no_bit(int threads)
    {
        using var other = new CpuBackendTests(threads);
        var (x, w) = (Values(19, 300), Host(701, 300, "BF16"));
        AssertSameBits(Linear(x, [w]), other.Linear(x, [w]));

        var (modules, stacked) = (Adapter(300, 90, (14, 2, 4, 4)), Host(270, 300, "BF16"));
        var site = new LoraSite(0, (Projection.Query, 0), (Projection.Key, 90), (Projection.Value, 180));
        using var here = Backend.LoadAdapter(modules);
        using var there = other.Backend.LoadAdapter(modules);
        AssertSameBits(Linear(x, [stacked], null, site, new AdapterSegment(0, 19, here)), other.Linear(x, [stacked], null, site, new AdapterSegment(0, 19, there)));

        var shape = Shape(4, 2, 32, 0);
        float[][,] inputs = [Values(60, 256), Values(9, 256)];
        var (mine, theirs) = (AttendInSteps(shape, null, 16, inputs, [[60, 9]], 1), other.AttendInSteps(shape, null, 16, inputs, [[60, 9]], 1));
        AssertSameBits(mine[0], theirs[0]);
        AssertSameBits(mine[1], theirs[1]);
    }

    [Fact]
    public void Workers_that_nobody_needs_sleep()
    {
        using var workers = new Workers(3);
        workers.Run(100, default(NoJob));
        Assert.True(SpinWait.SpinUntil(() => workers.Parked == 2, TimeSpan.FromSeconds(10)));
        // And they come back.
        for (var i = 0; i < 100; i++) workers.Run(7, default(NoJob));
    }

    private readonly struct NoJob : IJob
    {
        public void Run(int item, int worker) { }
    }
}

/// <summary>One thread.</summary>
public sealed class CpuBackendOneThreadTests() : BackendTests(new CpuBackend(1));

/// <summary>More threads than the machine may have, and NEON's and SSE's width.</summary>
public sealed class CpuBackend128BitTests() : BackendTests(new CpuBackend(5, lanes: 4));

/// <summary>The width of AVX-512, emulated where the machine lacks it.</summary>
public sealed class CpuBackend512BitTests() : BackendTests(new CpuBackend(2, lanes: 16));
