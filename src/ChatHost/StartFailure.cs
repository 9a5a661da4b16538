using Microsoft.Extensions.Options;
using TenantLora.Runtime;

namespace TenantLora.ChatHost;

/// <summary>Says in a line or a few why the host did not start, for those reasons that whoever started it can mend.</summary>
internal static class StartFailure
{
    /// <summary>Null for what is a defect of the program: that keeps its stack trace.</summary>
    public static string? Explain(Exception e) => e switch
    {
        OptionsValidationException options => Lines(options.Failures),
        // The binder: "Failed to convert configuration value 'x' at 'TenantLora:Threads' to type 'System.Int32'."
        InvalidOperationException { InnerException: FormatException or ArgumentException } binding when binding.Message.Contains(TenantLoraOptions.Section, StringComparison.Ordinal) => Lines([binding.Message]),
        ModelFileException or AdapterRefusedException or TenantLoraException or ArgumentException or InvalidDataException => Lines([e.Message]),
        IOException { InnerException: Microsoft.AspNetCore.Connections.AddressInUseException } => Lines([$"{e.Message} Stop what listens there, or choose another address with --urls http://127.0.0.1:5081."]),
        IOException or UnauthorizedAccessException => Lines([e.Message]),
        _ => null,
    };

    private static string Lines(IEnumerable<string> reasons) => "TenantLora did not start." + string.Concat(reasons.Select(r => Environment.NewLine + "  " + r));
}
