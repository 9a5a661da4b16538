using TenantLora.Runtime.Adapters;
using TenantLora.Runtime.Backends;

namespace TenantLora.Runtime.Tests.Adapters;

/// <summary>The device tier with an invented device: adapters of any size, loads that wait or fail as told.</summary>
public sealed class AdapterResidencyTests : IDisposable
{
    private readonly SemaphoreSlim woken = new(0);
    private readonly Dictionary<LoraModules, long> sizes = [];
    private Action<AdapterEntry> onLoad = _ => { };
    private AdapterResidency? residency;
    private long onDevice, most;

    public void Dispose()
    {
        residency?.Dispose();
        Assert.Equal(0, onDevice);
        woken.Dispose();
    }

    private AdapterResidency Create(long budget)
    {
        return residency = new AdapterResidency(m => sizes[m], Load, budget, _ => { }, () => woken.Release());

        DeviceAdapter Load(LoraModules modules)
        {
            onLoad(entries[modules]);
            most = Math.Max(most, Interlocked.Add(ref onDevice, sizes[modules]));
            return new Memory(sizes[modules], this);
        }
    }

    private readonly Dictionary<LoraModules, AdapterEntry> entries = [];

    private AdapterEntry New(string name, long bytes = 10)
    {
        var modules = new LoraModules(1);
        sizes[modules] = bytes;
        return entries[modules] = new AdapterEntry(new Adapter(new AdapterInfo(name, "lora", 1, bytes, bytes, null), modules, new HostMemory(this)), bytes);
    }

    /// <summary>Turns until the loads that were started are over; the failures on the way.</summary>
    private List<AdapterEntry> TurnUntilQuiet(IEnumerable<AdapterEntry> running, IEnumerable<AdapterEntry> upcoming, long done = 0)
    {
        var failed = new List<AdapterEntry>();
        while (true)
        {
            while (woken.Wait(0)) { }
            failed.AddRange(residency!.Turn(running, upcoming.Where(e => !failed.Contains(e)), done).Select(f => f.Entry));
            if (entries.Values.All(e => e.Place != AdapterPlace.Loading)) return failed;
            Assert.True(woken.Wait(TimeSpan.FromSeconds(10)), "A load never ends.");
        }
    }

    private List<AdapterEntry> Resident => [.. entries.Values.Where(e => e.Place == AdapterPlace.Device)];

    private int HostFreed { get; set; }

    [Fact]
    public void One_load_however_many_wait()
    {
        var loads = 0;
        onLoad = _ => loads++;
        Create(100);
        var a = New("a");
        Assert.False(residency!.Prefetch(a));
        TurnUntilQuiet([], [a, a, a]);
        Assert.True(residency.Ready(a) && residency.Prefetch(a));
        Assert.Equal((1, 1, 10L, 1L, 0L), (loads, residency.Look().OnDevice, residency.Look().Bytes, residency.Look().Loads, residency.Look().Evictions));
    }

    [Fact]
    public void The_least_recently_wanted_makes_room()
    {
        Create(30);
        AdapterEntry a = New("a"), b = New("b"), c = New("c"), d = New("d");
        foreach (var entry in new[] { a, b, c, a })
        {
            residency!.Prefetch(entry);
            TurnUntilQuiet([], []);
        }
        TurnUntilQuiet([], [d]);
        Assert.Equal([a, c, d], Resident);
        Assert.Equal(1, residency!.Look().Evictions);
        Assert.Equal(30, most);
    }

    /// <summary>One tenant goes through five hundred adapters; another comes back to its two now and then.</summary>
    [Theory]
    [InlineData(60, 100)]           // within its share they stay
    [InlineData(0, 0)]              // what nobody has wanted for longer than that is nobody's share
    public void A_tenant_of_many_adapters_drives_out_its_own(int seconds, int hits)
    {
        Create(100);
        residency!.Patience = TimeSpan.FromSeconds(seconds);
        AdapterEntry[] many = [.. Enumerable.Range(0, 500).Select(i => New($"many {i}"))], few = [New("one"), New("other")];
        var found = 0;
        for (var i = 0; i < 1000; i++)
        {
            Want(many[i % 500], "many");
            if (i % 20 != 19) continue;
            foreach (var entry in few)
                if (Want(entry, "few") && i > 20) found++;
        }
        Assert.Equal(hits, found * 100 / (2 * 49));
        Assert.Equal(100, residency.Look().Bytes);           // nothing is set aside for those who want nothing

        bool Want(AdapterEntry entry, string tenant)
        {
            var there = residency.Prefetch(entry, tenant);
            TurnUntilQuiet([], [entry]);
            return there;
        }
    }

    [Fact]
    public void Those_to_be_kept_go_last_and_hold_nobody_up_for_ever()
    {
        Create(30);
        AdapterEntry a = New("a"), b = New("b"), c = New("c"), d = New("d"), e = New("e", 30);
        residency!.Kept = new HashSet<string> { "a" };
        TurnUntilQuiet([], [a, b, c]);
        TurnUntilQuiet([], [d]);                        // a is the one least recently wanted
        Assert.Equal([a, c, d], Resident);
        TurnUntilQuiet([c, d], [b]);                    // the others run: one of them is to make room
        Assert.Equal([a, c, d], Resident);
        Assert.Single(new[] { c, d }, x => !residency.Ready(x));
        Assert.True(residency.Ready(a));
        TurnUntilQuiet([c], [b]);
        Assert.Equal([a, b, c], Resident);
        TurnUntilQuiet([], [e]);                        // with it there none else fits
        Assert.Equal([e], Resident);
        residency.Kept = new HashSet<string>();
        TurnUntilQuiet([], [a, b, c]);
        TurnUntilQuiet([], [d]);
        Assert.Equal([b, c, d], Resident);
    }

    [Fact]
    public void Nobody_goes_who_runs_or_whom_a_step_still_reads()
    {
        Create(20);
        AdapterEntry a = New("a"), b = New("b"), c = New("c");
        TurnUntilQuiet([], [a, b]);
        (a.LastStep, b.LastStep) = (7, 8);

        TurnUntilQuiet([a, b], [c], done: 8);
        Assert.Equal([a, b], Resident);
        TurnUntilQuiet([b], [c], done: 6);              // a's last row is under way
        Assert.Equal([a, b], Resident);
        TurnUntilQuiet([b], [c], done: 7);
        Assert.Equal([b, c], Resident);
    }

    [Fact]
    public void Where_all_are_in_use_the_first_waits_and_one_takes_no_more_until_it_made_room()
    {
        Create(20);
        AdapterEntry a = New("a"), b = New("b"), c = New("c"), d = New("d");
        TurnUntilQuiet([], [a, b]);

        TurnUntilQuiet([a, a, b], [c, d, a, b]);
        Assert.Equal((true, false), (residency!.Ready(a), residency.Ready(b)));     // the fewest run under b
        Assert.False(residency.Prefetch(d));                                        // nor can a newcomer take its room
        TurnUntilQuiet([a, b], [c, d, a, b]);
        Assert.Equal((true, false), (residency.Ready(a), residency.Ready(b)));      // and it stays b
        TurnUntilQuiet([a, a], [c, d, a, b]);
        Assert.Equal([a, c], Resident);
        Assert.False(residency.Ready(a));                                           // now d is first, and a alone runs
        TurnUntilQuiet([a, c], []);
        Assert.True(residency.Ready(a) && residency.Ready(c));                      // nobody wants room any more
    }

    [Fact]
    public void Those_ahead_keep_what_they_wait_with()
    {
        Create(20);
        AdapterEntry a = New("a"), b = New("b"), c = New("c");
        TurnUntilQuiet([], [a, b]);
        TurnUntilQuiet([], [a, b, c]);
        Assert.Equal([a, b], Resident);
        TurnUntilQuiet([], [a, c, b]);
        Assert.Equal([a, c], Resident);
    }

    [Fact]
    public void A_load_that_fails_is_told_once_and_tried_again_for_the_next()
    {
        Create(20);
        AdapterEntry a = New("a"), b = New("b");
        onLoad = e => { if (e == a) throw new InvalidOperationException(); };
        Assert.Equal([a], TurnUntilQuiet([], [a, b]));
        Assert.Equal([b], Resident);
        onLoad = _ => { };
        Assert.Empty(TurnUntilQuiet([], [a]));
        Assert.Equal([a, b], Resident);
    }

    [Fact]
    public void A_device_in_pieces_loses_another_adapter_and_is_tried_again()
    {
        Create(100);
        AdapterEntry a = New("a"), b = New("b"), c = New("c", 50);
        TurnUntilQuiet([], [a, b]);
        onLoad = e => { if (e == c && onDevice > 0) throw new OutOfDeviceMemoryException("In pieces."); };
        Assert.Empty(TurnUntilQuiet([b], [c]));
        Assert.Equal([b], Resident);                    // a went in vain, b runs
        Assert.Empty(TurnUntilQuiet([], [c]));
        Assert.Equal([c], Resident);

        onLoad = _ => throw new OutOfDeviceMemoryException("Too small.");
        Assert.Equal([a], TurnUntilQuiet([], [a]));     // c went, and still there is no room
        Assert.Empty(Resident);
    }

    [Fact]
    public void A_device_in_pieces_is_tried_again_once_anything_has_gone()
    {
        Create(100);
        AdapterEntry a = New("a"), c = New("c", 50);
        TurnUntilQuiet([], [a]);
        onLoad = e => { if (e == c && onDevice > 0) throw new OutOfDeviceMemoryException("In pieces."); };
        Assert.Empty(TurnUntilQuiet([a], [c]));
        residency!.Forget(a);                           // not c made it go
        Assert.Empty(TurnUntilQuiet([], [c]));
        Assert.Equal([c], Resident);
    }

    [Fact]
    public void A_forgotten_adapter_frees_both_memories_when_nobody_reads_them()
    {
        Create(100);
        AdapterEntry a = New("a"), b = New("b");
        TurnUntilQuiet([], [a]);
        a.LastStep = 3;
        residency!.Forget(a);
        residency.Turn([], [], 2);
        Assert.Equal((1, 10L), (HostFreed, onDevice));
        residency.Turn([], [], 3);
        Assert.Equal((0L, 0L), (onDevice, residency.Look().Bytes));

        using var go = new ManualResetEventSlim();
        onLoad = _ => go.Wait();
        residency.Prefetch(b);
        residency.Forget(b);
        Assert.Equal(1, HostFreed);
        go.Set();
        TurnUntilQuiet([], []);
        residency.Turn([], [], 3);
        Assert.Equal((2, 0L, 0), (HostFreed, onDevice, residency.Look().OnDevice));
    }

    /// <summary>Random sequences that come, wait, run while their adapter is there, and go: the budget holds, and everyone runs in the end.</summary>
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    public void The_budget_holds_and_nobody_starves(int seed)
    {
        const long Budget = 100;
        var random = new Random(seed);
        Create(Budget);
        var all = Enumerable.Range(0, 30).Select(i => New($"{i}", random.Next(5, 60))).ToArray();
        List<AdapterEntry> waiting = [], running = [];
        long step = 0;
        for (var turn = 0; turn < 600 || waiting.Count + running.Count > 0; turn++)
        {
            Assert.True(turn < 20_000, "Somebody starves.");
            if (turn < 600)
            {
                var entry = all[Math.Min(random.Next(30), random.Next(30))];        // some are popular
                residency!.Prefetch(entry);
                waiting.Add(entry);
            }
            if (random.Next(3) == 0) woken.Wait(1);
            Assert.Empty(residency!.Turn(running, waiting, step - 1));
            foreach (var entry in waiting.Where(residency.Ready).Take(3).ToList())
            {
                waiting.Remove(entry);
                running.Add(entry);
            }
            step++;
            foreach (var entry in running)
            {
                Assert.NotNull(entry.Device);
                entry.LastStep = step;
            }
            running.RemoveAll(_ => random.Next(4) == 0);
            Assert.True(residency.Look().Bytes <= Budget);
        }
        Assert.True(most <= Budget);
        Assert.True(residency!.Look().Evictions > 0);
    }

    private sealed class Memory(long bytes, AdapterResidencyTests device) : DeviceAdapter
    {
        private bool freed;

        public override long Bytes => bytes;

        public override void Dispose()
        {
            Assert.False(freed, "Freed twice.");
            freed = true;
            Interlocked.Add(ref device.onDevice, -bytes);
        }
    }

    private sealed class HostMemory(AdapterResidencyTests tests) : IDisposable
    {
        public void Dispose() => tests.HostFreed++;
    }
}
