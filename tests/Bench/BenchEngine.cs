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
/// An engine on a model of true shape with random weights, with a <see cref="StepProbe"/> around its backend.
/// </summary>
internal sealed class BenchEngine : IAsyncDisposable
{
    private readonly Tokenizer tokenizer;
    private readonly RandomPool pool;

    /// <param name="options">The model's folder is not among them: <paramref name="folder"/> says it.</param>
    /// <param name="adapterBytes">Room for adapters on the backend that was opened; null: what the options say.</param>
    /// <param name="open">Null: the options' device.</param>
    public BenchEngine(BenchFolder folder, RandomPool pool, EngineOptions options, Func<IBackend, long>? adapterBytes = null, Func<IBackend>? open = null)
    {
        if (!Devices.IsKnown(options.Device)) throw new ArgumentException($"--device: expected {Devices.Known}, found {options.Device}.");
        this.pool = pool;
        Config = folder.Config;
        tokenizer = Tokenizer.Load(folder.Path);
        open ??= () => Devices.Open(options.Device, 0, options.MaxAdapterRank, options.MaxSequences, 0, NullLogger.Instance);
        StepProbe? probe = null;
        Engine = Engine.Start(options with { ModelDirectory = folder.Path }, () =>
        {
            var backend = open();
            return probe = new StepProbe(backend) { AdapterBytes = adapterBytes?.Invoke(backend) };
        }, source: pool.Tensor);
        Probe = probe!;
    }

    public ModelConfig Config { get; }

    public Engine Engine { get; }

    public StepProbe Probe { get; }

    /// <summary>Makes an adapter of random values known under a digest of its own.</summary>
    public string AddAdapter(AdapterShape shape, int seed)
    {
        var modules = pool.Adapter(Config, shape, seed);
        var digest = "sha256:" + Convert.ToHexStringLower(SHA256.HashData(System.Text.Encoding.UTF8.GetBytes($"{shape} {seed}")));
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
        for (var i = 0; i < tokens; i++) text.Append(' ').Append(BenchFolder.Word(random.Next(Config.VocabSize)));
        return tokenizer.Encode(text.ToString(), addSpecialTokens: true).Length == tokens ? text.ToString() : throw new InvalidOperationException("A word is not a token.");
    }

    /// <summary>Until nobody runs or holds anything: then the backend is the bench's.</summary>
    public async Task Quiet()
    {
        while (Engine.Status is not { Running: 0, Waiting: 0, AdaptersHeld: 0 }) await Task.Delay(10);
        await Task.Delay(50);                   // the engine's thread goes to sleep
    }

    public ValueTask DisposeAsync() => Engine.DisposeAsync();

    /// <summary>The pool's memory is not an adapter's to free.</summary>
    private sealed class Shared : IDisposable
    {
        public void Dispose()
        {
        }
    }
}

/// <summary>The small files of a model whose weights are nowhere: config.json, a tokenizer of as many words as the model has tokens, and nothing that ends an answer before its limit.</summary>
internal sealed class BenchFolder : IDisposable
{
    /// <param name="model">1b, 8b or demo.</param>
    public BenchFolder(string model)
    {
        Path = model switch
        {
            "1b" => RandomModel.Llama1B(),
            "8b" => RandomModel.Llama8B(),
            "demo" => Directory.CreateTempSubdirectory("demo-").FullName,
            _ => throw new ArgumentException($"--model: expected 1b, 8b or demo, found {model}."),
        };
        if (model == "demo") File.Copy(Repo.Path("models", "demo-7m", "config.json"), System.IO.Path.Combine(Path, "config.json"));
        File.WriteAllText(System.IO.Path.Combine(Path, "generation_config.json"), """{ "do_sample": false, "eos_token_id": [] }""");
        Config = ModelConfig.Load(Path);
        File.WriteAllText(System.IO.Path.Combine(Path, "tokenizer.json"), Words(Config.VocabSize));
    }

    public string Path { get; }

    public ModelConfig Config { get; }

    /// <summary>Random values enough for its largest tensor.</summary>
    public long PoolBytes => 2L * Config.VocabSize * Config.HiddenSize * 17 / 16;

    /// <summary>The text of a token, but for the space before it.</summary>
    public static string Word(int token) => new([.. new[] { 17576, 676, 26, 1 }.Select(place => (char)('a' + (token / place % 26)))]);

    public void Dispose() => Directory.Delete(Path, recursive: true);

    /// <summary>A tokenizer whose tokens are words of four letters, each with the space before it.</summary>
    private static string Words(int count)
    {
        var text = new StringBuilder("""{"added_tokens":[],"normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},"post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},"model":{"type":"BPE","ignore_merges":true,"merges":[],"vocab":{""");
        for (var i = 0; i < count; i++) text.Append(i == 0 ? "" : ",").Append('"').Append('Ġ').Append(Word(i)).Append("\":").Append(i);
        return text.Append("}}}").ToString();
    }
}
