using System.Text.RegularExpressions;
using TenantLora.Runtime;
using static Microsoft.Playwright.Assertions;

namespace TenantLora.ChatHost.Tests.Browser;

/// <summary>An answer on its way: seen while it comes, stopped for good, and whole again after reloads and lost connections.</summary>
[Collection(OneBrowser.Name)]
public sealed class StreamingTests(Chromium chromium)
{
    private readonly Dictation dictation = new();

    [Fact]
    public async Task Each_step_of_an_answer_is_seen_as_it_happens()
    {
        await using var host = await TestHost.StartAsync(dictation.Runtime);
        await using var tab = await chromium.OpenAsync(host.Url);
        await tab.SignInAsync("harbor");
        await tab.AskAsync("Are you open?");
        var progress = tab.Answers.GetByTestId("progress");
        await Expect(tab.Status).ToHaveTextAsync("Generating…");
        await Expect(tab.Answers).ToHaveAttributeAsync("data-state", "streaming");
        dictation.Say(new GenerationQueued(2, 31));
        await Expect(progress).ToHaveTextAsync("Waiting, 2 ahead…");
        dictation.Say(new AdapterLoading(TestHost.HarborDigest));
        await Expect(progress).ToHaveTextAsync("Loading the adapter…");
        dictation.Say(new PrefillProgress(16, 31));
        await Expect(progress).ToHaveTextAsync("Reading the prompt, 16 of 31 tokens");
        dictation.Say("Aye, ");
        await Expect(tab.AnswerText()).ToHaveTextAsync("Aye,");
        await Expect(progress).ToHaveCountAsync(0);
        await Expect(tab.Stop).ToBeVisibleAsync();
        await Expect(tab.Page.GetByTestId("send")).ToHaveCountAsync(0);
        dictation.Say("we are **op");
        await Expect(tab.AnswerText().Locator("strong")).ToHaveTextAsync("op");
        await tab.ShootAsync("streaming");
        dictation.Say("en**.");
        await Expect(tab.AnswerText()).ToHaveTextAsync("Aye, we are open.");
        dictation.End(7);
        await tab.AnsweredAsync("Aye, we are open.");
        await Expect(tab.Status).ToHaveTextAsync("Answer complete, 7 tokens");
        await Expect(tab.Answers.GetByTestId("stats")).ToContainTextAsync("31 in, 7 out");
        await Expect(tab.Page.GetByTestId("send")).ToBeVisibleAsync();
        Assert.Empty(tab.Complaints);
    }

    [Fact]
    public async Task Stop_ends_the_answer_in_the_server_and_keeps_what_was_written()
    {
        dictation.Runtime.Answer = (_, token) => FakeRuntime.Endless(token);
        await using var host = await TestHost.StartAsync(dictation.Runtime);
        await using var tab = await chromium.OpenAsync(host.Url);
        await tab.SignInAsync("harbor");
        await tab.AskAsync("Count.");
        await Expect(tab.AnswerText()).ToContainTextAsync("0 1 2 3 4 5");
        Assert.Equal(1, dictation.Runtime.Running);
        await tab.Stop.ClickAsync();
        await Expect(tab.Answers).ToHaveAttributeAsync("data-state", "stopped");
        await Expect(tab.Answers.GetByTestId("stats")).ToContainTextAsync("stopped");
        await Expect(tab.Status).ToHaveTextAsync("Stopped");
        await Expect(tab.AnswerText()).ToContainTextAsync("0 1 2 3 4 5");
        await TestHost.UntilAsync(() => dictation.Runtime.Running == 0, "the runtime was told to stop");

        dictation.Runtime.Answer = (_, token) => FakeRuntime.Says(token, "Gladly.");
        await tab.AskAsync("Thanks.");
        await tab.AnsweredAsync("Gladly.");
        Assert.Empty(tab.Complaints);
    }

    [Fact]
    public async Task The_keyboard_alone_is_enough()
    {
        dictation.Runtime.Answer = (_, token) => FakeRuntime.Endless(token);
        await using var host = await TestHost.StartAsync(dictation.Runtime);
        await using var tab = await chromium.OpenAsync(host.Url);
        await Expect(tab.Page.GetByTestId("tenant-picker")).ToBeVisibleAsync();
        await tab.Page.Keyboard.PressAsync("Tab");
        await Expect(tab.Page.GetByTestId("tenant-harbor")).ToBeFocusedAsync();
        await tab.Page.Keyboard.PressAsync("Enter");
        await tab.OnlineAsync();
        await Expect(tab.Composer).ToBeFocusedAsync();
        await tab.Page.Keyboard.TypeAsync("Count");
        await tab.Page.Keyboard.PressAsync("Shift+Enter");
        await tab.Page.Keyboard.TypeAsync("on.");
        await tab.Page.Keyboard.PressAsync("Enter");
        await Expect(tab.AnswerText()).ToContainTextAsync("0 1 2 3");
        await Expect(tab.Composer).ToBeFocusedAsync();
        await Expect(tab.Composer).ToHaveValueAsync("");
        Assert.Equal("Count\non.", Assert.Single(dictation.Runtime.Asked).Messages![^1].Content);
        await tab.Page.Keyboard.PressAsync("Escape");
        await Expect(tab.Answers).ToHaveAttributeAsync("data-state", "stopped");
        await Expect(tab.Composer).ToBeFocusedAsync();
        await TestHost.UntilAsync(() => dictation.Runtime.Running == 0, "the runtime was told to stop");
        Assert.Empty(tab.Complaints);
    }

    [Fact]
    public async Task A_page_that_is_reloaded_while_text_comes_loses_and_doubles_nothing()
    {
        await using var host = await TestHost.StartAsync(dictation.Runtime);
        await using var tab = await chromium.OpenAsync(host.Url);
        await tab.SignInAsync("harbor");
        await tab.AskAsync("Say the numbers.");
        dictation.Begin();
        dictation.Say("one ");
        await Expect(tab.AnswerText()).ToHaveTextAsync("one");
        for (var i = 2; i <= 4; i++)
        {
            dictation.Say($"two-{i} "); // maybe seen before the reload, maybe not
            await tab.Page.ReloadAsync();
            dictation.Say($"three-{i} ");
        }
        await Expect(tab.AnswerText()).ToHaveTextAsync("one two-2 three-2 two-3 three-3 two-4 three-4");
        await Expect(tab.Answers).ToHaveAttributeAsync("data-state", "streaming");
        dictation.End(9);
        await tab.AnsweredAsync("one two-2 three-2 two-3 three-3 two-4 three-4");
        await Expect(tab.Answers.GetByTestId("stats")).ToContainTextAsync("31 in, 9 out");
        Assert.Single(dictation.Runtime.Asked);
        Assert.Empty(tab.Complaints);
    }

    [Fact]
    public async Task A_lost_connection_shows_and_comes_back_with_the_whole_answer()
    {
        await using var host = await TestHost.StartAsync(dictation.Runtime);
        await using var wire = new Wire(host.Url);
        await using var tab = await chromium.OpenAsync(wire.Url);
        await tab.SignInAsync("harbor");
        await tab.AskAsync("Say the numbers.");
        dictation.Begin();
        dictation.Say("one ");
        await Expect(tab.AnswerText()).ToHaveTextAsync("one");
        wire.Cut();
        await Expect(tab.Banner).ToHaveAttributeAsync("data-state", "reconnecting");
        await Expect(tab.Banner).ToBeVisibleAsync();
        await Expect(tab.Banner).ToContainTextAsync("The connection is lost.");
        await tab.ShootAsync("reconnecting");
        dictation.Say("two "); // while nobody listens
        await Expect(tab.Answers).ToHaveAttributeAsync("data-state", "streaming");
        wire.Mend();
        await Expect(tab.Banner).ToBeHiddenAsync();
        dictation.Say("three");
        await Expect(tab.AnswerText()).ToHaveTextAsync("one two three");
        dictation.End(3);
        await tab.AnsweredAsync("one two three");
        Assert.Single(dictation.Runtime.Asked);
        Assert.All(tab.Complaints, c => Assert.Matches("net::ERR_|WebSocket", c)); // the browser's own words on a dead network
    }

    [Fact]
    public async Task An_answer_that_ended_while_the_page_was_away_is_there_in_full()
    {
        await using var host = await TestHost.StartAsync(dictation.Runtime);
        await using var tab = await chromium.OpenAsync(host.Url);
        await tab.SignInAsync("harbor");
        await tab.AskAsync("Say the numbers.");
        dictation.Begin();
        dictation.Say("one ");
        await Expect(tab.AnswerText()).ToHaveTextAsync("one");
        await tab.Page.GotoAsync("about:blank");
        dictation.Say("two");
        dictation.End(2);
        await TestHost.UntilAsync(() => dictation.Runtime.Running == 0, "the answer ended without its reader");
        await tab.Page.GoBackAsync();
        await tab.AnsweredAsync("one two");
    }

    [Fact]
    public async Task An_answer_that_the_server_forgot_says_so_and_can_be_asked_for_again()
    {
        await using var host = await TestHost.StartAsync(dictation.Runtime, "KeepSeconds=0");
        await using var tab = await chromium.OpenAsync(host.Url);
        await tab.SignInAsync("harbor");
        await tab.AskAsync("Say the numbers.");
        dictation.Begin();
        dictation.Say("one ");
        await Expect(tab.AnswerText()).ToHaveTextAsync("one");
        await tab.Page.GotoAsync("about:blank");
        dictation.End(1);
        await TestHost.UntilAsync(() => dictation.Runtime.Running == 0, "the answer ended without its reader");
        await tab.Page.GoBackAsync();
        await Expect(tab.Page.GetByTestId("error")).ToContainTextAsync("the server no longer has it");
        await Expect(tab.AnswerText()).ToHaveTextAsync("one");
        dictation.Begin();
        dictation.Say("one two");
        dictation.End(2);
        await tab.Page.GetByTestId("retry").ClickAsync();
        await tab.AnsweredAsync("one two");
    }

    [Fact]
    public async Task A_failure_is_told_in_words_and_tried_again()
    {
        dictation.Runtime.Answer = (_, _) => FakeRuntime.Fails(
            new TenantLoraException(ErrorCodes.ContextLengthExceeded, "This has 3,000 tokens; 2,048 fit."), new GenerationQueued(0, 31));
        await using var host = await TestHost.StartAsync(dictation.Runtime);
        await using var tab = await chromium.OpenAsync(host.Url);
        await tab.SignInAsync("harbor");
        await tab.AskAsync("Long.");
        await Expect(tab.Answers).ToHaveAttributeAsync("data-state", "error");
        await Expect(tab.Page.GetByTestId("error")).ToContainTextAsync("This has 3,000 tokens; 2,048 fit.");
        await Expect(tab.Page.GetByTestId("alert")).ToHaveTextAsync(new Regex("^Error: This has"));
        await tab.ShootAsync("error");
        dictation.Runtime.Answer = (_, token) => FakeRuntime.Says(token, "Better now.");
        await tab.Page.GetByTestId("retry").ClickAsync();
        await tab.AnsweredAsync("Better now.");
        Assert.Empty(tab.Complaints);
    }

    [Fact]
    public async Task A_lane_is_stopped_alone()
    {
        dictation.Runtime.Answer = (_, token) => FakeRuntime.Endless(token);
        await using var host = await TestHost.StartAsync(dictation.Runtime);
        await using var tab = await chromium.OpenAsync(host.Url);
        await tab.SignInAsync("harbor");
        await tab.Page.GetByTestId("compare").ClickAsync();
        await tab.AskAsync("Count.");
        await Expect(tab.AnswerText(0)).ToContainTextAsync("0 1 2");
        await Expect(tab.AnswerText(1)).ToContainTextAsync("0 1 2");
        await tab.Answers.First.GetByTestId("stop-lane").ClickAsync();
        await Expect(tab.Answers.First).ToHaveAttributeAsync("data-state", "stopped");
        await TestHost.UntilAsync(() => dictation.Runtime.Running == 1, "one of two runs on");
        await Expect(tab.Answers.Last).ToHaveAttributeAsync("data-state", "streaming");
        await tab.Stop.ClickAsync();
        await Expect(tab.Answers.Last).ToHaveAttributeAsync("data-state", "stopped");
        await TestHost.UntilAsync(() => dictation.Runtime.Running == 0, "none runs");
        Assert.Empty(tab.Complaints);
    }
}
