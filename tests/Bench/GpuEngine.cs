using System.Diagnostics;
using System.Globalization;
using System.Text;
using TenantLora.Runtime;

namespace TenantLora.Bench;

/// <summary>
/// What an engine makes of its steps. Requests come through <see cref="Engine.GenerateAsync"/> in waves: as many at once as there are rows, each
/// under an adapter of its own, greedy, all answers of one length. Counted by the readers while all of them decode, from when the last has its first
/// token until the first is done; beside it what the step in the middle of that time takes when it is run again without the engine, on the same
/// memory. A wave's answers must be the first wave's.
/// </summary>
internal static class GpuEngine
{
    public static async Task<int> Run(string[] args)
    {
        var arguments = new Arguments(args, "model", "rows", "seconds", "device", "prompt", "answer");
        var rows = arguments.Integers("rows") ?? [64];
        var seconds = double.Parse(arguments["seconds"] ?? "20", CultureInfo.InvariantCulture);
        var (prompt, answer) = (int.Parse(arguments["prompt"] ?? "448", CultureInfo.InvariantCulture), int.Parse(arguments["answer"] ?? "128", CultureInfo.InvariantCulture));
        foreach (var model in (arguments["model"] ?? "8b").Split(',')) await Table(model, rows, seconds, arguments["device"] ?? "cuda", prompt, answer);
        return 0;
    }

    private static async Task Table(string model, int[] rowCounts, double seconds, string device, int prompt, int answer)
    {
        using var folder = new BenchFolder(model);
        using var pool = new RandomPool(folder.PoolBytes);
        var most = rowCounts.Max();
        var begun = Stopwatch.GetTimestamp();
        await using var engine = new BenchEngine(folder, pool, new EngineOptions
        {
            ModelDirectory = folder.Path,
            Device = device,
            MaxSequences = most,
            CacheTokens = most * 1024,
            ContextLength = 1024,
        });
        Console.WriteLine($"\n{model} through the engine: {engine.Engine.Info.Device}; loaded in {Stopwatch.GetElapsedTime(begun).TotalSeconds:f1} s; {engine.Probe.Planned!.Description}");
        Console.WriteLine($"prompts of {prompt} tokens, answers of {answer}; medians of the waves, the first of each line left out");
        Console.WriteLine($"{"rows",4}  {"adapters",-26} {"tok/s",8} {"ms/step",8} {"context",8} {"alone ms",9} {"of alone",9} {"host µs",8} {"launch",7} {"wait",7}  {"first token ms (last)",22} {"prompt tok/s",13}  answers");
        foreach (var rows in rowCounts)
            foreach (var shape in new[] { null, AdapterShape.PRoLora })
            {
                string?[] adapters = [.. Enumerable.Range(0, rows).Select(r => shape is null ? null : engine.AddAdapter(shape, r))];
                string[] prompts = [.. Enumerable.Range(0, rows).Select(r => engine.Prompt(prompt, r))];
                engine.Probe.KeepsBatches = true;
                var first = await Wave.Run(engine, prompts, adapters, prompt, answer);
                var (waves, same) = (new List<Wave>(), 0);
                for (var from = Stopwatch.GetTimestamp(); waves.Count < 2 || Stopwatch.GetElapsedTime(from).TotalSeconds < seconds / 2 / rowCounts.Length;)
                {
                    waves.Add(await Wave.Run(engine, prompts, adapters, prompt, answer));
                    same += waves[^1].Answers.Zip(first.Answers).Count(pair => pair.First == pair.Second);
                }
                double Median(Func<Wave, double> of) => waves.Select(of).Order().ElementAt(waves.Count / 2);
                var (alone, rate) = (Median(w => w.Alone), Median(w => w.Rate));
                Console.WriteLine(string.Create(CultureInfo.InvariantCulture,
                    $"{rows,4}  {(shape is null ? "none" : $"{rows} PRoLoRA r16 u2 m4 n4"),-26} {rate,8:f0} {rows / rate * 1e3,8:f3} {Median(w => w.Context),8:f0} {alone,9:f3} {rate * alone / rows / 1e3,9:p1} {Median(w => w.Host),8:f0} {Median(w => w.Launch),7:f0} {Median(w => w.Wait),7:f0}  {$"{Median(w => w.FirstToken):f0} ({Median(w => w.LastFirstToken):f0})",22} {Median(w => w.PromptRate),13:f0}  {same} of {rows * waves.Count} as in the first wave"));
                foreach (var adapter in adapters) if (adapter is not null) engine.Engine.RemoveAdapter(adapter);
            }
    }

    /// <summary>One burst and its answers. Times in ms, the host's in µs.</summary>
    /// <param name="Rate">Tokens a second that readers got while all decoded.</param>
    /// <param name="Context">Of the step that was run alone.</param>
    /// <param name="Alone">What that took.</param>
    private sealed record Wave(double Rate, double Context, double Alone, double Host, double Launch, double Wait, double FirstToken, double LastFirstToken, double PromptRate, string[] Answers)
    {
        public static async Task<Wave> Run(BenchEngine engine, string[] prompts, string?[] adapters, int prompt, int answer)
        {
            var rows = prompts.Length;
            engine.Probe.Take();
            long tokens = 0, from = 0, to = 0, counted = 0;
            int started = 0, ended = 0;
            var begun = Stopwatch.GetTimestamp();
            var done = await Task.WhenAll(Enumerable.Range(0, rows).Select(r => Task.Run(async () =>
            {
                var (text, any) = (new StringBuilder(), false);
                await foreach (var e in engine.Engine.GenerateAsync(new GenerationRequest { Tenant = $"tenant {r}", Adapter = adapters[r], Prompt = prompts[r], MaxTokens = answer }))
                {
                    if (e is TextDelta delta)
                    {
                        text.Append(delta.Text);
                        var total = Interlocked.Add(ref tokens, delta.Tokens);
                        if (!any && Interlocked.Increment(ref started) == rows) (from, counted) = (Stopwatch.GetTimestamp(), total);
                        any = true;
                    }
                    if (e is not GenerationDone end) continue;
                    if (Interlocked.Increment(ref ended) == 1) (to, counted) = (Stopwatch.GetTimestamp(), Volatile.Read(ref tokens) - counted);
                    return (Text: text.ToString(), First: (end.Timings.Queued + end.Timings.Prefill).TotalMilliseconds);
                }
                throw new InvalidOperationException("An answer has no end.");
            })));
            if (from == 0 || to < from) throw new ArgumentException("The first answer ended before the last prompt was read: ask for longer answers or shorter prompts.");
            var prefill = Stopwatch.GetElapsedTime(begun, from).TotalSeconds;
            await engine.Quiet();

            var (steps, batches) = engine.Probe.Take();
            var within = steps.Where(s => s.Ended >= from && s.Ended <= to).ToArray();
            var decodes = batches.Where(b => b.Rows == rows && b.Draws.Length == rows).ToArray();
            var middle = decodes[decodes.Length / 2];
            double Microseconds(Func<ProbedStep, long> of) => within.Select(of).Order().ElementAt(within.Length / 2) * 1e6 / Stopwatch.Frequency;
            return new Wave(
                counted / Stopwatch.GetElapsedTime(from, to).TotalSeconds,
                middle.Spans.Average(s => s.Context),
                engine.Probe.TimeSteps(middle, 20),
                Microseconds(s => s.Host), Microseconds(s => s.Launch), Microseconds(s => s.Wait),
                done.Average(d => d.First), done.Max(d => d.First),
                rows * (double)prompt / prefill,
                [.. done.Select(d => d.Text)]);
        }
    }
}
