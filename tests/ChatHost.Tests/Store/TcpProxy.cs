using System.Net;
using System.Net.Sockets;

namespace TenantLora.ChatHost.Tests.Store;

/// <summary>Stands between a client and a server, and holds up or cuts what passes, as it is told.</summary>
internal sealed class TcpProxy : IDisposable
{
    private readonly TcpListener listener = new(IPAddress.Loopback, 0);
    private readonly int server;

    public TcpProxy(int server)
    {
        this.server = server;
        listener.Start();
        _ = AcceptAsync();
    }

    public string Address => $"127.0.0.1:{((IPEndPoint)listener.LocalEndpoint).Port}";

    /// <summary>How long what the server says is held back.</summary>
    public Func<TimeSpan> Hold { get; set; } = () => TimeSpan.Zero;

    /// <summary>Whether the connection ends here: what was asked has gone to the server, and its answer is lost.</summary>
    public Func<bool> Cut { get; set; } = () => false;

    public void Dispose() => listener.Dispose();

    private async Task AcceptAsync()
    {
        try
        {
            while (true) _ = PassAsync(await listener.AcceptTcpClientAsync());
        }
        catch (Exception e) when (e is SocketException or ObjectDisposedException)
        {
            // The proxy goes.
        }
    }

    private async Task PassAsync(TcpClient client)
    {
        using var there = new TcpClient { NoDelay = true };
        using (client)
            try
            {
                client.NoDelay = true;
                await there.ConnectAsync(IPAddress.Loopback, server);
                await await Task.WhenAny(CopyAsync(client, there, () => TimeSpan.Zero, () => Cut()), CopyAsync(there, client, () => Hold(), () => false));
            }
            catch (Exception e) when (e is IOException or SocketException or ObjectDisposedException)
            {
                // One side is gone; so is the other now.
            }
    }

    private static async Task CopyAsync(TcpClient from, TcpClient to, Func<TimeSpan> hold, Func<bool> cut)
    {
        var room = new byte[1 << 16];
        while (await from.GetStream().ReadAsync(room) is > 0 and var read)
        {
            if (hold() is { Ticks: > 0 } wait) await Task.Delay(wait);
            await to.GetStream().WriteAsync(room.AsMemory(0, read));
            if (cut()) return;
        }
    }
}
