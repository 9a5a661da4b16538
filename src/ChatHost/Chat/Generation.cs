using System.Diagnostics;
using System.Runtime.CompilerServices;
using System.Security.Cryptography;
using System.Text;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Chat;

/// <summary>
/// One answer in the making and its numbered events. It lives in the server: readers come, go and come back, and each gets every event
/// from where it says. The events are bounded by the model's context.
/// </summary>
internal sealed class Generation(string tenant, string model, string? adapter) : IDisposable
{
    /// <summary>Text that comes within this time of a frame waits to share the next.</summary>
    private static readonly TimeSpan FrameTime = TimeSpan.FromMilliseconds(25);

    private readonly Lock gate = new();
    private readonly List<HubEvent> events = [];
    private readonly StringBuilder pending = new();
    private readonly CancellationTokenSource stop = new();
    private readonly Stopwatches times = new();
    private TaskCompletionSource changed = NewSignal();
    private Timer? frame;
    private long lastFrame;
    private int promptTokens;
    private int tokens, untoldTokens;

    /// <summary>128 random bits: whoever was not told it cannot name it.</summary>
    public string Id { get; } = Convert.ToHexStringLower(RandomNumberGenerator.GetBytes(16));

    public string Tenant { get; } = tenant;

    /// <summary>How it ended: <c>stop</c>, <c>length</c>, <c>stopped</c> or an error's code. Null while it runs.</summary>
    public string? Outcome { get; private set; }

    public void Stop()
    {
        if (Outcome is null) stop.Cancel(); // an ended one may be disposed already
    }

    /// <summary>Runs to the end, whoever listens. Never throws: what goes wrong is the last event.</summary>
    /// <param name="answer">Opens the stream; called once, with the token that <see cref="Stop"/> cancels.</param>
    /// <param name="report">Told of a defect.</param>
    /// <param name="ended">Ends what still runs, when the host must stop.</param>
    public async Task RunAsync(Func<CancellationToken, IAsyncEnumerable<GenerationEvent>> answer, Action<Exception> report, CancellationToken ended)
    {
        using var either = CancellationTokenSource.CreateLinkedTokenSource(stop.Token, ended);
        frame = new Timer(_ => Frame(), null, Timeout.InfiniteTimeSpan, Timeout.InfiniteTimeSpan);
        var count = 0;
        try
        {
            await foreach (var next in answer(either.Token).WithCancellation(either.Token))
            {
                Take(next);
                if (++count % 64 == 0) await Task.Yield(); // a source that never waits must not keep the thread
            }
            if (Outcome is null) throw new InvalidOperationException("The generation ended without a last event.");
        }
        catch (OperationCanceledException) when (stop.IsCancellationRequested)
        {
            // The runtime says nothing more, so the figures are what was seen here.
            Add(seq => new DoneEvent(seq, "stopped", new GenerationUsage(promptTokens, tokens), HubTimings.From(times.Read(), tokens), model, adapter, null), "stopped");
        }
        catch (OperationCanceledException) when (ended.IsCancellationRequested)
        {
            Fail(Operations.Admission.ShuttingDown());
        }
        catch (TenantLoraException e)
        {
            Fail(e);
        }
        catch (Exception e)
        {
            report(e);
            Fail(new TenantLoraException(ErrorCodes.Internal, "Something went wrong on the server."));
        }
        finally
        {
            await frame.DisposeAsync();
        }
    }

    /// <summary>Events with a number of at least <paramref name="from"/>, those to come included, up to the last.</summary>
    public async IAsyncEnumerable<HubEvent> ReadAsync(int from, [EnumeratorCancellation] CancellationToken cancellationToken)
    {
        for (var next = from; ; next++)
        {
            HubEvent? found = null;
            while (found is null)
            {
                Task wait;
                lock (gate)
                {
                    if (next < events.Count) found = events[next];
                    else if (Outcome is not null) yield break; // asked for more than there is
                    wait = changed.Task;
                }
                if (found is null) await wait.WaitAsync(cancellationToken);
            }
            yield return found;
            if (found.IsLast) yield break;
            // A replay never waits by itself. When SignalR drops a stalled reader, a loop without a pause would take the core and
            // could not even be cancelled.
            if (next % 64 == 63) await Task.Yield();
        }
    }

    /// <summary>Only after the end.</summary>
    public void Dispose()
    {
        frame?.Dispose();
        stop.Dispose();
    }

    private void Take(GenerationEvent next)
    {
        switch (next)
        {
            case GenerationQueued queued:
                promptTokens = queued.PromptTokens;
                Add(seq => new QueuedEvent(seq, Id, queued.Ahead, queued.PromptTokens));
                break;
            case AdapterLoading loading:
                Add(seq => new AdapterLoadEvent(seq, loading.Adapter));
                break;
            case PrefillProgress progress:
                times.Started();
                Add(seq => new PrefillEvent(seq, progress.Done, progress.Total));
                break;
            case TextDelta delta:
                times.Token();
                tokens += delta.Tokens;
                Append(delta);
                break;
            case GenerationDone done:
                var reason = OpenAi.CompletionWriter.Name(done.Reason);
                Add(seq => new DoneEvent(seq, reason, done.Usage, HubTimings.From(done.Timings, done.Usage.CompletionTokens), model, done.Adapter, done.Fingerprint), reason);
                break;
        }
    }

    private void Fail(TenantLoraException e) => Add(seq => new ErrorEvent(seq, e.Code, e.Message), e.Code);

    private void Add(Func<int, HubEvent> make, string? outcome = null)
    {
        lock (gate)
        {
            FlushText();
            events.Add(make(events.Count));
            Outcome = outcome;
            Wake();
        }
    }

    private void Append(TextDelta delta)
    {
        lock (gate)
        {
            untoldTokens += delta.Tokens;
            if (delta.Text.Length == 0) return;
            var first = pending.Length == 0;
            pending.Append(delta.Text);
            var since = Stopwatch.GetElapsedTime(lastFrame);
            if (since >= FrameTime) Flush();
            else if (first) frame!.Change(FrameTime - since, Timeout.InfiniteTimeSpan);
        }
    }

    private void Frame()
    {
        lock (gate) Flush();
    }

    private void Flush()
    {
        if (FlushText()) Wake();
    }

    private bool FlushText()
    {
        if (pending.Length == 0) return false;
        events.Add(new DeltaEvent(events.Count, pending.ToString(), untoldTokens));
        pending.Clear();
        untoldTokens = 0;
        lastFrame = Stopwatch.GetTimestamp();
        return true;
    }

    private void Wake()
    {
        var signal = changed;
        changed = NewSignal();
        signal.TrySetResult();
    }

    // Readers continue on the pool, not under the lock of whoever wakes them.
    private static TaskCompletionSource NewSignal() => new(TaskCreationOptions.RunContinuationsAsynchronously);

    /// <summary>Times as seen from here, for an answer that was stopped.</summary>
    private sealed class Stopwatches
    {
        private readonly long arrived = Stopwatch.GetTimestamp();
        private long started, first, last;

        public void Started() => started = started == 0 ? Stopwatch.GetTimestamp() : started;

        public void Token()
        {
            Started();
            last = Stopwatch.GetTimestamp();
            if (first == 0) first = last;
        }

        public GenerationTimings Read()
        {
            var now = Stopwatch.GetTimestamp();
            var begin = started == 0 ? now : started;
            return new(Stopwatch.GetElapsedTime(arrived, begin), Stopwatch.GetElapsedTime(begin, first == 0 ? now : first), Stopwatch.GetElapsedTime(first, last));
        }
    }
}
