using System.Collections.Concurrent;
using System.Runtime.CompilerServices;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Tests;

/// <summary>A runtime that answers by a callback, and remembers what it was asked.</summary>
internal sealed class FakeRuntime : IRuntime
{
    public Func<GenerationRequest, CancellationToken, IAsyncEnumerable<GenerationEvent>> Answer { get; set; } = (_, token) => Says(token, "Aye", ", ", "we are open.");

    public ConcurrentQueue<GenerationRequest> Asked { get; } = new();

    /// <summary>Adapters that requests wanted at hand.</summary>
    public ConcurrentQueue<string> Held { get; } = new();

    /// <summary>Generations entered and not yet left.</summary>
    public int Running;

    public async IAsyncEnumerable<GenerationEvent> GenerateAsync(GenerationRequest request, [EnumeratorCancellation] CancellationToken cancellationToken = default)
    {
        Asked.Enqueue(request);
        Interlocked.Increment(ref Running);
        try
        {
            await foreach (var next in Answer(request, cancellationToken)) yield return next;
        }
        finally
        {
            Interlocked.Decrement(ref Running);
        }
    }

    public ValueTask<IReadOnlyList<string>> ListModelsAsync(string tenant, CancellationToken cancellationToken = default) => new(["demo-7m"]);

    public ValueTask DisposeAsync() => ValueTask.CompletedTask;

    public static GenerationDone Done(int tokens, FinishReason reason = FinishReason.Stop) =>
        new(reason, new GenerationUsage(31, tokens), new GenerationTimings(TimeSpan.FromMilliseconds(0.4), TimeSpan.FromMilliseconds(8.1), TimeSpan.FromMilliseconds(31)))
        { Adapter = TestHost.HarborDigest, Fingerprint = "fp_demo" };

    /// <summary>A whole answer in these pieces, at once.</summary>
    public static IAsyncEnumerable<GenerationEvent> Says(CancellationToken cancellationToken, params string[] pieces) => Says(TimeSpan.Zero, cancellationToken, pieces);

    /// <summary>A whole answer in these pieces, with a pause before each.</summary>
    public static async IAsyncEnumerable<GenerationEvent> Says(TimeSpan pause, [EnumeratorCancellation] CancellationToken cancellationToken, params string[] pieces)
    {
        yield return new GenerationQueued(0, 31);
        yield return new PrefillProgress(0, 31);
        yield return new PrefillProgress(31, 31);
        foreach (var piece in pieces)
        {
            if (pause > TimeSpan.Zero) await Task.Delay(pause, cancellationToken);
            cancellationToken.ThrowIfCancellationRequested();
            yield return new TextDelta(piece);
        }
        yield return Done(pieces.Length);
    }

    /// <summary>An answer that would go on for minutes.</summary>
    public static IAsyncEnumerable<GenerationEvent> Endless(CancellationToken cancellationToken) =>
        Says(TimeSpan.FromMilliseconds(5), cancellationToken, [.. Enumerable.Range(0, 50_000).Select(i => $"{i} ")]);

    /// <summary>These events, then this error.</summary>
    public static async IAsyncEnumerable<GenerationEvent> Fails(Exception error, params GenerationEvent[] first)
    {
        foreach (var next in first) yield return next;
        await Task.Yield();
        throw error;
    }
}
