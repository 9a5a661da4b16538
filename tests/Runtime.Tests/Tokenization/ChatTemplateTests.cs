using System.Text.Json;
using TenantLora.Runtime;
using TenantLora.Runtime.Tokenization;

namespace TenantLora.Tests.Tokenization;

public sealed class ChatTemplateTests
{
    private static readonly JsonElement Golden = JsonDocument.Parse(File.ReadAllBytes(Repo.Fixture("templates", "golden.json"))).RootElement;
    private static readonly string Nowhere = Repo.Fixture("tokenizers", "demo");        // a model folder without a template

    public static TheoryData<string> Forms => [.. Golden.GetProperty("rendered").EnumerateObject().Select(form => form.Name)];

    [Theory, MemberData(nameof(Forms))]
    public void Each_form_writes_what_its_Jinja_program_writes(string form)
    {
        var template = ChatTemplate.Load(Nowhere, form, new Day(2026, 11, 5));
        foreach (var (chat, expected) in Golden.GetProperty("chats").EnumerateArray().Zip(Golden.GetProperty("rendered").GetProperty(form).EnumerateArray()))
        {
            if (expected.TryGetProperty("skipped", out _)) Assert.Equal("tools", Assert.Throws<TenantLoraException>(() => Render(template, chat)).Parameter);
            else if (expected.GetProperty("text").GetString() is { } text) Assert.Equal(text, Render(template, chat).Text);
            else Assert.Equal("messages", Assert.Throws<TenantLoraException>(() => Render(template, chat)).Parameter);
        }
    }

    [Fact]
    public void Prompts_of_the_demo_model_have_the_ids_of_the_reference()
    {
        var directory = Repo.Path("models", "demo-7m");
        var (tokenizer, template) = (Tokenizer.Load(directory), ChatTemplate.Load(directory, null));
        Assert.Equal("chatml-tools", template.Name);
        foreach (var golden in JsonDocument.Parse(File.ReadAllBytes(Repo.Fixture("golden", "greedy.json"))).RootElement.EnumerateArray())
        {
            var prompt = template.Render([new("user", golden.GetProperty("prompt").GetString()!)], [], addGenerationPrompt: true);
            Assert.Equal(golden.GetProperty("prompt_ids").EnumerateArray().Select(id => id.GetInt32()), tokenizer.Encode(prompt));
            var answer = golden.GetProperty("greedy_ids").EnumerateArray().Select(id => id.GetInt32()).ToArray();
            Assert.Equal(golden.GetProperty("greedy").GetString(), tokenizer.Decode(answer, skipSpecial: false));
        }
    }

    private static PromptText Render(ChatTemplate template, JsonElement chat) => template.Render(
        [.. chat.GetProperty("messages").EnumerateArray().Select(ReadMessage)],
        [.. chat.GetProperty("tools").EnumerateArray().Select(tool => ReadTool(tool.GetProperty("function")))],
        chat.GetProperty("add_generation_prompt").GetBoolean());

    private static Message ReadMessage(JsonElement message) => new(message.GetProperty("role").GetString()!, message.GetProperty("content").GetString()!)
    {
        ToolCallId = message.TryGetProperty("tool_call_id", out var id) ? id.GetString() : null,
        ToolCalls = message.TryGetProperty("tool_calls", out var calls) ? [.. calls.EnumerateArray().Select(ReadCall)] : [],
    };

    private static ToolCall ReadCall(JsonElement call) =>
        new(call.GetProperty("id").GetString()!, call.GetProperty("function").GetProperty("name").GetString()!, call.GetProperty("function").GetProperty("arguments"));

    private static ToolDefinition ReadTool(JsonElement function) => new(
        function.GetProperty("name").GetString()!,
        function.TryGetProperty("description", out var description) ? description.GetString() : null,
        function.TryGetProperty("parameters", out var parameters) ? parameters : null);

    private sealed class Day(int year, int month, int day) : TimeProvider
    {
        public override TimeZoneInfo LocalTimeZone => TimeZoneInfo.Utc;

        public override DateTimeOffset GetUtcNow() => new(year, month, day, 12, 0, 0, TimeSpan.Zero);
    }
}
