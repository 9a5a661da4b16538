namespace TenantLora.Runtime.Backends;

/// <summary>What one step's forward pass needs: flat index arrays, nothing else. A row is one token.</summary>
internal sealed class Batch
{
    /// <summary>(rows) token ids; ~i is the i-th token that the step before drew, which the host may not know yet.</summary>
    public required int[] Tokens { get; init; }

    /// <summary>(rows) position of the row in its sequence, from 0.</summary>
    public required int[] Positions { get; init; }

    /// <summary>(rows) cache slot into which the row's key and value go.</summary>
    public required int[] Slots { get; init; }

    /// <summary>The rows of each sequence, in row order, covering all rows.</summary>
    public required BatchSpan[] Spans { get; init; }

    /// <summary>Neighbouring rows with one adapter, in row order, covering all rows; base rows have none.</summary>
    public required AdapterSegment[] Segments { get; init; }

    /// <summary>Rows whose logits are wanted, ascending.</summary>
    public required int[] LogitRows { get; init; }

    /// <summary>How a token is drawn from the logits of each of <see cref="LogitRows"/>; empty when nothing is drawn.</summary>
    public DrawRule[] Draws { get; init; } = [];

    public int Rows => Tokens.Length;
}

/// <summary>
/// The rows of one sequence in this step: positions <c>Context − Rows … Context − 1</c>.
/// </summary>
/// <param name="FirstRow">Where they begin.</param>
/// <param name="Rows">How many: 1 when decoding, a chunk when reading the prompt.</param>
/// <param name="Context">Positions in the cache once this step has stored its own.</param>
/// <param name="Blocks">Block of position p is Blocks[p / blockSize]; may be longer than needed.</param>
internal readonly record struct BatchSpan(int FirstRow, int Rows, int Context, int[] Blocks);

/// <summary>Neighbouring rows with one adapter; null is the base model.</summary>
internal readonly record struct AdapterSegment(int FirstRow, int Rows, DeviceAdapter? Adapter);
