using System.Diagnostics.Metrics;

namespace TenantLora.Runtime.Serving;

/// <summary>
/// The engine's instruments, on a meter named <c>TenantLora.Runtime</c>. Names follow OpenTelemetry's gen_ai conventions where they have
/// one; no tenant or adapter appears in a label.
/// </summary>
internal sealed class EngineMetrics : IDisposable
{
    private static readonly double[] Seconds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120];

    private readonly Meter meter = new("TenantLora.Runtime");
    private readonly Histogram<double> timeToFirstToken, timePerToken, duration, queue, prefill, decode, step, adapterLoad;
    private readonly Counter<long> promptTokens, generatedTokens, requests;

    public EngineMetrics(Func<EngineStatus> status)
    {
        timeToFirstToken = Times("gen_ai.server.time_to_first_token", "Arrival to first token.");
        timePerToken = Times("gen_ai.server.time_per_output_token", "Time per token after the first.");
        duration = Times("gen_ai.server.request.duration", "Arrival to last token.");
        queue = Times("tenantlora.request.queue", "Arrival to first step.");
        prefill = Times("tenantlora.request.prefill", "First step to first token.");
        decode = Times("tenantlora.request.decode", "First token to last.");
        step = Times("tenantlora.step", "One turn of the engine's loop.");
        adapterLoad = Times("tenantlora.adapter.load", "Bringing an adapter to the device.");
        promptTokens = meter.CreateCounter<long>("tenantlora.prompt_tokens", "{token}", "Prompt tokens of finished requests.");
        generatedTokens = meter.CreateCounter<long>("tenantlora.generation_tokens", "{token}", "Tokens generated.");
        requests = meter.CreateCounter<long>("tenantlora.requests", "{request}", "Requests by how they ended.");
        meter.CreateObservableGauge("tenantlora.requests.running", () => status().Running, "{request}", "Sequences in the batch.");
        meter.CreateObservableGauge("tenantlora.requests.waiting", () => status().Waiting, "{request}", "Requests not yet running.");
        meter.CreateObservableGauge("tenantlora.kv_cache.usage", () => status() is var s ? 1 - ((double)s.BlocksFree / s.BlocksTotal) : 0, "1", "Share of KV blocks held.");
        meter.CreateObservableGauge("tenantlora.adapters.held", () => status().AdaptersHeld, "{reference}", "References that sequences hold on adapters.");
        meter.CreateObservableGauge("tenantlora.adapters.on_device", () => status().AdaptersOnDevice, "{adapter}", "Adapters on the device.");
        meter.CreateObservableGauge("tenantlora.adapters.memory", () => status().AdapterBytes, "By", "Device memory of adapters.");
        meter.CreateObservableCounter("tenantlora.adapters.loads", () => status().AdapterLoads, "{load}", "Adapters brought to the device.");
        meter.CreateObservableCounter("tenantlora.adapters.evictions", () => status().AdapterEvictions, "{eviction}", "Adapters that made room for another.");
        meter.CreateObservableCounter("tenantlora.preemptions", () => status().Preemptions, "{preemption}", "Sequences sent back to wait.");
    }

    /// <summary>Any thread may call.</summary>
    public void AdapterLoaded(TimeSpan time) => adapterLoad.Record(time.TotalSeconds);

    public void Stepped(TimeSpan time) => step.Record(time.TotalSeconds);

    /// <summary>Counts a request's end; <paramref name="outcome"/> is <c>stop</c>, <c>length</c>, <c>cancelled</c> or an error code.</summary>
    public void Ended(string outcome, Generation generation)
    {
        requests.Add(1, new KeyValuePair<string, object?>("outcome", outcome));
        generatedTokens.Add(generation.Generated);
        if (generation.Generated == 0) return;
        promptTokens.Add(generation.PromptLength);
        var times = generation.Timings;
        queue.Record(times.Queued.TotalSeconds);
        prefill.Record(times.Prefill.TotalSeconds);
        decode.Record(times.Decode.TotalSeconds);
        timeToFirstToken.Record((times.Queued + times.Prefill).TotalSeconds);
        duration.Record((times.Queued + times.Prefill + times.Decode).TotalSeconds);
        if (generation.Generated > 1) timePerToken.Record(times.Decode.TotalSeconds / (generation.Generated - 1));
    }

    public void Dispose() => meter.Dispose();

    private Histogram<double> Times(string name, string description) =>
        meter.CreateHistogram(name, "s", description, advice: new InstrumentAdvice<double> { HistogramBucketBoundaries = Seconds });
}
