namespace TenantLora.Tests;

/// <summary>Where the checkout lies, found upwards from the test binary. Compiled into every project under tests.</summary>
internal static class Repo
{
    public static string Root { get; } = Find();

    public static string Path(params string[] parts) => System.IO.Path.Combine([Root, .. parts]);

    /// <summary>A file or folder under tests/Fixtures.</summary>
    public static string Fixture(params string[] parts) => Path(["tests", "Fixtures", .. parts]);

    private static string Find()
    {
        for (var directory = AppContext.BaseDirectory; directory is not null; directory = System.IO.Path.GetDirectoryName(directory))
            if (File.Exists(System.IO.Path.Combine(directory, "TenantLora.sln"))) return directory;
        throw new DirectoryNotFoundException("No TenantLora.sln above " + AppContext.BaseDirectory);
    }
}
