using System.Collections.Immutable;
using System.Text.Json;
using Microsoft.Extensions.Options;
using TenantLora.ChatHost.Operations;
using TenantLora.ChatHost.Security;
using TenantLora.ChatHost.Store;
using TenantLora.Connector;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Adapters;

/// <summary>
/// The life of tenants' adapters: from files to a version, from a version to what names mean, and back to nothing. The store decides; the catalog, the
/// runtime and the keys follow it, at once after this host's own changes, as soon as Redis tells of another's, and without Redis within <see cref="Period"/>.
/// </summary>
internal sealed partial class TenantAdapters(
    Serving serving, AdapterStore store, RedisCache redis, AdapterFolders folders, TenantDirectory tenants, AdapterPins pins, HostMetrics metrics, IOptions<TenantLoraOptions> options, ILogger<TenantAdapters> log) : BackgroundService
{
    /// <summary>How often the store is asked whether another host has changed it.</summary>
    public static readonly TimeSpan Period = TimeSpan.FromMilliseconds(500);

    private readonly Lock following = new(), bytes = new();
    private readonly Dictionary<(string Tenant, string Name), string[]> digests = [];
    private readonly Dictionary<string, long> stored = new(StringComparer.Ordinal);          // bytes on the disk by digest
    private long generation = -1;

    // ---- The host's start and its life

    public override async Task StartAsync(CancellationToken cancellationToken)
    {
        await ImportAsync(cancellationToken);
        Follow();
        if (folders.Sweep(store.Digests()) is var swept and > 0) Swept(log, swept);
        redis.Listen(change =>
        {
            try
            {
                Follow(change);
            }
            catch (Exception e)
            {
                Unheard(log, e);            // the next look at the store will do
            }
        });
        await base.StartAsync(cancellationToken);
    }

    protected override async Task ExecuteAsync(CancellationToken stoppingToken)
    {
        using var timer = new PeriodicTimer(Period);
        for (var well = true; await timer.WaitForNextTickAsync(stoppingToken);)
            try
            {
                Follow();
                if (!well) Back(log);
                well = true;
            }
            catch (Exception e)
            {
                if (well) Lost(log, e);
                well = false;
            }
    }

    /// <summary>Adapters of the configuration become versions like any other. The first of a name is active from the start; what an admin has done since stands.</summary>
    /// <exception cref="AdapterRefusedException">One does not fit: as wrong as any other option.</exception>
    private async Task ImportAsync(CancellationToken cancellationToken)
    {
        var places = Serving.Folders(options.Value);
        foreach (var (tenant, settings) in options.Value.Tenants)
            foreach (var (name, path) in settings.Adapters)
            {
                if (name == serving.Info.Model) throw new ArgumentException($"{TenantLoraOptions.Section}:Tenants:{tenant}:Adapters:{name}: this is the base model's name.");
                var report = await serving.Runtime.JudgeAsync(places[path], tenant, tries: false, cancellationToken);
                if (report.Adapter is not { } adapter) throw new AdapterRefusedException(places[path], report);
                if (store.IsDeleted(tenant, name)) continue;
                using var staged = folders.Stage();
                foreach (var file in new[] { AdapterFolders.ConfigName, AdapterFolders.WeightsName }) File.Copy(Path.Combine(places[path], file), Path.Combine(staged.Path, file));
                var (version, created) = Keep(staged, tenant, name, "configuration", adapter, report.Findings, activates: true);
                if (created && store.Find(tenant, name)!.Active != version.Number) Waiting(log, tenant, name, AdapterStore.Label(version.Number));
            }
    }

    // ---- From the store to those who answer

    /// <summary>Brings catalog, keys and runtime to what the store says now.</summary>
    /// <param name="change">What is known to have changed, if it is: where that is all, its record in Redis does.</param>
    public void Follow(Announcement? change = null)
    {
        lock (following)
        {
            if (change is not null && change.Generation <= generation) return;
            var record = change is not null && change.Generation == generation + 1 ? redis.Find(change) : null;
            var (now, adapters, versions, keys) = record is null ? store.ChangedSince(generation)
                : (change!.Generation, [record.Adapter], record.Versions.ToLookup(v => (v.Tenant, v.Name)), []);
            var gone = new HashSet<string>(StringComparer.Ordinal);
            foreach (var adapter in adapters)
            {
                var (id, own) = ((adapter.Tenant, adapter.Name), versions[(adapter.Tenant, adapter.Name)].ToArray());
                if (digests.TryGetValue(id, out var before)) gone.UnionWith(before);
                digests[id] = [.. own.Select(v => v.Digest)];
                foreach (var v in own)
                {
                    serving.Know(new AdapterInfo(v.Digest, v.Kind, (int)v.Rank, v.Bytes, v.ExpandedBytes, v.BaseModel));
                    if (stored.TryAdd(v.Digest, v.StoredBytes)) metrics.AdapterMoved("disk", v.StoredBytes);
                }
                pins.Set(adapter, own.FirstOrDefault(v => v.Number == adapter.Active));
                if (own.Length == 0)
                {
                    serving.Catalog.Remove(adapter.Tenant, adapter.Name);
                    digests.Remove(id);
                }
                else if (adapter.Name != serving.Info.Model) serving.Catalog.Set(adapter.Tenant, adapter.Name, Describe(adapter, own));
            }
            tenants.Follow(keys);
            generation = now;
            gone.ExceptWith(digests.Values.SelectMany(d => d));
            foreach (var digest in gone)
            {
                if (stored.Remove(digest, out var size)) metrics.AdapterMoved("disk", -size);
                Discard(digest);
            }
        }
    }

    private long Generation()
    {
        lock (following) return generation;
    }

    /// <summary>Follows a change of this host's own and tells the others.</summary>
    /// <param name="since">The generation before it.</param>
    private void FollowAndAnnounce(long since)
    {
        Follow();
        var (_, adapters, versions, keys) = store.ChangedSince(since);
        foreach (var a in adapters) redis.Announce(new Announcement(a.Changed, a.Tenant, a.Name), a.DeletedAt is null ? new AdapterRecord(a, [.. versions[(a.Tenant, a.Name)]]) : null);
        foreach (var k in keys) redis.Announce(new Announcement(k.Changed, k.Tenant, null), null);
    }

    private static CatalogAdapter Describe(StoredAdapter adapter, IEnumerable<StoredVersion> versions) =>
        new(versions.ToImmutableDictionary(v => AdapterStore.Label(v.Number), v => v.Digest, StringComparer.Ordinal), AdapterStore.Label(adapter.Active), AdapterStore.Label(adapter.Previous),
            adapter is { Canary: { } canary, Share: { } share } ? new CatalogCanary(AdapterStore.Label(canary), (int)share) : null);

    /// <summary>No version has it any more: those who use it keep it, and with the last of them its memory and its files go.</summary>
    private void Discard(string digest)
    {
        lock (bytes)
        {
            bool IsWanted() => store.IsKnown(digest);           // uploaded anew in this moment
            if (IsWanted() || !serving.Runtime.Forget(digest, whenLeft: () => Discard(digest))) return;
            serving.ForgetAdapter(digest);
            folders.Delete(digest, IsWanted);
        }
    }

    // ---- What admins do

    /// <summary>Judges the staged files, tries them and, where nothing stands against them, makes them a version.</summary>
    /// <exception cref="QuotaExceededException">They would be more than the tenant may keep.</exception>
    public async Task<(AdapterReport Report, StoredVersion? Version, bool Created)> AddAsync(StagedFolder staged, string tenant, string name, string who, CancellationToken cancellationToken)
    {
        var before = Generation();
        var report = await serving.Runtime.JudgeAsync(staged.Path, tenant, tries: true, cancellationToken);
        if (report.Adapter is not { } adapter)
        {
            store.NoteRefusal(tenant, who, name, string.Join(", ", report.Findings.Where(f => f.Severity == Severity.Error).Select(f => f.Code).Distinct().Take(8)));
            return (report, null, false);
        }
        try
        {
            var (version, created) = Keep(staged, tenant, name, who, adapter, report.Findings, activates: false);
            return (report, version, created);
        }
        catch (QuotaExceededException)
        {
            store.NoteRefusal(tenant, who, name, "quota_exceeded");
            throw;
        }
        finally
        {
            FollowAndAnnounce(before);
            Discard(adapter.Digest);            // where no version came of it, or one that was deleted before anyone had seen it
        }
    }

    /// <summary>A change by an admin, seen by all from here on.</summary>
    public Change Apply(Func<AdapterStore, Change> change)
    {
        var before = Generation();
        var outcome = change(store);
        if (outcome == Change.Done) FollowAndAnnounce(before);
        return outcome;
    }

    private (StoredVersion, bool) Keep(StagedFolder staged, string tenant, string name, string who, AdapterInfo adapter, IReadOnlyList<AdapterFinding> findings, bool activates)
    {
        lock (bytes)            // or the last version with these bytes may be deleted, and the files with it, between the two
        {
            var size = staged.Bytes;
            folders.Keep(staged, adapter.Digest);
            var added = store.AddVersion(new StoredVersion(tenant, name, 0, adapter.Digest, adapter.Kind, adapter.Rank, adapter.Bytes, adapter.ExpandedBytes, adapter.BaseModel,
                JsonSerializer.Serialize(findings, AdapterJson.Wire.IReadOnlyListAdapterFinding), 0, who, size), activates, activates ? null : options.Value.AdapterQuota(tenant));
            if (!folders.Has(adapter.Digest)) folders.Keep(staged, adapter.Digest);         // another host deleted them before it could know
            return added;
        }
    }

    [LoggerMessage(LogLevel.Information, "{Count} folders of adapters that no version names were deleted")]
    private static partial void Swept(ILogger log, int count);

    [LoggerMessage(LogLevel.Warning, "The configuration brings {Tenant}'s {Name} as {Version}, which is new. Activate it, or requests keep the version that is active")]
    private static partial void Waiting(ILogger log, string tenant, string name, string version);

    [LoggerMessage(LogLevel.Warning, "A change that another host told of could not be followed at once")]
    private static partial void Unheard(ILogger log, Exception exception);

    [LoggerMessage(LogLevel.Error, "The store does not answer. Requests go on with what was known")]
    private static partial void Lost(ILogger log, Exception exception);

    [LoggerMessage(LogLevel.Information, "The store answers again")]
    private static partial void Back(ILogger log);
}
