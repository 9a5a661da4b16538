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
    public const int ShrinkTileRows = 64;

    /// <summary>Rows of a segment whose adapter's work is done beside the products; longer ones have a kernel of their own.</summary>
    public const int ShortRows = 16;

    private const int Buffers = 3;
    private readonly CudaDevice device;
    private readonly int rows, blockCapacity;
    private readonly long tokens, positions, slots, rowInfos, groups, logitRows, tiles, shrinkTiles, attendItems, blockTable, bytes;
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
        rowInfos = Room(rows * 16L);
        groups = Room(rows * 16L);
        logitRows = Room(rows * 4L);
        tiles = Room(rows * 16L);
        shrinkTiles = Room(rows * 16L);
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

    public ulong RowsAt => data + (ulong)rowInfos;

    public ulong GroupsAt => data + (ulong)groups;

    public ulong LogitRowsAt => data + (ulong)logitRows;

    public ulong TilesAt => data + (ulong)tiles;

    public ulong ShrinkTilesAt => data + (ulong)shrinkTiles;

    public ulong AttendItemsAt => data + (ulong)attendItems;

    public ulong BlockTableAt => data + (ulong)blockTable;

    /// <summary>What the last step packed.</summary>
    public Counts Last { get; private set; }

    /// <summary>Packs and sends.</summary>
    /// <param name="batch">The step.</param>
    /// <param name="allShort">All rows' adapters are worked on beside the products, however long their segments.</param>
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

    private void PackAdapters(Batch batch, byte* host, Counts* step, bool allShort)
    {
        var infos = (RowInfo*)(host + rowInfos);
        var shorts = (Group*)(host + groups);
        var longs = (Group*)(host + shrinkTiles);
        var shortRows = 0;
        foreach (var (first, count, on) in batch.Segments)
        {
            var adapter = on as CudaAdapter;
            var isShort = allShort || count <= ShortRows;
            for (var r = 0; r < count; r++)
                infos[first + r] = new RowInfo { Adapter = adapter?.Index ?? -1, SegmentFirst = first, SegmentRows = count, ShortIndex = isShort ? shortRows + r : -1 };
            if (adapter is not null && isShort)
                for (var r = 0; r < count; r += ShortRows)
                {
                    var inGroup = Math.Min(ShortRows, count - r);
                    shorts[step->Groups++] = new Group { FirstRow = first + r, Rows = inGroup, Adapter = adapter.Index, FirstShort = shortRows + r };
                    for (var kind = 0; kind < 4; kind++) step->Units[kind] = Math.Max(step->Units[kind], adapter.Units(kind, inGroup));
                }
            else if (adapter is not null)
                for (var r = 0; r < count; r += ShrinkTileRows)
                    longs[step->ShrinkTiles++] = new Group { FirstRow = first + r, Rows = Math.Min(ShrinkTileRows, count - r), Adapter = adapter.Index };
            if (isShort) shortRows += count;
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
        public int Rows, LogitRows, Groups, AttendItems, Tiles, ShrinkTiles;
        public fixed int Units[4];
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct RowInfo
    {
        public int Adapter, SegmentFirst, SegmentRows, ShortIndex;
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct Group
    {
        public int FirstRow, Rows, Adapter, FirstShort;
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
