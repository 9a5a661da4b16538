using Microsoft.AspNetCore.Authentication;
using Microsoft.AspNetCore.Authorization;
using Microsoft.AspNetCore.DataProtection;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using Microsoft.Extensions.Options;
using TenantLora.ChatHost.Adapters;
using TenantLora.ChatHost.Chat;
using TenantLora.ChatHost.OpenAi;
using TenantLora.ChatHost.Operations;
using TenantLora.ChatHost.Runtimes;
using TenantLora.ChatHost.Security;
using TenantLora.ChatHost.Store;
using TenantLora.Connector;

namespace TenantLora.ChatHost;

/// <summary>The host: chat page, hub, OpenAI's API, probes; by its role all of it, the web's part, or a runtime's. This file is its table of contents.</summary>
internal static class Program
{
    public const string DefaultUrl = "http://127.0.0.1:5080";

    private const int MostBody = 4 << 20;

    public static async Task<int> Main(string[] args)
    {
        try
        {
            await using var app = Build(args);
            app.Services.GetRequiredService<Serving>(); // loads the model, or finds a runtime, before anyone is let in
            await app.StartAsync();
            Console.WriteLine(Banner.Compose(app.Urls.First(), app.Services));
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
        var role = builder.Configuration.GetValue($"{TenantLoraOptions.Section}:{nameof(TenantLoraOptions.Role)}", HostRole.All);
        AddAnswers(builder.Services);
        AddRuntime(builder.Services, role);
        if (role is not HostRole.Runtime) AddPeople(builder.Services);
        AddSecurity(builder.Services, role);
        configure?.Invoke(builder);
        var app = builder.Build();
        UsePipeline(app, role);
        MapEndpoints(app, role);
        return app;
    }

    private static void Configure(WebApplicationBuilder builder)
    {
        var configuration = builder.Configuration;
        configuration.AddSecrets(configuration["secrets"] ?? Secrets.Folder);
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
            limits.MaxRequestBodySize = MostBody;
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

    /// <summary>What every role has: /v1's answers, adapters' bytes in a folder, probes, the drain.</summary>
    private static void AddAnswers(IServiceCollection services)
    {
        services.AddSingleton(provider => new AdapterFolders(Path.GetFullPath(OptionsOf(provider).Data)));
        services.AddSingleton(TimeProvider.System);
        services.AddSingleton<Admission>();
        services.AddSingleton<HostMetrics>();
        services.AddSingleton<PrometheusText>();
        services.AddSingleton<CompletionService>();
        services.AddSingleton<IHostLifetime, DrainingLifetime>();
        services.Configure<HostOptions>(host => host.ShutdownTimeout = TimeSpan.FromSeconds(5)); // after the drain
    }

    /// <summary>What answers: an engine here whose adapters' bytes are here too, an engine here that fetches them, or runtimes elsewhere.</summary>
    private static void AddRuntime(IServiceCollection services, HostRole role)
    {
        switch (role)
        {
            case HostRole.Web:
                services.AddSingleton(provider => WithNames(RemoteRuntimes.ConnectAsync(OptionsOf(provider), provider.GetRequiredService<ILogger<RemoteRuntimes>>()).GetAwaiter().GetResult()));
                break;
            case HostRole.Runtime:
                services.AddSingleton(provider => new FetchedAdapters(provider.GetRequiredService<AdapterFolders>(), new Uri(OptionsOf(provider).AdaptersFrom!.TrimEnd('/') + "/"),
                    OptionsOf(provider).ServiceKey!, (long)OptionsOf(provider).AdapterDiskMegabytes << 20, provider.GetRequiredService<ILogger<FetchedAdapters>>()));
                services.AddSingleton(provider => EngineRuntime.Start(OptionsOf(provider), provider.GetRequiredService<FetchedAdapters>().BringAsync, provider.GetRequiredService<HostMetrics>(), provider.GetRequiredService<ILoggerFactory>()));
                services.AddSingleton(provider => new Serving(provider.GetRequiredService<EngineRuntime>(), catalog: null));
                break;
            default:
                services.AddSingleton(provider =>
                {
                    var folders = provider.GetRequiredService<AdapterFolders>();
                    return WithNames(EngineRuntime.Start(OptionsOf(provider), (engine, digest) => Task.FromResult(engine.AddAdapter(folders.PathOf(digest), digest).Bytes),
                        provider.GetRequiredService<HostMetrics>(), provider.GetRequiredService<ILoggerFactory>()));
                });
                break;
        }

        static Serving WithNames(IServedRuntime runtime) => new(runtime, new AdapterCatalog(runtime.Info.Model));
    }

    /// <summary>What people have and runtimes do not: tenants and their adapters, the store, Redis, usage, the hub.</summary>
    private static void AddPeople(IServiceCollection services)
    {
        services.AddSingleton(provider => Database.Open(PrivateFiles.Folder(Path.GetFullPath(OptionsOf(provider).Data)).FullName, OptionsOf(provider).Database));
        services.AddSingleton<AdapterStore>();
        services.AddSingleton<RedisCache>();
        services.AddSingleton<TenantDirectory>();
        services.AddSingleton<TenantAdapters>();
        services.AddHostedService(provider => provider.GetRequiredService<TenantAdapters>());
        services.AddSingleton<AdapterPins>();
        services.AddHostedService(provider => provider.GetRequiredService<AdapterPins>());
        services.AddSingleton<Usage>();
        services.AddHostedService(provider => provider.GetRequiredService<Usage>());
        services.AddSingleton<Generations>();
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

    private static void AddSecurity(IServiceCollection services, HostRole role)
    {
        // What does not say otherwise is closed.
        var authorization = services.AddAuthorizationBuilder().SetFallbackPolicy(new AuthorizationPolicyBuilder().RequireAuthenticatedUser().Build());
        var authentication = services.AddAuthentication(role is HostRole.Runtime ? ServiceAuthentication.Scheme : BearerAuthentication.Scheme);
        if (role is not HostRole.All)
        {
            authentication.AddScheme<AuthenticationSchemeOptions, ServiceAuthentication>(ServiceAuthentication.Scheme, null);
            authorization.AddPolicy(ServiceEndpoints.Hosts, policy => policy.AddAuthenticationSchemes(ServiceAuthentication.Scheme).RequireAuthenticatedUser());
        }
        if (role is HostRole.Runtime) return;

        authentication.AddScheme<AuthenticationSchemeOptions, BearerAuthentication>(BearerAuthentication.Scheme, people =>
            people.ForwardDefaultSelector = context => role is HostRole.Web && context.Request.Path.StartsWithSegments("/service") ? ServiceAuthentication.Scheme : null);
        authorization.AddPolicy(AdapterEndpoints.Admins, policy => policy.RequireAuthenticatedUser().RequireRole(nameof(Role.Admin)));
        services.AddSingleton<SessionTokens>();
        services.AddDataProtection().SetApplicationName("TenantLora");
        services.AddOptions<Microsoft.AspNetCore.DataProtection.KeyManagement.KeyManagementOptions>()
            .Configure<IOptions<TenantLoraOptions>, ILoggerFactory>((keys, options, loggers) => keys.XmlRepository =
                new Microsoft.AspNetCore.DataProtection.Repositories.FileSystemXmlRepository(PrivateFiles.Folder(Path.GetFullPath(Path.Combine(options.Value.Data, "session-keys"))), loggers));
        services.AddCors();
    }

    private static void UsePipeline(WebApplication app, HostRole role)
    {
        app.UseHardening();
        if (role is not HostRole.Runtime)
        {
            app.UseDefaultFiles();
            app.UseStaticFiles(new StaticFileOptions { OnPrepareResponse = PageCaching });
        }
        app.UseRouting();
        var origins = OptionsOf(app.Services).AllowedOrigins;
        if (role is not HostRole.Runtime) app.UseCors(cors => cors.WithOrigins(origins).AllowAnyHeader().AllowAnyMethod().WithExposedHeaders("x-request-id", "x-tenantlora-adapter", "x-tenantlora-version", "x-tenantlora-ignored-fields"));
        app.UseAuthentication();
        app.UseAuthorization();
    }

    private static void MapEndpoints(WebApplication app, HostRole role)
    {
        app.MapProbes();
        if (role is HostRole.Runtime)
        {
            app.MapCompletions(bodies: MostBody * 6).RequireTenantHeader();         // a Web host may escape a character of one byte in six
            app.MapRuntime();
            return;
        }
        if (role is HostRole.Web) app.MapAdapterBytes();
        app.MapSite();
        app.MapCompletions();
        app.MapModels();
        app.MapAdapters();
        app.MapHub<ChatHub>("/hub", hub =>
        {
            hub.Transports = Microsoft.AspNetCore.Http.Connections.HttpTransportType.WebSockets;
            hub.CloseOnAuthenticationExpiration = true;
        });
        app.MapOpenApi("/openapi/{documentName}.json").AllowAnonymous();
    }

    private static TenantLoraOptions OptionsOf(IServiceProvider services) => services.GetRequiredService<IOptions<TenantLoraOptions>>().Value;

    // The build gives files under assets/ names with a hash of their content.
    private static void PageCaching(Microsoft.AspNetCore.StaticFiles.StaticFileResponseContext file) =>
        file.Context.Response.Headers.CacheControl = file.Context.Request.Path.StartsWithSegments("/assets") ? "public, max-age=31536000, immutable" : "no-cache";
}
