using System.Net;
using TenantLora.ChatHost.Operations;

namespace TenantLora.ChatHost.Tests.Operations;

/// <summary>A stop that cuts nobody off.</summary>
public sealed class DrainTests
{
    private const string Ask = """{"model":"harbor","stream":true,"messages":[{"role":"user","content":"Hi"}]}""";

    [Fact]
    public async Task Running_answers_finish_on_both_roads_and_new_ones_are_refused()
    {
        var runtime = new FakeRuntime { Answer = (_, token) => FakeRuntime.Says(TimeSpan.FromMilliseconds(20), token, [.. Enumerable.Range(0, 40).Select(i => $"{i} ")]) };
        await using var host = await TestHost.StartAsync(runtime);
        using var client = host.Client();
        await using var hub = await HubConnection.OpenAsync(host.Url, host.Keys["harbor"]);
        var overHttp = client.PostAsync("/v1/chat/completions", TestHost.Json(Ask));
        var overHub = hub.CollectAsync("Send", Ask.Replace("\"stream\":true,", "", StringComparison.Ordinal));
        await TestHost.UntilAsync(() => runtime.Running == 2, "both run");

        var drained = host.Service<Admission>().DrainAsync(TimeSpan.FromSeconds(20));
        using var ready = await client.GetAsync("/health/ready");
        Assert.Equal((HttpStatusCode.ServiceUnavailable, """{"status":"draining"}"""), (ready.StatusCode, await ready.Content.ReadAsStringAsync()));
        Assert.Equal(HttpStatusCode.OK, (await client.GetAsync("/health/live")).StatusCode);
        using var refused = await client.PostAsync("/v1/chat/completions", TestHost.Json(Ask));
        Assert.Equal(HttpStatusCode.ServiceUnavailable, refused.StatusCode);
        Assert.NotNull(refused.Headers.RetryAfter);
        Assert.Contains("\"code\":\"shutting_down\"", await refused.Content.ReadAsStringAsync(), StringComparison.Ordinal);
        var (second, _) = await hub.CollectAsync("Send", Ask.Replace("\"stream\":true,", "", StringComparison.Ordinal));
        Assert.Equal("shutting_down", Assert.Single(second).GetProperty("code").GetString());
        Assert.False(drained.IsCompleted);

        Assert.EndsWith("data: [DONE]\n\n", await (await overHttp).Content.ReadAsStringAsync(), StringComparison.Ordinal);
        Assert.Equal("done", (await overHub).Items[^1].GetProperty("type").GetString());
        await drained;
    }

    [Fact]
    public async Task When_time_is_over_each_reader_is_told_why()
    {
        var runtime = new FakeRuntime { Answer = (_, token) => FakeRuntime.Endless(token) };
        await using var host = await TestHost.StartAsync(runtime);
        await using var hub = await HubConnection.OpenAsync(host.Url, host.Keys["harbor"]);
        var overHttp = RawHttp.PostAsync(host.Url, "/v1/chat/completions", host.Keys["harbor"], Ask);
        var overHub = hub.CollectAsync("Send", Ask.Replace("\"stream\":true,", "", StringComparison.Ordinal));
        await TestHost.UntilAsync(() => runtime.Running == 2, "both run");
        await host.Service<Admission>().DrainAsync(TimeSpan.FromMilliseconds(100));
        Assert.Contains("\"code\":\"shutting_down\"", RawHttp.Unchunk((await overHttp).Text).Body, StringComparison.Ordinal);
        Assert.Equal("shutting_down", (await overHub).Items[^1].GetProperty("code").GetString());
        Assert.Equal(0, runtime.Running);
    }
}
