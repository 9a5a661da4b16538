using System.Net;
using System.Net.Http.Headers;
using System.Net.ServerSentEvents;
using System.Runtime.CompilerServices;
using System.Text.Json;
using TenantLora.Runtime;

namespace TenantLora.Connector;

/// <summary>
/// A runtime behind OpenAI's API, as the ChatHost serves it: one POST, one stream of server-sent events, one connection closed when the
/// reader leaves, which is how the server learns to stop. Names are resolved there; the key says whose they are. It never retries.
/// </summary>
internal sealed class HttpRuntime : IRuntime
{
    // An answer may wait in a queue for minutes: no overall timeout. Without a drain timeout of zero, leaving a stream early would
    // read on in the background and the server would generate for nobody.
    private static readonly HttpClient Shared = new(new SocketsHttpHandler
    {
        AllowAutoRedirect = false,
        ConnectTimeout = TimeSpan.FromSeconds(15),
        PooledConnectionLifetime = TimeSpan.FromMinutes(5),
        ResponseDrainTimeout = TimeSpan.Zero,
    })
    { Timeout = Timeout.InfiniteTimeSpan };

    private readonly Action<HttpRequestHeaders, string> sign;
    private readonly HttpClient http;

    /// <param name="server">With or without <c>/v1</c>.</param>
    /// <param name="apiKeyOf">The key by which the server knows a tenant.</param>
    public HttpRuntime(Uri server, Func<string, string?> apiKeyOf, HttpClient? http = null) : this(server, SignBy(apiKeyOf), http)
    {
    }

    /// <param name="server">With or without <c>/v1</c>.</param>
    /// <param name="sign">Puts into a request's headers who asks, for the tenant that it is given.</param>
    public HttpRuntime(Uri server, Action<HttpRequestHeaders, string> sign, HttpClient? http = null)
    {
        ArgumentNullException.ThrowIfNull(server);
        ArgumentNullException.ThrowIfNull(sign);
        if (!server.IsAbsoluteUri || server.Scheme is not ("http" or "https"))
            throw new ArgumentException($"Expected an absolute http or https address, found '{server}'.", nameof(server));
        var root = server.GetLeftPart(UriPartial.Path).TrimEnd('/');
        Server = new Uri(root.EndsWith("/v1", StringComparison.Ordinal) ? root + "/" : root + "/v1/");
        this.sign = sign;
        this.http = http ?? Shared;
    }

    /// <summary>The API's address: <c>https://host/v1/</c>.</summary>
    public Uri Server { get; }

    public async IAsyncEnumerable<GenerationEvent> GenerateAsync(GenerationRequest request, [EnumeratorCancellation] CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(request);
        var body = JsonSerializer.SerializeToUtf8Bytes(CompletionBody.From(request), Wire.Default.CompletionBody);
        using var message = Request(HttpMethod.Post, request.Prompt is null ? "chat/completions" : "completions", request.Tenant);
        message.Content = new ByteArrayContent(body) { Headers = { ContentType = new MediaTypeHeaderValue("application/json") } };
        message.Headers.Accept.ParseAdd("text/event-stream");

        using var response = await SendAsync(message, cancellationToken).ConfigureAwait(false);
        var requestId = Header(response, "x-request-id");
        if (response.Content.Headers.ContentType?.MediaType != "text/event-stream")
            throw Broken($"expected text/event-stream, found {response.Content.Headers.ContentType?.MediaType ?? "no content type"}", requestId);

        if (Header(response, CompletionChunk.ProgressHeader) is null) yield return new GenerationQueued(Ahead: 0, PromptTokens: 0);

        using var stream = await response.Content.ReadAsStreamAsync(cancellationToken).ConfigureAwait(false);
        var answer = new Answer(Header(response, "x-tenantlora-adapter"));
        var chunks = SseParser.Create(stream, static (_, data) => CompletionChunk.Read(data)).EnumerateAsync(cancellationToken).GetAsyncEnumerator(cancellationToken);
        await using (chunks.ConfigureAwait(false))
        {
            while (await NextAsync(chunks, requestId, cancellationToken).ConfigureAwait(false) is { IsEnd: false } chunk)
            {
                if (chunk.Error is { } error) throw error.ToException(HttpStatusCode.InternalServerError, requestId, retryAfter: null);
                if (answer.Add(chunk) is { } next) yield return next;
            }
        }

        yield return answer.Done() ?? throw Broken("the stream ended before the answer did", requestId);

        // The connection goes back to the pool only if its response was read to the end; that is one empty chunk away.
        using var brief = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken);
        brief.CancelAfter(TimeSpan.FromMilliseconds(250));
        await DrainAsync(stream, brief.Token).ConfigureAwait(false);
    }

    public async ValueTask<IReadOnlyList<string>> ListModelsAsync(string tenant, CancellationToken cancellationToken = default)
    {
        using var message = Request(HttpMethod.Get, "models", tenant);
        using var response = await SendAsync(message, cancellationToken).ConfigureAwait(false);
        var requestId = Header(response, "x-request-id");
        try
        {
            using var stream = await response.Content.ReadAsStreamAsync(cancellationToken).ConfigureAwait(false);
            var list = await JsonSerializer.DeserializeAsync(stream, Wire.Default.ModelList, cancellationToken).ConfigureAwait(false);
            return [.. (list?.Data ?? []).Select(m => m.Id)];
        }
        catch (Exception e) when (e is HttpRequestException or IOException or JsonException)
        {
            cancellationToken.ThrowIfCancellationRequested();
            throw Broken(e.Message, requestId, e);
        }
    }

    /// <summary>Nothing to end: connections are shared and close with the answers they carry.</summary>
    public ValueTask DisposeAsync() => ValueTask.CompletedTask;

    private static Action<HttpRequestHeaders, string> SignBy(Func<string, string?> apiKeyOf)
    {
        ArgumentNullException.ThrowIfNull(apiKeyOf);
        return (headers, tenant) =>
        {
            var key = apiKeyOf(tenant);
            if (string.IsNullOrWhiteSpace(key) || !key.All(c => c is > ' ' and < '\x7f'))
                throw new TenantLoraException(ErrorCodes.InvalidKey, "There is no usable API key for this tenant: expected printable ASCII without spaces.");
            headers.Authorization = new AuthenticationHeaderValue("Bearer", key);
        };
    }

    /// <summary>A request to the server, signed.</summary>
    /// <param name="path">Relative to <see cref="Server"/>.</param>
    public HttpRequestMessage Request(HttpMethod method, string path, string tenant)
    {
        var message = new HttpRequestMessage(method, new Uri(Server, path));
        sign(message.Headers, tenant);
        return message;
    }

    /// <summary>Sends it as far as the answer's headers.</summary>
    /// <exception cref="TenantLoraException">What the server refused with, or <see cref="ErrorCodes.Unreachable"/> with the connection's failure as inner exception.</exception>
    public async Task<HttpResponseMessage> SendAsync(HttpRequestMessage message, CancellationToken cancellationToken)
    {
        HttpResponseMessage? response = null;
        try
        {
            response = await http.SendAsync(message, HttpCompletionOption.ResponseHeadersRead, cancellationToken).ConfigureAwait(false);
            if (response.IsSuccessStatusCode) return response;
            throw await RefusalAsync(response, cancellationToken).ConfigureAwait(false);
        }
        catch (Exception e)
        {
            response?.Dispose();
            if (e is not (HttpRequestException or IOException or OperationCanceledException)) throw;
            cancellationToken.ThrowIfCancellationRequested();
            throw Broken(e.Message, response is null ? null : Header(response, "x-request-id"), e);
        }
    }

    private static async Task<TenantLoraException> RefusalAsync(HttpResponseMessage response, CancellationToken cancellationToken)
    {
        var retryAfter = response.Headers.RetryAfter is not { } header ? null
            : header.Delta ?? (header.Date - DateTimeOffset.UtcNow is { } wait ? (wait > TimeSpan.Zero ? wait : TimeSpan.Zero) : null);
        using var stream = await response.Content.ReadAsStreamAsync(cancellationToken).ConfigureAwait(false);
        var bytes = new byte[64 * 1024];
        var length = await stream.ReadAtLeastAsync(bytes, bytes.Length, throwOnEndOfStream: false, cancellationToken).ConfigureAwait(false);
        var error = WireError.Read(bytes.AsSpan(0, length))
            ?? new WireError($"The server answered {(int)response.StatusCode} {response.ReasonPhrase} without saying why.", null, null);
        return error.ToException(response.StatusCode, Header(response, "x-request-id"), retryAfter);
    }

    private static async ValueTask<CompletionChunk?> NextAsync(IAsyncEnumerator<SseItem<CompletionChunk>> chunks, string? requestId, CancellationToken cancellationToken)
    {
        try
        {
            return await chunks.MoveNextAsync().ConfigureAwait(false) ? chunks.Current.Data : null;
        }
        catch (Exception e) when (e is HttpRequestException or IOException or JsonException or OperationCanceledException)
        {
            cancellationToken.ThrowIfCancellationRequested();
            throw Broken(e.Message, requestId, e);
        }
    }

    private static async Task DrainAsync(Stream stream, CancellationToken cancellationToken)
    {
        try
        {
            var rest = new byte[256];
            while (await stream.ReadAsync(rest, cancellationToken).ConfigureAwait(false) > 0)
            {
            }
        }
        catch (Exception e) when (e is HttpRequestException or IOException or OperationCanceledException)
        {
            // The answer is whole; only the connection is not reused.
        }
    }

    private static string? Header(HttpResponseMessage response, string name) => response.Headers.TryGetValues(name, out var values) ? values.FirstOrDefault() : null;

    private static TenantLoraException Broken(string what, string? requestId, Exception? inner = null) =>
        new(ErrorCodes.Unreachable, $"No whole answer from the server: {what.TrimEnd('.')}.", inner) { RequestId = requestId };

    /// <summary>What the chunks so far add up to.</summary>
    /// <param name="adapter">As the server names it: a digest, <c>support@v3</c>, or <c>none</c> for the base model.</param>
    private sealed class Answer(string? adapter)
    {
        private string? finish;
        private string? fingerprint;
        private WireUsage? usage;
        private WireTimings? timings;

        public GenerationEvent? Add(CompletionChunk chunk)
        {
            fingerprint = chunk.SystemFingerprint ?? fingerprint;
            usage = chunk.Usage ?? usage;
            timings = chunk.Timings ?? timings;
            if (chunk.Choices is not [var choice, ..]) return chunk.Progress?.ToEvent(adapter);
            if (!string.IsNullOrEmpty(choice.FinishReason)) finish = choice.FinishReason;
            var text = choice.Delta?.Content ?? choice.Text ?? "";
            var logProbabilities = choice.LogProbabilities?.ToList() ?? [];
            return text.Length == 0 && logProbabilities.Count == 0 ? null : new TextDelta(text) { Tokens = chunk.Progress?.Tokens ?? 1, LogProbabilities = logProbabilities };
        }

        public GenerationDone? Done() => finish is null ? null
            : new GenerationDone(finish == "length" ? FinishReason.Length : FinishReason.Stop,
                new GenerationUsage(usage?.PromptTokens ?? 0, usage?.CompletionTokens ?? 0),
                new GenerationTimings(Time(timings?.QueuedMs), Time(timings?.PromptMs), Time(timings?.PredictedMs)))
            { Adapter = adapter == "none" ? null : adapter, Fingerprint = fingerprint };

        private static TimeSpan Time(double? milliseconds) => milliseconds is > 0 and < 1e12 ? TimeSpan.FromMilliseconds(milliseconds.Value) : TimeSpan.Zero;
    }
}
