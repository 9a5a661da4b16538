using Microsoft.AspNetCore.Http.HttpResults;
using Microsoft.Extensions.Options;
using TenantLora.ChatHost.Operations;
using TenantLora.ChatHost.Security;
using TenantLora.Runtime;

namespace TenantLora.ChatHost;

/// <summary>What the page needs before anyone is signed in, and what operators' probes read.</summary>
internal static class SiteEndpoints
{
    public static void MapSite(this IEndpointRouteBuilder app)
    {
        app.MapGet("/api/site", (Serving serving, TenantDirectory tenants, IOptions<TenantLoraOptions> options) => new SiteCard(
                "TenantLora", options.Value.Demo, serving.Info.Model,
                options.Value.Demo ? [.. tenants.All.Select(t => new TenantCard(t.Id, t.Name))] : []))
            .AllowAnonymous().WithSummary("What the page shows before anyone is signed in.");
        app.MapPost("/api/session", OpenSession).AllowAnonymous().WithSummary("A token for twelve hours, for a key or, in demo mode, for a tenant.");
    }

    public static void MapProbes(this IEndpointRouteBuilder app)
    {
        app.MapGet("/health/live", () => new Health("ok")).AllowAnonymous().WithSummary("Whether the process answers.");
        app.MapGet("/health/ready", Results<Ok<Health>, JsonHttpResult<Health>> (Admission admission, Serving serving) =>
                (admission.Draining ? "draining" : serving.Runtime.Fault) is { } reason
                    ? TypedResults.Json(new Health(reason), statusCode: StatusCodes.Status503ServiceUnavailable)
                    : TypedResults.Ok(new Health("ok")))
            .AllowAnonymous().WithSummary("Whether it takes requests; 503 while it stops, while no runtime answers, or while steps fail or do not end.");
        var metrics = app.ServiceProvider.GetRequiredService<PrometheusText>(); // from now on, or what comes before the first reader is lost
        app.MapGet("/metrics", () => TypedResults.Text(metrics.Read(), PrometheusText.ContentType))
            .AllowAnonymous().WithSummary("Prometheus' text format.");
    }

    private static Ok<Session> OpenSession(SessionRequest request, TenantDirectory tenants, SessionTokens tokens, IOptions<TenantLoraOptions> options, HttpContext context)
    {
        var caller = request.Key is { } key ? tenants.FindByKey(key)
            : options.Value.Demo && request.Tenant is { } id && tenants.Find(id) is { } tenant ? new Caller(tenant, Role.Admin, "demo")
            : null;
        if (caller is null) throw new TenantLoraException(ErrorCodes.InvalidKey, "This key is not known.");
        var (token, expires) = tokens.Issue(caller);
        context.Response.Headers.CacheControl = "no-store";
        return TypedResults.Ok(new Session(caller.Tenant.Id, caller.Tenant.Name, token, expires, caller.Role == Role.Admin ? "admin" : "member"));
    }
}

/// <param name="Tenants">In demo mode those to choose from; else none.</param>
internal sealed record SiteCard(string Name, bool Demo, string BaseModel, IReadOnlyList<TenantCard> Tenants);

internal sealed record TenantCard(string Id, string Name);

/// <summary>A key, or in demo mode the id of a tenant.</summary>
internal sealed record SessionRequest(string? Key = null, string? Tenant = null);

/// <param name="Role"><c>admin</c> or <c>member</c>.</param>
internal sealed record Session(string Tenant, string Name, string Token, DateTimeOffset ExpiresAt, string Role);

internal sealed record Health(string Status);
