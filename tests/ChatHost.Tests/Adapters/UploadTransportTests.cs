using System.Formats.Tar;
using System.IO.Compression;
using System.Net;
using System.Net.Http.Headers;
using System.Security.Cryptography;
using System.Text;
using static TenantLora.ChatHost.Tests.Adapters.AdapterApiTests;

namespace TenantLora.ChatHost.Tests.Adapters;

/// <summary>How uploads come: wrong, hostile, slow, cut and many at once. After each case another tenant is served, staging is empty and nothing was registered.</summary>
public sealed class UploadTransportTests(UploadTransportTests.SharedHost shared) : IClassFixture<UploadTransportTests.SharedHost>
{
    private const string Path = "/api/tenants/harbor/adapters/new/versions";

    public static TheoryData<string, int, string?> Cases() => new()
    {
        { "a path in JSON", 415, "unsupported_media_type" },
        { "a URL in JSON", 415, "unsupported_media_type" },
        { "no type", 415, "unsupported_media_type" },
        { "another type", 415, "unsupported_media_type" },
        { "a compressed body", 415, "unsupported_media_type" },
        { "an empty form", 400, "archive_layout" },
        { "one file missing", 400, "archive_layout" },
        { "another file instead", 400, "archive_layout" },
        { "two of one file", 400, "archive_layout" },
        { "a form of 100 parts", 400, "archive_layout" },
        { "a form of 1,025 fields", 400, "archive_layout" },
        { "no boundary", 400, "archive_layout" },
        { "a boundary of 200", 400, "archive_layout" },
        { "no final boundary", 400, "archive_layout" },
        { "part headers of 17 KB", 400, "archive_layout" },
        { "17 part headers", 400, "archive_layout" },
        { "a zip that is none", 400, "archive_layout" },
        { "a zip cut short", 400, "archive_layout" },
        { "a tar.gz that is none", 400, "archive_layout" },
        { "a tar.gz cut short", 400, "archive_layout" },
        { "an empty zip", 400, "archive_layout" },
        { "a zip that climbs", 400, "archive_unsafe" },
        { "a zip with an absolute path", 400, "archive_unsafe" },
        { "a zip with backslashes", 400, "archive_unsafe" },
        { "a zip with a link", 400, "archive_unsafe" },
        { "a zip of 100 entries", 400, "archive_unsafe" },
        { "a tar.gz that climbs", 400, "archive_unsafe" },
        { "a tar.gz with a link", 400, "archive_unsafe" },
        { "a tar.gz with a hard link", 400, "archive_unsafe" },
        { "a tar.gz with a device", 400, "archive_unsafe" },
        { "a zip bomb", 413, "request_too_large" },
        { "a gzip bomb", 413, "request_too_large" },
        { "a config of 2 MB", 413, "request_too_large" },
        { "a wrong SHA-256", 400, "archive_layout" },
        { "a SHA-256 that is none", 400, "archive_layout" },
        { "a pickle alone", 422, "adapter_refused" },
    };

    [Theory, MemberData(nameof(Cases))]
    public async Task A_wrong_upload_is_refused_by_name_and_leaves_nothing(string what, int status, string? code)
    {
        var host = shared.Host;
        using var admin = host.Client();
        using var request = new HttpRequestMessage(HttpMethod.Post, Path) { Content = Content(what) };
        if (what == "a wrong SHA-256") request.Headers.Add("X-Content-SHA256", Convert.ToHexStringLower(SHA256.HashData("another"u8)));
        if (what == "a SHA-256 that is none") request.Headers.Add("X-Content-SHA256", "abc");
        using var response = await admin.SendAsync(request);
        var answer = await response.Content.ReadAsStringAsync();
        Assert.True((int)response.StatusCode == status, $"{response.StatusCode}: {answer}");
        Assert.Contains($"\"code\":\"{code}\"", answer, StringComparison.Ordinal);
        Assert.DoesNotContain(host.Data, answer, StringComparison.Ordinal);
        Assert.DoesNotContain('\r', answer);
        await LeftNothing(host);
    }

    private static HttpContent? Content(string what)
    {
        var files = Files("ledger");
        (string Name, byte[] Bytes) config = files[0], weights = files[1];
        var zip = Zip(files);
        var tar = TarGz(files);
        return what switch
        {
            "a path in JSON" => TestHost.Json("""{"path":"/etc/passwd"}"""),
            "a URL in JSON" => TestHost.Json("""{"url":"http://127.0.0.1:1/adapter"}"""),
            "no type" => new ByteArrayContent(zip),
            "another type" => Raw(zip, "application/octet-stream"),
            "a compressed body" => Compressed(),
            "an empty form" => Form(),
            "one file missing" => Form(config),
            "another file instead" => Form(config, ("model.safetensors", weights.Bytes)),
            "two of one file" => Form(config, weights, weights),
            "a form of 100 parts" => Form([.. Enumerable.Range(0, 100).Select(i => ($"f{i}", new byte[1]))]),
            "a form of 1,025 fields" => Bare("b", string.Concat(Enumerable.Range(0, 1025).Select(i => $"--b\r\nContent-Disposition: form-data; name=f{i}\r\n\r\n\r\n")) + "--b--\r\n"),
            "no boundary" => Raw("--x--"u8.ToArray(), "multipart/form-data"),
            "a boundary of 200" => Bare(new string('b', 200), ""),
            "no final boundary" => Bare("b", "--b\r\nContent-Disposition: form-data; name=f; filename=adapter_config.json\r\n\r\n{}"),
            "part headers of 17 KB" => Bare("b", $"--b\r\nContent-Disposition: form-data; name=f; filename=adapter_config.json\r\nX: {new string('x', 17 << 10)}\r\n\r\n{{}}\r\n--b--\r\n"),
            "17 part headers" => Bare("b", $"--b\r\n{string.Concat(Enumerable.Range(0, 17).Select(i => $"X{i}: y\r\n"))}\r\n{{}}\r\n--b--\r\n"),
            "a zip that is none" => Raw(weights.Bytes, "application/zip"),
            "a zip cut short" => Raw(zip[..(zip.Length / 2)], "application/zip"),
            "a tar.gz that is none" => Raw(weights.Bytes, "application/gzip"),
            "a tar.gz cut short" => Raw(tar[..(tar.Length / 2)], "application/gzip"),
            "an empty zip" => Raw(Zip([]), "application/zip"),
            "a zip that climbs" => Raw(Zip([("../../adapter_config.json", config.Bytes), weights]), "application/zip"),
            "a zip with an absolute path" => Raw(Zip([("/tmp/adapter_config.json", config.Bytes), weights]), "application/zip"),
            "a zip with backslashes" => Raw(Zip([("..\\adapter_config.json", config.Bytes), weights]), "application/zip"),
            "a zip with a link" => Raw(LinkedZip(), "application/zip"),
            "a zip of 100 entries" => Raw(Zip([.. Enumerable.Range(0, 100).Select(i => ($"f{i}", new byte[1]))]), "application/zip"),
            "a tar.gz that climbs" => Raw(TarGz([("../adapter_config.json", config.Bytes), weights]), "application/gzip"),
            "a tar.gz with a link" => Raw(Tar(t => t.WriteEntry(new PaxTarEntry(TarEntryType.SymbolicLink, "adapter_config.json") { LinkName = "/etc/passwd" })), "application/gzip"),
            "a tar.gz with a hard link" => Raw(Tar(t => t.WriteEntry(new PaxTarEntry(TarEntryType.HardLink, "adapter_config.json") { LinkName = "/etc/passwd" })), "application/gzip"),
            "a tar.gz with a device" => Raw(Tar(t => t.WriteEntry(new PaxTarEntry(TarEntryType.CharacterDevice, "adapter_config.json") { DeviceMajor = 1, DeviceMinor = 5 })), "application/gzip"),
            "a zip bomb" => Raw(Zip([config, (weights.Name, new byte[256 << 20])]), "application/zip"),
            "a gzip bomb" => Raw(TarGz([("a", new byte[128 << 20]), ("b", new byte[128 << 20])]), "application/gzip"),
            "a config of 2 MB" => Form((config.Name, new byte[2 << 20]), weights),
            "a wrong SHA-256" or "a SHA-256 that is none" => Raw(zip, "application/zip"),
            "a pickle alone" => Form(config, ("adapter_model.bin", [0x80, 2, 0x2E])),
            _ => throw new ArgumentException(what, nameof(what)),
        };

        HttpContent Compressed()
        {
            var content = Raw(zip, "application/zip");
            content.Headers.ContentEncoding.Add("gzip");
            return content;
        }
        static ByteArrayContent Bare(string boundary, string body)
        {
            var content = new ByteArrayContent(Encoding.ASCII.GetBytes(body));
            content.Headers.TryAddWithoutValidation("Content-Type", $"multipart/form-data; boundary={boundary}");
            return content;
        }
        byte[] LinkedZip()
        {
            using var buffer = new MemoryStream();
            using (var archive = new ZipArchive(buffer, ZipArchiveMode.Create, leaveOpen: true))
            {
                var entry = archive.CreateEntry("adapter_config.json");
                entry.ExternalAttributes = unchecked((int)0xA1FF0000);
                using var content = entry.Open();
                content.Write("/etc/passwd"u8);
            }
            return buffer.ToArray();
        }
        static byte[] Tar(Action<TarWriter> write)
        {
            using var buffer = new MemoryStream();
            using (var packed = new GZipStream(buffer, CompressionLevel.Fastest, leaveOpen: true))
            using (var writer = new TarWriter(packed)) write(writer);
            return buffer.ToArray();
        }
    }

    [Theory]
    [InlineData("../../etc/passwd")]
    [InlineData("/etc/passwd")]
    [InlineData("..\\..\\x")]
    [InlineData("CON")]
    [InlineData("a\u202Eb")]
    public async Task Names_of_files_lead_nowhere(string folder)
    {
        var host = shared.Host;
        using var admin = host.Client();
        var (before, outside) = (Directory.GetFileSystemEntries("/tmp").Length, File.Exists("/etc/adapter_config.json"));
        using var response = await admin.PostAsync("/api/tenants/harbor/adapters/named/versions", Form([.. Files("ledger").Select(f => ($"{folder}/{f.Name}", f.Bytes))]));
        Assert.True(response.IsSuccessStatusCode, $"{response.StatusCode}");        // of a form, only what stands behind the last slash counts
        Assert.Equal(outside, File.Exists("/etc/adapter_config.json"));
        Assert.InRange(Directory.GetFileSystemEntries("/tmp").Length, 0, before + 50);
    }

    [Theory]
    [InlineData("..%2f..%2fx", 400)]
    [InlineData("%2e%2e%2fx", 400)]
    [InlineData("a%00b", 400)]
    [InlineData("a%0d%0ab", 400)]
    [InlineData(".hidden", 400)]
    [InlineData("a@v1", 400)]
    [InlineData("%E2%80%AEx", 400)]
    [InlineData("<b>", 400)]
    [InlineData("demo-7m", 409)]
    public async Task Names_of_adapters_are_plain(string name, int status)
    {
        var host = shared.Host;
        using var admin = host.Client();
        // Kestrel itself takes no zero and closes at once: a body that has gone by then leaves no broken pipe.
        using var response = await admin.PostAsync($"/api/tenants/harbor/adapters/{name}/versions", name.Contains("%00", StringComparison.Ordinal) ? Form(("f", [1])) : Form("ledger"));
        Assert.Equal(status, (int)response.StatusCode);
        using var tooLong = await admin.PostAsync($"/api/tenants/harbor/adapters/{new string('a', 65)}/versions", Form("ledger"));
        Assert.Equal(HttpStatusCode.BadRequest, tooLong.StatusCode);
        await LeftNothing(host);
    }

    [Fact]
    public async Task Nobody_without_a_key_is_read_and_too_much_is_refused_before_it_comes()
    {
        var host = shared.Host;
        async Task<string> Head(string headers)
        {
            // No body is ever sent: the answer must come without it.
            var (text, _) = await RawHttp.SendAsync(host.Url, Encoding.ASCII.GetBytes($"POST {Path} HTTP/1.1\r\nHost: {host.Url.Authority}\r\nConnection: close\r\nContent-Type: application/zip\r\n{headers}\r\n\r\n"));
            return text.Split('\r')[0];
        }
        Assert.Equal("HTTP/1.1 401 Unauthorized", await Head("Content-Length: 1000"));
        Assert.StartsWith("HTTP/1.1 413", await Head($"Authorization: Bearer {host.Keys["harbor"]}\r\nContent-Length: 99999999999"), StringComparison.Ordinal);
        await LeftNothing(host);
    }

    [Fact]
    public async Task A_chunked_body_is_cut_at_the_limit()
    {
        var host = shared.Host;
        using var admin = host.Client();
        var most = host.Service<Serving>().Engine!.MaxAdapterFileBytes;
        using var request = new HttpRequestMessage(HttpMethod.Post, Path) { Content = new StreamContent(new Zeros(most + (8 << 20))) };
        request.Content.Headers.ContentType = new MediaTypeHeaderValue("application/zip");
        request.Headers.TransferEncodingChunked = true;
        try
        {
            using var response = await admin.SendAsync(request);
            Assert.Equal(HttpStatusCode.RequestEntityTooLarge, response.StatusCode);
        }
        catch (HttpRequestException)
        {
            // The server answered and closed while we still sent; HttpClient shows the broken pipe.
        }
        await LeftNothing(host);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(50)]
    [InlineData(99)]
    public async Task A_client_that_goes_leaves_nothing(int percent)
    {
        var host = shared.Host;
        var body = Zip(Files("ledger"));
        using (var client = new System.Net.Sockets.TcpClient())
        {
            await client.ConnectAsync(host.Url.Host, host.Url.Port);
            var stream = client.GetStream();
            await stream.WriteAsync(Encoding.ASCII.GetBytes($"POST {Path} HTTP/1.1\r\nHost: {host.Url.Authority}\r\nAuthorization: Bearer {host.Keys["harbor"]}\r\nContent-Type: application/zip\r\nContent-Length: {body.Length}\r\n\r\n"));
            await stream.WriteAsync(body.AsMemory(0, body.Length * percent / 100));
            await Task.Delay(100);
        }
        await LeftNothing(host);
    }

    [Fact]
    public async Task A_slow_upload_ends_and_a_tenants_slow_uploads_keep_only_its_own_out()
    {
        await using var host = await TestHost.StartRealAsync();
        var slow = Enumerable.Range(0, 8).Select(_ => RawHttp.SendAsync(host.Url, Encoding.ASCII.GetBytes(
            $"POST {Path} HTTP/1.1\r\nHost: {host.Url.Authority}\r\nAuthorization: Bearer {host.Keys["harbor"]}\r\nContent-Type: application/zip\r\nContent-Length: 100000\r\nConnection: close\r\n\r\nPK"))).ToArray();
        await Task.Delay(300);
        using var ledger = host.Client("ledger");
        using var other = await ledger.PostAsync("/api/tenants/ledger/adapters/new/versions", Form("harbor"));
        Assert.Equal(HttpStatusCode.Created, other.StatusCode);
        var answers = (await Task.WhenAll(slow)).Select(a => a.Text.Length >= 12 ? a.Text[9..12] : "").ToArray();
        Assert.Equal(4, answers.Count(a => a == "429"));
        Assert.Equal(4, answers.Count(a => a is "408" or ""));         // Kestrel: below 240 bytes a second after five seconds
        await LeftNothing(host);
    }

    [Fact]
    public async Task A_hundred_uploads_of_ten_tenants_are_a_hundred_versions()
    {
        string[] tenants = [.. Enumerable.Range(0, 10).Select(i => $"t{i}")];
        await using var host = await TestHost.StartRealAsync([.. tenants.Select(t => $"Tenants:{t}:Name={t}")]);
        var alpha = System.Text.Json.Nodes.JsonNode.Parse(Files("sprout")[0].Bytes)!;
        await Task.WhenAll(tenants.SelectMany(tenant => Enumerable.Range(0, 10).Select(async i =>
        {
            using var admin = host.Client(tenant);
            // Two of a tenant share each name; every content is another.
            byte[] config;
            lock (alpha)
            {
                alpha["lora_alpha"] = 10 + i + (int.Parse(tenant[1..], System.Globalization.CultureInfo.InvariantCulture) * 100);
                config = Encoding.UTF8.GetBytes(alpha.ToJsonString());
            }
            for (; ; await Task.Delay(20))
            {
                using var response = await admin.PostAsync($"/api/tenants/{tenant}/adapters/a{i / 2}/versions", Form((Files("sprout")[0].Name, config), Files("sprout")[1]));
                if (response.StatusCode == HttpStatusCode.TooManyRequests) continue;
                Assert.Equal(HttpStatusCode.Created, response.StatusCode);
                break;
            }
        })));
        foreach (var tenant in tenants)
        {
            using var admin = host.Client(tenant);
            var page = await TestHost.ReadAsync(await admin.GetAsync($"/api/tenants/{tenant}/adapters"));
            Assert.Equal([2, 2, 2, 2, 2], page.GetProperty("adapters").EnumerateArray().Select(a => a.GetProperty("versions").GetInt32()));
        }
        Assert.Equal(105, host.Service<ChatHost.Store.AdapterStore>().Digests().Count);        // and the five tenants' own
    }

    [Fact]
    public async Task Where_nothing_can_be_written_uploads_are_refused_and_answers_go_on()
    {
        if (OperatingSystem.IsWindows()) Assert.Skip("File modes are Unix'.");
        await using var host = await TestHost.StartRealAsync();
        using var admin = host.Client();
        var staging = System.IO.Path.Combine(host.Data, "adapters", "staging");
        Directory.Delete(staging);
        await File.WriteAllTextAsync(staging, "in the way");
        using var response = await admin.PostAsync(Path, Form("ledger"));
        Assert.Equal((HttpStatusCode.ServiceUnavailable, true), (response.StatusCode, (await response.Content.ReadAsStringAsync()).Contains("store_unwritable", StringComparison.Ordinal)));
        using var answer = await admin.PostAsync("/v1/chat/completions", TestHost.Json("""{"model":"harbor","max_tokens":2,"messages":[{"role":"user","content":"Hi"}]}"""));
        Assert.Equal(HttpStatusCode.OK, answer.StatusCode);
    }

    [Fact]
    public async Task A_folder_that_is_a_link_stops_the_start()
    {
        if (OperatingSystem.IsWindows()) Assert.Skip("Links need rights on Windows.");
        var (data, elsewhere) = (Directory.CreateTempSubdirectory("tenantlora-").FullName, Directory.CreateTempSubdirectory("elsewhere-").FullName);
        File.CreateSymbolicLink(System.IO.Path.Combine(data, "adapters"), elsewhere);
        var error = await Assert.ThrowsAsync<InvalidDataException>(() => TestHost.StartRealAsync($"Data={data}"));
        Assert.Contains("is a link", error.Message, StringComparison.Ordinal);
        Assert.Empty(Directory.GetFileSystemEntries(elsewhere));
        Directory.Delete(data, recursive: true);
        Directory.Delete(elsewhere);
    }

    private static async Task LeftNothing(TestHost host)
    {
        using (var harbor = host.Client())
        {
            using var missing = await harbor.GetAsync("/api/tenants/harbor/adapters/new");
            Assert.Equal(HttpStatusCode.NotFound, missing.StatusCode);
        }
        await TestHost.UntilAsync(() => Directory.GetFileSystemEntries(System.IO.Path.Combine(host.Data, "adapters", "staging")).Length == 0, "staging is empty");
        using var sprout = host.Client("sprout");
        using var answer = await sprout.PostAsync("/v1/chat/completions", TestHost.Json("""{"model":"sprout","max_tokens":2,"messages":[{"role":"user","content":"Hi"}]}"""));
        Assert.Equal(HttpStatusCode.OK, answer.StatusCode);
        Assert.Equal(0, host.Service<Serving>().Engine!.Status.AdaptersHeld);
    }

    /// <summary>One host for all that must leave it as it was.</summary>
    public sealed class SharedHost : IAsyncLifetime
    {
        internal TestHost Host { get; private set; } = null!;

        public async ValueTask InitializeAsync() => Host = await TestHost.StartRealAsync();

        public ValueTask DisposeAsync() => Host.DisposeAsync();
    }

    /// <summary>So many zero bytes.</summary>
    private sealed class Zeros(long length) : Stream
    {
        private long left = length;

        public override bool CanRead => true;

        public override bool CanSeek => false;

        public override bool CanWrite => false;

        public override long Length => throw new NotSupportedException();

        public override long Position { get => throw new NotSupportedException(); set => throw new NotSupportedException(); }

        public override int Read(byte[] buffer, int offset, int count)
        {
            var read = (int)Math.Min(count, left);
            Array.Clear(buffer, offset, read);
            left -= read;
            return read;
        }

        public override void Flush()
        {
        }

        public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

        public override void SetLength(long value) => throw new NotSupportedException();

        public override void Write(byte[] buffer, int offset, int count) => throw new NotSupportedException();
    }
}
