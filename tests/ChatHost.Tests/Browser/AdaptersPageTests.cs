using System.Net.Http.Json;
using System.Text.RegularExpressions;
using Microsoft.Playwright;
using TenantLora.ChatHost.Tests.Runtimes;
using TenantLora.Tests;
using static Microsoft.Playwright.Assertions;

namespace TenantLora.ChatHost.Tests.Browser;

/// <summary>An admin brings a new version of an adapter: reads its report, tries it beside the active one, activates it and goes back.</summary>
[Collection(OneBrowser.Name)]
public sealed class AdaptersPageTests(Chromium chromium) : IDisposable
{
    private const string Opening = "When are you open?";

    /// <summary>Whether a canvas within holds pixels that are not grey.</summary>
    private const string Coloured = """
        box => {
          const canvas = box.querySelector('canvas');
          const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
          return data.some((red, i) => i % 4 === 0 && data[i + 3] === 255 && Math.abs(red - data[i + 1]) > 60);
        }
        """;

    private readonly DirectoryInfo made = Directory.CreateTempSubdirectory("tenantlora-");

    public void Dispose() => made.Delete(recursive: true);

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task An_admin_uploads_tries_activates_and_rolls_back(bool apart)
    {
        // A sixteenth of its strength leaves nothing of the adapter but the base model's own answer.
        var (active, weak) = (DemoHost.Answer("harbor", Opening).Text, DemoHost.Answer("base", Opening).Text);
        await using var pair = apart ? await Pair.StartAsync() : null;          // a Web host and its runtime
        await using var alone = apart ? null : await TestHost.StartRealAsync();
        await using var tab = await chromium.OpenAsync((pair?.Web ?? alone!).Url, new() { ViewportSize = new() { Width = 1280, Height = 900 } });
        var page = tab.Page;
        await tab.SignInAsync("harbor");
        await OpenHarborAsync(tab);
        await Expect(Version(tab, "v1").GetByTestId("alias-active")).ToBeVisibleAsync();

        await UploadAsync(tab, Made("\"r\": 16", "\"r\": 3"));
        await Expect(page.GetByTestId("upload")).ToHaveAttributeAsync("data-state", "refused");
        await Expect(page.GetByTestId("upload-result").GetByTestId("finding").First).ToHaveAttributeAsync("data-severity", "error");
        await Expect(page.GetByTestId("version")).ToHaveCountAsync(1);
        await tab.ShootAsync("adapter-refused");

        var sixteenth = Made("\"lora_alpha\": 16", "\"lora_alpha\": 1");
        await UploadAsync(tab, sixteenth);
        var result = page.GetByTestId("upload-result");
        await Expect(result).ToContainTextAsync("v2 was added to harbor.");
        await Expect(result.GetByTestId("report")).ToBeVisibleAsync();
        await Expect(Version(tab, "v2").GetByTestId("size")).ToContainTextAsync("34 % of the 1.2 MB of plain LoRA");
        await Expect(Version(tab, "v1").GetByTestId("alias-active")).ToBeVisibleAsync(); // an upload activates nothing
        await tab.ShootAsync("adapter-uploaded");
        await UploadAsync(tab, sixteenth);
        await Expect(result).ToContainTextAsync("the same bytes are v2 of harbor already");
        await Expect(page.GetByTestId("version")).ToHaveCountAsync(2);

        await Version(tab, "v2").GetByTestId("try").ClickAsync();
        await Expect(page.GetByTestId("model-picker")).ToHaveTextAsync(["Model 1: harbor", "Model 2: harbor@v2"]);
        await tab.AskAsync(Opening);
        await tab.AnsweredAsync(active, 0);
        await tab.AnsweredAsync(weak, 1);
        await tab.ShootAsync("adapter-tried");

        await OpenHarborAsync(tab);
        await Version(tab, "v2").GetByTestId("activate").ClickAsync();
        await page.GetByTestId("why").FillAsync("fewer parrots");
        await page.GetByTestId("why").PressAsync("Enter");
        await Expect(page.GetByTestId("done")).ToContainTextAsync("v2 of harbor is active now.");
        await Expect(Version(tab, "v2").GetByTestId("alias-active")).ToBeVisibleAsync();
        await Expect(Version(tab, "v1").GetByTestId("alias-previous")).ToBeVisibleAsync();
        await AnswersAsync(tab, weak, weak); // lane 1 names the adapter, lane 2 its v2

        await OpenHarborAsync(tab);
        await page.GetByTestId("roll-back").ClickAsync();
        await Expect(page.GetByTestId("done")).ToContainTextAsync("v1 of harbor is active now.");
        await Expect(Version(tab, "v1").GetByTestId("alias-active")).ToBeVisibleAsync();
        await AnswersAsync(tab, active, weak);

        await page.GetByTestId("adapters").ClickAsync();
        await page.GetByTestId("tab-audit").ClickAsync();
        var entries = page.GetByTestId("audit-entry");
        await Expect(entries.First).ToHaveAttributeAsync("data-action", "rollback");
        await Expect(entries.And(page.Locator("[data-action=activate]")).First).ToContainTextAsync("fewer parrots");
        await tab.ShootAsync("audit");
        Assert.Contains("422", Assert.Single(tab.Complaints), StringComparison.Ordinal);
    }

    [Fact]
    public async Task Who_comes_second_is_told_and_reloads()
    {
        await using var host = await TestHost.StartRealAsync();
        await using var tab = await chromium.OpenAsync(host.Url);
        var page = tab.Page;
        await tab.SignInAsync("harbor");
        await OpenHarborAsync(tab);
        await UploadAsync(tab, Made("\"lora_alpha\": 16", "\"lora_alpha\": 8"));
        await Expect(page.GetByTestId("upload-result")).ToContainTextAsync("v2 was added");

        using (var other = host.Client("harbor"))
        {
            using var adapter = await other.GetAsync("api/tenants/harbor/adapters/harbor");
            using var change = new HttpRequestMessage(HttpMethod.Put, "api/tenants/harbor/adapters/harbor/aliases/canary") { Content = JsonContent.Create(new { version = "v2", share = 10 }) };
            change.Headers.IfMatch.Add(adapter.Headers.ETag!);
            using var changed = await other.SendAsync(change);
            changed.EnsureSuccessStatusCode();
        }
        await Version(tab, "v2").GetByTestId("activate").ClickAsync();
        await page.GetByTestId("confirm").ClickAsync();
        await Expect(page.GetByTestId("problem")).ToContainTextAsync("Somebody else has changed this meanwhile.");
        await Expect(Version(tab, "v1").GetByTestId("alias-active")).ToBeVisibleAsync();
        await page.GetByTestId("reload").ClickAsync();
        await Expect(page.GetByTestId("problem")).ToHaveCountAsync(0);
        await Expect(Version(tab, "v2").GetByTestId("alias-canary")).ToContainTextAsync("10 %");
        await page.GetByTestId("canary-end").ClickAsync();
        await Expect(page.GetByTestId("canary")).ToHaveCountAsync(0);
        Assert.Contains("412", Assert.Single(tab.Complaints), StringComparison.Ordinal);
    }

    [Fact]
    public async Task An_adapter_is_pinned_and_the_disk_is_told_with_its_quota()
    {
        await using var host = await TestHost.StartRealAsync("Tenants:harbor:AdapterQuotaMegabytes=1");
        await using var tab = await chromium.OpenAsync(host.Url);
        var page = tab.Page;
        await tab.SignInAsync("harbor");
        await page.GetByTestId("adapters").ClickAsync();
        await Expect(page.GetByTestId("disk")).ToContainTextAsync("KB of the 1.0 MB that they may take on the disk.");
        await Expect(page.GetByTestId("pinned")).ToHaveCountAsync(0);
        await page.Locator("[data-testid=adapter][data-name=harbor]").ClickAsync();
        await page.GetByTestId("adapter-menu").ClickAsync();
        await page.GetByText("Pin in memory").ClickAsync();
        await Expect(page.GetByTestId("done")).ToContainTextAsync("harbor stays in memory now.");
        await Expect(page.GetByTestId("pinned")).ToBeVisibleAsync();
        await page.GetByTestId("adapter-menu").ClickAsync();
        await page.GetByText("Unpin").ClickAsync();
        await Expect(page.GetByTestId("done")).ToContainTextAsync("harbor takes turns with others now.");
        await Expect(page.GetByTestId("pinned")).ToHaveCountAsync(0);

        // What is beyond the quota is refused with what is kept and what may be.
        await UploadAsync(tab, [Repo.Path("adapters", "lantern", "adapter_config.json"), Repo.Path("adapters", "lantern", "adapter_model.safetensors")]);
        await Expect(page.GetByTestId("upload-result")).ToContainTextAsync("beyond the 1048576 that it may keep");
        await page.GetByTestId("tab-audit").ClickAsync();
        await Expect(page.GetByTestId("audit-entry").Nth(1)).ToContainTextAsync("Unpinned");
        Assert.Contains("413", Assert.Single(tab.Complaints), StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_member_s_key_is_shown_once_and_does_not_lead_to_these_pages()
    {
        await using var host = await TestHost.StartRealAsync();
        await using var tab = await chromium.OpenAsync(host.Url);
        var page = tab.Page;
        await tab.SignInAsync("harbor");
        await page.GetByTestId("adapters").ClickAsync();
        await page.GetByTestId("tab-keys").ClickAsync();
        await page.GetByTestId("key-label").FillAsync("kiosk");
        await page.GetByTestId("key-create").ClickAsync();
        var key = await page.GetByTestId("new-key-value").InputValueAsync();
        var kiosk = page.GetByTestId("key").Filter(new() { HasText = "kiosk" });
        await Expect(kiosk).ToContainTextAsync("member");
        await page.ReloadAsync();
        await Expect(kiosk).ToBeVisibleAsync();
        Assert.DoesNotContain(key, await page.ContentAsync(), StringComparison.Ordinal);

        await using (var member = await chromium.OpenAsync(new Uri(host.Url, "#/adapters")))
        {
            await member.Page.GetByTestId("key-input").FillAsync(key);
            await member.Page.GetByTestId("key-input").PressAsync("Enter");
            await member.OnlineAsync();
            await Expect(member.Composer).ToBeVisibleAsync();
            await Expect(member.Page.GetByTestId("adapters")).ToHaveCountAsync(0);
            Assert.Empty(member.Complaints);
        }

        await kiosk.GetByTestId("revoke").ClickAsync();
        await page.GetByTestId("confirm").ClickAsync();
        await Expect(kiosk).ToHaveCountAsync(0);
        Assert.Empty(tab.Complaints);
    }

    [Fact]
    public async Task What_was_asked_shows_in_the_usage()
    {
        var (text, promptTokens, tokens) = DemoHost.Answer("harbor", Opening);
        await using var host = await TestHost.StartRealAsync();
        await using var tab = await chromium.OpenAsync(host.Url, new() { ViewportSize = new() { Width = 1280, Height = 900 }, ColorScheme = ColorScheme.Light, ReducedMotion = ReducedMotion.Reduce });
        var page = tab.Page;
        await tab.SignInAsync("harbor");
        await page.GetByTestId("adapters").ClickAsync();
        await page.GetByTestId("tab-usage").ClickAsync();
        await Expect(page.GetByTestId("usage")).ToContainTextAsync("Nobody has asked anything");
        await tab.ShootAsync("usage-none");

        await page.GetByTestId("back-to-chat").ClickAsync();
        await tab.AskAsync(Opening);
        await tab.AnsweredAsync(text);
        await page.GetByTestId("adapters").ClickAsync();
        await page.GetByTestId("tab-usage").ClickAsync();
        var row = page.GetByTestId("usage-row");
        var cells = row.Locator("th, td");
        await Expect(cells).ToHaveCountAsync(10);
        foreach (var (cell, shown) in new[] { "harbor", "v1", "1", $"{promptTokens}", $"{tokens}", "0", "0" }.Index()) await Expect(cells.Nth(cell)).ToHaveTextAsync(shown);
        await Expect(cells.Nth(7)).ToContainTextAsync("s"); // ms or s
        var chart = page.GetByTestId("usage-chart");
        await Expect(chart.Locator("canvas")).ToBeVisibleAsync();
        await Expect(chart).ToHaveAttributeAsync("aria-label", new Regex($"1 request and {promptTokens + tokens} tokens in the last 24 hours"));

        foreach (var period in new[] { "7 days", "24 hours", "90 days" })
        {
            await page.GetByRole(AriaRole.Radio, new() { Name = period }).CheckAsync(new() { Force = true });
            await Expect(chart).ToHaveAttributeAsync("aria-label", new Regex(period));
            await Expect(row).ToHaveCountAsync(1);
            await tab.ShootAsync($"usage-{period.Replace(' ', '-')}");
        }
        await page.GetByRole(AriaRole.Button, new() { Name = "Adapter" }).ClickAsync();
        await Expect(page.GetByRole(AriaRole.Columnheader, new() { Name = "Adapter" })).ToHaveAttributeAsync("aria-sort", "ascending");

        await chart.HoverAsync();
        await Expect(page.Locator("figcaption")).ToContainTextAsync(": 0 requests and 0 tokens");
        await page.EmulateMediaAsync(new() { ColorScheme = ColorScheme.Dark });
        Assert.True(await chart.EvaluateAsync<bool>(Coloured));
        await tab.ShootAsync("usage-dark");
        await page.SetViewportSizeAsync(390, 844);
        await Expect(row).ToBeVisibleAsync();
        await page.WaitForFunctionAsync("() => { const box = document.querySelector('[data-testid=usage-chart]'); return box.querySelector('canvas').clientWidth === box.clientWidth; }"); // it resizes with its box
        Assert.True(await page.EvaluateAsync<bool>("() => ['html', '.admin'].every(s => { const e = document.querySelector(s); return e.scrollWidth <= e.clientWidth; })"));
        await tab.ShootAsync("usage-dark-narrow");
        await page.EmulateMediaAsync(new() { ColorScheme = ColorScheme.Light, ReducedMotion = ReducedMotion.Reduce });
        await row.ScrollIntoViewIfNeededAsync();
        await tab.ShootAsync("usage-narrow");
        Assert.Empty(tab.Complaints);
    }

    private static ILocator Version(Tab tab, string version) => tab.Page.Locator($"[data-testid=version][data-version={version}]");

    private static async Task OpenHarborAsync(Tab tab)
    {
        await tab.Page.GetByTestId("adapters").ClickAsync();
        await tab.Page.Locator("[data-testid=adapter][data-name=harbor]").ClickAsync();
        await Expect(tab.Page.GetByTestId("versions")).ToBeVisibleAsync();
    }

    private static async Task UploadAsync(Tab tab, string[] files)
    {
        await tab.Page.GetByTestId("file-input").SetInputFilesAsync(files);
        await Expect(tab.Page.GetByTestId("upload-name")).ToHaveValueAsync("harbor");
        await tab.Page.GetByTestId("upload-send").ClickAsync();
    }

    /// <summary>Asks in a new chat, whose lanes are still those of the last one.</summary>
    private static async Task AnswersAsync(Tab tab, params string[] texts)
    {
        await tab.Page.GetByTestId("new-chat").ClickAsync();
        await tab.AskAsync(Opening);
        for (var lane = 0; lane < texts.Length; lane++) await tab.AnsweredAsync(texts[lane], lane);
    }

    /// <summary>The files of the shipped adapter with one thing changed in its configuration.</summary>
    private string[] Made(string old, string changed)
    {
        var folder = made.CreateSubdirectory(Guid.NewGuid().ToString("N")).FullName;
        var (config, weights) = (Path.Combine(folder, "adapter_config.json"), Path.Combine(folder, "adapter_model.safetensors"));
        var text = File.ReadAllText(Repo.Path("adapters", "harbor", "adapter_config.json"));
        Assert.Contains(old, text, StringComparison.Ordinal);
        File.WriteAllText(config, text.Replace(old, changed, StringComparison.Ordinal));
        File.Copy(Repo.Path("adapters", "harbor", "adapter_model.safetensors"), weights);
        return [config, weights];
    }
}
