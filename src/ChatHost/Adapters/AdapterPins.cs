using System.Collections.Immutable;
using Microsoft.Extensions.Options;
using TenantLora.ChatHost.Store;

namespace TenantLora.ChatHost.Adapters;

/// <summary>
/// What admins have pinned: the active versions of these adapters are brought to memory without anyone asking and stay there while others take turns.
/// A tenant's take at most its share, so that pins leave room to all others; what is beyond it, since a name was moved to a larger version, takes turns.
/// </summary>
internal sealed class AdapterPins(Serving serving, IOptions<TenantLoraOptions> options) : BackgroundService
{
    private readonly SortedDictionary<string, SortedDictionary<string, (string Digest, long Bytes)>> pinned = new(StringComparer.Ordinal);      // by tenant and name
    private readonly SemaphoreSlim changed = new(0);
    private ImmutableDictionary<string, ImmutableHashSet<string>> kept = ImmutableDictionary.Create<string, ImmutableHashSet<string>>(StringComparer.Ordinal);      // by tenant

    /// <summary>Bytes that the pinned adapters of one tenant may take.</summary>
    public long Share { get; } = serving.Runtime.AdapterMemory / 100 * options.Value.AdapterPinPercent / Math.Max(1, options.Value.Tenants.Count);

    /// <summary>Digests of what stays. Any thread may read it.</summary>
    public ImmutableHashSet<string> Kept => [.. Volatile.Read(ref kept).Values.SelectMany(d => d)];

    /// <summary>Takes note of an adapter as the store has it now. One thread at a time may call.</summary>
    /// <param name="active">Its active version; null where there is none.</param>
    public void Set(StoredAdapter adapter, StoredVersion? active)
    {
        if (!pinned.TryGetValue(adapter.Tenant, out var own)) own = pinned[adapter.Tenant] = new(StringComparer.Ordinal);
        var before = own.TryGetValue(adapter.Name, out var known) ? known.Digest : null;
        if (adapter.Pinned == 0 || active is null) own.Remove(adapter.Name);
        else own[adapter.Name] = (active.Digest, active.Bytes);
        if (own.Count == 0) pinned.Remove(adapter.Tenant);
        if (before == (adapter.Pinned == 0 ? null : active?.Digest)) return;
        Volatile.Write(ref kept, pinned.ToImmutableDictionary(p => p.Key, p => Fitting(p.Value).ToImmutableHashSet(StringComparer.Ordinal), StringComparer.Ordinal));
        changed.Release();
    }

    private IEnumerable<string> Fitting(SortedDictionary<string, (string Digest, long Bytes)> own)
    {
        var left = Share;
        foreach (var (digest, bytes) in own.Values.DistinctBy(p => p.Digest))
            if (bytes <= left)
            {
                left -= bytes;
                yield return digest;
            }
    }

    protected override async Task ExecuteAsync(CancellationToken stoppingToken)
    {
        while (true)
        {
            await changed.WaitAsync(stoppingToken);
            await serving.Runtime.KeepAsync(Volatile.Read(ref kept), stoppingToken);
        }
    }

    public override void Dispose()
    {
        base.Dispose();
        changed.Dispose();
    }
}
