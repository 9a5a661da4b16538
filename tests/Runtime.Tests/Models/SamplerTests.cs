using TenantLora.Runtime.Models;

namespace TenantLora.Runtime.Tests.Models;

public class SamplerTests
{
    private static readonly SamplingOptions None = new();

    private static SamplingState State(SamplingOptions options, params int[] prompt) => new(options, None, options.Seed ?? 1, prompt);

    private static int Draw(float[] logits, SamplingState state) => new Sampler(logits.Length).Sample(logits, state)!.Value.Token;

    /// <summary>Counts of 20,000 draws from one state, as a request would make them.</summary>
    private static int[] Histogram(float[] logits, SamplingOptions options, int draws = 20_000)
    {
        var (sampler, counts) = (new Sampler(logits.Length), new int[logits.Length]);
        var state = State(options);
        for (var i = 0; i < draws; i++)
        {
            var token = sampler.Sample(logits, state)!.Value.Token;
            counts[token]++;
            state.Accept(token);
        }
        return counts;
    }

    private static double[] Softmax(float[] logits, double temperature)
    {
        var weights = logits.Select(l => Math.Exp((l - logits.Max()) / temperature)).ToArray();
        return [.. weights.Select(w => w / weights.Sum())];
    }

    [Fact]
    public void Greedy_takes_the_largest_and_the_lower_id_of_a_tie() =>
        Assert.Equal(1, Draw([0, 5, 5, -1], State(new SamplingOptions { Temperature = 0 })));

    [Theory]
    [InlineData(float.NaN)]
    [InlineData(float.PositiveInfinity)]
    [InlineData(float.NegativeInfinity)]
    public void A_row_that_is_not_numbers_gives_nothing(float bad)
    {
        foreach (var temperature in new[] { 0f, 1f })
            Assert.Null(new Sampler(4).Sample([1, bad, 0, 2], State(new SamplingOptions { Temperature = temperature })));
    }

    /// <summary>χ² of the draws against the softmax; the limit is the 1e-4 tail at 5 degrees of freedom.</summary>
    [Theory]
    [InlineData(0.5f)]
    [InlineData(1f)]
    [InlineData(2f)]
    public void Draws_follow_the_softmax(float temperature)
    {
        float[] logits = [0.3f, -1, 2, 1.5f, 0, -0.5f];
        var counts = Histogram(logits, new SamplingOptions { Temperature = temperature, Seed = 42 });
        var expected = Softmax(logits, temperature).Select(p => p * 20_000).ToArray();

        Assert.True(counts.Zip(expected, (c, e) => (c - e) * (c - e) / e).Sum() < 25.7);
    }

    [Fact]
    public void Top_k_keeps_the_k_likeliest() =>
        Assert.Equal([2, 3], Kept([0.3f, -1, 2, 1.5f, 0, -0.5f], new SamplingOptions { TopK = 2 }));

    [Fact]
    public void Top_p_keeps_the_smallest_set_that_reaches_it()
    {
        float[] logits = [.. new[] { 0.5, 0.2, 0.15, 0.1, 0.05 }.Select(p => (float)Math.Log(p))];
        Assert.Equal([0], Kept(logits, new SamplingOptions { TopP = 0.4f }));
        Assert.Equal([0, 1], Kept(logits, new SamplingOptions { TopP = 0.6f }));
        Assert.Equal([0, 1, 2, 3], Kept(logits, new SamplingOptions { TopP = 0.9f }));
        Assert.Equal([0, 1, 2, 3, 4], Kept(logits, new SamplingOptions { TopP = 1f }));
    }

    [Fact]
    public void Min_p_drops_what_is_far_less_likely_than_the_likeliest()
    {
        float[] logits = [.. new[] { 0.5, 0.2, 0.15, 0.1, 0.05 }.Select(p => (float)Math.Log(p))];
        Assert.Equal([0, 1, 2], Kept(logits, new SamplingOptions { MinP = 0.25f }));
        Assert.Equal([0, 1, 2], Kept(logits, new SamplingOptions { MinP = 0.25f, TopK = 4 }));
    }

    [Fact]
    public void With_top_k_top_p_is_a_share_of_what_top_k_left()
    {
        float[] logits = [.. new[] { 0.5, 0.2, 0.15, 0.1, 0.05 }.Select(p => (float)Math.Log(p))];
        Assert.Equal([0], Kept(logits, new SamplingOptions { TopK = 2, TopP = 0.7f }));      // 0.5 / 0.7 = 0.714
        Assert.Equal([0, 1], Kept(logits, new SamplingOptions { TopK = 2, TopP = 0.72f }));
    }

    [Fact]
    public void A_flat_vocabulary_keeps_its_share_too()
    {
        var kept = Kept(new float[1000], new SamplingOptions { TopP = 0.5f });
        Assert.Equal(Enumerable.Range(0, 500), kept);       // ties by id
    }

    [Fact]
    public void Penalties_are_as_published()
    {
        var options = new SamplingOptions { Temperature = 0, RepetitionPenalty = 2, FrequencyPenalty = 0.5f, PresencePenalty = 0.25f, LogitBias = new Dictionary<int, float> { [3] = 1.5f } };
        var state = State(options, 0, 1);
        state.Accept(2);
        state.Accept(2);
        state.Accept(1);
        float[] logits = [4, -4, 4, 4, 4];

        state.Adjust(logits);

        Assert.Equal([2, (-4 * 2) - 0.75f, 2 - 1.25f, 5.5f, 4], logits);
    }

    [Fact]
    public void A_seed_and_a_position_decide_the_draw()
    {
        float[] logits = [.. Enumerable.Range(0, 50).Select(i => MathF.Sin(i))];
        int[] Answer(long seed)
        {
            var state = State(new SamplingOptions { Seed = seed });
            return [.. Enumerable.Range(0, 100).Select(_ =>
            {
                var token = Draw(logits, state);
                state.Accept(token);
                return token;
            })];
        }
        Assert.Equal(Answer(7), Answer(7));
        Assert.NotEqual(Answer(7), Answer(8));
    }

    [Fact]
    public void Log_probabilities_are_of_the_raw_logits()
    {
        float[] logits = [0.3f, -1, 2, 1.5f, 0, -0.5f];
        var expected = Softmax(logits, 1).Select(p => Math.Log(p)).ToArray();

        var sampled = new Sampler(6).Sample(logits, State(new SamplingOptions { Temperature = 0, LogProbabilities = 3, LogitBias = new Dictionary<int, float> { [1] = 100 } }))!.Value;

        Assert.Equal(1, sampled.Token);
        Assert.Equal(expected[1], sampled.LogProbability, 1e-5);
        Assert.Equal([2, 3, 0], sampled.Top.Select(t => t.Token));
        Assert.All(sampled.Top, t => Assert.Equal(expected[t.Token], t.LogProbability, 1e-5));
    }

    private static int[] Kept(float[] logits, SamplingOptions options) =>
        [.. Histogram(logits, options).Select((count, token) => (count, token)).Where(x => x.count > 0).Select(x => x.token)];
}
