using System.Diagnostics.Metrics;

namespace TenantLora.ChatHost.Operations;

/// <summary>What the host counts itself; the runtime counts tokens and times. No tenant appears in a label: /metrics is shared.</summary>
internal sealed class HostMetrics : IDisposable
{
    public const string MeterName = "TenantLora.ChatHost";
    private readonly Meter meter;
    private readonly Counter<long> requests, redis;

    public HostMetrics(Admission admission)
    {
        meter = new Meter(MeterName, null, null, scope: this);
        requests = meter.CreateCounter<long>("tenantlora.host.requests", "{request}", "Requests for an answer by the road they came and how they ended.");
        redis = meter.CreateCounter<long>("tenantlora.host.redis", "{operation}", "What came of asking Redis: hit, rejected, failed, skipped while it does not answer.");
        meter.CreateObservableGauge("tenantlora.host.answers_running", () => admission.Running, null, "Answers in the making over /v1 and the hub.");
        meter.CreateObservableGauge("tenantlora.host.draining", () => admission.Draining ? 1 : 0, null, "1 while the host stops and takes nothing new.");
    }

    /// <summary>One request has ended.</summary>
    /// <param name="endpoint"><c>chat</c>, <c>completions</c> or <c>hub</c>.</param>
    /// <param name="outcome">A finish reason, <c>cancelled</c> or an error's code.</param>
    public void Ended(string endpoint, string outcome) => requests.Add(1, new("endpoint", endpoint), new("outcome", outcome));

    /// <summary>Redis was asked, or spared.</summary>
    public void RedisAsked(string operation, string outcome) => redis.Add(1, new("operation", operation), new("outcome", outcome));

    /// <summary>Whether a meter is this host's, where several hosts share a process.</summary>
    public bool Owns(Meter other) => ReferenceEquals(other, meter);

    public void Dispose() => meter.Dispose();
}
