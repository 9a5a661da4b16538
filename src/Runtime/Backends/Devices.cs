using System.Globalization;
using Microsoft.Extensions.Logging;
using TenantLora.Runtime.Backends.Cpu;
using TenantLora.Runtime.Backends.Cuda;

namespace TenantLora.Runtime.Backends;

/// <summary>From the option's text to a backend: the one place that knows them all.</summary>
internal static partial class Devices
{
    public const string Known = "auto, cpu, cuda or cuda:N";

    public static bool IsKnown(string device) => device is "auto" or "cpu" || CudaOrdinal(device) is not null;

    /// <summary><c>auto</c> takes a usable GPU, or says why there is none and takes the Cpu.</summary>
    /// <param name="threads">Of the Cpu backend; 0: one a core.</param>
    /// <param name="maxRank">Highest rank of an adapter.</param>
    /// <param name="maxSequences">Most sequences of a step.</param>
    /// <param name="stepRows">Most rows of a step; 0: what suits the device.</param>
    /// <exception cref="DeviceUnavailableException">The device was asked for by name and cannot be used.</exception>
    public static IBackend Open(string device, int threads, int maxRank, int maxSequences, int stepRows, ILogger log)
    {
        if (device == "cpu") return new CpuBackend(threads);
        if (OpenCuda(device == "cuda" ? null : CudaOrdinal(device), maxRank, maxSequences, stepRows, out var reason) is { } cuda) return cuda;
        if (device != "auto") throw new DeviceUnavailableException($"Device: {device} cannot be used: {reason}");
        NoGpu(log, reason);
        return new CpuBackend(threads);
    }

    /// <summary>The GPU that <c>auto</c> would take, or why there is none.</summary>
    public static GpuReport LookForGpu()
    {
        var (chosen, name, reason) = Choose(null);
        return reason.Length > 0 ? new GpuReport(null, reason) : new GpuReport($"cuda:{chosen} ({name})", null);
    }

    /// <summary>A GPU that is fit: the one of that number, else the first. Or the reason why there is none: a sentence that names what is missing and how to get it.</summary>
    private static (int Chosen, string Name, string Reason) Choose(int? ordinal)
    {
        var (missing, found) = CudaDevice.Look();
        if (missing is not null) return (-1, "", missing);
        var all = string.Join("; ", found.Select((device, i) => $"cuda:{i} is {device.Name}{(device.Unfit is null ? "" : $", but {device.Unfit}")}"));
        var chosen = ordinal ?? Math.Max(0, found.ToList().FindIndex(device => device.Unfit is null));
        return chosen >= found.Count ? (chosen, "", $"there is no GPU of that number: {all}.")
            : (chosen, found[chosen].Name, found[chosen].Unfit is null ? "" : $"{(ordinal is null ? "no GPU here is" : "this GPU is not")} fit: {all}.");
    }

    /// <summary>Null where CUDA cannot be used, with the reason.</summary>
    private static CudaBackend? OpenCuda(int? ordinal, int maxRank, int maxSequences, int stepRows, out string reason)
    {
        (var chosen, var name, reason) = Choose(ordinal);
        if (reason.Length > 0) return null;
        var opened = CudaDevice.Open(chosen);
        try
        {
            return new CudaBackend(opened, maxRank, maxSequences, stepRows > 0 ? stepRows : CudaBackend.GoodStepTokens + maxSequences);
        }
        catch (Exception error) when (error is CudaException or OutOfDeviceMemoryException)
        {
            opened.Dispose();
            reason = $"cuda:{chosen} ({name}) does not start: {error.Message}";
            return null;
        }
    }

    /// <summary>N of <c>cuda:N</c>, 0 of <c>cuda</c>; null of anything else.</summary>
    private static int? CudaOrdinal(string device) =>
        device == "cuda" ? 0
        : device.StartsWith("cuda:", StringComparison.Ordinal) && int.TryParse(device.AsSpan(5), NumberStyles.None, CultureInfo.InvariantCulture, out var ordinal) ? ordinal
        : null;

    [LoggerMessage(Level = LogLevel.Information, Message = "No GPU is used: {Reason}")]
    private static partial void NoGpu(ILogger logger, string reason);
}

/// <summary>The device that the options ask for cannot be used, or what they want does not fit it. An option at fault: hosts print the message.</summary>
internal sealed class DeviceUnavailableException(string message, Exception? inner = null) : ArgumentException(message, inner);
