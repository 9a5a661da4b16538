using System.Diagnostics;
using System.Globalization;
using System.Numerics;

namespace TenantLora.Runtime.Backends.Cuda;

/// <summary>
/// The verbs on an NVIDIA GPU. Weights, keys and values are bf16, sums and the residual stream fp32. A step that only decodes is recorded once
/// for its number of rows (rounded up) as a CUDA graph and replayed from then on; who its rows and adapters are stands in arrays that never move.
/// <para>
/// Up to 128 rows a product is <c>chain.cu</c>'s, where a row's bits do not depend on its neighbours; above it is cuBLASLt's, where they do not
/// depend on them within a power of two of rows.
/// </para>
/// </summary>
internal sealed unsafe class CudaBackend : IBackend
{
    /// <summary>Most rows of a product that streams its weights.</summary>
    private const int FewRows = 128;

    /// <summary>As in chain.cu, finish.cuh, lora.cuh and lora_prefill.cu.</summary>
    private const int CrewThreads = 256, WeightStages = 12, RowStages = 4, MmaStages = 8, TileRows = 128, CounterStride = 32, RunColumns = 128, ShrinkColumns = 512;

    /// <summary>Of what adapters add to a tile: room for z, and of the tile.</summary>
    private const int TileZBytes = 12288, TileLineBytes = StepArrays.AdapterTileRows * sizeof(float);

    private const int MostParts = 16, MostHeadDim = 256, MostRank = 512;
    private static readonly int[] Buckets = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128];

    private readonly CudaDevice device;
    private readonly KernelLibrary kernels;
    private readonly MatrixLibrary matrices;
    private readonly CudaArena arena;
    private readonly ulong matrixWorkspace;
    private readonly int maxRank, maxSequences, stepRows;
    private readonly ulong shortZ, wholeZ, drawn, results, tops, shrinkCounters;
    private readonly List<(int Rows, int Cols)> uploaded = [];
    private readonly Dictionary<(int Rows, int Rank, bool Draws), Recording> recordings = [];
    private readonly Queue<Ticket> tickets = new();
    private readonly Pinned[] resultRooms = new Pinned[3];
    private readonly Pinned[] ruleRooms = new Pinned[3];
    private readonly nint[] events = new nint[3];
    private Pinned staging;
    private CudaAdapters? adapters;
    private StepArrays? arrays;
    private readonly List<PendingLinear> chain = [];
    private CudaScratch? lacking;                   // nobody has read it yet, and its adapters' part is in the z of many rows
    private (CudaKvCache? Of, int Rows, ulong At) turns;
    private (ulong At, long Bytes) splits;
    private ulong rules, pieces, pieceCounters, counters;
    private long pieceBytes, pieceCounterBytes, counterBytes, countersUsed, countersMost;
    private long ruleBytes;
    private DrawRule[] draws = [];
    private bool anyAdapters;
    private int highestRank, zStride;
    private int turn;

    /// <param name="device">Owned from here on.</param>
    /// <param name="maxRank">Highest rank of an adapter.</param>
    /// <param name="maxSequences">Rows that decode at most.</param>
    /// <param name="stepRows">Rows of a step at most.</param>
    public CudaBackend(CudaDevice device, int maxRank, int maxSequences, int stepRows)
    {
        this.device = device;
        this.maxRank = Math.Clamp((maxRank + 3) / 4 * 4, 16, MostRank);
        this.maxSequences = maxSequences;
        this.stepRows = Math.Max(stepRows, FewRows);
        kernels = new KernelLibrary(device);
        arena = new CudaArena(device);
        matrixWorkspace = device.Allocate(MatrixLibrary.WorkspaceBytes);
        matrices = new MatrixLibrary(matrixWorkspace);
        shortZ = device.Allocate(3L * this.stepRows * AdapterPacking.MostSlices * this.maxRank * sizeof(float));
        wholeZ = device.Allocate(3L * this.stepRows * this.maxRank * sizeof(float));
        drawn = device.Allocate(MostDraws * 4L);
        results = device.Allocate(ResultRoom);
        tops = device.Allocate(MostDraws * (long)CudaDraws.MostReported * sizeof(CudaDraws.Top));
        shrinkCounters = device.Allocate(this.stepRows * 4L);
        Driver.Check(Driver.cuMemsetD8Async(shrinkCounters, 0, (nuint)(this.stepRows * 4), device.Stream), "cuMemsetD8");
        for (var i = 0; i < events.Length; i++)
        {
            resultRooms[i] = device.AllocatePinned(ResultRoom + (MostDraws * (long)CudaDraws.MostReported * sizeof(CudaDraws.Top)));
            Driver.Check(Driver.cuEventCreate(out events[i], 2), "cuEventCreate");          // 2: no timing
        }
        Name = string.Create(CultureInfo.InvariantCulture, $"cuda:{device.Ordinal}, {device.Model}, {device.Memory().Total / 1e9:F0} GB");
    }

    public string Name { get; }

    public int StepsAhead => 1;

    /// <summary>Enough for cuBLAS to run near its best.</summary>
    public const int GoodStepTokens = 2048;

    public int PreferredStepTokens => GoodStepTokens;

    public int MaxAdapterRank => MostRank;

    public int MaxHeadDim => MostHeadDim;

    public CudaDevice Device => device;

    /// <summary>Whether steps of one form are recorded and replayed; off, every verb is launched by itself, as a profiler likes it.</summary>
    public bool Records { get; set; } = true;

    // ---- Memory

    public DeviceTensor Upload(params ReadOnlySpan<HostTensor> parts)
    {
        device.Enter();
        var rows = 0;
        var values = 0L;
        foreach (var part in parts)
        {
            rows += part.Rows;
            values += (long)part.Rows * part.Cols;
        }
        var isVector = rows == parts.Length;
        var isMatrix = !isVector || parts.Length == 1;
        ulong vector = 0, matrix = 0, partsOfTile = 0;
        var (cols, stride, blocks, most) = (parts[0].Cols, (parts[0].Cols + 7) / 8 * 8, 0, 1);
        var map = default(TensorMap);
        if (isVector)
        {
            var widened = new float[values];
            var next = 0;
            foreach (var part in parts)
                for (var i = 0; i < part.Cols; i++) widened[next++] = Bf16.Widen(part, i);
            vector = device.Allocate(values * sizeof(float));
            fixed (float* from = widened) Send(vector, (byte*)from, values * sizeof(float));
        }
        if (isMatrix)
        {
            matrix = device.Allocate((long)rows * stride * 2);
            var to = matrix;
            foreach (var part in parts)
            {
                SendRows(part, to, stride);
                to += (ulong)((long)part.Rows * stride * 2);
            }
            (blocks, var table) = Shares(rows, cols, device.Multiprocessors);
            most = table.Max();
            partsOfTile = device.Allocate(table.Length);
            fixed (byte* from = table) Send(partsOfTile, from, table.Length);
            if (device.IsHopper) map = MapOf(matrix, rows, cols, stride, TileRows);
            uploaded.Add((rows, cols));
        }
        return new CudaWeights(device, parts[0].Type, rows, isVector ? (int)values : cols) { Matrix = matrix, Vector = vector, Stride = stride, Blocks = blocks, PartsOfTile = partsOfTile, MostParts = most, Map = map };
    }

    /// <summary>
    /// Among how many blocks a matrix's bytes are shared out, and into how many parts that cuts each tile: whole shares of a tile where nearly all
    /// multiprocessors get one, equal shares of all bytes otherwise. chain.cu cuts by the same rule.
    /// </summary>
    internal static (int Blocks, byte[] Parts) Shares(int rows, int cols, int processors)
    {
        var (tiles, steps) = ((rows + TileRows - 1) / TileRows, (cols + 63) / 64);
        var each = processors / tiles;
        var blocks = each >= 1 && tiles * each >= 0.93 * processors ? tiles * each : processors;
        var units = (long)tiles * steps;
        blocks = (int)Math.Min(Math.Min(blocks, units), (long)tiles * MostParts);
        var parts = new byte[tiles];
        for (var t = 0; t < tiles; t++)
        {
            var first = ((((long)t * steps) + 1) * blocks - 1) / units;
            var last = ((((long)t * steps) + steps) * blocks - 1) / units;
            parts[t] = (byte)(last - first + 1);
        }
        return (blocks, parts);
    }

    public MemoryPlan Plan(AttentionShape shape, MemoryWish wanted)
    {
        var (free, total) = device.Memory();
        var rows = Math.Max(wanted.StepRows, FewRows);
        // What a step takes, at most: every linear's output and input once, in few rows and parts or many rows whole with what adapters add to them.
        var distinct = uploaded.GroupBy(m => m).Where(same => same.Count() >= shape.Layers && same.Key.Rows > 1).Select(same => same.Key).ToArray();
        var vocabulary = uploaded.Except(distinct).Select(m => m.Rows).DefaultIfEmpty(0).Max();
        var perRow = distinct.Sum(m => (8L * m.Rows) + (2L * m.Cols)) + (24L * (uploaded.Count == 0 ? 0 : uploaded.Min(m => m.Cols)));
        var logits = (long)Math.Min(maxSequences, rows) * vocabulary * 4;
        var workspace = (rows * perRow) + (FewRows * 4L * distinct.Sum(m => 6L * m.Rows)) + (4 * logits) + (32 << 20);
        // The sums of a long segment's adapter, of the widest input or of three projections of another; a segment of 17 rows takes a tile of 64.
        int Pieces(int cols) => (cols + ShrinkColumns - 1) / ShrinkColumns;
        if (distinct.Length > 0)
            workspace += ((rows / StepArrays.ShortRows) + 1L) * StepArrays.AdapterTileRows * Math.Max(Pieces(distinct.Max(m => m.Cols)), 3 * Pieces(distinct.Min(m => m.Cols))) * maxRank * sizeof(float);
        workspace += (rows + (wanted.CacheTokens > 0 ? wanted.CacheTokens : free / Math.Max(CudaKvCache.BlockBytes(shape, 256), 1))) / StepArrays.AttendPiece * shape.Heads * 4L * (CudaKvCache.DimStrideOf(shape) + 2);
        var table = CudaAdapters.TableBytes(shape.Layers);
        var reserve = Math.Max(total / 50, 256L << 20);                  // graphs, modules, other programs' small change
        var left = free - workspace - table - reserve;
        var blockBytes = CudaKvCache.BlockBytes(shape, wanted.BlockSize);
        var adapterBytes = wanted.AdapterBytes > 0 ? wanted.AdapterBytes : Math.Max(0, left / 5);
        var mostTokens = Math.Max(wanted.ContextLength, 1L) * Math.Max(maxSequences, 8);
        var blocks = wanted.CacheTokens > 0 ? wanted.CacheTokens / wanted.BlockSize : Math.Min((left - adapterBytes) / blockBytes, mostTokens / wanted.BlockSize);
        blocks = Math.Min(blocks, int.MaxValue / 2 / Math.Max(wanted.BlockSize, 1));
        string Gigabytes(long bytes) => string.Create(CultureInfo.InvariantCulture, $"{bytes / 1e9:F2} GB");
        var description = string.Create(CultureInfo.InvariantCulture,
            $"of {Gigabytes(total)}, {Gigabytes(total - free)} hold weights and what others use; {Gigabytes(Math.Max(blocks, 0) * blockBytes)} for {Math.Max(blocks, 0) * wanted.BlockSize} tokens of keys and values, {Gigabytes(adapterBytes)} for adapters, {Gigabytes(workspace + table)} for steps, {Gigabytes(reserve)} in reserve");
        if (blocks < 1 || (blocks * blockBytes) + adapterBytes > left)
            throw new OutOfDeviceMemoryException($"The GPU's memory does not suffice: {description}. Serve a smaller model, fewer cache tokens or less adapter memory, or use a larger GPU.");
        arena.Reserve(workspace);
        MakeAdapters(shape.Layers, Math.Max(adapterBytes, 1 << 20));
        return new MemoryPlan((int)blocks, adapterBytes, description);
    }

    public KvCache CreateKvCache(int blocks, int blockSize, AttentionShape shape)
    {
        if (shape.HeadDim > MostHeadDim) throw new OutOfDeviceMemoryException($"Heads of {shape.HeadDim} dimensions are not served on CUDA: at most {MostHeadDim}.");
        var cache = new CudaKvCache(device, blocks, blockSize, shape);
        var frequencies = shape.InverseFrequencies;
        fixed (float* from = frequencies) Send(cache.Frequencies, (byte*)from, frequencies.Length * sizeof(float));
        Arrays(blocks, blockSize);
        return cache;
    }

    public long SizeOf(LoraModules modules) => CudaAdapters.SizeOf(modules);

    public DeviceAdapter LoadAdapter(LoraModules modules)
    {
        if (adapters is null) MakeAdapters(modules.Layers, 256 << 20);
        return adapters!.Load(modules);
    }

    private void MakeAdapters(int layers, long bytes) => adapters = new CudaAdapters(device, layers, bytes, maxRank);

    // ---- Steps

    public DeviceTensor? Run(Batch batch, Func<StepForm, DeviceTensor?> forward)
    {
        device.Enter();
        var decodes = Records && batch.Rows <= FewRows && batch.LogitRows.Length == batch.Rows && Array.TrueForAll(batch.Spans, s => s.Rows == 1);
        DeviceTensor? result;
        if (!decodes)
        {
            Begin(batch);
            result = Whole(forward, new StepForm(batch.Rows, batch.LogitRows.Length));
        }
        else
        {
            var rows = Buckets.First(b => b >= batch.Rows);
            Send(batch);
            var key = (rows, anyAdapters ? zStride : 0, batch.Draws.Length > 0);
            if (recordings.TryGetValue(key, out var recording) && recording.Graph != 0)
            {
                Driver.Check(Driver.cuGraphLaunch(recording.Graph, device.Stream), "cuGraphLaunch");
                arena.Mark = recording.End;
                result = recording.Result;
            }
            else if (recording is null)
            {
                // The first step of a form runs as it is: it loads kernels and grows memory, which a recording must not.
                result = Whole(forward, new StepForm(rows, rows));
                recordings.Add(key, new Recording(0, null, default));
            }
            else
            {
                result = Record(rows, forward, out var graph);
                if (graph != 0)
                {
                    recordings[key] = new Recording(graph, result, arena.Mark);
                    Driver.Check(Driver.cuGraphLaunch(graph, device.Stream), "cuGraphLaunch");
                }
                else
                {
                    Restart();
                    result = Whole(forward, new StepForm(rows, rows));         // as it is, and another time perhaps
                }
            }
        }
        Fetch();
        return result;
    }

    /// <summary>The verbs, with nothing of them left to be launched.</summary>
    private DeviceTensor? Whole(Func<StepForm, DeviceTensor?> forward, StepForm form)
    {
        var result = forward(form);
        if (result is CudaScratch { Pending: not null } made) Launch(made);
        Flush();
        return result;
    }

    /// <summary>The verbs as a graph; 0 where something else on the GPU broke the recording.</summary>
    private DeviceTensor? Record(int rows, Func<StepForm, DeviceTensor?> forward, out nint exec)
    {
        exec = 0;
        lock (CudaDevice.Recording)
        {
            Driver.Check(Driver.cuStreamBeginCapture_v2(device.Stream, 2), "cuStreamBeginCapture");         // 2: other threads may load meanwhile
            DeviceTensor? result = null;
            CudaException? broken = null;
            try
            {
                result = Whole(forward, new StepForm(rows, rows));
            }
            catch (CudaException error)
            {
                broken = error;
            }
            var ended = Driver.cuStreamEndCapture(device.Stream, out var graph);
            if (broken is not null || ended != Driver.Success) return null;
            if (Driver.cuGraphInstantiateWithFlags(out var made, graph, 0) == Driver.Success) exec = made;
            _ = Driver.cuGraphDestroy(graph);
            return result;
        }
    }

    /// <summary>Starts bringing the draws' results to the host, and marks the step's end.</summary>
    private void Fetch()
    {
        var drawRules = draws;
        draws = [];
        var reports = Array.Exists(drawRules, r => r.LogProbabilities > 0);
        var room = resultRooms[turn];
        var bytes = drawRules.Length * sizeof(CudaDraws.Result);
        if (bytes > 0)
            Driver.Check(Driver.cuMemcpyDtoHAsync_v2(room.Host, results, (nuint)bytes, device.Stream), "fetching draws");
        if (reports)
            Driver.Check(Driver.cuMemcpyDtoHAsync_v2(room.Host + ResultRoom, tops, (nuint)(drawRules.Length * CudaDraws.MostReported * sizeof(CudaDraws.Top)), device.Stream), "fetching log-probabilities");
        Driver.Check(Driver.cuEventRecord(events[turn], device.Stream), "cuEventRecord");
        tickets.Enqueue(new Ticket(turn, drawRules.Length));
        turn = (turn + 1) % events.Length;
    }

    private int MostDraws => Math.Max(maxSequences, stepRows);

    /// <summary>Bytes of the draws' results; what is reported beside them lies behind.</summary>
    private int ResultRoom => MostDraws * sizeof(CudaDraws.Result);

    public Drawn[] Collect()
    {
        device.Enter();
        if (draws.Length > 0) Fetch();              // the verbs were called one by one
        if (!tickets.TryDequeue(out var ticket)) return [];
        // Also where nothing was drawn: the step's pinned arrays and its adapters are in use until it is over.
        Driver.Check(Driver.cuEventSynchronize(events[ticket.Room]), "a step");
        var host = resultRooms[ticket.Room].Host;
        return CudaDraws.Read(new ReadOnlySpan<CudaDraws.Result>(host, ticket.Rows), new ReadOnlySpan<CudaDraws.Top>(host + ResultRoom, ticket.Rows * CudaDraws.MostReported));
    }

    public void Begin(Batch batch)
    {
        device.Enter();
        Send(batch);
    }

    /// <summary>Nothing of the verbs so far counts: they are called from the beginning.</summary>
    private void Restart()
    {
        arena.Reset();
        chain.Clear();
        lacking = null;
        turns = default;
        splits = default;
        countersUsed = 0;
    }

    private void Send(Batch batch)
    {
        Restart();
        draws = batch.Draws;
        anyAdapters = false;
        highestRank = 0;
        foreach (var segment in batch.Segments)
            if (segment.Adapter is CudaAdapter adapter)
            {
                anyAdapters = true;
                highestRank = Math.Max(highestRank, adapter.MaxRank);
            }
        if (countersMost > 0) Driver.Check(Driver.cuMemsetD8Async(counters, 0, (nuint)countersMost, device.Stream), "cuMemsetD8");
        zStride = Math.Min(maxRank, Math.Max(16, (int)BitOperations.RoundUpToPowerOf2((uint)highestRank)));
        Arrays(0, 1).Send(batch, allShort: batch.Rows <= FewRows);
        if (batch.Draws.Length == 0) return;
        var bytes = CudaDraws.Bytes(batch.Draws);
        if (bytes > ruleBytes)
        {
            Grow(ref rules, ref ruleBytes, Math.Max(bytes * 2, 1 << 20));
            foreach (var room in ruleRooms) if (room.Bytes > 0) device.FreePinned(room);
            for (var i = 0; i < ruleRooms.Length; i++) ruleRooms[i] = device.AllocatePinned(ruleBytes);
        }
        CudaDraws.Pack(batch.Draws, new Span<byte>(ruleRooms[turn].Host, (int)ruleBytes));
        Driver.Check(Driver.cuMemcpyHtoDAsync_v2(rules, ruleRooms[turn].Host, (nuint)bytes, device.Stream), "sending draw rules");
    }

    public DeviceTensor Scratch(int rows, int cols, Precision precision = Precision.Full) => new CudaScratch(arena, rows, cols, precision);

    // ---- Verbs

    public void Embed(DeviceTensor table, DeviceTensor x)
    {
        var (from, to) = ((CudaWeights)table, (CudaScratch)x);
        var (step, tokens, drawnTokens, pointer, stride, cols, into, intoStride) = (arrays!.Header, arrays.TokensAt, drawn, from.Matrix, from.Stride, to.Cols, to.Written(), to.Stride);
        var arguments = stackalloc void*[] { &step, &tokens, &drawnTokens, &pointer, &stride, &cols, &into, &intoStride };
        Launch(kernels.Get(to.Precision == Precision.Full ? "embedFull" : "embedOperand"), to.Rows, 1, 256, 0, arguments);
    }

    public void RmsNorm(DeviceTensor x, DeviceTensor weight, float epsilon, DeviceTensor y) => Norm(null, (CudaScratch)x, (CudaWeights)weight, epsilon, (CudaScratch)y);

    public void AddRmsNorm(DeviceTensor delta, DeviceTensor x, DeviceTensor weight, float epsilon, DeviceTensor y) =>
        Norm((CudaScratch)delta, (CudaScratch)x, (CudaWeights)weight, epsilon, (CudaScratch)y);

    private void Norm(CudaScratch? delta, CudaScratch x, CudaWeights weight, float epsilon, CudaScratch y)
    {
        var finish = new Finish
        {
            Kind = FinishKind.Residual,
            Columns = x.Cols,
            X = x.Pointer,
            XStride = x.Stride,
            Out = y.Precision == Precision.Operand ? y.Written() : 0,
            OutStride = y.Stride,
            Squares = y.Squares,
            Weight = weight.Vector,
        };
        y.Norm = new Normed(x, weight, epsilon);
        FinishSums(delta, x, finish);
    }

    /// <summary>What comes next of a linear's sums: in the chain with it, or as a kernel of its own. <paramref name="rows"/> says for how many rows.</summary>
    private void FinishSums(CudaScratch? of, CudaScratch rows, Finish finish)
    {
        if (of?.Pending is { } linear)
        {
            of.Pending = null;
            Add(linear, finish);
            return;
        }
        var sums = of is null ? default : SumsOf(of);
        var (count, adapterOf) = (RowsOf(rows), arrays!.AdapterOfAt);
        // As runsOf in finish.cuh.
        var runs = finish.Kind == FinishKind.Rope ? finish.Heads + (2 * finish.Cache.KvHeads) : CudaScratch.TilesOf(finish.Columns);
        if (of?.Site is { Parts: > 0 } site)
        {
            if (of == lacking) lacking = null;
            var tiles = arrays.AdapterTilesAt;
            var shared = (2 * TileZBytes) + (TileLineBytes * ((finish.Kind == FinishKind.Rope ? (finish.Cache.HeadDim + 31) / 32 * 32 : 2 * RunColumns) + 8));
            // Two blocks stay on a multiprocessor, and share the runs equally.
            var each = ((arrays.Last.AdapterTiles * runs) + (2 * device.Multiprocessors) - 1) / (2 * device.Multiprocessors);
            var adapted = stackalloc void*[] { &tiles, &adapterOf, &sums, &finish, &site, &each };
            Launch(kernels.Get($"adapted{finish.Kind}", shared), arrays.Last.AdapterTiles * ((runs + each - 1) / each), 1, 256, shared, adapted);
            return;
        }
        var arguments = stackalloc void*[] { &count, &adapterOf, &sums, &finish };
        var name = finish.Kind switch { FinishKind.Residual => "residual", FinishKind.Rope => "rope", FinishKind.SwiGlu => "swiGlu", _ => "plain" };
        Launch(kernels.Get(name), ((runs * ((rows.Rows + 1) / 2)) + 7) / 8, 1, 256, 0, arguments);
    }

    /// <summary>What a linear left in <paramref name="y"/>, or y itself.</summary>
    private static Sums SumsOf(CudaScratch y) => y.Sums.Y != 0 ? y.Sums : new Sums { Y = y.Pointer, Stride = y.Stride };

    /// <summary>A linear alone, whose sums are read later.</summary>
    private void Launch(CudaScratch y)
    {
        var linear = y.Pending!;
        y.Pending = null;
        Add(linear, default);
    }

    /// <summary>Where its number of rows stands: the step's, or that of the step's logits.</summary>
    private ulong RowsOf(CudaScratch x) => arrays!.Header + (ulong)(x.OfLogitRows ? sizeof(int) : 0);

    public void Linear(DeviceTensor x, DeviceTensor weight, DeviceTensor? bias, LoraSite? site, DeviceTensor y)
    {
        var (from, w, to) = ((CudaScratch)x, (CudaWeights)weight, (CudaScratch)y);
        if (from.Precision != Precision.Operand) throw new ArgumentException("A Linear multiplies operands.");
        var where = SiteOf(site, to.Cols);
        var sums = new Sums { Stride = to.Stride, ExtraStride = to.Stride, Part = (long)to.Rows * to.Stride, Inputs = from.Cols, Bias = bias is null ? 0 : ((CudaWeights)bias).Vector };
        if (from.Norm is { } norm) (sums.Squares, sums.Epsilon) = (from.Squares, norm.Epsilon);
        var whole = default(Site);
        if (to.Rows > FewRows)
        {
            var shorts = where.Parts > 0 && arrays!.Last.ShortRows > 0;
            sums.Y = to.TakeSums(shorts ? 2 : 1);
            if (shorts) sums.Extra = sums.Y + (ulong)(sums.Part * sizeof(float));
            if (where.Parts > 0)
            {
                if (lacking is { } other && other != to)
                {
                    FinishValues(other);
                    (other.Sums, other.Site) = (default, default);
                }
                lacking = to;
                Adapt(from, where, sums.Extra, to.Stride);
            }
            Flush();
            matrices.Multiply(from.Pointer, from.Stride, w.Matrix, w.Stride, sums.Y, to.Stride, to.Rows, w.Rows, w.Cols, device.Stream);
            whole = where;
        }
        else
        {
            // What the adapters add lies behind the parts.
            (sums.Y, sums.Parts) = (to.TakeSums(w.MostParts + (where.Parts > 0 ? 1 : 0)), w.PartsOfTile);
            if (where.Parts > 0) sums.Extra = sums.Y + (ulong)(w.MostParts * sums.Part * sizeof(float));
            to.Pending = new PendingLinear(new Op
            {
                W = w.Matrix,
                X = from.Pointer,
                Outputs = w.Rows,
                Inputs = w.Cols,
                WStride = w.Stride,
                XStride = from.Stride,
                Blocks = w.Blocks,
                Rows = RowsOf(from),
                Sums = sums,
                Site = where,
            }, w, from);
        }
        (to.Norm, to.Sums, to.Site) = (null, sums, whole);
    }

    /// <summary>Puts a linear and what becomes of it behind those that wait, and launches them where no more fit.</summary>
    private void Add(PendingLinear linear, Finish finish)
    {
        var op = linear.Op;
        if (chain.Count > 0 && ColumnTiles(chain[0].X.Rows) != ColumnTiles(linear.X.Rows)) Flush();
        var tiles = finish.Kind == FinishKind.Nothing ? 0 : (op.Outputs + TileRows - 1) / TileRows;
        op.Counters = Counters((3 + tiles) * CounterStride);
        if (tiles > 0) op.Tiles = op.Counters + (3 * CounterStride * sizeof(int));
        op.Finish = finish;
        chain.Add(linear with { Op = op });
        if (chain.Count == Chain.Most || finish.Kind == FinishKind.Nothing) Flush();
    }

    /// <summary>So many counters, which are 0 when the step begins.</summary>
    private ulong Counters(int count)
    {
        var bytes = (count * 4L + 127) & -128;
        if (countersUsed + bytes > counterBytes)
        {
            Flush();
            Grow(ref counters, ref counterBytes, Math.Max(16 << 20, 2 * (countersUsed + bytes)));
            countersUsed = 0;
        }
        var at = counters + (ulong)countersUsed;
        countersUsed += bytes;
        countersMost = Math.Max(countersMost, countersUsed);
        return at;
    }

    /// <summary>A warp's room for adapters: two entries of the table, a z, and a ring as long as the device affords.</summary>
    private static int RoomBytes(int sharedBytes) => 160 + 2048 + (2048 * (sharedBytes >= 200_000 ? 4 : sharedBytes >= 150_000 ? 2 : 1));

    /// <summary>A chain's stages, of weights and elsewhere than on Hopper of rows with them, and the shared memory that it takes; as in chain.cu.</summary>
    internal static (int Stages, int Bytes) StagesOf(int sharedBytes, bool hopper, int tiles, bool adapted)
    {
        var (weightStage, rowStage, rooms) = (TileRows * 128, 8 * tiles * 128, CrewThreads / 32 * RoomBytes(sharedBytes));
        var (header, stage, most) = hopper
            ? (2048 + (adapted ? (rooms + 1023) & -1024 : 0) + (RowStages * rowStage), weightStage, WeightStages)
            : (1088 + ((rooms + 63) & -64), weightStage + rowStage, MmaStages);
        var stages = Math.Min(most, (sharedBytes - header) / stage);
        return (stages, header + (stages * stage));
    }

    /// <summary>Tiles of 8 rows of x that a product is compiled for.</summary>
    private static int ColumnTiles(int rows) => rows <= 8 ? 1 : rows <= 16 ? 2 : rows <= 32 ? 4 : rows <= 64 ? 8 : 16;

    /// <summary>Launches the linears that wait, as one kernel.</summary>
    private void Flush()
    {
        if (chain.Count == 0) return;
        var tiles = ColumnTiles(chain[0].X.Rows);
        var (stages, shared) = StagesOf(device.SharedBytes, device.IsHopper, tiles, chain.Exists(l => l.Op.Site.Parts > 0));
        // The driver wants maps at 64 bytes.
        var room = stackalloc byte[sizeof(Chain) + 64];
        var it = (Chain*)(((nint)room + 63) & ~63);
        *it = new Chain { Step = arrays!.Header, AdapterOf = arrays.AdapterOfAt, Count = chain.Count, Stages = stages };
        for (var i = 0; i < chain.Count; i++)
        {
            var (op, w, x) = chain[i];
            it->Ops[i] = op;
            it->W[i] = w.Map;
            if (device.IsHopper) it->X[i] = MapOf(x.Pointer, x.Rows, w.Cols, x.Stride, 8 * tiles);
        }
        chain.Clear();
        var arguments = stackalloc void*[] { it };
        Launch(kernels.Get($"chain_{tiles}", shared), device.Multiprocessors, 1, device.IsHopper ? 640 : 512, shared, arguments);
    }

    /// <summary>z of many rows, ahead of the product; and what adapters add to the short ones among them, to <paramref name="y"/>.</summary>
    private void Adapt(CudaScratch x, Site site, ulong y, int yStride)
    {
        var (step, shortAdapters, shortRows, tiles, pointer, stride) = (arrays!.Header, arrays.ShortAdaptersAt, arrays.ShortRowsAt, arrays.AdapterTilesAt, x.Pointer, x.Stride);
        if (arrays.Last.ShortRows > 0)
        {
            var shrunk = Counters(1);
            var arguments = stackalloc void*[] { &step, &shortAdapters, &shortRows, &pointer, &stride, &site, &shrunk, &y, &yStride };
            var rooms = CrewThreads / 32 * RoomBytes(device.SharedBytes);
            Launch(kernels.Get("adaptShort", rooms), device.Multiprocessors, 1, CrewThreads, rooms, arguments);
        }
        if (arrays.Last.AdapterTiles > 0)
        {
            var (inputs, partialStride, arrived) = (x.Cols, site.Parts * ((highestRank + 3) / 4 * 4), shrinkCounters);
            var pieces = (inputs + ShrinkColumns - 1) / ShrinkColumns;
            var bytes = (long)arrays.Last.AdapterTiles * pieces * StepArrays.AdapterTileRows * partialStride * sizeof(float);
            if (splits.Bytes < bytes) splits = (arena.Take(bytes), bytes);          // one for all linears: each is through with it before the next begins
            var partial = splits.At;
            var arguments = stackalloc void*[] { &step, &tiles, &pointer, &stride, &inputs, &site, &partial, &partialStride, &arrived };
            Launch(kernels.Get("shrinkLong", 65536), Math.Min(arrays.Last.AdapterTiles * pieces, 3 * device.Multiprocessors), 1, 128, 65536, arguments);
        }
    }

    /// <summary>The site's entries for the step's adapters; none where the step has none.</summary>
    private Site SiteOf(LoraSite? site, int columns)
    {
        if (site is null || !anyAdapters) return default;
        var (first, parts) = (site.Parts[0].Projection, site.Parts.Length);
        Debug.Assert(site.Parts.Select((p, i) => p.Projection == first + i).All(follows => follows), "A site's projections are neighbours.");
        int Runs(int part) => part < parts ? ((part + 1 < parts ? site.Parts[part + 1].Column : columns) - site.Parts[part].Column + RunColumns - 1) / RunColumns : 0;
        return new Site
        {
            Table = adapters!.EntriesOf(site.Layer, first),
            PerAdapter = adapters.Layers * 7,
            Parts = parts,
            Kind = Site.KindOf(first),
            ZStride = zStride,
            Z = shortZ,
            Whole = wholeZ,
            ZPart = stepRows * AdapterPacking.MostSlices * zStride,
            WholePart = stepRows * zStride,
            Second = parts > 1 ? site.Parts[1].Column : 0,
            Third = parts > 2 ? site.Parts[2].Column : 0,
            Columns = columns,
            FirstRuns = Runs(0),
            SecondRuns = Runs(1),
            ThirdRuns = Runs(2),
        };
    }

    public void RopeAndStore(DeviceTensor qkv, HeadNorms? norms, KvCache cache, int layer)
    {
        var (x, store, shape) = ((CudaScratch)qkv, (CudaKvCache)cache, cache.Shape);
        if (x.Queries == 0) x.Queries = arena.Take((long)x.Rows * shape.Heads * store.DimStride * 2);
        var finish = new Finish
        {
            Kind = FinishKind.Rope,
            Columns = x.Cols,
            Out = x.Queries,
            Slots = arrays!.SlotsAt,
            Turns = TurnsOf(store, x.Rows),
            Heads = shape.Heads,
            Cache = store.Layout(layer),
        };
        if (norms is not null) (finish.QueryNorm, finish.KeyNorm, finish.Epsilon) = (((CudaWeights)norms.Query).Vector, ((CudaWeights)norms.Key).Vector, norms.Epsilon);
        FinishSums(x, x, finish);
    }

    /// <summary>The rows' angles, made by the first layer of a step.</summary>
    private ulong TurnsOf(CudaKvCache store, int rows)
    {
        if (turns.Of == store && turns.Rows == rows) return turns.At;
        var half = store.Shape.HeadDim / 2;
        var at = arena.Take((long)rows * half * 2 * sizeof(float));
        var (step, positions, frequencies) = (arrays!.Header, arrays.PositionsAt, store.Frequencies);
        var arguments = stackalloc void*[] { &step, &positions, &frequencies, &half, &at };
        Launch(kernels.Get("turnsOf"), rows, 1, 128, 0, arguments);
        turns = (store, rows, at);
        return at;
    }

    public void Attend(DeviceTensor qkv, KvCache cache, int layer, DeviceTensor y)
    {
        var (x, store, to, shape) = ((CudaScratch)qkv, (CudaKvCache)cache, (CudaScratch)y, cache.Shape);
        var (step, items, tiles, blocks, queries, layout) = (arrays!.Header, arrays.AttendItemsAt, arrays.TilesAt, arrays.BlockTableAt, x.Queries, store.Layout(layer));
        var (heads, window, pointer, stride) = (shape.Heads, shape.Windows[layer], to.Written(), to.Stride);
        // Large heads, and any on a GPU whose multiprocessors have less memory, take the general way.
        var together = Math.Min(heads / shape.KvHeads, 16);
        var (decodeBytes, promptBytes) = (((store.DimStride + 8) * (512 + (16 * together))) + (32 * together), ((store.DimStride + 8) * 768) + 768);
        if (store.DimStride > 128 || Math.Max(decodeBytes, promptBytes) > device.SharedBytes)
        {
            var any = stackalloc void*[] { &step, &items, &tiles, &blocks, &queries, &layout, &heads, &window, &pointer, &stride };
            Launch(kernels.Get("attendAny"), x.Rows, heads, 128, (store.DimStride + (4 * (2 + store.DimStride))) * sizeof(float), any);
            return;
        }
        var (dim, group) = (store.DimStride, heads / shape.KvHeads);
        if (arrays.Last.AttendItems > 0)
        {
            Grow(ref pieces, ref pieceBytes, (long)arrays.AttendItems * heads * (dim + 2) * sizeof(float));
            Grow(ref pieceCounters, ref pieceCounterBytes, (long)arrays.Rows * shape.KvHeads * ((group + 15) / 16) * sizeof(int));
            var (partial, counters) = (pieces, pieceCounters);
            var arguments = stackalloc void*[] { &step, &items, &blocks, &queries, &layout, &heads, &window, &pointer, &stride, &partial, &counters };
            var resident = dim <= 64 ? 4 : dim <= 96 ? 3 : 2;
            Launch(kernels.Get($"attendDecode_{dim}", decodeBytes), device.Multiprocessors * resident, 1, 128, decodeBytes, arguments);
        }
        if (arrays.Last.Tiles > 0)
        {
            var arguments = stackalloc void*[] { &step, &tiles, &blocks, &queries, &layout, &heads, &window, &pointer, &stride };
            Launch(kernels.Get($"attendPrefill_{dim}", promptBytes), arrays.Last.Tiles * heads, 1, 128, promptBytes, arguments);
        }
    }

    /// <summary>Makes room, of zeros, where there is less; recorded steps know where it was and are forgotten.</summary>
    private void Grow(ref ulong pointer, ref long has, long bytes)
    {
        if (has >= bytes) return;
        Driver.Check(Driver.cuStreamSynchronize(device.Stream), "cuStreamSynchronize");
        Forget();
        device.Free(pointer);
        (pointer, has) = (device.Allocate(bytes), bytes);
        Driver.Check(Driver.cuMemsetD8Async(pointer, 0, (nuint)bytes, device.Stream), "cuMemsetD8");
    }

    public void SwiGlu(DeviceTensor gateUp, DeviceTensor y)
    {
        var (x, to) = ((CudaScratch)gateUp, (CudaScratch)y);
        FinishSums(x, x, new Finish { Kind = FinishKind.SwiGlu, Columns = to.Cols, Out = to.Written(), OutStride = to.Stride });
    }

    public void TakeLogitRows(DeviceTensor x, DeviceTensor y)
    {
        var (from, to) = ((CudaScratch)x, (CudaScratch)y);
        to.OfLogitRows = true;
        if (from.Norm is { } norm)
        {
            TakeNormed(from, norm, arrays!.Header + sizeof(int), arrays.LogitRowsAt, to.Rows, to);
            return;
        }
        var (step, rows, pointer, stride, cols, into, intoStride) = (arrays!.Header, arrays.LogitRowsAt, from.Pointer, from.Stride, from.Cols, to.Written(), to.Stride);
        var arguments = stackalloc void*[] { &step, &rows, &pointer, &stride, &cols, &into, &intoStride };
        var name = (from.Precision, to.Precision) switch { (Precision.Full, Precision.Full) => "takeRows_full", (Precision.Full, _) => "takeRows_round", _ => "takeRows_operand" };
        Launch(kernels.Get(name), to.Rows, 1, 256, 0, arguments);
    }

    /// <summary>Some rows of a norm, finished.</summary>
    private void TakeNormed(CudaScratch normed, Normed norm, ulong count, ulong chosen, int rows, CudaScratch to)
    {
        var (pointer, stride, squares, weight, epsilon, cols, outStride) = (norm.X.Pointer, norm.X.Stride, normed.Squares, norm.Weight.Vector, norm.Epsilon, normed.Cols, to.Stride);
        var into = to.Written();
        ulong operand = to.Precision == Precision.Operand ? into : 0, full = to.Precision == Precision.Full ? into : 0;
        var arguments = stackalloc void*[] { &count, &chosen, &pointer, &stride, &squares, &weight, &epsilon, &cols, &operand, &full, &outStride };
        Launch(kernels.Get("takeNormed"), rows, 1, 256, 0, arguments);
    }

    public void Draw(DeviceTensor logits, int vocabulary)
    {
        var x = (CudaScratch)logits;
        if (x.Pending is not null) Launch(x);
        var sums = SumsOf(x);
        var view = new LogitsView { Sums = sums.Y, PartsOfTile = sums.Parts, PartStride = sums.Part, TileShift = 7, Stride = sums.Stride, Vocabulary = vocabulary };
        var workStride = (vocabulary + 3) / 4 * 4;
        var work = arena.Take((long)x.Rows * workStride * sizeof(float));
        var (step, rulesAt, drawnAt, resultsAt, topsAt) = (arrays!.Header, rules, drawn, results, tops);
        var arguments = stackalloc void*[] { &step, &rulesAt, &view, &work, &workStride, &drawnAt, &resultsAt, &topsAt };
        Launch(kernels.Get("draw"), x.Rows, 1, 1024, 0, arguments);
    }

    public void Download(DeviceTensor x, Span<float> host)
    {
        device.Enter();
        var from = (CudaScratch)x;
        var rows = host.Length / from.Cols;
        if (from.Norm is { } norm)
        {
            var values = new CudaScratch(arena, from.Rows, from.Cols, Precision.Full);
            TakeNormed(from, norm, RowsOf(from), 0, from.Rows, values);
            from = values;
        }
        else if (from.Sums.Y != 0) FinishValues(from);
        Flush();
        var (pointer, full) = (from.Pointer, from.Precision == Precision.Full);
        var bytes = (long)rows * from.Stride * (full ? 4 : 2);
        var raw = new byte[bytes];
        fixed (byte* to = raw)
        {
            Driver.Check(Driver.cuMemcpyDtoHAsync_v2(to, pointer, (nuint)bytes, device.Stream), "cuMemcpyDtoH");
            Driver.Check(Driver.cuStreamSynchronize(device.Stream), "a step");
            for (var r = 0; r < rows; r++)
                for (var c = 0; c < from.Cols; c++)
                {
                    var i = ((long)r * from.Stride) + c;
                    host[(r * from.Cols) + c] = full ? ((float*)to)[i] : BitConverter.UInt32BitsToSingle((uint)((ushort*)to)[i] << 16);
                }
        }
    }

    /// <summary>Brings what a linear left to where the tensor's values are. The sums stay what counts: a recorded step leaves them there again.</summary>
    private void FinishValues(CudaScratch x) => FinishSums(x, x, new Finish { Kind = FinishKind.Plain, Columns = x.Cols, X = x.Pointer, XStride = x.Stride });

    private void Launch(nint kernel, int x, int y, int threads, int shared, void** arguments)
    {
        Flush();
        var attribute = new Driver.LaunchAttribute { Id = 6, Value = 1 };
        var config = new Driver.LaunchConfig
        {
            GridX = (uint)x,
            GridY = (uint)y,
            GridZ = 1,
            BlockX = (uint)threads,
            BlockY = 1,
            BlockZ = 1,
            SharedBytes = (uint)shared,
            Stream = device.Stream,
            Attributes = &attribute,
            AttributeCount = device.OverlapsLaunches ? 1u : 0,
        };
        Driver.Check(Driver.cuLaunchKernelEx(&config, kernel, arguments, null), "cuLaunchKernelEx");
    }

    // ---- To the device

    private static TensorMap MapOf(ulong pointer, int rows, int cols, int stride, int boxRows)
    {
        var sizes = stackalloc ulong[] { (ulong)cols, (ulong)rows };
        var strides = stackalloc ulong[] { (ulong)stride * 2 };
        var box = stackalloc uint[] { 64, (uint)boxRows };
        var ones = stackalloc uint[] { 1, 1 };
        var room = stackalloc byte[sizeof(TensorMap) + 64];
        var map = (TensorMap*)(((nint)room + 63) & ~63);
        Driver.Check(Driver.cuTensorMapEncodeTiled(map, 9, 2, (void*)pointer, sizes, strides, box, ones, 0, 3, 2, 0), "cuTensorMapEncodeTiled");     // bf16, 128-byte swizzle
        return *map;
    }

    private void Send(ulong to, byte* from, long bytes)
    {
        Driver.Check(Driver.cuMemcpyHtoDAsync_v2(to, from, (nuint)bytes, device.Stream), "cuMemcpyHtoD");
        Driver.Check(Driver.cuStreamSynchronize(device.Stream), "cuMemcpyHtoD");
    }

    /// <summary>Rows as bf16 through two pinned rooms: one is filled by all cores while the other is on its way.</summary>
    private void SendRows(HostTensor from, ulong to, int stride)
    {
        const long Room = 32 << 20;
        if (staging.Bytes == 0) staging = device.AllocatePinned(2 * Room);
        var each = (int)Math.Max(1, Room / ((long)stride * 2));
        for (int first = 0, room = 0; first < from.Rows; first += each, room ^= 1)
        {
            var rows = Math.Min(each, from.Rows - first);
            var host = (nint)(staging.Host + (room * Room));
            Driver.Check(Driver.cuEventSynchronize(events[room]), "uploading weights");
            var (begin, tasks) = (first, (rows + 255) / 256);
            Parallel.For(0, tasks, task =>
            {
                for (var r = task * 256; r < Math.Min(rows, (task + 1) * 256); r++)
                    Bf16.Copy(from, (long)(begin + r) * from.Cols, from.Cols, (ushort*)host + ((long)r * stride), stride);
            });
            Driver.Check(Driver.cuMemcpyHtoDAsync_v2(to + (ulong)((long)first * stride * 2), (void*)host, (nuint)((long)rows * stride * 2), device.Stream), "uploading weights");
            Driver.Check(Driver.cuEventRecord(events[room], device.Stream), "uploading weights");
        }
    }

    private StepArrays Arrays(int blocks, int blockSize)
    {
        if (arrays is not null && arrays.Blocks >= blocks && (blocks == 0 || arrays.BlockSize == blockSize)) return arrays;
        Driver.Check(Driver.cuStreamSynchronize(device.Stream), "cuStreamSynchronize");
        Forget();
        arrays?.Dispose();
        return arrays = new StepArrays(device, stepRows, Math.Max(blocks, arrays?.Blocks ?? 0), blockSize);
    }

    private void Forget()
    {
        foreach (var recording in recordings.Values) if (recording.Graph != 0) _ = Driver.cuGraphExecDestroy(recording.Graph);
        recordings.Clear();
    }

    // ---- What the machine gives, to measure steps against

    public void Synchronize()
    {
        device.Enter();
        Driver.Check(Driver.cuStreamSynchronize(device.Stream), "cuStreamSynchronize");
    }

    /// <summary>Bytes a second, read and written, of a copy on the device.</summary>
    public double CopyRate(long bytes)
    {
        var (from, to) = (device.Allocate(bytes), device.Allocate(bytes));
        Driver.Check(Driver.cuMemsetD8Async(from, 0x5A, (nuint)bytes, device.Stream), "cuMemsetD8");
        var milliseconds = Time(() => Driver.Check(Driver.cuMemcpyDtoDAsync_v2(to, from, (nuint)bytes, device.Stream), "cuMemcpyDtoD"));
        device.Free(from);
        device.Free(to);
        return 2e3 * bytes / milliseconds;
    }

    /// <summary>Operations a second of a bf16 product of <paramref name="size"/>³, on random values.</summary>
    public double MatrixRate(int size)
    {
        var (x, w, y) = (device.Allocate(2L * size * size), device.Allocate(2L * size * size), device.Allocate(4L * size * size));
        var values = new ushort[size * size];
        for (var i = 0; i < values.Length; i++) values[i] = (ushort)((Random.Shared.Next() & 0x807F) | (121 << 7));
        fixed (ushort* from = values)
        {
            Send(x, (byte*)from, 2L * size * size);
            Send(w, (byte*)from, 2L * size * size);
        }
        var milliseconds = Time(() => matrices.Multiply(x, size, w, size, y, size, size, size, size, device.Stream));
        foreach (var pointer in (ulong[])[x, w, y]) device.Free(pointer);
        return 2e3 * size * size * size / milliseconds;
    }

    private double Time(Action run)
    {
        device.Enter();
        Driver.Check(Driver.cuEventCreate(out var begin, 0), "cuEventCreate");
        Driver.Check(Driver.cuEventCreate(out var end, 0), "cuEventCreate");
        var times = new List<double>();
        for (var i = 0; i < 12; i++)
        {
            _ = Driver.cuEventRecord(begin, device.Stream);
            run();
            _ = Driver.cuEventRecord(end, device.Stream);
            Driver.Check(Driver.cuEventSynchronize(end), "timing");
            _ = Driver.cuEventElapsedTime(out var milliseconds, begin, end);
            if (i >= 2) times.Add(milliseconds);
        }
        _ = Driver.cuEventDestroy_v2(begin);
        _ = Driver.cuEventDestroy_v2(end);
        return times.Order().ElementAt(times.Count / 2);
    }

    public void Dispose()
    {
        device.Enter();
        _ = Driver.cuStreamSynchronize(device.Stream);
        Forget();
        arrays?.Dispose();
        adapters?.Dispose();
        matrices.Dispose();
        kernels.Dispose();
        arena.Dispose();
        foreach (var pointer in (ulong[])[matrixWorkspace, shortZ, wholeZ, drawn, results, tops, shrinkCounters, rules, pieces, pieceCounters, counters]) device.Free(pointer);
        foreach (var room in resultRooms.Concat(ruleRooms).Append(staging)) if (room.Bytes > 0) device.FreePinned(room);
        foreach (var e in events) _ = Driver.cuEventDestroy_v2(e);
        device.Dispose();
    }

    /// <param name="Graph">0: not yet.</param>
    /// <param name="Result">What the verbs returned.</param>
    /// <param name="End">How much of the arena they took.</param>
    private sealed record Recording(nint Graph, DeviceTensor? Result, (int Piece, long Used) End);

    private readonly record struct Ticket(int Room, int Rows);
}
