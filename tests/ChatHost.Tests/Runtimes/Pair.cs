using System.Net;
using System.Net.Http.Headers;
using System.Net.Sockets;

namespace TenantLora.ChatHost.Tests.Runtimes;

/// <summary>A Web host and its Runtime hosts, in this process.</summary>
internal sealed class Pair : IAsyncDisposable
{
    public const string ServiceKey = "a-service-key-of-tests-0123456789abcdef";

    private Pair(TestHost web, TestHost[] runtimes) => (Web, Runtimes) = (web, runtimes);

    public TestHost Web { get; }

    public TestHost[] Runtimes { get; }

    public static async Task<Pair> StartAsync(int runtimes = 1, params string[] web)
    {
        var address = $"http://127.0.0.1:{FreePort()}";
        var started = new List<TestHost>();
        for (var i = 0; i < runtimes; i++) started.Add(await RuntimeAsync(address));
        return new Pair(await TestHost.StartRealAsync(["Role=Web", $"ServiceKey={ServiceKey}", $"--urls={address}", .. started.Select((r, i) => $"Runtimes:{i}={r.Url}"), .. web]), [.. started]);
    }

    public static Task<TestHost> RuntimeAsync(string web, params string[] more) =>
        TestHost.StartRealAsync(["Role=Runtime", $"ServiceKey={ServiceKey}", $"AdaptersFrom={web}", "Device=cpu", "Threads=1", .. more]);

    /// <summary>Asks a runtime as a Web host does.</summary>
    public static HttpClient Client(TestHost host, string? tenant = "harbor", string? key = ServiceKey)
    {
        var client = new HttpClient { BaseAddress = host.Url, Timeout = TimeSpan.FromSeconds(60) };
        if (key is not null) client.DefaultRequestHeaders.Authorization = new AuthenticationHeaderValue("Bearer", key);
        if (tenant is not null) client.DefaultRequestHeaders.Add("x-tenantlora-tenant", tenant);
        return client;
    }

    public static int FreePort()
    {
        using var listener = new TcpListener(IPAddress.Loopback, 0);
        listener.Start();
        return ((IPEndPoint)listener.LocalEndpoint).Port;
    }

    public async ValueTask DisposeAsync()
    {
        await Web.DisposeAsync();
        foreach (var runtime in Runtimes) await runtime.DisposeAsync();
    }
}
