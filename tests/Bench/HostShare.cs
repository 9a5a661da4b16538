using System.Diagnostics;
using System.Globalization;
using TenantLora.Runtime;
using TenantLora.Runtime.Backends;

namespace TenantLora.Bench;

/// <summary>
/// What the host does beside a device: an engine whose backend computes nothing, so that scheduling, batches and handing tokens to readers are all there
/// is. The readers run on the thread pool as a server's do, and have as many tokens to take in a second as the loop makes.
/// </summary>
internal static class HostShare
{
    public static async Task<int> Run(string[] args)
    {
        var arguments = new Arguments(args, "rows", "steps", "device-us");
        int Integer(string name, int standard) => arguments[name] is { } text ? int.Parse(text, CultureInfo.InvariantCulture) : standard;
        var (rowCounts, steps, deviceTime) = (arguments.Integers("rows") ?? [1, 16, 64, 256], Integer("steps", 1000), TimeSpan.FromMicroseconds(Integer("device-us", 0)));
        using var folder = new BenchFolder("1b");
        using var pool = new RandomPool(folder.PoolBytes);
        await using var engine = new BenchEngine(folder, pool, new EngineOptions { ModelDirectory = folder.Path, CacheTokens = rowCounts.Max() * (steps + 64), ContextLength = steps + 64, MaxSequences = rowCounts.Max() },
            open: () => new InstantBackend(deviceTime));
        Console.WriteLine($"{Environment.ProcessorCount} cores; {steps} tokens a row, an adapter a row; medians of the steps that decode all rows, in µs");
        Console.WriteLine($"{"rows",4} {"engine",8} {"p99",8} {"launch",7} {"wait",7} {"step",8} {"p99",8} {"bytes",8} {"tok/s",9} {"collections",12}");
        foreach (var rows in rowCounts)
        {
            string[] adapters = [.. Enumerable.Range(0, rows).Select(r => engine.AddAdapter(AdapterShape.PRoLora, r))];
            string[] prompts = [.. Enumerable.Range(0, rows).Select(r => engine.Prompt(32, r))];
            for (var round = 0; round < 3; round++)
            {
                var collections = GC.CollectionCount(0);
                engine.Probe.Take();
                var begun = Stopwatch.GetTimestamp();
                await Task.WhenAll(Enumerable.Range(0, rows).Select(r => Task.Run(async () =>
                {
                    await foreach (var e in engine.Engine.GenerateAsync(new GenerationRequest { Tenant = $"tenant {r}", Adapter = adapters[r], Prompt = prompts[r], MaxTokens = steps })) { }
                })));
                var seconds = Stopwatch.GetElapsedTime(begun).TotalSeconds;
                await engine.Quiet();
                var decodes = engine.Probe.Take().Steps.Where(s => s.Rows == rows && s.Draws == rows).Skip(50).ToArray();
                double Share(Func<ProbedStep, long> of, double share) => decodes.Select(of).Order().ElementAt((int)(share * (decodes.Length - 1)));
                double Microseconds(Func<ProbedStep, long> of, double share) => Share(of, share) * 1e6 / Stopwatch.Frequency;
                if (round > 0)
                    Console.WriteLine(string.Create(CultureInfo.InvariantCulture,
                        $"{rows,4} {Microseconds(s => s.Host, 0.5),8:f1} {Microseconds(s => s.Host, 0.99),8:f1} {Microseconds(s => s.Launch, 0.5),7:f1} {Microseconds(s => s.Wait, 0.5),7:f1} {Microseconds(s => s.Time, 0.5),8:f1} {Microseconds(s => s.Time, 0.99),8:f1} {Share(s => s.Allocated, 0.5),8:f0} {rows * steps / seconds,9:f0} {GC.CollectionCount(0) - collections,12}"));
            }
            foreach (var adapter in adapters) engine.Engine.RemoveAdapter(adapter);
        }
        return 0;
    }

    /// <summary>A device that takes a fixed time for every step and draws the same word for ever; one step may be under way.</summary>
    private sealed class InstantBackend(TimeSpan step) : IBackend
    {
        private readonly Queue<(int Draws, long Launched)> underway = new();
        private long ended;

        public string Name => "nothing";

        public int StepsAhead => 1;

        public int PreferredStepTokens => 2048;

        public int MaxAdapterRank => int.MaxValue;

        public int MaxHeadDim => int.MaxValue;

        public DeviceTensor Upload(params ReadOnlySpan<HostTensor> parts) => new Nothing(parts[0].Rows, parts[0].Cols);

        public MemoryPlan Plan(AttentionShape shape, MemoryWish wanted) => new((int)(wanted.CacheTokens / wanted.BlockSize), long.MaxValue, "nothing");

        public KvCache CreateKvCache(int blocks, int blockSize, AttentionShape shape) => new NoCache(blocks, blockSize, shape);

        public long SizeOf(LoraModules modules) => 1;

        public DeviceAdapter LoadAdapter(LoraModules modules) => new NoAdapter();

        public DeviceTensor? Run(Batch batch, Func<StepForm, DeviceTensor?> forward)
        {
            underway.Enqueue((batch.Draws.Length, Stopwatch.GetTimestamp()));
            return null;
        }

        public Drawn[] Collect()
        {
            var (draws, launched) = underway.Dequeue();
            var end = Math.Max(ended, launched) + (long)(step.TotalSeconds * Stopwatch.Frequency);
            while (Stopwatch.GetTimestamp() < end) Thread.Sleep(0);
            ended = end;
            var drawn = new Drawn[draws];
            Array.Fill(drawn, new Drawn(1000, 0, []));
            return drawn;
        }

        public void Begin(Batch batch)
        {
        }

        public DeviceTensor Scratch(int rows, int cols, Precision precision = Precision.Full) => new Nothing(rows, cols);

        public void Embed(DeviceTensor table, DeviceTensor x)
        {
        }

        public void RmsNorm(DeviceTensor x, DeviceTensor weight, float epsilon, DeviceTensor y)
        {
        }

        public void AddRmsNorm(DeviceTensor delta, DeviceTensor x, DeviceTensor weight, float epsilon, DeviceTensor y)
        {
        }

        public void Linear(DeviceTensor x, DeviceTensor weight, DeviceTensor? bias, LoraSite? site, DeviceTensor y)
        {
        }

        public void RopeAndStore(DeviceTensor qkv, HeadNorms? norms, KvCache cache, int layer)
        {
        }

        public void Attend(DeviceTensor qkv, KvCache cache, int layer, DeviceTensor y)
        {
        }

        public void SwiGlu(DeviceTensor gateUp, DeviceTensor y)
        {
        }

        public void TakeLogitRows(DeviceTensor x, DeviceTensor y)
        {
        }

        public void Draw(DeviceTensor logits, int vocabulary)
        {
        }

        public void Download(DeviceTensor x, Span<float> host) => host.Clear();

        public void Dispose()
        {
        }

        private sealed class Nothing(int rows, int cols) : DeviceTensor(DType.BF16, rows, cols);

        private sealed class NoCache(int blocks, int blockSize, AttentionShape shape) : KvCache(blocks, blockSize, shape)
        {
            public override void Dispose()
            {
            }
        }

        private sealed class NoAdapter : DeviceAdapter
        {
            public override long Bytes => 1;

            public override void Dispose()
            {
            }
        }
    }
}
