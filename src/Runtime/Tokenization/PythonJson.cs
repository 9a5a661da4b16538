using System.Buffers;
using System.Globalization;
using System.Text;
using System.Text.Json;

namespace TenantLora.Runtime.Tokenization;

/// <summary>
/// JSON in the spelling of Python's <c>json.dumps(value, ensure_ascii=False)</c>, which is what chat templates' <c>tojson</c> means and what the models
/// have seen in training: <c>", "</c> and <c>": "</c>, keys as given, floats by <c>repr</c>.
/// </summary>
internal static class PythonJson
{
    /// <param name="indent">Spaces a level, each item on a line of its own; null: all on one line.</param>
    public static string Write(JsonElement value, int? indent = null)
    {
        var output = new StringBuilder();
        Write(value, output, indent, 0);
        return output.ToString();
    }

    public static string Write(string value)
    {
        var output = new StringBuilder();
        Write(value, output);
        return output.ToString();
    }

    /// <summary><c>{"type": "function", "function": {…}}</c>, without what the definition leaves open.</summary>
    public static JsonElement Describe(ToolDefinition tool)
    {
        var buffer = new ArrayBufferWriter<byte>();
        using (var writer = new Utf8JsonWriter(buffer))
        {
            writer.WriteStartObject();
            writer.WriteString("type", "function");
            writer.WriteStartObject("function");
            writer.WriteString("name", tool.Name);
            if (tool.Description is not null) writer.WriteString("description", tool.Description);
            if (tool.Parameters is { } parameters)
            {
                writer.WritePropertyName("parameters");
                parameters.WriteTo(writer);
            }
            writer.WriteEndObject();
            writer.WriteEndObject();
        }
        var reader = new Utf8JsonReader(buffer.WrittenSpan);
        return JsonElement.ParseValue(ref reader);
    }

    private static void Write(JsonElement value, StringBuilder output, int? indent, int level)
    {
        switch (value.ValueKind)
        {
            case JsonValueKind.Object:
                // As in a Python dict, a key given twice keeps its first place and its last value.
                var members = new OrderedDictionary<string, JsonElement>();
                foreach (var member in value.EnumerateObject()) members[member.Name] = member.Value;
                WriteItems(members, '{', '}', output, indent, level, member =>
                {
                    Write(member.Key, output);
                    output.Append(": ");
                    Write(member.Value, output, indent, level + 1);
                });
                break;
            case JsonValueKind.Array:
                WriteItems(value.EnumerateArray().ToList(), '[', ']', output, indent, level, item => Write(item, output, indent, level + 1));
                break;
            case JsonValueKind.String:
                Write(value.GetString()!, output);
                break;
            case JsonValueKind.Number:
                output.Append(Number(value.GetRawText()));
                break;
            case JsonValueKind.True or JsonValueKind.False:
                output.Append(value.GetBoolean() ? "true" : "false");
                break;
            default:
                output.Append("null");
                break;
        }
    }

    private static void WriteItems<T>(ICollection<T> items, char open, char close, StringBuilder output, int? indent, int level, Action<T> write)
    {
        output.Append(open);
        foreach (var (index, item) in items.Index())
        {
            if (index > 0) output.Append(indent is null ? ", " : ",");
            if (indent is { } width) output.Append('\n').Append(' ', width * (level + 1));
            write(item);
        }
        if (indent is { } outer && items.Count > 0) output.Append('\n').Append(' ', outer * level);
        output.Append(close);
    }

    private static void Write(string value, StringBuilder output)
    {
        output.Append('"');
        foreach (var c in value)
        {
            switch (c)
            {
                case '"': output.Append("\\\""); break;
                case '\\': output.Append("\\\\"); break;
                case '\n': output.Append("\\n"); break;
                case '\r': output.Append("\\r"); break;
                case '\t': output.Append("\\t"); break;
                case '\f': output.Append("\\f"); break;
                case '\b': output.Append("\\b"); break;
                case < ' ': output.Append(CultureInfo.InvariantCulture, $"\\u{(int)c:x4}"); break;
                default: output.Append(c); break;
            }
        }
        output.Append('"');
    }

    /// <summary>Whole numbers as they stand, others as Python prints the nearest double.</summary>
    private static string Number(string raw)
    {
        if (!raw.AsSpan().ContainsAny('.', 'e', 'E')) return raw == "-0" ? "0" : raw;
        var value = double.Parse(raw, CultureInfo.InvariantCulture);
        if (!double.IsFinite(value)) return value > 0 ? "Infinity" : "-Infinity";
        var (sign, digits, exponent) = Take(value.ToString("R", CultureInfo.InvariantCulture));
        if (exponent is < -4 or >= 16)
            return string.Create(CultureInfo.InvariantCulture, $"{sign}{digits[0]}{(digits.Length > 1 ? "." : "")}{digits[1..]}e{(exponent < 0 ? '-' : '+')}{Math.Abs(exponent):00}");
        if (exponent < 0) return $"{sign}0.{new string('0', -exponent - 1)}{digits}";
        digits = digits.PadRight(exponent + 2, '0');
        return $"{sign}{digits[..(exponent + 1)]}.{digits[(exponent + 1)..]}";
    }

    /// <summary>Takes a shortest round-trip spelling apart, whichever notation it is in: the value is sign d.ddd · 10^exponent.</summary>
    private static (string Sign, string Digits, int Exponent) Take(string shortest)
    {
        var sign = shortest[0] == '-' ? "-" : "";
        var parts = shortest[sign.Length..].Split('E');
        var point = parts[0].IndexOf('.', StringComparison.Ordinal) is >= 0 and var at ? at : parts[0].Length;
        var all = parts[0].Replace(".", "", StringComparison.Ordinal);
        var digits = all.TrimStart('0');
        if (digits.Length == 0) return (sign, "0", 0);
        var exponent = point - 1 - (all.Length - digits.Length) + (parts.Length > 1 ? int.Parse(parts[1], CultureInfo.InvariantCulture) : 0);
        return (sign, digits.TrimEnd('0'), exponent);
    }
}
