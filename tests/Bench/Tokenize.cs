using System.Text.Json;
using TenantLora.Runtime.Tokenization;

namespace TenantLora.Bench;

/// <summary>Reads JSON strings, one a line, and prints their ids and what the ids decode to, so that any other implementation can be held against this one.</summary>
internal static class Tokenize
{
    public static int Run(string[] args)
    {
        var arguments = new Arguments(args, "model");
        var tokenizer = Tokenizer.Load(arguments.Required("model"));
        using var input = new StreamReader(Console.OpenStandardInput());
        using var output = Console.OpenStandardOutput();
        while (input.ReadLine() is { } line)
        {
            if (line.Length == 0) continue;
            var text = JsonSerializer.Deserialize<string>(line) ?? throw new ArgumentException("A line of the input is null, not a string.");
            var plain = tokenizer.Encode(text, addSpecialTokens: false);
            JsonSerializer.Serialize(output, new { ids = tokenizer.Encode(text, addSpecialTokens: true), ids_plain = plain, decoded = tokenizer.Decode(plain, skipSpecial: false) });
            output.WriteByte((byte)'\n');
        }
        return 0;
    }
}
