using TenantLora.ChatHost.Runtimes;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Adapters;

/// <summary>
/// A Runtime host's adapters: fetched by digest from the web side, whose address the configuration gives and no request, and kept on the disk as a cache,
/// within a budget. Nothing is believed of what comes but its digest.
/// </summary>
internal sealed partial class FetchedAdapters(AdapterFolders folders, Uri from, string serviceKey, long budget, ILogger<FetchedAdapters> log) : IDisposable
{
    private static readonly TimeSpan LongestSilence = TimeSpan.FromSeconds(30);

    private readonly HttpClient http = Service.Client();
    private readonly Lock gate = new();
    private readonly HashSet<string> reading = new(StringComparer.Ordinal);         // stay whatever the budget says

    /// <summary>Gives an adapter to the engine, from the disk or from the web side.</summary>
    /// <returns>What it takes.</returns>
    public async Task<long> BringAsync(Engine engine, string digest)
    {
        lock (gate) reading.Add(digest);
        try
        {
            if (folders.Has(digest))
                try
                {
                    folders.Touch(digest);
                    return engine.AddAdapter(folders.PathOf(digest), digest).Bytes;
                }
                catch (Exception e) when (e is InvalidDataException or AdapterRefusedException or IOException)
                {
                    Damaged(log, digest, e);            // on this disk; the web side has it whole
                    folders.Delete(digest, () => false);
                }
            using var staged = folders.Stage();
            await FetchAsync(digest, AdapterFolders.ConfigName, staged, AdapterUpload.MostConfigBytes);
            await FetchAsync(digest, AdapterFolders.WeightsName, staged, engine.MaxAdapterFileBytes);
            var adapter = engine.AddAdapter(staged.Path, digest);
            folders.Keep(staged, digest);
            MakeRoom(engine);
            return adapter.Bytes;
        }
        finally
        {
            lock (gate) reading.Remove(digest);
        }
    }

    /// <summary>Keeps files that came here to be judged: their requests will follow.</summary>
    public void Keep(StagedFolder staged, string digest, Engine engine)
    {
        lock (gate) folders.Keep(staged, digest);
        MakeRoom(engine);
    }

    public void Forget(string digest)
    {
        lock (gate)
            if (!reading.Contains(digest)) folders.Delete(digest, () => false);
    }

    /// <summary>Takes off the disk what is beyond the budget: first what is not in memory either, and of that what was asked for longest ago.</summary>
    public void MakeRoom(Engine engine)
    {
        lock (gate)
        {
            var inMemory = engine.Adapters.Select(a => a.Digest).ToHashSet(StringComparer.Ordinal);
            var all = folders.Kept();
            var excess = all.Sum(a => a.Bytes) - budget;
            foreach (var (digest, bytes, _) in all.Where(a => !reading.Contains(a.Digest)).OrderBy(a => inMemory.Contains(a.Digest)).ThenBy(a => a.LastUsed))
            {
                if (excess <= 0) return;
                folders.Delete(digest, () => false);
                excess -= bytes;
            }
        }
    }

    public void Dispose() => http.Dispose();

    private async Task FetchAsync(string digest, string file, StagedFolder to, long most)
    {
        using var silence = new CancellationTokenSource(LongestSilence);
        using var request = new HttpRequestMessage(HttpMethod.Get, new Uri(from, $"service/adapters/{digest}/{file}"));
        Service.Sign(request.Headers, serviceKey, tenant: "");
        using var response = await http.SendAsync(request, HttpCompletionOption.ResponseHeadersRead, silence.Token);
        if (!response.IsSuccessStatusCode) throw new HttpRequestException($"{from} answered {(int)response.StatusCode} for {file} of {digest}.");
        await using var content = await response.Content.ReadAsStreamAsync(silence.Token);
        await using var kept = new FileStream(Path.Combine(to.Path, file), FileMode.CreateNew, FileAccess.Write, FileShare.None, 1 << 16, FileOptions.Asynchronous);
        var room = new byte[1 << 16];
        for (var total = 0L; await content.ReadAsync(room, silence.Token) is var read and > 0;)
        {
            silence.CancelAfter(LongestSilence);
            if ((total += read) > most) throw new InvalidDataException($"{from} sent more than {most} bytes as {file} of {digest}.");
            await kept.WriteAsync(room.AsMemory(0, read), silence.Token);
        }
    }

    [LoggerMessage(LogLevel.Warning, "The files of {Digest} in this host's folder are damaged. They are fetched anew")]
    private static partial void Damaged(ILogger log, string digest, Exception exception);
}
