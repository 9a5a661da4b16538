// Attention of prompts: 128 rows of a sequence and one head a block, keys and values gathered from their blocks 64 positions at a time while the
// 64 before are multiplied, scores and weights never leave registers (FlashAttention-2, arxiv.org/abs/2307.08691). A warp holds 32 rows, so that
// a key fetched from shared memory serves four mma. Stages of positions begin at multiples of 64 of the sequence and whatever is done to a
// row is done to it alone, so a row's sums are the same however its prompt was cut.
//
//   y[r, h] = Σ_p softmax_p(q[r, h]·k[p] / sqrt(headDim)) v[p] over p ≤ position[r], and p > position[r] − window where there is one
//
// Needs attend.cuh.

static const int PrefillThreads = 128, PrefillWarps = PrefillThreads / 32;
static const int StagePositions = 64;
static const int RowTiles = AttendTileRows / 16 / PrefillWarps;     // of 16 rows; a warp takes rows 16·warp … and 64 + 16·warp …, so that short tiles are shared too

// Where position p lies; −1 where no row of the tile sees it.
DEVICE int seenSlot(const Cache& cache, const int* table, int kvHead, int p, int from, int end) {
    return p >= from && p < end ? slotOf(cache, table, kvHead, p) : -1;
}

// A stage's keys and values; what is not seen becomes 0.
template <int DIM>
DEVICE void fetchStage(u16* keys, u16* values, const Cache& cache, const int* slots) {
    const int pieces = DIM / 8, row = DIM + 8;
#pragma unroll
    for (int i = 0; i < StagePositions * pieces / PrefillThreads; i++) {
        const int n = threadIdx.x + PrefillThreads * i, r = n / pieces, c = n % pieces * 8, from = slots[r];
        const long long at = (long long)max(from, 0) * DIM + c;
        copyAsync(keys + r * row + c, cache.keys + at, from < 0 ? 0 : 16);
        copyAsync(values + r * row + c, cache.values + at, from < 0 ? 0 : 16);
    }
}

// Whether this thread's own pieces of a stage's values hold ∞ or NaN.
template <int DIM>
DEVICE bool fetchedBroken(const u16* values) {
    const int pieces = DIM / 8, row = DIM + 8;
    bool broken = false;
    for (int i = 0; i < StagePositions * pieces / PrefillThreads; i++) {
        const int n = threadIdx.x + PrefillThreads * i;
        const u32* v = (const u32*)(values + n / pieces * row + n % pieces * 8);
        for (int j = 0; j < 4; j++) broken |= (v[j] & 0x7F80u) == 0x7F80u || (v[j] & 0x7F800000u) == 0x7F800000u;
    }
    return broken;
}

// Which rows see which positions. The lane's rows are first + 64·tile and 8 beyond it.
struct Sight { int first, window; };
DEVICE bool sees(const Sight& sight, int tile, int half, int p) {
    const int own = sight.first + 64 * tile + 8 * half;
    return p <= own && (sight.window <= 0 || p > own - sight.window);
}

// Where only some rows of a block see a stage, a weight of 0 would meet the broken values of positions that a row does not see. Such values are
// taken out, and rows that do see them become NaN.
template <int DIM>
DEVICE void setBrokenApart(u16* values, int* broken, float (&out)[RowTiles][DIM / 8][4], const Sight& sight, int position) {
    if (threadIdx.x < StagePositions) {
        u16* row = values + threadIdx.x * (DIM + 8);
        bool any = false;
        for (int c = 0; c < DIM; c++) any |= (row[c] & 0x7F80) == 0x7F80;
        broken[threadIdx.x] = any;
        if (any)
            for (int c = 0; c < DIM; c++) row[c] = 0;
    }
    __syncthreads();
    const float nan = __uint_as_float(0x7FC00000u);
#pragma unroll 1
    for (int p = 0; p < StagePositions; p++)
        if (broken[p])
#pragma unroll
            for (int tile = 0; tile < RowTiles; tile++)
#pragma unroll
                for (int e = 0; e < 4; e++)
#pragma unroll
                    for (int n = 0; n < DIM / 8; n++) out[tile][n][e] = sees(sight, tile, e / 2, position + p) ? nan : out[tile][n][e];
}

// A warp's 32 rows and a stage: s = q·k, weights from it, out += weights·v. position: of the stage's first.
template <int DIM>
DEVICE void attendStage(const u16* queries, const u16* keys, const u16* values, float (&out)[RowTiles][DIM / 8][4], float (&top)[RowTiles][2], float (&sum)[RowTiles][2], const Sight& sight, bool mixed, int position, float scale) {
    const int lane = threadIdx.x % 32, row = DIM + 8;
    float s[RowTiles][StagePositions / 8][4] = {};
    const u16 *query = queries + pieceOffset(lane, row), *key = keys + rowsAsColumnsOffset(lane, row), *value = values + pieceOffset(lane, row);
#pragma unroll
    for (int k = 0; k < DIM / 16; k++) {
        u32 a[RowTiles][4];
#pragma unroll
        for (int tile = 0; tile < RowTiles; tile++) loadMatrices(a[tile], query + tile * 64 * row + k * 16);
#pragma unroll
        for (int n = 0; n < StagePositions / 16; n++) {
            u32 b[4];
            loadMatrices(b, key + n * 16 * row + k * 16);
#pragma unroll
            for (int tile = 0; tile < RowTiles; tile++) {
                mma(s[tile][2 * n], a[tile][0], a[tile][1], a[tile][2], a[tile][3], b[0], b[1]);
                mma(s[tile][2 * n + 1], a[tile][0], a[tile][1], a[tile][2], a[tile][3], b[2], b[3]);
            }
        }
    }
#pragma unroll
    for (int tile = 0; tile < RowTiles; tile++) {
        if (mixed)
#pragma unroll
            for (int n = 0; n < StagePositions / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) s[tile][n][e] = sees(sight, tile, e / 2, position + n * 8 + lane % 4 * 2 + e % 2) ? s[tile][n][e] : nothing();
        weigh(s[tile], out[tile], top[tile], sum[tile], scale);
    }
#pragma unroll
    for (int k = 0; k < StagePositions / 16; k++) {
        u32 a[RowTiles][4];
#pragma unroll
        for (int tile = 0; tile < RowTiles; tile++)
#pragma unroll
            for (int j = 0; j < 4; j++) a[tile][j] = packBf16(s[tile][2 * k + j / 2][j % 2 * 2], s[tile][2 * k + j / 2][j % 2 * 2 + 1]);
#pragma unroll
        for (int n = 0; n < DIM / 16; n++) {
            u32 b[4];
            loadMatricesTransposed(b, value + k * 16 * row + n * 16);
#pragma unroll
            for (int tile = 0; tile < RowTiles; tile++) {
                mma(out[tile][2 * n], a[tile][0], a[tile][1], a[tile][2], a[tile][3], b[0], b[1]);
                mma(out[tile][2 * n + 1], a[tile][0], a[tile][1], a[tile][2], a[tile][3], b[2], b[3]);
            }
        }
    }
}

template <int DIM>
DEVICE void prefill(const Step* step, const AttendTile* tiles, const int* blockTable, const u16* q, const Cache& cache, int heads, int window, u16* y, int yStride) {
    DYNAMIC_SHARED(memory);
    const int row = DIM + 8, stageSize = StagePositions * row, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u16 *queries = (u16*)memory, *keys = queries + AttendTileRows * row, *values = keys + 2 * stageSize;     // keys and values: [2 stages][position][row]
    int *slots = (int*)(values + 2 * stageSize), *broken = slots + 2 * StagePositions;                       // slots: [2 stages][position]
    const int slotThread = threadIdx.x % StagePositions;
    const float scale = scaleOf(cache);
    letNextStart();
    awaitPrevious();
    const int units = step->tiles * heads;
    for (int unit = blockIdx.x; unit < units; unit += gridDim.x) {
        const int index = units - 1 - unit, head = index % heads, kvHead = head / (heads / cache.kvHeads);   // later tiles of a prompt see more: they go first
        const AttendTile tile = tiles[index / heads];
        const int* table = blockTable + tile.blocks;
        const int last = tile.firstPosition + tile.rows - 1, from = window > 0 ? max(0, tile.firstPosition - window + 1) : 0, end = last + 1;
        const int firstStage = from / StagePositions, stages = last / StagePositions + 1 - firstStage;
        const bool active = warp * 16 < tile.rows;
        const Sight sight = { tile.firstPosition + warp * 16 + lane / 4, window };

        __syncthreads();                                            // the tile before has been read
        if (threadIdx.x < 2 * StagePositions) slots[threadIdx.x] = seenSlot(cache, table, kvHead, firstStage * StagePositions + threadIdx.x, from, end);
        for (int i = threadIdx.x; i < AttendTileRows * (DIM / 8); i += PrefillThreads) {
            const int r = i / (DIM / 8), c = i % (DIM / 8) * 8;
            copyAsync(queries + r * row + c, q + ((long long)(tile.firstRow + min(r, tile.rows - 1)) * heads + head) * DIM + c, r < tile.rows ? 16 : 0);
        }
        __syncthreads();
        fetchStage<DIM>(keys, values, cache, slots);
        commitCopies();

        float out[RowTiles][DIM / 8][4] = {}, top[RowTiles][2], sum[RowTiles][2] = {};
#pragma unroll
        for (int i = 0; i < RowTiles; i++) top[i][0] = top[i][1] = nothing();
#pragma unroll 1
        for (int n = 0; n < stages; n++) {
            const int position = (firstStage + n) * StagePositions, now = n & 1;
            const bool mixed = position + StagePositions - 1 > tile.firstPosition || (window > 0 && position <= last - window);
            awaitCopies<0>();
            if (mixed) {
                if (__syncthreads_or(fetchedBroken<DIM>(values + now * stageSize))) setBrokenApart<DIM>(values + now * stageSize, broken, out, sight, position);
            }
            else __syncthreads();
            // Everyone has read the stage before: its room and its slots' are free.
            if (n + 1 < stages) fetchStage<DIM>(keys + (now ^ 1) * stageSize, values + (now ^ 1) * stageSize, cache, slots + (now ^ 1) * StagePositions);
            commitCopies();
            const int slot = seenSlot(cache, table, kvHead, position + 2 * StagePositions + slotThread, from, end);
            if (active) attendStage<DIM>(queries + warp * 16 * row, keys + now * stageSize, values + now * stageSize, out, top, sum, sight, mixed, position, scale);
            if (threadIdx.x < StagePositions) slots[now * StagePositions + slotThread] = slot;
        }
        if (active)
#pragma unroll
            for (int i = 0; i < RowTiles; i++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int r = warp * 16 + 64 * i + lane / 4 + 8 * half;
                    const float inverse = 1.f / quadSum(sum[i][half]);
                    u16* to = y + (long long)(tile.firstRow + r) * yStride + head * cache.headDim;
                    if (r < tile.rows)
#pragma unroll
                        for (int n = 0; n < DIM / 8; n++) {
                            const int c = n * 8 + lane % 4 * 2;
                            if (c < cache.headDim) *(u32*)(to + c) = packBf16(out[i][n][2 * half] * inverse, out[i][n][2 * half + 1] * inverse);
                        }
                }
    }
}

// attendPrefill_D for dimStride D. 128 threads; blocks: the step's most tiles · heads (those beyond the real count end at once, and the GPU deals
// out the others as room comes free), any other number is right too. Dynamic shared memory: (D + 8)·768 + 768 bytes.
#define PREFILL(D) \
    extern "C" __global__ __launch_bounds__(PrefillThreads, 2) void attendPrefill_##D(const Step* step, const AttendTile* tiles, const int* blockTable, const u16* q, Cache cache, int heads, int window, u16* y, int yStride) { \
        prefill<D>(step, tiles, blockTable, q, cache, heads, window, y, yStride); \
    }
PREFILL(16)
PREFILL(32)
PREFILL(48)
PREFILL(64)
PREFILL(80)
PREFILL(96)
PREFILL(112)
PREFILL(128)
