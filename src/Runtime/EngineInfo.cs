namespace TenantLora.Runtime;

/// <summary>What an engine serves and on what.</summary>
/// <param name="Model">The base model's name.</param>
/// <param name="Family"><c>llama</c>, <c>mistral</c>, <c>qwen2</c> or <c>qwen3</c>.</param>
/// <param name="Parameters">Weights of the base model.</param>
/// <param name="ContextLength">Longest prompt and answer together, in tokens.</param>
/// <param name="Device">The backend in words: <c>cpu, 2 threads, AVX2</c>.</param>
/// <param name="BaseDigest">Names the base weights by content.</param>
public sealed record EngineInfo(string Model, string Family, long Parameters, int ContextLength, string Device, string BaseDigest);

/// <summary>A look at a running engine.</summary>
/// <param name="Waiting">Requests not yet running.</param>
/// <param name="Running">Sequences in the batch.</param>
/// <param name="BlocksTotal">KV blocks in the pool.</param>
/// <param name="BlocksFree">KV blocks nobody holds.</param>
/// <param name="AdaptersHeld">References that sequences hold on adapters.</param>
/// <param name="Preemptions">Sequences sent back to wait since the start.</param>
public sealed record EngineStatus(int Waiting, int Running, int BlocksTotal, int BlocksFree, int AdaptersHeld, long Preemptions)
{
    /// <summary>Adapters on the device.</summary>
    public int AdaptersOnDevice { get; init; }

    /// <summary>Device bytes they take, room set aside for loads included.</summary>
    public long AdapterBytes { get; init; }

    /// <summary>Device bytes for all adapters together; <see cref="long.MaxValue"/>: no limit.</summary>
    public long AdapterBudget { get; init; }

    /// <summary>Adapters brought to the device since the start.</summary>
    public long AdapterLoads { get; init; }

    /// <summary>Adapters that had to make room for another since the start.</summary>
    public long AdapterEvictions { get; init; }
}

/// <summary>An adapter that requests may name, and where it is.</summary>
/// <param name="Digest">Its identity.</param>
/// <param name="Bytes">What it takes on the device.</param>
/// <param name="OnDevice">Whether it is there; otherwise in host memory.</param>
public sealed record ResidentAdapter(string Digest, long Bytes, bool OnDevice);
