namespace TenantLora.Runtime;

/// <summary>
/// What a caller can be told about a request that was refused or that failed. <see cref="Code"/> is stable and becomes the
/// <c>code</c> of OpenAI's error envelope; the message is safe to show: it names no path, type or other tenant.
/// </summary>
public sealed class TenantLoraException(string code, string message, Exception? inner = null) : Exception(message, inner)
{
    /// <summary>One of <see cref="ErrorCodes"/>.</summary>
    public string Code { get; } = code;

    /// <summary>The request field at fault, in the spelling of OpenAI's API (<c>max_tokens</c>, <c>stop</c>…), if it is one.</summary>
    public string? Parameter { get; init; }

    /// <summary>When to try again, for <see cref="ErrorCodes.QueueFull"/> and <see cref="ErrorCodes.ShuttingDown"/>.</summary>
    public TimeSpan? RetryAfter { get; init; }

    /// <summary>The server's id of the request, when the answer came over HTTP.</summary>
    public string? RequestId { get; init; }

    /// <summary>The HTTP status that fits <see cref="Code"/>.</summary>
    public int Status => Code switch
    {
        ErrorCodes.InvalidRequest or ErrorCodes.ContextLengthExceeded or ErrorCodes.Unsupported => 400,
        ErrorCodes.InvalidKey => 401,
        ErrorCodes.ModelNotFound => 404,
        ErrorCodes.QueueFull => 429,
        ErrorCodes.ShuttingDown or ErrorCodes.Unreachable or ErrorCodes.AdapterUnavailable => 503,
        _ => 500,
    };
}

/// <summary>The codes that <see cref="TenantLoraException.Code"/> takes. Snake case, as in OpenAI's error envelope.</summary>
public static class ErrorCodes
{
    /// <summary>A field of the request is missing, out of range or contradicts another.</summary>
    public const string InvalidRequest = "invalid_value";

    /// <summary>A field that is understood but not served by this build.</summary>
    public const string Unsupported = "unsupported_parameter";

    /// <summary>The prompt, or the prompt and the asked-for output together, do not fit the model's context or the cache.</summary>
    public const string ContextLengthExceeded = "context_length_exceeded";

    /// <summary>No key, or one that is not known.</summary>
    public const string InvalidKey = "invalid_api_key";

    /// <summary>No such model or adapter for this tenant. The same for one that belongs to another tenant.</summary>
    public const string ModelNotFound = "model_not_found";

    /// <summary>The adapter exists, and its files cannot be read on this server.</summary>
    public const string AdapterUnavailable = "adapter_unavailable";

    /// <summary>The arrivals queue is full.</summary>
    public const string QueueFull = "rate_limit_exceeded";

    /// <summary>The host drains and takes nothing new.</summary>
    public const string ShuttingDown = "shutting_down";

    /// <summary>A remote runtime could not be reached, or the connection broke before the answer was whole.</summary>
    public const string Unreachable = "runtime_unreachable";

    /// <summary>The numbers of this sequence went bad (NaN or Infinity in its logits); its neighbours are unharmed.</summary>
    public const string NotANumber = "adapter_values_invalid";

    /// <summary>Something broke that the caller cannot mend.</summary>
    public const string Internal = "internal_error";
}
