using System.Runtime.InteropServices;
using TenantLora.ChatHost.Security;

namespace TenantLora.ChatHost.Adapters;

/// <summary>
/// Adapters' bytes, by digest: <c>adapters/&lt;two hex digits&gt;/&lt;the rest&gt;/</c> holds the two files, never changed. They come through a staging
/// folder of their own, are brought to the disk, and appear by one rename: a folder is whole or not there. What a crash leaves is swept at the next start.
/// <para>Hosts that share the folder hold a lock file each, by which they tell what a dead one left from what a living one is about to use.</para>
/// </summary>
internal sealed class AdapterFolders : IDisposable
{
    /// <summary>The two files; and the one that is known by its name alone and never read.</summary>
    public const string ConfigName = "adapter_config.json", WeightsName = "adapter_model.safetensors", PickleName = "adapter_model.bin";

    private const string Algorithm = "sha256:";
    private static readonly TimeSpan LongestUpload = TimeSpan.FromHours(1);
    private readonly string root, staging, hosts, host = Guid.NewGuid().ToString("N");
    private readonly FileStream alive;
    private readonly bool isAlone;

    /// <param name="data">The host's data folder.</param>
    /// <exception cref="InvalidDataException">The folder is a link to elsewhere.</exception>
    public AdapterFolders(string data)
    {
        root = Path.Combine(PrivateFiles.Folder(data).FullName, "adapters");
        staging = Path.Combine(root, "staging");
        hosts = Path.Combine(root, "hosts");
        foreach (var folder in new[] { root, staging, hosts })
            if (new DirectoryInfo(folder) is { Exists: true, LinkTarget: not null }) throw new InvalidDataException($"{folder} is a link. The adapters' folder must be a folder.");
        foreach (var folder in new[] { root, staging, hosts }) PrivateFiles.Folder(folder);
        alive = new FileStream(Path.Combine(hosts, host), FileMode.CreateNew, FileAccess.ReadWrite, FileShare.None);
        var living = new HashSet<string>(StringComparer.Ordinal);
        foreach (var other in Directory.GetFiles(hosts).Where(f => Path.GetFileName(f) != host))
            if (IsAlive(other)) living.Add(Path.GetFileName(other));
            else File.Delete(other);
        isAlone = living.Count == 0;
        foreach (var folder in Directory.GetDirectories(staging).Where(f => !living.Contains(Path.GetFileName(f).Split('-')[0]))) Directory.Delete(folder, recursive: true);
    }

    private static bool IsAlive(string lockFile)
    {
        try
        {
            using var taken = new FileStream(lockFile, FileMode.Open, FileAccess.ReadWrite, FileShare.None);
            return false;
        }
        catch (IOException)
        {
            return File.Exists(lockFile);
        }
    }

    /// <summary>An empty folder nobody else knows; deleted with all in it unless <see cref="Keep"/> has taken it.</summary>
    public StagedFolder Stage() => new(PrivateFiles.Folder(NewStaged()).FullName);

    private string NewStaged() => Path.Combine(staging, $"{host}-{Guid.NewGuid():N}");

    /// <summary>Where an adapter's files are, or would be.</summary>
    /// <param name="digest"><c>sha256:</c> and 64 hex digits, as the runtime computed it; never a caller's text.</param>
    public string PathOf(string digest)
    {
        var hex = digest.AsSpan(Algorithm.Length);
        return Path.Join(root, hex[..2], hex[2..]);
    }

    /// <summary>Makes a staged folder an adapter's. One that is there already stays.</summary>
    public void Keep(StagedFolder folder, string digest)
    {
        var to = PathOf(digest);
        var parent = PrivateFiles.Folder(Path.GetDirectoryName(to)!).FullName;
        foreach (var file in Directory.GetFiles(folder.Path)) ToDisk(file);
        FolderToDisk(folder.Path);
        try
        {
            Directory.Move(folder.Path, to);
        }
        catch (IOException) when (Directory.Exists(to))
        {
            // The same bytes: another upload was first. What follows is done all the same, or the time would tell.
        }
        FolderToDisk(parent);
        FolderToDisk(root);
    }

    public bool Has(string digest) => Directory.Exists(PathOf(digest));

    /// <summary>Whether a text is a digest, so that <see cref="PathOf"/> may be asked.</summary>
    public static bool IsDigest(string text) => text.Length == Algorithm.Length + 64 && text.StartsWith(Algorithm, StringComparison.Ordinal) && text.Skip(Algorithm.Length).All(char.IsAsciiHexDigitLower);

    /// <summary>Notes that an adapter was wanted just now.</summary>
    public void Touch(string digest) => Directory.SetLastWriteTimeUtc(PathOf(digest), DateTime.UtcNow);

    /// <summary>All that are here: their sizes, and when they came or were last wanted.</summary>
    public IReadOnlyList<(string Digest, long Bytes, DateTime LastUsed)> Kept() =>
    [
        .. from pair in new DirectoryInfo(root).EnumerateDirectories("??")
           from folder in pair.EnumerateDirectories()
           select (Algorithm + pair.Name + folder.Name, folder.EnumerateFiles().Sum(f => f.Length), folder.LastWriteTimeUtc),
    ];

    /// <summary>Deletes an adapter's files, unless <paramref name="isWanted"/> says, once they are out of sight, that another host has just named them.</summary>
    public void Delete(string digest, Func<bool> isWanted)
    {
        using var gone = new StagedFolder(NewStaged());
        if (!Has(digest)) return;
        Directory.Move(PathOf(digest), gone.Path);
        if (isWanted() && !Has(digest)) Directory.Move(gone.Path, PathOf(digest));
    }

    /// <summary>Deletes what no version names: a crash came between the rename and the store. What another host may be about to name is left.</summary>
    public int Sweep(IReadOnlySet<string> known)
    {
        var swept = 0;
        foreach (var pair in Directory.GetDirectories(root).Where(d => Path.GetFileName(d) is { Length: 2 }))
            foreach (var folder in Directory.GetDirectories(pair))
            {
                var digest = $"sha256:{Path.GetFileName(pair)}{Path.GetFileName(folder)}";
                if (known.Contains(digest) || !isAlone && DateTime.UtcNow - Directory.GetLastWriteTimeUtc(folder) < LongestUpload) continue;
                Directory.Delete(folder, recursive: true);
                swept++;
            }
        return swept;
    }

    public void Dispose()
    {
        alive.Dispose();
        File.Delete(Path.Combine(hosts, host));
    }

    private static void ToDisk(string file)
    {
        using var stream = new FileStream(file, FileMode.Open, FileAccess.ReadWrite, FileShare.Read);
        stream.Flush(flushToDisk: true);
    }

    /// <summary>A rename is on the disk when its folder is. .NET opens no folders, so this asks the system; Windows keeps its own journal of names.</summary>
    private static void FolderToDisk(string folder)
    {
        if (OperatingSystem.IsWindows()) return;
        var handle = Open(folder, 0);
        if (handle < 0) throw new IOException($"{folder} cannot be opened (error {Marshal.GetLastPInvokeError()}).");
        try
        {
            if (FSync(handle) != 0) throw new IOException($"{folder} cannot be brought to the disk (error {Marshal.GetLastPInvokeError()}).");
        }
        finally
        {
            _ = Close(handle);
        }
    }

#pragma warning disable SYSLIB1054 // three calls are not worth unsafe code in this project
    [DllImport("libc", EntryPoint = "open", SetLastError = true, CharSet = CharSet.Ansi, BestFitMapping = false, ThrowOnUnmappableChar = true)]
    private static extern int Open(string path, int flags);

    [DllImport("libc", EntryPoint = "fsync", SetLastError = true)]
    private static extern int FSync(int handle);

    [DllImport("libc", EntryPoint = "close")]
    private static extern int Close(int handle);
#pragma warning restore SYSLIB1054
}

/// <summary>An upload's folder.</summary>
internal sealed class StagedFolder(string path) : IDisposable
{
    public string Path { get; } = path;

    /// <summary>Of the files in it.</summary>
    public long Bytes => new DirectoryInfo(Path).EnumerateFiles().Sum(f => f.Length);

    public void Dispose()
    {
        if (Directory.Exists(Path)) Directory.Delete(Path, recursive: true);
    }
}
