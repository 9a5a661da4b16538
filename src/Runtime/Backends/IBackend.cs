namespace TenantLora.Runtime.Backends;

/// <summary>
/// The one seam between the model and a device: the forward pass is written once in these verbs (<c>Models/Transformer.cs</c>).
/// Each verb's line of semantics is the loop its test runs. One thread calls, but for <see cref="LoadAdapter"/>.
/// <para>
/// Two rules bind every implementation. A row's result does not depend on who its neighbours are: the order of every sum is fixed by the
/// shapes of weights and positions, never by the number of threads. And an adapter stays in its compact form: rotation is an index on r'
/// accumulators.
/// </para>
/// </summary>
internal interface IBackend : IDisposable
{
    /// <summary>The device in words, for people: <c>cpu, 2 threads, AVX2</c>.</summary>
    string Name { get; }

    /// <summary>Steps that may be under way while the host prepares another: 0 where a step is over when <see cref="Run"/> returns.</summary>
    int StepsAhead { get; }

    /// <summary>Prompt rows of a step that make good use of the device.</summary>
    int PreferredStepTokens { get; }

    /// <summary>Highest rank of an adapter, shared and unshared together, that the device serves.</summary>
    int MaxAdapterRank { get; }

    /// <summary>Most dimensions of a head that the device serves.</summary>
    int MaxHeadDim { get; }

    /// <summary>Brings weights to the device, one for all parts: matrices of the same columns stacked as rows of one, or vectors joined end to end.</summary>
    DeviceTensor Upload(params ReadOnlySpan<HostTensor> parts);

    /// <summary>
    /// Divides what memory is left once the weights are uploaded. <paramref name="wanted"/> holds what the options ask for, 0 where they leave it open.
    /// </summary>
    /// <exception cref="OutOfDeviceMemoryException">What is asked for does not fit; the message has the whole plan.</exception>
    MemoryPlan Plan(AttentionShape shape, MemoryWish wanted);

    /// <summary>Room for keys and values of <paramref name="blocks"/> blocks of <paramref name="blockSize"/> positions in every layer.</summary>
    KvCache CreateKvCache(int blocks, int blockSize, AttentionShape shape);

    /// <summary>Device bytes that <see cref="LoadAdapter"/> will take.</summary>
    long SizeOf(LoraModules modules);

    /// <summary>Brings an adapter to the device, in compact form. Any thread may call; steps under way are not held up.</summary>
    /// <exception cref="OutOfDeviceMemoryException">No room: free another first.</exception>
    DeviceAdapter LoadAdapter(LoraModules modules);

    /// <summary>
    /// One step: <see cref="Begin"/>, then the verbs in <paramref name="forward"/>, which is told how many rows to take room for. A backend
    /// may record the verbs and replay them for later steps of the same form, whose rows may then be fewer than those taken room for; what
    /// <paramref name="forward"/> returned comes back either way.
    /// </summary>
    DeviceTensor? Run(Batch batch, Func<StepForm, DeviceTensor?> forward);

    /// <summary>
    /// Waits for the oldest step not yet collected and gives what it drew, one for each of its <see cref="Batch.Draws"/>. Every step that
    /// <see cref="Run"/> did not refuse by throwing is collected once, also one that draws nothing.
    /// </summary>
    Drawn[] Collect();

    /// <summary>This step's index arrays; frees the last step's scratch.</summary>
    void Begin(Batch batch);

    /// <summary>Room, not cleared, valid until the next <see cref="Begin"/>.</summary>
    DeviceTensor Scratch(int rows, int cols, Precision precision = Precision.Full);

    /// <summary>x[r] = table[token[r]].</summary>
    void Embed(DeviceTensor table, DeviceTensor x);

    /// <summary>y[r] = x[r] / sqrt(mean(x[r]²) + ε) · weight.</summary>
    void RmsNorm(DeviceTensor x, DeviceTensor weight, float epsilon, DeviceTensor y);

    /// <summary>x += delta; then y[r] = x[r] / sqrt(mean(x[r]²) + ε) · weight. x stays as it is until y has been read.</summary>
    void AddRmsNorm(DeviceTensor delta, DeviceTensor x, DeviceTensor weight, float epsilon, DeviceTensor y);

    /// <summary>
    /// y = x·wᵀ + bias; x (rows, in), w (out, in), bias (1, out), y (rows, out). Then for every part p of the site:
    /// y[r, p.Column..] += scale·B(A(x[r])) of the adapter of row r; rows without one are left alone. y may be finished by the verb that
    /// reads it: <see cref="AddRmsNorm"/>, <see cref="RopeAndStore"/>, <see cref="SwiGlu"/>, <see cref="Draw"/>, <see cref="Download"/>. Until then x stays as it is.
    /// </summary>
    void Linear(DeviceTensor x, DeviceTensor weight, DeviceTensor? bias, LoraSite? site, DeviceTensor y);

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

    /// <summary>y[i] = x[LogitRows[i]].</summary>
    void TakeLogitRows(DeviceTensor x, DeviceTensor y);

    /// <summary>
    /// Draws a token from the first <paramref name="vocabulary"/> columns of each row of logits as <see cref="Batch.Draws"/> says;
    /// <see cref="Collect"/> gives them. Columns beyond are padding and no tokens.
    /// </summary>
    void Draw(DeviceTensor logits, int vocabulary);

    /// <summary>Waits, and copies as many rows as <paramref name="host"/> holds, after one another.</summary>
    void Download(DeviceTensor x, Span<float> host);
}

/// <summary>Rows that a step's verbs take room for: at least as many as the batch has.</summary>
internal readonly record struct StepForm(int Rows, int LogitRows);

/// <summary>What memory is asked for; 0 leaves it to the backend.</summary>
/// <param name="CacheTokens">KV positions.</param>
/// <param name="AdapterBytes">Device bytes for adapters.</param>
/// <param name="BlockSize">KV positions in a block.</param>
/// <param name="StepRows">Most rows of a step: prompt tokens and decoding sequences together.</param>
/// <param name="ContextLength">The longest sequence: a cache that holds fewer than one is of no use.</param>
internal readonly record struct MemoryWish(long CacheTokens, long AdapterBytes, int BlockSize, int StepRows, int ContextLength);

/// <summary>Who gets what of a device's memory, in bytes.</summary>
/// <param name="Blocks">KV blocks.</param>
/// <param name="AdapterBytes">What adapters may take together; <see cref="long.MaxValue"/> where the device is the host.</param>
/// <param name="Description">The plan in a line, for the log.</param>
internal sealed record MemoryPlan(int Blocks, long AdapterBytes, string Description);

/// <summary>The device has no room for this; the engine goes on without it.</summary>
internal sealed class OutOfDeviceMemoryException(string message) : Exception(message);
