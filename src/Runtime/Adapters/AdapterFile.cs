using System.Buffers.Binary;
using System.Globalization;
using System.Security.Cryptography;
using TenantLora.Runtime.Backends;
using TenantLora.Runtime.Models;

namespace TenantLora.Runtime.Adapters;

/// <summary>
/// Reads a PEFT folder (<c>adapter_config.json</c>, <c>adapter_model.safetensors</c>) from a stranger and judges it against the base
/// model: one pass, every finding, and an <see cref="Adapter"/> only when none is an error. Geometry is read here and nowhere else:
/// downstream, plain LoRA is PRoLoRA with one chunk.
/// <para>
/// Choices: the tensors of a module share one type, F32, F16 or BF16, while modules may differ; every targeted module needs its tensors
/// and every tensor a targeted module; a finite value beyond fp16's range is as invalid as an infinite one, for no trained weight is
/// near it and its products overflow.
/// </para>
/// </summary>
internal sealed class AdapterFile
{
    public const string WeightsName = "adapter_model.safetensors";

    private const string PickleName = "adapter_model.bin";
    private const string Prefix = "base_model.model.";
    private const int MaxConfigBytes = 1 << 20;
    private const float LargestValue = 65504;
    private static readonly string[] Roles = [".lora_A.weight", ".lora_B.weight", ".lora_A_vec", ".lora_B_vec"];

    private readonly ModelConfig model;
    private readonly int maxRank;
    private readonly Findings findings = new();
    private readonly LoraModules modules;
    private readonly HashSet<string> used = new(StringComparer.Ordinal);

    private AdapterFile(ModelConfig model, int maxRank) => (this.model, this.maxRank, modules) = (model, maxRank, new LoraModules(model.Layers));

    /// <param name="directory">Named in no finding: reports are shown to whoever brought the files.</param>
    /// <param name="baseModel">The base model's name, to compare with <c>base_model_name_or_path</c>; null: not compared.</param>
    public static (AdapterReport Report, Adapter? Adapter) Read(string directory, ModelConfig model, int maxRank, string? baseModel = null) =>
        new AdapterFile(model, maxRank).Read(directory, baseModel);

    private (AdapterReport, Adapter?) Read(string directory, string? baseModel)
    {
        var configBytes = ReadConfig(directory);
        var config = configBytes is null ? null : AdapterConfig.Read(configBytes, model, findings);
        var tensors = OpenTensors(directory);
        if (tensors is null) return (new AdapterReport(null, findings.ToList()), null);

        var lively = CheckValues(tensors);
        if (config is not null)
        {
            foreach (var target in config.Modules)
                if (ReadModule(config, target, tensors) is { } module) modules[target.Name.Layer, target.Name.Projection] = module;
            CheckUnused(config, tensors);
            CheckMeaning(config, lively, baseModel);
        }

        if (config is null || findings.HasErrors)
        {
            tensors.Dispose();
            return (new AdapterReport(null, findings.ToList()), null);
        }

        var info = Describe(config, Digest(configBytes!, tensors));
        return (new AdapterReport(info, findings.ToList()), new Adapter(info, modules, tensors));
    }

    private byte[]? ReadConfig(string directory)
    {
        try
        {
            return JsonFields.Read(Path.Combine(directory, AdapterConfig.FileName), MaxConfigBytes);
        }
        catch (ModelFileException e)
        {
            findings.Error("config_missing", AdapterConfig.FileName, "The file cannot be read.", e.Expected, e.Found,
                "Bring the folder as PEFT's save_pretrained writes it.");
            return null;
        }
    }

    private SafeTensors? OpenTensors(string directory)
    {
        var path = Path.Combine(directory, WeightsName);
        var pickle = File.Exists(Path.Combine(directory, PickleName));
        if (pickle && !File.Exists(path))
        {
            Pickle(PickleName, Severity.Error);
            return null;
        }

        if (pickle) Pickle(PickleName, Severity.Warning);
        try
        {
            return SafeTensors.Read(path, SafeTensorsLimits.Adapter with { FileBytes = LargestFile(model, maxRank) });
        }
        catch (ModelFileException e)
        {
            var where = e.Field is null ? WeightsName : Where(e.Field);
            if (IsPickle(path)) Pickle(WeightsName, Severity.Error);
            else findings.Error("safetensors_invalid", where, "The file is not what the format allows.", e.Expected, e.Found);
            return null;
        }

        void Pickle(string file, Severity severity) => findings.Add(new AdapterFinding("pickle_not_accepted", severity,
            severity == Severity.Error ? "A pickle can run code when it is read, so it never is." : "The pickle beside the weights is not read.",
            file, WeightsName, "a pickle", "Save with safe_serialization=True."));
    }

    /// <summary>torch.save's zip, or a bare pickle of protocol 2 to 5.</summary>
    private static bool IsPickle(string path)
    {
        try
        {
            Span<byte> start = stackalloc byte[4];
            using var file = RegularFile.Open(path);
            return RandomAccess.Read(file, start, 0) == 4 && (start.SequenceEqual("PK\x03\x04"u8) || start is [0x80, >= 2 and <= 5, ..]);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return false;
        }
    }

    /// <summary>Every linear adapted at the highest rank in fp32, uncompacted, is as large as a file that can be accepted gets.</summary>
    public static long LargestFile(ModelConfig model, int maxRank)
    {
        var perLayer = Enum.GetValues<Projection>().Select(model.Shape).Sum(s => (long)s.Inputs + s.Outputs);
        return 8 + SafeTensorsLimits.Adapter.HeaderBytes + (perLayer * model.Layers * maxRank * sizeof(float));
    }

    /// <summary>Finds the tensors with values that no weight has; returns the names of those that are not zero throughout.</summary>
    private HashSet<string> CheckValues(SafeTensors tensors)
    {
        var lively = new HashSet<string>(StringComparer.Ordinal);
        foreach (var entry in tensors.Entries.Values.Where(e => IsWeight(e) && e.Shape.Length is 1 or 2 && e.Shape.All(n => n <= int.MaxValue)))
        {
            var largest = Magnitude.Largest(tensors.Find(entry.Name));
            if (largest != 0) lively.Add(entry.Name);
            // A NaN's bits are larger than all others: it fails here too.
            if (!(largest <= LargestValue))
                findings.Error("values_invalid", Where(entry.Name), "A value is not a number that a weight can be.",
                    $"finite values within {LargestValue.ToString(CultureInfo.InvariantCulture)}", largest.ToString(CultureInfo.InvariantCulture));
        }

        return lively;
    }

    private static bool IsWeight(TensorEntry entry) => entry.DType is "F32" or "F16" or "BF16";

    /// <summary>A module's tensors, shapes checked against the base; null when something is wrong with them.</summary>
    private LoraModule? ReadModule(AdapterConfig config, TargetModule target, SafeTensors tensors)
    {
        var name = target.Name.ToString();
        var (inputs, outputs) = model.Shape(target.Name.Projection);
        if (target.Rank is not { } rank || !CheckRank(config, name, rank) || !CheckChunks(config, name, inputs, outputs))
        {
            foreach (var role in Roles) used.Add(Prefix + name + role);   // nothing can be said of their shapes
            return null;
        }

        var unshared = config.UnsharedRank;
        var shared = rank - unshared;
        var (width, height) = (Chunk(inputs, config.ChunksA), Chunk(outputs, config.ChunksB));
        var module = new LoraModule
        {
            Inputs = inputs,
            Outputs = outputs,
            // Where m·c_A overshoots by a chunk and more (h = 10, m = 7), the last chunks are empty: dropped here, nobody meets one.
            ChunksA = Chunk(inputs, width),
            ChunksB = Chunk(outputs, height),
            ShiftA = Shift(config.ShiftA, config.ChunksA),
            ShiftB = Shift(config.ShiftB, config.ChunksB),
            Scale = target.Scale,
            A = shared > 0 ? Find(Roles[0], shared, width) : null,
            B = shared > 0 ? Find(Roles[1], height, shared) : null,
            AVec = unshared > 0 ? Find(Roles[2], unshared, inputs) : null,
            BVec = unshared > 0 ? Find(Roles[3], unshared, outputs) : null,
        };
        HostTensor?[] found = [module.A, module.B, module.AVec, module.BVec];
        var types = found.OfType<HostTensor>().Select(t => t.Type).Distinct().ToList();
        if (types.Count > 1)
            findings.Error("safetensors_invalid", Where(Prefix + name), "The tensors of one module differ in type.", "one type", string.Join(", ", types));
        return module;

        int Shift(int? written, int chunks) => !config.Rotation || shared == 0 ? 0 : (written ?? Math.Max(shared / chunks, 1)) % shared;

        HostTensor? Find(string role, int rows, int cols) => FindTensor(tensors, Prefix + name + role, rows, cols);
    }

    private static int Chunk(int size, int chunks) => (size + chunks - 1) / chunks;

    private bool CheckRank(AdapterConfig config, string module, int rank)
    {
        if (rank > maxRank)
        {
            findings.Error("rank_limit_exceeded", InConfig("r"), $"The rank of {module} is above this server's limit.", $"at most {maxRank}", $"{rank}");
            return false;
        }

        if (config.UnsharedRank <= rank) return true;
        findings.Error("config_invalid", InConfig("unshared_r"), $"The unshared rank is a part of the rank of {module}.",
            $"at most {rank}", $"{config.UnsharedRank}");
        return false;
    }

    private bool CheckChunks(AdapterConfig config, string module, int inputs, int outputs)
    {
        return Check("reduce_lora_A_x", config.ChunksA, inputs) & Check("reduce_lora_B_x", config.ChunksB, outputs);

        bool Check(string field, int chunks, int size)
        {
            if (chunks <= size) return true;
            findings.Error("config_invalid", InConfig(field), $"{module} cannot be cut into that many chunks.", $"at most {size}", $"{chunks}");
            return false;
        }
    }

    private HostTensor? FindTensor(SafeTensors tensors, string name, int rows, int cols)
    {
        used.Add(name);
        if (!tensors.Entries.TryGetValue(name, out var entry))
        {
            findings.Error("tensor_missing", Where(name), "A targeted module lacks a tensor.", $"[{rows}, {cols}]", "none");
            return null;
        }

        if (!IsWeight(entry))
        {
            findings.Error("safetensors_invalid", Where(name), "Weights of this type are not served.", "F32, F16 or BF16", entry.DType);
            return null;
        }

        if (entry.Shape is [var r, var c] && r == rows && c == cols) return tensors.Find(name);
        findings.Error("shape_mismatch", Where(name), "The tensor does not fit the base model and the configured rank and chunks.",
            $"[{rows}, {cols}]", entry.Form, entry.Shape is [var t, var u] && t == cols && u == rows ? "It is transposed." : null);
        return null;
    }

    private void CheckUnused(AdapterConfig config, SafeTensors tensors)
    {
        // Without a targeted module there is a finding that says why; all tensors would follow it.
        if (config.Modules.Count == 0) return;
        var known = ModuleName.AllOf(model).Select(m => m.ToString()).ToHashSet(StringComparer.Ordinal);
        var targeted = config.Modules.Select(m => m.Name.ToString()).ToHashSet(StringComparer.Ordinal);
        foreach (var name in tensors.Entries.Keys.Where(n => !used.Contains(n)))
        {
            var role = Roles.FirstOrDefault(r => name.EndsWith(r, StringComparison.Ordinal));
            var module = role is null || !name.StartsWith(Prefix, StringComparison.Ordinal) ? null : name[Prefix.Length..^role.Length];
            if (module is null)
                findings.Error("tensor_unexpected", Where(name), "The tensor is no part of an adapter.",
                    $"{Prefix}<module>{string.Join(" or ", Roles)}", "another name");
            else if (!known.Contains(module))
                findings.Error("module_unsupported", Where(name), "The base model has no such module that can be adapted.",
                    $"model.layers.0 to {model.Layers - 1}, with {string.Join(", ", ModuleName.Paths)}", module);
            else if (targeted.Contains(module))
                findings.Error("tensor_unexpected", Where(name), "The configured kind and ranks leave no place for the tensor.",
                    "none", tensors.Entries[name].Form);
            else
                findings.Error("tensor_unexpected", Where(name), "target_modules does not name the tensor's module.", "a targeted module", module);
        }
    }

    private void CheckMeaning(AdapterConfig config, HashSet<string> lively, string? baseModel)
    {
        if (config.Modules.Count > 0 && !config.Modules.Any(m => m.Scale != 0 && (Lives(m, Roles[1]) || Lives(m, Roles[3]))) && !findings.HasErrors)
            findings.Add(new AdapterFinding("adapter_is_noop", Severity.Warning,
                "Every B, or the scale, is zero: the adapter answers as the base model does.", WeightsName,
                Fix: "Train it, or check that the right checkpoint was saved."));
        if (baseModel is not null && config.BaseModel is { } trainedOn && !NamesAgree(baseModel, trainedOn))
            findings.Add(new AdapterFinding("base_mismatch", Severity.Warning,
                "The adapter names another base model; its shapes cannot tell whether it was trained on this one.",
                InConfig("base_model_name_or_path"), Printable.Of(baseModel), Printable.Of(trainedOn)));

        bool Lives(TargetModule module, string role) => lively.Contains(Prefix + module.Name + role);
    }

    /// <summary>Owners, folders, case and punctuation aside, one is contained in the other: <c>acme/Tiny_7B</c> and <c>/models/tiny-7b</c>.</summary>
    private static bool NamesAgree(string a, string b)
    {
        var (x, y) = (Core(a), Core(b));
        return x.Contains(y, StringComparison.Ordinal) || y.Contains(x, StringComparison.Ordinal);

        static string Core(string name) => string.Concat(name.TrimEnd('/', '\\').Split('/', '\\')[^1].Where(char.IsLetterOrDigit)).ToLowerInvariant();
    }

    private AdapterInfo Describe(AdapterConfig config, string digest)
    {
        long bytes = 0, expanded = 0;
        var rank = 0;
        foreach (var module in modules.All)
        {
            HostTensor?[] parts = [module.A, module.B, module.AVec, module.BVec];
            bytes += parts.Sum(p => p?.Bytes ?? 0);
            var r = module.SharedRank + module.UnsharedRank;
            expanded += (long)r * (module.Inputs + module.Outputs) * parts.OfType<HostTensor>().First().Type.Size();
            rank = Math.Max(rank, r);
        }

        const double mib = 1 << 20;
        var times = (double)expanded / bytes;
        findings.Add(new AdapterFinding("memory_estimate", Severity.Information, string.Create(CultureInfo.InvariantCulture,
            $"It takes {bytes / mib:0.00} MiB; plain LoRA of the same ranks takes {expanded / mib:0.00} MiB, {times:0.0} times as much."), WeightsName));
        return new AdapterInfo(digest, config.IsProLora ? "prolora" : "lora", rank, bytes, expanded, config.BaseModel);
    }

    /// <summary>Over both files' bytes as they were read, each behind its length.</summary>
    private static string Digest(byte[] config, SafeTensors tensors)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        Length(config.Length);
        hash.AppendData(config);
        Length(tensors.Length);
        for (long at = 0; at < tensors.Length; at += 1 << 30)
            hash.AppendData(tensors.Span(at, (int)Math.Min(tensors.Length - at, 1 << 30)));
        return "sha256:" + Convert.ToHexStringLower(hash.GetHashAndReset());

        void Length(long length)
        {
            Span<byte> bytes = stackalloc byte[8];
            BinaryPrimitives.WriteInt64LittleEndian(bytes, length);
            hash.AppendData(bytes);
        }
    }

    private static string InConfig(string field) => $"{AdapterConfig.FileName}: {field}";

    private static string Where(string tensor) => $"{WeightsName}: {tensor}";
}
