namespace TenantLora.Runtime.Adapters;

/// <summary>
/// The adapters that requests may name, by digest, and who uses them. Any thread may call. Where their device memory is, and when, is
/// <see cref="AdapterResidency"/>'s.
/// </summary>
internal sealed class AdapterRegistry(AdapterResidency residency) : IDisposable
{
    private readonly Lock gate = new();
    private readonly Dictionary<string, AdapterEntry> entries = new(StringComparer.Ordinal);

    public IReadOnlyCollection<AdapterInfo> List()
    {
        lock (gate) return [.. entries.Values.Select(e => e.Adapter.Info)];
    }

    public IReadOnlyCollection<ResidentAdapter> Residents()
    {
        lock (gate) return [.. entries.Values.Select(e => new ResidentAdapter(e.Adapter.Info.Digest, e.Bytes, e.Place == AdapterPlace.Device))];
    }

    /// <summary>References held by sequences.</summary>
    public int Held { get; private set; }

    /// <summary>Keeps the adapter, or disposes of it when the same bytes are here already.</summary>
    public AdapterInfo Add(Adapter adapter)
    {
        lock (gate)
        {
            if (entries.TryAdd(adapter.Info.Digest, new AdapterEntry(adapter, residency.SizeOf(adapter)))) return adapter.Info;
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
        if (idle) residency.Forget(entry);
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

    /// <summary>Frees host memory; <see cref="AdapterResidency"/> must be gone, whose loads read it.</summary>
    public void Dispose()
    {
        lock (gate)
        {
            foreach (var entry in entries.Values) entry.Adapter.Dispose();
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
        if (last) residency.Forget(entry);
    }
}

/// <summary>One sequence's hold on an adapter.</summary>
internal sealed class AdapterLease(AdapterRegistry registry, AdapterEntry entry) : IDisposable
{
    private int released;

    public AdapterEntry Entry { get; } = entry;

    public string Digest => Entry.Adapter.Info.Digest;

    public void Dispose()
    {
        if (Interlocked.Exchange(ref released, 1) == 0) registry.Release(Entry);
    }
}
