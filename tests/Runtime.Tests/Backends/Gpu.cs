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
}
