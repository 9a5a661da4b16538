using System.Collections.Concurrent;
using Microsoft.Playwright;
using TenantLora.Tests;
using static Microsoft.Playwright.Assertions;

namespace TenantLora.ChatHost.Tests.Browser;

/// <summary>The chat page in one tab: what a person does there, and a record of what a good page never does.</summary>
internal sealed class Tab : IAsyncDisposable
{
    private readonly ConcurrentQueue<string> complaints = new();

    private Tab(IPage page, Uri host)
    {
        Page = page;
        page.Console += (_, message) => { if (message.Type == "error") complaints.Enqueue($"console: {message.Text}"); };
        page.PageError += (_, error) => complaints.Enqueue($"script: {error}");
        page.Popup += (_, popup) => complaints.Enqueue($"opened {popup.Url}");
        page.Dialog += (_, dialog) =>
        {
            complaints.Enqueue($"asked: {dialog.Message}");
            _ = dialog.DismissAsync();
        };
        page.Request += (_, request) =>
        {
            if (new Uri(request.Url).Authority != host.Authority) complaints.Enqueue($"fetched {request.Url}");
        };
    }

    public IPage Page { get; }

    /// <summary>Errors on the console, requests to anywhere but the host, and whatever its content security policy had to prevent.</summary>
    public IReadOnlyCollection<string> Complaints => complaints;

    public ILocator Composer => Page.GetByTestId("composer");

    public ILocator Stop => Page.GetByTestId("stop");

    /// <summary>What a screen reader is told.</summary>
    public ILocator Status => Page.GetByTestId("status");

    public ILocator Banner => Page.GetByTestId("connection");

    public ILocator Conversations => Page.GetByTestId("conversation-list");

    public ILocator Questions => Page.Locator("[data-testid=message][data-role=user]");

    public ILocator Answers => Page.Locator("[data-testid=message][data-role=assistant]");

    /// <summary>The text of the newest answer, or of the one at <paramref name="index"/>.</summary>
    public ILocator AnswerText(int index = -1) => Answers.Nth(index).GetByTestId("answer-text");

    public static async Task<Tab> OpenAsync(IBrowserContext context, Uri host)
    {
        var tab = new Tab(await context.NewPageAsync(), host);
        await tab.Page.AddInitScriptAsync("addEventListener('securitypolicyviolation', e => console.error('policy: ' + e.violatedDirective + ' ' + e.blockedURI))");
        await tab.Page.GotoAsync(host.AbsoluteUri);
        return tab;
    }

    public async Task SignInAsync(string tenant)
    {
        await Page.GetByTestId($"tenant-{tenant}").ClickAsync();
        await OnlineAsync();
    }

    /// <summary>Waits until the models are known and the hub is connected.</summary>
    public async Task OnlineAsync()
    {
        await Expect(Page.GetByTestId("compare")).ToBeEnabledAsync();
        await Expect(Banner).ToHaveAttributeAsync("data-state", "online");
        await Expect(Banner).ToBeHiddenAsync();
    }

    public async Task AskAsync(string question)
    {
        await Composer.FillAsync(question);
        await Page.GetByTestId("send").ClickAsync();
    }

    /// <summary>Waits for the newest answer, or the one at <paramref name="index"/>, to end well with this text.</summary>
    public async Task AnsweredAsync(string text, int index = -1)
    {
        await Expect(Answers.Nth(index)).ToHaveAttributeAsync("data-state", "complete");
        await Expect(AnswerText(index)).ToHaveTextAsync(text, new() { UseInnerText = true });
    }

    /// <summary>Under artifacts/screenshots, when TENANTLORA_SCREENSHOTS is set: for people to look at.</summary>
    public async Task ShootAsync(string name)
    {
        if (Environment.GetEnvironmentVariable("TENANTLORA_SCREENSHOTS") is null or "") return;
        await Page.ScreenshotAsync(new() { Path = Repo.Path("artifacts", "screenshots", name + ".png"), Animations = ScreenshotAnimations.Disabled });
    }

    public async ValueTask DisposeAsync() => await Page.Context.DisposeAsync();
}
