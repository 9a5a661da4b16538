using TenantLora.Runtime.Backends;
using TenantLora.Runtime.Scheduling;

namespace TenantLora.Runtime.Serving;

/// <summary>A scheduled step as the flat arrays that the forward pass reads.</summary>
internal static class StepBatch
{
    public static Batch Build(IReadOnlyList<Slice> slices, int blockSize, Func<Sequence, DeviceAdapter?> adapterOf, Func<Sequence, DrawRule> ruleOf)
    {
        var rows = slices.Sum(s => s.Rows);
        var (tokens, positions, slots) = (new int[rows], new int[rows], new int[rows]);
        var spans = new BatchSpan[slices.Count];
        var segments = new List<AdapterSegment>();
        var logitRows = new List<int>();
        var draws = new List<DrawRule>();

        var row = 0;
        for (var i = 0; i < spans.Length; i++)
        {
            var (sequence, first, count, sample, unknown) = slices[i];
            spans[i] = new BatchSpan(row, count, first + count, sequence.Blocks.Blocks);
            var adapter = adapterOf(sequence);
            if (segments.Count > 0 && segments[^1].Adapter == adapter) segments[^1] = segments[^1] with { Rows = segments[^1].Rows + count };
            else segments.Add(new AdapterSegment(row, count, adapter));

            for (var position = first; position < first + count; position++, row++)
            {
                tokens[row] = position < sequence.Tokens.Count ? sequence.Tokens[position] : ~unknown;
                positions[row] = position;
                slots[row] = (sequence.Blocks[position / blockSize] * blockSize) + (position % blockSize);
            }
            if (!sample) continue;
            logitRows.Add(row - 1);
            draws.Add(ruleOf(sequence));
        }
        return new Batch { Tokens = tokens, Positions = positions, Slots = slots, Spans = spans, Segments = [.. segments], LogitRows = [.. logitRows], Draws = [.. draws] };
    }
}
