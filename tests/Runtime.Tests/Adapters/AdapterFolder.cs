using System.Text.Json.Nodes;
using TenantLora.Runtime.Adapters;
using TenantLora.Runtime.Backends;
using TenantLora.Runtime.Models;
using TenantLora.Runtime.Tests.Models;
using TenantLora.Tests;

namespace TenantLora.Runtime.Tests.Adapters;

/// <summary>A PEFT folder for the fixture model <c>llama</c> (2 layers, hidden 64, MLP 128, 4 heads of 16, 2 of them for keys), right until a test spoils it.</summary>
internal sealed class AdapterFolder : IDisposable
{
    public static readonly ModelConfig Model = ModelConfig.Load(Repo.Fixture("models", "llama"));

    private readonly Random random = new(7);

    public AdapterFolder(string kind = "LORA", string patch = "{}")
    {
        Config = new JsonObject { ["peft_type"] = kind, ["r"] = 4, ["lora_alpha"] = 8, ["target_modules"] = new JsonArray("q_proj", "v_proj"), ["bias"] = "none", ["base_model_name_or_path"] = "acme/tiny" };
        foreach (var (name, value) in JsonNode.Parse(patch)!.AsObject()) Config[name] = value?.DeepClone();
    }

    public string Path { get; } = Directory.CreateTempSubdirectory("adapter").FullName;

    public JsonObject Config { get; }

    /// <summary>In file order.</summary>
    public List<(string Name, string Type, long[] Shape, byte[] Data)> Tensors { get; } = [];

    public void Dispose() => Directory.Delete(Path, recursive: true);

    public static string Name(int layer, string path, string role) => $"base_model.model.model.layers.{layer}.{path}.{role}";

    /// <summary>Adds a tensor of small random values.</summary>
    public AdapterFolder Add(string name, int rows, int cols, string type = "F32")
    {
        var values = Enumerable.Range(0, rows * cols).Select(_ => (float)((random.NextDouble() - 0.5) / 4)).ToArray();
        Tensors.Add((name, type, [rows, cols], type switch { "F32" => SafeTensorsBytes.Floats(values), "F16" => SafeTensorsBytes.Halves(values), _ => SafeTensorsBytes.Brains(values) }));
        return this;
    }

    /// <summary>Adds a module's plain LoRA pair.</summary>
    public AdapterFolder AddPair(int layer, string path, int rank = 4, string type = "F32")
    {
        var (inputs, outputs) = Model.Shape((Projection)Array.IndexOf(ModuleName.Paths, path));
        return Add(Name(layer, path, "lora_A.weight"), rank, inputs, type).Add(Name(layer, path, "lora_B.weight"), outputs, rank, type);
    }

    /// <summary>Adds q and v of both layers.</summary>
    public AdapterFolder AddQueryAndValue()
    {
        for (var layer = 0; layer < 2; layer++) AddPair(layer, "self_attn.q_proj").AddPair(layer, "self_attn.v_proj");
        return this;
    }

    public void Replace(string name, Func<(string Name, string Type, long[] Shape, byte[] Data), (string, string, long[], byte[])> change)
    {
        var at = Tensors.FindIndex(t => t.Name == name);
        Tensors[at] = change(Tensors[at]);
    }

    /// <summary>Writes both files and reads them.</summary>
    public (AdapterReport Report, Adapter? Adapter) Read(int maxRank = 64, string? baseModel = null)
    {
        File.WriteAllText(System.IO.Path.Combine(Path, "adapter_config.json"), Config.ToJsonString());
        File.WriteAllBytes(System.IO.Path.Combine(Path, "adapter_model.safetensors"), SafeTensorsBytes.Of(Tensors));
        return AdapterFile.Read(Path, Model, maxRank, baseModel);
    }

    /// <summary>Reads, expecting the files to be accepted.</summary>
    public Adapter Accept(int maxRank = 64)
    {
        var (report, adapter) = Read(maxRank);
        Assert.DoesNotContain(report.Findings, f => f.Severity == Severity.Error);
        Assert.NotNull(adapter);
        return adapter;
    }

    /// <summary>Reads, expecting this error.</summary>
    public AdapterFinding Refuse(string code)
    {
        var (report, adapter) = Read();
        Assert.Null(adapter);
        Assert.False(report.Accepted);
        Assert.DoesNotContain(report.Findings, f => f.ToString().Contains(Path, StringComparison.Ordinal));
        return Assert.Single(report.Findings.Where(f => f.Severity == Severity.Error && f.Code == code).Take(1));
    }
}
