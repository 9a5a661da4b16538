using Spectre.Console;
using TenantLora.ChatHost;
using TenantLora.Runtime;

namespace TenantLora.Cli;

/// <summary>What was found in an adapter, here or by a server.</summary>
internal static class Report
{
    /// <summary>Judges a folder under a base model as a server would, without one.</summary>
    /// <exception cref="Failure">The model cannot be read.</exception>
    public static async Task<AdapterReport> ValidateAsync(string folder, string model)
    {
        var path = Places.Find(model) ?? throw Failure.Usage($"--model: there is no folder '{model}' here, beside the program or above it.");
        try
        {
            // Nothing is generated: the smallest cache, and the device that every machine has.
            await using var engine = Engine.Start(new EngineOptions { ModelDirectory = path, Device = "cpu", Threads = 1, CacheTokens = 16 });
            return engine.ValidateAdapter(folder);
        }
        catch (Exception e) when (e is ModelFileException or IOException or UnauthorizedAccessException or ArgumentException)
        {
            throw new Failure(ExitCode.Failed, $"The model cannot be read. {e.Message}");
        }
    }

    /// <summary>Errors first, each with what was expected, what was found and what to do.</summary>
    public static void Print(Terminal terminal, IReadOnlyList<AdapterFinding> findings)
    {
        foreach (var finding in findings.OrderByDescending(f => f.Severity))
        {
            var (word, color) = finding.Severity switch
            {
                Severity.Error => ("error", Color.Red),
                Severity.Warning => ("warning", Color.Yellow),
                _ => ("note", Color.Default),
            };
            terminal.Line(word, color, $"  {finding.Code}  {finding.Where}");
            terminal.Line($"  {finding.What}");
            Detail("expected", finding.Expected);
            Detail("found", finding.Found);
            Detail("to fix", finding.Fix);
        }

        void Detail(string name, string? text)
        {
            if (text is not null) terminal.Line($"  {name,-8}  {text}");
        }
    }

    public static string Count(IReadOnlyList<AdapterFinding> findings)
    {
        var (errors, warnings) = (findings.Count(f => f.Severity == Severity.Error), findings.Count(f => f.Severity == Severity.Warning));
        return $"{Plural(errors, "error")}, {Plural(warnings, "warning")}";
    }

    public static string Describe(string kind, long rank, long bytes, long expandedBytes) =>
        $"{kind} of rank {rank}, {Terminal.Size(bytes)}" + (expandedBytes > bytes ? $" ({Terminal.Size(expandedBytes)} as plain LoRA)" : "");

    private static string Plural(int count, string word) => $"{count} {word}{(count == 1 ? "" : "s")}";
}
