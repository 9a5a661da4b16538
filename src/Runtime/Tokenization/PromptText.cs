using System.Text;

namespace TenantLora.Runtime.Tokenization;

/// <summary>
/// Text for the tokenizer, and which of it came from outside (a user, a tool, an upload). A special token that is spelled in such a
/// range, or that would only arise by joining one with its surroundings, stays ordinary text; everything else is encoded as if the
/// text were one trusted string.
/// </summary>
/// <param name="Text">The whole prompt.</param>
/// <param name="Untrusted">Ranges of <paramref name="Text"/> in UTF-16 units, ascending, not overlapping.</param>
internal sealed record PromptText(string Text, IReadOnlyList<(int Start, int Length)> Untrusted)
{
    /// <summary>Text from outside as a whole.</summary>
    public static PromptText FromOutside(string text) => new(text, [(0, text.Length)]);

    /// <summary>Puts a prompt together piece by piece.</summary>
    public sealed class Builder
    {
        private readonly StringBuilder text = new();
        private readonly List<(int, int)> untrusted = [];

        /// <summary>Adds text of the chat template's own.</summary>
        public Builder Add(string own)
        {
            text.Append(own);
            return this;
        }

        /// <summary>Adds text from outside.</summary>
        public Builder Outside(string content)
        {
            if (content.Length > 0) untrusted.Add((text.Length, content.Length));
            text.Append(content);
            return this;
        }

        public PromptText Build() => new(text.ToString(), untrusted);
    }
}
