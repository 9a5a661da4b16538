using System.Diagnostics;
using System.Globalization;
using System.Net;
using System.Text;
using System.Text.Json.Nodes;
using static TenantLora.ChatHost.Tests.Adapters.AdapterApiTests;

namespace TenantLora.ChatHost.Tests.Adapters;

/// <summary>What uploads do to a host's memory, disk and work: told from outside, of a process that does nothing else.</summary>
public sealed class UploadProcessTests : IDisposable
{
    private readonly string data = Directory.CreateTempSubdirectory("tenantlora-").FullName;

    public void Dispose() => Directory.Delete(data, recursive: true);

    /// <summary>Neither the answer nor the work behind it tells that another tenant has these bytes already.</summary>
    [Fact]
    public async Task The_same_bytes_of_another_tenant_are_answered_and_worked_on_as_if_they_were_new()
    {
        if (!OperatingSystem.IsLinux()) Assert.Skip("There is no /proc.");
        using var host = await HostProcess.StartAsync(data);
        var files = Files("harbor");
        var config = JsonNode.Parse(files[0].Bytes)!;
        config["lora_alpha"] = 17;                      // nobody has this one
        (string, byte[])[] fresh = [(files[0].Name, Encoding.UTF8.GetBytes(config.ToJsonString())), files[1]];
        async Task<(HttpStatusCode Status, string Headers, JsonNode Body, long Requests, long Read)> Bring(string tenant, (string, byte[])[] what)
        {
            using var admin = host.Client(tenant);
            var (requests, read) = (await RequestsAsync(admin), host.Proc("io", "rchar"));
            using var response = await admin.PostAsync($"/api/tenants/{tenant}/adapters/new/versions", Form(what));
            var body = JsonNode.Parse(await response.Content.ReadAsStringAsync())!;
            var names = string.Join(", ", response.Headers.Concat(response.Content.Headers).Select(h => h.Key).Order(StringComparer.Ordinal));
            return (response.StatusCode, names, body, await RequestsAsync(admin) - requests, host.Proc("io", "rchar") - read);
        }
        await Bring("sprout", Files("ledger"));         // so that nothing is done for the first time
        var (first, second) = (await Bring("harbor", fresh), await Bring("ledger", fresh));
        Assert.Equal((HttpStatusCode.Created, true), (first.Status, first.Body["created"]!.GetValue<bool>()));
        foreach (var answer in new[] { first, second })
        {
            Assert.Contains(answer.Body["version"]!["findings"]!.AsArray(), f => f!["code"]!.GetValue<string>() == "smoke_ok");
            answer.Body["version"]!["createdAt"] = null;
        }
        Assert.Equal((first.Status, first.Headers, first.Body.ToJsonString()), (second.Status, second.Headers, second.Body.ToJsonString()));
        Assert.Equal((2, 2), (first.Requests, second.Requests));            // the smoke run: without it and with it
        Assert.InRange((double)second.Read / first.Read, 0.9, 1.1);         // as many bytes read from sockets and files
        TestContext.Current.TestOutputHelper?.WriteLine($"{first.Read} and {second.Read} bytes read");
    }

    [Fact]
    public async Task Millions_of_chunks_of_one_byte_leave_no_memory_behind()
    {
        if (!OperatingSystem.IsLinux()) Assert.Skip("There is no /proc.");
        const int Bytes = 1_000_000, Warm = 3, Times = 6;
        using var host = await HostProcess.StartAsync(data);
        using var form = Form([.. Files("ledger"), ("notes.txt", new byte[Bytes - 200_000])]);
        var body = await form.ReadAsByteArrayAsync();
        var head = $"POST /api/tenants/harbor/adapters/new/versions HTTP/1.1\r\nHost: {host.Url.Authority}\r\nAuthorization: Bearer {host.Key("harbor")}\r\nContent-Type: {form.Headers.ContentType}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
        var request = new byte[head.Length + (body.Length * 6) + 5];
        Encoding.ASCII.GetBytes(head, request);
        for (var i = 0; i < body.Length; i++)
        {
            "1\r\nx\r\n"u8.CopyTo(request.AsSpan(head.Length + (i * 6)));
            request[head.Length + (i * 6) + 3] = body[i];
        }
        "0\r\n\r\n"u8.CopyTo(request.AsSpan(request.Length - 5));
        var before = 0L;
        for (var i = 0; i < Warm + Times; i++)
        {
            var (answer, _) = await RawHttp.SendAsync(host.Url, request);
            Assert.StartsWith(i == 0 ? "HTTP/1.1 201" : "HTTP/1.1 200", answer, StringComparison.Ordinal);
            if (i == Warm - 1) before = host.Proc("status", "VmRSS");
        }
        var grown = host.Proc("status", "VmRSS") - before;
        TestContext.Current.TestOutputHelper?.WriteLine($"{grown} KiB more after {Times} times {body.Length} chunks");
        Assert.InRange(grown, long.MinValue, 24 << 10);         // five bytes a chunk would be more
    }

    [Fact]
    public async Task On_a_full_disk_uploads_are_refused_and_everything_else_goes_on()
    {
        if (!OperatingSystem.IsLinux() || Run("mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", data) != 0) Assert.Skip("No file system of our own can be mounted here.");
        try
        {
            using var host = await HostProcess.StartAsync(data);
            using var admin = host.Client("harbor");
            using var other = host.Client("sprout");
            await AnswersAsync(other);
            var filler = Path.Combine(data, "filler");
            await FillAsync(filler, leave: 200_000);
            await RefusedAsync(admin, Form("harbor"), HttpStatusCode.InsufficientStorage, "no_space");
            await AnswersAsync(other);

            // Not a byte more: the store cannot write either.
            await FillAsync(filler, leave: 0);
            using (var key = await admin.PostAsync("/api/tenants/harbor/keys", TestHost.Json("""{"label":"x","role":"member"}""")))
                Assert.True(key.StatusCode is HttpStatusCode.Created or HttpStatusCode.ServiceUnavailable, $"{key.StatusCode}");
            await RefusedAsync(admin, Form("harbor"), HttpStatusCode.InsufficientStorage, "no_space");
            await AnswersAsync(other);

            File.Delete(filler);
            await TakenAsync(admin, "harbor");
            await AnswersAsync(other);
        }
        finally
        {
            Assert.Equal(0, Run("umount", "-l", data));
        }
    }

    [Fact]
    public async Task Beyond_a_limit_on_the_size_of_files_an_upload_is_refused_and_the_host_lives()
    {
        if (OperatingSystem.IsWindows()) Assert.Skip("Windows has no such limit.");
        using var host = await HostProcess.StartAsync(data, before: "ulimit -f 1024");
        using var admin = host.Client("harbor");
        var noise = new byte[1_500_000];
        new Random(1).NextBytes(noise);
        await RefusedAsync(admin, Raw(Zip([.. Files("ledger"), ("noise", noise)]), "application/zip"), HttpStatusCode.InsufficientStorage, "no_space");
        using var other = host.Client("sprout");
        await AnswersAsync(other);
        await TakenAsync(admin, "ledger");
        Assert.False(host.Process.HasExited);
    }

    private async Task RefusedAsync(HttpClient admin, HttpContent content, HttpStatusCode status, string code)
    {
        using var refused = await admin.PostAsync("/api/tenants/harbor/adapters/new/versions", content);
        var answer = await refused.Content.ReadAsStringAsync();
        Assert.True(refused.StatusCode == status && answer.Contains($"\"code\":\"{code}\"", StringComparison.Ordinal), $"{refused.StatusCode}: {answer}");
        Assert.DoesNotContain(data, answer, StringComparison.Ordinal);
        using var missing = await admin.GetAsync("/api/tenants/harbor/adapters/new");
        Assert.Equal(HttpStatusCode.NotFound, missing.StatusCode);
        await TestHost.UntilAsync(() => Directory.GetFileSystemEntries(Path.Combine(data, "adapters", "staging")).Length == 0, "staging is empty");
    }

    private static async Task TakenAsync(HttpClient admin, string adapter)
    {
        using var brought = await admin.PostAsync("/api/tenants/harbor/adapters/new/versions", Form(adapter));
        Assert.True(brought.StatusCode == HttpStatusCode.Created, await brought.Content.ReadAsStringAsync());
    }

    private static async Task AnswersAsync(HttpClient other)
    {
        using var answer = await other.PostAsync("/v1/chat/completions", TestHost.Json("""{"model":"sprout","max_tokens":2,"messages":[{"role":"user","content":"Hi"}]}"""));
        Assert.Equal(HttpStatusCode.OK, answer.StatusCode);
        using var live = await other.GetAsync("/health/live");
        Assert.Equal(HttpStatusCode.OK, live.StatusCode);
    }

    /// <summary>Requests that the runtime has ended.</summary>
    private static async Task<long> RequestsAsync(HttpClient client) =>
        (await client.GetStringAsync("/metrics")).Split('\n').Where(l => l.StartsWith("tenantlora_requests_total{", StringComparison.Ordinal)).Sum(l => long.Parse(l[(l.LastIndexOf(' ') + 1)..], CultureInfo.InvariantCulture));

    /// <summary>Writes until so many bytes are left, or none.</summary>
    private async Task FillAsync(string file, long leave)
    {
        await using var stream = new FileStream(file, FileMode.Append, FileAccess.Write, FileShare.None, 0);
        var block = new byte[4096];
        try
        {
            while (new DriveInfo(data).AvailableFreeSpace - block.Length >= leave) await stream.WriteAsync(block);
        }
        catch (IOException)
        {
            // Full.
        }
    }

    private static int Run(string program, params string[] arguments)
    {
        using var process = Process.Start(new ProcessStartInfo(program, arguments) { RedirectStandardError = true })!;
        process.StandardError.ReadToEnd();
        process.WaitForExit();
        return process.ExitCode;
    }
}
