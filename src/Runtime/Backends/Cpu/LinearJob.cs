namespace TenantLora.Runtime.Backends.Cpu;

/// <summary>y = x·wᵀ + bias over ranges of outputs; see <see cref="Dots{V}"/>. Bias may be null.</summary>
internal readonly unsafe struct LinearJob<V, T>(CpuActivations x, CpuWeights weight, float* bias, CpuActivations y, int itemOutputs) : IJob
    where V : struct, ILanes<V>
    where T : struct, IStored
{
    public void Run(int item, int worker)
    {
        var from = item * itemOutputs;
        var to = Math.Min(from + itemOutputs, y.Cols);
        for (var p = 0; p < weight.Parts; p++)
        {
            var (start, rows, data) = weight.Part(p);
            var first = Math.Max(from, start);
            var count = Math.Min(to, start + rows) - first;
            if (count <= 0) continue;
            var w = (byte*)data + ((nint)(first - start) * x.Cols * T.Size);
            Dots<V>.Run<T>(w, x.Cols, count, x.Data, x.Cols, x.Rows, x.Cols, y.Data + first, y.Cols);
        }
        if (bias is null) return;
        for (var r = 0; r < y.Rows; r++)
            for (var o = from; o < to; o++)
                y.Row(r)[o] += bias[o];
    }
}
