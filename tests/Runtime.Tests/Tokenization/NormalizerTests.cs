using System.Globalization;
using System.Security.Cryptography;
using System.Text;
using TenantLora.Runtime.Tokenization;

namespace TenantLora.Tests.Tokenization;

/// <summary>Every character and 20,000 heaps of marks, held against Python's unicodedata by digest (<c>UnicodeForms.py --digests</c>).</summary>
public sealed class NormalizerTests
{
    private static readonly int[] Characters = [.. Enumerable.Range(0, 0x30000).Where(c => c is < 0xD800 or > 0xDFFF)];

    [Theory]
    [InlineData(true, false, "711211db27fedee66ecf61550731697fa9ef65b619dcd6362ccdcb9346c85bcd")]
    [InlineData(false, false, "2b6c4ee7ba61b799268336edd815bdec37e5bb55b2cb76bfd56eb19e9f54900b")]
    [InlineData(true, true, "1184dce8219bf2cb4693657ea1ab8b7cad369ec0af33e89adb4b17b3a3c5235b")]
    [InlineData(false, true, "3ae33aeb6ea7b024968b531bb71d59e780e7e6a740bdbdce765d50343f8590f3")]
    public void Unicode_forms_are_those_of_Python(bool compose, bool compatible, string digest)
    {
        var normalizer = new Normalizer.Unicode(compose, compatible);
        var results = Texts().Select(text => normalizer.Apply(new MarkedText(text, null)).Text);
        Assert.Equal(digest, Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(string.Join('\n', results)))));
    }

    [Theory]
    [InlineData("AÉΣ𐐀İẞ", "aéσ𐐨i\u0307ß")]
    [InlineData("ΟΔΟΣ", "οδοσ")]                                        // letter by letter, so no final sigma
    public void Lowercase_knows_no_language(string text, string expected) =>
        Assert.Equal(expected, new Normalizer.Lowercase().Apply(new MarkedText(text, null)).Text);

    [Fact]
    public void Marks_stay_with_the_characters_they_were_made_of()
    {
        // e + untrusted accent, x, untrusted ﬁ
        var marked = new Normalizer.Unicode(compose: true, compatible: true).Apply(new MarkedText("e\u0301xﬁ", [false, true, false, true]));
        Assert.Equal("éxfi", marked.Text);
        Assert.Equal([true, false, true, true], marked.Untrusted!);
        marked = new Normalizer.Lowercase().Apply(new MarkedText("İ𐐀a", [true, false, false, true]));
        Assert.Equal([true, true, false, false, true], marked.Untrusted!);
    }

    private static IEnumerable<string> Texts()
    {
        foreach (var chunk in Characters.Chunk(64)) yield return string.Concat(chunk.Select(char.ConvertFromUtf32));
        var changing = Changing();
        Assert.Equal(6959, changing.Length);
        var state = 1L;
        for (var i = 0; i < 20_000; i++)
        {
            var text = new StringBuilder("e");
            for (var k = 0; k < 6; k++)
            {
                state = state * 1103515245 + 12345 & 0x7FFFFFFF;
                text.Append(char.ConvertFromUtf32(changing[(state >> 8) % changing.Length]));
            }
            yield return text.ToString();
        }
    }

    /// <summary>What decomposes or combines, ascending.</summary>
    private static int[] Changing()
    {
        using var reader = new StreamReader(typeof(Normalizer).Assembly.GetManifestResourceStream("UnicodeForms.txt")!);
        var found = new SortedSet<int>(Enumerable.Range(0x1100, 0x100));
        while (reader.ReadLine() is { } line)
        {
            if (line[0] == '#') continue;
            var fields = line.Split(' ');
            var first = int.Parse(fields[1], NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture);
            var last = line[0] == '^' ? int.Parse(fields[2], NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture) : first;
            for (var c = first; c <= last; c++) found.Add(c);
        }
        return [.. found.Where(c => c < 0x30000)];
    }
}
