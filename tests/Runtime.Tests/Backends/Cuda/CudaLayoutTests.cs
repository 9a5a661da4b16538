using System.Runtime.CompilerServices;
using TenantLora.Runtime.Backends.Cuda;

namespace TenantLora.Runtime.Tests.Backends.Cuda;

/// <summary>What host and kernels agree upon without telling each other; tests/Kernels/chain.cpp holds the other side to it.</summary>
public sealed class CudaLayoutTests
{
    [Fact]
    public void What_kernels_take_has_the_size_that_they_give_it()
    {
        Assert.Equal(80, Unsafe.SizeOf<Sums>());
        Assert.Equal(72, Unsafe.SizeOf<Site>());
        Assert.Equal(120, Unsafe.SizeOf<Finish>());
        Assert.Equal(336, Unsafe.SizeOf<Op>());
        Assert.Equal(2432, Unsafe.SizeOf<Chain>());
        Assert.Equal(80, Unsafe.SizeOf<CudaAdapters.LoraEntry>());
    }

    /// <summary>A GeForce card's, an A100's, an H100's.</summary>
    [Theory]
    [InlineData(101376, false)]
    [InlineData(166912, false)]
    [InlineData(232448, false)]
    [InlineData(232448, true)]
    public void A_chains_stages_fit_and_are_enough_to_be_ahead(int sharedBytes, bool hopper)
    {
        foreach (var tiles in new[] { 1, 2, 4, 8, 16 })
            foreach (var adapted in new[] { false, true })
            {
                var (stages, bytes) = CudaBackend.StagesOf(sharedBytes, hopper, tiles, adapted);
                Assert.InRange(stages, 2, 12);
                Assert.InRange(bytes, 1, sharedBytes);
            }
    }

    [Theory]
    [InlineData(6144, 4096)]
    [InlineData(28672, 4096)]
    [InlineData(4096, 14336)]
    [InlineData(128256, 2048)]
    [InlineData(1, 7)]
    [InlineData(300, 100)]
    [InlineData(57344, 8192)]
    public void A_tile_falls_into_as_many_parts_as_blocks_reach_into_it(int rows, int cols)
    {
        foreach (var processors in new[] { 46, 68, 108, 114, 132, 144, 148 })
        {
            var (blocks, parts) = CudaBackend.Shares(rows, cols, processors);
            var steps = (cols + 63) / 64;
            var units = (long)parts.Length * steps;
            Assert.InRange(blocks, 1, processors);
            for (var t = 0L; t < parts.Length; t++)
                Assert.Equal(Enumerable.Range(0, blocks).Count(b => b * units / blocks < (t + 1) * steps && (b + 1) * units / blocks > t * steps), parts[t]);
        }
    }
}
