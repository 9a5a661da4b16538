using TenantLora.Runtime.Backends;

namespace TenantLora.Runtime.Models;

/// <summary>
/// The forward pass of Llama, Mistral, Qwen2 and Qwen3, once for all backends. They differ by configuration only: biases, head norms,
/// windows, frequencies.
/// </summary>
/// <param name="vocabulary">Tokens that exist; the head's rows may be padded with ids that are none, and those are not drawn.</param>
internal sealed class Transformer(ModelConfig config, ModelWeights weights, IBackend backend, KvCache cache, int vocabulary)
{
    private readonly LoraSite[] qkv = Sites(config, (Projection.Query, 0), (Projection.Key, config.Heads * config.HeadDim), (Projection.Value, (config.Heads + config.KvHeads) * config.HeadDim));
    private readonly LoraSite[] output = Sites(config, (Projection.Output, 0));
    private readonly LoraSite[] gateUp = Sites(config, (Projection.Gate, 0), (Projection.Up, config.IntermediateSize));
    private readonly LoraSite[] down = Sites(config, (Projection.Down, 0));

    /// <summary>
    /// Runs all rows of the batch, stores their keys and values, draws as the batch says, and gives the logits (logitRows, padded
    /// vocabulary) of the rows that want them.
    /// </summary>
    public DeviceTensor? Run(Batch batch) => backend.Run(batch, form => Forward(form, batch.Draws.Length > 0));

    private DeviceTensor? Forward(StepForm form, bool draws)
    {
        var x = backend.Scratch(form.Rows, config.HiddenSize);                                      // the residual stream
        var delta = backend.Scratch(form.Rows, config.HiddenSize);                                  // what is added to it next
        var normed = backend.Scratch(form.Rows, config.HiddenSize, Precision.Operand);
        var heads = backend.Scratch(form.Rows, (config.Heads + (2 * config.KvHeads)) * config.HeadDim);
        var attended = backend.Scratch(form.Rows, config.Heads * config.HeadDim, Precision.Operand);
        var wide = backend.Scratch(form.Rows, 2 * config.IntermediateSize);
        var inner = backend.Scratch(form.Rows, config.IntermediateSize, Precision.Operand);

        backend.Embed(weights.Embedding, x);
        for (var i = 0; i < weights.Layers.Length; i++)
        {
            var layer = weights.Layers[i];

            if (i == 0) backend.RmsNorm(x, layer.InputNorm, config.NormEpsilon, normed);
            else backend.AddRmsNorm(delta, x, layer.InputNorm, config.NormEpsilon, normed);
            backend.Linear(normed, layer.Qkv, layer.QkvBias, qkv[i], heads);
            backend.RopeAndStore(heads, layer.HeadNorms, cache, i);
            backend.Attend(heads, cache, i, attended);
            backend.Linear(attended, layer.Output, layer.OutputBias, output[i], delta);

            backend.AddRmsNorm(delta, x, layer.PostNorm, config.NormEpsilon, normed);
            backend.Linear(normed, layer.GateUp, layer.GateUpBias, gateUp[i], wide);
            backend.SwiGlu(wide, inner);
            backend.Linear(inner, layer.Down, layer.DownBias, down[i], delta);
        }

        if (form.LogitRows == 0) return null;
        var taken = backend.Scratch(form.LogitRows, config.HiddenSize, Precision.Operand);
        var logits = backend.Scratch(form.LogitRows, config.VocabSize);
        backend.AddRmsNorm(delta, x, weights.FinalNorm, config.NormEpsilon, normed);
        backend.TakeLogitRows(normed, taken);
        backend.Linear(taken, weights.Head, null, null, logits);
        if (draws) backend.Draw(logits, vocabulary);
        return logits;
    }

    private static LoraSite[] Sites(ModelConfig config, params (Projection, int)[] parts) =>
        [.. Enumerable.Range(0, config.Layers).Select(layer => new LoraSite(layer, parts))];
}
