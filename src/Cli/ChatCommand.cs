using Microsoft.Extensions.AI;
using TenantLora.Connector;
using TenantLora.Runtime;

namespace TenantLora.Cli;

/// <summary>
/// A conversation over /v1. Answers go to stdout, prompts and notices to stderr. Where stdin is no terminal, all of it is one question.
/// </summary>
/// <param name="model">Null: the first that the server lists, the tenant's first adapter.</param>
internal sealed class ChatCommand(Terminal terminal, Uri server, string key, string? model, bool json)
{
    private const string Help = "/reset forgets the conversation, /model NAME changes the model, /model lists them, /exit leaves. Ctrl+C stops an answer.";
    private readonly TenantLoraClient client = new(server, _ => key);
    private readonly Lock stopping = new();
    private Action? stop;                // the answer under way

    public async Task<int> RunAsync()
    {
        terminal.Interrupted = Stop;
        if (json && terminal.InIsTerminal) throw Failure.Usage("--json is for one question from stdin: echo 'Hello' | tenantlora chat --json");
        if (!terminal.InIsTerminal) return await OnceAsync();
        var names = await client.ListModelsAsync("key");
        model ??= First(names);
        Notice($"{model} on {server}. {Help}");
        List<ChatMessage> conversation = [];
        while (true)
        {
            terminal.Error.Write("> ");
            if (terminal.In.ReadLine() is not { } line) return ExitCode.Done;
            switch (line.Trim().Split(' ', 2, StringSplitOptions.TrimEntries | StringSplitOptions.RemoveEmptyEntries))
            {
                case []:
                    break;
                case ["/exit"]:
                    return ExitCode.Done;
                case ["/reset"]:
                    conversation.Clear();
                    Notice("Forgotten.");
                    break;
                case ["/model"]:
                    Notice(string.Join(", ", names));
                    break;
                case ["/model", var wanted]:
                    // Versions (name@v3) are known to the server alone.
                    names = await client.ListModelsAsync("key");
                    if (names.Contains(wanted) || wanted.Contains('@', StringComparison.Ordinal)) Notice($"{model = wanted} answers now.");
                    else Notice($"There is no model '{wanted}': expected one of {string.Join(", ", names)}, or name@version.");
                    break;
                case [['/', ..] unknown, ..]:
                    Notice($"There is no {unknown}. {Help}");
                    break;
                default:
                    await AskAsync(conversation, line);
                    break;
            }
        }
    }

    /// <summary>The whole of stdin is the question.</summary>
    private async Task<int> OnceAsync()
    {
        var question = (await terminal.In.ReadToEndAsync()).Trim();
        if (question.Length == 0) throw Failure.Usage("Expected a question on stdin, found nothing.");
        model ??= First(await client.ListModelsAsync("key"));
        List<ChatResponseUpdate> updates = [];
        await foreach (var update in Chat().GetStreamingResponseAsync([new ChatMessage(ChatRole.User, question)]))
        {
            updates.Add(update);
            if (!json) Print(update.Text);
        }
        var answer = updates.ToChatResponse();
        if (json) terminal.Write(new { model, text = answer.Text, finishReason = answer.FinishReason?.Value, usage = new { promptTokens = answer.Usage?.InputTokenCount, completionTokens = answer.Usage?.OutputTokenCount } });
        else terminal.Out.WriteLine();
        return ExitCode.Done;
    }

    private async Task AskAsync(List<ChatMessage> conversation, string question)
    {
        conversation.Add(new ChatMessage(ChatRole.User, question));
        List<ChatResponseUpdate> updates = [];
        using var stopped = new CancellationTokenSource();
        lock (stopping) stop = stopped.Cancel;
        try
        {
            await foreach (var update in Chat().GetStreamingResponseAsync(conversation, cancellationToken: stopped.Token))
            {
                updates.Add(update);
                Print(update.Text);
            }
            terminal.Out.WriteLine();
            if (updates[^1].FinishReason == ChatFinishReason.Length) Notice("The answer is cut: it reached the model's limit.");
        }
        catch (OperationCanceledException) when (stopped.IsCancellationRequested)
        {
            terminal.Out.WriteLine();
            Notice("Stopped.");
        }
        catch (TenantLoraException e)
        {
            if (updates.Count > 0) terminal.Out.WriteLine();
            Notice(e.Message);
        }
        finally
        {
            lock (stopping) stop = null;
        }
        // What was said so far belongs to the conversation; a question without an answer does not.
        var said = updates.ToChatResponse().Text;
        if (said.Length > 0) conversation.Add(new ChatMessage(ChatRole.Assistant, said));
        else conversation.RemoveAt(conversation.Count - 1);
    }

    /// <summary>The first Ctrl+C stops the answer; one that finds none to stop is the terminal's own, and ends the process.</summary>
    private bool Stop()
    {
        lock (stopping)
        {
            if (stop is null) return false;
            stop();
            stop = null;
            return true;
        }
    }

    private TenantLoraChatClient Chat() => client.GetChatClient("key", model);

    private static string First(IReadOnlyList<string> names) => names is [var first, ..] ? first : throw new Failure(ExitCode.Failed, "The server lists no model.");

    /// <summary>A terminal is told no control characters; whoever reads a pipe gets what came.</summary>
    private void Print(string text)
    {
        terminal.Out.Write(terminal.OutIsTerminal ? Terminal.Clean(text, lines: true) : text);
        terminal.Out.Flush();
    }

    private void Notice(string text) => terminal.Error.WriteLine(Terminal.Clean(text));
}
