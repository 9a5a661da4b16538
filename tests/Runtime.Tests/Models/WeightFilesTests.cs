using System.Text.Json;
using System.Text.Json.Nodes;
using TenantLora.Runtime.Models;
using TenantLora.Tests;

namespace TenantLora.Runtime.Tests.Models;

public sealed class WeightFilesTests : IDisposable
{
    private readonly string directory = Directory.CreateTempSubdirectory("weights").FullName;

    public void Dispose() => Directory.Delete(directory, recursive: true);

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
        Assert.Equal(config.OutputBias, weights.Has("model.layers.1.self_attn.o_proj.bias"));
        Assert.Matches("^sha256:[0-9a-f]{64}$", weights.Digest);
    }

    [Fact]
    public void Shards_count_as_one()
    {
        using var weights = WeightFiles.Open(Repo.Fixture("models", "qwen2"));
        Assert.Equal(107072, weights.Parameters);
        Assert.Equal(26, weights.Names.Count);
        Assert.Equal(1, weights.Get("model.norm.weight", 1, 64).Rows);
    }

    [Fact]
    public void Shape_and_absence_are_named()
    {
        using var weights = WeightFiles.Open(Repo.Fixture("models", "llama"));
        var shape = Assert.Throws<ModelFileException>(() => weights.Get("lm_head.weight", 64, 512));
        Assert.Contains("model.safetensors: lm_head.weight: expected 64 rows and 512 columns, found BF16 [512, 64]", shape.Message, StringComparison.Ordinal);
        var absence = Assert.Throws<ModelFileException>(() => weights.Get("model.layers.2.mlp.up_proj.weight", 128, 64));
        Assert.Contains("model.layers.2.mlp.up_proj.weight: expected a tensor of 128 rows and 64 columns, found none", absence.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void The_digest_names_the_content()
    {
        var digests = new HashSet<string>();
        Write("config.json", "{}"u8.ToArray());
        Write("model.safetensors", File(("a", 1)));
        Assert.True(digests.Add(Digest()));
        Assert.False(digests.Add(Digest()));
        Write("model.safetensors", File(("a", 2)));
        Assert.True(digests.Add(Digest()));
        Write("model.safetensors", File(("b", 2)));
        Assert.True(digests.Add(Digest()));
        Write("config.json", "{ }"u8.ToArray());
        Assert.True(digests.Add(Digest()));

        string Digest()
        {
            using var weights = WeightFiles.Open(directory);
            return weights.Digest;
        }
    }

    [Fact]
    public void A_long_file_is_sampled_to_its_end()
    {
        Write("config.json", "{}"u8.ToArray());
        var data = new byte[18 << 20];
        var digests = new HashSet<string>();
        foreach (var at in (int[])[0, data.Length - 1, 0])
        {
            data[at]++;
            Write("model.safetensors", SafeTensorsBytes.Of([("a", "U8", [data.Length], data)]));
            using var weights = WeightFiles.Open(directory);
            Assert.True(digests.Add(weights.Digest));
        }
    }

    [Theory]
    [InlineData("""{"a":"1.safetensors","b":"2.safetensors"}""", null)]
    [InlineData("""{"a":"1.safetensors","b":"2.safetensors","c":"3.safetensors"}""", "3.safetensors: expected a readable file, found none")]
    [InlineData("""{"a":"2.safetensors","b":"2.safetensors"}""", "a: expected it in 2.safetensors, found it in no file")]
    [InlineData("""{"a":"2.safetensors","b":"1.safetensors"}""", "expected it in")]
    [InlineData("""{"a":"1.safetensors","b":"2.safetensors","c":"2.safetensors"}""", "c: expected it in 2.safetensors, found it in no file")]
    [InlineData("""{"a":"1.safetensors","b":"2.safetensors","a2":"4.safetensors"}""", "a: expected each tensor in one file")]
    [InlineData("""{"a":"1.safetensors","b":"2.safetensors","d":"5.safetensors"}""", "e: expected every tensor of 5.safetensors")]
    [InlineData("""{"a":"../1.safetensors"}""", "the name of a .safetensors file beside it")]
    [InlineData("""{"a":"..\\1.safetensors"}""", "the name of a .safetensors file beside it")]
    [InlineData("""{"a":"pytorch_model.bin"}""", "the name of a .safetensors file beside it")]
    [InlineData("""{"a":7}""", "the name of a .safetensors file beside it")]
    [InlineData("{}", "expected tensors")]
    [InlineData("[]", "weight_map: expected an object")]
    public void Index_and_shards_must_agree(string map, string? says)
    {
        Write("1.safetensors", File(("a", 1)));
        Write("2.safetensors", File(("b", 1)));
        Write("4.safetensors", File(("a", 1), ("a2", 1)));
        Write("5.safetensors", File(("d", 1), ("e", 1)));
        Write("model.safetensors.index.json", JsonSerializer.SerializeToUtf8Bytes(new JsonObject { ["metadata"] = new JsonObject { ["total_size"] = 8 }, ["weight_map"] = JsonNode.Parse(map) }));
        if (says is null)
        {
            using var weights = WeightFiles.Open(directory);
            Assert.Equal(["a", "b"], weights.Names.Order());
        }
        else
        {
            Assert.Contains(says, Assert.Throws<ModelFileException>(() => WeightFiles.Open(directory)).Message, StringComparison.Ordinal);
        }
    }

    [Fact]
    public void A_folder_without_safetensors_is_refused()
    {
        Assert.Contains("found neither", Assert.Throws<ModelFileException>(() => WeightFiles.Open(directory)).Message, StringComparison.Ordinal);
        Write("pytorch_model.bin", [1]);
        Assert.Contains("found pytorch_model.bin", Assert.Throws<ModelFileException>(() => WeightFiles.Open(directory)).Message, StringComparison.Ordinal);
        Assert.Contains("no such folder", Assert.Throws<ModelFileException>(() => WeightFiles.Open(Path.Combine(directory, "no"))).Message, StringComparison.Ordinal);
    }

    private static byte[] File(params (string Name, float Value)[] tensors) =>
        SafeTensorsBytes.Of(tensors.Select(t => (t.Name, "F32", new long[] { 1 }, SafeTensorsBytes.Floats(t.Value))));

    private void Write(string name, byte[] bytes) => System.IO.File.WriteAllBytes(Path.Combine(directory, name), bytes);
}
