using System.Diagnostics;
using System.Runtime.InteropServices;

namespace TenantLora.Cli.Tests;

/// <summary><c>serve</c> as a process: the host, with its banner and its exit code.</summary>
public sealed partial class ServeTests : IDisposable
{
    private const int SigTerm = 15;
    private readonly string data = Directory.CreateTempSubdirectory("tenantlora-").FullName;

    public void Dispose() => Directory.Delete(data, recursive: true);

    [Fact]
    public async Task It_is_the_host_with_its_page()
    {
        using var process = Start("--urls", "http://127.0.0.1:0", "--", "--TenantLora:Device=cpu", $"--TenantLora:Data={data}");
        var lines = new List<string>();
        while (!lines.Any(l => l.Contains("Ctrl+C stops", StringComparison.Ordinal)) && await process.StandardOutput.ReadLineAsync().WaitAsync(TimeSpan.FromSeconds(60)) is { } line) lines.Add(line);
        _ = process.StandardOutput.ReadToEndAsync();
        var address = lines.Single(l => l.StartsWith("  address", StringComparison.Ordinal)).Split(' ')[^1];
        using var client = new HttpClient();
        Assert.Contains("<html", await client.GetStringAsync(address), StringComparison.Ordinal);
        if (OperatingSystem.IsWindows())
        {
            process.Kill();
            await process.WaitForExitAsync();
            Assert.Skip("There are no signals to send on Windows.");
        }
        Assert.Equal(0, Kill(process.Id, SigTerm));
        await process.WaitForExitAsync().WaitAsync(TimeSpan.FromSeconds(30));
        Assert.Equal(0, process.ExitCode);
    }

    [Fact]
    public async Task What_keeps_it_from_starting_is_the_hosts_own_line()
    {
        using var process = Start("--", "--TenantLora:Modle=x");
        var error = await process.StandardError.ReadToEndAsync().WaitAsync(TimeSpan.FromSeconds(60));
        await process.WaitForExitAsync();
        Assert.Equal(1, process.ExitCode);
        Assert.Contains("TenantLora:Modle: there is no such option.", error, StringComparison.Ordinal);
    }

    private Process Start(params string[] args) => Process.Start(new ProcessStartInfo("dotnet", [Path.Combine(AppContext.BaseDirectory, "TenantLora.Cli.dll"), "serve", .. args])
    {
        RedirectStandardOutput = true,
        RedirectStandardError = true,
        WorkingDirectory = data,
    })!;

    [LibraryImport("libc", EntryPoint = "kill")]
    private static partial int Kill(int process, int signal);
}
