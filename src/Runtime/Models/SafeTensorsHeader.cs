using System.Buffers;
using System.Buffers.Binary;
using System.Diagnostics.CodeAnalysis;
using System.Text.Json;
using System.Text.Unicode;

namespace TenantLora.Runtime.Models;

/// <summary>One tensor as the header describes it.</summary>
/// <param name="DType">As spelled in the file: <c>F32</c>, <c>BF16</c>, <c>I64</c>…</param>
/// <param name="Shape">No dimension is 0; a scalar has none.</param>
/// <param name="Offset">Of its first byte, from the beginning of the file.</param>
internal sealed record TensorEntry(string Name, string DType, long[] Shape, long Offset, long Bytes)
{
    /// <summary>For messages: <c>BF16 [14, 192]</c>.</summary>
    public string Form => $"{DType} [{string.Join(", ", Shape)}]";
}

/// <summary>How much of a file is worth reading.</summary>
internal sealed record SafeTensorsLimits(int HeaderBytes, int Tensors, int MetadataBytes)
{
    /// <summary>The whole file.</summary>
    public long FileBytes { get; init; } = long.MaxValue;

    /// <summary>A base model's, chosen by whoever runs the server: the format's own limit.</summary>
    public static SafeTensorsLimits Model { get; } = new(100_000_000, int.MaxValue, int.MaxValue);

    /// <summary>A stranger's. 80 layers of 7 modules of 4 tensors are 2,240 tensors and about 400 KB.</summary>
    public static SafeTensorsLimits Adapter { get; } = new(1 << 20, 8192, 64 << 10);
}

/// <summary>
/// The header of a safetensors file (github.com/huggingface/safetensors, "Format"), read by a closed grammar: what the
/// format does not name is refused, and so is what its reference reader lets pass (duplicates, empty and scalar oddities, unknown
/// fields, control characters in names). Throws nothing but <see cref="ModelFileException"/>, and allocates in proportion to the header.
/// </summary>
internal ref struct SafeTensorsHeader
{
    private const int LongestName = 256;
    private const int MostDimensions = 8;
    private static readonly SearchValues<char> NameCharacters =
        SearchValues.Create("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");

    private readonly string file;
    private readonly SafeTensorsLimits limits;
    private readonly ReadOnlySpan<byte> json;
    private readonly long dataBytes;
    private Utf8JsonReader reader;

    /// <summary>
    /// Reads the header of the <paramref name="length"/> bytes at <paramref name="data"/>: the whole file. Tensors come in the order of
    /// their bytes.
    /// </summary>
    public static unsafe List<TensorEntry> Read(string file, byte* data, long length, SafeTensorsLimits limits)
    {
        var size = LengthOf(file, new ReadOnlySpan<byte>(data, (int)Math.Min(length, 8)), length, limits);
        return new SafeTensorsHeader(file, new ReadOnlySpan<byte>(data + 8, size), length - 8 - size, limits).Tensors();
    }

    /// <summary>The header's length, told by the first 8 of the file's <paramref name="length"/> bytes: enough to leave the rest of most other formats unread.</summary>
    public static int LengthOf(string file, ReadOnlySpan<byte> start, long length, SafeTensorsLimits limits)
    {
        if (!BinaryPrimitives.TryReadUInt64LittleEndian(start, out var size)) throw new ModelFileException(file, "header length", "8 bytes", $"a file of {length}");
        if (size > (ulong)limits.HeaderBytes) throw new ModelFileException(file, "header length", $"at most {limits.HeaderBytes} bytes", $"{size}");
        if (size > (ulong)(length - 8)) throw new ModelFileException(file, "header length", $"at most the {length - 8} bytes that follow", $"{size}");
        return (int)size;
    }

    private SafeTensorsHeader(string file, ReadOnlySpan<byte> json, long dataBytes, SafeTensorsLimits limits)
    {
        this.file = file;
        this.json = json;
        this.dataBytes = dataBytes;
        this.limits = limits;
        // The reader itself would skip white space in front.
        if (json.IsEmpty || json[0] != '{') Refuse("header", "'{' as its first byte", json.IsEmpty ? "no header" : $"0x{json[0]:x2}");
        // The reader does not look into strings; GetString would throw in the middle.
        if (!Utf8.IsValid(json)) Refuse("header", "UTF-8", "other bytes");
        reader = new Utf8JsonReader(json, new JsonReaderOptions { MaxDepth = 4 });
    }

    private List<TensorEntry> Tensors()
    {
        var entries = new List<TensorEntry>();
        var names = new HashSet<string>(StringComparer.Ordinal);
        Next("an object", JsonTokenType.StartObject);
        while (Next("a tensor's name", JsonTokenType.PropertyName, JsonTokenType.EndObject) != JsonTokenType.EndObject)
        {
            var name = Text();
            if (!names.Add(name)) Refuse(name, "one entry", "a second");
            if (name == "__metadata__") Metadata();
            else entries.Add(Tensor(name));
            if (entries.Count > limits.Tensors) Refuse("header", $"at most {limits.Tensors} tensors", "more");
        }

        if (json[(int)reader.BytesConsumed..].ContainsAnyExcept((byte)' ')) Refuse("header", "spaces after the object", "other bytes");
        if (entries.Count == 0) Refuse("header", "a tensor", "none");
        CheckCover(entries);
        return entries;
    }

    /// <summary>Free text, nothing in it is used.</summary>
    private void Metadata()
    {
        Next("an object of strings", JsonTokenType.StartObject, "__metadata__");
        var start = reader.TokenStartIndex;
        var keys = new HashSet<string>(StringComparer.Ordinal);
        while (Next("a key", JsonTokenType.PropertyName, JsonTokenType.EndObject) != JsonTokenType.EndObject)
        {
            if (!keys.Add(Text())) Refuse("__metadata__", "each key once", "one twice");
            Next("a string", JsonTokenType.String, "__metadata__");
            Text();
            // At least the closing brace is still to come.
            if (reader.BytesConsumed - start >= limits.MetadataBytes) Refuse("__metadata__", $"at most {limits.MetadataBytes} bytes", "more");
        }
    }

    private TensorEntry Tensor(string name)
    {
        if (name.Length is 0 or > LongestName || name.AsSpan().ContainsAnyExcept(NameCharacters))
            Refuse(name.Length == 0 ? "header" : name, $"a name of 1 to {LongestName} of A-Z a-z 0-9 . _ -", $"{name.Length} characters");

        string? type = null;
        long[]? shape = null, offsets = null;
        Next("an object", JsonTokenType.StartObject, name);
        while (Next("a field", JsonTokenType.PropertyName, JsonTokenType.EndObject) != JsonTokenType.EndObject)
        {
            switch (Text())
            {
                case "dtype" when type is null:
                    Next("a string as dtype", JsonTokenType.String, name);
                    type = Text();
                    break;
                case "shape" when shape is null:
                    shape = Sizes(name, "shape", MostDimensions);
                    break;
                case "data_offsets" when offsets is null:
                    offsets = Sizes(name, "data_offsets", 2);
                    break;
                case var field:
                    Refuse(name, "dtype, shape and data_offsets, once each", Printable.Of(field));
                    break;
            }
        }

        if (type is null || shape is null || offsets is null)
            throw Error(name, "dtype, shape and data_offsets", "no " + (type is null ? "dtype" : shape is null ? "shape" : "data_offsets"));
        if (offsets.Length != 2) Refuse(name, "2 data_offsets", $"{offsets.Length}");
        if (offsets[0] > offsets[1] || offsets[1] > dataBytes)
            Refuse(name, $"data_offsets that rise within {dataBytes}", $"[{offsets[0]}, {offsets[1]}]");
        var bytes = Bytes(name, type, shape);
        if (offsets[1] - offsets[0] != bytes) Refuse(name, $"{bytes} bytes for {type} [{string.Join(", ", shape)}]", $"{offsets[1] - offsets[0]}");
        return new TensorEntry(name, type, shape, 8 + json.Length + offsets[0], bytes);
    }

    private readonly long Bytes(string name, string type, long[] shape)
    {
        var bits = BitsOf(type);
        if (bits == 0) Refuse(name, "a dtype of the format", Printable.Of(type));
        Int128 total = bits;
        foreach (var size in shape)
        {
            if (size == 0) Refuse(name, "no dimension of 0", $"shape [{string.Join(", ", shape)}]");
            total *= size;
            if (total > long.MaxValue) Refuse(name, "a size below 2^63 bits", $"shape [{string.Join(", ", shape)}]");
        }

        if (total % 8 != 0) Refuse(name, "whole bytes", $"{total} bits");
        return (long)(total / 8);
    }

    private static int BitsOf(string type) => type switch
    {
        "F64" or "I64" or "U64" or "C64" => 64,
        "F32" or "I32" or "U32" => 32,
        "F16" or "BF16" or "I16" or "U16" => 16,
        "F8_E4M3" or "F8_E5M2" or "F8_E8M0" or "F8_E4M3FNUZ" or "F8_E5M2FNUZ" or "I8" or "U8" or "BOOL" => 8,
        "F6_E2M3" or "F6_E3M2" => 6,
        "F4" => 4,
        _ => 0,
    };

    private long[] Sizes(string name, string field, int most)
    {
        Next("an array", JsonTokenType.StartArray, name);
        Span<long> sizes = stackalloc long[MostDimensions];
        var count = 0;
        while (Next("whole numbers", JsonTokenType.Number, JsonTokenType.EndArray, name) != JsonTokenType.EndArray)
        {
            if (count == most) Refuse(name, $"at most {most} numbers in {field}", "more");
            // TryGetInt64 takes -0, and refuses 1.0 and 1e2 as it should.
            if (reader.ValueSpan[0] == '-' || !reader.TryGetInt64(out sizes[count++]))
                Refuse(name, $"whole numbers from 0 to 2^63 - 1 in {field}", Printable.Of(System.Text.Encoding.ASCII.GetString(reader.ValueSpan)));
        }

        return sizes[..count].ToArray();
    }

    /// <summary>The tensors cover the data without hole or overlap. No tensor is empty, so each has a beginning of its own.</summary>
    private readonly void CheckCover(List<TensorEntry> entries)
    {
        entries.Sort((a, b) => a.Offset.CompareTo(b.Offset));
        var start = 8L + json.Length;
        var end = start;
        foreach (var entry in entries)
        {
            if (entry.Offset != end) Refuse(entry.Name, $"data from {end - start}, where the tensor before ends", $"from {entry.Offset - start}");
            end += entry.Bytes;
        }

        if (end - start != dataBytes) Refuse(null, $"{end - start} bytes of data, the tensors' sum", $"{dataBytes}");
    }

    private JsonTokenType Next(string expected, JsonTokenType type, string? where = null) => Next(expected, type, type, where);

    private JsonTokenType Next(string expected, JsonTokenType type, JsonTokenType or, string? where = null)
    {
        try
        {
            if (!reader.Read()) Refuse(where ?? "header", expected, "the end");
        }
        catch (JsonException)
        {
            throw Error(where ?? "header", expected, $"no JSON of that kind at byte {reader.BytesConsumed}");
        }

        if (reader.TokenType != type && reader.TokenType != or)
            Refuse(where ?? "header", expected, $"{reader.TokenType} at byte {reader.TokenStartIndex}");
        return reader.TokenType;
    }

    private readonly string Text()
    {
        try
        {
            return reader.GetString()!;
        }
        catch (InvalidOperationException)
        {
            throw Error("header", "strings of whole characters", $"half a surrogate pair at byte {reader.TokenStartIndex}");
        }
    }

    [DoesNotReturn]
    private readonly void Refuse(string? where, string expected, string found) => throw Error(where, expected, found);

    private readonly ModelFileException Error(string? where, string expected, string found) =>
        new(file, where is null ? null : Printable.Of(where), expected, found);
}
