// Attention over cached blocks where they lie, for head sizes up to 128. Keys and values go from memory straight into the registers in which
// tensor cores want them: within 32 dimensions the order is free as long as both factors agree, so each lane takes 8 neighbours; values, which
// are wanted the other way round, are turned eight by eight (movmatrix). No shared memory, no barrier in the loop.
//
//   y[r, h] = Σ_p softmax_p(q[r, h]·k[p] / sqrt(headDim)) v[p] over p ≤ position[r], and p > position[r] − window where there is one
//
// Positions come in steps of 16 counted from 0 and decoding rows' in pieces of 256, so the order of a row's sums is that of its positions.

struct Cache {
    const u16 *keys, *values;       // [block][kvHead][position][dimStride], keys rotated, pads zero
    int blockSize, kvHeads, headDim, dimStride;
};
struct AttendItem { int row, position, first, end, blocks, part, parts, reserved; };        // positions first … end − 1, part of parts of a decoding row
struct AttendTile { int firstRow, rows, firstPosition, blocks; };                           // at most 64 rows of a prompt

static const int TileRows = 64;
static const float Nothing = -1e30f;                        // below every score

#ifndef EMULATED
// The 8×8 matrix of the warp, transposed.
DEVICE u32 turned(u32 v) {
    u32 t;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(t) : "r"(v));
    return t;
}
#endif

DEVICE U32x4 zero4() { return U32x4{0, 0, 0, 0}; }

// 16 positions' keys or values of a head: lane 4g + q has dimensions 32b + 8q … + 7 of positions first + g and first + 8 + g; those outside
// [from, end) are zero, whatever lies there.
template <int NB>
DEVICE void loadStep(U32x4 (&low)[NB], U32x4 (&high)[NB], const u16* data, const Cache& cache, const int* blocks, int kvHead, int first, int from, int end) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int p = first + half * 8 + g;
        const bool in = p >= from && p < end;
        const u16* row = data;
        if (in) row += (((long long)blocks[p / cache.blockSize] * cache.kvHeads + kvHead) * cache.blockSize + p % cache.blockSize) * cache.dimStride;
#pragma unroll
        for (int b = 0; b < NB; b++) {
            const U32x4 v = in && b * 32 + q * 8 < cache.dimStride ? *(const U32x4*)(row + b * 32 + q * 8) : zero4();
            if (half == 0) low[b] = v; else high[b] = v;
        }
    }
}

// Lane 4g + q has 8 dimensions of row g of q, as loadStep has them of a position.
template <int NB>
DEVICE void loadQuery(U32x4 (&to)[NB], const u16* row, bool in, int dimStride) {
    const int q = threadIdx.x % 4;
#pragma unroll
    for (int b = 0; b < NB; b++) to[b] = in && b * 32 + q * 8 < dimStride ? *(const U32x4*)(row + b * 32 + q * 8) : zero4();
}

// s (16 rows × 8 positions) = the rows' dot products with the keys.
template <int NB>
DEVICE void scores(float (&s)[4], const U32x4 (&a)[NB], const U32x4 (&b)[NB], const U32x4 (&k)[NB]) {
#pragma unroll
    for (int i = 0; i < NB; i++) {
        mma(s, a[i].x, b[i].x, a[i].y, b[i].y, k[i].x, k[i].y);
        mma(s, a[i].z, b[i].z, a[i].w, b[i].w, k[i].z, k[i].w);
    }
}

DEVICE u32 wordOf(const U32x4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// The dimension that row (or column) g of turned matrix j of block b stands for.
DEVICE int dimensionOf(int b, int j, int g) { return b * 32 + g / 2 * 8 + 2 * j + g % 2; }

// Over the four lanes of a row.
DEVICE float rowMax(float v) {
    v = fmaxf(v, __shfl_xor_sync(0xFFFFFFFFu, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xFFFFFFFFu, v, 2));
}
DEVICE float rowSum(float v) {
    v += __shfl_xor_sync(0xFFFFFFFFu, v, 1);
    return v + __shfl_xor_sync(0xFFFFFFFFu, v, 2);
}

// ---- Decoding: one row's heads of a kv head (up to 8 at a time) are the matrix rows; the answer is summed transposed, dimensions by heads.
// Four warps share a piece's steps; their sums are joined, then the pieces', by whoever finishes last.
// Block (items, kvHeads · headBlocks). partial: [item][y of the grid][8·(dimStride + 2)] fp32; arrived: [row][y of the grid], zero, and zero again afterwards.
template <int NB>
DEVICE void attendItem(const AttendItem& item, int index, const int* blockTable, const u16* query, const Cache& cache, int heads, int window, float* partial, u32* arrived, u16* y, int yStride, float* shared) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int group = heads / cache.kvHeads, headBlocks = (group + 7) / 8, kvHead = blockIdx.y / headBlocks, firstHead = blockIdx.y % headBlocks * 8, mine = min(8, group - firstHead);
    const int head0 = kvHead * group + firstHead, each = cache.dimStride + 2;
    const int from = window > 0 ? max(item.first, item.position - window + 1) : item.first;
    const float scale = rsqrtf((float)cache.headDim) * 1.4426950408889634f;        // weights are powers of two
    const int* blocks = blockTable + item.blocks;

    U32x4 rows[NB], none[NB];
    loadQuery<NB>(rows, query + ((long long)item.row * heads + head0 + g) * cache.dimStride, g < mine, cache.dimStride);
#pragma unroll
    for (int b = 0; b < NB; b++) none[b] = zero4();
    float most = Nothing, total = 0.f, sum[NB][2][4] = {};
    for (int first = item.first + warp * 16; first < item.end; first += 64) {
        if (first + 16 <= from) continue;
        U32x4 low[NB], high[NB], vLow[NB], vHigh[NB];
        loadStep<NB>(low, high, cache.keys, cache, blocks, kvHead, first, from, item.end);
        loadStep<NB>(vLow, vHigh, cache.values, cache, blocks, kvHead, first, from, item.end);
        float s0[4] = {}, s1[4] = {};
        scores<NB>(s0, rows, none, low);
        scores<NB>(s1, rows, none, high);
        // Head g at positions first + 2q, + 1, + 8, + 9.
        float s[4] = {s0[0] * scale, s0[1] * scale, s1[0] * scale, s1[1] * scale};
        bool in[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int p = first + i / 2 * 8 + 2 * q + i % 2;
            in[i] = p >= from && p < item.end;
            if (!in[i]) s[i] = Nothing;
        }
        const float now = fmaxf(most, rowMax(fmaxf(fmaxf(s[0], s[1]), fmaxf(s[2], s[3])))), keep = exp2f(most - now);
        float w[4];
#pragma unroll
        for (int i = 0; i < 4; i++) w[i] = in[i] ? exp2f(s[i] - now) : 0.f;
        total = total * keep + rowSum((w[0] + w[1]) + (w[2] + w[3]));
        most = now;
        const u32 p0 = packBf16(w[0], w[1]), p1 = packBf16(w[2], w[3]);
        const float keep0 = __shfl_sync(0xFFFFFFFFu, keep, 8 * q), keep1 = __shfl_sync(0xFFFFFFFFu, keep, 8 * q + 4);    // of heads 2q and 2q + 1
#pragma unroll
        for (int b = 0; b < NB; b++)
#pragma unroll
            for (int t = 0; t < 2; t++) {
                float (&d)[4] = sum[b][t];
                d[0] *= keep0; d[1] *= keep1; d[2] *= keep0; d[3] *= keep1;
                mma(d, turned(wordOf(vLow[b], 2 * t)), turned(wordOf(vLow[b], 2 * t + 1)), turned(wordOf(vHigh[b], 2 * t)), turned(wordOf(vHigh[b], 2 * t + 1)), p0, p1);
            }
    }

    // The warps' sums side by side: for each head (max, total, dimensions).
    __syncthreads();
    float* own = shared + warp * 8 * each;
    if (q == 0) { own[g * each] = most; own[g * each + 1] = total; }
#pragma unroll
    for (int b = 0; b < NB; b++)
#pragma unroll
        for (int t = 0; t < 2; t++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int d = dimensionOf(b, 2 * t + e / 2, g);
                if (d < cache.dimStride) own[(2 * q + e % 2) * each + 2 + d] = sum[b][t][e];
            }
    __syncthreads();
    float* out = partial + ((long long)index * gridDim.y + blockIdx.y) * 8 * each;
    for (int i = threadIdx.x; i < mine * each; i += blockDim.x) {
        const int h = i / each, e = i % each;
        float top = Nothing;
        for (int w = 0; w < 4; w++) top = fmaxf(top, shared[(w * 8 + h) * each]);
        float v = 0.f;
        for (int w = 0; w < 4; w++) v += shared[(w * 8 + h) * each + e] * exp2f(shared[(w * 8 + h) * each] - top);
        if (e == 0) v = top;
        if (item.parts > 1) out[i] = v;
        else if (e >= 2 && e - 2 < cache.headDim) {
            float all = 0.f;
            for (int w = 0; w < 4; w++) all += shared[(w * 8 + h) * each + 1] * exp2f(shared[(w * 8 + h) * each] - top);
            y[(long long)item.row * yStride + (head0 + h) * cache.headDim + e - 2] = toBf16(v / all);
        }
    }
    if (item.parts == 1) return;

    __shared__ u32 last;
    __threadfence();
    __syncthreads();
    u32* counter = arrived + (long long)item.row * gridDim.y + blockIdx.y;
    if (threadIdx.x == 0) {
        last = atomicAdd(counter, 1u) == (u32)item.parts - 1;
        if (last) *counter = 0;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    const long long step = (long long)gridDim.y * 8 * each;
    const volatile float* parts = partial + ((long long)(index - item.part) * gridDim.y + blockIdx.y) * 8 * each;
    for (int i = threadIdx.x; i < mine * cache.headDim; i += blockDim.x) {
        const int h = i / cache.headDim, d = i % cache.headDim;
        float top = Nothing, all = 0.f, v = 0.f;
        for (int p = 0; p < item.parts; p++) top = fmaxf(top, parts[p * step + h * each]);
        for (int p = 0; p < item.parts; p++) {
            const float keep = exp2f(parts[p * step + h * each] - top);
            all += parts[p * step + h * each + 1] * keep;
            v += parts[p * step + h * each + 2 + d] * keep;
        }
        y[(long long)item.row * yStride + (head0 + h) * cache.headDim + d] = toBf16(v / all);
    }
}

// ---- Prompts: a warp takes 16 rows of a head. Block (tiles, heads).
template <int NB>
DEVICE void attendTile(const AttendTile& tile, const int* blockTable, const u16* query, const Cache& cache, int heads, int window, u16* y, int yStride) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int head = blockIdx.y, kvHead = head / (heads / cache.kvHeads), row = warp * 16 + g;           // in the tile; and row + 8
    if (warp * 16 >= tile.rows) return;
    const int position = tile.firstPosition + row, end = tile.firstPosition + min(tile.rows, warp * 16 + 16);
    const int start = window > 0 ? max(0, tile.firstPosition + warp * 16 - window + 1) : 0;
    const float scale = rsqrtf((float)cache.headDim) * 1.4426950408889634f;
    const int* blocks = blockTable + tile.blocks;

    U32x4 upper[NB], lower[NB];
    const u16* from = query + ((long long)(tile.firstRow + row) * heads + head) * cache.dimStride;
    loadQuery<NB>(upper, from, row < tile.rows, cache.dimStride);
    loadQuery<NB>(lower, from + 8ll * heads * cache.dimStride, row + 8 < tile.rows, cache.dimStride);
    float most[2] = {Nothing, Nothing}, total[2] = {}, sum[NB][4][4] = {};
    for (int first = start / 16 * 16; first < end; first += 16) {
        U32x4 low[NB], high[NB];
        loadStep<NB>(low, high, cache.keys, cache, blocks, kvHead, first, start, end);
        float s0[4] = {}, s1[4] = {};
        scores<NB>(s0, upper, lower, low);
        scores<NB>(s1, upper, lower, high);
        loadStep<NB>(low, high, cache.values, cache, blocks, kvHead, first, start, end);
        float w[2][4];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int at = position + half * 8;
            float s[4] = {s0[half * 2] * scale, s0[half * 2 + 1] * scale, s1[half * 2] * scale, s1[half * 2 + 1] * scale};
            bool in[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int p = first + i / 2 * 8 + 2 * q + i % 2;
                in[i] = p <= at && p >= start && (window <= 0 || p > at - window);
                if (!in[i]) s[i] = Nothing;
            }
            const float now = fmaxf(most[half], rowMax(fmaxf(fmaxf(s[0], s[1]), fmaxf(s[2], s[3])))), keep = exp2f(most[half] - now);
#pragma unroll
            for (int i = 0; i < 4; i++) w[half][i] = in[i] ? exp2f(s[i] - now) : 0.f;
            total[half] = total[half] * keep + rowSum((w[half][0] + w[half][1]) + (w[half][2] + w[half][3]));
            most[half] = now;
#pragma unroll
            for (int b = 0; b < NB; b++)
#pragma unroll
                for (int j = 0; j < 4; j++) { sum[b][j][half * 2] *= keep; sum[b][j][half * 2 + 1] *= keep; }
        }
        const u32 a0 = packBf16(w[0][0], w[0][1]), a1 = packBf16(w[1][0], w[1][1]), a2 = packBf16(w[0][2], w[0][3]), a3 = packBf16(w[1][2], w[1][3]);
#pragma unroll
        for (int b = 0; b < NB; b++)
#pragma unroll
            for (int j = 0; j < 4; j++) mma(sum[b][j], a0, a1, a2, a3, turned(wordOf(low[b], j)), turned(wordOf(high[b], j)));
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (row + half * 8 >= tile.rows) continue;
        const float share = 1.f / total[half];
        u16* to = y + (long long)(tile.firstRow + row + half * 8) * yStride + head * cache.headDim;
#pragma unroll
        for (int b = 0; b < NB; b++)
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const int d = dimensionOf(b, j, 2 * q + e);
                    if (d < cache.headDim) to[d] = toBf16(sum[b][j][half * 2 + e] * share);
                }
    }
}

// Names end in the number of 32 dimensions. Decoding: 128 threads, 32·(dimStride + 2) floats shared. Prompts: 128 threads.
#define ATTEND(NB) \
    extern "C" __global__ __launch_bounds__(128) void attendDecode_##NB(const Step* step, const AttendItem* items, const int* blockTable, const u16* query, Cache cache, int heads, int window, \
        float* partial, u32* arrived, u16* y, int yStride) { \
        DYNAMIC_SHARED(memory); \
        letNextStart(); \
        awaitPrevious(); \
        for (int i = blockIdx.x; i < step->attendItems; i += gridDim.x) \
            attendItem<NB>(items[i], i, blockTable, query, cache, heads, window, partial, arrived, y, yStride, (float*)memory); \
    } \
    extern "C" __global__ __launch_bounds__(128) void attendPrompt_##NB(const Step* step, const AttendTile* tiles, const int* blockTable, const u16* query, Cache cache, int heads, int window, u16* y, int yStride) { \
        letNextStart(); \
        awaitPrevious(); \
        for (int i = blockIdx.x; i < step->tiles; i += gridDim.x) attendTile<NB>(tiles[i], blockTable, query, cache, heads, window, y, yStride); \
    }
ATTEND(1) ATTEND(2) ATTEND(3) ATTEND(4)
