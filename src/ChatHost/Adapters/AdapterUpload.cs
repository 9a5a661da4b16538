using System.Formats.Tar;
using System.IO.Compression;
using System.Security.Cryptography;
using Microsoft.AspNetCore.Http.Features;
using Microsoft.AspNetCore.WebUtilities;
using Microsoft.Net.Http.Headers;

namespace TenantLora.ChatHost.Adapters;

/// <summary>
/// Brings a request's two files into a staging folder, whether they come as a form, a zip or a tar.gz. Streamed; bounded in bytes, in files and in what
/// an archive may unpack to. Names in archives only say which of the two files it is: no path of the caller's is ever opened, no link followed.
/// </summary>
internal sealed class AdapterUpload(StagedFolder folder, long mostBytes)
{
    private const int MostEntries = 64, MostHeaders = 16, MostHeaderBytes = 16 << 10, MostBoundary = 128;
    public const long MostConfigBytes = 1 << 20;
    private readonly HashSet<string> found = new(StringComparer.Ordinal);
    private readonly List<string> others = [];
    private long left = mostBytes + MostConfigBytes;                // that may still come out of the request, unpacked

    /// <summary>Lets the request's body be as large as the two files and what goes around them.</summary>
    /// <returns>How large that is.</returns>
    public static long LimitBody(HttpContext context, long mostBytes)
    {
        var most = mostBytes + (2 << 20);
        if (context.Features.Get<IHttpMaxRequestBodySizeFeature>() is { IsReadOnly: false } size) size.MaxRequestBodySize = most;
        return most;
    }

    /// <exception cref="UploadRefusedException">What is wrong with how they came; nothing is said here of what is in them.</exception>
    /// <exception cref="BadHttpRequestException">The body ended early, or is larger than the server takes.</exception>
    public async Task ReceiveAsync(HttpRequest request, CancellationToken cancellationToken)
    {
        if (request.Headers.ContentEncoding is { Count: > 0 } encoding && encoding != "identity") throw new UploadRefusedException(415, "unsupported_media_type", "A compressed request body is not taken. Send a .zip or .tar.gz as such.");
        if (!MediaTypeHeaderValue.TryParse(request.ContentType, out var type)) throw Unsupported();
        switch (type.MediaType.Value?.ToLowerInvariant())
        {
            case "multipart/form-data":
                await ReceiveFormAsync(request.Body, type, cancellationToken);
                break;
            case "application/zip" or "application/x-zip-compressed":
                await ReceiveArchiveAsync(request, isZip: true, cancellationToken);
                break;
            case "application/gzip" or "application/x-gzip" or "application/x-tar+gzip":
                await ReceiveArchiveAsync(request, isZip: false, cancellationToken);
                break;
            default:
                throw Unsupported();
        }
        var missing = new[] { AdapterFolders.ConfigName, AdapterFolders.WeightsName }.Where(n => !found.Contains(n)).ToArray();
        // A pickle alone is for the report to refuse, which says what to do instead.
        if (missing.Length > 0 && !(missing is [AdapterFolders.WeightsName] && others.Contains(AdapterFolders.PickleName)))
            throw new UploadRefusedException(400, "archive_layout", $"Expected {AdapterFolders.ConfigName} and {AdapterFolders.WeightsName}, found {Names()}.");
        if (missing.Length > 0) await File.WriteAllBytesAsync(Path.Combine(folder.Path, AdapterFolders.PickleName), [], cancellationToken);

        static UploadRefusedException Unsupported() =>
            new(415, "unsupported_media_type", "Send the two files as multipart/form-data, or a .zip (application/zip) or .tar.gz (application/gzip) of them.");
        string Names() => found.Count + others.Count == 0 ? "no file" : string.Join(", ", found.Concat(others).Select(Shown).Take(8));
    }

    private async Task ReceiveFormAsync(Stream body, MediaTypeHeaderValue type, CancellationToken cancellationToken)
    {
        var boundary = HeaderUtilities.RemoveQuotes(type.Boundary).Value;
        if (boundary is not { Length: > 0 and <= MostBoundary }) throw Malformed("The form has no boundary, or one that is too long.");
        var reader = new MultipartReader(boundary, body) { HeadersCountLimit = MostHeaders, HeadersLengthLimit = MostHeaderBytes };
        try
        {
            var sections = 0;
            while (await reader.ReadNextSectionAsync(cancellationToken) is { } section)
            {
                if (++sections > MostEntries) throw Malformed($"The form has more than {MostEntries} parts.");
                if (section.GetContentDispositionHeader() is not { } disposition || (disposition.FileName.Value ?? disposition.FileNameStar.Value) is not { Length: > 0 } name) continue;
                var last = LastOf(HeaderUtilities.RemoveQuotes(disposition.FileNameStar.HasValue ? disposition.FileNameStar : disposition.FileName).Value ?? name);
                if (last.EndsWith(".zip", StringComparison.OrdinalIgnoreCase)) await SaveArchiveAsync(section.Body, isZip: true, null, cancellationToken);
                else if (last.EndsWith(".tar.gz", StringComparison.OrdinalIgnoreCase) || last.EndsWith(".tgz", StringComparison.OrdinalIgnoreCase)) await SaveArchiveAsync(section.Body, isZip: false, null, cancellationToken);
                else await SaveAsync(last, section.Body, mostBytes, cancellationToken);
            }
        }
        catch (Exception e) when (e is InvalidDataException || e is IOException && e is not BadHttpRequestException && e.Message.StartsWith("Unexpected end of Stream", StringComparison.Ordinal))
        {
            throw Malformed("The form cannot be read to its end: it is cut, or its headers are larger than allowed.");
        }
    }

    private async Task ReceiveArchiveAsync(HttpRequest request, bool isZip, CancellationToken cancellationToken)
    {
        var declared = request.Headers["X-Content-SHA256"].ToString();
        if (declared.Length > 0 && (declared.Length != 64 || !declared.All(char.IsAsciiHexDigit))) throw Malformed("X-Content-SHA256 must be 64 hex digits.");
        await SaveArchiveAsync(request.Body, isZip, declared.Length > 0 ? declared : null, cancellationToken);
    }

    /// <summary>To a file first: a zip's directory is at its end, and nothing is unpacked that is not what was declared.</summary>
    private async Task SaveArchiveAsync(Stream body, bool isZip, string? sha256, CancellationToken cancellationToken)
    {
        var path = Path.Combine(folder.Path, "archive");
        try
        {
            await using var file = new FileStream(path, FileMode.CreateNew, FileAccess.ReadWrite, FileShare.None, 1 << 16, FileOptions.Asynchronous | FileOptions.DeleteOnClose);
            await CopyAsync(body, file, mostBytes + MostConfigBytes, counts: false, cancellationToken);
            file.Position = 0;
            if (sha256 is not null && Convert.ToHexString(await SHA256.HashDataAsync(file, cancellationToken)) is var hash && !hash.Equals(sha256, StringComparison.OrdinalIgnoreCase))
                throw Malformed("The body's SHA-256 is not the one that X-Content-SHA256 declares.");
            file.Position = 0;
            await (isZip ? UnzipAsync(file, cancellationToken) : UntarAsync(file, cancellationToken));
        }
        catch (Exception e) when (e is InvalidDataException or EndOfStreamException or FormatException or OverflowException || e is IOException && File.Exists(path) is false && e.Message.Contains("already exists", StringComparison.Ordinal))
        {
            throw Malformed($"The archive cannot be read as a {(isZip ? ".zip" : ".tar.gz")}.");
        }
    }

    private async Task UnzipAsync(Stream file, CancellationToken cancellationToken)
    {
        using var zip = new ZipArchive(file, ZipArchiveMode.Read, leaveOpen: true);
        if (zip.Entries.Count > MostEntries) throw new UploadRefusedException(400, "archive_unsafe", $"The archive has {zip.Entries.Count} entries, at most {MostEntries} are taken.");
        foreach (var entry in zip.Entries)
        {
            if (entry.FullName.EndsWith('/')) continue;
            CheckName(entry.FullName);
            const int Link = 0xA000, Kind = 0xF000;
            if ((entry.ExternalAttributes >> 16 & Kind) == Link) throw Unsafe(entry.FullName, "a link");
            await using var content = await entry.OpenAsync(cancellationToken);
            await SaveAsync(LastOf(entry.FullName), content, mostBytes, cancellationToken);
        }
    }

    private async Task UntarAsync(Stream file, CancellationToken cancellationToken)
    {
        await using var unpacked = new GZipStream(file, CompressionMode.Decompress, leaveOpen: true);
        await using var tar = new TarReader(unpacked, leaveOpen: true);
        var entries = 0;
        while (await tar.GetNextEntryAsync(copyData: false, cancellationToken) is { } entry)
        {
            if (++entries > MostEntries) throw new UploadRefusedException(400, "archive_unsafe", $"The archive has more than {MostEntries} entries.");
            if (entry.EntryType is TarEntryType.Directory or TarEntryType.GlobalExtendedAttributes) continue;
            CheckName(entry.Name);
            if (entry.EntryType is not (TarEntryType.RegularFile or TarEntryType.V7RegularFile)) throw Unsafe(entry.Name, "neither a file nor a folder");
            await SaveAsync(LastOf(entry.Name), entry.DataStream ?? Stream.Null, mostBytes, cancellationToken);
        }
    }

    private static void CheckName(string name)
    {
        if (name.StartsWith('/') || name.Contains('\\') || name.Contains('\0') || name.Split('/').Contains("..") || name is [_, ':', ..]) throw Unsafe(name, "a path that leads elsewhere");
    }

    /// <summary>Only the two files are kept, under their own names; others are read over and named where one of the two is missing.</summary>
    private async Task SaveAsync(string name, Stream content, long most, CancellationToken cancellationToken)
    {
        if (name is not (AdapterFolders.ConfigName or AdapterFolders.WeightsName))
        {
            if (others.Count < MostEntries) others.Add(name);
            await CopyAsync(content, Stream.Null, most, counts: true, cancellationToken);
            return;
        }
        if (!found.Add(name)) throw new UploadRefusedException(400, "archive_layout", $"{name} is there twice.");
        await using var file = new FileStream(Path.Combine(folder.Path, name), FileMode.CreateNew, FileAccess.Write, FileShare.None, 1 << 16, FileOptions.Asynchronous);
        await CopyAsync(content, file, name == AdapterFolders.ConfigName ? MostConfigBytes : most, counts: true, cancellationToken);
    }

    private async Task CopyAsync(Stream from, Stream to, long most, bool counts, CancellationToken cancellationToken)
    {
        var room = System.Buffers.ArrayPool<byte>.Shared.Rent(1 << 16);
        try
        {
            for (var total = 0L; await from.ReadAsync(room, cancellationToken) is var read and > 0;)
            {
                total += read;
                if (counts) left -= read;
                if (total > most || left < 0) throw new UploadRefusedException(413, "request_too_large", $"The files are larger than the {mostBytes} bytes that an adapter of this model can have.");
                await to.WriteAsync(room.AsMemory(0, read), cancellationToken);
            }
        }
        finally
        {
            System.Buffers.ArrayPool<byte>.Shared.Return(room);
        }
    }

    private static string LastOf(string path) => path[(path.LastIndexOfAny(['/', '\\']) + 1)..];

    private static string Shown(string name)
    {
        var clean = new string([.. name.Take(64).Where(c => c is >= ' ' and < (char)0x7F)]);
        return clean.Length > 0 ? $"'{clean}'" : "a file without a name";
    }

    private static UploadRefusedException Malformed(string message) => new(400, "archive_layout", message);

    private static UploadRefusedException Unsafe(string name, string what) => new(400, "archive_unsafe", $"{Shown(name)} is {what}. Nothing was unpacked from it.");
}

/// <summary>An upload that was refused for how it came.</summary>
internal sealed class UploadRefusedException(int status, string code, string message) : Exception(message)
{
    public ApiError Error { get; } = new(status, code, message);
}
