namespace TenantLora.Cli;

/// <summary><c>tenantlora</c>: the command line of TenantLora.</summary>
internal static class Program
{
    public static Task<int> Main(string[] args) => new CommandLine(Terminal.Real()).RunAsync(args);
}
