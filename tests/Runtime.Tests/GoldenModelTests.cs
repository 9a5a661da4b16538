using System.Runtime.InteropServices;
using TenantLora.Bench;
using TenantLora.Runtime.Models;
using TenantLora.Tests;

namespace TenantLora.Runtime.Tests;

/// <summary>
/// The forward pass against logits from Hugging Face transformers in fp32 (tests/Fixtures; how they were made: models/demo-7m/recipe).
/// </summary>
public class GoldenModelTests
{
    public static TheoryData<string> Architectures => ["llama", "llama3-rope", "mistral", "mistral-window", "qwen2", "qwen3"];

    [Theory]
    [MemberData(nameof(Architectures))]
    public void An_architectures_logits_are_those_of_transformers_at_every_length(string name)
    {
        Check(name, ModelConfig.Load(Repo.Fixture("models", name)), "golden-loaded.safetensors", "cpu", 1e-5);
    }

    /// <summary>
    /// golden.safetensors comes from a model object whose RoPE frequencies had been rounded to bf16 (see make_golden.py): with the same rounding
    /// its logits must come too.
    /// </summary>
    [Theory]
    [MemberData(nameof(Architectures))]
    public void And_those_of_the_model_that_made_the_files(string name)
    {
        Check(name, LoadedModel.WithBf16Rope(ModelConfig.Load(Repo.Fixture("models", name))), "golden.safetensors", "cpu", 1e-5);
    }

    internal static void Check(string name, ModelConfig config, string goldenFile, string device, double tolerance)
    {
        var directory = Repo.Fixture("models", name);
        using var files = WeightFiles.Open(directory);
        using var model = new LoadedModel(config, files.Get, 128, device);
        using var golden = SafeTensors.Open(Path.Combine(directory, goldenFile));
        Assert.Equal(8, golden.Entries.Count);
        for (var i = 0; i < 4; i++)
        {
            int[] ids = [.. MemoryMarshal.Cast<byte, int>(golden.Bytes($"{i}.ids"))];
            var expected = MemoryMarshal.Cast<byte, float>(golden.Bytes($"{i}.logits"));

            var logits = model.Logits(ids, null);

            Assert.InRange(Error(expected, [.. logits.SelectMany(row => row)]), 0, tolerance);
            foreach (var chunk in new[] { 1, 7, 64 })
                if (device == "cpu") Assert.Equal(logits, model.Logits(ids, null, chunk));          // bit for bit
                else Assert.InRange(Error(expected, [.. model.Logits(ids, null, chunk).SelectMany(row => row)]), 0, tolerance);
        }
    }

    public static TheoryData<string> Tenants => ["base", "harbor", "ledger", "sprout", "lantern", "kernel"];

    [Theory]
    [MemberData(nameof(Tenants))]
    public void The_demo_models_logits_are_those_of_pytorch(string tenant) => CheckDemo(tenant, "cpu", 1e-4);

    internal static void CheckDemo(string tenant, string device, double tolerance)
    {
        var directory = Repo.Path("models", "demo-7m");
        var config = ModelConfig.Load(directory);
        using var files = WeightFiles.Open(directory);
        using var model = new LoadedModel(config, files.Get, 256, device);
        using var adapter = tenant == "base" ? null : LoadedModel.LoadAdapter(Repo.Path("adapters", tenant), config, model.Backend);
        using var golden = SafeTensors.Open(Repo.Fixture("golden", "logits.safetensors"));
        for (var i = 0; i < 8; i++)
        {
            int[] ids = [.. MemoryMarshal.Cast<byte, int>(golden.Bytes($"{tenant}.{i}.ids"))];
            var expected = MemoryMarshal.Cast<byte, float>(golden.Bytes($"{tenant}.{i}.logits"));

            Assert.InRange(Error(expected, model.Logits(ids, adapter)[^1]), 0, tolerance);
        }
    }

    /// <summary>|a − b| / |b| in the Euclidean norm.</summary>
    private static double Error(ReadOnlySpan<float> expected, float[] found)
    {
        Assert.Equal(expected.Length, found.Length);
        double difference = 0, norm = 0;
        for (var i = 0; i < found.Length; i++)
        {
            difference += Math.Pow(found[i] - expected[i], 2);
            norm += Math.Pow(expected[i], 2);
        }
        return Math.Sqrt(difference / norm);
    }
}
