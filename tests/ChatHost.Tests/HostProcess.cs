using System.Diagnostics;
using System.Runtime.InteropServices;
using System.Text.Json;
using System.Text.RegularExpressions;

namespace TenantLora.ChatHost.Tests;

/// <summary>The host as a process of its own.</summary>
internal sealed partial class HostProcess : IDisposable
{
    public const int SigTerm = 15, SigKill = 9;
    private readonly List<string> output = [];

    private HostProcess(Process process, string data) => (Process, Data) = (process, data);

    public Process Process { get; }

    public string Data { get; }

    /// <summary>Where it listens, as its banner says.</summary>
    public Uri Url { get; private set; } = null!;

    /// <summary>What it has written so far, both ways.</summary>
    public string Output
    {
        get { lock (output) return string.Join('\n', output); }
    }

    /// <summary>Starts one and waits for its banner.</summary>
    /// <param name="settings">In the section TenantLora, or whole where they begin with two dashes; null: one that does all, on the Cpu.</param>
    /// <param name="before">A line for bash to run first, in the process that becomes the host; null: none.</param>
    public static async Task<HostProcess> StartAsync(string data, string[]? settings = null, string? before = null)
    {
        settings ??= ["Device=cpu"];
        string[] urls = settings.Any(s => s.StartsWith("--urls", StringComparison.Ordinal)) ? [] : ["--urls=http://127.0.0.1:0"];
        string[] words = [Path.Combine(AppContext.BaseDirectory, "TenantLora.ChatHost.dll"), .. urls, $"--TenantLora:Data={data}", .. settings.Select(s => s.StartsWith("--", StringComparison.Ordinal) ? s : "--TenantLora:" + s)];
        var start = before is null ? new ProcessStartInfo("dotnet", words) : new ProcessStartInfo("bash", ["-c", $"{before}; exec dotnet \"$@\"", "bash", .. words]);
        (start.RedirectStandardOutput, start.RedirectStandardError, start.WorkingDirectory) = (true, true, data);      // models and adapters are found from the binary
        start.Environment["DOTNET_EnableWriteXorExecute"] = "0";        // its second mapping of code is a large file, which a limit on files would meet first
        var host = new HostProcess(Process.Start(start)!, data);
        var listens = new TaskCompletionSource<Uri>(TaskCreationOptions.RunContinuationsAsynchronously);
        host.Process.OutputDataReceived += Take;
        host.Process.ErrorDataReceived += Take;
        host.Process.BeginOutputReadLine();
        host.Process.BeginErrorReadLine();
        _ = host.Process.WaitForExitAsync().ContinueWith(_ => listens.TrySetException(new InvalidOperationException(host.Output)), TaskScheduler.Default);
        host.Url = await listens.Task.WaitAsync(TimeSpan.FromSeconds(90));
        return host;

        void Take(object sender, DataReceivedEventArgs line)
        {
            if (line.Data is null) return;
            lock (host.output) host.output.Add(line.Data);
            if (AddressLine().Match(line.Data) is { Success: true } match) listens.TrySetResult(new Uri(match.Groups["url"].Value));
        }
    }

    /// <summary>A tenant's key, in demo mode.</summary>
    public string Key(string tenant) => JsonDocument.Parse(File.ReadAllBytes(Path.Combine(Data, "demo-keys.json"))).RootElement.GetProperty(tenant).GetString()!;

    public HttpClient Client(string tenant)
    {
        var client = new HttpClient { BaseAddress = Url, Timeout = TimeSpan.FromSeconds(90) };
        client.DefaultRequestHeaders.Authorization = new("Bearer", Key(tenant));
        return client;
    }

    /// <summary>A number of /proc: of <c>status</c> in KiB, of <c>io</c> in bytes.</summary>
    public long Proc(string file, string name) =>
        long.Parse(File.ReadLines($"/proc/{Process.Id}/{file}").Single(l => l.StartsWith(name + ":", StringComparison.Ordinal)).Split((char[])[':', ' ', '\t'], StringSplitOptions.RemoveEmptyEntries)[1], System.Globalization.CultureInfo.InvariantCulture);

    public void Signal(int signal) => Assert.Equal(0, Kill(Process.Id, signal));

    /// <summary>Its exit status.</summary>
    public async Task<int> EndAsync(int signal)
    {
        Signal(signal);
        await Process.WaitForExitAsync().WaitAsync(TimeSpan.FromSeconds(60));
        return Process.ExitCode;
    }

    public void Dispose()
    {
        if (!Process.HasExited)
        {
            Process.Kill();
            Process.WaitForExit();
        }
        Process.Dispose();
    }

    [GeneratedRegex("^  address  (?<url>http://.+)$")]
    private static partial Regex AddressLine();

    [LibraryImport("libc", EntryPoint = "kill")]
    private static partial int Kill(int process, int signal);
}
