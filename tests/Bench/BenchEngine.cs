using System.Security.Cryptography;
using System.Text;
using Microsoft.Extensions.Logging.Abstractions;
using TenantLora.Runtime;
using TenantLora.Runtime.Adapters;
using TenantLora.Runtime.Backends;
using TenantLora.Runtime.Models;
using TenantLora.Runtime.Tokenization;
using TenantLora.Tests;

namespace TenantLora.Bench;

/// <summary>
/// An engine on a model of true shape with random weights, and no files but small ones: config.json, a tokenizer of as many words as the
/// model has tokens, and nothing that ends an answer before its limit.
/// </summary>
internal sealed class BenchEngine : IAsyncDisposable
{
    private readonly string directory;
    private readonly Tokenizer tokenizer;
    private readonly RandomPool pool;

    /// <param name="directory">Of <see cref="Folder"/>.</param>
    public BenchEngine(string directory, RandomPool pool, EngineOptions options)
        : this(directory, pool, options, () => Devices.Open(options.Device, 0, options.MaxAdapterRank, options.MaxSequences, 0, NullLogger.Instance))
    {
    }

    public BenchEngine(string directory, RandomPool pool, EngineOptions options, Func<IBackend> open)
    {
        if (!Devices.IsKnown(options.Device)) throw new ArgumentException($"--device: expected {Devices.Known}, found {options.Device}.");
        (this.directory, this.pool) = (directory, pool);
        Config = ModelConfig.Load(directory);
        tokenizer = Tokenizer.Load(directory);
        StepProbe? probe = null;
        Engine = Engine.Start(options with { ModelDirectory = directory }, () => probe = new StepProbe(open()), source: pool.Tensor);
        Probe = probe!;
    }

    public ModelConfig Config { get; }

    public Engine Engine { get; }

    public StepProbe Probe { get; }

    /// <summary>1b, 8b or demo: a folder to start from, and how many bytes of random values it wants.</summary>
    public static (string Directory, long PoolBytes) Folder(string model)
    {
        var directory = model switch
        {
            "1b" => RandomModel.Llama1B(),
            "8b" => RandomModel.Llama8B(),
            "demo" => Directory.CreateTempSubdirectory("demo-").FullName,
            _ => throw new ArgumentException($"--model: expected 1b, 8b or demo, found {model}."),
        };
        if (model == "demo") File.Copy(Repo.Path("models", "demo-7m", "config.json"), Path.Combine(directory, "config.json"));
        File.WriteAllText(Path.Combine(directory, "generation_config.json"), """{ "do_sample": false, "eos_token_id": [] }""");
        File.WriteAllText(Path.Combine(directory, "tokenizer.json"), Words(ModelConfig.Load(directory).VocabSize));
        return (directory, model == "demo" ? 64 << 20 : 1100L << 20);
    }

    /// <summary>Makes an adapter of random values known under a digest of its own.</summary>
    public string AddAdapter(AdapterShape shape, int seed)
    {
        var modules = pool.Adapter(Config, shape, seed);
        var digest = "sha256:" + Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes($"{shape} {seed}")));
        var info = new AdapterInfo(digest, shape.Unshared > 0 ? "prolora" : "lora", shape.Rank, CompactBytes(modules), 0, null);
        return Engine.AddAdapter(new Adapter(info, modules, new Shared())).Digest;
    }

    /// <summary>What the factors take in a file.</summary>
    public static long CompactBytes(LoraModules modules) => modules.All.Sum(m => (m.A?.Bytes ?? 0) + (m.B?.Bytes ?? 0) + (m.AVec?.Bytes ?? 0) + (m.BVec?.Bytes ?? 0));

    /// <summary>Text of exactly so many tokens, another one for each seed.</summary>
    public string Prompt(int tokens, int seed)
    {
        var random = new Random(seed);
        var text = new StringBuilder();
        for (var i = 0; i < tokens; i++) text.Append(' ').Append(Word(random.Next(Config.VocabSize)));
        return tokenizer.Encode(text.ToString(), addSpecialTokens: true).Length == tokens ? text.ToString() : throw new InvalidOperationException("A word is not a token.");
    }

    /// <summary>Until nobody runs or holds anything: then the backend is the bench's.</summary>
    public async Task Quiet()
    {
        while (Engine.Status is not { Running: 0, Waiting: 0, AdaptersHeld: 0 }) await Task.Delay(10);
        await Task.Delay(50);                   // the engine's thread goes to sleep
    }

    public async ValueTask DisposeAsync()
    {
        await Engine.DisposeAsync();
        Directory.Delete(directory, recursive: true);
    }

    /// <summary>A tokenizer whose tokens are words of four letters, each with the space before it.</summary>
    private static string Words(int count)
    {
        var text = new StringBuilder("""{"added_tokens":[],"normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},"post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},"model":{"type":"BPE","ignore_merges":true,"merges":[],"vocab":{""");
        for (var i = 0; i < count; i++) text.Append(i == 0 ? "" : ",").Append('"').Append('Ġ').Append(Word(i)).Append("\":").Append(i);
        return text.Append("}}}").ToString();
    }

    private static string Word(int token) => new([.. new[] { 17576, 676, 26, 1 }.Select(place => (char)('a' + (token / place % 26)))]);

    /// <summary>The pool's memory is not an adapter's to free.</summary>
    private sealed class Shared : IDisposable
    {
        public void Dispose()
        {
        }
    }
}
