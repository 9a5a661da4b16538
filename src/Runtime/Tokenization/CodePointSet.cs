using System.Globalization;
using System.Text;

namespace TenantLora.Runtime.Tokenization;

/// <summary>A set of code points as a character class describes it. Built once, then only asked.</summary>
internal sealed class CodePointSet
{
    private readonly List<(int First, int Last)> ranges = [];
    private readonly List<CodePointSet> parts = [];             // united
    private readonly List<CodePointSet> limits = [];            // intersected with the union (a && b)
    private uint categories;                                    // bit per UnicodeCategory
    private bool negated;
    private bool ignoreCase;
    private bool[]? ascii;                                      // the answers for U+0000 … U+007F; a reference, so that threads see all of it or none

    public static CodePointSet Of(params ReadOnlySpan<UnicodeCategory> categories)
    {
        var set = new CodePointSet();
        foreach (var category in categories) set.categories |= 1u << (int)category;
        return set;
    }

    public CodePointSet Add(int first, int last)
    {
        ranges.Add((first, last));
        return this;
    }

    public CodePointSet Add(CodePointSet part)
    {
        parts.Add(part);
        return this;
    }

    public CodePointSet Limit(CodePointSet limit)
    {
        limits.Add(limit);
        return this;
    }

    public CodePointSet Negate()
    {
        negated = !negated;
        return this;
    }

    public CodePointSet IgnoreCase()
    {
        ignoreCase = true;
        return this;
    }

    public bool Contains(int codePoint) => codePoint < 128 ? (ascii ??= Tabulate())[codePoint] : Evaluate(codePoint);

    private bool[] Tabulate() => [.. Enumerable.Range(0, 128).Select(Evaluate)];

    private bool Evaluate(int codePoint) => (Holds(codePoint) || (ignoreCase && HoldsOtherCase(codePoint))) != negated;

    private bool Holds(int codePoint)
    {
        if (!HoldsUnion(codePoint)) return false;
        foreach (var limit in limits)
            if (!limit.Contains(codePoint)) return false;
        return true;
    }

    private bool HoldsUnion(int codePoint)
    {
        foreach (var (first, last) in ranges)
            if (codePoint >= first && codePoint <= last) return true;
        if (categories != 0 && (categories >> (int)CharUnicodeInfo.GetUnicodeCategory(codePoint) & 1) != 0) return true;
        foreach (var part in parts)
            if (part.Contains(codePoint)) return true;
        return false;
    }

    /// <summary>Simple case folding, with the two letters whose folding leaves their script: ſ (U+017F) is an s, the Kelvin sign a k.</summary>
    private bool HoldsOtherCase(int codePoint)
    {
        if (!Rune.TryCreate(codePoint, out var rune)) return false;
        return Holds(Rune.ToLowerInvariant(rune).Value) || Holds(Rune.ToUpperInvariant(rune).Value) || codePoint switch
        {
            's' or 'S' => Holds(0x17F),
            'k' or 'K' => Holds(0x212A),
            0x17F => Holds('s') || Holds('S'),
            0x212A => Holds('k') || Holds('K'),
            _ => false,
        };
    }

    /// <summary>White_Space, which is what <c>\s</c> means in Oniguruma, in Rust and in .NET alike.</summary>
    public static CodePointSet WhiteSpace() => Of(UnicodeCategory.SpaceSeparator, UnicodeCategory.LineSeparator, UnicodeCategory.ParagraphSeparator)
        .Add(0x09, 0x0D).Add(0x85, 0x85);

    /// <summary>Alphabetic, marks, decimal digits and connectors (UTS #18, annex C); the circled letters are Alphabetic though they are symbols.</summary>
    public static CodePointSet Word() => Alphabetic().Add(Of(UnicodeCategory.EnclosingMark, UnicodeCategory.NonSpacingMark,
        UnicodeCategory.SpacingCombiningMark, UnicodeCategory.DecimalDigitNumber, UnicodeCategory.ConnectorPunctuation));

    /// <summary>Letters, letter numbers and the circled letters; Other_Alphabetic's marks are left to <see cref="Word"/>.</summary>
    private static CodePointSet Alphabetic() => Of(UnicodeCategory.UppercaseLetter, UnicodeCategory.LowercaseLetter, UnicodeCategory.TitlecaseLetter,
        UnicodeCategory.ModifierLetter, UnicodeCategory.OtherLetter, UnicodeCategory.LetterNumber)
        .Add(0x24B6, 0x24E9).Add(0x1F130, 0x1F149).Add(0x1F150, 0x1F169).Add(0x1F170, 0x1F189);

    public static CodePointSet Digit() => Of(UnicodeCategory.DecimalDigitNumber);

    public static CodePointSet HexDigit() => new CodePointSet().Add('0', '9').Add('a', 'f').Add('A', 'F');

    /// <summary>A general category by its short or long name (<c>L</c>, <c>Lu</c>, <c>Letter</c>), or null.</summary>
    public static CodePointSet? ByProperty(string name)
    {
        var key = name.Replace("_", "", StringComparison.Ordinal).Replace(" ", "", StringComparison.Ordinal).Replace("-", "", StringComparison.Ordinal).ToUpperInvariant();
        if (key is "SPACE" or "WHITESPACE") return WhiteSpace();
        if (key is "WORD") return Word();
        if (key is "ANY") return new CodePointSet().Add(0, 0x10FFFF);
        var set = new CodePointSet();
        foreach (var (category, abbreviation, full) in Names)
            if (key == abbreviation || key == full || key == abbreviation[..1] || (Groups.TryGetValue(key, out var group) && abbreviation[0] == group))
                set.categories |= 1u << (int)category;
        if (key is "LC") set.categories = 0b111;                 // Lu, Ll, Lt
        return set.categories == 0 ? null : set;
    }

    private static readonly Dictionary<string, char> Groups = new()
    {
        ["LETTER"] = 'L',
        ["MARK"] = 'M',
        ["NUMBER"] = 'N',
        ["PUNCTUATION"] = 'P',
        ["PUNCT"] = 'P',
        ["SYMBOL"] = 'S',
        ["SEPARATOR"] = 'Z',
        ["OTHER"] = 'C',
    };

    private static readonly (UnicodeCategory Category, string Abbreviation, string Name)[] Names =
    [
        (UnicodeCategory.UppercaseLetter, "LU", "UPPERCASELETTER"), (UnicodeCategory.LowercaseLetter, "LL", "LOWERCASELETTER"),
        (UnicodeCategory.TitlecaseLetter, "LT", "TITLECASELETTER"), (UnicodeCategory.ModifierLetter, "LM", "MODIFIERLETTER"),
        (UnicodeCategory.OtherLetter, "LO", "OTHERLETTER"), (UnicodeCategory.NonSpacingMark, "MN", "NONSPACINGMARK"),
        (UnicodeCategory.SpacingCombiningMark, "MC", "SPACINGMARK"), (UnicodeCategory.EnclosingMark, "ME", "ENCLOSINGMARK"),
        (UnicodeCategory.DecimalDigitNumber, "ND", "DECIMALNUMBER"), (UnicodeCategory.LetterNumber, "NL", "LETTERNUMBER"),
        (UnicodeCategory.OtherNumber, "NO", "OTHERNUMBER"), (UnicodeCategory.ConnectorPunctuation, "PC", "CONNECTORPUNCTUATION"),
        (UnicodeCategory.DashPunctuation, "PD", "DASHPUNCTUATION"), (UnicodeCategory.OpenPunctuation, "PS", "OPENPUNCTUATION"),
        (UnicodeCategory.ClosePunctuation, "PE", "CLOSEPUNCTUATION"), (UnicodeCategory.InitialQuotePunctuation, "PI", "INITIALPUNCTUATION"),
        (UnicodeCategory.FinalQuotePunctuation, "PF", "FINALPUNCTUATION"), (UnicodeCategory.OtherPunctuation, "PO", "OTHERPUNCTUATION"),
        (UnicodeCategory.MathSymbol, "SM", "MATHSYMBOL"), (UnicodeCategory.CurrencySymbol, "SC", "CURRENCYSYMBOL"),
        (UnicodeCategory.ModifierSymbol, "SK", "MODIFIERSYMBOL"), (UnicodeCategory.OtherSymbol, "SO", "OTHERSYMBOL"),
        (UnicodeCategory.SpaceSeparator, "ZS", "SPACESEPARATOR"), (UnicodeCategory.LineSeparator, "ZL", "LINESEPARATOR"),
        (UnicodeCategory.ParagraphSeparator, "ZP", "PARAGRAPHSEPARATOR"), (UnicodeCategory.Control, "CC", "CONTROL"),
        (UnicodeCategory.Format, "CF", "FORMAT"), (UnicodeCategory.Surrogate, "CS", "SURROGATE"),
        (UnicodeCategory.PrivateUse, "CO", "PRIVATEUSE"), (UnicodeCategory.OtherNotAssigned, "CN", "UNASSIGNED"),
    ];
}
