using System.Collections.Concurrent;
using System.Collections.Frozen;
using System.Diagnostics;
using System.Globalization;
using System.Runtime.CompilerServices;
using System.Security.Cryptography;
using System.Text;
using Microsoft.Extensions.Logging;
using Microsoft.Extensions.Logging.Abstractions;
using TenantLora.Runtime.Adapters;
using TenantLora.Runtime.Backends;
using TenantLora.Runtime.Models;
using TenantLora.Runtime.Scheduling;
using TenantLora.Runtime.Serving;
using TenantLora.Runtime.Tokenization;

namespace TenantLora.Runtime;

/// <summary>
/// One base model, served to many under many adapters: continuous batching over a paged KV cache. Safe for concurrent use.
/// <para>
/// A caller's thread checks, renders and encodes a request, and decodes its answer; between the two one engine thread owns scheduler,
/// blocks and steps, so nothing there locks. An answer does not depend on what else runs: greedy and seeded sampling repeat exactly.
/// </para>
/// <para>
/// Where the backend runs steps of its own, the engine schedules and launches one while the one before is under way, so that the device
/// finds its next step ready; what was drawn is collected a step later.
/// </para>
/// </summary>
public sealed partial class Engine : IRuntime
{
    private readonly EngineOptions options;
    private readonly ILogger log;
    private readonly ModelConfig config;
    private readonly WeightFiles? files;                               // none where the weights are the caller's
    private readonly IBackend backend;
    private readonly ModelWeights weights;
    private readonly KvCache cache;
    private readonly Transformer model;
    private readonly Tokenizer tokenizer;
    private readonly ChatTemplate template;
    private readonly FrozenSet<int> endTokens;
    private readonly AdapterResidency residency;
    private readonly AdapterRegistry adapters;
    private readonly BlockPool pool;
    private readonly Scheduler scheduler;
    private readonly EngineMetrics metrics;
    private readonly ConcurrentQueue<Generation> arrivals = new();
    private readonly SemaphoreSlim arrived = new(0);
    private readonly CancellationTokenSource stopping = new();
    private readonly Queue<Step> underway = new();                      // launched, not yet collected; oldest first
    private readonly Thread thread;
    private long launched, done;                                        // numbers of steps
    private long turned, longest;                                       // timestamps: since when the loop has been at its turn, 0 while it sleeps; the longest turn
    private int failures;                                               // steps in a row
    private long failed;                                                // when the last of them did
    private int waiting;
    private volatile EngineStatus status;

    private Engine(EngineOptions options, ILoggerFactory? loggers, Func<IBackend> open, TensorSource? source)
    {
        this.options = options;
        log = (loggers ?? NullLoggerFactory.Instance).CreateLogger<Engine>();
        var directory = options.ModelDirectory;
        config = ModelConfig.Load(directory);
        tokenizer = Tokenizer.Load(directory);
        template = ChatTemplate.Load(directory, options.ChatTemplate);
        if (tokenizer.Size > config.VocabSize)
            throw new ModelFileException(Path.Combine(directory, "tokenizer.json"), "vocabulary", $"at most config.json's vocab_size of {config.VocabSize} tokens", tokenizer.Size.ToString(CultureInfo.InvariantCulture));
        endTokens = (tokenizer.Eos is { } end ? config.EosTokenIds.Append(end) : config.EosTokenIds).ToFrozenSet();
        files = source is null ? WeightFiles.Open(directory) : null;

        try
        {
            backend = open();
            if (config.HeadDim > backend.MaxHeadDim)
                throw new ModelFileException(Path.Combine(directory, "config.json"), "head_dim", string.Create(CultureInfo.InvariantCulture, $"at most {backend.MaxHeadDim}, the most that {backend.Name} serves"), config.HeadDim.ToString(CultureInfo.InvariantCulture));
            weights = LoadWeights(source);
            var longest = Math.Min(options.ContextLength == 0 ? config.MaxPositions : options.ContextLength, config.MaxPositions);
            var stepTokens = options.StepTokens > 0 ? options.StepTokens : backend.PreferredStepTokens;
            var shape = config.ToAttentionShape();
            var plan = backend.Plan(shape, new MemoryWish(options.CacheTokens, (long)options.AdapterMemoryMegabytes << 20, options.BlockSize, stepTokens + options.MaxSequences, longest));
            Planned(log, backend.Name, plan.Description);
            cache = backend.CreateKvCache(plan.Blocks, options.BlockSize, shape);
            model = new Transformer(config, weights, backend, cache, tokenizer.Size);
            pool = new BlockPool(plan.Blocks, options.BlockSize);
            residency = new AdapterResidency(backend.SizeOf, backend.LoadAdapter, plan.AdapterBytes, time => metrics!.AdapterLoaded(time), Wake);
            adapters = new AdapterRegistry(residency);
            scheduler = new Scheduler(pool, stepTokens, options.MaxSequences, Ready);
            status = Look();
            metrics = new EngineMetrics(() => Status);

            var context = (int)Math.Min(longest, (long)plan.Blocks * options.BlockSize);
            Info = new EngineInfo(options.ModelName ?? Path.GetFileName(Path.TrimEndingDirectorySeparator(Path.GetFullPath(directory))),
                config.Family.ToString().ToLowerInvariant(), files?.Parameters ?? 0, context, backend.Name, files?.Digest ?? "");
            thread = new Thread(Loop) { Name = "TenantLora engine", IsBackground = true };
            thread.Start();
        }
        catch (Exception error)
        {
            residency?.Dispose();
            backend?.Dispose();
            files?.Dispose();
            if (error is OutOfDeviceMemoryException) throw new DeviceUnavailableException($"Device: {backend?.Name}: {error.Message}", error);
            throw;
        }
    }

    /// <summary>Loads the model and starts the engine's thread.</summary>
    /// <exception cref="ModelFileException">A file is missing, damaged or not understood.</exception>
    /// <exception cref="ArgumentException">Options are out of range; the message names all of them. Or the device cannot be used, or what the options want does not fit it.</exception>
    public static Engine Start(EngineOptions options, ILoggerFactory? loggers = null)
    {
        ArgumentNullException.ThrowIfNull(options);
        options.Check();
        var log = (loggers ?? NullLoggerFactory.Instance).CreateLogger<Engine>();
        var stepRows = options.StepTokens == 0 ? 0 : options.StepTokens + options.MaxSequences;
        return Start(options, () => Devices.Open(options.Device, options.Threads, options.MaxAdapterRank, options.MaxSequences, stepRows, log), loggers);
    }

    /// <summary>On a backend of the caller's choice, which the engine owns, and with weights of the caller's in the place of the folder's, if given.</summary>
    internal static Engine Start(EngineOptions options, Func<IBackend> open, ILoggerFactory? loggers = null, TensorSource? source = null) => new(options, loggers, open, source);

    /// <summary>The caller's own, or those of the files, which may take long enough to be worth a word on the way.</summary>
    private ModelWeights LoadWeights(TensorSource? source)
    {
        if (files is null) return ModelWeights.Load(config, source!, backend);
        var total = files.Bytes;
        var progress = new UploadProgress(total, TimeProvider.System, percent => Uploaded(log, percent, total / 1e9));
        return ModelWeights.Load(config, files.Get, backend, progress.At);
    }

    /// <summary>What is served and on what.</summary>
    public EngineInfo Info { get; }

    /// <summary>A turn of the loop that takes ten times as long as any before, and longer than this, is one that does not end. Of the first nothing is known: ten times this.</summary>
    internal TimeSpan Patience { get; set; } = TimeSpan.FromMinutes(1);

    /// <summary>
    /// What keeps it from answering: its last three steps failed, or one does not end, as on a device that is lost. Null: nothing. After failures it is
    /// null again in half a minute, so that whoever asks this first lets somebody try.
    /// </summary>
    public string? Fault
    {
        get
        {
            var (since, most) = (Interlocked.Read(ref turned), TimeSpan.FromSeconds((double)Interlocked.Read(ref longest) / Stopwatch.Frequency) * 10);
            if (since != 0 && Stopwatch.GetElapsedTime(since) is var time && time > (most == TimeSpan.Zero ? Patience * 10 : most > Patience ? most : Patience))
                return string.Create(CultureInfo.InvariantCulture, $"a step has been under way for {time.TotalSeconds:f0} s");
            return Volatile.Read(ref failures) is var steps and >= 3 && Stopwatch.GetElapsedTime(Interlocked.Read(ref failed)) < TimeSpan.FromSeconds(30)
                ? string.Create(CultureInfo.InvariantCulture, $"the last {steps} steps failed") : null;
        }
    }

    /// <summary>A look at the engine, as of its last step.</summary>
    public EngineStatus Status
    {
        get
        {
            var (onDevice, bytes, loads, evictions) = residency.Look();
            return status with
            {
                Waiting = Volatile.Read(ref waiting),
                AdaptersHeld = adapters.Held,
                AdaptersOnDevice = onDevice,
                AdapterBytes = bytes,
                AdapterBudget = residency.Budget,
                AdapterLoads = loads,
                AdapterEvictions = evictions,
            };
        }
    }

    /// <summary>The adapters that requests may name.</summary>
    public IReadOnlyCollection<AdapterInfo> Adapters => adapters.List();

    /// <summary>The same, and where each is.</summary>
    public IReadOnlyCollection<ResidentAdapter> Residents => adapters.Residents();

    /// <summary>
    /// These go to the device when they come here, if it has room then, and once there they make room for another only where no other adapter can.
    /// In place of those that were named before.
    /// </summary>
    /// <param name="digests">Adapters that are here, or may come.</param>
    public void KeepOnDevice(IReadOnlySet<string> digests)
    {
        ArgumentNullException.ThrowIfNull(digests);
        residency.Kept = digests;
        foreach (var digest in digests) Prefetch(digest);
    }

    private void Prefetch(string digest)
    {
        using var lease = adapters.Acquire(digest);
        if (lease is not null) residency.Prefetch(lease.Entry);
    }

    /// <summary>Size of the largest <c>adapter_model.safetensors</c> that can be accepted.</summary>
    public long MaxAdapterFileBytes => AdapterFile.LargestFile(config, MaxAdapterRank);

    private int MaxAdapterRank => Math.Min(options.MaxAdapterRank, backend.MaxAdapterRank);

    /// <summary>Checks a PEFT folder against the base model without keeping it: every finding in one pass.</summary>
    public AdapterReport ValidateAdapter(string directory)
    {
        var (report, adapter) = ReadAdapter(directory);
        adapter?.Dispose();
        return report;
    }

    /// <summary>Checks a PEFT folder and makes it available under its digest. Adding the same bytes again changes nothing.</summary>
    /// <param name="directory">The folder.</param>
    /// <param name="digest">What its files must be; null: whatever they are.</param>
    /// <exception cref="AdapterRefusedException">With the whole report.</exception>
    /// <exception cref="InvalidDataException">The files are another adapter's.</exception>
    public AdapterInfo AddAdapter(string directory, string? digest = null)
    {
        var (report, adapter) = ReadAdapter(directory);
        if (adapter is null) throw new AdapterRefusedException(directory, report);
        if (digest is null || adapter.Info.Digest == digest) return Admit(adapter);
        var found = adapter.Info.Digest;
        adapter.Dispose();
        throw new InvalidDataException($"{directory}: expected the files of {digest}, found those of {found}.");
    }

    /// <summary>The same, with what was found, and without an exception where it is refused.</summary>
    public AdapterReport TryAddAdapter(string directory)
    {
        var (report, adapter) = ReadAdapter(directory);
        if (adapter is not null) Admit(adapter);
        return report;
    }

    private AdapterInfo Admit(Adapter adapter)
    {
        var info = adapters.Add(adapter);
        if (residency.Kept.Contains(info.Digest)) Prefetch(info.Digest);
        return info;
    }

    /// <summary>Of the caller's making, checked and named by the caller; the engine owns it.</summary>
    internal AdapterInfo AddAdapter(Adapter adapter) => adapters.Add(adapter);

    /// <summary>Also refuses one that would not fit the device's room for adapters were it the only one.</summary>
    private (AdapterReport, Adapter?) ReadAdapter(string directory)
    {
        var (report, adapter) = AdapterFile.Read(directory, config, MaxAdapterRank, Info.Model);
        if (adapter is null || residency.SizeOf(adapter) is var bytes && bytes <= residency.Budget) return (report, adapter);
        adapter.Dispose();
        var finding = new AdapterFinding("adapter_too_large", Severity.Error, "The adapter is larger than the device's room for all adapters.", "adapter",
            $"at most {residency.Budget} bytes on the device", $"{bytes} bytes", $"Raise {nameof(EngineOptions.AdapterMemoryMegabytes)}, or train it at a lower rank.");
        return (new AdapterReport(null, [.. report.Findings, finding]), null);
    }

    /// <summary>New requests can no longer name it; running ones keep it, and its memory goes with the last of them.</summary>
    public bool RemoveAdapter(string digest) => adapters.Remove(digest);

    /// <inheritdoc/>
    public IAsyncEnumerable<GenerationEvent> GenerateAsync(GenerationRequest request, CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(request);
        return Generate(request, cancellationToken);
    }

    /// <inheritdoc/>
    public ValueTask<IReadOnlyList<string>> ListModelsAsync(string tenant, CancellationToken cancellationToken = default) => new([Info.Model]);

    /// <summary>Ends running sequences with <see cref="ErrorCodes.ShuttingDown"/> and frees model and device.</summary>
    public async ValueTask DisposeAsync()
    {
        if (stopping.IsCancellationRequested) return;
        await stopping.CancelAsync().ConfigureAwait(false);
        await Task.Run(thread.Join).ConfigureAwait(false);
        metrics.Dispose();
        residency.Dispose();
        adapters.Dispose();
        cache.Dispose();
        weights.Dispose();
        backend.Dispose();
        files?.Dispose();
    }

    // On the caller's thread: request -> tokens -> arrivals; outputs -> text.
    private async IAsyncEnumerable<GenerationEvent> Generate(GenerationRequest request, [EnumeratorCancellation] CancellationToken cancellationToken)
    {
        var generation = Accept(request);
        var text = new TextStream(tokenizer, request.StopStrings);
        var reason = FinishReason.Stop;
        var (completion, told) = (0, 0);
        try
        {
            yield return new GenerationQueued(Math.Max(0, Volatile.Read(ref waiting) - 1), generation.PromptLength);
            await foreach (var output in generation.Outputs.ReadAllAsync(cancellationToken).ConfigureAwait(false))
            {
                switch (output.Kind)
                {
                    case OutputKind.AdapterLoading:
                        yield return new AdapterLoading(generation.Adapter!);
                        break;
                    case OutputKind.Prefill:
                        yield return new PrefillProgress(output.Value, generation.PromptLength);
                        break;
                    case OutputKind.Token:
                        completion++;
                        var delta = endTokens.Contains(output.Value) ? "" : text.Push(output.Value);
                        if (delta.Length > 0 || request.Sampling.LogProbabilities is not null)
                        {
                            yield return new TextDelta(delta) { Tokens = completion - told, LogProbabilities = Describe(request, output) };
                            told = completion;
                        }
                        break;
                }
                if (generation.FoundStop = text.Stopped) break;
            }
            if (!text.Stopped)
            {
                if (text.Finish() is { Length: > 0 } rest) yield return new TextDelta(rest) { Tokens = completion - told };
                reason = text.Stopped ? FinishReason.Stop : generation.Finish!.Value;           // what was held may hold a stop string
            }
            yield return new GenerationDone(reason, new GenerationUsage(generation.PromptLength, completion), generation.Timings)
            {
                Adapter = generation.Adapter,
                Fingerprint = Fingerprint(generation.Adapter),
            };
        }
        finally
        {
            generation.Cancel();
            Wake();
        }
    }

    /// <summary>Checks and encodes a request and puts it in the queue, holding its adapter.</summary>
    private Generation Accept(GenerationRequest request)
    {
        request.Check(tokenizer.Size);
        var prompt = request.Messages is { } messages
            ? tokenizer.Encode(template.Render(messages, request.Tools, addGenerationPrompt: true))
            : tokenizer.Encode(request.Prompt!, addSpecialTokens: true);
        if (prompt.Length == 0) throw new TenantLoraException(ErrorCodes.InvalidRequest, "The prompt is empty.") { Parameter = "prompt" };
        var room = Info.ContextLength - prompt.Length;
        if (room < (request.MaxTokens ?? 1))
        {
            throw new TenantLoraException(ErrorCodes.ContextLengthExceeded,
                $"This model's context is {Info.ContextLength} tokens, but {prompt.Length + (long)(request.MaxTokens ?? 1)} were asked for: {prompt.Length} in the prompt, {request.MaxTokens ?? 1} for the answer.")
            {
                Parameter = request.Messages is null ? "prompt" : "messages",
            };
        }

        AdapterLease? lease = null;
        if (request.Adapter is { } digest)
            lease = adapters.Acquire(digest) ?? throw new TenantLoraException(ErrorCodes.ModelNotFound, $"The model '{request.Model ?? digest}' does not exist or you do not have access to it.") { Parameter = "model" };
        if (Interlocked.Increment(ref waiting) > options.MaxQueued)
        {
            Interlocked.Decrement(ref waiting);
            lease?.Dispose();
            throw new TenantLoraException(ErrorCodes.QueueFull, $"{options.MaxQueued} requests are waiting already.") { RetryAfter = TimeSpan.FromSeconds(1) };
        }
        var sampling = new SamplingState(request.Sampling, config.Generation.Sampling, request.Sampling.Seed ?? Random.Shared.NextInt64(), prompt);
        var generation = new Generation(request, prompt, request.MaxTokens ?? Math.Min(room, config.Generation.MaxNewTokens ?? room), endTokens, lease, sampling);
        if (lease is not null && !residency.Prefetch(lease.Entry, request.Tenant)) generation.AwaitAdapter();
        arrivals.Enqueue(generation);
        Wake();
        if (stopping.IsCancellationRequested) generation.End(ShuttingDown());           // perhaps too late for the loop to see it
        return generation;
    }

    private static TenantLoraException ShuttingDown() => new(ErrorCodes.ShuttingDown, "The server is shutting down.") { RetryAfter = TimeSpan.FromSeconds(5) };

    /// <summary>Somebody came or went, or an adapter has arrived: for an engine that sleeps. Any thread may call.</summary>
    private void Wake() => arrived.Release();

    // On the engine's thread, from here to Settle.
    private void Loop()
    {
        while (!stopping.IsCancellationRequested)
        {
            while (arrivals.TryDequeue(out var generation)) scheduler.Add(generation);

            var begun = Stopwatch.GetTimestamp();
            Interlocked.Exchange(ref turned, begun);
            TurnAdapters();
            var step = scheduler.Next();                        // who runs, with which blocks and adapters
            Settle(step.Dropped);
            var runs = step.Slices.Count > 0 && Launch(step);
            if (!runs && underway.Count == 0)
            {
                status = Look();
                Interlocked.Exchange(ref turned, 0);
                Sleep();
                continue;
            }
            while (underway.Count > (runs ? StepsAhead(step) : 0)) CollectOldest();
            metrics.Stepped(Stopwatch.GetElapsedTime(begun));
            Interlocked.Exchange(ref longest, Math.Max(longest, Stopwatch.GetTimestamp() - begun));
            status = Look();
        }
        while (underway.Count > 0) CollectOldest();
        while (arrivals.TryDequeue(out var generation)) scheduler.Add(generation);
        Fail([.. scheduler.All], ShuttingDown());
    }

    /// <summary>
    /// How many steps may stay under way while the next is made. A penalty counts the tokens so far: while the last of them is in flight
    /// the rule of the next cannot be written, so a step that draws for such a sequence is awaited.
    /// </summary>
    private int StepsAhead(Step step) => step.Slices.Any(s => s.Sample && ((Generation)s.Sequence).Sampling.NeedsHistory) ? 0 : backend.StepsAhead;

    private void Sleep()
    {
        try
        {
            arrived.Wait(stopping.Token);
            while (arrived.Wait(0)) { }
        }
        catch (OperationCanceledException)
        {
        }
    }

    private void TurnAdapters()
    {
        static IEnumerable<AdapterEntry> Entries(IEnumerable<Sequence> sequences) => sequences.Select(s => ((Generation)s).Lease?.Entry).OfType<AdapterEntry>();

        var wanting = Entries(scheduler.All).Any(e => e.Place != AdapterPlace.Device);
        foreach (var (entry, error) in residency.Turn(wanting ? Entries(scheduler.InBatch) : [], wanting ? Entries(scheduler.Upcoming) : [], done))
        {
            AdapterFailed(log, entry.Adapter.Info.Digest, error);
            Fail([.. scheduler.All.Where(s => ((Generation)s).Lease?.Entry == entry)], new TenantLoraException(ErrorCodes.Internal, "The adapter could not be loaded.", error));
        }
    }

    private bool Ready(Sequence sequence)
    {
        var generation = (Generation)sequence;
        if (generation.Lease is null || residency.Ready(generation.Lease.Entry)) return true;
        if (generation.Lease.Entry.Place != AdapterPlace.Device) generation.AwaitAdapter();
        return false;
    }

    /// <summary>Gives the step to the backend; false when it could not be started.</summary>
    private bool Launch(Step step)
    {
        try
        {
            launched++;
            foreach (var slice in step.Slices)
            {
                var generation = (Generation)slice.Sequence;
                generation.Lease?.Entry.LastStep = launched;
                if (generation.Started) continue;
                generation.Start();
                Interlocked.Decrement(ref waiting);
            }
            model.Run(StepBatch.Build(step.Slices, options.BlockSize,
                sequence => ((Generation)sequence).Lease?.Entry.Device,
                sequence => ((Generation)sequence).Sampling.Rule(sequence.Length - 1 - sequence.PromptLength)));
            underway.Enqueue(step);
            return true;
        }
        catch (Exception error)
        {
            while (underway.Count > 0) CollectOldest();         // no step may read what a step drew that never ran
            done = launched;
            StepFailed(step, error);
            return false;
        }
    }

    private void CollectOldest()
    {
        var step = underway.Dequeue();
        try
        {
            Settle(scheduler.Complete(step, Take(step, backend.Collect())));
            Volatile.Write(ref failures, 0);
        }
        catch (Exception error)
        {
            StepFailed(step, error);
        }
        done++;
    }

    private void StepFailed(Step step, Exception error)
    {
        StepFailed(log, error);
        Interlocked.Exchange(ref failed, Stopwatch.GetTimestamp());
        Volatile.Write(ref failures, failures + 1);
        Fail([.. step.Slices.Select(s => s.Sequence)], new TenantLoraException(ErrorCodes.Internal, "The step that computed this answer failed.", error));
    }

    /// <summary>Hands out what the step drew. A sequence whose logits went bad ends here, alone.</summary>
    private int[] Take(Step step, Drawn[] drawn)
    {
        var next = 0;
        foreach (var slice in step.Slices)
        {
            var generation = (Generation)slice.Sequence;
            var one = slice.Sample ? drawn[next++] : default;
            if (generation.State == SequenceState.Finished) continue;                   // ended while the step was under way
            generation.Read(slice.First + slice.Rows);
            if (!slice.Sample) continue;
            if (one.Token >= 0) generation.Take(one);
            else Fail([generation], new TenantLoraException(ErrorCodes.NotANumber, "The model's output is not a number; the adapter's values are at fault, or the base model's."));
        }
        return [.. drawn.Select(d => d.Token)];
    }

    private void Fail(IReadOnlyList<Sequence> sequences, TenantLoraException error)
    {
        foreach (var sequence in sequences.Where(s => s.State != SequenceState.Finished))
        {
            scheduler.Drop(sequence);
            End((Generation)sequence, error.Code, error);
        }
    }

    private void Settle(IReadOnlyList<Sequence> ended)
    {
        foreach (var sequence in ended) End((Generation)sequence, ((Generation)sequence).Outcome, null);
    }

    private void End(Generation generation, string outcome, Exception? error)
    {
        if (!generation.Started) Interlocked.Decrement(ref waiting);
        metrics.Ended(outcome, generation);
        generation.End(error);
    }

    private EngineStatus Look() => new(0, scheduler.Running, pool.Total, pool.Free, 0, scheduler.Preemptions);

    private TokenLogProbability[] Describe(GenerationRequest request, Output output)
    {
        if (request.Sampling.LogProbabilities is null) return [];
        return [Describe(output.Drawn.Token, output.Drawn.LogProbability, [.. output.Drawn.Top.Select(t => Describe(t.Token, t.LogProbability, []))])];
    }

    private TokenLogProbability Describe(int token, float logProbability, IReadOnlyList<TokenLogProbability> top)
    {
        var bytes = tokenizer.Bytes(token);
        return new TokenLogProbability(Encoding.UTF8.GetString(bytes), bytes.ToArray(), logProbability, top);
    }

    private string Fingerprint(string? adapter) =>
        "fp_" + Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes($"{Info.BaseDigest}+{adapter}")).AsSpan(0, 8));

    [LoggerMessage(Level = LogLevel.Information, Message = "Weights: {Percent} % of {Gigabytes:F1} GB on the device.")]
    private static partial void Uploaded(ILogger logger, int percent, double gigabytes);

    [LoggerMessage(Level = LogLevel.Information, Message = "Running on {Device}: {Plan}.")]
    private static partial void Planned(ILogger logger, string device, string plan);

    [LoggerMessage(Level = LogLevel.Error, Message = "A step failed; its sequences were ended, the engine goes on.")]
    private static partial void StepFailed(ILogger logger, Exception error);

    [LoggerMessage(Level = LogLevel.Error, Message = "Adapter {Digest} could not be loaded; the requests that waited for it were ended.")]
    private static partial void AdapterFailed(ILogger logger, string digest, Exception error);
}
