using System.Globalization;

namespace TenantLora.Runtime.Tokenization;

/// <summary>
/// Llama 3: each turn is <c>&lt;|start_header_id|&gt;role&lt;|end_header_id|&gt;</c>, an empty line, the text, <c>&lt;|eot_id|&gt;</c>. From 3.1 on there is always a
/// system turn with dates, and tools stand in the first user turn.
/// </summary>
internal sealed class Llama3Template : ChatTemplate
{
    private const string FixedDate = "26 Jul 2024";             // what 3.1's template tells on any day

    private readonly string bos;
    private readonly bool alwaysOpensAnswer;
    private readonly Func<string>? today;                       // null: Llama 3.0

    private Llama3Template(string name, string? bos, Func<string>? today, bool alwaysOpensAnswer = false)
        : base(name)
    {
        this.bos = bos ?? "<|begin_of_text|>";
        this.today = today;
        this.alwaysOpensAnswer = alwaysOpensAnswer;
    }

    public static IReadOnlyList<string> Names { get; } = ["llama3", "llama3.1", "llama3.2"];

    public static ChatTemplate? ByName(string name, string? bos, TimeProvider clock) => name switch
    {
        "llama3" => new Llama3Template(name, bos, null),
        "llama3.1" => new Llama3Template(name, bos, () => FixedDate),
        "llama3.2" => new Llama3Template(name, bos, () => clock.GetLocalNow().ToString("dd MMM yyyy", CultureInfo.InvariantCulture)),
        _ => null,
    };

    public static ChatTemplate? ByText(string canonical, string? bos, TimeProvider clock)
    {
        if (!canonical.Contains("<|start_header_id|>", StringComparison.Ordinal)) return null;
        if (canonical.Contains("Environment: ipython", StringComparison.Ordinal) && canonical.Contains("Cutting Knowledge Date: December 2023", StringComparison.Ordinal))
            return ByName(canonical.Contains("strftime_now", StringComparison.Ordinal) ? "llama3.2" : "llama3.1", bos, clock);
        if (!canonical.Contains("'<|start_header_id|>'+message.role+'<|end_header_id|>'+message.content|trim+'<|eot_id|>'", StringComparison.Ordinal)) return null;
        return new Llama3Template("llama3", bos, null, alwaysOpensAnswer: !canonical.Contains("if add_generation_prompt", StringComparison.Ordinal));
    }

    protected override void Write(IReadOnlyList<Message> messages, IReadOnlyList<ToolDefinition> tools, bool addGenerationPrompt, PromptText.Builder prompt)
    {
        prompt.Add(bos);
        var next = 0;
        if (today is not null)
        {
            var system = messages[0].Role == "system" ? Strip(messages[next++].Content) : "";
            prompt.Add("<|start_header_id|>system<|end_header_id|>\n\n").Add(tools.Count > 0 ? "Environment: ipython\n" : "")
                .Add($"Cutting Knowledge Date: December 2023\nToday Date: {today()}\n\n").Outside(system).Add("<|eot_id|>");
            if (tools.Count > 0) WriteTools(next < messages.Count ? messages[next++] : throw Refused("Tools need a message behind the system message."), tools, prompt);
        }
        else if (tools.Count > 0) throw NoTools();

        for (; next < messages.Count; next++) WriteTurn(messages[next], prompt);
        if (addGenerationPrompt || alwaysOpensAnswer) prompt.Add("<|start_header_id|>assistant<|end_header_id|>\n\n");
    }

    private static void WriteTools(Message first, IReadOnlyList<ToolDefinition> tools, PromptText.Builder prompt)
    {
        prompt.Add("<|start_header_id|>user<|end_header_id|>\n\nGiven the following functions, please respond with a JSON for a function call with its proper arguments that best answers the given prompt.\n\n"
            + "Respond in the format {\"name\": function name, \"parameters\": dictionary of argument name and its value}.Do not use variables.\n\n");
        foreach (var tool in tools) prompt.Outside(PythonJson.Write(PythonJson.Describe(tool), indent: 4)).Add("\n\n");
        prompt.Outside(Strip(first.Content)).Add("<|eot_id|>");
    }

    private void WriteTurn(Message message, PromptText.Builder prompt)
    {
        if (today is not null && message.ToolCalls.Count > 0)
        {
            if (message.ToolCalls.Count > 1) throw Refused("This model makes one tool call a turn; a turn in the conversation has several.");
            var call = message.ToolCalls[0];
            prompt.Add("<|start_header_id|>assistant<|end_header_id|>\n\n{\"name\": \"").Outside(call.Name).Add("\", \"parameters\": ")
                .Outside(PythonJson.Write(call.Arguments)).Add("}<|eot_id|>");
        }
        else if (today is not null && message.Role == "tool")
            prompt.Add("<|start_header_id|>ipython<|end_header_id|>\n\n").Outside(PythonJson.Write(message.Content)).Add("<|eot_id|>");
        else
            prompt.Add($"<|start_header_id|>{message.Role}<|end_header_id|>\n\n").Outside(Strip(message.Content)).Add("<|eot_id|>");
    }
}
