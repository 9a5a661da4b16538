using System.Net.Http.Json;
using Microsoft.Playwright;
using TenantLora.Tests;
using static Microsoft.Playwright.Assertions;

namespace TenantLora.ChatHost.Tests.Browser;

/// <summary>An admin brings a new version of an adapter: reads its report, tries it beside the active one, activates it and goes back.</summary>
[Collection(OneBrowser.Name)]
public sealed class AdaptersPageTests(Chromium chromium) : IDisposable
{
    private const string Opening = "When are you open?";
    private readonly DirectoryInfo made = Directory.CreateTempSubdirectory("tenantlora-");

    public void Dispose() => made.Delete(recursive: true);

    [Fact]
    public async Task An_admin_uploads_tries_activates_and_rolls_back()
    {
        // A sixteenth of its strength leaves nothing of the adapter but the base model's own answer.
        var (active, weak) = (DemoHost.Answer("harbor", Opening).Text, DemoHost.Answer("base", Opening).Text);
        await using var host = await TestHost.StartRealAsync();
        await using var tab = await chromium.OpenAsync(host.Url, new() { ViewportSize = new() { Width = 1280, Height = 900 } });
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
