using System.Globalization;
using System.Text.Json;
using System.Text.Unicode;

namespace TenantLora.Runtime.Models;

/// <summary>What stands in a field that should hold something else.</summary>
internal delegate void FieldError(string field, string expected, string found);

/// <summary>
/// The fields of a JSON object from outside, read one by one with their types and bounds. What is wrong goes to
/// <paramref name="report"/>, which may throw; if it returns, the field counts as absent. A null counts as absent too.
/// </summary>
/// <param name="path">In front of every field's name in reports: empty, or <c>rope_scaling.</c></param>
internal sealed class JsonFields(JsonElement json, FieldError report, string path = "")
{
    private readonly HashSet<string> read = new(StringComparer.Ordinal);

    /// <summary>The fields that hold something and that nobody asked for, in the file's order.</summary>
    public IEnumerable<JsonProperty> Unread => json.EnumerateObject().Where(p => p.Value.ValueKind != JsonValueKind.Null && !read.Contains(p.Name));

    /// <summary>A file's object: strict JSON, no duplicate fields.</summary>
    /// <exception cref="ModelFileException">It is missing, too long, or not that.</exception>
    public static JsonDocument Parse(string file, int maxBytes) => Parse(file, Read(file, maxBytes));

    /// <summary>A small file's bytes.</summary>
    /// <exception cref="ModelFileException">It is missing or too long.</exception>
    public static byte[] Read(string file, int maxBytes)
    {
        try
        {
            using var stream = new FileStream(RegularFile.Open(file), FileAccess.Read);
            if (stream.Length > maxBytes) throw new ModelFileException(file, null, $"at most {maxBytes} bytes", $"{stream.Length}");
            var bytes = new byte[stream.Length];
            stream.ReadExactly(bytes);
            return bytes;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw Unreadable(file, e);
        }
    }

    /// <inheritdoc cref="Parse(string, int)"/>
    public static JsonDocument Parse(string file, ReadOnlyMemory<byte> text)
    {
        // The parser does not look into strings; reading one later would throw.
        if (!Utf8.IsValid(text.Span)) throw new ModelFileException(file, null, "UTF-8", "other bytes");
        try
        {
            var document = JsonDocument.Parse(text, new JsonDocumentOptions { AllowDuplicateProperties = false, MaxDepth = 16 });
            if (document.RootElement.ValueKind == JsonValueKind.Object) return document;
            document.Dispose();
            throw new ModelFileException(file, null, "a JSON object", "something else");
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException)
        {
            var found = e is JsonException { LineNumber: { } line } ? $"an error in line {line + 1}" : "an error";
            throw new ModelFileException(file, null, "a JSON object without duplicate fields", found);
        }
    }

    /// <summary>What the system says of a file that it does not give, without its own words: they hold paths.</summary>
    public static ModelFileException Unreadable(string file, Exception e) =>
        new(file, null, "a readable file", e is FileNotFoundException or DirectoryNotFoundException ? "none" : e.GetType().Name);

    /// <summary>Whether the field is there, be it null.</summary>
    public bool Has(string name) => json.TryGetProperty(name, out _);

    /// <summary>The field as it is; null when absent.</summary>
    public JsonElement? Any(string name)
    {
        read.Add(name);
        return json.TryGetProperty(name, out var value) && value.ValueKind != JsonValueKind.Null ? value : null;
    }

    public string? Text(string name) => Any(name) is not { } value ? null : AsText(value) ?? Wrong<string?>(name, "a string", value);

    public bool? Flag(string name) =>
        Any(name) is not { } value ? null
        : value.ValueKind is JsonValueKind.True or JsonValueKind.False ? value.GetBoolean()
        : Wrong<bool?>(name, "true or false", value);

    public int? Whole(string name, int min, int max) =>
        Any(name) is not { } value ? null
        : value.ValueKind == JsonValueKind.Number && value.TryGetInt32(out var number) && number >= min && number <= max ? number
        : Wrong<int?>(name, $"a whole number from {min} to {max}", value);

    /// <summary>A finite number from <paramref name="min"/> to <paramref name="max"/>.</summary>
    public double? Number(string name, double min, double max) =>
        Any(name) is not { } value ? null
        : value.ValueKind == JsonValueKind.Number && value.TryGetDouble(out var number) && number >= min && number <= max ? number
        : Wrong<double?>(name, string.Create(CultureInfo.InvariantCulture, $"a number from {min} to {max}"), value);

    /// <summary>A nested object.</summary>
    public JsonFields? Fields(string name) =>
        Any(name) is not { } value ? null
        : value.ValueKind == JsonValueKind.Object ? new JsonFields(value, report, $"{path}{name}.")
        : Wrong<JsonFields?>(name, "an object", value);

    /// <summary>One whole number or a list of them.</summary>
    public IReadOnlyList<int>? Wholes(string name, int min, int max)
    {
        if (Any(name) is not { } value) return null;
        var list = new List<int>();
        foreach (var item in value.ValueKind == JsonValueKind.Array ? value.EnumerateArray().AsEnumerable() : [value])
        {
            if (item.ValueKind != JsonValueKind.Number || !item.TryGetInt32(out var number) || number < min || number > max)
                return Wrong<IReadOnlyList<int>?>(name, $"whole numbers from {min} to {max}", item);
            list.Add(number);
        }

        return list;
    }

    /// <summary>A list of strings.</summary>
    public IReadOnlyList<string>? Texts(string name)
    {
        if (Any(name) is not { } value) return null;
        if (value.ValueKind != JsonValueKind.Array) return Wrong<IReadOnlyList<string>?>(name, "a list of strings", value);
        var list = new List<string>();
        foreach (var item in value.EnumerateArray())
        {
            if (AsText(item) is not { } text) return Wrong<IReadOnlyList<string>?>(name, "a list of strings", item);
            list.Add(text);
        }

        return list;
    }

    /// <summary>What a field holds, for a message.</summary>
    public static string Show(JsonElement value) => Printable.Of(value.GetRawText());

    /// <summary>Reports a finding about a field of this object.</summary>
    public void Refuse(string name, string expected, string found) => report(path + Printable.Of(name), expected, found);

    /// <summary>A string's text; null for anything else, half a surrogate pair included.</summary>
    public static string? AsText(JsonElement value)
    {
        try
        {
            return value.ValueKind == JsonValueKind.String ? value.GetString() : null;
        }
        catch (InvalidOperationException)
        {
            return null;
        }
    }

    private T Wrong<T>(string name, string expected, JsonElement value)
    {
        Refuse(name, expected, Show(value));
        return default!;
    }
}
