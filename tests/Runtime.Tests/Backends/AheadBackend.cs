using TenantLora.Runtime.Backends;

namespace TenantLora.Runtime.Tests.Backends;

/// <summary>
/// The Cpu backend as a device with a queue of its own: a step is copied when it is launched, runs when it is collected, and one may be
/// launched before the one before it has run. Adapters that a step still reads must not be gone by then.
/// </summary>
internal sealed class AheadBackend(IBackend inner) : IBackend
{
    private readonly Queue<(Batch Batch, Func<StepForm, DeviceTensor?> Forward)> queue = new();
    private int[] last = [];

    /// <summary>Called before a step runs, with how many are under way.</summary>
    public Action<int> OnStep { get; init; } = _ => { };

    /// <summary>Called before an adapter is loaded, on whatever thread does it.</summary>
    public Action<LoraModules> OnLoad { get; init; } = _ => { };

    /// <summary>Room for adapters; null: what the inner backend says.</summary>
    public long? AdapterBytes { get; init; }

    public string Name => inner.Name + ", a step ahead";

    public int StepsAhead => 1;

    public int PreferredStepTokens => inner.PreferredStepTokens;

    public int MaxAdapterRank { get; init; } = int.MaxValue;

    public DeviceTensor Upload(params ReadOnlySpan<HostTensor> parts) => inner.Upload(parts);

    public MemoryPlan Plan(AttentionShape shape, MemoryWish wanted) =>
        inner.Plan(shape, wanted) is var plan && AdapterBytes is { } bytes ? plan with { AdapterBytes = bytes } : plan;

    public KvCache CreateKvCache(int blocks, int blockSize, AttentionShape shape) => inner.CreateKvCache(blocks, blockSize, shape);

    public long SizeOf(LoraModules modules) => inner.SizeOf(modules);

    public DeviceAdapter LoadAdapter(LoraModules modules)
    {
        OnLoad(modules);
        return new TrackedAdapter(inner.LoadAdapter(modules));
    }

    public DeviceTensor? Run(Batch batch, Func<StepForm, DeviceTensor?> forward)
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

    public Drawn[] Collect()
    {
        var underWay = queue.Count;
        var (batch, forward) = queue.Dequeue();
        OnStep(underWay);
        inner.Run(new Batch
        {
            Tokens = [.. batch.Tokens.Select(t => t >= 0 ? t : Math.Max(0, last[~t]))],
            Positions = batch.Positions,
            Slots = batch.Slots,
            Spans = batch.Spans,
            Segments = [.. batch.Segments.Select(s => s with { Adapter = ((TrackedAdapter?)s.Adapter)?.Living })],
            LogitRows = batch.LogitRows,
            Draws = batch.Draws,
        }, forward);
        var drawn = inner.Collect();
        last = [.. drawn.Select(d => d.Token)];
        return drawn;
    }

    public void Begin(Batch batch) => inner.Begin(batch);

    public DeviceTensor Scratch(int rows, int cols, Precision precision = Precision.Full) => inner.Scratch(rows, cols, precision);

    public void Embed(DeviceTensor table, DeviceTensor x) => inner.Embed(table, x);

    public void RmsNorm(DeviceTensor x, DeviceTensor weight, float epsilon, DeviceTensor y) => inner.RmsNorm(x, weight, epsilon, y);

    public void AddRmsNorm(DeviceTensor delta, DeviceTensor x, DeviceTensor weight, float epsilon, DeviceTensor y) => inner.AddRmsNorm(delta, x, weight, epsilon, y);

    public void Linear(DeviceTensor x, DeviceTensor weight, DeviceTensor? bias, LoraSite? site, DeviceTensor y) => inner.Linear(x, weight, bias, site, y);

    public void RopeAndStore(DeviceTensor qkv, HeadNorms? norms, KvCache cache, int layer) => inner.RopeAndStore(qkv, norms, cache, layer);

    public void Attend(DeviceTensor qkv, KvCache cache, int layer, DeviceTensor y) => inner.Attend(qkv, cache, layer, y);

    public void SwiGlu(DeviceTensor gateUp, DeviceTensor y) => inner.SwiGlu(gateUp, y);

    public void TakeLogitRows(DeviceTensor x, DeviceTensor y) => inner.TakeLogitRows(x, y);

    public void Draw(DeviceTensor logits, int vocabulary) => inner.Draw(logits, vocabulary);

    public void Download(DeviceTensor x, Span<float> host) => inner.Download(x, host);

    public void Dispose()
    {
        Assert.Empty(queue);
        inner.Dispose();
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
