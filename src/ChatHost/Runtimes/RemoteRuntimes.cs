using System.Buffers.Binary;
using System.Collections.Immutable;
using System.Diagnostics.Metrics;
using System.Globalization;
using System.Runtime.CompilerServices;
using System.Security.Cryptography;
using System.Text;
using Microsoft.Extensions.Options;
using TenantLora.ChatHost.Adapters;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Runtimes;

/// <summary>
/// Runtimes of other processes, all with one base model. A tenant's requests go to one of them as long as the list is the same, so that its adapters are
/// there already; where that one does not take them, to the next, but never once an answer has begun. One that is gone is asked every
/// second whether it is back.
/// </summary>
internal sealed partial class RemoteRuntimes : IServedRuntime
{
    private static readonly TimeSpan Period = TimeSpan.FromSeconds(1), Patience = TimeSpan.FromSeconds(5), FirstPatience = TimeSpan.FromMinutes(1);
    private const int MostLate = 3;             // a busy machine may be slow once

    private readonly RemoteRuntime[] runtimes;
    private readonly ServiceInfo info;          // what all must serve
    private readonly HttpClient http;
    private readonly ILogger log;
    private readonly HeldAdapters held;         // nothing is brought: it tells when the last request that needs an adapter's files has ended
    private ImmutableDictionary<string, ImmutableHashSet<string>> kept = ImmutableDictionary<string, ImmutableHashSet<string>>.Empty;
    private readonly CancellationTokenSource stopping = new();
    private readonly Meter meter = new("TenantLora.Runtime");
    private readonly Task asking;

    private RemoteRuntimes(RemoteRuntime[] runtimes, ServiceInfo info, HttpClient http, ILogger log)
    {
        (this.runtimes, this.info, this.http, this.log) = (runtimes, info, http, log);
        held = new HeldAdapters(_ => Task.FromResult(0L), _ => { }, long.MaxValue, log);
        meter.CreateObservableGauge("tenantlora.runtimes", () => runtimes.GroupBy(r => r.Fault is null).Select(g => new Measurement<int>(g.Count(), new KeyValuePair<string, object?>("used", g.Key ? "yes" : "no"))),
            null, "Runtimes of other processes that this host may ask, and whether it does.");
        asking = Task.WhenAll(runtimes.Select(AskAsync));
    }

    public EngineInfo Info => info.Engine;

    public long MaxAdapterFileBytes => info.MaxAdapterFileBytes;

    public long AdapterMemory => info.AdapterMemory;

    public string? Fault => runtimes.Any(r => r.Fault is null) ? null : "no_runtime";

    /// <summary>By address: whether it is used.</summary>
    public IReadOnlyList<(Uri Address, bool IsUsed)> All => [.. runtimes.Select(r => (r.Address, r.Fault is null))];

    /// <summary>Waits until one answers. The first of the list that does says what all must serve.</summary>
    /// <exception cref="OptionsValidationException">None did.</exception>
    public static async Task<RemoteRuntimes> ConnectAsync(TenantLoraOptions options, ILogger<RemoteRuntimes> log, TimeSpan? patience = null)
    {
        var (http, limit, begun, isTold) = (Service.Client(), patience ?? FirstPatience, Environment.TickCount64, false);
        RemoteRuntime[] runtimes = [.. options.Runtimes.Select(r => new RemoteRuntime(new Uri(r), options.ServiceKey!, http))];
        while (true)
        {
            var answers = await Task.WhenAll(runtimes.Select(r => LookAsync(r, CancellationToken.None)));
            if (answers.Select(a => a.Info).FirstOrDefault(found => found is not null) is { } info)
            {
                var all = new RemoteRuntimes(runtimes, info, http, log);
                foreach (var (runtime, (found, fault)) in runtimes.Zip(answers)) all.Note(runtime, found, fault);
                return all;
            }
            if (Environment.TickCount64 - begun > limit.TotalMilliseconds)
            {
                foreach (var runtime in runtimes) await runtime.DisposeAsync();
                http.Dispose();
                throw new OptionsValidationException("", typeof(TenantLoraOptions), runtimes.Zip(answers, (r, a) =>
                    string.Create(CultureInfo.InvariantCulture, $"{TenantLoraOptions.Section}:Runtimes: {r.Address} was asked for {limit.TotalSeconds} s: {a.Fault ?? r.Fault}")));
            }
            if (!isTold) Waiting(log, string.Join(", ", options.Runtimes), (int)limit.TotalSeconds);
            isTold = true;
            await Task.Delay(Period);
        }
    }

    // ---- Answers

    public async IAsyncEnumerable<GenerationEvent> GenerateAsync(GenerationRequest request, [EnumeratorCancellation] CancellationToken cancellationToken = default)
    {
        var named = request with { Model = request.Adapter ?? Info.Model };
        await using var events = await FirstThatTakesAsync(request.Tenant, async runtime =>
        {
            var begun = runtime.GenerateAsync(named, cancellationToken).GetAsyncEnumerator(cancellationToken);
            try
            {
                if (!await begun.MoveNextAsync()) throw new InvalidOperationException("The generation has no events.");
                return begun;
            }
            catch
            {
                await begun.DisposeAsync();
                throw;
            }
        });
        while (events.Current is not GenerationDone)
        {
            yield return events.Current;
            if (!await NextAsync(events)) throw new InvalidOperationException("The generation ended without a last event.");
        }
        var done = events.Current;
        await NextAsync(events);            // to the end of the stream, which is there already: so the connection serves again
        yield return done;
    }

    private async Task<bool> NextAsync(IAsyncEnumerator<GenerationEvent> events)
    {
        try
        {
            return await events.MoveNextAsync();
        }
        catch (TenantLoraException e) when (e.Code == ErrorCodes.Unreachable)
        {
            BrokeOff(log, e.RequestId, e.Message);
            throw new TenantLoraException(ErrorCodes.Unreachable, "The answer broke off: the runtime was lost. Ask again.", e) { RetryAfter = Period };
        }
    }

    public ValueTask<IReadOnlyList<string>> ListModelsAsync(string tenant, CancellationToken cancellationToken = default) => new([Info.Model]);

    // ---- Adapters

    public Task<AdapterReport> JudgeAsync(string folder, string tenant, bool tries, CancellationToken cancellationToken) =>
        FirstThatTakesAsync(tenant, runtime => runtime.JudgeAsync(folder, tries, cancellationToken));

    public ValueTask<IDisposable> HoldAsync(string digest, string? tenant, CancellationToken cancellationToken) => held.HoldAsync(digest, tenant, null, cancellationToken);

    public bool Forget(string digest, Action whenLeft)
    {
        if (!held.Forget(digest, whenLeft)) return false;
        foreach (var runtime in runtimes.Where(r => r.Fault is null)) _ = TellAsync(token => runtime.ForgetAsync(digest, token));         // where that fails it goes by itself: it keeps a cache
        return true;
    }

    /// <summary>Each is told of the tenants whose requests go to it first.</summary>
    public Task KeepAsync(ImmutableDictionary<string, ImmutableHashSet<string>> adapters, CancellationToken cancellationToken)
    {
        Volatile.Write(ref kept, adapters);
        foreach (var runtime in runtimes) runtime.Told = default;          // they are told when next asked how they are
        return Task.CompletedTask;
    }

    private async Task TellKeptAsync(RemoteRuntime runtime, Guid start)
    {
        runtime.Told = start;
        var own = Volatile.Read(ref kept).Where(t => runtimes.MaxBy(r => Weight(t.Key, r.Address)) == runtime).SelectMany(t => t.Value).Distinct().ToArray();
        if (!await TellAsync(token => runtime.KeepAsync(own, token))) runtime.Told = default;
    }

    private async Task<bool> TellAsync(Func<CancellationToken, Task> tell)
    {
        try
        {
            using var soon = CancellationTokenSource.CreateLinkedTokenSource(stopping.Token);
            soon.CancelAfter(Patience);
            await tell(soon.Token);
            return true;
        }
        catch (Exception e) when (e is TenantLoraException or OperationCanceledException)
        {
            return false;
        }
    }

    public Task<Residents> ResidentsAsync(string tenant, CancellationToken cancellationToken) => FirstThatTakesAsync(tenant, runtime => runtime.ResidentsAsync(cancellationToken));

    // ---- Which one

    /// <summary>
    /// Rendezvous hashing (Thaler and Ravishankar 1998): the tenant's runtimes in an order that another's coming or going does not change. The next is
    /// asked only where the one before has done nothing yet: it could not be reached, or it drains. What may have broken it is not given to another. One
    /// that is slow to say how it is comes last.
    /// </summary>
    private async Task<T> FirstThatTakesAsync<T>(string tenant, Func<RemoteRuntime, Task<T>> ask)
    {
        foreach (var runtime in runtimes.Where(r => r.Fault is null).OrderBy(r => r.Late).ThenByDescending(r => Weight(tenant, r.Address)))
            try
            {
                return await ask(runtime);
            }
            catch (TenantLoraException e) when (e.Code == ErrorCodes.ShuttingDown || e.Code == ErrorCodes.InvalidKey || IsNoConnection(e))
            {
                Note(runtime, null, e.Message);
            }
            catch (TenantLoraException e) when (e.Code == ErrorCodes.Unreachable)
            {
                BrokeOff(log, e.RequestId, e.Message);
                throw Unreachable(e);
            }
        throw Unreachable(null);
    }

    private static ulong Weight(string tenant, Uri address) =>
        BinaryPrimitives.ReadUInt64BigEndian(SHA256.HashData(Encoding.UTF8.GetBytes(string.Create(CultureInfo.InvariantCulture, $"{tenant.Length}:{tenant}{address}"))));

    /// <summary>Refused, or not made in time, which the handler says by a cancellation of its own.</summary>
    private static bool IsNoConnection(TenantLoraException e) => e.Code == ErrorCodes.Unreachable && e.InnerException is OperationCanceledException
        or HttpRequestException { HttpRequestError: HttpRequestError.ConnectionError or HttpRequestError.NameResolutionError or HttpRequestError.SecureConnectionError };

    // The connector's message names addresses, which are nobody's business outside.
    private static TenantLoraException Unreachable(Exception? inner) => new(ErrorCodes.Unreachable, "No runtime can be reached at present. Try again shortly.", inner) { RetryAfter = Period * 2 };

    // ---- How they are

    private async Task AskAsync(RemoteRuntime runtime)
    {
        using var timer = new PeriodicTimer(Period);
        try
        {
            while (await timer.WaitForNextTickAsync(stopping.Token))
            {
                var (found, fault) = await LookAsync(runtime, stopping.Token);
                Note(runtime, found, fault);
                if (runtime.Fault is null && found is not null && found.Start != runtime.Told) await TellKeptAsync(runtime, found.Start);
            }
        }
        catch (OperationCanceledException)
        {
            // the host stops
        }
    }

    /// <summary>What it says of itself, or what is wrong with it; neither, where nothing new is known.</summary>
    private static async Task<(ServiceInfo? Info, string? Fault)> LookAsync(RemoteRuntime runtime, CancellationToken stopping)
    {
        using var soon = CancellationTokenSource.CreateLinkedTokenSource(stopping);
        soon.CancelAfter(Patience);
        try
        {
            var found = await runtime.InfoAsync(soon.Token);
            runtime.Late = 0;
            if (found.Fault is not null) runtime.GiveUp();          // what runs there would wait for ever
            return (found, found.Fault);
        }
        catch (Exception e) when (e is not OperationCanceledException)
        {
            return (null, e is TenantLoraException { Code: ErrorCodes.InvalidKey } ? "it does not know this host's ServiceKey" : e.Message);
        }
        catch (OperationCanceledException) when (!stopping.IsCancellationRequested)
        {
            if (++runtime.Late < MostLate) return (null, null);
            runtime.GiveUp();
            return (null, "it stands still");
        }
    }

    private void Note(RemoteRuntime runtime, ServiceInfo? found, string? fault)
    {
        if (found is not null && (found.Engine.Model != Info.Model || found.Engine.BaseDigest != Info.BaseDigest))
            fault = $"it serves {found.Engine.Model} ({found.Engine.BaseDigest}), not {Info.Model} ({Info.BaseDigest})";
        if (found is null && fault is null) return;
        var before = Interlocked.Exchange(ref runtime.Fault, fault);
        if (fault is null && before is not null) Answers(log, runtime.Address);
        else if (fault is not null && fault != before) Lost(log, runtime.Address, fault);
    }

    public async ValueTask DisposeAsync()
    {
        if (stopping.IsCancellationRequested) return;
        await stopping.CancelAsync();
        await asking;
        meter.Dispose();
        foreach (var runtime in runtimes) await runtime.DisposeAsync();
        http.Dispose();
    }

    [LoggerMessage(LogLevel.Information, "Waiting for a runtime ({Runtimes}), up to {Seconds} s")]
    private static partial void Waiting(ILogger log, string runtimes, int seconds);

    [LoggerMessage(LogLevel.Information, "The runtime {Address} answers")]
    private static partial void Answers(ILogger log, Uri address);

    [LoggerMessage(LogLevel.Warning, "The runtime {Address} is not used: {Fault}")]
    private static partial void Lost(ILogger log, Uri address, string fault);

    [LoggerMessage(LogLevel.Warning, "A runtime broke off (its request {Id}): {Reason}")]
    private static partial void BrokeOff(ILogger log, string? id, string reason);
}
