using System.Diagnostics;
using System.Globalization;
using System.Security.Cryptography;
using System.Text;
using TenantLora.Connector;
using TenantLora.Runtime;

namespace TenantLora.Bench;

/// <summary>
/// Running servers as their callers see them, over /v1 and by turns, so that what else the machine does hits all: time to the first token, tokens a second,
/// and a hash of the answers, which are greedy. The first server is what the others are compared with.
/// </summary>
internal static class Servers
{
    public static async Task<int> Run(string[] args)
    {
        var arguments = new Arguments(args, "servers", "rows", "rounds", "answer", "model");
        var (rounds, answer) = (int.Parse(arguments["rounds"] ?? "20", CultureInfo.InvariantCulture), int.Parse(arguments["answer"] ?? "64", CultureInfo.InvariantCulture));
        var servers = arguments.Required("servers").Split(',').Select(s => s.Split('=', 2)).Select(s => s is [var url, var key] ? (Url: new Uri(url), Client: new TenantLoraClient(new Uri(url), _ => key))
            : throw new ArgumentException("--servers is URL=KEY,URL=KEY.")).ToArray();
        Console.WriteLine($"{Environment.ProcessorCount} cores; answers of up to {answer} tokens, {rounds} rounds by turns, the first of each left out; medians");
        Console.WriteLine($"{"rows",4}  {"server",-28} {"first token ms",15} {"p95",7} {"of first",9} {"tok/s",8} {"of first",9}  answers");
        foreach (var rows in arguments.Integers("rows") ?? [1, 8])
        {
            var (first, speed, answers) = (new List<double>[servers.Length], new List<double>[servers.Length], new string[servers.Length]);
            for (var round = 0; round <= rounds; round++)
                for (var s = 0; s < servers.Length; s++)
                {
                    (first[s], speed[s]) = (first[s] ?? [], speed[s] ?? []);
                    var model = arguments["model"] ?? (await servers[s].Client.ListModelsAsync("tenant"))[0];
                    var begun = Stopwatch.GetTimestamp();
                    var all = await Task.WhenAll(Enumerable.Range(0, rows).Select(r => AskAsync(servers[s].Client, model, r, answer)));
                    var seconds = Stopwatch.GetElapsedTime(begun).TotalSeconds;
                    answers[s] = string.Concat(all.Select(a => a.Text));
                    if (round == 0) continue;
                    first[s].AddRange(all.Select(a => a.First));
                    speed[s].Add(all.Sum(a => a.Tokens) / seconds);
                }
            double At(List<double> values, double share) => values.Order().ElementAt((int)(share * (values.Count - 1)));
            for (var s = 0; s < servers.Length; s++)
                Console.WriteLine(string.Create(CultureInfo.InvariantCulture,
                    $"{rows,4}  {servers[s].Url,-28} {At(first[s], 0.5),15:f1} {At(first[s], 0.95),7:f1} {At(first[s], 0.5) / At(first[0], 0.5),9:p0} {At(speed[s], 0.5),8:f0} {At(speed[s], 0.5) / At(speed[0], 0.5),9:p0}  {Convert.ToHexStringLower(SHA256.HashData(System.Text.Encoding.UTF8.GetBytes(answers[s])).AsSpan(0, 6))}"));
        }
        return 0;
    }

    private static async Task<(double First, int Tokens, string Text)> AskAsync(TenantLoraClient client, string model, int row, int answer)
    {
        var (begun, first, tokens, text) = (Stopwatch.GetTimestamp(), 0.0, 0, new StringBuilder());
        var request = new GenerationRequest
        {
            Tenant = "tenant",
            Model = model,
            Prompt = string.Create(CultureInfo.InvariantCulture, $"{row}. The harbor opens at"),
            MaxTokens = answer,
            Sampling = new SamplingOptions { Temperature = 0 },
        };
        await foreach (var happened in client.GenerateAsync(request))
            if (happened is TextDelta delta)
            {
                if (text.Length == 0) first = Stopwatch.GetElapsedTime(begun).TotalMilliseconds;
                text.Append(delta.Text);
            }
            else if (happened is GenerationDone done) tokens = done.Usage.CompletionTokens;
        return (first, tokens, text.ToString());
    }
}
