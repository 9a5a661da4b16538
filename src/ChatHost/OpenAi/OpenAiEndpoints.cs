using Microsoft.AspNetCore.Mvc;
using Microsoft.AspNetCore.Server.Kestrel.Core.Features;
using Microsoft.Extensions.Options;
using Microsoft.Net.Http.Headers;
using TenantLora.ChatHost.Operations;
using TenantLora.ChatHost.Runtimes;
using TenantLora.ChatHost.Security;
using TenantLora.Connector;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.OpenAi;

/// <summary>OpenAI's API under /v1: chat completions, completions, models.</summary>
internal static class OpenAiEndpoints
{
    /// <param name="bodies">The largest body, where it is not the server's usual.</param>
    public static RouteGroupBuilder MapCompletions(this IEndpointRouteBuilder app, long? bodies = null)
    {
        var v1 = app.MapGroup("/v1").RequireAuthorization();
        if (bodies is { } most) v1.WithMetadata(new RequestSizeLimitAttribute(most));
        v1.MapPost("/chat/completions", (HttpContext context, CompletionService service) => service.AnswerAsync(context, chat: true))
            .WithSummary("Answers a conversation.").Describes(chat: true);
        v1.MapPost("/completions", (HttpContext context, CompletionService service) => service.AnswerAsync(context, chat: false))
            .WithSummary("Continues a text, without a chat template.").Describes(chat: false);
        return v1;
    }

    /// <summary>Where other hosts ask, each says for which of its tenants.</summary>
    public static void RequireTenantHeader(this RouteGroupBuilder group) => group.AddEndpointFilter((context, next) => context.HttpContext.User.HasClaim(c => c.Type == TenantClaims.Id) ? next(context)
        : throw new TenantLoraException(ErrorCodes.InvalidRequest, $"{Service.TenantHeader}: expected 1 to {Service.LongestTenant} printable ASCII characters, once.") { Parameter = Service.TenantHeader });

    public static void MapModels(this IEndpointRouteBuilder app)
    {
        var v1 = app.MapGroup("/v1").RequireAuthorization();
        v1.MapGet("/models", (HttpContext context, Serving serving) =>
            {
                var tenant = context.User.Tenant();
                return TypedResults.Json(new ModelList([.. serving.Models(tenant).Select(m => Card(serving, tenant, m))]), HostJson.Wire.ModelList);
            })
            .WithSummary("The models that this key may name.");
        // Clients escape a slash in an id, and routing leaves %2F as it is.
        v1.MapGet("/models/{**id}", (string id, HttpContext context, Serving serving) =>
            {
                var tenant = context.User.Tenant();
                return TypedResults.Json(Card(serving, tenant, serving.Resolve(tenant, id.Replace("%2F", "/", StringComparison.OrdinalIgnoreCase))), HostJson.Wire.ModelCard);
            })
            .WithSummary("One model.");
    }

    private static ModelCard Card(Serving serving, string tenant, CatalogModel model)
    {
        var adapter = serving.Adapter(model);
        return new ModelCard(model.Name, serving.Started.ToUnixTimeSeconds(), model.Digest is null ? "tenantlora" : tenant,
            model.Digest is null ? null : serving.Info.Model, model.Digest is null ? model.Name : $"{model.Name}@{model.Digest}")
        {
            Adapter = adapter is null ? null : AdapterCard.From(adapter),
        };
    }
}

/// <summary>Answers one completion request, streamed or whole; both are the same stream of events.</summary>
internal sealed partial class CompletionService(
    Serving serving, Admission admission, HostMetrics metrics, IOptions<TenantLoraOptions> options, ILogger<CompletionService> log)
{
    public async Task AnswerAsync(HttpContext context, bool chat)
    {
        var endpoint = chat ? "chat" : "completions";
        try
        {
            await AnswerAsync(context, chat, endpoint);
        }
        catch (Exception e) when (e is not StreamCutException)
        {
            metrics.Ended(endpoint, e is TenantLoraException known ? known.Code : e is OperationCanceledException ? "cancelled" : ErrorCodes.Internal);
            throw;
        }
    }

    private async Task AnswerAsync(HttpContext context, bool chat, string endpoint)
    {
        var request = CompletionRequest.Read(await ReadBodyAsync(context), context.User.Tenant(), chat);
        using var lease = admission.Enter(context.User.Tenant());           // before an adapter is brought for it
        using var pinned = await serving.PinAsync(request.Generation, context.RequestAborted);
        var model = pinned.Model;
        using var end = CancellationTokenSource.CreateLinkedTokenSource(context.RequestAborted, admission.Ended);
        await using var events = serving.GenerateAsync(pinned, end.Token).GetAsyncEnumerator(end.Token);
        // The first event, or what stands in its place, before the response begins: a refusal gets its own status.
        if (!await Guard(events.MoveNextAsync().AsTask())) throw new InvalidOperationException("The generation has no events.");

        context.Response.Headers["x-tenantlora-adapter"] = model.Digest ?? "none";
        if (model.Version is not null) context.Response.Headers["x-tenantlora-version"] = model.Version;
        if (request.Ignored.Count > 0) context.Response.Headers["x-tenantlora-ignored-fields"] = string.Join(", ", request.Ignored.Select(HeaderSafe).Take(32));
        var tellsProgress = options.Value.Role == HostRole.Runtime;
        if (tellsProgress && request.Stream) context.Response.Headers[CompletionChunk.ProgressHeader] = "1";
        var writer = new CompletionWriter(request, tellsProgress);
        var done = request.Stream ? await StreamAsync(context, writer, events, endpoint, end.Token) : await WholeAsync(context, writer, events);
        metrics.Ended(endpoint, CompletionWriter.Name(done.Reason));
    }

    private async Task<GenerationDone> WholeAsync(HttpContext context, CompletionWriter writer, IAsyncEnumerator<GenerationEvent> events)
    {
        var (answer, done) = await Guard(writer.CollectAsync(events));
        context.Response.Headers.CacheControl = "no-store";
        await context.Response.WriteAsJsonAsync(answer, HostJson.Wire.Completion, cancellationToken: context.RequestAborted);
        return done;
    }

    private async Task<GenerationDone> StreamAsync(HttpContext context, CompletionWriter writer, IAsyncEnumerator<GenerationEvent> events, string endpoint, CancellationToken end)
    {
        var response = context.Response;
        response.ContentType = "text/event-stream";
        response.Headers.CacheControl = "no-cache, no-store";
        response.Headers["X-Accel-Buffering"] = "no";
        // A quiet stream is legal, so slowness alone must not end it.
        if (context.Features.Get<IHttpMinResponseDataRateFeature>() is { } rate) rate.MinDataRate = null;
        try
        {
            return await Guard(writer.StreamAsync(events, response.BodyWriter, TimeSpan.FromSeconds(options.Value.KeepAliveSeconds), end));
        }
        catch (Exception e) when (!context.RequestAborted.IsCancellationRequested)
        {
            if (e is not TenantLoraException) Broke(log, context.TraceIdentifier, e);
            var error = e is TenantLoraException known ? ApiError.From(known) : ApiError.From(500);
            metrics.Ended(endpoint, error.Code);
            await CompletionWriter.WriteErrorAsync(response.BodyWriter, error, context.RequestAborted);
            // No [DONE] and no tidy end: clients that pass over the error chunk notice that. Abort() would overtake the chunk; an
            // exception makes Kestrel send what it has and close without the end of the chunked body.
            throw new StreamCutException(e);
        }
    }

    /// <summary>The end of the drain's patience reaches the caller as such and not as a cancellation.</summary>
    private async Task<T> Guard<T>(Task<T> work)
    {
        try
        {
            return await work;
        }
        catch (OperationCanceledException) when (admission.Ended.IsCancellationRequested)
        {
            throw Admission.ShuttingDown();
        }
    }

    private static async Task<ReadOnlyMemory<byte>> ReadBodyAsync(HttpContext context)
    {
        var request = context.Request;
        if (!MediaTypeHeaderValue.TryParse(request.ContentType, out var type) || !type.MediaType.Equals("application/json", StringComparison.OrdinalIgnoreCase)
            || (type.Charset.HasValue && !type.Charset.Equals("utf-8", StringComparison.OrdinalIgnoreCase))
            || request.Headers.ContentEncoding is { Count: > 0 } encoding && encoding != "identity")
            throw new BadHttpRequestException("Not JSON in UTF-8.", StatusCodes.Status415UnsupportedMediaType);
        using var body = new MemoryStream((int)Math.Clamp(request.ContentLength ?? 0, 0, 1 << 20));
        await request.Body.CopyToAsync(body, context.RequestAborted);
        return body.GetBuffer().AsMemory(0, (int)body.Length);
    }

    // Names come from the caller; a header takes plain ASCII only.
    private static string HeaderSafe(string name) =>
        name.Length is > 0 and <= 64 && name.All(c => char.IsAsciiLetterOrDigit(c) || c is '_' or '-' or '.' or '[' or ']') ? name : "?";

    private sealed class StreamCutException(Exception cause) : Exception("The stream was cut after its error chunk.", cause);

    [LoggerMessage(LogLevel.Error, "Request {Id} failed in its stream")]
    private static partial void Broke(ILogger log, string id, Exception exception);
}
