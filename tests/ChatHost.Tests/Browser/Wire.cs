using System.Net;
using System.Net.Sockets;

namespace TenantLora.ChatHost.Tests.Browser;

/// <summary>A wire between browser and host. Cut, it drops every connection at once and refuses new ones until it is mended.</summary>
internal sealed class Wire : IAsyncDisposable
{
    private readonly TcpListener listener = new(IPAddress.Loopback, 0);
    private readonly CancellationTokenSource ended = new();
    private readonly Lock gate = new();
    private readonly HashSet<TcpClient> open = [];
    private readonly Task accepting;
    private readonly Uri host;
    private bool cut;

    public Wire(Uri host)
    {
        this.host = host;
        listener.Start();
        Url = new Uri($"http://127.0.0.1:{((IPEndPoint)listener.LocalEndpoint).Port}");
        accepting = AcceptAsync();
    }

    /// <summary>The host at this end of the wire.</summary>
    public Uri Url { get; }

    public void Cut()
    {
        lock (gate)
        {
            cut = true;
            foreach (var end in open) end.Client.Close(0); // a reset, as when a network goes away
        }
    }

    public void Mend()
    {
        lock (gate) cut = false;
    }

    public async ValueTask DisposeAsync()
    {
        await ended.CancelAsync();
        Cut();
        listener.Dispose();
        await accepting;
        ended.Dispose();
    }

    private async Task AcceptAsync()
    {
        try
        {
            while (true) _ = CarryAsync(await listener.AcceptTcpClientAsync(ended.Token));
        }
        catch (OperationCanceledException)
        {
            // the end of the test
        }
    }

    private async Task CarryAsync(TcpClient browser)
    {
        using var server = new TcpClient();
        using (browser)
        {
            try
            {
                await server.ConnectAsync(host.Host, host.Port);
                lock (gate)
                {
                    if (cut) return;
                    open.Add(browser);
                    open.Add(server);
                }
                await Task.WhenAny(browser.GetStream().CopyToAsync(server.GetStream()), server.GetStream().CopyToAsync(browser.GetStream()));
            }
            catch (Exception e) when (e is SocketException or IOException or ObjectDisposedException or InvalidOperationException)
            {
                // cut
            }
            finally
            {
                lock (gate)
                {
                    open.Remove(browser);
                    open.Remove(server);
                }
            }
        }
    }
}
