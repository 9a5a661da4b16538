// z = A·x for the long segments of prompts, beside the product that reads the same x: tensor cores with rows of x as rows and ranks as columns.
// Ranks are few, so the work is to read x once for all parts of a site. A column of z meets, at each chunk of x, another row of the compact A
// (its rank rotated) or its own piece of A_vec: pieces of 8 columns are fetched from where they lie, and A is never expanded in memory.
// A short prompt gives few tiles of 64 rows, so 1024 columns of x are dealt out at a time; the block that comes last to a tile adds the sums of
// them all, from left to right. The order of sums thus depends on the columns alone, not on rows, tiles or blocks.
//
//   for r, k < r':  z[r, k] = Σ_j Σ_t a[(k + j·shiftA) mod r', t]·x[r, j·chunkWidth + t]
//   for r, k < u:   z[r, r' + k] = Σ_j Σ_t aVec[k·chunksA + j, t]·x[r, j·chunkWidth + t]
//
// Needs lora.cuh.

static const int LongThreads = 128;                         // a warp takes 16 rows and all ranks of a pass
static const int TileRows = 64, PassRanks = 64;             // ranks of all parts, counted through
static const int StageColumns = 64, LongStages = 4;
static const int SplitColumns = 1024;
static const int LongStageBytes = (TileRows + PassRanks) * StageColumns * 2;    // 64 KiB for all, so that three blocks share a multiprocessor
static const int LongPieces = TileRows * 8 / LongThreads;   // of 16 bytes, of each factor, a thread and stage

struct ShrinkTile { int firstRow, rows, adapter, reserved; };                   // at most 64 rows of one adapter, −1 the base model

#ifndef EMULATED
// What another block has just written: past the L1.
DEVICE F32x4 loadFresh(const float* p) {
    F32x4 v;
    asm volatile("ld.global.cg.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p) : "memory");
    return v;
}
#endif

// The row of factors that column k of z meets at chunk j.
DEVICE const u16* factorRow(const Lora& m, int k, int j) {
    return k < m.shared ? m.a + (long long)((k + j * m.shiftA) % m.shared) * m.strideA
                        : m.aVec + ((long long)(k - m.shared) * m.chunksA + j) * m.strideA;
}

// Which part and rank the n-th of a site's ranks is.
struct Rank { int part, k; };
DEVICE Rank rankAt(const Lora* modules, int n) {
    int part = 0;
    for (; n >= modules[part].shared + modules[part].unshared; part++) n -= modules[part].shared + modules[part].unshared;
    return {part, n};
}

// Where a thread is in the row of factors that it feeds to a stage.
struct Feed {
    const u16* row;
    int part, k, width, chunk, t;
};

// The same 16 bytes, column by column, where chunks do not begin at multiples of 8.
DEVICE U32x4 slowPiece(const Lora& m, int k, int column, int inputs) {
    u32 pairs[4] = {};
    int j = column / m.chunkWidth, t = column % m.chunkWidth;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (t == m.chunkWidth) { t = 0; j++; }
        if (column + i < inputs) pairs[i / 2] |= (u32)factorRow(m, k, j)[t] << i % 2 * 16;
        t++;
    }
    return {pairs[0], pairs[1], pairs[2], pairs[3]};
}

// Sums of 64 rows and the ranks from `first` on over one split's columns, to `partial` (row, rank).
DEVICE void shrinkPass(const ShrinkTile& tile, const Lora* modules, int first, int ranks, const u16* x, int xStride, int begin, int inputs, float* partial, int partialStride, unsigned char* stages) {
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, q = lane % 4, piece = thread % 8, line = thread / 8;
    const int here = min(PassRanks, ranks - first), steps = (min(SplitColumns, inputs - begin) + StageColumns - 1) / StageColumns;
    const u16* rows = x + (long long)tile.firstRow * xStride;

    Feed feeds[LongPieces];
#pragma unroll
    for (int i = 0; i < LongPieces; i++) {
        Feed& f = feeds[i];
        const int n = line + i * (LongThreads / 8), column = begin + piece * 8;
        f = {x, 0, 0, 8, 0, 0};
        if (n >= here) continue;
        const Rank rank = rankAt(modules, first + n);
        f.part = rank.part; f.k = rank.k; f.width = modules[rank.part].chunkWidth;
        f.chunk = column / f.width; f.t = column % f.width;
        if (column < inputs) f.row = factorRow(modules[f.part], f.k, f.chunk);
    }

    // Stages are filled three ahead of the one that is multiplied. A line's 16-byte pieces lie at piece ^ (line % 8): neighbours in different banks.
    float sum[PassRanks / 8][4] = {};
    for (int next = 0; next < steps + LongStages - 1; next++) {
        const int step = next - (LongStages - 1);
        if (step >= 0) {
            awaitCopies<LongStages - 2>();
            __syncthreads();                                // the stage is there, and the one before has been read by all
        }
        if (next < steps) {
            unsigned char* to = stages + next % LongStages * LongStageBytes;
            const int column = begin + next * StageColumns + piece * 8, bytes = max(0, min(16, (inputs - column) * 2));
#pragma unroll
            for (int i = 0; i < LongPieces; i++) {
                const int r = line + i * (LongThreads / 8), valid = r < tile.rows ? bytes : 0;
                copyAsync(to + r * 128 + ((piece ^ (r & 7)) << 4), valid > 0 ? rows + (long long)r * xStride + column : rows, valid);
            }
#pragma unroll
            for (int i = 0; i < LongPieces; i++) {
                const int n = line + i * (LongThreads / 8);
                if (n >= here) continue;
                Feed& f = feeds[i];
                unsigned char* at = to + (TileRows + n) * 128 + ((piece ^ (n & 7)) << 4);
                if (f.width % 8 != 0) { *(U32x4*)at = slowPiece(modules[f.part], f.k, column, inputs); continue; }
                copyAsync(at, bytes > 0 ? f.row + f.t : rows, bytes);
                f.t += StageColumns;
                if (f.t >= f.width && column + StageColumns < inputs) {
                    f.chunk += f.t / f.width;
                    f.t %= f.width;
                    f.row = factorRow(modules[f.part], f.k, f.chunk);
                }
            }
        }
        commitCopies();
        if (step < 0) continue;

        const unsigned char *v = stages + step % LongStages * LongStageBytes, *w = v + TileRows * 128;
#pragma unroll
        for (int kk = 0; kk < StageColumns / 16; kk++) {
            u32 a[4];
            const int r = warp * 16 + (lane & 15), c = kk * 2 + (lane >> 4);
            loadMatrices(a, v + r * 128 + ((c ^ (r & 7)) << 4));
#pragma unroll
            for (int n = 0; n < PassRanks / 16; n++) {
                if (n * 16 >= here) continue;
                u32 b[4];
                const int k = n * 16 + (lane & 7) + (lane >> 4) * 8, d = kk * 2 + ((lane >> 3) & 1);
                loadMatrices(b, w + k * 128 + ((d ^ (k & 7)) << 4));
                mma(sum[2 * n], a[0], a[1], a[2], a[3], b[0], b[1]);
                mma(sum[2 * n + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
            }
        }
    }
    awaitCopies<0>();
    __syncthreads();

    // Lines beyond `here` hold what was there before; their sums are not stored.
#pragma unroll
    for (int n = 0; n < PassRanks / 8; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int r = warp * 16 + g + half * 8, k = n * 8 + 2 * q;
            if (r < tile.rows && k < here) *(F32x2*)(partial + (long long)r * partialStride + first + k) = {sum[n][half * 2], sum[n][half * 2 + 1]};
        }
}

// z of a tile, to site.whole: the splits' sums, added from left to right.
DEVICE void addSplits(const ShrinkTile& tile, const Site& site, const Lora* modules, int ranks, int splits, const float* partial, int partialStride) {
    const int quads = (ranks + 3) / 4, Ahead = 7;           // loads under way together
    for (int e = threadIdx.x; e < tile.rows * quads; e += LongThreads) {
        const int row = e / quads, n = e % quads * 4;
        const float* from = partial + (long long)row * partialStride + n;
        F32x4 sum = loadFresh(from);
        for (int s = 1; s < splits; s += Ahead) {
            F32x4 more[Ahead];
#pragma unroll
            for (int i = 0; i < Ahead; i++)
                if (s + i < splits) more[i] = loadFresh(from + (long long)(s + i) * TileRows * partialStride);
#pragma unroll
            for (int i = 0; i < Ahead; i++)
                if (s + i < splits) { sum.x += more[i].x; sum.y += more[i].y; sum.z += more[i].z; sum.w += more[i].w; }
        }
        const float four[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (n + i >= ranks) continue;
            const Rank rank = rankAt(modules, n + i);
            site.whole[(long long)rank.part * site.wholePart + (long long)(tile.firstRow + row) * site.zStride + rank.k] = four[i];
        }
    }
}

// x is (rows, xStride), xStride a multiple of 8; `inputs` of its columns count. `partial` is [tile][split][64][partialStride], partialStride a
// multiple of 4 and at least the ranks of all parts together; `arrived` is [tile], zero before the first launch and after each.
extern "C" __global__ __launch_bounds__(LongThreads, 3) void shrinkLong(const int* tileCount, const ShrinkTile* tiles, const u16* x, int xStride, int inputs, Site site, float* partial, int partialStride, u32* arrived) {
    DYNAMIC_SHARED(stages);
    __shared__ bool last;
    letNextStart();
    awaitPrevious();
    const int splits = (inputs + SplitColumns - 1) / SplitColumns, items = *tileCount * splits;
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
        const int index = item / splits, split = item % splits;
        const ShrinkTile tile = tiles[index];
        if (tile.adapter < 0) continue;
        const Lora* modules = site.table + (long long)tile.adapter * site.perAdapter;
        int ranks = 0;
        for (int part = 0; part < site.parts; part++) ranks += modules[part].shared + modules[part].unshared;
        if (ranks == 0) continue;

        float* sums = partial + (long long)index * splits * TileRows * partialStride;
        for (int first = 0; first < ranks; first += PassRanks)
            shrinkPass(tile, modules, first, ranks, x, xStride, split * SplitColumns, inputs, sums + (long long)split * TileRows * partialStride, partialStride, stages);

        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            last = atomicAdd(arrived + index, 1u) == (u32)splits - 1;
            if (last) arrived[index] = 0;
        }
        __syncthreads();
        if (!last) continue;
        __threadfence();
        addSplits(tile, site, modules, ranks, splits, sums, partialStride);
    }
}
