using System.Diagnostics;
using TenantLora.Tests;

namespace TenantLora.Runtime.Tests.Adapters;

/// <summary>
/// Every file of the corpus as the engine judges it: accepted, or refused in short, printable words that name the rule and the place and
/// nothing of this machine, at once, and with nothing left behind. Alone in the process, since it weighs the heap.
/// </summary>
[Collection(nameof(Alone))]
public sealed class UploadCorpusTests(UploadCorpusTests.Served served) : IClassFixture<UploadCorpusTests.Served>, IDisposable
{
    /// <summary>An engine on the demo model.</summary>
    public sealed class Served : IAsyncDisposable
    {
        public Engine Engine { get; } = Engine.Start(new EngineOptions { ModelDirectory = Repo.Path("models", "demo-7m"), Device = "cpu", Threads = 1, CacheTokens = 4096 });

        public ValueTask DisposeAsync() => Engine.DisposeAsync();
    }

    private readonly string folder = Directory.CreateTempSubdirectory("upload").FullName;

    public void Dispose() => Directory.Delete(folder, recursive: true);

    public static TheoryData<string> Names => [.. UploadCorpus.Cases.Keys, .. UploadCorpus.More.Keys];

    [Theory]
    [MemberData(nameof(Names))]
    public void An_upload_becomes_what_its_case_says(string name)
    {
        var upload = UploadCorpus.Cases.GetValueOrDefault(name) ?? UploadCorpus.More[name];
        var report = Judge(upload);

        var errors = report.Findings.Where(f => f.Severity == Severity.Error).ToList();
        if (upload.Code is null)
        {
            Assert.Empty(errors);
            Assert.Equal((name.StartsWith("prolora", StringComparison.Ordinal) ? "prolora" : "lora", upload.Rank), (report.Adapter!.Kind, report.Adapter.Rank));
            return;
        }

        Assert.False(report.Accepted);
        var finding = errors.FirstOrDefault(f => f.Code == upload.Code && f.Where == upload.Where);
        Assert.True(finding is not null, $"No {upload.Code} at {upload.Where} in:\n{string.Join('\n', errors)}");
        Assert.Contains(upload.Rule, $"{finding.What} Expected {finding.Expected}, found {finding.Found}. {finding.Fix}", StringComparison.Ordinal);
    }

    /// <summary>As many of each group as the specification lists.</summary>
    [Fact]
    public void The_corpus_is_whole()
    {
        var groups = UploadCorpus.Cases.Keys.CountBy(n => n.Split('-')[0]);
        Assert.Equal("ok 4, len 12, trunc 3, tail 3, not 6, json 14, dup 4, meta 5, info 7, dtype 4, shape 11, off 11, zero 2, scalar 1, name 6, hdr 2, lora 17, val 6, flip 4",
            string.Join(", ", groups.Select(g => $"{g.Key} {g.Value}")));
        Assert.Equal(122, UploadCorpus.Cases.Count);
    }

    [Fact]
    public void Nothing_of_the_uploads_stays_in_memory()
    {
        JudgeAll();
        var before = GC.GetTotalMemory(forceFullCollection: true);
        JudgeAll();
        Assert.InRange(GC.GetTotalMemory(forceFullCollection: true) - before, long.MinValue, 16 << 20);

        void JudgeAll()
        {
            foreach (var upload in UploadCorpus.Cases.Values) Judge(upload);
        }
    }

    private AdapterReport Judge(Upload upload)
    {
        var (config, weights) = (Path.Combine(folder, "adapter_config.json"), Path.Combine(folder, "adapter_model.safetensors"));
        File.WriteAllText(config, upload.Config);
        File.WriteAllBytes(weights, upload.Weights());

        var watch = Stopwatch.StartNew();
        var report = served.Engine.ValidateAdapter(folder);
        Assert.InRange(watch.Elapsed, TimeSpan.Zero, TimeSpan.FromSeconds(2));   // 250 ms and more wherever the machine is not busy

        Assert.InRange(report.Findings.Count, 1, 40);
        Assert.All(report.Findings, f =>
        {
            var text = string.Join('|', f.Code, f.What, f.Where, f.Expected, f.Found, f.Fix);
            Assert.All(text, c => Assert.InRange(c, ' ', '~'));
            Assert.InRange(text.Length, 1, 500);
            Assert.DoesNotContain(folder, text, StringComparison.Ordinal);
            Assert.DoesNotContain(Repo.Root, text, StringComparison.Ordinal);
        });
        // Fails while anybody else has one of them open.
        foreach (var file in new[] { config, weights }) File.Open(file, FileMode.Open, FileAccess.ReadWrite, FileShare.None).Dispose();
        return report;
    }
}

/// <summary>Tests that watch the whole process: no others run beside them.</summary>
[CollectionDefinition(nameof(Alone), DisableParallelization = true)]
public sealed class Alone;
