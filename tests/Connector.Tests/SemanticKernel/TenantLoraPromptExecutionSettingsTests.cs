using System.Text.Json;
using Microsoft.SemanticKernel;

namespace TenantLora.Connector.Tests.SemanticKernel;

public sealed class TenantLoraPromptExecutionSettingsTests
{
    private static readonly TenantLoraPromptExecutionSettings Full = new()
    {
        ServiceId = "s",
        ModelId = "support",
        FunctionChoiceBehavior = FunctionChoiceBehavior.None(),
        ExtensionData = new Dictionary<string, object> { ["num_ctx"] = 1 },
        MaxTokens = 9,
        Temperature = 0.5f,
        TopP = 0.9f,
        TopK = 40,
        MinP = 0.05f,
        RepetitionPenalty = 1.1f,
        FrequencyPenalty = 0.25f,
        PresencePenalty = 0.5f,
        Seed = 7,
        StopSequences = ["x"],
        LogProbabilities = true,
        TopLogProbabilities = 2,
    };

    [Fact]
    public void Settings_of_this_type_are_themselves_and_none_are_defaults()
    {
        Assert.Same(Full, TenantLoraPromptExecutionSettings.FromExecutionSettings(Full));
        Assert.Null(TenantLoraPromptExecutionSettings.FromExecutionSettings(null).MaxTokens);
    }

    [Fact]
    public void Generic_settings_become_typed_ones()
    {
        var generic = JsonSerializer.Deserialize<PromptExecutionSettings>("""
            {"service_id":"s","model_id":"support","max_tokens":"9","temperature":0.5,"top_p":0.9,"top_k":40,"min_p":0.05,"repetition_penalty":"1.1","frequency_penalty":0.25,
             "presence_penalty":0.5,"seed":7,"stop_sequences":["x"],"logprobs":true,"top_logprobs":2,"num_ctx":1}
            """)!;
        generic.FunctionChoiceBehavior = FunctionChoiceBehavior.None();
        var typed = TenantLoraPromptExecutionSettings.FromExecutionSettings(generic);
        Assert.Equal(JsonSerializer.Serialize(Full), JsonSerializer.Serialize(typed));
        Assert.Same(generic.FunctionChoiceBehavior, typed.FunctionChoiceBehavior);
    }

    [Fact]
    public void A_clone_has_everything_and_is_not_frozen()
    {
        var original = TenantLoraPromptExecutionSettings.FromExecutionSettings(Full);
        original.Freeze();
        var clone = Assert.IsType<TenantLoraPromptExecutionSettings>(original.Clone());
        // By reflection, so that a property added later and forgotten in Clone shows here.
        foreach (var property in typeof(TenantLoraPromptExecutionSettings).GetProperties().Where(p => p.CanWrite && p.GetSetMethod() is not null))
        {
            Assert.NotNull(property.GetValue(original));
            Assert.Equal(property.GetValue(original), property.GetValue(clone));
        }
        clone.MaxTokens = 10;
        clone.StopSequences!.Add("y");
    }

    [Fact]
    public void Frozen_settings_do_not_change()
    {
        var settings = (TenantLoraPromptExecutionSettings)Full.Clone();
        settings.Freeze();
        settings.Freeze();
        Assert.True(settings.IsFrozen);
        Assert.Throws<InvalidOperationException>(() => settings.MaxTokens = 1);
        Assert.Throws<InvalidOperationException>(() => settings.ModelId = "x");
        Assert.Throws<NotSupportedException>(() => settings.StopSequences!.Add("y"));
    }
}
