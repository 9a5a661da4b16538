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
        using var probe = new ReadProbe();
        Console.WriteLine($"{Environment.ProcessorCount} cores, {CpuName()}, best read bandwidth {probe.Best(1) / 1e9:f1} GB/s with all threads. Medians; 'read' is measured between the steps.");
        foreach (var name in arguments["model"] is { } one ? [one] : new[] { "demo", "1b" }) Table(name, rows, context, seconds, probe);
        return 0;
    }

    private static void Table(string name, int[] rowCounts, int context, double seconds, ReadProbe probe)
    {
        var directory = name switch { "demo" => Repo.Path("models", "demo-7m"), "1b" => RandomModel.Llama1B(), _ => name };
        var config = ModelConfig.Load(directory);
        using var files = name == "1b" ? null : WeightFiles.Open(directory);
        var random = new RandomModel(seed: 1);
        var most = rowCounts.Max();
        using var model = new LoadedModel(config, files is null ? random.Tensor : files.Get, most * (context + 16));
        Console.WriteLine($"\n{name}: {config.Layers} layers, hidden {config.HiddenSize}, vocabulary {config.VocabSize}; {model.Backend.Name}; context {context}");
        Console.WriteLine($"{"rows",4}  {"adapters",-26} {"ms/step",8} {"tok/s",9} {"of base",8} {"GB/step",8} {"GB/s",6} {"read",6} {"of read",8}  logits");

        foreach (var rows in rowCounts)
        {
            var cases = new (string Label, AdapterShape? Shape, int Distinct)[]
            {
                ("none", null, 0),
                ("1 PRoLoRA r16 u2 m4 n4", AdapterShape.PRoLora, 1),
                ($"{rows} PRoLoRA r16 u2 m4 n4", AdapterShape.PRoLora, rows),
                ($"{rows} LoRA r16", AdapterShape.Lora, rows),
            }.DistinctBy(c => c.Label).Select(c => new Case(c.Label, c.Shape, c.Distinct, rows, model, random)).ToArray();

            // Turn by turn, so that what else the machine does meets all alike.
            var reads = new List<double>();
            for (var begun = Stopwatch.GetTimestamp(); Stopwatch.GetElapsedTime(begun).TotalSeconds < seconds * cases.Length || reads.Count < 3;)
            {
                foreach (var one in cases) one.Step(model, context);
                reads.Add(probe.Measure());
            }
            var read = Median(reads);
            var baseline = Median(cases[0].Times);
            foreach (var one in cases)
            {
                var step = Median(one.Times);
                var bytes = Weights(config) + one.AdapterBytes + (2L * config.Layers * config.KvHeads * config.HeadDim * sizeof(float) * context * rows);
                Console.WriteLine($"{rows,4}  {one.Label,-26} {step * 1e3,8:f2} {rows / step,9:f1} {baseline / step,8:p0} {bytes / 1e9,8:f3} {bytes / step / 1e9,6:f1} {read / 1e9,6:f1} {bytes / step / read,8:p0}  {one.Hash}");
                one.Dispose();
            }
        }
    }

    private static double Median(IEnumerable<double> values) => values.Order().ElementAt(values.Count() / 2);

    private static string CpuName() =>
        !File.Exists("/proc/cpuinfo") ? RuntimeInformation.ProcessArchitecture.ToString()
        : File.ReadLines("/proc/cpuinfo").FirstOrDefault(l => l.StartsWith("model name", StringComparison.Ordinal))?.Split(':')[1].Trim() ?? "?";

    /// <summary>One line of the table: a batch with its adapters, and how long its steps took.</summary>
    private sealed class Case : IDisposable
    {
        private readonly DeviceAdapter[] adapters;
        private readonly DeviceAdapter?[] assigned;
        private readonly int[] tokens;

        public Case(string label, AdapterShape? shape, int distinct, int rows, LoadedModel model, RandomModel random)
        {
            Label = label;
            adapters = [.. Enumerable.Range(0, distinct).Select(i => model.Backend.LoadAdapter(random.Adapter(model.Config, shape!, seed: i)))];
            assigned = [.. Enumerable.Range(0, rows).Select(r => distinct == 0 ? null : adapters[r % distinct])];
            tokens = [.. Enumerable.Range(0, rows).Select(r => ((r * 31) + 5) % model.Config.VocabSize)];
        }

        public string Label { get; }

        public long AdapterBytes => adapters.Sum(a => a.Bytes);

        public List<double> Times { get; } = [];

        /// <summary>Of the first step's logits.</summary>
        public string? Hash { get; private set; }

        public void Step(LoadedModel model, int context)
        {
            var begun = Stopwatch.GetTimestamp();
            var logits = model.Step(context, tokens, assigned);
            if (Hash is not null) Times.Add(Stopwatch.GetElapsedTime(begun).TotalSeconds);      // the first warms code and caches
            Hash ??= Convert.ToHexStringLower(SHA256.HashData(MemoryMarshal.AsBytes(logits.AsSpan())).AsSpan(0, 6));
        }

        public void Dispose()
        {
            foreach (var adapter in adapters) adapter.Dispose();
        }
    }

    /// <summary>Bytes of bf16 weights that a step reads: everything but the embedding table, unless that is the head too.</summary>
    private static long Weights(ModelConfig c) =>
        2L * ((long)c.Layers * c.HiddenSize * (((c.Heads * 2) + (c.KvHeads * 2)) * c.HeadDim + (3 * c.IntermediateSize)) + ((long)c.VocabSize * c.HiddenSize));
}
