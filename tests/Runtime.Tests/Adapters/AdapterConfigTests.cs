using System.Text;
using System.Text.Json.Nodes;
using TenantLora.Runtime.Adapters;
using TenantLora.Runtime.Backends;

namespace TenantLora.Runtime.Tests.Adapters;

/// <summary><c>adapter_config.json</c> as PEFT writes it, reads it, and as people and strangers edit it.</summary>
public sealed class AdapterConfigTests
{
    /// <summary>PEFT 0.17 writes all of these beside the ones that matter.</summary>
    [Fact]
    public void A_config_as_peft_writes_it_is_accepted()
    {
        using var folder = new AdapterFolder(patch: """
            {
              "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null, "auto_mapping": null, "corda_config": null, "ensure_weight_tying": false,
              "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true, "layer_replication": null,
              "layers_pattern": null, "layers_to_transform": null, "loftq_config": {}, "lora_bias": false, "lora_dropout": 0.05, "megatron_config": null,
              "megatron_core": "megatron.core", "modules_to_save": null, "peft_version": "0.17.1", "qalora_group_size": 16, "rank_pattern": {}, "revision": null,
              "target_parameters": null, "task_type": "CAUSAL_LM", "trainable_token_indices": null, "use_dora": false, "use_qalora": false, "use_rslora": false
            }
            """).AddQueryAndValue();
        using var adapter = folder.Accept();
        Assert.Equal(("lora", 4, "acme/tiny"), (adapter.Info.Kind, adapter.Info.Rank, adapter.Info.BaseModel));
        Assert.Equal(4, adapter.Modules.All.Count());
        Assert.All(adapter.Modules.All, m => Assert.Equal((1, 1, 0, 0, 2f), (m.ChunksA, m.ChunksB, m.ShiftA, m.ShiftB, m.Scale)));
        Assert.Null(adapter.Modules[0, Projection.Key]);
    }

    [Theory]
    [InlineData("""{"use_rslora":true}""", 4f)]
    [InlineData("""{"lora_alpha":11.313708498984761}""", 2.828427f)]
    [InlineData("""{"lora_alpha":-8}""", -2f)]
    public void Scale_is_alpha_over_rank_or_its_root(string patch, float scale)
    {
        using var folder = new AdapterFolder(patch: patch).AddQueryAndValue();
        using var adapter = folder.Accept();
        Assert.All(adapter.Modules.All, m => Assert.Equal(scale, m.Scale, 1e-5f));
    }

    /// <summary>Ranks expected for layer 0 q, layer 0 v, layer 1 q, layer 1 v, with r 4; the first key that matches counts.</summary>
    [Theory]
    [InlineData("""{"q_proj":2}""", 2, 4, 2, 4)]
    [InlineData("""{"model.layers.1.self_attn.v_proj":8}""", 4, 4, 4, 8)]
    [InlineData("""{"layers.1.self_attn.v_proj":8,"v_proj":2}""", 4, 2, 4, 8)]
    [InlineData("""{"v_proj":2,"layers.1.self_attn.v_proj":8}""", 4, 2, 4, 2)]
    [InlineData("""{"layers\\.0\\..*":3}""", 3, 3, 4, 4)]
    [InlineData("""{"^model.layers.0.self_attn.q_proj":6}""", 6, 4, 4, 4)]
    [InlineData("""{"(self_attn|mlp)\\.(q|k)_proj":5}""", 5, 4, 5, 4)]
    [InlineData("""{"proj":9,"_proj":9,"elf_attn.q_proj":9,"layers.1":9,"lm_head":9}""", 4, 4, 4, 4)]
    [InlineData("""{"self.attn.q.proj":7}""", 7, 4, 7, 4)]
    [InlineData("""{".1.self_attn.q_proj":7}""", 4, 4, 4, 4)]
    [InlineData("""{"a|self_attn.q_proj":7}""", 7, 4, 7, 4)]
    public void Rank_patterns_match_as_peft_matches(string pattern, int q0, int v0, int q1, int v1)
    {
        using var folder = new AdapterFolder();
        folder.Config["rank_pattern"] = JsonNode.Parse(pattern);
        folder.AddPair(0, "self_attn.q_proj", q0).AddPair(0, "self_attn.v_proj", v0).AddPair(1, "self_attn.q_proj", q1).AddPair(1, "self_attn.v_proj", v1);
        using var adapter = folder.Accept();
        Assert.Equal([q0, v0, q1, v1], adapter.Modules.All.Select(m => m.SharedRank));
        Assert.Equal([8f / q0, 8f / v0, 8f / q1, 8f / v1], adapter.Modules.All.Select(m => m.Scale));
        Assert.Equal(new[] { q0, v0, q1, v1 }.Max(), adapter.Info.Rank);
    }

    [Fact]
    public void Alpha_patterns_scale_by_the_modules_own_rank()
    {
        using var folder = new AdapterFolder(patch: """{"rank_pattern":{"q_proj":2},"alpha_pattern":{"layers.1.self_attn.q_proj":32,"v_proj":1.5}}""");
        folder.AddPair(0, "self_attn.q_proj", 2).AddPair(0, "self_attn.v_proj").AddPair(1, "self_attn.q_proj", 2).AddPair(1, "self_attn.v_proj");
        using var adapter = folder.Accept();
        Assert.Equal([4f, 0.375f, 16f, 0.375f], adapter.Modules.All.Select(m => m.Scale));
    }

    /// <summary>Modules expected, as layer and PEFT's short name.</summary>
    [Theory]
    [InlineData("""{"target_modules":["q_proj"]}""", "0q 1q")]
    [InlineData("""{"target_modules":["self_attn.q_proj","model.layers.1.mlp.down_proj"]}""", "0q 1q 1down")]
    [InlineData("""{"target_modules":"all-linear"}""", "0q 0k 0v 0o 0gate 0up 0down 1q 1k 1v 1o 1gate 1up 1down")]
    [InlineData("""{"target_modules":".*self_attn\\.(q|k)_proj"}""", "0q 0k 1q 1k")]
    [InlineData("""{"target_modules":"model\\.layers\\.1\\..*gate_proj|.*\\.0\\.mlp\\.up_proj"}""", "0up 1gate")]
    [InlineData("""{"target_modules":["q_proj","up_proj"],"layers_to_transform":1}""", "1q 1up")]
    [InlineData("""{"target_modules":["q_proj"],"layers_to_transform":[0],"layers_pattern":"layers"}""", "0q")]
    [InlineData("""{"target_modules":["q_proj"],"layers_to_transform":[]}""", "0q 1q")]
    [InlineData("""{"target_modules":["q_proj","model.layers.1.self_attn.k_proj"],"layers_to_transform":[0]}""", "0q 1k")]
    [InlineData("""{"target_modules":["q_proj","k_proj"],"exclude_modules":["layers.0.self_attn.k_proj"]}""", "0q 1q 1k")]
    [InlineData("""{"target_modules":"all-linear","exclude_modules":".*(mlp|k_proj|v_proj|o_proj).*"}""", "0q 1q")]
    public void Targets_match_as_peft_matches(string patch, string modules)
    {
        using var folder = new AdapterFolder(patch: patch);
        var expected = modules.Split(' ').Select(m => (Layer: m[0] - '0', Path: ModuleName.Paths.Single(p => p.EndsWith($".{m[1..]}_proj", StringComparison.Ordinal)))).ToList();
        foreach (var (layer, path) in expected) folder.AddPair(layer, path);
        using var adapter = folder.Accept();
        Assert.Equal(expected.Count, adapter.Modules.All.Count());
        Assert.All(expected, e => Assert.NotNull(adapter.Modules[e.Layer, (Projection)Array.IndexOf(ModuleName.Paths, e.Path)]));
    }

    [Theory]
    [InlineData("use_dora", "true")]
    [InlineData("modules_to_save", """["lm_head"]""")]
    [InlineData("lora_bias", "true")]
    [InlineData("bias", "\"all\"")]
    [InlineData("fan_in_fan_out", "true")]
    [InlineData("alora_invocation_tokens", "[1,2]")]
    [InlineData("arrow_config", """{"top_k":3}""")]
    [InlineData("target_parameters", """["experts.down_proj"]""")]
    [InlineData("layer_replication", "[[0,2],[1,2]]")]
    [InlineData("trainable_token_indices", "[7]")]
    [InlineData("use_qalora", "true")]
    [InlineData("use_bdlora", """{"nblocks":2}""")]
    [InlineData("init_lora_weights", "\"pissa\"")]
    [InlineData("init_lora_weights", "\"pissa_niter_16\"")]
    [InlineData("init_lora_weights", "\"olora\"")]
    [InlineData("init_lora_weights", "\"corda\"")]
    [InlineData("init_lora_weights", "\"loftq\"")]
    [InlineData("init_lora_weights", "\"lora_ga\"")]
    [InlineData("init_lora_weights", "\"mica\"")]
    [InlineData("unshared_r", "2")]
    [InlineData("reduce_lora_A_x", "4")]
    [InlineData("a_field_of_next_year", "1")]
    [InlineData("peft_type", "\"ADALORA\"")]
    [InlineData("peft_type", "\"lora\"")]
    [InlineData("peft_type", "null")]
    public void A_set_field_that_is_not_honoured_is_refused_by_name(string field, string value)
    {
        using var folder = new AdapterFolder().AddQueryAndValue();
        folder.Config[field] = JsonNode.Parse(value);
        Assert.Equal($"adapter_config.json: {field}", folder.Refuse("peft_unsupported").Where);
    }

    [Theory]
    [InlineData("init_lora_weights", "false"), InlineData("init_lora_weights", "\"gaussian\""), InlineData("init_lora_weights", "\"eva\"")]
    [InlineData("modules_to_save", "[]"), InlineData("a_field_of_next_year", "false"), InlineData("auto_map", "{}"), InlineData("lora_dropout", "0.1")]
    public void A_field_that_changes_nothing_is_accepted(string field, string value)
    {
        using var folder = new AdapterFolder().AddQueryAndValue();
        folder.Config[field] = JsonNode.Parse(value);
        folder.Accept().Dispose();
    }

    [Theory]
    [InlineData("r", "null")]
    [InlineData("r", "\"8\"")]
    [InlineData("r", "8.5")]
    [InlineData("r", "-8")]
    [InlineData("r", "4294967300")]
    [InlineData("lora_alpha", "null")]
    [InlineData("lora_alpha", "1e7")]
    [InlineData("use_rslora", "1")]
    [InlineData("target_modules", "null")]
    [InlineData("target_modules", "[]")]
    [InlineData("target_modules", "[1]")]
    [InlineData("target_modules", "7")]
    [InlineData("target_modules", "\"(unbalanced\"")]
    [InlineData("target_modules", "\"a)|(b\"")]
    [InlineData("target_modules", "\"(?=x)q_proj\"")]
    [InlineData("target_modules", "\"(q)\\\\1\"")]
    [InlineData("layers_to_transform", "[2]")]
    [InlineData("layers_to_transform", "-1")]
    [InlineData("rank_pattern", "[]")]
    [InlineData("rank_pattern", """{"q_proj":0}""", "rank_pattern.q_proj")]
    [InlineData("rank_pattern", """{"q_proj":"8"}""", "rank_pattern.q_proj")]
    [InlineData("alpha_pattern", """{"q_proj":true}""", "alpha_pattern.q_proj")]
    [InlineData("alpha_pattern", """{"(":1}""")]
    [InlineData("base_model_name_or_path", "\"a\\r\\nb\"")]
    public void A_field_of_the_wrong_kind_is_refused_by_name(string field, string value, string? where = null)
    {
        using var folder = new AdapterFolder().AddQueryAndValue();
        folder.Config[field] = JsonNode.Parse(value);
        Assert.Equal($"adapter_config.json: {where ?? field}", folder.Refuse("config_invalid").Where);
    }

    [Theory]
    [InlineData("unshared_r", "5")]
    [InlineData("unshared_r", "-1")]
    [InlineData("reduce_lora_A_x", "0")]
    [InlineData("reduce_lora_A_x", "65")]
    [InlineData("reduce_lora_B_x", "-4")]
    [InlineData("reduce_lora_B_x", "2147483647")]
    [InlineData("lora_A_shift_size", "-3")]
    [InlineData("enable_lora_rotation", "\"yes\"")]
    public void Geometry_out_of_range_is_refused_by_name(string field, string value)
    {
        using var folder = new AdapterFolder("PROLORA").AddQueryAndValue();
        folder.Config[field] = JsonNode.Parse(value);
        Assert.Equal($"adapter_config.json: {field}", folder.Refuse("config_invalid").Where);
    }

    /// <summary>The authors' class has these defaults; with them PROLORA is LORA.</summary>
    [Fact]
    public void Absent_geometry_is_the_authors_default()
    {
        using var folder = new AdapterFolder("PROLORA", """{"enable_lora_vec":true,"init2zero_via_vec":false}""").AddQueryAndValue();
        using var adapter = folder.Accept();
        Assert.Equal("prolora", adapter.Info.Kind);
        Assert.All(adapter.Modules.All, m => Assert.Equal((1, 1, 4, 0), (m.ChunksA, m.ChunksB, m.SharedRank, m.UnsharedRank)));
    }

    [Theory]
    [InlineData("""["q_proj","v_proj","lm_head"]""", "lm_head")]
    [InlineData("""["q_proj","v_proj","embed_tokens"]""", "embed_tokens")]
    [InlineData("""["q_proj","v_proj","c_attn"]""", "c_attn")]
    [InlineData("""["q_proj","v_proj","layers.2.self_attn.k_proj"]""", "layers.2.self_attn.k_proj")]
    [InlineData("\"conv.*\"", "conv.*")]
    [InlineData("\".*\"", ".*")]
    public void A_target_that_cannot_be_adapted_is_refused(string targets, string found)
    {
        using var folder = new AdapterFolder().AddQueryAndValue();
        folder.Config["target_modules"] = JsonNode.Parse(targets);
        Assert.Equal(found, folder.Refuse("module_unsupported").Found);
    }

    [Fact]
    public void Layers_and_a_regular_expression_exclude_each_other()
    {
        using var folder = new AdapterFolder(patch: """{"target_modules":".*q_proj","layers_to_transform":[0]}""").AddPair(0, "self_attn.q_proj");
        Assert.Equal("adapter_config.json: layers_to_transform", folder.Refuse("config_invalid").Where);
        folder.Config["target_modules"] = new JsonArray("q_proj");
        folder.Config["layers_pattern"] = "h";
        Assert.Equal("adapter_config.json: layers_pattern", folder.Refuse("peft_unsupported").Where);
    }

    [Theory]
    [InlineData("")]
    [InlineData("[]")]
    [InlineData("{\"peft_type\":\"LORA\",}")]
    [InlineData("{\"peft_type\":\"LORA\",\"peft_type\":\"PROLORA\"}")]
    [InlineData("{\"peft_type\":\"LORA\",\"peft\\u005ftype\":\"PROLORA\"}")]
    [InlineData("{\"peft_type\":\"LO\\ud800RA\"}")]
    [InlineData("{\"peft_type\":\"LORA\",\"rank_pattern\":{\"\\ud800\":1}}")]
    [InlineData("{\"peft_type\":\"LORA\",\"\\ud800\":1}")]
    [InlineData("{\"peft_type\":\"LORA\",\"target_modules\":[\"\\ud800\"]}")]
    public void Broken_json_is_a_finding(string text)
    {
        using var folder = new AdapterFolder().AddQueryAndValue();
        folder.Read().Adapter!.Dispose();
        File.WriteAllText(Path.Combine(folder.Path, "adapter_config.json"), text);
        var (report, adapter) = AdapterFile.Read(folder.Path, AdapterFolder.Model, 64);
        Assert.Null(adapter);
        Assert.Contains(report.Findings, f => f.Severity == Severity.Error && f.Code is "config_invalid" or "peft_unsupported");
    }

    /// <summary>Expressions that take a backtracking matcher, or its memory, to its knees.</summary>
    [Theory]
    [InlineData("(a+)+b|(.*)*proj(x+x+)+y")]
    [InlineData("((((.{500}){500}){500}){500})q_proj")]
    [InlineData("(.*a){50}.*")]
    [InlineData("(?:(?:(?:[a-z_.0-9]{0,90}){0,90}){0,90}){0,90}x")]
    public void Hostile_expressions_end(string expression)
    {
        using var folder = new AdapterFolder().AddQueryAndValue();
        folder.Config["target_modules"] = expression;
        Assert.False(folder.Read().Report.Accepted);
        folder.Config["target_modules"] = new JsonArray("q_proj", "v_proj");
        folder.Config["alpha_pattern"] = new JsonObject(Enumerable.Range(0, 40).Select(i => KeyValuePair.Create($"{expression}{i}", (JsonNode?)1)));
        folder.Read().Adapter?.Dispose();
    }

    /// <summary>What matching may cost is told from the text alone, before anything is matched.</summary>
    [Theory]
    [InlineData("q_proj", 6)]
    [InlineData("a{3}", 12)]
    [InlineData("(ab{2,30}){8}", 13 * 30 * 8)]
    [InlineData("a{12,}", 6 * 12)]
    [InlineData("a{,9}", 5 * 9)]
    [InlineData("a{99999999999}", 14L * ExpressionBudget.MostWeight)]
    [InlineData("{x}{", 4)]
    public void Counted_repetitions_weigh_as_if_written_out(string expression, long weight) => Assert.Equal(weight, ExpressionBudget.Weigh(expression));

    [Fact]
    public void Expressions_of_all_fields_share_one_budget()
    {
        using var folder = new AdapterFolder().AddQueryAndValue();
        JsonObject Many(int count, string expression) => new(Enumerable.Range(0, count).Select(i => KeyValuePair.Create($"{expression}|x{i}", (JsonNode?)4)));
        var most = ExpressionBudget.MostExpressions;
        folder.Config["target_modules"] = ".*(q|v)_proj";
        folder.Config["rank_pattern"] = Many(most / 2, ".*q_proj");
        folder.Config["alpha_pattern"] = Many((most / 2) - 1, ".*v_proj");
        folder.Accept().Dispose();
        folder.Config["alpha_pattern"] = Many(most / 2, ".*v_proj");
        Assert.Contains($"at most {most} regular expressions", folder.Refuse("config_invalid").Expected, StringComparison.Ordinal);

        // Few, but heavy: the second takes them beyond the weight.
        folder.Config["alpha_pattern"] = new JsonObject();
        folder.Config["rank_pattern"] = new JsonObject { ["(?:.*[a-m].{1,9}){4}.*"] = 4 };
        folder.Accept().Dispose();
        folder.Config["rank_pattern"] = new JsonObject { ["(?:.*[a-m].{1,9}){4}.*"] = 4, ["q_proj|(.{40}x){4}"] = 4 };
        Assert.Equal("adapter_config.json: rank_pattern", folder.Refuse("config_invalid").Where);
        // Names of modules are no expressions, and cost nothing of it.
        folder.Config["rank_pattern"] = new JsonObject(Enumerable.Range(0, 2).SelectMany(l => ModuleName.Paths.Select(p => KeyValuePair.Create($"model.layers.{l}.{p}", (JsonNode?)4))));
        folder.Accept().Dispose();
    }

    /// <summary>Bit flips, cuts and swapped JSON pieces, from a fixed seed: findings or none, never an exception.</summary>
    [Fact]
    public void Random_damage_is_read_or_found()
    {
        var random = new Random(20261122);
        var seed = Encoding.UTF8.GetBytes("""
            {"peft_type":"PROLORA","r":4,"lora_alpha":8,"target_modules":["q_proj"],"exclude_modules":"x.*","layers_to_transform":[0],"layers_pattern":["layers"],"bias":"none",
            "rank_pattern":{"q.*":2},"alpha_pattern":{"q_proj":1},"unshared_r":1,"reduce_lora_A_x":2,"lora_A_shift_size":1,"enable_lora_rotation":true,"init_lora_weights":"eva","base_model_name_or_path":"a"}
            """);
        string[] pieces = ["{", "}", "[", "]", ",", ":", "\"", "\\u0000", "\\ud800", "-1", "0", "1e9", "1e400", "null", "true", "99999999999", "\"LORA\"", "{}", "[]", "(", "*", "\\\\1", ".", "|", "\"\":1,"];
        var clean = 0;
        for (var i = 0; i < 5_000; i++)
        {
            var text = seed;
            for (var edits = random.Next(1, 4); edits > 0; edits--)
            {
                var at = random.Next(text.Length);
                var piece = Encoding.UTF8.GetBytes(pieces[random.Next(pieces.Length)]);
                text = random.Next(4) switch
                {
                    0 => [.. text[..at], (byte)(text[at] ^ (1 << random.Next(8))), .. text[(at + 1)..]],
                    1 => [.. text[..at], .. piece, .. text[at..]],
                    2 => [.. text[..at], .. piece, .. text[Math.Min(text.Length, at + piece.Length)..]],
                    _ => [.. text[..at], .. text[Math.Min(text.Length, at + random.Next(1, 20))..]],
                };
            }

            var findings = new Findings();
            var config = AdapterConfig.Read(text, AdapterFolder.Model, findings);
            Assert.True(config is not null || findings.HasErrors);
            if (!findings.HasErrors) clean++;
        }

        Assert.InRange(clean, 10, 4_500);
    }
}
