using System.Diagnostics.CodeAnalysis;
using Microsoft.Playwright;

namespace TenantLora.ChatHost.Tests.Browser;

/// <summary>The machine's own Chromium, started once for all tests of the page. Nothing is downloaded.</summary>
public sealed class Chromium : IAsyncLifetime
{
    private static readonly string[] Places = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
    private const float Patience = 30_000; // ms; these tests share few cores with everything else

    private IPlaywright? playwright;
    private IBrowser? browser;

    public async ValueTask InitializeAsync()
    {
        if (Places.FirstOrDefault(File.Exists) is not { } executable) return;
        Assertions.SetDefaultExpectTimeout(Patience);
        playwright = await Playwright.CreateAsync();
        browser = await playwright.Chromium.LaunchAsync(new()
        {
            ExecutablePath = executable,
            Timeout = Patience,
            Args =
            [
                "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
                "--disable-sync", "--disable-dev-shm-usage",
            ],
        });
    }

    /// <summary>A browser profile that has never been here.</summary>
    internal async Task<IBrowserContext> NewContextAsync(BrowserNewContextOptions? options = null)
    {
        if (browser is null) Lacks($"No Chromium at {string.Join(", ", Places)}");
        var context = await browser.NewContextAsync(options);
        context.SetDefaultTimeout(Patience);
        return context;
    }

    /// <summary>A tab of such a profile, on the page.</summary>
    internal async Task<Tab> OpenAsync(Uri host, BrowserNewContextOptions? options = null) => await Tab.OpenAsync(await NewContextAsync(options), host);

    /// <summary>Skips the test that needs what is not there, aloud; fails it where everything must run.</summary>
    [DoesNotReturn]
    internal static void Lacks(string what)
    {
        if (Environment.GetEnvironmentVariable("TENANTLORA_REQUIRE_ALL") == "1") Assert.Fail(what);
        Assert.Skip($"{what}, so the page was not tried. TENANTLORA_REQUIRE_ALL=1 makes this a failure.");
    }

    public async ValueTask DisposeAsync()
    {
        if (browser is not null) await browser.DisposeAsync();
        playwright?.Dispose();
    }
}

/// <summary>These classes run one after the other: several pages at once would only wait for each other's cores.</summary>
[CollectionDefinition(Name)]
public sealed class OneBrowser : ICollectionFixture<Chromium>
{
    public const string Name = "browser";
}
