using Microsoft.Playwright;
using TenantLora.ChatHost.Security;
using static Microsoft.Playwright.Assertions;

namespace TenantLora.ChatHost.Tests.Browser;

/// <summary>Outside demo mode a key is the only way in.</summary>
[Collection(OneBrowser.Name)]
public sealed class SignInTests(Chromium chromium)
{
    [Fact]
    public async Task A_wrong_key_is_refused_in_words_and_a_right_one_opens()
    {
        var key = ApiKey.Create();
        await using var host = await TestHost.StartAsync(new FakeRuntime(), "Demo=false", $"Tenants:harbor:KeyHashes:0={Convert.ToHexStringLower(ApiKey.Hash(key))}");
        await using var tab = await chromium.OpenAsync(host.Url);
        var input = tab.Page.GetByTestId("key-input");
        await input.FillAsync(ApiKey.Create());
        await Expect(tab.Page.GetByTestId("tenant-picker")).ToHaveCountAsync(0);
        Assert.DoesNotContain("Harbor", await tab.Page.ContentAsync(), StringComparison.Ordinal); // who the tenants are is nobody's business
        await tab.ShootAsync("key");
        await input.PressAsync("Enter");
        await Expect(tab.Page.GetByRole(AriaRole.Alert)).ToContainTextAsync("This key is not known.");
        await input.FillAsync(key);
        await input.PressAsync("Enter");
        await Expect(tab.Page.GetByTestId("tenant-name")).ToHaveTextAsync("Harbor & Co");
        await tab.OnlineAsync();
        await tab.AskAsync("Are you open?");
        await tab.AnsweredAsync("Aye, we are open.");
        Assert.DoesNotContain(key, tab.Page.Url + await tab.Page.ContentAsync() + await tab.Page.EvaluateAsync<string>("JSON.stringify([{...localStorage}, {...sessionStorage}])"), StringComparison.Ordinal);
        Assert.Contains("401", Assert.Single(tab.Complaints), StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_session_that_the_server_no_longer_takes_leads_back_to_the_door()
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime());
        await using var tab = await chromium.OpenAsync(host.Url);
        await tab.SignInAsync("harbor");
        await tab.Page.EvaluateAsync("sessionStorage.setItem('tl:session', JSON.stringify({ ...JSON.parse(sessionStorage.getItem('tl:session')), token: 'worn out' }))");
        await tab.Page.ReloadAsync();
        await Expect(tab.Page.GetByTestId("tenant-picker")).ToBeVisibleAsync();
        await Expect(tab.Page.GetByText("Your session has ended. Please sign in again.")).ToBeVisibleAsync();
        await tab.SignInAsync("harbor");
        await tab.AskAsync("Are you open?");
        await tab.AnsweredAsync("Aye, we are open.");
    }
}
