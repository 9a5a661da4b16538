using System.Collections.Concurrent;
using System.Collections.Immutable;
using System.Diagnostics;
using TenantLora.ChatHost.Operations;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Adapters;

/// <summary>
/// Adapters at hand, by digest: each is brought once however many ask, and stays while anybody holds it. Beyond a budget those go that nobody has asked for
/// longest: first such as nobody has for a while, then of tenants who have more than an equal share, as on the device. One that could not be brought is
/// tried again by the next who asks.
/// </summary>
/// <param name="bring">Brings one, and says what it takes.</param>
/// <param name="release">Lets one go. Called while nobody can hold it.</param>
/// <param name="budget">For all together; exceeded only by what is held or kept.</param>
/// <param name="metrics">Where this is the host's memory.</param>
internal sealed partial class HeldAdapters(Func<string, Task<long>> bring, Action<string> release, long budget, ILogger log, HostMetrics? metrics = null)
{
    private readonly ConcurrentDictionary<string, HeldAdapter> all = new(StringComparer.Ordinal);
    private long taken;

    /// <summary>These stay, once they are here, while others take turns.</summary>
    public ImmutableHashSet<string> Kept { get; set => Volatile.Write(ref field, value); } = ImmutableHashSet.Create<string>(StringComparer.Ordinal);

    /// <summary>What nobody has asked for in this time goes first, whoever's it is, and counts for nobody's share.</summary>
    public TimeSpan Patience { get; set; } = TimeSpan.FromMinutes(1);

    /// <summary>Keeps an adapter at hand until the result is disposed of.</summary>
    /// <param name="tenant">Who asks; null: the host itself.</param>
    /// <param name="how">Brings it in another way than the usual.</param>
    /// <exception cref="TenantLoraException"><see cref="ErrorCodes.AdapterUnavailable"/></exception>
    public async ValueTask<IDisposable> HoldAsync(string digest, string? tenant, Func<Task<long>>? how, CancellationToken cancellationToken)
    {
        while (true)
        {
            var adapter = all.GetOrAdd(digest, d => new HeldAdapter(() => BringAsync(d, how ?? (() => bring(d)))));
            if (!adapter.Enter(tenant)) continue;         // it has just gone
            try
            {
                await adapter.Brought.WaitAsync(cancellationToken);
                return new Lease(this, adapter);
            }
            catch (Exception e)
            {
                _ = adapter.Brought.ContinueWith(_ => Leave(adapter), TaskScheduler.Default);          // nothing is let go that is still on its way
                if (e is OperationCanceledException && cancellationToken.IsCancellationRequested) throw;
                throw new TenantLoraException(ErrorCodes.AdapterUnavailable, "The adapter's files cannot be read on this server. Its admins are told in the log.", e);
            }
        }
    }

    /// <summary>Lets an adapter go, if it is here.</summary>
    /// <returns>False: somebody holds it. <paramref name="whenLeft"/> is called when nobody does.</returns>
    public bool Forget(string digest, Action whenLeft) => !all.TryGetValue(digest, out var adapter) || adapter.Close(() => Remove(digest, adapter), whenLeft);

    private async Task<long> BringAsync(string digest, Func<Task<long>> how)
    {
        try
        {
            var begun = Stopwatch.GetTimestamp();
            var bytes = await how();
            metrics?.AdapterLoaded(Stopwatch.GetElapsedTime(begun));
            metrics?.AdapterMoved("host", bytes);
            Interlocked.Add(ref taken, bytes);
            MakeRoom();
            return bytes;
        }
        catch (Exception e)
        {
            all.TryRemove(digest, out _);           // held by all who wait for it, so it is this one
            Unloadable(log, digest, e);
            throw;
        }
    }

    private void MakeRoom()
    {
        if (Interlocked.Read(ref taken) <= budget) return;
        var (kept, recent) = (Kept, Stopwatch.GetTimestamp() - (long)(Patience.TotalSeconds * Stopwatch.Frequency));
        var here = all.Where(h => h.Value.IsHere).Select(h => (Digest: h.Key, Adapter: h.Value, h.Value.LastUsed, h.Value.Tenant)).ToArray();
        var shares = here.Where(h => h.LastUsed > recent).GroupBy(h => h.Tenant, StringComparer.Ordinal).ToDictionary(g => g.Key, g => g.Sum(h => h.Adapter.Brought.Result), StringComparer.Ordinal);
        bool TakesMuch(string tenant) => shares.GetValueOrDefault(tenant) > budget / shares.Count;
        foreach (var (digest, adapter, _, _) in here.Where(h => !kept.Contains(h.Digest)).OrderBy(h => h.LastUsed <= recent ? 0 : TakesMuch(h.Tenant) ? 1 : 2).ThenBy(h => h.LastUsed))
        {
            if (Interlocked.Read(ref taken) <= budget) return;
            if (adapter.Close(() => Remove(digest, adapter))) metrics?.AdapterEvicted();
        }
    }

    private void Remove(string digest, HeldAdapter adapter)
    {
        release(digest);
        all.TryRemove(KeyValuePair.Create(digest, adapter));
        if (!adapter.IsHere) return;
        Interlocked.Add(ref taken, -adapter.Brought.Result);
        metrics?.AdapterMoved("host", -adapter.Brought.Result);
    }

    private void Leave(HeldAdapter adapter)
    {
        adapter.Leave();
        MakeRoom();
    }

    [LoggerMessage(LogLevel.Error, "The adapter {Digest} cannot be loaded")]
    private static partial void Unloadable(ILogger log, string digest, Exception exception);

    private sealed class Lease(HeldAdapters adapters, HeldAdapter adapter) : IDisposable
    {
        private int left;

        public void Dispose()
        {
            if (Interlocked.Exchange(ref left, 1) == 0) adapters.Leave(adapter);
        }
    }

    /// <summary>An adapter that is here, or on its way, and how many hold it.</summary>
    private sealed class HeldAdapter(Func<Task<long>> load)
    {
        private readonly Lazy<Task<long>> brought = new(() => Task.Run(load));
        private readonly Lock gate = new();
        private long lastUsed;
        private volatile string tenant = "";
        private int users;
        private bool isClosed;
        private Action? whenLeft;

        /// <summary>What it takes, once it is here.</summary>
        public Task<long> Brought => brought.Value;

        public bool IsHere => brought is { IsValueCreated: true, Value.IsCompletedSuccessfully: true };

        public long LastUsed => Interlocked.Read(ref lastUsed);

        /// <summary>Who asked for it last.</summary>
        public string Tenant => tenant;

        /// <summary>False: it has gone, and another must take its place. Waits for one that is just going.</summary>
        public bool Enter(string? by)
        {
            lock (gate)
            {
                if (isClosed) return false;
                Interlocked.Exchange(ref lastUsed, Stopwatch.GetTimestamp());
                tenant = by ?? tenant;
                users++;
                return true;
            }
        }

        public void Leave()
        {
            Action? after = null;
            lock (gate)
                if (--users == 0) (after, whenLeft) = (whenLeft, null);
            after?.Invoke();
        }

        /// <summary>Lets it go if nobody uses it; otherwise notes what is to be done when the last has left.</summary>
        /// <returns>Whether it has gone.</returns>
        public bool Close(Action release, Action? whenLeft = null)
        {
            lock (gate)
            {
                if (isClosed) return true;
                if (users > 0)
                {
                    this.whenLeft ??= whenLeft;
                    return false;
                }
                isClosed = true;
                release();
                return true;
            }
        }
    }
}
