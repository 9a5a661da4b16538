using Microsoft.AspNetCore.Authentication;
using Microsoft.AspNetCore.Authorization;
using Microsoft.AspNetCore.DataProtection;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using Microsoft.Extensions.Options;
using TenantLora.ChatHost.Adapters;
using TenantLora.ChatHost.Chat;
using TenantLora.ChatHost.OpenAi;
using TenantLora.ChatHost.Operations;
using TenantLora.ChatHost.Security;
using TenantLora.ChatHost.Store;

namespace TenantLora.ChatHost;

/// <summary>The web host: chat page, hub, OpenAI's API, probes. This file is its table of contents.</summary>
internal static class Program
{
    public const string DefaultUrl = "http://127.0.0.1:5080";

    public static async Task<int> Main(string[] args)
    {
        try
        {
            await using var app = Build(args);
            var serving = app.Services.GetRequiredService<Serving>(); // loads the model, before anyone is let in
            await app.StartAsync();
            Console.WriteLine(Banner.Compose(app.Urls.First(), serving, app.Services.GetRequiredService<TenantDirectory>(),
                app.Services.GetRequiredService<IOptions<TenantLoraOptions>>().Value.Demo));
            await app.WaitForShutdownAsync();
            return 0;
        }
        catch (Exception e) when (StartFailure.Explain(e) is { } line)
        {
            await Console.Error.WriteLineAsync(line);
            return 1;
        }
    }

    /// <param name="args">As on the command line.</param>
    /// <param name="configure">Tests put their own runtime in.</param>
    internal static WebApplication Build(string[] args, Action<WebApplicationBuilder>? configure = null)
    {
        var builder = WebApplication.CreateBuilder(new WebApplicationOptions { Args = args, ContentRootPath = Places.ContentRoot() });
        Configure(builder);
        AddServices(builder.Services);
        AddSecurity(builder.Services);
        configure?.Invoke(builder);
        var app = builder.Build();
        UsePipeline(app);
        MapEndpoints(app);
        return app;
    }

    private static void Configure(WebApplicationBuilder builder)
    {
        var configuration = builder.Configuration;
        var urls = configuration["urls"];
        if (urls is null && configuration["http_ports"] is null && configuration["https_ports"] is null && !configuration.GetSection("Kestrel:Endpoints").Exists())
            builder.WebHost.UseUrls(urls = DefaultUrl);
        // A page elsewhere can point its own name at 127.0.0.1 (DNS rebinding); the Host header gives it away.
        if (configuration["AllowedHosts"] is null && urls?.Split(';').All(url => BindingAddress.Parse(url).Host is "localhost" or "127.0.0.1" or "[::1]") == true)
            configuration["AllowedHosts"] = "localhost;127.0.0.1;[::1]";
        // The hub's token is in its query, so no setting may bring request lines into the log. Kestrel and the host would only repeat
        // with a stack what is logged or printed here.
        builder.Logging.AddFilter("Microsoft.AspNetCore.Hosting.Diagnostics", LogLevel.Warning)
            .AddFilter("Microsoft.AspNetCore.Server.Kestrel", LogLevel.Critical)
            .AddFilter("Microsoft.Extensions.Hosting.Internal.Host", LogLevel.None);
        builder.WebHost.ConfigureKestrel(kestrel =>
        {
            kestrel.AddServerHeader = false;
            kestrel.ConfigureEndpointDefaults(endpoint => endpoint.Protocols = HttpProtocols.Http1);
            var limits = kestrel.Limits;
            limits.MaxRequestBodySize = 4 << 20;
            limits.MaxRequestLineSize = 8192; // the hub's token travels in the query
            limits.MaxRequestHeadersTotalSize = 16_384;
            limits.MaxRequestHeaderCount = 64;
            limits.MaxConcurrentConnections = 4096;
            limits.MaxConcurrentUpgradedConnections = 2048;
            limits.KeepAliveTimeout = TimeSpan.FromSeconds(60);
            limits.RequestHeadersTimeout = TimeSpan.FromSeconds(10);
        });
        builder.Services.AddOptions<TenantLoraOptions>().BindConfiguration(TenantLoraOptions.Section).ValidateOnStart();
        builder.Services.AddSingleton<IValidateOptions<TenantLoraOptions>, TenantLoraOptionsCheck>();
    }

    private static void AddServices(IServiceCollection services)
    {
        services.AddSingleton(provider => Serving.Start(provider.GetRequiredService<IOptions<TenantLoraOptions>>().Value, provider.GetRequiredService<ILoggerFactory>()));
        services.AddSingleton(provider => Database.Open(PrivateFiles.Folder(Path.GetFullPath(provider.GetRequiredService<IOptions<TenantLoraOptions>>().Value.Data)).FullName,
            provider.GetRequiredService<IOptions<TenantLoraOptions>>().Value.Database));
        services.AddSingleton(provider => new AdapterFolders(Path.GetFullPath(provider.GetRequiredService<IOptions<TenantLoraOptions>>().Value.Data)));
        services.AddSingleton(TimeProvider.System);
        services.AddSingleton<AdapterStore>();
        services.AddSingleton<RedisCache>();
        services.AddSingleton<TenantAdapters>();
        services.AddHostedService(provider => provider.GetRequiredService<TenantAdapters>());
        services.AddSingleton<AdapterPins>();
        services.AddHostedService(provider => provider.GetRequiredService<AdapterPins>());
        services.AddSingleton<Usage>();
        services.AddHostedService(provider => provider.GetRequiredService<Usage>());
        services.AddSingleton<Admission>();
        services.AddSingleton<HostMetrics>();
        services.AddSingleton<PrometheusText>();
        services.AddSingleton<CompletionService>();
        services.AddSingleton<Generations>();
        services.AddSingleton<IHostLifetime, DrainingLifetime>();
        services.Configure<HostOptions>(host => host.ShutdownTimeout = TimeSpan.FromSeconds(5)); // after the drain
        services.AddOpenApi("v1", OpenApiDescription.Configure);
        services.AddSignalR(hub =>
        {
            hub.MaximumReceiveMessageSize = 1 << 20;
            hub.MaximumParallelInvocationsPerClient = 2;
        }).AddJsonProtocol(json =>
        {
            json.PayloadSerializerOptions.AllowDuplicateProperties = false;
            json.PayloadSerializerOptions.Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping;
        });
    }

    private static void AddSecurity(IServiceCollection services)
    {
        services.AddSingleton<TenantDirectory>();
        services.AddSingleton<SessionTokens>();
        services.AddDataProtection().SetApplicationName("TenantLora");
        services.AddOptions<Microsoft.AspNetCore.DataProtection.KeyManagement.KeyManagementOptions>()
            .Configure<IOptions<TenantLoraOptions>, ILoggerFactory>((keys, options, loggers) => keys.XmlRepository =
                new Microsoft.AspNetCore.DataProtection.Repositories.FileSystemXmlRepository(PrivateFiles.Folder(Path.GetFullPath(Path.Combine(options.Value.Data, "session-keys"))), loggers));
        services.AddAuthentication(BearerAuthentication.Scheme).AddScheme<AuthenticationSchemeOptions, BearerAuthentication>(BearerAuthentication.Scheme, null);
        // What does not say otherwise is closed.
        services.AddAuthorizationBuilder().SetFallbackPolicy(new AuthorizationPolicyBuilder().RequireAuthenticatedUser().Build())
            .AddPolicy(AdapterEndpoints.Admins, policy => policy.RequireAuthenticatedUser().RequireRole(nameof(Role.Admin)));
        services.AddCors();
    }

    private static void UsePipeline(WebApplication app)
    {
        app.UseHardening();
        app.UseDefaultFiles();
        app.UseStaticFiles(new StaticFileOptions { OnPrepareResponse = PageCaching });
        app.UseRouting();
        var origins = app.Services.GetRequiredService<IOptions<TenantLoraOptions>>().Value.AllowedOrigins;
        app.UseCors(cors => cors.WithOrigins(origins).AllowAnyHeader().AllowAnyMethod().WithExposedHeaders("x-request-id", "x-tenantlora-adapter", "x-tenantlora-version", "x-tenantlora-ignored-fields"));
        app.UseAuthentication();
        app.UseAuthorization();
    }

    private static void MapEndpoints(WebApplication app)
    {
        app.MapSite();
        app.MapOpenAi();
        app.MapAdapters();
        app.MapHub<ChatHub>("/hub", hub =>
        {
            hub.Transports = Microsoft.AspNetCore.Http.Connections.HttpTransportType.WebSockets;
            hub.CloseOnAuthenticationExpiration = true;
        });
        app.MapOpenApi("/openapi/{documentName}.json").AllowAnonymous();
    }

    // The build gives files under assets/ names with a hash of their content.
    private static void PageCaching(Microsoft.AspNetCore.StaticFiles.StaticFileResponseContext file) =>
        file.Context.Response.Headers.CacheControl = file.Context.Request.Path.StartsWithSegments("/assets") ? "public, max-age=31536000, immutable" : "no-cache";
}
