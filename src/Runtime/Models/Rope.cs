using System.Globalization;

namespace TenantLora.Runtime.Models;

/// <summary>
/// RoPE's inverse frequencies as transformers computes them in fp32 (<c>modeling_rope_utils</c>), from <c>rope_parameters</c> (its
/// version 5) or <c>rope_theta</c> and <c>rope_scaling</c> (before). A file may hold both; they must agree.
/// </summary>
internal static class Rope
{
    /// <summary>(headDim / 2).</summary>
    public static float[] Read(JsonFields json, int headDim)
    {
        var now = ReadParameters(json.Fields("rope_parameters"));
        var before = ReadParameters(json.Fields("rope_scaling"));
        var theta = json.Number("rope_theta", MinTheta, MaxTheta);
        if (now is null) return InverseFrequencies(Complete(before, theta), headDim);

        if (theta is not null && now.Theta is not null && theta != now.Theta)
            json.Refuse("rope_theta", $"{Show(now.Theta)}, as in rope_parameters", Show(theta));
        if (before is not null && before with { Theta = now.Theta } != now)
            json.Refuse("rope_scaling", "what rope_parameters says, or nothing", "something else");
        return InverseFrequencies(Complete(now, theta ?? before?.Theta), headDim);
    }

    private const double MinTheta = 1;
    private const double MaxTheta = 1e12;

    /// <summary>As written; scaling is null for rope type default.</summary>
    private sealed record Parameters(double? Theta, Llama3? Scaling);

    private sealed record Llama3(float Factor, float LowFactor, float HighFactor, int OriginalPositions);

    private static Parameters Complete(Parameters? written, double? theta) => new(written?.Theta ?? theta ?? 10000, written?.Scaling);

    private static Parameters? ReadParameters(JsonFields? json)
    {
        if (json is null) return null;
        var type = json.Text("rope_type");
        var old = json.Text("type");
        if (type is not null && old is not null && type != old) json.Refuse("type", Printable.Of(type), Printable.Of(old));
        type ??= old ?? "default";
        if (type is not ("default" or "llama3")) json.Refuse("rope_type", "default or llama3", Printable.Of(type));
        if (json.Number("partial_rotary_factor", 0, 1) is { } part && part != 1) json.Refuse("partial_rotary_factor", "1", Show(part));
        var theta = json.Number("rope_theta", MinTheta, MaxTheta);
        // Read for type default too, where they mean nothing, so that only fields of other types are left over.
        var factor = json.Number("factor", 1, 1e6);
        var low = json.Number("low_freq_factor", 1e-6, 1e6);
        var high = json.Number("high_freq_factor", 1e-6, 1e6);
        var positions = json.Whole("original_max_position_embeddings", 1, 1 << 26);
        foreach (var other in json.Unread) json.Refuse(other.Name, "a parameter of rope type default or llama3", JsonFields.Show(other.Value));
        if (type == "default") return new Parameters(theta, null);

        if (factor is null) json.Refuse("factor", "a number for llama3", "nothing");
        if (low is null) json.Refuse("low_freq_factor", "a number for llama3", "nothing");
        if (high is null || high <= low)
            json.Refuse("high_freq_factor", "a number above low_freq_factor for llama3", high is null ? "nothing" : Show(high));
        if (positions is null) json.Refuse("original_max_position_embeddings", "a number for llama3", "nothing");
        return new Parameters(theta, new Llama3((float)factor!, (float)low!, (float)high!, positions!.Value));
    }

    private static float[] InverseFrequencies(Parameters rope, int headDim)
    {
        var frequencies = new float[headDim / 2];
        for (var i = 0; i < frequencies.Length; i++)
        {
            // The exponent is fp32 there too; the power is rounded once.
            var frequency = 1f / (float)Math.Pow(rope.Theta!.Value, 2f * i / headDim);
            frequencies[i] = rope.Scaling is null ? frequency : Scale(frequency, rope.Scaling);
        }

        return frequencies;
    }

    /// <summary>Llama 3.1: long waves are stretched by the factor, short ones kept, those between blended.</summary>
    private static float Scale(float frequency, Llama3 scaling)
    {
        var wave = 2 * MathF.PI / frequency;
        if (wave < scaling.OriginalPositions / scaling.HighFactor) return frequency;
        if (wave > scaling.OriginalPositions / scaling.LowFactor) return frequency / scaling.Factor;
        var smooth = ((scaling.OriginalPositions / wave) - scaling.LowFactor) / (scaling.HighFactor - scaling.LowFactor);
        return ((1 - smooth) * frequency / scaling.Factor) + (smooth * frequency);
    }

    private static string Show(double? number) => number?.ToString(CultureInfo.InvariantCulture) ?? "nothing";
}
