using TenantLora.Runtime.Backends;

namespace TenantLora.Runtime.Adapters;

internal enum AdapterPlace
{
    Host,

    /// <summary>Room is set aside, and the copy is under way or next in line.</summary>
    Loading,

    Device,
}

/// <summary>An adapter and where it is.</summary>
internal sealed class AdapterEntry(Adapter adapter, long bytes)
{
    private volatile AdapterPlace place;

    public Adapter Adapter { get; } = adapter;

    // The registry's.

    /// <summary>Leases.</summary>
    public int References { get; set; }

    /// <summary>Nobody new can name it.</summary>
    public bool Removed { get; set; }

    // The residency's.

    /// <summary>Written under the residency's lock, read by anyone.</summary>
    public AdapterPlace Place { get => place; set => place = value; }

    public DeviceAdapter? Device { get; set; }

    /// <summary>What it takes on the device.</summary>
    public long Bytes { get; set; } = bytes;

    /// <summary>When it was last wanted, on the residency's clock.</summary>
    public long LastWanted { get; set; }

    /// <summary>The same on the machine's, in milliseconds.</summary>
    public long LastWantedAt { get; set; } = Environment.TickCount64;

    /// <summary>Who wanted it last.</summary>
    public string Tenant { get; set; } = "";

    /// <summary>Number of the last step that reads it.</summary>
    public long LastStep { get; set; }

    /// <summary>
    /// Frees there had been, by the residency's count, when a load of it began that found no room in one piece although the bytes were there. Another has
    /// to go first.
    /// </summary>
    public long? CrampedSince { get; set; }

    /// <summary>Removed, and no lease is left.</summary>
    public bool Forgotten { get; set; }
}
