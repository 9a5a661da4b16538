using TenantLora.Runtime.Backends;
using TenantLora.Runtime.Models;
using TenantLora.Tests;

namespace TenantLora.Runtime.Tests.Backends.Cuda;

/// <summary>The verbs on the GPU at hand, against the same plain loops; skipped, aloud, where there is none.</summary>
[Collection("GPU")]       // one after another: kernels whose blocks wait for each other want the GPU for themselves
public sealed class CudaBackendTests : BackendTests
{
    public CudaBackendTests() : base(Gpu.Open(stepRows: 1024)) { }

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

/// <summary>The whole engine on the GPU: the same answers, alone and mixed.</summary>
[Collection("GPU")]
public sealed class CudaEngineTests : EngineTests
{
    public CudaEngineTests() => Gpu.Require();

    private protected override IBackend Open() => Gpu.Open(stepRows: 512, maxSequences: 256);

    /// <summary>Up to 128 rows a product streams its weights in one order; above, cuBLAS has its own.</summary>
    private protected override int LargestExactStep => 128;
}

/// <summary>The forward pass on the GPU against the reference, as far apart as bf16 operands put them.</summary>
[Collection("GPU")]
public sealed class CudaGoldenModelTests
{
    private const double Tolerance = 0.015;

    public CudaGoldenModelTests() => Gpu.Require();

    [Theory]
    [MemberData(nameof(GoldenModelTests.Architectures), MemberType = typeof(GoldenModelTests))]
    public void An_architectures_logits_are_those_of_transformers_at_every_length(string name) =>
        GoldenModelTests.Check(name, ModelConfig.Load(Repo.Fixture("models", name)), "golden-loaded.safetensors", "cuda", Tolerance);

    [Theory]
    [MemberData(nameof(GoldenModelTests.Tenants), MemberType = typeof(GoldenModelTests))]
    public void The_demo_models_logits_are_those_of_pytorch(string tenant) => GoldenModelTests.CheckDemo(tenant, "cuda", Tolerance);
}
