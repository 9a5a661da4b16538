using System.Text.Json.Nodes;
using Microsoft.AspNetCore.OpenApi;
using Microsoft.OpenApi;

namespace TenantLora.ChatHost.OpenAi;

/// <summary>What /openapi/v1.json says of bodies that are read by hand.</summary>
internal static class OpenApiDescription
{
    public static void Configure(OpenApiOptions options)
    {
        options.AddDocumentTransformer((document, _, _) =>
        {
            document.Info = new OpenApiInfo { Title = "TenantLora", Version = "v1", Description = "OpenAI's API over one base model and each tenant's adapters." };
            document.Servers = [];
            document.Components ??= new OpenApiComponents();
            document.Components.SecuritySchemes = new Dictionary<string, IOpenApiSecurityScheme>
            {
                ["bearer"] = new OpenApiSecurityScheme { Type = SecuritySchemeType.Http, Scheme = "bearer", Description = "A key or a session token." },
            };
            document.Security = [new OpenApiSecurityRequirement { [new OpenApiSecuritySchemeReference("bearer", document)] = [] }];
            return Task.CompletedTask;
        });
    }

    /// <summary>Adds body and answers of a completion endpoint.</summary>
    public static void Describes(this RouteHandlerBuilder endpoint, bool chat) => endpoint.AddOpenApiOperationTransformer((operation, _, _) =>
    {
        operation.RequestBody = new OpenApiRequestBody
        {
            Required = true,
            Content = new Dictionary<string, OpenApiMediaType> { ["application/json"] = new() { Schema = Body(chat) } },
        };
        operation.Responses = new OpenApiResponses
        {
            ["200"] = new OpenApiResponse
            {
                Description = "The answer; with stream, server-sent events that end with [DONE].",
                Content = new Dictionary<string, OpenApiMediaType>
                {
                    ["application/json"] = new() { Schema = Of(JsonSchemaType.Object) },
                    ["text/event-stream"] = new() { Schema = Of(JsonSchemaType.String) },
                },
            },
            ["default"] = new OpenApiResponse
            {
                Description = "OpenAI's error envelope: error.message, type, param, code.",
                Content = new Dictionary<string, OpenApiMediaType> { ["application/json"] = new() { Schema = Of(JsonSchemaType.Object) } },
            },
        };
        return Task.CompletedTask;
    });

    private static OpenApiSchema Body(bool chat)
    {
        var schema = Of(JsonSchemaType.Object);
        schema.Required = new HashSet<string> { "model", chat ? "messages" : "prompt" };
        schema.Properties = new Dictionary<string, IOpenApiSchema>
        {
            ["model"] = Of(JsonSchemaType.String, "An adapter of this key's tenant, or the base model; see /v1/models."),
            [chat ? "messages" : "prompt"] = chat ? Messages() : Of(JsonSchemaType.String, "The text to continue."),
            ["stream"] = Of(JsonSchemaType.Boolean),
            ["max_tokens"] = Number(JsonSchemaType.Integer, "1", null),
            ["temperature"] = Number(JsonSchemaType.Number, "0", "2"),
            ["top_p"] = Number(JsonSchemaType.Number, "0", "1"),
            ["top_k"] = Number(JsonSchemaType.Integer, "-1", null),
            ["min_p"] = Number(JsonSchemaType.Number, "0", "1"),
            ["repetition_penalty"] = Number(JsonSchemaType.Number, "0", null),
            ["frequency_penalty"] = Number(JsonSchemaType.Number, "-2", "2"),
            ["presence_penalty"] = Number(JsonSchemaType.Number, "-2", "2"),
            ["seed"] = Of(JsonSchemaType.Integer, "Same seed, same model, same adapter: same tokens."),
            ["stop"] = Of(JsonSchemaType.String | JsonSchemaType.Array, "A string, or up to four."),
            ["logit_bias"] = Of(JsonSchemaType.Object, "Token ids to -100 to 100."),
            ["logprobs"] = chat ? Of(JsonSchemaType.Boolean) : Number(JsonSchemaType.Integer, "0", "20"),
        };
        if (!chat) return schema;
        schema.Properties["max_completion_tokens"] = Number(JsonSchemaType.Integer, "1", null);
        schema.Properties["top_logprobs"] = Number(JsonSchemaType.Integer, "0", "20");
        return schema;
    }

    private static OpenApiSchema Messages()
    {
        var message = Of(JsonSchemaType.Object);
        message.Required = new HashSet<string> { "role", "content" };
        var role = Of(JsonSchemaType.String);
        role.Enum = [JsonValue.Create("system"), JsonValue.Create("developer"), JsonValue.Create("user"), JsonValue.Create("assistant")];
        message.Properties = new Dictionary<string, IOpenApiSchema>
        {
            ["role"] = role,
            ["content"] = Of(JsonSchemaType.String | JsonSchemaType.Array, "A text, or parts of type text."),
        };
        var messages = Of(JsonSchemaType.Array);
        messages.Items = message;
        return messages;
    }

    private static OpenApiSchema Of(JsonSchemaType type, string? description = null) => new() { Type = type, Description = description };

    private static OpenApiSchema Number(JsonSchemaType type, string? least, string? most) => new() { Type = type, Minimum = least, Maximum = most };
}
