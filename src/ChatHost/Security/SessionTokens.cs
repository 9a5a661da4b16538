using System.Security.Cryptography;
using Microsoft.AspNetCore.DataProtection;

namespace TenantLora.ChatHost.Security;

/// <summary>
/// Short-lived tokens for browsers, so that a page never keeps a key. Sealed, not stored: any host with the same data folder reads
/// them, and none can take one back before it runs out.
/// </summary>
internal sealed class SessionTokens(IDataProtectionProvider protection)
{
    private static readonly TimeSpan Lifetime = TimeSpan.FromHours(12);
    private readonly ITimeLimitedDataProtector protector = protection.CreateProtector("TenantLora.Session").ToTimeLimitedDataProtector();

    public (string Token, DateTimeOffset ExpiresAt) Issue(Tenant tenant)
    {
        var expires = DateTimeOffset.UtcNow + Lifetime;
        return (protector.Protect(tenant.Id, expires), expires);
    }

    /// <summary>The tenant's id and the end of the token; null for one that is not ours or has run out.</summary>
    public (string Tenant, DateTimeOffset ExpiresAt)? Read(string token)
    {
        try
        {
            var tenant = protector.Unprotect(token, out var expires);
            return (tenant, expires);
        }
        catch (CryptographicException)
        {
            return null;
        }
    }
}
