using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using TenantLora.Runtime.Backends;
using TenantLora.Runtime.Backends.Cuda;

namespace TenantLora.Runtime.Tests.Backends.Cuda;

public class CudaDrawsTests
{
    private static (CudaDraws.Row[] Rows, CudaDraws.Pair[] Pairs) Pack(params DrawRule[] rules)
    {
        var buffer = new byte[CudaDraws.Bytes(rules)];
        CudaDraws.Pack(rules, buffer);
        return (MemoryMarshal.Cast<byte, CudaDraws.Row>(buffer)[..rules.Length].ToArray(), MemoryMarshal.Cast<byte, CudaDraws.Pair>(buffer).ToArray());
    }

    private static (int Token, int Value)[] Slice(CudaDraws.Pair[] pairs, int from, int count) =>
        [.. pairs[from..(from + count)].Select(p => (p.Token, p.Value)).Order()];

    /// <summary>The kernel's struct has these sizes and offsets.</summary>
    [Fact]
    public void The_layout_is_the_kernels()
    {
        Assert.Equal((56, 8, 16, 8), (Unsafe.SizeOf<CudaDraws.Row>(), Unsafe.SizeOf<CudaDraws.Pair>(), Unsafe.SizeOf<CudaDraws.Result>(), Unsafe.SizeOf<CudaDraws.Top>()));
        var offsets = typeof(CudaDraws.Row).GetFields().Select(f => ((int)Marshal.OffsetOf<CudaDraws.Row>(f.Name), f.Name)).Order();
        Assert.Equal(
            [(0, "Temperature"), (4, "TopP"), (8, "MinP"), (12, "Repetition"), (16, "Frequency"), (20, "Presence"), (24, "TopK"),
             (28, "LogProbabilities"), (32, "Uniform"), (40, "History"), (44, "HistoryCount"), (48, "Bias"), (52, "BiasCount")], offsets);
    }

    [Fact]
    public void A_rule_keeps_its_numbers()
    {
        var (rows, pairs) = Pack(
            new DrawRule(),
            new DrawRule { Temperature = 0.5f, TopK = 7, TopP = 0.9f, MinP = 0.1f, Uniform = 0.25, LogProbabilities = 0 });

        Assert.Equal((0f, 1f, 0f, 1f, 0, -1), (rows[0].Temperature, rows[0].TopP, rows[0].MinP, rows[0].Repetition, rows[0].TopK, rows[0].LogProbabilities));
        Assert.Equal((0.5f, 0.9f, 0.1f, 7, 0.25, 0), (rows[1].Temperature, rows[1].TopP, rows[1].MinP, rows[1].TopK, rows[1].Uniform, rows[1].LogProbabilities));
        Assert.All(rows, r => Assert.Equal((0, 0), (r.HistoryCount, r.BiasCount)));
        Assert.Equal(14, pairs.Length);                     // rows only
    }

    [Fact]
    public void Histories_and_biases_follow_the_rows_each_token_once()
    {
        var answered = new Dictionary<int, int> { [3] = 2, [5] = 1 };
        var (rows, pairs) = Pack(
            new DrawRule { Repetition = 1.5f, Prompt = new HashSet<int> { 3, 9 }, Answered = answered, Bias = new Dictionary<int, float> { [4] = -1.5f } },
            new DrawRule { Frequency = 0.5f, Presence = 0.25f, Answered = answered },
            new DrawRule { Bias = new Dictionary<int, float> { [8] = float.NegativeInfinity } });

        Assert.Equal([(3, 5), (5, 2), (9, 1)], Slice(pairs, rows[0].History, rows[0].HistoryCount));
        Assert.Equal([(4, BitConverter.SingleToInt32Bits(-1.5f))], Slice(pairs, rows[0].Bias, rows[0].BiasCount));
        Assert.Equal([(3, 4), (5, 2)], Slice(pairs, rows[1].History, rows[1].HistoryCount));
        Assert.Equal(0, rows[1].BiasCount);
        Assert.Equal(0, rows[2].HistoryCount);
        Assert.Equal([(8, BitConverter.SingleToInt32Bits(float.NegativeInfinity))], Slice(pairs, rows[2].Bias, rows[2].BiasCount));
        Assert.Equal(21 + 7, pairs.Length);
        Assert.Equal(21, rows[0].History);                  // right behind three rows of seven pairs
    }

    [Fact]
    public void A_history_that_no_penalty_asks_for_stays_behind()
    {
        var (rows, _) = Pack(new DrawRule { Prompt = new HashSet<int> { 1 }, Answered = new Dictionary<int, int> { [2] = 1 } });
        Assert.Equal(0, rows[0].HistoryCount);
    }

    [Fact]
    public void Results_come_back_with_as_many_likeliest_as_there_are()
    {
        var tops = new CudaDraws.Top[2 * CudaDraws.MostReported];
        tops[CudaDraws.MostReported] = new CudaDraws.Top { Token = 6, LogProbability = -0.5f };
        tops[CudaDraws.MostReported + 1] = new CudaDraws.Top { Token = 2, LogProbability = -1 };
        var drawn = CudaDraws.Read(
            [new CudaDraws.Result { Token = -1 }, new CudaDraws.Result { Token = 6, LogProbability = -0.5f, Top = 2 }], tops);

        Assert.Equal(-1, drawn[0].Token);
        Assert.Empty(drawn[0].Top);
        Assert.Equal((6, -0.5f), (drawn[1].Token, drawn[1].LogProbability));
        Assert.Equal([(6, -0.5f), (2, -1f)], drawn[1].Top);
    }
}
