using System.Data.Common;
using System.Globalization;
using System.Text.Json;
using System.Text.Json.Serialization;
using Microsoft.AspNetCore.Http.HttpResults;
using Microsoft.AspNetCore.Mvc;
using Microsoft.Data.Sqlite;
using Microsoft.Extensions.Options;
using TenantLora.ChatHost.Security;
using TenantLora.ChatHost.Store;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Adapters;

/// <summary>
/// What admins do with their tenant's adapters and keys, under /api/tenants/{tenant}. The tenant is the key's; a route that names another is not there.
/// Aliases move by compare-and-set: <c>If-Match</c> carries the ETag that the caller saw.
/// </summary>
internal static partial class AdapterEndpoints
{
    public const string Admins = "admins";

    private const int LongestName = 64, LongestWhy = 500, LongestLabel = 80, UploadsAtOnce = 4;

    private static readonly JsonSerializerOptions Wire = AdapterJson.Wire.Options;

    public static void MapAdapters(this IEndpointRouteBuilder app)
    {
        var uploads = new UploadSlots(UploadsAtOnce);
        var tenant = app.MapGroup("/api/tenants/{tenant}").RequireAuthorization(Admins)
            .AddEndpointFilter((context, next) => context.HttpContext.GetRouteValue("tenant") as string == context.HttpContext.User.Tenant() ? next(context) : ValueTask.FromResult<object?>(Refused(404)));
        tenant.MapGet("/adapters", List).WithSummary("The tenant's adapters, by name.");
        tenant.MapGet("/adapters/{name}", (string tenant, string name, AdapterStore store, HttpContext context) => Detail(store, tenant, name, context)).WithSummary("One adapter with its versions and aliases.");
        tenant.MapPost("/adapters/{name}/versions", (string tenant, string name, HttpContext context, TenantAdapters adapters, AdapterFolders folders, Serving serving) => UploadAsync(tenant, name, context, adapters, folders, serving, uploads))
            .WithSummary("Brings a version: adapter_config.json and adapter_model.safetensors as a form, a .zip or a .tar.gz. It is judged, and never activated by itself.");
        tenant.MapPut("/adapters/{name}/aliases/active", (string tenant, string name, [FromBody] AliasMove move, HttpContext context, TenantAdapters adapters, AdapterStore store) =>
                Move(context, adapters, store, tenant, name, move, (s, etag, number, who) => s.Activate(tenant, name, etag, number, who, move.Why)))
            .WithSummary("Makes a version what the adapter's name means.");
        tenant.MapPut("/adapters/{name}/aliases/canary", (string tenant, string name, [FromBody] AliasMove move, HttpContext context, TenantAdapters adapters, AdapterStore store) =>
                move.Share is not (>= 1 and <= 99) ? Refused(400, "invalid_value", "'share' must be from 1 to 99 percent.")
                : Move(context, adapters, store, tenant, name, move, (s, etag, number, who) => s.SetCanary(tenant, name, etag, number, move.Share.Value, who, move.Why)))
            .WithSummary("Gives a version to a share of conversations.");
        tenant.MapDelete("/adapters/{name}/aliases/canary", (string tenant, string name, HttpContext context, TenantAdapters adapters, AdapterStore store) =>
                Changed(context, adapters, store, tenant, name, (s, etag, who) => s.EndCanary(tenant, name, etag, who)))
            .WithSummary("Ends the canary.");
        tenant.MapPost("/adapters/{name}/rollback", (string tenant, string name, [FromBody] Reason? reason, HttpContext context, TenantAdapters adapters, AdapterStore store) =>
                TooLong(reason?.Why) ?? Changed(context, adapters, store, tenant, name, (s, etag, who) => s.RollBack(tenant, name, etag, who, reason?.Why)))
            .WithSummary("Makes the version before active again.");
        tenant.MapPut("/adapters/{name}/pin", (string tenant, string name, HttpContext context, TenantAdapters adapters, AdapterPins pins, AdapterStore store) => Pin(context, adapters, pins, store, tenant, name, pinned: true))
            .WithSummary("Keeps the adapter's active version in memory, whichever that is, while others take turns. Within the tenant's share.");
        tenant.MapDelete("/adapters/{name}/pin", (string tenant, string name, HttpContext context, TenantAdapters adapters, AdapterPins pins, AdapterStore store) => Pin(context, adapters, pins, store, tenant, name, pinned: false))
            .WithSummary("Lets the adapter take turns with others.");
        tenant.MapDelete("/adapters/{name}/versions/{version}", (string tenant, string name, string version, HttpContext context, TenantAdapters adapters) =>
                AdapterStore.Number(version) is { } number ? Done(adapters.Apply(s => s.DeleteVersion(tenant, name, number, context.User.Who())), "version_in_use", "The version is active or on trial. Move the alias first.") : Refused(404))
            .WithSummary("Deletes a version that no alias needs. Running answers keep it to their end.");
        tenant.MapDelete("/adapters/{name}", (string tenant, string name, HttpContext context, TenantAdapters adapters) => Done(adapters.Apply(s => s.DeleteAdapter(tenant, name, context.User.Who()))))
            .WithSummary("Deletes an adapter with all its versions.");
        tenant.MapGet("/audit", (string tenant, AdapterStore store, long? before, int? limit) =>
                Json(new AuditPage([.. store.Audit(tenant, before ?? long.MaxValue, Limit(limit)).Select(e => new AuditCard(e.Id, Time(e.At), e.Who, e.Action, e.Adapter, e.OldValue, e.NewValue, e.Why))])))
            .WithSummary("Who did what, newest first.");
        tenant.MapGet("/usage", Used).WithSummary("Requests, tokens and times by adapter and version over the last hours.");
        tenant.MapGet("/keys", Keys).WithSummary("The tenant's keys, without the keys.");
        tenant.MapPost("/keys", CreateKey).WithSummary("Makes a key, which is shown this once.");
        tenant.MapDelete("/keys/{id}", (string tenant, string id, HttpContext context, TenantAdapters adapters) => Done(adapters.Apply(s => s.RevokeKey(tenant, id, context.User.Who())))).WithSummary("Revokes a key that was made here.");
        app.MapGet("/api/adapters/resident", ResidentAsync).RequireAuthorization(Admins).WithSummary("Where the tenant's adapters are, and the device's room for adapters.");
    }

    // ---- Reading

    private static IResult List(string tenant, AdapterStore store, IOptions<TenantLoraOptions> options, string? after, int? limit)
    {
        var most = Limit(limit);
        var page = store.List(tenant, after ?? "", most);
        var counts = store.CountVersions(tenant);
        return Json(new AdapterPage([.. page.Select(a => Card(a, counts.GetValueOrDefault(a.Name)))], page.Count == most ? page[^1].Name : null, new DiskCard(store.StoredBytes(tenant), options.Value.AdapterQuota(tenant))));
    }

    private static IResult Detail(AdapterStore store, string tenant, string name, HttpContext context)
    {
        if (store.Find(tenant, name) is not { } adapter) return Refused(404);
        var versions = store.VersionsOf(tenant, name);
        context.Response.Headers.ETag = $"\"{Etag(adapter)}\"";
        context.Response.Headers.CacheControl = "no-cache";
        return Json(new AdapterDetail(Card(adapter, versions.Count), [.. versions.Select(Card)]));
    }

    private static async Task<IResult> ResidentAsync(HttpContext context, Serving serving, AdapterStore store)
    {
        var tenant = context.User.Tenant();
        var residents = await serving.Runtime.ResidentsAsync(tenant, context.RequestAborted);
        var there = residents.Adapters.ToDictionary(r => r.Digest);
        var adapters = from version in store.VersionsOf(tenant)
                       let resident = there.GetValueOrDefault(version.Digest)
                       select new ResidentCard(version.Name, AdapterStore.Label(version.Number), version.Digest, version.Bytes, resident is null ? "disk" : resident.OnDevice ? "device" : "host");
        return Json(new ResidentPage(residents.DeviceBytes, residents.DeviceBudget, [.. adapters]));
    }

    private static IResult Used(string tenant, Usage usage, TimeProvider time, int? hours)
    {
        usage.Flush();
        var from = (time.GetUtcNow().ToUnixTimeSeconds() / 3600) - Math.Clamp(hours ?? 24, 1, 24 * 90) + 1;
        var (rows, buckets) = usage.Since(tenant, from);
        var times = buckets.ToLookup(b => (b.Name, b.Version, b.Measure));
        return Json(new UsagePage(Time(from * 3_600_000),
        [
            .. rows.GroupBy(r => (r.Name, r.Version)).Select(g => new UsageCard(g.Key.Name, g.Key.Version is "" ? null : g.Key.Version, g.Sum(r => r.Requests), g.Sum(r => r.Errors), g.Sum(r => r.Cancelled), g.Sum(r => r.PromptTokens), g.Sum(r => r.CompletionTokens),
                Usage.Percentile(times[(g.Key.Name, g.Key.Version, Usage.FirstToken)], 0.5), Usage.Percentile(times[(g.Key.Name, g.Key.Version, Usage.FirstToken)], 0.95), Usage.Percentile(times[(g.Key.Name, g.Key.Version, Usage.Speed)], 0.5))),
        ],
        [.. rows.GroupBy(r => r.Hour).Select(g => new UsageHour(Time(g.Key * 3_600_000), g.Sum(r => r.Requests), g.Sum(r => r.Errors), g.Sum(r => r.PromptTokens), g.Sum(r => r.CompletionTokens)))]));
    }

    // ---- Versions

    private static async Task<IResult> UploadAsync(string tenant, string name, HttpContext context, TenantAdapters adapters, AdapterFolders folders, Serving serving, UploadSlots uploads)
    {
        // What a client sends beyond the length that it gave is not to be taken for a request.
        context.Response.Headers.Connection = "close";
        if (!IsName(name)) return Refused(400, "invalid_value", $"An adapter's name is 1 to {LongestName} letters, digits, '.', '_' and '-', and begins with a letter or digit.");
        if (name == serving.Info.Model) return Refused(409, "name_taken", "This is the base model's name.");
        var largest = serving.Runtime.MaxAdapterFileBytes;
        if (context.Request.ContentLength > AdapterUpload.LimitBody(context, largest)) return Refused(413, "request_too_large", $"An adapter of this model has at most {largest} bytes.");
        using var slot = uploads.Enter(tenant);
        if (slot is null) return new Refusal(new ApiError(429, ErrorCodes.QueueFull, $"{UploadsAtOnce} uploads of this tenant are under way. Try again when one is over.", RetryAfter: TimeSpan.FromSeconds(1)));
        try
        {
            using var staged = folders.Stage();
            await new AdapterUpload(staged, largest).ReceiveAsync(context.Request, context.RequestAborted);
            var (report, version, created) = await adapters.AddAsync(staged, tenant, name, context.User.Who(), context.RequestAborted);
            if (version is null) return TypedResults.Json(RefusedReport.Of(report), Wire, "application/problem+json", 422);
            return created
                ? TypedResults.Json(new Uploaded(Card(version), true), Wire, statusCode: 201)
                : Json(new Uploaded(Card(version), false));
        }
        catch (UploadRefusedException e)
        {
            return new Refusal(e.Error);
        }
        catch (QuotaExceededException e)
        {
            return Refused(413, "quota_exceeded", $"The tenant's adapters take {e.Kept} bytes, and this would take {e.More} more: beyond the {e.Quota} that it may keep. Delete versions that nobody needs.");
        }
        catch (Exception e) when (e is DbException or IOException or UnauthorizedAccessException or ArgumentOutOfRangeException { ParamName: "value" } && e is not BadHttpRequestException && !context.RequestAborted.IsCancellationRequested)
        {
            Unwritable(context.RequestServices.GetRequiredService<ILoggerFactory>().CreateLogger(typeof(AdapterEndpoints)), e);
            return IsFull(e) ? Refused(507, "no_space", "The server has no room left for adapters.") : Refused(503, "store_unwritable", "The server cannot write adapters at present.");
        }
    }

    /// <summary>ENOSPC, EDQUOT, EFBIG; ERROR_HANDLE_DISK_FULL, ERROR_DISK_FULL.</summary>
    private static bool IsFull(Exception e) => e switch
    {
        SqliteException store => store.SqliteErrorCode is 13 || store.SqliteExtendedErrorCode is 778,         // SQLITE_FULL; SQLITE_IOERR_WRITE, of a write that the system refused
        DbException store => store.SqlState is "53100",
        ArgumentOutOfRangeException => true,            // .NET's word for EFBIG
        _ => (e.HResult & 0xFFFF) is 28 or 122 or 27 or 39 or 112,
    };

    private static IResult Pin(HttpContext context, TenantAdapters adapters, AdapterPins pins, AdapterStore store, string tenant, string name, bool pinned) =>
        adapters.Apply(s => s.Pin(tenant, name, pinned, pins.Share, context.User.Who())) switch
        {
            Change.Done => Detail(store, tenant, name, context),
            Change.NoVersion => Refused(409, "nothing_active", "No version is active that could be pinned."),
            Change.Conflict => Refused(409, "pin_limit", $"Pinned adapters of one tenant may take {pins.Share} bytes of memory together, and with this one they would take more."),
            _ => Refused(404),
        };

    private static IResult Move(HttpContext context, TenantAdapters adapters, AdapterStore store, string tenant, string name, AliasMove move, Func<AdapterStore, long, long, string, Change> change) =>
        TooLong(move.Why) ?? (AdapterStore.Number(move.Version) is { } number
            ? Changed(context, adapters, store, tenant, name, (s, etag, who) => change(s, etag, number, who))
            : Refused(400, "invalid_value", "'version' must be a version like \"v3\"."));

    private static IResult Changed(HttpContext context, TenantAdapters adapters, AdapterStore store, string tenant, string name, Func<AdapterStore, long, string, Change> change)
    {
        var match = context.Request.Headers.IfMatch.ToString();
        if (match.Length == 0) return Refused(428, "if_match_missing", "Send If-Match with the ETag that you saw, so that nobody's change is lost.");
        if (!long.TryParse(match.Trim('"'), NumberStyles.None, CultureInfo.InvariantCulture, out var etag)) return Refused(412, "changed_meanwhile", "The ETag is not this adapter's.");
        return adapters.Apply(s => change(s, etag, context.User.Who())) switch
        {
            Change.Done => Detail(store, tenant, name, context),
            Change.Stale => Refused(412, "changed_meanwhile", "Somebody has changed this adapter since you looked. Look again."),
            Change.Conflict => Refused(409, "nothing_to_roll_back", "No version was active before this one."),
            Change.NoVersion => NoVersion(),
            _ => Refused(404),
        };
    }

    private static IResult Done(Change change, string conflict = "", string message = "") => change switch
    {
        Change.Done => TypedResults.NoContent(),
        Change.Conflict => Refused(409, conflict, message),
        Change.NoVersion => NoVersion(),
        _ => Refused(404),
    };

    [LoggerMessage(LogLevel.Error, "An upload cannot be written")]
    private static partial void Unwritable(ILogger log, Exception exception);

    // ---- Keys

    private static IResult Keys(string tenant, AdapterStore store, TenantDirectory tenants) => Json(new KeyPage(
    [
        .. tenants.Configured(tenant).Select(c => new KeyCard(c.Who, c.Who, Name(c.Role), null, c.Who == "demo" ? "demo" : "configuration")),
        .. store.Keys(tenant).Select(k => new KeyCard(k.Id, k.Label, k.Role, Time(k.CreatedAt), "store")),
    ]));

    private static IResult CreateKey(string tenant, [FromBody] NewKey wanted, HttpContext context, TenantAdapters adapters)
    {
        if (!Enum.TryParse<Role>(wanted.Role, ignoreCase: true, out var role) || Name(role) != wanted.Role) return Refused(400, "invalid_value", "'role' must be \"admin\" or \"member\".");
        if (wanted.Label is not { Length: >= 1 and <= LongestLabel } label || label.Any(char.IsControl)) return Refused(400, "invalid_value", $"'label' must be 1 to {LongestLabel} characters.");
        var key = ApiKey.Create();
        var id = "";
        adapters.Apply(s =>
        {
            id = s.AddKey(tenant, Convert.ToHexStringLower(ApiKey.Hash(key)), wanted.Role, label, context.User.Who()).Id;
            return Change.Done;
        });
        context.Response.Headers.CacheControl = "no-store";
        return TypedResults.Json(new KeyMade(id, key), Wire, statusCode: 201);
    }

    // ---- Cards

    private static AdapterCard Card(StoredAdapter a, long versions) => new(a.Name, Etag(a), Time(a.CreatedAt), AdapterStore.Label(a.Active), AdapterStore.Label(a.Previous), a is { Canary: { } canary, Share: { } share } ? new CanaryCard(AdapterStore.Label(canary), share) : null, versions, a.Pinned != 0);

    private static VersionCard Card(StoredVersion v) => new(AdapterStore.Label(v.Number), v.Digest, v.Kind, v.Rank, v.Bytes, v.ExpandedBytes, v.BaseModel, Time(v.CreatedAt), v.CreatedBy,
        JsonSerializer.Deserialize(v.Findings, AdapterJson.Wire.IReadOnlyListAdapterFinding) ?? []);

    private static string Etag(StoredAdapter adapter) => adapter.Changed.ToString(CultureInfo.InvariantCulture);

    private static string Name(Role role) => role == Role.Admin ? "admin" : "member";

    private static DateTimeOffset Time(long milliseconds) => DateTimeOffset.FromUnixTimeMilliseconds(milliseconds);

    private static int Limit(int? limit) => Math.Clamp(limit ?? 100, 1, 500);

    private static bool IsName(string name) => name.Length is >= 1 and <= LongestName && char.IsAsciiLetterOrDigit(name[0]) && name.All(c => char.IsAsciiLetterOrDigit(c) || c is '.' or '_' or '-');

    private static IResult? TooLong(string? why) => why is { Length: > LongestWhy } ? Refused(400, "invalid_value", $"'why' is at most {LongestWhy} characters.") : null;

    private static JsonHttpResult<T> Json<T>(T value) => TypedResults.Json(value, Wire);

    private static Refusal NoVersion() => Refused(404, "version_not_found", "The adapter has no such version.");

    private static Refusal Refused(int status) => new(ApiError.From(status));

    private static Refusal Refused(int status, string code, string message) => new(new ApiError(status, code, message));

    private sealed class Refusal(ApiError error) : IResult
    {
        public Task ExecuteAsync(HttpContext httpContext) => error.WriteAsync(httpContext);
    }

    /// <summary>So many uploads of one tenant at once, and however slow they are, they keep nobody else's out.</summary>
    private sealed class UploadSlots(int most)
    {
        private readonly Dictionary<string, int> taken = new(StringComparer.Ordinal);

        public IDisposable? Enter(string tenant)
        {
            lock (taken)
            {
                if (taken.GetValueOrDefault(tenant) == most) return null;
                taken[tenant] = taken.GetValueOrDefault(tenant) + 1;
            }
            return new Slot(this, tenant);
        }

        private sealed class Slot(UploadSlots slots, string tenant) : IDisposable
        {
            public void Dispose()
            {
                lock (slots.taken)
                    if (--slots.taken[tenant] == 0) slots.taken.Remove(tenant);
            }
        }
    }
}

// What goes over the wire, in camel case.

internal sealed record AdapterPage(IReadOnlyList<AdapterCard> Adapters, string? Next, DiskCard? Disk = null);

/// <param name="Bytes">What all the tenant's versions take, the same bytes once.</param>
/// <param name="Quota">What they may take; null: no limit.</param>
internal sealed record DiskCard(long Bytes, long? Quota);

internal record AdapterCard(string Name, string Etag, DateTimeOffset CreatedAt, string? Active, string? Previous, CanaryCard? Canary, long Versions, bool Pinned = false);

/// <param name="Share">Percent of conversations.</param>
internal sealed record CanaryCard(string Version, long Share);

internal sealed record AdapterDetail : AdapterCard
{
    public AdapterDetail(AdapterCard card, IReadOnlyList<VersionCard> versionList) : base(card) => VersionList = versionList;

    public IReadOnlyList<VersionCard> VersionList { get; }
}

internal sealed record VersionCard(string Version, string Digest, string Kind, long Rank, long Bytes, long ExpandedBytes, string? BaseModel, DateTimeOffset CreatedAt, string CreatedBy, IReadOnlyList<AdapterFinding> Findings);

/// <param name="Created">False: the same bytes were this version already.</param>
internal sealed record Uploaded(VersionCard Version, bool Created);

/// <summary>Problem details with the whole report.</summary>
internal sealed record RefusedReport(string Title, int Status, string Detail, string Code, IReadOnlyList<AdapterFinding> Findings)
{
    public static RefusedReport Of(AdapterReport report)
    {
        var errors = report.Findings.Count(f => f.Severity == Severity.Error);
        return new RefusedReport("Unprocessable Entity", 422, $"The adapter was refused: {errors} {(errors == 1 ? "error" : "errors")} in its report.", "adapter_refused", report.Findings);
    }
}

internal sealed record AliasMove(string? Version = null, int? Share = null, string? Why = null);

internal sealed record Reason(string? Why = null);

internal sealed record AuditPage(IReadOnlyList<AuditCard> Entries);

internal sealed record AuditCard(long Id, DateTimeOffset At, string Who, string Action, string? Adapter, string? From, string? To, string? Why);

internal sealed record KeyPage(IReadOnlyList<KeyCard> Keys);

internal sealed record KeyCard(string Id, string Label, string Role, DateTimeOffset? CreatedAt, string Source);

internal sealed record NewKey(string? Label = null, string? Role = null);

internal sealed record KeyMade(string Id, string Key);

/// <param name="Hours">Those with any request, oldest first.</param>
internal sealed record UsagePage(DateTimeOffset From, IReadOnlyList<UsageCard> Adapters, IReadOnlyList<UsageHour> Hours);

/// <param name="Version">Null: the base model.</param>
internal sealed record UsageCard(string Name, string? Version, long Requests, long Errors, long Cancelled, long PromptTokens, long CompletionTokens, double? FirstTokenP50, double? FirstTokenP95, double? TokensPerSecondP50);

internal sealed record UsageHour(DateTimeOffset Hour, long Requests, long Errors, long PromptTokens, long CompletionTokens);

/// <param name="DeviceBudget">Null: no limit.</param>
internal sealed record ResidentPage(long DeviceBytes, long? DeviceBudget, IReadOnlyList<ResidentCard> Adapters);

/// <param name="Bytes">As in its file; on the device it takes a little more.</param>
/// <param name="Place"><c>device</c>, <c>host</c> or <c>disk</c>.</param>
internal sealed record ResidentCard(string Name, string Version, string Digest, long Bytes, string Place);

[JsonSourceGenerationOptions(JsonSerializerDefaults.Web, UseStringEnumConverter = true)]
[JsonSerializable(typeof(AdapterPage))]
[JsonSerializable(typeof(AdapterDetail))]
[JsonSerializable(typeof(Uploaded))]
[JsonSerializable(typeof(RefusedReport))]
[JsonSerializable(typeof(AuditPage))]
[JsonSerializable(typeof(KeyPage))]
[JsonSerializable(typeof(KeyMade))]
[JsonSerializable(typeof(ResidentPage))]
[JsonSerializable(typeof(UsagePage))]
[JsonSerializable(typeof(IReadOnlyList<AdapterFinding>))]
internal sealed partial class AdapterJson : JsonSerializerContext
{
    public static AdapterJson Wire { get; } = new(new JsonSerializerOptions(JsonSerializerDefaults.Web)
    {
        Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
        Converters = { new JsonStringEnumConverter<Severity>(JsonNamingPolicy.SnakeCaseLower) },
    });
}
