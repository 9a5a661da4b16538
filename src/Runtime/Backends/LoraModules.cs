namespace TenantLora.Runtime.Backends;

/// <summary>The seven linears of a layer, in the order in which they are stacked.</summary>
internal enum Projection
{
    Query,
    Key,
    Value,
    Output,
    Gate,
    Up,
    Down,
}

/// <summary>
/// One adapted linear in compact form; plain LoRA is one chunk each way and no unshared rank. W is o×h, r the total rank, u the unshared
/// one, r' = r − u. (PRoLoRA, arXiv 2402.16902, eq. 2–4; rotation sign and ragged last chunks as in the authors' code.)
/// <code>
/// shrink: V[k,j] = Σ_t A[k,t]·x[j·c_A + t];  z[k] = Σ_j V[(k + j·s_A) mod r', j];  z_u = A_vec·x
/// expand: y[i·c_B + t] += scale·Σ_k B[t,k]·z[(k − i·s_B) mod r'];  y += scale·B_vecᵀ·z_u
/// </code>
/// The last chunks are cut off at h and o. With rotation off both shifts are 0.
/// </summary>
internal sealed class LoraModule
{
    /// <summary>h, columns of W.</summary>
    public required int Inputs { get; init; }

    /// <summary>o, rows of W.</summary>
    public required int Outputs { get; init; }

    /// <summary>m, chunks of A along h.</summary>
    public required int ChunksA { get; init; }

    /// <summary>n, chunks of B along o.</summary>
    public required int ChunksB { get; init; }

    /// <summary>s_A, in ranks a chunk.</summary>
    public required int ShiftA { get; init; }

    /// <summary>s_B, in ranks a chunk.</summary>
    public required int ShiftB { get; init; }

    /// <summary>alpha / r, or alpha / sqrt(r) for rsLoRA, r being the total rank.</summary>
    public required float Scale { get; init; }

    /// <summary>r'×c_A; null when r' = 0.</summary>
    public HostTensor? A { get; init; }

    /// <summary>c_B×r'; null when r' = 0.</summary>
    public HostTensor? B { get; init; }

    /// <summary>u×h; null when u = 0.</summary>
    public HostTensor? AVec { get; init; }

    /// <summary>u×o, transposed against B; null when u = 0.</summary>
    public HostTensor? BVec { get; init; }

    public int SharedRank => A?.Rows ?? 0;
    public int UnsharedRank => AVec?.Rows ?? 0;

    /// <summary>c_A = ⌈h/m⌉.</summary>
    public int ChunkWidth => (Inputs + ChunksA - 1) / ChunksA;

    /// <summary>c_B = ⌈o/n⌉.</summary>
    public int ChunkHeight => (Outputs + ChunksB - 1) / ChunksB;
}

/// <summary>The adapted linears of all layers; those not adapted are null.</summary>
internal sealed class LoraModules(int layers)
{
    private readonly LoraModule?[] modules = new LoraModule?[layers * 7];

    public int Layers { get; } = layers;

    public LoraModule? this[int layer, Projection projection]
    {
        get => modules[(layer * 7) + (int)projection];
        set => modules[(layer * 7) + (int)projection] = value;
    }

    public IEnumerable<LoraModule> All => modules.OfType<LoraModule>();
}

/// <summary>One stacked linear of one layer, and the columns of its output at which each projection's part begins.</summary>
internal sealed record LoraSite(int Layer, params (Projection Projection, int Column)[] Parts);
