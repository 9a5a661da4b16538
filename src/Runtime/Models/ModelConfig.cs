using System.Globalization;
using TenantLora.Runtime.Backends;

namespace TenantLora.Runtime.Models;

/// <summary>Architectures that the forward pass knows. They differ in biases, head norms, windows and nothing else.</summary>
internal enum ModelFamily
{
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

/// <summary>
/// A model folder's <c>config.json</c> and <c>generation_config.json</c>, checked and completed as Hugging Face transformers would.
/// Read once at start; what it holds, the weights' shapes must follow.
/// </summary>
internal sealed record ModelConfig
{
    public required ModelFamily Family { get; init; }
    public required int VocabSize { get; init; }
    public required int HiddenSize { get; init; }
    public required int IntermediateSize { get; init; }
    public required int Layers { get; init; }
    public required int Heads { get; init; }
    public required int KvHeads { get; init; }

    /// <summary>Need not be HiddenSize / Heads.</summary>
    public required int HeadDim { get; init; }

    public required float NormEpsilon { get; init; }

    /// <summary>Tokens of prompt and answer together that the model was made for.</summary>
    public required int MaxPositions { get; init; }

    /// <summary>The output head is the embedding table; the files hold no <c>lm_head.weight</c>.</summary>
    public required bool TieEmbeddings { get; init; }

    /// <summary>q, k and v have biases.</summary>
    public required bool AttentionBias { get; init; }

    /// <summary>o has a bias.</summary>
    public required bool OutputBias { get; init; }

    /// <summary>gate, up and down have biases.</summary>
    public required bool MlpBias { get; init; }

    /// <summary>q and k heads are normalised before rotation.</summary>
    public required bool HeadNorms { get; init; }

    /// <summary>(HeadDim / 2) RoPE's, scaling applied.</summary>
    public required float[] InverseFrequencies { get; init; }

    /// <summary>(layers) positions back that a row sees, itself included; 0 is all.</summary>
    public required int[] Windows { get; init; }

    public required int? BosTokenId { get; init; }

    /// <summary>Tokens that end an answer: generation_config.json's where it names some, config.json's otherwise.</summary>
    public required IReadOnlyList<int> EosTokenIds { get; init; }

    public required GenerationConfig Generation { get; init; }

    public AttentionShape ToAttentionShape() => new(Layers, Heads, KvHeads, HeadDim, InverseFrequencies, Windows);

    /// <summary>h and o of a projection: W is o×h.</summary>
    public (int Inputs, int Outputs) Shape(Projection projection) => projection switch
    {
        Projection.Query => (HiddenSize, Heads * HeadDim),
        Projection.Key or Projection.Value => (HiddenSize, KvHeads * HeadDim),
        Projection.Output => (Heads * HeadDim, HiddenSize),
        Projection.Gate or Projection.Up => (HiddenSize, IntermediateSize),
        Projection.Down => (IntermediateSize, HiddenSize),
        _ => throw new ArgumentOutOfRangeException(nameof(projection)),
    };

    private const int MaxBytes = 4 << 20;

    /// <exception cref="ModelFileException">A file is missing or damaged, or asks for what the forward pass does not do.</exception>
    public static ModelConfig Load(string directory)
    {
        var path = Path.Combine(directory, "config.json");
        using var document = JsonFields.Parse(path, MaxBytes);
        var json = new JsonFields(document.RootElement, (field, expected, found) => throw new ModelFileException(path, field, expected, found));

        var family = ReadFamily(json);
        RefuseUnknown(json);
        var layers = Required(json, "num_hidden_layers", 1 << 10);
        var hidden = Required(json, "hidden_size", 1 << 18);
        var heads = Required(json, "num_attention_heads", 1 << 12);
        var kvHeads = json.Whole("num_key_value_heads", 1, heads) ?? heads;
        if (heads % kvHeads != 0) json.Refuse("num_key_value_heads", $"a divisor of num_attention_heads ({heads})", $"{kvHeads}");
        var headDim = json.Whole("head_dim", 1, 1 << 12);
        if (family == ModelFamily.Qwen3) headDim ??= 128;   // its class's default, whatever the hidden size
        if (headDim is null && hidden % heads != 0)
            json.Refuse("hidden_size", $"a multiple of num_attention_heads ({heads}) where head_dim is absent", $"{hidden}");
        headDim ??= hidden / heads;
        if (headDim % 2 != 0) json.Refuse("head_dim", "an even number", $"{headDim}");
        var vocabulary = Required(json, "vocab_size", 1 << 24);
        var (attentionBias, outputBias, mlpBias) = ReadBiases(json, family);
        var generation = GenerationConfig.Load(directory, vocabulary);

        return new ModelConfig
        {
            Family = family,
            VocabSize = vocabulary,
            HiddenSize = hidden,
            IntermediateSize = Required(json, "intermediate_size", 1 << 20),
            Layers = layers,
            Heads = heads,
            KvHeads = kvHeads,
            HeadDim = headDim.Value,
            NormEpsilon = (float)Present(json, "rms_norm_eps", json.Number("rms_norm_eps", 1e-12, 1)),
            MaxPositions = Required(json, "max_position_embeddings", 1 << 26),
            TieEmbeddings = json.Flag("tie_word_embeddings") ?? false,
            AttentionBias = attentionBias,
            OutputBias = outputBias,
            MlpBias = mlpBias,
            HeadNorms = family == ModelFamily.Qwen3,
            InverseFrequencies = Rope.Read(json, headDim.Value),
            Windows = ReadWindows(json, family, layers),
            BosTokenId = json.Whole("bos_token_id", 0, vocabulary - 1),
            EosTokenIds = generation.EosTokenIds ?? json.Wholes("eos_token_id", 0, vocabulary - 1) ?? [],
            Generation = generation,
        };
    }

    private static int Required(JsonFields json, string name, int max) => Present(json, name, json.Whole(name, 1, max));

    private static T Present<T>(JsonFields json, string name, T? value) where T : struct
    {
        if (value is null) json.Refuse(name, "a number", "nothing");
        return value!.Value;
    }

    private static ModelFamily ReadFamily(JsonFields json)
    {
        const string known = "llama, mistral, qwen2 or qwen3";
        var type = json.Text("model_type");
        ModelFamily? family = type switch
        {
            "llama" => ModelFamily.Llama,
            "mistral" => ModelFamily.Mistral,
            "qwen2" => ModelFamily.Qwen2,
            "qwen3" => ModelFamily.Qwen3,
            _ => null,
        };
        if (family is null) json.Refuse("model_type", known, type is null ? "nothing" : Printable.Of(type));
        var architecture = $"{family}ForCausalLM";
        if (json.Texts("architectures") is { } named && !named.Contains(architecture, StringComparer.Ordinal))
            json.Refuse("architectures", architecture, Printable.Of(string.Join(", ", named)));
        return family!.Value;
    }

    /// <summary>Fields that change the arithmetic in ways the forward pass does not follow.</summary>
    private static void RefuseUnknown(JsonFields json)
    {
        foreach (var name in (string[])["quantization_config", "compression_config"])
            if (json.Any(name) is { } value) json.Refuse(name, "unquantised weights (F32, F16 or BF16)", JsonFields.Show(value));
        if (json.Text("hidden_act") is { } activation && activation != "silu") json.Refuse("hidden_act", "silu", Printable.Of(activation));
        if (json.Number("partial_rotary_factor", 0, 1) is { } part && part != 1)
            json.Refuse("partial_rotary_factor", "1", part.ToString(CultureInfo.InvariantCulture));
    }

    /// <summary>Of q, k, v; of o; of the MLP. Qwen2's code fixes the first, whatever the file says; only Llama's MLP may have some.</summary>
    private static (bool Attention, bool Output, bool Mlp) ReadBiases(JsonFields json, ModelFamily family)
    {
        var attention = json.Flag("attention_bias");
        var mlp = json.Flag("mlp_bias") ?? false;
        if (family == ModelFamily.Mistral && attention == true) json.Refuse("attention_bias", "false for mistral", "true");
        if (family == ModelFamily.Qwen2 && attention == false) json.Refuse("attention_bias", "true or nothing for qwen2", "false");
        if (family != ModelFamily.Llama && mlp) json.Refuse("mlp_bias", $"false for {family.ToString().ToLowerInvariant()}", "true");
        return family switch
        {
            ModelFamily.Qwen2 => (true, false, false),
            ModelFamily.Mistral => (false, false, false),
            _ => (attention ?? false, attention ?? false, mlp),
        };
    }

    private static int[] ReadWindows(JsonFields json, ModelFamily family, int layers)
    {
        var windows = new int[layers];
        switch (family)
        {
            case ModelFamily.Mistral:
                // Absent means 4096 in transformers' MistralConfig; later models write null.
                Array.Fill(windows, json.Whole("sliding_window", 1, int.MaxValue) ?? (json.Has("sliding_window") ? 0 : 4096));
                break;
            case ModelFamily.Qwen2 or ModelFamily.Qwen3:
                var use = json.Flag("use_sliding_window") ?? false;
                var window = json.Whole("sliding_window", 1, int.MaxValue) ?? (json.Has("sliding_window") ? 0 : 4096);
                var first = json.Whole("max_window_layers", 0, int.MaxValue) ?? 28;
                var types = ReadLayerTypes(json, layers);
                for (var layer = 0; layer < layers; layer++)
                {
                    var sliding = types is null ? use && window > 0 && layer >= first : types[layer] == "sliding_attention";
                    if (sliding && !(use && window > 0))
                        json.Refuse("layer_types", "full_attention, use_sliding_window being false or sliding_window null", "sliding_attention");
                    windows[layer] = sliding ? window : 0;
                }

                break;
        }

        return windows;
    }

    private static IReadOnlyList<string>? ReadLayerTypes(JsonFields json, int layers)
    {
        if (json.Texts("layer_types") is not { } types) return null;
        if (types.Count != layers) json.Refuse("layer_types", $"{layers} entries, one a layer", $"{types.Count}");
        foreach (var type in types)
            if (type is not ("full_attention" or "sliding_attention"))
                json.Refuse("layer_types", "full_attention or sliding_attention", Printable.Of(type));
        return types;
    }
}

/// <summary>
/// What <c>generation_config.json</c> recommends. As in vLLM, fields it does not name stay neutral (transformers' own default of top_k 50 is
/// not taken over); an explicit <c>do_sample: false</c> means greedy.
/// </summary>
/// <param name="Sampling">Null where the file is silent.</param>
/// <param name="EosTokenIds">Null where the file is silent.</param>
/// <param name="MaxNewTokens">Null where the file is silent.</param>
internal sealed record GenerationConfig(SamplingOptions Sampling, IReadOnlyList<int>? EosTokenIds, int? MaxNewTokens)
{
    public static GenerationConfig Load(string directory, int vocabulary)
    {
        var path = Path.Combine(directory, "generation_config.json");
        if (!File.Exists(path)) return new GenerationConfig(new SamplingOptions(), null, null);
        using var document = JsonFields.Parse(path, 1 << 20);
        var json = new JsonFields(document.RootElement, (field, expected, found) => throw new ModelFileException(path, field, expected, found));
        var temperature = (float?)json.Number("temperature", 0, 2);
        var sampling = new SamplingOptions
        {
            Temperature = json.Flag("do_sample") == false ? 0 : temperature,
            TopK = json.Whole("top_k", -1, int.MaxValue),
            TopP = (float?)json.Number("top_p", float.Epsilon, 1),
            MinP = (float?)json.Number("min_p", 0, MathF.BitDecrement(1)),
            RepetitionPenalty = (float?)json.Number("repetition_penalty", 1e-3, 1e3),
        };
        return new GenerationConfig(sampling, json.Wholes("eos_token_id", 0, vocabulary - 1), json.Whole("max_new_tokens", 1, int.MaxValue));
    }
}
