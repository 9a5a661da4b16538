using System.Globalization;
using Microsoft.Extensions.Configuration.Json;
using Microsoft.Extensions.Options;
using TenantLora.ChatHost.Runtimes;
using TenantLora.ChatHost.Store;

namespace TenantLora.ChatHost;

/// <summary>What a host does of the whole.</summary>
internal enum HostRole
{
    /// <summary>Everything, with the engine in its process.</summary>
    All,

    /// <summary>Serves people and their apps, and reaches runtimes over HTTP.</summary>
    Web,

    /// <summary>Runs the engine for Web hosts.</summary>
    Runtime,
}

/// <summary>The section <c>TenantLora</c> of the configuration. Checked at start: one bad value stops it, and all are named at once.</summary>
internal sealed class TenantLoraOptions
{
    public const string Section = "TenantLora";

    public HostRole Role { get; set; }

    /// <summary>By which Web and Runtime hosts know each other. It opens every tenant's door at a Runtime host, so it is kept like a password.</summary>
    public string? ServiceKey { get; set; }

    /// <summary>A Web host's: addresses of Runtime hosts, all with the same base model.</summary>
    public string[] Runtimes { get; set; } = [];

    /// <summary>A Runtime host's: the address of the web side, which has adapters' bytes.</summary>
    public string? AdaptersFrom { get; set; }

    /// <summary>A Runtime host's: what the adapters that it has fetched may take on its disk, in MiB.</summary>
    public int AdapterDiskMegabytes { get; set; } = 10_240;

    /// <summary>A model folder. Relative paths here and in <see cref="TenantOptions.Adapters"/> are looked up by <see cref="Places.Find"/>.</summary>
    public string Model { get; set; } = "models/demo-7m";

    /// <summary>The name callers use for the base model; null: the folder's name.</summary>
    public string? ModelName { get; set; }

    // From here to ChatTemplate the engine's options of the same names, where they are explained: see EngineOptions, which also checks their upper limits.

    /// <summary><c>auto</c>, <c>cpu</c>, <c>cuda</c> or <c>cuda:N</c>.</summary>
    public string Device { get; set; } = "auto";

    public int Threads { get; set; }
    public int CacheTokens { get; set; }
    public int AdapterMemoryMegabytes { get; set; }

    /// <summary>Host memory for adapters, in MiB; 0: a quarter of the machine's. Those beyond it are read from the disk again when asked for.</summary>
    public int AdapterHostMegabytes { get; set; }

    /// <summary>What adapters of one tenant may take on the disk, in MiB; 0: no limit. <see cref="TenantOptions.AdapterQuotaMegabytes"/> overrides it.</summary>
    public int AdapterQuotaMegabytes { get; set; } = 10_240;

    /// <summary>How much of the memory for adapters, the host's and the device's, pinned ones may take in all; each tenant has an equal share of it. 0: nobody pins.</summary>
    public int AdapterPinPercent { get; set; } = 50;

    public int ContextLength { get; set; }
    public int StepTokens { get; set; }
    public int MaxSequences { get; set; } = 256;
    public int MaxQueued { get; set; } = 1024;
    public int MaxAdapterRank { get; set; } = 256;
    public string? ChatTemplate { get; set; }

    /// <summary>Where the host keeps what it makes: adapters, the store, demo keys and the keys of session tokens. Relative to the current directory.</summary>
    public string Data { get; set; } = "data";

    /// <summary>A PostgreSQL connection string for what the host keeps; null: a SQLite file in <see cref="Data"/>.</summary>
    public string? Database { get; set; }

    /// <summary>A Redis (<c>host:port,password=…</c>) through which hosts on one store hear of each other's changes at once; null: within half a second.</summary>
    public string? Redis { get; set; }

    /// <summary>Makes and prints a key for each tenant, and lets the page choose a tenant without one. For trying things out.</summary>
    public bool Demo { get; set; } = true;

    /// <summary>The tenants by id.</summary>
    public Dictionary<string, TenantOptions> Tenants { get; set; } = new(StringComparer.Ordinal);

    /// <summary>Web origins (<c>https://host</c>) other than this host's own that may call it from a browser.</summary>
    public string[] AllowedOrigins { get; set; } = [];

    /// <summary>Answers that one tenant may have in the making at once, over /v1 and the hub together.</summary>
    public int MaxConcurrentPerTenant { get; set; } = 128;

    /// <summary>How long a stop waits for running answers.</summary>
    public int DrainSeconds { get; set; } = 25;

    /// <summary>How long a hub generation can still be attached to after its end.</summary>
    public int KeepSeconds { get; set; } = 60;

    /// <summary>A silent stream carries a comment this often, so that no proxy on the way takes it for dead.</summary>
    public double KeepAliveSeconds { get; set; } = 15;

    /// <summary>Bytes that a tenant's adapters may take on the disk; null: no limit.</summary>
    public long? AdapterQuota(string tenant) =>
        (Tenants.GetValueOrDefault(tenant)?.AdapterQuotaMegabytes ?? AdapterQuotaMegabytes) is > 0 and var megabytes ? (long)megabytes << 20 : null;
}

/// <summary>One tenant.</summary>
internal sealed class TenantOptions
{
    /// <summary>What people see.</summary>
    public string Name { get; set; } = "";

    /// <summary>Adapter folders by the name that the tenant gives as <c>model</c>.</summary>
    public Dictionary<string, string> Adapters { get; set; } = new(StringComparer.Ordinal);

    /// <summary>SHA-256 of each valid key, in hex.</summary>
    public string[] KeyHashes { get; set; } = [];

    /// <summary>The same of keys that may also change the tenant's adapters and keys.</summary>
    public string[] AdminKeyHashes { get; set; } = [];

    /// <summary>This tenant's own quota, in MiB; 0: no limit.</summary>
    public int? AdapterQuotaMegabytes { get; set; }
}

/// <summary>Finds everything wrong with the options in one pass.</summary>
internal sealed class TenantLoraOptionsCheck(IConfiguration configuration) : IValidateOptions<TenantLoraOptions>
{
    private const int ShortestServiceKey = 32, LongestServiceKey = 1024;

    private static readonly string[] OfEngines =
    [
        nameof(TenantLoraOptions.Model), nameof(TenantLoraOptions.ModelName), nameof(TenantLoraOptions.ChatTemplate), nameof(TenantLoraOptions.Device), nameof(TenantLoraOptions.Threads),
        nameof(TenantLoraOptions.CacheTokens), nameof(TenantLoraOptions.AdapterMemoryMegabytes), nameof(TenantLoraOptions.AdapterHostMegabytes), nameof(TenantLoraOptions.ContextLength),
        nameof(TenantLoraOptions.StepTokens), nameof(TenantLoraOptions.MaxSequences), nameof(TenantLoraOptions.MaxQueued), nameof(TenantLoraOptions.MaxAdapterRank),
    ];

    private static readonly string[] OfRuntimes = [nameof(TenantLoraOptions.AdaptersFrom), nameof(TenantLoraOptions.AdapterDiskMegabytes)];

    private static readonly string[] OfPeople =
    [
        nameof(TenantLoraOptions.Tenants), nameof(TenantLoraOptions.Demo), nameof(TenantLoraOptions.Database), nameof(TenantLoraOptions.Redis), nameof(TenantLoraOptions.AllowedOrigins),
        nameof(TenantLoraOptions.KeepSeconds), nameof(TenantLoraOptions.MaxConcurrentPerTenant), nameof(TenantLoraOptions.AdapterQuotaMegabytes), nameof(TenantLoraOptions.AdapterPinPercent),
    ];

    public ValidateOptionsResult Validate(string? name, TenantLoraOptions options)
    {
        List<string> findings = [];
        UnknownNames(findings);
        Roles(options, findings);
        Numbers(options, findings);
        if (string.IsNullOrWhiteSpace(options.Model)) Found(findings, nameof(options.Model), "a model folder", "nothing");
        if (options.Redis is { } redis && !RedisCache.CanRead(redis, out var why)) Found(findings, nameof(options.Redis), "host:port,password=…", why);
        if (string.IsNullOrWhiteSpace(options.Data)) Found(findings, nameof(options.Data), "a folder", "nothing");
        foreach (var origin in options.AllowedOrigins)
            if (!Uri.TryCreate(origin, UriKind.Absolute, out var uri) || uri.GetLeftPart(UriPartial.Authority) != origin)
                Found(findings, nameof(options.AllowedOrigins), "origins like https://chat.example", origin);
        foreach (var (id, tenant) in options.Tenants) Tenant(id, tenant, findings);
        if (options.Role != HostRole.Runtime && !options.Demo && options.Tenants.Values.All(t => t.KeyHashes.Length + t.AdminKeyHashes.Length == 0))
            Found(findings, "Tenants", "at least one tenant with KeyHashes or AdminKeyHashes when Demo is false", "none, so nobody could sign in");
        return findings.Count == 0 ? ValidateOptionsResult.Success : ValidateOptionsResult.Fail(findings);
    }

    // The binder passes over a misspelt name; an operator should hear of it.
    private void UnknownNames(List<string> findings)
    {
        foreach (var key in configuration.GetSection(TenantLoraOptions.Section).GetChildren().Select(c => c.Key))
            if (typeof(TenantLoraOptions).GetProperties().All(p => !p.Name.Equals(key, StringComparison.OrdinalIgnoreCase)))
                findings.Add($"{TenantLoraOptions.Section}:{key}: there is no such option.");
    }

    private void Roles(TenantLoraOptions o, List<string> findings)
    {
        string[] meaningless = o.Role switch
        {
            HostRole.Web => [.. OfEngines, .. OfRuntimes],
            HostRole.Runtime => [.. OfPeople, nameof(o.Runtimes)],
            _ => [.. OfRuntimes, nameof(o.Runtimes), nameof(o.ServiceKey)],
        };
        foreach (var option in meaningless.Where(IsSetForThisHost)) findings.Add($"{TenantLoraOptions.Section}:{option}: has no meaning for a host of role {o.Role}; leave it out.");
        if (!Enum.IsDefined(o.Role)) Found(findings, nameof(o.Role), string.Join(", ", Enum.GetNames<HostRole>()), o.Role.ToString());
        if (o.Role is not (HostRole.Web or HostRole.Runtime)) return;

        if (o.ServiceKey is not { Length: >= ShortestServiceKey and <= LongestServiceKey } key) Found(findings, nameof(o.ServiceKey), $"{ShortestServiceKey} to {LongestServiceKey} characters", o.ServiceKey is null ? "nothing" : $"{o.ServiceKey.Length}");
        else if (!key.All(c => c is > ' ' and < '\x7f')) Found(findings, nameof(o.ServiceKey), "printable ASCII without spaces", "other characters");
        if (o.Role == HostRole.Runtime)
        {
            if (!IsAddress(o.AdaptersFrom)) Found(findings, nameof(o.AdaptersFrom), "the web side's address, like http://web:8080", o.AdaptersFrom ?? "nothing");
            return;
        }
        if (o.Runtimes is []) Found(findings, nameof(o.Runtimes), "addresses of one or more Runtime hosts, like http://runtime:8080", "none");
        foreach (var address in o.Runtimes.Where(a => !IsAddress(a))) Found(findings, nameof(o.Runtimes), "addresses like http://runtime:8080", address);
        foreach (var twice in o.Runtimes.GroupBy(a => a.TrimEnd('/'), StringComparer.OrdinalIgnoreCase).Where(g => g.Count() > 1)) Found(findings, nameof(o.Runtimes), "each address once", $"{twice.Key} {twice.Count()} times");
        foreach (var id in o.Tenants.Keys.Where(id => Uri.EscapeDataString(id).Length > Service.LongestTenant)) Found(findings, $"Tenants:{id[..16]}…", $"an id of at most {Service.LongestTenant} characters when percent-encoded", $"{Uri.EscapeDataString(id).Length}");
    }

    /// <summary>One appsettings.json may serve hosts of all roles; what is set in another place is meant for this one.</summary>
    private bool IsSetForThisHost(string option) =>
        configuration is IConfigurationRoot root && root.Providers.Where(p => p is not JsonConfigurationProvider).Any(p => p.GetChildKeys([], TenantLoraOptions.Section).Contains(option, StringComparer.OrdinalIgnoreCase));

    private static bool IsAddress(string? text) => Uri.TryCreate(text, UriKind.Absolute, out var uri) && uri is { Scheme: "http" or "https", Query: "", Fragment: "", UserInfo: "" };

    private static void Numbers(TenantLoraOptions o, List<string> findings)
    {
        AtLeast(nameof(o.Threads), o.Threads, 0);
        AtLeast(nameof(o.CacheTokens), o.CacheTokens, 0);
        AtLeast(nameof(o.AdapterMemoryMegabytes), o.AdapterMemoryMegabytes, 0);
        AtLeast(nameof(o.AdapterHostMegabytes), o.AdapterHostMegabytes, 0);
        AtLeast(nameof(o.AdapterDiskMegabytes), o.AdapterDiskMegabytes, 1);
        AtLeast(nameof(o.AdapterQuotaMegabytes), o.AdapterQuotaMegabytes, 0);
        if (o.AdapterPinPercent is < 0 or > 90) Found(findings, nameof(o.AdapterPinPercent), "0 to 90", o.AdapterPinPercent.ToString(CultureInfo.InvariantCulture));
        AtLeast(nameof(o.ContextLength), o.ContextLength, 0);
        AtLeast(nameof(o.StepTokens), o.StepTokens, 0);
        AtLeast(nameof(o.MaxSequences), o.MaxSequences, 1);
        AtLeast(nameof(o.MaxQueued), o.MaxQueued, 1);
        AtLeast(nameof(o.MaxAdapterRank), o.MaxAdapterRank, 1);
        AtLeast(nameof(o.MaxConcurrentPerTenant), o.MaxConcurrentPerTenant, 1);
        AtLeast(nameof(o.DrainSeconds), o.DrainSeconds, 0);
        AtLeast(nameof(o.KeepSeconds), o.KeepSeconds, 0);
        if (!(o.KeepAliveSeconds is > 0 and <= 3600))
            Found(findings, nameof(o.KeepAliveSeconds), "seconds above 0, up to 3600", o.KeepAliveSeconds.ToString(CultureInfo.InvariantCulture));

        void AtLeast(string option, int value, int least)
        {
            if (value < least) Found(findings, option, $"{least} or more", value.ToString(CultureInfo.InvariantCulture));
        }
    }

    private static void Tenant(string id, TenantOptions tenant, List<string> findings)
    {
        if (string.IsNullOrWhiteSpace(tenant.Name)) Found(findings, $"Tenants:{id}:Name", "the name people see", "nothing");
        foreach (var (adapter, directory) in tenant.Adapters)
            if (string.IsNullOrWhiteSpace(directory)) Found(findings, $"Tenants:{id}:Adapters:{adapter}", "an adapter folder", "nothing");
        if (tenant.AdapterQuotaMegabytes < 0) Found(findings, $"Tenants:{id}:AdapterQuotaMegabytes", "0 or more", tenant.AdapterQuotaMegabytes.Value.ToString(CultureInfo.InvariantCulture));
        foreach (var (option, hashes) in new[] { (nameof(tenant.KeyHashes), tenant.KeyHashes), (nameof(tenant.AdminKeyHashes), tenant.AdminKeyHashes) })
            foreach (var hash in hashes)
                if (hash.Length != 64 || !hash.All(char.IsAsciiHexDigit)) Found(findings, $"Tenants:{id}:{option}", "SHA-256 as 64 hex digits", $"{hash.Length} characters");
    }

    private static void Found(List<string> findings, string option, string expected, string found) =>
        findings.Add($"{TenantLoraOptions.Section}:{option}: expected {expected}, found {found}.");
}
