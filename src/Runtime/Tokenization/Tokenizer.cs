using System.Text;

namespace TenantLora.Runtime.Tokenization;

/// <summary>
/// Text to token ids and back, as the model folder's <c>tokenizer.json</c> says and with the ids that HF's <c>tokenizers</c> would give.
/// Immutable, so any number of threads may share it. Text that arrives a token at a time goes through <see cref="TextStream"/>.
/// </summary>
internal sealed class Tokenizer
{
    private readonly TokenizerParts parts;
    private readonly bool[] special;

    internal Tokenizer(TokenizerParts parts)
    {
        this.parts = parts;
        special = new bool[parts.Tokens.Length];
        foreach (var id in parts.Special) special[id] = true;
    }

    /// <summary>Reads <c>tokenizer.json</c>, and <c>tokenizer_config.json</c> where there is one, from a model folder.</summary>
    /// <exception cref="ModelFileException">A file is missing, damaged, or asks for something that is not supported.</exception>
    public static Tokenizer Load(string directory) => new(TokenizerFile.Read(directory));

    /// <summary>Ids run from 0 to one below this.</summary>
    public int Size => parts.Tokens.Length;

    /// <summary>The id of the token that begins a text, if <c>tokenizer_config.json</c> names one.</summary>
    public int? Bos => parts.Bos is { } token ? Find(token) : null;

    /// <summary>The id of the token that ends a text, if <c>tokenizer_config.json</c> names one.</summary>
    public int? Eos => parts.Eos is { } token ? Find(token) : null;

    /// <summary>The id of a token by its exact spelling in the vocabulary.</summary>
    public int? Find(string token) => parts.Ids.TryGetValue(token, out var id) ? id : null;

    /// <summary>Whether a token steers the model rather than being text. False for ids that do not exist.</summary>
    public bool IsSpecial(int id) => (uint)id < (uint)special.Length && special[id];

    /// <summary>The ids of a text that is trusted as a whole: special tokens spelled in it are special.</summary>
    /// <param name="addSpecialTokens">Whether to add what the tokenizer puts around a text (the beginning-of-text token, mostly).</param>
    public int[] Encode(string text, bool addSpecialTokens)
    {
        var ids = new List<int>();
        if (addSpecialTokens) ids.AddRange(parts.Before);
        Encode(text, null, ids);
        if (addSpecialTokens) ids.AddRange(parts.Behind);
        return [.. ids];
    }

    /// <summary>The ids of a prompt that holds text from outside. Adds nothing around it: chat templates spell their tokens out.</summary>
    public int[] Encode(PromptText prompt)
    {
        bool[]? untrusted = null;
        if (prompt.Untrusted.Count > 0)
        {
            untrusted = new bool[prompt.Text.Length];
            foreach (var (start, length) in prompt.Untrusted) untrusted.AsSpan(start, length).Fill(true);
        }
        var ids = new List<int>();
        Encode(prompt.Text, untrusted, ids);
        return [.. ids];
    }

    /// <summary>The text of a token sequence; ids that do not exist are left out, bytes that are no UTF-8 become U+FFFD.</summary>
    /// <param name="skipSpecial">Leave special tokens out.</param>
    public string Decode(ReadOnlySpan<int> ids, bool skipSpecial)
    {
        var text = new StringBuilder();
        var stage = StartDecoding(text);
        foreach (var id in ids)
            if (Shown(id, skipSpecial) is { } token) stage.Push(token);
        stage.Finish();
        return text.ToString();
    }

    /// <summary>The bytes that one token stands for, taken by itself; they need not be whole characters. Empty for ids that do not exist.</summary>
    public byte[] Bytes(int id)
    {
        if (Shown(id, skipSpecial: false) is not { } token) return [];
        if (parts.ByteLevel) return DecoderStage.Bytes.Of(token);
        if (DecoderStage.ByteFallback.TryByte(token, out var value)) return [value];
        return Encoding.UTF8.GetBytes(parts.VisibleSpace is { } space ? token.Replace(space, ' ') : token);
    }

    /// <summary>A chain of decoding stages for one sequence, which writes to <paramref name="output"/>.</summary>
    internal DecoderStage StartDecoding(StringBuilder output) => DecoderStage.Chain(parts.Decoder(), output);

    /// <summary>What decoding sees of a token; null where there is nothing to see.</summary>
    internal string? Shown(int id, bool skipSpecial) =>
        (uint)id >= (uint)parts.Tokens.Length || (skipSpecial && special[id]) ? null : parts.Tokens[id];

    private void Encode(string text, bool[]? untrusted, List<int> ids)
    {
        text = WithoutLoneSurrogates(text);
        var scratch = new Bpe.Scratch();
        foreach (var (start, end, token) in parts.InText.Cut(text, untrusted))
        {
            if (token is not null)
            {
                ids.Add(token.Id);
                continue;
            }
            var source = new MarkedText(text, parts.InNormalizedText.HasSpecial ? untrusted : null).Slice(start, end);
            var normalized = parts.Normalizer?.Apply(source) ?? source;
            foreach (var (from, to, normalizedToken) in parts.InNormalizedText.Cut(normalized.Text, normalized.Untrusted))
            {
                if (normalizedToken is not null)
                {
                    ids.Add(normalizedToken.Id);
                    continue;
                }
                List<Piece> words = [new Piece(normalized.Text, from, to, First: start == 0 && from == 0)];
                if (parts.PreTokenizer is { } preTokenizer)
                {
                    var whole = words;
                    preTokenizer.Apply(whole, words = []);
                }
                foreach (var word in words) parts.Model.Encode(word.Text, scratch, ids);
            }
        }
    }

    /// <summary>Half a surrogate pair is no text; it becomes U+FFFD, as it would on its way through UTF-8.</summary>
    private static string WithoutLoneSurrogates(string text)
    {
        if (text.AsSpan().IndexOfAnyInRange('\uD800', '\uDFFF') < 0) return text;
        var characters = text.ToCharArray();
        for (var i = 0; i < characters.Length; i++)
        {
            if (!char.IsSurrogate(characters[i])) continue;
            if (i + 1 < characters.Length && char.IsSurrogatePair(characters[i], characters[i + 1])) i++;
            else characters[i] = '\uFFFD';
        }
        return new string(characters);
    }
}

/// <summary>What <see cref="TokenizerFile"/> read: the stages that <see cref="Tokenizer"/> sends text through.</summary>
internal sealed record TokenizerParts
{
    /// <summary>By id, in the spelling that decoding starts from.</summary>
    public required string[] Tokens { get; init; }

    public required Dictionary<string, int> Ids { get; init; }

    public required IReadOnlyList<int> Special { get; init; }

    /// <summary>Added tokens that are looked for in the text as it comes.</summary>
    public required AddedTokens InText { get; init; }

    /// <summary>Added tokens that are looked for behind the normalizer.</summary>
    public required AddedTokens InNormalizedText { get; init; }

    public Normalizer? Normalizer { get; init; }

    public PreTokenizer? PreTokenizer { get; init; }

    public required Bpe Model { get; init; }

    /// <summary>Ids put before and behind a text.</summary>
    public IReadOnlyList<int> Before { get; init; } = [];

    public IReadOnlyList<int> Behind { get; init; } = [];

    /// <summary>Makes the decoding stages of one sequence; they have state.</summary>
    public required Func<IEnumerable<DecoderStage>> Decoder { get; init; }

    /// <summary>Tokens are spelled in <see cref="ByteAlphabet"/>.</summary>
    public bool ByteLevel { get; init; }

    /// <summary>The character that tokens have for a space, where it is not a space.</summary>
    public char? VisibleSpace { get; init; }

    public string? Bos { get; init; }

    public string? Eos { get; init; }
}
