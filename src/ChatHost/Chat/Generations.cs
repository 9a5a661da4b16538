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
    private const int MostKept = 256; // ended ones of one tenant; more are forgotten before their time

    private readonly ConcurrentDictionary<string, Generation> all = new(StringComparer.Ordinal);
    private readonly Dictionary<string, Queue<Generation>> ended = new(StringComparer.Ordinal); // by tenant, oldest first

    /// <summary>Begins an answer, which goes on without its caller.</summary>
    /// <exception cref="TenantLoraException">Refused at once.</exception>
    public async ValueTask<Generation> StartAsync(string tenant, JsonElement json, CancellationToken cancellationToken)
    {
        try
        {
            var request = HubRequest.Read(json, tenant);
            var lease = admission.Enter(tenant);
            PinnedRequest pinned;
            try
            {
                pinned = await serving.PinAsync(request, cancellationToken);
            }
            catch
            {
                lease.Dispose();
                throw;
            }
            var generation = new Generation(tenant, pinned.Model.Name, pinned.Model.Digest);
            all[generation.Id] = generation;
            _ = Task.Run(() => RunAsync(generation, pinned, lease), CancellationToken.None);
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

    private async Task RunAsync(Generation generation, PinnedRequest request, IDisposable lease)
    {
        using (lease)
        using (request)
            await generation.RunAsync(token => serving.GenerateAsync(request, token), e => Broke(log, generation.Id, e), admission.Ended);
        metrics.Ended("hub", generation.Outcome!);
        Keep(generation);
        await Task.Delay(TimeSpan.FromSeconds(options.Value.KeepSeconds));
        Forget(generation);
        generation.Dispose();
    }

    private void Keep(Generation generation)
    {
        lock (ended)
        {
            if (!ended.TryGetValue(generation.Tenant, out var mine)) ended[generation.Tenant] = mine = new();
            mine.Enqueue(generation);
            if (mine.Count > MostKept) all.TryRemove(mine.Dequeue().Id, out _);
        }
    }

    private void Forget(Generation generation)
    {
        all.TryRemove(generation.Id, out _);
        lock (ended)
        {
            var mine = ended[generation.Tenant];
            while (mine.TryPeek(out var oldest) && !all.ContainsKey(oldest.Id)) mine.Dequeue();
        }
    }

    [LoggerMessage(LogLevel.Error, "Generation {Id} failed")]
    private static partial void Broke(ILogger log, string id, Exception exception);
}
