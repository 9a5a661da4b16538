using System.Text.Json.Nodes;

namespace TenantLora.Tests.Tokenization;

/// <summary>A model folder that a test writes itself.</summary>
internal sealed class TempModel : IDisposable
{
    public string Directory { get; } = System.IO.Directory.CreateTempSubdirectory("tokenizer-").FullName;

    public TempModel With(string name, string text)
    {
        File.WriteAllText(Path.Combine(Directory, name), text);
        return this;
    }

    /// <summary>A tokenizer.json with a given BPE vocabulary and further parts, which are JSON.</summary>
    public static TempModel Of(string[] vocabulary, string[] merges, string? model = null, string? added = null, string? normalizer = null, string? preTokenizer = null, string? decoder = null, string? postProcessor = null)
    {
        var bpe = JsonNode.Parse(model ?? "{}")!.AsObject();
        bpe["type"] = "BPE";
        bpe["vocab"] = new JsonObject(vocabulary.Select((token, id) => KeyValuePair.Create(token, (JsonNode?)id)));
        bpe["merges"] = new JsonArray([.. merges.Select(merge => (JsonNode)merge)]);
        var root = new JsonObject
        {
            ["version"] = "1.0",
            ["added_tokens"] = JsonNode.Parse(added ?? "[]"),
            ["normalizer"] = JsonNode.Parse(normalizer ?? "null"),
            ["pre_tokenizer"] = JsonNode.Parse(preTokenizer ?? "null"),
            ["post_processor"] = JsonNode.Parse(postProcessor ?? "null"),
            ["decoder"] = JsonNode.Parse(decoder ?? "null"),
            ["model"] = bpe,
        };
        return new TempModel().With("tokenizer.json", root.ToJsonString());
    }

    public void Dispose() => System.IO.Directory.Delete(Directory, recursive: true);
}
