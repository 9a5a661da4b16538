using System.Diagnostics;
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
    private Batch? batch;

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

    public DeviceTensor Upload(params ReadOnlySpan<HostTensor> parts) => CpuWeights.Create(parts);

    public KvCache CreateKvCache(int blocks, int blockSize, AttentionShape shape) => new CpuKvCache(blocks, blockSize, shape);

    public DeviceAdapter LoadAdapter(LoraModules modules) => kernels.LoadAdapter(modules);

    public void Begin(Batch batch)
    {
        this.batch = batch;
        arena.Reset();
        loraTiles.Clear();
        foreach (var (firstRow, rows, adapter) in batch.Segments)
            if (adapter is CpuAdapter own)
                for (var r = 0; r < rows; r += LoraTile.MostRows) loraTiles.Add(new LoraTile(own, firstRow + r, Math.Min(LoraTile.MostRows, rows - r)));
        attendTiles.Clear();
        foreach (var (firstRow, rows, context, blocks) in batch.Spans)
            for (var r = 0; r < rows; r += AttendTile.MostRows)
                attendTiles.Add(new AttendTile(blocks, firstRow + r, Math.Min(AttendTile.MostRows, rows - r), context - rows + r));
    }

    public DeviceTensor Scratch(int rows, int cols) => new CpuActivations(arena.Take((nint)rows * cols), rows, cols);

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

    public void Linear(DeviceTensor x, DeviceTensor weight, DeviceTensor? bias, DeviceTensor y)
    {
        Debug.Assert(x.Rows == y.Rows && x.Cols == weight.Cols && y.Cols == weight.Rows);
        kernels.Linear((CpuActivations)x, (CpuWeights)weight, bias is null ? null : ((CpuWeights)bias).Vector(y.Cols), (CpuActivations)y);
    }

    public void AddLora(DeviceTensor x, LoraSite site, DeviceTensor y)
    {
        Debug.Assert(x.Rows == y.Rows);
        kernels.AddLora((CpuActivations)x, site, loraTiles, (CpuActivations)y);
    }

    public void RopeAndStore(DeviceTensor qkv, HeadNorms? norms, KvCache cache, int layer)
    {
        var to = (CpuKvCache)cache;
        var shape = cache.Shape;
        Debug.Assert(qkv.Cols == (shape.Heads + (2 * shape.KvHeads)) * shape.HeadDim);
        foreach (var position in batch!.Positions) to.ReachPosition(position + 1);
        var (query, key) = norms is null ? (0, 0) : ((nint)((CpuWeights)norms.Query).Vector(shape.HeadDim), (nint)((CpuWeights)norms.Key).Vector(shape.HeadDim));
        kernels.RopeAndStore((CpuActivations)qkv, (float*)query, (float*)key, norms?.Epsilon ?? 0, to, layer, batch);
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

    public void Add(DeviceTensor x, DeviceTensor y)
    {
        Debug.Assert(x.Rows == y.Rows && x.Cols == y.Cols);
        kernels.Add((CpuActivations)x, (CpuActivations)y);
    }

    public void TakeLogitRows(DeviceTensor x, DeviceTensor y)
    {
        var (from, to) = ((CpuActivations)x, (CpuActivations)y);
        var rows = batch!.LogitRows;
        for (var i = 0; i < rows.Length; i++) new ReadOnlySpan<float>(from.Row(rows[i]), from.Cols).CopyTo(new Span<float>(to.Row(i), to.Cols));
    }

    public void Download(DeviceTensor x, Span<float> host)
    {
        var from = (CpuActivations)x;
        for (var r = 0; r < from.Rows; r++) new ReadOnlySpan<float>(from.Row(r), from.Cols).CopyTo(host[(r * from.Cols)..]);
    }

    public void Dispose()
    {
        workers.Dispose();
        kernels.Dispose();
        arena.Dispose();
    }
}
