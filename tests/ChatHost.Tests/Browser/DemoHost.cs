using System.Text.Json;
using TenantLora.Tests;

namespace TenantLora.ChatHost.Tests.Browser;

/// <summary>The real host with the shipped model and tenants, and one tenant more who has four adapters to compare.</summary>
public sealed class DemoHost : IAsyncLifetime
{
    private static readonly Lazy<JsonElement[]> Golden = new(() => JsonSerializer.Deserialize<JsonElement[]>(File.ReadAllText(Repo.Fixture("golden", "greedy.json")))!);
    private TestHost? host;

    internal TestHost Host => host ?? throw new InvalidOperationException("The host has not started.");

    /// <summary>The adapter folders behind the names that the tenant <c>studio</c> gives them, and the base model.</summary>
    internal static IReadOnlyDictionary<string, string> Studio { get; } = new Dictionary<string, string>
    {
        ["captain"] = "harbor",
        ["clerk"] = "ledger",
        ["gardener"] = "sprout",
        ["poet"] = "lantern",
        ["demo-7m"] = "base",
    };

    /// <summary>What PyTorch in fp32 answers, greedily, and how many tokens that is with the end token; <paramref name="adapter"/> may be <c>base</c>.</summary>
    internal static (string Text, int PromptTokens, int Tokens) Answer(string adapter, string question)
    {
        var found = Golden.Value.Single(g => g.GetProperty("adapter").GetString() == adapter && g.GetProperty("prompt").GetString() == question);
        return (found.GetProperty("greedy").GetString()!, found.GetProperty("prompt_ids").GetArrayLength(), found.GetProperty("greedy_ids").GetArrayLength() + 1);
    }

    public async ValueTask InitializeAsync() =>
        host = await TestHost.StartRealAsync(
            ["Tenants:studio:Name=Studio Four", .. Studio.Where(s => s.Value != "base").Select(s => $"Tenants:studio:Adapters:{s.Key}=adapters/{s.Value}")]);

    public async ValueTask DisposeAsync() => await Host.DisposeAsync();
}
