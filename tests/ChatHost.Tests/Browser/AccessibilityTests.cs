using Microsoft.Playwright;
using TenantLora.Tests;
using static Microsoft.Playwright.Assertions;

namespace TenantLora.ChatHost.Tests.Browser;

/// <summary>axe-core finds nothing to say about any view of the page, in either theme. It comes by <c>npm ci</c> in tests/ChatHost.Tests/node.</summary>
[Collection(OneBrowser.Name)]
public sealed class AccessibilityTests(Chromium chromium)
{
    [Theory]
    [InlineData(ColorScheme.Light)]
    [InlineData(ColorScheme.Dark)]
    public async Task Every_view_passes_axe(ColorScheme theme)
    {
        var dictation = new Dictation();
        await using var host = await TestHost.StartAsync(dictation.Runtime);
        await using var tab = await OpenAsync(host, theme);
        await Expect(tab.Page.GetByTestId("tenant-harbor")).ToBeVisibleAsync();
        await PassesAsync(tab, "sign-in");
        await tab.SignInAsync("harbor");
        await PassesAsync(tab, "welcome");

        await tab.AskAsync("When are you open?");
        dictation.Begin();
        dictation.Say("# Hours\n\n| Day | From |\n|---|---|\n| Monday | 5 |\n\n- [x] fish\n\n```csharp\nvar x = \"five\"; // in the morning\n```\n\nAye, ");
        await Expect(tab.AnswerText()).ToContainTextAsync("Aye,");
        await PassesAsync(tab, "streaming");
        dictation.End(30);
        await Expect(tab.Answers).ToHaveAttributeAsync("data-state", "complete");
        await PassesAsync(tab, "answered");

        await tab.Page.GetByTestId("compare").ClickAsync();
        dictation.Runtime.Answer = (request, token) => request.Adapter is null ? FakeRuntime.Fails(new InvalidOperationException()) : FakeRuntime.Says(token, "Aye.");
        await tab.AskAsync("And on Sunday?");
        var row = tab.Page.GetByTestId("compare-row");
        await Expect(row.Locator("[data-state=complete]")).ToHaveCountAsync(1);
        await Expect(row.Locator("[data-state=error]")).ToHaveCountAsync(1);
        await PassesAsync(tab, "compare, one with an error");

        await tab.Page.GetByTestId("model-picker").First.ClickAsync();
        await Expect(tab.Page.GetByRole(AriaRole.Menuitemradio).And(tab.Page.Locator(":visible")).First).ToBeVisibleAsync();
        await PassesAsync(tab, "menu");
        await tab.Page.Keyboard.PressAsync("Escape");
        await tab.Page.GetByTestId("settings").ClickAsync();
        await Expect(tab.Page.GetByLabel("Temperature")).ToBeVisibleAsync();
        await PassesAsync(tab, "settings");
    }

    [Theory]
    [InlineData(ColorScheme.Light)]
    [InlineData(ColorScheme.Dark)]
    public async Task Every_view_of_an_admin_passes_axe(ColorScheme theme)
    {
        await using var host = await TestHost.StartRealAsync();
        await using var tab = await OpenAsync(host, theme);
        var page = tab.Page;
        await tab.SignInAsync("harbor");
        await tab.AskAsync("When are you open?"); // something to show as usage
        await Expect(tab.Answers.Last).ToHaveAttributeAsync("data-state", "complete");
        await page.GetByTestId("adapters").ClickAsync();
        await Expect(page.GetByTestId("adapter").First).ToBeVisibleAsync();
        await PassesAsync(tab, "adapters");
        await tab.ShootAsync($"{theme}-adapters");
        await page.GetByTestId("adapter").First.ClickAsync();
        await page.GetByTestId("report-summary").First.ClickAsync();
        await PassesAsync(tab, "adapter");
        await tab.ShootAsync($"{theme}-adapter");
        await page.GetByTestId("file-input").SetInputFilesAsync(Repo.Path("adapters", "harbor", "adapter_config.json"));
        await Expect(page.GetByTestId("upload-error")).ToBeVisibleAsync();
        await PassesAsync(tab, "half an adapter");
        await page.GetByTestId("file-input").SetInputFilesAsync(new[] { "adapter_config.json", "adapter_model.safetensors" }.Select(file => Repo.Path("adapters", "sprout", file)));
        await page.GetByTestId("upload-send").ClickAsync();
        await Expect(page.GetByTestId("upload-result")).ToBeVisibleAsync();
        await PassesAsync(tab, "uploaded");
        await page.GetByTestId("activate").First.ClickAsync();
        await Expect(page.GetByTestId("why")).ToBeVisibleAsync();
        await PassesAsync(tab, "activate");
        await page.Keyboard.PressAsync("Escape");
        foreach (var (view, content) in new[] { ("memory", "device"), ("usage", "usage"), ("keys", "key-list"), ("audit", "audit") })
        {
            await page.GetByTestId($"tab-{view}").ClickAsync();
            await Expect(page.GetByTestId(content)).ToBeVisibleAsync();
            await PassesAsync(tab, view);
            await tab.ShootAsync($"{theme}-{view}");
        }
    }

    private async Task<Tab> OpenAsync(TestHost host, ColorScheme theme)
    {
        var axe = Repo.Path("tests", "ChatHost.Tests", "node", "node_modules", "axe-core", "axe.min.js");
        if (!File.Exists(axe)) Chromium.Lacks("No axe-core: run npm ci in tests/ChatHost.Tests/node");
        var context = await chromium.NewContextAsync(new() { ColorScheme = theme, ReducedMotion = ReducedMotion.Reduce });
        await context.AddInitScriptAsync(scriptPath: axe);
        return await Tab.OpenAsync(context, host.Url);
    }

    private static async Task PassesAsync(Tab tab, string view)
    {
        // A colour half way through a transition is nobody's colour.
        var findings = await tab.Page.EvaluateAsync<string[]>("""
            async () => {
              const passing = document.getAnimations().filter(a => a.effect.getComputedTiming().endTime !== Infinity);
              await Promise.allSettled(passing.map(a => a.finished));
              return (await axe.run()).violations.flatMap(v => v.nodes.map(n => `${v.id}: ${n.target} ${n.failureSummary}`));
            }
            """);
        Assert.True(findings.Length == 0, $"{view}: {string.Join("\n", findings)}");
    }
}
