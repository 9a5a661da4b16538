using System.Collections.Immutable;
using TenantLora.ChatHost.Adapters;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Runtimes;

/// <summary>What hosts ask of each other under /service, with the service key alone.</summary>
internal static class ServiceEndpoints
{
    public const string Hosts = "hosts";

    /// <summary>A Web host's: adapters' bytes, for runtimes that lack them.</summary>
    public static void MapAdapterBytes(this IEndpointRouteBuilder app) =>
        app.MapGet("/service/adapters/{digest}/{file}", (string digest, string file, AdapterFolders folders) =>
                AdapterFolders.IsDigest(digest) && file is AdapterFolders.ConfigName or AdapterFolders.WeightsName && Path.Combine(folders.PathOf(digest), file) is var path && File.Exists(path)
                    ? Results.File(path, "application/octet-stream") : Results.NotFound())
            .RequireAuthorization(Hosts).ExcludeFromDescription();

    /// <summary>A Runtime host's: what it is, what it thinks of an adapter, and what it has at hand.</summary>
    public static void MapRuntime(this IEndpointRouteBuilder app)
    {
        var service = app.MapGroup("/service").RequireAuthorization(Hosts);
        var start = Guid.NewGuid();
        service.MapGet("/info", (EngineRuntime runtime) => TypedResults.Json(new ServiceInfo(runtime.Info, runtime.MaxAdapterFileBytes, runtime.AdapterMemory, start, runtime.Fault), ServiceJson.Default.ServiceInfo));
        service.MapPut("/kept", async (HttpContext context, EngineRuntime runtime, IHostApplicationLifetime life) =>
        {
            var wanted = await context.Request.ReadFromJsonAsync(ServiceJson.Default.KeptAdapters, context.RequestAborted);
            if (wanted is null || !wanted.Digests.All(AdapterFolders.IsDigest)) throw new TenantLoraException(ErrorCodes.InvalidRequest, "digests: expected digests of adapters.") { Parameter = "digests" };
            _ = runtime.KeepAsync(ImmutableDictionary<string, ImmutableHashSet<string>>.Empty.Add("", [.. wanted.Digests]), life.ApplicationStopping);        // their bytes may take a while
            return Results.NoContent();
        });
        service.MapGet("/residents", async (EngineRuntime runtime, HttpContext context) =>
            TypedResults.Json(await runtime.ResidentsAsync("", context.RequestAborted), ServiceJson.Default.Residents));
        service.MapPost("/adapters", JudgeAsync);
        service.MapDelete("/adapters/{digest}", (string digest, EngineRuntime runtime, FetchedAdapters fetched) =>
        {
            if (!AdapterFolders.IsDigest(digest)) return Results.NotFound();
            Forget();
            fetched.Forget(digest);
            return Results.NoContent();

            void Forget() => runtime.Forget(digest, whenLeft: Forget);
        });
    }

    private static async Task<IResult> JudgeAsync(HttpContext context, EngineRuntime runtime, AdapterFolders folders, FetchedAdapters fetched, bool @try = false)
    {
        var most = runtime.MaxAdapterFileBytes;
        AdapterUpload.LimitBody(context, most);
        using var staged = folders.Stage();
        try
        {
            await new AdapterUpload(staged, most).ReceiveAsync(context.Request, context.RequestAborted);
        }
        catch (UploadRefusedException e)
        {
            throw new TenantLoraException(ErrorCodes.InvalidRequest, e.Message, e);
        }
        var report = await runtime.JudgeAsync(staged.Path, "", @try, CancellationToken.None);
        if (report.Adapter is { } adapter && @try) fetched.Keep(staged, adapter.Digest, runtime.Engine);
        return TypedResults.Json(report, ServiceJson.Default.AdapterReport);
    }
}
