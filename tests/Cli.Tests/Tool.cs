using System.Text.Json;

namespace TenantLora.Cli.Tests;

/// <summary>What one run of the tool came to.</summary>
internal sealed record Run(int ExitCode, string Out, string Error)
{
    public JsonElement Json => JsonSerializer.Deserialize<JsonElement>(Out);
}

/// <summary>The tool in this process, with a server and a key in its environment and all that it writes caught.</summary>
internal sealed class Tool(string? server, string? key)
{
    public Dictionary<string, string> Environment { get; } = [];

    /// <summary>Stdout is a terminal, and so is stdin where something is typed.</summary>
    public bool OnTerminal { get; init; }

    public string? Typed { get; init; }

    public string? Piped { get; init; }

    public Terminal? Terminal { get; private set; }

    public StringWriter Out { get; } = new();

    public async Task<Run> RunAsync(params string[] args)
    {
        if (server is not null) Environment["TENANTLORA_SERVER"] = server;
        if (key is not null) Environment["TENANTLORA_KEY"] = key;
        var error = new StringWriter();
        Terminal = new Terminal
        {
            In = new StringReader(Typed ?? Piped ?? ""),
            Out = Out,
            Error = error,
            InIsTerminal = Typed is not null,
            OutIsTerminal = OnTerminal,
            Environment = Environment.GetValueOrDefault,
        };
        var exitCode = await new CommandLine(Terminal).RunAsync(args).WaitAsync(TimeSpan.FromSeconds(60));
        var run = new Run(exitCode, Out.ToString(), error.ToString());
        if (key is { Length: > 8 }) Assert.DoesNotContain(key, run.Out + run.Error, StringComparison.Ordinal);        // whatever happens
        return run;
    }
}
