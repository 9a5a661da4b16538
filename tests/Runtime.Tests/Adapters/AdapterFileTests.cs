using System.Text.Json.Nodes;
using TenantLora.Runtime.Adapters;
using TenantLora.Runtime.Backends;
using TenantLora.Runtime.Models;
using TenantLora.Tests;

namespace TenantLora.Runtime.Tests.Adapters;

public sealed class AdapterFileTests
{
    private static readonly ModelConfig Demo = ModelConfig.Load(Repo.Path("models", "demo-7m"));

    [Theory]
    [InlineData("harbor", "prolora", 16, 2, 4, 4, 3, 3, 1f)]
    [InlineData("ledger", "prolora", 8, 1, 7, 7, 1, 1, 2f)]
    [InlineData("sprout", "prolora", 16, 0, 8, 8, 2, 2, 1f)]
    [InlineData("lantern", "prolora", 32, 4, 4, 8, 7, 3, 0.5f)]
    [InlineData("kernel", "lora", 8, 0, 1, 1, 0, 0, 2f)]
    public void The_demo_adapters_are_accepted(string name, string kind, int rank, int unshared, int chunksA, int chunksB, int shiftA, int shiftB, float scale)
    {
        var (report, adapter) = AdapterFile.Read(Repo.Path("adapters", name), Demo, maxRank: 64, baseModel: "demo-7m");
        using var _ = adapter;
        var memory = Assert.Single(report.Findings);
        Assert.Equal(("memory_estimate", Severity.Information), (memory.Code, memory.Severity));
        Assert.Equal((kind, rank, "tenantlora-demo-7m"), (report.Adapter!.Kind, report.Adapter.Rank, report.Adapter.BaseModel));
        Assert.Equal(8 * 7, adapter!.Modules.All.Count());
        Assert.All(adapter.Modules.All, m => Assert.Equal((rank - unshared, unshared, chunksA, chunksB, shiftA, shiftB, scale),
            (m.SharedRank, m.UnsharedRank, m.ChunksA, m.ChunksB, m.ShiftA, m.ShiftB, m.Scale)));

        // r·(h + o) in two bytes, over the seven linears of eight layers.
        Assert.Equal(8L * 2 * rank * (512 + 384 + 384 + 512 + 1024 + 1024 + 1024), report.Adapter.ExpandedBytes);
        if (kind == "lora") Assert.Equal(report.Adapter.ExpandedBytes, report.Adapter.Bytes);
        else Assert.InRange(report.Adapter.Bytes, report.Adapter.ExpandedBytes / 8, report.Adapter.ExpandedBytes * 2 / 5);
    }

    [Fact]
    public void Values_are_the_files()
    {
        using var harbor = AdapterFile.Read(Repo.Path("adapters", "harbor"), Demo, 64).Adapter!;
        using var ledger = AdapterFile.Read(Repo.Path("adapters", "ledger"), Demo, 64).Adapter!;
        using var kernel = AdapterFile.Read(Repo.Path("adapters", "kernel"), Demo, 64).Adapter!;
        // Read from the bytes with Python's struct.
        var a = DenseLora.Values(harbor.Modules[0, Projection.Down]!.A!);
        Assert.Equal((14, 192, -0.0849609375f, -0.00909423828125f, -0.05908203125f), (a.GetLength(0), a.GetLength(1), a[0, 0], a[0, 1], a[13, 191]));
        var vector = DenseLora.Values(ledger.Modules[7, Projection.Key]!.BVec!);
        Assert.Equal((1, 128, -0.140625f, -0.0277099609375f), (vector.GetLength(0), vector.GetLength(1), vector[0, 0], vector[0, 127]));
        var b = DenseLora.Values(kernel.Modules[3, Projection.Up]!.B!);
        Assert.Equal((768, 8, -0.03173828125f, -0.0005950927734375f), (b.GetLength(0), b.GetLength(1), b[0, 0], b[767, 7]));
    }

    [Fact]
    public void The_digest_is_over_both_files()
    {
        var digests = new HashSet<string>();
        using var folder = new AdapterFolder().AddQueryAndValue();
        Assert.True(digests.Add(Digest()));
        Assert.False(digests.Add(Digest()));
        folder.Config["lora_alpha"] = 9;
        Assert.True(digests.Add(Digest()));
        folder.Tensors[0].Data[1] ^= 1;
        Assert.True(digests.Add(Digest()));
        Assert.All(digests, d => Assert.Matches("^sha256:[0-9a-f]{64}$", d));

        string Digest()
        {
            using var adapter = folder.Accept();
            return adapter.Info.Digest;
        }
    }

    /// <summary>The compact formulas of LoraModule, run as they stand, against the expanded pair.</summary>
    [Theory]
    [InlineData(6, 2, 3, 5, null, null, true)]
    [InlineData(8, 1, 7, 7, null, null, true)]
    [InlineData(8, 1, 7, 7, null, null, false)]
    [InlineData(4, 0, 8, 3, 3, 1000003, true)]
    [InlineData(5, 5, 4, 4, null, null, true)]
    [InlineData(7, 3, 60, 50, 0, 2, true)]
    [InlineData(3, 0, 1, 1, null, null, true)]
    public void Geometry_is_read_as_the_formulas_want_it(int rank, int unshared, int chunksA, int chunksB, int? shiftA, int? shiftB, bool rotation)
    {
        using var folder = new AdapterFolder("PROLORA");
        folder.Config["r"] = rank;
        folder.Config["unshared_r"] = unshared;
        folder.Config["reduce_lora_A_x"] = chunksA;
        folder.Config["reduce_lora_B_x"] = chunksB;
        folder.Config["lora_A_shift_size"] = shiftA;
        folder.Config["lora_B_shift_size"] = shiftB;
        folder.Config["enable_lora_rotation"] = rotation;
        folder.Config["target_modules"] = new JsonArray("up_proj");
        var shared = rank - unshared;
        for (var layer = 0; layer < 2; layer++)
        {
            if (shared > 0)
            {
                folder.Add(AdapterFolder.Name(layer, "mlp.up_proj", "lora_A.weight"), shared, (64 + chunksA - 1) / chunksA);
                folder.Add(AdapterFolder.Name(layer, "mlp.up_proj", "lora_B.weight"), (128 + chunksB - 1) / chunksB, shared);
            }

            if (unshared == 0) continue;
            folder.Add(AdapterFolder.Name(layer, "mlp.up_proj", "lora_A_vec"), unshared, 64);
            folder.Add(AdapterFolder.Name(layer, "mlp.up_proj", "lora_B_vec"), unshared, 128);
        }

        using var adapter = folder.Accept();
        var module = adapter.Modules[1, Projection.Up]!;
        Assert.Equal((shared, unshared, 8f / rank), (module.SharedRank, module.UnsharedRank, module.Scale));
        Assert.True((module.ChunksA - 1) * module.ChunkWidth < 64 && (module.ChunksB - 1) * module.ChunkHeight < 128, "no chunk is empty");
        if (shared > 0)
        {
            Assert.Equal((rotation ? (shiftA ?? Math.Max(shared / chunksA, 1)) % shared : 0, rotation ? (shiftB ?? Math.Max(shared / chunksB, 1)) % shared : 0), (module.ShiftA, module.ShiftB));
        }

        var random = new Random(3);
        var x = Enumerable.Range(0, 64).Select(_ => (float)random.NextDouble()).ToArray();
        var expected = DenseLora.Apply(module, x);
        var found = Compact(module, x);
        for (var i = 0; i < 128; i++) Assert.Equal(expected[i], found[i], 1e-4f);
        Assert.Contains(expected, v => Math.Abs(v) > 1e-3);
    }

    private static float[] Compact(LoraModule m, float[] x)
    {
        var y = new float[m.Outputs];
        if (m.A is not null)
        {
            var (a, b, r) = (DenseLora.Values(m.A), DenseLora.Values(m.B!), m.SharedRank);
            var z = new float[r];
            for (var k = 0; k < r; k++)
                for (var j = 0; j < m.ChunksA; j++)
                    for (var t = 0; t < m.ChunkWidth && (j * m.ChunkWidth) + t < m.Inputs; t++)
                        z[k] += a[(k + (j * m.ShiftA)) % r, t] * x[(j * m.ChunkWidth) + t];
            for (var i = 0; i < m.ChunksB; i++)
                for (var t = 0; t < m.ChunkHeight && (i * m.ChunkHeight) + t < m.Outputs; t++)
                    for (var k = 0; k < r; k++)
                        y[(i * m.ChunkHeight) + t] += m.Scale * b[t, k] * z[(((k - (i * m.ShiftB)) % r) + r) % r];
        }

        if (m.AVec is not null)
        {
            var (a, b) = (DenseLora.Values(m.AVec), DenseLora.Values(m.BVec!));
            for (var k = 0; k < m.UnsharedRank; k++)
            {
                float z = 0;
                for (var t = 0; t < m.Inputs; t++) z += a[k, t] * x[t];
                for (var o = 0; o < m.Outputs; o++) y[o] += m.Scale * b[k, o] * z;
            }
        }

        return y;
    }

    [Theory]
    [InlineData("F32"), InlineData("F16"), InlineData("BF16")]
    public void Every_weight_type_is_kept(string type)
    {
        using var folder = new AdapterFolder(patch: """{"target_modules":["down_proj"],"layers_to_transform":1}""").AddPair(1, "mlp.down_proj", type: type);
        using var adapter = folder.Accept();
        Assert.Equal(Enum.Parse<DType>(type), Assert.Single(adapter.Modules.All).A!.Type);
        Assert.Equal(4 * (128 + 64) * Enum.Parse<DType>(type).Size(), adapter.Info.Bytes);
    }

    [Theory]
    [InlineData("F32", 5, 0x7FC00000u, "NaN")]
    [InlineData("F32", 0, 0xFFC00001u, "NaN")]
    [InlineData("F32", 255, 0x7F800000u, "Infinity")]
    [InlineData("F32", 254, 0xFF800000u, "Infinity")]
    [InlineData("F32", 17, 0x7F000000u, "1.7014118E+38")]
    [InlineData("BF16", 255, 0x7F80u, "Infinity")]
    [InlineData("BF16", 3, 0xFFC0u, "NaN")]
    [InlineData("F16", 200, 0x7C00u, "Infinity")]
    [InlineData("F16", 255, 0xFE00u, "NaN")]
    public void Values_that_no_weight_has_are_refused(string type, int at, uint bits, string found)
    {
        using var folder = new AdapterFolder(patch: """{"target_modules":["q_proj"],"layers_to_transform":[0]}""").AddPair(0, "self_attn.q_proj", type: type);
        var name = AdapterFolder.Name(0, "self_attn.q_proj", "lora_A.weight");
        folder.Replace(name, t =>
        {
            if (type == "F32") BitConverter.GetBytes(bits).CopyTo(t.Data, at * 4);
            else BitConverter.GetBytes((ushort)bits).CopyTo(t.Data, at * 2);
            return t;
        });
        var finding = folder.Refuse("values_invalid");
        Assert.Equal(($"adapter_model.safetensors: {name}", found), (finding.Where, finding.Found));
    }

    [Fact]
    public void A_silent_adapter_is_served_with_a_warning()
    {
        using var folder = new AdapterFolder().AddQueryAndValue();
        foreach (var tensor in folder.Tensors.Where(t => t.Name.Contains("lora_B", StringComparison.Ordinal))) Array.Clear(tensor.Data);
        var (report, adapter) = folder.Read();
        adapter!.Dispose();
        Assert.Equal(Severity.Warning, Assert.Single(report.Findings, f => f.Code == "adapter_is_noop").Severity);
        folder.Tensors[1].Data[2] = 1;
        Assert.DoesNotContain(folder.Read().Report.Findings, f => f.Code == "adapter_is_noop");
        folder.Config["lora_alpha"] = 0;
        Assert.Contains(folder.Read().Report.Findings, f => f.Code == "adapter_is_noop");
    }

    [Theory]
    [InlineData("acme/tiny", false), InlineData("/models/Tiny/", false), InlineData("tiny-chat", false), InlineData("other", true)]
    public void Another_base_by_name_is_a_warning(string baseModel, bool warned)
    {
        using var folder = new AdapterFolder().AddQueryAndValue();
        var (report, adapter) = folder.Read(baseModel: baseModel);
        adapter!.Dispose();
        Assert.Equal(warned, report.Findings.Any(f => f is { Code: "base_mismatch", Severity: Severity.Warning }));
    }

    [Fact]
    public void A_model_of_other_shapes_refuses_every_tensor_in_one_report()
    {
        var (report, adapter) = AdapterFile.Read(Repo.Path("adapters", "kernel"), AdapterFolder.Model, 64);
        Assert.Null(adapter);
        Assert.Equal(17, report.Findings.Count(f => f.Code == "shape_mismatch"));
        Assert.Contains(report.Findings, f => f is { Code: "shape_mismatch", Expected: "[8, 64]", Found: "BF16 [8, 256]" });
        Assert.Contains(report.Findings, f => f is { Code: "shape_mismatch", What: "12 more of the same kind." });
        Assert.Contains(report.Findings, f => f.Code == "module_unsupported" && f.Where.Contains("layers.2.", StringComparison.Ordinal));
    }

    [Fact]
    public void Findings_of_every_kind_come_in_one_report()
    {
        using var folder = new AdapterFolder(patch: """{"use_dora":true,"lora_alpha":"x"}""").AddQueryAndValue();
        folder.Tensors.RemoveAt(0);
        folder.Replace(AdapterFolder.Name(1, "self_attn.v_proj", "lora_B.weight"), t => (t.Name, t.Type, [t.Shape[1], t.Shape[0]], t.Data));
        folder.Add("base_model.model.lm_head.lora_A.weight", 4, 64);
        folder.Tensors[^2].Data[3] = 0x7F;
        folder.Tensors[^2].Data[2] = 0x80;
        var codes = folder.Read().Report.Findings.Where(f => f.Severity == Severity.Error).Select(f => f.Code).Order();
        Assert.Equal(["config_invalid", "module_unsupported", "peft_unsupported", "shape_mismatch", "tensor_missing", "values_invalid"], codes);
    }

    [Fact]
    public void Missing_files_are_found()
    {
        using var folder = new AdapterFolder();
        var (report, _) = AdapterFile.Read(folder.Path, AdapterFolder.Model, 64);
        Assert.Equal([("config_missing", "adapter_config.json"), ("safetensors_invalid", "adapter_model.safetensors")], report.Findings.Select(f => (f.Code, f.Where)));
    }

    /// <summary>Templates and code that others have run from an adapter's folder.</summary>
    [Fact]
    public void What_lies_beside_the_two_files_is_not_read()
    {
        using var folder = new AdapterFolder().AddQueryAndValue();
        using var alone = folder.Accept();
        foreach (var name in new[] { "chat_template.jinja", "tokenizer_config.json", "added_tokens.json", "modeling.py", "adapter_model.safetensors.index.json" })
            File.WriteAllText(Path.Combine(folder.Path, name), "{{ ''.__class__ }}");
        using var among = folder.Accept();
        Assert.Equal(alone.Info, among.Info);
    }

    [Theory]
    [InlineData("adapter_config.json", "config_missing"), InlineData("adapter_model.safetensors", "safetensors_invalid")]
    public void Folders_and_links_that_lead_nowhere_are_findings(string name, string code)
    {
        using var folder = new AdapterFolder().AddQueryAndValue();
        folder.Read().Adapter!.Dispose();
        var path = Path.Combine(folder.Path, name);
        File.Delete(path);
        Directory.CreateDirectory(path);
        Check();
        Directory.Delete(path);
        File.CreateSymbolicLink(path, path);
        Check();
        File.Delete(path);
        File.CreateSymbolicLink(path, path + ".gone");
        Check();

        void Check()
        {
            var (report, adapter) = AdapterFile.Read(folder.Path, AdapterFolder.Model, 64);
            Assert.Null(adapter);
            var finding = Assert.Single(report.Findings, f => f.Severity == Severity.Error);
            Assert.Equal((code, name, "a readable file"), (finding.Code, finding.Where, finding.Expected));
            Assert.DoesNotContain(folder.Path, finding.ToString(), StringComparison.Ordinal);
        }
    }

    [Fact]
    public void Pickles_are_refused_under_any_name()
    {
        using var folder = new AdapterFolder();
        File.WriteAllBytes(Path.Combine(folder.Path, "adapter_model.bin"), [0x80, 2]);
        Assert.Contains(AdapterFile.Read(folder.Path, AdapterFolder.Model, 64).Report.Findings, f => f is { Code: "pickle_not_accepted", Severity: Severity.Error, Where: "adapter_model.bin" });

        File.WriteAllBytes(Path.Combine(folder.Path, "adapter_model.safetensors"), [.. "PK\x03\x04"u8, .. new byte[40]]);
        var findings = AdapterFile.Read(folder.Path, AdapterFolder.Model, 64).Report.Findings;
        Assert.Contains(findings, f => f is { Code: "pickle_not_accepted", Severity: Severity.Error, Where: "adapter_model.safetensors" });
        Assert.Contains(findings, f => f is { Code: "pickle_not_accepted", Severity: Severity.Warning, Where: "adapter_model.bin" });
    }

    private static readonly string Q = AdapterFolder.Name(0, "self_attn.q_proj", "lora_A.weight");

    /// <summary>What the tensors say against what the config says, beyond <see cref="UploadCorpus"/>.</summary>
    private static readonly Dictionary<string, (string Code, Action<AdapterFolder> Spoil)> Wrong = new()
    {
        ["lora-layer-padded"] = ("module_unsupported", f => f.Add("base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight", 4, 64)),
        ["lora-untargeted-module"] = ("tensor_unexpected", f => f.AddPair(0, "mlp.up_proj")),
        ["lora-wrong-prefix-leaves-none"] = ("tensor_missing", f => f.Tensors.ToList().ForEach(t => f.Replace(t.Name, x => (x.Name["base_model.".Length..], x.Type, x.Shape, x.Data)))),
        ["lora-adapter-name-kept"] = ("tensor_unexpected", f => f.Replace(Q, t => (t.Name.Replace("lora_A", "lora_A.default", StringComparison.Ordinal), t.Type, t.Shape, t.Data))),
        ["lora-embedding-pair"] = ("tensor_unexpected", f => f.Add("base_model.model.model.embed_tokens.lora_embedding_A", 4, 512)),
        ["lora-magnitude"] = ("tensor_unexpected", f => f.Add(AdapterFolder.Name(0, "self_attn.q_proj", "lora_magnitude_vector"), 1, 64)),
        ["lora-vectors-of-prolora"] = ("tensor_unexpected", f => f.Add(AdapterFolder.Name(0, "self_attn.q_proj", "lora_A_vec"), 4, 64)),
        ["lora-1d"] = ("shape_mismatch", f => f.Replace(Q, t => (t.Name, t.Type, [256], t.Data))),
        ["no-tensor"] = ("safetensors_invalid", f => f.Tensors.Clear()),
        ["file-too-long"] = ("safetensors_invalid", f => f.Tensors.Add(("x", "U8", [4_000_000], new byte[4_000_000]))),
    };

    public static TheoryData<string> WrongNames => [.. Wrong.Keys];

    [Theory]
    [MemberData(nameof(WrongNames))]
    public void Wrong_tensors_are_refused(string name)
    {
        var (code, spoil) = Wrong[name];
        using var folder = new AdapterFolder().AddQueryAndValue();
        spoil(folder);
        var finding = folder.Refuse(code);
        Assert.NotNull(finding.Expected);
    }

    /// <summary>To open a pipe would be to wait for somebody who writes to it.</summary>
    [Theory]
    [InlineData("adapter_config.json", "config_missing")]
    [InlineData("adapter_model.safetensors", "safetensors_invalid")]
    public async Task A_pipe_in_a_files_place_is_refused_at_once(string file, string code)
    {
        if (OperatingSystem.IsWindows()) Assert.Skip("Windows has no pipes among its files.");
        using var folder = new AdapterFolder().AddQueryAndValue();
        folder.Accept().Dispose();
        var path = Path.Combine(folder.Path, file);
        File.Delete(path);
        using (var make = System.Diagnostics.Process.Start("mkfifo", [path])) await make.WaitForExitAsync();
        var reading = Task.Run(() => AdapterFile.Read(folder.Path, AdapterFolder.Model, 64));
        if (await Task.WhenAny(reading, Task.Delay(TimeSpan.FromSeconds(20))) != reading)
        {
            await File.WriteAllBytesAsync(path, []);            // lets it go
            Assert.Fail("It waits for a writer.");
        }
        var (report, adapter) = await reading;
        Assert.Null(adapter);
        Assert.Contains(report.Findings, f => f.Severity == Severity.Error && f.Code == code);
    }
}
