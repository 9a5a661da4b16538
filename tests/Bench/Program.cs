using System.Text.Json;
using TenantLora.Bench;
using TenantLora.Runtime;

try
{
    return args switch
    {
        ["decode", .. var rest] => Decode.Run(rest),
        ["gpu", .. var rest] => Gpu.Run(rest),
        ["gpu-adapters", .. var rest] => await GpuAdapters.Run(rest),
        ["gpu-engine", .. var rest] => await GpuEngine.Run(rest),
        ["host", .. var rest] => await HostShare.Run(rest),
        ["kernels", .. var rest] => CpuKernels.Run(rest),
        ["logits", .. var rest] => Logits.Run(rest),
        ["servers", .. var rest] => await Servers.Run(rest),
        ["tokenize", .. var rest] => Tokenize.Run(rest),
        _ => Help(),
    };
}
catch (Exception error) when (error is ArgumentException or FormatException or IOException or TenantLoraException or JsonException or ModelFileException or AdapterRefusedException)
{
    Console.Error.WriteLine(error.Message);
    return 1;
}

static int Help()
{
    Console.Error.WriteLine("""
        dotnet run --project tests/Bench -- COMMAND

          decode        [--model demo|1b|DIR] [--rows 1,4,16] [--context 128]    tokens/s with base, one adapter, all different; share of the read bandwidth
          gpu           [--model 1b,8b] [--rows 1,16,64,128] [--quick yes]     steps and prompts of true shapes on an NVIDIA GPU, random weights
          gpu-engine    [--model demo|1b|8b] [--rows 64] [--seconds 20]        the same through the engine, beside its step alone
                        [--device cuda] [--prompt 448] [--answer 128]
          gpu-adapters  [--model demo|1b|8b] [--rows 64] [--seconds 20]        many adapters by Zipf over room for some, against room for all
                        [--adapters 1000] [--room 300] [--device cuda] [--warm 5] [--prompt 64] [--answer 128]
          host          [--rows 1,16,64,256] [--steps 1000] [--device-us 0]    the engine's own work for a step, on a backend that computes nothing
          kernels       [THREADS]                                              the Cpu backend's verbs against the machine's peak
          logits        --model DIR [--adapter DIR] [--device D] --ids 5,6,7   fp32 logits, a JSON array a position
                        [--rope bf16]                                          with RoPE frequencies rounded, as a model object cast to bf16 has them
          servers       --servers URL=KEY,URL=KEY [--rows 1,8] [--rounds 20]   running servers over /v1, by turns: first token, tokens/s, the same answers
                        [--answer 64] [--model NAME]
          tokenize      --model DIR                                            JSON strings on stdin -> ids, ids_plain, decoded
        """);
    return 2;
}
