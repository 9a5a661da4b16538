using System.Buffers.Binary;
using System.Text;
using TenantLora.Runtime.Backends;
using TenantLora.Runtime.Models;

namespace TenantLora.Runtime.Tests.Models;

/// <summary>
/// A corpus of files made to break readers (header lies, JSON oddities, overlaps, overflows, other formats), each with the words that
/// its refusal must use; then random damage, which must end in a refusal or a reading and in nothing else.
/// </summary>
public sealed class SafeTensorsTests : IDisposable
{
    private readonly string directory = Directory.CreateTempSubdirectory("safetensors").FullName;

    public void Dispose() => Directory.Delete(directory, recursive: true);

    private const string Meta = "\"__metadata__\":{\"format\":\"pt\"}";
    private static readonly byte[] Good = SafeTensorsBytes.Of(
    [
        ("a", "F32", [2, 2], SafeTensorsBytes.Floats(1, 2, 3, 4)),
        ("b.weight", "BF16", [3], SafeTensorsBytes.Brains(1, -2, 0.5f)),
        ("c", "I64", [1], new byte[8]),
    ]);

    /// <summary>One F32 tensor t of 4 bytes with these fields.</summary>
    private static byte[] Tensor(string fields, int data = 4, string name = "t") => SafeTensorsBytes.Raw($"{{\"{name}\":{{{fields}}}}}", data);

    private static string Info(int from, int to, string shape = "1", string type = "F32") => $"{{\"dtype\":\"{type}\",\"shape\":[{shape}],\"data_offsets\":[{from},{to}]}}";

    private static byte[] Length(ulong length, int rest = 16)
    {
        var file = new byte[8 + rest];
        BinaryPrimitives.WriteUInt64LittleEndian(file, length);
        return file;
    }

    private static byte[] Bytes(params object[] parts) => [.. parts.SelectMany(p => p is string s ? Encoding.Latin1.GetBytes(s) : [(byte)(int)p])];

    private static readonly Dictionary<string, (byte[] File, string Says)> Wrong = new()
    {
        // Header length.
        ["len-empty-file"] = ([], "header length"),
        ["len-1-byte"] = ([1], "header length"),
        ["len-7-bytes"] = (new byte[7], "header length"),
        ["len-8-bytes-only"] = (Length(8, 0), "header length"),
        ["len-zero-header"] = (Length(0, 0), "no header"),
        ["len-zero-header-with-data"] = (Length(0), "no header"),
        ["len-one-byte-past-eof"] = (Length(17), "that follow"),
        ["len-u64-max"] = (Length(ulong.MaxValue), "at most"),
        ["len-i64-min"] = (Length(1UL << 63), "at most"),
        ["len-i32-wrap"] = (Length((1UL << 32) + 16), "at most"),
        ["len-2gib"] = (Length(1UL << 31), "at most"),
        ["len-100mb-plus-1"] = (Length(100_000_001), "at most"),
        ["len-u64-max-minus-7"] = (Length(ulong.MaxValue - 7), "at most"),

        // Truncation and tails.
        ["trunc-header-half"] = (Good[..40], "that follow"),
        ["trunc-data-2-bytes"] = (Good[..^2], "data_offsets"),
        ["trunc-data-all"] = (Good[..(8 + (int)BinaryPrimitives.ReadInt64LittleEndian(Good))], "data_offsets"),
        ["tail-1-byte"] = ([.. Good, 0], "bytes of data"),
        ["tail-polyglot-zip"] = ([.. Good, .. "PK\x03\x04"u8, .. new byte[40]], "bytes of data"),
        ["tail-second-safetensors"] = ([.. Good, .. Good], "bytes of data"),

        // Other formats.
        ["not-pickle-torch-zip"] = (Bytes("PK", 3, 4, new string('\0', 60)), "header length"),
        ["not-pickle-raw"] = (Bytes(0x80, 2, "}q", 0, "X", 3, 0, 0, 0, "abcq", 1, "."), "header length"),
        ["not-gguf"] = (Bytes("GGUF", 3, 0, 0, 0, new string('\0', 24)), "header length"),
        ["not-gzip"] = (Bytes(0x1f, 0x8b, 8, 0, 1, 2, 3, 4, 5, 6, 7), "header length"),
        ["not-html"] = (Bytes("<!DOCTYPE html><html></html>"), "header length"),
        ["not-npy"] = (Bytes(0x93, "NUMPY", 1, 0, "v", 0, "{'descr'"), "header length"),

        // JSON form.
        ["json-not-object-array"] = (SafeTensorsBytes.Raw("[]", 0), "'{'"),
        ["json-null"] = (SafeTensorsBytes.Raw("null", 0), "'{'"),
        ["json-empty-object"] = (SafeTensorsBytes.Raw("{}", 0), "a tensor, found none"),
        ["json-metadata-alone"] = (SafeTensorsBytes.Raw($"{{{Meta}}}", 0), "a tensor, found none"),
        ["json-cut"] = (SafeTensorsBytes.Raw($"{{\"t\":{Info(0, 4)}", 4), "no JSON"),
        ["json-trailing-junk"] = (SafeTensorsBytes.Raw($"{{\"t\":{Info(0, 4)}}} x", 4), "spaces after"),
        ["json-trailing-newline"] = (SafeTensorsBytes.Raw($"{{\"t\":{Info(0, 4)}}}\n", 4), "spaces after"),
        ["json-trailing-nul"] = (SafeTensorsBytes.Raw($"{{\"t\":{Info(0, 4)}}}\0\0", 4), "spaces after"),
        ["json-second-object"] = (SafeTensorsBytes.Raw($"{{\"t\":{Info(0, 4)}}}{{}}", 4), "spaces after"),
        ["json-leading-space"] = (SafeTensorsBytes.Raw($" {{\"t\":{Info(0, 4)}}}", 4), "'{'"),
        ["json-bom"] = (SafeTensorsBytes.Raw($"\uFEFF{{\"t\":{Info(0, 4)}}}", 4), "'{'"),
        ["json-utf16"] = (SafeTensorsBytes.Raw(Encoding.Unicode.GetBytes($"{{\"t\":{Info(0, 4)}}}"), new byte[4]), "no JSON"),
        ["json-invalid-utf8-name"] = (SafeTensorsBytes.Raw(Encoding.Latin1.GetBytes($"{{\"t\xff\":{Info(0, 4)}}}"), new byte[4]), "UTF-8"),
        ["json-lone-surrogate"] = (SafeTensorsBytes.Raw($"{{\"t\\ud800\":{Info(0, 4)}}}", 4), "surrogate"),
        ["json-lone-surrogate-in-dtype"] = (Tensor("\"dtype\":\"F32\\udc00\",\"shape\":[1],\"data_offsets\":[0,4]"), "surrogate"),
        ["json-lone-surrogate-in-field"] = (Tensor("\"dtype\\udc00\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]"), "surrogate"),
        ["json-lone-surrogate-in-metadata"] = (SafeTensorsBytes.Raw($"{{\"__metadata__\":{{\"a\":\"\\ud800\"}},\"t\":{Info(0, 4)}}}", 4), "surrogate"),
        ["json-nul-in-name"] = (Tensor(Info(0, 4)[1..^1], name: "t\\u0000x"), "a name"),
        ["json-deep-nesting"] = (SafeTensorsBytes.Raw("{\"t\":" + new string('[', 100_000), 0), "an object"),
        ["json-deep-metadata"] = (SafeTensorsBytes.Raw("{\"__metadata__\":{\"a\":{\"b\":{\"c\":{}}}}}", 0), "a string"),
        ["json-comment"] = (SafeTensorsBytes.Raw($"{{/*x*/\"t\":{Info(0, 4)}}}", 4), "no JSON"),
        ["json-trailing-comma"] = (SafeTensorsBytes.Raw($"{{\"t\":{Info(0, 4)},}}", 4), "no JSON"),
        ["json-single-quotes"] = (SafeTensorsBytes.Raw("{'t':{}}", 0), "no JSON"),

        // Duplicates.
        ["dup-tensor-key"] = (SafeTensorsBytes.Raw($"{{\"t\":{Info(0, 4)},\"t\":{Info(0, 4)}}}", 4), "one entry"),
        ["dup-key-escaped"] = (SafeTensorsBytes.Raw($"{{\"t\":{Info(0, 4)},\"\\u0074\":{Info(4, 8)}}}", 8), "one entry"),
        ["dup-inner-field"] = (Tensor("\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]"), "once each"),
        ["dup-inner-field-escaped"] = (Tensor("\"dtype\":\"F32\",\"shape\":[1],\"sh\\u0061pe\":[1],\"data_offsets\":[0,4]"), "once each"),
        ["dup-metadata"] = (SafeTensorsBytes.Raw($"{{{Meta},{Meta},\"t\":{Info(0, 4)}}}", 4), "one entry"),
        ["dup-metadata-key"] = (SafeTensorsBytes.Raw($"{{\"__metadata__\":{{\"a\":\"1\",\"a\":\"2\"}},\"t\":{Info(0, 4)}}}", 4), "each key once"),

        // Metadata.
        ["meta-not-string"] = (SafeTensorsBytes.Raw($"{{\"__metadata__\":{{\"a\":1}},\"t\":{Info(0, 4)}}}", 4), "a string"),
        ["meta-array"] = (SafeTensorsBytes.Raw($"{{\"__metadata__\":[],\"t\":{Info(0, 4)}}}", 4), "object of strings"),
        ["meta-1mb-value"] = (SafeTensorsBytes.Raw($"{{\"__metadata__\":{{\"a\":\"{new string('x', 1_000_000)}\"}},\"t\":{Info(0, 4)}}}", 4), "65536"),
        ["meta-100k-keys"] = (SafeTensorsBytes.Raw($"{{\"__metadata__\":{{{string.Join(',', Enumerable.Range(0, 90_000).Select(i => $"\"{i}\":\"\""))}}},\"t\":{Info(0, 4)}}}", 4), "65536"),

        // Fields of a tensor.
        ["info-missing-dtype"] = (Tensor("\"shape\":[1],\"data_offsets\":[0,4]"), "no dtype"),
        ["info-missing-shape"] = (Tensor("\"dtype\":\"F32\",\"data_offsets\":[0,4]"), "no shape"),
        ["info-missing-offsets"] = (Tensor("\"dtype\":\"F32\",\"shape\":[1]"), "no data_offsets"),
        ["info-unknown-field"] = (Tensor("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1"), "found x"),
        ["info-not-object"] = (SafeTensorsBytes.Raw("{\"t\":7}", 4), "an object"),
        ["info-three-offsets"] = (Tensor("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,4]"), "at most 2"),
        ["info-one-offset"] = (Tensor("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]"), "2 data_offsets"),
        ["dtype-unknown"] = (Tensor(Info(0, 4, type: "Q4_K")[1..^1]), "a dtype"),
        ["dtype-lowercase"] = (Tensor(Info(0, 4, type: "f32")[1..^1]), "a dtype"),
        ["dtype-empty"] = (Tensor(Info(0, 4, type: "")[1..^1]), "a dtype"),
        ["dtype-number"] = (Tensor("\"dtype\":32,\"shape\":[1],\"data_offsets\":[0,4]"), "a string as dtype"),
        ["dtype-sub-byte-misaligned"] = (Tensor(Info(0, 2, "3", "F4")[1..^1], 2), "whole bytes"),

        // Shapes.
        ["shape-negative"] = (Tensor(Info(0, 4, "-1")[1..^1]), "whole numbers"),
        ["shape-minus-zero"] = (Tensor(Info(0, 4, "-0")[1..^1]), "whole numbers"),
        ["shape-float"] = (Tensor(Info(0, 4, "1.0")[1..^1]), "whole numbers"),
        ["shape-exp"] = (Tensor(Info(0, 4, "1e0")[1..^1]), "whole numbers"),
        ["shape-leading-zero"] = (Tensor(Info(0, 4, "01")[1..^1]), "no JSON"),
        ["shape-string"] = (Tensor(Info(0, 4, "\"1\"")[1..^1]), "whole numbers"),
        ["shape-null"] = (Tensor("\"dtype\":\"F32\",\"shape\":null,\"data_offsets\":[0,4]"), "an array"),
        ["shape-nested"] = (Tensor(Info(0, 4, "[1]")[1..^1]), "whole numbers"),
        ["shape-overflow-mul"] = (Tensor(Info(0, 4, "4611686018427387904,4")[1..^1]), "below 2^63"),
        ["shape-overflow-to-16"] = (Tensor(Info(0, 16, "4294967296,4294967297")[1..^1], 16), "below 2^63"),
        ["shape-overflow-many"] = (Tensor(Info(0, 4, string.Join(',', Enumerable.Repeat("9223372036854775807", 8)))[1..^1]), "below 2^63"),
        ["shape-2e64"] = (Tensor(Info(0, 4, "18446744073709551616")[1..^1]), "whole numbers"),
        ["shape-1000-dims"] = (Tensor(Info(0, 4, string.Join(',', Enumerable.Repeat("1", 1000)))[1..^1]), "at most 8"),
        ["shape-mismatch-small"] = (Tensor(Info(0, 4, "2")[1..^1]), "8 bytes"),
        ["shape-mismatch-large"] = (Tensor(Info(0, 8, "1")[1..^1], 8), "4 bytes"),
        ["zero-dim"] = (Tensor(Info(0, 0, "0")[1..^1], 0), "no dimension of 0"),
        ["zero-dim-million"] = (Tensor(Info(0, 0, "1000000,0")[1..^1], 0), "no dimension of 0"),

        // Offsets.
        ["off-negative"] = (Tensor(Info(-4, 0)[1..^1]), "whole numbers"),
        ["off-reversed"] = (Tensor(Info(4, 0)[1..^1]), "that rise"),
        ["off-past-eof"] = (Tensor(Info(0, 8, "2")[1..^1]), "that rise"),
        ["off-u64-max"] = (Tensor("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[18446744073709551612,18446744073709551615]"), "whole numbers"),
        ["off-i64-max"] = (Tensor("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[9223372036854775803,9223372036854775807]"), "that rise"),
        ["off-hole-start"] = (Tensor(Info(4, 8)[1..^1], 8), "data from 0"),
        ["off-hole-middle"] = (SafeTensorsBytes.Raw($"{{\"a\":{Info(0, 4)},\"b\":{Info(8, 12)}}}", 12), "data from 4"),
        ["off-hole-end"] = (Tensor(Info(0, 4)[1..^1], 8), "4 bytes of data"),
        ["off-overlap-full"] = (SafeTensorsBytes.Raw($"{{\"a\":{Info(0, 4)},\"b\":{Info(0, 4)}}}", 4), "data from 4"),
        ["off-overlap-partial"] = (SafeTensorsBytes.Raw($"{{\"a\":{Info(0, 8, "2")},\"b\":{Info(4, 12, "2")}}}", 12), "data from 8"),
        ["off-float"] = (Tensor("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4.0]"), "whole numbers"),
        ["off-string"] = (Tensor("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[\"0\",4]"), "whole numbers"),
        ["off-absolute"] = (Tensor(Info(64, 68)[1..^1]), "that rise"),

        // Names.
        ["name-empty"] = (Tensor(Info(0, 4)[1..^1], name: ""), "a name"),
        ["name-64k"] = (Tensor(Info(0, 4)[1..^1], name: new string('n', 65536)), "a name"),
        ["name-traversal"] = (Tensor(Info(0, 4)[1..^1], name: "../../etc/passwd"), "a name"),
        ["name-crlf-redis"] = (Tensor(Info(0, 4)[1..^1], name: "a\\r\\nFLUSHALL"), "\\u000d\\u000aFLUSHALL"),
        ["name-html"] = (Tensor(Info(0, 4)[1..^1], name: "<script>"), "a name"),
        ["name-bidi"] = (Tensor(Info(0, 4)[1..^1], name: "a\u202Eb"), "a\\u202eb"),

        // Too much.
        ["hdr-bomb-10k-tensors"] = (SafeTensorsBytes.Raw($"{{{string.Join(',', Enumerable.Range(0, 10_000).Select(i => $"\"{i}\":{Info(i, i + 1, "1", "U8")}"))}}}", 10_000), "8192 tensors"),
        ["hdr-bomb-30k-tensors"] = (SafeTensorsBytes.Raw($"{{{string.Join(',', Enumerable.Range(0, 30_000).Select(i => $"\"{i}\":{Info(i, i + 1, "1", "U8")}"))}}}", 30_000), "header length"),
    };

    public static TheoryData<string> WrongNames => [.. Wrong.Keys];

    [Theory]
    [MemberData(nameof(WrongNames))]
    public void Wrong_files_are_refused_by_rule_and_in_printable_words(string name)
    {
        var (file, says) = Wrong[name];
        var refusal = Assert.Throws<ModelFileException>(() => Header(file));
        Assert.Contains(says, refusal.Message, StringComparison.Ordinal);
        Assert.All(refusal.Message, c => Assert.InRange(c, ' ', '~'));
        Assert.InRange(refusal.Message.Length, 1, 400);
    }

    public static TheoryData<string, byte[]> RightFiles => new()
    {
        { "ok-minimal", Tensor(Info(0, 4)[1..^1]) },
        { "ok-f16", Tensor(Info(0, 2, "1", "F16")[1..^1], 2) },
        { "ok-bf16", Tensor(Info(0, 2, "1", "BF16")[1..^1], 2) },
        { "ok-padded-header", SafeTensorsBytes.Raw($"{{\"t\":{Info(0, 4)}}}{new string(' ', 300)}", 4) },
        { "ok-unpadded-odd-offset", SafeTensorsBytes.Raw($"{{\"u\":{Info(0, 1, "1", "U8")},\"t\":{Info(1, 5)}}}", 5) },
        { "ok-any-order", SafeTensorsBytes.Raw($"{{\"b\":{Info(4, 8)},{Meta},\"t\":{Info(0, 4)}}}", 8) },
        { "ok-white-space-inside", SafeTensorsBytes.Raw($"{{\n\t\"t\" : {Info(0, 4)}\r\n}}", 4) },
        { "ok-escaped-name", Tensor(Info(0, 4)[1..^1], name: "\\u0074") },
        { "ok-scalar", Tensor(Info(0, 4, "")[1..^1]) },
        { "ok-8-dims", Tensor(Info(0, 4, "1,1,1,1,1,1,1,1")[1..^1]) },
        { "ok-sub-byte", Tensor(Info(0, 3, "6", "F4")[1..^1], 3) },
        { "meta-auto-map", SafeTensorsBytes.Raw($"{{\"__metadata__\":{{\"auto_map\":\"x.py--Evil\",\"\\u0000\":\"\\n\"}},\"t\":{Info(0, 4)}}}", 4) },
    };

    [Theory]
    [MemberData(nameof(RightFiles))]
    public void Right_files_are_read(string name, byte[] file) => Assert.NotEmpty(name.Length > 0 ? Header(file) : []);

    [Fact]
    public void A_models_file_may_be_larger_than_a_strangers() =>
        Assert.Equal(30_000, Header(Wrong["hdr-bomb-30k-tensors"].File, SafeTensorsLimits.Model).Count);

    [Theory]
    [InlineData(true), InlineData(false)]
    public void Tensors_are_rows_of_the_files_own_bytes(bool mapped)
    {
        var path = Write("good.safetensors", Good);
        using var file = mapped ? SafeTensors.Open(path) : SafeTensors.Read(path, SafeTensorsLimits.Adapter);

        var a = file.Find("a");
        Assert.Equal((DType.F32, 2, 2, 16L), (a.Type, a.Rows, a.Cols, a.Bytes));
        Assert.Equal([1f, 2, 3, 4], Floats(a));
        var b = file.Find("b.weight");
        Assert.Equal((DType.BF16, 1, 3), (b.Type, b.Rows, b.Cols));
        Assert.Same(file, b.Owner);
        Assert.Equal(SafeTensorsBytes.Brains(1, -2, 0.5f), file.Bytes("b.weight").ToArray());
        Assert.Equal(Good.Length, file.Length);

        Assert.Contains("F32, F16 or BF16", Assert.Throws<ModelFileException>(() => file.Find("c")).Message, StringComparison.Ordinal);
        Assert.Contains("found none", Assert.Throws<ModelFileException>(() => file.Find("d")).Message, StringComparison.Ordinal);

        static unsafe float[] Floats(HostTensor t) => new ReadOnlySpan<float>(t.Data, t.Rows * t.Cols).ToArray();
    }

    [Fact]
    public unsafe void What_was_read_stays_though_the_file_changes()
    {
        var path = Write("good.safetensors", Good);
        using var file = SafeTensors.Read(path, SafeTensorsLimits.Adapter);
        File.WriteAllBytes(path, new byte[3]);
        Assert.Equal(4f, ((float*)file.Find("a").Data)[3]);
    }

    [Fact]
    public unsafe void A_tensor_keeps_the_memory_alive()
    {
        var tensor = Open(Write("good.safetensors", Good));
        GC.Collect();
        GC.WaitForPendingFinalizers();
        Assert.Equal(4f, ((float*)tensor.Data)[3]);
        GC.KeepAlive(tensor);

        static HostTensor Open(string path) => SafeTensors.Open(path).Find("a");
    }

    /// <summary>A sparse file: nothing of its 3 GiB is written but the ends.</summary>
    [Fact]
    public unsafe void Tensors_beyond_2_GiB_are_reached()
    {
        const long far = 3L << 30;
        var header = Encoding.UTF8.GetBytes($"{{\"near\":{Info(0, 4)},\"gap\":{{\"dtype\":\"U8\",\"shape\":[{far - 4}],\"data_offsets\":[4,{far}]}},\"far\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[{far},{far + 4}]}}}}");
        var path = Write("large.safetensors", SafeTensorsBytes.Raw(header, []));
        using (var handle = File.OpenHandle(path, FileMode.Open, FileAccess.ReadWrite))
            RandomAccess.Write(handle, SafeTensorsBytes.Floats(42), 8 + header.Length + far);

        using var file = SafeTensors.Open(path);
        Assert.Equal(42f, *(float*)file.Find("far").Data);
        Assert.Equal(0f, *(float*)file.Find("near").Data);
    }

    [Fact]
    public void Missing_and_oversized_files_are_refused()
    {
        Assert.Contains("a readable file, found none", Assert.Throws<ModelFileException>(() => SafeTensors.Open(Path.Combine(directory, "no"))).Message, StringComparison.Ordinal);
        Assert.Throws<ModelFileException>(() => SafeTensors.Open(directory));
        Assert.Throws<ModelFileException>(() => SafeTensors.Open(Write("empty", [])));
        var path = Write("good.safetensors", Good);
        Assert.Throws<ModelFileException>(() => SafeTensors.Read(path, SafeTensorsLimits.Adapter with { FileBytes = Good.Length - 1 }));
    }

    /// <summary>Bit flips, length edits, cuts, splices and swapped JSON pieces of the corpus, from a fixed seed.</summary>
    [Fact]
    public void Random_damage_is_read_or_refused()
    {
        var random = new Random(20261122);
        var wrong = Wrong.Values.Select(w => w.File).Where(f => f.Length is > 0 and < 4096).ToArray();
        byte[][] right = [Good, Tensor(Info(0, 4)[1..^1]), SafeTensorsBytes.Raw($"{{{Meta},\"b\":{Info(4, 8)},\"t\":{Info(0, 4)}}}", 8)];
        string[] pieces = ["{", "}", "[", "]", ",", ":", "\"", "\\u0000", "\\ud800", "-1", "0", "1e9", "1.5", "null", "true", "9223372036854775807", "18446744073709551616",
            "\"dtype\"", "\"shape\"", "\"data_offsets\"", "\"F32\"", "\"BF16\"", "\"__metadata__\"", "{}", "[]", "/**/", " ", "\n", "\0"];
        var accepted = 0;
        for (var i = 0; i < 20_000; i++)
        {
            var file = (byte[])Any(random.Next(2) == 0 ? right : wrong).Clone();
            for (var edits = random.Next(1, 4); edits > 0; edits--) file = Damage(file);
            try
            {
                var entries = Header(file);
                // Whatever is accepted lies within the file, in order and without overlap.
                long end = 0;
                foreach (var entry in entries)
                {
                    Assert.True(entry.Offset >= Math.Max(end, 8) && entry.Bytes > 0);
                    end = entry.Offset + entry.Bytes;
                }

                Assert.Equal(file.Length, end);
                accepted++;
            }
            catch (ModelFileException)
            {
            }
        }

        Assert.InRange(accepted, 100, 19_000);

        T Any<T>(T[] of) => of[random.Next(of.Length)];

        byte[] Damage(byte[] file)
        {
            if (file.Length == 0) return [1];
            var at = random.Next(file.Length);
            switch (random.Next(7))
            {
                case 0: file[at] ^= (byte)(1 << random.Next(8)); return file;
                case 1: file[at] = (byte)random.Next(256); return file;
                case 2: return file[..at];
                case 3: file[random.Next(Math.Min(8, file.Length))] = (byte)random.Next(256); return file;
                case 4: return Fix([.. file[..at], .. Encoding.UTF8.GetBytes(Any(pieces)), .. file[at..]]);
                case 5: return Fix([.. file[..at], .. file[Math.Min(file.Length, at + random.Next(1, 9))..]]);
                default:
                    var other = Any(wrong);
                    return Fix([.. file[..at], .. other[random.Next(other.Length)..]]);
            }
        }

        // Half of the edits within the header keep its length honest, or nothing would get past the first check.
        byte[] Fix(byte[] file)
        {
            var brace = Array.LastIndexOf(file, (byte)'}');
            if (brace > 8 && random.Next(2) == 0) BinaryPrimitives.WriteInt64LittleEndian(file, brace + 1 - 8);
            return file;
        }
    }

    private string Write(string name, byte[] bytes)
    {
        var path = Path.Combine(directory, name);
        File.WriteAllBytes(path, bytes);
        return path;
    }

    private static List<TensorEntry> Header(byte[] file) => Header(file, SafeTensorsLimits.Adapter);

    private static unsafe List<TensorEntry> Header(byte[] file, SafeTensorsLimits limits)
    {
        fixed (byte* data = file) return SafeTensorsHeader.Read("test.safetensors", data, file.Length, limits);
    }
}
