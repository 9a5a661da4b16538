using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace TenantLora.Runtime.Models;

/// <summary>Opens files for reading, and nothing else that has a name: opening a pipe would wait for its writer, perhaps for ever.</summary>
internal static partial class RegularFile
{
    /// <exception cref="IOException">It is not there, or no regular file.</exception>
    /// <exception cref="UnauthorizedAccessException">It may not be read, or is a folder.</exception>
    public static SafeFileHandle Open(string path)
    {
        if (OperatingSystem.IsWindows() || Directory.Exists(path)) return File.OpenHandle(path);
        // O_RDONLY with O_NONBLOCK and O_CLOEXEC, whose numbers are the system's. A regular file is read as without it.
        var descriptor = Open(path, OperatingSystem.IsMacOS() ? 0x0100_0004 : 0x0008_0800);
        if (descriptor < 0) return File.OpenHandle(path);           // says why it cannot be
        var handle = new SafeFileHandle(descriptor, ownsHandle: true);
        if (IsRegular(handle)) return handle;
        handle.Dispose();
        throw new IOException($"{path} is not a regular file.");
    }

    private static bool IsRegular(SafeFileHandle handle)
    {
        try
        {
            return RandomAccess.GetLength(handle) >= 0;             // pipes, sockets and terminals have none
        }
        catch (NotSupportedException)
        {
            return false;
        }
    }

    [LibraryImport("libc", EntryPoint = "open", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int Open(string path, int flags);
}
