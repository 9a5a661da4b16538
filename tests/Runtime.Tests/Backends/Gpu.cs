using TenantLora.Runtime.Backends.Cuda;

namespace TenantLora.Runtime.Tests.Backends;

/// <summary>What a test does that needs a GPU and finds none.</summary>
internal static class Gpu
{
    private const string Required = "TENANTLORA_REQUIRE_GPU";

    /// <summary>Ends the test, also from a constructor: skipped with the reason, or failed where <c>TENANTLORA_REQUIRE_GPU=1</c> says that there is a GPU.</summary>
    [System.Diagnostics.CodeAnalysis.DoesNotReturn]
    public static void Missing(string reason)
    {
        if (Environment.GetEnvironmentVariable(Required) == "1") Assert.Fail($"{Required} is set, but there is no usable GPU: {reason}");
        Assert.Skip($"No usable GPU: {reason}");
    }

    private static readonly Lazy<string?> Why = new(() =>
    {
        var (missing, devices) = CudaDevice.Look();
        return missing ?? devices[0].Unfit;
    });

    /// <summary>Ends the test as <see cref="Missing"/> does where the first GPU cannot be used.</summary>
    public static void Require()
    {
        if (Why.Value is { } reason) Missing(reason);
    }

    public static CudaBackend Open(int stepRows, int maxSequences = 64)
    {
        Require();
        return new CudaBackend(CudaDevice.Open(0), maxRank: 256, maxSequences, stepRows);
    }
}
