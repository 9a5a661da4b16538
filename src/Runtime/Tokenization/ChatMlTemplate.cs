using System.Text.RegularExpressions;

namespace TenantLora.Runtime.Tokenization;

/// <summary>
/// ChatML: each turn between <c>&lt;|im_start|&gt;role</c> and <c>&lt;|im_end|&gt;</c>; tools as Hermes has them, in <c>&lt;tools&gt;</c>,
/// <c>&lt;tool_call&gt;</c> and <c>&lt;tool_response&gt;</c>. Qwen's families are this with differences in the default system turn and in what becomes of thoughts.
/// </summary>
internal sealed partial class ChatMlTemplate : ChatTemplate
{
    private const string QwenSystem = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";
    private const string PlainSystem = "You are a helpful assistant.";

    private readonly Form form;

    private ChatMlTemplate(string name, Form form)
        : base(name) => this.form = form;

    public static IReadOnlyList<string> Names { get; } = ["chatml", "chatml-tools", "qwen2", "qwen2.5", "qwen3", "qwen3-no-thinking", "qwen3-instruct"];

    /// <param name="System">The first turn of a conversation that brings none; null: there is none.</param>
    /// <param name="HasTools">There is a place for tools.</param>
    /// <param name="ToolSystem">What stands before the tools of a conversation that brings no system text; null: nothing.</param>
    /// <param name="GroupsResults">Neighbouring tool results share one turn.</param>
    /// <param name="Thinks">Thoughts stay only in the turns behind the last question.</param>
    /// <param name="SkipsThinking">The assistant's turn opens with an empty thought.</param>
    private sealed record Form(string? System = null, bool HasTools = true, string? ToolSystem = null, bool GroupsResults = true, bool Thinks = false, bool SkipsThinking = false);

    public static ChatTemplate? ByName(string name) => name switch
    {
        "chatml" => new ChatMlTemplate(name, new(HasTools: false)),
        "chatml-tools" => new ChatMlTemplate(name, new(ToolSystem: PlainSystem, GroupsResults: false)),
        "qwen2" => new ChatMlTemplate(name, new(System: PlainSystem, HasTools: false)),
        "qwen2.5" => new ChatMlTemplate(name, new(System: QwenSystem, ToolSystem: QwenSystem)),
        "qwen3" => new ChatMlTemplate(name, new(Thinks: true)),
        "qwen3-no-thinking" => new ChatMlTemplate(name, new(Thinks: true, SkipsThinking: true)),
        "qwen3-instruct" => new ChatMlTemplate(name, new()),
        _ => null,
    };

    /// <param name="text">The template as it is.</param>
    /// <param name="canonical">The same with spellings made alike.</param>
    public static ChatTemplate? ByText(string text, string canonical)
    {
        if (!canonical.Contains("<|im_start|>", StringComparison.Ordinal)) return null;
        var system = Literal(DefaultSystem().Match(text));
        if (!canonical.Contains("<tool_response>", StringComparison.Ordinal))
        {
            // All there is to this form; anything more (a trim, another separator) is somebody else's.
            var plain = canonical.Contains("{{'<|im_start|>'+message.role+''+message.content+'<|im_end|>'+''}}", StringComparison.Ordinal);
            return plain ? new ChatMlTemplate(system is null ? "chatml" : "qwen2", new(system, HasTools: false)) : null;
        }
        var hermes = canonical.Contains("# ToolsYou may call one or more functions", StringComparison.Ordinal)
            && canonical.Contains("tool|tojson", StringComparison.Ordinal) && canonical.Contains("<tool_call>{", StringComparison.Ordinal);
        if (!hermes) return null;
        if (canonical.Contains("<think>", StringComparison.Ordinal))
            // Only the form that can be told not to think; others open the thought themselves.
            return canonical.Contains("last_query_index", StringComparison.Ordinal) && canonical.Contains("enable_thinking is false", StringComparison.Ordinal) ? ByName("qwen3") : null;
        if (canonical.Contains("messages[0].content+''}}", StringComparison.Ordinal)) return ByName("qwen3-instruct");
        var toolSystem = Literal(DefaultToolSystem().Match(text));
        var groups = canonical.Contains("messages[loop.index0-1]", StringComparison.Ordinal) || canonical.Contains("messages[loop.index0 - 1]", StringComparison.Ordinal);
        return new ChatMlTemplate(groups ? "qwen2.5" : "chatml-tools", new(system, ToolSystem: toolSystem, GroupsResults: groups));
    }

    protected override void Write(IReadOnlyList<Message> messages, IReadOnlyList<ToolDefinition> tools, bool addGenerationPrompt, PromptText.Builder prompt)
    {
        WriteOpening(messages[0], tools, prompt);
        var lastQuestion = LastQuestion(messages);
        for (var i = messages[0].Role == "system" ? 1 : 0; i < messages.Count; i++)
        {
            var message = messages[i];
            if (!form.HasTools || message.Role is "user" or "system") prompt.Add($"<|im_start|>{message.Role}\n").Outside(message.Content).Add("<|im_end|>\n");
            else if (message.Role == "assistant") WriteAssistant(message, i > lastQuestion, i == messages.Count - 1, prompt);
            else
            {
                var opens = !form.GroupsResults || i == 0 || messages[i - 1].Role != "tool";
                var closes = !form.GroupsResults || i == messages.Count - 1 || messages[i + 1].Role != "tool";
                prompt.Add(opens ? "<|im_start|>user\n<tool_response>\n" : "\n<tool_response>\n").Outside(message.Content).Add(closes ? "\n</tool_response><|im_end|>\n" : "\n</tool_response>");
            }
        }
        if (!addGenerationPrompt) return;
        prompt.Add("<|im_start|>assistant\n");
        if (form.SkipsThinking) prompt.Add("<think>\n\n</think>\n\n");
    }

    private void WriteOpening(Message first, IReadOnlyList<ToolDefinition> tools, PromptText.Builder prompt)
    {
        var own = first.Role == "system" ? first.Content : null;
        if (tools.Count > 0)
        {
            if (!form.HasTools) throw NoTools();
            prompt.Add("<|im_start|>system\n");
            if (own is not null) prompt.Outside(own);
            else if (form.ToolSystem is { } text) prompt.Add(text);
            if (own is not null || form.ToolSystem is not null) prompt.Add("\n\n");
            prompt.Add("# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>");
            foreach (var tool in tools) prompt.Add("\n").Outside(PythonJson.Write(PythonJson.Describe(tool)));
            prompt.Add("\n</tools>\n\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n"
                + "<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call><|im_end|>\n");
        }
        else if (own is not null) prompt.Add("<|im_start|>system\n").Outside(own).Add("<|im_end|>\n");
        else if (form.System is { } system) prompt.Add($"<|im_start|>system\n{system}<|im_end|>\n");
    }

    private void WriteAssistant(Message message, bool behindQuestion, bool last, PromptText.Builder prompt)
    {
        var (thought, content) = form.Thinks ? SplitThought(message.Content) : ("", message.Content);
        prompt.Add("<|im_start|>assistant\n");
        if (form.Thinks && behindQuestion && (last || thought.Length > 0))
        {
            prompt.Add("<think>\n").Outside(thought.Trim('\n')).Add("\n</think>\n\n");
            prompt.Outside(content.TrimStart('\n'));
        }
        else prompt.Outside(content);
        foreach (var (index, call) in message.ToolCalls.Index())
        {
            if (content.Length > 0 || index > 0) prompt.Add("\n");
            prompt.Add("<tool_call>\n{\"name\": \"").Outside(call.Name).Add("\", \"arguments\": ").Outside(PythonJson.Write(call.Arguments)).Add("}\n</tool_call>");
        }
        prompt.Add("<|im_end|>\n");
    }

    private static (string Thought, string Content) SplitThought(string content)
    {
        const string open = "<think>", close = "</think>";
        var first = content.IndexOf(close, StringComparison.Ordinal);
        if (first < 0) return ("", content);
        var thought = content[..first].TrimEnd('\n');
        var opened = thought.LastIndexOf(open, StringComparison.Ordinal);
        if (opened >= 0) thought = thought[(opened + open.Length)..];
        return (thought.TrimStart('\n'), content[(content.LastIndexOf(close, StringComparison.Ordinal) + close.Length)..].TrimStart('\n'));
    }

    /// <summary>The last thing a person asked; tool results dressed up as a user's turn do not count.</summary>
    private static int LastQuestion(IReadOnlyList<Message> messages)
    {
        for (var i = messages.Count - 1; i >= 0; i--)
        {
            var (role, content) = (messages[i].Role, messages[i].Content);
            var isResult = content.StartsWith("<tool_response>", StringComparison.Ordinal) && content.EndsWith("</tool_response>", StringComparison.Ordinal);
            if (role == "user" && !isResult) return i;
        }
        return messages.Count - 1;
    }

    /// <summary>The first group as the Jinja string literal that it is part of.</summary>
    private static string? Literal(Match match) => !match.Success ? null
        : match.Groups[1].Value.Replace("\\n", "\n", StringComparison.Ordinal).Replace("\\'", "'", StringComparison.Ordinal).Replace("\\\\", "\\", StringComparison.Ordinal);

    [GeneratedRegex(@"<\|im_start\|>system(?:\\n|\n)([^<>{}'""]+)<\|im_end\|>")]
    private static partial Regex DefaultSystem();

    [GeneratedRegex(@"\{%-?\s*else\s*-?%\}\s*\{\{-?\s*['""]([^<>'""]+)['""]\s*-?\}\}")]
    private static partial Regex DefaultToolSystem();
}
