using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Http;
using Microsoft.Extensions.Logging;

namespace TenantLora.Cli.Tests;

/// <summary>A server that knows every key as an admin's of <c>t</c>, and otherwise answers as it is told.</summary>
internal sealed class StubServer : IAsyncDisposable
{
    private readonly WebApplication app;

    private StubServer(WebApplication app) => this.app = app;

    public string Url => app.Urls.First();

    public static async Task<StubServer> StartAsync(Func<HttpContext, Task> answer, string session = """{"tenant":"t","name":"T","token":"x","expiresAt":"2030-01-01T00:00:00Z","role":"admin"}""")
    {
        var builder = WebApplication.CreateEmptyBuilder(new WebApplicationOptions());
        builder.Logging.ClearProviders();
        builder.WebHost.UseKestrelCore().UseUrls("http://127.0.0.1:0");
        var app = builder.Build();
        app.Run(context => context.Request.Path == "/api/session" ? JsonAsync(context, session) : answer(context));
        await app.StartAsync();
        return new StubServer(app);
    }

    public static Task JsonAsync(HttpContext context, string json, int status = 200)
    {
        context.Response.StatusCode = status;
        context.Response.ContentType = status < 400 ? "application/json" : "application/problem+json";
        return context.Response.WriteAsync(json);
    }

    public ValueTask DisposeAsync() => app.DisposeAsync();
}
