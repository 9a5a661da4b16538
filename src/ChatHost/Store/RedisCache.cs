using System.Collections.Concurrent;
using System.Globalization;
using System.Net;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using System.Text.Json.Serialization;
using Microsoft.Extensions.Options;
using StackExchange.Redis;
using TenantLora.ChatHost.Operations;

namespace TenantLora.ChatHost.Store;

/// <summary>What has changed, and in which generation of the store.</summary>
/// <param name="Name">The adapter; null: the tenant's keys.</param>
internal sealed record Announcement(long Generation, string Tenant, string? Name);

/// <summary>An adapter's metadata as of one generation.</summary>
internal sealed record AdapterRecord(StoredAdapter Adapter, IReadOnlyList<StoredVersion> Versions);

/// <summary>
/// Redis between hosts on one store: whoever changes an adapter puts its new metadata there and tells the others, who then need not ask the store. No
/// request waits for it and nothing lives in it alone: without it hosts hear of a change by asking the store twice a second.
/// <para>
/// Whatever it says is checked: records carry a code that only hosts on the same store can make, and name their adapter and generation. All of it is done on one thread of its own: calls that wait must not
/// hold threads of the pool, which is what their answers come by.
/// </para>
/// </summary>
internal sealed partial class RedisCache : IDisposable
{
    /// <summary>All that is ever sent; the README's ACL allows just that.</summary>
    private static readonly HashSet<string> Commands = ["AUTH", "CLIENT", "ECHO", "GET", "INFO", "PING", "PUBLISH", "QUIT", "SELECT", "SETEX", "SUBSCRIBE", "UNLINK", "UNSUBSCRIBE"];

    private const int MostRecordBytes = 256 << 10, MostMessageBytes = 1024, CodeBytes = 32;
    private static readonly TimeSpan Kept = TimeSpan.FromHours(1), Rest = TimeSpan.FromSeconds(1), Budget = TimeSpan.FromMilliseconds(50);

    private const CommandFlags Here = CommandFlags.NoRedirect;          // whatever it says of another address

    private readonly ConnectionMultiplexer? connection;
    private readonly byte[] secret = [];
    private readonly string space = "";
    private readonly TimeProvider time;
    private readonly ILogger log;
    private readonly BlockingCollection<Action> work = [];
    private readonly Thread? worker;
    private readonly HostMetrics metrics;
    private long restsUntil;
    private int isDown, isOld;

    public RedisCache(IOptions<TenantLoraOptions> options, Database database, HostMetrics metrics, TimeProvider time, ILogger<RedisCache> log)
    {
        (this.metrics, this.time, this.log) = (metrics, time, log);
        if (options.Value.Redis is not { } redis) return;
        secret = database.Secret();
        // Namespaced by version of the format and by store: two that share a Redis do not meet.
        space = $"tenantlora:2:{Convert.ToHexStringLower(SHA256.HashData(secret).AsSpan(0, 8))}";
        var configuration = ConfigurationOptions.Parse(redis);
        configuration.AbortOnConnectFail = false;                       // it may come later
        configuration.BacklogPolicy = BacklogPolicy.FailFast;
        configuration.ClientName = "tenantlora";
        configuration.SyncTimeout = configuration.AsyncTimeout = (int)Budget.TotalMilliseconds;
        configuration.ConnectTimeout = 1000;
        configuration.ConnectRetry = 1;
        configuration.HeartbeatInterval = Rest;
        configuration.ReconnectRetryPolicy = new LinearRetry((int)Rest.TotalMilliseconds);
        if (!configuration.Ssl) configuration.Tunnel = new RespGuard.Connections();
        configuration.DefaultVersion = new Version(6, 2, 20);           // of one that does not say
        configuration.CommandMap = CommandMap.Create(Commands, available: true);
        configuration.ConfigCheckSeconds = 0;                           // else it publishes and asks for what our rights need not have
        configuration.TieBreaker = "";
        configuration.ConfigurationChannel = "";
        connection = ConnectionMultiplexer.Connect(configuration);
        if (connection.IsConnected) CheckVersion();
        else Lost("no connection");
        connection.ConnectionFailed += (_, e) => Lost(e.FailureType.ToString());
        connection.ConnectionRestored += (_, _) =>
        {
            Back();
            CheckVersion();
        };
        worker = new Thread(() =>
        {
            foreach (var next in work.GetConsumingEnumerable())
                try
                {
                    next();
                }
                catch (Exception e)
                {
                    Failed("work", e);          // of a kind that nobody thought of: not worth the host
                }
        })
        { Name = "TenantLora Redis", IsBackground = true };
        worker.Start();
    }

    /// <summary>Whether it is a configuration to start with: whoever reaches a Redis without a password could read which adapters there are, and flood it.</summary>
    public static bool CanRead(string configuration, out string why)
    {
        try
        {
            var options = ConfigurationOptions.Parse(configuration);
            why = options.EndPoints.Count == 0 ? "no host" : string.IsNullOrEmpty(options.Password) && !options.EndPoints.All(IsHere) ? "a host elsewhere and no password" : "";
            return why.Length == 0;
        }
        catch (ArgumentException e)
        {
            // The text may hold a password; only the option's name is repeated.
            why = $"an unreadable text ({e.ParamName ?? "syntax"})";
            return false;
        }
    }

    private static bool IsHere(EndPoint end) => end switch
    {
        IPEndPoint ip => IPAddress.IsLoopback(ip.Address),
        DnsEndPoint dns => dns.Host.Equals("localhost", StringComparison.OrdinalIgnoreCase),
        _ => true,          // a socket among the files
    };

    /// <summary>Whether CVE-2025-49844 and its kin are mended in it. Distributions mend older ones and leave their numbers.</summary>
    internal static bool IsKnownGood(Version version) => (version.Major, version.Minor) switch
    {
        (6, 2) => version.Build >= 20,
        (7, 2) => version.Build >= 11,
        (7, 4) => version.Build >= 6,
        (8, 0) => version.Build >= 4,
        (8, 2) => version.Build >= 2,
        _ => version > new Version(8, 2),
    };

    private void CheckVersion()
    {
        if (connection!.GetServers() is not [{ Version: { } version }, ..] || IsKnownGood(version) || Interlocked.Exchange(ref isOld, 1) == 1) return;
        Old(log, version);
    }

    /// <summary>Calls with each change of another host, one at a time; null for a message that is not understood.</summary>
    public void Listen(Action<Announcement?> heard)
    {
        if (connection is not null) _ = ListenAsync(connection, heard);
    }

    /// <summary>Tries until it is heard; from then on the client itself subscribes anew after each new connection.</summary>
    private async Task ListenAsync(ConnectionMultiplexer redis, Action<Announcement?> heard)
    {
        while (true)
            try
            {
                (await redis.GetSubscriber().SubscribeAsync(RedisChannel.Literal(space)).ConfigureAwait(false)).OnMessage(message => Do(() => heard(Read(message.Message))));
                return;
            }
            catch (ObjectDisposedException)
            {
                return;
            }
            catch (Exception e) when (e is RedisException or TimeoutException)
            {
                Lost(e.GetType().Name);
                await Task.Delay(Rest, time).ConfigureAwait(false);
            }
    }

    /// <summary>Tells the others of a change, soon; <paramref name="record"/> is the adapter as it is now, null for keys and for what was deleted.</summary>
    public void Announce(Announcement change, AdapterRecord? record)
    {
        if (connection is not null) Do(() => Try("announce", redis =>
        {
            if (record is not null)
            {
                var payload = JsonSerializer.SerializeToUtf8Bytes(record with { Versions = [.. record.Versions.Select(v => v with { Findings = "" })] }, RedisJson.Default.AdapterRecord);
                if (payload.Length <= MostRecordBytes) redis.StringSet(KeyOf(change.Tenant, change.Name!), (byte[])[.. CodeOf(change.Tenant, change.Name!, payload), .. payload], Kept, false, When.Always, Here);
            }
            redis.Publish(RedisChannel.Literal(space), JsonSerializer.SerializeToUtf8Bytes(change, RedisJson.Default.Announcement), Here);
            return true;
        }));
    }

    private void Do(Action next)
    {
        try
        {
            work.Add(next);
        }
        catch (InvalidOperationException)
        {
            // the host stops
        }
    }

    /// <summary>For whoever was told of a change: the adapter as of exactly that generation; null where Redis has it not, has another, or has something that no host of this store put there.</summary>
    public AdapterRecord? Find(Announcement change)
    {
        if (change.Name is not { } name) return null;
        return Try("find", redis =>
        {
            var key = KeyOf(change.Tenant, name);
            byte[]? value;
            try
            {
                value = redis.StringGet(key, Here);
            }
            catch (RedisServerException)        // of another type
            {
                value = [];
            }
            if (value is null) return null;
            if (Read(value, change, name) is { } record)
            {
                metrics.RedisAsked("find", "hit");
                return record;
            }
            metrics.RedisAsked("find", "rejected");
            redis.KeyDelete(key, Here);
            return null;
        });
    }

    private AdapterRecord? Read(byte[] value, Announcement change, string name)
    {
        if (value.Length is <= CodeBytes or > MostRecordBytes + CodeBytes) return null;
        var payload = value.AsSpan(CodeBytes);
        if (!CryptographicOperations.FixedTimeEquals(value.AsSpan(0, CodeBytes), CodeOf(change.Tenant, name, payload))) return null;
        try
        {
            var record = JsonSerializer.Deserialize(payload, RedisJson.Default.AdapterRecord);
            return record?.Adapter.Changed == change.Generation ? record : null;         // an older one that came later is of no use
        }
        catch (JsonException)
        {
            return null;
        }
    }

    private static Announcement? Read(RedisValue message)
    {
        try
        {
            return (byte[]?)message is { Length: <= MostMessageBytes } bytes ? JsonSerializer.Deserialize(bytes, RedisJson.Default.Announcement) : null;
        }
        catch (JsonException)
        {
            return null;
        }
    }

    /// <summary>Length before text, so that no tenant's and adapter's name make another's.</summary>
    private string KeyOf(string tenant, string name) => string.Create(CultureInfo.InvariantCulture, $"{space}:{tenant.Length}:{tenant}:{name}");

    private byte[] CodeOf(string tenant, string name, ReadOnlySpan<byte> payload)
    {
        using var code = IncrementalHash.CreateHMAC(HashAlgorithmName.SHA256, secret);
        code.AppendData(Encoding.UTF8.GetBytes(KeyOf(tenant, name)));
        code.AppendData(payload);
        return code.GetHashAndReset();
    }

    /// <summary>Within the budget or not at all; after a failure Redis is left alone for a while.</summary>
    private T? Try<T>(string operation, Func<IDatabase, T?> use)
    {
        if (connection is null) return default;
        if (time.GetTimestamp() < Interlocked.Read(ref restsUntil) || !connection.IsConnected)
        {
            metrics.RedisAsked(operation, "skipped");
            return default;
        }
        try
        {
            var result = use(connection.GetDatabase());
            Back();
            return result;
        }
        catch (Exception e) when (e is RedisException or TimeoutException)
        {
            Failed(operation, e);
            return default;
        }
    }

    private void Failed(string operation, Exception e)
    {
        metrics.RedisAsked(operation, "failed");
        Interlocked.Exchange(ref restsUntil, time.GetTimestamp() + (long)(Rest.TotalSeconds * time.TimestampFrequency));
        Lost(e.GetType().Name);
    }

    private void Lost(string why)
    {
        if (Interlocked.Exchange(ref isDown, 1) == 0) WentAway(log, why);
    }

    private void Back()
    {
        if (Interlocked.Exchange(ref isDown, 0) == 1) CameBack(log);
    }

    public void Dispose()
    {
        work.CompleteAdding();
        worker?.Join();
        connection?.Dispose();
        work.Dispose();
    }

    [LoggerMessage(LogLevel.Warning, "Redis does not answer ({Why}). Hosts hear of each other's changes through the store, within half a second")]
    private static partial void WentAway(ILogger log, string why);

    [LoggerMessage(LogLevel.Warning, "Redis says that it is {Version}. Versions before 6.2.20, 7.2.11, 7.4.6, 8.0.4 and 8.2.2 let whoever may run scripts out of them, unless a distribution has mended them: give the host a user with the README's rights alone")]
    private static partial void Old(ILogger log, Version version);

    [LoggerMessage(LogLevel.Information, "Redis answers again")]
    private static partial void CameBack(ILogger log);
}

[JsonSerializable(typeof(Announcement))]
[JsonSerializable(typeof(AdapterRecord))]
internal sealed partial class RedisJson : JsonSerializerContext;
