using System.Text.Json;
using System.Text.Json.Serialization;
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
            var text = JsonSerializer.Deserialize(line, BenchJson.Default.String) ?? throw new ArgumentException("A line of the input is null, not a string.");
            var plain = tokenizer.Encode(text, addSpecialTokens: false);
            JsonSerializer.Serialize(output, new Encoding(tokenizer.Encode(text, addSpecialTokens: true), plain, tokenizer.Decode(plain, skipSpecial: false)), BenchJson.Default.Encoding);
            output.WriteByte((byte)'\n');
        }
        return 0;
    }
}

/// <param name="Ids">With the tokens that the post-processor adds.</param>
/// <param name="IdsPlain">Without.</param>
internal sealed record Encoding(int[] Ids, int[] IdsPlain, string Decoded);

/// <summary>Generated, so that a trimmed publish works.</summary>
[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.SnakeCaseLower)]
[JsonSerializable(typeof(string))]
[JsonSerializable(typeof(float[]))]
[JsonSerializable(typeof(Encoding))]
internal sealed partial class BenchJson : JsonSerializerContext;
