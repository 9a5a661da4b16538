using System.Diagnostics;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using TenantLora.Runtime.Backends;
using TenantLora.Runtime.Backends.Cpu;

namespace TenantLora.Bench;

/// <summary>
/// The Cpu backend's verbs at the shape of Llama-3.2-1B in bf16, each against what the machine was seen to do in the same run: bytes a
/// second of reading and multiply-adds a second, all threads. Weights are random and larger than the last cache, so every pass comes from memory.
/// </summary>
internal static unsafe class CpuKernels
{
    private const int Hidden = 2048, Inner = 8192, Heads = 32, KvHeads = 8, HeadDim = 64, ModelLayers = 16, Vocabulary = 128256;
    private const int Layers = 2; // as many as the caches cannot hold
    private static readonly int[] RowCounts = [1, 4, 16, 64, 256];

    /// <param name="args">Threads; none: one a core.</param>
    public static int Run(string[] args)
    {
        var threads = args.Length > 0 ? int.Parse(args[0], CultureInfo.InvariantCulture) : 0;
        using var backend = new CpuBackend(threads);
        using var probe = new ReadProbe(threads);
        var bandwidth = probe.Best(1);
        var peak = MultiplyAddPeak(threads);
        Console.WriteLine($"{backend.Name}: reads {bandwidth / 1e9:F1} GB/s, multiplies and adds {peak / 1e9:F0} GFLOP/s");

        var layers = new LayerWeights[Layers];
        for (var i = 0; i < Layers; i++) layers[i] = new LayerWeights(backend);
        var linears = Linears(backend, layers, bandwidth, peak);
        Loras(backend, linears);
        Attentions(backend, bandwidth);
        return 0;
    }

    /// <summary>Prints, and returns for each row count the seconds of a layer's linears and its share of the output head.</summary>
    private static Dictionary<int, double> Linears(CpuBackend backend, LayerWeights[] layers, double bandwidth, double peak)
    {
        Console.WriteLine($"{"linears of a layer",-44}{"ms",10}{"GB/s",8}{"share",7}{"GFLOP/s",9}{"share",7}{"model, tokens/s",17}");
        var results = new Dictionary<int, double>();
        foreach (var rows in RowCounts)
        {
            var seconds = LinearSeconds(backend, layers, rows);
            var (bytes, flops) = (LayerWeights.Bytes / seconds, rows * LayerWeights.Bytes / seconds); // 2 bytes and 2 operations a weight
            results[rows] = seconds * (1 + ((double)Vocabulary * Hidden * 2 / LayerWeights.Bytes / ModelLayers));
            Console.WriteLine($"{rows + " rows",-44}{seconds * 1e3,10:F2}{bytes / 1e9,8:F1}{bytes / bandwidth,7:P0}{flops / 1e9,9:F0}{flops / peak,7:P0}{rows / (ModelLayers * results[rows]),17:F1}");
        }
        return results;
    }

    private static void Loras(CpuBackend backend, Dictionary<int, double> linears)
    {
        Console.WriteLine($"{"adapters on all seven linears of a layer",-44}{"ms",10}{"MB each",9}{"speed of base alone",21}");
        foreach (var (name, u, chunks) in new[] { ("PRoLoRA r16 u2 m4 n4", 2, 4), ("LoRA r16", 0, 1) })
        {
            var adapters = Enumerable.Range(0, 16).Select(_ => Adapter(backend, 16, u, chunks)).ToArray();
            foreach (var (rows, distinct) in new[] { (1, 1), (16, 1), (16, 16), (256, 1) })
            {
                var segments = Enumerable.Range(0, distinct).Select(i => new AdapterSegment(i * rows / distinct, rows / distinct, adapters[i])).ToArray();
                var seconds = LoraSeconds(backend, rows, segments);
                Console.WriteLine($"{$"{name}, {rows} rows, {distinct} distinct",-44}{seconds * 1e3,10:F3}{adapters[0].Bytes / 1e6,9:F1}{linears[rows] / (linears[rows] + seconds),21:P1}");
            }
            foreach (var adapter in adapters) adapter.Dispose();
        }
    }

    private static void Attentions(CpuBackend backend, double bandwidth)
    {
        Console.WriteLine($"{"attention of a layer",-44}{"ms",10}{"GB/s",8}{"share",7}");
        foreach (var (sequences, rows, context) in new[] { (1, 1, 512), (1, 1, 2048), (16, 1, 512), (16, 1, 2048), (1, 256, 256), (1, 256, 2048) })
        {
            const int BlockSize = 16;
            var shape = new AttentionShape(Layers, Heads, KvHeads, HeadDim, [.. Enumerable.Range(0, HeadDim / 2).Select(i => MathF.Pow(500000, -2f * i / HeadDim))], new int[Layers]);
            var each = context / BlockSize;
            using var cache = backend.CreateKvCache(sequences * each, BlockSize, shape);
            var spans = Enumerable.Range(0, sequences).Select(s => new BatchSpan(s * rows, rows, context, [.. Enumerable.Range(s * each, each)])).ToArray();
            Begin(backend, sequences * rows, spans, []);
            var qkv = backend.Scratch(sequences * rows, (Heads + (2 * KvHeads)) * HeadDim);
            var y = backend.Scratch(sequences * rows, Heads * HeadDim);
            new Span<float>(((CpuActivations)qkv).Data, qkv.Rows * qkv.Cols).Fill(0.01f);
            for (var l = 0; l < Layers; l++) backend.RopeAndStore(qkv, null, cache, l);
            var layer = 0;
            var seconds = Best(() => backend.Attend(qkv, cache, layer++ % Layers, y), 0.3);
            var bytes = 2.0 * sequences * context * KvHeads * HeadDim * sizeof(float) / seconds;
            var share = rows == 1 ? $"{bytes / 1e9,8:F1}{bytes / bandwidth,7:P0}" : $"{4.0 * rows * (context - (rows / 2)) * Heads * HeadDim / seconds / 1e9,8:F0} GFLOP/s";
            Console.WriteLine($"{$"{sequences} sequences, {rows} rows each, context {context}",-44}{seconds * 1e3,10:F3}{share}");
        }
    }

    private static double LinearSeconds(CpuBackend backend, LayerWeights[] layers, int rows)
    {
        Begin(backend, rows, [], []);
        var layer = 0;
        double Of(int inputs, int outputs, Func<LayerWeights, DeviceTensor> weight)
        {
            var (x, y) = (Filled(backend, rows, inputs), backend.Scratch(rows, outputs));
            return Best(() => backend.Linear(x, weight(layers[layer++ % Layers]), null, null, y), 0.3);
        }
        return Of(Hidden, (Heads + (2 * KvHeads)) * HeadDim, l => l.Qkv) + Of(Hidden, Hidden, l => l.Output) + Of(Hidden, 2 * Inner, l => l.GateUp) + Of(Inner, Hidden, l => l.Down);
    }

    /// <summary>Goes round the layers, so that sixteen adapters come from memory; one may stay in the last cache.</summary>
    private static double LoraSeconds(CpuBackend backend, int rows, AdapterSegment[] segments)
    {
        Begin(backend, rows, [], segments);
        var layer = 0;
        double Of(int inputs, int outputs, params (Projection, int)[] parts)
        {
            var (x, y) = (Filled(backend, rows, inputs), Filled(backend, rows, outputs));
            var sites = Enumerable.Range(0, ModelLayers).Select(l => new LoraSite(l, parts)).ToArray();
            return Best(() => backend.AddLora(x, sites[layer++ % ModelLayers], y), 0.2);
        }
        return Of(Hidden, (Heads + (2 * KvHeads)) * HeadDim, (Projection.Query, 0), (Projection.Key, Heads * HeadDim), (Projection.Value, (Heads + KvHeads) * HeadDim))
            + Of(Hidden, Hidden, (Projection.Output, 0)) + Of(Hidden, 2 * Inner, (Projection.Gate, 0), (Projection.Up, Inner)) + Of(Inner, Hidden, (Projection.Down, 0));
    }

    private static DeviceAdapter Adapter(CpuBackend backend, int rank, int u, int chunks)
    {
        var modules = new LoraModules(ModelLayers);
        for (var l = 0; l < ModelLayers; l++)
            foreach (var (projection, inputs, outputs) in new[]
            {
                (Projection.Query, Hidden, Heads * HeadDim), (Projection.Key, Hidden, KvHeads * HeadDim), (Projection.Value, Hidden, KvHeads * HeadDim),
                (Projection.Output, Hidden, Hidden), (Projection.Gate, Hidden, Inner), (Projection.Up, Hidden, Inner), (Projection.Down, Inner, Hidden),
            })
                modules[l, projection] = new LoraModule
                {
                    Inputs = inputs,
                    Outputs = outputs,
                    ChunksA = chunks,
                    ChunksB = chunks,
                    ShiftA = (rank - u) / chunks,
                    ShiftB = (rank - u) / chunks,
                    Scale = 1,
                    A = Random(rank - u, inputs / chunks),
                    B = Random(outputs / chunks, rank - u),
                    AVec = u > 0 ? Random(u, inputs) : null,
                    BVec = u > 0 ? Random(u, outputs) : null,
                };
        return backend.LoadAdapter(modules);
    }

    private static void Begin(CpuBackend backend, int rows, BatchSpan[] spans, AdapterSegment[] segments) => backend.Begin(new Batch
    {
        Tokens = new int[rows],
        Positions = [.. Enumerable.Range(0, rows)],
        Slots = [.. Enumerable.Range(0, rows)],
        Spans = spans,
        Segments = segments,
        LogitRows = [],
    });

    private static CpuActivations Filled(CpuBackend backend, int rows, int cols)
    {
        var x = (CpuActivations)backend.Scratch(rows, cols);
        for (var i = 0; i < rows * cols; i++) x.Data[i] = (i % 19 * 0.01f) - 0.09f;
        return x;
    }

    /// <summary>bf16 of about ±0.02 that lives as long as the process.</summary>
    private static HostTensor Random(int rows, int cols)
    {
        var data = (ushort*)NativeMemory.AlignedAlloc((nuint)rows * (nuint)cols * 2, 64);
        var state = 88172645463325252ul;
        for (nint i = 0; i < (nint)rows * cols; i++)
        {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            data[i] = (ushort)(0x3C00 | (state & 0x80FF));
        }
        return new HostTensor("random", DType.BF16, rows, cols, (byte*)data, new object());
    }

    private static double MultiplyAddPeak(int threads)
    {
        using var workers = new Workers(threads > 0 ? threads : Environment.ProcessorCount);
        var seconds = Best(() => workers.Run(workers.Count, default(MultiplyAddJob)), 0.5);
        return workers.Count * MultiplyAddJob.Flops / seconds;
    }

    /// <summary>The shortest of as many runs as fit into the time.</summary>
    private static double Best(Action run, double forSeconds)
    {
        var best = double.MaxValue;
        var total = Stopwatch.StartNew();
        for (var n = 0; n < 4 || total.Elapsed.TotalSeconds < forSeconds; n++)
        {
            var start = Stopwatch.GetTimestamp();
            run();
            best = Math.Min(best, Stopwatch.GetElapsedTime(start).TotalSeconds);
        }
        return best;
    }

    private readonly struct MultiplyAddJob : IJob
    {
        private const int Turns = 100_000;

        public static double Flops => 2.0 * 12 * Turns * Kernels.LanesOfThisMachine;


        public void Run(int item, int worker)
        {
            var sum = Vector512.IsHardwareAccelerated ? Chains<Lanes512>() : Vector256.IsHardwareAccelerated ? Chains<Lanes256>() : Chains<Lanes128>();
            if (sum == 12345) Console.WriteLine();
        }

        private static float Chains<V>() where V : struct, ILanes<V>
        {
            V x = V.Broadcast(0.999f), a = x, b = x, c = x, d = x, e = x, f = x, g = x, h = x, i = x, j = x, k = x, l = x;
            for (var n = 0; n < Turns; n++)
            {
                a = V.MultiplyAdd(a, x, x); b = V.MultiplyAdd(b, x, x); c = V.MultiplyAdd(c, x, x); d = V.MultiplyAdd(d, x, x);
                e = V.MultiplyAdd(e, x, x); f = V.MultiplyAdd(f, x, x); g = V.MultiplyAdd(g, x, x); h = V.MultiplyAdd(h, x, x);
                i = V.MultiplyAdd(i, x, x); j = V.MultiplyAdd(j, x, x); k = V.MultiplyAdd(k, x, x); l = V.MultiplyAdd(l, x, x);
            }
            return V.Sum(a + b + c + d + e + f + g + h + i + j + k + l);
        }
    }

    /// <summary>One layer's linears, stacked as the forward pass stacks them.</summary>
    private sealed class LayerWeights(CpuBackend backend)
    {
        public readonly DeviceTensor Qkv = backend.Upload(Random(Heads * HeadDim, Hidden), Random(KvHeads * HeadDim, Hidden), Random(KvHeads * HeadDim, Hidden));
        public readonly DeviceTensor Output = backend.Upload(Random(Hidden, Hidden));
        public readonly DeviceTensor GateUp = backend.Upload(Random(Inner, Hidden), Random(Inner, Hidden));
        public readonly DeviceTensor Down = backend.Upload(Random(Hidden, Inner));

        public static double Bytes => 2.0 * (((Heads + (2 * KvHeads)) * HeadDim * Hidden) + (Hidden * Hidden) + (3 * Inner * Hidden));
    }
}
