using TenantLora.Runtime.Backends;

namespace TenantLora.Runtime.Models;

/// <summary>
/// The forward pass of Llama, Mistral, Qwen2 and Qwen3, once for all backends. They differ by configuration only: biases, head norms,
/// windows, frequencies.
/// </summary>
internal sealed class Transformer(ModelConfig config, ModelWeights weights, IBackend backend, KvCache cache)
{
    private readonly LoraSite[] qkv = Sites(config, (Projection.Query, 0), (Projection.Key, config.Heads * config.HeadDim), (Projection.Value, (config.Heads + config.KvHeads) * config.HeadDim));
    private readonly LoraSite[] output = Sites(config, (Projection.Output, 0));
    private readonly LoraSite[] gateUp = Sites(config, (Projection.Gate, 0), (Projection.Up, config.IntermediateSize));
    private readonly LoraSite[] down = Sites(config, (Projection.Down, 0));

    public int Vocabulary => config.VocabSize;

    /// <summary>Runs all rows of the batch, stores their keys and values, and gives the logits (logitRows, vocabulary) of the rows that want them.</summary>
    public DeviceTensor? Forward(Batch batch)
    {
        backend.Begin(batch);
        var rows = batch.Rows;
        var x = backend.Scratch(rows, config.HiddenSize);                                           // the residual stream
        var h = backend.Scratch(rows, config.HiddenSize);
        var heads = backend.Scratch(rows, (config.Heads + (2 * config.KvHeads)) * config.HeadDim);
        var attended = backend.Scratch(rows, config.Heads * config.HeadDim);
        var wide = backend.Scratch(rows, 2 * config.IntermediateSize);
        var inner = backend.Scratch(rows, config.IntermediateSize);

        backend.Embed(weights.Embedding, x);
        for (var i = 0; i < weights.Layers.Length; i++)
        {
            var layer = weights.Layers[i];

            backend.RmsNorm(x, layer.InputNorm, config.NormEpsilon, h);
            Linear(h, layer.Qkv, layer.QkvBias, qkv[i], heads);
            backend.RopeAndStore(heads, layer.HeadNorms, cache, i);
            backend.Attend(heads, cache, i, attended);
            Linear(attended, layer.Output, layer.OutputBias, output[i], h);
            backend.Add(h, x);

            backend.RmsNorm(x, layer.PostNorm, config.NormEpsilon, h);
            Linear(h, layer.GateUp, layer.GateUpBias, gateUp[i], wide);
            backend.SwiGlu(wide, inner);
            Linear(inner, layer.Down, layer.DownBias, down[i], h);
            backend.Add(h, x);
        }

        if (batch.LogitRows.Length == 0) return null;
        var last = backend.Scratch(batch.LogitRows.Length, config.HiddenSize);
        var normed = backend.Scratch(batch.LogitRows.Length, config.HiddenSize);
        var logits = backend.Scratch(batch.LogitRows.Length, config.VocabSize);
        backend.TakeLogitRows(x, last);
        backend.RmsNorm(last, weights.FinalNorm, config.NormEpsilon, normed);
        backend.Linear(normed, weights.Head, null, logits);
        return logits;
    }

    private void Linear(DeviceTensor x, DeviceTensor weight, DeviceTensor? bias, LoraSite site, DeviceTensor y)
    {
        backend.Linear(x, weight, bias, y);
        backend.AddLora(x, site, y);
    }

    private static LoraSite[] Sites(ModelConfig config, params (Projection, int)[] parts) =>
        [.. Enumerable.Range(0, config.Layers).Select(layer => new LoraSite(layer, parts))];
}
