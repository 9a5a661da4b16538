using System.ClientModel;
using System.ClientModel.Primitives;
using OpenAI;
using OpenAI.Chat;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Tests.OpenAi;

/// <summary>OpenAI's own .NET client against the listening host. It throws on what other clients let pass.</summary>
public sealed class OpenAiPackageTests
{
    [Fact]
    public async Task A_whole_answer_and_its_usage()
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime());
        ChatCompletion answer = await Client(host).CompleteChatAsync([new SystemChatMessage("Be brief."), new UserChatMessage("Hi")], new ChatCompletionOptions { MaxOutputTokenCount = 9, Temperature = 0.5f });
        Assert.Equal("Aye, we are open.", answer.Content[0].Text);
        Assert.Equal(ChatFinishReason.Stop, answer.FinishReason);
        Assert.Equal((31, 3), (answer.Usage.InputTokenCount, answer.Usage.OutputTokenCount));
        Assert.Equal("harbor", answer.Model);
        Assert.Equal("fp_demo", answer.SystemFingerprint);
    }

    [Theory]
    [InlineData(FinishReason.Stop, ChatFinishReason.Stop)]
    [InlineData(FinishReason.Length, ChatFinishReason.Length)]
    public async Task A_streamed_answer_and_its_usage(FinishReason reason, ChatFinishReason expected)
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime { Answer = (_, _) => Ends(reason) });
        List<StreamingChatCompletionUpdate> updates = [];
        await foreach (var update in Client(host).CompleteChatStreamingAsync([new UserChatMessage("Hi")])) updates.Add(update);
        Assert.Equal("Aye", string.Concat(updates.SelectMany(u => u.ContentUpdate).Select(c => c.Text)));
        Assert.Equal(ChatMessageRole.Assistant, updates[0].Role);
        Assert.Equal(expected, updates.Select(u => u.FinishReason).OfType<ChatFinishReason>().Single());
        Assert.Equal(34, updates.Select(u => u.Usage).OfType<ChatTokenUsage>().Single().TotalTokenCount);
    }

    [Fact]
    public async Task Refusals_tell_code_and_text()
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime());
        var unknown = await Assert.ThrowsAsync<ClientResultException>(() => Client(host, model: "absent").CompleteChatAsync([new UserChatMessage("Hi")]));
        Assert.Equal(404, unknown.Status);
        Assert.Contains("model_not_found", unknown.Message, StringComparison.Ordinal);
        var key = await Assert.ThrowsAsync<ClientResultException>(() => Client(host, key: "tl_wrong").CompleteChatAsync([new UserChatMessage("Hi")]));
        Assert.Equal(401, key.Status);
        Assert.Contains("invalid_api_key", key.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_failure_in_the_stream_is_noticed()
    {
        var runtime = new FakeRuntime { Answer = (_, _) => FakeRuntime.Fails(new TenantLoraException(ErrorCodes.NotANumber, "Bad."), new GenerationQueued(0, 1), new TextDelta("Aye")) };
        await using var host = await TestHost.StartAsync(runtime);
        await Assert.ThrowsAnyAsync<Exception>(async () =>
        {
            await foreach (var _ in Client(host).CompleteChatStreamingAsync([new UserChatMessage("Hi")]))
            {
            }
        });
    }

    [Fact]
    public async Task Cancelling_frees_the_generation()
    {
        var runtime = new FakeRuntime { Answer = (_, token) => FakeRuntime.Endless(token) };
        await using var host = await TestHost.StartAsync(runtime);
        using var cancel = new CancellationTokenSource();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(async () =>
        {
            await foreach (var update in Client(host).CompleteChatStreamingAsync([new UserChatMessage("Hi")], cancellationToken: cancel.Token))
                if (update.ContentUpdate.Count > 0) await cancel.CancelAsync();
        });
        await TestHost.UntilAsync(() => runtime.Running == 0, "the generation ended");
    }

    [Fact]
    public async Task Models_are_listed_and_found()
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime());
        var models = new OpenAIClient(new ApiKeyCredential(host.Keys["harbor"]), Options(host)).GetOpenAIModelClient();
        Assert.Equal(["harbor", "demo-7m"], (await models.GetModelsAsync()).Value.Select(m => m.Id));
        Assert.Equal("demo-7m", (await models.GetModelAsync("demo-7m")).Value.Id);
    }

    private static async IAsyncEnumerable<GenerationEvent> Ends(FinishReason reason)
    {
        yield return new GenerationQueued(0, 31);
        yield return new TextDelta("Aye");
        await Task.Yield();
        yield return FakeRuntime.Done(3, reason);
    }

    private static ChatClient Client(TestHost host, string model = "harbor", string? key = null) =>
        new(model, new ApiKeyCredential(key ?? host.Keys["harbor"]), Options(host));

    private static OpenAIClientOptions Options(TestHost host) => new() { Endpoint = new Uri(host.Url, "/v1"), RetryPolicy = new ClientRetryPolicy(0) };
}
