using System.Text.Json;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Tests.OpenAi;

/// <summary>What is on the wire, byte by byte, because clients break on deviations that look harmless.</summary>
public sealed class StreamFramingTests
{
    private const string Ask = """{"model":"harbor","stream":true,"messages":[{"role":"user","content":"Hi"}]}""";

    [Fact]
    public async Task A_stream_has_role_first_finish_last_and_DONE_exactly()
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime());
        var (text, reset) = await RawHttp.PostAsync(host.Url, "/v1/chat/completions", host.Keys["harbor"], Ask);
        Assert.False(reset);
        Assert.StartsWith("HTTP/1.1 200 OK\r\n", text, StringComparison.Ordinal);
        Assert.Contains("Content-Type: text/event-stream\r\n", text, StringComparison.Ordinal);
        Assert.Contains("X-Accel-Buffering: no\r\n", text, StringComparison.Ordinal);
        Assert.Contains("Cache-Control: no-cache, no-store\r\n", text, StringComparison.Ordinal);
        Assert.Contains("x-request-id: req_", text, StringComparison.Ordinal);
        Assert.Contains($"x-tenantlora-adapter: {TestHost.HarborDigest}\r\n", text, StringComparison.Ordinal);
        var (body, complete) = RawHttp.Unchunk(text);
        Assert.True(complete);
        Assert.EndsWith("data: [DONE]\n\n", body, StringComparison.Ordinal);
        var events = body.Split("\n\n", StringSplitOptions.RemoveEmptyEntries);
        Assert.All(events, e => Assert.StartsWith("data: ", e, StringComparison.Ordinal));
        var chunks = events[..^1].Select(e => JsonDocument.Parse(e["data: ".Length..]).RootElement).ToArray();
        Assert.All(chunks, c =>
        {
            Assert.Equal("chat.completion.chunk", c.GetProperty("object").GetString());
            Assert.True(c.GetProperty("created").TryGetInt64(out _));
            Assert.Equal("harbor", c.GetProperty("model").GetString());
            Assert.Equal(chunks[0].GetProperty("id").GetString(), c.GetProperty("id").GetString());
            Assert.Equal(0, c.GetProperty("choices")[0].GetProperty("index").GetInt32());
            Assert.False(c.TryGetProperty("usage", out _));
        });
        Assert.Equal("""{"role":"assistant","content":""}""", chunks[0].GetProperty("choices")[0].GetProperty("delta").GetRawText());
        Assert.Equal("Aye, we are open.", string.Concat(chunks[1..^1].Select(c => c.GetProperty("choices")[0].GetProperty("delta").GetProperty("content").GetString())));
        Assert.All(chunks[..^1], c => Assert.Equal(JsonValueKind.Null, c.GetProperty("choices")[0].GetProperty("finish_reason").ValueKind));
        Assert.Equal("stop", chunks[^1].GetProperty("choices")[0].GetProperty("finish_reason").GetString());
        Assert.Equal("fp_demo", chunks[^1].GetProperty("system_fingerprint").GetString());
        Assert.Equal(3, chunks[^1].GetProperty("timings").GetProperty("predicted_n").GetInt32());
        Assert.Equal(64.52, chunks[^1].GetProperty("timings").GetProperty("predicted_per_second").GetDouble());
    }

    [Fact]
    public async Task Usage_is_a_chunk_of_its_own_when_asked_for()
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime());
        var (text, _) = await RawHttp.PostAsync(host.Url, "/v1/chat/completions", host.Keys["harbor"],
            """{"model":"harbor","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"Hi"}]}""");
        var events = RawHttp.Unchunk(text).Body.Split("\n\n", StringSplitOptions.RemoveEmptyEntries);
        var last = JsonDocument.Parse(events[^2]["data: ".Length..]).RootElement;
        Assert.Equal(0, last.GetProperty("choices").GetArrayLength());
        Assert.Equal("""{"prompt_tokens":31,"completion_tokens":3,"total_tokens":34}""", last.GetProperty("usage").GetRawText());
    }

    [Fact]
    public async Task A_failure_in_the_stream_is_an_error_chunk_and_then_a_cut()
    {
        var runtime = new FakeRuntime
        {
            Answer = (_, _) => FakeRuntime.Fails(new TenantLoraException(ErrorCodes.NotANumber, "The adapter's numbers went bad."), new GenerationQueued(0, 31), new TextDelta("Aye")),
        };
        await using var host = await TestHost.StartAsync(runtime);
        for (var i = 0; i < 20; i++) // the cut must never overtake the chunk
        {
            var (text, _) = await RawHttp.PostAsync(host.Url, "/v1/chat/completions", host.Keys["harbor"], Ask);
            var (body, complete) = RawHttp.Unchunk(text);
            Assert.False(complete);
            Assert.EndsWith("""data: {"error":{"message":"The adapter's numbers went bad.","type":"server_error","param":null,"code":"adapter_values_invalid"}}""" + "\n\n", body, StringComparison.Ordinal);
            Assert.DoesNotContain("[DONE]", body, StringComparison.Ordinal);
        }
    }

    [Fact]
    public async Task A_defect_shows_nothing_of_the_inside()
    {
        var runtime = new FakeRuntime { Answer = (_, _) => FakeRuntime.Fails(new InvalidOperationException("secret /path"), new GenerationQueued(0, 31)) };
        await using var host = await TestHost.StartAsync(runtime);
        var (streamed, _) = await RawHttp.PostAsync(host.Url, "/v1/chat/completions", host.Keys["harbor"], Ask);
        var (whole, _) = await RawHttp.PostAsync(host.Url, "/v1/chat/completions", host.Keys["harbor"], Ask.Replace(",\"stream\":true", "", StringComparison.Ordinal));
        Assert.Contains("\"code\":\"internal_error\"", streamed, StringComparison.Ordinal);
        Assert.StartsWith("HTTP/1.1 500 ", whole, StringComparison.Ordinal);
        Assert.DoesNotContain("secret", streamed + whole, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_silent_stream_carries_comments()
    {
        var runtime = new FakeRuntime { Answer = (_, token) => FakeRuntime.Says(TimeSpan.FromMilliseconds(400), token, "late") };
        await using var host = await TestHost.StartAsync(runtime, "KeepAliveSeconds=0.05");
        var (text, _) = await RawHttp.PostAsync(host.Url, "/v1/chat/completions", host.Keys["harbor"], Ask);
        var (body, complete) = RawHttp.Unchunk(text);
        Assert.True(complete);
        Assert.Contains("\n\n: keep-alive\n\n", body, StringComparison.Ordinal);
        Assert.EndsWith("data: [DONE]\n\n", body, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Log_probabilities_come_in_the_shape_of_each_endpoint()
    {
        var token = new TokenLogProbability("Aye", "Aye"u8.ToArray(), -0.25f, [new("Aye", "Aye"u8.ToArray(), -0.25f, []), new("Nay", "Nay"u8.ToArray(), -1.5f, [])]);
        var runtime = new FakeRuntime { Answer = (_, _) => Once(new GenerationQueued(0, 3), new TextDelta("Aye") { LogProbabilities = [token] }, FakeRuntime.Done(1)) };
        await using var host = await TestHost.StartAsync(runtime);
        using var client = host.Client();
        using var chat = await client.PostAsync("/v1/chat/completions", TestHost.Json("""{"model":"harbor","logprobs":true,"top_logprobs":2,"messages":[{"role":"user","content":"Hi"}]}"""));
        Assert.Equal("""{"content":[{"token":"Aye","logprob":-0.25,"bytes":[65,121,101],"top_logprobs":[{"token":"Aye","logprob":-0.25,"bytes":[65,121,101]},{"token":"Nay","logprob":-1.5,"bytes":[78,97,121]}]}]}""",
            (await TestHost.ReadAsync(chat)).GetProperty("choices")[0].GetProperty("logprobs").GetRawText());
        using var plain = await client.PostAsync("/v1/completions", TestHost.Json("""{"model":"harbor","logprobs":2,"prompt":"Hi"}"""));
        Assert.Equal("""{"tokens":["Aye"],"token_logprobs":[-0.25],"top_logprobs":[{"Aye":-0.25,"Nay":-1.5}],"text_offset":[0]}""",
            (await TestHost.ReadAsync(plain)).GetProperty("choices")[0].GetProperty("logprobs").GetRawText());
    }

    private static async IAsyncEnumerable<GenerationEvent> Once(params GenerationEvent[] events)
    {
        foreach (var next in events) yield return next;
        await Task.CompletedTask;
    }
}
