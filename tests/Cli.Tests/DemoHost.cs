using Microsoft.AspNetCore.Builder;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Hosting;
using Microsoft.Extensions.Logging;
using TenantLora.ChatHost.Security;

namespace TenantLora.Cli.Tests;

/// <summary>The real host with the demo model on a port of its own: one for all tests, each of which keeps to a tenant.</summary>
public sealed class DemoHost : IAsyncLifetime
{
    private readonly string data = Directory.CreateTempSubdirectory("tenantlora-").FullName;
    private WebApplication? app;

    public string Url => app!.Urls.First();

    public string Key(string tenant) => app!.Services.GetRequiredService<TenantDirectory>().DemoKeys[tenant];

    internal Tool Tool(string tenant) => new(Url, Key(tenant));

    public async ValueTask InitializeAsync()
    {
        app = ChatHost.Program.Build(["--urls=http://127.0.0.1:0", $"--TenantLora:Data={data}", "--TenantLora:Device=cpu"], builder =>
        {
            builder.Logging.ClearProviders();
            builder.Services.AddSingleton<IHostLifetime, QuietLifetime>();
        });
        await app.StartAsync();
    }

    public async ValueTask DisposeAsync()
    {
        await app!.StopAsync();
        await app.DisposeAsync();
        Directory.Delete(data, recursive: true);
    }

    /// <summary>Leaves the test runner's signals alone.</summary>
    private sealed class QuietLifetime : IHostLifetime
    {
        public Task WaitForStartAsync(CancellationToken cancellationToken) => Task.CompletedTask;

        public Task StopAsync(CancellationToken cancellationToken) => Task.CompletedTask;
    }
}
