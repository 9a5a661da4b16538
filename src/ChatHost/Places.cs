namespace TenantLora.ChatHost;

/// <summary>Finds files that lie beside the app, wherever it was started from.</summary>
internal static class Places
{
    /// <summary>Where appsettings.json and the page lie: beside a published binary, in the project's folder for one that was just built.</summary>
    public static string ContentRoot()
    {
        for (var directory = AppContext.BaseDirectory; directory is not null; directory = Path.GetDirectoryName(directory))
            if (File.Exists(Path.Combine(directory, "appsettings.json")) && Directory.Exists(Path.Combine(directory, "wwwroot"))) return directory;
        return AppContext.BaseDirectory;
    }

    /// <summary>
    /// The folder that a relative path means: under the current directory, else under the binary's, else under the nearest of its
    /// parents that has it. So a checkout works from any folder, and a published app finds models beside it. Null: nowhere.
    /// </summary>
    public static string? Find(string path)
    {
        if (Path.IsPathRooted(path)) return Directory.Exists(path) ? path : null;
        var here = Path.GetFullPath(path);
        if (Directory.Exists(here)) return here;
        for (var directory = AppContext.BaseDirectory; directory is not null; directory = Path.GetDirectoryName(directory))
            if (Directory.Exists(Path.Combine(directory, path))) return Path.Combine(directory, path);
        return null;
    }
}
