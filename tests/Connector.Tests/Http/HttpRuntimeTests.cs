using System.Net;
using System.Net.Http.Headers;
using System.Net.Sockets;
using System.Text;
using System.Text.Json;
using Microsoft.Extensions.AI;
using TenantLora.Runtime;

namespace TenantLora.Connector.Tests.Http;

public sealed class HttpRuntimeTests
{
    // As the host writes it: role first, comments while waiting, CRLF and LF mixed, characters of up to four bytes, usage, timings, end.
    private const string Stream =
        ": keep-alive\n\n" +
        "data: {\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"harbor\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\r\n\r\n" +
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Ahoy ⚓\"}}]}\n\n" +
        ": keep-alive\n\n" +
        "data:{\"choices\":[{\"index\":0,\"delta\":{\"content\":\", 🌊 sailor\\n\"}}],\"unknown\":{\"a\":[1]}}\n\n" +
        "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"length\"}]}\n\n" +
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":4,\"total_tokens\":15},\"system_fingerprint\":\"fp_1\",\"timings\":{\"queued_ms\":1.5,\"prompt_n\":11,\"prompt_ms\":20.5,\"prompt_per_second\":500,\"predicted_n\":4,\"predicted_ms\":30,\"predicted_per_second\":133.3}}\n\n" +
        "data: [DONE]\n\n";

    private static readonly GenerationRequest Request = new() { Tenant = "harbor", Model = "support", Messages = [new Message("user", "Hi")] };

    private static HttpRuntime Runtime(StubHandler handler, string server = "http://host:5080") => new(new Uri(server), _ => "tl_key", new HttpClient(handler));

    private static async Task<List<GenerationEvent>> Collect(HttpRuntime runtime, GenerationRequest? request = null) => await runtime.GenerateAsync(request ?? Request).ToListAsync();

    [Fact]
    public async Task A_stream_reads_the_same_wherever_it_is_cut()
    {
        var bytes = Encoding.UTF8.GetBytes(Stream);
        for (var cut = 0; cut < bytes.Length; cut++) await Check([bytes[..cut], bytes[cut..]]);
        await Check(bytes.Select(b => new[] { b }));

        static async Task Check(IEnumerable<byte[]> pieces)
        {
            var events = await Collect(Runtime(StubHandler.Streaming(pieces)));
            Assert.IsType<GenerationQueued>(events[0]);
            Assert.Equal(["Ahoy ⚓", ", 🌊 sailor\n"], events.OfType<TextDelta>().Select(d => d.Text));
            var done = Assert.IsType<GenerationDone>(events[^1]);
            Assert.Equal(FinishReason.Length, done.Reason);
            Assert.Equal(new GenerationUsage(11, 4), done.Usage);
            Assert.Equal(new GenerationTimings(TimeSpan.FromMilliseconds(1.5), TimeSpan.FromMilliseconds(20.5), TimeSpan.FromMilliseconds(30)), done.Timings);
            Assert.Equal(("support@v3", "fp_1"), (done.Adapter, done.Fingerprint));
        }
    }

    [Theory]
    [InlineData("none", null)]
    [InlineData("sha256:aa", "sha256:aa")]
    public async Task The_adapter_that_answered_is_in_a_header(string header, string? expected)
    {
        var handler = StubHandler.Streaming([Encoding.UTF8.GetBytes(Stream)]);
        handler.Adapter = header;
        Assert.Equal(expected, ((GenerationDone)(await Collect(Runtime(handler)))[^1]).Adapter);
    }

    [Fact]
    public async Task A_server_that_tells_its_progress_is_heard_from_the_queue_on()
    {
        var handler = StubHandler.Streaming([Encoding.UTF8.GetBytes(
            "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n" +
            "data: {\"choices\":[],\"progress\":{\"event\":\"queued\",\"ahead\":2,\"prompt_tokens\":13}}\n\n" +
            "data: {\"choices\":[],\"progress\":{\"event\":\"adapter_load\"}}\n\n" +
            "data: {\"choices\":[],\"progress\":{\"event\":\"prefill\",\"done\":0,\"total\":13}}\n\n" +
            "data: {\"choices\":[],\"progress\":{\"event\":\"of a later version\"}}\n\n" +
            "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Ahoy\"}}],\"progress\":{\"event\":\"delta\",\"tokens\":3}}\n\n" +
            "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"!\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n")]);
        handler.Adapter = "sha256:aa";
        handler.TellsProgress = true;
        var events = await Collect(Runtime(handler));
        Assert.Equal(
            [new GenerationQueued(2, 13), new AdapterLoading("sha256:aa"), new PrefillProgress(0, 13)],
            events.Take(3));
        Assert.Equal([("Ahoy", 3), ("!", 1)], events.OfType<TextDelta>().Select(d => (d.Text, d.Tokens)));
        Assert.Equal(6, events.Count);
    }

    [Fact]
    public async Task Who_asks_may_be_said_in_other_headers_than_a_key()
    {
        var handler = StubHandler.Streaming([Encoding.UTF8.GetBytes(Stream)]);
        var runtime = new HttpRuntime(new Uri("http://host:5080"), (headers, tenant) =>
        {
            headers.Authorization = new AuthenticationHeaderValue("Bearer", "service");
            headers.Add("x-of", tenant);
        }, new HttpClient(handler));
        await Collect(runtime);
        Assert.Equal(("Bearer service", "harbor"), (handler.Authorization, handler.Headers!.GetValues("x-of").Single()));
    }

    [Theory]
    [InlineData("http://host:5080", "http://host:5080/v1/chat/completions")]
    [InlineData("http://host:5080/", "http://host:5080/v1/chat/completions")]
    [InlineData("http://host:5080/v1", "http://host:5080/v1/chat/completions")]
    [InlineData("https://host/team/v1/?x=1", "https://host/team/v1/chat/completions")]
    public async Task The_address_may_end_in_v1_or_not(string server, string expected)
    {
        var handler = StubHandler.Streaming([Encoding.UTF8.GetBytes(Stream)]);
        await Collect(Runtime(handler, server));
        Assert.Equal(expected, handler.Uri);
        Assert.Equal("Bearer tl_key", handler.Authorization);
    }

    [Theory]
    [InlineData("host:5080")]
    [InlineData("ftp://host")]
    public void Another_address_is_refused(string server) =>
        Assert.Throws<ArgumentException>(() => new TenantLoraChatClient(new Uri(server, UriKind.RelativeOrAbsolute), "k", "m"));

    [Fact]
    public async Task Only_what_was_asked_for_is_sent()
    {
        var handler = StubHandler.Streaming([Encoding.UTF8.GetBytes(Stream)]);
        await Collect(Runtime(handler));
        Assert.Equal("""{"model":"support","messages":[{"role":"user","content":"Hi"}],"stream":true,"stream_options":{"include_usage":true}}""", handler.Body);
    }

    [Fact]
    public async Task Everything_that_was_asked_for_is_sent()
    {
        var handler = StubHandler.Streaming([Encoding.UTF8.GetBytes(Stream)]);
        await Collect(Runtime(handler), Request with
        {
            MaxTokens = 9,
            StopStrings = ["\n"],
            Sampling = new SamplingOptions
            {
                Temperature = 0.5f,
                TopK = 40,
                TopP = 0.9f,
                MinP = 0.05f,
                RepetitionPenalty = 1.1f,
                FrequencyPenalty = 0.25f,
                PresencePenalty = -0.5f,
                Seed = 7,
                LogProbabilities = 2,
                LogitBias = new Dictionary<int, float> { [3] = -100 },
            },
        });
        var body = JsonDocument.Parse(handler.Body!).RootElement;
        var expected = JsonDocument.Parse("""
            {"model":"support","messages":[{"role":"user","content":"Hi"}],"stream":true,"stream_options":{"include_usage":true},"max_tokens":9,"stop":["\n"],"temperature":0.5,
             "top_k":40,"top_p":0.9,"min_p":0.05,"repetition_penalty":1.1,"frequency_penalty":0.25,"presence_penalty":-0.5,"logit_bias":{"3":-100},"seed":7,"logprobs":true,"top_logprobs":2}
            """).RootElement;
        Assert.True(JsonElement.DeepEquals(expected, body), handler.Body);
    }

    [Fact]
    public async Task A_raw_prompt_goes_to_completions()
    {
        var handler = StubHandler.Streaming([Encoding.UTF8.GetBytes(
            "data: {\"choices\":[{\"index\":0,\"text\":\" upon\",\"logprobs\":{\"tokens\":[\" upon\"],\"token_logprobs\":[-0.5],\"top_logprobs\":[{\" the\":-2.5,\" upon\":-0.5}]},\"finish_reason\":null}]}\n\n" +
            "data: {\"choices\":[{\"index\":0,\"text\":\"\",\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n")]);
        var events = await Collect(Runtime(handler), Request with { Messages = null, Prompt = "Once", Sampling = new SamplingOptions { LogProbabilities = 2 } });

        Assert.EndsWith("/v1/completions", handler.Uri, StringComparison.Ordinal);
        Assert.Equal("""{"model":"support","prompt":"Once","stream":true,"stream_options":{"include_usage":true},"logprobs":2}""", handler.Body);
        var delta = Assert.Single(events.OfType<TextDelta>());
        Assert.Equal(" upon", delta.Text);
        Assert.Equal([" upon", " the"], Assert.Single(delta.LogProbabilities).Top.Select(t => t.Token));
        Assert.Equal(FinishReason.Stop, Assert.IsType<GenerationDone>(events[^1]).Reason);
    }

    [Fact]
    public async Task Log_probabilities_keep_their_bytes()
    {
        var handler = StubHandler.Streaming([Encoding.UTF8.GetBytes(
            "data: {\"choices\":[{\"delta\":{\"content\":\"é\"},\"logprobs\":{\"content\":[{\"token\":\"\\ufffd\",\"logprob\":-0.25,\"bytes\":[195],\"top_logprobs\":[{\"token\":\"a\",\"logprob\":-3,\"bytes\":null}]},{\"token\":\"\\ufffd\",\"logprob\":0,\"bytes\":[169],\"top_logprobs\":[]}]}}]}\n\n" +
            "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n")]);
        var tokens = (await Collect(Runtime(handler))).OfType<TextDelta>().Single().LogProbabilities;
        Assert.Equal("é", Encoding.UTF8.GetString([.. tokens.SelectMany(t => t.Bytes.ToArray())]));
        Assert.Equal(-0.25f, tokens[0].LogProbability);
        Assert.Equal((byte)'a', tokens[0].Top[0].Bytes.Span[0]);
    }

    [Theory]
    [InlineData(400, """{"error":{"message":"Too long.","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}""", "context_length_exceeded", "messages", "Too long.")]
    [InlineData(404, """{"error":{"message":"No such model.","param":"model","code":null}}""", ErrorCodes.ModelNotFound, "model", "No such model.")]
    [InlineData(400, """{"error":{"message":"Bad.","code":400}}""", ErrorCodes.InvalidRequest, null, "Bad.")]
    [InlineData(401, "", ErrorCodes.InvalidKey, null, null)]
    [InlineData(502, "<html>Bad gateway</html>", ErrorCodes.Unreachable, null, null)]
    [InlineData(503, "[]", ErrorCodes.ShuttingDown, null, null)]
    [InlineData(500, """{"error":"oops"}""", ErrorCodes.Internal, null, null)]
    public async Task A_refusal_keeps_its_facts(int status, string body, string code, string? parameter, string? message)
    {
        var error = await Assert.ThrowsAsync<TenantLoraException>(() => Collect(Runtime(StubHandler.Answering((HttpStatusCode)status, body))));
        Assert.Equal((code, parameter, "req-1"), (error.Code, error.Parameter, error.RequestId));
        if (message is not null) Assert.Equal(message, error.Message);
        else Assert.Contains($"{status}", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_busy_server_says_when_to_come_back()
    {
        var handler = StubHandler.Answering(HttpStatusCode.TooManyRequests, """{"error":{"message":"Busy.","code":"rate_limit_exceeded"}}""");
        handler.RetryAfter = new RetryConditionHeaderValue(TimeSpan.FromSeconds(2));
        Assert.Equal(TimeSpan.FromSeconds(2), (await Assert.ThrowsAsync<TenantLoraException>(() => Collect(Runtime(handler)))).RetryAfter);
        handler.RetryAfter = new RetryConditionHeaderValue(DateTimeOffset.UtcNow.AddSeconds(-5));
        Assert.Equal(TimeSpan.Zero, (await Assert.ThrowsAsync<TenantLoraException>(() => Collect(Runtime(handler)))).RetryAfter);
    }

    [Fact]
    public async Task An_error_in_the_stream_ends_it_with_its_message()
    {
        var handler = StubHandler.Streaming([Encoding.UTF8.GetBytes(
            "data: {\"choices\":[{\"delta\":{\"content\":\"Ah\"}}]}\n\ndata: {\"error\":{\"message\":\"Numbers went bad.\",\"type\":\"server_error\",\"param\":null,\"code\":\"adapter_values_invalid\"}}\n\n")]);
        List<GenerationEvent> seen = [];
        var error = await Assert.ThrowsAsync<TenantLoraException>(async () =>
        {
            await foreach (var e in Runtime(handler).GenerateAsync(Request)) seen.Add(e);
        });
        Assert.Equal(("adapter_values_invalid", "Numbers went bad.", "req-1"), (error.Code, error.Message, error.RequestId));
        Assert.Equal("Ah", Assert.Single(seen.OfType<TextDelta>()).Text);
    }

    [Theory]
    [InlineData("data: {\"choices\":[{\"delta\":{\"content\":\"Ah\"}}]}\n\n")]
    [InlineData("data: {\"choices\":[{\"delta\":{\"content\":\"Ah\"}}]}\n\ndata: [DONE]\n\n")]
    [InlineData("data: {\"choices\":[{\"del\n\n")]
    [InlineData("data: null\n\n")]
    [InlineData("")]
    public async Task Half_an_answer_is_an_error(string stream)
    {
        var error = await Assert.ThrowsAsync<TenantLoraException>(() => Collect(Runtime(StubHandler.Streaming([Encoding.UTF8.GetBytes(stream)]))));
        Assert.Equal(ErrorCodes.Unreachable, error.Code);
    }

    [Fact]
    public async Task Small_deviations_of_other_servers_are_forgiven()
    {
        var events = await Collect(Runtime(StubHandler.Streaming([Encoding.UTF8.GetBytes(
            "data:\n\nevent: ping\ndata: {}\n\ndata: {\"choices\":[{\"delta\":{\"content\":null},\"finish_reason\":\"\"}],\"created\":1.5}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"x\"},\"finish_reason\":\"eos\"}]}\n\ndata: [DONE] \n\n")])));
        Assert.Equal(["x"], events.OfType<TextDelta>().Select(d => d.Text));
        Assert.Equal(new GenerationDone(FinishReason.Stop, new GenerationUsage(0, 0), default!) with { Timings = ((GenerationDone)events[^1]).Timings, Adapter = "support@v3" }, events[^1]);
    }

    [Fact]
    public async Task An_answer_that_is_not_a_stream_is_an_error()
    {
        var error = await Assert.ThrowsAsync<TenantLoraException>(() => Collect(Runtime(StubHandler.Answering(HttpStatusCode.OK, "<html>"))));
        Assert.Contains("text/event-stream", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Nobody_listening_is_said_in_our_words()
    {
        using var listener = new TcpListener(IPAddress.Loopback, 0);
        listener.Start();
        var port = ((IPEndPoint)listener.LocalEndpoint).Port;
        listener.Stop();
        var client = new TenantLoraChatClient(new Uri($"http://127.0.0.1:{port}"), "k", "m");
        var error = await Assert.ThrowsAsync<TenantLoraException>(() => client.GetResponseAsync("Hi"));
        Assert.Equal((ErrorCodes.Unreachable, 503), (error.Code, error.Status));
        Assert.IsType<HttpRequestException>(error.InnerException);
    }

    [Fact]
    public async Task Tools_are_refused_before_anything_is_sent()
    {
        var handler = StubHandler.Streaming([]);
        var error = await Assert.ThrowsAsync<TenantLoraException>(() => Collect(Runtime(handler), Request with { Tools = [new ToolDefinition("f", null, null)] }));
        Assert.Equal(ErrorCodes.Unsupported, error.Code);
        Assert.Null(handler.Uri);
    }

    [Fact]
    public async Task Each_tenant_goes_under_its_own_key()
    {
        var handler = StubHandler.Streaming([Encoding.UTF8.GetBytes(Stream)]);
        var client = new TenantLoraClient(new Uri("http://host"), tenant => tenant == "harbor" ? "tl_harbor" : null, new HttpClient(handler));
        Assert.Equal("Ahoy ⚓, 🌊 sailor\n", (await client.GetChatClient("harbor", "support").GetResponseAsync("Hi")).Text);
        Assert.Equal("Bearer tl_harbor", handler.Authorization);
        var error = await Assert.ThrowsAsync<TenantLoraException>(() => client.GetChatClient("ledger", "books").GetResponseAsync("Hi"));
        Assert.Equal(ErrorCodes.InvalidKey, error.Code);
        Assert.Throws<ArgumentException>(() => client.GetChatClient("harbor"));
    }

    [Fact]
    public async Task Models_are_listed()
    {
        var runtime = Runtime(StubHandler.Answering(HttpStatusCode.OK, """{"object":"list","data":[{"id":"support","object":"model"},{"id":"demo-7m"}]}"""));
        Assert.Equal(["support", "demo-7m"], await runtime.ListModelsAsync("harbor"));
    }

    [Fact]
    public async Task The_chat_client_of_a_key_trusts_no_tenant_in_the_options()
    {
        var client = new TenantLoraChatClient(new Uri("http://host/v1"), "tl_key", "support", new HttpClient(StubHandler.Streaming([Encoding.UTF8.GetBytes(Stream)])));
        var metadata = client.GetService<ChatClientMetadata>()!;
        Assert.Equal((new Uri("http://host/v1/"), "support"), (metadata.ProviderUri, metadata.DefaultModelId));
        await Assert.ThrowsAsync<TenantLoraException>(() => client.GetResponseAsync("Hi", new ChatOptions { AdditionalProperties = new() { ["tenant_id"] = "harbor" } }));

        var response = await client.GetResponseAsync("Hi");
        Assert.Equal(ChatFinishReason.Length, response.FinishReason);
        Assert.Equal(15, response.Usage!.TotalTokenCount);
        Assert.Equal("support@v3", response.AdditionalProperties!["adapter"]);
        Assert.Equal(100.0, (double)response.AdditionalProperties["tokens_per_second"]!, 3);
    }

    [Fact]
    public async Task Leaving_early_closes_the_connection_and_finishing_keeps_it()
    {
        using var server = new RawServer();
        var client = new TenantLoraChatClient(server.Address, "k", "m");

        await foreach (var update in client.GetStreamingResponseAsync("endless")) break;
        Assert.True(await server.ClosedByClient.WaitAsync(TimeSpan.FromSeconds(20)));

        using var stop = new CancellationTokenSource();
        var error = await Assert.ThrowsAnyAsync<OperationCanceledException>(async () =>
        {
            await foreach (var update in client.GetStreamingResponseAsync("endless", cancellationToken: stop.Token)) await stop.CancelAsync();
        });
        Assert.Equal(stop.Token, error.CancellationToken);
        Assert.True(await server.ClosedByClient.WaitAsync(TimeSpan.FromSeconds(20)));

        var connections = server.Connections;
        await client.GetResponseAsync("Hi");
        await client.GetResponseAsync("Hi");
        Assert.Equal(connections + 1, server.Connections);
    }

    [Fact]
    public async Task A_connection_that_breaks_says_so()
    {
        using var server = new RawServer();
        var error = await Assert.ThrowsAsync<TenantLoraException>(() => new TenantLoraChatClient(server.Address, "k", "m").GetResponseAsync("break"));
        Assert.Equal(ErrorCodes.Unreachable, error.Code);
    }

    /// <summary>A server down to the bytes. The last word of the message says how it behaves.</summary>
    private sealed class RawServer : IDisposable
    {
        private readonly TcpListener listener = new(IPAddress.Loopback, 0);
        private int connections;

        public RawServer()
        {
            listener.Start();
            _ = AcceptAsync();
        }

        public Uri Address => new($"http://127.0.0.1:{((IPEndPoint)listener.LocalEndpoint).Port}");

        public int Connections => connections;

        /// <summary>Released each time a client goes away in the middle of an answer.</summary>
        public SemaphoreSlim ClosedByClient { get; } = new(0);

        public void Dispose()
        {
            listener.Dispose();
            ClosedByClient.Dispose();
        }

        private async Task AcceptAsync()
        {
            try
            {
                while (true)
                {
                    var socket = await listener.AcceptSocketAsync();
                    Interlocked.Increment(ref connections);
                    _ = ServeAsync(socket);
                }
            }
            catch (Exception e) when (e is SocketException or ObjectDisposedException)
            {
            }
        }

        private async Task ServeAsync(Socket socket)
        {
            using var _ = socket;
            var buffer = new byte[16384];
            for (var received = 0; ;)
            {
                var read = await socket.ReceiveAsync(buffer.AsMemory(received));
                if (read == 0) return;
                received += read;
                var text = Encoding.UTF8.GetString(buffer, 0, received);
                if (!text.EndsWith('}')) continue;

                received = 0;
                await SendAsync("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
                try
                {
                    do await ChunkAsync("data: {\"choices\":[{\"delta\":{\"content\":\"on \"}}]}\n\n");
                    while (text.Contains("endless", StringComparison.Ordinal));
                }
                catch (SocketException)
                {
                    ClosedByClient.Release();
                    return;
                }
                if (text.Contains("break", StringComparison.Ordinal)) return;
                await ChunkAsync("data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n");
                await ChunkAsync("data: [DONE]\n\n");
                await Task.Delay(5);
                await SendAsync("0\r\n\r\n");
            }

            async Task ChunkAsync(string data)
            {
                await SendAsync($"{Encoding.UTF8.GetByteCount(data):x}\r\n{data}\r\n");
                await Task.Delay(1);
            }

            async Task SendAsync(string data) => await socket.SendAsync(Encoding.UTF8.GetBytes(data));
        }
    }

    /// <summary>Answers every request alike and remembers the last one.</summary>
    private sealed class StubHandler(Func<HttpResponseMessage> answer) : HttpMessageHandler
    {
        public string? Uri { get; private set; }
        public string? Authorization { get; private set; }
        public HttpRequestHeaders? Headers { get; private set; }
        public string? Body { get; private set; }
        public bool TellsProgress { get; set; }
        public string Adapter { get; set; } = "support@v3";
        public RetryConditionHeaderValue? RetryAfter { get; set; }

        public static StubHandler Streaming(IEnumerable<byte[]> pieces) => new(() => new HttpResponseMessage
        {
            Content = new StreamContent(new SlicedStream(pieces)) { Headers = { ContentType = new MediaTypeHeaderValue("text/event-stream") } },
        });

        public static StubHandler Answering(HttpStatusCode status, string body) => new(() => new HttpResponseMessage(status) { Content = new StringContent(body) });

        protected override async Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
        {
            Uri = request.RequestUri!.AbsoluteUri;
            Authorization = request.Headers.Authorization?.ToString();
            Headers = request.Headers;
            Body = request.Content is null ? null : await request.Content.ReadAsStringAsync(cancellationToken);
            var response = answer();
            response.Headers.Add("x-request-id", "req-1");
            response.Headers.Add("x-tenantlora-adapter", Adapter);
            response.Headers.RetryAfter = RetryAfter;
            if (TellsProgress) response.Headers.Add("x-tenantlora-progress", "1");
            return response;
        }
    }

    /// <summary>Hands out one piece a read, as a network might.</summary>
    private sealed class SlicedStream(IEnumerable<byte[]> pieces) : Stream
    {
        private readonly Queue<byte[]> rest = new(pieces.Where(p => p.Length > 0));

        public override bool CanRead => true;
        public override bool CanSeek => false;
        public override bool CanWrite => false;
        public override long Length => throw new NotSupportedException();
        public override long Position { get => throw new NotSupportedException(); set => throw new NotSupportedException(); }
        public override void Flush() => throw new NotSupportedException();
        public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();
        public override void SetLength(long value) => throw new NotSupportedException();
        public override void Write(byte[] buffer, int offset, int count) => throw new NotSupportedException();
        public override int Read(byte[] buffer, int offset, int count) => Read(buffer.AsSpan(offset, count));

        public override int Read(Span<byte> buffer)
        {
            if (!rest.TryDequeue(out var piece)) return 0;
            var taken = Math.Min(piece.Length, buffer.Length);
            piece.AsSpan(0, taken).CopyTo(buffer);
            if (taken < piece.Length) rest.Enqueue(piece[taken..]);
            return taken;
        }

        public override ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default) => ValueTask.FromResult(Read(buffer.Span));
    }
}
