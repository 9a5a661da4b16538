using System.Buffers.Binary;
using System.Security.Cryptography;
using System.Text.Json;
using TenantLora.Runtime.Backends;

namespace TenantLora.Runtime.Models;

/// <summary>
/// The weights of a model folder: one <c>model.safetensors</c>, or shards named by <c>model.safetensors.index.json</c>. Index and
/// shards must agree tensor by tensor.
/// </summary>
internal sealed class WeightFiles : IDisposable
{
    private const string Single = "model.safetensors";
    private const string Index = "model.safetensors.index.json";
    private const int IndexBytes = 100_000_000;
    private const int SampleBytes = 64 << 10;
    private const int Samples = 256;

    private readonly string directory;
    private readonly List<SafeTensors> files;
    private readonly Dictionary<string, SafeTensors> home = new(StringComparer.Ordinal);
    private string? digest;

    private WeightFiles(string directory, List<SafeTensors> files)
    {
        (this.directory, this.files) = (directory, files);
        foreach (var file in files)
            foreach (var name in file.Entries.Keys)
                if (!home.TryAdd(name, file))
                    throw new ModelFileException(file.Path, name, "each tensor in one file", $"it in {home[name].Path} too");
    }

    public IReadOnlyCollection<string> Names => home.Keys;

    /// <summary>Weights in all tensors together.</summary>
    public long Parameters => files.Sum(f => f.Entries.Values.Sum(e => e.Shape.Aggregate(1L, (product, size) => product * size)));

    /// <summary>Of all tensors together, as stored.</summary>
    public long Bytes => files.Sum(f => f.Entries.Values.Sum(e => e.Bytes));

    /// <summary>
    /// <c>sha256:</c>, names the model by content without reading all of it: config.json, and of every file its size, its header
    /// and 256 evenly spread samples of 64 KiB (so files up to 16 MiB in full). A base model is the operator's own, so
    /// this tells models apart; it does not defend against one forged to collide.
    /// </summary>
    public string Digest => digest ??= ComputeDigest();

    /// <exception cref="ModelFileException">No weights, or a file or the index is damaged, or they contradict each other.</exception>
    public static WeightFiles Open(string directory)
    {
        var files = new List<SafeTensors>();
        try
        {
            // As in transformers, the single file goes before the index.
            if (File.Exists(Path.Combine(directory, Single)))
            {
                files.Add(SafeTensors.Open(Path.Combine(directory, Single)));
                return new WeightFiles(directory, files);
            }

            if (!File.Exists(Path.Combine(directory, Index)))
            {
                var pickle = Directory.Exists(directory) ? Directory.EnumerateFiles(directory, "*.bin").FirstOrDefault() : "no such folder";
                throw new ModelFileException(directory, null, $"{Single} or {Index}", Path.GetFileName(pickle) ?? "neither");
            }

            var map = ReadIndex(Path.Combine(directory, Index));
            foreach (var shard in map.Values.Distinct(StringComparer.Ordinal).Order(StringComparer.Ordinal))
                files.Add(SafeTensors.Open(Path.Combine(directory, shard)));
            var weights = new WeightFiles(directory, files);
            weights.CheckAgainst(map);
            return weights;
        }
        catch
        {
            files.ForEach(f => f.Dispose());
            throw;
        }
    }

    public bool Has(string name) => home.ContainsKey(name);

    /// <summary>The tensor as a matrix; a vector is one row.</summary>
    /// <exception cref="ModelFileException">It is missing, of another shape, or of a type other than F32, F16 and BF16.</exception>
    public HostTensor Get(string name, int rows, int cols)
    {
        if (!home.TryGetValue(name, out var file))
            throw new ModelFileException(Path.Combine(directory, files.Count == 1 ? Single : Index), name, $"a tensor of {rows} rows and {cols} columns", "none");
        var tensor = file.Find(name);
        if (tensor.Rows != rows || tensor.Cols != cols)
            throw new ModelFileException(file.Path, name, $"{rows} rows and {cols} columns", file.Entries[name].Form);
        return tensor;
    }

    /// <summary>Only when no tensor is in use any more; see <see cref="SafeTensors"/>.</summary>
    public void Dispose() => files.ForEach(f => f.Dispose());

    private static Dictionary<string, string> ReadIndex(string path)
    {
        using var document = JsonFields.Parse(path, IndexBytes);
        if (!document.RootElement.TryGetProperty("weight_map", out var map) || map.ValueKind != JsonValueKind.Object)
            throw new ModelFileException(path, "weight_map", "an object", "none");
        var shards = new Dictionary<string, string>(StringComparer.Ordinal);
        foreach (var entry in map.EnumerateObject())
        {
            var shard = JsonFields.AsText(entry.Value) ?? "";
            if (shard.AsSpan().ContainsAny('/', '\\', '\0') || !shard.EndsWith(".safetensors", StringComparison.Ordinal))
                throw new ModelFileException(path, Printable.Of(entry.Name), "the name of a .safetensors file beside it", JsonFields.Show(entry.Value));
            shards.Add(entry.Name, shard);
        }

        return shards.Count > 0 ? shards : throw new ModelFileException(path, "weight_map", "tensors", "none");
    }

    private void CheckAgainst(Dictionary<string, string> map)
    {
        var index = Path.Combine(directory, Index);
        foreach (var (name, shard) in map)
        {
            var found = home.TryGetValue(name, out var file) ? Path.GetFileName(file.Path) : "no file";
            if (found != shard) throw new ModelFileException(index, Printable.Of(name), $"it in {Printable.Of(shard)}", $"it in {found}");
        }

        foreach (var (name, file) in home)
            if (!map.ContainsKey(name)) throw new ModelFileException(index, name, $"every tensor of {Path.GetFileName(file.Path)}", "not this one");
    }

    private string ComputeDigest()
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        var config = File.ReadAllBytes(Path.Combine(directory, "config.json"));
        Number(config.Length);
        hash.AppendData(config);
        foreach (var file in files)
        {
            var header = file.Entries.Values.Min(e => e.Offset);
            Number(file.Length);
            for (long at = 0; at < header; at += SampleBytes)
                hash.AppendData(file.Span(at, (int)Math.Min(SampleBytes, header - at)));
            var samples = Math.Min(Samples, (file.Length + SampleBytes - 1) / SampleBytes);
            for (var i = 0; i < samples; i++)
            {
                var at = samples == 1 ? 0 : (long)((Int128)Math.Max(0, file.Length - SampleBytes) * i / (samples - 1));
                hash.AppendData(file.Span(at, (int)Math.Min(SampleBytes, file.Length - at)));
            }
        }

        return "sha256:" + Convert.ToHexStringLower(hash.GetHashAndReset());

        void Number(long value)
        {
            Span<byte> bytes = stackalloc byte[8];
            BinaryPrimitives.WriteInt64LittleEndian(bytes, value);
            hash.AppendData(bytes);
        }
    }
}
