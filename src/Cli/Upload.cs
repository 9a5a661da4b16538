using System.Net;
using System.Net.Http.Headers;
using System.Security.Cryptography;
using TenantLora.ChatHost.Adapters;

namespace TenantLora.Cli;

/// <summary>An adapter on disk as a request's content: a folder's two files as a form, or an archive as it is.</summary>
internal static class Upload
{
    private const string Config = AdapterFolders.ConfigName, Weights = AdapterFolders.WeightsName, Pickle = AdapterFolders.PickleName;

    /// <summary>What an adapter from there is called when nobody says otherwise.</summary>
    public static string NameOf(string path)
    {
        var name = Path.GetFileName(Path.TrimEndingDirectorySeparator(Path.GetFullPath(path)));
        return Directory.Exists(path) ? name : name[..^Archive(path)!.Value.Ending.Length];
    }

    /// <param name="progress">The share that has gone, from 0 to 1.</param>
    /// <exception cref="Failure">There is no adapter.</exception>
    public static async Task<HttpContent> OpenAsync(string path, Action<double> progress)
    {
        if (Directory.Exists(path)) return Form(path, progress);
        if (!File.Exists(path)) throw Failure.Usage($"FOLDER: there is no folder and no archive '{path}'.");
        if (Archive(path) is not { } archive) throw Failure.Usage($"FOLDER: expected a folder, a .zip or a .tar.gz, found '{Path.GetFileName(path)}'.");
        var file = File.OpenRead(path);
        var hash = Convert.ToHexStringLower(await SHA256.HashDataAsync(file));
        file.Position = 0;
        var content = new FileContent(file, new Progress(file.Length, progress)) { Headers = { ContentType = new MediaTypeHeaderValue(archive.Type) } };
        content.Headers.Add("X-Content-SHA256", hash);
        return content;
    }

    private static MultipartFormDataContent Form(string folder, Action<double> progress)
    {
        // A pickle goes as an empty file: that it is there is enough for the server to say what to do instead.
        var weights = File.Exists(Path.Combine(folder, Weights)) || !File.Exists(Path.Combine(folder, Pickle)) ? Weights : Pickle;
        string[] names = [Config, weights];
        if (names.Where(n => !File.Exists(Path.Combine(folder, n))).ToArray() is { Length: > 0 } missing)
            throw new Failure(ExitCode.Failed, $"{folder}: expected {Config} and {Weights}, {string.Join(" and ", missing)} {(missing.Length == 1 ? "is" : "are")} not there.");
        var files = names.Select(Stream (n) => n == Pickle ? Stream.Null : File.OpenRead(Path.Combine(folder, n))).ToArray();
        var sent = new Progress(files.Sum(f => f.Length), progress);
        var form = new MultipartFormDataContent();
        foreach (var (name, file) in names.Zip(files)) form.Add(new FileContent(file, sent), "file", name);
        return form;
    }

    private static (string Ending, string Type)? Archive(string path)
    {
        foreach (var (ending, type) in new[] { (".zip", "application/zip"), (".tar.gz", "application/gzip"), (".tgz", "application/gzip") })
            if (path.EndsWith(ending, StringComparison.OrdinalIgnoreCase)) return (ending, type);
        return null;
    }

    private sealed class Progress(long total, Action<double> report)
    {
        private long sent;

        public void Add(int bytes) => report((double)(sent += bytes) / Math.Max(1, total));
    }

    /// <summary>A file that tells how much of it has gone.</summary>
    private sealed class FileContent(Stream file, Progress progress) : HttpContent
    {
        protected override async Task SerializeToStreamAsync(Stream stream, TransportContext? context)
        {
            var room = new byte[1 << 16];
            while (await file.ReadAsync(room) is > 0 and var read)
            {
                await stream.WriteAsync(room.AsMemory(0, read));
                progress.Add(read);
            }
        }

        protected override bool TryComputeLength(out long length)
        {
            length = file.Length;
            return true;
        }

        protected override void Dispose(bool disposing)
        {
            if (disposing) file.Dispose();
            base.Dispose(disposing);
        }
    }
}
