using System.Collections.ObjectModel;
using System.Diagnostics.CodeAnalysis;
using System.Text.Json;
using System.Text.Json.Serialization;
using Microsoft.SemanticKernel;

namespace TenantLora.Connector;

/// <summary>
/// Settings of one request. <see cref="PromptExecutionSettings.ModelId"/> names the adapter; null takes the registration's. There is no
/// setting for the tenant, as prompt templates can write settings. The JSON names are those that Semantic Kernel maps to
/// <see cref="Microsoft.Extensions.AI.ChatOptions"/>, or that <see cref="TenantLoraChatClient"/> reads from its AdditionalProperties.
/// </summary>
[JsonNumberHandling(JsonNumberHandling.AllowReadingFromString)]
public sealed class TenantLoraPromptExecutionSettings : PromptExecutionSettings
{
    private static readonly JsonSerializerOptions Permissive = new()
    {
        AllowTrailingCommas = true,
        PropertyNameCaseInsensitive = true,
        ReadCommentHandling = JsonCommentHandling.Skip,
    };

    private int? maxTokens;
    private float? temperature;
    private float? topP;
    private int? topK;
    private float? minP;
    private float? repetitionPenalty;
    private float? frequencyPenalty;
    private float? presencePenalty;
    private long? seed;
    private IList<string>? stopSequences;
    private bool? logProbabilities;
    private int? topLogProbabilities;

    /// <summary>At most this many tokens are generated; null: as many as fit.</summary>
    [JsonPropertyName("max_tokens"), JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public int? MaxTokens { get => maxTokens; set => Set(ref maxTokens, value); }

    /// <summary>0 to 2; 0 is greedy.</summary>
    [JsonPropertyName("temperature"), JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public float? Temperature { get => temperature; set => Set(ref temperature, value); }

    /// <summary>Keep the smallest set of likeliest tokens whose probabilities reach this; in (0, 1].</summary>
    [JsonPropertyName("top_p"), JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public float? TopP { get => topP; set => Set(ref topP, value); }

    /// <summary>Keep the k likeliest tokens; 0 keeps all.</summary>
    [JsonPropertyName("top_k"), JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public int? TopK { get => topK; set => Set(ref topK, value); }

    /// <summary>Drop tokens less likely than this share of the likeliest; in [0, 1).</summary>
    [JsonPropertyName("min_p"), JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public float? MinP { get => minP; set => Set(ref minP, value); }

    /// <summary>Above 0; 1 is neutral, more discourages what was said before.</summary>
    [JsonPropertyName("repetition_penalty"), JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public float? RepetitionPenalty { get => repetitionPenalty; set => Set(ref repetitionPenalty, value); }

    /// <summary>−2 to 2, per occurrence in the answer.</summary>
    [JsonPropertyName("frequency_penalty"), JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public float? FrequencyPenalty { get => frequencyPenalty; set => Set(ref frequencyPenalty, value); }

    /// <summary>−2 to 2, once for what occurs in the answer.</summary>
    [JsonPropertyName("presence_penalty"), JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public float? PresencePenalty { get => presencePenalty; set => Set(ref presencePenalty, value); }

    /// <summary>Same seed, same model, same adapter: same answer.</summary>
    [JsonPropertyName("seed"), JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public long? Seed { get => seed; set => Set(ref seed, value); }

    /// <summary>Generation ends before the first of these texts.</summary>
    [SuppressMessage("Usage", "CA2227", Justification = "Settings are read from JSON and frozen.")]
    [JsonPropertyName("stop_sequences"), JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public IList<string>? StopSequences { get => stopSequences; set => Set(ref stopSequences, value); }

    /// <summary>Whether to report the log-probability of each token, under <c>logprobs</c> of the metadata.</summary>
    [JsonPropertyName("logprobs"), JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public bool? LogProbabilities { get => logProbabilities; set => Set(ref logProbabilities, value); }

    /// <summary>And of this many of its likeliest rivals; 0 to 20.</summary>
    [JsonPropertyName("top_logprobs"), JsonIgnore(Condition = JsonIgnoreCondition.WhenWritingNull)]
    public int? TopLogProbabilities { get => topLogProbabilities; set => Set(ref topLogProbabilities, value); }

    /// <summary>The same settings as this type: themselves if they are, else what their JSON says.</summary>
    /// <exception cref="JsonException">A value does not fit its setting.</exception>
    [RequiresUnreferencedCode("Serializes the values in ExtensionData by reflection.")]
    [RequiresDynamicCode("Serializes the values in ExtensionData by reflection.")]
    public static TenantLoraPromptExecutionSettings FromExecutionSettings(PromptExecutionSettings? settings)
    {
        if (settings is null) return new TenantLoraPromptExecutionSettings();
        if (settings is TenantLoraPromptExecutionSettings own) return own;
        var converted = JsonSerializer.Deserialize<TenantLoraPromptExecutionSettings>(JsonSerializer.Serialize(settings, settings.GetType()), Permissive)!;
        converted.FunctionChoiceBehavior = settings.FunctionChoiceBehavior;     // its functions do not survive JSON
        return converted;
    }

    /// <inheritdoc/>
    public override void Freeze()
    {
        if (IsFrozen) return;
        base.Freeze();
        if (stopSequences is not null) stopSequences = new ReadOnlyCollection<string>(stopSequences);
    }

    /// <inheritdoc/>
    public override PromptExecutionSettings Clone() => new TenantLoraPromptExecutionSettings
    {
        ServiceId = ServiceId,
        ModelId = ModelId,
        FunctionChoiceBehavior = FunctionChoiceBehavior,
        ExtensionData = ExtensionData is null ? null : new Dictionary<string, object>(ExtensionData),
        MaxTokens = MaxTokens,
        Temperature = Temperature,
        TopP = TopP,
        TopK = TopK,
        MinP = MinP,
        RepetitionPenalty = RepetitionPenalty,
        FrequencyPenalty = FrequencyPenalty,
        PresencePenalty = PresencePenalty,
        Seed = Seed,
        StopSequences = StopSequences is null ? null : [.. StopSequences],
        LogProbabilities = LogProbabilities,
        TopLogProbabilities = TopLogProbabilities,
    };

    private void Set<T>(ref T field, T value)
    {
        ThrowIfFrozen();
        field = value;
    }
}
