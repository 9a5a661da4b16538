using System.Diagnostics;
using System.Globalization;
using System.Runtime.Intrinsics.Arm;

namespace TenantLora.Runtime.Backends.Cpu;

/// <summary>
/// The verbs in managed SIMD. Weights are read where they lie in the host's memory, in their stored type; activations, keys and values are
/// fp32. This class keeps memory and the step's batch; <see cref="Kernels"/> has the arithmetic.
/// </summary>
internal sealed unsafe class CpuBackend : IBackend
{
    private readonly Arena arena = new();
    private readonly Workers workers;
    private readonly Kernels kernels;
    private readonly List<LoraTile> loraTiles = [];
    private readonly List<AttendTile> attendTiles = [];
    private readonly Sampler sampler = new();
    private Batch? batch;
    private Drawn[] drawn = [];

    /// <param name="threads">The caller's own among them; 0: one a core.</param>
    /// <param name="lanes">Register width in floats: 4, 8 or 16; 0: the machine's. Another one is slower but right, for tests.</param>
    public CpuBackend(int threads, int lanes = 0)
    {
        lanes = lanes > 0 ? lanes : Kernels.LanesOfThisMachine;
        workers = new Workers(threads > 0 ? threads : Environment.ProcessorCount);
        kernels = Kernels.Create(lanes, workers);
        var instructions = lanes == 16 ? "AVX-512" : lanes == 8 ? "AVX2" : AdvSimd.IsSupported ? "NEON" : "128-bit SIMD";
        Name = $"cpu, {workers.Count} {(workers.Count == 1 ? "thread" : "threads")}, {instructions}";
    }

    public string Name { get; }

    public int StepsAhead => 0;

    /// <summary>More rows gain little.</summary>
    public int PreferredStepTokens => 64;

    public int MaxAdapterRank => int.MaxValue;

    public int MaxHeadDim => int.MaxValue;

    public DeviceTensor Upload(params ReadOnlySpan<HostTensor> parts) => CpuWeights.Create(parts);

    /// <summary>Eight full contexts within a quarter of the memory. Nothing is taken before it is used, so nothing is refused.</summary>
    public MemoryPlan Plan(AttentionShape shape, MemoryWish wanted)
    {
        var perToken = 2L * shape.Layers * shape.KvHeads * shape.HeadDim * sizeof(float);
        var tokens = wanted.CacheTokens > 0
            ? wanted.CacheTokens
            : Math.Min(8L * wanted.ContextLength, GC.GetGCMemoryInfo().TotalAvailableMemoryBytes / 4 / perToken);
        var blocks = (int)Math.Clamp(tokens / wanted.BlockSize, 1, int.MaxValue);
        var adapters = wanted.AdapterBytes > 0 ? wanted.AdapterBytes : long.MaxValue;
        return new MemoryPlan(blocks, adapters, string.Create(CultureInfo.InvariantCulture,
            $"up to {blocks * perToken * wanted.BlockSize / 1e6:F0} MB of keys and values for {(long)blocks * wanted.BlockSize} tokens, {(wanted.AdapterBytes > 0 ? $"{adapters / 1e6:F0} MB of" : "any number of")} adapters"));
    }

    public KvCache CreateKvCache(int blocks, int blockSize, AttentionShape shape) => new CpuKvCache(blocks, blockSize, shape);

    public long SizeOf(LoraModules modules) => kernels.SizeOf(modules);

    public DeviceAdapter LoadAdapter(LoraModules modules) => kernels.LoadAdapter(modules);

    public DeviceTensor? Run(Batch batch, Func<StepForm, DeviceTensor?> forward)
    {
        Begin(batch);
        return forward(new StepForm(batch.Rows, batch.LogitRows.Length));
    }

    public Drawn[] Collect() => drawn;

    public void Begin(Batch batch)
    {
        this.batch = batch;
        drawn = [];
        arena.Reset();
        loraTiles.Clear();
        foreach (var (firstRow, rows, adapter) in batch.Segments)
            if (adapter is CpuAdapter own)
                for (var r = 0; r < rows; r += LoraTile.MostRows)
                    loraTiles.Add(new LoraTile(own, firstRow + r, Math.Min(LoraTile.MostRows, rows - r)));
        attendTiles.Clear();
        foreach (var (firstRow, rows, context, blocks) in batch.Spans)
            for (var r = 0; r < rows; r += AttendTile.MostRows)
                attendTiles.Add(new AttendTile(blocks, firstRow + r, Math.Min(AttendTile.MostRows, rows - r), context - rows + r));
    }

    public DeviceTensor Scratch(int rows, int cols, Precision precision = Precision.Full) => new CpuActivations(arena.Take((nint)rows * cols), rows, cols);

    public void Embed(DeviceTensor table, DeviceTensor x)
    {
        var (from, to) = ((CpuWeights)table, (CpuActivations)x);
        for (var r = 0; r < to.Rows; r++) Stored.Widen(from.Type, from.Row(batch!.Tokens[r]), to.Row(r), to.Cols);
    }

    public void RmsNorm(DeviceTensor x, DeviceTensor weight, float epsilon, DeviceTensor y)
    {
        Debug.Assert(x.Rows == y.Rows && x.Cols == y.Cols);
        kernels.RmsNorm((CpuActivations)x, ((CpuWeights)weight).Vector(x.Cols), epsilon, (CpuActivations)y);
    }

    public void AddRmsNorm(DeviceTensor delta, DeviceTensor x, DeviceTensor weight, float epsilon, DeviceTensor y)
    {
        Debug.Assert(delta.Rows == x.Rows && delta.Cols == x.Cols);
        kernels.Add((CpuActivations)delta, (CpuActivations)x);
        RmsNorm(x, weight, epsilon, y);
    }

    public void Linear(DeviceTensor x, DeviceTensor weight, DeviceTensor? bias, LoraSite? site, DeviceTensor y)
    {
        Debug.Assert(x.Rows == y.Rows && x.Cols == weight.Cols && y.Cols == weight.Rows);
        kernels.Linear((CpuActivations)x, (CpuWeights)weight, bias is null ? null : ((CpuWeights)bias).Vector(y.Cols), (CpuActivations)y);
        if (site is not null) AddLora(x, site, y);
    }

    /// <summary>The adapters' part of <see cref="Linear"/>, which the bench measures alone.</summary>
    public void AddLora(DeviceTensor x, LoraSite site, DeviceTensor y) => kernels.AddLora((CpuActivations)x, site, loraTiles, (CpuActivations)y);

    public void RopeAndStore(DeviceTensor qkv, HeadNorms? norms, KvCache cache, int layer)
    {
        var to = (CpuKvCache)cache;
        var shape = cache.Shape;
        Debug.Assert(qkv.Cols == (shape.Heads + (2 * shape.KvHeads)) * shape.HeadDim);
        foreach (var position in batch!.Positions) to.ReachPosition(position + 1);
        var query = norms is null ? null : ((CpuWeights)norms.Query).Vector(shape.HeadDim);
        var key = norms is null ? null : ((CpuWeights)norms.Key).Vector(shape.HeadDim);
        kernels.RopeAndStore((CpuActivations)qkv, query, key, norms?.Epsilon ?? 0, to, layer, batch);
    }

    public void Attend(DeviceTensor qkv, KvCache cache, int layer, DeviceTensor y)
    {
        Debug.Assert(y.Cols == cache.Shape.Heads * cache.Shape.HeadDim);
        kernels.Attend((CpuActivations)qkv, (CpuKvCache)cache, layer, attendTiles, (CpuActivations)y);
    }

    public void SwiGlu(DeviceTensor gateUp, DeviceTensor y)
    {
        Debug.Assert(gateUp.Rows == y.Rows && gateUp.Cols == 2 * y.Cols);
        kernels.SwiGlu((CpuActivations)gateUp, (CpuActivations)y);
    }

    public void TakeLogitRows(DeviceTensor x, DeviceTensor y)
    {
        var (from, to) = ((CpuActivations)x, (CpuActivations)y);
        var rows = batch!.LogitRows;
        for (var i = 0; i < rows.Length; i++) new ReadOnlySpan<float>(from.Row(rows[i]), from.Cols).CopyTo(new Span<float>(to.Row(i), to.Cols));
    }

    public void Draw(DeviceTensor logits, int vocabulary)
    {
        Debug.Assert(vocabulary <= logits.Cols && batch!.Draws.Length <= logits.Rows);
        var from = (CpuActivations)logits;
        var draws = batch!.Draws;
        drawn = new Drawn[draws.Length];
        for (var i = 0; i < draws.Length; i++) drawn[i] = sampler.Draw(new ReadOnlySpan<float>(from.Row(i), vocabulary), draws[i]);
    }

    public void Download(DeviceTensor x, Span<float> host)
    {
        var from = (CpuActivations)x;
        for (var r = 0; r < host.Length / from.Cols; r++) new ReadOnlySpan<float>(from.Row(r), from.Cols).CopyTo(host[(r * from.Cols)..]);
    }

    public void Dispose()
    {
        workers.Dispose();
        kernels.Dispose();
        arena.Dispose();
    }
}
