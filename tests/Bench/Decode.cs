using System.Diagnostics;
using System.Runtime.InteropServices;
using System.Security.Cryptography;
using TenantLora.Runtime.Backends;
using TenantLora.Runtime.Models;
using TenantLora.Tests;

namespace TenantLora.Bench;

/// <summary>
/// Decode steps of whole batches: base, one adapter for all rows, an adapter for each row; what share of the measured read bandwidth a
/// step's bytes are, and a hash of the logits, so that a faster wrong answer shows.
/// </summary>
internal static class Decode
{
    public static int Run(string[] args)
    {
        var arguments = new Arguments(args, "model", "rows", "context", "seconds");
        var rows = arguments.Integers("rows") ?? [1, 4, 16];
        var context = int.Parse(arguments["context"] ?? "128");
        var seconds = double.Parse(arguments["seconds"] ?? "4");
        var bandwidth = CpuKernels.ReadBandwidth(Environment.ProcessorCount);
        Console.WriteLine($"{Environment.ProcessorCount} cores, read bandwidth {bandwidth / 1e9:f1} GB/s measured with all threads");
        foreach (var name in arguments["model"] is { } one ? [one] : new[] { "demo", "1b" }) Table(name, rows, context, seconds, bandwidth);
        return 0;
    }

    private static void Table(string name, int[] rowCounts, int context, double seconds, double bandwidth)
    {
        var directory = name switch { "demo" => Repo.Path("models", "demo-7m"), "1b" => RandomModel.Llama1B(), _ => name };
        var config = ModelConfig.Load(directory);
        using var files = name == "1b" ? null : WeightFiles.Open(directory);
        var random = new RandomModel(seed: 1);
        var most = rowCounts.Max();
        using var model = new LoadedModel(config, files is null ? random.Tensor : files.Get, most * (context + 16));
        Console.WriteLine($"\n{name}: {config.Layers} layers, hidden {config.HiddenSize}, vocabulary {config.VocabSize}; {model.Backend.Name}; context {context}");
        Console.WriteLine($"{"rows",4}  {"adapters",-26} {"ms/step",8} {"tok/s",9} {"of base",8} {"GB/step",8} {"GB/s",6} {"of read",8}  logits");

        foreach (var rows in rowCounts)
        {
            var baseline = 0.0;
            foreach (var (label, kind, distinct) in new (string, AdapterShape?, int)[]
            {
                ("none", null, 0),
                ("1 PRoLoRA r16 u2 m4 n4", AdapterShape.PRoLora, 1),
                ($"{rows} PRoLoRA r16 u2 m4 n4", AdapterShape.PRoLora, rows),
                ($"{rows} LoRA r16", AdapterShape.Lora, rows),
            })
            {
                var adapters = Enumerable.Range(0, distinct).Select(i => model.Backend.LoadAdapter(random.Adapter(config, kind!, seed: i))).ToArray();
                var assigned = Enumerable.Range(0, rows).Select(r => distinct == 0 ? null : (DeviceAdapter?)adapters[r % distinct]).ToArray();
                int[] tokens = [.. Enumerable.Range(0, rows).Select(r => (r * 31 + 5) % config.VocabSize)];

                var logits = model.Step(context, tokens, assigned);                 // warms the code and the caches
                model.Step(context, tokens, assigned);
                var times = new List<double>();
                for (var begun = Stopwatch.GetTimestamp(); Stopwatch.GetElapsedTime(begun).TotalSeconds < seconds || times.Count < 3;)
                {
                    var at = Stopwatch.GetTimestamp();
                    model.Step(context, tokens, assigned);
                    times.Add(Stopwatch.GetElapsedTime(at).TotalSeconds);
                }
                times.Sort();
                var step = times[times.Count / 2];
                if (distinct == 0) baseline = step;
                var bytes = Weights(config) + adapters.Sum(a => a.Bytes) + (2L * config.Layers * config.KvHeads * config.HeadDim * sizeof(float) * context * rows);
                var hash = Convert.ToHexStringLower(SHA256.HashData(MemoryMarshal.AsBytes(logits.AsSpan())).AsSpan(0, 6));
                Console.WriteLine($"{rows,4}  {label,-26} {step * 1e3,8:f2} {rows / step,9:f1} {baseline / step,8:p0} {bytes / 1e9,8:f3} {bytes / step / 1e9,6:f1} {bytes / step / bandwidth,8:p0}  {hash}");
                foreach (var adapter in adapters) adapter.Dispose();
            }
        }
    }

    /// <summary>Bytes of bf16 weights that a step reads: everything but the embedding table, unless that is the head too.</summary>
    private static long Weights(ModelConfig c) =>
        2L * ((long)c.Layers * c.HiddenSize * (((c.Heads * 2) + (c.KvHeads * 2)) * c.HeadDim + (3 * c.IntermediateSize)) + ((long)c.VocabSize * c.HiddenSize));
}
