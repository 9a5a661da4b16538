using System.Text;
using System.Text.Json.Nodes;
using TenantLora.Runtime;
using TenantLora.Runtime.Tokenization;

namespace TenantLora.Tests.Tokenization;

public sealed class HostileFileTests
{
    private const string Added = """[{"id": 3, "content": "<s>", "special": true, "normalized": false, "single_word": false, "lstrip": false, "rstrip": false}]""";

    [Theory]
    [InlineData("model.type", "\"Unigram\"")]
    [InlineData("model.dropout", "0.1")]
    [InlineData("model.continuing_subword_prefix", "\"##\"")]
    [InlineData("model.end_of_word_suffix", "\"</w>\"")]
    [InlineData("model.unk_token", "\"nobody\"")]
    [InlineData("model.byte_fallback", "\"yes\"")]
    [InlineData("model.new_idea", "true")]
    [InlineData("model.vocab", "[]")]
    [InlineData("model.vocab[\"b\"]", "0")]                             // two tokens with one id
    [InlineData("model.vocab[\"c\"]", "7")]                             // a gap
    [InlineData("model.vocab[\"c\"]", "-1")]
    [InlineData("model.vocab[\"c\"]", "1e99")]
    [InlineData("model.merges", "{}")]
    [InlineData("model.merges[0]", "\"a nobody\"")]
    [InlineData("model.merges[0]", "\"a b c\"")]
    [InlineData("model.merges[0]", "[\"a\"]")]
    [InlineData("added_tokens[0].id", "4")]
    [InlineData("added_tokens[0].content", "\"\"")]
    [InlineData("added_tokens[0].special", "1")]
    [InlineData("normalizer.type", "\"BertNormalizer\"")]
    [InlineData("pre_tokenizer.type", "\"UnicodeScripts\"")]
    [InlineData("pre_tokenizer.pattern.Regex", "\"\\\\p{Han}+\"")]
    [InlineData("pre_tokenizer.behavior", "\"isolated\"")]
    [InlineData("pre_tokenizer.behavior", "\"1\"")]
    [InlineData("post_processor.type", "\"RobertaProcessing\"")]
    [InlineData("post_processor.single", "[]")]
    [InlineData("decoder.type", "\"WordPiece\"")]
    [InlineData("version", "\"2.0\"")]
    [InlineData("novelty", "{}")]
    public void What_is_not_understood_is_refused_by_name(string field, string value)
    {
        var root = Valid();
        Set(root, field, JsonNode.Parse(value));
        using var model = new TempModel().With("tokenizer.json", root.ToJsonString());
        var refusal = Assert.Throws<ModelFileException>(() => Tokenizer.Load(model.Directory));
        Assert.Equal(field, refusal.Field);
        Assert.EndsWith("tokenizer.json", refusal.File, StringComparison.Ordinal);
    }

    [Fact]
    public void All_that_is_wrong_is_said_at_once()
    {
        var root = Valid();
        Set(root, "model.dropout", 0.5);
        Set(root, "normalizer.type", "Nmt");
        Set(root, "decoder.type", "CTC");
        using var model = new TempModel().With("tokenizer.json", root.ToJsonString());
        var message = Assert.Throws<ModelFileException>(() => Tokenizer.Load(model.Directory)).Message;
        Assert.All(["model.dropout", "normalizer.type", "decoder.type", "Nmt", "CTC"], part => Assert.Contains(part, message, StringComparison.Ordinal));
    }

    [Theory]
    [InlineData("")]
    [InlineData("[]")]
    [InlineData("{")]
    [InlineData("{}")]
    [InlineData("{\"model\": 1}")]
    [InlineData("{\"model\": {\"type\": \"BPE\", \"vocab\": {\"\\ud800\": 0}, \"merges\": []}}")]
    [InlineData("{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"a\": 1}, \"merges\": []}}")]
    [InlineData("{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0}, \"merges\": [\"\\ud800 a\"]}}")]
    public void Damaged_files_are_refused(string text)
    {
        using var model = new TempModel().With("tokenizer.json", text);
        Assert.Throws<ModelFileException>(() => Tokenizer.Load(model.Directory));
    }

    [Fact]
    public void Missing_and_nested_files_are_refused()
    {
        Assert.Throws<ModelFileException>(() => Tokenizer.Load(Repo.Path("no", "such", "folder")));
        using var model = new TempModel().With("tokenizer.json", new string('[', 100_000));
        Assert.Throws<ModelFileException>(() => Tokenizer.Load(model.Directory));
    }

    [Fact]
    public void Files_damaged_at_random_are_refused_or_work()
    {
        var random = new Random(11);
        var valid = Encoding.UTF8.GetBytes(Valid().ToJsonString());
        using var model = new TempModel();
        for (var round = 0; round < 600; round++)
        {
            var bytes = valid.ToArray();
            for (var i = random.Next(3); i >= 0; i--) bytes[random.Next(bytes.Length)] = (byte)random.Next(256);
            LoadAndUse(model, bytes);
        }
    }

    [Fact]
    public void Values_swapped_at_random_are_refused_or_work()
    {
        var random = new Random(12);
        string[] values = ["null", "true", "-1", "0", "1e400", "99999999999", "\"\"", "\"A\"", "\"a b\"", "\"\\u0000\"", "[]", "[null]", "[[\"a\", \"b\"]]", "{}", "{\"type\": \"Sequence\"}", "{\"type\": \"ByteLevel\"}"];
        using var model = new TempModel();
        for (var round = 0; round < 600; round++)
        {
            var root = Valid();
            var places = Places(root).ToList();
            var (parent, key) = places[random.Next(places.Count)];
            var value = JsonNode.Parse(values[random.Next(values.Length)]);
            if (parent is JsonArray array) array[(int)key] = value;
            else if (random.Next(4) == 0) parent.AsObject().Remove((string)key);
            else parent[(string)key] = value;
            LoadAndUse(model, Encoding.UTF8.GetBytes(root.ToJsonString()));
        }
    }

    private static void LoadAndUse(TempModel model, byte[] json)
    {
        File.WriteAllBytes(Path.Combine(model.Directory, "tokenizer.json"), json);
        Tokenizer tokenizer;
        try
        {
            tokenizer = Tokenizer.Load(model.Directory);
        }
        catch (ModelFileException)
        {
            return;
        }
        var ids = tokenizer.Encode("abc <s> cab é🌱", addSpecialTokens: true);
        tokenizer.Decode(ids, skipSpecial: true);
        tokenizer.Encode(PromptText.FromOutside("a<s>"));
        Assert.All(ids, id => Assert.InRange(id, 0, tokenizer.Size - 1));
    }

    private static JsonNode Valid()
    {
        using var model = TempModel.Of(["a", "b", "c"], [], """{"dropout": null, "unk_token": "a", "fuse_unk": false, "byte_fallback": true, "ignore_merges": false}""", Added,
            """{"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Replace", "pattern": {"String": " "}, "content": "c"}, {"type": "Prepend", "prepend": "c"}]}""",
            """{"type": "Split", "pattern": {"Regex": "\\p{L}+|(?i:'s)|\\s+(?!\\S)"}, "behavior": "Isolated", "invert": false}""",
            """{"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "c"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}""",
            """{"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}}}""");
        var root = JsonNode.Parse(File.ReadAllText(Path.Combine(model.Directory, "tokenizer.json")))!;
        root["model"]!["vocab"] = JsonNode.Parse("""{"a": 0, "b": 1, "c": 2}""");
        root["model"]!["merges"] = new JsonArray();
        return root;
    }

    private static void Set(JsonNode root, string field, JsonNode? value)
    {
        // "model.merges[0]" and "model.vocab["b"]" as the findings spell them.
        var steps = field.Replace("[\"", ".", StringComparison.Ordinal).Replace("\"]", "", StringComparison.Ordinal).Replace("[", ".", StringComparison.Ordinal).Replace("]", "", StringComparison.Ordinal).Split('.');
        foreach (var step in steps[..^1]) root = int.TryParse(step, out var index) ? root[index]! : root[step]!;
        if (root is JsonArray array) array.Insert(int.Parse(steps[^1], System.Globalization.CultureInfo.InvariantCulture), value);
        else root[steps[^1]] = value;
    }

    private static IEnumerable<(JsonNode Parent, object Key)> Places(JsonNode? node) => node switch
    {
        JsonObject fields => fields.SelectMany(field => Places(field.Value).Prepend((node, field.Key))),
        JsonArray items => items.SelectMany((item, index) => Places(item).Prepend((node, (object)index))),
        _ => [],
    };
}
