using System.Collections.Immutable;
using System.Security.Cryptography;
using System.Text.Json;
using Microsoft.Extensions.Options;

namespace TenantLora.ChatHost.Security;

/// <summary>A tenant as the host knows it.</summary>
internal sealed record Tenant(string Id, string Name);

/// <summary>Who the tenants are and which key is whose. In demo mode it makes a key for each at the first start and keeps them in the data folder.</summary>
internal sealed class TenantDirectory
{
    private readonly ImmutableDictionary<string, Tenant> tenants;
    private readonly Dictionary<string, (byte[] Hash, Tenant Tenant)> keys = new(StringComparer.Ordinal); // by hash in hex

    public TenantDirectory(IOptions<TenantLoraOptions> options)
    {
        tenants = options.Value.Tenants.ToImmutableDictionary(t => t.Key, t => new Tenant(t.Key, t.Value.Name), StringComparer.Ordinal);
        DemoKeys = options.Value.Demo ? KeepDemoKeys(Path.GetFullPath(options.Value.Data), tenants.Keys) : ImmutableDictionary<string, string>.Empty;
        foreach (var (id, tenant) in tenants)
        {
            foreach (var hash in options.Value.Tenants[id].KeyHashes) Add(Convert.FromHexString(hash), tenant);
            if (DemoKeys.TryGetValue(id, out var key)) Add(ApiKey.Hash(key), tenant);
        }
    }

    public IEnumerable<Tenant> All => tenants.Values.OrderBy(t => t.Id, StringComparer.Ordinal);

    /// <summary>Keys by tenant; empty outside demo mode.</summary>
    public IReadOnlyDictionary<string, string> DemoKeys { get; }

    public Tenant? Find(string id) => tenants.GetValueOrDefault(id);

    /// <summary>Whose key it is. Looked up by hash, so time tells nothing about how near a guess came.</summary>
    public Tenant? FindByKey(string key)
    {
        var hash = ApiKey.Hash(key);
        return keys.TryGetValue(Convert.ToHexStringLower(hash), out var entry) && CryptographicOperations.FixedTimeEquals(hash, entry.Hash) ? entry.Tenant : null;
    }

    private void Add(byte[] hash, Tenant tenant)
    {
        if (!keys.TryAdd(Convert.ToHexStringLower(hash), (hash, tenant)))
            throw new OptionsValidationException("", typeof(TenantLoraOptions), [$"{TenantLoraOptions.Section}:Tenants:{tenant.Id}:KeyHashes: this hash is listed twice; a key belongs to one tenant."]);
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
