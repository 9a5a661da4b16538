using System.Text.Json.Serialization;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Chat;

/// <summary>What the hub tells about a generation, numbered from 0 without gaps; <see cref="DoneEvent"/> or <see cref="ErrorEvent"/> is the last.</summary>
internal abstract record HubEvent([property: JsonPropertyOrder(-2)] int Seq, [property: JsonPropertyOrder(-1)] string Type)
{
    [JsonIgnore]
    public bool IsLast => this is DoneEvent or ErrorEvent;
}

/// <summary>Accepted. The id is what to attach to and to stop by.</summary>
internal sealed record QueuedEvent(int Seq, string Id, int Ahead, int PromptTokens) : HubEvent(Seq, "queued");

internal sealed record AdapterLoadEvent(int Seq, string Adapter) : HubEvent(Seq, "adapter_load");

internal sealed record PrefillEvent(int Seq, int Done, int Total) : HubEvent(Seq, "prefill");

/// <param name="Tokens">Generated since the last delta.</param>
internal sealed record DeltaEvent(int Seq, string Text, int Tokens) : HubEvent(Seq, "delta");

/// <param name="FinishReason"><c>stop</c>, <c>length</c> or <c>stopped</c> (by <see cref="ChatHub.Stop"/>).</param>
internal sealed record DoneEvent(int Seq, string FinishReason, GenerationUsage Usage, HubTimings Timings, string Model, string? Adapter, string? Fingerprint) : HubEvent(Seq, "done");

internal sealed record ErrorEvent(int Seq, string Code, string Message) : HubEvent(Seq, "error");

internal sealed record HubTimings(double QueuedMs, double PrefillMs, double DecodeMs, double TimeToFirstTokenMs, double TokensPerSecond)
{
    public static HubTimings From(GenerationTimings timings, int tokens) => new(
        OpenAi.CompletionTimings.Ms(timings.Queued), OpenAi.CompletionTimings.Ms(timings.Prefill), OpenAi.CompletionTimings.Ms(timings.Decode),
        OpenAi.CompletionTimings.Ms(timings.Queued + timings.Prefill), OpenAi.CompletionTimings.TokensPerSecond(tokens, timings.Decode));
}
