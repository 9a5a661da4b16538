using System.Buffers.Binary;
using System.Text;
using TenantLora.Runtime.Backends;
using TenantLora.Runtime.Models;
using TenantLora.Runtime.Tests.Adapters;

namespace TenantLora.Runtime.Tests.Models;

/// <summary>
/// Files made to break readers, beside those of <see cref="UploadCorpus"/>, each with the words that its refusal must use; then random
/// damage, which must end in a refusal or a reading and in nothing else.
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

    private static readonly Dictionary<string, (byte[] File, string Says)> Wrong = new()
    {
        ["len-zero-header-alone"] = (new byte[8], "no header"),
        ["json-metadata-alone"] = (SafeTensorsBytes.Raw($"{{{Meta}}}", 0), "a tensor, found none"),
        ["json-trailing-newline"] = (SafeTensorsBytes.Raw($"{{\"t\":{Info(0, 4)}}}\n", 4), "spaces after"),
        ["json-trailing-nul"] = (SafeTensorsBytes.Raw($"{{\"t\":{Info(0, 4)}}}\0\0", 4), "spaces after"),
        ["json-second-object"] = (SafeTensorsBytes.Raw($"{{\"t\":{Info(0, 4)}}}{{}}", 4), "spaces after"),
        ["json-lone-surrogate-in-dtype"] = (Tensor("\"dtype\":\"F32\\udc00\",\"shape\":[1],\"data_offsets\":[0,4]"), "surrogate"),
        ["json-lone-surrogate-in-field"] = (Tensor("\"dtype\\udc00\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]"), "surrogate"),
        ["json-lone-surrogate-in-metadata"] = (SafeTensorsBytes.Raw($"{{\"__metadata__\":{{\"a\":\"\\ud800\"}},\"t\":{Info(0, 4)}}}", 4), "surrogate"),
        ["json-deep-metadata"] = (SafeTensorsBytes.Raw("{\"__metadata__\":{\"a\":{\"b\":{\"c\":{}}}}}", 0), "a string"),
        ["json-single-quotes"] = (SafeTensorsBytes.Raw("{'t':{}}", 0), "no JSON"),
        ["dup-inner-field-escaped"] = (Tensor("\"dtype\":\"F32\",\"shape\":[1],\"sh\\u0061pe\":[1],\"data_offsets\":[0,4]"), "once each"),
        ["dup-metadata-key"] = (SafeTensorsBytes.Raw($"{{\"__metadata__\":{{\"a\":\"1\",\"a\":\"2\"}},\"t\":{Info(0, 4)}}}", 4), "each key once"),
        ["dtype-empty"] = (Tensor(Info(0, 4, type: "")[1..^1]), "a dtype"),
        ["shape-minus-zero"] = (Tensor(Info(0, 4, "-0")[1..^1]), "whole numbers"),
        ["shape-leading-zero"] = (Tensor(Info(0, 4, "01")[1..^1]), "no JSON"),
        ["shape-nested"] = (Tensor(Info(0, 4, "[1]")[1..^1]), "whole numbers"),
        ["shape-overflow-many"] = (Tensor(Info(0, 4, string.Join(',', Enumerable.Repeat("9223372036854775807", 8)))[1..^1]), "below 2^63"),
        ["off-i64-max"] = (Tensor("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[9223372036854775803,9223372036854775807]"), "that rise"),
        ["off-hole-end"] = (Tensor(Info(0, 4)[1..^1], 8), "4 bytes of data"),
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
        { "ok-unpadded-odd-offset", SafeTensorsBytes.Raw($"{{\"u\":{Info(0, 1, "1", "U8")},\"t\":{Info(1, 5)}}}", 5) },
        { "ok-any-order", SafeTensorsBytes.Raw($"{{\"b\":{Info(4, 8)},{Meta},\"t\":{Info(0, 4)}}}", 8) },
        { "ok-white-space-inside", SafeTensorsBytes.Raw($"{{\n\t\"t\" : {Info(0, 4)}\r\n}}", 4) },
        { "ok-escaped-name", Tensor(Info(0, 4)[1..^1], name: "\\u0074") },
        { "ok-scalar", Tensor(Info(0, 4, "")[1..^1]) },
        { "ok-8-dims", Tensor(Info(0, 4, "1,1,1,1,1,1,1,1")[1..^1]) },
        { "ok-sub-byte", Tensor(Info(0, 3, "6", "F4")[1..^1], 3) },
        { "ok-metadata", SafeTensorsBytes.Raw($"{{\"__metadata__\":{{\"auto_map\":\"x.py--Evil\",\"\\u0000\":\"\\n\"}},\"t\":{Info(0, 4)}}}", 4) },
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

    /// <summary>Sparse, and more than any memory holds.</summary>
    [Fact]
    public void The_first_bytes_say_whether_the_rest_is_read()
    {
        var path = Write("model.gguf", "GGUF\x03\0\0\0"u8.ToArray());
        using (var handle = File.OpenHandle(path, FileMode.Open, FileAccess.ReadWrite)) RandomAccess.SetLength(handle, 1L << 40);
        Assert.Contains("header length: expected at most", Assert.Throws<ModelFileException>(() => SafeTensors.Read(path, SafeTensorsLimits.Adapter)).Message, StringComparison.Ordinal);
    }

    /// <summary>Bit flips, length edits, cuts, splices and swapped JSON pieces of the corpus, from a fixed seed.</summary>
    [Fact]
    public void Random_damage_is_read_or_refused()
    {
        var random = new Random(20261122);
        byte[][] wrong =
        [
            .. Wrong.Values.Select(w => w.File).Where(f => f.Length < 4096),
            .. from upload in UploadCorpus.Cases
               where !upload.Key.StartsWith("hdr-bomb", StringComparison.Ordinal)
               let file = upload.Value.Weights()
               where file.Length > 0
               select file[..Math.Min(file.Length, 512)],   // little but header
        ];
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
