using System.Collections.Concurrent;
using System.Collections.Frozen;
using System.Diagnostics;
using TenantLora.Runtime.Backends;

namespace TenantLora.Runtime.Adapters;

/// <summary>
/// Which adapters are on the device, within a budget of bytes. Loads run on a thread of their own and hold no step up; device memory is
/// freed on the engine's thread, when no step under way reads it.
/// <para>
/// Once a turn the engine tells who runs and who waits, in the order in which they should run. In that order those not on the device are
/// loaded, the least recently wanted adapter that nobody needs making room: of tenants who have more than an equal share of the room, so that one who goes
/// through many adapters drives out its own. Where all are needed, the first that finds no room waits, and those behind it wait too; those to be kept go only
/// where no other is left to go; the one with the fewest running sequences takes no more of them until it has made room, so that a popular adapter cannot
/// keep another out for ever.
/// </para>
/// </summary>
internal sealed class AdapterResidency : IDisposable
{
    /// <summary>Loads that room is set aside for at once: more would fix their order long before their time.</summary>
    private const int MostLoads = 8;

    private readonly Func<LoraModules, long> size;
    private readonly Func<LoraModules, DeviceAdapter> load;
    private readonly Action<TimeSpan> loaded;
    private readonly Action wake;
    private readonly Lock gate = new();
    private readonly HashSet<AdapterEntry> onDevice = [];
    private readonly List<AdapterEntry> retired = [];                    // forgotten, their device memory not yet freed
    private readonly BlockingCollection<AdapterEntry> loads = [];
    private readonly Thread loader;
    private List<(AdapterEntry, Exception)> failures = [];
    private AdapterEntry? first;                                         // finds no room
    private AdapterEntry? closing;                                       // takes no more sequences, to make room for it
    private int loading;
    private long used, clock, loadCount, evictionCount, freeCount;

    /// <param name="size">Device bytes that a load takes.</param>
    /// <param name="load">Brings an adapter to the device; called on the loader's thread.</param>
    /// <param name="budget">Device bytes for all adapters together.</param>
    /// <param name="loaded">Told how long each load took, on the loader's thread.</param>
    /// <param name="wake">Called, from any thread, when <see cref="Turn"/> has something to do.</param>
    public AdapterResidency(Func<LoraModules, long> size, Func<LoraModules, DeviceAdapter> load, long budget, Action<TimeSpan> loaded, Action wake)
    {
        (this.size, this.load, Budget, this.loaded, this.wake) = (size, load, budget, loaded, wake);
        loader = new Thread(Load) { Name = "TenantLora adapters", IsBackground = true };
        loader.Start();
    }

    public long Budget { get; }

    /// <summary>What nobody has wanted for longer goes first, whoever's it is, and counts for nobody's share.</summary>
    internal TimeSpan Patience { get; set; } = TimeSpan.FromMinutes(1);

    /// <summary>Digests of those that make room for another only where none else is on the device. Any thread may set it.</summary>
    public IReadOnlySet<string> Kept { get; set => Volatile.Write(ref field, value); } = FrozenSet<string>.Empty;

    public long SizeOf(Adapter adapter) => size(adapter.Modules);

    /// <summary>Adapters on the device, their bytes and those set aside or not yet freed, loads and evictions so far.</summary>
    public (int OnDevice, long Bytes, long Loads, long Evictions) Look()
    {
        lock (gate) return (onDevice.Count, used, loadCount, evictionCount);
    }

    /// <summary>
    /// Somebody will want it: starts the load if there is room and nobody waits for it. Says whether the adapter is on the device. Any
    /// thread may call.
    /// </summary>
    /// <param name="tenant">Who; null: the host itself.</param>
    public bool Prefetch(AdapterEntry entry, string? tenant = null)
    {
        lock (gate)
        {
            (entry.LastWanted, entry.LastWantedAt, entry.Tenant) = (++clock, Environment.TickCount64, tenant ?? entry.Tenant);
            if (entry.Place == AdapterPlace.Host && !Cramped(entry) && first is null && loading < MostLoads && used + entry.Bytes <= Budget) Start(entry);
            return entry.Place == AdapterPlace.Device;
        }
    }

    /// <summary>Removed and held by nobody: frees host memory as soon as no load reads it, device memory in a later turn. Any thread may call.</summary>
    public void Forget(AdapterEntry entry)
    {
        lock (gate)
        {
            entry.Forgotten = true;
            if (entry.Place != AdapterPlace.Loading) Retire(entry);
        }
        wake();
    }

    // On the engine's thread: Ready, Turn, Dispose.

    /// <summary>Whether a sequence under it may be admitted: it stays on the device until the next <see cref="Turn"/>.</summary>
    public bool Ready(AdapterEntry entry) => entry.Place == AdapterPlace.Device && entry != closing;

    /// <summary>Makes room, starts loads, and frees what no step reads any more. Returns the loads that failed: those who wait for them will wait in vain.</summary>
    /// <param name="running">The adapter of each sequence that runs. Like <paramref name="upcoming"/> it may be empty when every adapter that is wanted is on the device.</param>
    /// <param name="upcoming">Those of the sequences that wait, in the order in which they should run.</param>
    /// <param name="done">Number of the last step that is over.</param>
    public IReadOnlyList<(AdapterEntry Entry, Exception Error)> Turn(IEnumerable<AdapterEntry> running, IEnumerable<AdapterEntry> upcoming, long done)
    {
        lock (gate)
        {
            foreach (var entry in retired.Where(e => e.LastStep <= done)) Free(entry);
            retired.RemoveAll(e => e.Device is null);

            var failed = failures;
            failures = [];
            var runs = running.CountBy(e => e).ToDictionary();
            var ahead = new HashSet<AdapterEntry>();                     // those who wait before the one looked at need them
            first = null;
            foreach (var entry in upcoming)
            {
                if (entry.Place == AdapterPlace.Host && !failed.Exists(f => f.Item1 == entry))
                {
                    if (loading == MostLoads) break;
                    if (Cramped(entry) && onDevice.Count + retired.Count + loading == 0)
                    {
                        entry.CrampedSince = null;
                        failed.Add((entry, new OutOfDeviceMemoryException($"The device has no {entry.Bytes} bytes in one piece for an adapter, although no other adapter is on it.")));
                        continue;
                    }
                    if (!MakeRoom(entry, e => runs.ContainsKey(e) || ahead.Contains(e), done))
                    {
                        first = entry;
                        break;
                    }
                    Start(entry);
                }
                ahead.Add(entry);
            }
            Close(runs, ahead);
            return failed;
        }
    }

    public void Dispose()
    {
        loads.CompleteAdding();
        loader.Join();
        loads.Dispose();
        foreach (var entry in onDevice.Concat(retired)) Free(entry);
        onDevice.Clear();
        retired.Clear();
    }

    private bool IsKept(AdapterEntry entry) => Kept.Contains(entry.Adapter.Info.Digest);

    private bool Cramped(AdapterEntry entry) => entry.CrampedSince == freeCount;

    private bool MakeRoom(AdapterEntry entry, Func<AdapterEntry, bool> needed, long done)
    {
        while (used + entry.Bytes > Budget || Cramped(entry))
        {
            var idle = onDevice.Where(e => !needed(e) && e.LastStep <= done).ToList();
            var othersGo = retired.Count + loading > 0 || onDevice.Any(e => !IsKept(e));
            if (Choose([.. idle.Where(e => !othersGo || !IsKept(e))], entry) is not { } goes) return false;
            onDevice.Remove(goes);
            Free(goes);
            evictionCount++;
        }
        return true;
    }

    private AdapterEntry? Choose(List<AdapterEntry> mayGo, AdapterEntry wanting)
    {
        var (oldest, recent) = (mayGo.MinBy(e => e.LastWanted), Environment.TickCount64 - (long)Patience.TotalMilliseconds);
        if (oldest is null || oldest.LastWantedAt <= recent) return oldest;
        var taken = onDevice.Where(e => e.LastWantedAt > recent).Append(wanting).GroupBy(e => e.Tenant, StringComparer.Ordinal).ToDictionary(g => g.Key, g => g.Sum(e => e.Bytes), StringComparer.Ordinal);
        return mayGo.Where(e => taken.GetValueOrDefault(e.Tenant) > Budget / taken.Count).MinBy(e => e.LastWanted) ?? oldest;
    }

    private void Close(Dictionary<AdapterEntry, int> runs, HashSet<AdapterEntry> ahead)
    {
        bool May(AdapterEntry e) => runs.ContainsKey(e) && !ahead.Contains(e);
        var keeps = onDevice.Any(e => !IsKept(e));
        bool MayGo(AdapterEntry e) => !keeps || !IsKept(e);
        if (first is null || onDevice.Any(e => !runs.ContainsKey(e) && !ahead.Contains(e) && MayGo(e))) closing = null;    // or one goes when the step under way is over
        else if (closing is null || !onDevice.Contains(closing) || !May(closing))
            closing = onDevice.Where(e => May(e) && MayGo(e)).OrderBy(e => runs[e]).ThenBy(e => e.LastWanted).FirstOrDefault();
    }

    private void Start(AdapterEntry entry)
    {
        entry.Place = AdapterPlace.Loading;
        used += entry.Bytes;
        loading++;
        loads.Add(entry);
    }

    private void Retire(AdapterEntry entry)
    {
        if (onDevice.Remove(entry)) retired.Add(entry);
        entry.Adapter.Dispose();
    }

    private void Free(AdapterEntry entry)
    {
        entry.Place = AdapterPlace.Host;
        entry.Device!.Dispose();
        entry.Device = null;
        used -= entry.Bytes;
        freeCount++;
    }

    private void Load()
    {
        foreach (var entry in loads.GetConsumingEnumerable())
        {
            var begun = Stopwatch.GetTimestamp();
            long frees;
            lock (gate) frees = freeCount;
            try
            {
                Loaded(entry, load(entry.Adapter.Modules));
                loaded(Stopwatch.GetElapsedTime(begun));
            }
            catch (Exception error)
            {
                NotLoaded(entry, error, frees);
            }
            wake();
        }
    }

    private void Loaded(AdapterEntry entry, DeviceAdapter device)
    {
        lock (gate)
        {
            loading--;
            loadCount++;
            used += device.Bytes - entry.Bytes;
            (entry.Device, entry.Bytes, entry.Place) = (device, device.Bytes, AdapterPlace.Device);
            onDevice.Add(entry);
            if (entry.Forgotten) Retire(entry);
        }
    }

    private void NotLoaded(AdapterEntry entry, Exception error, long frees)
    {
        lock (gate)
        {
            loading--;
            used -= entry.Bytes;
            entry.Place = AdapterPlace.Host;
            if (entry.Forgotten) Retire(entry);
            else if (error is OutOfDeviceMemoryException) entry.CrampedSince = frees;
            else failures.Add((entry, error));
        }
    }
}
