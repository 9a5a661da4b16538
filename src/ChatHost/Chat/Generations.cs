using System.Collections.Concurrent;
using System.Text.Json;
using Microsoft.Extensions.Options;
using TenantLora.ChatHost.Operations;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Chat;

/// <summary>
/// The generations that the hub has begun, running and just ended. A connection is only a view on them: it may break and come back
/// within <see cref="TenantLoraOptions.KeepSeconds"/> of the end and miss nothing.
/// </summary>
internal sealed partial class Generations(
    Serving serving, Admission admission, HostMetrics metrics, IOptions<TenantLoraOptions> options, ILogger<Generations> log)
{
    private readonly ConcurrentDictionary<string, Generation> all = new(StringComparer.Ordinal);

    /// <summary>Begins an answer, which goes on without its caller.</summary>
    /// <exception cref="TenantLoraException">Refused at once.</exception>
    public Generation Start(string tenant, JsonElement json)
    {
        try
        {
            var request = HubRequest.Read(json, tenant);
            var model = serving.Resolve(tenant, request.Model);
            var lease = admission.Enter(tenant);
            var generation = new Generation(tenant, model.Name, model.Digest);
            all[generation.Id] = generation;
            _ = Task.Run(() => RunAsync(generation, request with { Model = model.Name }, lease));
            return generation;
        }
        catch (TenantLoraException e)
        {
            metrics.Ended("hub", e.Code);
            throw;
        }
    }

    /// <summary>The tenant's generation; null for one that is unknown, forgotten or another's.</summary>
    public Generation? Find(string tenant, string id) => all.TryGetValue(id, out var generation) && generation.Tenant == tenant ? generation : null;

    private async Task RunAsync(Generation generation, GenerationRequest request, IDisposable lease)
    {
        using (lease)
            await generation.RunAsync(token => serving.Client.GenerateAsync(request, token), e => Broke(log, generation.Id, e), admission.Ended);
        metrics.Ended("hub", generation.Outcome!);
        await Task.Delay(TimeSpan.FromSeconds(options.Value.KeepSeconds));
        all.TryRemove(generation.Id, out _);
        generation.Dispose();
    }

    [LoggerMessage(LogLevel.Error, "Generation {Id} failed")]
    private static partial void Broke(ILogger log, string id, Exception exception);
}
