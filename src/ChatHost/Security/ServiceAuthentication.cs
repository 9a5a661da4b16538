using System.Security.Claims;
using System.Security.Cryptography;
using System.Text.Encodings.Web;
using Microsoft.AspNetCore.Authentication;
using Microsoft.Extensions.Options;
using TenantLora.ChatHost.Runtimes;

namespace TenantLora.ChatHost.Security;

/// <summary>
/// How hosts know each other: <c>Authorization: Bearer</c> with the service key. Whoever has it speaks for any tenant, by a header that means nothing to
/// anyone else.
/// </summary>
internal sealed class ServiceAuthentication(
    IOptionsMonitor<AuthenticationSchemeOptions> options, ILoggerFactory loggers, UrlEncoder encoder, IOptions<TenantLoraOptions> host)
    : AuthenticationHandler<AuthenticationSchemeOptions>(options, loggers, encoder)
{
    public new const string Scheme = "Service";

    private const int LongestKey = 4096;
    private readonly byte[] known = ApiKey.Hash(host.Value.ServiceKey ?? throw new InvalidOperationException("A host without a service key has no such callers."));

    protected override Task<AuthenticateResult> HandleAuthenticateAsync()
    {
        if (Request.Headers.Authorization is not [{ Length: <= LongestKey } value] || !value.StartsWith("Bearer ", StringComparison.OrdinalIgnoreCase)) return Task.FromResult(AuthenticateResult.NoResult());
        // Hashes of one length, so that neither its length nor its beginning can be found out by time.
        if (!CryptographicOperations.FixedTimeEquals(ApiKey.Hash(value["Bearer ".Length..].Trim()), known)) return Task.FromResult(AuthenticateResult.Fail("Unknown."));
        var identity = new ClaimsIdentity([], Scheme);
        if (Tenant() is { } tenant) identity.AddClaim(new Claim(TenantClaims.Id, tenant));
        return Task.FromResult(AuthenticateResult.Success(new AuthenticationTicket(new ClaimsPrincipal(identity), Scheme)));
    }

    protected override Task HandleChallengeAsync(AuthenticationProperties properties)
    {
        Response.StatusCode = StatusCodes.Status401Unauthorized;
        Response.Headers.WWWAuthenticate = "Bearer";
        return Task.CompletedTask;
    }

    private string? Tenant() =>
        Request.Headers[Service.TenantHeader] is [{ Length: > 0 and <= Service.LongestTenant } tenant] && tenant.All(c => c is > ' ' and < '\x7f') ? tenant : null;
}
