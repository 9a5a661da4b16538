using System.Collections.Concurrent;
using System.Globalization;
using System.Net;
using System.Net.Http.Headers;
using System.Text.Json;
using TenantLora.ChatHost.Store;
using TenantLora.Runtime;
using TenantLora.Tests;
using static TenantLora.ChatHost.Tests.Adapters.AdapterApiTests;

namespace TenantLora.ChatHost.Tests.Adapters;

/// <summary>
/// Versions brought, activated, rolled back, tried, deleted and evicted at random under many tenants' streams. Every version has random weights, so its
/// greedy answer is its own mark: a stream that says it ran under a version must have that version's answer, token by token, as a quiet engine gives it.
/// <c>TENANTLORA_CHURN_SECONDS</c> makes it longer.
/// </summary>
public sealed class AdapterChurnTests
{
    private const int Tenants = 50, Streams = 200, Tokens = 12;
    private const string Question = "When are you open?";

    [Fact]
    public async Task Every_token_belongs_to_the_version_that_its_request_began_with()
    {
        var seconds = int.Parse(Environment.GetEnvironmentVariable("TENANTLORA_CHURN_SECONDS") ?? "12", CultureInfo.InvariantCulture);
        string[] tenants = [.. Enumerable.Range(0, Tenants).Select(i => $"t{i:d2}")];
        await using var quiet = Engine.Start(new EngineOptions { ModelDirectory = Repo.Path("models", "demo-7m"), Threads = 1, Device = "cpu" });
        // Room for a score of adapters on the device and two in memory: the others take turns, and come from the disk.
        await using var host = await TestHost.StartRealAsync([.. tenants.Select(t => $"Tenants:{t}:Name={t}"), "AdapterMemoryMegabytes=4", "AdapterHostMegabytes=6", "Device=cpu"]);
        var marks = new ConcurrentDictionary<string, string>();      // by digest
        var deleted = new ConcurrentDictionary<string, bool>();      // tenants who have been without an active version
        var (streams, tokens, refused, moves) = (0, 0, new ConcurrentDictionary<string, int>(), new ConcurrentDictionary<string, int>());
        await Task.WhenAll(tenants.Chunk(Tenants / 4).Select(some => Task.Run(async () =>
        {
            using var random = new Mover(host, quiet, marks, deleted, some[0]);
            foreach (var tenant in some) await random.BringAsync(tenant, activate: true);
        })));
        Assert.Equal(marks.Count, marks.Values.Distinct().Count());

        using var end = new CancellationTokenSource(TimeSpan.FromSeconds(seconds));
        var movers = Enumerable.Range(0, 3).Select(m => Task.Run(async () =>
        {
            using var mover = new Mover(host, quiet, marks, deleted, $"mover {m}");
            while (!end.IsCancellationRequested) moves.AddOrUpdate(await mover.MoveAsync(tenants), 1, (_, n) => n + 1);
        })).ToArray();
        var readers = Enumerable.Range(0, Streams).Select(r => Task.Run(async () =>
        {
            var random = new Random(r);
            while (!end.IsCancellationRequested)
            {
                var tenant = tenants[random.Next(Tenants)];
                using var client = host.Client(tenant);
                var model = new[] { "mark", "mark", "mark", "mark@v1", "mark@v2", "mark@previous", "mark@canary" }[random.Next(7)];
                using var request = new HttpRequestMessage(HttpMethod.Post, "/v1/chat/completions")
                {
                    Content = TestHost.Json($$"""{"model":"{{model}}","stream":true,"stream_options":{"include_usage":true},"temperature":0,"max_tokens":{{Tokens}},"messages":[{"role":"user","content":"{{Question}}"}]}"""),
                };
                using var response = await client.SendAsync(request, HttpCompletionOption.ResponseHeadersRead);
                if (response.StatusCode != HttpStatusCode.OK)
                {
                    var code = (await TestHost.ReadAsync(response)).GetProperty("error").GetProperty("code").GetString()!;
                    refused.AddOrUpdate(code, 1, (_, n) => n + 1);
                    Assert.True(model != "mark" || deleted.ContainsKey(tenant), $"{tenant}'s active version was not found.");
                    continue;
                }
                var digest = response.Headers.GetValues("x-tenantlora-adapter").Single();
                var text = "";
                foreach (var line in (await response.Content.ReadAsStringAsync()).Split('\n').Where(l => l.StartsWith("data: {", StringComparison.Ordinal)))
                {
                    var chunk = JsonDocument.Parse(line["data: ".Length..]).RootElement;
                    if (chunk.GetProperty("choices") is { } choices && choices.GetArrayLength() > 0 && choices[0].GetProperty("delta").TryGetProperty("content", out var content)) text += content.GetString();
                    if (chunk.TryGetProperty("usage", out var usage) && usage.ValueKind == JsonValueKind.Object) Interlocked.Add(ref tokens, usage.GetProperty("completion_tokens").GetInt32());
                }
                Assert.Equal(marks[digest], text);
                Interlocked.Increment(ref streams);
            }
        })).ToArray();
        await Task.WhenAll([.. readers, .. movers]);

        var engine = host.Service<Serving>().Engine!;
        await TestHost.UntilAsync(() => engine.Status is { AdaptersHeld: 0, Running: 0, Waiting: 0 } s && s.BlocksFree == s.BlocksTotal, "all is quiet");
        var status = engine.Status;
        var report = string.Create(CultureInfo.InvariantCulture, $"{streams} streams, {tokens} tokens, 0 foreign; {marks.Count} versions; moves: {string.Join(", ", moves.OrderBy(m => m.Key).Select(m => $"{m.Value} {m.Key}"))}; {status.AdapterEvictions} evictions; refused: {string.Join(", ", refused.Select(r => $"{r.Value} {r.Key}"))}");
        TestContext.Current.TestOutputHelper?.WriteLine(report);
        Assert.True(streams > Streams, report);
        Assert.Equal([ErrorCodes.ModelNotFound], refused.Keys.DefaultIfEmpty(ErrorCodes.ModelNotFound));     // a version that is not there, or not yet
        Assert.True(status.AdapterEvictions > 0, report);
        // Files and memory are those of the versions that there are.
        var digests = host.Service<AdapterStore>().Digests();
        var adapters = System.IO.Path.Combine(host.Data, "adapters");
        Assert.Equal(digests.Count, Directory.GetDirectories(adapters).Where(d => System.IO.Path.GetFileName(d).Length == 2).Sum(d => Directory.GetDirectories(d).Length));
        Assert.Subset(digests.ToHashSet(), engine.Residents.Select(r => r.Digest).ToHashSet());
        await TestHost.UntilAsync(() => engine.Residents.Sum(r => r.Bytes) is > 0 and < 7 << 20, "those beyond the memory went back to the disk");
        Assert.Empty(Directory.GetFileSystemEntries(System.IO.Path.Combine(adapters, "staging")));
    }

    /// <summary>An admin who does this and that.</summary>
    private sealed class Mover(TestHost host, Engine quiet, ConcurrentDictionary<string, string> marks, ConcurrentDictionary<string, bool> deleted, string name) : IDisposable
    {
        private static readonly Lock Oracle = new();
        private readonly Random random = new(name.Sum(c => c));
        private readonly (string Name, byte[] Bytes)[] files = Files("sprout");
        private readonly DirectoryInfo folder = Directory.CreateTempSubdirectory("mover-");

        /// <summary>A version of random weights. Its mark is known before anyone can name it.</summary>
        public async Task BringAsync(string tenant, bool activate = false)
        {
            var weights = (byte[])files[1].Bytes.Clone();
            for (var at = 8 + (int)BitConverter.ToUInt64(weights); at + 1 < weights.Length; at += 2)
            {
                weights[at] = (byte)random.Next(256);
                weights[at + 1] = (byte)(random.Next(2) * 128 | 0x3E);        // bf16 of ±2⁻³ to ±2⁻¹
            }
            foreach (var (file, bytes) in new[] { files[0], (files[1].Name, weights) }) await File.WriteAllBytesAsync(System.IO.Path.Combine(folder.FullName, file), bytes);
            string digest;
            lock (Oracle)
            {
                digest = quiet.AddAdapter(folder.FullName).Digest;
                marks[digest] = AnswerAsync(digest).GetAwaiter().GetResult();
                quiet.RemoveAdapter(digest);
            }
            using var admin = host.Client(tenant);
            using var brought = await admin.PostAsync($"/api/tenants/{tenant}/adapters/mark/versions", Form(files[0], (files[1].Name, weights)));
            var answer = await TestHost.ReadAsync(brought);
            Assert.True(brought.StatusCode is HttpStatusCode.Created or HttpStatusCode.TooManyRequests, answer.ToString());
            if (!activate) return;
            Assert.Equal(digest, answer.GetProperty("version").GetProperty("digest").GetString());
            using var seen = await admin.GetAsync($"/api/tenants/{tenant}/adapters/mark");
            await SendAsync(admin, HttpMethod.Put, $"/api/tenants/{tenant}/adapters/mark/aliases/active", """{"version":"v1"}""", seen.Headers.ETag);
        }

        public async Task<string> MoveAsync(string[] tenants)
        {
            var tenant = tenants[random.Next(tenants.Length)];
            var path = $"/api/tenants/{tenant}/adapters/mark";
            using var admin = host.Client(tenant);
            using var seen = await admin.GetAsync(path);
            if (seen.StatusCode == HttpStatusCode.NotFound)
            {
                await BringAsync(tenant);
                return "brought back";
            }
            var versions = (await TestHost.ReadAsync(seen)).GetProperty("versionList").EnumerateArray().Select(v => v.GetProperty("version").GetString()).ToArray();
            var version = versions.Length > 0 ? versions[random.Next(versions.Length)] : "v1";
            switch (random.Next(10))
            {
                case 0 or 1:
                    await BringAsync(tenant);
                    return "brought";
                case 2 or 3 or 4:
                    await SendAsync(admin, HttpMethod.Put, path + "/aliases/active", $$"""{"version":"{{version}}"}""", seen.Headers.ETag);
                    return "activated";
                case 5:
                    await SendAsync(admin, HttpMethod.Put, path + "/aliases/canary", $$"""{"version":"{{version}}","share":50}""", seen.Headers.ETag);
                    return "tried";
                case 6 or 7:
                    await SendAsync(admin, HttpMethod.Post, path + "/rollback", "{}", seen.Headers.ETag);
                    return "rolled back";
                case 8:
                    (await admin.DeleteAsync($"{path}/versions/{version}")).Dispose();
                    return "versions deleted";
                default:
                    if (random.Next(4) > 0) return "looked at";
                    deleted[tenant] = true;
                    (await admin.DeleteAsync(path)).Dispose();
                    return "deleted";
            }
        }

        private static async Task SendAsync(HttpClient admin, HttpMethod method, string path, string body, EntityTagHeaderValue? etag)
        {
            using var request = new HttpRequestMessage(method, path) { Content = TestHost.Json(body) };
            request.Headers.IfMatch.Add(etag!);
            using var response = await admin.SendAsync(request);
            Assert.True((int)response.StatusCode is 200 or 404 or 409 or 412, $"{response.StatusCode}");      // others move too
        }

        private async Task<string> AnswerAsync(string digest)
        {
            var text = "";
            await foreach (var generated in quiet.GenerateAsync(new GenerationRequest { Tenant = "mark", Adapter = digest, Messages = [new Message("user", Question)], MaxTokens = Tokens, Sampling = new SamplingOptions { Temperature = 0 } }))
                if (generated is TextDelta delta) text += delta.Text;
            return text;
        }

        public void Dispose() => folder.Delete(recursive: true);
    }
}
