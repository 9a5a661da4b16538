using TenantLora.Runtime.Backends;

namespace TenantLora.Runtime.Adapters;

/// <summary>
/// The adapters that requests may name, by digest, and who uses them. Any thread may call but for <see cref="AdapterLease.OnDevice"/>
/// and the release of a lease, which belong to the engine thread: device memory is freed when no step can still read it.
/// </summary>
internal sealed class AdapterRegistry : IDisposable
{
    private readonly Lock gate = new();
    private readonly Dictionary<string, AdapterEntry> entries = new(StringComparer.Ordinal);

    public IReadOnlyCollection<AdapterInfo> List()
    {
        lock (gate) return [.. entries.Values.Select(e => e.Adapter.Info)];
    }

    /// <summary>References held by sequences.</summary>
    public int Held { get; private set; }

    /// <summary>Keeps the adapter, or disposes of it when the same bytes are here already.</summary>
    public AdapterInfo Add(Adapter adapter)
    {
        lock (gate)
        {
            if (entries.TryAdd(adapter.Info.Digest, new AdapterEntry(adapter))) return adapter.Info;
        }
        adapter.Dispose();
        return adapter.Info;
    }

    /// <summary>Nobody new can name it; its memory goes with its last lease.</summary>
    public bool Remove(string digest)
    {
        AdapterEntry? entry;
        bool idle;
        lock (gate)
        {
            if (!entries.Remove(digest, out entry)) return false;
            entry.Removed = true;
            idle = entry.References == 0;
        }
        if (idle) entry.Dispose();
        return true;
    }

    public AdapterLease? Acquire(string digest)
    {
        lock (gate)
        {
            if (!entries.TryGetValue(digest, out var entry)) return null;
            entry.References++;
            Held++;
            return new AdapterLease(this, entry);
        }
    }

    public void Dispose()
    {
        lock (gate)
        {
            foreach (var entry in entries.Values) entry.Dispose();
            entries.Clear();
        }
    }

    internal void Release(AdapterEntry entry)
    {
        bool last;
        lock (gate)
        {
            Held--;
            last = --entry.References == 0 && entry.Removed;
        }
        if (last) entry.Dispose();
    }

    internal sealed class AdapterEntry(Adapter adapter) : IDisposable
    {
        public Adapter Adapter { get; } = adapter;

        public DeviceAdapter? Device { get; set; }

        public int References { get; set; }

        public bool Removed { get; set; }

        public void Dispose()
        {
            Device?.Dispose();
            Adapter.Dispose();
        }
    }
}

/// <summary>One sequence's hold on an adapter.</summary>
internal sealed class AdapterLease(AdapterRegistry registry, AdapterRegistry.AdapterEntry entry) : IDisposable
{
    private int released;

    public string Digest => entry.Adapter.Info.Digest;

    /// <summary>Whether <see cref="OnDevice"/> would be immediate.</summary>
    public bool Resident => entry.Device is not null;

    /// <summary>The adapter on the device, brought there on first use.</summary>
    public DeviceAdapter OnDevice(IBackend backend) => entry.Device ??= backend.LoadAdapter(entry.Adapter.Modules);

    public void Dispose()
    {
        if (Interlocked.Exchange(ref released, 1) == 0) registry.Release(entry);
    }
}
