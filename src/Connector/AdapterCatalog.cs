using System.Collections.Immutable;
using TenantLora.Runtime;

namespace TenantLora.Connector;

/// <summary>A model that a tenant may name.</summary>
/// <param name="Name">What the tenant calls it.</param>
/// <param name="Digest">The adapter's digest; null is the base model.</param>
public sealed record CatalogModel(string Name, string? Digest);

/// <summary>
/// Which names each tenant may use for which adapter, for runtimes in this process. Filled by trusted code only. Readers see one
/// immutable snapshot; whoever resolved a name keeps the version that it meant at that moment.
/// </summary>
/// <param name="baseModel">The base model's name, open to every tenant.</param>
public sealed class AdapterCatalog(string baseModel)
{
    private ImmutableDictionary<string, ImmutableDictionary<string, string>> tenants = ImmutableDictionary.Create<string, ImmutableDictionary<string, string>>(StringComparer.Ordinal);

    /// <summary>The base model's name.</summary>
    public string BaseModel { get; } = baseModel;

    /// <summary>Lets <paramref name="tenant"/> use the adapter with this digest under this name, in place of what the name meant before.</summary>
    /// <exception cref="ArgumentException">The name is the base model's.</exception>
    public void Set(string tenant, string name, string digest)
    {
        if (name == BaseModel) throw new ArgumentException($"'{name}' is the base model's name.", nameof(name));
        ImmutableInterlocked.AddOrUpdate(ref tenants, tenant,
            _ => ImmutableDictionary.Create<string, string>(StringComparer.Ordinal).Add(name, digest),
            (_, models) => models.SetItem(name, digest));
    }

    /// <summary>Takes a name away again.</summary>
    public bool Remove(string tenant, string name) =>
        tenants.TryGetValue(tenant, out var models) && models.ContainsKey(name)
        && ImmutableInterlocked.Update(ref tenants, all => all.TryGetValue(tenant, out var now) ? all.SetItem(tenant, now.Remove(name)) : all);

    /// <summary>The model that <paramref name="tenant"/> means by <paramref name="name"/>, or null: another tenant's name is one that does not exist.</summary>
    public CatalogModel? Find(string tenant, string name) =>
        name == BaseModel ? new CatalogModel(name, null)
        : tenants.TryGetValue(tenant, out var models) && models.TryGetValue(name, out var digest) ? new CatalogModel(name, digest)
        : null;

    /// <summary>As <see cref="Find"/>; null names the first of <see cref="List"/>.</summary>
    /// <exception cref="TenantLoraException"><see cref="ErrorCodes.ModelNotFound"/>, in the same words whether the name exists elsewhere or nowhere.</exception>
    public CatalogModel Resolve(string tenant, string? name) =>
        name is null ? List(tenant)[0]
        : Find(tenant, name)
          ?? throw new TenantLoraException(ErrorCodes.ModelNotFound, $"The model '{name}' does not exist or you do not have access to it.") { Parameter = "model" };

    /// <summary>What <paramref name="tenant"/> may name: its adapters by name, then the base model.</summary>
    public IReadOnlyList<CatalogModel> List(string tenant)
    {
        var own = tenants.GetValueOrDefault(tenant) ?? ImmutableDictionary<string, string>.Empty;
        return [.. own.Select(m => new CatalogModel(m.Key, m.Value)).OrderBy(m => m.Name, StringComparer.Ordinal), new CatalogModel(BaseModel, null)];
    }
}
