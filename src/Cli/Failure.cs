namespace TenantLora.Cli;

/// <summary>What the process ends with.</summary>
internal static class ExitCode
{
    public const int Done = 0, Failed = 1, Usage = 2, Unreachable = 3;

    public const string Words = """
        Exit codes:
          0  done
          1  refused or failed; an adapter that is refused too
          2  wrong usage
          3  the server cannot be reached, or does not know the key
        """;
}

/// <summary>Ends the command with a line on stderr: what was expected, and what was found.</summary>
internal class Failure(int exitCode, string message) : Exception(message)
{
    public int ExitCode { get; } = exitCode;

    public static Failure Usage(string message) => new(Cli.ExitCode.Usage, message);
}
