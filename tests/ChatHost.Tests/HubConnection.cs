using System.Collections.Concurrent;
using System.Net.WebSockets;
using System.Text;
using System.Text.Json;
using System.Threading.Channels;

namespace TenantLora.ChatHost.Tests;

/// <summary>SignalR's JSON protocol over a bare WebSocket: the .NET client is not in this feed, and this shows what is on the wire.</summary>
internal sealed class HubConnection : IAsyncDisposable
{
    private readonly ClientWebSocket socket = new();
    private readonly ConcurrentDictionary<string, Channel<JsonElement>> calls = new();
    private Task reading = Task.CompletedTask;
    private int lastCall;

    /// <summary>Completes when the server closes the connection.</summary>
    public Task Closed => reading;

    public static async Task<HubConnection> OpenAsync(Uri host, string token, string? origin = null)
    {
        var connection = new HubConnection();
        if (origin is not null) connection.socket.Options.SetRequestHeader("Origin", origin);
        await connection.socket.ConnectAsync(new Uri($"ws://{host.Authority}/hub?access_token={token}"), CancellationToken.None);
        await connection.WriteAsync("""{"protocol":"json","version":1}""");
        await connection.ReadMessageAsync(new StringBuilder());
        connection.reading = Task.Run(connection.ReadAllAsync);
        return connection;
    }

    /// <summary>Opens a stream; its items come as they are, and its end as the completion message with <c>type</c> 3.</summary>
    public async Task<(string Call, ChannelReader<JsonElement> Messages)> StreamAsync(string method, params string[] jsonArguments)
    {
        var call = Interlocked.Increment(ref lastCall).ToString(System.Globalization.CultureInfo.InvariantCulture);
        var messages = (calls[call] = Channel.CreateUnbounded<JsonElement>()).Reader;
        await WriteAsync($$"""{"type":4,"invocationId":"{{call}}","target":"{{method}}","arguments":[{{string.Join(',', jsonArguments)}}]}""");
        return (call, messages);
    }

    /// <summary>A whole stream: its items, and the error it ended with.</summary>
    public async Task<(List<JsonElement> Items, string? Error)> CollectAsync(string method, params string[] jsonArguments)
    {
        var (_, messages) = await StreamAsync(method, jsonArguments);
        return await DrainAsync(messages);
    }

    public static async Task<(List<JsonElement> Items, string? Error)> DrainAsync(ChannelReader<JsonElement> messages)
    {
        List<JsonElement> items = [];
        await foreach (var message in messages.ReadAllAsync())
        {
            if (message.GetProperty("type").GetInt32() == 3) return (items, message.TryGetProperty("error", out var error) ? error.GetString() : null);
            items.Add(message.GetProperty("item"));
        }
        return (items, "the connection closed");
    }

    /// <summary>Calls a method and waits for it.</summary>
    /// <returns>The error, or null.</returns>
    public async Task<string?> InvokeAsync(string method, params string[] jsonArguments)
    {
        var call = Interlocked.Increment(ref lastCall).ToString(System.Globalization.CultureInfo.InvariantCulture);
        var messages = (calls[call] = Channel.CreateUnbounded<JsonElement>()).Reader;
        await WriteAsync($$"""{"type":1,"invocationId":"{{call}}","target":"{{method}}","arguments":[{{string.Join(',', jsonArguments)}}]}""");
        return (await DrainAsync(messages)).Error;
    }

    /// <summary>Stops listening to a stream.</summary>
    public Task CancelAsync(string call) => WriteAsync($$"""{"type":5,"invocationId":"{{call}}"}""");

    /// <summary>Drops the connection without a word.</summary>
    public void Drop() => socket.Abort();

    public async ValueTask DisposeAsync()
    {
        socket.Abort();
        await reading;
        socket.Dispose();
    }

    private Task WriteAsync(string message) =>
        socket.SendAsync(Encoding.UTF8.GetBytes(message + '\u001e'), WebSocketMessageType.Text, endOfMessage: true, CancellationToken.None);

    private async Task ReadAllAsync()
    {
        StringBuilder rest = new();
        try
        {
            while (await ReadMessageAsync(rest) is { } text)
            {
                var message = JsonDocument.Parse(text).RootElement;
                if (message.TryGetProperty("invocationId", out var call) && calls.TryGetValue(call.GetString()!, out var channel)) channel.Writer.TryWrite(message);
            }
        }
        catch (Exception e) when (e is WebSocketException or OperationCanceledException or ObjectDisposedException)
        {
            // dropped
        }
        foreach (var channel in calls.Values) channel.Writer.TryComplete();
    }

    private async Task<string?> ReadMessageAsync(StringBuilder rest)
    {
        var buffer = new byte[16_384];
        while (true)
        {
            var text = rest.ToString();
            if (text.IndexOf('\u001e', StringComparison.Ordinal) is >= 0 and var end)
            {
                rest.Remove(0, end + 1);
                return text[..end];
            }
            var part = await socket.ReceiveAsync(buffer, CancellationToken.None);
            if (part.MessageType == WebSocketMessageType.Close) return null;
            rest.Append(Encoding.UTF8.GetString(buffer, 0, part.Count));
        }
    }
}
