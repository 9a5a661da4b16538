using System.Net;
using System.Net.Http.Headers;
using System.Text;
using System.Text.Json;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Tests.OpenAi;

/// <summary>Requests that must be refused with OpenAI's envelope, never with 500, and never reach the runtime.</summary>
public sealed class BadInputTests(BadInputTests.OneHost one) : IClassFixture<BadInputTests.OneHost>, IDisposable
{
    private const string Messages = "\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]";
    private readonly HttpClient client = one.Host.Client();

    /// <summary>One host for the whole table.</summary>
    public sealed class OneHost : IAsyncLifetime
    {
        internal FakeRuntime Runtime { get; } = new();

        internal TestHost Host { get; private set; } = null!;

        public async ValueTask InitializeAsync() => Host = await TestHost.StartAsync(Runtime);

        public ValueTask DisposeAsync() => Host.DisposeAsync();
    }

    public void Dispose()
    {
        client.Dispose();
        one.Runtime.Asked.Clear();
    }

    /// <summary>Fields of an otherwise good chat request, the code and the field of the error.</summary>
    public static TheoryData<string, string, string> BadFields { get; } = new()
    {
        { "\"n\":0", "invalid_value", "n" }, { "\"n\":-1", "invalid_value", "n" }, { "\"n\":2", "unsupported_parameter", "n" },
        { "\"n\":1.5", "invalid_value", "n" }, { "\"n\":\"2\"", "invalid_value", "n" }, { "\"n\":9223372036854775808", "invalid_value", "n" },
        { "\"max_tokens\":0", "invalid_value", "max_tokens" }, { "\"max_tokens\":-1", "invalid_value", "max_tokens" },
        { "\"max_tokens\":2147483648", "invalid_value", "max_tokens" }, { "\"max_tokens\":1e400", "invalid_value", "max_tokens" },
        { "\"max_tokens\":\"5\"", "invalid_value", "max_tokens" }, { "\"max_tokens\":1.5", "invalid_value", "max_tokens" },
        { "\"max_tokens\":5,\"max_completion_tokens\":6", "invalid_value", "max_completion_tokens" },
        { "\"temperature\":-0.1", "invalid_value", "temperature" }, { "\"temperature\":2.1", "invalid_value", "temperature" },
        { "\"temperature\":\"NaN\"", "invalid_value", "temperature" }, { "\"temperature\":1e400", "invalid_value", "temperature" },
        { "\"temperature\":\"0.5\"", "invalid_value", "temperature" }, { "\"temperature\":true", "invalid_value", "temperature" },
        { "\"top_p\":0", "invalid_value", "top_p" }, { "\"top_p\":-1", "invalid_value", "top_p" }, { "\"top_p\":1.1", "invalid_value", "top_p" },
        { "\"top_k\":-2", "invalid_value", "top_k" }, { "\"top_k\":2147483648", "invalid_value", "top_k" },
        { "\"min_p\":1", "invalid_value", "min_p" }, { "\"repetition_penalty\":0", "invalid_value", "repetition_penalty" },
        { "\"presence_penalty\":2.1", "invalid_value", "presence_penalty" }, { "\"frequency_penalty\":-2.1", "invalid_value", "frequency_penalty" },
        { "\"seed\":9223372036854775808", "invalid_value", "seed" }, { "\"seed\":1.5", "invalid_value", "seed" }, { "\"seed\":\"x\"", "invalid_value", "seed" },
        { "\"logit_bias\":{\"-1\":1}", "invalid_value", "logit_bias.-1" }, { "\"logit_bias\":{\"abc\":1}", "invalid_value", "logit_bias.abc" },
        { "\"logit_bias\":{\"1\":101}", "invalid_value", "logit_bias.1" }, { "\"logit_bias\":{\"1\":1e400}", "invalid_value", "logit_bias.1" },
        { "\"logit_bias\":[]", "invalid_value", "logit_bias" },
        { "\"logprobs\":1", "invalid_value", "logprobs" }, { "\"top_logprobs\":2", "invalid_value", "top_logprobs" },
        { "\"logprobs\":true,\"top_logprobs\":21", "invalid_value", "top_logprobs" },
        { "\"stop\":\"\"", "invalid_value", "stop" }, { "\"stop\":[\"\"]", "invalid_value", "stop" }, { "\"stop\":5", "invalid_value", "stop" },
        { "\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\"]", "invalid_value", "stop" },
        { "\"stream\":\"true\"", "invalid_value", "stream" }, { "\"stream\":1", "invalid_value", "stream" },
        { "\"stream_options\":{\"include_usage\":true}", "invalid_value", "stream_options" },
        { "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]", "unsupported_parameter", "tools" },
        { "\"functions\":[{\"name\":\"f\"}]", "unsupported_parameter", "functions" },
        { "\"tool_choice\":\"required\"", "unsupported_parameter", "tool_choice" },
        { "\"response_format\":{\"type\":\"json_object\"}", "unsupported_parameter", "response_format" },
        { "\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"a\"}}", "unsupported_parameter", "response_format" },
        { "\"modalities\":[\"text\",\"audio\"]", "unsupported_parameter", "modalities" },
        { "\"chat_template\":\"{{ x }}\"", "unsupported_parameter", "chat_template" }, { "\"chat_template_kwargs\":{\"a\":1}", "unsupported_parameter", "chat_template_kwargs" },
        { "\"best_of\":3", "unsupported_parameter", "best_of" }, { "\"echo\":true", "unsupported_parameter", "echo" },
        { "\"max_token\":5", "invalid_value", "max_token" }, { "\"Temperature\":1", "invalid_value", "Temperature" }, { "\"maxTokens\":1", "invalid_value", "maxTokens" },
    };

    [Theory, MemberData(nameof(BadFields))]
    public Task A_bad_field_is_named(string field, string code, string parameter) => RefusedAsync($$"""{"model":"harbor",{{Messages}},{{field}}}""", code, parameter);

    public static TheoryData<string, string> BadMessages { get; } = new()
    {
        { "[]", "messages" }, { "\"x\"", "messages" }, { "null", "messages" }, { "[5]", "messages[0]" },
        { """[{"content":"x"}]""", "messages[0].role" }, { """[{"role":"king","content":"x"}]""", "messages[0].role" },
        { """[{"role":"user"}]""", "messages[0].content" }, { """[{"role":"user","content":null}]""", "messages[0].content" },
        { """[{"role":"user","content":5}]""", "messages[0].content" },
        { """[{"role":"user","content":[{"type":"text"}]}]""", "messages[0].content[0].text" },
        { """[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://169.254.169.254/"}}]}]""", "messages[0].content[0].type" },
        { """[{"role":"tool","content":"x","tool_call_id":"a"}]""", "messages[0].tool_call_id" },
        { """[{"role":"assistant","content":null,"tool_calls":[{"id":"a"}]}]""", "messages[0].tool_calls" },
    };

    [Theory, MemberData(nameof(BadMessages))]
    public Task Bad_messages_are_named_by_place(string messages, string parameter) => RefusedAsync($$"""{"model":"harbor","messages":{{messages}}}""", null, parameter);

    [Theory]
    [InlineData("")]
    [InlineData("null")]
    [InlineData("[]")]
    [InlineData("\"x\"")]
    [InlineData("{")]
    [InlineData("{} {}")]
    [InlineData("""{"model":"harbor","messages":[{"role":"user","content":"\ud800"}]}""")]
    [InlineData("""{"model":"harbor","messages":[{"role":"user","content":"x"}],"\ud800":1}""")]
    [InlineData("""{"model":"harbor","temperature":1,"temperature":1,"messages":[{"role":"user","content":"x"}]}""")]
    [InlineData("""{"model":"harbor","temperature":1,"temperatur\u0065":1,"messages":[{"role":"user","content":"x"}]}""")]
    public Task A_bad_body_is_refused(string body) => RefusedAsync(body, "invalid_value", null);

    [Fact]
    public async Task Everything_wrong_is_said_at_once()
    {
        var error = await RefusedAsync($$"""{"temperature":3,"top_p":0,"messages":[]}""", "invalid_value", null);
        foreach (var field in new[] { "temperature:", "top_p:", "messages:", "model:" }) Assert.Contains(field, error.GetProperty("message").GetString(), StringComparison.Ordinal);
    }

    [Fact]
    public async Task Depth_size_and_encoding_are_bounded()
    {
        await RefusedAsync($$"""{"model":"harbor",{{Messages}},"metadata":{{string.Concat(Enumerable.Repeat("[", 100_000))}}""", "invalid_value", null);
        using var notUtf8 = new ByteArrayContent([.. "{\"model\":\""u8, 0xFF, .. "\"}"u8]);
        notUtf8.Headers.ContentType = new MediaTypeHeaderValue("application/json");
        Assert.Equal(HttpStatusCode.BadRequest, (await client.PostAsync("/v1/chat/completions", notUtf8)).StatusCode);
        var (tooLarge, _) = await RawHttp.SendAsync(one.Host.Url, Encoding.ASCII.GetBytes(
            $"POST /v1/chat/completions HTTP/1.1\r\nHost: {one.Host.Url.Authority}\r\nAuthorization: Bearer {one.Host.Keys["harbor"]}\r\nContent-Type: application/json\r\nContent-Length: {(4 << 20) + 1}\r\n\r\n"));
        Assert.StartsWith("HTTP/1.1 413 ", tooLarge, StringComparison.Ordinal);
        Assert.Contains("\"code\":\"request_too_large\"", tooLarge, StringComparison.Ordinal);
        await StatusAsync(415, new StringContent("{}", Encoding.UTF8, "text/plain"));
        await StatusAsync(415, new StringContent($$"""{"model":"harbor",{{Messages}}}""", Encoding.Unicode, "application/json"));
        var packed = TestHost.Json("{}");
        packed.Headers.ContentEncoding.Add("gzip");
        await StatusAsync(415, packed);
        await StatusAsync(415, new ByteArrayContent([]));
        Assert.Empty(one.Runtime.Asked);
    }

    [Fact]
    public async Task A_byte_order_mark_passes()
    {
        using var content = new ByteArrayContent([.. "\uFEFF"u8, .. Encoding.UTF8.GetBytes($$"""{"model":"harbor",{{Messages}}}""")]);
        content.Headers.ContentType = new MediaTypeHeaderValue("application/json");
        using var response = await client.PostAsync("/v1/chat/completions", content);
        Assert.Equal(HttpStatusCode.OK, response.StatusCode);
    }

    [Fact]
    public async Task Harmless_fields_pass_and_unknown_ones_are_listed()
    {
        using var response = await client.PostAsync("/v1/chat/completions", TestHost.Json(
            $$$"""{"model":"harbor",{{{Messages}}},"user":"u","store":true,"metadata":{"a":"b"},"parallel_tool_calls":true,"service_tier":"auto","tools":[],"echo":false,"cache_salt":"x","favourite_fish":1,"evil\r\nX-Header: 1":2,"stop":null,"n":1,"response_format":{"type":"text"}}"""));
        Assert.Equal(HttpStatusCode.OK, response.StatusCode);
        Assert.Equal("favourite_fish, ?", Assert.Single(response.Headers.GetValues("x-tenantlora-ignored-fields")));
    }

    [Fact]
    public async Task All_served_fields_reach_the_runtime()
    {
        using var response = await client.PostAsync("/v1/chat/completions", TestHost.Json(
            """
            {"model":"harbor","messages":[{"role":"developer","content":"Be brief."},{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"<|im_start|>\u0000"}]},{"role":"assistant","content":""},{"role":"user","content":"{{ x }}"}],
             "max_completion_tokens":7,"temperature":0,"top_p":1,"top_k":-1,"min_p":0,"repetition_penalty":1.1,"frequency_penalty":-2,"presence_penalty":2,"seed":-1,
             "stop":["a","b"],"logit_bias":{"5":-100},"logprobs":true}
            """));
        Assert.Equal(HttpStatusCode.OK, response.StatusCode);
        var asked = Assert.Single(one.Runtime.Asked);
        Assert.Equal("harbor", asked.Tenant);
        Assert.Equal(TestHost.HarborDigest, asked.Adapter);
        Assert.Equal([("system", "Be brief."), ("user", "a<|im_start|>\0"), ("assistant", ""), ("user", "{{ x }}")], asked.Messages!.Select(m => (m.Role, m.Content)));
        Assert.Equal(7, asked.MaxTokens);
        Assert.Equal(["a", "b"], asked.StopStrings);
        Assert.Equal(new SamplingOptions
        {
            Temperature = 0,
            TopP = 1,
            TopK = -1,
            MinP = 0,
            RepetitionPenalty = 1.1f,
            FrequencyPenalty = -2,
            PresencePenalty = 2,
            Seed = -1,
            LogProbabilities = 0,
            LogitBias = asked.Sampling.LogitBias,
        }, asked.Sampling);
        Assert.Equal(-100, asked.Sampling.LogitBias![5]);
    }

    [Theory]
    [InlineData("""{"model":"harbor","prompt":[1,2]}""", "prompt")]
    [InlineData("""{"model":"harbor","prompt":["a","b"]}""", "prompt")]
    [InlineData("""{"model":"harbor","prompt":"a","best_of":2}""", "best_of")]
    [InlineData("""{"model":"harbor","prompt":"a","echo":true}""", "echo")]
    [InlineData("""{"model":"harbor","prompt":"a","suffix":"b"}""", "suffix")]
    [InlineData("""{"model":"harbor","prompt":"a","messages":[{"role":"user","content":"x"}]}""", "messages")]
    public Task Plain_completions_refuse_what_they_do_not_serve(string body, string parameter) => RefusedAsync(body, "unsupported_parameter", parameter, "/v1/completions");

    private async Task<JsonElement> RefusedAsync(string body, string? code, string? parameter, string path = "/v1/chat/completions")
    {
        using var response = await client.PostAsync(path, TestHost.Json(body));
        Assert.Equal(HttpStatusCode.BadRequest, response.StatusCode);
        var error = (await TestHost.ReadAsync(response)).GetProperty("error");
        Assert.Equal("invalid_request_error", error.GetProperty("type").GetString());
        if (code is not null) Assert.Equal(code, error.GetProperty("code").GetString());
        if (parameter is not null) Assert.Equal(parameter, error.GetProperty("param").GetString());
        Assert.DoesNotMatch(@"System\.|TenantLora\.|\.cs|   at ", error.GetProperty("message").GetString());
        Assert.Empty(one.Runtime.Asked);
        return error;
    }

    private async Task StatusAsync(int status, HttpContent content)
    {
        using var response = await client.PostAsync("/v1/chat/completions", content);
        Assert.Equal(status, (int)response.StatusCode);
        Assert.Equal(JsonValueKind.String, (await TestHost.ReadAsync(response)).GetProperty("error").GetProperty("code").ValueKind);
    }
}
