using System.Globalization;
using System.Text.Json;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.OpenAi;

/// <summary>
/// Reads a JSON object strictly and collects everything wrong with it. A field that is null is a field that is not there. Names are
/// given in OpenAI's spelling; with <paramref name="camelCase"/> the object spells them <c>likeThis</c>.
/// </summary>
/// <remarks>
/// Reading by hand instead of binding: a binder stops at the first fault, takes 1e400 for a float, and its messages name .NET types.
/// </remarks>
internal sealed class JsonFields(JsonElement json, bool camelCase = false, string path = "", List<Finding>? findings = null)
{
    private readonly List<Finding> findings = findings ?? [];

    /// <summary>Parses a whole body: one object, UTF-8, no duplicate names, at most 16 deep.</summary>
    /// <exception cref="TenantLoraException"><see cref="ErrorCodes.InvalidRequest"/>.</exception>
    public static JsonDocument Parse(ReadOnlyMemory<byte> body)
    {
        if (body.Span.StartsWith("\uFEFF"u8)) body = body[3..];
        if (!System.Text.Unicode.Utf8.IsValid(body.Span)) throw Invalid("The body is not valid UTF-8.");
        try
        {
            var document = JsonDocument.Parse(body, new JsonDocumentOptions { MaxDepth = 16, AllowDuplicateProperties = false });
            return document.RootElement.ValueKind == JsonValueKind.Object ? document
                : throw Invalid($"The body: expected a JSON object, found {Describe(document.RootElement)}.");
        }
        catch (JsonException e)
        {
            throw Invalid($"The body is not valid JSON: {e.Message}");
        }
        catch (InvalidOperationException e) when (IsBrokenText(e))
        {
            throw BrokenText();
        }
    }

    /// <summary>Runs a reader and throws all that it found as one error.</summary>
    /// <exception cref="TenantLoraException">With the code and the field of the first finding.</exception>
    public static T Read<T>(JsonFields fields, Func<JsonFields, T> read)
    {
        T result;
        try
        {
            result = read(fields);
        }
        catch (InvalidOperationException e) when (IsBrokenText(e))
        {
            throw BrokenText();
        }
        if (fields.findings is []) return result;
        var first = fields.findings[0];
        throw new TenantLoraException(first.Code, string.Join(' ', fields.findings.Select(f => f.Message).Distinct())) { Parameter = first.Field };
    }

    public IEnumerable<string> Names => json.EnumerateObject().Select(p => p.Name);

    public JsonElement? Get(string name) =>
        json.TryGetProperty(Spell(name), out var value) && value.ValueKind != JsonValueKind.Null ? value : null;

    public float? Number(string name, double least, double most, bool leastIsOut = false, bool mostIsOut = false)
    {
        if (Get(name) is not { } value) return null;
        // The comparison is false for NaN too; TryGetDouble gives Infinity for 1e400.
        if (value.ValueKind == JsonValueKind.Number && value.TryGetDouble(out var number) && double.IsFinite(number)
            && (leastIsOut ? number > least : number >= least) && (mostIsOut ? number < most : number <= most)) return (float)number;
        var range = double.IsInfinity(most) ? $"a number {(leastIsOut ? "above" : "from")} {Show(least)}"
            : $"a number {(leastIsOut ? "above" : "from")} {Show(least)} {(mostIsOut ? "and below" : "to")} {Show(most)}";
        Expected(name, range, value);
        return null;
    }

    public int? Integer(string name, int least, int most = int.MaxValue)
    {
        if (Get(name) is not { } value) return null;
        if (value.ValueKind == JsonValueKind.Number && value.TryGetInt32(out var number) && number >= least && number <= most) return number;
        Expected(name, most == int.MaxValue ? $"a whole number, {least} or more" : $"a whole number from {least} to {most}", value);
        return null;
    }

    public long? Long(string name)
    {
        if (Get(name) is not { } value) return null;
        if (value.ValueKind == JsonValueKind.Number && value.TryGetInt64(out var number)) return number;
        Expected(name, "a whole number of 64 bits", value);
        return null;
    }

    public bool Flag(string name)
    {
        if (Get(name) is not { } value) return false;
        if (value.ValueKind is not (JsonValueKind.True or JsonValueKind.False)) Expected(name, "true or false", value);
        return value.ValueKind == JsonValueKind.True;
    }

    public string? Text(string name, int longest = int.MaxValue)
    {
        if (Get(name) is not { } value) return null;
        if (value.ValueKind == JsonValueKind.String && value.GetString() is { } text && text.Length <= longest) return text;
        Expected(name, longest == int.MaxValue ? "a string" : $"a string of at most {longest} characters", value);
        return null;
    }

    public JsonElement[]? Array(string name)
    {
        if (Get(name) is not { } value) return null;
        if (value.ValueKind == JsonValueKind.Array) return [.. value.EnumerateArray()];
        Expected(name, "an array", value);
        return null;
    }

    /// <summary>A nested object, with the same list of findings.</summary>
    public JsonFields? Object(string name)
    {
        if (Get(name) is not { } value) return null;
        return Object(value, Spell(name));
    }

    /// <inheritdoc cref="Object(string)"/>
    public JsonFields? Object(JsonElement value, string at)
    {
        if (value.ValueKind == JsonValueKind.Object) return new JsonFields(value, camelCase, Where(at) + ".", findings);
        Expected(at, "an object", value);
        return null;
    }

    public void Expected(string name, string expected, JsonElement? found) =>
        Refuse(name, $"expected {expected}, found {(found is { } f ? Describe(f) : "nothing")}.");

    public void Refuse(string name, string why, string code = ErrorCodes.InvalidRequest) =>
        findings.Add(new Finding(code, Where(name), $"{Where(name)}: {why}"));

    private string Where(string name) => path + Spell(name);

    private string Spell(string name) => camelCase ? CamelCase(name) : name;

    private static string CamelCase(string snake)
    {
        if (!snake.Contains('_', StringComparison.Ordinal)) return snake;
        var words = snake.Split('_');
        return words[0] + string.Concat(words.Skip(1).Select(w => char.ToUpperInvariant(w[0]) + w[1..]));
    }

    private static string Describe(JsonElement value) => value.ValueKind switch
    {
        JsonValueKind.Object => "an object",
        JsonValueKind.Array => $"an array of {value.GetArrayLength()}",
        JsonValueKind.String => value.GetString() is { Length: > 40 } text ? $"a string of {text.Length} characters" : $"\"{value.GetString()}\"",
        _ => value.GetRawText() is { Length: > 40 } raw ? $"a number of {raw.Length} digits" : value.GetRawText(),
    };

    private static string Show(double number) => number.ToString(CultureInfo.InvariantCulture);

    // JSON may escape half of a surrogate pair (\ud800); no text means that, and every reader of names and strings throws this.
    private static bool IsBrokenText(InvalidOperationException e) => e.Source?.StartsWith("System.Text.Json", StringComparison.Ordinal) == true;

    private static TenantLoraException BrokenText() => Invalid("The body holds text that is not valid Unicode.");

    private static TenantLoraException Invalid(string message) => new(ErrorCodes.InvalidRequest, message);
}

/// <summary>One thing wrong with a request.</summary>
/// <param name="Code">One of <see cref="ErrorCodes"/>.</param>
/// <param name="Field">Where, as the caller spelt it.</param>
/// <param name="Message">A sentence that starts with the field.</param>
internal sealed record Finding(string Code, string Field, string Message);
