using Microsoft.Extensions.Logging.Abstractions;
using TenantLora.Runtime.Adapters;
using TenantLora.Runtime.Backends;
using TenantLora.Runtime.Models;

namespace TenantLora.Bench;

/// <summary>A model on a backend without an engine around it: whole batches in, logits out.</summary>
internal sealed class LoadedModel : IDisposable
{
    private const int BlockSize = 16, StepRows = 256, MaxRank = 256;
    private readonly ModelWeights weights;
    private readonly KvCache cache;
    private readonly Transformer transformer;

    public LoadedModel(ModelConfig config, TensorSource source, int cacheTokens, string device = "auto")
    {
        if (!Devices.IsKnown(device)) throw new ArgumentException($"--device: expected {Devices.Known}, found {device}.");
        Config = config;
        Backend = Devices.Open(device, threads: 0, MaxRank, StepRows, StepRows, NullLogger.Instance);
        weights = ModelWeights.Load(config, source, Backend);
        var shape = config.ToAttentionShape();
        var plan = Backend.Plan(shape, new MemoryWish((cacheTokens + BlockSize - 1) / BlockSize * BlockSize, 0, BlockSize, StepRows, cacheTokens));
        cache = Backend.CreateKvCache(plan.Blocks, BlockSize, shape);
        transformer = new Transformer(config, weights, Backend, cache, config.VocabSize);
    }

    public ModelConfig Config { get; }

    public IBackend Backend { get; }

    /// <summary>Logits (positions, vocabulary) of one sequence read in chunks of <paramref name="chunk"/> tokens.</summary>
    public float[][] Logits(int[] ids, DeviceAdapter? adapter, int chunk = StepRows)
    {
        var all = new List<float[]>();
        int[] blocks = [.. Enumerable.Range(0, (ids.Length + BlockSize - 1) / BlockSize)];
        for (var first = 0; first < ids.Length; first += chunk)
        {
            var rows = Math.Min(chunk, ids.Length - first);
            int[] positions = [.. Enumerable.Range(first, rows)];
            var logits = Forward(new Batch
            {
                Tokens = ids[first..(first + rows)],
                Positions = positions,
                Slots = positions,
                Spans = [new BatchSpan(0, rows, first + rows, blocks)],
                Segments = [new AdapterSegment(0, rows, adapter)],
                LogitRows = [.. Enumerable.Range(0, rows)],
            });
            all.AddRange(logits.Chunk(Config.VocabSize));
        }
        return [.. all];
    }

    /// <summary>One decode step: row r is its own sequence at position <paramref name="context"/> − 1, with blocks and an adapter of its own.</summary>
    public float[] Step(int context, int[] tokens, DeviceAdapter?[] adapters)
    {
        var rows = tokens.Length;
        var perSequence = (context + BlockSize - 1) / BlockSize;
        var spans = new BatchSpan[rows];
        var segments = new List<AdapterSegment>();
        for (var r = 0; r < rows; r++)
        {
            spans[r] = new BatchSpan(r, 1, context, [.. Enumerable.Range(r * perSequence, perSequence)]);
            if (segments.Count > 0 && segments[^1].Adapter == adapters[r]) segments[^1] = segments[^1] with { Rows = segments[^1].Rows + 1 };
            else segments.Add(new AdapterSegment(r, 1, adapters[r]));
        }
        return Forward(new Batch
        {
            Tokens = tokens,
            Positions = [.. Enumerable.Repeat(context - 1, rows)],
            Slots = [.. spans.Select(s => (s.Blocks[(context - 1) / BlockSize] * BlockSize) + ((context - 1) % BlockSize))],
            Spans = spans,
            Segments = [.. segments],
            LogitRows = [.. Enumerable.Range(0, rows)],
        });
    }

    /// <summary>RoPE's frequencies as a model object has them that was cast to bf16 with its buffers; loading a bf16 file leaves them in fp32.</summary>
    public static ModelConfig WithBf16Rope(ModelConfig config)
    {
        return config with { InverseFrequencies = [.. config.InverseFrequencies.Select(Round)] };

        static float Round(float value)
        {
            var bits = BitConverter.SingleToUInt32Bits(value);
            return BitConverter.UInt32BitsToSingle((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000);
        }
    }

    public static DeviceAdapter LoadAdapter(string directory, ModelConfig config, IBackend backend)
    {
        var (report, adapter) = AdapterFile.Read(directory, config, MaxRank);
        return backend.LoadAdapter((adapter ?? throw new Runtime.AdapterRefusedException(directory, report)).Modules);
    }

    public void Dispose()
    {
        cache.Dispose();
        weights.Dispose();
        Backend.Dispose();
    }

    private float[] Forward(Batch batch)
    {
        var host = new float[batch.LogitRows.Length * Config.VocabSize];
        Backend.Download(transformer.Run(batch)!, host);
        Backend.Collect();
        return host;
    }
}
