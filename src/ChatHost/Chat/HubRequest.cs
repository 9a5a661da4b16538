using System.Text.Json;
using TenantLora.ChatHost.OpenAi;
using TenantLora.Runtime;

namespace TenantLora.ChatHost.Chat;

/// <summary>The hub's request: the same fields as /v1 where both have them, in camel case, the sampling under <c>options</c>.</summary>
internal static class HubRequest
{
    /// <exception cref="TenantLoraException">With every finding.</exception>
    public static GenerationRequest Read(JsonElement json, string tenant)
    {
        if (json.ValueKind != JsonValueKind.Object) throw new TenantLoraException(ErrorCodes.InvalidRequest, "The request: expected an object.");
        return JsonFields.Read(new JsonFields(json, camelCase: true), fields =>
        {
            var options = fields.Object("options");
            return new GenerationRequest
            {
                Tenant = tenant,
                Model = fields.Text("model", CompletionRequest.LongestModel),
                Messages = CompletionRequest.ReadMessages(fields),
                MaxTokens = options?.Integer("max_tokens", 1),
                StopStrings = options is null ? [] : CompletionRequest.ReadStops(options),
                Sampling = options is null ? new SamplingOptions() : CompletionRequest.ReadSampling(options),
            };
        });
    }
}
