using System.Data.Common;
using System.Security.Cryptography;
using Microsoft.Extensions.Options;
using TenantLora.ChatHost.Operations;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Security;

/// <summary>What every request passes first, outside in: id and headers, errors without internals, framing, drain, origin.</summary>
internal static partial class Hardening
{
    // The page is self-contained; nothing inline, nothing foreign, and the hub is same-origin.
    private const string Policy =
        "default-src 'self'; img-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

    public static void UseHardening(this WebApplication app)
    {
        var log = app.Services.GetRequiredService<ILoggerFactory>().CreateLogger("TenantLora.ChatHost");
        app.Use((context, next) => LabelAsync(context, next));
        app.Use((context, next) => ExplainErrorsAsync(context, next, log));
        app.Use((context, next) => RefuseDoubleFraming(context) ? WriteBareAsync(context, 400) : next(context));
        var admission = app.Services.GetRequiredService<Admission>();
        app.Use((context, next) => admission.Draining && !IsStillServed(context.Request) ? ApiError.From(503).WriteAsync(context) : next(context));
        var origins = app.Services.GetRequiredService<IOptions<TenantLoraOptions>>().Value.AllowedOrigins;
        app.Use((context, next) => IsForeignPageOnHub(context, origins) ? ApiError.From(403).WriteAsync(context) : next(context));
    }

    private static Task LabelAsync(HttpContext context, RequestDelegate next)
    {
        context.TraceIdentifier = "req_" + Convert.ToHexStringLower(RandomNumberGenerator.GetBytes(16));
        var headers = context.Response.Headers;
        headers["x-request-id"] = context.TraceIdentifier;
        headers.ContentSecurityPolicy = Policy;
        headers.XContentTypeOptions = "nosniff";
        headers["Referrer-Policy"] = "no-referrer";
        return next(context);
    }

    /// <summary>Whatever ends without a body gets one that a client can read; whatever broke says so without saying how.</summary>
    private static async Task ExplainErrorsAsync(HttpContext context, RequestDelegate next, ILogger log)
    {
        try
        {
            await next(context);
            var response = context.Response;
            if (response.StatusCode >= 400 && !response.HasStarted && response.ContentType is null && response.ContentLength is null)
                await ApiError.From(response.StatusCode).WriteAsync(context);
        }
        catch (Exception e) when (!context.Response.HasStarted)
        {
            if (e is OperationCanceledException && context.RequestAborted.IsCancellationRequested) return; // nobody is left to read
            if (e is not (TenantLoraException { Status: < 500 } or BadHttpRequestException)) Broke(log, context.TraceIdentifier, e);
            await (e switch
            {
                TenantLoraException known => ApiError.From(known),
                BadHttpRequestException bad => ApiError.From(bad.StatusCode),
                DbException => new ApiError(503, "store_unavailable", "The server's store does not take this at present. Try again shortly."),
                _ => ApiError.From(500),
            }).WriteAsync(context);
        }
    }

    /// <summary>Both lengths at once is how requests are smuggled past a proxy (RFC 9112, 6.1); Kestrel takes the chunked one.</summary>
    private static bool RefuseDoubleFraming(HttpContext context) =>
        context.Request.Headers.TransferEncoding.Count > 0 && context.Request.Headers.ContainsKey("Content-Length");

    private static Task WriteBareAsync(HttpContext context, int status)
    {
        context.Response.Headers.Connection = "close";
        return ApiError.From(status).WriteAsync(context);
    }

    /// <summary>While the host drains: probes, and the bytes that the answers in the making may need elsewhere.</summary>
    private static bool IsStillServed(HttpRequest request) => request.Path.StartsWithSegments("/health") || request.Path.StartsWithSegments("/metrics")
        || request.Path.StartsWithSegments("/service/adapters") && HttpMethods.IsGet(request.Method);

    /// <summary>CORS does not cover WebSockets, so a page from elsewhere is turned away here. No Origin means no browser.</summary>
    private static bool IsForeignPageOnHub(HttpContext context, string[] allowed)
    {
        if (!context.Request.Path.StartsWithSegments("/hub") || context.Request.Headers.Origin is not { Count: > 0 } origin) return false;
        if (allowed.Contains(origin.ToString(), StringComparer.OrdinalIgnoreCase)) return false;
        // Host and port only: behind a proxy that ends TLS the scheme here is not the page's.
        return !Uri.TryCreate(origin.ToString(), UriKind.Absolute, out var uri) || !uri.Authority.Equals(Authority(context.Request), StringComparison.OrdinalIgnoreCase);
    }

    private static string Authority(HttpRequest request) =>
        request.Host.Port is 80 or 443 ? request.Host.Host : request.Host.Value ?? "";

    [LoggerMessage(LogLevel.Error, "Request {Id} failed")]
    private static partial void Broke(ILogger log, string id, Exception exception);
}
