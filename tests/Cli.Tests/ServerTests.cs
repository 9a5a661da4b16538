using System.Net;
using System.Net.Sockets;
using Microsoft.AspNetCore.Http;
using TenantLora.Tests;

namespace TenantLora.Cli.Tests;

/// <summary>Servers that are not there, say no, or are not to be trusted.</summary>
public sealed class ServerTests
{
    private const string Key = "tl_01234567_abcdefghijklmnopqrstuvwxyz0123456789";
    private const string Card = """{"name":"a","etag":"7","createdAt":"2026-01-01T00:00:00Z","active":"v1","previous":null,"canary":null,"versions":2,"versionList":[{"version":"v2","digest":"sha256:0","kind":"lora","rank":8,"bytes":1,"expandedBytes":1,"baseModel":null,"createdAt":"2026-01-01T00:00:00Z","createdBy":"x","findings":[]}]}""";

    [Theory]
    [InlineData("adapter", "ls")]
    [InlineData("ps")]
    [InlineData("adapter", "push", "HARBOR")]
    [InlineData("adapter", "try", "harbor@v1", "Hello")]
    [InlineData("adapter", "pin", "harbor")]
    [InlineData("chat")]
    [InlineData("doctor")]
    public async Task A_server_that_is_not_there_is_3(params string[] args)
    {
        var run = await new Tool(Nowhere(), Key) { Piped = "Hello" }.RunAsync([.. args.Select(a => a == "HARBOR" ? Repo.Path("adapters", "harbor") : a)]);
        Assert.Equal(3, run.ExitCode);
        Assert.Contains("onnection refused", run.Out + run.Error, StringComparison.OrdinalIgnoreCase);
        if (args[0] != "doctor") Assert.Equal("", run.Out);
    }

    [Fact]
    public async Task A_412_is_said_plainly_and_the_etag_that_was_seen_is_sent()
    {
        string? match = null;
        await using var server = await StubServer.StartAsync(context =>
        {
            if (context.Request.Method == "GET")
            {
                context.Response.Headers.ETag = "\"7\"";
                return StubServer.JsonAsync(context, Card);
            }
            match = context.Request.Headers.IfMatch;
            return StubServer.JsonAsync(context, """{"title":"Precondition Failed","status":412,"detail":"Somebody has changed this adapter.","code":"changed_meanwhile"}""", 412);
        });
        foreach (var command in new[] { "activate", "rollback" })
        {
            match = null;
            var run = await new Tool(server.Url, Key).RunAsync("adapter", command, "a");
            Assert.Equal((1, "", "\"7\""), (run.ExitCode, run.Out, match));
            Assert.Contains("Somebody changed a in the moment since it was read, so nothing was moved.", run.Error, StringComparison.Ordinal);
        }
    }

    /// <summary>Neither markup, nor emoji, nor what a terminal obeys.</summary>
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task Hostile_text_of_a_server_stays_text(bool onTerminal)
    {
        const string Hostile = """[red]x[/] [link=http://evil]y[/] :warning: [/] \u001b[2J\u001b]0;title\u0007 \u202Eevil\r\n\u009b31m""";
        await using var server = await StubServer.StartAsync(context => context.Request.Path.Value switch
        {
            "/api/adapters/resident" => StubServer.JsonAsync(context, $$"""{"deviceBytes":1,"deviceBudget":2,"adapters":[{"name":"{{Hostile}}","version":"v1","digest":"d","bytes":1,"place":"{{Hostile}}"}]}"""),
            _ when context.Request.Method == "POST" => StubServer.JsonAsync(context, $$"""{"title":"","status":422,"detail":"{{Hostile}}","code":"adapter_refused","findings":[{"code":"c","severity":"error","what":"{{Hostile}}","where":"{{Hostile}}","expected":"{{Hostile}}","found":null,"fix":null}]}""", 422),
            _ => StubServer.JsonAsync(context, $$"""{"adapters":[{"name":"{{Hostile}}","etag":"1","createdAt":"2026-01-01T00:00:00Z","active":"{{Hostile}}","previous":null,"canary":null,"versions":1}],"next":null}"""),
        });
        foreach (var args in new string[][] { ["adapter", "ls"], ["ps"], ["adapter", "push", Repo.Path("adapters", "harbor")], ["adapter", "ls", "--json"] })
        {
            var tool = new Tool(server.Url, Key) { OnTerminal = onTerminal };
            if (onTerminal) tool.Environment["NO_COLOR"] = "1";
            var run = await tool.RunAsync(args);
            Assert.Equal(args.Contains("push") ? 1 : 0, run.ExitCode);
            if (!onTerminal) Assert.Contains("[red]x[/]", run.Out, StringComparison.Ordinal);
            Assert.DoesNotContain("⚠", run.Out, StringComparison.Ordinal);
            Assert.DoesNotContain(run.Out + run.Error, c => c is '\e' or '\a' or '\u009b' || c == '\u202e' && !args.Contains("--json"));
        }
    }

    [Fact]
    public async Task Colors_are_for_terminals_and_for_those_who_want_them()
    {
        await using var server = await StubServer.StartAsync(context => StubServer.JsonAsync(context, $$"""{"adapters":[{{Card}}],"next":null}"""));
        var plain = await new Tool(server.Url, Key).RunAsync("adapter", "ls");
        Assert.DoesNotContain('\e', plain.Out);
        Assert.Contains('\e', (await new Tool(server.Url, Key) { OnTerminal = true }.RunAsync("adapter", "ls")).Out);
        Assert.DoesNotContain('\e', (await new Tool(server.Url, Key) { OnTerminal = true, Environment = { ["NO_COLOR"] = "1" } }.RunAsync("adapter", "ls")).Out);
        Assert.DoesNotContain('\e', (await new Tool(server.Url, Key) { OnTerminal = true }.RunAsync("adapter", "ls", "--json")).Out);
    }

    [Fact]
    public async Task A_key_is_never_said_again()
    {
        await using var echo = await StubServer.StartAsync(context => StubServer.JsonAsync(context, $$"""{"status":400,"detail":"Bad key {{context.Request.Headers.Authorization}}","code":"x"}""", 400));
        Assert.Equal(1, (await new Tool(echo.Url, Key).RunAsync("adapter", "ls")).ExitCode);        // Tool looks for the key in all that was written
        foreach (var args in new string[][] { ["ps", "--kye", Key], ["ps", "--kye=" + Key], [Key], ["adapter", "show", Key], ["ps", "--key", Key + "\u00e9"], ["adapter", "activate", "a@" + Key] })
        {
            var run = await new Tool(echo.Url, Key).RunAsync(args);
            Assert.NotEqual(0, run.ExitCode);
            Assert.NotEqual("", run.Error);
        }
    }

    [Fact]
    public async Task What_is_not_a_TenantLora_server_is_said_so()
    {
        await using var html = await StubServer.StartAsync(context => context.Response.WriteAsync("<html>"));
        var run = await new Tool(html.Url, Key).RunAsync("adapter", "ls");
        Assert.Equal((1, ""), (run.ExitCode, run.Out));
        Assert.Contains("expected a TenantLora server", run.Error, StringComparison.Ordinal);
        await using var other = await StubServer.StartAsync(context => StubServer.JsonAsync(context, "[1]"));
        Assert.Equal(1, (await new Tool(other.Url, Key).RunAsync("adapter", "ls")).ExitCode);
        Assert.Equal(1, (await new Tool(other.Url, Key).RunAsync("adapter", "show", "a")).ExitCode);
        // Half an answer of a server of another version.
        await using var half = await StubServer.StartAsync(context => StubServer.JsonAsync(context, context.Request.Method == "POST" ? """{"created":true}""" : """{"adapters":[{"name":"a"}],"next":null}"""));
        foreach (var args in new string[][] { ["adapter", "ls"], ["ps"], ["adapter", "push", Repo.Path("adapters", "harbor")] })
        {
            var said = await new Tool(half.Url, Key).RunAsync(args);
            Assert.Equal((1, ""), (said.ExitCode, said.Out));
            Assert.Contains("of another version?", said.Error, StringComparison.Ordinal);
        }
        await using var endless = await StubServer.StartAsync(context => StubServer.JsonAsync(context, """{"adapters":[],"next":"a"}"""));
        Assert.Equal(1, (await new Tool(endless.Url, Key).RunAsync("adapter", "ls")).ExitCode);
        // A redirect would take the key elsewhere.
        await using var away = await StubServer.StartAsync(context => { context.Response.Redirect(html.Url); return Task.CompletedTask; });
        Assert.Equal(1, (await new Tool(away.Url, Key).RunAsync("adapter", "ls")).ExitCode);
    }

    [Fact]
    public async Task A_members_key_is_told_what_it_lacks()
    {
        await using var server = await StubServer.StartAsync(_ => throw new InvalidOperationException(), """{"tenant":"t","name":"T","token":"x","expiresAt":"2030-01-01T00:00:00Z","role":"member"}""");
        var run = await new Tool(server.Url, Key).RunAsync("adapter", "ls");
        Assert.Equal(1, run.ExitCode);
        Assert.Contains("needs an admin's", run.Error, StringComparison.Ordinal);
    }

    private static string Nowhere()
    {
        using var listener = new TcpListener(IPAddress.Loopback, 0);
        listener.Start();
        return $"http://127.0.0.1:{((IPEndPoint)listener.LocalEndpoint).Port}";
    }
}
