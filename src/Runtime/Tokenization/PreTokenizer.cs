using System.Globalization;
using System.Text;

namespace TenantLora.Runtime.Tokenization;

/// <summary>A stretch of text on its way to become words.</summary>
/// <param name="First">It begins where the whole input begins.</param>
internal readonly record struct Piece(string Source, int Start, int End, bool First)
{
    public ReadOnlySpan<char> Text => Source.AsSpan(Start, End - Start);
}

/// <summary>What becomes of the matches that cut a piece (HF's names).</summary>
internal enum Cutting { Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous }

/// <summary>A step that cuts text into the words which <see cref="Bpe"/> then encodes one by one. Immutable.</summary>
internal abstract class PreTokenizer
{
    /// <summary>Appends what becomes of the pieces; what is left empty is dropped.</summary>
    public abstract void Apply(List<Piece> pieces, List<Piece> output);

    private static void Emit(Piece piece, int start, int end, List<Piece> output)
    {
        if (start < end) output.Add(new Piece(piece.Source, start, end, piece.First && start == piece.Start));
    }

    private static void Emit(Piece piece, List<(int Start, int End, bool IsMatch)> cuts, Cutting cutting, List<Piece> output)
    {
        if (cutting is Cutting.Isolated or Cutting.Removed)
        {
            foreach (var (start, end, isMatch) in cuts)
                if (!isMatch || cutting == Cutting.Isolated) Emit(piece, start, end, output);
            return;
        }
        for (var i = 0; i < cuts.Count;)
        {
            var from = i++;
            while (i < cuts.Count && Joins(cuts, i, cutting)) i++;
            Emit(piece, cuts[from].Start, cuts[i - 1].End, output);
        }
    }

    /// <summary>Whether cut i continues the piece that cut i − 1 is in.</summary>
    private static bool Joins(List<(int Start, int End, bool IsMatch)> cuts, int i, Cutting cutting) => cutting switch
    {
        Cutting.Contiguous => cuts[i].IsMatch == cuts[i - 1].IsMatch,
        Cutting.MergedWithPrevious => cuts[i].IsMatch && !cuts[i - 1].IsMatch,
        _ => cuts[i - 1].IsMatch && !cuts[i].IsMatch,
    };

    /// <summary>Several in order.</summary>
    public sealed class Sequence(IReadOnlyList<PreTokenizer> steps) : PreTokenizer
    {
        public override void Apply(List<Piece> pieces, List<Piece> output)
        {
            foreach (var step in steps)
            {
                var next = new List<Piece>(pieces.Count);
                step.Apply(pieces, next);
                pieces = next;
            }
            output.AddRange(pieces);
        }
    }

    /// <summary>Cuts at the matches of a pattern.</summary>
    public sealed class Split(Pattern pattern, Cutting cutting, bool invert) : PreTokenizer
    {
        public override void Apply(List<Piece> pieces, List<Piece> output)
        {
            var cuts = new List<(int Start, int End, bool IsMatch)>();
            foreach (var piece in pieces)
            {
                cuts.Clear();
                pattern.Cut(piece.Source, piece.Start, piece.End, cuts);
                if (invert)
                    for (var i = 0; i < cuts.Count; i++) cuts[i] = cuts[i] with { IsMatch = !cuts[i].IsMatch };
                Emit(piece, cuts, cutting, output);
            }
        }
    }

    /// <summary>Cuts at the code points of a set, each one a match of its own.</summary>
    public sealed class Characters(CodePointSet set, Cutting cutting) : PreTokenizer
    {
        /// <summary>Rust's <c>is_numeric</c>: every kind of number.</summary>
        public static CodePointSet Digits { get; } = CodePointSet.Of(UnicodeCategory.DecimalDigitNumber, UnicodeCategory.LetterNumber, UnicodeCategory.OtherNumber);

        /// <summary>Unicode's punctuation, and the ASCII characters that Unicode calls symbols.</summary>
        public static CodePointSet Punctuation { get; } = CodePointSet.ByProperty("P")!.Add('!', '/').Add(':', '@').Add('[', '`').Add('{', '~');

        public override void Apply(List<Piece> pieces, List<Piece> output)
        {
            var cuts = new List<(int Start, int End, bool IsMatch)>();
            foreach (var piece in pieces)
            {
                cuts.Clear();
                Cut(piece, cuts);
                Emit(piece, cuts, cutting, output);
            }
        }

        private void Cut(Piece piece, List<(int Start, int End, bool IsMatch)> cuts)
        {
            var (at, covered) = (piece.Start, piece.Start);
            foreach (var rune in piece.Text.EnumerateRunes())
            {
                var next = at + rune.Utf16SequenceLength;
                if (set.Contains(rune.Value))
                {
                    if (covered < at) cuts.Add((covered, at, false));
                    cuts.Add((at, next, true));
                    covered = next;
                }
                at = next;
            }
            if (covered < piece.End) cuts.Add((covered, piece.End, false));
        }
    }

    /// <summary>Writes each UTF-8 byte as one printable character (<see cref="ByteAlphabet"/>), having cut by GPT-2's pattern if asked to.</summary>
    public sealed class ByteLevel(bool addPrefixSpace, bool cut) : PreTokenizer
    {
        private static readonly Split Gpt2 = new(Pattern.Parse(@"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"), Cutting.Isolated, invert: false);

        public override void Apply(List<Piece> pieces, List<Piece> output)
        {
            if (addPrefixSpace) pieces = [.. pieces.Select(piece => piece.Text.StartsWith(' ') ? piece : WithPrefix(piece, ' '))];
            if (cut)
            {
                var words = new List<Piece>(pieces.Count);
                Gpt2.Apply(pieces, words);
                pieces = words;
            }
            // All words share one string, so a long text costs one allocation and not one a word.
            var spelled = string.Create(pieces.Sum(piece => Encoding.UTF8.GetByteCount(piece.Text)), pieces, Spell);
            var start = 0;
            foreach (var piece in pieces)
            {
                var end = start + Encoding.UTF8.GetByteCount(piece.Text);
                if (end > start) output.Add(new Piece(spelled, start, end, piece.First));
                start = end;
            }
        }

        private static void Spell(Span<char> spelled, List<Piece> pieces)
        {
            var length = 0;
            Span<byte> utf8 = stackalloc byte[4];
            foreach (var piece in pieces)
                foreach (var rune in piece.Text.EnumerateRunes())
                    foreach (var b in utf8[..rune.EncodeToUtf8(utf8)]) spelled[length++] = ByteAlphabet.ToChar(b);
        }
    }

    /// <summary>Writes spaces as a visible character, puts one in front, and cuts before each of them.</summary>
    public sealed class Metaspace(char replacement, Metaspace.Prepend prepend, bool split) : PreTokenizer
    {
        public enum Prepend { Always, First, Never }

        public override void Apply(List<Piece> pieces, List<Piece> output)
        {
            foreach (var piece in pieces) Apply(piece, output);
        }

        private void Apply(Piece piece, List<Piece> output)
        {
            var text = piece.Text.ToString().Replace(' ', replacement);
            piece = new Piece(text, 0, text.Length, piece.First);
            if (!text.StartsWith(replacement) && (prepend == Prepend.Always || (prepend == Prepend.First && piece.First))) piece = WithPrefix(piece, replacement);
            var start = 0;
            for (var i = 1; split && i < piece.End; i++)
            {
                if (piece.Source[i] != replacement) continue;
                Emit(piece, start, i, output);
                start = i;
            }
            Emit(piece, start, piece.End, output);
        }
    }

    private static Piece WithPrefix(Piece piece, char prefix) => new(prefix + piece.Text.ToString(), 0, piece.End - piece.Start + 1, piece.First);
}

/// <summary>GPT-2's printable alphabet of the 256 bytes: visible Latin-1 stands for itself, the others follow from U+0100 in order.</summary>
internal static class ByteAlphabet
{
    private static readonly char[] Characters = Build();
    private static readonly short[] Bytes = Invert();

    public static char ToChar(byte value) => Characters[value];

    /// <summary>The byte, or −1 for a character outside the alphabet.</summary>
    public static int ToByte(char character) => character < Bytes.Length ? Bytes[character] : -1;

    private static char[] Build()
    {
        var next = 0x100;
        return [.. Enumerable.Range(0, 256).Select(b => b is (>= '!' and <= '~') or (>= 0xA1 and <= 0xAC) or >= 0xAE ? (char)b : (char)next++)];
    }

    private static short[] Invert()
    {
        var bytes = new short[Characters.Max() + 1];
        Array.Fill(bytes, (short)-1);
        for (var b = 0; b < 256; b++) bytes[Characters[b]] = (short)b;
        return bytes;
    }
}
