using TenantLora.Runtime.Models;
using TenantLora.Tests;

namespace TenantLora.Runtime.Tests.Models;

public sealed class WeightFilesTests
{
    [Theory]
    [InlineData("llama"), InlineData("llama3-rope"), InlineData("mistral"), InlineData("mistral-window"), InlineData("qwen2"), InlineData("qwen3")]
    public void Every_fixture_model_opens(string name)
    {
        using var weights = WeightFiles.Open(Repo.Fixture("models", name));
        var config = ModelConfig.Load(Repo.Fixture("models", name));
        var table = weights.Get("model.embed_tokens.weight", config.VocabSize, config.HiddenSize);
        Assert.Equal(512L * 64 * 2, table.Bytes);
        Assert.Equal(config.TieEmbeddings, !weights.Has("lm_head.weight"));
        Assert.Equal(config.HeadNorms, weights.Has("model.layers.0.self_attn.q_norm.weight"));
        Assert.Equal(config.AttentionBias, weights.Has("model.layers.1.self_attn.v_proj.bias"));
        Assert.StartsWith("sha256:", weights.Digest, StringComparison.Ordinal);
    }
}
