using System.Globalization;
using System.Text.Json.Serialization;
using Microsoft.AspNetCore.Http.HttpResults;
using TenantLora.Runtime;

namespace TenantLora.ChatHost;

/// <summary>
/// A refusal in the form its path calls for: OpenAI's envelope under /v1 (its clients show nothing else) and /service, problem details
/// (RFC 7807) elsewhere.
/// </summary>
internal sealed record ApiError(int Status, string Code, string Message, string? Parameter = null, TimeSpan? RetryAfter = null)
{
    public static ApiError From(TenantLoraException e) => new(e.Status, e.Code, e.Message, e.Parameter, e.RetryAfter);

    /// <summary>What a bare status means, where nothing more is known.</summary>
    public static ApiError From(int status) => status switch
    {
        400 => new(400, "invalid_request", "The request cannot be understood."),
        401 => new(401, ErrorCodes.InvalidKey, "No valid key. Send it as 'Authorization: Bearer <key>'."),
        403 => new(403, "forbidden", "Not allowed."),
        404 => new(404, "unknown_url", "There is nothing at this address."),
        405 => new(405, "method_not_allowed", "This address does not take this method."),
        408 => new(408, "request_timeout", "The request came too slowly."),
        413 => new(413, "request_too_large", "The body is larger than this server takes."),
        415 => new(415, "unsupported_media_type", "Send the body as application/json in UTF-8, uncompressed."),
        503 => new(503, ErrorCodes.ShuttingDown, "The server is shutting down. Try again shortly."),
        _ => new(status, status < 500 ? "invalid_request" : ErrorCodes.Internal, status < 500 ? "The request was refused." : "Something went wrong on the server."),
    };

    /// <summary>The envelope, as it also goes into a stream.</summary>
    public ErrorEnvelope Envelope => new(new ErrorBody(Message, Type, Parameter, Code));

    private string Type => Status switch
    {
        429 => "rate_limit_error",
        >= 500 => "server_error",
        _ => "invalid_request_error",
    };

    public Task WriteAsync(HttpContext context)
    {
        context.Response.StatusCode = Status;
        // OpenAI's clients retry within milliseconds when these two lack Retry-After.
        if (Status is 429 or 503)
            context.Response.Headers.RetryAfter = Math.Max(1, Math.Ceiling((RetryAfter ?? TimeSpan.FromSeconds(1)).TotalSeconds)).ToString(CultureInfo.InvariantCulture);
        return context.Request.Path.StartsWithSegments("/v1") || context.Request.Path.StartsWithSegments("/service")
            ? context.Response.WriteAsJsonAsync(Envelope, HostJson.Wire.ErrorEnvelope)
            : Problem().ExecuteAsync(context);
    }

    private ProblemHttpResult Problem() => TypedResults.Problem(Message, statusCode: Status, extensions: [new("code", Code)]);
}

/// <summary>OpenAI's error envelope.</summary>
internal sealed record ErrorEnvelope(ErrorBody Error);

/// <summary>All four are always there; clients read them by name.</summary>
internal sealed record ErrorBody(
    string Message, string Type,
    [property: JsonPropertyName("param")] string? Parameter,
    string Code);
