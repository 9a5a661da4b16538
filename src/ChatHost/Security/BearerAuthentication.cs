using System.Security.Claims;
using System.Text.Encodings.Web;
using Microsoft.AspNetCore.Authentication;
using Microsoft.Extensions.Options;

namespace TenantLora.ChatHost.Security;

/// <summary>
/// The only way in: <c>Authorization: Bearer</c> with a key or a session token. On the hub, where browsers cannot set a header, also
/// the query's <c>access_token</c>.
/// </summary>
internal sealed class BearerAuthentication(
    IOptionsMonitor<AuthenticationSchemeOptions> options, ILoggerFactory loggers, UrlEncoder encoder, TenantDirectory tenants, SessionTokens sessions)
    : AuthenticationHandler<AuthenticationSchemeOptions>(options, loggers, encoder)
{
    public new const string Scheme = "Bearer";
    private const int LongestToken = 4096;

    protected override Task<AuthenticateResult> HandleAuthenticateAsync()
    {
        if (Token() is not { } token) return Task.FromResult(AuthenticateResult.NoResult());
        if (token.Length > LongestToken) return Task.FromResult(AuthenticateResult.Fail("Too long."));
        var properties = new AuthenticationProperties();
        var caller = token.StartsWith(ApiKey.Prefix, StringComparison.Ordinal) ? tenants.FindByKey(token) : FromSession(token, properties);
        if (caller is null) return Task.FromResult(AuthenticateResult.Fail("Unknown."));
        var identity = new ClaimsIdentity([new Claim(TenantClaims.Id, caller.Tenant.Id), new Claim(TenantClaims.KeyName, caller.Who), new Claim(ClaimTypes.Role, caller.Role.ToString())], Scheme);
        return Task.FromResult(AuthenticateResult.Success(new AuthenticationTicket(new ClaimsPrincipal(identity), properties, Scheme)));
    }

    protected override Task HandleChallengeAsync(AuthenticationProperties properties)
    {
        Response.StatusCode = StatusCodes.Status401Unauthorized;
        Response.Headers.WWWAuthenticate = Scheme;
        return Task.CompletedTask;
    }

    private Caller? FromSession(string token, AuthenticationProperties properties)
    {
        if (sessions.Read(token) is not var (content, expires)) return null;
        properties.ExpiresUtc = expires; // SignalR closes the connection then
        return tenants.Find(content.Tenant) is { } tenant ? new Caller(tenant, content.Role, content.Who) : null;
    }

    private string? Token()
    {
        var header = Request.Headers.Authorization;
        if (header.Count > 1) return "";
        if (header.ToString() is { Length: > 0 } value)
            return value.StartsWith("Bearer ", StringComparison.OrdinalIgnoreCase) ? value["Bearer ".Length..].Trim() : "";
        return Request.Path.StartsWithSegments("/hub") && Request.Query["access_token"] is [{ Length: > 0 } query] ? query : null;
    }
}

/// <summary>Who is asking. The tenant is read from here and never from a route, a body or a header.</summary>
internal static class TenantClaims
{
    public const string Id = "tenant", KeyName = "key";

    public static string Tenant(this ClaimsPrincipal principal) =>
        principal.FindFirstValue(Id) ?? throw new InvalidOperationException("No tenant: the endpoint lets anonymous callers in.");

    /// <summary>Which key, in words that give none away: what the audit notes.</summary>
    public static string Who(this ClaimsPrincipal principal) => principal.FindFirstValue(KeyName) ?? "unknown";
}
