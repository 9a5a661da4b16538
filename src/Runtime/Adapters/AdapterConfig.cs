using System.Text.Json;
using System.Text.RegularExpressions;
using TenantLora.Runtime.Backends;
using TenantLora.Runtime.Models;

namespace TenantLora.Runtime.Adapters;

/// <summary>
/// What <c>adapter_config.json</c> says, as far as it is honoured: PEFT's <c>LORA</c> with rsLoRA, rank and alpha patterns, and
/// <c>PROLORA</c>, which adds the fields of the PRoLoRA authors' code with their defaults. Whatever else is set is refused by name,
/// known today or not, since an ignored field would mean other answers than the adapter was trained for.
/// </summary>
internal sealed record AdapterConfig
{
    public const string FileName = "adapter_config.json";

    public required bool IsProLora { get; init; }

    /// <summary>u.</summary>
    public required int UnsharedRank { get; init; }

    /// <summary>m.</summary>
    public required int ChunksA { get; init; }

    /// <summary>n.</summary>
    public required int ChunksB { get; init; }

    /// <summary>s_A; null: from r' and m.</summary>
    public required int? ShiftA { get; init; }

    /// <summary>s_B; null: from r' and n.</summary>
    public required int? ShiftB { get; init; }

    public required bool Rotation { get; init; }
    public required string? BaseModel { get; init; }

    /// <summary>The modules that the adapter must bring tensors for.</summary>
    public required IReadOnlyList<TargetModule> Modules { get; init; }

    /// <summary>
    /// Fields that say nothing about how the finished adapter is applied. qalora_group_size means something only beside use_qalora, and the
    /// configs of starting methods only beside init_lora_weights.
    /// </summary>
    private static readonly string[] Harmless =
    [
        "task_type", "inference_mode", "revision", "auto_mapping", "peft_version", "lora_dropout", "megatron_config", "megatron_core",
        "runtime_config", "qalora_group_size", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    ];

    /// <summary>Reads the file's bytes; null when nothing further can be told of the adapter.</summary>
    public static AdapterConfig? Read(byte[] file, ModelConfig model, Findings findings)
    {
        JsonDocument document;
        try
        {
            document = JsonFields.Parse(FileName, file);
        }
        catch (ModelFileException e)
        {
            findings.Error("config_invalid", FileName, "The file cannot be read.", e.Expected, e.Found);
            return null;
        }

        using (document) return Read(document.RootElement, model, findings);
    }

    private static AdapterConfig? Read(JsonElement root, ModelConfig model, Findings findings)
    {
        var json = new JsonFields(root, (field, expected, found) =>
            findings.Error("config_invalid", $"{FileName}: {field}", "The field does not hold what it should.", expected, found));

        var type = json.Text("peft_type");
        if (type is not ("LORA" or "PROLORA"))
        {
            Unsupported("peft_type", "The kind of adapter is not served.", "LORA or PROLORA", type is null ? "nothing" : Printable.Of(type));
            return null;
        }

        var prolora = type == "PROLORA";
        var config = new AdapterConfig
        {
            IsProLora = prolora,
            UnsharedRank = (prolora ? json.Whole("unshared_r", 0, int.MaxValue) : null) ?? 0,
            ChunksA = (prolora ? json.Whole("reduce_lora_A_x", 1, int.MaxValue) : null) ?? 1,
            ChunksB = (prolora ? json.Whole("reduce_lora_B_x", 1, int.MaxValue) : null) ?? 1,
            ShiftA = prolora ? json.Whole("lora_A_shift_size", 0, int.MaxValue) : null,
            ShiftB = prolora ? json.Whole("lora_B_shift_size", 0, int.MaxValue) : null,
            Rotation = prolora && (json.Flag("enable_lora_rotation") ?? true),
            BaseModel = ReadBaseModel(json),
            Modules = ReadModules(json, model, findings),
        };

        if (json.Text("bias") is { } bias && bias != "none") Unsupported("bias", "Trained biases are not served.", "none", Printable.Of(bias));
        if (json.Flag("fan_in_fan_out") == true) Unsupported("fan_in_fan_out", "Transposed weights are not served.", "false", "true");
        if (prolora && json.Flag("enable_lora_vec") == false)
            Unsupported("enable_lora_vec", "The vectors' ranks are part of PROLORA.", "true", "false");
        CheckStart(json.Any("init_lora_weights"));
        foreach (var name in Harmless) json.Any(name);
        foreach (var field in json.Unread.Where(f => !IsEmpty(f.Value)))
            Unsupported(Printable.Of(field.Name), "The field changes the adapter in a way that is not served, or is not known.", "nothing", JsonFields.Show(field.Value));
        return config;

        // PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA start from factors of the base weights and take them out of the base: their adapters fit
        // that changed base only. PEFT writes true where it has converted one back.
        void CheckStart(JsonElement? start)
        {
            var method = start is { ValueKind: JsonValueKind.String } ? JsonFields.AsText(start.Value) : null;
            if (start is null or { ValueKind: JsonValueKind.True or JsonValueKind.False } || method is "gaussian" or "eva" or "orthogonal") return;
            Unsupported("init_lora_weights", "The adapter may fit a changed copy of the base weights.", "true, false, gaussian, eva or orthogonal",
                JsonFields.Show(start.Value), "Save it with PEFT's path_initial_model_for_weight_conversion.");
        }

        void Unsupported(string field, string what, string expected, string found, string? fix = null) =>
            findings.Error("peft_unsupported", $"{FileName}: {field}", what, expected, found, fix);
    }

    private static IReadOnlyList<TargetModule> ReadModules(JsonFields json, ModelConfig model, Findings findings)
    {
        var (suffixes, budget) = (ModuleName.SuffixesOf(model), new ExpressionBudget());
        var rank = Present(json, "r", json.Whole("r", 1, int.MaxValue));
        var alpha = Present(json, "lora_alpha", json.Number("lora_alpha", -1e6, 1e6));
        var stabilised = json.Flag("use_rslora") ?? false;
        var ranks = NamePattern<int>.Read(json, "rank_pattern", suffixes, budget, "a whole number from 1", v => v.TryGetInt32(out var r) && r > 0 ? r : null);
        var alphas = NamePattern<double>.Read(json, "alpha_pattern", suffixes, budget, "a number within a million",
            v => v.TryGetDouble(out var a) && Math.Abs(a) <= 1e6 ? a : null);
        try
        {
            return [.. ModuleTargets.Read(json, model, budget, findings).Select(Target)];
        }
        catch (RegexMatchTimeoutException)
        {
            findings.Error("config_invalid", FileName, "A regular expression takes too long.");
            return [];
        }

        TargetModule Target(ModuleName module)
        {
            var name = module.ToString();
            var (r, a) = (ranks.Find(name) ?? rank, alphas.Find(name) ?? alpha ?? 0);
            return new TargetModule(module, r, (float)(a / (stabilised ? Math.Sqrt(r ?? 1) : r ?? 1)));
        }
    }

    private static string? ReadBaseModel(JsonFields json)
    {
        const string field = "base_model_name_or_path";
        if (json.Text(field) is not { } name || (name.Length <= 1024 && !name.Any(char.IsControl))) return json.Text(field);
        json.Refuse(field, "at most 1024 printable characters", Printable.Of(name));
        return null;
    }

    private static T? Present<T>(JsonFields json, string name, T? value) where T : struct
    {
        if (value is null && json.Any(name) is null) json.Refuse(name, "a number", "nothing");
        return value;
    }

    private static bool IsEmpty(JsonElement value) => value.ValueKind switch
    {
        JsonValueKind.False => true,
        JsonValueKind.Array => value.GetArrayLength() == 0,
        JsonValueKind.Object => value.GetPropertyCount() == 0,
        JsonValueKind.String => value.ValueEquals(""),
        _ => false,
    };
}

/// <summary>A module to be adapted.</summary>
/// <param name="Rank">r, the total one; null when the file holds none that is one.</param>
/// <param name="Scale">alpha / r, or alpha / sqrt(r) for rsLoRA.</param>
internal sealed record TargetModule(ModuleName Name, int? Rank, float Scale);

/// <summary>One of the model's linears by PEFT's name: <c>model.layers.3.self_attn.q_proj</c>.</summary>
internal readonly record struct ModuleName(int Layer, Projection Projection)
{
    /// <summary>In <see cref="Backends.Projection"/>'s order.</summary>
    public static readonly string[] Paths =
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];

    public static IEnumerable<ModuleName> AllOf(ModelConfig model) =>
        from layer in Enumerable.Range(0, model.Layers)
        from projection in Enum.GetValues<Projection>()
        select new ModuleName(layer, projection);

    /// <summary>Every module's name, and what follows each of its dots.</summary>
    public static HashSet<string> SuffixesOf(ModelConfig model)
    {
        var suffixes = new HashSet<string>(StringComparer.Ordinal);
        foreach (var module in AllOf(model))
            for (var name = module.ToString(); suffixes.Add(name) && name.IndexOf('.', StringComparison.Ordinal) is var dot and >= 0;)
                name = name[(dot + 1)..];
        return suffixes;
    }

    /// <summary>Whether <paramref name="end"/> is all of <paramref name="name"/>, or what follows one of its dots.</summary>
    public static bool EndsWith(string name, string end) =>
        name.EndsWith(end, StringComparison.Ordinal) && (name.Length == end.Length || name[^(end.Length + 1)] == '.');

    public override string ToString() => $"model.layers.{Layer}.{Paths[(int)Projection]}";
}
