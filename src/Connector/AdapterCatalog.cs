using System.Buffers.Binary;
using System.Collections.Immutable;
using System.Globalization;
using System.Security.Cryptography;
using System.Text;
using TenantLora.Runtime;

namespace TenantLora.Connector;

/// <summary>A model that a tenant may name.</summary>
/// <param name="Name">What the tenant calls it.</param>
/// <param name="Digest">The adapter's digest; null is the base model.</param>
/// <param name="Version">The adapter's version, <c>v3</c>; null is the base model.</param>
public sealed record CatalogModel(string Name, string? Digest, string? Version = null);

/// <summary>One of a tenant's adapters: immutable versions, and what its aliases mean now.</summary>
/// <param name="Versions">Digests by version, <c>v1</c>, <c>v2</c>…</param>
/// <param name="Active">The version that the plain name means; null: none yet.</param>
/// <param name="Previous">The version that was active before.</param>
/// <param name="Canary">The version that a share of conversations gets instead of the active one.</param>
public sealed record CatalogAdapter(ImmutableDictionary<string, string> Versions, string? Active, string? Previous = null, CatalogCanary? Canary = null);

/// <summary>A version on trial.</summary>
/// <param name="Version">Of the adapter.</param>
/// <param name="Share">Percent of conversations, 1 to 99.</param>
public sealed record CatalogCanary(string Version, int Share);

/// <summary>
/// Which names each tenant may use for which adapter, for runtimes in this process. Filled by trusted code only. Readers see one
/// immutable snapshot; whoever resolved a name keeps the version that it meant at that moment.
/// <para>
/// A name is an adapter's (<c>support</c>), or one of its versions, aliases or digests: <c>support@v3</c>, <c>support@active</c>,
/// <c>support@canary</c>, <c>support@previous</c>, <c>support@sha256:…</c>.
/// </para>
/// </summary>
/// <param name="baseModel">The base model's name, open to every tenant.</param>
public sealed class AdapterCatalog(string baseModel)
{
    private ImmutableDictionary<string, ImmutableDictionary<string, CatalogAdapter>> tenants = ImmutableDictionary.Create<string, ImmutableDictionary<string, CatalogAdapter>>(StringComparer.Ordinal);

    /// <summary>The base model's name.</summary>
    public string BaseModel { get; } = baseModel;

    /// <summary>Lets <paramref name="tenant"/> use the adapter with this digest under this name, in place of what the name meant before.</summary>
    /// <exception cref="ArgumentException">The name is the base model's.</exception>
    public void Set(string tenant, string name, string digest) =>
        Set(tenant, name, new CatalogAdapter(ImmutableDictionary.Create<string, string>(StringComparer.Ordinal).Add("v1", digest), "v1"));

    /// <summary>Lets <paramref name="tenant"/> use an adapter and its versions under this name, in place of what the name meant before.</summary>
    /// <exception cref="ArgumentException">The name is the base model's.</exception>
    public void Set(string tenant, string name, CatalogAdapter adapter)
    {
        if (name == BaseModel) throw new ArgumentException($"'{name}' is the base model's name.", nameof(name));
        ImmutableInterlocked.AddOrUpdate(ref tenants, tenant,
            _ => ImmutableDictionary.Create<string, CatalogAdapter>(StringComparer.Ordinal).Add(name, adapter),
            (_, models) => models.SetItem(name, adapter));
    }

    /// <summary>Takes a name away again.</summary>
    public bool Remove(string tenant, string name) =>
        tenants.TryGetValue(tenant, out var models) && models.ContainsKey(name)
        && ImmutableInterlocked.Update(ref tenants, all => all.TryGetValue(tenant, out var now) ? all.SetItem(tenant, now.Remove(name)) : all);

    /// <summary>The model that <paramref name="tenant"/> means by <paramref name="name"/>, or null: another tenant's name is one that does not exist.</summary>
    /// <param name="tenant">Whose name it is.</param>
    /// <param name="name">As a request gives it.</param>
    /// <param name="conversation">What tells the tenant's conversations apart, so that each stays with the active version or the canary; null: stays with the active one.</param>
    public CatalogModel? Find(string tenant, string name, string? conversation = null)
    {
        if (name == BaseModel) return new CatalogModel(name, null);
        if (!tenants.TryGetValue(tenant, out var models)) return null;
        if (models.TryGetValue(name, out var adapter)) return Version(adapter, IsOnTrial(adapter, tenant, name, conversation) ? adapter.Canary!.Version : adapter.Active);
        if (name.LastIndexOf('@') is var at && (at < 0 || !models.TryGetValue(name[..at], out adapter))) return null;
        var selector = name[(at + 1)..];
        return Version(adapter, selector switch
        {
            "active" => adapter.Active,
            "previous" => adapter.Previous,
            "canary" => adapter.Canary?.Version,
            _ when selector.StartsWith("sha256:", StringComparison.Ordinal) => adapter.Versions.FirstOrDefault(v => v.Value == selector).Key,
            _ => selector,
        });

        CatalogModel? Version(CatalogAdapter of, string? version) =>
            version is not null && of.Versions.TryGetValue(version, out var digest) ? new CatalogModel(name, digest, version) : null;
    }

    /// <summary>As <see cref="Find"/>; null names the first of <see cref="List"/>.</summary>
    /// <exception cref="TenantLoraException"><see cref="ErrorCodes.ModelNotFound"/>, in the same words whether the name exists elsewhere or nowhere.</exception>
    public CatalogModel Resolve(string tenant, string? name, string? conversation = null) =>
        Find(tenant, name ?? List(tenant)[0].Name, conversation)
        ?? throw new TenantLoraException(ErrorCodes.ModelNotFound, $"The model '{name}' does not exist or you do not have access to it.") { Parameter = "model" };

    /// <summary>What <paramref name="tenant"/> may name: its adapters with an active version by name, then the base model.</summary>
    public IReadOnlyList<CatalogModel> List(string tenant)
    {
        var own = tenants.GetValueOrDefault(tenant) ?? ImmutableDictionary<string, CatalogAdapter>.Empty;
        return
        [
            .. own.Where(m => m.Value.Active is not null).Select(m => new CatalogModel(m.Key, m.Value.Versions[m.Value.Active!], m.Value.Active)).OrderBy(m => m.Name, StringComparer.Ordinal),
            new CatalogModel(BaseModel, null),
        ];
    }

    /// <summary>
    /// What tells a request's conversation from others of its tenant: its first user turn, or the beginning of its prompt. Both stay the same while
    /// the conversation goes on.
    /// </summary>
    public static string? ConversationOf(GenerationRequest request) =>
        request.Messages?.FirstOrDefault(m => m.Role == "user")?.Content ?? (request.Prompt is { } prompt ? prompt[..Math.Min(prompt.Length, 64)] : null);

    private static bool IsOnTrial(CatalogAdapter adapter, string tenant, string name, string? conversation)
    {
        if (adapter.Canary is not { } canary || conversation is null) return false;
        var length = tenant.Length.ToString(CultureInfo.InvariantCulture);
        var hash = SHA256.HashData(Encoding.UTF8.GetBytes($"{length}:{tenant}:{name}@{canary.Version}:{conversation}"));
        return BinaryPrimitives.ReadUInt32BigEndian(hash) % 100 < canary.Share;
    }
}
