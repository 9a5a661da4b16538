using System.Text.Json;

namespace TenantLora.ChatHost.Tests;

public sealed class SiteTests
{
    [Fact]
    public async Task The_page_and_the_probes_are_open_to_all()
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime());
        using var client = host.Client(null);
        using var page = await client.GetAsync("/");
        Assert.Equal("text/html", page.Content.Headers.ContentType!.MediaType);
        Assert.Equal("no-cache", page.Headers.CacheControl!.ToString());
        Assert.Equal("""{"status":"ok"}""", await client.GetStringAsync("/health/live"));
        Assert.Equal("""{"status":"ok"}""", await client.GetStringAsync("/health/ready"));
    }

    [Fact]
    public async Task Other_names_are_answered_when_it_listens_for_all()
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime(), "--urls=http://*:0");
        using var client = new HttpClient();
        using var request = new HttpRequestMessage(HttpMethod.Get, $"http://127.0.0.1:{host.Url.Port}/health/live");
        request.Headers.Host = "chat.example";
        using var response = await client.SendAsync(request);
        Assert.True(response.IsSuccessStatusCode);
    }

    [Fact]
    public async Task The_api_describes_itself()
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime());
        using var client = host.Client(null);
        var document = JsonDocument.Parse(await client.GetStringAsync("/openapi/v1.json")).RootElement;
        var paths = document.GetProperty("paths");
        var chat = paths.GetProperty("/v1/chat/completions").GetProperty("post").GetProperty("requestBody").GetProperty("content").GetProperty("application/json").GetProperty("schema");
        Assert.Equal(["model", "messages"], chat.GetProperty("required").EnumerateArray().Select(r => r.GetString()!));
        Assert.Equal(2, chat.GetProperty("properties").GetProperty("temperature").GetProperty("maximum").GetDouble());
        foreach (var path in new[] { "/v1/completions", "/v1/models", "/v1/models/{id}", "/api/session", "/health/ready", "/metrics" }) Assert.True(paths.TryGetProperty(path, out _), path);
        Assert.True(document.GetProperty("components").GetProperty("securitySchemes").TryGetProperty("bearer", out _));
    }
}
