// Attention of decoding rows: one query a row and head against keys and values that are read once, so the floor is their bytes over the memory's
// rate. The heads that share a key's head are the rows of a tensor-core tile, so a key is read once for all of them. Work is cut at 512 positions
// (the host's items) times key heads; in a block each of four warps takes every fourth tile of 16 positions and streams its tiles
// through a ring of its own, which runs on into the block's next piece while the present one is finished.
// A row of several parts leaves (out, top, sum) of each in the workspace, and the block that comes last adds them in order. Which warp sees which
// position, and the order of every sum, follow from the position alone.
//
//   y[r, h] = Σ_p softmax_p(q[r, h]·k[p] / sqrt(headDim)) v[p] over p ≤ position[r], and p > position[r] − window where there is one
//
// Needs attend.cuh.

static const int DecodeThreads = 128, DecodeWarps = DecodeThreads / 32;
static const int TilePositions = 16, TileHeads = 16;        // what one mma sees
static const int Stages = 2;                                // of a key and a value tile, per warp

// A warp's tiles of an item: every fourth from `tile` (a tile is position / 16), of which positions from … end − 1 are seen.
struct Share { int tile, endTile, from, end; };
DEVICE Share shareOf(const AttendItem& item, int window, int warp) {
    const int from = window > 0 ? max(item.first, item.position - window + 1) : item.first, start = from / TilePositions;
    return { start + ((warp - start) & (DecodeWarps - 1)), from < item.end ? (item.end + TilePositions - 1) / TilePositions : 0, from, item.end };
}

// The warp's way through the tiles of all pieces of its block, a ring's length ahead of the arithmetic.
struct Fetch {
    int unit, slot;                 // slot: of position lane % 16 of the tile to fetch next, −1 where nothing is seen
    Share share;
    const int* table;
    int kvHead, newest;             // tile of the row's own position, which the kernel before this one has written
};
DEVICE void advance(Fetch& f, const AttendItem* items, int units, int slices, int perKvHead, const int* blockTable, const Cache& cache, int window) {
    f.share.tile += DecodeWarps;
    while (f.share.tile >= f.share.endTile && f.unit < units) {
        f.unit += gridDim.x;
        if (f.unit < units) {
            const AttendItem& item = items[f.unit / slices];
            f.share = shareOf(item, window, threadIdx.x / 32);
            f.table = blockTable + item.blocks;
            f.kvHead = f.unit % slices / perKvHead;
            f.newest = item.position / TilePositions;
        }
    }
    const int p = f.share.tile * TilePositions + (threadIdx.x & 15);
    f.slot = f.unit < units && p >= f.share.from && p < f.share.end ? slotOf(cache, f.table, f.kvHead, p) : -1;
}

// Both tiles of the positions whose slots the lanes hold; what is not seen becomes 0, as 0 times anything else may be NaN.
template <int DIM>
DEVICE void fetchTile(u16* stage, const Cache& cache, int slot) {
    const int lane = threadIdx.x % 32, pieces = DIM / 8, row = DIM + 8;
#pragma unroll
    for (int i = 0; i < TilePositions * pieces / 32; i++) {
        const int n = lane + 32 * i, r = n / pieces, c = n % pieces * 8, from = __shfl_sync(0xFFFFFFFFu, slot, r);
        const long long at = (long long)max(from, 0) * DIM + c;
        copyAsync(stage + r * row + c, cache.keys + at, from < 0 ? 0 : 16);
        copyAsync(stage + (TilePositions + r) * row + c, cache.values + at, from < 0 ? 0 : 16);
    }
}

// s = q·k for 16 heads and 16 positions, weights from it, out += weights·v.
template <int DIM>
DEVICE void attendPositions(const u16* stage, const u32 (&q)[DIM / 16][4], float (&out)[DIM / 8][4], float (&top)[2], float (&sum)[2], const Share& share, int tile, float scale) {
    const int lane = threadIdx.x % 32, row = DIM + 8;
    float s[2][4] = {};
    const u16* key = stage + rowsAsColumnsOffset(lane, row);
#pragma unroll
    for (int k = 0; k < DIM / 16; k++) {
        u32 b[4];
        loadMatrices(b, key + k * 16);
        mma(s[0], q[k][0], q[k][1], q[k][2], q[k][3], b[0], b[1]);
        mma(s[1], q[k][0], q[k][1], q[k][2], q[k][3], b[2], b[3]);
    }
#pragma unroll
    for (int n = 0; n < 2; n++)
        for (int e = 0; e < 4; e++) {
            const int p = tile * TilePositions + n * 8 + lane % 4 * 2 + e % 2;
            s[n][e] = p >= share.from && p < share.end ? s[n][e] : nothing();
        }
    weigh(s, out, top, sum, scale);
    const u32 a0 = packBf16(s[0][0], s[0][1]), a1 = packBf16(s[0][2], s[0][3]), a2 = packBf16(s[1][0], s[1][1]), a3 = packBf16(s[1][2], s[1][3]);
    const u16* value = stage + TilePositions * row + pieceOffset(lane, row);
#pragma unroll
    for (int n = 0; n < DIM / 16; n++) {
        u32 b[4];
        loadMatricesTransposed(b, value + n * 16);
        mma(out[2 * n], a0, a1, a2, a3, b[0], b[1]);
        mma(out[2 * n + 1], a0, a1, a2, a3, b[2], b[3]);
    }
}

// (out, top, sum) of neighbouring positions, two columns of a head. Tops are exponents of two; −∞ goes with zeros.
struct Running { float low, high, top, sum; };
DEVICE void join(Running& r, float low, float high, float top, float sum) {
    const float most = fmaxf(r.top, top), reference = most == nothing() ? 0.f : most, keep = powerOf2(r.top - reference), weight = powerOf2(top - reference);
    r = { r.low * keep + low * weight, r.high * keep + high * weight, most, r.sum * keep + sum * weight };
}

DEVICE void put(u16* y, int column, int headDim, const Running& r) {
    if (column < headDim) *(u32*)(y + column) = packBf16(r.low / r.sum, r.high / r.sum);
}

// The warps' shares of an item become y, or a part in the workspace; a row's last part to come makes y of them all.
// partial: [warp][row][DIM + 8], ends: [warp][row] (top, sum); rows: heads from firstHead on.
template <int DIM>
DEVICE void finish(const float* partial, const float* ends, int rows, int rowsMost, const AttendItem& item, int index, int firstHead, int heads, const Cache& cache, float* workspace, int* counter, u16* y) {
    __shared__ int isLast;
    const int stride = DIM + 2;                                     // of a part in the workspace: out, top, sum
    __syncthreads();
    for (int i = threadIdx.x; i < rows * (DIM / 2); i += DecodeThreads) {
        const int r = i / (DIM / 2), c = i % (DIM / 2) * 2;
        Running all = { 0.f, 0.f, nothing(), 0.f };
        for (int w = 0; w < DecodeWarps; w++) {
            const float *out = partial + (w * rowsMost + r) * (DIM + 8) + c, *end = ends + (w * rowsMost + r) * 2;
            join(all, out[0], out[1], end[0], end[1]);
        }
        if (item.parts == 1) put(y + (firstHead + r) * cache.headDim, c, cache.headDim, all);
        else {
            float* to = workspace + ((long long)index * heads + firstHead + r) * stride;
            to[c] = all.low;
            to[c + 1] = all.high;
            if (c == 0) {
                to[DIM] = all.top;
                to[DIM + 1] = all.sum;
            }
        }
    }
    if (item.parts > 1) {
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            isLast = atomicAdd(counter, 1) == item.parts - 1;
            if (isLast) *counter = 0;                               // as the next launch wants it
            __threadfence();
        }
        __syncthreads();
        if (isLast)
            for (int i = threadIdx.x; i < rows * (DIM / 2); i += DecodeThreads) {
                const int r = i / (DIM / 2), c = i % (DIM / 2) * 2, ahead = 8;
                const volatile float* parts = workspace + ((long long)(index - item.part) * heads + firstHead + r) * stride;   // volatile: past the L1
                Running all = { 0.f, 0.f, nothing(), 0.f };
                for (int p = 0; p < item.parts; p += ahead) {
                    float v[ahead][4];
#pragma unroll
                    for (int j = 0; j < ahead; j++) {
                        const volatile float* part = parts + (long long)min(p + j, item.parts - 1) * heads * stride;
                        v[j][0] = part[c];
                        v[j][1] = part[c + 1];
                        v[j][2] = part[DIM];
                        v[j][3] = part[DIM + 1];
                    }
#pragma unroll
                    for (int j = 0; j < ahead; j++)
                        if (p + j < item.parts) join(all, v[j][0], v[j][1], v[j][2], v[j][3]);
                }
                put(y + (firstHead + r) * cache.headDim, c, cache.headDim, all);
            }
    }
    __syncthreads();                                                // partial and ends may be written again
}

template <int DIM>
DEVICE void decode(const Step* step, const AttendItem* items, const int* blockTable, const u16* q, const Cache& cache, int heads, int window, u16* y, int yStride, float* workspace, int* counters) {
    DYNAMIC_SHARED(memory);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, column = lane % 4 * 2;
    const int group = heads / cache.kvHeads, rowsMost = min(group, TileHeads), perKvHead = (group + TileHeads - 1) / TileHeads, slices = cache.kvHeads * perKvHead;
    const int stageSize = 2 * TilePositions * (DIM + 8);
    u16* ring = (u16*)memory + warp * Stages * stageSize;
    float* partial = (float*)((u16*)memory + DecodeWarps * Stages * stageSize);
    float* ends = partial + DecodeWarps * rowsMost * (DIM + 8);
    const float scale = scaleOf(cache);
    letNextStart();
    const int units = step->attendItems * slices;

    // Keys and values of earlier steps need not wait.
    Fetch ahead = { (int)blockIdx.x - (int)gridDim.x, -1, { 0, 0, 0, 0 }, blockTable, 0, 0 };
    advance(ahead, items, units, slices, perKvHead, blockTable, cache, window);
    bool waited = false;
    for (int i = 0; i < Stages; i++) {
        if (!waited && ahead.unit < units && ahead.share.tile == ahead.newest) {
            awaitPrevious();
            waited = true;
        }
        if (ahead.unit < units) fetchTile<DIM>(ring + i * stageSize, cache, ahead.slot);
        commitCopies();
        advance(ahead, items, units, slices, perKvHead, blockTable, cache, window);
    }
    if (!waited) awaitPrevious();
    int stage = 0;
    for (int unit = blockIdx.x; unit < units; unit += gridDim.x) {
        const AttendItem item = items[unit / slices];
        const int slice = unit % slices, firstHead = slice / perKvHead * group + slice % perKvHead * TileHeads, rows = min(TileHeads, group - slice % perKvHead * TileHeads);
        const u16* mine = q + ((long long)item.row * heads + firstHead + g) * DIM + column;
        u32 query[DIM / 16][4];
#pragma unroll
        for (int k = 0; k < DIM / 16; k++) {
            query[k][0] = g < rows ? *(const u32*)(mine + k * 16) : 0;
            query[k][1] = g + 8 < rows ? *(const u32*)(mine + 8 * DIM + k * 16) : 0;
            query[k][2] = g < rows ? *(const u32*)(mine + k * 16 + 8) : 0;
            query[k][3] = g + 8 < rows ? *(const u32*)(mine + 8 * DIM + k * 16 + 8) : 0;
        }
        float out[DIM / 8][4] = {}, top[2] = { nothing(), nothing() }, sum[2] = {};
        const Share share = shareOf(item, window, warp);
        for (int tile = share.tile; tile < share.endTile; tile += DecodeWarps) {
            awaitCopies<Stages - 1>();
            __syncwarp();
            attendPositions<DIM>(ring + stage * stageSize, query, out, top, sum, share, tile, scale);
            __syncwarp();
            if (ahead.unit < units) fetchTile<DIM>(ring + stage * stageSize, cache, ahead.slot);
            commitCopies();
            advance(ahead, items, units, slices, perKvHead, blockTable, cache, window);
            stage = (stage + 1) % Stages;
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int r = g + 8 * half;
            const float total = quadSum(sum[half]);
            if (r < rows) {
                float* to = partial + (warp * rowsMost + r) * (DIM + 8) + column;
#pragma unroll
                for (int n = 0; n < DIM / 8; n++) *(F32x2*)(to + n * 8) = { out[n][2 * half], out[n][2 * half + 1] };
                if (column == 0) *(F32x2*)(ends + (warp * rowsMost + r) * 2) = { top[half] * scale, total };
            }
        }
        finish<DIM>(partial, ends, rows, rowsMost, item, unit / slices, firstHead, heads, cache, workspace, counters + item.row * slices + slice, y + (long long)item.row * yStride);
    }
}

// attendDecode_D for dimStride D. 128 threads; blocks: as many as stay on the GPU, no more than items · key heads. Dynamic shared memory, in bytes:
// (D + 8)·(512 + 16·R) + 32·R with R = min(group, 16). workspace: items · heads · (D + 2) floats, needed where a row has several parts.
// counters: an int for each row and head at most, zero before and after.
#define DECODE(D, RESIDENT) \
    extern "C" __global__ __launch_bounds__(DecodeThreads, RESIDENT) void attendDecode_##D(const Step* step, const AttendItem* items, const int* blockTable, const u16* q, Cache cache, int heads, int window, u16* y, int yStride, float* workspace, int* counters) { \
        decode<D>(step, items, blockTable, q, cache, heads, window, y, yStride, workspace, counters); \
    }
DECODE(16, 4)
DECODE(32, 4)
DECODE(48, 4)
DECODE(64, 4)
DECODE(80, 3)
DECODE(96, 3)
DECODE(112, 2)
DECODE(128, 2)
