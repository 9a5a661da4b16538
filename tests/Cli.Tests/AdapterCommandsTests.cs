using System.Formats.Tar;
using System.IO.Compression;
using System.Text.Json.Nodes;
using TenantLora.Tests;

namespace TenantLora.Cli.Tests;

/// <summary>An admin's day with the tool, against the real host. The tests share it: each keeps to its tenant or to names of its own.</summary>
public sealed class AdapterCommandsTests(DemoHost host) : IClassFixture<DemoHost>, IDisposable
{
    private readonly string folder = Directory.CreateTempSubdirectory("tenantlora-").FullName;

    public void Dispose() => Directory.Delete(folder, recursive: true);

    [Fact]
    public async Task A_version_is_pushed_activated_rolled_back_and_removed()
    {
        var brought = await Run("harbor", "adapter", "push", Adapter("ledger"), "--name", "harbor");
        Assert.Equal((0, ""), (brought.ExitCode, brought.Error));
        Assert.Contains("harbor@v2: prolora of rank 8, 156.3 kB (622.6 kB as plain LoRA), sha256:", brought.Out, StringComparison.Ordinal);
        Assert.Contains("tenantlora adapter activate harbor@v2", brought.Out, StringComparison.Ordinal);

        var again = await Run("harbor", "adapter", "push", Adapter("ledger"), "--name", "harbor");
        Assert.Equal((0, "harbor: the same bytes are v2 already.\n"), (again.ExitCode, again.Out.ReplaceLineEndings("\n")));
        Assert.False((await Run("harbor", "adapter", "push", Adapter("ledger"), "--name", "harbor", "--json")).Json.GetProperty("created").GetBoolean());

        Assert.Equal("harbor: v2 is active now, v1 was.", await Says("adapter", "activate", "harbor", "--why", "new words"));         // the newest
        Assert.Equal("harbor: v2 is active already.", await Says("adapter", "activate", "harbor", "--version", "v2"));
        Assert.Equal("harbor: v1 is active again, v2 was.", await Says("adapter", "rollback", "harbor"));
        var detail = (await Run("harbor", "adapter", "activate", "harbor@v2", "--json")).Json;
        Assert.Equal(("v2", "v1", 2), (detail.GetProperty("active").GetString(), detail.GetProperty("previous").GetString(), detail.GetProperty("versionList").GetArrayLength()));

        var inUse = await Run("harbor", "adapter", "rm", "harbor@v2", "--yes");
        Assert.Equal((1, ""), (inUse.ExitCode, inUse.Out));
        Assert.Contains("version_in_use", inUse.Error, StringComparison.Ordinal);
        Assert.Equal("harbor: v1 is active again, v2 was.", await Says("adapter", "rollback", "harbor"));
        Assert.Equal("harbor@v2 is removed.", await Says("adapter", "rm", "harbor@v2", "--yes"));
        Assert.Equal(1, (await Run("harbor", "adapter", "activate", "harbor@v2")).ExitCode);

        async Task<string> Says(params string[] args)
        {
            var run = await Run("harbor", args);
            Assert.Equal((0, ""), (run.ExitCode, run.Error));
            return run.Out.TrimEnd();
        }
    }

    [Fact]
    public async Task Lists_are_tables_to_read_and_json_to_use()
    {
        var table = await Run("ledger", "adapter", "ls");
        Assert.Equal(0, table.ExitCode);
        var lines = table.Out.ReplaceLineEndings("\n").TrimEnd().Split('\n');
        Assert.Equal(["NAME", "ACTIVE", "CANARY", "PREVIOUS", "VERSIONS", "PINNED", "CREATED"], lines[0].Split(' ', StringSplitOptions.RemoveEmptyEntries));
        Assert.Equal(["ledger", "v1", "-", "-", "1", "-"], lines[1].Split(' ', StringSplitOptions.RemoveEmptyEntries)[..6]);
        Assert.Matches(@"^All versions take 18\d\.\d kB of the 10\.7 GB that they may take on the disk\.$", lines[2]);
        Assert.DoesNotContain('\e', table.Out);
        Assert.Equal(10L << 30, (await Run("ledger", "adapter", "ls", "--json")).Json.GetProperty("disk").GetProperty("quota").GetInt64());
        Assert.Equal("ledger", Assert.Single((await Run("ledger", "adapter", "ls", "--json")).Json.GetProperty("adapters").EnumerateArray()).GetProperty("name").GetString());

        var shown = await Run("ledger", "adapter", "show", "ledger");
        Assert.StartsWith("ledger: v1 is active", shown.Out, StringComparison.Ordinal);
        Assert.Contains("configuration", shown.Out, StringComparison.Ordinal);
        Assert.Equal("prolora", (await Run("ledger", "adapter", "show", "ledger", "--json")).Json.GetProperty("versionList")[0].GetProperty("kind").GetString());

        var resident = await Run("ledger", "ps");
        Assert.Equal(0, resident.ExitCode);
        Assert.Matches(@"ledger +v1 +(device|host|disk) +156\.3 kB", resident.Out);
        Assert.Contains("on the device; there is no limit.", resident.Out, StringComparison.Ordinal);
        Assert.Equal("v1", (await Run("ledger", "ps", "--json")).Json.GetProperty("adapters")[0].GetProperty("version").GetString());

        var absent = await Run("ledger", "adapter", "show", "harbor");
        Assert.Equal((1, ""), (absent.ExitCode, absent.Out));
        Assert.Contains("ledger has no adapter 'harbor'", absent.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_version_is_tried_beside_what_answers_now()
    {
        const string Question = "When are you open?";
        Assert.Equal(0, (await Run("kernel", "adapter", "push", Adapter("ledger"), "--name", "kernel")).ExitCode);
        var ledger = (await new Tool(host.Url, host.Key("ledger")) { Piped = Question }.RunAsync("chat", "--model", "ledger")).Out.TrimEnd();
        var kernel = (await new Tool(host.Url, host.Key("kernel")) { Piped = Question }.RunAsync("chat", "--model", "kernel")).Out.TrimEnd();
        var tried = await Run("kernel", "adapter", "try", "kernel@v2", Question);
        Assert.Equal((0, ""), (tried.ExitCode, tried.Error));
        Assert.Equal($"kernel@v1 (active):\n{kernel}\n\nkernel@v2:\n{ledger}\n", tried.Out.ReplaceLineEndings("\n"));

        var json = (await Run("kernel", "adapter", "try", "kernel", Question, "--json")).Json;           // the newest
        Assert.Equal(Question, json.GetProperty("prompt").GetString());
        Assert.Equal([("kernel@v1", kernel, "stop"), ("kernel@v2", ledger, "stop")], json.GetProperty("answers").EnumerateArray().Select(a => (a.GetProperty("model").GetString()!, a.GetProperty("text").GetString()!, a.GetProperty("finishReason").GetString()!)));
        Assert.All(json.GetProperty("answers").EnumerateArray(), a => Assert.True(a.GetProperty("usage").GetProperty("completionTokens").GetInt32() > 3));

        // The active one has the base model beside it; on a terminal they stand side by side.
        var beside = await new Tool(host.Url, host.Key("kernel")) { OnTerminal = true, Environment = { ["NO_COLOR"] = "1" } }.RunAsync("adapter", "try", "kernel@v1", Question);
        Assert.Matches("^demo-7m \\(without it\\) +kernel@v1 *$", beside.Out.ReplaceLineEndings("\n").Split('\n')[0]);

        foreach (var (args, code, says) in new (string[], int, string)[]
        {
            (["kernel@v9", Question], 1, "kernel has no version v9"), (["harbor@v1", Question], 1, "kernel has no adapter 'harbor'"), (["kernel@v1", "  "], 2, "expected a question"), (["kernel@v1"], 2, "PROMPT"),
            (["kernel@latest", Question], 2, "Expected a version like v3"),
        })
        {
            var refused = await Run("kernel", ["adapter", "try", .. args]);
            Assert.Equal((code, ""), (refused.ExitCode, refused.Out));
            Assert.Contains(says, refused.Error, StringComparison.OrdinalIgnoreCase);
        }
        Assert.Equal(0, (await Run("kernel", "adapter", "rm", "kernel@v2", "--yes")).ExitCode);
    }

    [Fact]
    public async Task An_adapter_is_pinned_and_unpinned()
    {
        Assert.Equal((0, "lantern stays in memory now.\n"), await Says("pin", "lantern"));
        Assert.StartsWith("lantern: v1 is active, pinned in memory", (await Says("show", "lantern")).Item2, StringComparison.Ordinal);
        Assert.True((await Run("lantern", "adapter", "pin", "lantern", "--json")).Json.GetProperty("pinned").GetBoolean());
        Assert.Equal((0, "lantern takes turns with others now.\n"), await Says("unpin", "lantern"));
        Assert.Equal(1, (await Says("pin", "absent")).Item1);

        async Task<(int, string)> Says(params string[] args)
        {
            var run = await Run("lantern", ["adapter", .. args]);
            return (run.ExitCode, run.Out.ReplaceLineEndings("\n"));
        }
    }

    [Theory]
    [InlineData(".zip")]
    [InlineData(".tar.gz")]
    [InlineData(".tgz")]
    public async Task An_archive_is_taken_as_it_is_and_gives_its_name(string ending)
    {
        var name = "packed" + ending.Replace(".", "", StringComparison.Ordinal);
        var archive = Path.Combine(folder, name + ending);
        if (ending == ".zip")
        {
            await ZipFile.CreateFromDirectoryAsync(Adapter("sprout"), archive);
        }
        else
        {
            await using var file = File.Create(archive);
            await using var gzip = new GZipStream(file, CompressionLevel.Fastest);
            await TarFile.CreateFromDirectoryAsync(Adapter("sprout"), gzip, includeBaseDirectory: true);
        }
        var brought = await Run("sprout", "adapter", "push", archive);
        Assert.Equal((0, ""), (brought.ExitCode, brought.Error));
        Assert.StartsWith($"{name}@v1", brought.Out[brought.Out.IndexOf(name, StringComparison.Ordinal)..], StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_bad_adapter_is_refused_with_the_same_report_here_and_there()
    {
        Spoil();
        foreach (var command in new[] { "validate", "push" })
        {
            string[] named = command == "push" ? ["--name", "bad"] : [];
            var refused = await Run("kernel", ["adapter", command, folder, .. named]);
            Assert.Equal(1, refused.ExitCode);
            Assert.StartsWith("error  ", refused.Out, StringComparison.Ordinal);
            Assert.Contains("adapter_config.json: use_dora", refused.Out, StringComparison.Ordinal);
            Assert.Matches(@"expected  \[\d+, \d+\]\s+found     BF16 \[\d+, \d+\]", refused.Out);
            Assert.Contains("refused", refused.Out + refused.Error, StringComparison.Ordinal);

            var json = await Run("kernel", ["adapter", command, folder, "--json", .. named]);
            Assert.Equal(1, json.ExitCode);
            Assert.Contains(json.Json.GetProperty("findings").EnumerateArray(), f => f.GetProperty("code").GetString() == "peft_unsupported" && f.GetProperty("severity").GetString() == "error");
        }
        Assert.Equal(1, (await Run("kernel", "adapter", "show", "bad")).ExitCode);
    }

    [Fact]
    public async Task A_good_adapter_is_judged_without_a_server()
    {
        var tool = new Tool(null, null);
        var good = await tool.RunAsync("adapter", "validate", Adapter("harbor"));
        Assert.Equal((0, ""), (good.ExitCode, good.Error));
        Assert.Contains("accepted: prolora of rank 16, 428.0 kB", good.Out, StringComparison.Ordinal);
        var json = await new Tool(null, null).RunAsync("adapter", "validate", Adapter("harbor"), "--json", "--model", Repo.Path("models", "demo-7m"));
        Assert.True(json.Json.GetProperty("accepted").GetBoolean());
        Assert.StartsWith("sha256:", json.Json.GetProperty("adapter").GetProperty("digest").GetString(), StringComparison.Ordinal);

        var noFolder = await new Tool(null, null).RunAsync("adapter", "validate", Path.Combine(folder, "absent"));
        Assert.Equal(2, noFolder.ExitCode);
        var noModel = await new Tool(null, null).RunAsync("adapter", "validate", Adapter("harbor"), "--model", Adapter("harbor"));
        Assert.Equal(1, noModel.ExitCode);
        Assert.Contains("config.json", noModel.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Nothing_is_removed_unless_somebody_says_so()
    {
        Assert.Equal(0, (await Run("lantern", "adapter", "push", Adapter("sprout"), "--name", "gone")).ExitCode);
        var nobody = await Run("lantern", "adapter", "rm", "gone");
        Assert.Equal(2, nobody.ExitCode);
        Assert.Contains("--yes", nobody.Error, StringComparison.Ordinal);
        var no = await new Tool(host.Url, host.Key("lantern")) { Typed = "n\n" }.RunAsync("adapter", "rm", "gone");
        Assert.Equal((1, ""), (no.ExitCode, no.Out));
        Assert.Contains("Remove gone with 1 version(s), none active? [y/N]", no.Error, StringComparison.Ordinal);
        Assert.Equal(0, (await Run("lantern", "adapter", "show", "gone")).ExitCode);
        var yes = await new Tool(host.Url, host.Key("lantern")) { Typed = "y\n" }.RunAsync("adapter", "rm", "gone", "--json");
        Assert.Equal("gone", yes.Json.GetProperty("removed").GetString());
        Assert.Equal(1, (await Run("lantern", "adapter", "show", "gone")).ExitCode);
    }

    [Fact]
    public async Task A_folder_that_lacks_a_file_is_said_here()
    {
        File.Copy(Path.Combine(Adapter("harbor"), "adapter_config.json"), Path.Combine(folder, "adapter_config.json"));
        var run = await Run("harbor", "adapter", "push", folder, "--name", "half");
        Assert.Equal(1, run.ExitCode);
        Assert.Contains("adapter_model.safetensors is not there", run.Error, StringComparison.Ordinal);
        File.WriteAllText(Path.Combine(folder, "adapter_model.bin"), "a pickle");
        var pickle = await Run("harbor", "adapter", "push", folder, "--name", "half");
        Assert.Equal(1, pickle.ExitCode);
        Assert.Contains("safetensors", pickle.Out, StringComparison.Ordinal);
    }

    private Task<Run> Run(string tenant, params string[] args) => host.Tool(tenant).RunAsync(args);

    private static string Adapter(string name) => Repo.Path("adapters", name);

    private void Spoil()
    {
        var config = JsonNode.Parse(File.ReadAllText(Path.Combine(Adapter("harbor"), "adapter_config.json")))!;
        (config["r"], config["use_dora"]) = (3, true);
        File.WriteAllText(Path.Combine(folder, "adapter_config.json"), config.ToJsonString());
        File.Copy(Path.Combine(Adapter("harbor"), "adapter_model.safetensors"), Path.Combine(folder, "adapter_model.safetensors"));
    }
}
