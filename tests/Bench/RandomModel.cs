using System.Runtime.InteropServices;
using TenantLora.Runtime.Backends;
using TenantLora.Runtime.Models;

namespace TenantLora.Bench;

/// <summary>Geometry of a made-up adapter on all seven linears.</summary>
internal sealed record AdapterShape(int Rank, int Unshared, int ChunksA, int ChunksB)
{
    public static AdapterShape PRoLora { get; } = new(16, 2, 4, 4);

    public static AdapterShape Lora { get; } = new(16, 0, 1, 1);

    /// <summary>All seven linears of all layers, each factor asked of <paramref name="source"/>.</summary>
    public LoraModules Modules(ModelConfig config, TensorSource source)
    {
        var modules = new LoraModules(config.Layers);
        var shared = Rank - Unshared;
        for (var layer = 0; layer < config.Layers; layer++)
            for (var projection = Projection.Query; projection <= Projection.Down; projection++)
            {
                var (inputs, outputs) = config.Shape(projection);
                modules[layer, projection] = new LoraModule
                {
                    Inputs = inputs,
                    Outputs = outputs,
                    ChunksA = ChunksA,
                    ChunksB = ChunksB,
                    ShiftA = ChunksA == 1 ? 0 : Math.Max(shared / ChunksA, 1),
                    ShiftB = ChunksB == 1 ? 0 : Math.Max(shared / ChunksB, 1),
                    Scale = 1,
                    A = source("A", shared, (inputs + ChunksA - 1) / ChunksA),
                    B = source("B", (outputs + ChunksB - 1) / ChunksB, shared),
                    AVec = Unshared == 0 ? null : source("A_vec", Unshared, inputs),
                    BVec = Unshared == 0 ? null : source("B_vec", Unshared, outputs),
                };
            }
        return modules;
    }
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

    public LoraModules Adapter(ModelConfig config, AdapterShape shape, int seed)
    {
        state = ((ulong)(seed + 1) * 0x9E3779B97F4A7C15UL) | 1;
        return shape.Modules(config, (name, rows, cols) => Fill(name, rows, cols));
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
