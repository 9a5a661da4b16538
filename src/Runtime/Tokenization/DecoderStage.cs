using System.Globalization;
using System.Text;

namespace TenantLora.Runtime.Tokenization;

/// <summary>
/// One stage of turning tokens back into text, for one sequence: takes tokens' texts as they come and passes on what is certain.
/// HF's decoders work on the whole list of tokens; these say the same a token at a time. Behind a stage that fuses
/// (<see cref="Bytes"/>, <see cref="Fuse"/>) what is passed on are chunks of one endless item, and only stages that can live with that may follow.
/// </summary>
internal abstract class DecoderStage
{
    private DecoderStage? next;

    /// <summary>Makes a chain; the last stage writes to <paramref name="output"/>.</summary>
    public static DecoderStage Chain(IEnumerable<DecoderStage> stages, StringBuilder output)
    {
        DecoderStage chain = new Sink(output);
        foreach (var stage in stages.Reverse())
        {
            stage.next = chain;
            chain = stage;
        }
        return chain;
    }

    /// <summary>Takes one item, or one chunk of the endless item.</summary>
    public abstract void Push(string item);

    /// <summary>No more comes: passes on what was held.</summary>
    public virtual void Finish() => next?.Finish();

    protected void Pass(string item) => next!.Push(item);

    private sealed class Sink(StringBuilder output) : DecoderStage
    {
        public override void Push(string item) => output.Append(item);
    }

    /// <summary>HF without a decoder: the tokens with a space between them.</summary>
    public sealed class Spaced : DecoderStage
    {
        private bool begun;

        public override void Push(string item)
        {
            Pass(begun ? " " + item : item);
            begun = true;
        }
    }

    /// <summary>Byte-level alphabet to UTF-8 to text; what is no UTF-8 becomes U+FFFD once for each maximal broken part. Fuses.</summary>
    public sealed class Bytes : DecoderStage
    {
        private readonly Decoder utf8 = Encoding.UTF8.GetDecoder();

        public override void Push(string item) => Decode(Of(item), flush: false);

        public override void Finish()
        {
            Decode([], flush: true);
            base.Finish();
        }

        /// <summary>A token with a character outside the alphabet was added by hand and stands for its own text.</summary>
        public static byte[] Of(string token)
        {
            var bytes = new byte[token.Length];
            for (var i = 0; i < token.Length; i++)
            {
                var value = ByteAlphabet.ToByte(token[i]);
                if (value < 0) return Encoding.UTF8.GetBytes(token);
                bytes[i] = (byte)value;
            }
            return bytes;
        }

        private void Decode(byte[] bytes, bool flush)
        {
            var characters = new char[utf8.GetCharCount(bytes, flush)];
            var count = utf8.GetChars(bytes, characters, flush);
            if (count > 0) Pass(new string(characters, 0, count));
        }
    }

    /// <summary>Puts a text in the place of each match, within one item.</summary>
    public sealed class Replace(Pattern pattern, string content) : DecoderStage
    {
        private readonly List<(int Start, int End, bool IsMatch)> cuts = [];

        public override void Push(string item)
        {
            cuts.Clear();
            pattern.Cut(item, 0, item.Length, cuts);
            if (cuts.Exists(cut => cut.IsMatch))
                item = string.Concat(cuts.Select(cut => cut.IsMatch ? content : item[cut.Start..cut.End]));
            Pass(item);
        }
    }

    /// <summary>
    /// Runs of <c>&lt;0xNN&gt;</c> to text. A run that is not UTF-8 as a whole becomes one U+FFFD a byte, its good characters included
    /// (HF does so), so nothing of a run is certain before its end.
    /// </summary>
    public sealed class ByteFallback : DecoderStage
    {
        private static readonly UTF8Encoding Strict = new(false, throwOnInvalidBytes: true);
        private readonly List<byte> run = [];

        public override void Push(string item)
        {
            if (TryByte(item, out var value))
            {
                run.Add(value);
                return;
            }
            EndRun();
            Pass(item);
        }

        public override void Finish()
        {
            EndRun();
            base.Finish();
        }

        public static bool TryByte(string token, out byte value)
        {
            value = 0;
            return token.Length == 6 && token.StartsWith("<0x", StringComparison.Ordinal) && token[5] == '>'
                && byte.TryParse(token.AsSpan(3, 2), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out value);
        }

        private void EndRun()
        {
            if (run.Count == 0) return;
            string text;
            try
            {
                text = Strict.GetString([.. run]);
            }
            catch (DecoderFallbackException)
            {
                text = new string('\uFFFD', run.Count);
            }
            run.Clear();
            Pass(text);
        }
    }

    /// <summary>Makes one item of all.</summary>
    public sealed class Fuse : DecoderStage
    {
        public override void Push(string item) => Pass(item);
    }

    /// <summary>Takes up to so many of a character off each item's ends.</summary>
    public sealed class Strip(char character, int start, int stop) : DecoderStage
    {
        public override void Push(string item)
        {
            var (from, to) = (0, item.Length);
            while (from < item.Length && from < start && item[from] == character) from++;
            while (to > from && item.Length - to < stop && item[to - 1] == character) to--;
            Pass(item[from..to]);
        }
    }

    /// <summary>The same on the one endless item: what may yet be its end is held.</summary>
    public sealed class StripFused(char character, int start, int stop) : DecoderStage
    {
        private int left = start;
        private int held;

        public override void Push(string item)
        {
            var from = 0;
            while (from < item.Length && left > 0)
            {
                if (item[from] == character) (from, left) = (from + 1, left - 1);
                else left = 0;
            }
            item = new string(character, held) + item[from..];
            var to = item.Length;
            while (to > 0 && item.Length - to < stop && item[to - 1] == character) to--;
            held = item.Length - to;
            Pass(item[..to]);
        }
    }

    /// <summary>The visible space back to a space; in the first item it is what was put in front, and vanishes.</summary>
    public sealed class Metaspace(char replacement, bool dropsFirst) : DecoderStage
    {
        private bool begun;

        public override void Push(string item)
        {
            Pass(!begun && dropsFirst ? item.Replace(replacement.ToString(), "", StringComparison.Ordinal) : item.Replace(replacement, ' '));
            begun = true;
        }
    }
}
