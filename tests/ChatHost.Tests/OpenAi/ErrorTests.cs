using System.Net;
using System.Text;
using System.Text.Json;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Tests.OpenAi;

/// <summary>Whatever goes wrong under /v1 comes as OpenAI's envelope with its own status.</summary>
public sealed class ErrorTests
{
    private const string Ask = """{"model":"harbor","messages":[{"role":"user","content":"Hi"}]}""";

    [Theory]
    [InlineData(ErrorCodes.ContextLengthExceeded, 400, "invalid_request_error")]
    [InlineData(ErrorCodes.QueueFull, 429, "rate_limit_error")]
    [InlineData(ErrorCodes.ShuttingDown, 503, "server_error")]
    [InlineData(ErrorCodes.NotANumber, 500, "server_error")]
    public async Task A_refusal_before_the_first_event_has_its_status_streamed_or_not(string code, int status, string type)
    {
        var runtime = new FakeRuntime { Answer = (_, _) => FakeRuntime.Fails(new TenantLoraException(code, "31 tokens are more than 16.") { Parameter = "messages", RetryAfter = TimeSpan.FromSeconds(3) }) };
        await using var host = await TestHost.StartAsync(runtime);
        using var client = host.Client();
        foreach (var body in new[] { Ask, Ask.Replace("\"model\"", "\"stream\":true,\"model\"", StringComparison.Ordinal) })
        {
            using var response = await client.PostAsync("/v1/chat/completions", TestHost.Json(body));
            Assert.Equal(status, (int)response.StatusCode);
            Assert.Equal($$$"""{"error":{"message":"31 tokens are more than 16.","type":"{{{type}}}","param":"messages","code":"{{{code}}}"}}""", await response.Content.ReadAsStringAsync());
            Assert.Equal(status is 429 or 503 ? "3" : null, response.Headers.RetryAfter?.ToString());
            Assert.StartsWith("req_", Assert.Single(response.Headers.GetValues("x-request-id")), StringComparison.Ordinal);
        }
    }

    [Theory]
    [InlineData("GET", "/v1/nothing", 404)]
    [InlineData("GET", "/v1/", 404)]
    [InlineData("GET", "/v1/chat/completions", 405)]
    [InlineData("DELETE", "/v1/models", 405)]
    [InlineData("POST", "/v1/embeddings", 404)]
    [InlineData("POST", "/V1/CHAT/COMPLETIONS", 415)]
    public async Task A_wrong_address_or_method_is_explained(string method, string path, int status)
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime());
        using var client = host.Client();
        using var response = await client.SendAsync(new HttpRequestMessage(new HttpMethod(method), path));
        Assert.Equal(status, (int)response.StatusCode);
        Assert.Equal(JsonValueKind.String, (await TestHost.ReadAsync(response)).GetProperty("error").GetProperty("message").ValueKind);
    }

    [Fact]
    public async Task Another_tenants_adapter_answers_byte_for_byte_like_a_missing_one()
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime());
        using var client = host.Client();
        var missing = await BodiesAsync(client, "absent");
        var foreign = await BodiesAsync(client, "ledger");
        Assert.Equal(missing.Select(m => m.Replace("absent", "ledger", StringComparison.Ordinal)), foreign);
        Assert.All(foreign, text => Assert.Contains("404", text, StringComparison.Ordinal));

        static async Task<List<string>> BodiesAsync(HttpClient client, string model)
        {
            List<string> all = [];
            foreach (var path in new[] { "/v1/chat/completions", "/v1/completions" })
            {
                using var response = await client.PostAsync(path, TestHost.Json($$"""{"model":"{{model}}",{{(path.Contains("chat", StringComparison.Ordinal) ? "\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]" : "\"prompt\":\"x\"")}}}"""));
                all.Add($"{(int)response.StatusCode} {await response.Content.ReadAsStringAsync()}");
            }
            using var card = await client.GetAsync($"/v1/models/{model}");
            all.Add($"{(int)card.StatusCode} {await card.Content.ReadAsStringAsync()}");
            return all;
        }
    }

    [Fact]
    public async Task Models_are_those_of_the_key_and_a_slash_may_be_escaped()
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime());
        using var client = host.Client();
        var list = await client.GetStringAsync("/v1/models");
        var data = JsonDocument.Parse(list).RootElement.GetProperty("data");
        Assert.Equal(["harbor", "demo-7m"], data.EnumerateArray().Select(m => m.GetProperty("id").GetString()!));
        Assert.Equal("demo-7m", data[0].GetProperty("parent").GetString());
        Assert.Equal($$"""{"kind":"prolora","rank":16,"bytes":456000,"expandedBytes":1800000,"digest":"{{TestHost.HarborDigest}}"}""", data[0].GetProperty("adapter").GetRawText());
        Assert.Equal("harbor", JsonDocument.Parse(await client.GetStringAsync("/v1/models/harbor")).RootElement.GetProperty("id").GetString());
        using var slash = await client.GetAsync("/v1/models/acme%2Fsupport");
        Assert.Equal(HttpStatusCode.NotFound, slash.StatusCode);
        Assert.Contains("'acme/support'", await slash.Content.ReadAsStringAsync(), StringComparison.Ordinal);
    }

    [Fact]
    public async Task One_answer_too_many_of_a_tenant_is_429_and_its_neighbour_is_served()
    {
        var runtime = new FakeRuntime { Answer = (_, token) => FakeRuntime.Endless(token) };
        await using var host = await TestHost.StartAsync(runtime, "MaxConcurrentPerTenant=1");
        using var client = host.Client();
        using var stop = new CancellationTokenSource();
        var first = client.PostAsync("/v1/chat/completions", TestHost.Json(Ask), stop.Token);
        await TestHost.UntilAsync(() => runtime.Running == 1, "the first runs");
        using var second = await client.PostAsync("/v1/chat/completions", TestHost.Json(Ask));
        Assert.Equal(HttpStatusCode.TooManyRequests, second.StatusCode);
        Assert.NotNull(second.Headers.RetryAfter);
        Assert.Single(runtime.Held);            // nor is an adapter brought for it
        runtime.Answer = (_, token) => FakeRuntime.Says(token, "Aye");
        using var ledger = host.Client("ledger");
        using var third = await ledger.PostAsync("/v1/chat/completions", TestHost.Json(Ask.Replace("harbor", "ledger", StringComparison.Ordinal)));
        Assert.Equal(HttpStatusCode.OK, third.StatusCode);
        await stop.CancelAsync();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => first);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task A_client_that_leaves_ends_its_generation(bool stream)
    {
        var runtime = new FakeRuntime { Answer = (_, token) => FakeRuntime.Endless(token) };
        await using var host = await TestHost.StartAsync(runtime);
        using var client = host.Client();
        using var leave = new CancellationTokenSource();
        using var request = new HttpRequestMessage(HttpMethod.Post, "/v1/chat/completions") { Content = TestHost.Json(stream ? Ask.Replace("\"model\"", "\"stream\":true,\"model\"", StringComparison.Ordinal) : Ask) };
        var response = client.SendAsync(request, HttpCompletionOption.ResponseHeadersRead, leave.Token);
        await TestHost.UntilAsync(() => runtime.Running == 1, "it runs");
        if (stream)
        {
            using var begun = await response;
            Assert.Equal(HttpStatusCode.OK, begun.StatusCode);
        }
        await leave.CancelAsync();
        await TestHost.UntilAsync(() => runtime.Running == 0, "the generation ended");
        await TestHost.UntilAsync(() => host.Service<ChatHost.Operations.Admission>().Running == 0, "its lease is back");
    }

    [Fact]
    public async Task Both_lengths_at_once_are_400()
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime());
        var (text, _) = await RawHttp.SendAsync(host.Url, Encoding.ASCII.GetBytes(
            $"POST /v1/chat/completions HTTP/1.1\r\nHost: {host.Url.Authority}\r\nAuthorization: Bearer {host.Keys["harbor"]}\r\nContent-Type: application/json\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"));
        Assert.StartsWith("HTTP/1.1 400 ", text, StringComparison.Ordinal);
        Assert.Contains("Connection: close", text, StringComparison.Ordinal);
    }
}
