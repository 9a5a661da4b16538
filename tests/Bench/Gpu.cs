using System.Diagnostics;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Security.Cryptography;
using TenantLora.Runtime.Backends;
using TenantLora.Runtime.Backends.Cuda;
using TenantLora.Runtime.Models;

namespace TenantLora.Bench;

/// <summary>
/// Decode steps and prompts of true shapes with random weights on a GPU: base, and adapters of one to as many as there are rows. Times are of
/// whole steps, drawing and the host's part included, one step prepared while another runs. Each line says what share of the copy rate measured
/// in the same run its bytes are, and a hash of the logits; beside it how far a row's logits are from those of the row alone.
/// </summary>
internal static unsafe class Gpu
{
    private const int BlockSize = 16, Context = 512, Sequences = 8, Length = 1024;

    public static int Run(string[] args)
    {
        var arguments = new Arguments(args, "model", "rows", "device", "quick", "steps", "profile");
        var models = (arguments["model"] ?? "1b,8b").Split(',');
        var rows = arguments.Integers("rows") ?? [1, 16, 64, 128];
        var quick = arguments["quick"] == "yes";
        using var pool = new RandomPool(1100L << 20);
        if (arguments["profile"] == "yes")
        {
            Profile(models[0], rows, pool);
            return 0;
        }
        foreach (var model in models) Table(model, rows, int.Parse(arguments["device"] ?? "0", CultureInfo.InvariantCulture), int.Parse(arguments["steps"] ?? "40", CultureInfo.InvariantCulture), quick, pool);
        return 0;
    }

    private static void Table(string name, int[] rowCounts, int ordinal, int steps, bool quick, RandomPool pool)
    {
        var config = ModelConfig.Load(name == "1b" ? RandomModel.Llama1B() : RandomModel.Llama8B());
        var most = rowCounts.Max();
        var begun = Stopwatch.GetTimestamp();
        using var model = new GpuModel(config, pool, ordinal, most, adapterBytes: AdapterBytes(config, AdapterShape.Lora) * Math.Max(most, Sequences) + (64 << 20));
        var copy = model.CopyRate();
        Console.WriteLine($"\n{name}: {model.Backend.Name}; copy {copy / 1e9:f0} GB/s; loaded in {Stopwatch.GetElapsedTime(begun).TotalSeconds:f1} s; {model.Plan}");
        model.FillCache(Context);
        Console.WriteLine($"{"rows",4}  {"adapters",-28} {"ms/step",8} {"tok/s",9} {"of base",8} {"floor ms",9} {"share",6} {"GB/step",8}  {"logits",-12} {"alone: largest difference",26}");
        foreach (var rows in rowCounts)
        {
            var cases = new List<(string Label, AdapterShape? Shape, int Distinct)> { ("none", null, 0) };
            foreach (var distinct in (int[])[1, 4, 16, 64, 128])
                if (distinct <= rows && (!quick || distinct == rows)) cases.Add(($"{distinct} PRoLoRA r16 u2 m4 n4", AdapterShape.PRoLora, distinct));
            cases.Add(($"{rows} LoRA r16", AdapterShape.Lora, rows));
            var baseline = 0.0;
            foreach (var (label, shape, distinct) in cases)
            {
                var adapters = Enumerable.Range(0, distinct).Select(i => model.Backend.LoadAdapter(pool.Adapter(config, shape!, i))).ToArray();
                var assigned = Enumerable.Range(0, rows).Select(r => distinct == 0 ? null : adapters[r * distinct / rows]).ToArray();
                var milliseconds = model.TimeSteps(Context, assigned, steps);
                if (distinct == 0) baseline = milliseconds;
                var bytes = Weights(config) + adapters.Sum(a => a.Bytes) + (4L * config.Layers * config.KvHeads * config.HeadDim * Context * rows);
                var floor = bytes / copy * 1e3;
                var logits = model.Logits(Context, assigned, 0);
                var hash = Convert.ToHexStringLower(SHA256.HashData(MemoryMarshal.AsBytes(logits.AsSpan())).AsSpan(0, 6));
                var difference = 0f;
                var identical = 0;
                int[] looked = [.. new[] { 0, rows / 3, rows - 1 }.Distinct()];
                foreach (var r in looked)
                {
                    var alone = model.Logits(Context, [assigned[r]], r);
                    var together = logits.AsSpan(r * config.VocabSize, config.VocabSize);
                    if (alone.AsSpan().SequenceEqual(together)) identical++;
                    for (var i = 0; i < alone.Length; i++) difference = Math.Max(difference, Math.Abs(alone[i] - together[i]));
                }
                Console.WriteLine($"{rows,4}  {label,-28} {milliseconds,8:f3} {rows / milliseconds * 1e3,9:f0} {milliseconds / baseline - 1,8:+0.0%;-0.0%} {floor,9:f3} {floor / milliseconds,6:p0} {bytes / 1e9,8:f2}  {hash,-12} {(identical == looked.Length && !logits.Any(float.IsNaN) ? "none, bit for bit" : $"{difference:g3} of {logits.Max(Math.Abs):g3}"),26}");
                foreach (var adapter in adapters) adapter.Dispose();
            }
        }
        if (!quick) Prefill(model, config, pool);
    }

    /// <summary>A step of each kind launched verb by verb, for a profiler to look at: base, then an adapter a row, for each number of rows.</summary>
    private static void Profile(string name, int[] rowCounts, RandomPool pool)
    {
        var config = ModelConfig.Load(name == "1b" ? RandomModel.Llama1B() : RandomModel.Llama8B());
        using var model = new GpuModel(config, pool, 0, rowCounts.Max(), adapterBytes: (AdapterBytes(config, AdapterShape.PRoLora) * rowCounts.Max()) + (64 << 20));
        model.Backend.Records = false;
        var adapters = Enumerable.Range(0, rowCounts.Max()).Select(i => model.Backend.LoadAdapter(pool.Adapter(config, AdapterShape.PRoLora, i))).ToArray();
        foreach (var rows in rowCounts)
        {
            model.Logits(Context, new DeviceAdapter?[rows], 0);
            model.Logits(Context, adapters[..rows], 0);
        }
    }

    private static void Prefill(GpuModel model, ModelConfig config, RandomPool pool)
    {
        var flops = 2.0 * Sequences * Length * Linears(config);
        var rate = model.MatrixRate();
        Console.WriteLine($"prompts: {Sequences} × {Length} tokens in steps of {GpuModel.StepRows}; a bf16 product of 8192³ runs at {rate / 1e12:f0} TFLOP/s");
        var baseline = 0.0;
        foreach (var (label, shape) in new (string, AdapterShape?)[] { ("none", null), ($"{Sequences} PRoLoRA r16 u2 m4 n4", AdapterShape.PRoLora), ($"{Sequences} LoRA r16", AdapterShape.Lora) })
        {
            var adapters = shape is null ? [] : Enumerable.Range(0, Sequences).Select(i => model.Backend.LoadAdapter(pool.Adapter(config, shape, i))).ToArray();
            var times = new List<double>();
            for (var i = 0; i < 4; i++) times.Add(model.TimePrompts(Sequences, Length, s => adapters.Length == 0 ? null : adapters[s]));
            var seconds = times.Skip(1).Order().ElementAt(1);
            if (shape is null) baseline = seconds;
            Console.WriteLine($"      {label,-28} {seconds * 1e3,8:f1} ms, {Sequences * Length / seconds,8:f0} tokens/s, {flops / seconds / 1e12,5:f0} TFLOP/s in linears = {flops / seconds / rate:p0} of the product's rate, {baseline / seconds:p1} of base");
            foreach (var adapter in adapters) adapter.Dispose();
        }
    }

    private static long AdapterBytes(ModelConfig c, AdapterShape s) => CudaAdapters.SizeOf(RandomPool.Shapes(c, s));

    private static long Linears(ModelConfig c) => (long)c.Layers * c.HiddenSize * ((((c.Heads * 2) + (c.KvHeads * 2)) * c.HeadDim) + (3 * c.IntermediateSize));

    private static long Weights(ModelConfig c) => 2L * (Linears(c) + ((long)c.VocabSize * c.HiddenSize));

    /// <summary>A model on the GPU without an engine.</summary>
    private sealed class GpuModel : IDisposable
    {
        private readonly ModelConfig config;
        private readonly ModelWeights weights;
        private readonly KvCache cache;
        private readonly Transformer transformer;
        private readonly int perSequence = (1024 / BlockSize) + 1;
        private readonly int sequences;

        public GpuModel(ModelConfig config, RandomPool pool, int ordinal, int sequences, long adapterBytes)
        {
            this.config = config;
            this.sequences = Math.Max(sequences, 8);
            Backend = new CudaBackend(CudaDevice.Open(ordinal), 16, Math.Max(sequences, 8), StepRows);
            weights = ModelWeights.Load(config, pool.Tensor, Backend);
            var plan = Backend.Plan(config.ToAttentionShape(), new MemoryWish((long)this.sequences * perSequence * BlockSize, adapterBytes, BlockSize, StepRows, 1024));
            Plan = plan.Description;
            cache = Backend.CreateKvCache(plan.Blocks, BlockSize, config.ToAttentionShape());
            transformer = new Transformer(config, weights, Backend, cache, config.VocabSize);
        }

        public CudaBackend Backend { get; }

        public string Plan { get; }

        public const int StepRows = 2048;

        /// <summary>Bytes a second, read and written, of a copy from device to device.</summary>
        public double CopyRate() => Backend.CopyRate(2L << 30);

        public double MatrixRate() => Backend.MatrixRate(8192);

        /// <summary>Gives every sequence a prompt of so many random tokens.</summary>
        public void FillCache(int length)
        {
            for (var first = 0; first < sequences; first += 4) Read([.. Enumerable.Range(first, Math.Min(4, sequences - first))], 0, length, _ => null, draw: false, collect: true);
            Backend.Synchronize();
        }

        public double TimePrompts(int count, int length, Func<int, DeviceAdapter?> adapterOf)
        {
            Backend.Synchronize();
            var begun = Stopwatch.GetTimestamp();
            for (var first = 0; first < count; first += StepRows / length)
            {
                Read([.. Enumerable.Range(first, StepRows / length)], 0, length, adapterOf, draw: true);
                if (first > 0) Backend.Collect();
            }
            Backend.Collect();
            return Stopwatch.GetElapsedTime(begun).TotalSeconds;
        }

        public double TimeSteps(int context, DeviceAdapter?[] adapters, int steps)
        {
            var batch = Decode(context, adapters, 0, draw: true);
            for (var i = 0; i < 3; i++)
            {
                transformer.Run(batch);
                Backend.Collect();
            }
            var windows = new List<double>();
            for (var w = 0; w < 5; w++)
            {
                transformer.Run(batch);
                var begun = Stopwatch.GetTimestamp();
                for (var i = 0; i < steps; i++)
                {
                    transformer.Run(batch);     // while the one before it runs
                    Backend.Collect();
                }
                windows.Add(Stopwatch.GetElapsedTime(begun).TotalMilliseconds / steps);
                Backend.Collect();
            }
            return windows.Order().ElementAt(2);
        }

        /// <summary>Rows are the sequences from <paramref name="first"/> on.</summary>
        public float[] Logits(int context, DeviceAdapter?[] adapters, int first)
        {
            var device = transformer.Run(Decode(context, adapters, first, draw: false))!;
            var host = new float[adapters.Length * config.VocabSize];
            Backend.Download(device, host);
            Backend.Collect();
            return host;
        }

        public void Dispose()
        {
            cache.Dispose();
            weights.Dispose();
            Backend.Dispose();
        }

        private int[] BlocksOf(int sequence) => [.. Enumerable.Range(sequence * perSequence, perSequence)];

        private int Slot(int sequence, int position) => (((sequence * perSequence) + (position / BlockSize)) * BlockSize) + (position % BlockSize);

        private int Token(int sequence, int position) => (int)((((uint)sequence * 7919) + ((uint)position * 104729) + 5) % (uint)config.VocabSize);

        private void Read(int[] which, int from, int count, Func<int, DeviceAdapter?> adapterOf, bool draw, bool collect = false)
        {
            transformer.Run(new Batch
            {
                Tokens = [.. which.SelectMany(s => Enumerable.Range(from, count).Select(p => Token(s, p)))],
                Positions = [.. which.SelectMany(_ => Enumerable.Range(from, count))],
                Slots = [.. which.SelectMany(s => Enumerable.Range(from, count).Select(p => Slot(s, p)))],
                Spans = [.. which.Select((s, i) => new BatchSpan(i * count, count, from + count, BlocksOf(s)))],
                Segments = [.. which.Select((s, i) => new AdapterSegment(i * count, count, adapterOf(s)))],
                LogitRows = draw ? [.. which.Select((_, i) => (i * count) + count - 1)] : [],
                Draws = draw ? [.. which.Select(_ => new DrawRule())] : [],
            });
            if (collect) Backend.Collect();
        }

        private Batch Decode(int context, DeviceAdapter?[] adapters, int first, bool draw)
        {
            var segments = new List<AdapterSegment>();
            for (var r = 0; r < adapters.Length; r++)
                if (segments.Count > 0 && segments[^1].Adapter == adapters[r]) segments[^1] = segments[^1] with { Rows = segments[^1].Rows + 1 };
                else segments.Add(new AdapterSegment(r, 1, adapters[r]));
            var rows = Enumerable.Range(0, adapters.Length);
            return new Batch
            {
                Tokens = [.. rows.Select(r => Token(first + r, context - 1))],
                Positions = [.. rows.Select(_ => context - 1)],
                Slots = [.. rows.Select(r => Slot(first + r, context - 1))],
                Spans = [.. rows.Select(r => new BatchSpan(r, 1, context, BlocksOf(first + r)))],
                Segments = [.. segments],
                LogitRows = [.. rows],
                Draws = draw ? [.. rows.Select(_ => new DrawRule())] : [],
            };
        }
    }
}

/// <summary>Tensors of random bf16 that overlap in one buffer: a true shape costs no time to invent. Magnitudes 1/64 to 1/32; norms are 1.</summary>
internal sealed unsafe class RandomPool : IDisposable
{
    private readonly NativeBuffer buffer, ones;
    private readonly long count;
    private long next;

    public RandomPool(long bytes)
    {
        (buffer, ones, count) = (new NativeBuffer(bytes), new NativeBuffer(1 << 20), bytes / 2);
        var data = (ushort*)buffer.Data;
        Parallel.For(0, 64, part =>
        {
            var state = ((ulong)(part + 1) * 0x9E3779B97F4A7C15UL) | 1;
            for (var i = count * part / 64; i < count * (part + 1) / 64; i++)
            {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                data[i] = (ushort)((state & 0x807F) | (121 << 7));
            }
        });
        new Span<ushort>(ones.Data, 1 << 19).Fill(0x3F80);
    }

    public HostTensor Tensor(string name, int rows, int cols)
    {
        if (name.Contains("norm", StringComparison.Ordinal)) return new HostTensor(name, DType.BF16, rows, cols, ones.Data, ones);
        var size = (long)rows * cols;
        next = (next + (size / 3) + 1048583) % (count - size + 1) & ~7L;
        return new HostTensor(name, DType.BF16, rows, cols, buffer.Data + (next * 2), buffer);
    }

    public LoraModules Adapter(ModelConfig config, AdapterShape shape, int seed)
    {
        next = seed * 7368787L % count;
        return shape.Modules(config, Tensor);
    }

    /// <summary>Geometry without values.</summary>
    public static LoraModules Shapes(ModelConfig config, AdapterShape shape) => shape.Modules(config, (name, rows, cols) => new HostTensor(name, DType.BF16, rows, cols, null, shape));

    public void Dispose()
    {
        buffer.Dispose();
        ones.Dispose();
    }
}
