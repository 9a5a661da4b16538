namespace TenantLora.Runtime.Adapters;

/// <summary>
/// What is found in one pass over an adapter, in order. A file that is wrong throughout is told by examples: of each code the first few.
/// </summary>
internal sealed class Findings
{
    private const int MostOfOneCode = 16;

    private readonly List<AdapterFinding> list = [];
    private readonly HashSet<(string Code, string Where, string? Found)> told = [];
    private readonly Dictionary<(string Code, Severity Severity), int> counts = [];

    public bool HasErrors { get; private set; }

    public void Add(AdapterFinding finding)
    {
        // A field that is wrong for every module is wrong once.
        if (!told.Add((finding.Code, finding.Where, finding.Found))) return;
        HasErrors |= finding.Severity == Severity.Error;
        var count = counts[(finding.Code, finding.Severity)] = counts.GetValueOrDefault((finding.Code, finding.Severity)) + 1;
        if (count <= MostOfOneCode) list.Add(finding);
    }

    public void Error(string code, string where, string what, string? expected = null, string? found = null, string? fix = null) =>
        Add(new AdapterFinding(code, Severity.Error, what, where, expected, found, fix));

    public IReadOnlyList<AdapterFinding> ToList() =>
        [
            .. list,
            .. from c in counts
               where c.Value > MostOfOneCode
               select new AdapterFinding(c.Key.Code, c.Key.Severity, $"{c.Value - MostOfOneCode} more of the same kind.", "adapter"),
        ];
}
