namespace TenantLora.ChatHost.Security;

/// <summary>Files that only the account of this process may read.</summary>
internal static class PrivateFiles
{
    public static DirectoryInfo Folder(string path) =>
        OperatingSystem.IsWindows() ? Directory.CreateDirectory(path) : Directory.CreateDirectory(path, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);

    /// <summary>Whole or not at all: a stop halfway leaves the old file.</summary>
    public static void Write(string file, ReadOnlySpan<byte> content)
    {
        Folder(Path.GetDirectoryName(file)!);
        var draft = file + ".new";
        File.Delete(draft); // an old draft would keep its own mode
        var options = new FileStreamOptions { Mode = FileMode.CreateNew, Access = FileAccess.Write };
        if (!OperatingSystem.IsWindows()) options.UnixCreateMode = UnixFileMode.UserRead | UnixFileMode.UserWrite;
        using (var stream = new FileStream(draft, options))
        {
            stream.Write(content);
            stream.Flush(flushToDisk: true);
        }
        File.Move(draft, file, overwrite: true);
    }
}
