using System.Text;

namespace TenantLora.Runtime.Tokenization;

/// <summary>Text under normalization, and which of it came from outside.</summary>
/// <param name="Untrusted">One flag per UTF-16 unit; null where nobody will ask.</param>
internal readonly record struct MarkedText(string Text, bool[]? Untrusted)
{
    public MarkedText Slice(int start, int end) =>
        start == 0 && end == Text.Length ? this : new(Text[start..end], Untrusted?[start..end]);

    /// <summary>Collects the result of a step that goes through the text from left to right.</summary>
    public sealed class Builder(bool marked)
    {
        private readonly StringBuilder text = new();
        private readonly List<bool>? flags = marked ? [] : null;

        public void Copy(MarkedText source, int start, int end)
        {
            text.Append(source.Text, start, end - start);
            flags?.AddRange(source.Untrusted.AsSpan(start, end - start));
        }

        /// <summary>Text that stands for source[start..end): untrusted if any of that is.</summary>
        public void Replace(MarkedText source, int start, int end, ReadOnlySpan<char> content)
        {
            text.Append(content);
            if (flags is null) return;
            var untrusted = source.Untrusted.AsSpan(start, end - start).Contains(true);
            for (var i = 0; i < content.Length; i++) flags.Add(untrusted);
        }

        public MarkedText Build() => new(text.ToString(), flags?.ToArray());
    }
}

/// <summary>A step that rewrites text before it is cut into words. Immutable.</summary>
internal abstract class Normalizer
{
    public abstract MarkedText Apply(MarkedText source);

    /// <summary>Several in order.</summary>
    public sealed class Sequence(IReadOnlyList<Normalizer> steps) : Normalizer
    {
        public override MarkedText Apply(MarkedText source) => steps.Aggregate(source, (text, step) => step.Apply(text));
    }

    /// <summary>Puts a text before any text that is not empty.</summary>
    public sealed class Prepend(string prefix) : Normalizer
    {
        public override MarkedText Apply(MarkedText source)
        {
            if (source.Text.Length == 0) return source;
            var result = new MarkedText.Builder(source.Untrusted is not null);
            result.Replace(source, 0, 0, prefix);
            result.Copy(source, 0, source.Text.Length);
            return result.Build();
        }
    }

    /// <summary>Puts a text in the place of each match.</summary>
    public sealed class Replace(Pattern pattern, string content) : Normalizer
    {
        public override MarkedText Apply(MarkedText source)
        {
            var pieces = new List<(int Start, int End, bool IsMatch)>();
            pattern.Cut(source.Text, 0, source.Text.Length, pieces);
            var result = new MarkedText.Builder(source.Untrusted is not null);
            foreach (var (start, end, isMatch) in pieces)
            {
                if (isMatch) result.Replace(source, start, end, content);
                else result.Copy(source, start, end);
            }
            return result.Build();
        }
    }

    /// <summary>Character by character, without regard to language; İ is the one letter that becomes two.</summary>
    public sealed class Lowercase : Normalizer
    {
        public override MarkedText Apply(MarkedText source)
        {
            var result = new MarkedText.Builder(source.Untrusted is not null);
            Span<char> lower = stackalloc char[2];
            var at = 0;
            foreach (var rune in source.Text.EnumerateRunes())
            {
                var width = rune.Utf16SequenceLength;
                if (rune.Value == 0x130) result.Replace(source, at, at + width, "i\u0307");
                else result.Replace(source, at, at + width, lower[..Rune.ToLowerInvariant(rune).EncodeToUtf16(lower)]);
                at += width;
            }
            return result.Build();
        }
    }

    /// <summary>Takes white space off the ends.</summary>
    public sealed class Strip(bool left, bool right) : Normalizer
    {
        public override MarkedText Apply(MarkedText source)
        {
            var (start, end) = (0, source.Text.Length);
            while (left && start < end && char.IsWhiteSpace(source.Text[start])) start++;
            while (right && end > start && char.IsWhiteSpace(source.Text[end - 1])) end--;
            return source.Slice(start, end);
        }
    }

    /// <summary>Unicode's NFC, NFD, NFKC, NFKD.</summary>
    public sealed class Unicode(bool compose, bool compatible) : Normalizer
    {
        public override MarkedText Apply(MarkedText source) => UnicodeForms.Apply(source, compose, compatible);
    }
}
