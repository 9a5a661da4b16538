using TenantLora.Bench;
using TenantLora.Runtime.Backends;

namespace TenantLora.Runtime.Tests.Backends;

/// <summary>
/// The Cpu backend as a device with a queue of its own: a step is copied when it is launched, runs when it is collected, and one may be
/// launched before the one before it has run. Adapters that a step still reads must not be gone by then.
/// </summary>
internal sealed class AheadBackend(IBackend inner) : ForwardingBackend(inner)
{
    private readonly Queue<(Batch Batch, Func<StepForm, DeviceTensor?> Forward)> queue = new();
    private int[] last = [];

    /// <summary>Called before a step runs, with how many are under way.</summary>
    public Action<int> OnStep { get; init; } = _ => { };

    /// <summary>Called before an adapter is loaded, on whatever thread does it.</summary>
    public Action<LoraModules> OnLoad { get; init; } = _ => { };

    /// <summary>Room for adapters; null: what the inner backend says.</summary>
    public long? AdapterBytes { get; init; }

    public override string Name => Inner.Name + ", a step ahead";

    public override int StepsAhead => 1;

    /// <summary>Highest rank that the device claims to serve.</summary>
    public int Ranks { get; init; } = int.MaxValue;

    public override int MaxAdapterRank => Ranks;

    /// <summary>Most dimensions of a head that the device claims to serve.</summary>
    public int HeadDims { get; init; } = int.MaxValue;

    public override int MaxHeadDim => HeadDims;

    public override MemoryPlan Plan(AttentionShape shape, MemoryWish wanted) =>
        Inner.Plan(shape, wanted) is var plan && AdapterBytes is { } bytes ? plan with { AdapterBytes = bytes } : plan;

    public override DeviceAdapter LoadAdapter(LoraModules modules)
    {
        OnLoad(modules);
        return new TrackedAdapter(Inner.LoadAdapter(modules));
    }

    public override DeviceTensor? Run(Batch batch, Func<StepForm, DeviceTensor?> forward)
    {
        Assert.True(queue.Count <= StepsAhead, "Too many steps under way.");
        // Whoever launched it may change what it was made of at once.
        queue.Enqueue((new Batch
        {
            Tokens = [.. batch.Tokens],
            Positions = [.. batch.Positions],
            Slots = [.. batch.Slots],
            Spans = [.. batch.Spans.Select(s => s with { Blocks = [.. s.Blocks] })],
            Segments = [.. batch.Segments],
            LogitRows = [.. batch.LogitRows],
            Draws = [.. batch.Draws.Select(d => d with { Answered = d.Answered is null ? null : new Dictionary<int, int>(d.Answered) })],
        }, forward));
        return null;
    }

    public override Drawn[] Collect()
    {
        var underWay = queue.Count;
        var (batch, forward) = queue.Dequeue();
        OnStep(underWay);
        Inner.Run(new Batch
        {
            Tokens = [.. batch.Tokens.Select(t => t >= 0 ? t : Math.Max(0, last[~t]))],
            Positions = batch.Positions,
            Slots = batch.Slots,
            Spans = batch.Spans,
            Segments = [.. batch.Segments.Select(s => s with { Adapter = ((TrackedAdapter?)s.Adapter)?.Living })],
            LogitRows = batch.LogitRows,
            Draws = batch.Draws,
        }, forward);
        var drawn = Inner.Collect();
        last = [.. drawn.Select(d => d.Token)];
        return drawn;
    }

    public override void Dispose()
    {
        Assert.Empty(queue);
        base.Dispose();
    }

    private sealed class TrackedAdapter(DeviceAdapter inner) : DeviceAdapter
    {
        private bool disposed;

        public DeviceAdapter Living => disposed ? throw new ObjectDisposedException("A step reads an adapter that is gone.") : inner;

        public override long Bytes => inner.Bytes;

        public override void Dispose()
        {
            disposed = true;
            inner.Dispose();
        }
    }
}
