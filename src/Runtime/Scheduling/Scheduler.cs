using System.Diagnostics;

namespace TenantLora.Runtime.Scheduling;

/// <summary>Rows of one sequence in a step: positions First … First + Rows − 1.</summary>
/// <param name="Sample">Whether the last of them is the sequence's newest token, so that the next one is drawn from its logits.</param>
/// <param name="Unknown">Which draw of the step before gives that newest token, if it is still in flight; −1 when it is known.</param>
internal readonly record struct Slice(Sequence Sequence, int First, int Rows, bool Sample, int Unknown = -1);

/// <summary>Who runs in one step. Rows with one adapter are neighbours.</summary>
internal sealed record Step(IReadOnlyList<Slice> Slices, IReadOnlyList<Sequence> Dropped);

/// <summary>
/// Who runs next: continuous batching over a <see cref="BlockPool"/>. Pure bookkeeping, no device and no clock; the engine thread alone
/// uses it.
/// <list type="number">
/// <item>Every running sequence that has read its prompt decodes one row. If it needs a block and none is free, the sequence admitted
/// last gives its blocks up and waits, first in line, to be computed again; its answer so far is kept.</item>
/// <item>Beside them up to <paramref name="promptRows"/> rows read prompts, oldest first, in chunks: how long a step takes for those who
/// decode, whatever prompts come.</item>
/// <item>What is left of these rows admits: of the tenants that wait, the one served least (virtual token counters, S-LoRA's VTC, OSDI 2024),
/// when the pool holds its whole prompt and a block more for everyone who runs. The first admitted always runs on: nobody starves.</item>
/// </list>
/// <para>
/// A step may be scheduled while the one before it is under way. What that one stores and draws counts as done; a token it draws is in
/// flight. Who ends by length is known in advance; who ends otherwise has a row in the step under way that nobody will read. Steps run in
/// the order in which they are scheduled, so blocks are given away at once: whatever a step under way still writes there, the next
/// owner's rows overwrite before they read it.
/// </para>
/// </summary>
/// <param name="ready">Whether a sequence may be admitted now, asked for those that wait; null: always. Others are admitted past one that may not.</param>
internal sealed class Scheduler(BlockPool pool, int promptRows, int maxRunning, Func<Sequence, bool>? ready = null)
{
    /// <summary>A generated token costs a step of its own, a prompt token a share of one.</summary>
    private const double PromptWeight = 1, AnswerWeight = 2;

    private readonly List<Sequence> running = [];                        // in order of admission
    private readonly LinkedList<Sequence> preempted = [];                // in order of admission, before all others
    private readonly Dictionary<string, Tenant> tenants = new(StringComparer.Ordinal);

    public int Running => running.Count;

    public int Waiting => preempted.Count + tenants.Values.Sum(t => t.Waiting.Count);

    public bool HasWork => running.Count > 0 || preempted.Count > 0 || tenants.Values.Any(t => t.Waiting.Count > 0);

    public long Preemptions { get; private set; }

    public void Add(Sequence sequence)
    {
        Debug.Assert(pool.BlocksFor(sequence.Tokens.Count + 1) <= pool.Total, "Refused at the door.");
        var tenant = Enter(sequence.Tenant);
        tenant.Active++;
        tenant.Waiting.AddLast(sequence);
    }

    /// <summary>The next step. Its slices are empty when nobody can run before something else happens: steps under way end, an adapter arrives.</summary>
    public Step Next()
    {
        var dropped = DropCancelled();
        var slices = new List<Slice>();

        for (var i = 0; i < running.Count; i++)
        {
            var sequence = running[i];
            if (sequence.Exhausted || sequence.Computed < sequence.Length - 1) continue;   // waits for its end, or still reading
            while (!pool.TryExtend(sequence.Blocks, pool.BlocksFor(sequence.Length)))
            {
                var last = running[^1];
                Preempt(last);
                if (last == sequence) break;
            }
            if (sequence.State != SequenceState.Running) break;                         // it was the last one itself
            slices.Add(Rows(sequence, 1));
        }

        var rows = promptRows;
        foreach (var sequence in running)
        {
            if (rows == 0) break;
            if (!sequence.Exhausted && sequence.Computed < sequence.Length - 1) rows -= Read(sequence, rows, slices);
        }

        while (rows > 0 && running.Count < maxRunning && Candidate() is { } candidate && Admit(candidate))
            rows -= Read(candidate, rows, slices);

        Slice[] ordered = [.. slices.OrderBy(s => s.Sequence.Adapter, StringComparer.Ordinal)];   // base rows (null) first
        Advance(ordered);
        return new Step(ordered, dropped);
    }

    /// <summary>
    /// Takes in what the oldest step under way drew. <paramref name="tokens"/> has one entry for each slice that samples, in their order.
    /// Returns the sequences that ended; they hold nothing any more.
    /// </summary>
    public IReadOnlyList<Sequence> Complete(Step step, ReadOnlySpan<int> tokens)
    {
        var finished = new List<Sequence>();
        var next = 0;
        foreach (var slice in step.Slices)
        {
            if (!slice.Sample) continue;
            var (sequence, token) = (slice.Sequence, tokens[next++]);
            if (sequence.State == SequenceState.Finished) continue;                     // ended while the step was under way
            sequence.InFlight--;
            sequence.Tokens.Add(token);
            if (sequence.Finish is null) continue;
            Drop(sequence);
            finished.Add(sequence);
        }
        return finished;
    }

    /// <summary>Ends a sequence that failed, or all that are left when the engine stops.</summary>
    public void Drop(Sequence sequence)
    {
        if (sequence.State == SequenceState.Finished) return;
        pool.Return(sequence.Blocks);
        if (!running.Remove(sequence) && !preempted.Remove(sequence)) tenants[sequence.Tenant].Waiting.Remove(sequence);
        sequence.State = SequenceState.Finished;
        if (--tenants[sequence.Tenant].Active == 0) Forget();
    }

    /// <summary>Everyone still here. A view: copy it before dropping any.</summary>
    public IEnumerable<Sequence> All => running.Concat(preempted).Concat(tenants.Values.SelectMany(t => t.Waiting));

    /// <summary>Those in the batch. A view.</summary>
    public IEnumerable<Sequence> InBatch => running;

    /// <summary>Those who wait, about in the order in which they will be admitted: the first of each tenant, the second of each… A view.</summary>
    public IEnumerable<Sequence> Upcoming => preempted.Concat(
        tenants.Values.OrderBy(t => t.Served).SelectMany(t => t.Waiting.Select((sequence, place) => (sequence, place))).OrderBy(x => x.place).Select(x => x.sequence));

    private List<Sequence> DropCancelled()
    {
        List<Sequence> cancelled = [.. All.Where(s => s.Cancelled)];
        cancelled.ForEach(Drop);
        return cancelled;
    }

    private static int Read(Sequence sequence, int rows, List<Slice> slices)
    {
        var take = Math.Min(sequence.Length - sequence.Computed, rows);
        slices.Add(Rows(sequence, take));
        return take;
    }

    private static Slice Rows(Sequence sequence, int rows)
    {
        var sample = sequence.Computed + rows == sequence.Length;
        return new Slice(sequence, sequence.Computed, rows, sample, sample && sequence.InFlight > 0 ? sequence.DrawnAt : -1);
    }

    /// <summary>Counts what the step will store and draw as done.</summary>
    private void Advance(Slice[] slices)
    {
        var draws = 0;
        foreach (var (sequence, first, rows, sample, _) in slices)
        {
            sequence.Computed = first + rows;
            tenants[sequence.Tenant].Served += (rows * PromptWeight) + (sample ? AnswerWeight - PromptWeight : 0);
            if (!sample) continue;
            Debug.Assert(sequence.InFlight <= 1, "One step ahead: what is in flight is drawn by the step before.");
            sequence.InFlight++;
            sequence.DrawnAt = draws++;
        }
    }

    private Sequence? Candidate() =>
        preempted.FirstOrDefault(s => !s.Exhausted && Ready(s))
        ?? tenants.Values.Where(t => t.Waiting.Count > 0).OrderBy(t => t.Served).Select(t => t.Waiting.FirstOrDefault(Ready)).FirstOrDefault(s => s is not null);

    private bool Ready(Sequence sequence) => ready is null || ready(sequence);

    private bool Admit(Sequence sequence)
    {
        var blocks = pool.BlocksFor(sequence.Length);
        if (running.Count > 0 && pool.Free - blocks < running.Count) return false;
        if (!pool.TryExtend(sequence.Blocks, blocks)) return false;
        if (!preempted.Remove(sequence)) tenants[sequence.Tenant].Waiting.Remove(sequence);
        sequence.State = SequenceState.Running;
        running.Add(sequence);
        return true;
    }

    private void Preempt(Sequence sequence)
    {
        pool.Return(sequence.Blocks);
        sequence.Computed = 0;
        sequence.State = SequenceState.Waiting;
        running.Remove(sequence);
        preempted.AddFirst(sequence);
        Preemptions++;
    }

    /// <summary>A tenant that comes back is level with the least served of those active, at best: idling earns no credit, leaving clears no debt.</summary>
    private Tenant Enter(string name)
    {
        if (!tenants.TryGetValue(name, out var tenant)) tenants.Add(name, tenant = new Tenant());
        if (tenant.Active == 0 && LeastServed() is { } least) tenant.Served = Math.Max(tenant.Served, least);
        return tenant;
    }

    private double? LeastServed() => tenants.Values.Where(t => t.Active > 0).Min(t => (double?)t.Served);

    /// <summary>Tenants that are gone and owe nothing are not remembered.</summary>
    private void Forget()
    {
        var least = LeastServed();
        foreach (var (name, tenant) in tenants)
            if (tenant.Active == 0 && (least is null || tenant.Served <= least)) tenants.Remove(name);
    }

    private sealed class Tenant
    {
        public double Served { get; set; }

        /// <summary>Its sequences that wait, run or were preempted.</summary>
        public int Active { get; set; }

        public LinkedList<Sequence> Waiting { get; } = [];
    }
}
