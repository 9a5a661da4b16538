using System.Buffers;
using System.IO.Pipelines;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using TenantLora.Connector;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.OpenAi;

/// <summary>Turns the events of one generation into OpenAI's answer: chunks of server-sent events, or one object collected from them.</summary>
/// <param name="tellsProgress">To a host that serves people: also the way to the first token, and how many tokens a text is.</param>
internal sealed class CompletionWriter(CompletionRequest request, bool tellsProgress = false)
{
    private readonly string id = (request.Chat ? "chatcmpl-" : "cmpl-") + Convert.ToHexStringLower(RandomNumberGenerator.GetBytes(12));
    private readonly long created = TimeProvider.System.GetUtcNow().ToUnixTimeSeconds();

    /// <summary>Writes the stream. Events that come together leave together; a silent stream carries a comment each <paramref name="keepAlive"/>.</summary>
    /// <param name="events">Positioned on its first event, which was peeked at before the response was begun.</param>
    /// <returns>How it ended.</returns>
    public async Task<GenerationDone> StreamAsync(IAsyncEnumerator<GenerationEvent> events, PipeWriter body, TimeSpan keepAlive, CancellationToken cancellationToken)
    {
        var written = 0;
        if (request.Chat) Write(body, Chunk(new Choice { Delta = new ChoiceText { Role = "assistant", Content = "" } }));
        for (var count = 1; ; count++)
        {
            var progress = tellsProgress ? WireProgress.From(events.Current) : null;
            switch (events.Current)
            {
                case TextDelta delta:
                    Write(body, Chunk(Piece(delta, written)) with { Progress = progress });
                    written += delta.Text.Length;
                    break;
                case GenerationDone done:
                    Write(body, Chunk(Last(done)) with { SystemFingerprint = done.Fingerprint, Timings = CompletionTimings.From(done) });
                    if (request.IncludeUsage) Write(body, Chunk() with { Usage = CompletionUsage.From(done.Usage), SystemFingerprint = done.Fingerprint });
                    body.Write("data: [DONE]\n\n"u8);
                    await body.FlushAsync(cancellationToken);
                    return done;
                case var _ when progress is not null:
                    Write(body, Chunk() with { Progress = progress });
                    break;
            }
            var next = events.MoveNextAsync();
            if (!next.IsCompleted)
            {
                await body.FlushAsync(cancellationToken);
                await WithKeepAliveAsync(next.AsTask(), body, keepAlive, cancellationToken);
            }
            else if (!next.Result) throw new InvalidOperationException("The generation ended without a last event.");
            else if (count % 64 == 0)
            {
                await body.FlushAsync(cancellationToken);
                await Task.Yield(); // a source that never waits must not keep the thread
            }
        }
    }

    /// <summary>The chunk that tells a reader of a begun stream what went wrong. The connection must be cut after it: some clients see only that.</summary>
    public static async Task WriteErrorAsync(PipeWriter body, ApiError error, CancellationToken cancellationToken)
    {
        body.Write("data: "u8);
        body.Write(JsonSerializer.SerializeToUtf8Bytes(error.Envelope, HostJson.Wire.ErrorEnvelope));
        body.Write("\n\n"u8);
        await body.FlushAsync(cancellationToken);
    }

    /// <summary>The whole answer.</summary>
    public async Task<(Completion Answer, GenerationDone Done)> CollectAsync(IAsyncEnumerator<GenerationEvent> events)
    {
        StringBuilder text = new();
        List<TokenLogProbability> tokens = [];
        do
        {
            switch (events.Current)
            {
                case TextDelta delta:
                    text.Append(delta.Text);
                    tokens.AddRange(delta.LogProbabilities);
                    break;
                case GenerationDone done:
                    return (Whole(text.ToString(), tokens, done), done);
            }
        }
        while (await events.MoveNextAsync());
        throw new InvalidOperationException("The generation ended without a last event.");
    }

    private Completion Whole(string text, List<TokenLogProbability> tokens, GenerationDone done) =>
        new(id, request.Chat ? "chat.completion" : "text_completion", created, request.Model,
        [
            Last(done) with
            {
                Delta = null,
                Message = request.Chat ? new ChoiceText { Role = "assistant", Content = text } : null,
                Text = request.Chat ? null : text,
                Logprobs = Logprobs(tokens, 0),
            },
        ])
        {
            Usage = CompletionUsage.From(done.Usage),
            SystemFingerprint = done.Fingerprint,
            Timings = CompletionTimings.From(done),
        };

    private Completion Chunk(params IReadOnlyList<Choice> choices) =>
        new(id, request.Chat ? "chat.completion.chunk" : "text_completion", created, request.Model, choices);

    private Choice Piece(TextDelta delta, int written) => new()
    {
        Delta = request.Chat ? new ChoiceText { Content = delta.Text } : null,
        Text = request.Chat ? null : delta.Text,
        Logprobs = Logprobs(delta.LogProbabilities, written),
    };

    private Choice Last(GenerationDone done) => new()
    {
        Delta = request.Chat ? new ChoiceText() : null,
        Text = request.Chat ? null : "",
        FinishReason = Name(done.Reason),
    };

    private object? Logprobs(IReadOnlyList<TokenLogProbability> tokens, int offset) =>
        request.Chat ? ChatLogprobs.From(tokens) : PlainLogprobs.From(tokens, offset);

    public static string Name(FinishReason reason) => reason == FinishReason.Length ? "length" : "stop";

    private static void Write(PipeWriter body, Completion chunk)
    {
        body.Write("data: "u8);
        body.Write(JsonSerializer.SerializeToUtf8Bytes(chunk, HostJson.Wire.Completion));
        body.Write("\n\n"u8);
    }

    private static async Task WithKeepAliveAsync(Task<bool> next, PipeWriter body, TimeSpan interval, CancellationToken cancellationToken)
    {
        while (await Task.WhenAny(next, Task.Delay(interval, cancellationToken)) != next && !cancellationToken.IsCancellationRequested)
        {
            // A comment, which every client passes over; a named ping event breaks some.
            body.Write(": keep-alive\n\n"u8);
            await body.FlushAsync(cancellationToken);
        }
        if (!await next) throw new InvalidOperationException("The generation ended without a last event.");
    }
}
