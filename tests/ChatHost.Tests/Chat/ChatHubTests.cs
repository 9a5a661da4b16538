using System.Net.WebSockets;
using System.Text.Json;
using TenantLora.ChatHost.Operations;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Tests.Chat;

/// <summary>The hub as the page meets it: numbered events that outlive the connection, and a stop that stops.</summary>
public sealed class ChatHubTests
{
    private const string Ask = """{"model":"harbor","messages":[{"role":"user","content":"Hi"}]}""";

    [Fact]
    public async Task Send_streams_the_events_of_the_protocol()
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime { Answer = (_, _) => FakeRuntime.Says(TimeSpan.FromMilliseconds(40), default, "Aye", ", ", "🌱 open.") });
        await using var hub = await HubConnection.OpenAsync(host.Url, host.Keys["harbor"]);
        var (events, error) = await hub.CollectAsync("Send", Ask);
        Assert.Null(error);
        Assert.Equal(Enumerable.Range(0, events.Count), events.Select(e => e.GetProperty("seq").GetInt32()));
        var id = events[0].GetProperty("id").GetString()!;
        Assert.Matches("^[0-9a-f]{32}$", id);
        Assert.Equal($$"""{"seq":0,"type":"queued","id":"{{id}}","ahead":0,"promptTokens":31}""", events[0].GetRawText());
        Assert.Equal("""{"seq":2,"type":"prefill","done":31,"total":31}""", events[2].GetRawText());
        Assert.Equal("Aye, 🌱 open.", Text(events));
        Assert.Equal(
            $$$"""{"seq":{{{events.Count - 1}}},"type":"done","finishReason":"stop","usage":{"promptTokens":31,"completionTokens":3,"totalTokens":34},"timings":{"queuedMs":0.4,"prefillMs":8.1,"decodeMs":31,"timeToFirstTokenMs":8.5,"tokensPerSecond":64.52},"model":"harbor","adapter":"{{{TestHost.HarborDigest}}}","fingerprint":"fp_demo"}""",
            events[^1].GetRawText());
    }

    [Fact]
    public async Task Pieces_that_come_fast_share_frames()
    {
        var pieces = Enumerable.Range(0, 1000).Select(i => $"{i} ").ToArray();
        await using var host = await TestHost.StartAsync(new FakeRuntime { Answer = (_, token) => FakeRuntime.Says(token, pieces) });
        await using var hub = await HubConnection.OpenAsync(host.Url, host.Keys["harbor"]);
        var (events, _) = await hub.CollectAsync("Send", Ask);
        Assert.Equal(string.Concat(pieces), Text(events));
        Assert.True(events.Count < 200, $"{events.Count} events for 1000 pieces");
    }

    [Fact]
    public async Task An_answer_goes_on_without_its_reader_and_is_attached_to_again()
    {
        var runtime = new FakeRuntime { Answer = (_, token) => FakeRuntime.Says(TimeSpan.FromMilliseconds(30), token, [.. Enumerable.Range(0, 30).Select(i => $"{i} ")]) };
        await using var host = await TestHost.StartAsync(runtime);
        List<JsonElement> seen = [];
        var first = await HubConnection.OpenAsync(host.Url, host.Keys["harbor"]);
        var (_, messages) = await first.StreamAsync("Send", Ask);
        while (seen.Count < 8) seen.Add((await messages.ReadAsync()).GetProperty("item"));
        first.Drop();
        Assert.Equal(1, runtime.Running);
        await using var second = await HubConnection.OpenAsync(host.Url, host.Keys["harbor"]);
        var (rest, error) = await second.CollectAsync("Attach", $"\"{seen[0].GetProperty("id").GetString()}\"", "8");
        Assert.Null(error);
        seen.AddRange(rest);
        Assert.Equal(Enumerable.Range(0, seen.Count), seen.Select(e => e.GetProperty("seq").GetInt32()));
        Assert.Equal(string.Concat(Enumerable.Range(0, 30).Select(i => $"{i} ")), Text(seen));
        Assert.Equal("done", seen[^1].GetProperty("type").GetString());
        var (again, _) = await second.CollectAsync("Attach", $"\"{seen[0].GetProperty("id").GetString()}\"", "0");
        Assert.Equal(seen.Select(e => e.GetRawText()), again.Select(e => e.GetRawText()));
        await first.DisposeAsync();
    }

    [Fact]
    public async Task An_ended_answer_is_forgotten_in_time()
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime(), "KeepSeconds=0");
        await using var hub = await HubConnection.OpenAsync(host.Url, host.Keys["harbor"]);
        var (events, _) = await hub.CollectAsync("Send", Ask);
        await TestHost.UntilAsync(() => host.Service<ChatHost.Chat.Generations>().Find("harbor", events[0].GetProperty("id").GetString()!) is null, "it is forgotten");
    }

    [Fact]
    public async Task Stop_stops_the_runtime_and_the_stream_says_so()
    {
        var runtime = new FakeRuntime { Answer = (_, token) => FakeRuntime.Endless(token) };
        await using var host = await TestHost.StartAsync(runtime);
        await using var hub = await HubConnection.OpenAsync(host.Url, host.Keys["harbor"]);
        var (_, messages) = await hub.StreamAsync("Send", Ask);
        var id = (await messages.ReadAsync()).GetProperty("item").GetProperty("id").GetRawText();
        for (var i = 0; i < 4; i++) await messages.ReadAsync();
        Assert.Null(await hub.InvokeAsync("Stop", id));
        var (rest, error) = await HubConnection.DrainAsync(messages);
        Assert.Null(error);
        Assert.Equal("stopped", rest[^1].GetProperty("finishReason").GetString());
        Assert.Equal(31, rest[^1].GetProperty("usage").GetProperty("promptTokens").GetInt32());
        Assert.True(rest[^1].GetProperty("usage").GetProperty("completionTokens").GetInt32() > 0);
        await TestHost.UntilAsync(() => runtime.Running == 0 && host.Service<Admission>().Running == 0, "nothing runs");
        Assert.Null(await hub.InvokeAsync("Stop", id)); // again is harmless
    }

    [Fact]
    public async Task Disposing_a_stream_only_detaches()
    {
        var runtime = new FakeRuntime { Answer = (_, token) => FakeRuntime.Endless(token) };
        await using var host = await TestHost.StartAsync(runtime);
        await using var hub = await HubConnection.OpenAsync(host.Url, host.Keys["harbor"]);
        var (call, messages) = await hub.StreamAsync("Send", Ask);
        var id = (await messages.ReadAsync()).GetProperty("item").GetProperty("id").GetRawText();
        await hub.CancelAsync(call);
        await HubConnection.DrainAsync(messages);
        Assert.Equal(1, runtime.Running);
        await hub.InvokeAsync("Stop", id);
        await TestHost.UntilAsync(() => runtime.Running == 0, "it stopped");
    }

    [Fact]
    public async Task Streams_of_one_connection_run_side_by_side()
    {
        var started = new CountdownEvent(2);
        var runtime = new FakeRuntime { Answer = (_, token) => Together(token) };
        await using var host = await TestHost.StartAsync(runtime);
        await using var hub = await HubConnection.OpenAsync(host.Url, host.Keys["harbor"]);
        var both = await Task.WhenAll(hub.CollectAsync("Send", Ask), hub.CollectAsync("Send", Ask));
        Assert.All(both, b => Assert.Equal("Aye", Text(b.Items)));

        async IAsyncEnumerable<GenerationEvent> Together([System.Runtime.CompilerServices.EnumeratorCancellation] CancellationToken token)
        {
            yield return new GenerationQueued(0, 1);
            started.Signal();
            while (!started.IsSet) await Task.Delay(5, token); // neither ends before both have begun
            yield return new TextDelta("Aye");
            yield return FakeRuntime.Done(1);
        }
    }

    [Fact]
    public async Task Another_tenants_answer_is_one_that_does_not_exist()
    {
        var runtime = new FakeRuntime { Answer = (_, token) => FakeRuntime.Endless(token) };
        await using var host = await TestHost.StartAsync(runtime);
        await using var harbor = await HubConnection.OpenAsync(host.Url, host.Keys["harbor"]);
        await using var ledger = await HubConnection.OpenAsync(host.Url, host.Keys["ledger"]);
        var (_, messages) = await harbor.StreamAsync("Send", Ask);
        var id = (await messages.ReadAsync()).GetProperty("item").GetProperty("id").GetRawText();
        var unknown = $"\"{new string('0', 32)}\"";
        Assert.Equal(await ledger.InvokeAsync("Stop", unknown), await ledger.InvokeAsync("Stop", id));
        var foreign = await ledger.CollectAsync("Attach", id, "0");
        Assert.Empty(foreign.Items);
        Assert.Contains("generation not found", foreign.Error, StringComparison.Ordinal);
        Assert.Equal((await ledger.CollectAsync("Attach", unknown, "0")).Error, foreign.Error);
        Assert.Equal(1, runtime.Running);
        await harbor.InvokeAsync("Stop", id);
    }

    [Theory]
    [InlineData("""{"model":"ledger","messages":[{"role":"user","content":"Hi"}]}""", "model_not_found", "ledger")]
    [InlineData("""{"model":"harbor","messages":[]}""", "invalid_value", "messages")]
    [InlineData("""{"model":"harbor","messages":[{"role":"user","content":"Hi"}],"options":{"topP":7,"maxTokens":0}}""", "invalid_value", "options.maxTokens")]
    [InlineData("""{"model":"harbor","messages":[{"role":"user","content":"\ud800"}]}""", "invalid_value", "Unicode")]
    [InlineData("5", "invalid_value", "object")]
    public async Task A_refused_request_is_one_error_event(string request, string code, string says)
    {
        var runtime = new FakeRuntime();
        await using var host = await TestHost.StartAsync(runtime);
        await using var hub = await HubConnection.OpenAsync(host.Url, host.Keys["harbor"]);
        var (events, error) = await hub.CollectAsync("Send", request);
        Assert.Null(error);
        var only = Assert.Single(events);
        Assert.Equal((0, "error", code), (only.GetProperty("seq").GetInt32(), only.GetProperty("type").GetString(), only.GetProperty("code").GetString()));
        Assert.Contains(says, only.GetProperty("message").GetString(), StringComparison.Ordinal);
        Assert.Empty(runtime.Asked);
    }

    [Fact]
    public async Task A_refusal_by_the_runtime_is_event_0_and_a_defect_shows_nothing()
    {
        var runtime = new FakeRuntime { Answer = (_, _) => FakeRuntime.Fails(new TenantLoraException(ErrorCodes.ContextLengthExceeded, "Too long.")) };
        await using var host = await TestHost.StartAsync(runtime);
        await using var hub = await HubConnection.OpenAsync(host.Url, host.Keys["harbor"]);
        Assert.Equal("""{"seq":0,"type":"error","code":"context_length_exceeded","message":"Too long."}""", Assert.Single((await hub.CollectAsync("Send", Ask)).Items).GetRawText());
        runtime.Answer = (_, _) => FakeRuntime.Fails(new InvalidOperationException("secret"), new GenerationQueued(0, 1), new TextDelta("A"));
        var (events, _) = await hub.CollectAsync("Send", Ask);
        Assert.Equal(["queued", "delta", "error"], events.Select(e => e.GetProperty("type").GetString()!));
        Assert.DoesNotContain("secret", events[^1].GetRawText(), StringComparison.Ordinal);
    }

    [Fact]
    public async Task All_options_reach_the_runtime_and_the_model_may_be_left_out()
    {
        var runtime = new FakeRuntime();
        await using var host = await TestHost.StartAsync(runtime);
        await using var hub = await HubConnection.OpenAsync(host.Url, host.Keys["harbor"]);
        await hub.CollectAsync("Send",
            """{"messages":[{"role":"user","content":"Hi"}],"options":{"temperature":0.5,"topK":40,"topP":0.5,"minP":0,"repetitionPenalty":1.5,"frequencyPenalty":0,"presencePenalty":0,"seed":7,"maxTokens":256,"stop":["\n\n"]}}""");
        var asked = Assert.Single(runtime.Asked);
        Assert.Equal((TestHost.HarborDigest, 256), (asked.Adapter, asked.MaxTokens));
        Assert.Equal(new SamplingOptions { Temperature = 0.5f, TopK = 40, TopP = 0.5f, MinP = 0, RepetitionPenalty = 1.5f, FrequencyPenalty = 0, PresencePenalty = 0, Seed = 7 }, asked.Sampling);
        Assert.Equal(["\n\n"], asked.StopStrings);
    }

    [Fact]
    public async Task A_connection_has_a_bounded_number_of_streams()
    {
        var runtime = new FakeRuntime { Answer = (_, token) => FakeRuntime.Endless(token) };
        await using var host = await TestHost.StartAsync(runtime);
        await using var hub = await HubConnection.OpenAsync(host.Url, host.Keys["harbor"]);
        List<string> ids = [];
        for (var i = 0; i < 16; i++)
        {
            var (_, messages) = await hub.StreamAsync("Send", Ask);
            ids.Add((await messages.ReadAsync()).GetProperty("item").GetProperty("id").GetRawText());
        }
        Assert.Contains("16 streams are open", (await hub.CollectAsync("Send", Ask)).Error, StringComparison.Ordinal);
        foreach (var id in ids) await hub.InvokeAsync("Stop", id);
        await TestHost.UntilAsync(() => host.Service<Admission>().Running == 0, "all stopped");
    }

    [Fact]
    public async Task A_long_prompt_passes_and_a_page_from_elsewhere_does_not()
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime());
        await using var hub = await HubConnection.OpenAsync(host.Url, host.Keys["harbor"], $"http://{host.Url.Authority}");
        var (events, _) = await hub.CollectAsync("Send", $$"""{"messages":[{"role":"user","content":"{{new string('a', 500_000)}}"}]}""");
        Assert.Equal("done", events[^1].GetProperty("type").GetString());
        foreach (var origin in new[] { "http://evil.example", "null", $"http://{host.Url.Host}:1" })
            await Assert.ThrowsAsync<WebSocketException>(() => HubConnection.OpenAsync(host.Url, host.Keys["harbor"], origin));
    }

    [Fact]
    public async Task Readers_that_stand_still_starve_nobody()
    {
        // Everything is buffered before they come, so their streams never wait for the runtime, only for the socket.
        var pieces = Enumerable.Range(0, 400).Select(i => new string('x', 20_000)).ToArray();
        await using var host = await TestHost.StartAsync(new FakeRuntime { Answer = (_, token) => FakeRuntime.Says(TimeSpan.FromMilliseconds(1), token, pieces) });
        await using var hub = await HubConnection.OpenAsync(host.Url, host.Keys["harbor"]);
        var (events, _) = await hub.CollectAsync("Send", Ask);
        var id = events[0].GetProperty("id").GetString();
        List<ClientWebSocket> still = [];
        for (var i = 0; i < 8; i++)
        {
            var socket = new ClientWebSocket();
            await socket.ConnectAsync(new Uri($"ws://{host.Url.Authority}/hub?access_token={host.Keys["harbor"]}"), CancellationToken.None);
            await socket.SendAsync(System.Text.Encoding.UTF8.GetBytes($$"""{"protocol":"json","version":1}{{'\u001e'}}{"type":4,"invocationId":"1","target":"Attach","arguments":["{{id}}",0]}{{'\u001e'}}"""), WebSocketMessageType.Text, true, CancellationToken.None);
            still.Add(socket);
        }
        await Task.Delay(200);
        using var client = host.Client(null);
        Assert.Equal("""{"status":"ok"}""", await client.GetStringAsync("/health/live"));
        still.ForEach(s => s.Dispose());
    }

    private static string Text(IEnumerable<JsonElement> events) =>
        string.Concat(events.Where(e => e.GetProperty("type").GetString() == "delta").Select(e => e.GetProperty("text").GetString()));
}
