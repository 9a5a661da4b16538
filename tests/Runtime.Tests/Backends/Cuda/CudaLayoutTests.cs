using System.Runtime.CompilerServices;
using TenantLora.Runtime.Backends.Cuda;

namespace TenantLora.Runtime.Tests.Backends.Cuda;

/// <summary>What kernels take by value has their size, to which tests/Kernels/chain.cpp holds the other side.</summary>
public sealed class CudaLayoutTests
{
    [Fact]
    public void What_kernels_take_has_the_size_that_they_give_it()
    {
        Assert.Equal(64, Unsafe.SizeOf<Sums>());
        Assert.Equal(72, Unsafe.SizeOf<Site>());
        Assert.Equal(120, Unsafe.SizeOf<Finish>());
        Assert.Equal(320, Unsafe.SizeOf<Op>());
        Assert.Equal(2368, Unsafe.SizeOf<Chain>());
        Assert.Equal(80, Unsafe.SizeOf<CudaAdapters.LoraEntry>());
    }
}
