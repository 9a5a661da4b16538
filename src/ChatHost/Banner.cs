using System.Globalization;
using System.Text;
using Microsoft.Extensions.Options;
using TenantLora.ChatHost.Runtimes;
using TenantLora.ChatHost.Security;
using TenantLora.Runtime;

namespace TenantLora.ChatHost;

/// <summary>What a person sees at start: where it listens, what it serves, and lines to paste.</summary>
internal static class Banner
{
    public static string Compose(string address, IServiceProvider services)
    {
        StringBuilder text = new();
        var (options, serving) = (services.GetRequiredService<IOptions<TenantLoraOptions>>().Value, services.GetRequiredService<Serving>());
        var info = serving.Info;
        text.AppendLine().AppendLine(options.Role is HostRole.All ? "TenantLora" : $"TenantLora, {options.Role}").AppendLine();
        Line("address", address);
        Line("model", $"{info.Model} ({info.Family}, {Count(info.Parameters)} parameters, context {info.ContextLength} tokens)");
        if (serving.Runtime is RemoteRuntimes remote)
            foreach (var (runtime, isUsed) in remote.All) Line("runtime", isUsed ? runtime.ToString() : $"{runtime} (not used yet)");
        else Line("device", info.Device);
        if (options.Role is HostRole.Runtime) Line("web", $"{options.AdaptersFrom}, where adapters' bytes come from");
        text.AppendLine();
        if (options.Role is not HostRole.Runtime) People(text, address, serving, services.GetRequiredService<TenantDirectory>(), options.Demo);
        return text.AppendLine("  Ctrl+C stops; running answers are finished first.").ToString();

        void Line(string name, string value) => text.AppendLine(CultureInfo.InvariantCulture, $"  {name,-8} {value}");
    }

    private static void People(StringBuilder text, string address, Serving serving, TenantDirectory tenants, bool demo)
    {
        Table(text, serving, tenants);
        if (tenants.All.FirstOrDefault() is { } first) Examples(text, address, serving.Models(first.Id)[0].Name, tenants.DemoKeys.GetValueOrDefault(first.Id, "tl_…"));
        if (demo && !IsLoopback(address)) text.AppendLine("  Demo mode lets anyone who reaches this address in. Set TenantLora__Demo=false.").AppendLine();
    }

    private static void Table(StringBuilder text, Serving serving, TenantDirectory tenants)
    {
        var rows = tenants.All.Select(t => (t.Id, t.Name,
            Adapters: string.Join(", ", serving.Models(t.Id).Where(m => m.Digest is not null).Select(m => Describe(m.Name, serving.Adapter(m)))),
            Key: tenants.DemoKeys.GetValueOrDefault(t.Id, "(known by its hash)"))).ToArray();
        if (rows is []) return;
        var (id, name, adapters) = (rows.Max(r => r.Id.Length), rows.Max(r => r.Name.Length), rows.Max(r => r.Adapters.Length));
        text.AppendLine("  " + "tenant".PadRight(Math.Max(6, id)) + "  " + "".PadRight(name) + "  " + "adapters".PadRight(Math.Max(8, adapters)) + "  key");
        foreach (var row in rows)
            text.AppendLine("  " + row.Id.PadRight(Math.Max(6, id)) + "  " + row.Name.PadRight(name) + "  " + row.Adapters.PadRight(Math.Max(8, adapters)) + "  " + row.Key);
        text.AppendLine();
    }

    private static void Examples(StringBuilder text, string address, string model, string key)
    {
        text.AppendLine(CultureInfo.InvariantCulture, $$"""
              chat     {{address}} in a browser
              curl     curl {{address}}/v1/chat/completions -H "Authorization: Bearer {{key}}" -H "Content-Type: application/json" -d '{"model":"{{model}}","messages":[{"role":"user","content":"When are you open?"}]}'
              C#       IChatClient chat = new TenantLoraChatClient(new Uri("{{address}}"), "{{key}}", "{{model}}");

            """);
    }

    private static string Describe(string name, AdapterInfo? adapter) =>
        adapter is null ? name : $"{name} ({adapter.Kind} r{adapter.Rank}, {adapter.Bytes / 1000.0:0} kB)";

    private static string Count(long parameters) => parameters switch
    {
        >= 1_000_000_000 => string.Create(CultureInfo.InvariantCulture, $"{parameters / 1e9:0.0} G"),
        >= 1_000_000 => string.Create(CultureInfo.InvariantCulture, $"{parameters / 1e6:0.0} M"),
        _ => parameters.ToString(CultureInfo.InvariantCulture),
    };

    private static bool IsLoopback(string address) => Uri.TryCreate(address, UriKind.Absolute, out var uri) && uri.IsLoopback;
}
