using System.Runtime.InteropServices;
using TenantLora.Runtime.Backends;
using TenantLora.Runtime.Models;

namespace TenantLora.Bench;

/// <summary>Geometry of a made-up adapter on all seven linears.</summary>
internal sealed record AdapterShape(int Rank, int Unshared, int ChunksA, int ChunksB)
{
    public static AdapterShape PRoLora { get; } = new(16, 2, 4, 4);

    public static AdapterShape Lora { get; } = new(16, 0, 1, 1);
}

/// <summary>Random bf16 weights of true shapes: magnitudes 1/64 to 1/32, either sign; norms are 1.</summary>
internal sealed unsafe class RandomModel(ulong seed)
{
    private ulong state = (seed * 0x9E3779B97F4A7C15UL) | 1;

    /// <summary>A folder with the config.json of Llama 3.2 1B.</summary>
    public static string Llama1B()
    {
        var directory = Directory.CreateTempSubdirectory("llama-1b-").FullName;
        File.WriteAllText(Path.Combine(directory, "config.json"), """
            {
              "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
              "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "hidden_act": "silu", "max_position_embeddings": 131072,
              "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false, "torch_dtype": "bfloat16",
              "eos_token_id": 128001, "bos_token_id": 128000,
              "rope_scaling": { "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 }
            }
            """);
        return directory;
    }

    /// <summary>A folder with the config.json of Llama 3.1 8B.</summary>
    public static string Llama8B()
    {
        var directory = Directory.CreateTempSubdirectory("llama-8b-").FullName;
        File.WriteAllText(Path.Combine(directory, "config.json"), """
            {
              "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
              "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "hidden_act": "silu", "max_position_embeddings": 131072,
              "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": false, "attention_bias": false, "mlp_bias": false, "torch_dtype": "bfloat16",
              "eos_token_id": 128001, "bos_token_id": 128000,
              "rope_scaling": { "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 }
            }
            """);
        return directory;
    }

    public HostTensor Tensor(string name, int rows, int cols) => Fill(name, rows, cols, name.Contains("norm", StringComparison.Ordinal) ? (ushort)0x3F80 : null);

    public LoraModules Adapter(ModelConfig c, AdapterShape shape, int seed)
    {
        state = ((ulong)(seed + 1) * 0x9E3779B97F4A7C15UL) | 1;
        var (q, kv, h, i) = (c.Heads * c.HeadDim, c.KvHeads * c.HeadDim, c.HiddenSize, c.IntermediateSize);
        var modules = new LoraModules(c.Layers);
        for (var layer = 0; layer < c.Layers; layer++)
        {
            foreach (var (projection, inputs, outputs) in new[]
            {
                (Projection.Query, h, q), (Projection.Key, h, kv), (Projection.Value, h, kv), (Projection.Output, q, h),
                (Projection.Gate, h, i), (Projection.Up, h, i), (Projection.Down, i, h),
            })
                modules[layer, projection] = Module(shape, inputs, outputs);
        }
        return modules;
    }

    private LoraModule Module(AdapterShape shape, int inputs, int outputs)
    {
        var (shared, u, m, n) = (shape.Rank - shape.Unshared, shape.Unshared, shape.ChunksA, shape.ChunksB);
        return new LoraModule
        {
            Inputs = inputs,
            Outputs = outputs,
            ChunksA = m,
            ChunksB = n,
            ShiftA = m == 1 ? 0 : Math.Max(shared / m, 1),
            ShiftB = n == 1 ? 0 : Math.Max(shared / n, 1),
            Scale = 1,
            A = Fill("A", shared, (inputs + m - 1) / m),
            B = Fill("B", (outputs + n - 1) / n, shared),
            AVec = u == 0 ? null : Fill("A_vec", u, inputs),
            BVec = u == 0 ? null : Fill("B_vec", u, outputs),
        };
    }

    private HostTensor Fill(string name, int rows, int cols, ushort? value = null)
    {
        var count = (long)rows * cols;
        var buffer = new NativeBuffer(count * 2);
        var data = (ushort*)buffer.Data;
        for (long i = 0; i < count; i++)
        {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            data[i] = value ?? (ushort)((state & 0x807F) | (121 << 7));
        }
        return new HostTensor(name, DType.BF16, rows, cols, buffer.Data, buffer);
    }
}

/// <summary>Native memory that lives as long as whoever refers to it.</summary>
internal sealed unsafe class NativeBuffer(long bytes) : SafeHandle((nint)NativeMemory.AlignedAlloc((nuint)bytes, 64), ownsHandle: true)
{
    public byte* Data => (byte*)handle;

    public override bool IsInvalid => handle == 0;

    protected override bool ReleaseHandle()
    {
        NativeMemory.AlignedFree((void*)handle);
        return true;
    }
}
