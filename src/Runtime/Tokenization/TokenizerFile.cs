using System.Text.Json;

namespace TenantLora.Runtime.Tokenization;

/// <summary>
/// Reads <c>tokenizer.json</c> (HF <c>tokenizers</c>, version 1.0) into the stages of <see cref="TokenizerParts"/>. Everything in the file is either
/// honoured or refused by name: a setting that were ignored would give other ids than the model was trained with, and nobody would see it.
/// </summary>
internal sealed class TokenizerFile
{
    private const string Name = "tokenizer.json", ConfigName = "tokenizer_config.json";

    private readonly Findings findings;
    private readonly Dictionary<string, int> ids = [];          // model's and added
    private readonly List<string> tokens = [];                  // by id

    private TokenizerFile(Findings findings) => this.findings = findings;

    /// <exception cref="ModelFileException">A file is missing, damaged, or asks for something that is not supported.</exception>
    public static TokenizerParts Read(string directory)
    {
        var parts = Findings.Read(Path.Combine(directory, Name), (root, findings) => new TokenizerFile(findings).ReadRoot(root));
        var config = Path.Combine(directory, ConfigName);
        return File.Exists(config) ? Findings.Read(config, (root, _) => ReadConfig(root, parts)) : parts;
    }

    private TokenizerParts ReadRoot(JsonFields root)
    {
        root.Only("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model");
        if (root.OptionalString("version") is { } version && version != "1.0") root.Refuse("version", "1.0", version);
        // truncation and padding are defaults of batch calls, which transformers overrides at each call; nothing here cuts or pads a prompt.

        if (root.Object("model") is not { } modelFields) throw new ModelFileException(findings.File, "model", "an object", "none");
        var model = ReadModel(modelFields);
        var modelIds = new Dictionary<string, int>(ids);
        var normalizer = root.Object("normalizer") is { } n ? ReadNormalizer(n) : null;
        var added = ReadAddedTokens(root, normalizer);
        var preTokenizer = root.Object("pre_tokenizer") is { } p ? ReadPreTokenizer(p) : null;
        var before = new List<int>();
        var behind = new List<int>();
        if (root.Object("post_processor") is { } post) ReadPostProcessor(post, before, behind);
        var decoder = root.Object("decoder") is { } d ? new DecoderReader().Read(d) : new DecoderReader();
        findings.ThrowIfAny();

        return new TokenizerParts
        {
            Tokens = [.. tokens],
            Ids = ids,
            Special = [.. added.Where(a => a.Token.Special).Select(a => a.Token.Id)],
            InText = new AddedTokens(added.Where(a => !a.Normalized).Select(a => a.Token)),
            InNormalizedText = new AddedTokens(added.Where(a => a.Normalized).Select(a => a.Token)),
            Normalizer = normalizer,
            PreTokenizer = preTokenizer,
            Model = model(modelIds),
            Before = before,
            Behind = behind,
            Decoder = decoder.Make,
            ByteLevel = decoder.ByteLevel,
            VisibleSpace = decoder.VisibleSpace,
        };
    }

    private Func<Dictionary<string, int>, Bpe> ReadModel(JsonFields model)
    {
        model.Only("type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges");
        // Very old files carry no type; every other model then lacks merges and is refused below.
        if (model.OptionalString("type") is { } type && type != "BPE") model.Refuse("type", "BPE", type);
        if (model.Value("dropout") is { } dropout && !(dropout.ValueKind == JsonValueKind.Number && dropout.TryGetDouble(out var rate) && rate == 0))
            model.Refuse("dropout", "null or 0 (encoding is not random)", JsonFields.Describe(dropout));
        foreach (var affix in (ReadOnlySpan<string>)["continuing_subword_prefix", "end_of_word_suffix"])
            if (model.OptionalString(affix) is { Length: > 0 } set) model.Refuse(affix, "null or empty", $"\"{set}\"");

        ReadVocabulary(model);
        var merges = ReadMerges(model);
        var unknown = -1;
        if (model.OptionalString("unk_token") is { } token && !ids.TryGetValue(token, out unknown))
        {
            unknown = -1;
            model.Refuse("unk_token", "a token of the vocabulary", $"\"{token}\"");
        }
        var byteFallback = model.Bool("byte_fallback", false);
        var fuseUnknown = model.Bool("fuse_unk", false);
        var wholeWordsFirst = model.Bool("ignore_merges", false);
        return vocabulary => new Bpe(vocabulary, merges, byteFallback, unknown, fuseUnknown, wholeWordsFirst);
    }

    private void ReadVocabulary(JsonFields model)
    {
        if (model.Value("vocab") is not { ValueKind: JsonValueKind.Object } vocabulary)
        {
            model.Refuse("vocab", "an object of tokens and ids", model.Value("vocab") is { } wrong ? JsonFields.Describe(wrong) : "nothing");
            return;
        }
        var count = vocabulary.EnumerateObject().Count();
        var byId = new string?[count];
        foreach (var entry in vocabulary.EnumerateObject())
        {
            if (entry.Value.ValueKind != JsonValueKind.Number || !entry.Value.TryGetInt32(out var id) || id < 0 || id >= count)
                Refuse($"an id from 0 to {count - 1} ({count} tokens without a gap)", JsonFields.Describe(entry.Value));
            else if (byId[id] is { } other) Refuse("an id of its own", $"{id}, which is \"{other}\"");
            else if (!ids.TryAdd(entry.Name, id)) Refuse("one entry", "several");
            else byId[id] = entry.Name;

            void Refuse(string expected, string found) => model.Refuse($"vocab[\"{entry.Name}\"]", expected, found);
        }
        tokens.AddRange(byId.Select(token => token ?? ""));
    }

    private Dictionary<(int, int), (int, int)> ReadMerges(JsonFields model)
    {
        var merges = new Dictionary<(int, int), (int, int)>();
        if (model.Value("merges") is not { ValueKind: JsonValueKind.Array } list)
        {
            model.Refuse("merges", "an array", model.Value("merges") is { } wrong ? JsonFields.Describe(wrong) : "nothing");
            return merges;
        }
        foreach (var (rank, merge) in list.EnumerateArray().Index())
        {
            if (Pair(merge) is not var (left, right))
                model.Refuse($"merges[{rank}]", "\"left right\" or [\"left\", \"right\"]", JsonFields.Describe(merge));
            else if (!ids.TryGetValue(left, out var leftId) || !ids.TryGetValue(right, out var rightId) || !ids.TryGetValue(left + right, out var merged))
                model.Refuse($"merges[{rank}]", "two tokens of the vocabulary that make a third", JsonFields.Describe(merge));
            else merges[(leftId, rightId)] = (rank, merged);
        }
        return merges;
    }

    private static (string Left, string Right)? Pair(JsonElement merge)
    {
        if (merge.ValueKind == JsonValueKind.String)
            return merge.GetString()!.Split(' ') is [var left, var right] ? (left, right) : null;
        if (merge.ValueKind != JsonValueKind.Array || merge.GetArrayLength() != 2) return null;
        return merge[0].ValueKind == JsonValueKind.String && merge[1].ValueKind == JsonValueKind.String ? (merge[0].GetString()!, merge[1].GetString()!) : null;
    }

    private List<(AddedToken Token, bool Normalized)> ReadAddedTokens(JsonFields root, Normalizer? normalizer)
    {
        var added = new List<(AddedToken, bool)>();
        var seen = new HashSet<string>();
        // HF gives the next free ids in the file's order and ignores the ids written there; a file where the two differ is damaged.
        foreach (var fields in root.Objects("added_tokens"))
        {
            fields.Only("id", "content", "single_word", "lstrip", "rstrip", "normalized", "special");
            var content = fields.String("content");
            var id = fields.Int("id");
            if (content.Length == 0)
            {
                fields.Refuse("content", "a text", "nothing");
                continue;
            }
            if (!seen.Add(content))
            {
                fields.Refuse("content", "a token that was not added before", $"\"{content}\"");
                continue;
            }
            var normalized = fields.Bool("normalized", false);
            var spelling = normalized && normalizer is not null ? normalizer.Apply(new MarkedText(content, null)).Text : content;
            if (spelling.Length == 0) fields.Refuse("content", "a token that normalization leaves something of", $"\"{content}\"");
            if (!ids.TryGetValue(content, out var own))
            {
                own = tokens.Count;
                tokens.Add(spelling);
                ids.Add(content, own);
            }
            else if (own < tokens.Count) tokens[own] = spelling;
            if (own != id) fields.Refuse("id", $"{own} (the vocabulary's own, or the next free one)", id.ToString(System.Globalization.CultureInfo.InvariantCulture));
            added.Add((new AddedToken(spelling, own, fields.Bool("special", false), fields.Bool("single_word", false), fields.Bool("lstrip", false), fields.Bool("rstrip", false)), normalized));
        }
        return added;
    }

    private Normalizer? ReadNormalizer(JsonFields fields)
    {
        switch (fields.String("type"))
        {
            case "Sequence":
                fields.Only("type", "normalizers");
                return new Normalizer.Sequence([.. fields.Objects("normalizers").Select(ReadNormalizer).OfType<Normalizer>()]);
            case "Prepend":
                fields.Only("type", "prepend");
                return new Normalizer.Prepend(fields.String("prepend"));
            case "Replace":
                fields.Only("type", "pattern", "content");
                return new Normalizer.Replace(ReadPattern(fields), fields.String("content"));
            case "Lowercase":
                fields.Only("type");
                return new Normalizer.Lowercase();
            case "Strip":
                fields.Only("type", "strip_left", "strip_right");
                return new Normalizer.Strip(fields.Bool("strip_left"), fields.Bool("strip_right"));
            case "NFC" or "NFD" or "NFKC" or "NFKD":
                fields.Only("type");
                var form = fields.String("type");
                return new Normalizer.Unicode(compose: form.EndsWith('C'), compatible: form.Contains('K', StringComparison.Ordinal));
            case var other:
                fields.Refuse("type", "Sequence, Prepend, Replace, Lowercase, Strip, NFC, NFD, NFKC or NFKD", other);
                return null;
        }
    }

    private PreTokenizer? ReadPreTokenizer(JsonFields fields)
    {
        switch (fields.String("type"))
        {
            case "Sequence":
                fields.Only("type", "pretokenizers");
                return new PreTokenizer.Sequence([.. fields.Objects("pretokenizers").Select(ReadPreTokenizer).OfType<PreTokenizer>()]);
            case "Split":
                fields.Only("type", "pattern", "behavior", "invert");
                return new PreTokenizer.Split(ReadPattern(fields), ReadCutting(fields, null), fields.Bool("invert", false));
            case "ByteLevel":
                fields.Only("type", "add_prefix_space", "trim_offsets", "use_regex");
                return new PreTokenizer.ByteLevel(fields.Bool("add_prefix_space"), fields.Bool("use_regex", true));
            case "Metaspace":
                var (replacement, prepend) = ReadMetaspace(fields);
                return new PreTokenizer.Metaspace(replacement, prepend, fields.Bool("split", true));
            case "Digits":
                fields.Only("type", "individual_digits");
                return new PreTokenizer.Characters(PreTokenizer.Characters.Digits, fields.Bool("individual_digits") ? Cutting.Isolated : Cutting.Contiguous);
            case "Punctuation":
                fields.Only("type", "behavior");
                return new PreTokenizer.Characters(PreTokenizer.Characters.Punctuation, ReadCutting(fields, Cutting.Isolated));
            case "Whitespace":
                fields.Only("type");
                // Rust's \w has the joiners, which Oniguruma's lacks.
                return new PreTokenizer.Split(Pattern.Parse(@"[\w\u200C\u200D]+|[^\w\u200C\u200D\s]+"), Cutting.Removed, invert: true);
            case "WhitespaceSplit":
                fields.Only("type");
                return new PreTokenizer.Characters(CodePointSet.WhiteSpace(), Cutting.Removed);
            case var other:
                fields.Refuse("type", "Sequence, Split, ByteLevel, Metaspace, Digits, Punctuation, Whitespace or WhitespaceSplit", other);
                return null;
        }
    }

    private static Cutting ReadCutting(JsonFields fields, Cutting? fallback)
    {
        if (fallback is { } value && fields.Value("behavior") is null) return value;
        var name = fields.String("behavior");
        if (Array.IndexOf(Enum.GetNames<Cutting>(), name) >= 0) return Enum.Parse<Cutting>(name);
        fields.Refuse("behavior", string.Join(", ", Enum.GetNames<Cutting>()), $"\"{name}\"");
        return Cutting.Isolated;
    }

    /// <summary><c>{"String": …}</c> or <c>{"Regex": …}</c>.</summary>
    private static Pattern ReadPattern(JsonFields fields)
    {
        if (fields.Object("pattern") is not { } pattern)
        {
            if (fields.Value("pattern") is null) fields.Refuse("pattern", "an object", "nothing");
            return Pattern.Literal("");
        }
        pattern.Only("String", "Regex");
        if (pattern.Value("Regex") is null) return Pattern.Literal(pattern.String("String"));
        try
        {
            return Pattern.Parse(pattern.String("Regex"));
        }
        catch (FormatException unsupported)
        {
            pattern.Refuse("Regex", "a regular expression that this reader understands", unsupported.Message);
            return Pattern.Literal("");
        }
    }

    private static (char Replacement, PreTokenizer.Metaspace.Prepend Prepend) ReadMetaspace(JsonFields fields)
    {
        fields.Only("type", "replacement", "str_rep", "add_prefix_space", "prepend_scheme", "split");
        var replacement = OneCharacter(fields, "replacement");
        var (scheme, given) = fields.OptionalString("prepend_scheme") switch
        {
            null => (PreTokenizer.Metaspace.Prepend.Always, false),
            "always" => (PreTokenizer.Metaspace.Prepend.Always, true),
            "first" => (PreTokenizer.Metaspace.Prepend.First, true),
            "never" => (PreTokenizer.Metaspace.Prepend.Never, true),
            var other => (Refused(other), true),
        };
        if (fields.Bool("add_prefix_space", true) || scheme == PreTokenizer.Metaspace.Prepend.Never) return (replacement, scheme);
        // Files from before prepend_scheme say it this way; both and in conflict is an error in HF's, too.
        if (given) fields.Refuse("add_prefix_space", "an agreement with prepend_scheme", "false");
        return (replacement, PreTokenizer.Metaspace.Prepend.Never);

        PreTokenizer.Metaspace.Prepend Refused(string found)
        {
            fields.Refuse("prepend_scheme", "always, first or never", $"\"{found}\"");
            return PreTokenizer.Metaspace.Prepend.Never;
        }
    }

    private static char OneCharacter(JsonFields fields, string name)
    {
        if (fields.String(name) is [var character] && !char.IsSurrogate(character)) return character;
        fields.Refuse(name, "one character of the basic plane", $"\"{fields.OptionalString(name)}\"");
        return '_';
    }

    private void ReadPostProcessor(JsonFields fields, List<int> before, List<int> behind)
    {
        switch (fields.String("type"))
        {
            case "Sequence":
                fields.Only("type", "processors");
                foreach (var processor in fields.Objects("processors")) ReadPostProcessor(processor, before, behind);
                break;
            case "ByteLevel":
                // Moves offsets only.
                fields.Only("type", "add_prefix_space", "trim_offsets", "use_regex");
                break;
            case "TemplateProcessing":
                fields.Only("type", "single", "pair", "special_tokens");
                ReadTemplate(fields, before, behind);
                break;
            case var other:
                fields.Refuse("type", "Sequence, ByteLevel or TemplateProcessing", other);
                break;
        }
    }

    /// <summary>Each further template goes around what the one before it made. The form for pairs is for classifiers.</summary>
    private void ReadTemplate(JsonFields fields, List<int> before, List<int> behind)
    {
        var left = new List<int>();
        var right = new List<int>();
        var texts = 0;
        var special = fields.Object("special_tokens");
        foreach (var item in fields.Objects("single"))
        {
            item.Only("SpecialToken", "Sequence");
            if (item.Object("Sequence") is { } sequence)
            {
                sequence.Only("id", "type_id");
                if (sequence.String("id") != "A") sequence.Refuse("id", "A", sequence.String("id"));
                texts++;
            }
            else if (item.Object("SpecialToken") is { } token)
            {
                token.Only("id", "type_id");
                if (special?.Object(token.String("id")) is not { } entry) token.Refuse("id", "a token of special_tokens", token.String("id"));
                else (texts == 0 ? left : right).AddRange(ReadIds(entry));
            }
            else item.Refuse("", "SpecialToken or Sequence", "neither");
        }
        if (texts != 1) fields.Refuse("single", "the text once", $"it {texts} times");
        before.InsertRange(0, left);
        behind.AddRange(right);
    }

    private List<int> ReadIds(JsonFields entry)
    {
        entry.Only("id", "ids", "tokens");
        var list = new List<int>();
        if (entry.Value("ids") is not { ValueKind: JsonValueKind.Array } values)
        {
            entry.Refuse("ids", "an array of ids", entry.Value("ids") is { } wrong ? JsonFields.Describe(wrong) : "nothing");
            return list;
        }
        foreach (var value in values.EnumerateArray())
        {
            if (value.ValueKind == JsonValueKind.Number && value.TryGetInt32(out var id) && id >= 0 && id < tokens.Count) list.Add(id);
            else entry.Refuse("ids", "ids of the vocabulary", JsonFields.Describe(value));
        }
        return list;
    }

    /// <summary>Bos, eos, and the two switches that the tokenizer class of Llama and Mistral lets override the post-processor.</summary>
    private static TokenizerParts ReadConfig(JsonFields root, TokenizerParts parts)
    {
        parts = parts with { Bos = Token(root, "bos_token"), Eos = Token(root, "eos_token") };
        if (root.OptionalString("tokenizer_class") is not ("LlamaTokenizer" or "LlamaTokenizerFast")) return parts;
        return parts with
        {
            Before = Around(root, "add_bos_token", parts, parts.Bos, parts.Before),
            Behind = Around(root, "add_eos_token", parts, parts.Eos, parts.Behind),
        };
    }

    private static IReadOnlyList<int> Around(JsonFields root, string name, TokenizerParts parts, string? token, IReadOnlyList<int> fallback)
    {
        if (root.Value(name) is null) return fallback;
        if (!root.Bool(name)) return [];
        if (token is not null && parts.Ids.TryGetValue(token, out var id)) return [id];
        root.Refuse(name, "a token to add that the vocabulary has", token is null ? "none" : $"\"{token}\"");
        return fallback;
    }

    /// <summary>A string, or an object with the string as <c>content</c>.</summary>
    private static string? Token(JsonFields root, string name) =>
        root.Value(name) is { ValueKind: JsonValueKind.Object } ? root.Object(name)!.Value.OptionalString("content") : root.OptionalString(name);

    /// <summary>The decoder's stages in order. Once a stage has fused the tokens to one text, item-wise stages have nothing to hold on to.</summary>
    private sealed class DecoderReader
    {
        private readonly List<Func<DecoderStage>> stages = [];
        private bool given;
        private bool fused;

        public bool ByteLevel { get; private set; }

        public char? VisibleSpace { get; private set; }

        public IEnumerable<DecoderStage> Make() => given ? stages.Select(make => make()) : [new DecoderStage.Spaced()];

        public DecoderReader Read(JsonFields fields)
        {
            given = true;
            switch (fields.String("type"))
            {
                case "Sequence":
                    fields.Only("type", "decoders");
                    foreach (var decoder in fields.Objects("decoders")) Read(decoder);
                    break;
                case "ByteLevel":
                    fields.Only("type", "add_prefix_space", "trim_offsets", "use_regex");
                    ItemWise(fields, () => new DecoderStage.Bytes());
                    ByteLevel = fused = true;
                    break;
                case "ByteFallback":
                    fields.Only("type");
                    ItemWise(fields, () => new DecoderStage.ByteFallback());
                    break;
                case "Fuse":
                    fields.Only("type");
                    fused = true;
                    break;
                case "Metaspace":
                    var (replacement, prepend) = ReadMetaspace(fields);
                    ItemWise(fields, () => new DecoderStage.Metaspace(replacement, prepend != PreTokenizer.Metaspace.Prepend.Never));
                    VisibleSpace = replacement;
                    break;
                case "Replace":
                    ReadReplace(fields);
                    break;
                case "Strip":
                    fields.Only("type", "content", "start", "stop");
                    var (character, start, stop) = (OneCharacter(fields, "content"), fields.Int("start"), fields.Int("stop"));
                    if (fused) stages.Add(() => new DecoderStage.StripFused(character, start, stop));
                    else stages.Add(() => new DecoderStage.Strip(character, start, stop));
                    break;
                case var other:
                    fields.Refuse("type", "Sequence, ByteLevel, ByteFallback, Fuse, Metaspace, Replace or Strip", other);
                    break;
            }
            return this;
        }

        private void ReadReplace(JsonFields fields)
        {
            fields.Only("type", "pattern", "content");
            var (pattern, content) = (ReadPattern(fields), fields.String("content"));
            var plain = fields.Object("pattern")?.Value("String") is { ValueKind: JsonValueKind.String } value ? value.GetString() : null;
            if (fused && plain is not [_]) fields.Refuse("pattern", "a single character, since the tokens are one text already", "more");
            if (plain is [var character] && content == " ") VisibleSpace = character;
            stages.Add(() => new DecoderStage.Replace(pattern, content));
        }

        private void ItemWise(JsonFields fields, Func<DecoderStage> make)
        {
            if (fused) fields.Refuse("type", "a decoder that works on one text, since the tokens are fused already", fields.String("type"));
            stages.Add(make);
        }
    }
}
