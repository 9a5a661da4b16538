using System.Diagnostics;
using System.Runtime.InteropServices;
using System.Text.Json;

namespace TenantLora.Cli.Tests;

/// <summary>The tool as a process: the host with its banner and exit code, and a doctor who finds something.</summary>
public sealed partial class ProcessTests : IDisposable
{
    private const int SigTerm = 15;
    private readonly string data = Directory.CreateTempSubdirectory("tenantlora-").FullName;

    public void Dispose() => Directory.Delete(data, recursive: true);

    [Fact]
    public async Task It_is_the_host_with_its_page()
    {
        using var process = Start("serve", "--urls", "http://127.0.0.1:0", "--", "--TenantLora:Device=cpu", $"--TenantLora:Data={data}");
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
        using var process = Start("serve", "--", "--TenantLora:Modle=x");
        var error = await process.StandardError.ReadToEndAsync().WaitAsync(TimeSpan.FromSeconds(60));
        await process.WaitForExitAsync();
        Assert.Equal(1, process.ExitCode);
        Assert.Contains("TenantLora:Modle: there is no such option.", error, StringComparison.Ordinal);
    }

    /// <summary>Every fault is named, with how to mend it, and this machine's outweigh the server's absence.</summary>
    [Fact]
    public async Task The_doctor_names_what_is_wrong_here()
    {
        Environment["TenantLora__Modle"] = "x";
        Environment["TenantLora__Model"] = "models/absent";
        Environment["TenantLora__Data"] = "/dev/null/data";
        using var process = Start("doctor", "--json", "--server", "http://127.0.0.1:1");
        var checks = JsonSerializer.Deserialize<JsonElement>(await process.StandardOutput.ReadToEndAsync().WaitAsync(TimeSpan.FromSeconds(60))).GetProperty("checks").EnumerateArray().ToArray();
        await process.WaitForExitAsync();
        Assert.Equal(1, process.ExitCode);
        var failed = checks.Where(c => c.GetProperty("state").GetString() == "failed").ToDictionary(c => c.GetProperty("name").GetString()!, c => c.GetProperty("found").GetString()!);
        Assert.Contains("TenantLora:Modle", failed["settings"], StringComparison.Ordinal);
        Assert.Contains("models/absent", failed["model"], StringComparison.Ordinal);
        Assert.Contains("cannot be reached", failed["server"], StringComparison.Ordinal);
        if (!OperatingSystem.IsWindows()) Assert.Contains("cannot be written", failed["data"], StringComparison.Ordinal);
    }

    /// <summary>A web host has no model to look at, and wants to know its runtimes.</summary>
    [Fact]
    public async Task The_doctor_knows_a_web_host_from_one_with_an_engine()
    {
        Environment["TenantLora__Role"] = "Web";
        Environment["TenantLora__ServiceKey"] = new string('k', 32);
        using var process = Start("doctor", "--json", "--server", "http://127.0.0.1:1");
        var checks = JsonSerializer.Deserialize<JsonElement>(await process.StandardOutput.ReadToEndAsync().WaitAsync(TimeSpan.FromSeconds(60))).GetProperty("checks").EnumerateArray().ToDictionary(c => c.GetProperty("name").GetString()!);
        await process.WaitForExitAsync();
        Assert.Contains("TenantLora:Runtimes: expected addresses", checks["settings"].GetProperty("found").GetString(), StringComparison.Ordinal);
        Assert.DoesNotContain("model", checks.Keys);
    }

    private Dictionary<string, string> Environment { get; } = [];

    private Process Start(params string[] args)
    {
        var start = new ProcessStartInfo("dotnet", [Path.Combine(AppContext.BaseDirectory, "TenantLora.Cli.dll"), .. args]) { RedirectStandardOutput = true, RedirectStandardError = true, WorkingDirectory = data };
        foreach (var (name, value) in Environment) start.Environment[name] = value;
        return Process.Start(start)!;
    }

    [LibraryImport("libc", EntryPoint = "kill")]
    private static partial int Kill(int process, int signal);
}
