using System.Diagnostics;
using System.Runtime.InteropServices;
using System.Text.Json;
using System.Text.RegularExpressions;

namespace TenantLora.ChatHost.Tests;

/// <summary>The host as a process of its own.</summary>
internal sealed partial class HostProcess : IDisposable
{
    public const int SigTerm = 15, SigKill = 9;
    private readonly Process process;

    private HostProcess(Process process, string data) => (this.process, Data) = (process, data);

    public string Data { get; }

    /// <summary>Where it listens, as its banner says.</summary>
    public Uri Url { get; private set; } = null!;

    /// <summary>What it has written so far, both ways.</summary>
    public string Output
    {
        get { lock (output) return string.Join('\n', output); }
    }

    private readonly List<string> output = [];

    /// <summary>Starts one and waits for its banner.</summary>
    /// <param name="settings">In the section TenantLora, or whole where they begin with two dashes.</param>
    public static async Task<HostProcess> StartAsync(string data, params string[] settings)
    {
        string[] urls = settings.Any(s => s.StartsWith("--urls", StringComparison.Ordinal)) ? [] : ["--urls=http://127.0.0.1:0"];
        var host = new HostProcess(Process.Start(new ProcessStartInfo("dotnet",
            [Path.Combine(AppContext.BaseDirectory, "TenantLora.ChatHost.dll"), .. urls, $"--TenantLora:Data={data}", .. settings.Select(s => s.StartsWith("--", StringComparison.Ordinal) ? s : "--TenantLora:" + s)])
        {
            RedirectStandardOutput = true,
            RedirectStandardError = true,
            WorkingDirectory = data,        // models and adapters are found from the binary
        })!, data);
        var listens = new TaskCompletionSource<Uri>(TaskCreationOptions.RunContinuationsAsynchronously);
        host.process.OutputDataReceived += Take;
        host.process.ErrorDataReceived += Take;
        host.process.BeginOutputReadLine();
        host.process.BeginErrorReadLine();
        _ = host.process.WaitForExitAsync().ContinueWith(_ => listens.TrySetException(new InvalidOperationException(host.Output)), TaskScheduler.Default);
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

    public void Signal(int signal) => Assert.Equal(0, Kill(process.Id, signal));

    /// <summary>Its exit status.</summary>
    public async Task<int> EndAsync(int signal)
    {
        Signal(signal);
        await process.WaitForExitAsync().WaitAsync(TimeSpan.FromSeconds(60));
        return process.ExitCode;
    }

    public void Dispose()
    {
        if (!process.HasExited)
        {
            process.Kill();
            process.WaitForExit();
        }
        process.Dispose();
    }

    [GeneratedRegex("^  address  (?<url>http://.+)$")]
    private static partial Regex AddressLine();

    [LibraryImport("libc", EntryPoint = "kill")]
    private static partial int Kill(int process, int signal);
}
