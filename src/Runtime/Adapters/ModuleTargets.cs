using System.Text.Json;
using System.Text.RegularExpressions;
using TenantLora.Runtime.Models;

namespace TenantLora.Runtime.Adapters;

/// <summary>
/// Which modules an adapter is for, told as PEFT tells it (<c>check_target_module_exists</c>): <c>target_modules</c> and
/// <c>exclude_modules</c> as suffixes or one regular expression, <c>layers_to_transform</c>. A target that names nothing we can adapt
/// is an error: skipped silently, the adapter would be another one.
/// </summary>
internal static class ModuleTargets
{
    private const string Where = $"{AdapterConfig.FileName}: target_modules";
    private const int MostEntries = 4096;

    public static IReadOnlyList<ModuleName> Read(JsonFields json, ModelConfig model, ExpressionBudget budget, Findings findings)
    {
        var all = ModuleName.AllOf(model).Select(m => (Module: m, Name: m.ToString())).ToList();
        var target = Selector.Read(json, "target_modules", budget);
        var exclude = Selector.Read(json, "exclude_modules", budget);
        var layers = json.Wholes("layers_to_transform", 0, model.Layers - 1);
        CheckLayersPattern();
        if (target is null)
        {
            var written = json.Any("target_modules");
            if (written is null || (written.Value.ValueKind == JsonValueKind.Array && written.Value.GetArrayLength() == 0))
                json.Refuse("target_modules", "a list of names, a regular expression or all-linear", "nothing");
            return [];
        }

        var known = $"{string.Join(", ", ModuleName.Paths)} in layers 0 to {model.Layers - 1}";
        foreach (var entry in target.Entries.Where(e => !all.Any(m => e.Matches(m.Name)) || e.Matches("lm_head") || e.Matches("model.embed_tokens")))
            findings.Error("module_unsupported", Where, "It names a module that cannot be adapted here.", known, Printable.Of(entry.Text));
        if (layers is { Count: > 0 } && target.IsExpression)
            json.Refuse("layers_to_transform", "nothing where target_modules is a regular expression", "layers");

        var chosen = all
            .Where(m => target.Matches(m.Name) && exclude?.Matches(m.Name) != true)
            .Where(m => layers is not { Count: > 0 } || layers.Contains(m.Module.Layer) || target.Names(m.Name))
            .Select(m => m.Module).ToList();
        if (chosen.Count == 0 && target.Entries.Any(e => all.Any(m => e.Matches(m.Name))))
            findings.Error("module_unsupported", Where, "exclude_modules and layers_to_transform leave nothing to adapt.", "a module", "none");
        return chosen;

        // Here the only list of layers is called just that; PEFT takes an empty pattern for any list.
        void CheckLayersPattern()
        {
            if (json.Any("layers_pattern") is not { } pattern) return;
            var names = pattern.ValueKind == JsonValueKind.String ? [JsonFields.AsText(pattern) ?? "?"] : json.Texts("layers_pattern") ?? [];
            if (layers is { Count: > 0 } && names.Any(n => n is not ("" or "layers")))
                findings.Error("peft_unsupported", $"{AdapterConfig.FileName}: layers_pattern", "The model has no such list of layers.", "layers",
                    JsonFields.Show(pattern));
        }
    }

    /// <summary>A list of suffixes, or one regular expression that a whole name must match.</summary>
    private sealed record Selector(bool IsExpression, IReadOnlyList<Entry> Entries)
    {
        public static Selector? Read(JsonFields json, string field, ExpressionBudget budget)
        {
            if (json.Any(field) is not { } value) return null;
            if (value.ValueKind != JsonValueKind.String)
            {
                if (json.Texts(field) is not { Count: > 0 } list) return null;
                if (list.Count <= MostEntries) return new Selector(false, [.. list.Select(t => new Entry(t, null))]);
                json.Refuse(field, $"at most {MostEntries} names", $"{list.Count}");
                return null;
            }

            if (json.Text(field) is not { } text) return null;
            // PEFT: every linear but the output head.
            if (text == "all-linear") return new Selector(false, [.. ModuleName.Paths.Select(p => new Entry(p, null))]);
            return NameExpression.Compile(json, field, text, "", budget) is { } expression ? new Selector(true, [new Entry(text, expression)]) : null;
        }

        public bool Matches(string name) => Entries.Any(e => e.Matches(name));

        /// <summary>Whether the list holds the full name itself; PEFT lets such a one pass every layer filter.</summary>
        public bool Names(string name) => !IsExpression && Entries.Any(e => e.Text == name);
    }

    private sealed record Entry(string Text, NameExpression? Expression)
    {
        public bool Matches(string name) => Expression?.IsMatch(name) ?? ModuleName.EndsWith(name, Text);
    }
}

/// <summary>
/// What one config's regular expressions may cost. Matching a name takes time by the size of the automaton, and that grows with the expression's length
/// and with every repetition that it counts, for <c>(ab){9}</c> is written out nine times. Real configs have a handful, of some hundred characters each.
/// </summary>
internal sealed class ExpressionBudget
{
    public const int MostExpressions = 32, MostWeight = 2048;
    private int expressions;
    private long weight;

    /// <summary>One more has been refused.</summary>
    public bool IsSpent { get; private set; }

    public bool Take(string expression)
    {
        weight += Weigh(expression);
        IsSpent |= ++expressions > MostExpressions || weight > MostWeight;
        return !IsSpent;
    }

    /// <summary>Its length, times the upper bound of every counted repetition in it, be they nested or not.</summary>
    public static long Weigh(string expression)
    {
        long weight = expression.Length;
        for (var at = 0; (at = expression.IndexOf('{', at)) >= 0;)
        {
            long count = 0, bound = 0;
            for (at++; at < expression.Length && (char.IsAsciiDigit(expression[at]) || expression[at] == ','); at++)
                if (expression[at] == ',') count = 0;
                else bound = Math.Max(bound, count = Math.Min((count * 10) + expression[at] - '0', MostWeight));
            weight = Math.Min(weight * Math.Max(1, bound), long.MaxValue / MostWeight / 2);
        }
        return weight;
    }
}

/// <summary>
/// A regular expression of a stranger's, in Python's spelling as far as .NET shares it, matched in time linear in the name:
/// lookaround and back references, which would need backtracking, are refused.
/// </summary>
internal sealed class NameExpression
{
    private const int Longest = 512;
    private readonly Regex regex;

    private NameExpression(Regex regex) => this.regex = regex;

    /// <param name="before">An expression for what may stand in front.</param>
    public static NameExpression? Compile(JsonFields json, string field, string text, string before, ExpressionBudget budget)
    {
        try
        {
            if (text.Length > Longest) throw new NotSupportedException();
            if (!budget.Take(text))
            {
                json.Refuse(field, $"at most {ExpressionBudget.MostExpressions} regular expressions in the whole file, of {ExpressionBudget.MostWeight} characters together, each times the repetitions it counts", "more");
                return null;
            }
            // Alone first, so that an unbalanced bracket cannot close our group; only read, which costs little.
            _ = new Regex(text, RegexOptions.CultureInvariant);
            return new NameExpression(new Regex($@"\A{before}(?:{text})\z", RegexOptions.NonBacktracking | RegexOptions.CultureInvariant, TimeSpan.FromSeconds(1)));
        }
        catch (Exception e) when (e is ArgumentException or NotSupportedException)
        {
            json.Refuse(field, $"a regular expression of at most {Longest} characters, without lookaround and back references", Printable.Of(text));
            return null;
        }
    }

    /// <exception cref="RegexMatchTimeoutException">After a second, which no honest expression takes.</exception>
    public bool IsMatch(string name) => regex.IsMatch(name);
}

/// <summary>
/// PEFT's <c>rank_pattern</c> and <c>alpha_pattern</c> (<c>get_pattern_key</c>): the first key that matches a module's name, or its end
/// after a dot, decides.
/// </summary>
internal sealed class NamePattern<T> where T : struct
{
    private const int MostKeys = 4096;

    private readonly List<(string Key, NameExpression? Expression, T Value)> entries = [];

    /// <param name="suffixes">Dotted ends of the modules' names; see <see cref="ModuleName.SuffixesOf"/>.</param>
    public static NamePattern<T> Read(JsonFields json, string field, HashSet<string> suffixes, ExpressionBudget budget, string expected, Func<JsonElement, T?> value)
    {
        var pattern = new NamePattern<T>();
        if (json.Any(field) is not { } map) return pattern;
        if (map.ValueKind != JsonValueKind.Object || map.GetPropertyCount() > MostKeys)
        {
            json.Refuse(field, $"an object of at most {MostKeys} modules", JsonFields.Show(map));
            return pattern;
        }

        foreach (var entry in map.EnumerateObject())
        {
            if (entry.Value.ValueKind != JsonValueKind.Number || value(entry.Value) is not { } number)
            {
                json.Refuse($"{field}.{entry.Name}", expected, JsonFields.Show(entry.Value));
                continue;
            }

            NameExpression? expression = null;
            // Read as an expression, a module's own dotted end matches just what its text does: each dot meets a dot.
            if (!suffixes.Contains(entry.Name))
            {
                if (budget.IsSpent) break;              // it has been said
                if ((expression = NameExpression.Compile(json, field, entry.Name, @"(?:.*\.)?", budget)) is null) continue;
            }

            pattern.entries.Add((entry.Name, expression, number));
        }

        return pattern;
    }

    /// <summary>What the pattern says for a module; null where it says nothing.</summary>
    public T? Find(string module)
    {
        foreach (var (key, expression, value) in entries)
            if (expression?.IsMatch(module) ?? ModuleName.EndsWith(module, key)) return value;
        return null;
    }
}
