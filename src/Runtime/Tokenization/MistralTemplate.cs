namespace TenantLora.Runtime.Tokenization;

/// <summary>
/// Mistral: what a user says stands in <c>[INST]</c>, what the assistant answered ends with the end-of-text token. The forms differ
/// in spaces, which are tokens: <c>mistral</c> (7B v0.1 and v0.2), <c>mistral-v1</c> (the same with a system text), <c>mistral-v3</c> (with tools) and
/// <c>mistral-v3-tekken</c> (Nemo).
/// </summary>
internal sealed class MistralTemplate : ChatTemplate
{
    private const int CallIdLength = 9;

    private readonly Form form;
    private readonly string bos, eos;

    private MistralTemplate(string name, Form form, string? bos, string? eos)
        : base(name)
    {
        this.form = form;
        this.bos = bos ?? "<s>";
        this.eos = eos ?? "</s>";
    }

    public static IReadOnlyList<string> Names { get; } = ["mistral", "mistral-v1", "mistral-v3", "mistral-v3-tekken"];

    /// <param name="Open">Before a user's text.</param>
    /// <param name="Close">Behind it.</param>
    /// <param name="Answer">Before an assistant's text.</param>
    /// <param name="AnswerEnd">Behind its end-of-text token.</param>
    /// <param name="Bracket">Between a bracketed word and the JSON that follows; null: no tools.</param>
    /// <param name="HasSystem">A system text may come first.</param>
    /// <param name="SystemLast">The system text stands in the last turn rather than in the first.</param>
    /// <param name="TrimsAnswer">Answers lose white space around them.</param>
    private sealed record Form(string Open, string Close, string Answer, string AnswerEnd = "", string? Bracket = null, bool HasSystem = true, bool SystemLast = false, bool TrimsAnswer = false);

    public static ChatTemplate? ByName(string name, string? bos, string? eos)
    {
        Form? form = name switch
        {
            "mistral" => new("[INST] ", " [/INST]", "", HasSystem: false),
            "mistral-v1" => new(" [INST] ", " [/INST]", " "),
            "mistral-v3" => new("[INST] ", "[/INST]", " ", Bracket: " ", SystemLast: true, TrimsAnswer: true),
            "mistral-v3-tekken" => new("[INST]", "[/INST]", "", Bracket: "", SystemLast: true),
            _ => null,
        };
        return form is null ? null : new MistralTemplate(name, form, bos, eos);
    }

    public static ChatTemplate? ByText(string canonical, string? bos, string? eos)
    {
        bool Says(string phrase) => canonical.Contains(phrase, StringComparison.Ordinal);
        if (!Says("[INST]") || Says("<<SYS>>") || Says("[SYSTEM_PROMPT]")) return null;
        if (Says("[TOOL_CALLS]["))
            return Says("'[INST]'+message.content") && Says("{{message.content+eos_token}}") ? ByName("mistral-v3-tekken", bos, eos) : null;
        if (Says("[TOOL_CALLS] ["))
            return Says("'[INST] '+message.content") && Says("{{' '+message.content|trim+eos_token}}") ? ByName("mistral-v3", bos, eos) : null;
        if (Says("{{' [INST] '+message.content+' [/INST]'}}")) return Says("{{' '+message.content+eos_token}}") ? ByName("mistral-v1", bos, eos) : null;
        if (!Says("{{'[INST] '+message.content+' [/INST]'}}")) return null;
        if (Says("{{message.content+eos_token}}")) return ByName("mistral", bos, eos);
        return Says("{{message.content+eos_token+' '}}") ? new MistralTemplate("mistral", new("[INST] ", " [/INST]", "", AnswerEnd: " ", HasSystem: false), bos, eos) : null;
    }

    protected override void Write(IReadOnlyList<Message> messages, IReadOnlyList<ToolDefinition> tools, bool addGenerationPrompt, PromptText.Builder prompt)
    {
        if (tools.Count > 0 && form.Bracket is null) throw NoTools();
        var system = form.HasSystem && messages[0].Role == "system" ? messages[0].Content : null;
        var first = system is null ? 0 : 1;
        CheckAlternation(messages.Skip(first));

        prompt.Add(bos);
        var lastQuestion = messages.LastOrDefault(message => message.Role == "user");
        for (var i = first; i < messages.Count; i++)
        {
            var message = messages[i];
            if (message.Role == "user")
            {
                // The template compares messages by value, so an earlier turn with the same words gets the tools as well.
                if (tools.Count > 0 && message.Content == lastQuestion!.Content) WriteTools(tools, prompt);
                prompt.Add(form.Open);
                if (system is not null && i == (form.SystemLast ? messages.Count - 1 : first)) prompt.Outside(system).Add("\n\n");
                prompt.Outside(message.Content).Add(form.Close);
            }
            else if (message.Role == "tool") WriteResult(message, prompt);
            else if (form.Bracket is not null && message.ToolCalls.Count > 0) WriteCalls(message.ToolCalls, prompt);
            else prompt.Add(form.Answer).Outside(form.TrimsAnswer ? Strip(message.Content) : message.Content).Add(eos).Add(form.AnswerEnd);
        }
    }

    private void CheckAlternation(IEnumerable<Message> messages)
    {
        var userNext = true;
        foreach (var message in messages)
        {
            if (form.Bracket is not null && (message.Role == "tool" || message.ToolCalls.Count > 0)) continue;
            if (message.Role is "system" or "tool") throw Refused("This model takes user and assistant messages" + (form.HasSystem ? ", and one system message at the start." : " only."));
            if (message.Role == "user" != userNext) throw Refused("This model needs user and assistant messages in turn, a user's first.");
            userNext = !userNext;
        }
    }

    private void WriteTools(IReadOnlyList<ToolDefinition> tools, PromptText.Builder prompt)
    {
        prompt.Add($"[AVAILABLE_TOOLS]{form.Bracket}[");
        foreach (var (index, tool) in tools.Index())
        {
            // The template puts texts between quotes as they are, without escapes.
            prompt.Add(index > 0 ? ", " : "").Add("{\"type\": \"function\", \"function\": {\"name\": \"").Outside(tool.Name).Add("\"");
            if (tool.Description is { } description) prompt.Add(", \"description\": \"").Outside(description).Add("\"");
            if (tool.Parameters is { } parameters) prompt.Add(", \"parameters\": ").Outside(PythonJson.Write(parameters));
            prompt.Add("}}");
        }
        prompt.Add("][/AVAILABLE_TOOLS]");
    }

    private void WriteCalls(IReadOnlyList<ToolCall> calls, PromptText.Builder prompt)
    {
        prompt.Add($"[TOOL_CALLS]{form.Bracket}[");
        foreach (var (index, call) in calls.Index())
        {
            prompt.Add(index > 0 ? ", " : "").Add("{\"name\": ").Outside(PythonJson.Write(call.Name)).Add(", \"arguments\": ").Outside(PythonJson.Write(call.Arguments))
                .Add(", \"id\": \"").Outside(CallId(call.Id)).Add("\"}");
        }
        prompt.Add("]").Add(eos);
    }

    private void WriteResult(Message message, PromptText.Builder prompt) =>
        prompt.Add($"[TOOL_RESULTS]{form.Bracket}{{\"content\": ").Outside(message.Content).Add(", \"call_id\": \"").Outside(CallId(message.ToolCallId)).Add("\"}[/TOOL_RESULTS]");

    private static string CallId(string? id) =>
        id?.Length == CallIdLength ? id : throw Refused("This model needs tool call ids of nine characters.");
}
