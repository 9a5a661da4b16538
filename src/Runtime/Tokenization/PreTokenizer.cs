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
    /// <summary>Appends what becomes of a piece; pieces left empty are dropped.</summary>
    public abstract void Apply(Piece piece, List<Piece> output);

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
        public override void Apply(Piece piece, List<Piece> output)
        {
            List<Piece> pieces = [piece], next = [];
            foreach (var step in steps)
            {
                foreach (var each in pieces) step.Apply(each, next);
                (pieces, next) = (next, pieces);
                next.Clear();
            }
            output.AddRange(pieces);
        }
    }

    /// <summary>Cuts at the matches of a pattern.</summary>
    public sealed class Split(Pattern pattern, Cutting cutting, bool invert) : PreTokenizer
    {
        public override void Apply(Piece piece, List<Piece> output)
        {
            var cuts = new List<(int Start, int End, bool IsMatch)>();
            pattern.Cut(piece.Source, piece.Start, piece.End, cuts);
            if (invert)
                for (var i = 0; i < cuts.Count; i++) cuts[i] = cuts[i] with { IsMatch = !cuts[i].IsMatch };
            Emit(piece, cuts, cutting, output);
        }
    }

    /// <summary>Cuts at the code points of a set, each one a match of its own.</summary>
    public sealed class Characters(CodePointSet set, Cutting cutting) : PreTokenizer
    {
        /// <summary>Rust's <c>is_numeric</c>: every kind of number.</summary>
        public static CodePointSet Digits { get; } = CodePointSet.Of(UnicodeCategory.DecimalDigitNumber, UnicodeCategory.LetterNumber, UnicodeCategory.OtherNumber);

        /// <summary>Unicode's punctuation, and the ASCII characters that Unicode calls symbols.</summary>
        public static CodePointSet Punctuation { get; } = CodePointSet.ByProperty("P")!.Add('!', '/').Add(':', '@').Add('[', '`').Add('{', '~');

        public override void Apply(Piece piece, List<Piece> output)
        {
            var cuts = new List<(int Start, int End, bool IsMatch)>();
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
            Emit(piece, cuts, cutting, output);
        }
    }

    /// <summary>Writes each UTF-8 byte as one printable character (<see cref="ByteAlphabet"/>), having cut by GPT-2's pattern if asked to.</summary>
    public sealed class ByteLevel(bool addPrefixSpace, bool cut) : PreTokenizer
    {
        private static readonly Pattern Gpt2 = Pattern.Parse(@"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+");

        public override void Apply(Piece piece, List<Piece> output)
        {
            if (addPrefixSpace && !piece.Text.StartsWith(' ')) piece = WithPrefix(piece, ' ');
            var words = new List<(int Start, int End, bool)>();
            if (cut) Gpt2.Cut(piece.Source, piece.Start, piece.End, words);
            else words.Add((piece.Start, piece.End, false));

            // All words of the piece share one string, so a long text costs one allocation and not one a word.
            var bytes = new char[Encoding.UTF8.GetByteCount(piece.Text)];
            var borders = new int[words.Count + 1];
            var length = 0;
            Span<byte> utf8 = stackalloc byte[4];
            foreach (var (index, (start, end, _)) in words.Index())
            {
                foreach (var rune in piece.Source.AsSpan(start, end - start).EnumerateRunes())
                    foreach (var b in utf8[..rune.EncodeToUtf8(utf8)]) bytes[length++] = ByteAlphabet.ToChar(b);
                borders[index + 1] = length;
            }
            var spelled = new Piece(new string(bytes, 0, length), 0, length, piece.First);
            for (var i = 0; i < words.Count; i++) Emit(spelled, borders[i], borders[i + 1], output);
        }
    }

    /// <summary>Writes spaces as a visible character, puts one in front, and cuts before each of them.</summary>
    public sealed class Metaspace(char replacement, Metaspace.Prepend prepend, bool split) : PreTokenizer
    {
        public enum Prepend { Always, First, Never }

        public override void Apply(Piece piece, List<Piece> output)
        {
            var text = piece.Text.ToString().Replace(' ', replacement);
            piece = new Piece(text, 0, text.Length, piece.First);
            if (!text.StartsWith(replacement) && (prepend == Prepend.Always || (prepend == Prepend.First && piece.First))) piece = WithPrefix(piece, replacement);
            if (!split)
            {
                Emit(piece, piece.Start, piece.End, output);
                return;
            }
            var start = piece.Start;
            for (var i = piece.Start + 1; i < piece.End; i++)
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
