using System.Text.Json.Nodes;
using TenantLora.Runtime.Backends;
using TenantLora.Runtime.Models;
using TenantLora.Tests;

namespace TenantLora.Runtime.Tests.Models;

public sealed class ModelConfigTests : IDisposable
{
    private readonly string directory = Directory.CreateTempSubdirectory("config").FullName;

    public void Dispose() => Directory.Delete(directory, recursive: true);

    /// <summary>Llama-3.1-8B's numbers.</summary>
    private static JsonObject Base(string type = "llama") => new()
    {
        ["model_type"] = type,
        ["architectures"] = new JsonArray(type switch { "llama" => "LlamaForCausalLM", "mistral" => "MistralForCausalLM", "qwen2" => "Qwen2ForCausalLM", _ => "Qwen3ForCausalLM" }),
        ["vocab_size"] = 128256,
        ["hidden_size"] = 4096,
        ["intermediate_size"] = 14336,
        ["num_hidden_layers"] = 32,
        ["num_attention_heads"] = 32,
        ["num_key_value_heads"] = 8,
        ["hidden_act"] = "silu",
        ["max_position_embeddings"] = 131072,
        ["rms_norm_eps"] = 1e-5,
        ["rope_theta"] = 500000.0,
        ["eos_token_id"] = new JsonArray(128001, 128008),
        ["bos_token_id"] = 128000,
        ["torch_dtype"] = "bfloat16",
        ["use_cache"] = true,
    };

    private ModelConfig Load(JsonNode config, JsonNode? generation = null)
    {
        File.WriteAllText(Path.Combine(directory, "config.json"), config.ToJsonString());
        if (generation is not null) File.WriteAllText(Path.Combine(directory, "generation_config.json"), generation.ToJsonString());
        return ModelConfig.Load(directory);
    }

    /// <summary>The base with fields set, or taken out where the patch holds the string "absent".</summary>
    private static JsonObject With(string type, string patch)
    {
        var config = Base(type);
        foreach (var (name, value) in JsonNode.Parse(patch)!.AsObject())
        {
            if (value is JsonValue v && v.TryGetValue<string>(out var text) && text == "absent") config.Remove(name);
            else config[name] = value?.DeepClone();
        }

        return config;
    }

    [Fact]
    public void The_demo_model_is_read()
    {
        var config = ModelConfig.Load(Repo.Path("models", "demo-7m"));
        Assert.Equal((ModelFamily.Llama, 4096, 256, 768), (config.Family, config.VocabSize, config.HiddenSize, config.IntermediateSize));
        Assert.Equal((8, 4, 2, 64, 2048), (config.Layers, config.Heads, config.KvHeads, config.HeadDim, config.MaxPositions));
        Assert.Equal(1e-5f, config.NormEpsilon);
        Assert.True(config.TieEmbeddings);
        Assert.False(config.AttentionBias || config.OutputBias || config.MlpBias || config.HeadNorms);
        Assert.Null(config.BosTokenId);
        Assert.Equal([4091, 4089], config.EosTokenIds);
        Assert.Equal(new SamplingOptions { Temperature = 0 }, config.Generation.Sampling);
        Assert.Equal(256, config.Generation.MaxNewTokens);
        Assert.Equal((768, 256), config.Shape(Projection.Down));
        Assert.Equal((256, 128), config.Shape(Projection.Value));
        Assert.Equal((256, 256), config.Shape(Projection.Output));
        Assert.All(config.Windows, w => Assert.Equal(0, w));
        Assert.Equal(32, config.InverseFrequencies.Length);
        Assert.Equal(1f, config.InverseFrequencies[0]);
        Assert.Equal(1 / MathF.Pow(10000, 62 / 64f), config.InverseFrequencies[31], 1e-9f);
    }

    [Theory]
    [InlineData("llama", ModelFamily.Llama, 16, false, false, false, 0)]
    [InlineData("mistral", ModelFamily.Mistral, 24, false, false, false, 0)]
    [InlineData("mistral-window", ModelFamily.Mistral, 16, false, false, false, 16)]
    [InlineData("qwen2", ModelFamily.Qwen2, 16, true, false, false, 0)]
    [InlineData("qwen3", ModelFamily.Qwen3, 32, false, false, true, 0)]
    internal void The_fixtures_are_read(string name, ModelFamily family, int headDim, bool attentionBias, bool outputBias, bool headNorms, int window)
    {
        var config = ModelConfig.Load(Repo.Fixture("models", name));
        Assert.Equal((family, headDim, attentionBias, outputBias, headNorms), (config.Family, config.HeadDim, config.AttentionBias, config.OutputBias, config.HeadNorms));
        Assert.Equal([window, window], config.Windows);
        Assert.Equal(new SamplingOptions(), config.Generation.Sampling);
        Assert.Equal(name.StartsWith("qwen", StringComparison.Ordinal) ? [] : [2], config.EosTokenIds);
        Assert.Equal(headDim / 2, config.ToAttentionShape().InverseFrequencies.Length);
    }

    /// <summary>By hand from the published formula: wave lengths below 8192/4 stay, above 8192/1 are divided by 8, between are blended.</summary>
    [Theory]
    [InlineData("""{"rope_scaling":{"factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192,"rope_type":"llama3"}}""")]
    [InlineData("""{"rope_scaling":{"factor":8,"low_freq_factor":1,"high_freq_factor":4,"original_max_position_embeddings":8192,"type":"llama3"}}""")]
    [InlineData("""{"rope_theta":"absent","rope_parameters":{"rope_theta":5e5,"factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192,"rope_type":"llama3"}}""")]
    [InlineData("""{"rope_parameters":{"rope_theta":500000,"factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192,"rope_type":"llama3"},"rope_scaling":{"factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192,"rope_type":"llama3"}}""")]
    public void Llama3_scaling_in_every_spelling(string patch)
    {
        var frequencies = Load(With("llama", patch)).InverseFrequencies;
        Assert.Equal(64, frequencies.Length);
        for (var i = 0; i < 64; i++)
        {
            var plain = Math.Pow(500000, -2.0 * i / 128);
            var wave = 2 * Math.PI / plain;
            var smooth = ((8192 / wave) - 1) / 3;
            var expected = wave < 2048 ? plain : wave > 8192 ? plain / 8 : ((1 - smooth) * plain / 8) + (smooth * plain);
            Assert.Equal(expected, frequencies[i], expected * 3e-6);
        }

        Assert.Equal(1f, frequencies[0]);
        Assert.NotEqual(frequencies[63], Load(Base()).InverseFrequencies[63]);
    }

    [Theory]
    [InlineData("mistral", """{"sliding_window":4096}""", 4096, 4096)]
    [InlineData("mistral", """{"sliding_window":null}""", 0, 0)]
    [InlineData("mistral", "{}", 4096, 4096)]
    [InlineData("qwen2", """{"sliding_window":64,"use_sliding_window":false,"max_window_layers":1}""", 0, 0)]
    [InlineData("qwen2", """{"sliding_window":64,"use_sliding_window":true,"max_window_layers":20}""", 0, 64)]
    [InlineData("qwen3", """{"sliding_window":64,"use_sliding_window":true}""", 0, 64)]
    [InlineData("qwen3", """{"num_hidden_layers":2,"sliding_window":64,"use_sliding_window":true,"layer_types":["sliding_attention","full_attention"]}""", 64, 0)]
    [InlineData("llama", """{"sliding_window":64}""", 0, 0)]
    public void Windows_follow_each_familys_own_rule(string type, string patch, int first, int last)
    {
        var windows = Load(With(type, patch)).Windows;
        Assert.Equal((first, last), (windows[0], windows[^1]));
    }

    [Theory]
    [InlineData("llama", """{"attention_bias":true,"mlp_bias":true}""", true, true, true)]
    [InlineData("llama", "{}", false, false, false)]
    [InlineData("qwen2", "{}", true, false, false)]
    [InlineData("qwen3", """{"attention_bias":true,"head_dim":128}""", true, true, false)]
    public void Biases_follow_each_familys_own_rule(string type, string patch, bool attention, bool output, bool mlp)
    {
        var config = Load(With(type, patch));
        Assert.Equal((attention, output, mlp), (config.AttentionBias, config.OutputBias, config.MlpBias));
    }

    [Theory]
    [InlineData("llama", """{"model_type":"gemma2"}""", "model_type: expected llama, mistral, qwen2 or qwen3, found gemma2")]
    [InlineData("llama", """{"model_type":"absent"}""", "model_type")]
    [InlineData("llama", """{"model_type":7}""", "model_type: expected a string")]
    [InlineData("llama", """{"architectures":["LlamaForSequenceClassification"]}""", "architectures: expected LlamaForCausalLM")]
    [InlineData("llama", """{"quantization_config":{"quant_method":"gptq"}}""", "quantization_config")]
    [InlineData("llama", """{"hidden_act":"gelu"}""", "hidden_act: expected silu, found gelu")]
    [InlineData("llama", """{"vocab_size":"absent"}""", "vocab_size: expected a number, found nothing")]
    [InlineData("llama", """{"vocab_size":"128256"}""", "vocab_size")]
    [InlineData("llama", """{"hidden_size":0}""", "hidden_size")]
    [InlineData("llama", """{"hidden_size":-4096}""", "hidden_size")]
    [InlineData("llama", """{"hidden_size":4096.5}""", "hidden_size")]
    [InlineData("llama", """{"hidden_size":1e30}""", "hidden_size")]
    [InlineData("llama", """{"num_hidden_layers":1000000}""", "num_hidden_layers")]
    [InlineData("llama", """{"num_key_value_heads":5}""", "num_key_value_heads: expected a divisor of num_attention_heads (32), found 5")]
    [InlineData("llama", """{"num_key_value_heads":64}""", "num_key_value_heads")]
    [InlineData("llama", """{"head_dim":127}""", "head_dim: expected an even number")]
    [InlineData("llama", """{"hidden_size":4097}""", "hidden_size: expected a multiple")]
    [InlineData("llama", """{"rms_norm_eps":0}""", "rms_norm_eps")]
    [InlineData("llama", """{"max_position_embeddings":true}""", "max_position_embeddings")]
    [InlineData("llama", """{"partial_rotary_factor":0.5}""", "partial_rotary_factor: expected 1, found 0.5")]
    [InlineData("llama", """{"rope_scaling":{"rope_type":"yarn","factor":4.0}}""", "rope_scaling.rope_type: expected default or llama3, found yarn")]
    [InlineData("llama", """{"rope_scaling":{"type":"dynamic","factor":4.0}}""", "found dynamic")]
    [InlineData("llama", """{"rope_scaling":{"type":"longrope"}}""", "found longrope")]
    [InlineData("llama", """{"rope_scaling":{"type":"linear","rope_type":"llama3"}}""", "rope_scaling.type")]
    [InlineData("llama", """{"rope_scaling":{"rope_type":"llama3","factor":8.0}}""", "rope_scaling.low_freq_factor")]
    [InlineData("llama", """{"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":4,"high_freq_factor":4,"original_max_position_embeddings":8192}}""", "high_freq_factor")]
    [InlineData("llama", """{"rope_scaling":{"rope_type":"default","mrope_section":[1]}}""", "rope_scaling.mrope_section")]
    [InlineData("llama", """{"rope_parameters":{"rope_type":"default","rope_theta":10000.0}}""", "rope_theta: expected 10000")]
    [InlineData("llama", """{"rope_parameters":{"rope_type":"default","rope_theta":500000.0},"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1,"high_freq_factor":4,"original_max_position_embeddings":8192}}""", "rope_scaling")]
    [InlineData("llama", """{"rope_parameters":{"full_attention":{"rope_type":"default"}}}""", "rope_parameters.full_attention")]
    [InlineData("llama", """{"rope_parameters":{"rope_type":"default","partial_rotary_factor":0.5}}""", "rope_parameters.partial_rotary_factor")]
    [InlineData("llama", """{"rope_theta":"many"}""", "rope_theta")]
    [InlineData("llama", """{"rope_theta":1e400}""", "rope_theta")]
    [InlineData("llama", """{"eos_token_id":128256}""", "eos_token_id")]
    [InlineData("llama", """{"eos_token_id":[1,-1]}""", "eos_token_id")]
    [InlineData("llama", """{"tie_word_embeddings":"no"}""", "tie_word_embeddings: expected true or false")]
    [InlineData("mistral", """{"attention_bias":true}""", "attention_bias")]
    [InlineData("mistral", """{"sliding_window":0}""", "sliding_window")]
    [InlineData("qwen2", """{"attention_bias":false}""", "attention_bias")]
    [InlineData("qwen2", """{"mlp_bias":true}""", "mlp_bias")]
    [InlineData("qwen2", """{"layer_types":["full_attention"]}""", "layer_types: expected 32 entries")]
    [InlineData("qwen2", """{"num_hidden_layers":1,"layer_types":["linear_attention"]}""", "layer_types")]
    [InlineData("qwen2", """{"num_hidden_layers":1,"layer_types":["sliding_attention"],"use_sliding_window":false,"sliding_window":8}""", "layer_types")]
    public void What_the_forward_pass_does_not_do_is_refused_by_name(string type, string patch, string says)
    {
        // 1e400 is no number that a JsonNode writes back.
        var text = With(type, patch.Replace("1e400", "\"1e400\"", StringComparison.Ordinal)).ToJsonString().Replace("\"1e400\"", "1e400", StringComparison.Ordinal);
        File.WriteAllText(Path.Combine(directory, "config.json"), text);
        var refusal = Assert.Throws<ModelFileException>(() => ModelConfig.Load(directory));
        Assert.EndsWith("config.json", refusal.File, StringComparison.Ordinal);
        Assert.Contains(says, refusal.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("")]
    [InlineData("[]")]
    [InlineData("{\"model_type\":\"llama\",}")]
    [InlineData("{\"model_type\":\"llama\",\"model_type\":\"mistral\"}")]
    [InlineData("{\"model_type\":\"llama\\ud800\"}")]
    [InlineData("{\"model_type\\ud800\":\"llama\"}")]
    public void Broken_json_is_refused(string text)
    {
        File.WriteAllText(Path.Combine(directory, "config.json"), text);
        Assert.Throws<ModelFileException>(() => ModelConfig.Load(directory));
    }

    [Fact]
    public void A_missing_file_is_named() =>
        Assert.Contains("config.json: expected a readable file, found none", Assert.Throws<ModelFileException>(() => ModelConfig.Load(directory)).Message, StringComparison.Ordinal);

    [Fact]
    public void Generation_defaults_are_the_files()
    {
        var config = Load(Base(), JsonNode.Parse("""{"do_sample":true,"temperature":0.7,"top_k":20,"top_p":0.8,"min_p":0.05,"repetition_penalty":1.05,"eos_token_id":[128001,128009],"transformers_version":"4.44.0"}""")!);
        Assert.Equal(new SamplingOptions { Temperature = 0.7f, TopK = 20, TopP = 0.8f, MinP = 0.05f, RepetitionPenalty = 1.05f }, config.Generation.Sampling);
        Assert.Equal([128001, 128009], config.EosTokenIds);
    }

    [Fact]
    public void Without_a_generation_config_the_defaults_are_neutral()
    {
        var config = Load(Base());
        Assert.Equal(new SamplingOptions(), config.Generation.Sampling);
        Assert.Equal([128001, 128008], config.EosTokenIds);
        Assert.Equal(128000, config.BosTokenId);
        Assert.Equal(128, config.HeadDim);
    }

    [Theory]
    [InlineData("""{"temperature":-1}""", "temperature")]
    [InlineData("""{"top_p":0}""", "top_p")]
    [InlineData("""{"top_k":"20"}""", "top_k")]
    [InlineData("""{"eos_token_id":999999}""", "eos_token_id")]
    public void Generation_fields_are_checked(string generation, string says)
    {
        var refusal = Assert.Throws<ModelFileException>(() => Load(Base(), JsonNode.Parse(generation)!));
        Assert.EndsWith("generation_config.json", refusal.File, StringComparison.Ordinal);
        Assert.Equal(says, refusal.Field);
    }
}
