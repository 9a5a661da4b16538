using System.Security.Cryptography;
using System.Text.Json;
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

    public (string Token, DateTimeOffset ExpiresAt) Issue(Caller caller)
    {
        var expires = DateTimeOffset.UtcNow + Lifetime;
        return (protector.Protect(JsonSerializer.Serialize(new SessionContent(caller.Tenant.Id, caller.Role, caller.Who), HostJson.Wire.SessionContent), expires), expires);
    }

    /// <summary>What is in a token, and its end; null for one that is not ours or has run out.</summary>
    public (SessionContent Content, DateTimeOffset ExpiresAt)? Read(string token)
    {
        try
        {
            var content = JsonSerializer.Deserialize(protector.Unprotect(token, out var expires), HostJson.Wire.SessionContent);
            return content is null ? null : (content, expires);
        }
        catch (JsonException)
        {
            return null;        // issued before tokens had roles
        }
        catch (CryptographicException)
        {
            return null;
        }
    }
}

/// <summary>Who a token was issued to.</summary>
internal sealed record SessionContent(string Tenant, Role Role, string Who);
