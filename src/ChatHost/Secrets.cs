using Microsoft.Extensions.FileProviders;

namespace TenantLora.ChatHost;

/// <summary>Options that are kept as files, as containers are given their secrets: a file an option, named <c>TenantLora__ServiceKey</c>.</summary>
internal static class Secrets
{
    /// <summary>Where containers have them.</summary>
    public const string Folder = "/run/secrets";

    /// <summary>Adds those of a folder, if it is there. No other file of it is opened.</summary>
    public static IConfigurationBuilder AddSecrets(this IConfigurationBuilder configuration, string folder) => !Directory.Exists(folder) ? configuration
        : configuration.AddKeyPerFile(source =>
        {
            source.FileProvider = new PhysicalFileProvider(Path.GetFullPath(folder));
            source.IgnoreCondition = name => !name.StartsWith(TenantLoraOptions.Section + "__", StringComparison.OrdinalIgnoreCase);
        });
}
