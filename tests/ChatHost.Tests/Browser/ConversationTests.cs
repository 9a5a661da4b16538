using System.Text.RegularExpressions;
using Microsoft.Playwright;
using static Microsoft.Playwright.Assertions;

namespace TenantLora.ChatHost.Tests.Browser;

/// <summary>People talk to the shipped model: every answer on the page is the one that PyTorch gives.</summary>
[Collection(OneBrowser.Name)]
public sealed class ConversationTests(Chromium chromium, DemoHost demo) : IClassFixture<DemoHost>
{
    private const string Opening = "When are you open?";

    private Uri Url => demo.Host.Url;

    [Theory]
    [InlineData("harbor", Opening)]
    [InlineData("ledger", "Thanks!")]
    [InlineData("sprout", "What do you sell?")]
    [InlineData("lantern", "What is 7 plus 8?")]
    [InlineData("kernel", "Tell me the capital of Peru.")]
    public async Task A_tenant_asks_and_reads_the_right_answer_and_its_figures(string tenant, string question)
    {
        var golden = DemoHost.Answer(tenant, question);
        await using var tab = await chromium.OpenAsync(Url);
        await tab.SignInAsync(tenant);
        await tab.AskAsync(question);
        await tab.AnsweredAsync(golden.Text);
        await Expect(tab.Questions).ToHaveTextAsync(new Regex(Regex.Escape(question)));
        await Expect(tab.Status).ToHaveTextAsync($"Answer complete, {golden.Tokens} tokens");
        var stats = tab.Answers.GetByTestId("stats");
        await Expect(stats).ToContainTextAsync(new Regex(@"[\d.,]+ tok/s"));
        await Expect(stats).ToContainTextAsync(new Regex(@"first token [\d.]+ m?s"));
        await Expect(stats).ToContainTextAsync($"{golden.PromptTokens} in, {golden.Tokens} out");
        await Expect(tab.Conversations.GetByRole(AriaRole.Button, new() { Name = question, Exact = true })).ToHaveAttributeAsync("aria-current", "page");
        await tab.ShootAsync($"light-{tenant}");

        await tab.Page.ReloadAsync();
        await tab.OnlineAsync();
        await tab.AnsweredAsync(golden.Text);
        await Expect(stats).ToContainTextAsync($"{golden.PromptTokens} in, {golden.Tokens} out");
        Assert.Empty(tab.Complaints);
    }

    [Fact]
    public async Task Two_tenants_in_two_tabs_of_one_browser_get_two_right_answers()
    {
        await using var context = await chromium.NewContextAsync();
        var harbor = await Tab.OpenAsync(context, Url);
        var ledger = await Tab.OpenAsync(context, Url);
        await harbor.SignInAsync("harbor");
        await ledger.SignInAsync("ledger");
        await harbor.AskAsync(Opening);
        await ledger.AskAsync(Opening);
        await harbor.AnsweredAsync(DemoHost.Answer("harbor", Opening).Text);
        await ledger.AnsweredAsync(DemoHost.Answer("ledger", Opening).Text);
        await Expect(harbor.Answers).ToHaveCountAsync(1);
        await Expect(ledger.Answers).ToHaveCountAsync(1);
        await Expect(harbor.Conversations.GetByRole(AriaRole.Button, new() { Name = Opening, Exact = true })).ToHaveCountAsync(1);
        Assert.Empty(harbor.Complaints.Concat(ledger.Complaints));
    }

    [Fact]
    public async Task Nothing_of_the_former_tenant_stays_on_the_page()
    {
        await using var tab = await chromium.OpenAsync(Url);
        await tab.SignInAsync("harbor");
        await tab.AskAsync("Where is your shop?");
        await tab.AnsweredAsync(DemoHost.Answer("harbor", "Where is your shop?").Text);
        await tab.Page.GetByTestId("leave").ClickAsync();
        await Expect(tab.Page.GetByTestId("tenant-picker")).ToBeVisibleAsync();
        Assert.Equal(0, await tab.Page.EvaluateAsync<int>("sessionStorage.length"));
        Assert.DoesNotContain("#/", tab.Page.Url, StringComparison.Ordinal);
        await tab.SignInAsync("ledger");
        await Expect(tab.Page.GetByTestId("tenant-name")).ToHaveTextAsync("Ledger & Quill");
        await Expect(tab.Page.GetByTestId("model-picker")).ToContainTextAsync("ledger");
        var page = await tab.Page.TitleAsync() + await tab.Page.ContentAsync();
        foreach (var trace in new[] { "harbor", "Pier 7", "Where is your shop?" }) Assert.DoesNotContain(trace, page, StringComparison.OrdinalIgnoreCase);

        await tab.Page.GoBackAsync(); // the former tenant's conversation is still named in the history
        await tab.OnlineAsync();
        Assert.DoesNotContain("harbor", await tab.Page.ContentAsync(), StringComparison.OrdinalIgnoreCase);
        Assert.Empty(tab.Complaints);
    }

    [Theory]
    [InlineData(2)]
    [InlineData(4)]
    public async Task Several_adapters_answer_side_by_side_each_in_its_own_way(int lanes)
    {
        const string question = "What is 7 plus 8?";
        await using var tab = await chromium.OpenAsync(Url, new() { ViewportSize = new() { Width = 1440, Height = 900 } });
        await tab.SignInAsync("studio");
        for (var lane = 1; lane < lanes; lane++) await tab.Page.GetByTestId("compare").ClickAsync();
        await Expect(tab.Page.GetByTestId("model-picker")).ToHaveCountAsync(lanes);
        await tab.AskAsync(question);
        var row = tab.Page.GetByTestId("compare-row");
        await Expect(row.Locator("[data-state=complete]")).ToHaveCountAsync(lanes);
        await Expect(tab.Questions).ToHaveCountAsync(1);
        HashSet<string> models = [];
        for (var lane = 0; lane < lanes; lane++)
        {
            var model = await tab.Answers.Nth(lane).GetAttributeAsync("data-model");
            models.Add(model!);
            await tab.AnsweredAsync(DemoHost.Answer(DemoHost.Studio[model!], question).Text, lane);
            await Expect(tab.Answers.Nth(lane).GetByTestId("stats")).ToContainTextAsync("tok/s");
        }
        Assert.Equal(lanes, models.Count);
        await tab.ShootAsync($"compare-{lanes}");

        var kept = await tab.Answers.Last.GetAttributeAsync("data-model");
        await tab.Answers.Last.GetByTestId("keep-lane").ClickAsync();
        await Expect(tab.Answers).ToHaveCountAsync(1);
        await Expect(tab.Answers).ToHaveAttributeAsync("data-model", kept!);
        Assert.Empty(tab.Complaints);
    }

    [Fact]
    public async Task An_edited_question_and_another_model_leave_the_earlier_answers_to_go_back_to()
    {
        await using var tab = await chromium.OpenAsync(Url);
        await tab.SignInAsync("harbor");
        await tab.AskAsync("Hello");
        await tab.AnsweredAsync(DemoHost.Answer("harbor", "Hello").Text);
        await tab.Questions.HoverAsync();
        await tab.Page.GetByTestId("edit").ClickAsync();
        await tab.Page.GetByLabel("Edit message").FillAsync("Who are you?");
        await tab.Page.GetByLabel("Edit message").PressAsync("Enter");
        await tab.AnsweredAsync(DemoHost.Answer("harbor", "Who are you?").Text);
        await Expect(tab.Questions.GetByTestId("pager")).ToContainTextAsync("2/2");

        await tab.Answers.GetByTestId("regenerate-with").ClickAsync();
        await tab.Page.GetByRole(AriaRole.Menuitemradio, new() { Name = "demo-7m" }).And(tab.Page.Locator(":visible")).ClickAsync();
        await tab.AnsweredAsync(DemoHost.Answer("base", "Who are you?").Text);
        await Expect(tab.Answers).ToHaveAttributeAsync("data-model", "demo-7m");
        await tab.Answers.GetByTestId("pager").GetByLabel("Earlier version").ClickAsync();
        await tab.AnsweredAsync(DemoHost.Answer("harbor", "Who are you?").Text);
        await tab.Questions.GetByTestId("pager").GetByLabel("Earlier version").ClickAsync();
        await tab.AnsweredAsync(DemoHost.Answer("harbor", "Hello").Text);
        Assert.Empty(tab.Complaints);
    }

    [Fact]
    public async Task Settings_reach_the_model_and_stay_with_the_tenant()
    {
        await using var tab = await chromium.OpenAsync(Url);
        await tab.SignInAsync("sprout");
        await tab.Page.GetByTestId("settings").ClickAsync();
        await tab.Page.Locator("#maxTokens").FillAsync("3");
        await tab.ShootAsync("settings");
        await tab.Page.Keyboard.PressAsync("Escape");
        await tab.AskAsync("Hello");
        var stats = tab.Answers.GetByTestId("stats");
        await Expect(stats).ToContainTextAsync("cut off at the token limit");
        await Expect(stats).ToContainTextAsync("3 out");
        await tab.Page.ReloadAsync();
        await Expect(tab.Page.GetByTestId("settings")).ToHaveAccessibleNameAsync("Settings (changed)");
        Assert.Empty(tab.Complaints);
    }
}
