using TenantLora.Runtime.Backends.Cpu;
using TenantLora.Runtime.Serving;

namespace TenantLora.Runtime.Tests.Serving;

/// <summary>From a request's options to the tokens of its answer; what a single rule draws is judged with the backends.</summary>
public class SamplingStateTests
{
    private static readonly SamplingOptions None = new();
    private static readonly float[] Logits = [0.3f, -1, 2, 1.5f, 0, -0.5f];

    private static SamplingState State(SamplingOptions options, params int[] prompt) => new(options, None, options.Seed ?? 1, prompt);

    private static int[] Answer(float[] logits, SamplingOptions options, int tokens)
    {
        var (sampler, state, answer) = (new Sampler(), State(options), new int[tokens]);
        for (var i = 0; i < tokens; i++) state.Accept(answer[i] = sampler.Draw(logits, state.Rule(i)).Token);
        return answer;
    }

    /// <summary>χ² of 20,000 draws against the softmax; the limit is the 1e-4 tail at 5 degrees of freedom.</summary>
    [Theory]
    [InlineData(0.5f)]
    [InlineData(1f)]
    [InlineData(2f)]
    public void Draws_follow_the_softmax(float temperature)
    {
        var answer = Answer(Logits, new SamplingOptions { Temperature = temperature, Seed = 42 }, 20_000);
        var weights = Logits.Select(l => Math.Exp(l / temperature)).ToArray();
        var expected = weights.Select(w => w / weights.Sum() * 20_000);

        Assert.True(expected.Select((e, token) => Math.Pow(answer.Count(t => t == token) - e, 2) / e).Sum() < 25.7);
    }

    [Fact]
    public void A_seed_and_a_position_decide_the_draw()
    {
        float[] logits = [.. Enumerable.Range(0, 50).Select(i => MathF.Sin(i))];
        int[] Seeded(long seed) => Answer(logits, new SamplingOptions { Seed = seed }, 100);
        Assert.Equal(Seeded(7), Seeded(7));
        Assert.NotEqual(Seeded(7), Seeded(8));

        var state = State(new SamplingOptions { Seed = 7 });
        Assert.Equal(state.Rule(3).Uniform, state.Rule(3).Uniform);
        Assert.NotEqual(state.Rule(3).Uniform, state.Rule(4).Uniform);
    }

    [Fact]
    public void Silence_takes_the_models_defaults_and_theirs_the_neutral_values()
    {
        var defaults = new SamplingOptions { Temperature = 0.6f, TopK = 20, RepetitionPenalty = 1.05f };
        var rule = new SamplingState(new SamplingOptions { TopK = -1 }, defaults, 1, [4, 4, 9]).Rule(0);

        Assert.Equal((0.6f, 0, 1f, 0f, 1.05f), (rule.Temperature, rule.TopK, rule.TopP, rule.MinP, rule.Repetition));
        Assert.Equal([4, 9], rule.Prompt!.Order());
        Assert.Equal((1f, 0, null, null), (State(None).Rule(0).Temperature, State(None).Rule(0).TopK, State(None).Rule(0).Prompt, State(None).Rule(0).Answered));
    }

    [Fact]
    public void Only_penalties_need_history_and_it_is_counted()
    {
        Assert.False(State(new SamplingOptions { TopK = 3, TopP = 0.5f, LogitBias = new Dictionary<int, float> { [1] = 1 } }).NeedsHistory);
        Assert.All([new SamplingOptions { RepetitionPenalty = 1.1f }, new SamplingOptions { FrequencyPenalty = 1 }, new SamplingOptions { PresencePenalty = 1 }], o => Assert.True(State(o).NeedsHistory));

        var state = State(new SamplingOptions { FrequencyPenalty = 1 });
        foreach (var token in new[] { 5, 6, 5 }) state.Accept(token);
        Assert.Equal([(5, 2), (6, 1)], state.Rule(3).Answered!.OrderBy(a => a.Key).Select(a => (a.Key, a.Value)));
    }
}
