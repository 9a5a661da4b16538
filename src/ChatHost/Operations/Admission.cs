using Microsoft.Extensions.Options;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Operations;

/// <summary>
/// Counts the answers in the making: refuses one too many of a tenant, refuses all while the host drains, and tells when the last
/// has ended. Both roads, /v1 and the hub, take their lease here.
/// </summary>
internal sealed class Admission(IOptions<TenantLoraOptions> options) : IDisposable
{
    private readonly Lock gate = new();
    private readonly Dictionary<string, int> running = new(StringComparer.Ordinal); // by tenant
    private readonly CancellationTokenSource ended = new();
    private int held;

    /// <summary>Whether nothing new is taken.</summary>
    public bool Draining { get; private set; }

    /// <summary>Cancelled when the drain's time is over: what still runs ends with <see cref="ErrorCodes.ShuttingDown"/>.</summary>
    public CancellationToken Ended => ended.Token;

    public int Running
    {
        get { lock (gate) return running.Values.Sum(); }
    }

    /// <summary>Room for one answer, until disposed.</summary>
    /// <exception cref="TenantLoraException"><see cref="ErrorCodes.ShuttingDown"/> or <see cref="ErrorCodes.QueueFull"/>.</exception>
    public IDisposable Enter(string tenant)
    {
        lock (gate)
        {
            if (Draining) throw ShuttingDown();
            var mine = running.GetValueOrDefault(tenant);
            if (options.Value.Role is not HostRole.Runtime && mine >= options.Value.MaxConcurrentPerTenant)         // before a runtime each Web host has its own count
                throw new TenantLoraException(ErrorCodes.QueueFull, $"{mine} answers are in the making already, as many as one tenant may have at once.") { RetryAfter = TimeSpan.FromSeconds(1) };
            running[tenant] = mine + 1;
            held++;
        }
        return new Lease(() => Leave(tenant));
    }

    /// <summary>Makes the drain wait for a reader that is still being served, though its answer may have ended.</summary>
    public IDisposable Hold()
    {
        lock (gate) held++;
        return new Lease(() => { lock (gate) held--; });
    }

    /// <summary>Takes nothing new, waits for what runs, and ends the rest when <paramref name="limit"/> is over.</summary>
    public async Task DrainAsync(TimeSpan limit)
    {
        lock (gate) Draining = true;
        if (await EmptyAsync(limit)) return;
        await ended.CancelAsync();
        await EmptyAsync(TimeSpan.FromSeconds(2)); // each reader is told why
    }

    public static TenantLoraException ShuttingDown() =>
        new(ErrorCodes.ShuttingDown, "The server is shutting down. Try again shortly.") { RetryAfter = TimeSpan.FromSeconds(2) };

    public void Dispose() => ended.Dispose();

    private async Task<bool> EmptyAsync(TimeSpan limit)
    {
        var end = TimeProvider.System.GetTimestamp() + (long)(limit.TotalSeconds * TimeProvider.System.TimestampFrequency);
        while (true)
        {
            lock (gate)
                if (held == 0) return true;
            if (TimeProvider.System.GetTimestamp() >= end) return false;
            await Task.Delay(20);
        }
    }

    private void Leave(string tenant)
    {
        lock (gate)
        {
            held--;
            if (--running[tenant] == 0) running.Remove(tenant);
        }
    }

    private sealed class Lease(Action leave) : IDisposable
    {
        private Action? leave = leave;

        public void Dispose() => Interlocked.Exchange(ref leave, null)?.Invoke();
    }
}
