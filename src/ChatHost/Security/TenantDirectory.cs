using System.Collections.Concurrent;
using System.Collections.Immutable;
using System.Security.Cryptography;
using System.Text.Json;
using Microsoft.Extensions.Options;
using TenantLora.ChatHost.Store;

namespace TenantLora.ChatHost.Security;

/// <summary>A tenant as the host knows it.</summary>
internal sealed record Tenant(string Id, string Name);

/// <summary>What a key may do.</summary>
internal enum Role
{
    /// <summary>Ask for answers.</summary>
    Member,

    /// <summary>Also bring, activate and remove adapters and keys.</summary>
    Admin,
}

/// <summary>Who is behind a key.</summary>
/// <param name="Who">Which key it is, in words that give none away.</param>
internal sealed record Caller(Tenant Tenant, Role Role, string Who);

/// <summary>
/// Who the tenants are and which key is whose: the configuration's keys, those that admins made, which the store keeps, and in demo mode one for each
/// tenant, made at the first start and kept in the data folder.
/// </summary>
internal sealed class TenantDirectory
{
    private readonly ImmutableDictionary<string, Tenant> tenants;
    private readonly Dictionary<string, (byte[] Hash, Caller Caller)> configured = new(StringComparer.Ordinal);       // by hash in hex
    private readonly ConcurrentDictionary<string, (byte[] Hash, Caller Caller)> stored = new(StringComparer.Ordinal);

    public TenantDirectory(IOptions<TenantLoraOptions> options)
    {
        tenants = options.Value.Tenants.ToImmutableDictionary(t => t.Key, t => new Tenant(t.Key, t.Value.Name), StringComparer.Ordinal);
        DemoKeys = options.Value.Demo ? KeepDemoKeys(Path.GetFullPath(options.Value.Data), tenants.Keys) : ImmutableDictionary<string, string>.Empty;
        foreach (var (id, tenant) in tenants)
        {
            foreach (var hash in options.Value.Tenants[id].KeyHashes) Add(hash, new Caller(tenant, Role.Member, $"key {hash[..8].ToLowerInvariant()}…"));
            foreach (var hash in options.Value.Tenants[id].AdminKeyHashes) Add(hash, new Caller(tenant, Role.Admin, $"key {hash[..8].ToLowerInvariant()}…"));
            if (DemoKeys.TryGetValue(id, out var key)) Add(Convert.ToHexString(ApiKey.Hash(key)), new Caller(tenant, Role.Admin, "demo"));
        }
    }

    public IEnumerable<Tenant> All => tenants.Values.OrderBy(t => t.Id, StringComparer.Ordinal);

    /// <summary>Keys by tenant; empty outside demo mode.</summary>
    public IReadOnlyDictionary<string, string> DemoKeys { get; }

    public Tenant? Find(string id) => tenants.GetValueOrDefault(id);

    /// <summary>The keys that are not the store's.</summary>
    public IEnumerable<Caller> Configured(string tenant) => configured.Values.Select(k => k.Caller).Where(c => c.Tenant.Id == tenant);

    /// <summary>Whose key it is. Looked up by hash, so time tells nothing about how near a guess came.</summary>
    public Caller? FindByKey(string key)
    {
        var hash = ApiKey.Hash(key);
        var name = Convert.ToHexStringLower(hash);
        return (configured.TryGetValue(name, out var entry) || stored.TryGetValue(name, out entry)) && CryptographicOperations.FixedTimeEquals(hash, entry.Hash) ? entry.Caller : null;
    }

    /// <summary>The store's keys that have changed.</summary>
    public void Follow(IEnumerable<StoredKey> keys)
    {
        foreach (var key in keys)
            if (key.RevokedAt is null && tenants.TryGetValue(key.Tenant, out var tenant) && Enum.TryParse<Role>(key.Role, ignoreCase: true, out var role))
                stored[key.Hash] = (Convert.FromHexString(key.Hash), new Caller(tenant, role, key.Label));
            else stored.TryRemove(key.Hash, out _);
    }

    private void Add(string hash, Caller caller)
    {
        if (!configured.TryAdd(hash.ToLowerInvariant(), (Convert.FromHexString(hash), caller)))
            throw new OptionsValidationException("", typeof(TenantLoraOptions), [$"{TenantLoraOptions.Section}:Tenants:{caller.Tenant.Id}:KeyHashes: this hash is listed twice; a key belongs to one tenant, in one role."]);
    }

    private static ImmutableDictionary<string, string> KeepDemoKeys(string data, IEnumerable<string> ids)
    {
        var file = Path.Combine(data, "demo-keys.json");
        var kept = Read(file);
        var missing = ids.Except(kept.Keys).ToArray();
        if (missing.Length == 0) return kept;
        kept = kept.AddRange(missing.Select(id => KeyValuePair.Create(id, ApiKey.Create())));
        PrivateFiles.Write(file, JsonSerializer.SerializeToUtf8Bytes(new SortedDictionary<string, string>(kept, StringComparer.Ordinal), HostJson.Wire.SortedDictionaryStringString));
        return kept;
    }

    private static ImmutableDictionary<string, string> Read(string file)
    {
        var none = ImmutableDictionary.Create<string, string>(StringComparer.Ordinal);
        try
        {
            return File.Exists(file) ? none.AddRange(JsonSerializer.Deserialize(File.ReadAllBytes(file), HostJson.Wire.SortedDictionaryStringString) ?? []) : none;
        }
        catch (JsonException e)
        {
            throw new InvalidDataException($"{file}: expected a JSON object of keys by tenant, found: {e.Message} Delete the file to have new keys made.", e);
        }
    }
}
