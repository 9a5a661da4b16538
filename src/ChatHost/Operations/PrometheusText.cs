using System.Diagnostics.Metrics;
using System.Globalization;
using System.Text;

namespace TenantLora.ChatHost.Operations;

/// <summary>
/// The meters of runtime and host in Prometheus' text format 0.0.4. Counters are summed and histograms filled as measurements come;
/// gauges are asked when someone reads.
/// </summary>
internal sealed class PrometheusText : IDisposable
{
    public const string ContentType = "text/plain; version=0.0.4; charset=utf-8";

    // For instruments that give no advice: 1 ms to 60 s.
    private static readonly double[] DefaultBuckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

    private readonly Lock reading = new(); // one reader at a time: it empties the gauges and fills them again
    private readonly Lock gate = new();
    private readonly SortedDictionary<string, Family> families = new(StringComparer.Ordinal);
    private readonly MeterListener listener = new();

    public PrometheusText(HostMetrics host)
    {
        listener.InstrumentPublished = (instrument, l) =>
        {
            if (instrument.Meter.Name == "TenantLora.Runtime" || host.Owns(instrument.Meter)) l.EnableMeasurementEvents(instrument, Open(instrument));
        };
        listener.SetMeasurementEventCallback<long>((_, value, tags, family) => Record(family, value, tags));
        listener.SetMeasurementEventCallback<int>((_, value, tags, family) => Record(family, value, tags));
        listener.SetMeasurementEventCallback<double>((_, value, tags, family) => Record(family, value, tags));
        listener.SetMeasurementEventCallback<float>((_, value, tags, family) => Record(family, value, tags));
        listener.Start();
    }

    /// <summary>Everything, now.</summary>
    public string Read()
    {
        StringBuilder text = new();
        lock (reading)
        {
            lock (gate)
                foreach (var family in families.Values.Where(f => f.Observed)) family.Series.Clear();
            listener.RecordObservableInstruments();
            lock (gate)
                foreach (var (name, family) in families) family.Write(name, text);
        }
        return text.ToString();
    }

    public void Dispose() => listener.Dispose();

    private Family Open(Instrument instrument)
    {
        var type = instrument.GetType();
        var kind = type.GetGenericTypeDefinition();
        var counter = kind == typeof(Counter<>) || kind == typeof(ObservableCounter<>);
        var family = new Family(kind == typeof(Histogram<>) ? "histogram" : counter ? "counter" : "gauge", instrument.IsObservable,
            instrument.Description, kind == typeof(Histogram<>) ? Boundaries(instrument) : [],
            Adds: !instrument.IsObservable && kind != typeof(Gauge<>));
        var name = Name(instrument, counter);
        lock (gate)
        {
            if (families.TryGetValue(name, out var same)) return same; // a second meter of the same name, say a second engine
            families[name] = family;
        }
        return family;
    }

    private static double[] Boundaries(Instrument instrument) => instrument switch
    {
        Histogram<double> { Advice.HistogramBucketBoundaries: { } given } => [.. given],
        Histogram<long> { Advice.HistogramBucketBoundaries: { } given } => [.. given.Select(b => (double)b)],
        Histogram<int> { Advice.HistogramBucketBoundaries: { } given } => [.. given.Select(b => (double)b)],
        _ => DefaultBuckets,
    };

    private static string Name(Instrument instrument, bool counter)
    {
        StringBuilder name = new(instrument.Name);
        for (var i = 0; i < name.Length; i++)
            if (!char.IsAsciiLetterOrDigit(name[i]) && name[i] != ':') name[i] = '_';
        if (instrument.Unit == "s" && !instrument.Name.Contains("seconds", StringComparison.Ordinal)) name.Append("_seconds");
        if (counter && !instrument.Name.EndsWith("_total", StringComparison.Ordinal)) name.Append("_total");
        return name.ToString();
    }

    private void Record(object? state, double value, ReadOnlySpan<KeyValuePair<string, object?>> tags)
    {
        var family = (Family)state!;
        var labels = Labels(tags);
        lock (gate) family.Record(labels, value);
    }

    private static string Labels(ReadOnlySpan<KeyValuePair<string, object?>> tags)
    {
        if (tags.IsEmpty) return "";
        StringBuilder text = new();
        foreach (var (name, value) in tags)
        {
            if (text.Length > 0) text.Append(',');
            text.Append(name.Replace('.', '_')).Append("=\"")
                .Append(Convert.ToString(value, CultureInfo.InvariantCulture)!.Replace("\\", @"\\", StringComparison.Ordinal).Replace("\"", "\\\"", StringComparison.Ordinal).Replace("\n", "\\n", StringComparison.Ordinal))
                .Append('"');
        }
        return text.ToString();
    }

    /// <summary>One metric: all series of one name.</summary>
    private sealed record Family(string Type, bool Observed, string? Help, double[] Boundaries, bool Adds)
    {
        /// <summary>By labels. A histogram: one count a bucket, then all, then the sum; anything else: one number.</summary>
        public SortedDictionary<string, double[]> Series { get; } = new(StringComparer.Ordinal);

        public void Record(string labels, double value)
        {
            if (!Series.TryGetValue(labels, out var numbers)) Series[labels] = numbers = new double[Type == "histogram" ? Boundaries.Length + 2 : 1];
            if (Type != "histogram")
            {
                numbers[0] = Adds || Observed ? numbers[0] + value : value; // two engines' gauges add up
                return;
            }
            for (var i = 0; i < Boundaries.Length; i++)
                if (value <= Boundaries[i]) numbers[i]++;
            numbers[^2]++;
            numbers[^1] += value;
        }

        public void Write(string name, StringBuilder text)
        {
            if (Series.Count == 0) return;
            if (Help is not null) text.Append("# HELP ").Append(name).Append(' ').Append(Help.Replace("\\", @"\\", StringComparison.Ordinal).Replace("\n", "\\n", StringComparison.Ordinal)).Append('\n');
            text.Append("# TYPE ").Append(name).Append(' ').Append(Type).Append('\n');
            foreach (var (labels, numbers) in Series)
                if (Type != "histogram") Line(text, name, labels, numbers[0]);
                else WriteHistogram(name, labels, numbers, text);
        }

        private void WriteHistogram(string name, string labels, double[] numbers, StringBuilder text)
        {
            var comma = labels.Length == 0 ? "" : ",";
            for (var i = 0; i < Boundaries.Length; i++) Line(text, name + "_bucket", $"{labels}{comma}le=\"{Number(Boundaries[i])}\"", numbers[i]);
            Line(text, name + "_bucket", $"{labels}{comma}le=\"+Inf\"", numbers[^2]);
            Line(text, name + "_sum", labels, numbers[^1]);
            Line(text, name + "_count", labels, numbers[^2]);
        }

        private static void Line(StringBuilder text, string name, string labels, double value)
        {
            text.Append(name);
            if (labels.Length > 0) text.Append('{').Append(labels).Append('}');
            text.Append(' ').Append(Number(value)).Append('\n');
        }

        private static string Number(double value) =>
            double.IsPositiveInfinity(value) ? "+Inf" : double.IsNegativeInfinity(value) ? "-Inf" : value.ToString(CultureInfo.InvariantCulture);
    }
}
