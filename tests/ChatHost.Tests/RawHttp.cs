using System.Net.Sockets;
using System.Text;

namespace TenantLora.ChatHost.Tests;

/// <summary>One request over a bare socket, to see exactly what was sent back.</summary>
internal static class RawHttp
{
    /// <summary>Everything until the server closes. <paramref name="request"/> should ask for <c>Connection: close</c>.</summary>
    /// <returns>What came, and whether the connection was reset rather than closed.</returns>
    public static async Task<(string Text, bool Reset)> SendAsync(Uri url, byte[] request)
    {
        using var client = new TcpClient();
        await client.ConnectAsync(url.Host, url.Port);
        var stream = client.GetStream();
        await stream.WriteAsync(request);
        using var all = new MemoryStream();
        var buffer = new byte[16_384];
        try
        {
            for (int read; (read = await stream.ReadAsync(buffer).AsTask().WaitAsync(TimeSpan.FromSeconds(30))) > 0;) all.Write(buffer, 0, read);
            return (Encoding.UTF8.GetString(all.ToArray()), false);
        }
        catch (IOException)
        {
            return (Encoding.UTF8.GetString(all.ToArray()), true);
        }
    }

    public static Task<(string Text, bool Reset)> PostAsync(Uri url, string path, string key, string body) => SendAsync(url, Encoding.UTF8.GetBytes(
        $"POST {path} HTTP/1.1\r\nHost: {url.Authority}\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: {Encoding.UTF8.GetByteCount(body)}\r\nConnection: close\r\n\r\n{body}"));

    /// <summary>Takes the chunk sizes out of a chunked body; says whether its end was there.</summary>
    public static (string Body, bool Complete) Unchunk(string response)
    {
        var rest = response[(response.IndexOf("\r\n\r\n", StringComparison.Ordinal) + 4)..];
        var bytes = Encoding.UTF8.GetBytes(rest).AsSpan();
        StringBuilder body = new();
        while (bytes.IndexOf("\r\n"u8) is >= 0 and var line)
        {
            var size = Convert.ToInt32(Encoding.ASCII.GetString(bytes[..line]), 16);
            if (size == 0) return (body.ToString(), true);
            body.Append(Encoding.UTF8.GetString(bytes.Slice(line + 2, size)));
            bytes = bytes[(line + 2 + size + 2)..];
        }
        return (body.ToString(), false);
    }
}
