// The adapters of prompts. Long segments come in tiles of up to 64 rows of one adapter: shrinkLong makes their z, and whoever finishes y adds what
// comes of it. adaptShort does both for the rows that are worked on one by one.
//
// z = A·x beside the product that reads the same x: tensor cores with rows of x as rows and ranks as columns.
// Ranks are few, so the work is to read x once for all parts of a site. A column of z meets, at each chunk of x, another row of the compact A
// (its rank rotated) or its own piece of A_vec: pieces of 8 columns are fetched from where they lie, and A is never expanded in memory.
// A prompt gives few tiles of 64 rows, so 512 columns of x are dealt out at a time; the block that comes last to a tile adds the sums of
// them all, from left to right. The order of sums thus depends on the columns alone, not on rows, tiles or blocks.
//
// Needs lora.cuh and finish.cuh.

static const int LongThreads = 128;                         // a warp takes 16 rows and all ranks of a pass
static const int TileRows = 64, PassRanks = 64;             // ranks of all parts, counted through
static const int StageColumns = 64, LongStages = 4;
static const int SplitColumns = 512;
static const int LongStageBytes = (TileRows + PassRanks) * StageColumns * 2;    // 64 KiB for all, so that three blocks share a multiprocessor
static const int LongPieces = TileRows * 8 / LongThreads;   // of 16 bytes, of each factor, a thread and stage

struct AdapterTile { int firstRow, rows, adapter, reserved; };                   // at most 64 rows of one adapter; −1: the base model; or OneByOne

// The row of a that column k of z meets at chunk j: t's 8 columns are at [t·rowsA].
DEVICE const u16* factorRow(const Lora& m, int k, int j) {
    return m.a + (k < m.shared ? (k + j * m.shiftA) % m.shared : m.shared + (k - m.shared) * m.chunksA + j) * 8;
}

// Which part and rank the n-th of a site's ranks is.
struct Rank { int part, k; };
DEVICE Rank rankAt(const Lora* modules, int n) {
    int part = 0;
    for (; n >= modules[part].shared + modules[part].unshared; part++) n -= modules[part].shared + modules[part].unshared;
    return {part, n};
}

// Where a thread is in the row of factors that it feeds to a stage.
struct FactorLine {
    const u16* row;
    int part, k, width, rows, chunk, t;
};

// The same 16 bytes, column by column, where chunks do not begin at multiples of 8.
DEVICE U32x4 slowPiece(const Lora& m, int k, int column, int inputs) {
    u32 pairs[4] = {};
    int j = column / m.chunkWidth, t = column % m.chunkWidth;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (t == m.chunkWidth) { t = 0; j++; }
        if (column + i < inputs) pairs[i / 2] |= (u32)factorRow(m, k, j)[t / 8 * 8 * m.rowsA + t % 8] << i % 2 * 16;
        t++;
    }
    return {pairs[0], pairs[1], pairs[2], pairs[3]};
}

// Sums of 64 rows and the ranks from `first` on over one split's columns, to `partial` (row, rank).
DEVICE void shrinkPass(const AdapterTile& tile, const Lora* modules, int first, int ranks, const u16* x, int xStride, int begin, int inputs, float* partial, int partialStride, unsigned char* stages) {
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, q = lane % 4, piece = thread % 8, line = thread / 8;
    const int here = min(PassRanks, ranks - first), steps = (min(SplitColumns, inputs - begin) + StageColumns - 1) / StageColumns;
    const u16* rows = x + (long long)tile.firstRow * xStride;

    FactorLine feeds[LongPieces];
#pragma unroll
    for (int i = 0; i < LongPieces; i++) {
        FactorLine& f = feeds[i];
        const int n = line + i * (LongThreads / 8), column = begin + piece * 8;
        f = {x, 0, 0, 8, 0, 0, 0};
        if (n >= here) continue;
        const Rank rank = rankAt(modules, first + n);
        f.part = rank.part; f.k = rank.k; f.width = modules[rank.part].chunkWidth; f.rows = modules[rank.part].rowsA;
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
                FactorLine& f = feeds[i];
                unsigned char* at = to + (TileRows + n) * 128 + ((piece ^ (n & 7)) << 4);
                if (f.width % 8 != 0) { *(U32x4*)at = slowPiece(modules[f.part], f.k, column, inputs); continue; }
                copyAsync(at, bytes > 0 ? f.row + (long long)f.t * f.rows : rows, bytes);
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
DEVICE void addSplits(const AdapterTile& tile, const Site& site, const Lora* modules, int ranks, int splits, const float* partial, int partialStride) {
    const int quads = (ranks + 3) / 4, Ahead = 7;           // loads under way together
    for (int e = threadIdx.x; e < tile.rows * quads; e += LongThreads) {
        const int row = e / quads, n = e % quads * 4;
        const float* from = partial + (long long)row * partialStride + n;
        F32x4 sum = loadFresh4(from);
        for (int s = 1; s < splits; s += Ahead) {
            F32x4 more[Ahead];
#pragma unroll
            for (int i = 0; i < Ahead; i++)
                if (s + i < splits) more[i] = loadFresh4(from + (long long)(s + i) * TileRows * partialStride);
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
extern "C" __global__ __launch_bounds__(LongThreads, 3) void shrinkLong(const Step* step, const AdapterTile* tiles, const u16* x, int xStride, int inputs, Site site, float* partial, int partialStride, u32* arrived) {
    DYNAMIC_SHARED(stages);
    __shared__ bool last;
    letNextStart();
    awaitPrevious();
    const int splits = (inputs + SplitColumns - 1) / SplitColumns, items = step->adapterTiles * splits;
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
        const int index = item / splits, split = item % splits;
        const AdapterTile tile = tiles[index];
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

// ---- What becomes of the sums (finish.cuh) where rows are in tiles; a block takes several runs of a tile's columns. y takes by far the most bytes and
// is read once: it comes to shared memory in the background and meets there what the tile's adapter adds to it, scale·B(z). Rows of the tile are rows, 32
// columns of y within a chunk are columns; z is prepared once a chunk, rotated, scaled and split into upper and lower bf16, in the order in which lanes
// want it.

static const int OneByOne = -2;                             // a tile's adapter: neighbouring rows that are worked on one by one; what is added to them is in memory
static const int GroupRanks = 48;                           // of b, whose z is in shared memory together
static const int ZBytes = GroupRanks / 16 * 4096;
static const int FinishWarps = 8;

// [16 ranks][16 rows][upper, lower][lane]. Ranks first … first + ranks − 1 of b; a warp sees to 16 rows, four of them to all.
DEVICE void prepareZ(const AdapterTile& tile, const Site& site, const Lora& m, int part, int chunk, int first, int ranks, U32x4* to) {
    const int group = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, row = group * 16 + g;
    if (group * 16 >= tile.rows) return;
    const float* z = site.whole + (long long)part * site.wholePart + (long long)(tile.firstRow + row) * site.zStride;
    const int turn = m.shared > 0 ? (m.shared - (u32)(chunk * m.shiftB) % (u32)m.shared) % m.shared : 0;
    const float perPiece = 1.f / m.chunksB;                 // e / chunksB without a division: both are small
    for (int k = threadIdx.x / 128 * 16; k < ranks; k += FinishWarps / 4 * 16) {
        float v[2][4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int r = first + k + 2 * q + j % 2 + j / 2 * 8, e = r - m.shared;
            int from = -1;
            if (e < 0) from = r + turn < m.shared ? r + turn : r + turn - m.shared;
            else if (const int piece = (int)((e + 0.5f) * perPiece); r < m.rowsB && e - piece * m.chunksB == chunk) from = m.shared + piece;
#pragma unroll
            for (int half = 0; half < 2; half++) v[half][j] = from >= 0 && row + half * 8 < tile.rows ? z[half * 8 * site.zStride + from] * m.scale : 0.f;
        }
        u32 upper[4], lower[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float a = v[i % 2][i / 2 * 2], b = v[i % 2][i / 2 * 2 + 1];
            upper[i] = packBf16(a, b);
            lower[i] = packBf16(a - lowOf(upper[i]), b - highOf(upper[i]));
        }
        U32x4* at = to + (k / 16 * (TileRows / 16) + group) * 64 + lane;
        at[0] = {upper[0], upper[1], upper[2], upper[3]};
        at[32] = {lower[0], lower[1], lower[2], lower[3]};
    }
}

// This lane's part of b's ranks first … first + 31 at 32 columns from t on.
DEVICE void takeB(U32x4 (&w)[4], const Lora& m, int t, int first) {
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4, pairs = (m.rowsB + 1) / 2, pair = first / 2 + q;
    const u16* b = m.b + (((long long)t / 32 * pairs + pair) * 8 + g) * 8;
#pragma unroll
    for (int s = 0; s < 4; s++) {
        w[s] = {0, 0, 0, 0};
        if (pair + s * 4 < pairs) w[s] = *(const U32x4*)(b + s * 4 * 64);
    }
}

// Adds the share of b's ranks first … first + ranks − 1, the first 32 of which are in w, to 32 columns from t on: sum[i][f] is rows 16·i … + 15 of this
// half of the tile, columns 8·f … + 7.
DEVICE void multiplyUnit(float (&sum)[2][4][4], U32x4 (&w)[4], const Lora& m, int rows, int half, int t, int first, int ranks, const U32x4* z) {
    z += half * 128 + threadIdx.x % 32;
    for (int k = 0; k < ranks; k += 32, z += 2 * (TileRows / 16) * 64) {
        if (k > 0) takeB(w, m, t, first + k);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (k + h * 16 >= ranks) continue;
            const U32x4 &v = w[2 * h], &u = w[2 * h + 1];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if ((half * 2 + i) * 16 >= rows) continue;
#pragma unroll
                for (int lower = 0; lower < 2; lower++) {
                    const U32x4 a = z[((h * (TileRows / 16) + i) * 2 + lower) * 32];
                    mma(sum[i][0], a.x, a.y, a.z, a.w, v.x, u.x);
                    mma(sum[i][1], a.x, a.y, a.z, a.w, v.y, u.y);
                    mma(sum[i][2], a.x, a.y, a.z, a.w, v.z, u.z);
                    mma(sum[i][3], a.x, a.y, a.z, a.w, v.w, u.w);
                }
            }
        }
    }
}

// Adds columns from … end − 1 of 32 to row 0's `to`.
DEVICE void addUnit(const float (&sum)[2][4][4], int rows, int half, int from, int end, float* to, int stride) {
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4, first = half * 32 + g;
    to += first * stride + 2 * q;
    if (from <= 0 && end >= 32 && ((u64)to & 7) == 0) {
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int f = 0; f < 4; f++)
                if (first + r * 8 < rows) {
                    F32x2& y = *(F32x2*)(to + r * 8 * stride + f * 8);
                    y = {y.x + sum[r / 2][f][r % 2 * 2], y.y + sum[r / 2][f][r % 2 * 2 + 1]};
                }
        return;
    }
#pragma unroll
    for (int r = 0; r < 4; r++)
#pragma unroll
        for (int f = 0; f < 4; f++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                if (first + r * 8 < rows && f * 8 + 2 * q + e >= from && f * 8 + 2 * q + e < end) to[r * 8 * stride + f * 8 + e] += sum[r / 2][f][r % 2 * 2 + e];
}

// Adds what the tile's adapter adds to y's columns from … end − 1 to `to` (row, stride), where y itself is on its way. The whole block takes part.
// `prepared`: the part and chunk whose z is there, if it is there whole.
DEVICE void expandTile(const AdapterTile& tile, const Site& site, const Lora* modules, int from, int end, float* to, int stride, U32x4* z, int& prepared) {
    const int warp = threadIdx.x / 32, half = warp % 2;
    for (int part = 0; part < site.parts; part++) {
        const int begin = partBegin(site, part), first = max(from, begin) - begin, last = min(end, partEnd(site, part)) - begin, place = begin - from;
        if (first >= last) continue;
        const Lora& m = modules[part];
        if (m.rowsB == 0) continue;
        for (int chunk = first / m.chunkHeight, at; (at = chunk * m.chunkHeight) < last; chunk++) {
            const int top = max(0, first - at), bottom = min(m.chunkHeight, last - at), units = (bottom + 31) / 32 - top / 32, wanted = part << 24 | chunk;
            for (int u = 0; u < units; u += FinishWarps / 2) {
                const int t = (top / 32 + u + warp / 2) * 32;
                const bool mine = u + warp / 2 < units;
                float sum[2][4][4] = {};
                for (int k = 0; k < m.rowsB; k += GroupRanks) {
                    const int ranks = min(GroupRanks, m.rowsB - k);
                    U32x4 w[4];
                    if (mine) takeB(w, m, t, k);
                    if (prepared != wanted) {
                        __syncthreads();                    // all have used what was there
                        prepareZ(tile, site, m, part, chunk, k, ranks, z);
                        __syncthreads();
                        prepared = m.rowsB <= GroupRanks ? wanted : -1;
                    }
                    if (mine) multiplyUnit(sum, w, m, tile.rows, half, t, k, ranks, z);
                }
                awaitCopies<0>();
                __syncthreads();                            // y is there
                if (mine) addUnit(sum, tile.rows, half, top - t, bottom - t, to + place + at + t, stride);
            }
        }
    }
}

// Columns from … end − 1 of the tile's rows, to `to` (row, stride), in the background.
DEVICE void takeRows(const AdapterTile& tile, const float* from, int fromStride, int begin, int end, float* to, int stride) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, columns = end - begin;
    from += (long long)(tile.firstRow + warp) * fromStride + begin;
    to += warp * stride;
    if (begin % 4 != 0 || fromStride % 4 != 0) {
        for (int row = warp; row < tile.rows; row += FinishWarps, from += FinishWarps * fromStride, to += FinishWarps * stride)
            for (int c = lane; c < columns; c += 32) to[c] = loadFresh(from + c);
        return;
    }
    for (int c = lane * 4; c < columns; c += 128) {
        const int bytes = min(16, (columns - c) * 4);
#pragma unroll
        for (int i = 0; i < TileRows / FinishWarps; i++)
            if (i * FinishWarps + warp < tile.rows) copyAsync(to + i * FinishWarps * stride + c, from + i * FinishWarps * (long long)fromStride + c, bytes);
    }
}

// To the L2 in the background: 128 columns of the tile's rows from `column` on.
DEVICE void prefetchRun(const AdapterTile& tile, const float* from, int stride, int column, int end) {
    for (int at = threadIdx.x; at < tile.rows * 4; at += FinishWarps * 32)
        if (column + at % 4 * 32 < end) prefetch(from + (long long)(tile.firstRow + at / 4) * stride + column + at % 4 * 32);
}

// `count` runs of one tile: `whole` finishes two rows whose sums are in shared memory, `each` two of rows that are worked on one by one. Dynamic shared
// memory: two of ZBytes and 64 rows of `stride`.
template <int KIND, class Whole, class Each>
DEVICE void finishTile(const AdapterTile* tiles, Sums sums, const Finish& f, const Site& site, int count, unsigned char* memory, float* factors, Lora* modules, const Whole& whole, const Each& each) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, runs = runsOf(f), groups = (runs + count - 1) / count;
    const AdapterTile tile = tiles[blockIdx.x / groups];
    const int width = KIND == Rope ? f.cache.headDim : TileColumns, columns = KIND == Rope ? runs * width : f.columns;
    const int firstRun = blockIdx.x % groups * count, lastRun = min(runs, firstRun + count), rows = tile.firstRow + tile.rows;
    float* place = (float*)(memory + 2 * ZBytes);
    constexpr int halves = KIND == SwiGlu ? 2 : 1;
    const int stride = (KIND == Rope ? (width + 31) / 32 * 32 : 2 * TileColumns) + 8;       // four neighbouring rows lie in different quarters of the banks
    if (tile.adapter >= 0 && threadIdx.x < site.parts * (sizeof(Lora) / 16))
        ((U32x4*)modules)[threadIdx.x] = ((const U32x4*)(site.table + (long long)tile.adapter * site.perAdapter))[threadIdx.x];
    if (sums.squares) {
        const int row = warp * 8 + lane / 4;
        const float factor = factorOf(sums.squares, sums.inputs, sums.epsilon, tile.firstRow + min(row, tile.rows - 1));
        if (lane % 4 == 0) factors[row] = factor;
    }
    __syncthreads();
    if (tile.adapter == OneByOne) {
        for (int run = firstRun; run < lastRun; run++)
            for (int first = tile.firstRow + 2 * warp; first < rows; first += 2 * FinishWarps) each(sums, rows, Item{run, first}, factors - tile.firstRow);
        return;
    }
    Sums here = sums;
    here.extra = place;
    here.extraStride = stride;
    here.firstRow = tile.firstRow;
    int prepared[2] = {-1, -1};
#pragma unroll 1
    for (int run = firstRun; run < lastRun; run++) {
        const int begin = run * width, end = min(columns, begin + width);
#pragma unroll
        for (int h = 0; h < halves; h++) {
            takeRows(tile, sums.y, sums.stride, h * columns + begin, h * columns + end, place + h * width, stride);
            if (run + 1 < lastRun) prefetchRun(tile, sums.y, sums.stride, h * columns + begin + width, h * columns + min(columns, end + width));
        }
        if (KIND == Residual) {
            takeRows(tile, f.x, f.xStride, begin, end, place + width, stride);
            if (run + 1 < lastRun) prefetchRun(tile, f.x, f.xStride, begin + width, min(columns, end + width));
        }
        commitCopies();
        if (tile.adapter >= 0)
#pragma unroll
            for (int h = 0; h < halves; h++)
                expandTile(tile, site, modules, h * columns + begin, h * columns + end, place + h * width, stride, (U32x4*)(memory + h * ZBytes), prepared[h]);
        awaitCopies<0>();
        __syncthreads();
        here.firstColumn = begin;
        here.secondColumn = columns + begin - width;
        for (int first = tile.firstRow + 2 * warp; first < rows; first += 2 * FinishWarps) whole(here, rows, Item{run, first}, factors - tile.firstRow);
        __syncthreads();                                                    // the next run's sums take their place
    }
}

// 128 registers, for z, b and sums: with half of them they would live in memory.
#define FINISH(KIND) \
    extern "C" __global__ __launch_bounds__(FinishWarps * 32, 2) void adapted##KIND(const AdapterTile* tiles, const int* adapterOf, Sums sums, Finish finish, Site site, int count) { \
        DYNAMIC_SHARED(memory); \
        __shared__ float factors[TileRows]; \
        __shared__ Lora modules[3]; \
        letNextStart(); \
        awaitPrevious(); \
        finishTile<KIND>(tiles, sums, finish, site, count, memory, factors, modules, \
            [&](const Sums& s, int rows, Item item, const float* factors) { finish##KIND<0>(finish, s, adapterOf, rows, item, 0, factors); }, \
            [&](const Sums& s, int rows, Item item, const float* factors) { finish##KIND<1>(finish, s, adapterOf, rows, item, 0, factors); }); \
    }
FINISH(Residual)
FINISH(Rope)
FINISH(SwiGlu)
FINISH(Plain)

// ---- What adapters add to the short rows, to y. `shrunk` is 0 before.

extern "C" __global__ __launch_bounds__(256, 1) void adaptShort(const Step* step, const int* shortAdapters, const int* shortRows, const u16* x, int xStride, Site site, u32* shrunk, float* y, int yStride) {
    DYNAMIC_SHARED(memory);
    letNextStart();
    bool ready = false;
    const auto whenReady = [&] {
        if (!ready) awaitPrevious();
        ready = true;
    };
    const ShortRows shorts = {step->shortRows, step->slices[site.kind], shortAdapters, shortRows};
    Room& room = ((Room*)memory)[threadIdx.x / 32];
    Walk ahead;
    adaptRows(shorts, site, x, xStride, y, yStride, Party{1, 256}, shrunk, room, ahead, [&] { start(ahead, shorts, site, threadIdx.x / 32, 8, room); }, whenReady);
}
