using System.Text.Json;
using System.Text.Json.Serialization.Metadata;
using TenantLora.ChatHost.Adapters;
using TenantLora.Connector;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Runtimes;

/// <summary>One runtime of another process: /v1 by the connector, /service beside it. Every failure is a <see cref="TenantLoraException"/> as <see cref="HttpRuntime.SendAsync"/> throws it.</summary>
internal sealed class RemoteRuntime(Uri address, string serviceKey, HttpClient http) : IAsyncDisposable
{
    private readonly HttpRuntime runtime = new(address, (headers, tenant) => Service.Sign(headers, serviceKey, tenant), http);

    public Uri Address => address;

    /// <summary>Why it is not used; null: it is.</summary>
    public volatile string? Fault = "it has not answered yet";

    /// <summary>How often in a row it was asked and was too slow to answer.</summary>
    public int Late;

    public IAsyncEnumerable<GenerationEvent> GenerateAsync(GenerationRequest request, CancellationToken cancellationToken) => runtime.GenerateAsync(request, cancellationToken);

    public Task<ServiceInfo> InfoAsync(CancellationToken cancellationToken) => GetAsync("info", ServiceJson.Default.ServiceInfo, cancellationToken);

    public Task<Residents> ResidentsAsync(CancellationToken cancellationToken) => GetAsync("residents", ServiceJson.Default.Residents, cancellationToken);

    public async Task<AdapterReport> JudgeAsync(string folder, bool tries, CancellationToken cancellationToken)
    {
        using var message = Request(HttpMethod.Post, $"adapters?try={(tries ? "true" : "false")}");
        using var form = new MultipartFormDataContent();
        foreach (var name in new[] { AdapterFolders.ConfigName, AdapterFolders.WeightsName, AdapterFolders.PickleName })
            if (Path.Combine(folder, name) is var file && File.Exists(file)) form.Add(new StreamContent(File.OpenRead(file)), "file", name);
        message.Content = form;
        return await ReadAsync(message, ServiceJson.Default.AdapterReport, cancellationToken);
    }

    public async Task ForgetAsync(string digest, CancellationToken cancellationToken)
    {
        using var message = Request(HttpMethod.Delete, $"adapters/{digest}");
        using var response = await runtime.SendAsync(message, cancellationToken);
    }

    public ValueTask DisposeAsync() => runtime.DisposeAsync();

    private async Task<T> GetAsync<T>(string path, JsonTypeInfo<T> type, CancellationToken cancellationToken)
    {
        using var message = Request(HttpMethod.Get, path);
        return await ReadAsync(message, type, cancellationToken);
    }

    private async Task<T> ReadAsync<T>(HttpRequestMessage message, JsonTypeInfo<T> type, CancellationToken cancellationToken)
    {
        using var response = await runtime.SendAsync(message, cancellationToken);
        try
        {
            return await response.Content.ReadFromJsonAsync(type, cancellationToken) ?? throw new JsonException("null");
        }
        catch (Exception e) when (e is HttpRequestException or IOException or JsonException)
        {
            throw new TenantLoraException(ErrorCodes.Unreachable, $"No whole answer: {e.Message}", e);
        }
    }

    private HttpRequestMessage Request(HttpMethod method, string path) => runtime.Request(method, "../service/" + path, tenant: "");
}
