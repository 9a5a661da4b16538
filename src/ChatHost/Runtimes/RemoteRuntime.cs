using System.Runtime.CompilerServices;
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

    /// <summary>Its start that has been told what to keep.</summary>
    public Guid Told;

    /// <summary>How often in a row it was asked and was too slow to answer.</summary>
    public int Late;

    private CancellationTokenSource hope = new();

    /// <summary>Ends what is being asked of it: it has stood still for too long.</summary>
    public void GiveUp() => Interlocked.Exchange(ref hope, new CancellationTokenSource()).Cancel();

    public async IAsyncEnumerable<GenerationEvent> GenerateAsync(GenerationRequest request, [EnumeratorCancellation] CancellationToken cancellationToken)
    {
        using var either = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken, hope.Token);
        await using var events = runtime.GenerateAsync(request, either.Token).GetAsyncEnumerator(either.Token);
        while (await WithHopeAsync(() => events.MoveNextAsync().AsTask(), cancellationToken)) yield return events.Current;
    }

    public Task<ServiceInfo> InfoAsync(CancellationToken cancellationToken) => GetAsync("info", ServiceJson.Default.ServiceInfo, cancellationToken);

    public async Task<Residents> ResidentsAsync(CancellationToken cancellationToken)
    {
        using var either = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken, hope.Token);
        return await WithHopeAsync(() => GetAsync("residents", ServiceJson.Default.Residents, either.Token), cancellationToken);
    }

    public async Task<AdapterReport> JudgeAsync(string folder, bool tries, CancellationToken cancellationToken)
    {
        using var either = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken, hope.Token);
        using var message = Request(HttpMethod.Post, $"adapters?try={(tries ? "true" : "false")}");
        using var form = new MultipartFormDataContent();
        foreach (var name in new[] { AdapterFolders.ConfigName, AdapterFolders.WeightsName, AdapterFolders.PickleName })
            if (Path.Combine(folder, name) is var file && File.Exists(file)) form.Add(new StreamContent(File.OpenRead(file)), "file", name);
        message.Content = form;
        return await WithHopeAsync(() => ReadAsync(message, ServiceJson.Default.AdapterReport, either.Token), cancellationToken);
    }

    public async Task ForgetAsync(string digest, CancellationToken cancellationToken)
    {
        using var message = Request(HttpMethod.Delete, $"adapters/{digest}");
        using var response = await runtime.SendAsync(message, cancellationToken);
    }

    public async Task KeepAsync(IReadOnlyList<string> digests, CancellationToken cancellationToken)
    {
        using var message = Request(HttpMethod.Put, "kept");
        message.Content = JsonContent.Create(new KeptAdapters(digests), ServiceJson.Default.KeptAdapters);
        using var response = await runtime.SendAsync(message, cancellationToken);
    }

    public ValueTask DisposeAsync()
    {
        hope.Dispose();
        return runtime.DisposeAsync();
    }

    private static async Task<T> WithHopeAsync<T>(Func<Task<T>> ask, CancellationToken cancellationToken)
    {
        try
        {
            return await ask();
        }
        catch (OperationCanceledException) when (!cancellationToken.IsCancellationRequested)
        {
            throw new TenantLoraException(ErrorCodes.Unreachable, "It stands still.");
        }
    }

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
