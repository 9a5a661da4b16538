using System.Diagnostics.Metrics;
using TenantLora.ChatHost.Operations;

namespace TenantLora.ChatHost.Tests.Operations;

public sealed class MetricsTests
{
    [Fact]
    public void Every_kind_of_instrument_is_written_in_prometheus_text()
    {
        using var admission = new Admission(Microsoft.Extensions.Options.Options.Create(new TenantLoraOptions()));
        using var host = new HostMetrics(admission);
        using var text = new PrometheusText(host);
        using var meter = new Meter("TenantLora.Runtime");
        var counter = meter.CreateCounter<long>("probe_tokens", null, "With a \\ and a\nbreak.");
        var histogram = meter.CreateHistogram("probe.time", "s", null, null, new InstrumentAdvice<double> { HistogramBucketBoundaries = [0.5, 1] });
        meter.CreateObservableGauge("probe_waiting", () => 3);
        counter.Add(2, new KeyValuePair<string, object?>("kind", "a\"b\\c\nd"));
        counter.Add(3, new KeyValuePair<string, object?>("kind", "a\"b\\c\nd"));
        foreach (var value in new[] { 0.25, 0.75, 4 }) histogram.Record(value);
        host.Ended("chat", "stop");
        _ = text.Read();
        var lines = text.Read().Split('\n');
        string[] expected =
        [
            "# TYPE probe_time_seconds histogram", "probe_time_seconds_bucket{le=\"0.5\"} 1", "probe_time_seconds_bucket{le=\"1\"} 2",
            "probe_time_seconds_bucket{le=\"+Inf\"} 3", "probe_time_seconds_sum 5", "probe_time_seconds_count 3",
            "# HELP probe_tokens_total With a \\\\ and a\\nbreak.", "# TYPE probe_tokens_total counter", "probe_tokens_total{kind=\"a\\\"b\\\\c\\nd\"} 5",
            "# TYPE probe_waiting gauge", "probe_waiting 3",
            "tenantlora_host_requests_total{endpoint=\"chat\",outcome=\"stop\"} 1", "tenantlora_host_answers_running 0",
        ];
        foreach (var line in expected) Assert.Contains(line, lines);
    }

    [Fact]
    public async Task The_page_counts_requests_and_names_no_tenant()
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime());
        using var client = host.Client();
        using var answer = await client.PostAsync("/v1/chat/completions", TestHost.Json("""{"model":"harbor","messages":[{"role":"user","content":"Hi"}]}"""));
        using var refused = await client.PostAsync("/v1/completions", TestHost.Json("""{"model":"absent","prompt":"Hi"}"""));
        using var response = await client.GetAsync("/metrics");
        Assert.Equal("text/plain; version=0.0.4; charset=utf-8", response.Content.Headers.ContentType!.ToString());
        var text = await response.Content.ReadAsStringAsync();
        Assert.Contains("tenantlora_host_requests_total{endpoint=\"chat\",outcome=\"stop\"} 1\n", text, StringComparison.Ordinal);
        Assert.Contains("tenantlora_host_requests_total{endpoint=\"completions\",outcome=\"model_not_found\"} 1\n", text, StringComparison.Ordinal);
        Assert.DoesNotContain("harbor", text, StringComparison.Ordinal);
    }
}
