using TenantLora.Runtime.Backends;

namespace TenantLora.Runtime.Models;

/// <summary>Gives the named tensor, having checked that it is (rows, cols); a vector is (1, n).</summary>
internal delegate HostTensor TensorSource(string name, int rows, int cols);

/// <summary>One decoder layer. The linears that read the same input are stacked: qkv and gate-up.</summary>
internal sealed record LayerWeights(
    DeviceTensor InputNorm,
    DeviceTensor Qkv,               // ((heads + 2·kvHeads)·headDim, hidden)
    DeviceTensor? QkvBias,
    HeadNorms? HeadNorms,
    DeviceTensor Output,            // (hidden, heads·headDim)
    DeviceTensor? OutputBias,
    DeviceTensor PostNorm,
    DeviceTensor GateUp,            // (2·intermediate, hidden)
    DeviceTensor? GateUpBias,
    DeviceTensor Down,              // (hidden, intermediate)
    DeviceTensor? DownBias);

/// <summary>The base model on a device, named as in Hugging Face's Llama, Mistral, Qwen2 and Qwen3 files.</summary>
internal sealed record ModelWeights(DeviceTensor Embedding, LayerWeights[] Layers, DeviceTensor FinalNorm, DeviceTensor Head) : IDisposable
{
    /// <param name="uploaded">Told after each layer, and at the end, how many of the source's bytes the backend has been given so far.</param>
    public static ModelWeights Load(ModelConfig config, TensorSource source, IBackend backend, Action<long>? uploaded = null)
    {
        var bytes = 0L;
        HostTensor Take(string name, int rows, int cols)
        {
            var tensor = source(name, rows, cols);
            bytes += tensor.Bytes;
            return tensor;
        }
        var (hidden, inner) = (config.HiddenSize, config.IntermediateSize);
        var (q, kv) = (config.Heads * config.HeadDim, config.KvHeads * config.HeadDim);

        var embedding = backend.Upload(Take("model.embed_tokens.weight", config.VocabSize, hidden));
        var layers = new LayerWeights[config.Layers];
        for (var i = 0; i < layers.Length; i++)
        {
            var prefix = $"model.layers.{i}.";
            DeviceTensor Vector(string name, int length) => backend.Upload(Take(prefix + name, 1, length));
            DeviceTensor Matrix(params (string Name, int Rows, int Cols)[] parts) =>
                backend.Upload(OfOneType([.. parts.Select(p => Take($"{prefix}{p.Name}.weight", p.Rows, p.Cols))]));
            DeviceTensor Bias(params (string Name, int Rows)[] parts) =>
                backend.Upload(OfOneType([.. parts.Select(p => Take($"{prefix}{p.Name}.bias", 1, p.Rows))]));

            layers[i] = new LayerWeights(
                InputNorm: Vector("input_layernorm.weight", hidden),
                Qkv: Matrix(("self_attn.q_proj", q, hidden), ("self_attn.k_proj", kv, hidden), ("self_attn.v_proj", kv, hidden)),
                QkvBias: config.AttentionBias ? Bias(("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)) : null,
                HeadNorms: config.HeadNorms
                    ? new HeadNorms(Vector("self_attn.q_norm.weight", config.HeadDim), Vector("self_attn.k_norm.weight", config.HeadDim), config.NormEpsilon)
                    : null,
                Output: Matrix(("self_attn.o_proj", hidden, q)),
                OutputBias: config.OutputBias ? Bias(("self_attn.o_proj", hidden)) : null,
                PostNorm: Vector("post_attention_layernorm.weight", hidden),
                GateUp: Matrix(("mlp.gate_proj", inner, hidden), ("mlp.up_proj", inner, hidden)),
                GateUpBias: config.MlpBias ? Bias(("mlp.gate_proj", inner), ("mlp.up_proj", inner)) : null,
                Down: Matrix(("mlp.down_proj", hidden, inner)),
                DownBias: config.MlpBias ? Bias(("mlp.down_proj", hidden)) : null);
            uploaded?.Invoke(bytes);
        }
        var norm = backend.Upload(Take("model.norm.weight", 1, hidden));
        var head = config.TieEmbeddings ? embedding : backend.Upload(Take("lm_head.weight", config.VocabSize, hidden));
        uploaded?.Invoke(bytes);
        return new ModelWeights(embedding, layers, norm, head);
    }

    private static HostTensor[] OfOneType(HostTensor[] parts)
    {
        var odd = parts.FirstOrDefault(p => p.Type != parts[0].Type);
        return odd is null ? parts : throw new ModelFileException("model.safetensors", odd.Name, $"{parts[0].Type}, as {parts[0].Name} beside it", odd.Type.ToString());
    }

    public void Dispose()
    {
        foreach (var tensor in Layers.SelectMany(l => new[] { l.InputNorm, l.Qkv, l.QkvBias, l.HeadNorms?.Query, l.HeadNorms?.Key, l.Output, l.OutputBias, l.PostNorm, l.GateUp, l.GateUpBias, l.Down, l.DownBias }))
            tensor?.Dispose();
        Embedding.Dispose();
        FinalNorm.Dispose();
        if (Head != Embedding) Head.Dispose();
    }
}
