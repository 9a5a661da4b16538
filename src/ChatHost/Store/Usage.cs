using System.Data.Common;
using Dapper;

namespace TenantLora.ChatHost.Store;

/// <summary>What an adapter's version was used for in one hour. <see cref="Name"/> is the base model's where there is no version.</summary>
internal sealed record UsageRow(string Tenant, string Name, string Version, long Hour, long Requests, long Errors, long Cancelled, long PromptTokens, long CompletionTokens);

/// <summary>Measurements that fell into one bucket.</summary>
internal sealed record UsageBucket(string Tenant, string Name, string Version, long Hour, string Measure, long Bucket, long Count);

/// <summary>
/// Who used which version how much, by the hour: counted here as answers end, added to the store every few seconds and at the stop. Times are kept as
/// counts in buckets, so that hours and hosts can be added up and percentiles still be told.
/// </summary>
internal sealed partial class Usage(Serving serving, Database database, TimeProvider time, ILogger<Usage> log) : BackgroundService
{
    public const string FirstToken = "first_token_ms", Speed = "tokens_per_second";
    private const double Step = 1.1892071150027210667;            // four buckets to a doubling: a percentile is told within 19 percent
    private static readonly TimeSpan Period = TimeSpan.FromSeconds(5);

    private readonly Lock gate = new(), flushing = new();
    private readonly string host = Guid.NewGuid().ToString("N");
    private Dictionary<(string Tenant, string Name, string Version, long Hour), UsageRow> rows = [];
    private Dictionary<(string Tenant, string Name, string Version, long Hour, string Measure, long Bucket), long> buckets = [];
    private Batch? underway;            // on its way to the store, or not known to be there
    private long number;

    public override Task StartAsync(CancellationToken cancellationToken)
    {
        serving.Ended = Count;
        return base.StartAsync(cancellationToken);
    }

    protected override async Task ExecuteAsync(CancellationToken stoppingToken)
    {
        using var timer = new PeriodicTimer(Period);
        while (await timer.WaitForNextTickAsync(stoppingToken)) TryFlush();
    }

    public override async Task StopAsync(CancellationToken cancellationToken)
    {
        await base.StopAsync(cancellationToken);
        TryFlush();
    }

    private void Count(PinnedRequest pinned, AnswerEnd end)
    {
        var (tenant, name, version) = (pinned.Request.Tenant, pinned.Model.Name.Split('@')[0], pinned.Model.Version ?? "");
        var hour = time.GetUtcNow().ToUnixTimeSeconds() / 3600;
        var (usage, timings) = (end.Done?.Usage, end.Done?.Timings);
        lock (gate)
        {
            var key = (tenant, name, version, hour);
            var row = rows.GetValueOrDefault(key) ?? new UsageRow(tenant, name, version, hour, 0, 0, 0, 0, 0);
            rows[key] = row with
            {
                Requests = row.Requests + 1,
                Errors = row.Errors + (end.Failed ? 1 : 0),
                Cancelled = row.Cancelled + (end is { Failed: false, Done: null } ? 1 : 0),
                PromptTokens = row.PromptTokens + (usage?.PromptTokens ?? 0),
                CompletionTokens = row.CompletionTokens + (usage?.CompletionTokens ?? 0),
            };
            if (timings is null) return;
            Measure(FirstToken, (timings.Queued + timings.Prefill).TotalMilliseconds);
            if (usage!.CompletionTokens > 1 && timings.Decode > TimeSpan.Zero) Measure(Speed, (usage.CompletionTokens - 1) / timings.Decode.TotalSeconds);

            void Measure(string measure, double value)
            {
                var at = (tenant, name, version, hour, measure, (long)Math.Floor(Math.Log(Math.Max(value, 0.001), Step)));
                buckets[at] = buckets.GetValueOrDefault(at) + 1;
            }
        }
    }

    /// <summary>Adds what was counted to the store. What could not be added, or may have been though nobody said so, is tried again as it was, and counts once.</summary>
    public void Flush()
    {
        lock (flushing)
            while ((underway ??= Take()) is { } batch)
            {
                database.Write(t => Add(t, batch));
                underway = null;
            }
    }

    private Batch? Take()
    {
        lock (gate)
        {
            if (rows.Count == 0) return null;
            var batch = new Batch(++number, [.. rows.Values], [.. buckets.Select(b => new UsageBucket(b.Key.Tenant, b.Key.Name, b.Key.Version, b.Key.Hour, b.Key.Measure, b.Key.Bucket, b.Value))]);
            (rows, buckets) = ([], []);
            return batch;
        }
    }

    /// <summary>A tenant's hours since one, and their buckets.</summary>
    public (IReadOnlyList<UsageRow> Rows, IReadOnlyList<UsageBucket> Buckets) Since(string tenant, long hour) => database.Read(c => (
        (IReadOnlyList<UsageRow>)c.Query<UsageRow>("SELECT tenant, name, version, hour, requests, errors, cancelled, prompt_tokens, completion_tokens FROM usage WHERE tenant = @tenant AND hour >= @hour ORDER BY hour, name, version", new { tenant, hour }).AsList(),
        (IReadOnlyList<UsageBucket>)c.Query<UsageBucket>("SELECT tenant, name, version, hour, measure, bucket, count FROM usage_buckets WHERE tenant = @tenant AND hour >= @hour", new { tenant, hour }).AsList()));

    /// <summary>The value below which a part of the measurements lie; null where there are none.</summary>
    public static double? Percentile(IEnumerable<UsageBucket> buckets, double part)
    {
        var sorted = buckets.GroupBy(b => b.Bucket).Select(g => (Bucket: g.Key, Count: g.Sum(b => b.Count))).OrderBy(b => b.Bucket).ToArray();
        var wanted = part * sorted.Sum(b => b.Count);
        foreach (var (bucket, count) in sorted)
            if ((wanted -= count) <= 0) return Math.Pow(Step, bucket + 0.5);
        return null;
    }

    private bool Add(DbTransaction t, Batch batch)
    {
        var now = time.GetUtcNow().ToUnixTimeMilliseconds();
        if (t.Connection!.Execute("INSERT INTO usage_batches (host, number, at) VALUES (@host, @Number, @now) ON CONFLICT (host) DO UPDATE SET number = excluded.number, at = excluded.at WHERE usage_batches.number < excluded.number",
            new { host, batch.Number, now }, t) == 0) return false;         // it is there
        t.Connection!.Execute("DELETE FROM usage_batches WHERE at < @before", new { before = now - (long)TimeSpan.FromDays(30).TotalMilliseconds }, t);        // of hosts that are gone
        t.Connection!.Execute("INSERT INTO usage (tenant, name, version, hour, requests, errors, cancelled, prompt_tokens, completion_tokens) VALUES (@Tenant, @Name, @Version, @Hour, @Requests, @Errors, @Cancelled, @PromptTokens, @CompletionTokens)"
            + " ON CONFLICT (tenant, name, version, hour) DO UPDATE SET requests = usage.requests + excluded.requests, errors = usage.errors + excluded.errors, cancelled = usage.cancelled + excluded.cancelled,"
            + " prompt_tokens = usage.prompt_tokens + excluded.prompt_tokens, completion_tokens = usage.completion_tokens + excluded.completion_tokens", batch.Rows.OrderBy(r => (r.Tenant, r.Name, r.Version, r.Hour)), t);
        t.Connection!.Execute("INSERT INTO usage_buckets (tenant, name, version, hour, measure, bucket, count) VALUES (@Tenant, @Name, @Version, @Hour, @Measure, @Bucket, @Count)"
            + " ON CONFLICT (tenant, name, version, hour, measure, bucket) DO UPDATE SET count = usage_buckets.count + excluded.count", batch.Buckets.OrderBy(b => (b.Tenant, b.Name, b.Version, b.Hour, b.Measure, b.Bucket)), t);
        return true;
    }

    private void TryFlush()
    {
        try
        {
            Flush();
        }
        catch (Exception e)
        {
            NotKept(log, e);
        }
    }

    /// <param name="Number">Of this host's batches.</param>
    private sealed record Batch(long Number, UsageRow[] Rows, UsageBucket[] Buckets);

    [LoggerMessage(LogLevel.Warning, "Usage could not be added to the store; it is kept for the next try")]
    private static partial void NotKept(ILogger log, Exception exception);
}
