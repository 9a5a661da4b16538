using System.Collections.Concurrent;
using System.Runtime.CompilerServices;
using TenantLora.Runtime;

namespace TenantLora.Connector.Tests;

/// <summary>Answers as the callback says, remembers what it was asked, and counts streams that have not been left.</summary>
internal sealed class FakeRuntime(Func<GenerationRequest, CancellationToken, IAsyncEnumerable<GenerationEvent>> answer) : IRuntime
{
    private int open;

    public ConcurrentQueue<GenerationRequest> Requests { get; } = [];

    public GenerationRequest Request => Requests.Last();

    public int Open => open;

    public bool Disposed { get; private set; }

    /// <summary>A runtime that says these pieces, after the usual progress.</summary>
    public static FakeRuntime Saying(params string[] pieces) => new((request, _) => Answer(pieces, request.Adapter));

    public static GenerationDone Done(int tokens = 3, FinishReason reason = FinishReason.Stop, string? adapter = null) =>
        new(reason, new GenerationUsage(5, tokens), new GenerationTimings(TimeSpan.FromMilliseconds(1), TimeSpan.FromMilliseconds(9), TimeSpan.FromMilliseconds(100)))
        {
            Adapter = adapter,
            Fingerprint = "fp",
        };

    public static async IAsyncEnumerable<GenerationEvent> Answer(IEnumerable<string> pieces, string? adapter = null)
    {
        yield return new GenerationQueued(0, 5);
        yield return new AdapterLoading("sha256:x");
        yield return new PrefillProgress(5, 5);
        await Task.Yield();
        var count = 0;
        foreach (var piece in pieces)
        {
            count++;
            yield return new TextDelta(piece);
        }
        yield return Done(count, adapter: adapter);
    }

    public async IAsyncEnumerable<GenerationEvent> GenerateAsync(GenerationRequest request, [EnumeratorCancellation] CancellationToken cancellationToken = default)
    {
        Requests.Enqueue(request);
        Interlocked.Increment(ref open);
        try
        {
            await foreach (var generated in answer(request, cancellationToken)) yield return generated;
        }
        finally
        {
            Interlocked.Decrement(ref open);
        }
    }

    public ValueTask<IReadOnlyList<string>> ListModelsAsync(string tenant, CancellationToken cancellationToken = default) => ValueTask.FromResult<IReadOnlyList<string>>(["base"]);

    public ValueTask DisposeAsync()
    {
        Disposed = true;
        return ValueTask.CompletedTask;
    }
}
