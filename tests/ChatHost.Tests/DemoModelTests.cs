using System.Text.Json;

namespace TenantLora.ChatHost.Tests;

/// <summary>The whole road with the shipped model: tenants at once, each in its own voice.</summary>
public sealed class DemoModelTests
{
    [Fact]
    public async Task Tenants_at_once_each_hear_their_own_adapter_as_when_alone()
    {
        await using var host = await TestHost.StartRealAsync();
        var tenants = host.Keys.Keys.Order().ToArray();
        var alone = new Dictionary<string, string>();
        foreach (var tenant in tenants) alone[tenant] = await AskAsync(host, tenant, tenant);
        Assert.StartsWith("Arr, ", alone["harbor"], StringComparison.Ordinal);
        Assert.Equal(tenants.Length, alone.Values.Distinct().Count());
        var together = await Task.WhenAll(tenants.SelectMany(t => new[] { t, t }).Select(async t => (Tenant: t, Text: await AskAsync(host, t, t))));
        Assert.All(together, answer => Assert.Equal(alone[answer.Tenant], answer.Text));
    }

    [Fact]
    public async Task The_hub_and_v1_say_the_same()
    {
        await using var host = await TestHost.StartRealAsync();
        await using var hub = await HubConnection.OpenAsync(host.Url, host.Keys["sprout"]);
        var (events, _) = await hub.CollectAsync("Send", """{"model":"sprout","messages":[{"role":"user","content":"When are you open?"}]}""");
        Assert.Equal(await AskAsync(host, "sprout", "sprout"), string.Concat(events.Where(e => e.GetProperty("type").GetString() == "delta").Select(e => e.GetProperty("text").GetString())));
        Assert.Equal("stop", events[^1].GetProperty("finishReason").GetString());
    }

    [Fact]
    public async Task A_prompt_that_does_not_fit_is_400_and_says_how_long_it_is()
    {
        await using var host = await TestHost.StartRealAsync("ContextLength=64");
        using var client = host.Client();
        using var response = await client.PostAsync("/v1/chat/completions", TestHost.Json($$$"""{"model":"harbor","messages":[{"role":"user","content":"{{{string.Concat(Enumerable.Repeat("When are you open? ", 50))}}}"}]}"""));
        Assert.Equal(400, (int)response.StatusCode);
        var error = (await TestHost.ReadAsync(response)).GetProperty("error");
        Assert.Equal("context_length_exceeded", error.GetProperty("code").GetString());
        Assert.Contains("64", error.GetProperty("message").GetString(), StringComparison.Ordinal);
    }

    private static async Task<string> AskAsync(TestHost host, string tenant, string model)
    {
        using var client = host.Client(tenant);
        using var response = await client.PostAsync("/v1/chat/completions", TestHost.Json($$$"""{"model":"{{{model}}}","temperature":0,"messages":[{"role":"user","content":"When are you open?"}]}"""));
        var text = await response.Content.ReadAsStringAsync();
        Assert.True(response.IsSuccessStatusCode, text);
        return JsonDocument.Parse(text).RootElement.GetProperty("choices")[0].GetProperty("message").GetProperty("content").GetString()!;
    }
}
