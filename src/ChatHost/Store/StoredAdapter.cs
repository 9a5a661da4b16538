namespace TenantLora.ChatHost.Store;

/// <summary>An adapter's row: what its aliases mean. Versions are numbers here and <c>v3</c> outside.</summary>
/// <param name="Changed">The store's generation when it last changed: its ETag.</param>
/// <param name="Pinned">1: its active version stays in memory.</param>
internal sealed record StoredAdapter(string Tenant, string Name, long Changed, long CreatedAt, long NextVersion, long? Active, long? Previous, long? Canary, long? Share, long? DeletedAt, long Pinned);

/// <summary>One immutable version.</summary>
/// <param name="Findings">As JSON.</param>
/// <param name="CreatedAt">Unix time in ms, here and elsewhere.</param>
/// <param name="StoredBytes">What its two files take on the disk.</param>
internal sealed record StoredVersion(string Tenant, string Name, long Number, string Digest, string Kind, long Rank, long Bytes, long ExpandedBytes, string? BaseModel, string Findings, long CreatedAt, string CreatedBy, long StoredBytes);

/// <summary>Who did what, when, and why.</summary>
internal sealed record AuditEntry(long Id, long At, string Who, string Action, string? Adapter, string? OldValue, string? NewValue, string? Why);

/// <summary>A key as it is kept: its hash alone.</summary>
internal sealed record StoredKey(string Id, string Hash, string Tenant, string Role, string Label, long CreatedAt, long Changed, long? RevokedAt);
