using System.Diagnostics.Metrics;

namespace TenantLora.ChatHost.Operations;

/// <summary>What the host counts itself; the runtime counts tokens and times. No tenant appears in a label: /metrics is shared.</summary>
internal sealed class HostMetrics : IDisposable
{
    public const string MeterName = "TenantLora.ChatHost";
    private readonly Meter meter;
    private readonly Counter<long> requests, redis, evictions;
    private readonly UpDownCounter<long> adapterBytes;
    private readonly Histogram<double> adapterLoad;

    public HostMetrics(Admission admission)
    {
        meter = new Meter(MeterName, null, null, scope: this);
        requests = meter.CreateCounter<long>("tenantlora.host.requests", "{request}", "Requests for an answer by the road they came and how they ended.");
        redis = meter.CreateCounter<long>("tenantlora.host.redis", "{operation}", "What came of asking Redis: hit, rejected, failed, skipped while it does not answer.");
        adapterBytes = meter.CreateUpDownCounter<long>("tenantlora.host.adapters.bytes", "By", "Bytes of adapters on the disk and in the host's memory; the same bytes once. The device's are tenantlora_adapters_memory.");
        adapterLoad = meter.CreateHistogram("tenantlora.host.adapter_load", "s", "Bringing an adapter from the disk to the host's memory. To the device: tenantlora_adapter_load_seconds.",
            advice: new InstrumentAdvice<double> { HistogramBucketBoundaries = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30] });
        evictions = meter.CreateCounter<long>("tenantlora.host.adapter_evictions", "{adapter}", "Adapters that left the host's memory for others. From the device: tenantlora_adapters_evictions_total.");
        meter.CreateObservableGauge("tenantlora.host.answers_running", () => admission.Running, null, "Answers in the making over /v1 and the hub.");
        meter.CreateObservableGauge("tenantlora.host.draining", () => admission.Draining ? 1 : 0, null, "1 while the host stops and takes nothing new.");
    }

    /// <summary>One request has ended.</summary>
    /// <param name="endpoint"><c>chat</c>, <c>completions</c> or <c>hub</c>.</param>
    /// <param name="outcome">A finish reason, <c>cancelled</c> or an error's code.</param>
    public void Ended(string endpoint, string outcome) => requests.Add(1, new("endpoint", endpoint), new("outcome", outcome));

    /// <summary>Redis was asked, or spared.</summary>
    public void RedisAsked(string operation, string outcome) => redis.Add(1, new("operation", operation), new("outcome", outcome));

    /// <summary>An adapter has come to a tier, or left it.</summary>
    /// <param name="tier"><c>disk</c> or <c>host</c>.</param>
    public void AdapterMoved(string tier, long bytes) => adapterBytes.Add(bytes, new KeyValuePair<string, object?>("tier", tier));

    /// <summary>An adapter has come from the disk to the host's memory.</summary>
    public void AdapterLoaded(TimeSpan time) => adapterLoad.Record(time.TotalSeconds);

    /// <summary>An adapter has made room for others in the host's memory.</summary>
    public void AdapterEvicted() => evictions.Add(1);

    /// <summary>Whether a meter is this host's, where several hosts share a process.</summary>
    public bool Owns(Meter other) => ReferenceEquals(other, meter);

    public void Dispose() => meter.Dispose();
}
