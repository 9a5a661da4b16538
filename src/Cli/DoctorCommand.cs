using System.Globalization;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.Arm;
using System.Runtime.Intrinsics.X86;
using Microsoft.Extensions.Configuration;
using Spectre.Console;
using TenantLora.ChatHost;
using TenantLora.Runtime;

namespace TenantLora.Cli;

/// <summary>Looks for what commonly is wrong, on this machine as a host would find it and on a server, and says how to mend it. Changes nothing.</summary>
/// <param name="serverGiven">Somebody named the server, so that it ought to be there.</param>
internal sealed class DoctorCommand(Terminal terminal, Uri address, bool serverGiven, string? key, bool json)
{
    private const string Ok = "ok", Note = "note", Warning = "warning", Failed = "failed";
    private static readonly TimeSpan MostSkew = TimeSpan.FromMinutes(2);
    private readonly List<Check> checks = [];
    private int exitCode = ExitCode.Done;

    public async Task<int> RunAsync()
    {
        Machine();
        await HostAsync();
        await ServerAsync();
        if (json)
        {
            terminal.Write(new { healthy = exitCode == ExitCode.Done, checks });
            return exitCode;
        }
        foreach (var check in checks)
        {
            terminal.Line(check.State, check.State switch { Failed => Color.Red, Warning => Color.Yellow, Ok => Color.Green, _ => Color.Default }, $"{new string(' ', 9 - check.State.Length)}{check.Name,-8}  {check.Found}");
            if (check.Fix is not null) terminal.Line($"{"",-7}  {"to mend",-8}  {check.Fix}");
        }
        return exitCode;
    }

    private void Machine()
    {
        Add("system", Ok, $"{RuntimeInformation.FrameworkDescription}, {RuntimeInformation.OSDescription}, {RuntimeInformation.ProcessArchitecture.ToString().ToLowerInvariant()}");
        var wide = Vector512.IsHardwareAccelerated ? "AVX-512" : Avx2.IsSupported ? "AVX2" : AdvSimd.IsSupported ? "NEON" : null;
        Add("cpu", wide is null ? Warning : Ok, string.Create(CultureInfo.InvariantCulture, $"{Environment.ProcessorCount} cores, {wide ?? "neither AVX2 nor NEON"}, {Terminal.Size(GC.GetGCMemoryInfo().TotalAvailableMemoryBytes)} memory"),
            wide is null ? "Answers will be slow here; on a virtual machine, let it pass on its host's CPU." : null);
        var gpu = GpuReport.Look();
        Add("gpu", gpu.Gpu is null ? Note : Ok, gpu.Gpu ?? "none is usable, so the CPU computes", gpu.Reason);
    }

    /// <summary>What `tenantlora serve` would start with, from here.</summary>
    private async Task HostAsync()
    {
        TenantLoraOptions options;
        try
        {
            var configuration = new ConfigurationBuilder().AddJsonFile(Path.Combine(Places.ContentRoot(), "appsettings.json"), optional: true).AddEnvironmentVariables().AddSecrets(Secrets.Folder).Build();
            options = configuration.GetSection(TenantLoraOptions.Section).Get<TenantLoraOptions>() ?? new TenantLoraOptions();
            if (new TenantLoraOptionsCheck(configuration).Validate(null, options) is { Failed: true } wrong) Fail("settings", string.Join(' ', wrong.Failures), "Correct appsettings.json or the environment variable.");
            else Add("settings", Ok, $"{Path.Combine(Places.ContentRoot(), "appsettings.json")} and the environment");
        }
        catch (Exception e) when (e is InvalidOperationException or InvalidDataException)
        {
            Fail("settings", e.Message, "Correct appsettings.json or the environment variable.");
            options = new TenantLoraOptions();
        }
        if (options.Role != HostRole.Web) await ModelAsync(options.Model);
        Data(Path.GetFullPath(options.Data));
    }

    private async Task ModelAsync(string model)
    {
        if (Places.Find(model) is not { } folder)
        {
            Fail("model", $"there is no folder '{model}' here, beside the program or above it", "Set TenantLora__Model to a folder in Hugging Face layout.");
            return;
        }
        try
        {
            await using var engine = Engine.Start(new EngineOptions { ModelDirectory = folder, Device = "cpu", Threads = 1, CacheTokens = 16 });
            Add("model", Ok, string.Create(CultureInfo.InvariantCulture, $"{folder} ({engine.Info.Family}, {engine.Info.Parameters / 1e6:0.0} M parameters)"));
        }
        catch (Exception e) when (e is ModelFileException or IOException or UnauthorizedAccessException or ArgumentException)
        {
            Fail("model", e.Message, "Complete the folder, or set TenantLora__Model to another.");
        }
    }

    /// <summary>By a file that is gone again; where the folder is yet to be made, in the one it will be made in.</summary>
    private void Data(string folder)
    {
        var place = folder;
        try
        {
            for (; !Directory.Exists(place) && Path.GetDirectoryName(place) is { } above; place = above)
                if (File.Exists(place)) throw new IOException($"{place} is a file.");
            using (new FileStream(Path.Combine(place, $".tenantlora-doctor-{Guid.NewGuid():N}"), FileMode.CreateNew, FileAccess.Write, FileShare.None, 1, FileOptions.DeleteOnClose)) { }
            Add("data", Ok, place == folder ? $"{folder} can be written" : $"{folder} can be made");
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            Fail("data", $"{folder} cannot be written: {e.Message}", "Let this account write there, or set TenantLora__Data to another folder.");
        }
    }

    private async Task ServerAsync()
    {
        using var server = new Server(address, key);
        DateTimeOffset? date = null;
        try
        {
            date = (await server.GetAsync("health/ready")).Date;
            Add("server", Ok, $"{address} answers");
        }
        catch (Refusal refusal)
        {
            Fail("server", $"{address} answers, and is not ready: {refusal.Message}", "Wait for it to start or stop, or name another with --server.");
        }
        catch (Failure failure) when (failure.ExitCode != ExitCode.Unreachable || serverGiven)
        {
            Fail("server", failure.Message, null, failure.ExitCode);
        }
        catch (Failure)
        {
            Add("server", Note, $"none at {address}", "Start one with `tenantlora serve`, or name one with --server.");
        }
        Clock(date);
        if (date is not null) await KeyAsync(server);
    }

    private async Task KeyAsync(Server server)
    {
        if (key is null)
        {
            Add("key", Note, "none was given, so none was tried", "Use --key KEY or set TENANTLORA_KEY.");
            return;
        }
        try
        {
            var session = await server.SignInAsync();
            Add("key", Ok, $"known, of {session.Tenant} ({session.Name}), role {session.Role}", session.Role == "admin" ? null : "A member's key cannot look after adapters; an admin makes other keys.");
            if (address is { Scheme: "http", IsLoopback: false }) Add("key", Warning, $"goes to {address} unencrypted", "Put TLS before the server and use its https address.");
        }
        catch (Failure failure)
        {
            Fail("key", failure.Message, "Ask the tenant's admin for one; lost keys cannot be read back.", failure.ExitCode);
        }
    }

    /// <summary>Against the server's; without one, against the day this program was written to disk.</summary>
    private void Clock(DateTimeOffset? server)
    {
        var now = DateTimeOffset.UtcNow;
        var skew = now - server ?? TimeSpan.Zero;
        var made = File.GetLastWriteTimeUtc(typeof(DoctorCommand).Assembly.Location is { Length: > 0 } file ? file : AppContext.BaseDirectory);
        if (skew.Duration() > MostSkew) Add("clock", Warning, string.Create(CultureInfo.InvariantCulture, $"{skew.Duration().TotalMinutes:0} minutes {(skew > TimeSpan.Zero ? "ahead of" : "behind")} the server's"), "Set both by NTP: session tokens run out by the clock.");
        else if (now.UtcDateTime.AddDays(1) < made) Add("clock", Warning, $"{Terminal.Time(now)}, which is before this program was installed", "Set it by NTP.");
        else Add("clock", Ok, Terminal.Time(now) + (server is null ? "" : ", as the server's"));
    }

    private void Add(string name, string state, string found, string? fix = null) => checks.Add(new Check(name, state, found, fix));

    /// <summary>This machine's faults outweigh the server's.</summary>
    private void Fail(string name, string found, string? fix, int code = ExitCode.Failed)
    {
        Add(name, Failed, found, fix);
        exitCode = exitCode == ExitCode.Failed ? exitCode : code;
    }

    private sealed record Check(string Name, string State, string Found, string? Fix);
}
