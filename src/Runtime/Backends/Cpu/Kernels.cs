using System.Runtime.Intrinsics;

namespace TenantLora.Runtime.Backends.Cpu;

/// <summary>
/// The arithmetic verbs, compiled for one register width: splits each into items and hands them to the workers.
/// <para>
/// Inner loops of the jobs skip the JIT's tiers (AggressiveOptimization): unoptimised, none of the registers' operations is inlined, and
/// the demo model's first prompt of 100 tokens took 850 ms instead of 190, its first tokens 25 ms each instead of 2.
/// </para>
/// </summary>
internal abstract unsafe class Kernels : IDisposable
{
    /// <summary>Multiply-adds below which waking a second thread costs more than it brings (about 2 µs).</summary>
    protected const long SmallestItem = 32 * 1024;

    /// <summary>The lanes that this machine works on at once.</summary>
    public static int LanesOfThisMachine =>
        Vector512.IsHardwareAccelerated ? Lanes512.Count : Vector256.IsHardwareAccelerated ? Lanes256.Count : Lanes128.Count;

    public static Kernels Create(int lanes, Workers workers) => lanes switch
    {
        16 => new Kernels<Lanes512>(workers),
        8 => new Kernels<Lanes256>(workers),
        _ => new Kernels<Lanes128>(workers),
    };

    public abstract long SizeOf(LoraModules modules);
    public abstract CpuAdapter LoadAdapter(LoraModules modules);
    public abstract void RmsNorm(CpuActivations x, float* weight, float epsilon, CpuActivations y);
    public abstract void Linear(CpuActivations x, CpuWeights weight, float* bias, CpuActivations y);
    public abstract void AddLora(CpuActivations x, LoraSite site, List<LoraTile> tiles, CpuActivations y);
    public abstract void RopeAndStore(CpuActivations qkv, float* queryNorm, float* keyNorm, float epsilon, CpuKvCache cache, int layer, Batch batch);
    public abstract void Attend(CpuActivations qkv, CpuKvCache cache, int layer, List<AttendTile> tiles, CpuActivations y);
    public abstract void SwiGlu(CpuActivations gateUp, CpuActivations y);
    public abstract void Add(CpuActivations x, CpuActivations y);
    public abstract void Dispose();
}

internal sealed unsafe class Kernels<V>(Workers workers) : Kernels where V : struct, ILanes<V>
{
    private readonly Arena room = new(); // what a verb's items need, until the next verb

    public override long SizeOf(LoraModules modules) => CpuAdapter.SizeOf(modules, V.Count);

    public override CpuAdapter LoadAdapter(LoraModules modules) => new(modules, LoraJob<V>.TileOutputs, V.Count);

    public override void RmsNorm(CpuActivations x, float* weight, float epsilon, CpuActivations y)
    {
        var itemRows = RowsOfAnItem(x.Cols);
        workers.Run(Divide(x.Rows, itemRows), new RmsNormJob<V>(x, weight, epsilon, y, itemRows));
    }

    public override void Linear(CpuActivations x, CpuWeights weight, float* bias, CpuActivations y)
    {
        switch (weight.Type)
        {
            case DType.F32: Linear<StoredF32>(x, weight, bias, y); break;
            case DType.F16: Linear<StoredF16>(x, weight, bias, y); break;
            default: Linear<StoredBF16>(x, weight, bias, y); break;
        }
    }

    // Sixteen items a thread, so that one thread's bad luck is soon made up for, in whole tiles, and none too small to be worth handing out.
    private void Linear<T>(CpuActivations x, CpuWeights weight, float* bias, CpuActivations y) where T : struct, IStored
    {
        var fair = Divide(y.Cols, workers.Count * 16);
        var worthwhile = Divide(SmallestItem, (long)x.Rows * x.Cols);
        var itemOutputs = Divide(Math.Max(fair, worthwhile), Dots<V>.EvenOutputs) * Dots<V>.EvenOutputs;
        workers.Run(Divide(y.Cols, itemOutputs), new LinearJob<V, T>(x, weight, bias, y, itemOutputs));
    }

    public override void AddLora(CpuActivations x, LoraSite site, List<LoraTile> tiles, CpuActivations y)
    {
        var maxRank = 0;
        foreach (var tile in tiles) maxRank = Math.Max(maxRank, tile.Adapter.MaxRank);
        if (maxRank == 0) return;
        room.Reset();
        var each = room.Take((nint)workers.Count * LoraJob<V>.RoomFor(maxRank));
        workers.Run(tiles.Count * site.Parts.Length, new LoraJob<V>(x, site, tiles, y, each, maxRank));
    }

    public override void RopeAndStore(CpuActivations qkv, float* queryNorm, float* keyNorm, float epsilon, CpuKvCache cache, int layer, Batch batch)
    {
        var itemRows = RowsOfAnItem(qkv.Cols);
        workers.Run(Divide(qkv.Rows, itemRows), new RopeJob<V>(qkv, queryNorm, keyNorm, epsilon, cache, layer, batch, itemRows));
    }

    public override void Attend(CpuActivations qkv, CpuKvCache cache, int layer, List<AttendTile> tiles, CpuActivations y)
    {
        var maxBlocks = 0;
        foreach (var tile in tiles) maxBlocks = Math.Max(maxBlocks, Divide(tile.FirstPosition + tile.Rows, cache.BlockSize));
        room.Reset();
        var each = room.Take(workers.Count * AttendJob<V>.RoomFor(cache, maxBlocks));
        workers.Run(tiles.Count * cache.Shape.KvHeads, new AttendJob<V>(qkv, cache, layer, tiles, y, each, maxBlocks));
    }

    public override void SwiGlu(CpuActivations gateUp, CpuActivations y)
    {
        var job = new SwiGluJob<V>(gateUp, y);
        workers.Run(job.Items, job);
    }

    public override void Add(CpuActivations x, CpuActivations y)
    {
        var job = new AddJob<V>(x, y);
        workers.Run(job.Items, job);
    }

    public override void Dispose() => room.Dispose();

    private static int RowsOfAnItem(int cols) => Divide(SmallestItem, cols);

    private static int Divide(long count, long by) => (int)((count + by - 1) / by);
}
