using System.Text;

namespace TenantLora.Runtime.Models;

/// <summary>Text from outside, made fit for a message or a log line: printable ASCII only, the rest escaped, at most 64 characters.</summary>
internal static class Printable
{
    private const int Longest = 64;

    public static string Of(ReadOnlySpan<char> text)
    {
        var shown = new StringBuilder(Math.Min(text.Length, Longest) + 1);
        foreach (var c in text)
        {
            var next = c is >= ' ' and <= '~' and not '\\' ? c.ToString() : $"\\u{(int)c:x4}";
            if (shown.Length + next.Length > Longest) return shown.Append("...").ToString();
            shown.Append(next);
        }

        return shown.ToString();
    }
}
