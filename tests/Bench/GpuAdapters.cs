using System.Diagnostics;
using System.Globalization;
using TenantLora.Runtime;
using TenantLora.Runtime.Backends.Cuda;

namespace TenantLora.Bench;

/// <summary>
/// Many registered adapters over few places on the device. Requests draw theirs by Zipf 1.0; as many as there are rows are always in flight, each
/// followed by a new one. The same traffic meets room for all adapters, all of them there from the beginning, and then room for some. Before that, what
/// an adapter takes on the device and how long it takes to get there.
/// </summary>
internal static class GpuAdapters
{
    private static readonly (string Name, AdapterShape Shape)[] Kinds = [("PRoLoRA r16 u2 m4 n4", AdapterShape.PRoLora), ("LoRA r16", AdapterShape.Lora)];

    public static async Task<int> Run(string[] args)
    {
        var arguments = new Arguments(args, "model", "rows", "seconds", "warm", "device", "adapters", "room", "prompt", "answer");
        int Integer(string name, int standard) => arguments[name] is { } text ? int.Parse(text, CultureInfo.InvariantCulture) : standard;
        var (model, device, room) = (arguments["model"] ?? "8b", arguments["device"] ?? "cuda", Integer("room", 300));
        var traffic = new Traffic(Integer("adapters", 1000), Integer("rows", 64), Integer("prompt", 64), Integer("answer", 128), Integer("warm", 5), Integer("seconds", 20));
        using var folder = new BenchFolder(model);
        using var pool = new RandomPool(folder.PoolBytes);

        Result? all = null;
        foreach (var places in new[] { traffic.Adapters, room })
        {
            var begun = Stopwatch.GetTimestamp();
            await using var engine = new BenchEngine(folder, pool, new EngineOptions
            {
                ModelDirectory = folder.Path,
                Device = device,
                MaxSequences = traffic.Rows,
                CacheTokens = traffic.Rows * 1024,
                ContextLength = 1024,
            }, backend => places * backend.SizeOf(RandomPool.Shapes(folder.Config, AdapterShape.PRoLora)));
            string[] digests = [.. Enumerable.Range(0, traffic.Adapters).Select(i => engine.AddAdapter(AdapterShape.PRoLora, i))];
            var started = Stopwatch.GetElapsedTime(begun).TotalSeconds;
            if (all is null)
            {
                Memory(model, engine, pool, traffic.Rows * 1024);
                Console.WriteLine($"\n{model}, {traffic.Adapters} adapters {Kinds[0].Name} by Zipf 1.0, {traffic.Rows} requests in flight, prompts of {traffic.Prompt} tokens, answers of {traffic.Answer}; {traffic.Seconds} s after {traffic.Warm} s");
                Console.WriteLine($"{"room for",8} {"tok/s",8} {"of all",7} {"rows",5} {"step ms",8} {"p99 ms",8} {"of median",9} {"most ms",8} {"decode ms",9} {"prompts",8} {"host µs",8} {"p99",6} {"loads/s",8} {"MB/s",7} {"evictions/s",11} {"hits",7} {"first token ms",15} {"p99",6}");
            }
            var filled = await traffic.Fill(engine, digests[..Math.Min(places, traffic.Adapters)]);
            var r = await traffic.Flow(engine, digests);
            all ??= r;
            Console.WriteLine(string.Create(CultureInfo.InvariantCulture,
                $"{places,8} {r.Rate,8:f0} {r.Rate / all.Rate,7:p1} {r.Rows,5:f1} {r.Median,8:f2} {r.Late,8:f2} {r.Late / r.Median,9:f2} {r.Most,8:f1} {r.Decode,9:f2} {r.WithPrompts,8:p0} {r.Host,8:f0} {r.LateHost,6:f0} {r.Loads,8:f1} {r.Bytes / 1e6,7:f0} {r.Evictions,11:f1} {r.Hits,7:p1} {r.FirstToken,15:f0} {r.LateFirstToken,6:f0}  started in {started:f1} s, {engine.Engine.Status.AdaptersOnDevice} adapters; the first in {filled:f1} s"));
        }
        return 0;
    }

    /// <summary>What the two kinds take, by the backend's own account and by what its memory has lost when one is there.</summary>
    private static void Memory(string model, BenchEngine engine, RandomPool pool, int cacheTokens)
    {
        var backend = engine.Probe.Inner;
        // What is free now and what adapters have, without what the plan keeps in reserve.
        var room = backend is CudaBackend cuda && cuda.Device.Memory() is var (free, total) ? free + engine.Probe.Planned!.AdapterBytes - Math.Max(total / 50, 256L << 20) : (long?)null;
        Console.WriteLine($"\n{backend.Name}; {engine.Probe.Planned!.Description}");
        Console.WriteLine($"{"model",5}  {"adapter",-22} {"file, bytes",12} {"device",12} {"of file",8} {"load ms",8} {"GB/s",6}  fit beside {model} and {cacheTokens} tokens of cache{(room is { } r ? string.Create(CultureInfo.InvariantCulture, $", in {r / 1e9:f1} GB") : "")}");
        foreach (var name in new[] { model, "8b", "1b" }.Distinct())
        {
            using var other = name == model ? null : new BenchFolder(name);
            var config = other?.Config ?? engine.Config;
            foreach (var (kind, shape) in Kinds)
            {
                var size = backend.SizeOf(RandomPool.Shapes(config, shape));
                var times = new List<double>();
                for (var i = 0; other is null && i < 5; i++)
                {
                    var modules = pool.Adapter(config, shape, i);
                    var begun = Stopwatch.GetTimestamp();
                    using var adapter = backend.LoadAdapter(modules);
                    times.Add(Stopwatch.GetElapsedTime(begun).TotalSeconds);
                    if (adapter.Bytes != size) throw new InvalidOperationException($"An adapter of {size} bytes takes {adapter.Bytes}.");
                }
                var compact = BenchEngine.CompactBytes(RandomPool.Shapes(config, shape));
                var load = times.Count == 0 ? null : (double?)times.Order().ElementAt(times.Count / 2);
                var fit = other is not null || room is null ? "" : room / size is var count && count <= CudaAdapters.Most ? $"{count}" : $"{count} by memory, {CudaAdapters.Most} by the table";
                Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{name,5}  {kind,-22} {compact,12} {size,12} {(double)size / compact,8:p1} {load * 1e3,8:f1} {size / load / 1e9,6:f2}  {fit}"));
            }
        }
    }

    /// <param name="Rate">Tokens a second.</param>
    /// <param name="Rows">Of a step, on average.</param>
    /// <param name="Median">Of the steps' times, in ms like their p99 and the longest.</param>
    /// <param name="Decode">Median of the steps that read no prompt.</param>
    /// <param name="WithPrompts">Share of those that do.</param>
    /// <param name="Host">What the engine itself needs for a step, in µs.</param>
    /// <param name="Loads">A second, as are bytes and evictions.</param>
    /// <param name="Hits">Share of the requests that found their adapter on the device.</param>
    private sealed record Result(double Rate, double Rows, double Median, double Late, double Most, double Decode, double WithPrompts, double Host, double LateHost, double Loads, double Bytes, double Evictions, double Hits, double FirstToken, double LateFirstToken);

    private sealed record Traffic(int Adapters, int Rows, int Prompt, int Answer, int Warm, int Seconds)
    {
        /// <summary>Seconds until these adapters have been on the device, each with a request of one token.</summary>
        public async Task<double> Fill(BenchEngine engine, string[] digests)
        {
            var begun = Stopwatch.GetTimestamp();
            var prompt = engine.Prompt(1, 0);
            await Parallel.ForEachAsync(digests, new ParallelOptions { MaxDegreeOfParallelism = 2 * Rows }, async (digest, _) =>
            {
                await foreach (var e in engine.Engine.GenerateAsync(new GenerationRequest { Tenant = "first", Adapter = digest, Prompt = prompt, MaxTokens = 1 }, _)) { }
            });
            return Stopwatch.GetElapsedTime(begun).TotalSeconds;
        }

        public async Task<Result> Flow(BenchEngine engine, string[] digests)
        {
            string[] prompts = [.. Enumerable.Range(0, 256).Select(i => engine.Prompt(Prompt, i))];
            var draws = new Zipf(Adapters);
            var requests = new List<(long Arrived, bool Hit, double FirstToken)>();
            using var over = new CancellationTokenSource();
            long tokens = 0;
            var next = -1;
            var readers = Enumerable.Range(0, Rows).Select(r => Task.Run(async () =>
            {
                // The first answers are of all lengths, so that the ends are spread out from the beginning.
                for (var length = 1 + (r * Answer / Rows); ; length = Answer)
                {
                    var number = Interlocked.Increment(ref next);
                    var drawn = draws.Adapter(number);
                    var request = new GenerationRequest { Tenant = $"tenant {drawn}", Adapter = digests[drawn], Prompt = prompts[number % prompts.Length], MaxTokens = length };
                    var (arrived, hit) = (Stopwatch.GetTimestamp(), true);
                    await foreach (var e in engine.Engine.GenerateAsync(request, over.Token))
                    {
                        if (e is AdapterLoading) hit = false;
                        else if (e is TextDelta delta) Interlocked.Add(ref tokens, delta.Tokens);
                        else if (e is GenerationDone done)
                            lock (requests) requests.Add((arrived, hit, (done.Timings.Queued + done.Timings.Prefill).TotalMilliseconds));
                    }
                }
            })).ToArray();

            await Task.Delay(TimeSpan.FromSeconds(Warm));
            var (from, counted, before) = (Stopwatch.GetTimestamp(), Volatile.Read(ref tokens), engine.Engine.Status);
            engine.Probe.Take();
            await Task.Delay(TimeSpan.FromSeconds(Seconds));
            var (seconds, after) = (Stopwatch.GetElapsedTime(from).TotalSeconds, engine.Engine.Status);
            counted = Volatile.Read(ref tokens) - counted;
            var (steps, _) = engine.Probe.Take();
            await over.CancelAsync();
            foreach (var reader in readers)
            {
                try
                {
                    await reader;
                }
                catch (OperationCanceledException)
                {
                }
            }

            var seen = requests.Where(r => r.Arrived >= from).ToArray();
            var decodes = steps.Where(s => s.Rows == s.Draws).ToList();
            static double At(IEnumerable<double> values, double share) => values.Order().ToArray() is { Length: > 0 } all ? all[(int)(share * (all.Length - 1))] : double.NaN;
            static double Milliseconds(List<ProbedStep> of, Func<ProbedStep, long> what, double share) => At(of.Select(s => what(s) * 1e3 / Stopwatch.Frequency), share);
            double Step(double share) => Milliseconds(steps, s => s.Time, share);
            var loads = (after.AdapterLoads - before.AdapterLoads) / seconds;
            return new Result(counted / seconds, steps.Average(s => s.Draws), Step(0.5), Step(0.99), Step(1),
                Milliseconds(decodes, s => s.Time, 0.5), 1 - (decodes.Count / (double)steps.Count), Milliseconds(steps, s => s.Host, 0.5) * 1e3, Milliseconds(steps, s => s.Host, 0.99) * 1e3, loads,
                loads * after.AdapterBytes / Math.Max(after.AdaptersOnDevice, 1), (after.AdapterEvictions - before.AdapterEvictions) / seconds,
                seen.Count(s => s.Hit) / (double)seen.Length, At(seen.Select(s => s.FirstToken), 0.5), At(seen.Select(s => s.FirstToken), 0.99));
        }
    }

    /// <summary>Draws 0 … count − 1 with weights 1, 1/2, 1/3…; draw number i is always the same.</summary>
    private sealed class Zipf
    {
        private readonly double[] sums;

        public Zipf(int count)
        {
            sums = new double[count];
            for (var i = 0; i < count; i++) sums[i] = (i == 0 ? 0 : sums[i - 1]) + (1.0 / (i + 1));
        }

        public int Adapter(int number)
        {
            var at = Array.BinarySearch(sums, Runtime.Serving.SamplingState.Uniform(1, number) * sums[^1]);
            return Math.Min(at < 0 ? ~at : at + 1, sums.Length - 1);
        }
    }
}
