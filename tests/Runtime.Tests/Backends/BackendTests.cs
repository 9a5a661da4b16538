using System.Runtime.InteropServices;
using TenantLora.Runtime.Backends;

namespace TenantLora.Runtime.Tests.Backends;

/// <summary>
/// Judges a backend verb by verb against plain loops in double, on shapes that are multiples of nothing, and holds it to the seam's
/// two rules: a row's bits do not depend on its batch, and a NaN stays in its row. Subclasses say which backend, and how exact it is.
/// </summary>
public abstract unsafe class BackendTests : IDisposable
{
    private readonly Random random = new(20260101);
    private readonly List<nint> memory = [];
    private readonly bool owned;
    private protected IBackend Backend { get; }

    /// <param name="owned">Whether it ends with the test.</param>
    private protected BackendTests(IBackend backend, bool owned = true) => (Backend, this.owned) = (backend, owned);

    /// <summary>Of results in fp32, relative to the largest value of the answer.</summary>
    private protected virtual double Tolerance => 2e-6;

    /// <summary>Of results that a Linear reads, which a backend may round.</summary>
    private protected virtual double OperandTolerance => Tolerance;

    /// <summary>Of attention, whose keys, values and weights a backend may round.</summary>
    private protected virtual double AttentionTolerance => 4 * Tolerance;

    /// <summary>What invented values are rounded to: the type in which the backend keeps weights and operands.</summary>
    private protected virtual float Round(float value) => value;

    /// <summary>Whether weights of this type are used as they are stored.</summary>
    private protected virtual bool Exact(DType type) => true;

    /// <summary>A row's result in one batch against that in another. Bit for bit, unless a backend takes other paths for other numbers of rows and says so.</summary>
    private protected virtual void AssertSameRows(float[,] expected, float[,] actual) => AssertSameBits(expected, actual);

    public void Dispose()
    {
        if (owned) Backend.Dispose();
        foreach (var address in memory) NativeMemory.Free((void*)address);
    }

    // ---- Linear

    public static TheoryData<int, int, int, string> LinearShapes()
    {
        var data = new TheoryData<int, int, int, string>();
        foreach (var type in new[] { "BF16", "F16", "F32" })
            foreach (var (rows, inputs, outputs) in new[] { (1, 96, 160), (1, 7, 1), (2, 33, 5), (3, 257, 13), (4, 64, 64), (5, 515, 136), (16, 1031, 26), (67, 160, 97), (1, 4099, 515) })
                data.Add(rows, inputs, outputs, type);
        return data;
    }

    [Theory, MemberData(nameof(LinearShapes))]
    public void Linear_is_x_times_w_transposed_plus_bias(int rows, int inputs, int outputs, string type)
    {
        var (x, w, bias) = (Values(rows, inputs), Host(outputs, inputs, type), Host(1, outputs, type));
        var y = Linear(x, [w], [bias]);
        var expected = new double[rows, outputs];
        for (var r = 0; r < rows; r++)
            for (var o = 0; o < outputs; o++)
            {
                expected[r, o] = At(bias, 0, o);
                for (var k = 0; k < inputs; k++) expected[r, o] += At(w, o, k) * x[r, k];
            }
        AssertClose(expected, y);
    }

    [Fact]
    public void Linear_reads_stacked_parts_as_one_matrix()
    {
        var x = Values(5, 70);
        var parts = new[] { Host(13, 70, "BF16"), Host(1, 70, "BF16"), Host(29, 70, "BF16") };
        var biases = new[] { Host(1, 13, "BF16"), Host(1, 1, "BF16"), Host(1, 29, "BF16") };
        var whole = Linear(x, parts, biases);
        var column = 0;
        for (var p = 0; p < parts.Length; p++)
        {
            var alone = Linear(x, [parts[p]], [biases[p]]);
            for (var r = 0; r < 5; r++)
                for (var o = 0; o < parts[p].Rows; o++) AssertSameRows(new[,] { { alone[r, o] } }, new[,] { { whole[r, column + o] } });
            column += parts[p].Rows;
        }
    }

    [Theory]
    [InlineData(515, 77, "BF16")]
    [InlineData(515, 77, "F16")]
    [InlineData(1600, 37, "F32")]
    [InlineData(2048, 101, "BF16")]
    public void Linear_gives_a_row_the_same_bits_in_every_batch(int inputs, int outputs, string type)
    {
        var (x, w) = (Values(67, inputs), Host(outputs, inputs, type));
        var whole = Linear(x, [w]);
        foreach (var rows in new[] { 1, 2, 3, 4, 5, 7, 8, 13, 16, 31, 64 })
            for (var first = 0; first + rows <= 67; first += Math.Max(rows, 9))
                AssertSameRows(Slice(whole, first, rows), Linear(Slice(x, first, rows), [w]));
    }

    [Theory]
    [InlineData(3)]
    [InlineData(20)]
    public void A_NaN_stays_in_its_row(int rows)
    {
        var (x, w) = (Values(rows, 37), Host(19, 37, "BF16"));
        var clean = Linear(x, [w]);
        x[1, 36] = float.NaN;
        x[1, 2] = float.PositiveInfinity;
        var y = Linear(x, [w]);
        for (var r = 0; r < rows; r++)
            for (var o = 0; o < 19; o++)
                if (r == 1) Assert.True(float.IsNaN(y[r, o]));
                else AssertSameBits(clean[r, o], y[r, o]);
    }

    [Fact]
    public void Half_precision_weights_keep_subnormals_infinities_and_signs()
    {
        if (!Exact(DType.F16)) Assert.Skip("This backend rounds half precision.");
        // One weight a row, x = 1: y is the weight.
        var halves = new ushort[] { 0x0001, 0x8001, 0x03FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x8000, 0x0000 };
        const int Inputs = 16;
        var w = Host(halves.Length, Inputs, "F16");
        new Span<byte>(w.Data, (int)w.Bytes).Clear();
        for (var o = 0; o < halves.Length; o++) ((ushort*)w.Data)[o * Inputs] = halves[o];
        var x = new float[1, Inputs];
        x[0, 0] = 1;
        var y = Linear(x, [w]);
        for (var o = 0; o < halves.Length; o++) Assert.Equal((float)BitConverter.UInt16BitsToHalf(halves[o]), y[0, o]);
    }

    // ---- LoRA

    public static TheoryData<int, int, int, int, int, int, int, string> LoraShapes() => new()
    {
        // inputs, outputs, r', u, m, n, rows, type
        { 96, 160, 14, 2, 4, 4, 3, "BF16" },      // even chunks
        { 97, 163, 7, 1, 7, 7, 1, "BF16" },       // ragged both ways: the paper's setting
        { 160, 96, 8, 0, 1, 1, 5, "F32" },        // plain LoRA
        { 33, 515, 16, 0, 8, 8, 2, "F16" },
        { 64, 40, 0, 4, 1, 1, 3, "F32" },         // nothing shared
        { 13, 9, 5, 3, 6, 8, 17, "F32" },         // chunks beyond the edge: ⌈13/6⌉·6 > 13
        { 40, 300, 3, 2, 7, 5, 40, "BF16" },      // more chunks than ranks, several tiles of rows
    };

    [Theory, MemberData(nameof(LoraShapes))]
    public void Linear_adds_the_papers_formula(int inputs, int outputs, int shared, int unshared, int m, int n, int rows, string type)
    {
        var modules = new LoraModules(2) { [1, Projection.Up] = Module(inputs, outputs, shared, unshared, m, n, type) };
        using var adapter = Backend.LoadAdapter(modules);
        var (x, w) = (Values(rows, inputs), Host(outputs + 11, inputs, "BF16"));
        LoraSite Site(int layer) => new(layer, (Projection.Gate, 0), (Projection.Up, 11));
        var y = Linear(x, [w], site: Site(1), segments: new AdapterSegment(0, rows, adapter));
        AssertClose(PlainLora(x, modules[1, Projection.Up]!, PlainLinear(x, w), 11), y);
        AssertSameBits(Linear(x, [w]), Linear(x, [w], site: Site(0), segments: new AdapterSegment(0, rows, adapter)));
    }

    [Fact]
    public void Every_row_has_its_own_adapter_and_base_rows_are_left_alone()
    {
        var (inputs, outputs) = (70, 90);
        var site = new LoraSite(0, (Projection.Query, 0), (Projection.Key, 90), (Projection.Value, 180));
        var geometries = new[] { (14, 2, 4, 4), (8, 0, 1, 1), (7, 1, 7, 7), (28, 4, 4, 8) };
        var adapters = geometries.Select(g => Adapter(inputs, outputs, g)).ToArray();
        var loaded = adapters.Select(Backend.LoadAdapter).ToArray();
        var w = Host(3 * outputs, inputs, "BF16");
        // Identical, distinct, skewed, with base rows between: -1.
        foreach (var rowAdapters in new int[][] { [0, 0, 0, 0, 0], [0, 1, 2, 3], [-1, 2, 2, 2, 2, 2, 2, 2, -1, 0, 1], [.. Enumerable.Range(0, 50).Select(i => i < 40 ? 1 : 3)], [-1, -1] })
        {
            var x = Values(rowAdapters.Length, inputs);
            var y = Linear(x, [w], site: site, segments: Segments(rowAdapters, loaded));
            var without = Linear(x, [w]);
            for (var r = 0; r < rowAdapters.Length; r++)
            {
                if (rowAdapters[r] < 0)
                {
                    AssertSameBits(Slice(without, r, 1), Slice(y, r, 1));
                    continue;
                }
                var xr = Slice(x, r, 1);
                AssertSameRows(Linear(xr, [w], site: site, segments: new AdapterSegment(0, 1, loaded[rowAdapters[r]])), Slice(y, r, 1));
                var expected = PlainLinear(xr, w);
                for (var p = 0; p < 3; p++) expected = PlainLora(xr, adapters[rowAdapters[r]][0, (Projection)p]!, expected, p * outputs);
                AssertClose(expected, Slice(y, r, 1));
            }
        }
        foreach (var adapter in loaded) adapter.Dispose();
    }

    [Fact]
    public void Prompts_under_adapters_share_a_step_with_decoding_rows()
    {
        var (inputs, outputs) = (72, 90);
        var site = new LoraSite(0, (Projection.Query, 0), (Projection.Key, 90), (Projection.Value, 180));
        var adapters = new[] { (14, 2, 4, 4), (8, 0, 1, 1), (7, 1, 7, 7) }.Select(g => Adapter(inputs, outputs, g)).ToArray();
        adapters[1][0, Projection.Key] = null;                              // not adapted
        var loaded = adapters.Select(Backend.LoadAdapter).ToArray();
        var w = Host(3 * outputs, inputs, "BF16");
        int[] rowAdapters = [.. Enumerable.Repeat(0, 100), 1, 2, -1, .. Enumerable.Repeat(-1, 70), .. Enumerable.Repeat(1, 65), .. Enumerable.Repeat(2, 16), 0, .. Enumerable.Repeat(2, 17)];
        var x = Values(rowAdapters.Length, inputs);
        var y = Linear(x, [w], site: site, segments: Segments(rowAdapters, loaded));
        var expected = PlainLinear(x, w);
        for (var r = 0; r < rowAdapters.Length; r++)
        {
            var (xr, er) = (Slice(x, r, 1), new double[1, 3 * outputs]);
            for (var c = 0; c < 3 * outputs; c++) er[0, c] = expected[r, c];
            for (var p = 0; p < 3 && rowAdapters[r] >= 0; p++)
                if (adapters[rowAdapters[r]][0, (Projection)p] is { } module) er = PlainLora(xr, module, er, p * outputs);
            AssertClose(er, Slice(y, r, 1));
        }
        foreach (var adapter in loaded) adapter.Dispose();
    }

    [Theory]
    [InlineData(9)]
    [InlineData(200)]
    public void Two_linears_under_adapters_may_both_wait_for_their_readers(int rows)
    {
        var (inputs, outputs) = (72, 90);
        LoraSite First = new(0, (Projection.Query, 0)), Second = new(0, (Projection.Down, 0));
        using var adapter = Backend.LoadAdapter(new LoraModules(1)
        {
            [0, Projection.Query] = Adapter(inputs, outputs, (14, 2, 4, 4))[0, Projection.Query],
            [0, Projection.Down] = Adapter(inputs, outputs, (8, 0, 1, 1))[0, Projection.Query],
        });
        AdapterSegment[] segments = [new(0, rows - 3, adapter), new(rows - 3, 1, null), new(rows - 2, 2, adapter)];
        var (x, v, w) = (Values(rows, inputs), Host(outputs, inputs, "BF16"), Host(outputs, inputs, "BF16"));
        var (one, two) = (Linear(x, [v], site: First, segments: segments), Linear(x, [w], site: Second, segments: segments));

        Backend.Begin(BatchOf([.. Enumerable.Range(0, rows)], segments: segments));
        using var first = Backend.Upload(v);
        using var second = Backend.Upload(w);
        var (from, y, z) = (Put(x, Precision.Operand), Backend.Scratch(rows, outputs), Backend.Scratch(rows, outputs));
        Backend.Linear(from, first, null, First, y);
        Backend.Linear(from, second, null, Second, z);
        AssertSameRows(one, Get(y));
        AssertSameRows(two, Get(z));
    }

    [Fact]
    public void An_adapters_NaN_stays_in_its_rows()
    {
        var (inputs, outputs) = (70, 90);
        var site = new LoraSite(0, (Projection.Query, 0), (Projection.Key, 90), (Projection.Value, 180));
        var modules = Adapter(inputs, outputs, (14, 2, 4, 4));
        using var good = Backend.LoadAdapter(modules);
        ((ushort*)modules[0, Projection.Key]!.B!.Data)[5] = 0x7FC0;
        using var bad = Backend.LoadAdapter(modules);
        var (x, w) = (Values(9, inputs), Host(3 * outputs, inputs, "BF16"));
        var clean = Linear(x, [w], site: site, segments: new AdapterSegment(0, 9, good));
        var y = Linear(x, [w], site: site, segments: [new AdapterSegment(0, 4, good), new AdapterSegment(4, 2, bad), new AdapterSegment(6, 3, good)]);
        for (var r = 0; r < 9; r++)
            if (r is 4 or 5) Assert.Contains(Enumerable.Range(0, 3 * outputs), c => float.IsNaN(y[r, c]));
            else AssertSameRows(Slice(clean, r, 1), Slice(y, r, 1));
    }

    [Fact]
    public void An_adapter_takes_about_what_its_compact_tensors_take()
    {
        var modules = Adapter(512, 640, (14, 2, 4, 4));
        using var adapter = Backend.LoadAdapter(modules);
        var compact = modules.All.Sum(m => m.A!.Bytes + m.B!.Bytes + m.AVec!.Bytes + m.BVec!.Bytes);
        Assert.Equal(adapter.Bytes, Backend.SizeOf(modules));
        Assert.InRange(adapter.Bytes, compact, compact * 5 / 4);
    }

    // ---- Attention

    public static TheoryData<int, int, int, int, int, bool> AttentionShapes() => new()
    {
        // heads, kvHeads, headDim, blockSize, window, norms
        { 4, 2, 16, 16, 0, false },
        { 4, 4, 24, 16, 0, false },
        { 6, 2, 32, 4, 0, true },
        { 5, 1, 64, 7, 0, false },
        { 4, 1, 16, 16, 16, false },
        { 2, 2, 80, 16, 5, true },
        { 7, 1, 96, 32, 20, false },
        { 3, 3, 128, 1, 0, false },
    };

    [Theory, MemberData(nameof(AttentionShapes))]
    public void Attention_is_softmax_over_the_rows_own_positions(int heads, int kvHeads, int headDim, int blockSize, int window, bool norms)
    {
        var shape = Shape(heads, kvHeads, headDim, window);
        var weights = norms ? (Host(1, headDim, "BF16"), Host(1, headDim, "BF16")) : default((HostTensor, HostTensor)?);
        // Three sequences whose blocks lie scattered, read in chunks and together with each other's decoding rows.
        int[] lengths = [41, 1, 18];
        var inputs = lengths.Select(l => Values(l, (heads + (2 * kvHeads)) * headDim)).ToArray();
        var together = AttendInSteps(shape, weights, blockSize, inputs, [[7, 1, 3], [30, 0, 13], [1, 0, 1], [3, 0, 1]], shuffle: 3);
        for (var s = 0; s < lengths.Length; s++)
        {
            AssertClose(PlainAttention(shape, weights, inputs[s]), together[s], AttentionTolerance);
            // Alone, in one go, in blocks in another order: the same bits.
            AssertSameRows(AttendInSteps(shape, weights, blockSize, [inputs[s]], [[lengths[s]]], shuffle: 1)[0], together[s]);
        }
        // And token by token.
        AssertSameRows(AttendInSteps(shape, weights, blockSize, [inputs[0]], [.. Enumerable.Repeat(new[] { 1 }, lengths[0])], shuffle: 5)[0], together[0]);
    }

    [Fact]
    public void A_long_context_is_attended_as_a_short_one()
    {
        var shape = Shape(4, 1, 32, 0);
        var input = Values(500, 6 * 32);
        var chunked = AttendInSteps(shape, null, 16, [input], [[256], [243], [1]], shuffle: 2)[0];
        AssertClose(PlainAttention(shape, null, input), chunked, AttentionTolerance);
    }

    [Fact]
    public void Rows_before_a_NaN_and_other_sequences_do_not_see_it()
    {
        var shape = Shape(2, 2, 16, 0);
        var inputs = new[] { Values(12, 96), Values(9, 96) };
        var clean = AttendInSteps(shape, null, 16, inputs, [[12, 9]], shuffle: 1);
        for (var c = 0; c < 96; c++) inputs[0][6, c] = float.NaN;
        var y = AttendInSteps(shape, null, 16, inputs, [[12, 9]], shuffle: 1);
        AssertSameBits(Slice(clean[0], 0, 6), Slice(y[0], 0, 6));
        AssertSameBits(clean[1], y[1]);
        Assert.True(float.IsNaN(y[0][6, 0]) && float.IsNaN(y[0][11, 0]));
    }

    // ---- The small verbs

    [Theory]
    [InlineData(1, 96)]
    [InlineData(3, 7)]
    [InlineData(33, 2048)]
    public void RmsNorm_divides_by_the_root_of_the_mean_square(int rows, int cols)
    {
        var (x, weight) = (Values(rows, cols), Host(1, cols, "BF16"));
        Begin(rows);
        var (dx, dy) = (Put(x), Backend.Scratch(rows, cols, Precision.Operand));
        using var dw = Backend.Upload(weight);
        Backend.RmsNorm(dx, dw, 1e-5f, dy);
        AssertClose(PlainRmsNorm(x, weight), Get(dy), OperandTolerance);
    }

    [Theory]
    [InlineData(1, 96)]
    [InlineData(3, 7)]
    [InlineData(33, 2048)]
    [InlineData(70, 777)]
    public void AddRmsNorm_adds_first_and_keeps_the_sum(int rows, int cols)
    {
        var (x, delta, weight) = (Values(rows, cols), Values(rows, cols), Host(1, cols, "BF16"));
        Begin(rows);
        var (dx, ddelta, dy) = (Put(x), Put(delta), Backend.Scratch(rows, cols, Precision.Operand));
        using var dw = Backend.Upload(weight);
        Backend.AddRmsNorm(ddelta, dx, dw, 1e-5f, dy);
        for (var r = 0; r < rows; r++)
            for (var c = 0; c < cols; c++) x[r, c] += delta[r, c];
        AssertSameBits(x, Get(dx));
        AssertClose(PlainRmsNorm(x, weight), Get(dy), OperandTolerance);
    }

    private static double[,] PlainRmsNorm(float[,] x, HostTensor weight)
    {
        var (rows, cols) = (x.GetLength(0), x.GetLength(1));
        var y = new double[rows, cols];
        for (var r = 0; r < rows; r++)
        {
            var squares = Enumerable.Range(0, cols).Sum(c => (double)x[r, c] * x[r, c]);
            for (var c = 0; c < cols; c++) y[r, c] = x[r, c] / Math.Sqrt((squares / cols) + 1e-5f) * At(weight, 0, c);
        }
        return y;
    }

    [Theory]
    [InlineData(1, 136)]
    [InlineData(5, 2051)]
    [InlineData(2, 5)]
    public void SwiGlu_gates(int rows, int cols)
    {
        var x = Values(rows, 2 * cols);
        x[0, 0] = -200;
        x[0, cols - 1] = 200;
        Begin(rows);
        var (dx, dy) = (Put(x), Backend.Scratch(rows, cols, Precision.Operand));
        Backend.SwiGlu(dx, dy);
        var expected = new double[rows, cols];
        for (var r = 0; r < rows; r++)
            for (var c = 0; c < cols; c++) expected[r, c] = x[r, c] / (1 + Math.Exp(-x[r, c])) * x[r, cols + c];
        AssertClose(expected, Get(dy), OperandTolerance);
    }

    [Theory]
    [InlineData("BF16")]
    [InlineData("F16")]
    [InlineData("F32")]
    public void Embed_reads_the_tokens_rows(string type)
    {
        var (a, b) = (Host(30, 96, type), Host(7, 96, type));
        using var table = Backend.Upload(a, b);
        int[] tokens = [36, 0, 29, 30, 0];
        Backend.Begin(BatchOf(tokens));
        var x = Backend.Scratch(tokens.Length, 96);
        Backend.Embed(table, x);
        var y = Get(x);
        for (var r = 0; r < tokens.Length; r++)
            for (var c = 0; c < 96; c++) Assert.Equal(tokens[r] < 30 ? At(a, tokens[r], c) : At(b, tokens[r] - 30, c), y[r, c]);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void TakeLogitRows_takes_rows(bool operand)
    {
        var precision = operand ? Precision.Operand : Precision.Full;
        var x = Values(70, 777);
        Begin(70, [0, 5, 69]);
        var (dx, taken) = (Put(x, precision), Backend.Scratch(3, 777, precision));
        Backend.TakeLogitRows(dx, taken);
        var rows = Get(taken);
        for (var c = 0; c < 777; c++) Assert.Equal((x[0, c], x[5, c], x[69, c]), (rows[0, c], rows[1, c], rows[2, c]));
    }

    [Fact]
    public void Scratch_outlives_growth_within_a_step()
    {
        Begin(4);
        var x = Values(4, 100);
        var first = Put(x);
        for (var i = 1; i < 12; i++) Put(Values(4, 100 << i));
        AssertSameBits(x, Get(first));
    }

    // ---- Drawing

    private static readonly float[] Fifths = [.. new[] { 0.2, 0.5, 0.05, 0.15, 0.1 }.Select(p => (float)Math.Log(p))];

    [Fact]
    public void Greedy_takes_the_largest_and_the_lowest_id_of_equals_and_no_padding()
    {
        var logits = Rows([0, 5, 5, -1, 9], [-3, -2, -1, -2, 9], [7, 7, 7, 7, 9]);
        Assert.Equal([1, 2, 0], Draw(logits, 4, new DrawRule(), new DrawRule(), new DrawRule()).Select(d => d.Token));
    }

    [Fact]
    public void A_row_that_is_not_numbers_draws_nothing_and_harms_nobody()
    {
        var logits = Values(7, 1000);
        var rules = new[] { new DrawRule(), new DrawRule { Temperature = 1, Uniform = 0.3, TopK = 40 }, new DrawRule { Temperature = 0.7f, Uniform = 0.6 } };
        DrawRule[] all = [.. Enumerable.Range(0, 7).Select(i => rules[i % 3])];
        var clean = Draw(logits, 1000, all);
        (logits[1, 999], logits[3, 0], logits[5, 500]) = (float.NaN, float.PositiveInfinity, float.NegativeInfinity);
        var drawn = Draw(logits, 1000, all);
        for (var i = 0; i < 7; i++) Assert.Equal(i is 1 or 3 or 5 ? -1 : clean[i].Token, drawn[i].Token);
    }

    /// <summary>Restrictions that cut in clear places, judged by what a sweep of uniforms can draw and how much of it each token gets.</summary>
    [Theory]
    [InlineData(2, 1f, 0f, new[] { 0, 1 })]
    [InlineData(0, 0.4f, 0f, new[] { 1 })]
    [InlineData(0, 0.6f, 0f, new[] { 0, 1 })]
    [InlineData(0, 0.9f, 0f, new[] { 0, 1, 3, 4 })]
    [InlineData(0, 1f, 0f, new[] { 0, 1, 2, 3, 4 })]
    [InlineData(0, 1f, 0.25f, new[] { 0, 1, 3 })]
    [InlineData(4, 1f, 0.25f, new[] { 0, 1, 3 })]
    [InlineData(2, 0.7f, 0f, new[] { 1 })]                  // 0.5 / 0.7 = 0.714
    [InlineData(2, 0.72f, 0f, new[] { 0, 1 })]
    [InlineData(9, 1f, 0f, new[] { 0, 1, 2, 3, 4 })]
    public void Top_k_top_p_and_min_p_keep_whom_they_should(int topK, float topP, float minP, int[] kept)
    {
        const int Draws = 200;
        var logits = new float[Draws, 5];
        for (var r = 0; r < Draws; r++)
            for (var c = 0; c < 5; c++) logits[r, c] = Fifths[c];
        var drawn = Draw(logits, 5, [.. Enumerable.Range(0, Draws).Select(i => new DrawRule { Temperature = 1, TopK = topK, TopP = topP, MinP = minP, Uniform = (i + 0.5) / Draws })]);

        Assert.Equal(drawn.Select(d => d.Token).Order(), drawn.Select(d => d.Token));       // by id
        var total = kept.Sum(t => Math.Exp(Fifths[t]));
        for (var t = 0; t < 5; t++)
            Assert.Equal(kept.Contains(t) ? Math.Exp(Fifths[t]) / total : 0, drawn.Count(d => d.Token == t) / (double)Draws, 1.01 / Draws);
    }

    public static TheoryData<int, float, int, float, float> DrawShapes() => new()
    {
        // vocabulary, temperature, top-k, top-p, min-p
        { 1, 1, 0, 1, 0 },
        { 3, 1.3f, 2, 0.9f, 0 },
        { 1031, 1, 0, 1, 0 },
        { 1031, 0.7f, 50, 1, 0 },
        { 1031, 1.5f, 0, 0.8f, 0.05f },
        { 32003, 1, 0, 0.95f, 0 },
        { 32003, 1.2f, 40, 0.9f, 0.01f },
        { 32003, 1, 1, 0.5f, 0.5f },
        { 151669, 1, 0, 1, 0 },
        { 151669, 2, 1000, 0.99f, 0 },
        { 151669, 0.6f, 20, 0.95f, 0 },
    };

    [Theory, MemberData(nameof(DrawShapes))]
    public void A_draw_is_where_the_running_sum_passes(int vocabulary, float temperature, int topK, float topP, float minP)
    {
        var logits = Values(9, vocabulary + 5);
        for (var r = 0; r < 9; r++)
            for (var c = 0; c < vocabulary; c++) logits[r, c] = Round(logits[r, c] * (r % 3 == 0 ? 20 : 5));     // peaked and flat
        var rules = Enumerable.Range(0, 9).Select(i => new DrawRule { Temperature = temperature, TopK = topK, TopP = topP, MinP = minP, Uniform = (i * 0.11) + 0.03 }).ToArray();
        var drawn = Draw(logits, vocabulary, rules);
        for (var r = 0; r < 9; r++)
        {
            Assert.True(MayDraw(drawn[r].Token, [.. Enumerable.Range(0, vocabulary).Select(c => logits[r, c])], rules[r]), $"row {r}: {drawn[r].Token}");
            Assert.Equal(drawn[r].Token, Draw(Slice(logits, r, 1), vocabulary, rules[r])[0].Token);
        }
    }

    [Fact]
    public void A_flat_row_keeps_the_lowest_ids()
    {
        var rules = Enumerable.Range(0, 50).Select(i => new DrawRule { Temperature = 1, TopP = 0.5f, Uniform = (i + 0.5) / 50 }).ToArray();
        Assert.Equal(Enumerable.Range(0, 50).Select(i => (i * 10) + 5), Draw(new float[50, 1000], 1000, rules).Select(d => d.Token));
    }

    [Fact]
    public void Penalties_and_bias_come_first_and_in_order()
    {
        // Token by token against a plain rival: greedy takes the token if its changed logit passes, the rival if not.
        var prompt = new HashSet<int> { 0, 1 };
        var answered = new Dictionary<int, int> { [1] = 1, [2] = 2 };
        var bias = new Dictionary<int, float> { [3] = 1.5f };
        float[] logits = [4, -4, 4, 4, 4], expected = [2, (-4 * 2) - 0.75f, 2 - 1.25f, 5.5f, 4];
        var rule = new DrawRule { Repetition = 2, Frequency = 0.5f, Presence = 0.25f, Prompt = prompt, Answered = answered, Bias = bias };
        for (var token = 0; token < 5; token++)
        {
            var rows = new float[2, 6];
            for (var r = 0; r < 2; r++)
            {
                for (var c = 0; c < 5; c++) rows[r, c] = c == token ? logits[c] : -100;
                rows[r, 5] = expected[token] + (r == 0 ? 0.01f : -0.01f);
            }
            Assert.Equal([5, token], Draw(rows, 6, rule, rule).Select(d => d.Token));
        }
        // And a sampled row sees the same.
        Assert.Equal([3], Draw(Rows([4, -4, 4, 4, 4, -100]), 6, rule with { Temperature = 0.01f, Uniform = 0.9 }).Select(d => d.Token));
    }

    [Fact]
    public void Log_probabilities_are_of_the_raw_logits()
    {
        var logits = Values(3, 2003);
        for (var c = 0; c < 2003; c++) logits[2, c] = c / 7;             // ties
        var bias = new Dictionary<int, float> { [1] = 100 };
        var drawn = Draw(logits, 2000, new DrawRule { LogProbabilities = 3, Bias = bias }, new DrawRule { LogProbabilities = 0, Temperature = 1, Uniform = 0.5 }, new DrawRule { LogProbabilities = 20 });

        Assert.Equal([3, 0, 20], drawn.Select(d => d.Top.Length));
        Assert.Equal(1, drawn[0].Token);
        for (var r = 0; r < 3; r++)
        {
            var row = Enumerable.Range(0, 2000).Select(c => (double)logits[r, c]).ToArray();
            var logTotal = Math.Log(row.Sum(v => Math.Exp(v - row.Max()))) + row.Max();
            Assert.Equal(row[drawn[r].Token] - logTotal, drawn[r].LogProbability, 1e-4);
            Assert.Equal(Enumerable.Range(0, 2000).OrderByDescending(c => row[c]).ThenBy(c => c).Take(drawn[r].Top.Length), drawn[r].Top.Select(t => t.Token));
            Assert.All(drawn[r].Top, t => Assert.Equal(row[t.Token] - logTotal, t.LogProbability, 1e-4));
        }
    }

    [Fact]
    public void A_rules_draw_does_not_depend_on_its_neighbours()
    {
        var logits = Values(40, 5003);
        var rules = Enumerable.Range(0, 40).Select(i => new DrawRule
        {
            Temperature = i % 4 * 0.5f,
            TopK = i % 3 * 20,
            TopP = i % 5 == 0 ? 0.9f : 1,
            Uniform = i / 40.0,
            Repetition = i % 7 == 0 ? 1.1f : 1,
            Prompt = i % 7 == 0 ? new HashSet<int> { i, 5 } : null,
            LogProbabilities = i % 6 == 0 ? 2 : null,
        }).ToArray();
        var together = Draw(logits, 5003, rules);
        for (var i = 0; i < 40; i++)
        {
            var alone = Draw(Slice(logits, i, 1), 5003, rules[i])[0];
            Assert.Equal((alone.Token, alone.LogProbability), (together[i].Token, together[i].LogProbability));
            Assert.Equal(alone.Top, together[i].Top);
        }
    }

    /// <summary>The rule's loop in double; where an edge is closer than rounding either side will do.</summary>
    private static bool MayDraw(int drawn, float[] logits, DrawRule rule)
    {
        const double Slack = 1e-5;
        var largest = logits.Max();
        var weights = logits.Select(l => Math.Exp((l - largest) / (double)rule.Temperature)).ToArray();
        foreach (var slack in new[] { 0, -Slack, Slack })
        {
            var order = Enumerable.Range(0, weights.Length).OrderByDescending(t => logits[t]).ThenBy(t => t);
            int[] kept = [.. rule.TopK > 0 ? order.Take(rule.TopK) : order];
            var (target, head, sum) = (rule.TopP * (1 + slack) * kept.Sum(t => weights[t]), 0, 0.0);
            while (head < kept.Length && sum < target) sum += weights[kept[head++]];
            kept = [.. kept.Take(rule.TopP < 1 ? head : kept.Length).Where(t => weights[t] >= rule.MinP * (1 + slack)).Order()];
            var total = kept.Sum(t => weights[t]);
            double before = 0;
            foreach (var t in kept)
            {
                if (t == drawn && rule.Uniform * total >= before - (Slack * total) && rule.Uniform * total < before + weights[t] + (Slack * total)) return true;
                before += weights[t];
            }
        }
        return false;
    }

    private static float[,] Rows(params float[][] rows)
    {
        var values = new float[rows.Length, rows[0].Length];
        for (var r = 0; r < rows.Length; r++)
            for (var c = 0; c < rows[r].Length; c++) values[r, c] = rows[r][c];
        return values;
    }

    // ---- Bringing values to the backend and back

    private protected float[,] Linear(float[,] x, HostTensor[] parts, HostTensor[]? biases = null, LoraSite? site = null, params AdapterSegment[] segments)
    {
        var rows = x.GetLength(0);
        Backend.Begin(BatchOf([.. Enumerable.Range(0, rows)], segments: segments));
        using var w = Backend.Upload(parts);
        using var b = biases is null ? null : Backend.Upload(biases);
        var dy = Backend.Scratch(rows, w.Rows);
        Backend.Linear(Put(x, Precision.Operand), w, b, site, dy);
        return Get(dy);
    }

    private protected Drawn[] Draw(float[,] logits, int vocabulary, params DrawRule[] rules)
    {
        Backend.Begin(BatchOf([.. Enumerable.Range(0, rules.Length)], [.. Enumerable.Range(0, rules.Length)], draws: rules));
        Backend.Draw(Put(logits), vocabulary);
        return Backend.Collect();
    }

    /// <summary>Runs sequences through rope, cache and attention, <paramref name="steps"/>[step][sequence] rows at a time; blocks are handed out in an order of their own.</summary>
    private protected float[][,] AttendInSteps(AttentionShape shape, (HostTensor Query, HostTensor Key)? norms, int blockSize, float[][,] inputs, int[][] steps, int shuffle)
    {
        var blocksEach = inputs.Max(i => (i.GetLength(0) / blockSize) + 1);
        var total = blocksEach * inputs.Length;
        var order = Enumerable.Range(0, total).ToArray();
        new Random(shuffle).Shuffle(order);
        using var cache = Backend.CreateKvCache(total, blockSize, shape);
        using var query = norms is { } a ? Backend.Upload(a.Query) : null;
        using var key = norms is { } b ? Backend.Upload(b.Key) : null;
        var done = new int[inputs.Length];
        var width = inputs[0].GetLength(1);
        var results = inputs.Select(i => new float[i.GetLength(0), shape.Heads * shape.HeadDim]).ToArray();
        foreach (var step in steps)
        {
            List<int> positions = [], slots = [];
            List<BatchSpan> spans = [];
            List<(int Sequence, int Position)> rows = [];
            for (var s = 0; s < inputs.Length; s++)
            {
                if (step[s] == 0) continue;
                var blocks = order[(s * blocksEach)..((s + 1) * blocksEach)];
                spans.Add(new BatchSpan(positions.Count, step[s], done[s] + step[s], blocks));
                for (var i = 0; i < step[s]; i++, done[s]++)
                {
                    rows.Add((s, done[s]));
                    positions.Add(done[s]);
                    slots.Add((blocks[done[s] / blockSize] * blockSize) + (done[s] % blockSize));
                }
            }
            var qkv = new float[rows.Count, width];
            for (var r = 0; r < rows.Count; r++)
                for (var c = 0; c < width; c++) qkv[r, c] = inputs[rows[r].Sequence][rows[r].Position, c];
            Backend.Begin(new Batch
            {
                Tokens = [.. Enumerable.Range(0, rows.Count)],
                Positions = [.. positions],
                Slots = [.. slots],
                Spans = [.. spans],
                Segments = [new AdapterSegment(0, rows.Count, null)],
                LogitRows = [],
            });
            var (dq, dy) = (Put(qkv), Backend.Scratch(rows.Count, shape.Heads * shape.HeadDim, Precision.Operand));
            for (var layer = 0; layer < shape.Layers; layer++)
            {
                dq = Put(qkv); // rope works in place
                Backend.RopeAndStore(dq, norms is null ? null : new HeadNorms(query!, key!, 1e-6f), cache, layer);
            }
            Backend.Attend(dq, cache, shape.Layers - 1, dy);
            var y = Get(dy);
            for (var r = 0; r < rows.Count; r++)
                for (var c = 0; c < y.GetLength(1); c++) results[rows[r].Sequence][rows[r].Position, c] = y[r, c];
        }
        return results;
    }

    /// <summary>A step of so many rows whose tokens are 0, 1, 2…: what <see cref="Put"/> needs.</summary>
    private protected void Begin(int rows, int[]? logitRows = null) => Backend.Begin(BatchOf([.. Enumerable.Range(0, rows)], logitRows));

    private static Batch BatchOf(int[] tokens, int[]? logitRows = null, AdapterSegment[]? segments = null, DrawRule[]? draws = null) => new()
    {
        Tokens = tokens,
        Positions = [.. Enumerable.Range(0, tokens.Length)],
        Slots = [.. Enumerable.Range(0, tokens.Length)],
        Spans = [new BatchSpan(0, tokens.Length, tokens.Length, [])],
        Segments = segments is { Length: > 0 } ? segments : [new AdapterSegment(0, tokens.Length, null)],
        LogitRows = logitRows ?? [],
        Draws = draws ?? [],
    };

    /// <summary>Host values into scratch: an embedding whose table they are. The verbs know no other way in. Copied as many rows as the step has.</summary>
    private protected DeviceTensor Put(float[,] values, Precision precision = Precision.Full)
    {
        var (rows, cols) = (values.GetLength(0), values.GetLength(1));
        var host = Host(rows, cols, "F32");
        for (var r = 0; r < rows; r++)
            for (var c = 0; c < cols; c++) ((float*)host.Data)[(r * cols) + c] = values[r, c];
        using var table = Backend.Upload(host);
        var x = Backend.Scratch(rows, cols, precision);
        Backend.Embed(table, x);
        // A backend that rounds its tables gets what is left of the values, and what is then left, added.
        for (var rest = 0; rest < 2 && precision == Precision.Full && !Exact(DType.F32); rest++)
        {
            var any = false;
            for (var i = 0; i < rows * cols; i++)
            {
                var left = ((float*)host.Data)[i] - Round(((float*)host.Data)[i]);
                ((float*)host.Data)[i] = float.IsFinite(left) ? left : 0;
                any |= ((float*)host.Data)[i] != 0;
            }
            if (!any) break;
            var ones = Host(1, cols, "F32");
            new Span<float>(ones.Data, cols).Fill(1);
            using var weight = Backend.Upload(ones);
            using var remainder = Backend.Upload(host);
            var delta = Backend.Scratch(rows, cols);
            Backend.Embed(remainder, delta);
            Backend.AddRmsNorm(delta, x, weight, 1e-5f, Backend.Scratch(rows, cols));
        }
        return x;
    }

    private protected float[,] Get(DeviceTensor x)
    {
        var flat = new float[x.Rows * x.Cols];
        Backend.Download(x, flat);
        var values = new float[x.Rows, x.Cols];
        Buffer.BlockCopy(flat, 0, values, 0, flat.Length * sizeof(float));
        return values;
    }

    // ---- Inventing values

    private protected float[,] Values(int rows, int cols)
    {
        var values = new float[rows, cols];
        for (var r = 0; r < rows; r++)
            for (var c = 0; c < cols; c++) values[r, c] = Round((float)((random.NextDouble() * 2) - 1));
        return values;
    }

    private protected HostTensor Host(int rows, int cols, string type)
    {
        var dtype = Enum.Parse<DType>(type);
        var count = rows * cols;
        var data = (byte*)NativeMemory.Alloc((nuint)(count * dtype.Size()));
        memory.Add((nint)data);
        for (var i = 0; i < count; i++)
        {
            var value = Round((float)((random.NextDouble() * 2) - 1));
            if (dtype == DType.F32) ((float*)data)[i] = value;
            else if (dtype == DType.F16) ((Half*)data)[i] = (Half)value;
            else ((ushort*)data)[i] = (ushort)(BitConverter.SingleToUInt32Bits(value) >> 16);
        }
        return new HostTensor("test", dtype, rows, cols, data, this);
    }

    private protected static float At(HostTensor tensor, int row, int col)
    {
        var i = (row * tensor.Cols) + col;
        return tensor.Type switch
        {
            DType.F32 => ((float*)tensor.Data)[i],
            DType.F16 => (float)((Half*)tensor.Data)[i],
            _ => BitConverter.UInt32BitsToSingle((uint)((ushort*)tensor.Data)[i] << 16),
        };
    }

    private protected LoraModule Module(int inputs, int outputs, int shared, int unshared, int m, int n, string type) => new()
    {
        Inputs = inputs,
        Outputs = outputs,
        ChunksA = m,
        ChunksB = n,
        ShiftA = Math.Max(shared / m, 1),
        ShiftB = Math.Max(shared / n, 1),
        Scale = 0.625f,
        A = shared == 0 ? null : Host(shared, (inputs + m - 1) / m, type),
        B = shared == 0 ? null : Host((outputs + n - 1) / n, shared, type),
        AVec = unshared == 0 ? null : Host(unshared, inputs, type),
        BVec = unshared == 0 ? null : Host(unshared, outputs, type),
    };

    private protected LoraModules Adapter(int inputs, int outputs, (int Shared, int Unshared, int M, int N) g)
    {
        var modules = new LoraModules(1);
        for (var p = Projection.Query; p <= Projection.Value; p++) modules[0, p] = Module(inputs, outputs, g.Shared, g.Unshared, g.M, g.N, "BF16");
        return modules;
    }

    private static AdapterSegment[] Segments(int[] rowAdapters, DeviceAdapter[] adapters)
    {
        List<AdapterSegment> segments = [];
        for (var r = 0; r < rowAdapters.Length; r++)
            if (r > 0 && rowAdapters[r] == rowAdapters[r - 1]) segments[^1] = segments[^1] with { Rows = segments[^1].Rows + 1 };
            else segments.Add(new AdapterSegment(r, 1, rowAdapters[r] < 0 ? null : adapters[rowAdapters[r]]));
        return [.. segments];
    }

    private protected static AttentionShape Shape(int heads, int kvHeads, int headDim, int window) =>
        new(2, heads, kvHeads, headDim, [.. Enumerable.Range(0, headDim / 2).Select(i => MathF.Pow(10000, -2f * i / headDim))], [0, window]);

    // ---- The judges: the seam's lines of semantics as loops

    private static double[,] PlainLinear(float[,] x, HostTensor w)
    {
        var y = new double[x.GetLength(0), w.Rows];
        for (var r = 0; r < y.GetLength(0); r++)
            for (var o = 0; o < w.Rows; o++)
                for (var k = 0; k < w.Cols; k++) y[r, o] += At(w, o, k) * (double)x[r, k];
        return y;
    }

    private static double[,] PlainLora(float[,] x, LoraModule m, double[,] y0, int column)
    {
        var (rows, shared, unshared) = (x.GetLength(0), m.SharedRank, m.UnsharedRank);
        var y = new double[rows, y0.GetLength(1)];
        for (var r = 0; r < rows; r++)
        {
            for (var c = 0; c < y.GetLength(1); c++) y[r, c] = y0[r, c];
            var z = new double[shared];
            for (var k = 0; k < shared; k++)
                for (var j = 0; j < m.ChunksA; j++)
                    for (var t = 0; t < m.ChunkWidth && (j * m.ChunkWidth) + t < m.Inputs; t++)
                        z[k] += At(m.A!, (k + (j * m.ShiftA)) % shared, t) * x[r, (j * m.ChunkWidth) + t];
            for (var i = 0; i < m.ChunksB && shared > 0; i++)
                for (var t = 0; t < m.ChunkHeight && (i * m.ChunkHeight) + t < m.Outputs; t++)
                    for (var k = 0; k < shared; k++)
                        y[r, column + (i * m.ChunkHeight) + t] += m.Scale * At(m.B!, t, k) * z[Modulo(k - (i * m.ShiftB), shared)];
            for (var u = 0; u < unshared; u++)
            {
                var zu = 0.0;
                for (var c = 0; c < m.Inputs; c++) zu += At(m.AVec!, u, c) * x[r, c];
                for (var o = 0; o < m.Outputs; o++) y[r, column + o] += m.Scale * At(m.BVec!, u, o) * zu;
            }
        }
        return y;
    }

    private static int Modulo(int a, int n) => ((a % n) + n) % n;

    private static double[,] PlainAttention(AttentionShape shape, (HostTensor Query, HostTensor Key)? norms, float[,] qkv)
    {
        var (rows, d, window) = (qkv.GetLength(0), shape.HeadDim, shape.Windows[^1]);
        double[] Head(int row, int head, HostTensor? norm)
        {
            var x = Enumerable.Range(0, d).Select(i => (double)qkv[row, (head * d) + i]).ToArray();
            if (norm is not null)
            {
                var root = Math.Sqrt((x.Sum(v => v * v) / d) + 1e-6f);
                for (var i = 0; i < d; i++) x[i] = x[i] / root * At(norm, 0, i);
            }
            var y = new double[d];
            for (var i = 0; i < d / 2; i++)
            {
                var angle = row * shape.InverseFrequencies[i]; // fp32, as the reference has it
                y[i] = (x[i] * Math.Cos(angle)) - (x[i + (d / 2)] * Math.Sin(angle));
                y[i + (d / 2)] = (x[i + (d / 2)] * Math.Cos(angle)) + (x[i] * Math.Sin(angle));
            }
            return y;
        }
        var result = new double[rows, shape.Heads * d];
        for (var h = 0; h < shape.Heads; h++)
        {
            var kvHead = h / (shape.Heads / shape.KvHeads);
            var keys = Enumerable.Range(0, rows).Select(r => Head(r, shape.Heads + kvHead, norms?.Key)).ToArray();
            for (var r = 0; r < rows; r++)
            {
                var q = Head(r, h, norms?.Query);
                var first = window == 0 ? 0 : Math.Max(0, r - window + 1);
                var weights = Enumerable.Range(first, r + 1 - first).Select(p => Math.Exp(Dot(q, keys[p]) / Math.Sqrt(d))).ToArray();
                var total = weights.Sum();
                for (var p = first; p <= r; p++)
                    for (var i = 0; i < d; i++)
                        result[r, (h * d) + i] += weights[p - first] / total * qkv[p, ((shape.Heads + shape.KvHeads + kvHead) * d) + i];
            }
        }
        return result;
    }

    private static double Dot(double[] a, double[] b)
    {
        var sum = 0.0;
        for (var i = 0; i < a.Length; i++) sum += a[i] * b[i];
        return sum;
    }

    private protected void AssertClose(double[,] expected, float[,] actual, double? tolerance = null)
    {
        var limit = tolerance ?? Tolerance;
        var largest = expected.Cast<double>().Max(Math.Abs);
        for (var r = 0; r < expected.GetLength(0); r++)
            for (var c = 0; c < expected.GetLength(1); c++)
                if (!(Math.Abs(expected[r, c] - actual[r, c]) <= limit * largest))
                    Assert.Fail($"[{r}, {c}]: expected {expected[r, c]}, found {actual[r, c]}, largest {largest}");
    }

    private protected static void AssertSameBits(float[,] expected, float[,] actual)
    {
        Assert.Equal((expected.GetLength(0), expected.GetLength(1)), (actual.GetLength(0), actual.GetLength(1)));
        Assert.True(MemoryMarshal.AsBytes(Flat(expected)).SequenceEqual(MemoryMarshal.AsBytes(Flat(actual))));
    }

    private static Span<float> Flat(float[,] values) => MemoryMarshal.CreateSpan(ref values[0, 0], values.Length);

    private protected static void AssertSameBits(float expected, float actual) => Assert.Equal(BitConverter.SingleToUInt32Bits(expected), BitConverter.SingleToUInt32Bits(actual));

    private protected static float[,] Slice(float[,] values, int first, int rows)
    {
        var cols = values.GetLength(1);
        var slice = new float[rows, cols];
        Array.Copy(values, first * cols, slice, 0, rows * cols);
        return slice;
    }
}
