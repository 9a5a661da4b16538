namespace TenantLora.Runtime;

/// <summary>
/// A model file that is missing, damaged or not understood: one message that names file, field, what was expected and what was
/// found. Thrown at start only.
/// </summary>
public sealed class ModelFileException(string file, string? field, string expected, string found)
    : Exception($"{file}{(field is null ? "" : $": {field}")}: expected {expected}, found {found}.")
{
    /// <summary>The file, as it was opened.</summary>
    public string File { get; } = file;

    /// <summary>The field or tensor at fault.</summary>
    public string? Field { get; } = field;

    /// <summary>What would have been right.</summary>
    public string Expected { get; } = expected;

    /// <summary>What was there.</summary>
    public string Found { get; } = found;
}
