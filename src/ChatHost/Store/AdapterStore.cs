using System.Data.Common;
using System.Diagnostics.CodeAnalysis;
using System.Globalization;
using Dapper;

namespace TenantLora.ChatHost.Store;

/// <summary>How a change came out.</summary>
internal enum Change
{
    Done,
    NotFound,

    /// <summary>The adapter is there, the version is not.</summary>
    NoVersion,

    /// <summary>Somebody else has changed it since the caller looked.</summary>
    Stale,

    /// <summary>It would take away what is in use, or there is nothing to go back to.</summary>
    Conflict,
}

/// <summary>A tenant's adapters would take more than it may keep.</summary>
internal sealed class QuotaExceededException(long kept, long more, long quota) : Exception($"{kept} bytes are kept, {more} more are beyond the quota of {quota}.")
{
    public long Kept { get; } = kept;

    public long More { get; } = more;

    public long Quota { get; } = quota;
}

/// <summary>Tenants' adapters, their versions, aliases, keys and the audit of every move. Knows no files and no engine.</summary>
internal sealed class AdapterStore(Database database, TimeProvider time)
{
    private const string Adapters = "SELECT tenant, name, changed, created_at, next_version, active, previous, canary, share, deleted_at, pinned FROM adapters";

    // The same bytes are kept once, however many of the tenant's versions have them.
    private const string Kept = "SELECT CAST(COALESCE(SUM(b), 0) AS BIGINT) FROM (SELECT MAX(stored_bytes) AS b FROM versions WHERE tenant = @tenant GROUP BY digest) AS kept";

    private const string Pinned = "SELECT CAST(COALESCE(SUM(b), 0) AS BIGINT) FROM (SELECT MAX(v.bytes) AS b FROM adapters a JOIN versions v ON v.tenant = a.tenant AND v.name = a.name AND v.number = a.active"
        + " WHERE a.tenant = @tenant AND (a.pinned <> 0 OR a.name = @name) GROUP BY v.digest) AS kept";

    private const string Versions = "SELECT tenant, name, number, digest, kind, rank, bytes, expanded_bytes, base_model, findings, created_at, created_by, stored_bytes FROM versions";

    [return: NotNullIfNotNull(nameof(number))]
    public static string? Label(long? number) => number is { } n ? string.Create(CultureInfo.InvariantCulture, $"v{n}") : null;

    /// <summary>The number of <c>v3</c>; null for what is no version's name.</summary>
    public static long? Number(string? label) =>
        label is ['v', >= '1' and <= '9', ..] && long.TryParse(label.AsSpan(1), NumberStyles.None, CultureInfo.InvariantCulture, out var number) ? number : null;

    public StoredAdapter? Find(string tenant, string name) =>
        database.Read(c => c.QuerySingleOrDefault<StoredAdapter>($"{Adapters} WHERE tenant = @tenant AND name = @name AND deleted_at IS NULL", new { tenant, name }));

    /// <summary>Whether there was an adapter of this name that an admin has deleted.</summary>
    public bool IsDeleted(string tenant, string name) =>
        database.Read(c => c.QuerySingle<long>("SELECT COUNT(*) FROM adapters WHERE tenant = @tenant AND name = @name AND deleted_at IS NOT NULL", new { tenant, name })) > 0;

    /// <summary>A page of the tenant's adapters by name.</summary>
    public IReadOnlyList<StoredAdapter> List(string tenant, string after, int limit) =>
        database.Read(c => c.Query<StoredAdapter>($"{Adapters} WHERE tenant = @tenant AND name > @after AND deleted_at IS NULL ORDER BY name LIMIT @limit", new { tenant, after, limit }).AsList());

    /// <summary>An adapter's versions, newest first.</summary>
    public IReadOnlyList<StoredVersion> VersionsOf(string tenant, string name) =>
        database.Read(c => c.Query<StoredVersion>($"{Versions} WHERE tenant = @tenant AND name = @name ORDER BY number DESC", new { tenant, name }).AsList());

    /// <summary>The versions of all the tenant's adapters.</summary>
    public IReadOnlyList<StoredVersion> VersionsOf(string tenant) =>
        database.Read(c => c.Query<StoredVersion>($"{Versions} WHERE tenant = @tenant ORDER BY name, number DESC", new { tenant }).AsList());

    /// <summary>How many versions each of the tenant's adapters has.</summary>
    public IReadOnlyDictionary<string, long> CountVersions(string tenant) =>
        database.Read(c => c.Query<(string Name, long Count)>("SELECT name, COUNT(*) FROM versions WHERE tenant = @tenant GROUP BY name", new { tenant }).ToDictionary(r => r.Name, r => r.Count, StringComparer.Ordinal));

    /// <summary>What the tenant's adapters take on the disk. What another tenant has too counts for both: neither is told of it.</summary>
    public long StoredBytes(string tenant) => database.Read(c => c.QuerySingle<long>(Kept, new { tenant }));

    public IReadOnlyList<AuditEntry> Audit(string tenant, long before, int limit) =>
        database.Read(c => c.Query<AuditEntry>("SELECT id, at, who, action, adapter, old_value, new_value, why FROM audit WHERE tenant = @tenant AND id < @before ORDER BY id DESC LIMIT @limit", new { tenant, before, limit }).AsList());

    /// <summary>What has changed since a generation, deleted adapters too, with the versions there are now; and the generation that this is as of.</summary>
    public (long Generation, IReadOnlyList<StoredAdapter> Adapters, ILookup<(string Tenant, string Name), StoredVersion> Versions, IReadOnlyList<StoredKey> Keys) ChangedSince(long generation) =>
        database.Read(c =>
        {
            // The generation first: what comes in between is seen now or, once more, next time.
            var now = c.QuerySingle<long>("SELECT value FROM generation");
            if (now == generation) return (now, (IReadOnlyList<StoredAdapter>)[], Enumerable.Empty<StoredVersion>().ToLookup(v => (v.Tenant, v.Name)), (IReadOnlyList<StoredKey>)[]);
            var adapters = c.Query<StoredAdapter>($"{Adapters} WHERE changed > @generation", new { generation }).AsList();
            var versions = c.Query<StoredVersion>("SELECT v.tenant, v.name, number, digest, kind, rank, bytes, expanded_bytes, base_model, findings, v.created_at, created_by, stored_bytes FROM versions v"
                + " JOIN adapters a ON a.tenant = v.tenant AND a.name = v.name WHERE a.changed > @generation", new { generation });
            var keys = c.Query<StoredKey>("SELECT id, hash, tenant, role, label, created_at, changed, revoked_at FROM keys WHERE changed > @generation", new { generation }).AsList();
            return (now, adapters, versions.ToLookup(v => (v.Tenant, v.Name)), keys);
        });

    /// <summary>Whether some version has this digest.</summary>
    public bool IsKnown(string digest) => database.Read(c => c.QuerySingle<long>("SELECT COUNT(*) FROM versions WHERE digest = @digest", new { digest })) > 0;

    /// <summary>Digests that some version has.</summary>
    public IReadOnlySet<string> Digests() => database.Read(c => c.Query<string>("SELECT DISTINCT digest FROM versions").ToHashSet(StringComparer.Ordinal));

    /// <summary>Adds a version, or finds the one that has these bytes. Nothing is activated, unless <paramref name="activates"/> and nothing is active.</summary>
    /// <param name="quota">Bytes that may be kept for the tenant; null: no limit.</param>
    /// <exception cref="QuotaExceededException">Nothing was added.</exception>
    public (StoredVersion Version, bool Created) AddVersion(StoredVersion version, bool activates, long? quota = null) =>
        database.Change((t, generation) =>
        {
            var (c, now) = (t.Connection!, Now());
            var adapter = Locked(t, version.Tenant, version.Name);
            if (adapter is { DeletedAt: null } && c.QuerySingleOrDefault<StoredVersion>($"{Versions} WHERE tenant = @Tenant AND name = @Name AND digest = @Digest", version, t) is { } same) return (same, false);
            if (quota is { } most && c.QuerySingle<long>("SELECT COUNT(*) FROM versions WHERE tenant = @Tenant AND digest = @Digest", version, t) == 0
                && c.QuerySingle<long>(Kept, new { tenant = version.Tenant }, t) is var kept && kept + version.StoredBytes > most)
                throw new QuotaExceededException(kept, version.StoredBytes, most);
            if (adapter is null)
                c.Execute("INSERT INTO adapters (tenant, name, changed, created_at, next_version) VALUES (@Tenant, @Name, @generation, @now, 1)", new { version.Tenant, version.Name, generation, now }, t);
            var added = version with { Number = adapter?.NextVersion ?? 1, CreatedAt = now };           // numbers of a deleted adapter do not come back
            c.Execute("INSERT INTO versions (tenant, name, number, digest, kind, rank, bytes, expanded_bytes, base_model, findings, created_at, created_by, stored_bytes)"
                + " VALUES (@Tenant, @Name, @Number, @Digest, @Kind, @Rank, @Bytes, @ExpandedBytes, @BaseModel, @Findings, @CreatedAt, @CreatedBy, @StoredBytes)", added, t);
            long? active = activates && adapter?.Active is null ? added.Number : adapter?.Active;
            c.Execute("UPDATE adapters SET changed = @generation, next_version = @next, active = @active, deleted_at = NULL WHERE tenant = @Tenant AND name = @Name",
                new { generation, next = added.Number + 1, active, added.Tenant, added.Name }, t);
            Note(t, version.Tenant, version.CreatedBy, "upload", version.Name, null, Label(added.Number), null);
            if (active != adapter?.Active) Note(t, version.Tenant, version.CreatedBy, "activate", version.Name, null, Label(active), "the first version");
            return (added, true);
        });

    public Change Activate(string tenant, string name, long etag, long number, string who, string? why) =>
        Move(tenant, name, etag, (t, adapter) =>
        {
            if (!Has(t, adapter, number)) return null;
            if (adapter.Active == number) return adapter;
            Note(t, tenant, who, "activate", name, Label(adapter.Active), Label(number), why);
            var tried = adapter.Canary == number;          // its trial is over
            return adapter with { Active = number, Previous = adapter.Active ?? adapter.Previous, Canary = tried ? null : adapter.Canary, Share = tried ? null : adapter.Share };
        }, otherwise: Change.NoVersion);

    public Change SetCanary(string tenant, string name, long etag, long number, int share, string who, string? why) =>
        Move(tenant, name, etag, (t, adapter) =>
        {
            if (!Has(t, adapter, number)) return null;
            Note(t, tenant, who, "canary", name, Trial(adapter), Trial(adapter with { Canary = number, Share = share }), why);
            return adapter with { Canary = number, Share = share };
        }, otherwise: Change.NoVersion);

    public Change EndCanary(string tenant, string name, long etag, string who) =>
        Move(tenant, name, etag, (t, adapter) =>
        {
            if (adapter.Canary is null) return adapter;
            Note(t, tenant, who, "canary_end", name, Trial(adapter), null, null);
            return adapter with { Canary = null, Share = null };
        });

    /// <summary>What was active before is active again, and the other way round; a canary ends.</summary>
    public Change RollBack(string tenant, string name, long etag, string who, string? why) =>
        Move(tenant, name, etag, (t, adapter) =>
        {
            if (adapter.Previous is null) return null;
            Note(t, tenant, who, "rollback", name, Label(adapter.Active), Label(adapter.Previous), why);
            return adapter with { Active = adapter.Previous, Previous = adapter.Active, Canary = null, Share = null };
        }, otherwise: Change.Conflict);

    public Change DeleteVersion(string tenant, string name, long number, string who) =>
        database.Change((t, generation) =>
        {
            if (Locked(t, tenant, name) is not { DeletedAt: null } adapter) return Change.NotFound;
            if (!Has(t, adapter, number)) return Change.NoVersion;
            if (adapter.Active == number || adapter.Canary == number) return Change.Conflict;
            t.Connection!.Execute("DELETE FROM versions WHERE tenant = @tenant AND name = @name AND number = @number", new { tenant, name, number }, t);
            Write(t, adapter with { Previous = adapter.Previous == number ? null : adapter.Previous }, generation);
            Note(t, tenant, who, "delete_version", name, Label(number), null, null);
            return Change.Done;
        });

    public Change DeleteAdapter(string tenant, string name, string who) =>
        database.Change((t, generation) =>
        {
            if (Locked(t, tenant, name) is not { DeletedAt: null } adapter) return Change.NotFound;
            t.Connection!.Execute("DELETE FROM versions WHERE tenant = @tenant AND name = @name", new { tenant, name }, t);
            Write(t, adapter with { Active = null, Previous = null, Canary = null, Share = null, Pinned = 0, DeletedAt = Now() }, generation);
            Note(t, tenant, who, "delete_adapter", name, Label(adapter.Active), null, null);
            return Change.Done;
        });

    /// <summary>The active version stays in memory from now on, whichever that is, or takes turns again.</summary>
    /// <param name="share">Bytes that the active versions of the tenant's pinned adapters may take together.</param>
    /// <returns><see cref="Change.NoVersion"/>: nothing is active; <see cref="Change.Conflict"/>: there is not so much room.</returns>
    public Change Pin(string tenant, string name, bool pinned, long share, string who) =>
        database.Change((t, generation) =>
        {
            if (Locked(t, tenant, name) is not { DeletedAt: null } adapter) return Change.NotFound;
            if (adapter.Pinned != 0 == pinned) return Change.Done;
            if (pinned && adapter.Active is null) return Change.NoVersion;
            if (pinned && t.Connection!.QuerySingle<long>(Pinned, new { tenant, name }, t) > share) return Change.Conflict;
            Write(t, adapter with { Pinned = pinned ? 1 : 0 }, generation);
            Note(t, tenant, who, pinned ? "pin" : "unpin", name, null, null, null);
            return Change.Done;
        });

    /// <summary>An upload that was refused leaves only this.</summary>
    public void NoteRefusal(string tenant, string who, string name, string codes) =>
        database.Change((t, _) => Note(t, tenant, who, "refused", name, null, null, codes));

    // ---- Keys

    public IReadOnlyList<StoredKey> Keys(string tenant) =>
        database.Read(c => c.Query<StoredKey>("SELECT id, hash, tenant, role, label, created_at, changed, revoked_at FROM keys WHERE tenant = @tenant AND revoked_at IS NULL ORDER BY created_at, id", new { tenant }).AsList());

    public StoredKey AddKey(string tenant, string hash, string role, string label, string who) =>
        database.Change((t, generation) =>
        {
            var key = new StoredKey(Guid.NewGuid().ToString("N"), hash, tenant, role, label, Now(), generation, null);
            t.Connection!.Execute("INSERT INTO keys (id, hash, tenant, role, label, created_at, changed) VALUES (@Id, @Hash, @Tenant, @Role, @Label, @CreatedAt, @Changed)", key, t);
            Note(t, tenant, who, "key_created", null, null, $"{label} ({role})", null);
            return key;
        });

    public Change RevokeKey(string tenant, string id, string who) =>
        database.Change((t, generation) =>
        {
            var label = t.Connection!.QuerySingleOrDefault<string>("UPDATE keys SET revoked_at = @now, changed = @generation WHERE tenant = @tenant AND id = @id AND revoked_at IS NULL RETURNING label", new { now = Now(), generation, tenant, id }, t);
            if (label is null) return Change.NotFound;
            Note(t, tenant, who, "key_revoked", null, label, null, null);
            return Change.Done;
        });

    // ---- Within a change

    private Change Move(string tenant, string name, long etag, Func<DbTransaction, StoredAdapter, StoredAdapter?> move, Change otherwise = Change.NotFound) =>
        database.Change((t, generation) =>
        {
            if (Locked(t, tenant, name) is not { DeletedAt: null } adapter) return Change.NotFound;
            if (adapter.Changed != etag) return Change.Stale;
            if (move(t, adapter) is not { } moved) return otherwise;
            if (moved != adapter) Write(t, moved, generation);
            return Change.Done;
        });

    private static StoredAdapter? Locked(DbTransaction t, string tenant, string name) =>
        t.Connection!.QuerySingleOrDefault<StoredAdapter>($"{Adapters} WHERE tenant = @tenant AND name = @name", new { tenant, name }, t);

    private static void Write(DbTransaction t, StoredAdapter adapter, long generation) =>
        t.Connection!.Execute("UPDATE adapters SET changed = @Changed, active = @Active, previous = @Previous, canary = @Canary, share = @Share, deleted_at = @DeletedAt, pinned = @Pinned WHERE tenant = @Tenant AND name = @Name", adapter with { Changed = generation }, t);

    private static bool Has(DbTransaction t, StoredAdapter adapter, long number) =>
        t.Connection!.QuerySingle<long>("SELECT COUNT(*) FROM versions WHERE tenant = @Tenant AND name = @Name AND number = @number", new { adapter.Tenant, adapter.Name, number }, t) > 0;

    private static string? Trial(StoredAdapter adapter) => adapter.Canary is null ? null : string.Create(CultureInfo.InvariantCulture, $"{Label(adapter.Canary)} {adapter.Share} %");

    private bool Note(DbTransaction t, string tenant, string who, string action, string? adapter, string? from, string? to, string? why)
    {
        t.Connection!.Execute("INSERT INTO audit (tenant, id, at, who, action, adapter, old_value, new_value, why) SELECT @tenant, COALESCE(MAX(id), 0) + 1, @at, @who, @action, @adapter, @from, @to, @why FROM audit WHERE tenant = @tenant",
            new { tenant, at = Now(), who, action, adapter, from, to, why }, t);
        return true;
    }

    private long Now() => time.GetUtcNow().ToUnixTimeMilliseconds();
}
