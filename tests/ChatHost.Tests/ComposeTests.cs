using System.Diagnostics;
using TenantLora.Tests;

namespace TenantLora.ChatHost.Tests;

/// <summary>docker-compose.yml, as far as compose judges it without a daemon. Skipped where compose is not there.</summary>
public sealed class ComposeTests
{
    [Theory]
    [InlineData("cpu", "TenantLora__Device: cpu")]
    [InlineData("gpu", "driver: nvidia")]
    public async Task Each_profile_is_understood(string profile, string has)
    {
        var (code, text) = await ConfigAsync(profile, "0123456789abcdef0123456789abcdef");
        Assert.True(code == 0, text);
        Assert.Contains(has, text, StringComparison.Ordinal);
        Assert.Contains("redis:6379,password=secret", text, StringComparison.Ordinal);
        Assert.Contains("TenantLora__Runtimes__0: http://runtime:8080", text, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Without_a_service_key_nothing_starts()
    {
        var (code, text) = await ConfigAsync("cpu", null);
        Assert.NotEqual(0, code);
        Assert.Contains("openssl rand -hex 32", text, StringComparison.Ordinal);
    }

    private static async Task<(int Code, string Text)> ConfigAsync(string profile, string? key)
    {
        foreach (var (program, first) in new[] { ("docker", new[] { "compose" }), ("docker-compose", []) })
            try
            {
                var how = new ProcessStartInfo(program, [.. first, "-f", Repo.Path("docker-compose.yml"), "--profile", profile, "config"]) { RedirectStandardOutput = true, RedirectStandardError = true };
                how.Environment["TENANTLORA_SERVICE_KEY"] = key;
                how.Environment["TENANTLORA_REDIS_PASSWORD"] = "secret";
                using var process = Process.Start(how)!;
                var (output, error) = (process.StandardOutput.ReadToEndAsync(), process.StandardError.ReadToEndAsync());
                await process.WaitForExitAsync().WaitAsync(TimeSpan.FromSeconds(60));
                var text = await output + await error;
                if (!text.Contains("unknown command", StringComparison.Ordinal) && !text.Contains("is not a docker command", StringComparison.Ordinal) && !text.Contains("unknown shorthand flag", StringComparison.Ordinal)) return (process.ExitCode, text);
            }
            catch (System.ComponentModel.Win32Exception)
            {
                // this one is not there
            }
        Assert.Skip("Neither docker compose nor docker-compose is there.");
        return default;
    }
}
