using Microsoft.Extensions.AI;
using TenantLora.Connector;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Tests;

/// <summary>A .NET app's road: the connector's HTTP side against the real host and the shipped model.</summary>
public sealed class ConnectorTests
{
    private static ChatOptions Greedy(string? model = null) => new() { Temperature = 0, ModelId = model };

    [Fact]
    public async Task The_readmes_line_answers_in_the_tenants_voice()
    {
        await using var host = await TestHost.StartRealAsync();
        using IChatClient chat = new TenantLoraChatClient(host.Url, host.Keys["harbor"], "harbor");

        var adapted = await chat.GetResponseAsync("When are you open?", Greedy());
        var plain = await chat.GetResponseAsync("When are you open?", Greedy("demo-7m"));

        Assert.Equal("Arr, we are open from 5 in the morning until noon. Aye!", adapted.Text);
        Assert.Equal("No shop has taught me that yet.", plain.Text);
        Assert.Equal(ChatFinishReason.Stop, adapted.FinishReason);
        Assert.Equal((13, 17), (adapted.Usage!.InputTokenCount, adapted.Usage.OutputTokenCount));
    }

    [Fact]
    public async Task Streaming_in_process_and_over_http_give_the_same_text()
    {
        await using var host = await TestHost.StartRealAsync();
        var overHttp = new TenantLoraClient(host.Url, tenant => host.Keys[tenant]);
        foreach (var tenant in new[] { "ledger", "sprout" })
        {
            var texts = new List<string>();
            foreach (var client in new[] { overHttp, new TenantLoraClient(host.Service<Serving>().Engine!, host.Service<Serving>().Catalog) })
            {
                var updates = await client.GetChatClient(tenant, tenant).GetStreamingResponseAsync("What do you sell?", Greedy()).ToListAsync();
                Assert.True(updates.Count(u => u.Text.Length > 0) > 3);
                texts.Add(string.Concat(updates.Select(u => u.Text)));
            }
            Assert.Equal(texts[0], texts[1]);
        }
    }

    [Fact]
    public async Task Refusals_arrive_with_their_codes()
    {
        await using var host = await TestHost.StartRealAsync("ContextLength=64");
        async Task<TenantLoraException> Refused(string key, string model, string text) => await Assert.ThrowsAsync<TenantLoraException>(async () =>
        {
            using var chat = new TenantLoraChatClient(host.Url, key, model);
            await chat.GetResponseAsync(text);
        });

        var foreign = await Refused(host.Keys["harbor"], "ledger", "Hello");
        var missing = await Refused(host.Keys["harbor"], "nobody", "Hello");
        var key = await Refused("tl_00000000_wrong", "harbor", "Hello");
        var tooLong = await Refused(host.Keys["harbor"], "harbor", string.Concat(Enumerable.Repeat("open ", 100)));

        Assert.Equal((ErrorCodes.ModelNotFound, foreign.Message.Replace("ledger", "nobody", StringComparison.Ordinal)), (missing.Code, missing.Message));
        Assert.Equal((ErrorCodes.ModelNotFound, ErrorCodes.InvalidKey, ErrorCodes.ContextLengthExceeded), (foreign.Code, key.Code, tooLong.Code));
        Assert.NotNull(foreign.RequestId);
    }

    [Fact]
    public async Task Cancelling_frees_the_sequence()
    {
        await using var host = await TestHost.StartRealAsync();
        using var chat = new TenantLoraChatClient(host.Url, host.Keys["kernel"], "kernel");
        using var cancel = new CancellationTokenSource();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(async () =>
        {
            await foreach (var update in chat.GetStreamingResponseAsync("Count to 20.", Greedy(), cancel.Token))
                if (update.Text.Length > 0) await cancel.CancelAsync();
        });
        using var client = host.Client();
        await TestHost.UntilAsync(() => client.GetStringAsync("/metrics").Result.Contains("\ntenantlora_requests_running 0\n", StringComparison.Ordinal), "nothing runs any more");
    }
}
