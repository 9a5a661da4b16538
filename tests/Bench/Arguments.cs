namespace TenantLora.Bench;

/// <summary>--name value pairs; an unknown or incomplete one ends the program with a message.</summary>
internal sealed class Arguments
{
    private readonly Dictionary<string, string> values = [];

    public Arguments(string[] args, params string[] known)
    {
        for (var i = 0; i < args.Length; i += 2)
        {
            if (!args[i].StartsWith("--", StringComparison.Ordinal) || !known.Contains(args[i][2..]))
                throw new ArgumentException($"Unknown argument '{args[i]}'; known are {string.Join(", ", known.Select(k => "--" + k))}.");
            if (i + 1 == args.Length) throw new ArgumentException($"{args[i]} needs a value.");
            values[args[i][2..]] = args[i + 1];
        }
    }

    public string? this[string name] => values.GetValueOrDefault(name);

    public string Required(string name) => this[name] ?? throw new ArgumentException($"--{name} is missing.");

    public int[]? Integers(string name) => this[name]?.Split(',').Select(int.Parse).ToArray();
}
