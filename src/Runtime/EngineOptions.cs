using TenantLora.Runtime.Backends;

namespace TenantLora.Runtime;

/// <summary>What an <see cref="Engine"/> is made of. Checked at start; a bad value stops the start by name.</summary>
public sealed record EngineOptions
{
    /// <summary>A folder in Hugging Face layout: config.json, tokenizer.json, *.safetensors…</summary>
    public required string ModelDirectory { get; init; }

    /// <summary>The name callers use for the base model; null: the folder's name.</summary>
    public string? ModelName { get; init; }

    /// <summary><c>auto</c> (the first usable GPU, otherwise the Cpu), <c>cpu</c>, <c>cuda</c> (the first GPU) or <c>cuda:N</c>; a GPU asked for by name that cannot be used stops the start.</summary>
    public string Device { get; init; } = "auto";

    /// <summary>Threads of the Cpu backend; 0: one a core.</summary>
    public int Threads { get; init; }

    /// <summary>KV positions in one block.</summary>
    public int BlockSize { get; init; } = 16;

    /// <summary>KV positions in the whole pool, shared by all sequences; 0: what suits the device, on a GPU what weights, adapters and steps leave, on the Cpu eight full contexts within a quarter of the memory.</summary>
    public int CacheTokens { get; init; }

    /// <summary>Device memory for adapters, in MiB; 0: what suits the device, on a GPU a fifth of what the weights leave, on the Cpu no limit.</summary>
    public int AdapterMemoryMegabytes { get; init; }

    /// <summary>Longest prompt and answer together; 0: what config.json says, cut to the pool.</summary>
    public int ContextLength { get; init; }

    /// <summary>
    /// Prompt tokens read in one step at most, beside one row for each sequence that decodes: fewer make steps even, more read long
    /// prompts sooner. 0: what suits the device, 2048 on a GPU, 64 on the Cpu, where more rows gain little.
    /// </summary>
    public int StepTokens { get; init; }

    /// <summary>Sequences that run at once at most.</summary>
    public int MaxSequences { get; init; } = 256;

    /// <summary>Requests that may wait; one more is refused with <see cref="ErrorCodes.QueueFull"/>.</summary>
    public int MaxQueued { get; init; } = 1024;

    /// <summary>Highest adapter rank accepted; a GPU serves up to 512.</summary>
    public int MaxAdapterRank { get; init; } = 256;

    /// <summary>Overrides the chat template's family: <c>chatml</c>, <c>llama3</c>, <c>mistral</c>, <c>qwen2</c>, <c>qwen3</c>…, an unknown one is refused with the list; null: read from the template's text.</summary>
    public string? ChatTemplate { get; init; }

    /// <exception cref="ArgumentException">Names every option that is out of range.</exception>
    internal void Check()
    {
        var findings = new List<string>();
        void Expect(bool good, string name, string expected, object found)
        {
            if (!good) findings.Add($"{name}: expected {expected}, found {found}");
        }
        Expect(Directory.Exists(ModelDirectory), nameof(ModelDirectory), "an existing folder", ModelDirectory);
        Expect(Devices.IsKnown(Device), nameof(Device), Devices.Known, Device);
        Expect(Threads is >= 0 and <= 1024, nameof(Threads), "0 to 1024", Threads);
        Expect(BlockSize is >= 1 and <= 1024, nameof(BlockSize), "1 to 1024", BlockSize);
        Expect(CacheTokens == 0 || CacheTokens >= BlockSize, nameof(CacheTokens), $"0, or {BlockSize} or more", CacheTokens);
        Expect(AdapterMemoryMegabytes >= 0, nameof(AdapterMemoryMegabytes), "0 or more", AdapterMemoryMegabytes);
        Expect(ContextLength >= 0, nameof(ContextLength), "0 or more", ContextLength);
        Expect(StepTokens is >= 0 and <= 65536, nameof(StepTokens), "0 to 65536", StepTokens);
        Expect(MaxSequences is >= 1 and <= 65536, nameof(MaxSequences), "1 to 65536", MaxSequences);
        Expect(MaxQueued >= 1, nameof(MaxQueued), "1 or more", MaxQueued);
        Expect(MaxAdapterRank is >= 1 and <= 4096, nameof(MaxAdapterRank), "1 to 4096", MaxAdapterRank);
        if (findings.Count > 0) throw new ArgumentException(string.Join("; ", findings) + ".");
    }
}
