using System.Diagnostics;

namespace TenantLora.Runtime.Scheduling;

/// <summary>
/// Which KV blocks are free. Last returned, first given: memory that was never needed is never touched.
/// Pure bookkeeping; the engine thread alone uses it.
/// </summary>
internal sealed class BlockPool
{
    private readonly int[] free;

    public BlockPool(int blocks, int blockSize)
    {
        (Total, BlockSize, Free) = (blocks, blockSize, blocks);
        free = [.. Enumerable.Range(0, blocks).Reverse()];
    }

    public int Total { get; }

    public int Free { get; private set; }

    /// <summary>KV positions in one block.</summary>
    public int BlockSize { get; }

    public int BlocksFor(int positions) => (positions + BlockSize - 1) / BlockSize;

    /// <summary>Lengthens the table to <paramref name="count"/> blocks, or changes nothing.</summary>
    public bool TryExtend(BlockTable table, int count)
    {
        var wanted = count - table.Count;
        if (wanted > Free) return false;
        for (; wanted > 0; wanted--) table.Add(free[--Free]);
        return true;
    }

    public void Return(BlockTable table)
    {
        Debug.Assert(Free + table.Count <= Total, "A block was returned twice.");
        for (var i = table.Count - 1; i >= 0; i--) free[Free++] = table[i];
        table.Clear();
    }
}

/// <summary>The blocks of one sequence in position order. Grows in place, so a batch may read <see cref="Blocks"/> without a copy.</summary>
internal sealed class BlockTable
{
    public int[] Blocks { get; private set; } = new int[8];

    public int Count { get; private set; }

    public int this[int index] => Blocks[index];

    public void Add(int block)
    {
        if (Count == Blocks.Length)
        {
            var grown = new int[Blocks.Length * 2];
            Blocks.CopyTo(grown, 0);
            Blocks = grown;
        }
        Blocks[Count++] = block;
    }

    public void Clear() => Count = 0;
}
