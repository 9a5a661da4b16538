namespace TenantLora.Runtime.Backends;

/// <summary>
/// The one seam between the model and a device: the forward pass is written once in these verbs (<c>Models/Transformer.cs</c>).
/// Activations are fp32 on every backend's border; each verb's line of semantics is the loop its test runs. One thread calls.
/// <para>
/// Two rules bind every implementation. A row's result does not depend on the other rows of the batch, bit for bit: the order of
/// every sum is fixed by the shapes of weights and positions, never by the number of rows or threads. And an adapter stays in its
/// compact form: rotation is an index on r' accumulators.
/// </para>
/// </summary>
internal interface IBackend : IDisposable
{
    /// <summary>The device in words, for people: <c>cpu, 2 threads, AVX2</c>.</summary>
    string Name { get; }

    /// <summary>Brings weights to the device in their stored type, one for all parts: matrices of the same columns stacked as rows of one, or vectors joined end to end.</summary>
    DeviceTensor Upload(params ReadOnlySpan<HostTensor> parts);

    /// <summary>Room for keys and values of <paramref name="blocks"/> blocks of <paramref name="blockSize"/> positions in every layer.</summary>
    KvCache CreateKvCache(int blocks, int blockSize, AttentionShape shape);

    /// <summary>Brings an adapter to the device, in compact form.</summary>
    DeviceAdapter LoadAdapter(LoraModules modules);

    /// <summary>This step's index arrays; frees the last step's scratch.</summary>
    void Begin(Batch batch);

    /// <summary>fp32 room, not cleared, valid until the next <see cref="Begin"/>.</summary>
    DeviceTensor Scratch(int rows, int cols);

    /// <summary>x[r] = table[token[r]].</summary>
    void Embed(DeviceTensor table, DeviceTensor x);

    /// <summary>y[r] = x[r] / sqrt(mean(x[r]²) + ε) · weight.</summary>
    void RmsNorm(DeviceTensor x, DeviceTensor weight, float epsilon, DeviceTensor y);

    /// <summary>y = x·wᵀ + bias; x (rows, in), w (out, in), bias (1, out), y (rows, out).</summary>
    void Linear(DeviceTensor x, DeviceTensor weight, DeviceTensor? bias, DeviceTensor y);

    /// <summary>For every part p of the site: y[r, p.Column..] += scale·B(A(x[r])) of the adapter of row r; rows without one are left alone.</summary>
    void AddLora(DeviceTensor x, LoraSite site, DeviceTensor y);

    /// <summary>
    /// qkv[r] is (heads + 2·kvHeads)·headDim wide: q, then k, then v. Normalises each q and k head (RmsNorm over headDim) where
    /// norms are given, rotates q in place and k by the row's position, and writes k and v to the row's slot of the layer.
    /// </summary>
    void RopeAndStore(DeviceTensor qkv, HeadNorms? norms, KvCache cache, int layer);

    /// <summary>
    /// y[r, head] = Σ_p softmax_p(q·k_p / sqrt(headDim)) v_p over the positions p of the row's own sequence with p ≤ position[r], and,
    /// where the layer has a window w, p &gt; position[r] − w. q is the first heads·headDim columns of qkv; y (rows, heads·headDim).
    /// </summary>
    void Attend(DeviceTensor qkv, KvCache cache, int layer, DeviceTensor y);

    /// <summary>y[r, i] = silu(gateUp[r, i]) · gateUp[r, n + i]; gateUp (rows, 2n), y (rows, n).</summary>
    void SwiGlu(DeviceTensor gateUp, DeviceTensor y);

    /// <summary>y += x.</summary>
    void Add(DeviceTensor x, DeviceTensor y);

    /// <summary>y[i] = x[LogitRows[i]].</summary>
    void TakeLogitRows(DeviceTensor x, DeviceTensor y);

    /// <summary>Copies to the host, rows after one another. The only wait.</summary>
    void Download(DeviceTensor x, Span<float> host);
}
