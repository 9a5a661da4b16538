using Microsoft.Extensions.Logging.Abstractions;
using TenantLora.ChatHost.Adapters;

namespace TenantLora.ChatHost.Tests.Adapters;

/// <summary>Who makes room in the host's memory.</summary>
public sealed class HeldAdaptersTests
{
    /// <summary>One tenant goes through five hundred adapters; another comes back to its two now and then.</summary>
    [Theory]
    [InlineData(60, 2)]             // within its share they stay, and are brought once
    [InlineData(0, 100)]            // what nobody has asked for longer than that is nobody's share
    public async Task A_tenant_of_many_adapters_drives_out_its_own(int seconds, int brought)
    {
        var (few, here) = (0, 0);
        var held = new HeldAdapters(digest =>
        {
            if (digest.StartsWith("few", StringComparison.Ordinal)) few++;
            here++;
            return Task.FromResult(10L);
        }, _ => here--, 100, NullLogger.Instance)
        { Patience = TimeSpan.FromSeconds(seconds) };
        for (var i = 0; i < 1000; i++)
        {
            await WantAsync($"many {i % 500}", "many");
            if (i % 20 != 19) continue;
            await WantAsync("few 1", "few");
            await WantAsync("few 2", "few");
        }
        Assert.Equal(brought, few);
        Assert.Equal(10, here);

        async Task WantAsync(string digest, string tenant) => (await held.HoldAsync(digest, tenant, null, CancellationToken.None)).Dispose();
    }

    [Fact]
    public async Task What_is_held_or_kept_stays_whoever_wants_room()
    {
        var gone = new List<string>();
        var held = new HeldAdapters(_ => Task.FromResult(10L), gone.Add, 20, NullLogger.Instance) { Kept = ["kept"] };
        (await held.HoldAsync("kept", "a", null, CancellationToken.None)).Dispose();
        var hold = await held.HoldAsync("held", "a", null, CancellationToken.None);
        (await held.HoldAsync("next", "b", null, CancellationToken.None)).Dispose();
        Assert.Equal(["next"], gone);           // beyond the budget nothing else may go
        hold.Dispose();
        (await held.HoldAsync("last", "b", null, CancellationToken.None)).Dispose();
        Assert.Equal(["next", "held"], gone);
    }
}
