using System.Collections.Frozen;
using TenantLora.Runtime.Scheduling;

namespace TenantLora.Runtime.Tests.Scheduling;

public class SchedulerTests
{
    private static readonly FrozenSet<int> NoEnd = FrozenSet<int>.Empty;

    private static Sequence New(string tenant, int prompt, int answer, string? adapter = null) =>
        new(tenant, adapter, [.. Enumerable.Range(1, prompt)], answer, NoEnd);

    private static IReadOnlyList<Sequence> Turn(Scheduler scheduler, out Step step)
    {
        step = scheduler.Next();
        return scheduler.Complete(step, Enumerable.Repeat(7, step.Slices.Count(s => s.Sample)).ToArray());
    }

    private static void RunDry(Scheduler scheduler, int limit = 100_000)
    {
        for (var i = 0; scheduler.HasWork; i++)
        {
            Assert.True(i < limit, "The scheduler makes no progress.");
            Turn(scheduler, out _);
        }
    }

    [Fact]
    public void A_prompt_is_read_in_chunks_and_the_last_chunk_samples()
    {
        var scheduler = new Scheduler(new BlockPool(100, 16), promptRows: 10, maxRunning: 8);
        var sequence = New("a", 25, 3);
        scheduler.Add(sequence);

        Turn(scheduler, out var first);
        Turn(scheduler, out var second);
        Turn(scheduler, out var third);
        Turn(scheduler, out var decode);

        Assert.Equal(new Slice(sequence, 0, 10, false), Assert.Single(first.Slices));
        Assert.Equal(new Slice(sequence, 10, 10, false), Assert.Single(second.Slices));
        Assert.Equal(new Slice(sequence, 20, 5, true), Assert.Single(third.Slices));
        Assert.Equal(new Slice(sequence, 25, 1, true), Assert.Single(decode.Slices));
    }

    [Fact]
    public void Decoding_rows_go_before_prompts_and_cost_them_nothing()
    {
        var scheduler = new Scheduler(new BlockPool(100, 16), promptRows: 8, maxRunning: 8);
        var (early, late) = (New("a", 4, 10), New("b", 40, 10));
        scheduler.Add(early);
        Turn(scheduler, out _);
        scheduler.Add(late);

        Turn(scheduler, out var step);

        Assert.Equal([new Slice(early, 4, 1, true), new Slice(late, 0, 8, false)], step.Slices);
    }

    [Fact]
    public void Rows_with_one_adapter_are_neighbours_and_base_rows_come_first()
    {
        var scheduler = new Scheduler(new BlockPool(100, 16), promptRows: 100, maxRunning: 100);
        foreach (var adapter in new[] { "b", null, "a", "b", null, "a" }) scheduler.Add(New("t", 3, 3, adapter));

        Turn(scheduler, out var step);

        Assert.Equal([null, null, "a", "a", "b", "b"], step.Slices.Select(s => s.Sequence.Adapter));
    }

    [Fact]
    public void When_blocks_run_out_the_last_admitted_waits_and_loses_no_token()
    {
        var pool = new BlockPool(4, 4);
        var scheduler = new Scheduler(pool, promptRows: 64, maxRunning: 8);
        var (first, second) = (New("a", 6, 9), New("a", 3, 9));
        scheduler.Add(first);
        scheduler.Add(second);

        RunDry(scheduler);

        Assert.True(scheduler.Preemptions > 0);
        Assert.Equal((9, 9), (first.Generated, second.Generated));
        Assert.Equal(pool.Total, pool.Free);
    }

    [Fact]
    public void A_cancelled_sequence_holds_nothing_after_the_next_step()
    {
        var pool = new BlockPool(16, 4);
        var scheduler = new Scheduler(pool, promptRows: 64, maxRunning: 1);
        var (running, waiting) = (New("a", 6, 90), New("a", 6, 9));
        scheduler.Add(running);
        scheduler.Add(waiting);
        Turn(scheduler, out _);

        running.Cancel();
        waiting.Cancel();
        var step = scheduler.Next();

        Assert.Empty(step.Slices);
        Assert.Equal([running, waiting], step.Dropped);
        Assert.Equal(pool.Total, pool.Free);
        Assert.False(scheduler.HasWork);
    }

    /// <summary>Two tenants with equal requests, one with ten times as many: each gets its half of the steps while both wait.</summary>
    [Fact]
    public void A_tenant_that_floods_waits_for_itself()
    {
        var scheduler = new Scheduler(new BlockPool(64, 16), promptRows: 32, maxRunning: 4);
        var flood = Enumerable.Range(0, 400).Select(_ => New("flood", 16, 16)).ToList();
        flood.ForEach(scheduler.Add);
        for (var i = 0; i < 50; i++) Turn(scheduler, out _);
        var quiet = Enumerable.Range(0, 40).Select(_ => New("quiet", 16, 16)).ToList();
        quiet.ForEach(scheduler.Add);

        var before = flood.Count(s => s.State == SequenceState.Finished);
        while (quiet.Any(s => s.State != SequenceState.Finished)) Turn(scheduler, out _);
        var meanwhile = flood.Count(s => s.State == SequenceState.Finished) - before;

        Assert.InRange(meanwhile, 32, 48);          // 40 of the quiet one's
    }

    [Fact]
    public void Leaving_and_coming_back_clears_no_debt()
    {
        var scheduler = new Scheduler(new BlockPool(64, 16), promptRows: 64, maxRunning: 1);
        scheduler.Add(New("greedy", 16, 200));
        while (scheduler.HasWork && scheduler.Running + scheduler.Waiting > 0)
        {
            Turn(scheduler, out _);
            if (scheduler.Waiting == 0 && scheduler.Running == 1) scheduler.Add(New("modest", 1, 1));
            if (scheduler.All.All(s => s.Tenant != "greedy")) break;
        }
        var (again, modest) = (New("greedy", 1, 1), New("modest", 1, 1));
        scheduler.Add(again);
        scheduler.Add(modest);

        while (modest.State != SequenceState.Finished && again.State != SequenceState.Finished) Turn(scheduler, out _);

        Assert.Equal(SequenceState.Finished, modest.State);
    }

    // ---- A step ahead

    [Fact]
    public void A_step_ahead_a_row_takes_what_the_step_before_draws()
    {
        var scheduler = new Scheduler(new BlockPool(100, 16), promptRows: 64, maxRunning: 8);
        var (one, two) = (New("a", 4, 3, "x"), New("a", 5, 9));
        scheduler.Add(one);
        scheduler.Add(two);

        var first = scheduler.Next();
        var second = scheduler.Next();

        Assert.Equal([new Slice(two, 0, 5, true), new Slice(one, 0, 4, true)], first.Slices);       // base rows first: two's is draw 0
        Assert.Equal([new Slice(two, 5, 1, true, Unknown: 0), new Slice(one, 4, 1, true, Unknown: 1)], second.Slices);
        Assert.Equal((2, 2), (one.InFlight, two.InFlight));
        Assert.Empty(scheduler.Complete(first, [7, 8]));
        Assert.Equal((8, 1), (one.Tokens[^1], one.InFlight));
    }

    [Fact]
    public void Who_ends_by_length_has_no_row_too_many()
    {
        var pool = new BlockPool(100, 16);
        var scheduler = new Scheduler(pool, promptRows: 64, maxRunning: 8);
        var sequence = New("a", 4, 2);
        scheduler.Add(sequence);
        var (first, second, third) = (scheduler.Next(), scheduler.Next(), scheduler.Next());

        Assert.Equal((1, 1, 0), (first.Slices.Count, second.Slices.Count, third.Slices.Count));
        Assert.Empty(scheduler.Complete(first, [7]));
        Assert.Equal([sequence], scheduler.Complete(second, [7]));
        Assert.Equal((FinishReason.Length, pool.Total), (sequence.Finish, pool.Free));
    }

    [Fact]
    public void The_row_of_one_that_ended_meanwhile_is_left_unread()
    {
        var pool = new BlockPool(100, 16);
        var scheduler = new Scheduler(pool, promptRows: 64, maxRunning: 8);
        Sequence ends = new("a", null, [1, 2, 3], 9, new HashSet<int> { 99 }), cancelled = New("b", 3, 9), stays = New("c", 3, 9);
        foreach (var sequence in new[] { ends, cancelled, stays }) scheduler.Add(sequence);
        var first = scheduler.Next();
        var second = scheduler.Next();

        Assert.Equal([ends], scheduler.Complete(first, [99, 5, 5]));
        cancelled.Cancel();
        var third = scheduler.Next();
        Assert.Equal([cancelled], third.Dropped);
        Assert.Empty(scheduler.Complete(second, [6, 6, 6]));

        Assert.Equal((1, 1, 2), (ends.Generated, cancelled.Generated, stays.Generated));
        Assert.Equal([stays], third.Slices.Select(s => s.Sequence));
        Assert.Equal(pool.Total - stays.Blocks.Count, pool.Free);
    }

    // ---- Readiness

    [Fact]
    public void Who_is_not_ready_keeps_its_place_and_holds_nobody_up()
    {
        var ready = new HashSet<Sequence>();
        var scheduler = new Scheduler(new BlockPool(100, 16), promptRows: 64, maxRunning: 2, ready.Contains);
        Sequence[] mine = [New("a", 3, 1), New("a", 3, 1), New("a", 3, 1)], theirs = [New("b", 3, 1)];
        foreach (var sequence in (Sequence[])[.. mine, .. theirs]) scheduler.Add(sequence);
        Assert.Equal([mine[0], theirs[0], mine[1], mine[2]], scheduler.Upcoming);
        Turn(scheduler, out var nobody);
        ready.UnionWith([mine[2], theirs[0]]);
        Turn(scheduler, out var others);
        ready.UnionWith(mine);
        Turn(scheduler, out var rest);

        Assert.Empty(nobody.Slices);
        Assert.Equal([mine[2], theirs[0]], others.Slices.Select(s => s.Sequence).OrderBy(s => s.Tenant));
        Assert.Equal([mine[0], mine[1]], rest.Slices.Select(s => s.Sequence));
    }

    /// <summary>
    /// Random arrivals, lengths, adapters, readiness and cancellations over small pools, with and without a step ahead: what must hold after
    /// every step.
    /// </summary>
    [Theory]
    [MemberData(nameof(Traces))]
    public void Invariants_hold_on_random_traces(int seed, int blocks, int blockSize, int promptRows, int maxRunning, int ahead)
    {
        var random = new Random(seed);
        var pool = new BlockPool(blocks, blockSize);
        var away = "a1";                                            // the adapter that is not on the device
        var scheduler = new Scheduler(pool, promptRows, maxRunning, s => s.Adapter != away);
        var all = new List<Sequence>();
        var underway = new Queue<Step>();

        for (var turn = 0; turn < 400 || scheduler.HasWork || underway.Count > 0; turn++)
        {
            Assert.True(turn < 50_000, "Somebody starves.");
            if (random.Next(10) == 0) away = $"a{random.Next(6)}";
            if (turn < 400 && random.Next(3) == 0)
            {
                var most = (blocks * blockSize) - 1;
                var prompt = random.Next(1, Math.Max(2, most / 2));
                var sequence = new Sequence($"t{random.Next(4)}", random.Next(3) == 0 ? null : $"a{random.Next(3)}", [.. Enumerable.Range(1, prompt)], random.Next(1, most - prompt + 1), new HashSet<int> { 29 });
                all.Add(sequence);
                scheduler.Add(sequence);
            }
            if (random.Next(20) == 0 && all.Count > 0) all[random.Next(all.Count)].Cancel();

            var known = all.ToDictionary(s => s, s => (s.Computed, s.Length, Drawn: s.DrawnAt, s.InFlight));
            var step = scheduler.Next();

            Assert.True(step.Slices.Where(s => s.First == 0 || s.Rows > 1).Sum(s => s.Rows) <= promptRows);
            Assert.True(scheduler.Running <= maxRunning);
            Assert.Equal(step.Slices.Count, step.Slices.Select(s => s.Sequence).Distinct().Count());
            Assert.All(step.Dropped, s => Assert.True(s.Cancelled && s.Blocks.Count == 0));
            var draws = 0;
            foreach (var (sequence, first, rows, sample, unknown) in step.Slices)
            {
                var before = known[sequence];
                Assert.True(first == before.Computed || first == 0);                            // 0: admitted, perhaps again
                Assert.Equal(first + rows, sequence.Computed);
                Assert.Equal(first + rows == before.Length, sample);
                Assert.Equal(sample && before.InFlight == 1 ? before.Drawn : -1, unknown);
                if (sample) Assert.Equal(draws++, sequence.DrawnAt);
                Assert.True(sequence.Blocks.Count * blockSize >= first + rows);
            }
            var owned = all.SelectMany(s => s.Blocks.Blocks.Take(s.Blocks.Count)).ToList();
            Assert.Equal(owned.Count, owned.Distinct().Count());
            Assert.Equal(pool.Total, pool.Free + owned.Count);
            if (scheduler.All.Any(s => s.State == SequenceState.Running && !s.Exhausted)) Assert.NotEmpty(step.Slices);

            if (step.Slices.Count > 0) underway.Enqueue(step);
            while (underway.Count > (step.Slices.Count > 0 ? ahead : 0))
            {
                var over = underway.Dequeue();
                scheduler.Complete(over, Enumerable.Repeat(random.Next(30), over.Slices.Count(s => s.Sample)).ToArray());
            }
        }

        Assert.Equal(pool.Total, pool.Free);
        Assert.All(all, s => Assert.Equal(SequenceState.Finished, s.State));
        Assert.All(all.Where(s => !s.Cancelled), s => Assert.NotNull(s.Finish));
    }

    public static TheoryData<int, int, int, int, int, int> Traces()
    {
        var data = new TheoryData<int, int, int, int, int, int>();
        for (var seed = 0; seed < 80; seed++)
        {
            var random = new Random(seed * 7919);
            data.Add(seed, random.Next(2, 40), random.Next(1, 9), random.Next(1, 40), random.Next(1, 12), seed % 2);
        }
        return data;
    }
}
