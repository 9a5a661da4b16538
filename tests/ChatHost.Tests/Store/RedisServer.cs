using System.Collections.Concurrent;
using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using System.Runtime.InteropServices;
using System.Text;

namespace TenantLora.ChatHost.Tests.Store;

/// <summary>A redis-server of a test's own, to be killed, stopped and started again on its port.</summary>
internal sealed partial class RedisServer : IDisposable
{
    private readonly string folder = Directory.CreateTempSubdirectory("redis-").FullName;
    private Process? process;

    private RedisServer()
    {
        using var listener = new TcpListener(IPAddress.Loopback, 0);
        listener.Start();
        Port = ((IPEndPoint)listener.LocalEndpoint).Port;
    }

    public int Port { get; }

    public string Address => $"127.0.0.1:{Port}";

    public static async Task<RedisServer> StartAsync(params string[] arguments)
    {
        var server = new RedisServer();
        await server.AgainAsync(arguments);
        return server;
    }

    public async Task AgainAsync(params string[] arguments)
    {
        try
        {
            process = Process.Start(new ProcessStartInfo("redis-server", ["--port", $"{Port}", "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder, .. arguments]) { RedirectStandardOutput = true });
        }
        catch (System.ComponentModel.Win32Exception)
        {
            if (Environment.GetEnvironmentVariable("TENANTLORA_REQUIRE_ALL") == "1") Assert.Fail("redis-server is not there.");
            Assert.Skip("redis-server is not there.");
        }
        _ = process!.StandardOutput.ReadToEndAsync();
        for (var end = DateTime.UtcNow.AddSeconds(10); ; await Task.Delay(20))
            try
            {
                using var client = new TcpClient();
                await client.ConnectAsync(IPAddress.Loopback, Port);
                return;
            }
            catch (SocketException) when (DateTime.UtcNow < end)
            {
                // not yet
            }
    }

    /// <summary>Where <see cref="TellAsync"/> has spoken from.</summary>
    public ConcurrentBag<string> Tellers { get; } = [];

    /// <summary>What it answers to a command, as text.</summary>
    public async Task<string> TellAsync(params string[] command)
    {
        using var client = new TcpClient();
        await client.ConnectAsync(IPAddress.Loopback, Port);
        Tellers.Add($"127.0.0.1:{((IPEndPoint)client.Client.LocalEndPoint!).Port}");
        var text = new StringBuilder($"*{command.Length}\r\n");
        foreach (var part in command) text.Append(System.Globalization.CultureInfo.InvariantCulture, $"${Encoding.Latin1.GetByteCount(part)}\r\n{part}\r\n");
        await client.GetStream().WriteAsync(Encoding.Latin1.GetBytes(text.ToString()));
        var answer = new byte[1 << 16];
        var read = await client.GetStream().ReadAsync(answer).AsTask().WaitAsync(TimeSpan.FromSeconds(10));
        return Encoding.Latin1.GetString(answer, 0, read);
    }

    public void Kill()
    {
        process?.Kill();
        process?.WaitForExit();
    }

    public void Stop() => Assert.Equal(0, Signal(process!.Id, 19));

    public void GoOn() => Assert.Equal(0, Signal(process!.Id, 18));

    public void Dispose()
    {
        Kill();
        process?.Dispose();
        Directory.Delete(folder, recursive: true);
    }

    [LibraryImport("libc", EntryPoint = "kill")]
    private static partial int Signal(int process, int signal);
}
