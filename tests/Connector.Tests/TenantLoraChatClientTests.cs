using System.Text.Json;
using Microsoft.Extensions.AI;
using TenantLora.Runtime;

namespace TenantLora.Connector.Tests;

public sealed class TenantLoraChatClientTests
{
    private readonly AdapterCatalog catalog = new("base");

    public TenantLoraChatClientTests()
    {
        catalog.Set("harbor", "support", "sha256:aa");
        catalog.Set("harbor", "sales", "sha256:bb");
        catalog.Set("ledger", "books", "sha256:cc");
    }

    private TenantLoraChatClient Client(FakeRuntime runtime, string tenant = "harbor", string? model = "support") =>
        new TenantLoraClient(runtime, catalog).GetChatClient(tenant, model);

    private async Task<GenerationRequest> Sent(ChatOptions? options, params ChatMessage[] messages)
    {
        var runtime = FakeRuntime.Saying("ok");
        await Client(runtime).GetResponseAsync(messages.Length == 0 ? [new ChatMessage(ChatRole.User, "Hi")] : messages, options);
        return runtime.Request;
    }

    [Fact]
    public async Task The_collected_answer_is_the_streamed_one()
    {
        var client = Client(FakeRuntime.Saying("Ahoy", ", ", "sailor"));
        var updates = await client.GetStreamingResponseAsync("Hi").ToListAsync();
        var response = await client.GetResponseAsync("Hi");

        Assert.Equal("Ahoy, sailor", string.Concat(updates.Select(u => u.Text)));
        Assert.Equal("Ahoy, sailor", response.Text);
        Assert.Equal("Ahoy, sailor", Assert.IsType<TextContent>(Assert.Single(Assert.Single(response.Messages).Contents)).Text);
    }

    [Fact]
    public async Task Every_update_has_the_same_identity_and_at_most_one_text()
    {
        var before = DateTimeOffset.UtcNow;
        var updates = await Client(FakeRuntime.Saying("a", "b", "c")).GetStreamingResponseAsync("Hi").ToListAsync();

        Assert.Equal(4, updates.Count);
        Assert.All(updates, u =>
        {
            Assert.Equal((updates[0].ResponseId, updates[0].MessageId, updates[0].CreatedAt), (u.ResponseId, u.MessageId, u.CreatedAt));
            Assert.Equal(ChatRole.Assistant, u.Role);
            Assert.Equal("support", u.ModelId);
            Assert.Null(u.ConversationId);
            Assert.Single(u.Contents);
            Assert.IsAssignableFrom<GenerationEvent>(u.RawRepresentation);
        });
        Assert.False(string.IsNullOrEmpty(updates[0].MessageId));
        Assert.InRange(updates[0].CreatedAt!.Value, before, DateTimeOffset.UtcNow);
    }

    [Fact]
    public async Task Only_the_last_update_ends_the_answer_and_counts_it_once()
    {
        var updates = await Client(FakeRuntime.Saying("a", "b")).GetStreamingResponseAsync("Hi").ToListAsync();

        Assert.All(updates.SkipLast(1), u => Assert.Null(u.FinishReason));
        Assert.Equal(ChatFinishReason.Stop, updates[^1].FinishReason);
        var usage = Assert.Single(updates.SelectMany(u => u.Contents).OfType<UsageContent>()).Details;
        Assert.Equal((5, 2, 7), (usage.InputTokenCount, usage.OutputTokenCount, usage.TotalTokenCount));
        Assert.IsType<UsageContent>(Assert.Single(updates[^1].Contents));
    }

    [Fact]
    public async Task The_response_says_who_answered_how_and_how_fast()
    {
        var response = await Client(FakeRuntime.Saying("a", "b", "c")).GetResponseAsync("Hi");

        Assert.Equal("support", response.ModelId);
        Assert.Equal(ChatFinishReason.Stop, response.FinishReason);
        Assert.Equal(8, response.Usage!.TotalTokenCount);
        Assert.NotNull(response.ResponseId);
        Assert.NotNull(response.CreatedAt);
        Assert.Null(response.ConversationId);
        Assert.IsType<GenerationDone>(response.RawRepresentation);
        Assert.All([response.AdditionalProperties!, response.Messages[0].AdditionalProperties!], facts =>
        {
            Assert.Equal("sha256:aa", facts["adapter"]);
            Assert.Equal("fp", facts["system_fingerprint"]);
            Assert.Equal(10.0, facts["time_to_first_token_ms"]);
            Assert.Equal(20.0, facts["tokens_per_second"]);
        });
    }

    [Fact]
    public async Task The_token_limit_shows_as_length()
    {
        var runtime = new FakeRuntime((_, _) => new GenerationEvent[] { new TextDelta("x"), FakeRuntime.Done(1, FinishReason.Length) }.ToAsyncEnumerable());
        Assert.Equal(ChatFinishReason.Length, (await Client(runtime).GetResponseAsync("Hi")).FinishReason);
    }

    [Fact]
    public async Task An_empty_answer_is_still_a_message()
    {
        var response = await Client(FakeRuntime.Saying()).GetResponseAsync("Hi");
        Assert.Equal("", Assert.Single(response.Messages).Text);
        Assert.Equal(ChatFinishReason.Stop, response.FinishReason);
    }

    [Fact]
    public async Task Options_choose_the_adapter_within_the_tenant()
    {
        Assert.Equal(("harbor", "sha256:aa"), Key(await Sent(null)));
        Assert.Equal(("harbor", "sha256:bb"), Key(await Sent(new ChatOptions { ModelId = "sales" })));
        Assert.Equal(("harbor", null), Key(await Sent(new ChatOptions { ModelId = "base" })));

        static (string, string?) Key(GenerationRequest r) => (r.Tenant, r.Adapter);
    }

    [Theory]
    [InlineData("books")]
    [InlineData("nothing")]
    public async Task Another_tenants_adapter_does_not_exist(string model)
    {
        var runtime = FakeRuntime.Saying("ok");
        var error = await Assert.ThrowsAsync<TenantLoraException>(() => Client(runtime).GetResponseAsync("Hi", new ChatOptions { ModelId = model }));
        Assert.Equal(ErrorCodes.ModelNotFound, error.Code);
        Assert.Equal($"The model '{model}' does not exist or you do not have access to it.", error.Message);
        Assert.Empty(runtime.Requests);
    }

    [Theory]
    [InlineData("tenant")]
    [InlineData("tenant_id")]
    [InlineData("Tenant_Id")]
    public async Task Options_never_switch_the_tenant(string key)
    {
        var error = await Assert.ThrowsAsync<TenantLoraException>(() => Sent(new ChatOptions { AdditionalProperties = new() { [key] = "ledger" } }));
        Assert.Equal(ErrorCodes.InvalidRequest, error.Code);
        Assert.DoesNotContain("ledger", error.Message, StringComparison.Ordinal);
        await Assert.ThrowsAsync<TenantLoraException>(() => Sent(new ChatOptions { AdditionalProperties = new() { [key] = JsonSerializer.SerializeToElement("ledger") } }));
        Assert.Equal("harbor", (await Sent(new ChatOptions { AdditionalProperties = new() { [key] = "harbor" } })).Tenant);
    }

    [Fact]
    public async Task A_raw_request_neither_switches_the_tenant_nor_names_a_digest()
    {
        await Assert.ThrowsAsync<TenantLoraException>(() => Sent(new ChatOptions { RawRepresentationFactory = _ => new GenerationRequest { Tenant = "ledger" } }));
        await Assert.ThrowsAsync<TenantLoraException>(() => Sent(new ChatOptions { RawRepresentationFactory = _ => new GenerationRequest { Tenant = "harbor", Adapter = "sha256:cc" } }));
    }

    [Fact]
    public async Task Every_sampling_option_arrives()
    {
        var request = await Sent(new ChatOptions
        {
            Temperature = 0.5f,
            TopP = 0.9f,
            TopK = 40,
            FrequencyPenalty = 0.1f,
            PresencePenalty = 0.2f,
            Seed = 7,
            MaxOutputTokens = 12,
            StopSequences = ["\n\n", "END"],
            ResponseFormat = ChatResponseFormat.Text,
            AdditionalProperties = new() { ["min_p"] = 0.05f, ["repetition_penalty"] = 1.1, ["logit_bias"] = new Dictionary<int, float> { [3] = -100 }, ["logprobs"] = true, ["top_logprobs"] = 2, ["num_ctx"] = new object() },
        });

        Assert.Equal(0.5f, request.Sampling.Temperature);
        Assert.Equal(0.9f, request.Sampling.TopP);
        Assert.Equal(40, request.Sampling.TopK);
        Assert.Equal(0.1f, request.Sampling.FrequencyPenalty);
        Assert.Equal(0.2f, request.Sampling.PresencePenalty);
        Assert.Equal(7, request.Sampling.Seed);
        Assert.Equal(12, request.MaxTokens);
        Assert.Equal(["\n\n", "END"], request.StopStrings);
        Assert.Equal(0.05f, request.Sampling.MinP);
        Assert.Equal(1.1f, request.Sampling.RepetitionPenalty);
        Assert.Equal(-100, request.Sampling.LogitBias![3]);
        Assert.Equal(2, request.Sampling.LogProbabilities);
    }

    [Fact]
    public async Task Unset_options_stay_unset()
    {
        var request = await Sent(new ChatOptions());
        Assert.Equal(new SamplingOptions(), request.Sampling);
        Assert.Null(request.MaxTokens);
        Assert.Empty(request.StopStrings);
    }

    public static IEnumerable<object[]> Numbers =>
        new object[] { 1, 1L, 1f, 1d, 1m, (short)1, "1", "1.0", JsonSerializer.SerializeToElement(1), JsonSerializer.SerializeToElement("1") }.Select(n => new[] { n });

    [Theory]
    [MemberData(nameof(Numbers), DisableDiscoveryEnumeration = true)]
    public async Task Numbers_are_read_whatever_carries_them(object one)
    {
        var request = await Sent(new ChatOptions { AdditionalProperties = new() { ["repetition_penalty"] = one, ["top_logprobs"] = one } });
        Assert.Equal(1f, request.Sampling.RepetitionPenalty);
        Assert.Equal(1, request.Sampling.LogProbabilities);
    }

    [Fact]
    public async Task Bias_is_read_whatever_carries_it()
    {
        foreach (object bias in new object[] { new Dictionary<string, object?> { ["3"] = 2.0 }, new Dictionary<int, float> { [3] = 2 }, JsonSerializer.SerializeToElement(new Dictionary<string, int> { ["3"] = 2 }) })
            Assert.Equal(2f, (await Sent(new ChatOptions { AdditionalProperties = new() { ["logit_bias"] = bias } })).Sampling.LogitBias![3]);
    }

    [Fact]
    public async Task Everything_unreadable_is_said_at_once()
    {
        var error = await Assert.ThrowsAsync<TenantLoraException>(() => Sent(new ChatOptions
        {
            AdditionalProperties = new() { ["min_p"] = "much", ["repetition_penalty"] = double.NaN, ["logprobs"] = 3, ["top_logprobs"] = 1.5, ["logit_bias"] = "no" },
        }));
        Assert.Equal(ErrorCodes.InvalidRequest, error.Code);
        Assert.All(["min_p", "repetition_penalty", "logprobs", "top_logprobs", "logit_bias"], key => Assert.Contains($"'{key}'", error.Message, StringComparison.Ordinal));
    }

    [Theory]
    [InlineData(true, null, 0)]
    [InlineData(true, 3, 3)]
    [InlineData(null, 3, 3)]
    [InlineData(false, 3, null)]
    [InlineData(null, null, null)]
    public async Task Log_probabilities_follow_openais_two_fields(bool? wanted, int? rivals, int? expected)
    {
        var request = await Sent(new ChatOptions { AdditionalProperties = new() { ["logprobs"] = wanted, ["top_logprobs"] = rivals } });
        Assert.Equal(expected, request.Sampling.LogProbabilities);
    }

    [Fact]
    public async Task Log_probabilities_of_the_whole_answer_come_with_its_end()
    {
        TextDelta Delta(string text) => new(text) { LogProbabilities = [new TokenLogProbability(text, new byte[] { 1 }, -0.5f, [])] };
        var runtime = new FakeRuntime((_, _) => new GenerationEvent[] { Delta("a"), Delta(""), Delta("b"), FakeRuntime.Done() }.ToAsyncEnumerable());
        var options = new ChatOptions { AdditionalProperties = new() { ["logprobs"] = true } };

        var updates = await Client(runtime).GetStreamingResponseAsync("Hi", options).ToListAsync();
        Assert.Equal(["a", "b", ""], updates.Select(u => u.Text));
        Assert.Equal(["a", "", "b"], ((List<TokenLogProbability>)(await Client(runtime).GetResponseAsync("Hi", options)).AdditionalProperties!["logprobs"]!).Select(t => t.Token));
    }

    [Fact]
    public async Task A_raw_request_wins_and_only_its_gaps_are_filled()
    {
        IChatClient? asked = null;
        var runtime = FakeRuntime.Saying("ok");
        var client = Client(runtime);
        await client.GetResponseAsync("Hi", new ChatOptions
        {
            Temperature = 1,
            TopK = 5,
            MaxOutputTokens = 100,
            StopSequences = ["x"],
            RawRepresentationFactory = c =>
            {
                asked = c;
                return new GenerationRequest { Tenant = "harbor", Model = "sales", MaxTokens = 3, Sampling = new SamplingOptions { Temperature = 0 } };
            },
        });

        Assert.Same(client, asked);
        var request = runtime.Request;
        Assert.Equal("sha256:bb", request.Adapter);
        Assert.Equal(3, request.MaxTokens);
        Assert.Equal(0, request.Sampling.Temperature);
        Assert.Equal(5, request.Sampling.TopK);
        Assert.Equal(["x"], request.StopStrings);
        Assert.Equal("Hi", Assert.Single(request.Messages!).Content);
    }

    [Fact]
    public async Task A_raw_prompt_takes_the_place_of_messages_and_other_providers_objects_are_ignored()
    {
        var raw = await Sent(new ChatOptions { RawRepresentationFactory = _ => new GenerationRequest { Tenant = "", Prompt = "Once" } });
        Assert.Equal(("Once", null), (raw.Prompt, raw.Messages));
        Assert.NotNull((await Sent(new ChatOptions { RawRepresentationFactory = _ => "someone else's" })).Messages);
    }

    [Fact]
    public async Task Messages_keep_order_and_roles_with_instructions_in_front()
    {
        var request = await Sent(
            new ChatOptions { Instructions = "Be brief.", Reasoning = new ReasoningOptions { Effort = ReasoningEffort.High } },
            new ChatMessage(ChatRole.System, "You are Ada."),
            new ChatMessage(new ChatRole("developer"), "Rhyme."),
            new ChatMessage(ChatRole.User, [new TextContent("Hel"), new TextContent("lo")]),
            new ChatMessage(ChatRole.Assistant, [new TextReasoningContent("hm"), new TextContent("Hi."), new UsageContent(new UsageDetails())]),
            new ChatMessage(ChatRole.User, ""));

        Assert.Equal(
            [new("system", "Be brief."), new("system", "You are Ada."), new("system", "Rhyme."), new("user", "Hello"), new("assistant", "Hi."), new("user", "")],
            request.Messages!.Select(m => (m.Role, m.Content)));
    }

    [Fact]
    public void What_is_not_supported_is_refused_at_the_call_all_at_once()
    {
        var error = Assert.Throws<NotSupportedException>(() => Client(FakeRuntime.Saying()).GetStreamingResponseAsync(
            [new ChatMessage(ChatRole.User, [new DataContent(new byte[] { 1 }, "image/png")]), new ChatMessage(ChatRole.Assistant, [new FunctionCallContent("1", "f")])],
            new ChatOptions { Tools = [AIFunctionFactory.Create(() => 1, "f")], ResponseFormat = ChatResponseFormat.Json, ConversationId = "c" }));
        Assert.All(["Tools", "ResponseFormat", "ConversationId", "DataContent (message 0, user)", "FunctionCallContent (message 1, assistant)"], what => Assert.Contains(what, error.Message, StringComparison.Ordinal));
    }

    [Fact]
    public async Task Tools_that_must_not_be_used_are_no_reason_to_refuse()
    {
        Assert.Empty((await Sent(new ChatOptions { Tools = [AIFunctionFactory.Create(() => 1, "f")], ToolMode = ChatToolMode.None })).Tools);
        Assert.Empty((await Sent(new ChatOptions { ToolMode = ChatToolMode.Auto })).Tools);
        await Assert.ThrowsAsync<NotSupportedException>(() => Sent(new ChatOptions { ToolMode = ChatToolMode.RequireAny }));
    }

    [Fact]
    public async Task The_callers_objects_are_left_alone_and_messages_are_read_once()
    {
        var options = new ChatOptions { Instructions = "Be brief.", StopSequences = ["x"], AdditionalProperties = new() { ["min_p"] = 0.1 } };
        var before = JsonSerializer.Serialize(options.Clone());
        var reads = 0;
        IEnumerable<ChatMessage> Messages()
        {
            reads++;
            yield return new ChatMessage(ChatRole.User, "Hi");
        }

        var runtime = FakeRuntime.Saying("ok");
        await Client(runtime).GetResponseAsync(Messages(), options);
        options.StopSequences.Add("y");

        Assert.Equal(1, reads);
        Assert.Equal(["x"], runtime.Request.StopStrings);
        options.StopSequences.RemoveAt(1);
        Assert.Equal(before, JsonSerializer.Serialize(options));
    }

    [Fact]
    public async Task Null_messages_are_refused_at_the_call()
    {
        var client = Client(FakeRuntime.Saying());
        Assert.Throws<ArgumentNullException>(() => client.GetStreamingResponseAsync((IEnumerable<ChatMessage>)null!));
        await Assert.ThrowsAsync<ArgumentNullException>(() => client.GetResponseAsync((IEnumerable<ChatMessage>)null!));
    }

    [Fact]
    public async Task Nothing_is_asked_of_the_runtime_before_the_first_step()
    {
        var runtime = FakeRuntime.Saying("ok");
        var stream = Client(runtime).GetStreamingResponseAsync("Hi");
        Assert.Empty(runtime.Requests);
        await stream.ToListAsync();
        Assert.Single(runtime.Requests);
    }

    [Fact]
    public async Task Cancelling_ends_the_stream_and_frees_the_sequence()
    {
        using var stop = new CancellationTokenSource();
        var runtime = new FakeRuntime(Endless);
        var error = await Assert.ThrowsAnyAsync<OperationCanceledException>(async () =>
        {
            await foreach (var update in Client(runtime).GetStreamingResponseAsync("Hi", cancellationToken: stop.Token)) await stop.CancelAsync();
        });
        Assert.Equal(stop.Token, error.CancellationToken);
        Assert.Equal(0, runtime.Open);
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => Client(runtime).GetResponseAsync("Hi", cancellationToken: stop.Token));
        Assert.Single(runtime.Requests);
    }

    [Fact]
    public async Task Leaving_the_loop_frees_the_sequence()
    {
        var runtime = new FakeRuntime(Endless);
        await foreach (var update in Client(runtime).GetStreamingResponseAsync("Hi")) break;
        Assert.Single(runtime.Requests);
        Assert.Equal(0, runtime.Open);
    }

    private static async IAsyncEnumerable<GenerationEvent> Endless(GenerationRequest request, [System.Runtime.CompilerServices.EnumeratorCancellation] CancellationToken cancellationToken)
    {
        while (true)
        {
            yield return new TextDelta("on ");
            await Task.Delay(1, cancellationToken);
        }
    }

    [Fact]
    public async Task The_runtimes_refusal_reaches_the_caller_as_it_is()
    {
        var refusal = new TenantLoraException(ErrorCodes.QueueFull, "Full.") { RetryAfter = TimeSpan.FromSeconds(2) };
        var client = Client(new FakeRuntime((_, _) => throw refusal));
        Assert.Same(refusal, await Assert.ThrowsAsync<TenantLoraException>(() => client.GetResponseAsync("Hi")));
    }

    [Fact]
    public async Task Many_conversations_at_once_do_not_mix()
    {
        var runtime = new FakeRuntime((request, _) => FakeRuntime.Answer([request.Tenant, " ", request.Messages![^1].Content, " ", request.Adapter ?? "base"]));
        var harbor = Client(runtime);
        var ledger = Client(runtime, "ledger", "books");
        var answers = await Task.WhenAll(Enumerable.Range(0, 200).Select(async i => (i, (await (i % 2 == 0 ? harbor : ledger).GetResponseAsync($"q{i}")).Text)));
        Assert.All(answers, a => Assert.Equal(a.i % 2 == 0 ? $"harbor q{a.i} sha256:aa" : $"ledger q{a.i} sha256:cc", a.Text));
    }

    [Fact]
    public void Services_are_found_through_it()
    {
        var runtime = FakeRuntime.Saying();
        var door = new TenantLoraClient(runtime, catalog);
        var client = door.GetChatClient("harbor", "sales");

        var metadata = client.GetService<ChatClientMetadata>()!;
        Assert.Equal(("tenantlora", "sales", null), (metadata.ProviderName, metadata.DefaultModelId, metadata.ProviderUri));
        Assert.Same(metadata, client.GetService<ChatClientMetadata>());
        Assert.Same(client, client.GetService<IChatClient>());
        Assert.Same(client, client.GetService<TenantLoraChatClient>());
        Assert.Same(door, client.GetService<TenantLoraClient>());
        Assert.Same(runtime, client.GetService<IRuntime>());
        Assert.Null(client.GetService<string>());
        Assert.Null(client.GetService(typeof(IChatClient), "key"));
        Assert.Throws<ArgumentNullException>(() => client.GetService(null!));
        Assert.Equal("sales", new TenantLoraClient(runtime, catalog).GetChatClient("harbor").GetService<ChatClientMetadata>()!.DefaultModelId);
    }

    [Fact]
    public async Task Disposing_is_harmless()
    {
        var runtime = FakeRuntime.Saying("ok");
        var client = Client(runtime);
        client.Dispose();
        client.Dispose();
        Assert.False(runtime.Disposed);
        Assert.Equal("ok", (await client.GetResponseAsync("Hi")).Text);
    }

    [Fact]
    public async Task A_history_built_from_updates_can_be_sent_again()
    {
        var runtime = FakeRuntime.Saying("Ahoy");
        List<ChatMessage> history = [new(ChatRole.User, "Hi")];
        history.AddMessages(await Client(runtime).GetStreamingResponseAsync(history).ToListAsync());
        history.Add(new ChatMessage(ChatRole.User, "And?"));
        await Client(runtime).GetResponseAsync(history);
        Assert.Equal(["user", "assistant", "user"], runtime.Request.Messages!.Select(m => m.Role));
    }
}
