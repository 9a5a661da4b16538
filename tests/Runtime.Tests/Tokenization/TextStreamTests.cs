using System.Text;
using TenantLora.Runtime.Tokenization;

namespace TenantLora.Tests.Tokenization;

public sealed class TextStreamTests
{
    public static TheoryData<string> Kinds => ["demo", "llama3-style", "llama2-style", "gpt2-style", "metaspace", "spaced", "strip"];

    /// <summary>Random tokens make broken UTF-8, runs of bytes and special tokens aplenty.</summary>
    [Theory, MemberData(nameof(Kinds))]
    public void All_pieces_together_are_the_decoded_text_before_the_first_stop(string kind)
    {
        using var temporary = Temporary(kind);
        var tokenizer = Tokenizer.Load(temporary?.Directory ?? Repo.Fixture("tokenizers", kind));
        var random = new Random(kind.Length);
        for (var round = 0; round < 1000; round++)
        {
            var ids = RandomIds(tokenizer, random);
            var skipSpecial = random.Next(2) == 0;
            var text = tokenizer.Decode(ids, skipSpecial);
            var stops = RandomStops(text, random);
            var cut = stops.Where(stop => stop.Length > 0).Select(stop => text.IndexOf(stop, StringComparison.Ordinal)).Where(at => at >= 0).DefaultIfEmpty(-1).Min();

            var stream = new TextStream(tokenizer, stops, skipSpecial);
            var pieces = ids.Select(stream.Push).ToList();
            pieces.Add(stream.Finish());
            Assert.Equal(cut < 0 ? text : text[..cut], string.Concat(pieces));
            Assert.Equal(cut >= 0, stream.Stopped);
            Assert.All(pieces, piece => Assert.Equal(piece, Encoding.UTF8.GetString(Encoding.UTF8.GetBytes(piece))));     // no half surrogate pairs
        }
    }

    [Fact]
    public void Characters_come_whole_and_as_soon_as_they_are()
    {
        var tokenizer = Tokenizer.Load(Repo.Fixture("tokenizers", "gpt2-style"));
        var stream = new TextStream(tokenizer, []);
        var pieces = tokenizer.Encode("é🌱", addSpecialTokens: false).Select(stream.Push).ToList();
        Assert.Equal(["", "é", "", "", "", "🌱"], pieces);
        Assert.Equal("", stream.Finish());
    }

    [Fact]
    public void Incomplete_bytes_become_a_replacement_character_at_the_end()
    {
        var tokenizer = Tokenizer.Load(Repo.Fixture("tokenizers", "gpt2-style"));
        var stream = new TextStream(tokenizer, []);
        foreach (var id in tokenizer.Encode("🌱", addSpecialTokens: false)[..3]) Assert.Equal("", stream.Push(id));
        Assert.Equal("\uFFFD", stream.Finish());
    }

    [Theory]
    [InlineData("hello END world", "hello ", "END")]
    [InlineData("aababaabc", "aabab", "aabc")]                         // a failed beginning is part of the next one
    [InlineData("aaaaab", "aa", "aaab")]
    [InlineData("xxabcdyy", "xx", "bc", "abcd")]                       // the one that begins first, though another ends first
    [InlineData("xxabcyy", "xxa", "bc", "abcd")]
    [InlineData("xxabc", "xxa", "bc", "abcd")]                         // decided by the end of the text
    [InlineData("no stop, ST", "no stop, ST", "STOP")]
    [InlineData("STOP", "", "STOP")]
    [InlineData("a🌱b🚀c", "a🌱b", "🚀")]
    [InlineData("untouched", "untouched", "")]
    public void Stop_strings_are_found_across_tokens(string text, string shown, params string[] stops)
    {
        using var model = Letters();
        var tokenizer = Tokenizer.Load(model.Directory);
        var stream = new TextStream(tokenizer, stops);
        var pieces = tokenizer.Encode(text, addSpecialTokens: false).Select(stream.Push).ToList();
        Assert.Equal(shown, string.Concat(pieces) + stream.Finish());
        Assert.Equal(shown != text, stream.Stopped);
    }

    [Fact]
    public void Only_what_may_still_become_a_stop_string_is_held()
    {
        using var model = Letters();
        var tokenizer = Tokenizer.Load(model.Directory);
        var stream = new TextStream(tokenizer, ["\n\nUser:"]);
        var pieces = tokenizer.Encode("a\nb\n\nUs!", addSpecialTokens: false).Select(stream.Push).ToList();
        Assert.Equal(["a", "", "\nb", "", "", "", "", "\n\nUs!"], pieces);
    }

    [Fact]
    public void A_long_answer_costs_as_much_as_its_parts()
    {
        using var model = Letters();
        var tokenizer = Tokenizer.Load(model.Directory);
        var stream = new TextStream(tokenizer, [new string('a', 1000) + "b"]);
        var id = tokenizer.Find("a")!.Value;
        var length = 0;
        for (var i = 0; i < 200_000; i++) length += stream.Push(id).Length;
        Assert.Equal(200_000, length + stream.Finish().Length);
    }

    private static int[] RandomIds(Tokenizer tokenizer, Random random)
    {
        // Half the rounds draw from few tokens, so that runs of bytes and stop strings come about.
        var range = random.Next(2) == 0 ? tokenizer.Size + 2 : Math.Min(270, tokenizer.Size);
        return [.. Enumerable.Range(0, random.Next(25)).Select(_ => random.Next(range))];
    }

    private static List<string> RandomStops(string text, Random random)
    {
        var stops = new List<string>();
        for (var i = random.Next(4); i > 0; i--)
        {
            var start = random.Next(text.Length + 1);
            var stop = text.Substring(start, random.Next(Math.Min(6, text.Length - start) + 1));
            if (random.Next(3) == 0) stop += "zq";
            // A caller's text never begins or ends inside a character.
            if (stop.Length > 0 && !char.IsLowSurrogate(stop[0]) && !char.IsHighSurrogate(stop[^1])) stops.Add(stop);
        }
        return stops;
    }

    private static TempModel Letters() => TempModel.Of([.. Enumerable.Range(0, 256).Select(b => ByteAlphabet.ToChar((byte)b).ToString())], [], preTokenizer: ByteLevel, decoder: ByteLevel);

    private const string ByteLevel = """{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}""";

    private static TempModel? Temporary(string kind)
    {
        string[] vocabulary = ["▁", "a", "▁b", "c▁", "▁▁", "🌱", "<s>", "é", "▁d▁", .. Enumerable.Range(0, 256).Select(b => $"<0x{b:X2}>")];
        const string added = """[{"id": 6, "content": "<s>", "special": true, "normalized": false, "single_word": false, "lstrip": false, "rstrip": false}]""";
        return kind switch
        {
            "metaspace" => TempModel.Of(vocabulary, [], added: added, decoder: """{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}"""),
            "spaced" => TempModel.Of(vocabulary, [], added: added),
            "strip" => TempModel.Of(vocabulary, [], added: added, decoder: """
                {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                 {"type": "Strip", "content": "c", "start": 1, "stop": 1}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 2}]}
                """),
            _ => null,
        };
    }
}
