using Microsoft.Extensions.AI;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.SemanticKernel;
using Microsoft.SemanticKernel.ChatCompletion;
using Microsoft.SemanticKernel.Services;
using Microsoft.SemanticKernel.TextGeneration;
using TenantLora.Runtime;

namespace TenantLora.Connector.Tests.SemanticKernel;

/// <summary>A real kernel on the facade. Compiled where the package restores.</summary>
public sealed class KernelTests
{
    private readonly FakeRuntime runtime = FakeRuntime.Saying("Ahoy", ", ", "sailor");

    private Kernel Build(Action<IKernelBuilder> add)
    {
        var catalog = new AdapterCatalog("base");
        catalog.Set("harbor", "support", "sha256:aa");
        catalog.Set("harbor", "sales", "sha256:bb");
        var builder = Kernel.CreateBuilder();
        builder.Services.AddSingleton(new TenantLoraClient(runtime, catalog));
        add(builder);
        return builder.Build();
    }

    public static TheoryData<string> Registrations => ["client", "completion", "plain services"];

    private Kernel Build(string registration) => Build(builder => _ = registration switch
    {
        "client" => builder.AddTenantLoraChatClient("harbor", "support").Services,
        "completion" => builder.AddTenantLoraChatCompletion("harbor", "support").Services,
        _ => builder.Services.AddTenantLoraChatClient("harbor", "support"),
    });

    [Theory]
    [MemberData(nameof(Registrations))]
    public async Task A_prompt_function_runs_and_its_settings_arrive(string registration)
    {
        var settings = new TenantLoraPromptExecutionSettings
        {
            MaxTokens = 9,
            Temperature = 0.5f,
            TopP = 0.9f,
            TopK = 40,
            MinP = 0.05f,
            RepetitionPenalty = 1.1f,
            FrequencyPenalty = 0.25f,
            PresencePenalty = 0.5f,
            Seed = 7,
            StopSequences = ["\n\n"],
            LogProbabilities = true,
            TopLogProbabilities = 2,
        };
        var result = await Build(registration).InvokePromptAsync("Greet {{$who}}", new KernelArguments(settings) { ["who"] = "me" });

        Assert.Equal("Ahoy, sailor", result.GetValue<string>());
        var request = runtime.Request;
        Assert.Equal(("harbor", "sha256:aa", 9), (request.Tenant, request.Adapter, request.MaxTokens));
        Assert.Equal([("user", "Greet me")], request.Messages!.Select(m => (m.Role, m.Content)));
        Assert.Equal(["\n\n"], request.StopStrings);
        Assert.Equal(
            new SamplingOptions { Temperature = 0.5f, TopP = 0.9f, TopK = 40, MinP = 0.05f, RepetitionPenalty = 1.1f, FrequencyPenalty = 0.25f, PresencePenalty = 0.5f, Seed = 7, LogProbabilities = 2 },
            request.Sampling);
    }

    [Theory]
    [MemberData(nameof(Registrations))]
    public async Task A_prompt_function_streams(string registration)
    {
        List<string> pieces = [];
        await foreach (var piece in Build(registration).InvokePromptStreamingAsync<string>("Hi")) pieces.Add(piece);
        Assert.Equal(["Ahoy", ", ", "sailor", ""], pieces);
    }

    [Fact]
    public async Task Settings_name_the_adapter_but_never_the_tenant()
    {
        var kernel = Build("completion");
        await kernel.InvokePromptAsync("Hi", new KernelArguments(new PromptExecutionSettings { ModelId = "sales" }));
        Assert.Equal("sha256:bb", runtime.Request.Adapter);
        await Assert.ThrowsAsync<TenantLoraException>(() => kernel.InvokePromptAsync("Hi", new KernelArguments(
            new PromptExecutionSettings { ExtensionData = new Dictionary<string, object> { ["tenant_id"] = "ledger" } })));
    }

    [Fact]
    public async Task Chat_completion_keeps_the_metadata_that_the_bridge_drops()
    {
        var service = Build("completion").GetRequiredService<IChatCompletionService>();
        Assert.Equal("support", service.GetModelId());

        var history = new ChatHistory("Be kind.");
        history.AddUserMessage("Hi");
        var answer = await service.GetChatMessageContentAsync(history);
        Assert.Equal("Ahoy, sailor", answer.Content);
        Assert.Equal(AuthorRole.Assistant, answer.Role);
        Assert.Equal("support", answer.ModelId);
        Assert.Equal("stop", answer.Metadata!["FinishReason"]);
        Assert.StartsWith("chatcmpl-", Assert.IsType<string>(answer.Metadata["Id"]), StringComparison.Ordinal);
        Assert.Equal(8, Assert.IsType<UsageDetails>(answer.Metadata["Usage"]).TotalTokenCount);
        Assert.Equal("sha256:aa", answer.Metadata["adapter"]);
        Assert.Equal(["system", "user"], runtime.Request.Messages!.Select(m => m.Role));
        Assert.Equal(2, history.Count);

        var updates = await service.GetStreamingChatMessageContentsAsync(history).ToListAsync();
        Assert.Equal("Ahoy, sailor", string.Concat(updates.Select(u => u.Content)));
        Assert.Equal("stop", updates[^1].Metadata!["FinishReason"]);
        Assert.IsType<UsageContent>(updates[^1].Metadata!["Usage"]);
        Assert.Single(updates.Select(u => u.Metadata!["Id"]).Distinct());
    }

    [Fact]
    public async Task Text_generation_continues_the_prompt_as_it_stands()
    {
        var kernel = Build(b => b.AddTenantLoraTextGeneration("harbor", "support"));
        var service = kernel.GetRequiredService<ITextGenerationService>();
        var text = await service.GetTextContentAsync("Once", new TenantLoraPromptExecutionSettings { MaxTokens = 4 });

        Assert.Equal("Ahoy, sailor", text.Text);
        Assert.Equal(("Once", null, 4), (runtime.Request.Prompt, runtime.Request.Messages, runtime.Request.MaxTokens));
        Assert.Equal("stop", text.Metadata!["FinishReason"]);
        Assert.Equal(8, Assert.IsType<UsageDetails>(text.Metadata["Usage"]).TotalTokenCount);
        Assert.Equal("support", text.ModelId);

        var pieces = await service.GetStreamingTextContentsAsync("Once").ToListAsync();
        Assert.Equal(["Ahoy", ", ", "sailor", ""], pieces.Select(p => p.Text));
        Assert.Equal("Ahoy, sailor", await kernel.InvokePromptAsync<string>("Once"));
        Assert.Equal("Once", runtime.Request.Prompt);
    }

    [Fact]
    public async Task A_service_id_chooses_among_tenants()
    {
        var kernel = Build(b =>
        {
            b.AddTenantLoraChatCompletion("harbor", "support", "h");
            b.AddTenantLoraChatCompletion("ledger", serviceId: "l");
        });
        await kernel.InvokePromptAsync("Hi", new KernelArguments(new PromptExecutionSettings { ServiceId = "h" }));
        Assert.Equal(("harbor", "sha256:aa"), (runtime.Request.Tenant, runtime.Request.Adapter));
        await kernel.InvokePromptAsync("Hi", new KernelArguments(new PromptExecutionSettings { ServiceId = "l" }));
        Assert.Equal(("ledger", null), (runtime.Request.Tenant, runtime.Request.Adapter));
    }

    [Fact]
    public async Task Functions_are_refused_rather_than_dropped()
    {
        var kernel = Build("completion");
        kernel.Plugins.AddFromFunctions("Clock", [KernelFunctionFactory.CreateFromMethod(() => "noon", "Now")]);
        await Assert.ThrowsAsync<NotSupportedException>(() => kernel.InvokePromptAsync("Time?", new KernelArguments(
            new TenantLoraPromptExecutionSettings { FunctionChoiceBehavior = FunctionChoiceBehavior.Auto() })));
    }

    [Fact]
    public async Task Leaving_the_loop_frees_the_sequence()
    {
        await foreach (var piece in Build("completion").InvokePromptStreamingAsync("Hi")) break;
        Assert.Equal(0, runtime.Open);
    }

    [Fact]
    public void Services_over_http_know_where_they_point()
    {
        var server = new Uri("http://127.0.0.1:5080");
        var kernel = Build(b => b.AddTenantLoraChatCompletion(server, "tl_key", "harbor").AddTenantLoraTextGeneration(server, "tl_key", "harbor").AddTenantLoraChatClient(server, "tl_key", "harbor"));
        Assert.Equal("http://127.0.0.1:5080/v1/", kernel.GetRequiredService<IChatCompletionService>().GetEndpoint());
        Assert.Equal("http://127.0.0.1:5080/v1/", kernel.GetRequiredService<ITextGenerationService>().GetEndpoint());
        Assert.Equal("harbor", kernel.GetRequiredService<IChatClient>().GetService<ChatClientMetadata>()!.DefaultModelId);
    }
}
