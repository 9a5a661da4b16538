using System.Runtime.InteropServices;
using TenantLora.Runtime.Backends;
using TenantLora.Runtime.Backends.Cuda;

namespace TenantLora.Runtime.Tests.Backends.Cuda;

public unsafe class AdapterPackingTests
{
    private sealed class Memory(long bytes)
    {
        public byte* Data { get; } = (byte*)NativeMemory.AllocZeroed((nuint)bytes);

        ~Memory() => NativeMemory.Free(Data);
    }

    private static HostTensor? Make(int rows, int cols, DType type, Random random)
    {
        if (rows * cols == 0) return null;
        var memory = new Memory((long)rows * cols * type.Size());
        for (var i = 0; i < rows * cols; i++)
        {
            // Any bits now and then: infinite, not a number, the smallest.
            var value = random.Next(20) == 0 ? BitConverter.UInt32BitsToSingle((uint)random.NextInt64(1L << 32)) : random.NextSingle() - 0.5f;
            if (type == DType.F32) ((float*)memory.Data)[i] = value;
            else if (type == DType.F16) ((Half*)memory.Data)[i] = (Half)value;
            else ((ushort*)memory.Data)[i] = (ushort)random.Next(1 << 16);
        }
        return new HostTensor("t", type, rows, cols, memory.Data, memory);
    }

    /// <summary>Against lora.cuh's description, place by place, nothing written beyond: ragged chunks and ranks of every kind.</summary>
    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(2)]
    public void Factors_lie_where_the_kernels_look_for_them(int stored)
    {
        var (type, random) = ((DType)stored, new Random(stored));
        for (var i = 0; i < 150; i++)
        {
            var (h, o, r, u) = (random.Next(1, 300), random.Next(1, 300), random.Next(0, 20), random.Next(0, 4));
            if (i % 2 == 0) (h, o) = (h * 8, o * 8);
            if (i % 10 == 0) (r, u) = (random.Next(0, 2), 1);
            if (r + u == 0) continue;
            var (width, height) = (Ceiling(h, random.Next(1, Math.Min(h, 9) + 1)), Ceiling(o, random.Next(1, Math.Min(o, 9) + 1)));
            var module = new LoraModule
            {
                Inputs = h,
                Outputs = o,
                ChunksA = Ceiling(h, width),
                ChunksB = Ceiling(o, height),
                ShiftA = 0,
                ShiftB = 0,
                Scale = 1,
                A = Make(r, width, type, random),
                B = Make(height, r, type, random),
                AVec = Make(u, h, type, random),
                BVec = Make(u, o, type, random),
            };
            Check(module);
        }
    }

    private static void Check(LoraModule m)
    {
        const ushort Untouched = 0xABCD;
        var packing = AdapterPacking.Of(m);
        var (width, height, r) = (Ceiling(m.ChunkWidth, 8) * 8, Ceiling(m.ChunkHeight, 32) * 32, m.SharedRank);
        var (rowsA, rowsB) = (r + (m.UnsharedRank * m.ChunksA), r + (m.UnsharedRank * m.ChunksB));
        var pairs = Ceiling(rowsB, 2);
        Assert.Equal((rowsA, rowsB, 2L * rowsA * width, 4L * pairs * height), (packing.RowsA, packing.RowsB, packing.BytesA, packing.BytesB));
        var (a, b) = (new ushort[(packing.BytesA / 2) + 64], new ushort[(packing.BytesB / 2) + 64]);
        Array.Fill(a, Untouched);
        Array.Fill(b, Untouched);
        fixed (ushort* to = a) packing.PackA(to);
        fixed (ushort* to = b) packing.PackB(to);

        for (var t = 0; t < width; t++)
            for (var row = 0; row < rowsA; row++)
                Same(a[(((t / 8 * rowsA) + row) * 8) + (t % 8)], t >= m.ChunkWidth ? null : row < r ? (m.A!, row, t) : Piece(m.AVec!, row - r, m.ChunksA, m.ChunkWidth, t));
        for (var t = 0; t < height; t++)
            for (var row = 0; row < pairs * 2; row++)
                Same(b[(((((((t / 32 * pairs) + (row / 2)) * 8) + (t % 8)) * 4) + (t % 32 / 8)) * 2) + (row % 2)],
                    t >= m.ChunkHeight || row >= rowsB ? null : row < r ? (m.B!, t, row) : Piece(m.BVec!, row - r, m.ChunksB, m.ChunkHeight, t));
        Assert.All(a[^64..], v => Assert.Equal(Untouched, v));
        Assert.All(b[^64..], v => Assert.Equal(Untouched, v));
    }

    private static (HostTensor, int, int)? Piece(HostTensor from, int row, int chunks, int size, int t) =>
        (row % chunks * size) + t is var column && column < from.Cols ? (from, row / chunks, column) : null;

    private static void Same(ushort found, (HostTensor From, int Row, int Column)? place)
    {
        var expected = place is var (from, row, column) ? Bf16.At(from, ((long)row * from.Cols) + column) : 0;
        if (expected != found) Assert.Fail($"{found:x4} in the place of {expected:x4}, {place}");
    }

    private static int Ceiling(int a, int b) => (a + b - 1) / b;
}
