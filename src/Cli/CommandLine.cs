using System.CommandLine;
using System.CommandLine.Help;
using System.CommandLine.Invocation;
using System.CommandLine.Parsing;
using System.Text.RegularExpressions;
using Microsoft.Extensions.AI;
using TenantLora.Connector;
using TenantLora.Runtime;

namespace TenantLora.Cli;

/// <summary>The commands and their options. Whatever ends a command becomes a line on stderr and an exit code here.</summary>
internal sealed partial class CommandLine(Terminal terminal)
{
    private const int LongestEcho = 24;
    private readonly Option<string?> server = new("--server") { Description = $"The server's address [TENANTLORA_SERVER, else {Server.Default}]", HelpName = "URL" };
    private readonly Option<string?> key = new("--key") { Description = "The key, which says whose tenant it is [TENANTLORA_KEY, which other users of this machine cannot see]", HelpName = "KEY" };
    private readonly Option<bool> json = new("--json") { Description = "Nothing but JSON on stdout" };

    public async Task<int> RunAsync(string[] args)
    {
        var parsed = Commands().Parse(args, new ParserConfiguration { ResponseFileTokenReplacer = null });
        if (parsed.Action is ParseErrorAction) return Misused(parsed);       // --help has its say even so
        try
        {
            // Signals are the chat's and the host's own.
            return await parsed.InvokeAsync(new InvocationConfiguration { Output = terminal.Out, Error = terminal.Error, EnableDefaultExceptionHandler = false, ProcessTerminationTimeout = null });
        }
        catch (Failure failure)
        {
            return End(failure.ExitCode, failure.Message);
        }
        catch (TenantLoraException e)
        {
            return End(e.Code is ErrorCodes.InvalidKey or ErrorCodes.Unreachable ? ExitCode.Unreachable : ExitCode.Failed, e.Message);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return End(ExitCode.Failed, e.Message);
        }
    }

    private RootCommand Commands()
    {
        var root = new RootCommand("Serves, tries and looks after TenantLora: one base model, every tenant with its own adapters.")
        {
            Serve(), Chat(), Adapter(),
            Connected(new Command("ps", "Where the tenant's adapters are, and the device's room for adapters"), (_, commands) => commands.ResidentAsync()),
            Doctor(),
        };
        var help = root.Options.OfType<HelpOption>().Single();
        help.Action = new HelpWithExitCodes((HelpAction)help.Action!);
        return root;
    }

    private static Command Serve()
    {
        var urls = new Option<string?>("--urls") { Description = $"Where it listens [{Server.Default}]", HelpName = "URLS" };
        var more = new Argument<string[]>("configuration") { Description = "After --: settings of the host, such as -- --TenantLora:Device=cpu", Arity = ArgumentArity.ZeroOrMore, DefaultValueFactory = _ => [] };
        var serve = new Command("serve", "Runs the host in this process") { urls, more };
        serve.SetAction(parsed =>
        {
            var after = parsed.Tokens.SkipWhile(t => t.Type != TokenType.DoubleDash).Skip(1).Select(t => t.Value).ToArray();
            if (parsed.GetValue(more) is { } all && all.Length > after.Length) throw Failure.Usage($"Expected settings of the host after two dashes (tenantlora serve -- --TenantLora:Device=cpu), found {all.Length - after.Length} before them.");
            string[] listen = parsed.GetValue(urls) is { } given ? ["--urls", given] : [];
            return ChatHost.Program.Main([.. listen, .. after]);
        });
        return serve;
    }

    private Command Chat()
    {
        var model = new Option<string?>("--model") { Description = "An adapter's name, name@v3, or the base model's [the tenant's first]", HelpName = "NAME" };
        var chat = new Command("chat", "A conversation; or one question from stdin where that is not a terminal") { server, key, model, json };
        chat.SetAction(parsed => new ChatCommand(terminal, Address(parsed), Server.CheckKey(Key(parsed)), parsed.GetValue(model), parsed.GetValue(json)).RunAsync());
        return chat;
    }

    private Command Adapter()
    {
        var name = new Argument<string>("NAME") { Description = "The adapter's name" };
        var versioned = new Argument<string>("NAME[@vN]") { Description = "The adapter's name, or one of its versions" };
        var folder = new Argument<string>("FOLDER") { Description = "A folder with adapter_config.json and adapter_model.safetensors" };
        var source = new Argument<string>("FOLDER") { Description = "A folder with adapter_config.json and adapter_model.safetensors, or a .zip or .tar.gz of them" };
        var called = new Option<string?>("--name") { Description = "The adapter's name [the folder's]", HelpName = "NAME" };
        var model = new Option<string>("--model") { Description = "The base model's folder", HelpName = "MODELFOLDER", DefaultValueFactory = _ => "models/demo-7m" };
        var version = new Option<string?>("--version") { Description = "Which version [the newest]", HelpName = "vN" };
        var prompt = new Argument<string>("PROMPT") { Description = "What both are asked" };
        var why = new Option<string?>("--why") { Description = "For the audit", HelpName = "TEXT" };
        var yes = new Option<bool>("--yes", "-y") { Description = "Does not ask" };

        var validate = new Command("validate", "Judges a folder under a base model, without a server") { folder, model, json };
        validate.SetAction(parsed => new AdapterCommands(terminal, null, parsed.GetValue(json)).ValidateAsync(parsed.GetRequiredValue(folder), parsed.GetRequiredValue(model)));
        return new Command("adapter", "Looks after the tenant's adapters")
        {
            Connected(new Command("ls", "Lists the adapters"), (_, commands) => commands.ListAsync()),
            Connected(new Command("show", "One adapter with its versions") { name }, (parsed, commands) => commands.ShowAsync(parsed.GetRequiredValue(name))),
            validate,
            Connected(new Command("push", "Brings a version, which the server judges") { source, called }, (parsed, commands) => commands.PushAsync(parsed.GetRequiredValue(source), parsed.GetValue(called))),
            Connected(new Command("activate", "Makes a version what the adapter's name means") { versioned, version, why }, (parsed, commands) =>
            {
                var (adapter, one) = Split(parsed.GetRequiredValue(versioned));
                var other = parsed.GetValue(version) is { } given ? Version(given) : null;
                if (one is not null && other is not null && one != other) throw Failure.Usage($"Expected one version, found {one} and {other}.");
                return commands.ActivateAsync(adapter, one ?? other, parsed.GetValue(why));
            }),
            Connected(new Command("rollback", "Makes the version before active again") { name, why }, (parsed, commands) => commands.RollBackAsync(parsed.GetRequiredValue(name), parsed.GetValue(why))),
            Connected(new Command("try", "Asks a version, and beside it what answers now") { versioned, prompt }, (parsed, commands) =>
            {
                var (adapter, one) = Split(parsed.GetRequiredValue(versioned));
                var question = parsed.GetRequiredValue(prompt).Trim();
                if (question.Length == 0) throw Failure.Usage("PROMPT: expected a question, found nothing.");
                var client = new TenantLoraClient(Address(parsed), _ => Key(parsed));
                return commands.TryAsync(adapter, one, question, model => client.GetChatClient("key", model).GetResponseAsync(question, new ChatOptions { Temperature = 0 }));
            }),
            Connected(new Command("pin", "Keeps the adapter's active version in memory") { name }, (parsed, commands) => commands.PinAsync(parsed.GetRequiredValue(name), pinned: true)),
            Connected(new Command("unpin", "Lets the adapter take turns with others") { name }, (parsed, commands) => commands.PinAsync(parsed.GetRequiredValue(name), pinned: false)),
            Connected(new Command("rm", "Removes a version, or an adapter with all its versions") { versioned, yes }, (parsed, commands) =>
            {
                var (adapter, one) = Split(parsed.GetRequiredValue(versioned));
                return commands.RemoveAsync(adapter, one, parsed.GetValue(yes));
            }),
        };
    }

    private Command Doctor()
    {
        var doctor = new Command("doctor", "Looks for what commonly is wrong, and says how to mend it") { server, key, json };
        doctor.SetAction(parsed => new DoctorCommand(terminal, Address(parsed), Given(parsed) is not null, Key(parsed) is { } text ? Server.CheckKey(text) : null, parsed.GetValue(json)).RunAsync());
        return doctor;
    }

    /// <summary>A command that works on a server.</summary>
    private Command Connected(Command command, Func<ParseResult, AdapterCommands, Task<int>> run)
    {
        command.Add(server);
        command.Add(key);
        command.Add(json);
        command.SetAction(async parsed =>
        {
            using var connection = new Server(Address(parsed), Server.CheckKey(Key(parsed)));
            return await run(parsed, new AdapterCommands(terminal, connection, parsed.GetValue(json)));
        });
        return command;
    }

    private string? Given(ParseResult parsed) => parsed.GetValue(server) ?? terminal.Setting("TENANTLORA_SERVER");

    private Uri Address(ParseResult parsed) => Server.ParseAddress(Given(parsed) ?? Server.Default);

    private string? Key(ParseResult parsed) => parsed.GetValue(key) ?? terminal.Setting("TENANTLORA_KEY");

    private static (string Name, string? Version) Split(string text) => text.LastIndexOf('@') is >= 0 and var at ? (text[..at], Version(text[(at + 1)..])) : (text, null);

    private static string Version(string text) => VersionName().IsMatch(text) ? text : throw Failure.Usage($"Expected a version like v3, found '{text}'.");

    private int Misused(ParseResult parsed)
    {
        foreach (var error in parsed.Errors)
            terminal.Error.WriteLine("tenantlora: " + Terminal.Clean(Hush(error.Message, parsed)));
        var names = new List<string>();
        for (SymbolResult? at = parsed.CommandResult; at is CommandResult command; at = at.Parent) names.Insert(0, command.Command is RootCommand ? "tenantlora" : command.Command.Name);
        terminal.Error.WriteLine($"See {string.Join(' ', names)} --help");
        return ExitCode.Usage;
    }

    /// <summary>What was mistyped may hold a key.</summary>
    private static string Hush(string message, ParseResult parsed)
    {
        foreach (var token in parsed.Tokens.Select(t => t.Value).Concat(parsed.UnmatchedTokens).Where(t => t.Length > LongestEcho)) message = message.Replace(token, "…", StringComparison.Ordinal);
        return message;
    }

    private int End(int exitCode, string message)
    {
        terminal.Error.WriteLine("tenantlora: " + Terminal.Clean(AnyKey().Replace(message, "…")));
        return exitCode;
    }

    [GeneratedRegex("^v[1-9][0-9]{0,17}$")]
    private static partial Regex VersionName();

    [GeneratedRegex("tl_[0-9a-f]{8}_[0-9A-Za-z_-]{16,}")]
    private static partial Regex AnyKey();

    private sealed class HelpWithExitCodes(HelpAction help) : SynchronousCommandLineAction
    {
        public override int Invoke(ParseResult parseResult)
        {
            var result = help.Invoke(parseResult);
            parseResult.InvocationConfiguration.Output.WriteLine(Cli.ExitCode.Words);
            return result;
        }
    }
}
