using System.Net;
using System.Net.Http.Headers;
using System.Text;
using System.Text.Json;
using TenantLora.ChatHost;
using TenantLora.ChatHost.Adapters;
using TenantLora.Runtime;

namespace TenantLora.Cli;

/// <summary>The admin's side of a server, as the tenant that the key belongs to. What the server refuses is a <see cref="Refusal"/>.</summary>
internal sealed class Server : IDisposable
{
    public const string Default = ChatHost.Program.DefaultUrl;

    private const int LongestAnswer = 64 << 20, ShortestSecret = 16;
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(60);       // of all but uploads, which take what they take
    private readonly string? key;
    private readonly HttpClient http;

    /// <param name="key">Null: only what needs none can be asked.</param>
    public Server(Uri address, string? key)
    {
        (Address, this.key) = (address, key);
        // A redirect would take the key elsewhere.
        http = new HttpClient(new SocketsHttpHandler { AllowAutoRedirect = false, ConnectTimeout = TimeSpan.FromSeconds(15), Expect100ContinueTimeout = TimeSpan.FromSeconds(5) })
        { Timeout = Timeout.InfiniteTimeSpan, MaxResponseContentBufferSize = LongestAnswer };
    }

    public Uri Address { get; }

    /// <summary>An absolute address, with or without <c>/v1</c>, as a user may give it.</summary>
    /// <exception cref="Failure">It is none.</exception>
    public static Uri ParseAddress(string text)
    {
        if (!Uri.TryCreate(text, UriKind.Absolute, out var uri) || uri.Scheme is not ("http" or "https") || uri.UserInfo.Length > 0)
            throw Failure.Usage($"--server: expected an address like {Default}, found '{(text.Contains('@', StringComparison.Ordinal) ? "one with a user's name" : text)}'.");
        var root = uri.GetLeftPart(UriPartial.Path).TrimEnd('/');
        return new Uri((root.EndsWith("/v1", StringComparison.Ordinal) ? root[..^3] : root) + "/");
    }

    /// <exception cref="Failure">It cannot be a key. The message does not repeat it.</exception>
    public static string CheckKey(string? key) => key switch
    {
        null => throw Failure.Usage("No key was given: use --key KEY or set TENANTLORA_KEY. `tenantlora serve` prints those of the demo tenants."),
        _ when key.All(c => c is > ' ' and < '\x7f') => key,
        _ => throw Failure.Usage("--key: expected printable ASCII without spaces, found other characters."),
    };

    /// <summary>Who the key belongs to.</summary>
    public async Task<Session> SignInAsync() => (await SendAsync(HttpMethod.Post, "api/session", new { key })).Read<Session>();

    /// <summary>The tenant of the key, which must be an admin's.</summary>
    public async Task<string> AdministerAsync()
    {
        var session = await SignInAsync();
        return session.Role == "admin" ? session.Tenant
            : throw new Failure(ExitCode.Failed, $"This key of {session.Tenant} is a {session.Role}'s; looking after adapters needs an admin's. An admin makes one on the page or by POST /api/tenants/{session.Tenant}/keys.");
    }

    public static string Adapters(string tenant) => $"api/tenants/{Segment(tenant)}/adapters";

    public static string Adapter(string tenant, string name) => $"{Adapters(tenant)}/{Segment(name)}";

    public Task<Answer> GetAsync(string path) => SendAsync(HttpMethod.Get, path);

    /// <param name="body">An <see cref="HttpContent"/>, or what becomes JSON.</param>
    /// <param name="etag">Sent as If-Match.</param>
    /// <exception cref="Failure">No answer (exit code 3), or none that is understood.</exception>
    /// <exception cref="Refusal">The server says no.</exception>
    public async Task<Answer> SendAsync(HttpMethod method, string path, object? body = null, string? etag = null)
    {
        using var request = new HttpRequestMessage(method, new Uri(Address, path));
        if (key is not null) request.Headers.Authorization = new AuthenticationHeaderValue("Bearer", key);
        if (etag is not null) request.Headers.TryAddWithoutValidation("If-Match", etag);
        request.Content = body as HttpContent ?? (body is null ? null : new StringContent(JsonSerializer.Serialize(body, Terminal.Json), Encoding.UTF8, "application/json"));
        request.Headers.ExpectContinue = body is HttpContent;        // a refusal comes before the files go
        using var patience = new CancellationTokenSource(body is HttpContent ? Timeout.InfiniteTimeSpan : Patience);
        try
        {
            using var response = await http.SendAsync(request, patience.Token);
            return await ReadAsync(response);
        }
        catch (Exception e) when (e is HttpRequestException or IOException or OperationCanceledException)
        {
            var what = e is OperationCanceledException ? $"no answer within {Patience.TotalSeconds:0} seconds" : e.InnerException?.Message ?? e.Message;
            throw new Failure(ExitCode.Unreachable, $"{Address} cannot be reached: {what.TrimEnd('.')}. Start a server with `tenantlora serve`, or name another with --server.");
        }
    }

    public void Dispose() => http.Dispose();

    private async Task<Answer> ReadAsync(HttpResponseMessage response)
    {
        var text = await response.Content.ReadAsStringAsync();
        if (key is { Length: >= ShortestSecret }) text = text.Replace(key, "…", StringComparison.Ordinal);
        JsonElement body = default;
        var isJson = response.Content.Headers.ContentType?.MediaType is { } type && type.EndsWith("json", StringComparison.OrdinalIgnoreCase);
        try
        {
            if (isJson) body = JsonSerializer.Deserialize<JsonElement>(text);
        }
        catch (JsonException)
        {
            isJson = false;
        }
        if (!response.IsSuccessStatusCode) throw Refusal.Of(response, body);
        if (!isJson && response.StatusCode != HttpStatusCode.NoContent)
            throw new Failure(ExitCode.Failed, $"{Address} answered without JSON: expected a TenantLora server, found {response.Content.Headers.ContentType?.MediaType ?? "no content type"}.");
        return new Answer(body, response.Headers.ETag?.ToString(), response.Headers.Date);
    }

    /// <summary>A dot or two would be taken for a folder of the address.</summary>
    private static string Segment(string name) => name is "" or "." or ".." ? throw Failure.Usage($"Expected a name, found '{name}'.") : Uri.EscapeDataString(name);
}

/// <param name="ETag">Quoted, as it came.</param>
internal sealed record Answer(JsonElement Body, string? ETag, DateTimeOffset? Date)
{
    public T Read<T>() => Read<T>(Body);

    public static T Read<T>(JsonElement json)
    {
        try
        {
            return json.Deserialize<T>(Terminal.Json) ?? throw new JsonException();
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException or NotSupportedException)
        {
            throw new Failure(ExitCode.Failed, $"The server's answer is not the one expected ({typeof(T).Name}). Is it a TenantLora server of another version?");
        }
    }
}

/// <summary>The server's no, in its own words.</summary>
internal sealed class Refusal(int exitCode, HttpStatusCode status, string code, string message, JsonElement body) : Failure(exitCode, message)
{
    public HttpStatusCode Status { get; } = status;

    public string Code { get; } = code;

    /// <summary>The problem's details, or nothing.</summary>
    public JsonElement Body { get; } = body;

    /// <summary>The report of an adapter that was refused.</summary>
    public IReadOnlyList<AdapterFinding>? Findings => Code == "adapter_refused" ? Answer.Read<RefusedReport>(Body).Findings : null;

    public static Refusal Of(HttpResponseMessage response, JsonElement body)
    {
        var (status, code) = (response.StatusCode, Word(body, "code"));
        var said = Word(body, "detail") is { Length: > 0 } detail ? detail : $"The server answered {(int)status} {response.ReasonPhrase} without saying why.";
        return status == HttpStatusCode.Unauthorized
            ? new Refusal(Cli.ExitCode.Unreachable, status, code, "The server does not know this key. `tenantlora serve` prints those of the demo tenants.", body)
            : new Refusal(Cli.ExitCode.Failed, status, code, code.Length > 0 ? $"{said} ({code})" : said, body);
    }

    private static string Word(JsonElement body, string name) =>
        body.ValueKind == JsonValueKind.Object && body.TryGetProperty(name, out var value) && value.ValueKind == JsonValueKind.String ? value.GetString()! : "";
}
