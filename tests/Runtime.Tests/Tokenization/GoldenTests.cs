using System.Text.Json;
using TenantLora.Runtime.Tokenization;

namespace TenantLora.Tests.Tokenization;

/// <summary>Ids and texts as HF's tokenizers gives them for the same files (fixtures.py in the demo model's recipe).</summary>
public sealed class GoldenTests
{
    public static TheoryData<string> Kinds => ["demo", "llama3-style", "llama2-style", "gpt2-style"];

    [Theory, MemberData(nameof(Kinds))]
    public void Ids_and_texts_are_those_of_the_reference(string kind)
    {
        var tokenizer = Tokenizer.Load(Repo.Fixture("tokenizers", kind));
        foreach (var golden in Read(Repo.Fixture("tokenizers", kind, "golden.json")).EnumerateArray())
        {
            var text = golden.GetProperty("text").GetString()!;
            var plain = Ids(golden.GetProperty("ids_plain"));
            Assert.Equal(Ids(golden.GetProperty("ids")), tokenizer.Encode(text, addSpecialTokens: true));
            Assert.Equal(plain, tokenizer.Encode(text, addSpecialTokens: false));
            Assert.Equal(golden.GetProperty("decoded").GetString(), tokenizer.Decode(plain, skipSpecial: false));
        }
    }

    private static JsonElement Read(string path) => JsonDocument.Parse(File.ReadAllBytes(path)).RootElement;

    private static int[] Ids(JsonElement array) => [.. array.EnumerateArray().Select(id => id.GetInt32())];
}
