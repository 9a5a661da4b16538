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

    /// <summary>What becomes of what the server says.</summary>
    public Func<ReadOnlyMemory<byte>, ReadOnlyMemory<byte>> Say { get; set; } = said => said;

    /// <summary>Bytes that are written at once; what the server says comes in pieces of this size.</summary>
    public int Piece { get; set; } = int.MaxValue;

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
                await await Task.WhenAny(AskAsync(client, there), AnswerAsync(there, client));
            }
            catch (Exception e) when (e is IOException or SocketException or ObjectDisposedException)
            {
                // One side is gone; so is the other now.
            }
    }

    private async Task AskAsync(TcpClient client, TcpClient there)
    {
        var room = new byte[1 << 16];
        while (await client.GetStream().ReadAsync(room) is > 0 and var read)
        {
            await there.GetStream().WriteAsync(room.AsMemory(0, read));
            if (Cut()) return;
        }
    }

    private async Task AnswerAsync(TcpClient there, TcpClient client)
    {
        var room = new byte[1 << 16];
        while (await there.GetStream().ReadAsync(room) is > 0 and var read)
        {
            if (Hold() is { Ticks: > 0 } wait) await Task.Delay(wait);
            for (var said = Say(room.AsMemory(0, read)); said.Length > 0; said = said[Math.Min(said.Length, Piece)..]) await client.GetStream().WriteAsync(said[..Math.Min(said.Length, Piece)]);
        }
    }
}
