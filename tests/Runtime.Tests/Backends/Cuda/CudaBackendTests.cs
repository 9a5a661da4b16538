using TenantLora.Runtime.Backends;
using TenantLora.Runtime.Backends.Cuda;

namespace TenantLora.Runtime.Tests.Backends.Cuda;

/// <summary>The verbs on the GPU at hand, against the same plain loops; skipped, aloud, where there is none.</summary>
public sealed class CudaBackendTests : BackendTests
{
    public CudaBackendTests() : base(Gpu.Open()) { }

    /// <summary>fp32 sums, in another order than the loop's.</summary>
    private protected override double Tolerance => 2e-5;

    /// <summary>bf16 has eight bits.</summary>
    private protected override double OperandTolerance => 1.0 / 256;

    private protected override double AttentionTolerance => 1.0 / 64;

    private protected override float Round(float value)
    {
        var bits = BitConverter.SingleToUInt32Bits(value);
        return BitConverter.UInt32BitsToSingle((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000);
    }

    private protected override bool Exact(DType type) => type == DType.BF16;

    /// <summary>Prompts and decoding rows take different kernels.</summary>
    private protected override void AssertSameRows(float[,] expected, float[,] actual)
    {
        for (var r = 0; r < expected.GetLength(0); r++)
            for (var c = 0; c < expected.GetLength(1); c++)
                Assert.True(Math.Abs(expected[r, c] - actual[r, c]) <= 1.0 / 64 || (float.IsNaN(expected[r, c]) && float.IsNaN(actual[r, c])), $"[{r}, {c}]: {expected[r, c]} and {actual[r, c]}");
    }
}

/// <summary>The GPU that tests run on.</summary>
internal static class Gpu
{
    private static readonly Lazy<string?> Why = new(() =>
    {
        var (missing, devices) = CudaDevice.Look();
        return missing ?? devices[0].Unfit;
    });

    public static bool IsThere => Why.Value is null;

    /// <summary>Skips the test where there is no usable GPU; with TENANTLORA_REQUIRE_GPU=1 it fails instead.</summary>
    public static void Require()
    {
        if (IsThere) return;
        if (Environment.GetEnvironmentVariable("TENANTLORA_REQUIRE_GPU") == "1") Assert.Fail($"No usable GPU: {Why.Value}");
        Assert.Skip($"No usable GPU: {Why.Value}");
    }

    public static CudaBackend Open(int stepRows = 512)
    {
        Require();
        return new CudaBackend(CudaDevice.Open(0), maxRank: 256, maxSequences: 64, stepRows);
    }
}
