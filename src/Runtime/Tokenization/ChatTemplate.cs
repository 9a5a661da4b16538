using System.Text;
using System.Text.Json;

namespace TenantLora.Runtime.Tokenization;

/// <summary>
/// How a family of models wants a conversation written down. Model folders carry this as a Jinja program; here each family's form is
/// code, recognised by what the program says, so nothing a model folder holds is executed. What comes from callers (contents, tools, calls) is marked as from
/// outside in the <see cref="PromptText"/>. Immutable.
/// </summary>
internal abstract class ChatTemplate(string name)
{
    private const string ConfigName = "tokenizer_config.json", JinjaName = "chat_template.jinja", JsonName = "chat_template.json", Field = "chat_template";

    private static readonly string[] Known = [.. ChatMlTemplate.Names, .. Llama3Template.Names, .. MistralTemplate.Names];

    /// <summary>One of the known forms, or <c>none</c>.</summary>
    public string Name { get; } = name;

    /// <summary>Reads the model folder's template. A folder without one can still continue raw prompts: only <see cref="Render"/> then refuses.</summary>
    /// <param name="overrideName">The form to use whatever the folder says.</param>
    /// <param name="clock">What day it is, for families that tell the model; null: the system's.</param>
    /// <exception cref="ModelFileException">The template is none of the known forms, or a file is damaged.</exception>
    public static ChatTemplate Load(string directory, string? overrideName, TimeProvider? clock = null)
    {
        var config = Path.Combine(directory, ConfigName);
        var (embedded, bos, eos) = File.Exists(config)
            ? Findings.Read(config, (root, _) => (Template(root), Token(root, "bos_token"), Token(root, "eos_token")))
            : (null, null, null);
        clock ??= TimeProvider.System;
        if (overrideName is not null)
            return ByName(overrideName, bos, eos, clock) ?? throw new ModelFileException(directory, Field, $"one of {string.Join(", ", Known)}", $"the override \"{overrideName}\"");

        var (file, text) = (config, embedded);
        if (ReadBeside(directory, JsonName, path => Findings.Read(path, (root, _) => Template(root) ?? "")) is { } json) (file, text) = json;
        if (ReadBeside(directory, JinjaName, File.ReadAllText) is { } jinja) (file, text) = jinja;
        if (text is null) return new NoTemplate();
        return ByText(text, bos, eos, clock)
            ?? throw new ModelFileException(file, Field, $"a template of one of the known forms ({string.Join(", ", Known)}; one can be set by name)", "another");
    }

    /// <summary>Writes a conversation down.</summary>
    /// <param name="messages">Oldest first, at least one.</param>
    /// <param name="tools">Functions the model may call; empty for none.</param>
    /// <param name="addGenerationPrompt">End with the opening of the assistant's turn.</param>
    /// <exception cref="TenantLoraException">The conversation is one that the family's template refuses.</exception>
    public PromptText Render(IReadOnlyList<Message> messages, IReadOnlyList<ToolDefinition> tools, bool addGenerationPrompt)
    {
        if (messages.Count == 0) throw Refused("A conversation needs at least one message.");
        foreach (var message in messages)
            if (message.Role is not ("system" or "user" or "assistant" or "tool")) throw Refused("A message's role is system, user, assistant or tool.");
        var prompt = new PromptText.Builder();
        Write(messages, tools, addGenerationPrompt, prompt);
        return prompt.Build();
    }

    protected abstract void Write(IReadOnlyList<Message> messages, IReadOnlyList<ToolDefinition> tools, bool addGenerationPrompt, PromptText.Builder prompt);

    protected static TenantLoraException Refused(string reason) => new(ErrorCodes.InvalidRequest, reason) { Parameter = "messages" };

    protected static TenantLoraException NoTools() =>
        new(ErrorCodes.Unsupported, "This model's chat template has no place for tools.") { Parameter = "tools" };

    /// <summary>Python's <c>str.strip()</c>; its white space has the separators U+001C to U+001F, which .NET's lacks.</summary>
    protected static string Strip(string text)
    {
        var (start, end) = (0, text.Length);
        while (start < end && IsSpace(text[start])) start++;
        while (end > start && IsSpace(text[end - 1])) end--;
        return text[start..end];

        static bool IsSpace(char c) => char.IsWhiteSpace(c) || c is >= '\u001C' and <= '\u001F';
    }

    private static ChatTemplate? ByName(string name, string? bos, string? eos, TimeProvider clock) =>
        ChatMlTemplate.ByName(name) ?? Llama3Template.ByName(name, bos, clock) ?? MistralTemplate.ByName(name, bos, eos);

    private static ChatTemplate? ByText(string text, string? bos, string? eos, TimeProvider clock)
    {
        var canonical = Canonical(text);
        return ChatMlTemplate.ByText(text, canonical) ?? Llama3Template.ByText(canonical, bos, clock) ?? MistralTemplate.ByText(canonical, bos, eos);
    }

    /// <summary>
    /// The program with what makers write differently made alike: white space control, <c>message['role']</c> for <c>message.role</c>, kinds of quotes,
    /// and line ends inside strings, which some files spell <c>\n</c> and others as they are. Spaces in strings remain where they tell forms apart.
    /// </summary>
    private static string Canonical(string text)
    {
        var result = new StringBuilder(text).Replace("{%-", "{%").Replace("-%}", "%}").Replace("{{-", "{{").Replace("-}}", "}}")
            .Replace('"', '\'').Replace("\\n", "").Replace("\n", "").Replace("\r", "");
        foreach (var key in (ReadOnlySpan<string>)["role", "content", "tool_calls"]) result.Replace($"['{key}']", $".{key}");
        foreach (var loose in (ReadOnlySpan<string>)["+", "|", "!=", "=="]) result.Replace($" {loose}", loose).Replace($"{loose} ", loose);
        return result.Replace("{{ ", "{{").Replace(" }}", "}}").Replace("{% ", "{%").Replace(" %}", "%}").ToString();
    }

    private static (string File, string Text)? ReadBeside(string directory, string name, Func<string, string> read)
    {
        var path = Path.Combine(directory, name);
        if (!File.Exists(path)) return null;
        try
        {
            return (path, read(path));
        }
        catch (Exception io) when (io is IOException or UnauthorizedAccessException)
        {
            throw new ModelFileException(path, null, "a readable file", io.GetType().Name);
        }
    }

    /// <summary>A string, or a list of named templates of which <c>default</c> counts.</summary>
    private static string? Template(JsonFields root)
    {
        if (root.Value(Field) is not { ValueKind: JsonValueKind.Array }) return root.OptionalString(Field);
        foreach (var named in root.Objects(Field))
            if (named.OptionalString("name") == "default") return named.OptionalString("template");
        root.Refuse(Field, "a template named \"default\"", "none");
        return null;
    }

    private static string? Token(JsonFields root, string name) =>
        root.Value(name) is { ValueKind: JsonValueKind.Object } ? root.Object(name)!.Value.OptionalString("content") : root.OptionalString(name);

    private sealed class NoTemplate() : ChatTemplate("none")
    {
        protected override void Write(IReadOnlyList<Message> messages, IReadOnlyList<ToolDefinition> tools, bool addGenerationPrompt, PromptText.Builder prompt) =>
            throw Refused("This model has no chat template; it continues plain prompts only.");
    }
}
