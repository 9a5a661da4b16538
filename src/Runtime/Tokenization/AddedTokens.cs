namespace TenantLora.Runtime.Tokenization;

/// <summary>A token that stands beside the model's vocabulary and is cut out of the text before anything else sees it.</summary>
/// <param name="Spelling">What is looked for: the token's content, normalized if it is to be found in normalized text.</param>
/// <param name="Special">Steers the model (turns, end of text); never matched in text from outside, skipped when decoding for people.</param>
/// <param name="SingleWord">Matches only where no word character touches it.</param>
/// <param name="TakesSpaceBefore">Swallows white space on its left (<c>lstrip</c>).</param>
/// <param name="TakesSpaceBehind">Swallows white space on its right (<c>rstrip</c>).</param>
internal sealed record AddedToken(string Spelling, int Id, bool Special, bool SingleWord, bool TakesSpaceBefore, bool TakesSpaceBehind);

/// <summary>Finds added tokens in text: the leftmost, and of those the longest. Immutable.</summary>
internal sealed class AddedTokens
{
    private static readonly CodePointSet Word = CodePointSet.Word();
    private readonly Node root = new();

    public AddedTokens(IEnumerable<AddedToken> tokens)
    {
        foreach (var token in tokens)
        {
            var node = root;
            foreach (var c in token.Spelling) node = node.Next.TryGetValue(c, out var next) ? next : node.Next[c] = new Node();
            node.Token = token;
            HasSpecial |= token.Special;
        }
    }

    public bool HasSpecial { get; }

    /// <summary>
    /// Cuts text into tokens and the stretches between them (<c>Token</c> null). A special token is not seen where it touches a
    /// character marked in <paramref name="untrusted"/> (one flag per UTF-16 unit; null: all trusted); a shorter or later token may be.
    /// </summary>
    public List<(int Start, int End, AddedToken? Token)> Cut(string text, bool[]? untrusted)
    {
        var pieces = new List<(int, int, AddedToken?)>();
        var covered = 0;
        for (var at = 0; at < text.Length;)
        {
            if (LongestAt(text, at, untrusted) is not { } token)
            {
                at++;
                continue;
            }
            var (start, end) = (at, at + token.Spelling.Length);
            at = end;
            if (token.SingleWord && (EndsInWord(text, start) || BeginsWithWord(text, end))) continue;
            if (token.TakesSpaceBefore)
                while (start > covered && char.IsWhiteSpace(text[start - 1])) start--;
            if (token.TakesSpaceBehind)
                while (end < text.Length && char.IsWhiteSpace(text[end])) end++;
            if (covered < start) pieces.Add((covered, start, null));
            pieces.Add((start, end, token));
            covered = end;
        }
        if (covered < text.Length) pieces.Add((covered, text.Length, null));
        return pieces;
    }

    private AddedToken? LongestAt(string text, int start, bool[]? untrusted)
    {
        AddedToken? longest = null;
        var node = root;
        for (var at = start; at < text.Length && node.Next.TryGetValue(text[at], out node!);)
        {
            at++;
            if (node.Token is { } token && !(token.Special && untrusted is not null && untrusted.AsSpan(start, at - start).Contains(true))) longest = token;
        }
        return longest;
    }

    private static bool EndsInWord(string text, int end) =>
        end > 0 && Word.Contains(char.IsLowSurrogate(text[end - 1]) && end > 1 ? CodePointAt(text, end - 2) : text[end - 1]);

    private static bool BeginsWithWord(string text, int start) => start < text.Length && Word.Contains(CodePointAt(text, start));

    private static int CodePointAt(string text, int at) => char.IsSurrogatePair(text, at) ? char.ConvertToUtf32(text, at) : text[at];

    private sealed class Node
    {
        public Dictionary<char, Node> Next { get; } = [];

        public AddedToken? Token { get; set; }
    }
}
