using System.Text.Json;
using TenantLora.Runtime.Models;

namespace TenantLora.Bench;

/// <summary>Prints a JSON array of fp32 logits for each position, so that any other implementation can be held against this one.</summary>
internal static class Logits
{
    public static int Run(string[] args)
    {
        var arguments = new Arguments(args, "model", "adapter", "device", "ids", "rope");
        var directory = arguments.Required("model");
        int[] ids = arguments.Integers("ids") ?? throw new ArgumentException("--ids is missing.");
        var config = ModelConfig.Load(directory);
        config = arguments["rope"] switch
        {
            null or "f32" => config,
            "bf16" => LoadedModel.WithBf16Rope(config),
            var other => throw new ArgumentException($"--rope: expected f32 or bf16, found {other}."),
        };
        if (ids.Where(id => id < 0 || id >= config.VocabSize).Cast<int?>().FirstOrDefault() is { } bad)
            throw new ArgumentException($"--ids: expected 0 to {config.VocabSize - 1}, found {bad}.");

        using var files = WeightFiles.Open(directory);
        using var model = new LoadedModel(config, files.Get, ids.Length, arguments["device"] ?? "auto");
        using var adapter = arguments["adapter"] is { } path ? LoadedModel.LoadAdapter(path, config, model.Backend) : null;
        using var output = Console.OpenStandardOutput();
        foreach (var row in model.Logits(ids, adapter))
        {
            JsonSerializer.Serialize(output, row, BenchJson.Default.SingleArray);
            output.WriteByte((byte)'\n');
        }
        return 0;
    }
}
