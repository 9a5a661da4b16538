namespace TenantLora.Runtime;

/// <summary>How much a finding matters.</summary>
public enum Severity
{
    /// <summary>Worth knowing.</summary>
    Information,

    /// <summary>Works, but perhaps not as meant.</summary>
    Warning,

    /// <summary>The adapter is refused.</summary>
    Error,
}

/// <summary>One thing found in an adapter.</summary>
/// <param name="Code">Stable, snake case: <c>shape_mismatch</c>, <c>module_unsupported</c>…</param>
/// <param name="Severity">Whether it refuses the adapter.</param>
/// <param name="What">A sentence.</param>
/// <param name="Where">File, tensor or field.</param>
/// <param name="Expected">What would have been right.</param>
/// <param name="Found">What was there.</param>
/// <param name="Fix">What to do.</param>
public sealed record AdapterFinding(string Code, Severity Severity, string What, string Where, string? Expected = null, string? Found = null, string? Fix = null);

/// <summary>Everything found in one pass over an adapter, and what it is if it can be served.</summary>
/// <param name="Adapter">Null when a finding is an error.</param>
/// <param name="Findings">All of them.</param>
public sealed record AdapterReport(AdapterInfo? Adapter, IReadOnlyList<AdapterFinding> Findings)
{
    /// <summary>Whether nothing stands against serving it.</summary>
    public bool Accepted => Adapter is not null;
}

/// <summary>An adapter as the runtime sees it.</summary>
/// <param name="Digest"><c>sha256:</c> over the adapter's files: its identity.</param>
/// <param name="Kind"><c>prolora</c> or <c>lora</c>.</param>
/// <param name="Rank">Highest total rank r of any module.</param>
/// <param name="Bytes">Size of its tensors in compact form.</param>
/// <param name="ExpandedBytes">Size of the plain LoRA of the same ranks and type.</param>
/// <param name="BaseModel">What <c>base_model_name_or_path</c> says.</param>
public sealed record AdapterInfo(string Digest, string Kind, int Rank, long Bytes, long ExpandedBytes, string? BaseModel);

/// <summary>An adapter that was refused, with the whole report.</summary>
public sealed class AdapterRefusedException(string directory, AdapterReport report)
    : Exception($"{directory}: {string.Join("; ", report.Findings.Where(f => f.Severity == Severity.Error).Select(Describe))}")
{
    /// <summary>All findings.</summary>
    public AdapterReport Report { get; } = report;

    private static string Describe(AdapterFinding f) =>
        $"[{f.Code}] {f.Where}: {f.What}" + (f.Expected is null ? "" : $" Expected {f.Expected}, found {f.Found}.");
}
