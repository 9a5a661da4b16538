using System.Globalization;
using System.Net;
using System.Text.Json;
using Microsoft.Extensions.AI;
using TenantLora.ChatHost;
using TenantLora.ChatHost.Adapters;

namespace TenantLora.Cli;

/// <summary>What an admin does with the tenant's adapters. Each returns the exit code.</summary>
/// <param name="server">Null for what is done without one.</param>
/// <param name="json">Data goes out as JSON, as the server gave it.</param>
internal sealed class AdapterCommands(Terminal terminal, Server? server, bool json)
{
    private Server Server => server!;

    public async Task<int> ListAsync()
    {
        var path = Server.Adapters(await Server.AdministerAsync()) + "?limit=500";
        List<JsonElement> all = [];
        DiskCard? disk = null;
        for (string? after = null, next = path; next is not null; next = after is null ? null : $"{path}&after={Uri.EscapeDataString(after)}")
        {
            var answer = await Server.GetAsync(next);
            var page = answer.Read<AdapterPage>();
            if (page.Next is not null && page.Next == after) throw new Failure(ExitCode.Failed, "The server's list does not end.");
            (after, disk) = (page.Next, page.Disk);
            if (page.Adapters is not null) all.AddRange(answer.Body.GetProperty("adapters").EnumerateArray());
        }
        if (json)
        {
            terminal.Write(new { adapters = all, disk });
            return ExitCode.Done;
        }
        if (all.Count == 0) terminal.Line("No adapters yet. Bring one: tenantlora adapter push FOLDER");
        else terminal.Table(["NAME", "ACTIVE", "CANARY", "PREVIOUS", "VERSIONS", "PINNED", "CREATED"], all.Select(Answer.Read<AdapterCard>).Select(a =>
            new[] { a.Name, a.Active ?? "-", Canary(a), a.Previous ?? "-", a.Versions.ToString(CultureInfo.InvariantCulture), a.Pinned ? "yes" : "-", Terminal.Time(a.CreatedAt) }));
        if (disk is not null) terminal.Line($"All versions take {Terminal.Size(disk.Bytes)}{(disk.Quota is { } quota ? $" of the {Terminal.Size(quota)} that they may take" : "")} on the disk.");
        return ExitCode.Done;
    }

    public async Task<int> ShowAsync(string name)
    {
        var (_, detail, _) = await FindAsync(name);
        if (json)
        {
            terminal.Write(detail.Body);
            return ExitCode.Done;
        }
        var adapter = detail.Read<AdapterCard>();
        terminal.Line($"{adapter.Name}: {(adapter.Active is null ? "no version is active" : $"{adapter.Active} is active")}{(adapter.Canary is null ? "" : $", canary {Canary(adapter)}")}{(adapter.Previous is null ? "" : $", previous {adapter.Previous}")}{(adapter.Pinned ? ", pinned in memory" : "")}");
        var versions = Versions(detail);
        terminal.Table(["VERSION", "KIND", "RANK", "SIZE", "AS LORA", "BASE", "BY", "CREATED", "DIGEST"], versions.Select(v => new[]
        {
            v.Version, v.Kind, v.Rank.ToString(CultureInfo.InvariantCulture), Terminal.Size(v.Bytes), Terminal.Size(v.ExpandedBytes), v.BaseModel ?? "-", v.CreatedBy, Terminal.Time(v.CreatedAt), Short(v.Digest),
        }));
        foreach (var version in versions.Where(v => v.Findings is { Count: > 0 }))
        {
            terminal.Line($"{version.Version}: {Report.Count(version.Findings)}");
            Report.Print(terminal, version.Findings);
        }
        return ExitCode.Done;
    }

    public async Task<int> ValidateAsync(string folder, string model)
    {
        if (!Directory.Exists(folder)) throw Failure.Usage($"FOLDER: there is no folder '{folder}'.");
        var report = await Report.ValidateAsync(folder, model);
        if (json)
        {
            terminal.Write(new { report.Accepted, report.Adapter, report.Findings });
        }
        else
        {
            Report.Print(terminal, report.Findings);
            terminal.Line(report.Adapter is { } adapter
                ? $"accepted: {Report.Describe(adapter.Kind, adapter.Rank, adapter.Bytes, adapter.ExpandedBytes)}, {adapter.Digest}"
                : $"refused: {Report.Count(report.Findings)}");
        }
        return report.Accepted ? ExitCode.Done : ExitCode.Failed;
    }

    public async Task<int> PushAsync(string path, string? name)
    {
        Action<double> progress = _ => { };
        using var content = await Upload.OpenAsync(path, share => progress(share));       // wrong usage is said before the server is asked
        name ??= Upload.NameOf(path);
        var address = Server.Adapter(await Server.AdministerAsync(), name) + "/versions";
        Answer answer;
        try
        {
            answer = await terminal.ProgressAsync("uploading", shown =>
            {
                progress = shown;
                return Server.SendAsync(HttpMethod.Post, address, content);
            });
        }
        catch (Refusal refusal) when (refusal.Findings is { } findings)
        {
            if (json) terminal.Write(refusal.Body);
            else Report.Print(terminal, findings);
            throw;
        }
        if (json)
        {
            terminal.Write(answer.Body);
            return ExitCode.Done;
        }
        var uploaded = answer.Read<Uploaded>();
        var version = uploaded.Version;
        if (!uploaded.Created)
        {
            terminal.Line($"{name}: the same bytes are {version.Version} already.");
            return ExitCode.Done;
        }
        Report.Print(terminal, version.Findings);
        terminal.Line($"{name}@{version.Version}: {Report.Describe(version.Kind, version.Rank, version.Bytes, version.ExpandedBytes)}, {version.Digest}");
        terminal.Line($"Nothing answers under it yet but {name}@{version.Version}. To make it {name}: tenantlora adapter activate {name}@{version.Version}");
        return ExitCode.Done;
    }

    /// <param name="version">Null: the newest.</param>
    public async Task<int> ActivateAsync(string name, string? version, string? why)
    {
        var (path, detail, adapter) = await FindAsync(name);
        version ??= Versions(detail) is [var newest, ..] ? newest.Version : throw new Failure(ExitCode.Failed, $"{name} has no version.");
        if (adapter.Active == version) return Moved(detail, $"{name}: {version} is active already.");
        return await MoveAsync(name, detail, HttpMethod.Put, path + "/aliases/active", new { version, why },
            (before, after) => $"{name}: {after.Active} is active now, {before.Active ?? "nothing"} was.", $"{name} has no version {version}.");
    }

    public async Task<int> RollBackAsync(string name, string? why)
    {
        var (path, detail, _) = await FindAsync(name);
        return await MoveAsync(name, detail, HttpMethod.Post, path + "/rollback", new { why },
            (before, after) => $"{name}: {after.Active} is active again, {before.Active} was.", $"There is no adapter '{name}' any more.");
    }

    /// <summary>Keeps the active version in memory, or lets it take turns.</summary>
    public async Task<int> PinAsync(string name, bool pinned)
    {
        var (path, _, _) = await FindAsync(name);
        var detail = await Server.SendAsync(pinned ? HttpMethod.Put : HttpMethod.Delete, path + "/pin");
        return Moved(detail, pinned ? $"{name} stays in memory now." : $"{name} takes turns with others now.");
    }

    /// <summary>Asks a version, and beside it what answers now: the active version, or the base model where that is the same one or none.</summary>
    /// <param name="version">Null: the newest.</param>
    public async Task<int> TryAsync(string name, string? version, string prompt, Func<string, Task<ChatResponse>> ask)
    {
        var (_, detail, adapter) = await FindAsync(name);
        version ??= Versions(detail) is [var newest, ..] ? newest.Version : throw new Failure(ExitCode.Failed, $"{name} has no version.");
        if (Versions(detail).All(v => v.Version != version)) throw new Failure(ExitCode.Failed, $"{name} has no version {version}.");
        var now = adapter.Active is { } active && active != version ? $"{name}@{active}" : (await Server.GetAsync("api/site")).Read<SiteCard>().BaseModel;
        string[] models = [now, $"{name}@{version}"];
        var answers = await Task.WhenAll(models.Select(ask));
        if (json)
        {
            terminal.Write(new
            {
                prompt,
                answers = models.Zip(answers, (model, answer) => new
                {
                    model,
                    text = answer.Text,
                    finishReason = answer.FinishReason?.Value,
                    usage = new { promptTokens = answer.Usage?.InputTokenCount, completionTokens = answer.Usage?.OutputTokenCount },
                }),
            });
            return ExitCode.Done;
        }
        string[] heads = [now.Contains('@', StringComparison.Ordinal) ? $"{now} (active)" : $"{now} (without it)", models[1]];
        terminal.SideBySide(heads, [.. answers.Select(a => a.Text)]);
        return ExitCode.Done;
    }

    /// <param name="version">Null: the adapter with all its versions.</param>
    public async Task<int> RemoveAsync(string name, string? version, bool yes)
    {
        var (path, detail, adapter) = await FindAsync(name);
        var what = version is null ? name : $"{name}@{version}";
        if (version is not null && Versions(detail).All(v => v.Version != version)) throw new Failure(ExitCode.Failed, $"{name} has no version {version}.");
        if (!yes)
        {
            if (!terminal.InIsTerminal) throw Failure.Usage($"Nobody can be asked whether to remove {what}: say --yes.");
            terminal.Error.Write(Terminal.Clean(version is not null ? $"Remove {what}? [y/N] "
                : $"Remove {name} with {adapter.Versions} version(s), {(adapter.Active is null ? "none active" : $"{adapter.Active} active")}? [y/N] "));
            if (terminal.In.ReadLine()?.Trim() is not ("y" or "Y" or "yes")) throw new Failure(ExitCode.Failed, "Nothing was removed.");
        }
        await Server.SendAsync(HttpMethod.Delete, version is null ? path : $"{path}/versions/{Uri.EscapeDataString(version)}");
        if (json) terminal.Write(new { removed = what });
        else terminal.Line($"{what} is removed.");
        return ExitCode.Done;
    }

    /// <summary>Where the adapters are, and how much of the room they take.</summary>
    public async Task<int> ResidentAsync()
    {
        await Server.AdministerAsync();
        var answer = await Server.GetAsync("api/adapters/resident");
        if (json)
        {
            terminal.Write(answer.Body);
            return ExitCode.Done;
        }
        var page = answer.Read<ResidentPage>();
        terminal.Table(["NAME", "VERSION", "PLACE", "SIZE", "DIGEST"], page.Adapters.Select(a => new[] { a.Name, a.Version, a.Place, Terminal.Size(a.Bytes), Short(a.Digest) }));
        terminal.Line(page.DeviceBudget is not { } budget
            ? $"All tenants' adapters take {Terminal.Size(page.DeviceBytes)} on the device; there is no limit."
            : string.Create(CultureInfo.InvariantCulture, $"All tenants' adapters take {Terminal.Size(page.DeviceBytes)} of {Terminal.Size(budget)} on the device ({100.0 * page.DeviceBytes / Math.Max(1, budget):0.0} %)."));
        return ExitCode.Done;
    }

    /// <summary>Moves by compare-and-set: against what was seen.</summary>
    private async Task<int> MoveAsync(string name, Answer seen, HttpMethod method, string path, object body, Func<AdapterCard, AdapterCard, string> say, string absent)
    {
        try
        {
            var moved = await Server.SendAsync(method, path, body, seen.ETag);
            return Moved(moved, say(seen.Read<AdapterCard>(), moved.Read<AdapterCard>()));
        }
        catch (Refusal refusal) when (refusal.Status == HttpStatusCode.PreconditionFailed)
        {
            throw new Failure(ExitCode.Failed, $"Somebody changed {name} in the moment since it was read, so nothing was moved. Look at it (tenantlora adapter show {name}) and try again.");
        }
        catch (Refusal refusal) when (refusal.Status == HttpStatusCode.NotFound)
        {
            throw new Failure(ExitCode.Failed, absent);
        }
    }

    private int Moved(Answer detail, string said)
    {
        if (json) terminal.Write(detail.Body);
        else terminal.Line(said);
        return ExitCode.Done;
    }

    private async Task<(string Path, Answer Detail, AdapterCard Adapter)> FindAsync(string name)
    {
        var tenant = await Server.AdministerAsync();
        var path = Server.Adapter(tenant, name);
        try
        {
            var detail = await Server.GetAsync(path);
            return (path, detail, detail.Read<AdapterCard>());
        }
        catch (Refusal refusal) when (refusal.Status == HttpStatusCode.NotFound)
        {
            throw new Failure(ExitCode.Failed, $"{tenant} has no adapter '{name}'. `tenantlora adapter ls` lists them.");
        }
    }

    private static VersionCard[] Versions(Answer detail) =>
        detail.Body.TryGetProperty("versionList", out var list) ? Answer.Read<VersionCard[]>(list) : [];

    private static string Canary(AdapterCard adapter) => adapter.Canary is { } canary ? $"{canary.Version} ({canary.Share} %)" : "-";

    /// <summary>Enough to tell versions apart; --json has the whole.</summary>
    private static string Short(string digest) => digest.Length > 19 ? digest[..19] + "…" : digest;
}
