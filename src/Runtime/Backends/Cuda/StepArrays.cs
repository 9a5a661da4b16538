using System.Runtime.InteropServices;

namespace TenantLora.Runtime.Backends.Cuda;

/// <summary>
/// A step's index arrays on the device, always at the same addresses: packed in pinned memory and sent with one or two copies ahead of the
/// step. Three pinned buffers in turn, for a step may be under way and another ready behind it.
/// </summary>
internal sealed unsafe class StepArrays : IDisposable
{
    /// <summary>Positions that one piece of a decoding row's attention covers.</summary>
    public const int AttendPiece = 512;

    /// <summary>Query rows in a tile of a prompt's attention.</summary>
    public const int AttendTileRows = 128;

    /// <summary>Rows in a tile of a long segment's adapter.</summary>
    public const int AdapterTileRows = 64;

    /// <summary>Rows of a segment whose adapter is worked on row by row, at most; longer ones are cut into tiles.</summary>
    public const int ShortRows = 16;

    /// <summary>A tile's adapter: its rows are worked on one by one.</summary>
    private const int OneByOne = -2;

    private const int Buffers = 3;
    private readonly CudaDevice device;
    private readonly int rows, blockCapacity;
    private readonly long tokens, positions, slots, adapterOf, shortRows, shortAdapters, logitRows, tiles, adapterTiles, attendItems, blockTable, bytes;
    private readonly Pinned[] pinned = new Pinned[Buffers];
    private readonly ulong data;
    private int turn;

    /// <param name="device">Where they go.</param>
    /// <param name="rows">Most rows of a step.</param>
    /// <param name="blocks">Most blocks that all sequences hold.</param>
    /// <param name="blockSize">Positions in a block.</param>
    public StepArrays(CudaDevice device, int rows, int blocks, int blockSize)
    {
        this.device = device;
        this.rows = rows;
        BlockSize = blockSize;
        AttendItems = rows + (int)((long)blocks * blockSize / AttendPiece);
        blockCapacity = blocks + rows;
        long next = sizeof(Counts);
        long Room(long size)
        {
            var at = next;
            next = (next + size + 15) & -16;
            return at;
        }
        tokens = Room(rows * 4L);
        positions = Room(rows * 4L);
        slots = Room(rows * 4L);
        adapterOf = Room(rows * 4L);
        shortRows = Room(rows * 4L);
        shortAdapters = Room(rows * 4L);
        logitRows = Room(rows * 4L);
        tiles = Room(rows * 16L);
        adapterTiles = Room(rows * 16L);
        attendItems = Room(AttendItems * 32L);
        blockTable = Room(blockCapacity * 4L);
        bytes = next;
        for (var i = 0; i < Buffers; i++) pinned[i] = device.AllocatePinned(bytes);
        data = device.Allocate(bytes);
    }

    public int BlockSize { get; }

    public int Rows => rows;

    /// <summary>Pieces of attention that there is room for.</summary>
    public int AttendItems { get; }

    /// <summary>Blocks that there is room for.</summary>
    public int Blocks => blockCapacity - rows;

    public ulong Header => data;

    public ulong TokensAt => data + (ulong)tokens;

    public ulong PositionsAt => data + (ulong)positions;

    public ulong SlotsAt => data + (ulong)slots;

    /// <summary>Each row's adapter, by its index; -1: none.</summary>
    public ulong AdapterOfAt => data + (ulong)adapterOf;

    public ulong ShortRowsAt => data + (ulong)shortRows;

    public ulong ShortAdaptersAt => data + (ulong)shortAdapters;

    public ulong LogitRowsAt => data + (ulong)logitRows;

    public ulong TilesAt => data + (ulong)tiles;

    public ulong AdapterTilesAt => data + (ulong)adapterTiles;

    public ulong AttendItemsAt => data + (ulong)attendItems;

    public ulong BlockTableAt => data + (ulong)blockTable;

    /// <summary>What the last step packed.</summary>
    public Counts Last { get; private set; }

    /// <summary>Packs and sends.</summary>
    /// <param name="batch">The step.</param>
    /// <param name="allShort">All rows' adapters are worked on row by row, however long their segments.</param>
    public void Send(Batch batch, bool allShort)
    {
        if (batch.Rows > rows) throw new ArgumentException($"The step has {batch.Rows} rows, and there is room for {rows}.");
        var host = pinned[turn].Host;
        turn = (turn + 1) % Buffers;
        var step = (Counts*)host;
        *step = new Counts { Rows = batch.Rows, LogitRows = batch.LogitRows.Length };
        batch.Tokens.CopyTo(new Span<int>(host + tokens, rows));
        batch.Positions.CopyTo(new Span<int>(host + positions, rows));
        batch.Slots.CopyTo(new Span<int>(host + slots, rows));
        batch.LogitRows.CopyTo(new Span<int>(host + logitRows, rows));
        PackAdapters(batch, host, step, allShort);
        var blocks = PackAttention(batch, host, step);
        Last = *step;
        device.Enter();
        Driver.Check(Driver.cuMemcpyHtoDAsync_v2(data, host, (nuint)(attendItems + (step->AttendItems * 32L)), device.Stream), "sending a step");
        if (blocks > 0) Driver.Check(Driver.cuMemcpyHtoDAsync_v2(BlockTableAt, host + blockTable, (nuint)(blocks * 4), device.Stream), "sending a step's blocks");
    }

    /// <summary>
    /// Where any row is adapted, all are in tiles, those of the base model too, for what finishes sums goes by tiles. Rows of short segments are
    /// listed besides, and their neighbours share a tile; where all are short, there are no tiles.
    /// </summary>
    private void PackAdapters(Batch batch, byte* host, Counts* step, bool allShort)
    {
        var of = new Span<int>(host + adapterOf, batch.Rows);
        var shorts = (int*)(host + shortRows);
        var shortOn = (int*)(host + shortAdapters);
        var longs = (AdapterTile*)(host + adapterTiles);
        var any = allShort || Array.Exists(batch.Segments, s => s.Adapter is CudaAdapter);
        foreach (var (first, count, on) in batch.Segments)
        {
            var adapter = on as CudaAdapter;
            var index = adapter?.Index ?? -1;
            of.Slice(first, count).Fill(index);
            if (!any) continue;
            if (allShort || count <= ShortRows)
            {
                for (var r = 0; r < count; r++)
                {
                    shortOn[step->ShortRows] = index;
                    shorts[step->ShortRows++] = first + r;
                }
                var before = step->AdapterTiles > 0 ? longs + step->AdapterTiles - 1 : null;
                if (before != null && before->Adapter == OneByOne && before->FirstRow + before->Rows == first && before->Rows + count <= AdapterTileRows) before->Rows += count;
                else if (!allShort) longs[step->AdapterTiles++] = new AdapterTile { FirstRow = first, Rows = count, Adapter = OneByOne };
                for (var kind = 0; kind < 4 && adapter is not null; kind++) step->Slices[kind] = Math.Max(step->Slices[kind], adapter.Slices(kind));
            }
            else
                for (var r = 0; r < count; r += AdapterTileRows)
                    longs[step->AdapterTiles++] = new AdapterTile { FirstRow = first + r, Rows = Math.Min(AdapterTileRows, count - r), Adapter = index };
        }
    }

    private int PackAttention(Batch batch, byte* host, Counts* step)
    {
        var pieces = (AttendItem*)(host + attendItems);
        var chunks = (AttendTile*)(host + tiles);
        var table = (int*)(host + blockTable);
        var blocks = 0;
        foreach (var (first, count, context, held) in batch.Spans)
        {
            var used = Math.Min(held.Length, (context + BlockSize - 1) / BlockSize);        // lists may be longer than needed
            if (blocks + used > blockCapacity) throw new ArgumentException("The step's sequences hold more blocks than there are.");
            held.AsSpan(0, used).CopyTo(new Span<int>(table + blocks, used));
            if (count == 1)
            {
                var parts = (context + AttendPiece - 1) / AttendPiece;
                for (var p = 0; p < parts; p++)
                    pieces[step->AttendItems++] = new AttendItem
                    {
                        Row = first,
                        Position = context - 1,
                        First = p * AttendPiece,
                        End = Math.Min(context, (p + 1) * AttendPiece),
                        Blocks = blocks,
                        Part = p,
                        Parts = parts,
                    };
            }
            else
                for (var r = 0; r < count; r += AttendTileRows)
                    chunks[step->Tiles++] = new AttendTile { FirstRow = first + r, Rows = Math.Min(AttendTileRows, count - r), FirstPosition = context - count + r, Blocks = blocks };
            blocks += used;
        }
        return blocks;
    }

    public void Dispose()
    {
        foreach (var buffer in pinned) device.FreePinned(buffer);
        device.Free(data);
    }

    /// <summary>Step in common.cuh.</summary>
    [StructLayout(LayoutKind.Sequential, Size = 64)]
    internal struct Counts
    {
        public int Rows, LogitRows, ShortRows, AttendItems, Tiles, AdapterTiles;
        public fixed int Slices[4];
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct AdapterTile
    {
        public int FirstRow, Rows, Adapter;
        private readonly int reserved;
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct AttendItem
    {
        public int Row, Position, First, End, Blocks, Part, Parts;
        private readonly int reserved;
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct AttendTile
    {
        public int FirstRow, Rows, FirstPosition, Blocks;
    }
}
