using TenantLora.Runtime.Backends;

namespace TenantLora.Bench;

/// <summary>A backend that does what the one inside does; whoever derives says where it does otherwise.</summary>
internal abstract class ForwardingBackend(IBackend inner) : IBackend
{
    public IBackend Inner => inner;

    public virtual string Name => inner.Name;

    public virtual int StepsAhead => inner.StepsAhead;

    public int PreferredStepTokens => inner.PreferredStepTokens;

    public virtual int MaxAdapterRank => inner.MaxAdapterRank;

    public virtual int MaxHeadDim => inner.MaxHeadDim;

    public DeviceTensor Upload(params ReadOnlySpan<HostTensor> parts) => inner.Upload(parts);

    public virtual MemoryPlan Plan(AttentionShape shape, MemoryWish wanted) => inner.Plan(shape, wanted);

    public KvCache CreateKvCache(int blocks, int blockSize, AttentionShape shape) => inner.CreateKvCache(blocks, blockSize, shape);

    public long SizeOf(LoraModules modules) => inner.SizeOf(modules);

    public virtual DeviceAdapter LoadAdapter(LoraModules modules) => inner.LoadAdapter(modules);

    public virtual DeviceTensor? Run(Batch batch, Func<StepForm, DeviceTensor?> forward) => inner.Run(batch, forward);

    public virtual Drawn[] Collect() => inner.Collect();

    public void Begin(Batch batch) => inner.Begin(batch);

    public DeviceTensor Scratch(int rows, int cols, Precision precision = Precision.Full) => inner.Scratch(rows, cols, precision);

    public void Embed(DeviceTensor table, DeviceTensor x) => inner.Embed(table, x);

    public void RmsNorm(DeviceTensor x, DeviceTensor weight, float epsilon, DeviceTensor y) => inner.RmsNorm(x, weight, epsilon, y);

    public void AddRmsNorm(DeviceTensor delta, DeviceTensor x, DeviceTensor weight, float epsilon, DeviceTensor y) => inner.AddRmsNorm(delta, x, weight, epsilon, y);

    public void Linear(DeviceTensor x, DeviceTensor weight, DeviceTensor? bias, LoraSite? site, DeviceTensor y) => inner.Linear(x, weight, bias, site, y);

    public void RopeAndStore(DeviceTensor qkv, HeadNorms? norms, KvCache cache, int layer) => inner.RopeAndStore(qkv, norms, cache, layer);

    public void Attend(DeviceTensor qkv, KvCache cache, int layer, DeviceTensor y) => inner.Attend(qkv, cache, layer, y);

    public void SwiGlu(DeviceTensor gateUp, DeviceTensor y) => inner.SwiGlu(gateUp, y);

    public void TakeLogitRows(DeviceTensor x, DeviceTensor y) => inner.TakeLogitRows(x, y);

    public void Draw(DeviceTensor logits, int vocabulary) => inner.Draw(logits, vocabulary);

    public void Download(DeviceTensor x, Span<float> host) => inner.Download(x, host);

    public virtual void Dispose() => inner.Dispose();
}
