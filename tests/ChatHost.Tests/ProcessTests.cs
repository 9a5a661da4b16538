using System.Diagnostics;
using System.Net;
using System.Net.Http.Headers;
using System.Runtime.InteropServices;
using TenantLora.Tests;

namespace TenantLora.ChatHost.Tests;

/// <summary>The host as a process with the demo model: what a person sees at start, and what a signal does.</summary>
public sealed partial class ProcessTests : IDisposable
{
    private const int SigTerm = 15, SigKill = 9;
    private readonly string data = Directory.CreateTempSubdirectory("tenantlora-").FullName;

    public void Dispose() => Directory.Delete(data, recursive: true);

    [Fact]
    public async Task SIGTERM_lets_both_roads_finish_and_ends_with_0()
    {
        if (OperatingSystem.IsWindows()) Assert.Skip("There are no signals to send on Windows.");
        using var process = Start();
        var (url, key) = await BannerAsync(process);
        using var client = new HttpClient { BaseAddress = url };
        client.DefaultRequestHeaders.Authorization = new AuthenticationHeaderValue("Bearer", key);
        await using var hub = await HubConnection.OpenAsync(url, key);
        // Hot sampling over the whole vocabulary hardly ever meets an end token; the bias forbids them where it can be sent.
        var overHttp = client.SendAsync(new HttpRequestMessage(HttpMethod.Post, "/v1/completions")
        {
            Content = TestHost.Json("""{"model":"harbor","stream":true,"prompt":"Once","max_tokens":200,"logit_bias":{"4089":-100,"4091":-100}}"""),
        }, HttpCompletionOption.ResponseHeadersRead);
        var (_, messages) = await hub.StreamAsync("Send", """{"model":"harbor","messages":[{"role":"user","content":"Hi"}],"options":{"temperature":2,"seed":1,"maxTokens":200}}""");
        using var begun = await overHttp;
        await messages.ReadAsync();
        Assert.Equal(0, Kill(process.Id, SigTerm));

        await TestHost.UntilAsync(() => client.GetAsync("/health/ready").Result.StatusCode == HttpStatusCode.ServiceUnavailable || process.HasExited, "it drains");
        var text = await begun.Content.ReadAsStringAsync();
        Assert.Contains("\"finish_reason\":\"length\"", text, StringComparison.Ordinal);
        Assert.EndsWith("data: [DONE]\n\n", text, StringComparison.Ordinal);
        var (events, error) = await HubConnection.DrainAsync(messages);
        Assert.Null(error);
        Assert.Equal("done", events[^1].GetProperty("type").GetString());
        await process.WaitForExitAsync().WaitAsync(TimeSpan.FromSeconds(30));
        Assert.Equal(0, process.ExitCode);
    }

    [Fact]
    public async Task A_second_signal_ends_at_once()
    {
        if (OperatingSystem.IsWindows()) Assert.Skip("There are no signals to send on Windows.");
        using var process = Start();
        var (url, key) = await BannerAsync(process);
        using var client = new HttpClient { BaseAddress = url };
        client.DefaultRequestHeaders.Authorization = new AuthenticationHeaderValue("Bearer", key);
        var answer = client.PostAsync("/v1/completions", TestHost.Json("""{"model":"harbor","prompt":"Once","max_tokens":2000,"logit_bias":{"4089":-100,"4091":-100}}"""));
        await TestHost.UntilAsync(() => client.GetStringAsync("/metrics").Result.Contains("tenantlora_requests_running 1", StringComparison.Ordinal), "it runs");
        Assert.Equal(0, Kill(process.Id, SigTerm));
        await Task.Delay(200);
        Assert.Equal(0, Kill(process.Id, SigTerm));
        await process.WaitForExitAsync().WaitAsync(TimeSpan.FromSeconds(5));
        await Assert.ThrowsAnyAsync<HttpRequestException>(() => answer);
    }

    [Fact]
    public async Task Bad_options_are_all_named_in_one_message_without_a_stack()
    {
        using var process = Start("--TenantLora:StepTokens=-1", "--TenantLora:KeepAliveSeconds=NaN", "--TenantLora:Modle=x", "--TenantLora:Tenants:harbor:KeyHashes:0=abc");
        var error = await FailsAsync(process);
        Assert.Equal(
            """
            TenantLora did not start.
              TenantLora:Modle: there is no such option.
              TenantLora:StepTokens: expected 0 or more, found -1.
              TenantLora:KeepAliveSeconds: expected seconds above 0, up to 3600, found NaN.
              TenantLora:Tenants:harbor:KeyHashes: expected SHA-256 as 64 hex digits, found 3 characters.
            """, error.TrimEnd(), ignoreLineEndingDifferences: true);
    }

    [Theory]
    [InlineData("--TenantLora:Threads=many", "'TenantLora:Threads'")]
    [InlineData("--TenantLora:Model=models/absent", "TenantLora:Model: there is no folder 'models/absent'")]
    [InlineData("--TenantLora:Tenants:harbor:Adapters:harbor=adapters/absent", "TenantLora:Tenants:harbor:Adapters:harbor: there is no folder")]
    [InlineData("--TenantLora:Model=adapters/harbor", "config.json")]
    [InlineData("--TenantLora:Tenants:harbor:Adapters:harbor=models/demo-7m", "adapter_config.json")]
    public async Task What_keeps_it_from_starting_is_said_in_a_line(string option, string says)
    {
        using var process = Start(option);
        var error = await FailsAsync(process);
        Assert.StartsWith("TenantLora did not start.", error, StringComparison.Ordinal);
        Assert.Contains(says, error, StringComparison.Ordinal);
        Assert.DoesNotContain("   at ", error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_port_in_use_is_said_in_a_line()
    {
        var taken = new System.Net.Sockets.TcpListener(IPAddress.Loopback, 0);
        taken.Start();
        using var process = Start($"--urls=http://127.0.0.1:{((IPEndPoint)taken.LocalEndpoint).Port}");
        var error = await FailsAsync(process);
        Assert.Contains("address already in use", error, StringComparison.Ordinal);
        Assert.DoesNotContain("   at ", error, StringComparison.Ordinal);
        taken.Stop();
    }

    /// <summary>Killed at any moment of an upload, the host has each version whole or not at all when it is back, and every one that it acknowledged.</summary>
    [Fact]
    public async Task A_kill_loses_nothing_that_was_acknowledged_and_leaves_nothing_half()
    {
        if (OperatingSystem.IsWindows()) Assert.Skip("There are no signals to send on Windows.");
        var (random, acknowledged, sent, cutShort) = (new Random(3), new List<string>(), 0, 0);
        var config = System.Text.Json.Nodes.JsonNode.Parse(await File.ReadAllTextAsync(Repo.Path("adapters", "harbor", "adapter_config.json")))!;
        var weights = await File.ReadAllBytesAsync(Repo.Path("adapters", "harbor", "adapter_model.safetensors"));
        for (var round = 0; round < 6; round++)
        {
            using var process = Start();
            var (url, key) = await BannerAsync(process);
            using var client = new HttpClient { BaseAddress = url };
            client.DefaultRequestHeaders.Authorization = new AuthenticationHeaderValue("Bearer", key);
            await CheckAsync(client);
            // Some time after the first of this round, however fast the machine is.
            var first = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
            var wait = random.Next(250);
            var killer = Task.Run(async () =>
            {
                await first.Task;
                await Task.Delay(wait);
                return Kill(process.Id, SigKill);
            });
            try
            {
                while (true)
                {
                    config["lora_alpha"] = 100 + ++sent;
                    using var form = new MultipartFormDataContent
                    {
                        { new StringContent(config.ToJsonString()), "f", "adapter_config.json" },
                        { new ByteArrayContent(weights), "f", "adapter_model.safetensors" },
                    };
                    using var response = await client.PostAsync("/api/tenants/harbor/adapters/many/versions", form);
                    Assert.Equal(HttpStatusCode.Created, response.StatusCode);
                    acknowledged.Add((await TestHost.ReadAsync(response)).GetProperty("version").GetProperty("digest").GetString()!);
                    first.TrySetResult();
                }
            }
            catch (Exception e) when (e is HttpRequestException or IOException)
            {
                cutShort++;
            }
            await killer;
            await process.WaitForExitAsync();
        }
        using var last = Start();
        var (address, token) = await BannerAsync(last);
        using var admin = new HttpClient { BaseAddress = address };
        admin.DefaultRequestHeaders.Authorization = new AuthenticationHeaderValue("Bearer", token);
        await CheckAsync(admin);
        Assert.Equal(6, cutShort);
        Assert.True(acknowledged.Count >= 6, $"{acknowledged.Count} were acknowledged.");
        TestContext.Current.TestOutputHelper?.WriteLine($"{sent} uploads begun, {acknowledged.Count} acknowledged, {cutShort} kills");
        Assert.Equal(0, Kill(last.Id, SigKill));
        await last.WaitForExitAsync();

        async Task CheckAsync(HttpClient client)
        {
            using var response = await client.GetAsync("/api/tenants/harbor/adapters/many");
            var listed = response.StatusCode == HttpStatusCode.NotFound ? [] : (await TestHost.ReadAsync(response)).GetProperty("versionList").EnumerateArray().Select(v => v.GetProperty("digest").GetString()!).ToArray();
            Assert.Superset(acknowledged.ToHashSet(), listed.ToHashSet());
            var adapters = Path.Combine(data, "adapters");
            Assert.Empty(Directory.GetFileSystemEntries(Path.Combine(adapters, "staging")));
            var folders = Directory.GetDirectories(adapters).Where(d => Path.GetFileName(d).Length == 2).SelectMany(Directory.GetDirectories).ToArray();
            Assert.Equal(listed.Length + 5, folders.Length);         // and the five tenants' own
            Assert.All(folders, f => Assert.Equal(2, Directory.GetFiles(f).Length));
            // Each answers: its bytes are those of its digest, or the host would refuse it.
            foreach (var digest in listed.Take(3))
            {
                using var answer = await client.PostAsync("/v1/completions", TestHost.Json($$"""{"model":"many@{{digest}}","prompt":"Hi","max_tokens":1}"""));
                Assert.Equal(HttpStatusCode.OK, answer.StatusCode);
            }
        }
    }

    private Process Start(params string[] args) => Process.Start(new ProcessStartInfo("dotnet",
        [Path.Combine(AppContext.BaseDirectory, "TenantLora.ChatHost.dll"), .. args.Any(a => a.StartsWith("--urls", StringComparison.Ordinal)) ? args : ["--urls=http://127.0.0.1:0", .. args], $"--TenantLora:Data={data}"])
    {
        RedirectStandardOutput = true,
        RedirectStandardError = true,
        WorkingDirectory = data, // models and adapters are found from the binary
    })!;

    /// <summary>Reads the banner as a person would, and takes address and key out of its curl line.</summary>
    private static async Task<(Uri Url, string Key)> BannerAsync(Process process)
    {
        while (await process.StandardOutput.ReadLineAsync().WaitAsync(TimeSpan.FromSeconds(60)) is { } line)
            if (CurlLine().Match(line) is { Success: true } match)
            {
                _ = process.StandardOutput.ReadToEndAsync();
                return (new Uri(match.Groups["url"].Value), match.Groups["key"].Value);
            }
        throw new InvalidOperationException(await process.StandardError.ReadToEndAsync());
    }

    private static async Task<string> FailsAsync(Process process)
    {
        var error = process.StandardError.ReadToEndAsync();
        await process.WaitForExitAsync().WaitAsync(TimeSpan.FromSeconds(60));
        Assert.Equal(1, process.ExitCode);
        return await error;
    }

    [System.Text.RegularExpressions.GeneratedRegex("""curl (?<url>http://[^/]+)/v1/chat/completions -H "Authorization: Bearer (?<key>tl_[^"]+)""")]
    private static partial System.Text.RegularExpressions.Regex CurlLine();

    [LibraryImport("libc", EntryPoint = "kill")]
    private static partial int Kill(int process, int signal);
}
