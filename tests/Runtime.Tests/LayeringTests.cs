using System.Text.RegularExpressions;
using TenantLora.Tests;

namespace TenantLora.Runtime.Tests;

/// <summary>Imports go one way: ChatHost → Connector → Runtime, and inside Runtime from the engine down to the backends.</summary>
public partial class LayeringTests
{
    private static readonly string[] Layers = ["Serving", "Adapters", "Models", "Backends", "Scheduling", "Tokenization"];

    [Theory]
    [InlineData("Scheduling", "")]
    [InlineData("Tokenization", "")]
    [InlineData("Backends", "")]
    [InlineData("Models", "Backends")]
    [InlineData("Adapters", "Models Backends")]
    [InlineData("Serving", "Adapters Models Backends Scheduling Tokenization")]
    public void A_folder_of_the_runtime_imports_only_what_lies_below_it(string folder, string allowed)
    {
        var forbidden = Layers.Except([folder, .. allowed.Split(' ')]).ToArray();
        foreach (var file in Sources("src", "Runtime", folder))
            Assert.DoesNotContain(Imports(file), import => forbidden.Any(f => import == f || import.StartsWith(f + ".", StringComparison.Ordinal)));
    }

    [Fact]
    public void Nobody_outside_the_backends_names_one()
    {
        foreach (var file in Sources("src", "Runtime").Where(f => !f.Contains("Backends", StringComparison.Ordinal)))
            Assert.DoesNotMatch(@"\bBackends\.(Cpu|Cuda)\b", File.ReadAllText(file));
    }

    [Fact]
    public void The_root_of_the_runtime_holds_public_types_only()
    {
        foreach (var file in Directory.GetFiles(Repo.Path("src", "Runtime"), "*.cs"))
            Assert.DoesNotMatch(InternalType(), File.ReadAllText(file));
    }

    [Theory]
    [InlineData("Runtime", "TenantLora.Connector|TenantLora.ChatHost|Microsoft.AspNetCore|StackExchange.Redis|Microsoft.Extensions.AI")]
    [InlineData("Connector", "TenantLora.ChatHost|Microsoft.AspNetCore|StackExchange.Redis")]
    public void A_project_knows_nothing_of_those_above_it(string project, string forbidden)
    {
        foreach (var file in Sources("src", project))
            Assert.DoesNotMatch($@"\busing\s+(static\s+)?({forbidden.Replace(".", @"\.", StringComparison.Ordinal)})", File.ReadAllText(file));
    }

    private static IEnumerable<string> Sources(params string[] folder) =>
        Directory.GetFiles(Repo.Path(folder), "*.cs", SearchOption.AllDirectories).Where(f => !f.Contains($"{Path.DirectorySeparatorChar}obj{Path.DirectorySeparatorChar}", StringComparison.Ordinal));

    private static IEnumerable<string> Imports(string file) => RuntimeImport().Matches(File.ReadAllText(file)).Select(m => m.Groups[1].Value);

    [GeneratedRegex(@"\busing\s+(?:static\s+)?TenantLora\.Runtime\.([\w.]+)\s*;")]
    private static partial Regex RuntimeImport();

    [GeneratedRegex(@"^internal\s+(sealed|static|abstract|readonly|enum|record|class|struct|interface)", RegexOptions.Multiline)]
    private static partial Regex InternalType();
}
