using System.Globalization;
using System.Text;

namespace TenantLora.Runtime.Tokenization;

/// <summary>
/// Unicode's normalization forms (UAX #15) from a table of our own: under InvariantGlobalization .NET's <c>string.Normalize</c> returns
/// its input unchanged beyond ASCII, and with ICU the answer would depend on the machine.
/// </summary>
internal static class UnicodeForms
{
    private const int SBase = 0xAC00, LBase = 0x1100, VBase = 0x1161, TBase = 0x11A7, LCount = 19, VCount = 21, TCount = 28;

    private static readonly Lazy<Tables> Data = new(Tables.Read);

    /// <summary>NFC (compose), NFD, NFKC (compose, compatible) or NFKD. A character made of several is untrusted if any of them was.</summary>
    public static MarkedText Apply(MarkedText source, bool compose, bool compatible)
    {
        // Nothing below U+00C0 changes its canonical form, nothing below U+0080 any.
        if (!source.Text.AsSpan().ContainsAnyExceptInRange('\0', compatible ? '\u007F' : '\u00BF')) return source;
        var tables = Data.Value;
        var letters = new List<Letter>(source.Text.Length);
        var at = 0;
        foreach (var rune in source.Text.EnumerateRunes())
        {
            var untrusted = source.Untrusted is { } flags && (flags[at] || flags[at + rune.Utf16SequenceLength - 1]);
            tables.Decompose(rune.Value, compatible, untrusted, letters);
            at += rune.Utf16SequenceLength;
        }
        Reorder(letters);
        if (compose) Compose(letters, tables);
        return Write(letters, source.Untrusted is not null);
    }

    private static MarkedText Write(List<Letter> letters, bool marked)
    {
        var text = new StringBuilder(letters.Count);
        var flags = marked ? new List<bool>(letters.Count) : null;
        foreach (var letter in letters)
        {
            var rune = new Rune(letter.CodePoint);
            text.Append(rune.ToString());
            for (var i = 0; i < rune.Utf16SequenceLength; i++) flags?.Add(letter.Untrusted);
        }
        return new MarkedText(text.ToString(), flags?.ToArray());
    }

    /// <summary>Canonical order: each run of combining letters is sorted by class, equals staying in place.</summary>
    private static void Reorder(List<Letter> letters)
    {
        for (var start = 0; start < letters.Count; start++)
        {
            if (letters[start].Class == 0) continue;
            var end = start;
            var sorted = true;
            while (end + 1 < letters.Count && letters[end + 1].Class != 0)
            {
                sorted &= letters[end].Class <= letters[end + 1].Class;
                end++;
            }
            if (!sorted)
            {
                var run = letters.GetRange(start, end - start + 1).OrderBy(letter => letter.Class).ToList();
                for (var i = 0; i < run.Count; i++) letters[start + i] = run[i];
            }
            start = end;
        }
    }

    private static void Compose(List<Letter> letters, Tables tables)
    {
        var (starter, kept, lastClass) = (-1, 0, 0);
        for (var i = 0; i < letters.Count; i++)
        {
            var letter = letters[i];
            // Blocked: something of the same or a higher class, or a starter that did not compose, stands in between.
            var reachable = starter >= 0 && (lastClass < letter.Class || (lastClass == 0 && kept == starter + 1));
            if (reachable && tables.Composed(letters[starter].CodePoint, letter.CodePoint) is { } composed)
            {
                letters[starter] = letters[starter] with { CodePoint = composed, Untrusted = letters[starter].Untrusted || letter.Untrusted };
                continue;
            }
            if (letter.Class == 0) starter = kept;
            lastClass = letter.Class;
            letters[kept++] = letter;
        }
        letters.RemoveRange(kept, letters.Count - kept);
    }

    private readonly record struct Letter(int CodePoint, byte Class, bool Untrusted);

    private sealed class Tables
    {
        private readonly Dictionary<int, int[]> canonical = [];
        private readonly Dictionary<int, int[]> compatibility = [];
        private readonly Dictionary<(int, int), int> compositions = [];
        private readonly Dictionary<int, byte> classes = [];

        public static Tables Read()
        {
            var tables = new Tables();
            using var reader = new StreamReader(typeof(UnicodeForms).Assembly.GetManifestResourceStream("UnicodeForms.txt")!);
            while (reader.ReadLine() is { } line)
            {
                if (line[0] == '#') continue;
                var fields = line[2..].Split(' ');
                if (line[0] == '^')
                {
                    for (var c = Hex(fields[0]); c <= Hex(fields[1]); c++) tables.classes[c] = byte.Parse(fields[2], CultureInfo.InvariantCulture);
                    continue;
                }
                var parts = fields[1..].Select(Hex).ToArray();
                (line[0] == '~' ? tables.compatibility : tables.canonical)[Hex(fields[0])] = parts;
                if (line[0] == '=' && parts.Length == 2) tables.compositions[(parts[0], parts[1])] = Hex(fields[0]);
            }
            return tables;
        }

        private static int Hex(string digits) => int.Parse(digits, NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture);

        public void Decompose(int codePoint, bool compatible, bool untrusted, List<Letter> output)
        {
            if (codePoint is >= SBase and < SBase + LCount * VCount * TCount)
            {
                var index = codePoint - SBase;
                output.Add(new Letter(LBase + index / (VCount * TCount), 0, untrusted));
                output.Add(new Letter(VBase + index % (VCount * TCount) / TCount, 0, untrusted));
                if (index % TCount != 0) output.Add(new Letter(TBase + index % TCount, 0, untrusted));
            }
            else if (canonical.TryGetValue(codePoint, out var parts) || (compatible && compatibility.TryGetValue(codePoint, out parts)))
            {
                foreach (var part in parts) Decompose(part, compatible, untrusted, output);
            }
            else output.Add(new Letter(codePoint, classes.GetValueOrDefault(codePoint), untrusted));
        }

        public int? Composed(int first, int second)
        {
            if (first is >= LBase and < LBase + LCount && second is >= VBase and < VBase + VCount)
                return SBase + ((first - LBase) * VCount + second - VBase) * TCount;
            if (first is >= SBase and < SBase + LCount * VCount * TCount && (first - SBase) % TCount == 0 && second is > TBase and < TBase + TCount)
                return first + second - TBase;
            return compositions.TryGetValue((first, second), out var composed) ? composed : null;
        }
    }
}
