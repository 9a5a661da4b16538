using System.Diagnostics;
using TenantLora.Runtime.Backends;

namespace TenantLora.Bench;

/// <summary>A step as the engine's thread saw it, in ticks of <see cref="Stopwatch"/>.</summary>
/// <param name="Rows">Of the batch.</param>
/// <param name="Draws">Rows that drew a token; all of them in a step that only decodes.</param>
/// <param name="Ended">When its draws were in the host's hands.</param>
/// <param name="Time">Since the step before ended or, where that was earlier, since this one was launched: what a reader waits for a token.</param>
/// <param name="Host">The engine's own work since it last came back from the backend: scheduling, batch, handing tokens out.</param>
/// <param name="Launch">Inside <see cref="IBackend.Run"/>.</param>
/// <param name="Wait">Inside <see cref="IBackend.Collect"/>; where it comes near 0 the device waits for the host.</param>
/// <param name="Allocated">Bytes by the engine's thread, backend and all, from one collected step to the next.</param>
internal readonly record struct ProbedStep(int Rows, int Draws, long Ended, long Time, long Host, long Launch, long Wait, long Allocated);

/// <summary>
/// A backend that does what the one inside does and writes down each step's times. It can remember the steps' batches too, so that one is
/// run again without the engine: the step's own time on the same memory, weights and adapters.
/// </summary>
internal sealed class StepProbe(IBackend inner) : ForwardingBackend(inner)
{
    private readonly Queue<(int Rows, int Draws, long Launched)> underway = new();
    private readonly Lock gate = new();
    private List<ProbedStep> steps = [];
    private List<Batch> batches = [];
    private Func<StepForm, DeviceTensor?> forward = _ => null;
    private long left, host, launch, ended, allocated;          // left: when the engine last came back from here

    /// <summary>To the byte, where the engine's option counts megabytes.</summary>
    public long? AdapterBytes { get; init; }

    /// <summary>Whether the steps' batches are remembered.</summary>
    public bool KeepsBatches { get; set; }

    /// <summary>The plan that the engine asked for.</summary>
    public MemoryPlan? Planned { get; private set; }

    /// <summary>What was written down since the last call, oldest first.</summary>
    public (List<ProbedStep> Steps, List<Batch> Batches) Take()
    {
        lock (gate)
        {
            var taken = (steps, batches);
            (steps, batches) = ([], []);
            return taken;
        }
    }

    /// <summary>
    /// Milliseconds a step takes when nothing but the backend runs: the batch again and again, one launched while another runs. Only while the engine
    /// is idle.
    /// </summary>
    public double TimeSteps(Batch batch, int count)
    {
        for (var i = 0; i < 3; i++)
        {
            Inner.Run(batch, forward);
            Inner.Collect();
        }
        var windows = new double[5];
        for (var w = 0; w < windows.Length; w++)
        {
            if (StepsAhead > 0) Inner.Run(batch, forward);
            var begun = Stopwatch.GetTimestamp();
            for (var i = 0; i < count; i++)
            {
                Inner.Run(batch, forward);
                Inner.Collect();
            }
            windows[w] = Stopwatch.GetElapsedTime(begun).TotalMilliseconds / count;
            if (StepsAhead > 0) Inner.Collect();
        }
        return windows.Order().ElementAt(windows.Length / 2);
    }

    public override DeviceTensor? Run(Batch batch, Func<StepForm, DeviceTensor?> forward)
    {
        var begun = Stopwatch.GetTimestamp();
        if (underway.Count > 0 || StepsAhead == 0) host += begun - left;       // otherwise it may have slept
        var result = Inner.Run(batch, forward);
        left = Stopwatch.GetTimestamp();
        launch += left - begun;
        underway.Enqueue((batch.Rows, batch.Draws.Length, begun));
        this.forward = forward;
        if (KeepsBatches) lock (gate) batches.Add(batch);
        return result;
    }

    public override Drawn[] Collect()
    {
        var begun = Stopwatch.GetTimestamp();
        host += begun - left;
        var drawn = Inner.Collect();
        left = Stopwatch.GetTimestamp();
        var (rows, draws, launched) = underway.Dequeue();
        var now = GC.GetAllocatedBytesForCurrentThread();
        lock (gate) steps.Add(new ProbedStep(rows, draws, left, left - Math.Max(ended, launched), host, launch, left - begun, now - allocated));
        (host, launch, ended, allocated) = (0, 0, left, now);
        return drawn;
    }

    public override MemoryPlan Plan(AttentionShape shape, MemoryWish wanted) => Planned = Inner.Plan(shape, wanted with { AdapterBytes = AdapterBytes ?? wanted.AdapterBytes });
}
