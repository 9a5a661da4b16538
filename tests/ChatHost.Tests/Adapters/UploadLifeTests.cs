using System.Collections.Concurrent;
using System.Net;
using System.Net.Sockets;
using System.Text;
using System.Text.Json.Nodes;
using TenantLora.ChatHost.Store;
using static TenantLora.ChatHost.Tests.Adapters.AdapterApiTests;

namespace TenantLora.ChatHost.Tests.Adapters;

/// <summary>What else happens while an upload is under way: its key is revoked, its adapter deleted, its tenant's quota used up by another; and what comes behind it.</summary>
public sealed class UploadLifeTests
{
    private const string Path = "/api/tenants/harbor/adapters/new/versions";

    [Fact]
    public async Task A_key_that_is_revoked_in_the_middle_registers_all_or_nothing()
    {
        await using var host = await TestHost.StartRealAsync();
        using var admin = host.Client();
        using var made = await admin.PostAsync("/api/tenants/harbor/keys", TestHost.Json("""{"label":"leaving","role":"admin"}"""));
        var key = await TestHost.ReadAsync(made);
        using var connection = new TcpClient();
        await connection.ConnectAsync(host.Url.Host, host.Url.Port);
        var (stream, body) = (connection.GetStream(), Zip(Files("ledger")));
        await stream.WriteAsync(Encoding.ASCII.GetBytes($"POST {Path} HTTP/1.1\r\nHost: {host.Url.Authority}\r\nAuthorization: Bearer {key.GetProperty("key").GetString()}\r\nContent-Type: application/zip\r\nContent-Length: {body.Length}\r\n\r\n"));
        await stream.WriteAsync(body.AsMemory(0, body.Length / 2));
        await TestHost.UntilAsync(() => Staged(host).Length == 1, "the upload is under way");

        using var revoked = await admin.DeleteAsync($"/api/tenants/harbor/keys/{key.GetProperty("id").GetString()}");
        Assert.Equal(HttpStatusCode.NoContent, revoked.StatusCode);
        using (var late = host.Client(token: key.GetProperty("key").GetString())) Assert.Equal(HttpStatusCode.Unauthorized, (await late.GetAsync("/api/tenants/harbor/adapters")).StatusCode);
        await stream.WriteAsync(body.AsMemory(body.Length / 2));
        using var reader = new StreamReader(stream);
        var status = (await reader.ReadToEndAsync().WaitAsync(TimeSpan.FromSeconds(30))).Split(' ')[1];

        Assert.Contains(status, (string[])["201", "401"]);
        using var listed = await admin.GetAsync("/api/tenants/harbor/adapters/new");
        Assert.Equal(status == "201", listed.StatusCode == HttpStatusCode.OK);
        using var answer = await admin.PostAsync("/v1/completions", TestHost.Json("""{"model":"new@v1","prompt":"Hi","max_tokens":1}"""));
        Assert.Equal(status == "201", answer.StatusCode == HttpStatusCode.OK);
        Consistent(host);
    }

    /// <summary>What comes behind the length that was given is nobody's request, whatever became of the upload before it.</summary>
    [Theory]
    [InlineData("a whole upload", 0)]
    [InlineData("one cut short", 100)]
    public async Task What_comes_behind_an_upload_is_not_read_as_a_request(string what, int cut)
    {
        await using var host = await TestHost.StartRealAsync();
        var (key, body) = (host.Keys["harbor"], Zip(Files("ledger")));
        var smuggled = $"POST /api/tenants/harbor/keys HTTP/1.1\r\nHost: {host.Url.Authority}\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: 36\r\n\r\n{{\"label\":\"smuggled\",\"role\":\"admin\"}}\r\n";
        byte[] request =
        [
            .. Encoding.ASCII.GetBytes($"POST {Path} HTTP/1.1\r\nHost: {host.Url.Authority}\r\nAuthorization: Bearer {key}\r\nContent-Type: application/zip\r\nContent-Length: {body.Length - cut}\r\n\r\n"),
            .. body[..^cut], .. Encoding.ASCII.GetBytes(smuggled),
        ];
        var (answer, _) = await RawHttp.SendAsync(host.Url, request);       // which ends when the server closes
        Assert.True(answer.Length > 0, what);
        Assert.StartsWith(cut == 0 ? "HTTP/1.1 201" : "HTTP/1.1 400", answer, StringComparison.Ordinal);
        Assert.Equal(1, answer.Split("HTTP/1.1 ").Length - 1);
        Assert.DoesNotContain(host.Service<AdapterStore>().Keys("harbor"), k => k.Label == "smuggled");
        Consistent(host);
    }

    /// <summary>Though the server closes after it, and reads nothing of what is sent.</summary>
    [Fact]
    public async Task A_refusal_before_the_body_is_read_reaches_who_sends_it()
    {
        await using var host = await TestHost.StartRealAsync();
        for (var i = 0; i < 20; i++)
        {
            using var admin = host.Client();
            using var refused = await admin.PostAsync("/api/tenants/harbor/adapters/.hidden/versions", Form(("adapter_model.safetensors", new byte[2_000_000])));
            Assert.Equal(HttpStatusCode.BadRequest, refused.StatusCode);
        }
    }

    [Fact]
    public async Task An_upload_beyond_the_tenants_quota_is_refused_and_changes_nothing()
    {
        await using var host = await TestHost.StartRealAsync("AdapterQuotaMegabytes=1", "Tenants:ledger:AdapterQuotaMegabytes=0", "Tenants:sprout:AdapterQuotaMegabytes=2");
        using var admin = host.Client();
        var store = host.Service<AdapterStore>();
        async Task<(int, string?)> Bring(string tenant, string name, HttpContent content)
        {
            using var client = host.Client(tenant);
            using var response = await client.PostAsync($"/api/tenants/{tenant}/adapters/{name}/versions", content);
            return ((int)response.StatusCode, response.IsSuccessStatusCode ? null : (await TestHost.ReadAsync(response)).GetProperty("code").GetString());
        }
        var own = Files("harbor").Sum(f => f.Bytes.Length);
        Assert.Equal(own, store.StoredBytes("harbor"));
        Assert.Equal((201, null), await Bring("harbor", "new", Form("ledger")));
        var kept = own + Files("ledger").Sum(f => f.Bytes.Length);
        Assert.Equal(kept, store.StoredBytes("harbor"));

        Assert.Equal((413, "quota_exceeded"), await Bring("harbor", "new", Form("lantern")));
        Assert.Equal(kept, store.StoredBytes("harbor"));
        Assert.Equal((200, null), await Bring("harbor", "new", Form("ledger")));            // the version that exists
        Assert.Equal((201, null), await Bring("harbor", "other", Form("harbor")));          // the same bytes under another name are kept once
        Assert.Equal(kept, store.StoredBytes("harbor"));
        Assert.Equal("quota_exceeded", store.Audit("harbor", long.MaxValue, 2)[1].Why);

        using var page = await admin.GetAsync("/api/tenants/harbor/adapters");
        var disk = (await TestHost.ReadAsync(page)).GetProperty("disk");
        Assert.Equal((kept, 1 << 20), (disk.GetProperty("bytes").GetInt64(), disk.GetProperty("quota").GetInt64()));

        // What was refused would have fitted others, whose quotas are their own.
        Assert.Equal((201, null), await Bring("sprout", "new", Form("lantern")));
        Assert.Equal((201, null), await Bring("ledger", "new", Form("lantern")));
        Assert.Equal((201, null), await Bring("ledger", "new", Form("kernel")));
        Assert.Null(host.Service<Microsoft.Extensions.Options.IOptions<TenantLoraOptions>>().Value.AdapterQuota("ledger"));

        using var deleted = await admin.DeleteAsync("/api/tenants/harbor/adapters/new");
        Assert.Equal(HttpStatusCode.NoContent, deleted.StatusCode);
        Assert.Equal(own, store.StoredBytes("harbor"));
        Assert.Equal((413, "quota_exceeded"), await Bring("harbor", "new", Form("lantern")));
        Consistent(host);
    }

    [Fact]
    public async Task Of_two_that_race_for_the_last_bytes_one_wins()
    {
        await using var host = await TestHost.StartRealAsync("AdapterQuotaMegabytes=1");
        using var admin = host.Client();
        var store = host.Service<AdapterStore>();
        for (var i = 0; store.StoredBytes("harbor") + (2 * 190_000) < 1 << 20; i++)
        {
            using var filling = await admin.PostAsync(Path, Variant("ledger", 100 + i));
            Assert.Equal(HttpStatusCode.Created, filling.StatusCode);
        }
        var before = store.StoredBytes("harbor");
        for (var round = 0; round < 6; round++)
        {
            var answers = await Task.WhenAll(Enumerable.Range(0, 2).Select(async i =>
            {
                using var client = host.Client();
                using var response = await client.PostAsync($"/api/tenants/harbor/adapters/race{i}/versions", Variant("ledger", 1000 + (round * 2) + i));
                return (Name: $"race{i}", Status: (int)response.StatusCode);
            }));
            Assert.Equal([201, 413], answers.Select(a => a.Status).Order());
            Assert.InRange(store.StoredBytes("harbor"), before + 1, 1 << 20);
            Consistent(host);
            using var deleted = await admin.DeleteAsync($"/api/tenants/harbor/adapters/{answers.Single(a => a.Status == 201).Name}");
            Assert.Equal(HttpStatusCode.NoContent, deleted.StatusCode);
            Assert.Equal(before, store.StoredBytes("harbor"));
        }
    }

    /// <summary>Each upload is a version, before or after each deletion: its number is its own, and nothing is left of what was deleted.</summary>
    [Fact]
    public async Task An_adapter_deleted_while_versions_of_it_come_leaves_no_orphan()
    {
        await using var host = await TestHost.StartRealAsync();
        var (numbers, random) = (new ConcurrentBag<string>(), new Random(5));
        for (var round = 0; round < 25; round++)
        {
            var waits = Enumerable.Range(0, 2).Select(_ => random.Next(120)).ToArray();
            var uploads = Enumerable.Range(0, 2).Select(async i =>
            {
                using var client = host.Client();
                // Every other round brings bytes that it has brought before.
                using var response = await client.PostAsync(Path, Variant("sprout", 100 + (round / 2 * 2) + i));
                Assert.True(response.StatusCode is HttpStatusCode.Created or HttpStatusCode.OK, await response.Content.ReadAsStringAsync());
                if (response.StatusCode == HttpStatusCode.Created) numbers.Add((await TestHost.ReadAsync(response)).GetProperty("version").GetProperty("version").GetString()!);
            });
            var deletions = waits.Select(async wait =>
            {
                await Task.Delay(wait);
                using var client = host.Client();
                using var response = await client.DeleteAsync("/api/tenants/harbor/adapters/new");
                Assert.True(response.StatusCode is HttpStatusCode.NoContent or HttpStatusCode.NotFound, $"{response.StatusCode}");
            });
            await Task.WhenAll([.. uploads, .. deletions]);
            Consistent(host);
            using var admin = host.Client();
            using var listed = await admin.GetAsync("/api/tenants/harbor/adapters/new");
            if (listed.StatusCode == HttpStatusCode.NotFound) continue;
            foreach (var version in (await TestHost.ReadAsync(listed)).GetProperty("versionList").EnumerateArray())
            {
                using var answer = await admin.PostAsync("/v1/completions", TestHost.Json($$"""{"model":"new@{{version.GetProperty("version").GetString()}}","prompt":"Hi","max_tokens":1}"""));
                Assert.Equal(HttpStatusCode.OK, answer.StatusCode);
            }
        }
        Assert.Equal(numbers.Count, numbers.Distinct().Count());
        TestContext.Current.TestOutputHelper?.WriteLine($"{numbers.Count} versions");
    }

    /// <summary>The store's digests, the folders on the disk and the engine's adapters are of one mind, and nothing is staged.</summary>
    private static void Consistent(TestHost host)
    {
        var adapters = System.IO.Path.Combine(host.Data, "adapters");
        var digests = host.Service<AdapterStore>().Digests().Order(StringComparer.Ordinal).ToArray();
        Assert.Equal(digests, Directory.GetDirectories(adapters).Where(d => System.IO.Path.GetFileName(d).Length == 2)
            .SelectMany(d => Directory.GetDirectories(d).Select(f => $"sha256:{System.IO.Path.GetFileName(d)}{System.IO.Path.GetFileName(f)}")).Order(StringComparer.Ordinal));
        Assert.Empty(Staged(host));
        Assert.Subset(digests.ToHashSet(), host.Service<Serving>().Engine!.Residents.Select(r => r.Digest).ToHashSet());
        Assert.Equal(0, host.Service<Serving>().Engine!.Status.AdaptersHeld);
    }

    private static string[] Staged(TestHost host) => Directory.GetFileSystemEntries(System.IO.Path.Combine(host.Data, "adapters", "staging"));

    /// <summary>An adapter's files with another alpha: another digest.</summary>
    internal static MultipartFormDataContent Variant(string adapter, int alpha)
    {
        var files = Files(adapter);
        var config = JsonNode.Parse(files[0].Bytes)!;
        config["lora_alpha"] = alpha;
        return Form((files[0].Name, Encoding.UTF8.GetBytes(config.ToJsonString())), files[1]);
    }
}
