using System.Runtime.CompilerServices;
using System.Threading.Channels;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Tests.Browser;

/// <summary>A runtime that says what the test dictates, when it dictates it: a page can be looked at between any two words.</summary>
internal sealed class Dictation
{
    private readonly Channel<GenerationEvent> dictated = Channel.CreateUnbounded<GenerationEvent>();

    public Dictation() => Runtime = new FakeRuntime { Answer = (_, token) => ReadAsync(token) };

    public FakeRuntime Runtime { get; }

    public void Say(GenerationEvent next) => dictated.Writer.TryWrite(next);

    public void Say(string text) => Say(new TextDelta(text));

    /// <summary>The first events of an answer, up to its first word.</summary>
    public void Begin()
    {
        Say(new GenerationQueued(0, 31));
        Say(new PrefillProgress(31, 31));
    }

    public void End(int tokens) => Say(FakeRuntime.Done(tokens));

    private async IAsyncEnumerable<GenerationEvent> ReadAsync([EnumeratorCancellation] CancellationToken cancellationToken)
    {
        await foreach (var next in dictated.Reader.ReadAllAsync(cancellationToken))
        {
            yield return next;
            if (next is GenerationDone) yield break;
        }
    }
}
