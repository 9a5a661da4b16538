using System.Runtime.InteropServices;
using Microsoft.Extensions.Options;

namespace TenantLora.ChatHost.Operations;

/// <summary>
/// Stops without cutting anyone off. The stock lifetime stops the app at once on SIGTERM, and SignalR then closes its connections
/// mid-answer; this one first takes nothing new and waits. A second signal exits at once.
/// </summary>
internal sealed partial class DrainingLifetime(
    IHostApplicationLifetime application, Admission admission, IOptions<TenantLoraOptions> options, ILogger<DrainingLifetime> log) : IHostLifetime, IDisposable
{
    private const int FileTooLarge = 25;        // SIGXFSZ, on Linux and macOS

    private readonly List<PosixSignalRegistration> registrations = [];
    private int signals;

    public Task WaitForStartAsync(CancellationToken cancellationToken)
    {
        foreach (var signal in new[] { PosixSignal.SIGTERM, PosixSignal.SIGINT, PosixSignal.SIGQUIT })
            registrations.Add(PosixSignalRegistration.Create(signal, OnSignal));
        // A limit on the size of files ends a process that does not listen; one that does finds its write refused.
        if (!OperatingSystem.IsWindows()) registrations.Add(PosixSignalRegistration.Create((PosixSignal)FileTooLarge, context => context.Cancel = true));
        return Task.CompletedTask;
    }

    public Task StopAsync(CancellationToken cancellationToken) => Task.CompletedTask;

    public void Dispose() => registrations.ForEach(r => r.Dispose());

    private void OnSignal(PosixSignalContext context)
    {
        context.Cancel = true;
        if (Interlocked.Increment(ref signals) > 1) Environment.Exit(130);
        _ = Task.Run(StopWhenDrainedAsync);
    }

    private async Task StopWhenDrainedAsync()
    {
        Draining(log, admission.Running, options.Value.DrainSeconds);
        await admission.DrainAsync(TimeSpan.FromSeconds(options.Value.DrainSeconds));
        await Task.Delay(200); // the last frames of hub streams are still on their way out
        application.StopApplication();
    }

    [LoggerMessage(LogLevel.Information, "Stopping: {Running} answers in the making, waiting up to {Seconds} s for them. Signal again to stop at once.")]
    private static partial void Draining(ILogger log, int running, int seconds);
}
