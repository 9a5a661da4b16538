using TenantLora.Bench;

return args switch
{
    ["logits", .. var rest] => Logits.Run(rest),
    ["tokenize", .. var rest] => Tokenize.Run(rest),
    ["kernels", .. var rest] => CpuKernels.Run(rest),
    ["decode", .. var rest] => Decode.Run(rest),
    _ => Help(),
};

static int Help()
{
    Console.Error.WriteLine("""
        dotnet run --project tests/Bench -- COMMAND

          decode   [--model demo|1b|DIR] [--rows 1,4,16] [--context 128]    tokens/s with base, one adapter, all different; share of the read bandwidth
          kernels                                                         the Cpu backend's verbs against the machine's peak
          logits   --model DIR [--adapter DIR] [--device D] --ids 5,6,7   fp32 logits, a JSON array a position
          tokenize --model DIR                                            JSON strings on stdin -> ids, ids_plain, decoded
        """);
    return 2;
}
