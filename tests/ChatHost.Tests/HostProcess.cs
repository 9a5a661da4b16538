using System.Diagnostics;
using System.Net.Http.Headers;
using System.Text.Json;
using System.Text.RegularExpressions;

namespace TenantLora.ChatHost.Tests;

/// <summary>The host as a process of its own with the demo model: what it does to its memory, its files and its signals is its alone.</summary>
internal sealed partial class HostProcess : IDisposable
{
    private readonly string data;

    private HostProcess(Process process, string data, Uri url) => (Process, this.data, Url) = (process, data, url);

    public Process Process { get; }

    public Uri Url { get; }

    /// <summary>Starts it and waits for its banner.</summary>
    /// <param name="before">A line for bash to run first, in the process that becomes the host; null: none.</param>
    public static async Task<HostProcess> StartAsync(string data, string? before = null, params string[] args)
    {
        string[] words = [Path.Combine(AppContext.BaseDirectory, "TenantLora.ChatHost.dll"), "--urls=http://127.0.0.1:0", .. args, $"--TenantLora:Data={data}", "--TenantLora:Device=cpu"];
        var start = before is null ? new ProcessStartInfo("dotnet", words) : new ProcessStartInfo("bash", ["-c", $"{before}; exec dotnet \"$@\"", "bash", .. words]);
        (start.RedirectStandardOutput, start.RedirectStandardError, start.WorkingDirectory) = (true, true, data);
        start.Environment["DOTNET_EnableWriteXorExecute"] = "0";        // its second mapping of code is a large file, which a limit on files would meet first
        var process = Process.Start(start)!;
        while (await process.StandardOutput.ReadLineAsync().WaitAsync(TimeSpan.FromSeconds(60)) is { } line)
            if (Address().Match(line) is { Success: true } match)
            {
                _ = process.StandardOutput.ReadToEndAsync();
                _ = process.StandardError.ReadToEndAsync();
                return new HostProcess(process, data, new Uri(match.Groups["url"].Value));
            }
        throw new InvalidOperationException(await process.StandardError.ReadToEndAsync());
    }

    public string Key(string tenant) => JsonSerializer.Deserialize<Dictionary<string, string>>(File.ReadAllText(Path.Combine(data, "demo-keys.json")))![tenant];

    public HttpClient Client(string tenant)
    {
        var client = new HttpClient { BaseAddress = Url, Timeout = TimeSpan.FromSeconds(60) };
        client.DefaultRequestHeaders.Authorization = new AuthenticationHeaderValue("Bearer", Key(tenant));
        return client;
    }

    /// <summary>A number of /proc: of <c>status</c> in KiB, of <c>io</c> in bytes.</summary>
    public long Proc(string file, string name) =>
        long.Parse(File.ReadLines($"/proc/{Process.Id}/{file}").Single(l => l.StartsWith(name + ":", StringComparison.Ordinal)).Split((char[])[':', ' ', '\t'], StringSplitOptions.RemoveEmptyEntries)[1], System.Globalization.CultureInfo.InvariantCulture);

    public void Dispose()
    {
        Process.Kill();
        Process.WaitForExit();
        Process.Dispose();
    }

    [GeneratedRegex("^ *address +(?<url>http://[^ ]+)$")]
    private static partial Regex Address();
}
