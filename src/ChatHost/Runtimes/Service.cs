using System.Net.Http.Headers;
using System.Text.Json;
using System.Text.Json.Serialization;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Runtimes;

/// <summary>What Web and Runtime hosts say to each other beside /v1, under /service, and how they are known: by the service key alone.</summary>
internal static class Service
{
    /// <summary>Whose request it is, percent-encoded: to a runtime an opaque key for isolation and fairness.</summary>
    public const string TenantHeader = "x-tenantlora-tenant";

    public const int LongestTenant = 1024;

    /// <summary>Connections between hosts: no proxy, no redirect to another address. A peer whose machine is gone is noticed within half a minute, though a stream may be silent for long.</summary>
    public static HttpClient Client() => new(new SocketsHttpHandler
    {
        AllowAutoRedirect = false,
        UseProxy = false,
        UseCookies = false,
        ConnectTimeout = TimeSpan.FromSeconds(3),
        PooledConnectionIdleTimeout = TimeSpan.FromSeconds(30),         // less than the server's
        PooledConnectionLifetime = TimeSpan.FromMinutes(5),
        ResponseDrainTimeout = TimeSpan.Zero,                           // a stream that is left ends there at once
        ConnectCallback = async (context, cancellationToken) =>
        {
            var socket = new System.Net.Sockets.Socket(System.Net.Sockets.SocketType.Stream, System.Net.Sockets.ProtocolType.Tcp) { NoDelay = true };
            try
            {
                socket.SetSocketOption(System.Net.Sockets.SocketOptionLevel.Socket, System.Net.Sockets.SocketOptionName.KeepAlive, true);
                socket.SetSocketOption(System.Net.Sockets.SocketOptionLevel.Tcp, System.Net.Sockets.SocketOptionName.TcpKeepAliveTime, 10);
                socket.SetSocketOption(System.Net.Sockets.SocketOptionLevel.Tcp, System.Net.Sockets.SocketOptionName.TcpKeepAliveInterval, 5);
                socket.SetSocketOption(System.Net.Sockets.SocketOptionLevel.Tcp, System.Net.Sockets.SocketOptionName.TcpKeepAliveRetryCount, 4);
                await socket.ConnectAsync(context.DnsEndPoint, cancellationToken);
                return new System.Net.Sockets.NetworkStream(socket, ownsSocket: true);
            }
            catch
            {
                socket.Dispose();
                throw;
            }
        },
    })
    { Timeout = Timeout.InfiniteTimeSpan };

    /// <param name="tenant">Empty: the host's own business.</param>
    public static void Sign(HttpRequestHeaders headers, string serviceKey, string tenant)
    {
        headers.Authorization = new AuthenticationHeaderValue("Bearer", serviceKey);
        if (tenant.Length > 0) headers.Add(TenantHeader, Uri.EscapeDataString(tenant));
    }
}

/// <summary>What a Web host must know of a runtime.</summary>
/// <param name="Start">Another after each start: what it was told before is forgotten.</param>
/// <param name="Fault">What keeps it from answering; null: nothing.</param>
internal sealed record ServiceInfo(EngineInfo Engine, long MaxAdapterFileBytes, long AdapterMemory, Guid Start, string? Fault = null);

/// <summary>Adapters that a runtime is to keep at hand.</summary>
internal sealed record KeptAdapters(IReadOnlyList<string> Digests);

[JsonSourceGenerationOptions(JsonSerializerDefaults.Web, RespectNullableAnnotations = true, RespectRequiredConstructorParameters = true)]
[JsonSerializable(typeof(ServiceInfo))]
[JsonSerializable(typeof(KeptAdapters))]
[JsonSerializable(typeof(AdapterReport))]
[JsonSerializable(typeof(Residents))]
internal sealed partial class ServiceJson : JsonSerializerContext;
