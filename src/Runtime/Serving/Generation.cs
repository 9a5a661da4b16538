using System.Diagnostics;
using System.Threading.Channels;
using TenantLora.Runtime.Adapters;
using TenantLora.Runtime.Backends;
using TenantLora.Runtime.Scheduling;

namespace TenantLora.Runtime.Serving;

/// <summary>What the engine thread tells the reader of one answer, before it ends the channel.</summary>
internal enum OutputKind
{
    AdapterLoading,

    /// <summary>Value: prompt tokens read.</summary>
    Prefill,

    Token,
}

internal readonly record struct Output(OutputKind Kind, int Value, Drawn Drawn);

/// <summary>
/// A sequence with what serves it: its hold on an adapter, how its tokens are drawn, and the channel to its reader. The engine thread
/// writes, one reader reads; ending the channel publishes the times.
/// </summary>
internal sealed class Generation(GenerationRequest request, int[] prompt, int maxTokens, IReadOnlySet<int> endTokens, AdapterLease? lease, SamplingState sampling)
    : Sequence(request.Tenant, lease?.Digest, prompt, maxTokens, endTokens)
{
    private readonly Channel<Output> channel = Channel.CreateUnbounded<Output>(new UnboundedChannelOptions { SingleReader = true, SingleWriter = true });
    private readonly long arrived = Stopwatch.GetTimestamp();
    private long started, first, last;
    private bool awaitsAdapter;

    public AdapterLease? Lease { get; } = lease;

    public SamplingState Sampling { get; } = sampling;

    public ChannelReader<Output> Outputs => channel.Reader;

    public GenerationTimings Timings => new(
        Stopwatch.GetElapsedTime(arrived, started),
        Stopwatch.GetElapsedTime(started, first),
        Stopwatch.GetElapsedTime(first, last));

    public bool Started => started != 0;

    /// <summary>Set by the reader when a stop string ended the answer: then being cancelled is a good end.</summary>
    public bool FoundStop { get; set; }

    /// <summary>How it ended, for the record.</summary>
    public string Outcome => Finish switch { FinishReason.Stop => "stop", FinishReason.Length => "length", _ => FoundStop ? "stop" : "cancelled" };

    /// <summary>Tells that the adapter is being brought to the device, once; also if it had to go again before this ran.</summary>
    public void AwaitAdapter()
    {
        if (awaitsAdapter || Started) return;
        awaitsAdapter = true;
        channel.Writer.TryWrite(new Output(OutputKind.AdapterLoading, 0, default));
    }

    public void Start()
    {
        if (Started) return;
        started = Stopwatch.GetTimestamp();
        channel.Writer.TryWrite(new Output(OutputKind.Prefill, 0, default));
    }

    /// <summary>Tells of prompt tokens read; not of those read again after a preemption.</summary>
    public void Read(int computed)
    {
        if (first == 0) channel.Writer.TryWrite(new Output(OutputKind.Prefill, Math.Min(computed, PromptLength), default));
    }

    public void Take(Drawn drawn)
    {
        last = Stopwatch.GetTimestamp();
        if (first == 0) first = last;
        Sampling.Accept(drawn.Token);
        channel.Writer.TryWrite(new Output(OutputKind.Token, drawn.Token, drawn));
    }

    /// <summary>The engine has let go of the sequence: nothing more comes, and the adapter is no longer held.</summary>
    public void End(Exception? error = null)
    {
        Lease?.Dispose();
        channel.Writer.TryComplete(error);
    }
}
