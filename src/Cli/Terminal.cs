using System.Globalization;
using System.Text;
using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Serialization;
using Spectre.Console;
using Spectre.Console.Rendering;
using TenantLora.Runtime;

namespace TenantLora.Cli;

/// <summary>
/// Where the tool reads and writes: data on <see cref="Out"/>, everything else on <see cref="Error"/>. Whatever others wrote passes <see cref="Clean"/> first and
/// is never Spectre's markup, so a server's text can neither color the screen nor move its cursor.
/// </summary>
internal sealed class Terminal
{
    /// <summary>As the server's JSON; letters of all scripts as they are.</summary>
    public static readonly JsonSerializerOptions Json = new(JsonSerializerDefaults.Web)
    {
        Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
        WriteIndented = true,
        RespectNullableAnnotations = true,              // what lacks a field is not the expected answer
        RespectRequiredConstructorParameters = true,
        Converters = { new JsonStringEnumConverter<Severity>(JsonNamingPolicy.SnakeCaseLower) },
    };

    private readonly Lazy<IAnsiConsole> console;

    public Terminal() => console = new(Open);

    public TextReader In { get; init; } = Console.In;

    public TextWriter Out { get; init; } = Console.Out;

    public TextWriter Error { get; init; } = Console.Error;

    public bool InIsTerminal { get; init; }

    public bool OutIsTerminal { get; init; }

    public Func<string, string?> Environment { get; init; } = System.Environment.GetEnvironmentVariable;

    /// <summary>Ctrl+C. True: it was meant for what runs, and the process stays.</summary>
    public Func<bool>? Interrupted { get; set; }

    public static Terminal Real()
    {
        var terminal = new Terminal { InIsTerminal = !Console.IsInputRedirected, OutIsTerminal = !Console.IsOutputRedirected };
        Console.CancelKeyPress += (_, press) => press.Cancel = terminal.Interrupted?.Invoke() ?? false;
        return terminal;
    }

    /// <summary>An environment variable; null where it is empty too.</summary>
    public string? Setting(string name) => Environment(name) is { Length: > 0 } value ? value : null;

    public void Write(object value) => Out.WriteLine(JsonSerializer.Serialize(value, Json));

    /// <summary>Broken by the terminal alone, so that what is copied from it is whole.</summary>
    public void Line(string text) => Out.WriteLine(Clean(text));

    /// <param name="lead">What the line begins with, in color where there is any.</param>
    public void Line(string lead, Color color, string text)
    {
        console.Value.Write(new Text(lead, new Style(color)));
        Line(text);
    }

    /// <summary>Columns without borders: to be read, and to be cut by other tools.</summary>
    public void Table(string[] heads, IEnumerable<string[]> rows)
    {
        var table = new Table { Border = TableBorder.None };
        foreach (var head in heads) table.AddColumn(new TableColumn(new Text(head, new Style(decoration: Decoration.Bold))) { Padding = new Padding(0, 0, 2, 0), NoWrap = !OutIsTerminal });
        foreach (var row in rows) table.AddRow(row.Select(IRenderable (cell) => new Text(Clean(cell))));
        console.Value.Write(table);
    }

    /// <summary>Texts beside each other on a terminal; one below the other where something else reads them.</summary>
    public void SideBySide(string[] heads, string[] texts)
    {
        if (OutIsTerminal)
        {
            var table = new Table { Border = TableBorder.None, Expand = true };
            foreach (var head in heads) table.AddColumn(new TableColumn(new Text(Clean(head), new Style(decoration: Decoration.Bold))) { Padding = new Padding(0, 0, 3, 0) });
            table.AddRow(texts.Select(IRenderable (text) => new Text(Clean(text, lines: true))));
            console.Value.Write(table);
            return;
        }
        for (var i = 0; i < heads.Length; i++)
        {
            if (i > 0) Out.WriteLine();
            Out.WriteLine($"{Clean(heads[i])}:");
            Out.WriteLine(texts[i]);
        }
    }

    /// <summary>Runs what reports its progress from 0 to 1; shown on a terminal only.</summary>
    public async Task<T> ProgressAsync<T>(string doing, Func<Action<double>, Task<T>> work)
    {
        if (!OutIsTerminal) return await work(_ => { });
        return await console.Value.Progress().AutoClear(true).StartAsync(async context =>
        {
            var task = context.AddTask(Markup.Escape(doing), maxValue: 1);
            return await work(share =>
            {
                task.Value = share;
                task.IsIndeterminate = share >= 1;       // all is there, and is looked at
            });
        });
    }

    /// <summary>In a line of the terminal's own: control and formatting characters, which could act on it, become U+FFFD.</summary>
    /// <param name="lines">Leaves line breaks and tabs as they are.</param>
    public static string Clean(string text, bool lines = false)
    {
        var clean = new StringBuilder(text.Length);
        foreach (var rune in text.EnumerateRunes())
            if (rune.Value is '\n' or '\t') clean.Append(lines ? (char)rune.Value : ' ');
            else if (rune.Value is 0x200C or 0x200D) clean.Append((char)rune.Value);         // joiners, part of letters
            else if (Rune.GetUnicodeCategory(rune) is UnicodeCategory.Control or UnicodeCategory.Format or UnicodeCategory.LineSeparator or UnicodeCategory.ParagraphSeparator) clean.Append('\uFFFD');
            else clean.Append(rune.ToString());
        return clean.ToString();
    }

    public static string Size(long bytes) => bytes switch
    {
        < 1000 => string.Create(CultureInfo.InvariantCulture, $"{bytes} B"),
        < 1_000_000 => string.Create(CultureInfo.InvariantCulture, $"{bytes / 1e3:0.0} kB"),
        < 1_000_000_000 => string.Create(CultureInfo.InvariantCulture, $"{bytes / 1e6:0.0} MB"),
        _ => string.Create(CultureInfo.InvariantCulture, $"{bytes / 1e9:0.0} GB"),
    };

    public static string Time(DateTimeOffset time) => time.UtcDateTime.ToString("yyyy-MM-dd HH:mm'Z'", CultureInfo.InvariantCulture);

    private IAnsiConsole Open()
    {
        var colors = OutIsTerminal && Setting("NO_COLOR") is null && Setting("TERM") != "dumb";
        var opened = AnsiConsole.Create(new AnsiConsoleSettings
        {
            Ansi = !colors ? AnsiSupport.No : OperatingSystem.IsWindows() ? AnsiSupport.Detect : AnsiSupport.Yes,
            ColorSystem = colors ? ColorSystemSupport.Standard : ColorSystemSupport.NoColors,
            Interactive = OutIsTerminal ? InteractionSupport.Detect : InteractionSupport.No,
            Out = new AnsiConsoleOutput(Out),
        });
        if (!OutIsTerminal) opened.Profile.Width = 10_000;       // no line is broken that a tool may read
        return opened;
    }
}
