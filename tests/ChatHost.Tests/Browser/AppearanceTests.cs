using Microsoft.Playwright;
using static Microsoft.Playwright.Assertions;

namespace TenantLora.ChatHost.Tests.Browser;

/// <summary>The page fits a phone and follows the system's theme.</summary>
[Collection(OneBrowser.Name)]
public sealed class AppearanceTests(Chromium chromium)
{
    private const string Sample = """
        ## Opening hours

        | Day | From | To |
        |---|---|---|
        | Monday to Friday | 5 in the morning | noon |
        | Saturday | 6 in the morning | 10 |

        - fresh **fish**
        - crab, [and more](https://example.com)

        ```csharp
        var harbor = await chat.GetResponseAsync("When are you open, and what would you like to tell us about everything else that there is?");
        ```

        > Arr.
        """;

    [Fact]
    public async Task On_a_phone_nothing_sticks_out_and_the_drawer_opens()
    {
        await using var host = await StartAsync();
        await using var tab = await chromium.OpenAsync(host.Url, new() { ViewportSize = new() { Width = 390, Height = 844 }, IsMobile = true, HasTouch = true, DeviceScaleFactor = 2 });
        await Expect(tab.Page.GetByTestId("tenant-harbor")).ToBeVisibleAsync();
        await FitsAsync(tab);
        await tab.ShootAsync("phone-sign-in");
        await tab.SignInAsync("harbor");
        await FitsAsync(tab);
        await tab.ShootAsync("phone-welcome");
        await tab.Composer.FillAsync("When are you open?");
        await tab.Page.GetByTestId("send").TapAsync();
        await Expect(tab.Answers).ToHaveAttributeAsync("data-state", "complete");
        await Expect(tab.AnswerText().Locator("table")).ToBeVisibleAsync();
        await Expect(tab.Composer).ToBeInViewportAsync();
        await FitsAsync(tab);
        await tab.ShootAsync("phone");
        await tab.Page.GetByTestId("compare").TapAsync();
        await Expect(tab.Page.GetByTestId("model-picker")).ToHaveCountAsync(2);
        await tab.Composer.FillAsync("And on Sunday?");
        await tab.Page.GetByTestId("send").TapAsync();
        await Expect(tab.Page.GetByTestId("compare-row").Locator("[data-state=complete]")).ToHaveCountAsync(2);
        await FitsAsync(tab);
        await tab.ShootAsync("phone-compare");
        await tab.Page.GetByTestId("sidebar-toggle").TapAsync();
        await Expect(tab.Page.GetByTestId("new-chat")).ToBeInViewportAsync(new() { Ratio = 1 });
        await tab.ShootAsync("phone-drawer");
        await tab.Page.GetByTestId("new-chat").TapAsync();
        await Expect(tab.Page.GetByTestId("new-chat")).Not.ToBeInViewportAsync();
        await Expect(tab.Answers).ToHaveCountAsync(0);
        Assert.Empty(tab.Complaints);
    }

    [Fact]
    public async Task On_a_phone_the_pages_of_an_admin_fit_too()
    {
        await using var host = await TestHost.StartRealAsync();
        await using var tab = await chromium.OpenAsync(host.Url, new() { ViewportSize = new() { Width = 390, Height = 844 }, IsMobile = true, HasTouch = true, DeviceScaleFactor = 2 });
        await tab.SignInAsync("harbor");
        await tab.Page.GetByTestId("sidebar-toggle").TapAsync();
        await tab.Page.GetByTestId("adapters").TapAsync();
        await tab.Page.GetByTestId("adapter").First.TapAsync();
        await Expect(tab.Page.GetByTestId("version").First).ToBeVisibleAsync();
        await FitsAsync(tab);
        await tab.ShootAsync("phone-adapter");
        foreach (var (view, content) in new[] { ("memory", "device"), ("keys", "key-list"), ("audit", "audit"), ("adapters", "adapter-list") })
        {
            await tab.Page.GetByTestId($"tab-{view}").TapAsync();
            await Expect(tab.Page.GetByTestId(content)).ToBeVisibleAsync();
            await FitsAsync(tab);
            await tab.ShootAsync($"phone-{view}");
        }
        Assert.Empty(tab.Complaints);
    }

    [Theory]
    [InlineData(ColorScheme.Light)]
    [InlineData(ColorScheme.Dark)]
    public async Task Text_stands_out_from_the_page_in_both_themes(ColorScheme theme)
    {
        await using var host = await StartAsync();
        await using var tab = await chromium.OpenAsync(host.Url, new() { ColorScheme = theme });
        await Expect(tab.Page.GetByTestId("tenant-harbor")).ToBeVisibleAsync();
        await tab.ShootAsync($"{theme}-sign-in");
        await tab.SignInAsync("harbor");
        await tab.ShootAsync($"{theme}-welcome");
        await tab.AskAsync("When are you open?");
        await Expect(tab.Answers).ToHaveAttributeAsync("data-state", "complete");
        await tab.ShootAsync($"{theme}-markdown");
        var paper = await LuminanceAsync(tab.Page.Locator("body"), "backgroundColor");
        var ink = await LuminanceAsync(tab.AnswerText().Locator("li").First, "color");
        Assert.Equal(theme == ColorScheme.Dark, paper < 0.2);
        Assert.True((Math.Max(paper, ink) + 0.05) / (Math.Min(paper, ink) + 0.05) >= 7, $"paper {paper:0.00}, ink {ink:0.00}"); // WCAG 2.2, AAA
        Assert.Empty(tab.Complaints);
    }

    private static Task<TestHost> StartAsync() => TestHost.StartAsync(new FakeRuntime { Answer = (_, token) => FakeRuntime.Says(token, Sample) });

    /// <summary>Nothing makes the page wider than the screen.</summary>
    private static async Task FitsAsync(Tab tab) =>
        Assert.Equal("", await tab.Page.EvaluateAsync<string>("document.documentElement.scrollWidth > innerWidth ? `${document.documentElement.scrollWidth} of ${innerWidth} px` : ''"));

    /// <summary>WCAG's relative luminance, 0 to 1, of a computed colour. A canvas turns any notation into sRGB bytes.</summary>
    private static Task<double> LuminanceAsync(ILocator element, string property) => element.EvaluateAsync<double>("""
        (element, property) => {
          const pen = new OffscreenCanvas(1, 1).getContext('2d');
          pen.fillStyle = getComputedStyle(element)[property];
          pen.fillRect(0, 0, 1, 1);
          const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        }
        """, property);
}
