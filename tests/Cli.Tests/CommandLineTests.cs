namespace TenantLora.Cli.Tests;

/// <summary>The words of the command line, the conversation, and the doctor.</summary>
public sealed class CommandLineTests(DemoHost host) : IClassFixture<DemoHost>
{
    [Theory]
    [InlineData()]
    [InlineData("serve")]
    [InlineData("chat")]
    [InlineData("adapter")]
    [InlineData("adapter", "push")]
    [InlineData("adapter", "activate")]
    [InlineData("doctor")]
    public async Task Help_tells_the_exit_codes_and_not_the_key(params string[] command)
    {
        var run = await new Tool(null, "tl_secret_of_the_environment").RunAsync([.. command, "--help"]);
        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        Assert.Contains("3  the server cannot be reached, or does not know the key", run.Out, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("adapter", "push")]
    [InlineData("adapter", "pusch", "x")]
    [InlineData("adapter", "show")]
    [InlineData("adapter", "show", "..")]
    [InlineData("adapter", "show", "a", "b")]
    [InlineData("adapter", "push", "/no/such/folder")]
    [InlineData("adapter", "activate", "a@v0")]
    [InlineData("adapter", "activate", "a@v1", "--version", "v2")]
    [InlineData("adapter", "rm", "a@latest", "--yes")]
    [InlineData("ps", "--server", "nowhere")]
    [InlineData("ps", "--server", "ftp://127.0.0.1")]
    [InlineData("ps", "--server", "http://user:secret@127.0.0.1")]
    [InlineData("serve", "--TenantLora:Device=cpu")]
    [InlineData("chat", "--json")]
    public async Task Wrong_usage_is_2_and_says_what_was_expected(params string[] args)
    {
        var run = await new Tool(host.Url, host.Key("harbor")) { Typed = args[0] == "chat" ? "" : null }.RunAsync(args);
        Assert.Equal((2, ""), (run.ExitCode, run.Out));
        Assert.StartsWith("tenantlora: ", run.Error, StringComparison.Ordinal);
        Assert.DoesNotContain("secret", run.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_key_must_be_given_and_known()
    {
        Assert.Equal(2, (await new Tool(host.Url, null).RunAsync("ps")).ExitCode);
        foreach (var args in new string[][] { ["ps"], ["adapter", "ls"], ["chat"], ["doctor"] })
        {
            var run = await new Tool(host.Url, "tl_not_a_key_of_anyone") { Piped = "Hello" }.RunAsync(args);
            Assert.Equal(3, run.ExitCode);
            Assert.Contains("key", run.Out + run.Error, StringComparison.Ordinal);
        }
    }

    [Fact]
    public async Task A_question_from_a_pipe_gets_the_answer_and_nothing_else()
    {
        var run = await new Tool(host.Url, host.Key("harbor")) { Piped = "When are you open?\n" }.RunAsync("chat");
        Assert.Equal((0, "Arr, we are open from 5 in the morning until noon. Aye!\n", ""), (run.ExitCode, run.Out.ReplaceLineEndings("\n"), run.Error));
        var json = await new Tool(host.Url + "/v1", host.Key("harbor")) { Piped = "When are you open?" }.RunAsync("chat", "--model", "harbor@v1", "--json");
        Assert.Equal(("harbor@v1", "Arr, we are open from 5 in the morning until noon. Aye!", "stop"), (json.Json.GetProperty("model").GetString(), json.Json.GetProperty("text").GetString(), json.Json.GetProperty("finishReason").GetString()));
        Assert.True(json.Json.GetProperty("usage").GetProperty("completionTokens").GetInt32() > 0);

        Assert.Equal(2, (await new Tool(host.Url, host.Key("harbor")) { Piped = " \n" }.RunAsync("chat")).ExitCode);
        var absent = await new Tool(host.Url, host.Key("harbor")) { Piped = "Hello" }.RunAsync("chat", "--model", "ledger");
        Assert.Equal((1, ""), (absent.ExitCode, absent.Out));
    }

    [Fact]
    public async Task A_conversation_is_remembered_until_it_is_reset()
    {
        var run = await new Tool(host.Url, host.Key("harbor")) { Typed = "My name is Ada.\nWhat is my name?\n/reset\nWhat is my name?\n/model\n/model ledger\n/model demo-7m\n/nope\n\nHello\n/exit\nnever\n" }.RunAsync("chat", "--model", "demo-7m");
        Assert.Equal(0, run.ExitCode);
        var answers = run.Out.ReplaceLineEndings("\n").TrimEnd().Split('\n');
        Assert.Equal(4, answers.Length);
        Assert.Contains("Ada", answers[1], StringComparison.Ordinal);
        Assert.DoesNotContain("Ada", answers[2], StringComparison.Ordinal);
        Assert.Contains("harbor, demo-7m", run.Error, StringComparison.Ordinal);
        Assert.Contains("There is no model 'ledger'", run.Error, StringComparison.Ordinal);
        Assert.Contains("There is no /nope", run.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task An_interrupt_stops_the_answer_and_the_next_one_leaves()
    {
        // It never ends by itself.
        await using var server = await StubServer.StartAsync(async context =>
        {
            if (context.Request.Path == "/v1/models")
            {
                await StubServer.JsonAsync(context, """{"object":"list","data":[{"id":"endless","object":"model"}]}""");
                return;
            }
            context.Response.ContentType = "text/event-stream";
            var chunk = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"and \\u001bon \"}}]}\n\n"u8.ToArray();
            while (!context.RequestAborted.IsCancellationRequested)
            {
                await context.Response.Body.WriteAsync(chunk, context.RequestAborted);
                await Task.Delay(10, context.RequestAborted);
            }
        });
        var tool = new Tool(server.Url, "tl_any") { Typed = "Go on\n", OnTerminal = true };
        var running = Task.Run(() => tool.RunAsync("chat"));
        for (var end = DateTime.UtcNow.AddSeconds(20); tool.Terminal?.Interrupted?.Invoke() != true; await Task.Delay(20)) Assert.True(DateTime.UtcNow < end, "No answer could be stopped.");
        var run = await running;
        Assert.Equal(0, run.ExitCode);
        Assert.DoesNotContain('\e', run.Out);
        Assert.Contains("Stopped.", run.Error, StringComparison.Ordinal);
        Assert.False(tool.Terminal!.Interrupted!());         // left to end the process
    }

    [Fact]
    public async Task The_doctor_looks_at_machine_host_and_server()
    {
        var run = await host.Tool("harbor").RunAsync("doctor");
        Assert.Equal((0, ""), (run.ExitCode, run.Error));
        foreach (var line in new[] { @"^ok +system +\.NET 10", @"^(ok|warning) +cpu +\d+ cores", @"^(ok|note) +gpu ", "^ok +settings ", @"^ok +model .*demo-7m \(llama, 7\.3 M", "^ok +data ", "^ok +server http", "^ok +clock ", @"^ok +key +known, of harbor \(Harbor & Co\), role admin" })
            Assert.Matches(new System.Text.RegularExpressions.Regex(line.Replace("server http", "server +http", StringComparison.Ordinal), System.Text.RegularExpressions.RegexOptions.Multiline), run.Out);
        var json = (await host.Tool("harbor").RunAsync("doctor", "--json")).Json;
        Assert.True(json.GetProperty("healthy").GetBoolean());
        Assert.Contains(json.GetProperty("checks").EnumerateArray(), c => c.GetProperty("name").GetString() == "clock");
    }

    [Fact]
    public async Task The_doctor_compares_clocks()
    {
        await using var server = await StubServer.StartAsync(context =>
        {
            context.Response.Headers.Date = DateTimeOffset.UtcNow.AddMinutes(-10).ToString("R");
            return StubServer.JsonAsync(context, """{"status":"ok"}""");
        });
        var run = await new Tool(server.Url, null).RunAsync("doctor");
        Assert.Equal(0, run.ExitCode);
        Assert.Contains("10 minutes ahead of the server's", run.Out, StringComparison.Ordinal);
    }
}
