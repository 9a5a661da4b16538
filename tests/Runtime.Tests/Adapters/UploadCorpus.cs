using System.Buffers.Binary;
using System.Globalization;
using System.Text;
using System.Text.Json.Nodes;
using System.Text.Unicode;
using TenantLora.Runtime.Tests.Models;
using Tensors = System.Collections.Generic.OrderedDictionary<string, (string Type, long[] Shape, byte[] Data)>;

namespace TenantLora.Runtime.Tests.Adapters;

/// <summary>What a stranger uploads, and what must become of it.</summary>
/// <param name="Weights">Makes the bytes of <c>adapter_model.safetensors</c>: only when asked, for some are large.</param>
/// <param name="Config">The text of <c>adapter_config.json</c>.</param>
/// <param name="Code">The finding that refuses it; null: it is accepted.</param>
/// <param name="Where">That finding's place.</param>
/// <param name="Rule">A part of what the finding says.</param>
/// <param name="Rank">What an accepted one has.</param>
internal sealed record Upload(Func<byte[]> Weights, string Config, string? Code = null, string Where = "", string Rule = "", int Rank = 4);

/// <summary>
/// 122 files made to break readers of adapters, for the demo model. Each is the same right upload, a rank-4 pair for the query projection
/// of layer 0, with one thing wrong. Names begin with their group; <c>ok-</c> and two more are right and must be accepted.
/// </summary>
internal static class UploadCorpus
{
    private const string File = "adapter_model.safetensors";
    private const string Module = "base_model.model.model.layers.0.self_attn.q_proj";
    private const string A = $"{Module}.lora_A.weight";
    private const string B = $"{Module}.lora_B.weight";
    private const string VecA = $"{Module}.lora_A_vec";
    private const string VecB = $"{Module}.lora_B_vec";
    private const string InfoA = """{"dtype":"F32","shape":[4,256],"data_offsets":[0,4096]}""";
    private const string InfoB = """{"dtype":"F32","shape":[256,4],"data_offsets":[4096,8192]}""";
    private const string Meta = "\"__metadata__\":{\"format\":\"pt\"}";
    private const string Header = $"{{{Meta},\"{A}\":{InfoA},\"{B}\":{InfoB}}}";

    private const string Config = """
        {"peft_type":"LORA","r":4,"lora_alpha":8,"target_modules":["q_proj"],"layers_to_transform":[0],"bias":"none","base_model_name_or_path":"tenantlora-demo-7m"}
        """;

    private static readonly float[] Values = Draw();
    private static readonly byte[] Data = SafeTensorsBytes.Floats(Values);
    private static readonly byte[] Good = Described(Header);

    public static IReadOnlyDictionary<string, Upload> Cases { get; } = new Dictionary<string, Upload>
    {
        ["ok-minimal"] = Right(() => Good),
        ["ok-f16"] = Right(() => Typed("F16", SafeTensorsBytes.Halves)),
        ["ok-bf16"] = Right(() => Typed("BF16", SafeTensorsBytes.Brains)),
        ["ok-padded-header"] = Right(() => Described(Header + new string(' ', 4096))),

        ["len-empty-file"] = Wrong("header length", "8 bytes", () => []),
        ["len-1-byte"] = Wrong("header length", "8 bytes", () => Good[..1]),
        ["len-7-bytes"] = Wrong("header length", "8 bytes", () => Good[..7]),
        ["len-8-bytes-only"] = Wrong("header length", "at most the 0 bytes that follow", () => Good[..8]),
        ["len-zero-header"] = Wrong("header", "no header", () => Length(0)),
        ["len-one-byte-past-eof"] = Wrong("header length", "bytes that follow", () => Length((ulong)Good.Length - 7)),
        ["len-u64-max"] = Wrong("header length", "at most 1048576 bytes", () => Length(ulong.MaxValue)),
        ["len-i64-min"] = Wrong("header length", "at most 1048576 bytes", () => Length(1UL << 63)),
        ["len-i32-wrap"] = Wrong("header length", "at most 1048576 bytes", () => Length((1UL << 32) + (ulong)Header.Length)),
        ["len-2gib"] = Wrong("header length", "at most 1048576 bytes", () => Length(1UL << 31)),
        ["len-100mb-plus-1"] = Wrong("header length", "at most 1048576 bytes", () => Length(100_000_001)),
        ["len-u64-max-minus-7"] = Wrong("header length", "at most 1048576 bytes", () => Length(ulong.MaxValue - 7)),

        ["trunc-header-half"] = Wrong("header length", "bytes that follow", () => Good[..(8 + (Header.Length / 2))]),
        ["trunc-data-2-bytes"] = Wrong(B, "rise within 8190", () => Good[..^2]),
        ["trunc-data-all"] = Wrong(A, "rise within 0", () => Good[..^Data.Length]),
        ["tail-1-byte"] = Wrong(null, "8192 bytes of data", () => [.. Good, 0]),
        ["tail-polyglot-zip"] = Wrong(null, "8192 bytes of data", () => [.. Good, .. "PK\x05\x06"u8, .. new byte[18]]),
        ["tail-second-safetensors"] = Wrong(null, "8192 bytes of data", () => [.. Good, .. Good]),

        ["not-pickle-torch-zip"] = Pickle(() => [.. "PK\x03\x04"u8, .. new byte[26], .. "archive/data.pkl"u8]),
        ["not-pickle-raw"] = Pickle(() => [.. "\u0002cos\nsystem\n"u8.ToArray().Prepend((byte)0x80), .. "X\x02\0\0\0id\x85R."u8]),
        ["not-gguf"] = Wrong("header length", "at most 1048576 bytes", () => [.. "GGUF\x03\0\0\0"u8, .. new byte[24]]),
        ["not-gzip"] = Wrong("header length", "bytes that follow", () => [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, .. Good]),
        ["not-html"] = Wrong("header length", "at most 1048576 bytes", () => [.. "<!DOCTYPE html><html><body>404</body></html>"u8]),
        ["not-npy"] = Wrong("header length", "at most 1048576 bytes", () => [0x93, .. "NUMPY\x01\0v\0{'descr': '<f4'}"u8]),

        ["json-not-object-array"] = Wrong("header", "'{' as its first byte", () => Described($"[{Header}]")),
        ["json-null"] = Wrong("header", "'{' as its first byte", () => Described("null")),
        ["json-empty-object"] = Wrong("header", "a tensor, found none", () => Described("{}", [])),
        ["json-cut"] = Wrong("header", "no JSON", () => Described(Header[..^1])),
        ["json-trailing-junk"] = Wrong("header", "spaces after the object", () => Described(Header + " x")),
        ["json-leading-space"] = Wrong("header", "'{' as its first byte", () => Described(" " + Header)),
        ["json-bom"] = Wrong("header", "'{' as its first byte", () => Described("\uFEFF" + Header)),
        ["json-utf16"] = Wrong("header", "no JSON", () => SafeTensorsBytes.Raw(Encoding.Unicode.GetBytes(Header), Data)),
        ["json-invalid-utf8-name"] = Wrong("header", "UTF-8", () => SafeTensorsBytes.Raw(Encoding.Latin1.GetBytes(Swap(A, "\xff" + A)), Data)),
        ["json-lone-surrogate"] = Wrong("header", "half a surrogate pair", () => Named("\\ud800" + A)),
        ["json-nul-in-name"] = Wrong("\\u0000a", "a name", () => Named("\\u0000a")),
        ["json-deep-nesting"] = Wrong(A, "whole numbers", () => Described(Swap("[4,256]", new string('[', 100_000) + new string(']', 100_000)))),
        ["json-comment"] = Wrong("header", "no JSON", () => Described(Swap(Meta, "/**/" + Meta))),
        ["json-trailing-comma"] = Wrong("header", "no JSON", () => Described(Header[..^1] + ",}")),

        ["dup-tensor-key"] = Wrong(A, "one entry", () => Described($"{Header[..^1]},\"{A}\":{InfoA}}}")),
        ["dup-key-escaped"] = Wrong(A, "one entry", () => Described($"{Header[..^1]},\"\\u0062{A[1..]}\":{InfoA}}}")),
        ["dup-inner-field"] = Wrong(A, "once each", () => Described(Swap("\"shape\":[4,256]", "\"shape\":[4,256],\"shape\":[1,1]"))),
        ["dup-metadata"] = Wrong("__metadata__", "one entry", () => Described($"{Header[..^1]},{Meta}}}")),

        ["meta-not-string"] = Wrong("__metadata__", "a string", () => Described(Swap("\"pt\"", "1"))),
        ["meta-array"] = Wrong("__metadata__", "an object of strings", () => Described(Swap("{\"format\":\"pt\"}", "[\"pt\"]"))),
        ["meta-1mb-value"] = Wrong("__metadata__", "at most 65536 bytes", () => Described(Swap("\"pt\"", $"\"{new string('x', 1_000_000)}\""))),
        ["meta-100k-keys"] = Wrong("header length", "at most 1048576 bytes",
            () => Described(Swap("\"format\":\"pt\"", string.Join(',', Enumerable.Range(0, 100_000).Select(i => $"\"{i}\":\"\""))))),
        ["meta-auto-map"] = Right(() => Described(Swap("\"format\":\"pt\"", "\"format\":\"pt\",\"auto_map\":\"evil.py--Model\",\"chat_template\":\"{{ ''.__class__ }}\""))),

        ["info-missing-dtype"] = Wrong(A, "no dtype", () => Described(Swap("\"dtype\":\"F32\",\"shape\":[4,256]", "\"shape\":[4,256]"))),
        ["info-missing-shape"] = Wrong(A, "no shape", () => Described(Swap("\"shape\":[4,256],", ""))),
        ["info-missing-offsets"] = Wrong(A, "no data_offsets", () => Described(Swap(",\"data_offsets\":[0,4096]", ""))),
        ["info-unknown-field"] = Wrong(A, "found compression", () => Described(Swap("\"shape\":[4,256]", "\"shape\":[4,256],\"compression\":\"zstd\""))),
        ["info-not-object"] = Wrong(A, "an object", () => Described(Swap(InfoA, "7"))),
        ["info-three-offsets"] = Wrong(A, "at most 2 numbers", () => Described(Swap("[0,4096]", "[0,4096,8192]"))),
        ["info-one-offset"] = Wrong(A, "2 data_offsets", () => Described(Swap("[0,4096]", "[4096]"))),
        ["dtype-unknown"] = Wrong(A, "a dtype of the format", () => Described(Swap(InfoA, InfoA.Replace("F32", "Q4_K", StringComparison.Ordinal)))),
        ["dtype-lowercase"] = Wrong(A, "a dtype of the format", () => Described(Swap(InfoA, InfoA.Replace("F32", "f32", StringComparison.Ordinal)))),
        ["dtype-number"] = Wrong(A, "a string as dtype", () => Described(Swap(InfoA, InfoA.Replace("\"F32\"", "32", StringComparison.Ordinal)))),
        ["dtype-sub-byte-misaligned"] = Wrong(A, "whole bytes", () => Described(Swap("\"F32\",\"shape\":[4,256]", "\"F4\",\"shape\":[3,2731]"))),

        ["shape-negative"] = Wrong(A, "whole numbers", () => Shaped("-4,-256")),
        ["shape-float"] = Wrong(A, "whole numbers", () => Shaped("4.0,256")),
        ["shape-exp"] = Wrong(A, "whole numbers", () => Shaped("4,2.56e2")),
        ["shape-string"] = Wrong(A, "whole numbers", () => Shaped("\"4\",256")),
        ["shape-null"] = Wrong(A, "an array", () => Described(Swap("[4,256]", "null"))),
        ["shape-overflow-mul"] = Wrong(A, "a size below 2^63", () => Shaped("4611686018427387904,4")),
        ["shape-overflow-to-16"] = Wrong(A, "a size below 2^63", () => Described(Swap(InfoA, """{"dtype":"F32","shape":[4,1152921504606846977],"data_offsets":[0,16]}"""))),
        ["shape-2e64"] = Wrong(A, "whole numbers", () => Shaped("18446744073709551616,256")),
        ["shape-1000-dims"] = Wrong(A, "at most 8 numbers", () => Shaped("4,256" + string.Concat(Enumerable.Repeat(",1", 998)))),
        ["shape-mismatch-small"] = Wrong(A, "4080 bytes", () => Shaped("4,255")),
        ["shape-mismatch-large"] = Wrong(A, "4112 bytes", () => Shaped("4,257")),

        ["off-negative"] = Wrong(A, "whole numbers", () => Placed("-4096", "0")),
        ["off-reversed"] = Wrong(A, "that rise", () => Placed("4096", "0")),
        ["off-past-eof"] = Wrong(A, "rise within 8192", () => Placed("8192", "12288")),
        ["off-u64-max"] = Wrong(A, "whole numbers", () => Placed("18446744073709547520", "18446744073709551615")),
        ["off-hole-start"] = Wrong(A, "data from 0", () => Described($"{{\"{A}\":{InfoA.Replace("[0,4096]", "[4096,8192]", StringComparison.Ordinal)}}}")),
        ["off-hole-middle"] = Wrong(B, "data from 4096", () => Described(Swap("[4096,8192]", "[4100,8196]"), [.. Data, 0, 0, 0, 0])),
        ["off-overlap-full"] = Wrong(B, "data from 4096", () => Described(Swap("[4096,8192]", "[0,4096]"), Data[..4096])),
        ["off-overlap-partial"] = Wrong(B, "data from 4096", () => Described(Swap("[4096,8192]", "[4092,8188]"), Data[..8188])),
        ["off-float"] = Wrong(A, "whole numbers", () => Placed("0.0", "4096")),
        ["off-string"] = Wrong(A, "whole numbers", () => Placed("0", "\"4096\"")),
        ["off-absolute"] = Wrong(B, "rise within 8192", () => Described(Swap("[0,4096]", "[512,4608]", "[4096,8192]", "[4608,8704]").PadRight(512 - 8))),

        ["zero-dim"] = Wrong(A, "no dimension of 0", () => Described(Swap("[4,256]", "[0,256]", "[0,4096]", "[0,0]", "[4096,8192]", "[0,4096]"), Data[..4096])),
        ["zero-dim-million"] = Wrong(A, "no dimension of 0", () => Described(Swap("[4,256]", "[1000000,0]", "[0,4096]", "[0,0]", "[4096,8192]", "[0,4096]"), Data[..4096])),
        ["scalar"] = Wrong("shape_mismatch", A, "[4, 256], found F32 []", t => t[A] = ("F32", [], Data[..4])),

        ["name-empty"] = Wrong("header", "a name of 1 to 256", () => Named("")),
        ["name-64k"] = Wrong(new string('n', 64) + "...", "65536 characters", () => Named(new string('n', 65536))),
        ["name-traversal"] = Wrong("../../etc/passwd", "a name", () => Named("../../etc/passwd")),
        ["name-crlf-redis"] = Wrong("a\\u000d\\u000aFLUSHALL\\u000d\\u000a", "a name", () => Named("a\\r\\nFLUSHALL\\r\\n")),
        ["name-html"] = Wrong("<img src=x onerror=alert(1)>", "a name", () => Named("<img src=x onerror=alert(1)>")),
        ["name-bidi"] = Wrong("\\u202ethgiew", "a name", () => Named("\u202Ethgiew")),

        ["hdr-bomb-100k-tensors"] = Wrong("header length", "at most 1048576 bytes", () => Bomb(100_000)),
        ["hdr-bomb-1m-tensors"] = Wrong(null, "at most 40894472 bytes", () => Bomb(1_000_000)),   // the whole file is larger than any adapter

        ["lora-no-pair-b"] = Wrong("tensor_missing", B, "[256, 4], found none", t => t.Remove(B)),
        ["lora-no-pair-a"] = Wrong("tensor_missing", A, "[4, 256], found none", t => t.Remove(A)),
        ["lora-rank-mismatch-ab"] = Wrong("shape_mismatch", B, "[256, 4], found F32 [128, 8]", t => t[B] = ("F32", [128, 8], Data[4096..])),
        ["lora-rank-0"] = Ranked(0, "config_invalid", "a whole number from 1 to 2147483647, found 0"),
        ["lora-rank-over-max"] = Ranked(257, "rank_limit_exceeded", "at most 256, found 257"),
        ["lora-wrong-hidden"] = Wrong("shape_mismatch", A, "[4, 256], found F32 [4, 128]", t => t[A] = ("F32", [4, 128], Data[..2048])),
        ["lora-transposed"] = Wrong("shape_mismatch", A, "[4, 256], found F32 [256, 4]. It is transposed.", t => t[A] = ("F32", [256, 4], Data[..4096])),
        ["lora-layer-out-of-range"] = Extra("module_unsupported", "base_model.model.model.layers.8.self_attn.q_proj.lora_A.weight", "layers.0 to 7"),
        ["lora-layer-negative"] = Extra("module_unsupported", "base_model.model.model.layers.-1.self_attn.q_proj.lora_A.weight", "layers.0 to 7"),
        ["lora-unknown-module"] = Extra("module_unsupported", "base_model.model.model.layers.0.self_attn.w_pack.lora_A.weight", "self_attn.q_proj"),
        ["lora-wrong-prefix-all"] = Wrong("tensor_unexpected", A["base_model.".Length..], "base_model.model.<module>", t =>
        {
            foreach (var name in t.Keys.ToList())
                if (t.Remove(name, out var tensor)) t[name["base_model.".Length..]] = tensor;
        }),
        ["lora-full-weights"] = Extra("tensor_unexpected", "model.layers.0.self_attn.q_proj.weight", "base_model.model.<module>"),
        ["lora-embed-extra"] = Extra("tensor_unexpected", "base_model.model.model.embed_tokens.weight", "base_model.model.<module>"),
        ["lora-int-dtype"] = Wrong("safetensors_invalid", A, "F32, F16 or BF16, found I32", t => t[A] = ("I32", [4, 256], Data[..4096])),
        ["lora-f64"] = Wrong("safetensors_invalid", A, "F32, F16 or BF16, found F64", t => t[A] = ("F64", [4, 256], Data)),
        ["lora-mixed-dtype"] = Wrong("safetensors_invalid", Module, "one type, found F16, F32", t => t[A] = ("F16", [4, 256], Data[..2048])),
        ["lora-3d"] = Wrong("shape_mismatch", A, "[4, 256], found F32 [4, 16, 16]", t => t[A] = ("F32", [4, 16, 16], Data[..4096])),

        ["val-one-nan"] = Valued("found NaN", v => v[777] = float.NaN),
        ["val-one-inf"] = Valued("found Infinity", v => v[1023] = float.NegativeInfinity),
        ["val-all-nan"] = Valued("found NaN", v => Array.Fill(v, float.NaN)),
        ["val-huge"] = Valued("within 65504, found 3E+38", v => v[0] = -3e38f),
        ["val-denormal"] = Right(() => Described(Header, SafeTensorsBytes.Floats([.. Enumerable.Repeat(float.Epsilon, 1024), .. Values[1024..]]))),
        ["val-f16-inf"] = new Upload(() => Typed("F16", v => [0, 0x7C, .. SafeTensorsBytes.Halves(v)[2..]]), Config, "values_invalid", $"{File}: {A}", "found Infinity"),

        ["flip-header-bit-0"] = Wrong("header", "'{' as its first byte", () => Flip("{\"__")),             // z
        ["flip-header-bit-1"] = Wrong(A, "5120 bytes", () => Flip("4,256")),                               // 5
        ["flip-header-bit-2"] = new Upload(() => Flip("q_proj"), Config, "tensor_missing", $"{File}: {A}", "found none"),   // p_proj
        ["flip-header-bit-3"] = Right(() => Flip("t\"")),                                                  // format pu: nothing reads it
    };

    /// <summary>PRoLoRA's own tensors, either side of each limit, and what other servers' incidents add.</summary>
    public static IReadOnlyDictionary<string, Upload> More { get; } = new Dictionary<string, Upload>
    {
        ["prolora-right"] = ProLora(null, "", "", _ => { }),
        ["prolora-no-vector"] = ProLora("tensor_missing", VecB, "[1, 256], found none", t => t.Remove(VecB)),
        ["prolora-whole-a"] = ProLora("shape_mismatch", A, "[3, 64], found F32 [3, 256]", t => t[A] = ("F32", [3, 256], Data[..3072])),
        ["prolora-whole-rank"] = ProLora("shape_mismatch", B, "[64, 3], found F32 [64, 4]", t => t[B] = ("F32", [64, 4], Data[..1024])),
        ["prolora-vector-upright"] = ProLora("shape_mismatch", VecA, "[1, 256], found F32 [256, 1]. It is transposed.", t => t[VecA] = ("F32", [256, 1], Data[..1024])),
        ["prolora-vector-1d"] = ProLora("shape_mismatch", VecA, "[1, 256], found F32 [256]", t => t[VecA] = ("F32", [256], Data[..1024])),
        ["prolora-vector-nan"] = ProLora("values_invalid", VecB, "found NaN", t => t[VecB] = ("F32", [1, 256], SafeTensorsBytes.Floats([.. Values[..255], float.NaN]))),

        ["limit-header"] = Right(() => Described(Header.PadRight(1 << 20))),
        ["limit-header-passed"] = Wrong("header length", "at most 1048576 bytes, found 1048577", () => Described(Header.PadRight((1 << 20) + 1))),
        ["limit-tensors"] = Wrong("tensor_unexpected", "x0", "base_model.model.<module>", t => Add(t, 8190)),
        ["limit-tensors-passed"] = Wrong("safetensors_invalid", "header", "at most 8192 tensors", t => Add(t, 8191)),
        ["limit-name"] = Extra("tensor_unexpected", new string('n', 256), "base_model.model.<module>"),
        ["limit-name-passed"] = Extra("safetensors_invalid", new string('n', 64) + "...", "257 characters", new string('n', 257)),
        ["limit-metadata"] = Right(() => Described(Swap("\"pt\"", $"\"{new string('x', 65536 - 13)}\""))),
        ["limit-metadata-passed"] = Wrong("__metadata__", "at most 65536 bytes", () => Described(Swap("\"pt\"", $"\"{new string('x', 65536 - 12)}\""))),
        ["limit-rank"] = Ranked(256, null, "") with { Rank = 256 },
        ["limit-value"] = Right(() => Typed("F32", v => SafeTensorsBytes.Floats([-65504, .. v[1..]]))),
        ["limit-value-passed"] = Valued("within 65504, found 65520", v => v[5] = 65520),

        // Templates and code that others ran, paths and addresses that others followed.
        ["config-chat-template"] = Configured("peft_unsupported", "chat_template", "found", "\"chat_template\":\"{{ ''.__class__ }}\""),
        ["config-auto-mapping"] = Configured(null, "", "", "\"auto_mapping\":{\"parent_library\":\"evil\",\"base_model_class\":\"Model\"}"),
        ["config-module-path"] = Configured("module_unsupported", "target_modules", "found ../../etc/passwd", "\"target_modules\":[\"q_proj\",\"../../etc/passwd\"]"),
        ["config-base-path"] = Configured(null, "", "", "\"base_model_name_or_path\":\"/etc/passwd\""),
        ["config-base-address"] = Configured(null, "", "", "\"base_model_name_or_path\":\"http://169.254.169.254/latest\""),
        ["config-base-1mb"] = Configured("config_invalid", "base_model_name_or_path", "at most 1024", $"\"base_model_name_or_path\":\"{new string('x', 1_000_000)}\""),
        ["config-negative-rank"] = Configured("config_invalid", "r", "from 1 to 2147483647, found -4", "\"r\":-4"),
        ["config-wrapping-rank"] = Configured("config_invalid", "r", "from 1 to 2147483647, found 4294967300", "\"r\":4294967300"),
        ["config-infinite-alpha"] = Configured("config_invalid", "lora_alpha", "a number from", "\"lora_alpha\":1e999"),
        ["config-crlf-field"] = Configured("peft_unsupported", "a\\u000d\\u000ab", "found 1", "\"a\\r\\nb\":1"),
        ["config-64k-field"] = Configured("peft_unsupported", new string('n', 64) + "...", "found 1", $"\"{new string('n', 65536)}\":1"),
    };

    private static Upload Right(Func<byte[]> weights) => new(weights, Config);

    /// <summary>No safetensors file of those that are accepted from strangers.</summary>
    private static Upload Wrong(string? where, string rule, Func<byte[]> weights) =>
        new(weights, Config, "safetensors_invalid", where is null ? File : $"{File}: {where}", rule);

    private static Upload Pickle(Func<byte[]> weights) => new(weights, Config, "pickle_not_accepted", File, "found a pickle");

    /// <summary>A right file whose tensors are not the adapter's.</summary>
    private static Upload Wrong(string code, string where, string rule, Action<Tensors> spoil) => new(() =>
    {
        var tensors = new Tensors { [A] = ("F32", [4, 256], Data[..4096]), [B] = ("F32", [256, 4], Data[4096..]) };
        spoil(tensors);
        return Written(tensors);
    }, Config, code, $"{File}: {where}", rule);

    /// <summary>As <see cref="Wrong(string, string, string, Action{Tensors})"/>, of four chunks and a rank of which one is unshared.</summary>
    private static Upload ProLora(string? code, string where, string rule, Action<Tensors> spoil) => new(() =>
    {
        var tensors = new Tensors
        {
            [A] = ("F32", [3, 64], Data[..768]),
            [B] = ("F32", [64, 3], Data[768..1536]),
            [VecA] = ("F32", [1, 256], Data[2048..3072]),
            [VecB] = ("F32", [1, 256], Data[3072..4096]),
        };
        spoil(tensors);
        return Written(tensors);
    }, Config.Replace("\"LORA\"", "\"PROLORA\",\"unshared_r\":1,\"reduce_lora_A_x\":4,\"reduce_lora_B_x\":4", StringComparison.Ordinal), code, $"{File}: {where}", rule);

    private static byte[] Written(Tensors tensors) => SafeTensorsBytes.Of(tensors.Select(t => (t.Key, t.Value.Type, t.Value.Shape, t.Value.Data)));

    private static Upload Extra(string code, string where, string rule, string? name = null) =>
        Wrong(code, where, rule, t => t[name ?? where] = ("F32", [4, 256], Data[..4096]));

    private static void Add(Tensors tensors, int more)
    {
        for (var i = 0; i < more; i++) tensors[$"x{i}"] = ("U8", [1], [0]);
    }

    /// <summary>The config with one field of its own or in another's place.</summary>
    private static Upload Configured(string? code, string where, string rule, string field)
    {
        var config = JsonNode.Parse(Config)!.AsObject();
        var name = JsonNode.Parse($"{{{field}}}")!.AsObject().Single().Key;
        config.Remove(name);
        return new(() => Good, config.ToJsonString()[..^1] + $",{field}}}", code, $"adapter_config.json: {where}", rule);
    }

    /// <summary>Config and tensors agree on the rank.</summary>
    private static Upload Ranked(int rank, string? code, string rule) => new(
        () => SafeTensorsBytes.Of([(A, "F16", [rank, 256], new byte[512 * rank]), (B, "F16", [256, rank], new byte[512 * rank])]),
        Config.Replace("\"r\":4", $"\"r\":{rank}", StringComparison.Ordinal), code, "adapter_config.json: r", rule);

    private static Upload Valued(string rule, Action<float[]> spoil) => new(() =>
    {
        var values = Values[..1024];
        spoil(values);
        return Described(Header, SafeTensorsBytes.Floats([.. values, .. Values[1024..]]));
    }, Config, "values_invalid", $"{File}: {A}", rule);

    private static float[] Draw()
    {
        var random = new Random(1);
        return [.. Enumerable.Range(0, 2048).Select(_ => (float)((random.NextDouble() - 0.5) / 4))];
    }

    private static byte[] Described(string header, byte[]? data = null) => SafeTensorsBytes.Raw(Encoding.UTF8.GetBytes(header), data ?? Data);

    private static byte[] Named(string name) => Described(Swap(A, name));

    private static byte[] Shaped(string shape) => Described(Swap("[4,256]", $"[{shape}]"));

    private static byte[] Placed(string from, string to) => Described(Swap("[0,4096]", $"[{from},{to}]"));

    private static byte[] Typed(string type, Func<float[], byte[]> write) =>
        SafeTensorsBytes.Of([(A, type, [4, 256], write(Values[..1024])), (B, type, [256, 4], write(Values[1024..]))]);

    private static byte[] Length(ulong length)
    {
        var file = (byte[])Good.Clone();
        BinaryPrimitives.WriteUInt64LittleEndian(file, length);
        return file;
    }

    /// <summary>The right header with old words swapped for new ones, in pairs.</summary>
    private static string Swap(params string[] words)
    {
        var header = Header;
        foreach (var pair in words.Chunk(2))
        {
            Assert.Contains(pair[0], header, StringComparison.Ordinal);
            header = header.Replace(pair[0], pair[1], StringComparison.Ordinal);
        }

        return header;
    }

    /// <summary>The lowest bit of the first byte of a word in the header.</summary>
    private static byte[] Flip(string at)
    {
        var file = (byte[])Good.Clone();
        file[8 + Header.IndexOf(at, StringComparison.Ordinal)] ^= 1;
        return file;
    }

    /// <summary>Tensors of one byte each, and nearly 70 bytes of header for every one.</summary>
    private static byte[] Bomb(int tensors)
    {
        var file = new byte[80 * tensors];
        var used = 8;
        for (var i = 0; i < tensors; i++)
        {
            Utf8.TryWrite(file.AsSpan(used), CultureInfo.InvariantCulture,
                $"{(i == 0 ? '{' : ',')}\"t{i}\":{{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[{i},{i + 1}]}}", out var written);
            used += written;
        }

        file[used++] = (byte)'}';
        BinaryPrimitives.WriteInt64LittleEndian(file, used - 8);
        return file[..(used + tensors)];
    }
}
