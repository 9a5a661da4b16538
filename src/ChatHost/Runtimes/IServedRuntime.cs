using System.Collections.Immutable;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Runtimes;

/// <summary>
/// The runtime behind a host: what answers, and what a host needs of it beside answers. The engine in this process (<see cref="EngineRuntime"/>), or
/// runtimes of other processes over HTTP (<see cref="RemoteRuntimes"/>). Requests name adapters by digest.
/// </summary>
internal interface IServedRuntime : IRuntime
{
    EngineInfo Info { get; }

    /// <summary>Size of the largest <c>adapter_model.safetensors</c> that can be accepted.</summary>
    long MaxAdapterFileBytes { get; }

    /// <summary>What adapters may take in memory: the host's or the device's, whichever has less for them.</summary>
    long AdapterMemory { get; }

    /// <summary>Why a request would not be answered now; null: it would.</summary>
    string? Fault { get; }

    /// <summary>Judges an adapter's files: every finding in one pass.</summary>
    /// <param name="tenant">Whose requests will name it.</param>
    /// <param name="tries">Also on a prompt, where nothing stands against it.</param>
    Task<AdapterReport> JudgeAsync(string folder, string tenant, bool tries, CancellationToken cancellationToken);

    /// <summary>Brings an adapter to where requests find it, once however many ask, and keeps it there until the result is disposed of.</summary>
    /// <param name="tenant">Who asks; null: the host itself.</param>
    /// <exception cref="TenantLoraException"><see cref="ErrorCodes.AdapterUnavailable"/></exception>
    ValueTask<IDisposable> HoldAsync(string digest, string? tenant, CancellationToken cancellationToken);

    /// <summary>Lets an adapter go that nobody may name any more.</summary>
    /// <returns>False: somebody holds it. <paramref name="whenLeft"/> is called when nobody does.</returns>
    bool Forget(string digest, Action whenLeft);

    /// <summary>Brings these without anyone asking, and keeps them at hand while others take turns. In place of those that were named before.</summary>
    /// <param name="adapters">Digests by tenant.</param>
    Task KeepAsync(ImmutableDictionary<string, ImmutableHashSet<string>> adapters, CancellationToken cancellationToken);

    /// <summary>What the runtime that a tenant's requests go to has at hand.</summary>
    Task<Residents> ResidentsAsync(string tenant, CancellationToken cancellationToken);
}

/// <summary>Adapters in a runtime's memory.</summary>
/// <param name="DeviceBytes">All tenants' on the device.</param>
/// <param name="DeviceBudget">The device's room for them; null: no limit.</param>
internal sealed record Residents(long DeviceBytes, long? DeviceBudget, IReadOnlyList<ResidentAdapter> Adapters);
