using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Serialization;
using TenantLora.ChatHost.OpenAi;
using TenantLora.ChatHost.Security;

namespace TenantLora.ChatHost;

/// <summary>The JSON that is not camel case by the web defaults: OpenAI's, and the key file's.</summary>
[JsonSerializable(typeof(Completion))]
[JsonSerializable(typeof(ChatLogprobs))]
[JsonSerializable(typeof(PlainLogprobs))]
[JsonSerializable(typeof(ModelList))]
[JsonSerializable(typeof(ModelCard))]
[JsonSerializable(typeof(ErrorEnvelope))]
[JsonSerializable(typeof(SortedDictionary<string, string>))]
[JsonSerializable(typeof(SessionContent))]
internal sealed partial class HostJson : JsonSerializerContext
{
    /// <summary>Snake case; quotes and letters of all scripts as they are, since nothing here is put into HTML.</summary>
    public static HostJson Wire { get; } = new(new JsonSerializerOptions
    {
        PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower,
        Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
    });
}
