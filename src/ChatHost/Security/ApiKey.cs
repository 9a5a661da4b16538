using System.Buffers.Text;
using System.Security.Cryptography;
using System.Text;

namespace TenantLora.ChatHost.Security;

/// <summary>Keys: <c>tl_</c>, eight characters to tell them apart by, <c>_</c>, 256 random bits. Only their SHA-256 is kept.</summary>
internal static class ApiKey
{
    public const string Prefix = "tl_";

    public static string Create() =>
        $"{Prefix}{Convert.ToHexStringLower(RandomNumberGenerator.GetBytes(4))}_{Base64Url.EncodeToString(RandomNumberGenerator.GetBytes(32))}";

    // A key holds 256 random bits, so a plain fast hash cannot be searched; slow password hashes are for what people think up.
    public static byte[] Hash(string key) => SHA256.HashData(Encoding.UTF8.GetBytes(key));
}
