using System.Runtime.CompilerServices;
using System.Text.Json;
using Microsoft.AspNetCore.Authorization;
using Microsoft.AspNetCore.SignalR;
using TenantLora.ChatHost.Operations;
using TenantLora.ChatHost.Security;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Chat;

/// <summary>What the chat page talks to. Leaving a stream only stops listening; <see cref="Stop"/> stops the answer.</summary>
[Authorize]
internal sealed class ChatHub(Generations generations, Admission admission) : Hub
{
    private const int MostStreams = 16; // on one connection: four columns, each with a retry or two behind it
    private static readonly object StreamsKey = new();

    /// <summary>Begins an answer and streams its events. A refused request is one <see cref="ErrorEvent"/>.</summary>
    public async IAsyncEnumerable<HubEvent> Send(JsonElement request, [EnumeratorCancellation] CancellationToken cancellationToken)
    {
        using var stream = OpenStream();
        var (generation, error) = await StartAsync(request);
        if (error is not null) yield return error;
        if (generation is null) yield break;
        await foreach (var next in generation.ReadAsync(0, cancellationToken)) yield return next;
    }

    /// <summary>Streams the events of a generation from a number on, and then what comes.</summary>
    public async IAsyncEnumerable<HubEvent> Attach(string id, int fromSeq, [EnumeratorCancellation] CancellationToken cancellationToken)
    {
        using var stream = OpenStream();
        await foreach (var next in Find(id).ReadAsync(Math.Max(0, fromSeq), cancellationToken)) yield return next;
    }

    /// <summary>Stops an answer within a step; its stream ends with <c>stopped</c>. One that has ended is left as it is.</summary>
    public void Stop(string id) => Find(id).Stop();

    private async ValueTask<(Generation?, ErrorEvent?)> StartAsync(JsonElement request)
    {
        try
        {
            return (await generations.StartAsync(Context.User!.Tenant(), request, Context.ConnectionAborted), null);
        }
        catch (TenantLoraException e)
        {
            return (null, new ErrorEvent(0, e.Code, e.Message));
        }
    }

    private Generation Find(string id) => generations.Find(Context.User!.Tenant(), id) ?? throw new HubException("generation not found");

    private StreamLease OpenStream()
    {
        lock (Context.Items)
        {
            var open = Context.Items.TryGetValue(StreamsKey, out var count) ? (int)count! : 0;
            if (open >= MostStreams) throw new HubException($"{open} streams are open on this connection already, as many as it may have.");
            Context.Items[StreamsKey] = open + 1;
        }
        return new StreamLease(Context, admission.Hold());
    }

    private sealed class StreamLease(HubCallerContext context, IDisposable hold) : IDisposable
    {
        public void Dispose()
        {
            hold.Dispose();
            lock (context.Items) context.Items[StreamsKey] = (int)context.Items[StreamsKey]! - 1;
        }
    }
}
