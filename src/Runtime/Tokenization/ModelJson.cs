using System.Text.Json;

namespace TenantLora.Runtime.Tokenization;

/// <summary>What is wrong with one model file. Readers go on after a finding, so that a user sees all of them at once.</summary>
internal sealed class Findings(string file)
{
    private const int Shown = 20;
    private readonly List<(string Field, string Expected, string Found)> list = [];

    public string File { get; } = file;

    public void Add(string field, string expected, string found) => list.Add((field, expected, found));

    /// <exception cref="ModelFileException">Something was found.</exception>
    public void ThrowIfAny()
    {
        if (list.Count == 0) return;
        var (field, expected, found) = list[0];
        var others = list.Skip(1).Take(Shown).Select(f => $"; {f.Field}: expected {f.Expected}, found {f.Found}");
        throw new ModelFileException(File, field, expected, found + string.Concat(others) + (list.Count > Shown ? "; …" : ""));
    }

    /// <summary>Parses a file and hands its root object to <paramref name="read"/>, then throws what was found.</summary>
    /// <exception cref="ModelFileException">The file is missing, is no JSON object, or <paramref name="read"/> had findings.</exception>
    public static T Read<T>(string path, Func<JsonFields, Findings, T> read)
    {
        var findings = new Findings(path);
        try
        {
            using var stream = System.IO.File.OpenRead(path);
            using var document = JsonDocument.Parse(stream);
            if (document.RootElement.ValueKind != JsonValueKind.Object)
                throw new ModelFileException(path, null, "a JSON object", JsonFields.Describe(document.RootElement));
            var result = read(new JsonFields(document.RootElement, "", findings), findings);
            findings.ThrowIfAny();
            return result;
        }
        catch (JsonException broken)
        {
            throw new ModelFileException(path, null, "JSON", $"an error in line {broken.LineNumber + 1}");
        }
        catch (InvalidOperationException)
        {
            // The only way JsonElement has to say that a string holds half a surrogate pair or bytes that are no UTF-8.
            throw new ModelFileException(path, null, "text in valid Unicode", "an unpaired surrogate or bytes that are no UTF-8");
        }
        catch (Exception io) when (io is IOException or UnauthorizedAccessException)
        {
            throw new ModelFileException(path, null, "a readable file", io is FileNotFoundException or DirectoryNotFoundException ? "no such file" : io.GetType().Name);
        }
    }
}

/// <summary>
/// One object of a model file, read key by key. A missing or ill-typed value becomes a finding and a harmless stand-in; a key that
/// nobody understands is a finding too (<see cref="Only"/>), because ignoring it would mean other tokens than the model was trained on.
/// </summary>
internal readonly struct JsonFields(JsonElement element, string path, Findings findings)
{
    public string PathOf(string name) => path.Length == 0 ? name : $"{path}.{name}";

    public JsonElement Element { get; } = element;

    public void Refuse(string name, string expected, string found) => findings.Add(PathOf(name), expected, found);

    public void Only(params ReadOnlySpan<string> known)
    {
        foreach (var property in Element.EnumerateObject())
            if (!known.Contains(property.Name)) Refuse(property.Name, "a key that is known here", Describe(property.Value));
    }

    /// <summary>The value, or null where it is absent or null.</summary>
    public JsonElement? Value(string name) =>
        Element.TryGetProperty(name, out var value) && value.ValueKind != JsonValueKind.Null ? value : null;

    public string? OptionalString(string name)
    {
        if (Value(name) is not { } value) return null;
        if (value.ValueKind == JsonValueKind.String) return value.GetString();
        Refuse(name, "a string", Describe(value));
        return null;
    }

    public string String(string name)
    {
        if (Value(name) is null) Refuse(name, "a string", "nothing");
        return OptionalString(name) ?? "";
    }

    public bool Bool(string name, bool? fallback = null)
    {
        var value = Value(name);
        if (value is { ValueKind: JsonValueKind.True or JsonValueKind.False } flag) return flag.GetBoolean();
        if (value is not null || fallback is null) Refuse(name, "true or false", value is { } wrong ? Describe(wrong) : "nothing");
        return fallback ?? false;
    }

    public int Int(string name)
    {
        if (Value(name) is { ValueKind: JsonValueKind.Number } value && value.TryGetInt32(out var number) && number >= 0) return number;
        Refuse(name, "a whole number from 0", Value(name) is { } wrong ? Describe(wrong) : "nothing");
        return 0;
    }

    /// <summary>The object under a key, or null where it is absent or null.</summary>
    public JsonFields? Object(string name)
    {
        if (Value(name) is not { } value) return null;
        if (value.ValueKind == JsonValueKind.Object) return new JsonFields(value, PathOf(name), findings);
        Refuse(name, "an object", Describe(value));
        return null;
    }

    /// <summary>The objects in the array under a key; none where it is absent or null.</summary>
    public List<JsonFields> Objects(string name)
    {
        var objects = new List<JsonFields>();
        if (Value(name) is not { } value) return objects;
        if (value.ValueKind != JsonValueKind.Array)
        {
            Refuse(name, "an array", Describe(value));
            return objects;
        }
        foreach (var (index, item) in value.EnumerateArray().Index())
        {
            if (item.ValueKind == JsonValueKind.Object) objects.Add(new JsonFields(item, $"{PathOf(name)}[{index}]", findings));
            else Refuse($"{name}[{index}]", "an object", Describe(item));
        }
        return objects;
    }

    /// <summary>The value in short, for messages.</summary>
    public static string Describe(JsonElement value) => value.ValueKind switch
    {
        JsonValueKind.Object => "an object",
        JsonValueKind.Array => $"an array of {value.GetArrayLength()}",
        JsonValueKind.Null or JsonValueKind.Undefined => "null",
        _ => value.GetRawText() is { Length: > 60 } text ? text[..60] + "…" : value.GetRawText(),
    };
}
