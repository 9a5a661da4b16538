using System.Globalization;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Adapters;

/// <summary>What the files of an adapter that nothing stands against cannot tell: does it change anything.</summary>
internal static class SmokeRun
{
    private const int Tokens = 8;
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(10);

    /// <summary>One prompt, greedy, with and without it.</summary>
    public static async Task<AdapterFinding> TryAsync(Engine engine, string digest)
    {
        try
        {
            using var end = new CancellationTokenSource(Patience);
            var (without, with) = (await AnswerAsync(engine, null, end.Token), await AnswerAsync(engine, digest, end.Token));
            if (without.SequenceEqual(with))
                return new AdapterFinding("smoke_no_effect", Severity.Warning, "On a short prompt the model answers exactly as without it.", "adapter", "another answer, or other probabilities", "the same to the last bit",
                    "Check that it was trained, and saved after the training.");
            var apart = without.Zip(with).TakeWhile(pair => pair.First.Token == pair.Second.Token).Count();
            return new AdapterFinding("smoke_ok", Severity.Information, apart == Math.Min(without.Count, with.Count)
                ? "On a short prompt the model gives the same answer as without it, with other probabilities."
                : string.Create(CultureInfo.InvariantCulture, $"On a short prompt the model answers otherwise than without it from token {apart + 1} on."), "adapter");
        }
        catch (Exception e) when (e is TenantLoraException or OperationCanceledException)
        {
            return new AdapterFinding("smoke_not_run", Severity.Information, $"It could not be tried on a prompt: {(e is TenantLoraException known ? known.Message : "the server is busy.")}", "adapter");
        }
    }

    private static async Task<IReadOnlyList<(string Token, float LogProbability)>> AnswerAsync(Engine engine, string? digest, CancellationToken cancellationToken)
    {
        var answer = new List<(string, float)>();
        var request = new GenerationRequest
        {
            Tenant = "smoke run",
            Adapter = digest,
            Messages = [new Message("user", "Hello")],
            MaxTokens = Tokens,
            Sampling = new SamplingOptions { Temperature = 0, LogProbabilities = 0 },
        };
        await foreach (var generated in engine.GenerateAsync(request, cancellationToken))
            if (generated is TextDelta delta) answer.AddRange(delta.LogProbabilities.Select(p => (p.Token, (float)p.LogProbability)));
        return answer;
    }
}
