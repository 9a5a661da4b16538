using TenantLora.Runtime.Backends.Cpu;

namespace TenantLora.Runtime.Tests.Backends;

/// <summary>The Cpu backend with two threads.</summary>
public sealed class CpuBackendTests() : BackendTests(new CpuBackend(2))
{
    [Fact]
    public void It_says_what_it_runs_on()
    {
        using var one = new CpuBackend(1);
        Assert.StartsWith("cpu, 1 thread, ", one.Name, StringComparison.Ordinal);
        Assert.StartsWith("cpu, 2 threads, ", Backend.Name, StringComparison.Ordinal);
    }
}

/// <summary>And with one, and with more than the machine may have.</summary>
public sealed class CpuBackendOneThreadTests() : BackendTests(new CpuBackend(1));

public sealed class CpuBackendManyThreadsTests() : BackendTests(new CpuBackend(5));
