using System.Diagnostics;
using TenantLora.Runtime;
using TenantLora.Tests;

namespace TenantLora.ChatHost.Tests;

/// <summary>Runs node/clients.test.js: openai-node and SignalR's JavaScript client against the listening host.</summary>
public sealed class NodeClientTests
{
    private static readonly string Folder = Repo.Path("tests", "ChatHost.Tests", "node");

    [Fact]
    public async Task JavaScript_clients_work()
    {
        if (await RunAsync("node", ["--version"]) is not { Code: 0 }) Missing("node is not installed");
        if (!Directory.Exists(Path.Combine(Folder, "node_modules")) && await RunAsync("npm", ["ci", "--no-audit", "--no-fund"]) is not { Code: 0 })
            Missing("npm ci did not work in tests/ChatHost.Tests/node");
        await using var host = await TestHost.StartAsync(new FakeRuntime { Answer = Answer });
        var (code, output) = await RunAsync("node", ["--test", "--test-reporter=spec", "clients.test.js"], ("TENANTLORA_URL", host.Url.ToString().TrimEnd('/')), ("TENANTLORA_KEY", host.Keys["harbor"]));
        Assert.True(code == 0, output);
    }

    private static IAsyncEnumerable<GenerationEvent> Answer(GenerationRequest request, CancellationToken token) => request.Messages?[^1].Content switch
    {
        "fail" => FakeRuntime.Fails(new TenantLoraException(ErrorCodes.NotANumber, "The adapter's numbers went bad."), new GenerationQueued(0, 31), new TextDelta("Aye")),
        "endless" => FakeRuntime.Endless(token),
        _ => FakeRuntime.Says(token, "Aye", ", ", "we are open."),
    };

    private static void Missing(string what)
    {
        if (Environment.GetEnvironmentVariable("TENANTLORA_REQUIRE_ALL") == "1") Assert.Fail(what);
        Assert.Skip($"{what}, so the JavaScript clients were not tried. TENANTLORA_REQUIRE_ALL=1 makes this a failure.");
    }

    private static async Task<(int Code, string Output)> RunAsync(string program, string[] args, params (string Name, string Value)[] variables)
    {
        var start = new ProcessStartInfo(program, args) { WorkingDirectory = Folder, RedirectStandardOutput = true, RedirectStandardError = true };
        foreach (var (name, value) in variables) start.Environment[name] = value;
        try
        {
            using var process = Process.Start(start)!;
            var output = process.StandardOutput.ReadToEndAsync();
            var error = process.StandardError.ReadToEndAsync();
            await process.WaitForExitAsync().WaitAsync(TimeSpan.FromMinutes(3));
            return (process.ExitCode, await output + await error);
        }
        catch (System.ComponentModel.Win32Exception)
        {
            return (-1, $"{program} is not installed");
        }
    }
}
