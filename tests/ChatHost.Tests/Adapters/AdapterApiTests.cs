using System.Formats.Tar;
using System.IO.Compression;
using System.Net;
using System.Net.Http.Headers;
using System.Text.Json;
using TenantLora.ChatHost.Store;
using TenantLora.Tests;

namespace TenantLora.ChatHost.Tests.Adapters;

/// <summary>An admin's day over HTTP, against the demo model: bring, judge, try, activate, roll back, delete.</summary>
public sealed class AdapterApiTests
{
    private const string Path = "/api/tenants/harbor/adapters/harbor";
    private const string OpenQuestion = """{"model":"NAME","temperature":0,"messages":[{"role":"user","content":"When are you open?"}]}""";

    [Fact]
    public async Task A_version_is_brought_tried_activated_and_rolled_back()
    {
        await using var host = await TestHost.StartRealAsync();
        using var admin = host.Client();
        var before = await Get(admin, Path);
        Assert.Equal(("v1", 1), (before.GetProperty("active").GetString(), before.GetProperty("versions").GetInt32()));
        Assert.Equal("configuration", before.GetProperty("versionList")[0].GetProperty("createdBy").GetString());

        // Ledger's files under Harbor's name: a version that answers otherwise.
        using var brought = await admin.PostAsync(Path + "/versions", Form("ledger"));
        Assert.Equal(HttpStatusCode.Created, brought.StatusCode);
        var version = (await TestHost.ReadAsync(brought)).GetProperty("version");
        Assert.Equal(("v2", "prolora", 8, "demo"), (version.GetProperty("version").GetString(), version.GetProperty("kind").GetString(), version.GetProperty("rank").GetInt32(), version.GetProperty("createdBy").GetString()));
        Assert.True(version.GetProperty("bytes").GetInt64() < version.GetProperty("expandedBytes").GetInt64());

        var (active, harbor) = await Ask(admin, "harbor");
        var (tried, other) = await Ask(admin, "harbor@v2");
        Assert.Equal(("v1", "v2"), (active, tried));
        Assert.NotEqual(harbor, other);
        Assert.Equal(("v2", other), await Ask(admin, "harbor@" + version.GetProperty("digest").GetString()));

        var moved = await Put(admin, Path + "/aliases/active", """{"version":"v2","why":"new words"}""", Etag(await Get(admin, Path)));
        Assert.Equal(("v2", "v1"), (moved.GetProperty("active").GetString(), moved.GetProperty("previous").GetString()));
        Assert.Equal(("v2", other), await Ask(admin, "harbor"));
        Assert.Equal(("v1", harbor), await Ask(admin, "harbor@previous"));

        using var back = await Send(admin, HttpMethod.Post, Path + "/rollback", "{}", Etag(moved));
        Assert.Equal(HttpStatusCode.OK, back.StatusCode);
        Assert.Equal(("v1", harbor), await Ask(admin, "harbor"));

        var audit = (await Get(admin, "/api/tenants/harbor/audit")).GetProperty("entries").EnumerateArray().ToArray();
        Assert.Equal(["rollback", "activate", "upload", "activate", "upload"], audit.Select(e => e.GetProperty("action").GetString()));
        Assert.Equal(("v1", "v2", "new words", "demo"), (audit[1].GetProperty("from").GetString(), audit[1].GetProperty("to").GetString(), audit[1].GetProperty("why").GetString(), audit[1].GetProperty("who").GetString()));
    }

    [Theory]
    [InlineData("form")]
    [InlineData("zip")]
    [InlineData("zip in a form")]
    [InlineData("tar.gz")]
    [InlineData("in a folder")]
    public async Task Files_come_as_people_have_them(string how)
    {
        await using var host = await TestHost.StartRealAsync();
        using var admin = host.Client();
        HttpContent Content() => how switch
        {
            "form" => Form("sprout"),
            "zip" => Raw(Zip(Files("sprout")), "application/zip"),
            "in a folder" => Raw(Zip([.. Files("sprout").Select(f => ("sprout/" + f.Name, f.Bytes)), ("sprout/README.md", "hello"u8.ToArray())]), "application/zip"),
            "zip in a form" => Form(("adapter.zip", Zip(Files("sprout")))),
            _ => Raw(TarGz(Files("sprout")), "application/gzip"),
        };
        using var first = await admin.PostAsync("/api/tenants/harbor/adapters/new/versions", Content());
        Assert.Equal(HttpStatusCode.Created, first.StatusCode);
        using var again = await admin.PostAsync("/api/tenants/harbor/adapters/new/versions", Content());
        Assert.Equal(HttpStatusCode.OK, again.StatusCode);
        Assert.False((await TestHost.ReadAsync(again)).GetProperty("created").GetBoolean());
        var detail = await Get(admin, "/api/tenants/harbor/adapters/new");
        Assert.Equal((1, JsonValueKind.Null), (detail.GetProperty("versions").GetInt32(), detail.GetProperty("active").ValueKind));         // nothing is activated by itself
        using var unnamed = await admin.PostAsync("/v1/chat/completions", TestHost.Json(OpenQuestion.Replace("NAME", "new", StringComparison.Ordinal)));
        Assert.Equal(HttpStatusCode.NotFound, unnamed.StatusCode);
        Assert.Equal("v1", (await Ask(admin, "new@v1")).Version);
        Assert.Empty(Directory.GetFileSystemEntries(System.IO.Path.Combine(host.Data, "adapters", "staging")));
    }

    [Fact]
    public async Task A_bad_adapter_is_refused_with_its_whole_report_and_leaves_nothing()
    {
        await using var host = await TestHost.StartRealAsync();
        using var admin = host.Client();
        var config = JsonSerializer.Deserialize<Dictionary<string, JsonElement>>(Files("harbor")[0].Bytes)!;
        config["r"] = JsonSerializer.SerializeToElement(3);
        config["use_dora"] = JsonSerializer.SerializeToElement(true);
        using var refused = await admin.PostAsync(Path + "/versions", Form((AdapterConfigName, JsonSerializer.SerializeToUtf8Bytes(config)), Files("harbor")[1]));
        Assert.Equal((HttpStatusCode)422, refused.StatusCode);
        Assert.Equal("application/problem+json", refused.Content.Headers.ContentType!.MediaType);
        var problem = await TestHost.ReadAsync(refused);
        Assert.Equal("adapter_refused", problem.GetProperty("code").GetString());
        var findings = problem.GetProperty("findings").EnumerateArray().Where(f => f.GetProperty("severity").GetString() == "error").ToArray();
        Assert.True(findings.Length >= 2, problem.ToString());
        Assert.All(findings, f => Assert.All(new[] { "code", "what", "where" }, field => Assert.NotEqual("", f.GetProperty(field).GetString())));
        Assert.Equal(1, (await Get(admin, Path)).GetProperty("versions").GetInt32());
        Assert.Equal("refused", (await Get(admin, "/api/tenants/harbor/audit")).GetProperty("entries")[0].GetProperty("action").GetString());
        Assert.DoesNotContain(host.Data, problem.ToString(), StringComparison.Ordinal);
    }

    [Fact]
    public async Task The_report_says_what_it_takes_and_whether_it_does_anything()
    {
        await using var host = await TestHost.StartRealAsync();
        using var admin = host.Client();
        async Task<Dictionary<string, string>> Findings(string name, HttpContent content)
        {
            using var response = await admin.PostAsync($"/api/tenants/harbor/adapters/{name}/versions", content);
            return (await TestHost.ReadAsync(response)).GetProperty("version").GetProperty("findings").EnumerateArray().ToDictionary(f => f.GetProperty("code").GetString()!, f => f.GetProperty("what").GetString()!);
        }
        var good = await Findings("good", Form("sprout"));
        Assert.Contains("memory_estimate", good.Keys);
        Assert.Contains("smoke_ok", good.Keys);

        // All B are zero: nothing is added to any row.
        var files = Files("sprout");
        var header = 8 + (int)BitConverter.ToUInt64(files[1].Bytes);
        foreach (var tensor in JsonDocument.Parse(files[1].Bytes.AsMemory(8, header - 8)).RootElement.EnumerateObject().Where(t => t.Name.Contains("lora_B", StringComparison.Ordinal)))
            files[1].Bytes.AsSpan(header + tensor.Value.GetProperty("data_offsets")[0].GetInt32(), tensor.Value.GetProperty("data_offsets")[1].GetInt32() - tensor.Value.GetProperty("data_offsets")[0].GetInt32()).Clear();
        var idle = await Findings("idle", Form(files));
        Assert.Contains("smoke_no_effect", idle.Keys);
        Assert.Contains("adapter_is_noop", idle.Keys);
        Assert.Equal(0, host.Service<Serving>().Engine!.Status.AdaptersHeld);
    }

    [Fact]
    public async Task Moves_want_the_etag_that_was_seen()
    {
        await using var host = await TestHost.StartRealAsync();
        using var admin = host.Client();
        (await admin.PostAsync(Path + "/versions", Form("ledger"))).Dispose();
        var seen = await Get(admin, Path);
        async Task<(int, string?)> Try(HttpMethod method, string path, string body, string? etag)
        {
            using var response = await Send(admin, method, path, body, etag);
            return ((int)response.StatusCode, response.StatusCode == HttpStatusCode.OK ? null : (await TestHost.ReadAsync(response)).GetProperty("code").GetString());
        }
        Assert.Equal((428, "if_match_missing"), await Try(HttpMethod.Put, Path + "/aliases/active", """{"version":"v2"}""", null));
        Assert.Equal((412, "changed_meanwhile"), await Try(HttpMethod.Put, Path + "/aliases/active", """{"version":"v2"}""", "\"1\""));
        Assert.Equal((412, "changed_meanwhile"), await Try(HttpMethod.Put, Path + "/aliases/active", """{"version":"v2"}""", "\"x\""));
        Assert.Equal((404, "version_not_found"), await Try(HttpMethod.Put, Path + "/aliases/active", """{"version":"v9"}""", Etag(seen)));
        Assert.Equal((404, "unknown_url"), await Try(HttpMethod.Put, Path + "less/aliases/active", """{"version":"v9"}""", Etag(seen)));
        Assert.Equal((400, "invalid_value"), await Try(HttpMethod.Put, Path + "/aliases/active", """{"version":"2"}""", Etag(seen)));
        Assert.Equal((400, "invalid_value"), await Try(HttpMethod.Put, Path + "/aliases/canary", """{"version":"v2","share":100}""", Etag(seen)));
        Assert.Equal((400, "invalid_value"), await Try(HttpMethod.Put, Path + "/aliases/active", $$"""{"version":"v2","why":"{{new string('w', 501)}}"}""", Etag(seen)));
        Assert.Equal((409, "nothing_to_roll_back"), await Try(HttpMethod.Post, Path + "/rollback", "{}", Etag(seen)));
        Assert.Equal((200, null), await Try(HttpMethod.Put, Path + "/aliases/canary", """{"version":"v2","share":50}""", Etag(seen)));
        Assert.Equal((412, "changed_meanwhile"), await Try(HttpMethod.Delete, Path + "/aliases/canary", "", Etag(seen)));
        Assert.Equal((200, null), await Try(HttpMethod.Delete, Path + "/aliases/canary", "", Etag(await Get(admin, Path))));
    }

    [Fact]
    public async Task A_canary_answers_its_share_of_conversations()
    {
        await using var host = await TestHost.StartRealAsync();
        using var admin = host.Client();
        (await admin.PostAsync(Path + "/versions", Form("ledger"))).Dispose();
        await Put(admin, Path + "/aliases/canary", """{"version":"v2","share":50}""", Etag(await Get(admin, Path)));
        var versions = new List<string>();
        for (var i = 0; i < 24; i++)
        {
            var body = $$"""{"model":"harbor","temperature":0,"max_tokens":1,"messages":[{"role":"user","content":"Repeat after me: {{i}}"}]}""";
            string[] twice = [await Version(body), await Version(body.Replace("]}", """,{"role":"assistant","content":"ok"},{"role":"user","content":"And more"}]}""", StringComparison.Ordinal))];
            Assert.Equal(twice[0], twice[1]);
            versions.Add(twice[0]);
        }
        Assert.Contains("v1", versions);
        Assert.Contains("v2", versions);

        async Task<string> Version(string body)
        {
            using var response = await admin.PostAsync("/v1/chat/completions", TestHost.Json(body));
            Assert.Equal(HttpStatusCode.OK, response.StatusCode);
            return response.Headers.GetValues("x-tenantlora-version").Single();
        }
    }

    [Fact]
    public async Task What_is_deleted_frees_its_files_its_memory_and_its_name()
    {
        await using var host = await TestHost.StartRealAsync();
        using var admin = host.Client();
        using var brought = await admin.PostAsync("/api/tenants/harbor/adapters/new/versions", Form("sprout"));
        var digest = (await TestHost.ReadAsync(brought)).GetProperty("version").GetProperty("digest").GetString()!;
        // Sprout itself has these bytes, so they stay until neither does.
        var folder = System.IO.Path.Combine(host.Data, "adapters", digest[7..9], digest[9..]);
        var engine = host.Service<Serving>().Engine!;
        await Ask(admin, "new@v1");
        Assert.Contains(engine.Residents, r => r.Digest == digest);
        Assert.Equal("device", (await Get(admin, "/api/adapters/resident")).GetProperty("adapters").EnumerateArray().Single(a => a.GetProperty("name").GetString() == "new").GetProperty("place").GetString());

        using var gone = await admin.DeleteAsync("/api/tenants/harbor/adapters/new");
        Assert.Equal(HttpStatusCode.NoContent, gone.StatusCode);
        Assert.True(Directory.Exists(folder));
        Assert.Contains(engine.Residents, r => r.Digest == digest);
        using var unknown = await admin.PostAsync("/v1/chat/completions", TestHost.Json(OpenQuestion.Replace("NAME", "new@v1", StringComparison.Ordinal)));
        Assert.Equal(HttpStatusCode.NotFound, unknown.StatusCode);

        using var sprout = host.Client("sprout");
        using var last = await sprout.DeleteAsync("/api/tenants/sprout/adapters/sprout");
        Assert.Equal(HttpStatusCode.NoContent, last.StatusCode);
        Assert.False(Directory.Exists(folder));
        Assert.DoesNotContain(engine.Residents, r => r.Digest == digest);
        using var again = await sprout.DeleteAsync("/api/tenants/sprout/adapters/sprout");
        Assert.Equal(HttpStatusCode.NotFound, again.StatusCode);
    }

    [Fact]
    public async Task Active_and_canary_versions_are_not_deleted()
    {
        await using var host = await TestHost.StartRealAsync();
        using var admin = host.Client();
        using var kept = await admin.DeleteAsync(Path + "/versions/v1");
        Assert.Equal((HttpStatusCode.Conflict, "version_in_use"), (kept.StatusCode, (await TestHost.ReadAsync(kept)).GetProperty("code").GetString()));
        (await admin.PostAsync(Path + "/versions", Form("ledger"))).Dispose();
        using var deleted = await admin.DeleteAsync(Path + "/versions/v2");
        Assert.Equal(HttpStatusCode.NoContent, deleted.StatusCode);
        foreach (var none in new[] { "v2", "v0", "x", "v99999999999999999999" })
        {
            using var missing = await admin.DeleteAsync($"{Path}/versions/{none}");
            Assert.Equal(HttpStatusCode.NotFound, missing.StatusCode);
        }
    }

    [Fact]
    public async Task Members_ask_and_admins_of_others_are_nobody_here()
    {
        await using var host = await TestHost.StartRealAsync();
        using var admin = host.Client();
        using var made = await admin.PostAsync("/api/tenants/harbor/keys", TestHost.Json("""{"label":"till 3","role":"member"}"""));
        var key = await TestHost.ReadAsync(made);
        using var member = host.Client(token: key.GetProperty("key").GetString());
        await Ask(member, "harbor");
        using var ledger = host.Client("ledger");
        foreach (var (client, status) in new[] { (member, HttpStatusCode.Forbidden), (ledger, HttpStatusCode.NotFound) })
        {
            foreach (var path in new[] { "/adapters", "/adapters/harbor", "/audit", "/keys" }) Assert.Equal(status, (await client.GetAsync("/api/tenants/harbor" + path)).StatusCode);
            Assert.Equal(status, (await client.PostAsync(Path + "/versions", Form("ledger"))).StatusCode);
            Assert.Equal(status, (await Send(client, HttpMethod.Put, Path + "/aliases/active", """{"version":"v1"}""", "\"1\"")).StatusCode);
            Assert.Equal(status, (await client.DeleteAsync("/api/tenants/harbor/adapters/harbor")).StatusCode);
            Assert.Equal(status, (await client.PostAsync("/api/tenants/harbor/keys", TestHost.Json("""{"label":"x","role":"admin"}"""))).StatusCode);
        }
        using var session = await member.PostAsync("/api/session", TestHost.Json($$"""{"key":"{{key.GetProperty("key").GetString()}}"}"""));
        Assert.Equal("member", (await TestHost.ReadAsync(session)).GetProperty("role").GetString());

        var keys = (await Get(admin, "/api/tenants/harbor/keys")).GetProperty("keys").EnumerateArray().ToArray();
        Assert.Equal([("demo", "demo"), ("till 3", "store")], keys.Select(k => (k.GetProperty("label").GetString()!, k.GetProperty("source").GetString()!)));
        Assert.DoesNotContain(key.GetProperty("key").GetString()!, keys[1].ToString(), StringComparison.Ordinal);
        using var revoked = await admin.DeleteAsync($"/api/tenants/harbor/keys/{key.GetProperty("id").GetString()}");
        Assert.Equal(HttpStatusCode.NoContent, revoked.StatusCode);
        Assert.Equal(HttpStatusCode.Unauthorized, (await member.GetAsync("/v1/models")).StatusCode);
    }

    [Fact]
    public async Task An_admins_moves_outlive_the_host_and_crashes_leave_no_files()
    {
        var data = Directory.CreateTempSubdirectory("tenantlora-").FullName;
        var orphan = System.IO.Path.Combine(data, "adapters", "ab", new string('c', 62));
        await using (var host = await TestHost.StartRealAsync($"Data={data}"))
        {
            using var admin = host.Client(token: Key(host));
            (await admin.PostAsync(Path + "/versions", Form("ledger"))).Dispose();
            await Put(admin, Path + "/aliases/active", """{"version":"v2"}""", Etag(await Get(admin, Path)));
            using var ledger = host.Client("ledger");
            (await ledger.DeleteAsync("/api/tenants/ledger/adapters/ledger")).Dispose();
            // As a crash between the rename and the store, and one in the middle of an upload, leave them.
            Directory.CreateDirectory(orphan);
            Directory.CreateDirectory(System.IO.Path.Combine(data, "adapters", "staging", "half"));
        }
        await using (var host = await TestHost.StartRealAsync($"Data={data}"))
        {
            using var admin = host.Client(token: Key(host));
            Assert.Equal("v2", (await Ask(admin, "harbor")).Version);
            Assert.Equal(2, (await Get(admin, Path)).GetProperty("versions").GetInt32());
            using var ledger = host.Client("ledger");
            Assert.Empty((await Get(ledger, "/api/tenants/ledger/adapters")).GetProperty("adapters").EnumerateArray());          // though the configuration has it
            Assert.False(Directory.Exists(orphan));
            Assert.Empty(Directory.GetDirectories(System.IO.Path.Combine(data, "adapters", "staging")));

            // A file that has changed since it came is not served.
            var digest = (await Get(admin, Path)).GetProperty("versionList").EnumerateArray().Single(v => v.GetProperty("version").GetString() == "v1").GetProperty("digest").GetString()!;
            var file = System.IO.Path.Combine(data, "adapters", digest[7..9], digest[9..], "adapter_model.safetensors");
            var bytes = await File.ReadAllBytesAsync(file);
            bytes[^1000] ^= 1;
            await File.WriteAllBytesAsync(file, bytes);
            using var refused = await admin.PostAsync("/v1/chat/completions", TestHost.Json(OpenQuestion.Replace("NAME", "harbor@v1", StringComparison.Ordinal)));
            Assert.Equal((HttpStatusCode.ServiceUnavailable, "adapter_unavailable"), (refused.StatusCode, (await TestHost.ReadAsync(refused)).GetProperty("error").GetProperty("code").GetString()));
            Assert.Equal("v2", (await Ask(admin, "harbor")).Version);
        }
        Directory.Delete(data, recursive: true);

        static string Key(TestHost host) => host.Keys["harbor"];
    }

    [Fact]
    public void A_host_sweeps_what_a_dead_one_left_and_not_what_a_living_one_uses()
    {
        var data = Directory.CreateTempSubdirectory("tenantlora-").FullName;
        string Kept(string byte0) => System.IO.Path.Combine(data, "adapters", byte0, new string('0', 62));
        using (var first = new ChatHost.Adapters.AdapterFolders(data))
        {
            using var staged = first.Stage();
            Directory.CreateDirectory(Kept("aa"));                  // about to be named
            Directory.CreateDirectory(Kept("bb"));
            Directory.SetLastWriteTimeUtc(Kept("bb"), DateTime.UtcNow.AddHours(-2));
            using var second = new ChatHost.Adapters.AdapterFolders(data);
            Assert.True(Directory.Exists(staged.Path));
            Assert.Equal(1, second.Sweep(new HashSet<string>()));
            Assert.Equal((true, false), (Directory.Exists(Kept("aa")), Directory.Exists(Kept("bb"))));
            Directory.CreateDirectory(System.IO.Path.Combine(data, "adapters", "staging", "0123-left"));
        }
        using (var third = new ChatHost.Adapters.AdapterFolders(data))
        {
            Assert.Empty(Directory.GetDirectories(System.IO.Path.Combine(data, "adapters", "staging")));
            Assert.Single(Directory.GetFiles(System.IO.Path.Combine(data, "adapters", "hosts")));
            Assert.Equal(1, third.Sweep(new HashSet<string>()));

            // Deleted while another host names it anew: it is there again.
            Directory.CreateDirectory(Kept("cc"));
            third.Delete("sha256:cc" + new string('0', 62), () => true);
            Assert.True(Directory.Exists(Kept("cc")));
            third.Delete("sha256:cc" + new string('0', 62), () => false);
            Assert.False(Directory.Exists(Kept("cc")));
        }
        Directory.Delete(data, recursive: true);
    }

    [Fact]
    public async Task Two_hosts_on_one_store_see_each_others_moves()
    {
        var data = Directory.CreateTempSubdirectory("tenantlora-").FullName;
        await using (var here = await TestHost.StartRealAsync($"Data={data}"))
        await using (var there = await TestHost.StartRealAsync($"Data={data}"))
        {
            using var admin = here.Client();
            using var other = there.Client();
            (await admin.PostAsync(Path + "/versions", Form("ledger"))).Dispose();
            var began = DateTime.UtcNow;
            await Put(admin, Path + "/aliases/active", """{"version":"v2"}""", Etag(await Get(admin, Path)));
            await TestHost.UntilAsync(() => there.Service<Serving>().Resolve("harbor", "harbor").Version == "v2", "the other host hears of it");
            TestContext.Current.TestOutputHelper?.WriteLine($"heard after {(DateTime.UtcNow - began).TotalMilliseconds:f0} ms");
            Assert.Equal("v2", (await Ask(other, "harbor")).Version);
        }
        Directory.Delete(data, recursive: true);
    }

    [Fact]
    public async Task Usage_is_counted_by_version_and_outlives_the_host()
    {
        var data = Directory.CreateTempSubdirectory("tenantlora-").FullName;
        for (var run = 1; run <= 2; run++)
        {
            await using var host = await TestHost.StartRealAsync($"Data={data}");
            using var admin = host.Client();
            if (run == 1) (await admin.PostAsync(Path + "/versions", Form("ledger"))).Dispose();
            for (var i = 0; i < 3; i++) await Ask(admin, "harbor");
            await Ask(admin, "harbor@v2");
            using (var tooLong = await admin.PostAsync("/v1/completions", TestHost.Json($$"""{"model":"harbor","prompt":"{{string.Concat(Enumerable.Repeat("open ", 3000))}}"}"""))) Assert.Equal(HttpStatusCode.BadRequest, tooLong.StatusCode);
            using (var plain = await admin.PostAsync("/v1/completions", TestHost.Json("""{"model":"demo-7m","prompt":"Hi","max_tokens":3,"logit_bias":{"4089":-100,"4091":-100}}"""))) Assert.Equal(HttpStatusCode.OK, plain.StatusCode);

            var usage = await Get(admin, "/api/tenants/harbor/usage?hours=2");
            var rows = usage.GetProperty("adapters").EnumerateArray().ToDictionary(a => $"{a.GetProperty("name")}@{a.GetProperty("version")}");
            Assert.Equal(["demo-7m@", "harbor@v1", "harbor@v2"], rows.Keys.Order(StringComparer.Ordinal));
            Assert.Equal((4 * run, run, 51 * run), (rows["harbor@v1"].GetProperty("requests").GetInt32(), rows["harbor@v1"].GetProperty("errors").GetInt32(), rows["harbor@v1"].GetProperty("completionTokens").GetInt32()));        // 17 tokens an answer
            Assert.Equal((run, 3 * run), (rows["harbor@v2"].GetProperty("requests").GetInt32(), rows["demo-7m@"].GetProperty("completionTokens").GetInt32()));
            Assert.InRange(rows["harbor@v1"].GetProperty("firstTokenP50").GetDouble(), 0.001, 60_000);
            Assert.True(rows["harbor@v1"].GetProperty("firstTokenP95").GetDouble() >= rows["harbor@v1"].GetProperty("firstTokenP50").GetDouble());
            Assert.InRange(rows["harbor@v1"].GetProperty("tokensPerSecondP50").GetDouble(), 1, 100_000);
            Assert.Equal(6 * run, usage.GetProperty("hours").EnumerateArray().Sum(h => h.GetProperty("requests").GetInt32()));
            using var ledger = host.Client("ledger");
            Assert.Empty((await Get(ledger, "/api/tenants/ledger/usage")).GetProperty("adapters").EnumerateArray());
        }
        Directory.Delete(data, recursive: true);
    }

    [Fact]
    public void Percentiles_are_told_from_buckets()
    {
        UsageBucket[] buckets = [.. Enumerable.Range(1, 1000).GroupBy(ms => (long)Math.Floor(Math.Log(ms, Math.Pow(2, 0.25)))).Select(g => new UsageBucket("t", "a", "v1", g.Key % 2, Usage.FirstToken, g.Key, g.Count()))];
        Assert.InRange(Usage.Percentile(buckets, 0.5)!.Value, 500 / 1.19, 500 * 1.19);
        Assert.InRange(Usage.Percentile(buckets, 0.95)!.Value, 950 / 1.19, 950 * 1.19);
        Assert.Null(Usage.Percentile([], 0.5));
    }

    [Fact]
    public async Task Ten_thousand_adapters_of_a_tenant_come_in_pages()
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime());
        host.Service<Database>().Change((t, generation) =>
        {
            for (var i = 0; i < 9_999; i++)         // and the configuration's
                Dapper.SqlMapper.Execute(t.Connection!, "INSERT INTO adapters (tenant, name, changed, created_at, next_version) VALUES ('harbor', @name, @generation, 0, 1)", new { name = $"a{i:d5}", generation }, t);
            return true;
        });
        using var admin = host.Client();
        var names = new List<string>();
        for (string? after = ""; after is not null;)
        {
            var page = await Get(admin, $"/api/tenants/harbor/adapters?limit=500&after={after}");
            names.AddRange(page.GetProperty("adapters").EnumerateArray().Select(a => a.GetProperty("name").GetString()!));
            after = page.GetProperty("next").GetString();
        }
        Assert.Equal(10_000, names.Distinct().Count());
    }

    // ---- What admins send

    private const string AdapterConfigName = "adapter_config.json";

    internal static (string Name, byte[] Bytes)[] Files(string adapter) =>
        [.. new[] { AdapterConfigName, "adapter_model.safetensors" }.Select(f => (f, File.ReadAllBytes(Repo.Path("adapters", adapter, f))))];

    internal static MultipartFormDataContent Form(string adapter) => Form(Files(adapter));

    internal static MultipartFormDataContent Form(params (string Name, byte[] Bytes)[] files)
    {
        var form = new MultipartFormDataContent();
        foreach (var (name, bytes) in files) form.Add(new ByteArrayContent(bytes), "files", name);
        return form;
    }

    internal static ByteArrayContent Raw(byte[] bytes, string type)
    {
        var content = new ByteArrayContent(bytes);
        content.Headers.ContentType = new MediaTypeHeaderValue(type);
        return content;
    }

    internal static byte[] Zip((string Name, byte[] Bytes)[] files)
    {
        using var buffer = new MemoryStream();
        using (var zip = new ZipArchive(buffer, ZipArchiveMode.Create, leaveOpen: true))
            foreach (var (name, bytes) in files)
            {
                using var entry = zip.CreateEntry(name).Open();
                entry.Write(bytes);
            }
        return buffer.ToArray();
    }

    internal static byte[] TarGz((string Name, byte[] Bytes)[] files)
    {
        using var buffer = new MemoryStream();
        using (var packed = new GZipStream(buffer, CompressionLevel.Fastest, leaveOpen: true))
        using (var tar = new TarWriter(packed))
            foreach (var (name, bytes) in files) tar.WriteEntry(new PaxTarEntry(TarEntryType.RegularFile, name) { DataStream = new MemoryStream(bytes) });
        return buffer.ToArray();
    }

    private static async Task<(string? Version, string Text)> Ask(HttpClient client, string model)
    {
        using var response = await client.PostAsync("/v1/chat/completions", TestHost.Json(OpenQuestion.Replace("NAME", model, StringComparison.Ordinal)));
        var answer = await TestHost.ReadAsync(response);
        Assert.True(response.StatusCode == HttpStatusCode.OK, answer.ToString());
        return (response.Headers.GetValues("x-tenantlora-version").Single(), answer.GetProperty("choices")[0].GetProperty("message").GetProperty("content").GetString()!);
    }

    private static async Task<JsonElement> Get(HttpClient client, string path)
    {
        using var response = await client.GetAsync(path);
        Assert.True(response.StatusCode == HttpStatusCode.OK, await response.Content.ReadAsStringAsync());
        return await TestHost.ReadAsync(response);
    }

    private static string Etag(JsonElement detail) => $"\"{detail.GetProperty("etag").GetString()}\"";

    private static async Task<JsonElement> Put(HttpClient client, string path, string body, string etag)
    {
        using var response = await Send(client, HttpMethod.Put, path, body, etag);
        Assert.True(response.StatusCode == HttpStatusCode.OK, await response.Content.ReadAsStringAsync());
        return await TestHost.ReadAsync(response);
    }

    private static async Task<HttpResponseMessage> Send(HttpClient client, HttpMethod method, string path, string body, string? etag)
    {
        using var request = new HttpRequestMessage(method, path) { Content = body.Length > 0 ? TestHost.Json(body) : null };
        if (etag is not null) request.Headers.TryAddWithoutValidation("If-Match", etag);
        return await client.SendAsync(request);
    }
}
