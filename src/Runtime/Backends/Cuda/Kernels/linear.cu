// y = x·wᵀ for the few rows of decoding, and beside it, on warps of their own, what every row's adapter adds to it: extra = scale·B(A(x)).
// A weight is used for a handful of rows only, so the floor is its bytes over the memory's rate. One block stays on each multiprocessor, takes
// an equal share of the weight's bytes whatever its shape (a tile's columns are cut where a share ends), and keeps up to eight stages of 64
// columns on their way while tensor cores eat the first: on Hopper the copy engine fetches and its wide matrix units multiply, elsewhere the
// threads copy and mma does. A share that ends within a tile leaves a partial sum; the kernel that reads y adds the parts in
// order. Where shares end depends on the weight's shape and the GPU alone, so a row's sums are the same in every batch.
//
//   for p, r, o:  y[p, r, o] = Σ_{k in part p} x[r, k]·w[o, k]
//   for r, o:     extra[r, o] = scale·(Σ_k b[k, t]·z[r, (k − i·shiftB) mod r'] + Σ_k bVec[k, o]·z[r, r' + k]),  o = i·chunkHeight + t
//   where         z[r, k] = Σ_j Σ_t a[(k + j·shiftA) mod r', t]·x[r, j·chunkWidth + t];  z[r, r' + k] = Σ_c aVec[k, c]·x[r, c]
#ifndef SHARED_LIMIT
#define SHARED_LIMIT 232448
#endif
// Some is left to the kernels before and after, which so overlap with this one; a third of it would keep the memory busy.
#define STAGE_LIMIT ((SHARED_LIMIT < 180224 ? SHARED_LIMIT : 180224) - HeaderBytes)

static const int MmaThreads = 256, AdapterThreads = 256;    // warps 0-7 multiply, 8-15 see to adapters; on Hopper warp 16 fetches
static const int TileRows = 128;                            // of w
static const int HeaderBytes = 17408;                       // 2 KB for each of the adapters' warps, then barriers; stages follow
static const int StageColumns = 64;                         // k's of a stage: 128 bytes of each row

#ifndef EMULATED
DEVICE void syncMma() { asm volatile("bar.sync 1, 256;" ::: "memory"); }
#endif

// ---- z = A·x: tensor cores with ranks as rows and (row of x, chunk) as columns, so that the compact A is read once for all chunks and rows of x.
// Within 32 columns the order of k is free as long as both factors agree: each lane takes 8 neighbours of its row as two k-steps' halves.
// A warp takes a slice of A's columns for some rows of a group, and shares nothing with other warps.

static const int ShrinkTiles = 2;                           // column tiles of 8 at a time

// 8 values of x at chunk j, column t; those outside the chunk or the row are 0.
DEVICE U32x4 chunkOf(const u16* x, const Lora& m, int j, int t, bool vectors) {
    U32x4 v = {0, 0, 0, 0};
    int c = j * m.chunkWidth + t;
    if (vectors) { if (t < m.chunkWidth && c < m.inputs) v = *(const U32x4*)(x + c); }
    else {
        u32 w[4];
        for (int i = 0; i < 4; i++) {
            u32 low = t + 2 * i < m.chunkWidth && c + 2 * i < m.inputs ? x[c + 2 * i] : 0;
            u32 high = t + 2 * i + 1 < m.chunkWidth && c + 2 * i + 1 < m.inputs ? x[c + 2 * i + 1] : 0;
            w[i] = low | high << 16;
        }
        v.x = w[0]; v.y = w[1]; v.z = w[2]; v.w = w[3];
    }
    return v;
}

// Sums of 16 ranks of A and 16 rows (k, chunk) of A_vec over columns t … end − 1, for column tiles of (row, chunk). Nothing of x is read before
// `waited`: A's first bytes are on their way by then.
template <int TILES>
DEVICE void shrinkTile(float (&sum)[TILES][4], float (&vecs)[TILES][4], const Lora& m, int rank, const u16* x, int xStride, int column, int columns, int t, int end, bool& waited) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, vecRanks = m.unshared * m.chunksA;
    const bool vectors = m.chunkWidth % 8 == 0 && m.inputs % 8 == 0;
    const U32x4 zero = {0, 0, 0, 0};
    const bool in[4] = {rank + g < m.shared, rank + g + 8 < m.shared, rank + g < vecRanks, rank + g + 8 < vecRanks};
    const u16* from[4] = {m.a + (long long)(rank + g) * m.strideA, m.a + (rank + g + 8ll) * m.strideA, m.aVec + (long long)(rank + g) * m.strideA, m.aVec + (rank + g + 8ll) * m.strideA};
    const u16* rows[TILES];
    int chunk[TILES];
    for (int n = 0; n < TILES; n++) {
        int c = column + n * 8 + g;
        chunk[n] = c < columns ? c % m.chunksA : -1;
        rows[n] = x + (long long)(c < columns ? c / m.chunksA : 0) * xStride;
    }
    const int Steps = 2;                                    // of 32 columns, on their way together
    for (; t < end; t += 32 * Steps) {
        U32x4 a[Steps][4], v[Steps][TILES];
#pragma unroll
        for (int s = 0; s < Steps; s++)
#pragma unroll
            for (int f = 0; f < 4; f++) a[s][f] = in[f] && t + s * 32 + q * 8 < end ? loadOnce(from[f] + t + s * 32 + q * 8) : zero;
        if (!waited) { awaitPrevious(); waited = true; }
#pragma unroll
        for (int s = 0; s < Steps; s++)
#pragma unroll
            for (int n = 0; n < TILES; n++) v[s][n] = chunk[n] >= 0 && t + s * 32 + q * 8 < end ? chunkOf(rows[n], m, chunk[n], t + s * 32 + q * 8, vectors) : zero;
#pragma unroll
        for (int s = 0; s < Steps; s++)
#pragma unroll
            for (int n = 0; n < TILES; n++) {
                mma(sum[n], a[s][0].x, a[s][1].x, a[s][0].y, a[s][1].y, v[s][n].x, v[s][n].y);
                mma(sum[n], a[s][0].z, a[s][1].z, a[s][0].w, a[s][1].w, v[s][n].z, v[s][n].w);
                if (rank < vecRanks) {
                    mma(vecs[n], a[s][2].x, a[s][3].x, a[s][2].y, a[s][3].y, v[s][n].x, v[s][n].y);
                    mma(vecs[n], a[s][2].z, a[s][3].z, a[s][2].w, a[s][3].w, v[s][n].z, v[s][n].w);
                }
            }
    }
}

// Adds the chunks' sums to z, chunk by chunk. `fold` is this warp's [16 ranks][32 columns].
template <int TILES>
DEVICE void foldTile(float* fold, const float (&sum)[TILES][4], const Lora& m, bool vec, int rank, int rows, int column, int columns, bool first, float* z, int zRow) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, ranks = vec ? m.unshared : m.shared;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) fold[(g + e / 2 * 8) * 32 + n * 8 + 2 * q + e % 2] = sum[n][e];
    __syncwarp();
    for (int e = lane; e < rows * ranks; e += 32) {
        const int row = e / ranks, k = e % ranks;
        float* to = z + (long long)row * zRow + (vec ? m.shared : 0) + k;
        float total = first ? 0.f : *to;
        const int end = min(min(columns, column + 8 * TILES), (row + 1) * m.chunksA);
        int from = vec ? k * m.chunksA - rank : k;          // rank of chunk 0
        for (int c = row * m.chunksA; c < end; c++) {
            const int r = vec ? from : from - rank;
            if (c >= column && r >= 0 && r < 16) total += fold[r * 32 + c - column];
            if (vec) from++;
            else if ((from += m.shiftA) >= ranks) from %= ranks;
        }
        *to = total;
    }
}

template <int TILES>
DEVICE void shrinkUnit(const Lora& m, const u16* x, int xStride, int rows, int slice, float* z, int zRow, float* fold, bool& waited) {
    const int columns = rows * m.chunksA, width = sliceWidth(m.strideA), most = max(m.shared, m.unshared * m.chunksA);
    for (int rank = 0; rank < most; rank += 16)
        for (int column = 0; column < columns; column += 8 * TILES) {
            float sum[TILES][4] = {}, vecs[TILES][4] = {};
            shrinkTile<TILES>(sum, vecs, m, rank, x, xStride, column, columns, slice * width, min(m.strideA, (slice + 1) * width), waited);
            const bool first = rank == 0 && column == 0;
            if (m.shared > 0) foldTile<TILES>(fold, sum, m, false, rank, rows, column, columns, first, z, zRow);
            if (m.unshared > 0) foldTile<TILES>(fold, vecs, m, true, rank, rows, column, columns, first, z, zRow);
        }
}

// Who has its z: counts slices, for each part and short row. Zero when a step begins.
DEVICE void announce(u32* ready) {
    __threadfence();
    atomicAdd(ready, 1u);
}
#ifndef EMULATED
DEVICE void awaitSlices(const u32* ready, u32 slices) {
    u32 there;
    for (;;) {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(there) : "l"(ready) : "memory");
        if (there >= slices) return;
        __nanosleep(40);
    }
}
DEVICE float loadShared(const float* p) {       // another multiprocessor has just written it
    float v;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
    return v;
}
#endif

static const int ShortRows = 128;               // counters of a part

// All groups' parts of a site, dealt out to the blocks' adapter warps.
DEVICE void shrink(const Step* step, const Group* groups, const Site& site, const u16* x, int xStride, u32* ready, float* folds) {
    const int warp = (threadIdx.x - MmaThreads) / 32, lane = threadIdx.x % 32, units = step->units[site.kind], all = step->groups * site.parts * units;
    bool waited = false;
    for (int unit = blockIdx.x * 8 + warp; unit < all; unit += gridDim.x * 8) {
        const int item = unit / units, part = item % site.parts;
        const Group group = groups[item / site.parts];
        if (group.adapter < 0) continue;
        const Lora m = site.table[group.adapter * site.perAdapter + part];
        if (m.shared + m.unshared == 0) continue;
        const int slices = slicesOf(m.strideA), slice = unit % units % slices, each = rowsOfUnit(m.chunksA), row = unit % units / slices * each;
        if (row >= group.rows) continue;
        const int rows = min(each, group.rows - row), zRow = MaxSlices * site.zStride;
        float* z = site.z + (long long)part * site.zPart + (long long)(group.firstShort + row) * zRow + slice * site.zStride;
        const u16* from = x + (long long)(group.firstRow + row) * xStride;
        if (rows * m.chunksA <= 8) shrinkUnit<1>(m, from, xStride, rows, slice, z, zRow, folds + warp * 512, waited);
        else shrinkUnit<ShrinkTiles>(m, from, xStride, rows, slice, z, zRow, folds + warp * 512, waited);
        __syncwarp();
        if (ready && lane < rows) announce(ready + part * ShortRows + group.firstShort + row + lane);
    }
    if (!waited) awaitPrevious();
}

// ---- extra = scale·B(z). A warp takes 256 columns of a row, eight a lane: V neighbours t of CHUNKS chunks, so that b is read once for them.
template <int V, int CHUNKS>
DEVICE void expandRun(const Lora& m, const float* z, int run, int runs, int columns, float* to) {
    const int lane = threadIdx.x % 32, across = (m.chunkHeight + V - 1) / V, items = across * ((m.chunksB + CHUNKS - 1) / CHUNKS);
    for (int item = run * 32 + lane; item < items; item += runs * 32) {
        const int t = item % across * V, chunk = item / across * CHUNKS;
        float sum[CHUNKS][V] = {};
        expand<V, CHUNKS>(m, z, t, chunk, sum);
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            const int o = (chunk + c) * m.chunkHeight + t, count = chunk + c < m.chunksB ? min(min(V, m.chunkHeight - t), columns - o) : 0;
            if (count == V && ((u64)(to + o) & (V * 4 - 1)) == 0) {
                if constexpr (V == 4) *(F32x4*)(to + o) = F32x4{sum[c][0], sum[c][1], sum[c][2], sum[c][3]};
                else *(F32x2*)(to + o) = F32x2{sum[c][0], sum[c][1]};
            } else
                for (int v = 0; v < V; v++) if (v < count) to[o + v] = sum[c][v];
        }
    }
}

DEVICE void expandAll(int rowCount, const Row* rows, const Site& site, const u32* ready, float* extra, int stride, float* zs) {
    const int warp = (threadIdx.x - MmaThreads) / 32, lane = threadIdx.x % 32;
    const int starts[4] = {0, site.parts > 1 ? site.second : site.columns, site.parts > 2 ? site.third : site.columns, site.columns};
    int runs[3], all = 0;
#pragma unroll
    for (int p = 0; p < 3; p++) all += runs[p] = p < site.parts ? (starts[p + 1] - starts[p] + 255) / 256 : 0;
    zs += warp * 512;
    for (int item = blockIdx.x * 8 + warp; item < rowCount * all; item += gridDim.x * 8) {
        const Row info = rows[item / all];
        if (info.adapter < 0) continue;
        int run = item % all, part = 0;
        while (run >= runs[part]) run -= runs[part++];
        const Lora m = site.table[info.adapter * site.perAdapter + part];
        float* to = extra + (long long)(item / all) * stride + starts[part];
        const int columns = starts[part + 1] - starts[part], ranks = m.shared + m.unshared;
        if (ranks == 0) {
            for (int c = run * 256 + lane; c < min(columns, run * 256 + 256); c += 32) to[c] = 0.f;
            continue;
        }
        const int slices = slicesOf(m.strideA);
        if (lane == 0) awaitSlices(ready + part * ShortRows + info.shortIndex, slices);
        __syncwarp();
        const float* z = site.z + (long long)part * site.zPart + (long long)info.shortIndex * MaxSlices * site.zStride;
        for (int k = lane; k < ranks; k += 32) {
            float sum = loadShared(z + k);
#pragma unroll 8
            for (int s = 1; s < slices; s++) sum += loadShared(z + s * site.zStride + k);
            zs[k] = sum * m.scale;
        }
        __syncwarp();
        if (m.chunksB == 1) expandRun<4, 1>(m, zs, run, runs[part], columns, to);
        else expandRun<2, 4>(m, zs, run, runs[part], columns, to);
        __syncwarp();
    }
}

// ---- y = x·wᵀ

struct Weight {
    const u16* w;         // (outputs, inputs)
    int stride;           // elements between rows, a multiple of 8
    int outputs, inputs;
};

#if __CUDA_ARCH_FEAT_SM90_ALL
// Hopper's matrix units read both factors from shared memory, in the very layout in which the stages lie: rows of 128 bytes, 16-byte pieces at
// piece ^ (row % 8). d (64×8·NT) += a (64×16) · bᵀ; lane 4g + q of warp w of the four holds rows 16w + g and 16w + g + 8 as mma does.
DEVICE u64 tileOf(const void* p) { return (u64)((sharedAddress(p) & 0x3FFFF) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62; }
DEVICE void fenceWide() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void commitWide() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most N of this warp's latest groups are under way.
template <int N> DEVICE void awaitWide() { asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory"); }

struct alignas(64) TensorMap { u64 words[16]; };        // CUtensorMap: boxes of 64 columns, rows of 128 bytes swizzled

// A box whose first element is (row, column) to shared memory; what lies outside the matrix becomes zero. The barrier counts its bytes.
DEVICE void fetch(void* to, const TensorMap& map, int column, int row, u64* barrier, bool once) {
    if (once)       // past this use nobody reads it before the next step: first to leave the L2
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;"
            :: "r"(sharedAddress(to)), "l"(&map), "r"(column), "r"(row), "r"(sharedAddress(barrier)), "l"(0x12F0000000000000ull) : "memory");
    else
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
            :: "r"(sharedAddress(to)), "l"(&map), "r"(column), "r"(row), "r"(sharedAddress(barrier)) : "memory");
}
DEVICE void initBarrier(u64* b, int count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(sharedAddress(b)), "r"(count) : "memory"); }
DEVICE void expect(u64* b, int bytes) { asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(sharedAddress(b)), "r"(bytes) : "memory"); }
DEVICE void arrive(u64* b) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(sharedAddress(b)) : "memory"); }
DEVICE void await(u64* b, u32 phase) {
    asm volatile("{ .reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @done bra over; bra again; over: }" :: "r"(sharedAddress(b)), "r"(phase) : "memory");
}

#define D4(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
DEVICE void wide(float (&d)[1][4], u64 a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, %4, %5, 1, 1, 1, 0, 0;" : D4(0) : "l"(a), "l"(b));
}
DEVICE void wide(float (&d)[2][4], u64 a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7}, %8, %9, 1, 1, 1, 0, 0;" : D4(0), D4(1) : "l"(a), "l"(b));
}
DEVICE void wide(float (&d)[4][4], u64 a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, %16, %17, 1, 1, 1, 0, 0;"
        : D4(0), D4(1), D4(2), D4(3) : "l"(a), "l"(b));
}
DEVICE void wide(float (&d)[8][4], u64 a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, 1, 1, 1, 0, 0;"
        : D4(0), D4(1), D4(2), D4(3), D4(4), D4(5), D4(6), D4(7) : "l"(a), "l"(b));
}
DEVICE void wide(float (&d)[16][4], u64 a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, %64, %65, 1, 1, 1, 0, 0;"
        : D4(0), D4(1), D4(2), D4(3), D4(4), D4(5), D4(6), D4(7), D4(8), D4(9), D4(10), D4(11), D4(12), D4(13), D4(14), D4(15) : "l"(a), "l"(b));
}
#else
struct alignas(64) TensorMap { u64 words[16]; };        // Hopper's alone
#endif

// A block's share of tiles of 128 rows of w: units first … end − 1, where unit u is stage columns u % steps of tile u / steps.
struct Share {
    int steps, first, end, blocks;
    long long units;
};

DEVICE Share shareOf(const Weight& weight) {
    Share s;
    s.steps = (weight.inputs + StageColumns - 1) / StageColumns;
    s.units = (long long)((weight.outputs + TileRows - 1) / (TileRows)) * s.steps;
    s.blocks = (int)min((long long)gridDim.x, s.units);
    s.first = (int)(blockIdx.x * s.units / s.blocks);
    s.end = (int)((blockIdx.x + 1ll) * s.units / s.blocks);
    if ((int)blockIdx.x >= s.blocks) s.first = s.end = 0;
    return s;
}

// Writes what this warp has of a tile as this block's part of it, and starts anew.
template <int NT>
DEVICE void flush(float (&sum)[NT][4], const Share& share, int tile, int outputs, int rows, float* y, long long yPart, int yStride) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int firstBlock = (int)((((long long)tile * share.steps + 1) * share.blocks - 1) / share.units);     // the first whose share reaches into the tile
    y += (blockIdx.x - firstBlock) * yPart;
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int o = tile * TileRows + warp * 16 + g + e / 2 * 8, row = n * 8 + 2 * q + e % 2;
            if (o < outputs && row < rows) y[(long long)row * yStride + o] = sum[n][e];
            sum[n][e] = 0.f;
        }
}

#if __CUDA_ARCH_FEAT_SM90_ALL
// Warp 12: one lane keeps the stages filled.
template <int NT, int STAGES>
DEVICE void fetchShare(const Share& share, const TensorMap& wMap, const TensorMap& xMap, u64* full, u64* empty, unsigned char* stages) {
    const int StageBytes = (TileRows + 8 * NT) * 128;
    if (threadIdx.x % 32 != 0) return;
    int stage = 0;
    u32 phase = 1;
    // The weights need not wait for whoever makes x.
    for (int unit = share.first; unit < min(share.end, share.first + STAGES); unit++) {
        expect(full + unit - share.first, StageBytes);
        fetch(stages + (unit - share.first) * StageBytes, wMap, unit % share.steps * StageColumns, unit / share.steps * TileRows, full + unit - share.first, true);
    }
    awaitPrevious();
    for (int unit = share.first; unit < share.end; unit++) {
        unsigned char* to = stages + stage * StageBytes;
        if (unit >= share.first + STAGES) {
            await(empty + stage, phase);
            expect(full + stage, StageBytes);
            fetch(to, wMap, unit % share.steps * StageColumns, unit / share.steps * TileRows, full + stage, true);
        }
        fetch(to + TileRows * 128, xMap, unit % share.steps * StageColumns, 0, full + stage, false);
        if (++stage == STAGES) { stage = 0; phase ^= 1; }
    }
}

template <int NT, int STAGES>
DEVICE void multiply(int rows, const Share& share, const Weight& weight, float* y, long long yPart, int yStride, u64* full, u64* empty, unsigned char* stages) {
    const int StageBytes = (TileRows + 8 * NT) * 128, warp = threadIdx.x / 32;
    awaitPrevious();
    float sum[NT][4] = {};
    int stage = 0, previous = -1;
    u32 phase = 0;
    for (int unit = share.first; unit < share.end; unit++) {
        await(full + stage, phase);
        const unsigned char *w = stages + stage * StageBytes, *x = w + TileRows * 128;
        fenceWide();
#pragma unroll
        for (int kk = 0; kk < 4; kk++) wide(sum, tileOf(w + warp / 4 * 8192) + kk * 2, tileOf(x) + kk * 2);
        commitWide();
        if (previous >= 0) {
            awaitWide<1>();
            if (threadIdx.x % 32 == 0) arrive(empty + previous);
        }
        previous = stage;
        if ((unit + 1) % share.steps == 0 || unit + 1 == share.end) {
            awaitWide<0>();
            if (threadIdx.x % 32 == 0) arrive(empty + previous);
            previous = -1;
            flush<NT>(sum, share, unit / share.steps, weight.outputs, rows, y, yPart, yStride);
        }
        if (++stage == STAGES) { stage = 0; phase ^= 1; }
    }
}
#else
// This warp's part of one stage: sum += its 16 rows of w · all x.
template <int NT>
DEVICE void multiplyStage(float (&sum)[NT][4], const unsigned char* w, const unsigned char* x) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int kk = 0; kk < 4; kk++) {
        u32 a[4];
        const int row = warp * 16 + (lane & 15), piece = kk * 2 + (lane >> 4);
        loadMatrices(a, w + row * 128 + ((piece ^ (row & 7)) << 4));
        if constexpr (NT == 1) {
            u32 b[4];   // both halves of two k-steps; the odd one loads the same again
            int c = (kk & 2) * 2 + (lane >> 3);
            loadMatrices(b, x + (lane & 7) * 128 + ((c ^ (lane & 7)) << 4));
            mma(sum[0], a[0], a[1], a[2], a[3], b[(kk & 1) * 2], b[(kk & 1) * 2 + 1]);
        } else {
#pragma unroll
            for (int n = 0; n < NT / 2; n++) {
                u32 b[4];
                int row = n * 16 + (lane & 7) + (lane >> 4) * 8, c = kk * 2 + ((lane >> 3) & 1);
                loadMatrices(b, x + row * 128 + ((c ^ (row & 7)) << 4));
                mma(sum[2 * n], a[0], a[1], a[2], a[3], b[0], b[1]);
                mma(sum[2 * n + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
            }
        }
    }
}

template <int NT, int STAGES>
DEVICE void multiply(int rows, const Share& share, const Weight& weight, const u16* x, int xStride, float* y, long long yPart, int yStride, unsigned char* stages) {
    const int BN = 8 * NT, StageBytes = (TileRows + BN) * 128, thread = threadIdx.x;
    // A thread copies the same 16-byte piece of every 32nd row, to piece ^ (row % 8): neighbours in different banks.
    const int piece = thread % 8, place = thread / 8 * 128 + ((piece ^ (thread / 8 & 7)) << 4);
    auto loadW = [&](int tile, int k, unsigned char* to) {
        const int column = k * StageColumns + piece * 8, valid = max(0, min(16, (weight.inputs - column) * 2)), o = tile * TileRows + thread / 8;
        const u16* from = weight.w + (long long)o * weight.stride + column;
#pragma unroll
        for (int i = 0; i < TileRows / 32; i++, from += 32ll * weight.stride) {
            const bool in = o + i * 32 < weight.outputs && valid > 0;
            copyAsync(to + place + i * 4096, in ? from : weight.w, in ? valid : 0);
        }
    };
    auto loadX = [&](int k, unsigned char* to) {
        const int column = k * StageColumns + piece * 8, valid = max(0, min(16, (weight.inputs - column) * 2));
#pragma unroll
        for (int i = 0; i < (BN + 31) / 32; i++) {
            const int row = thread / 8 + i * 32;
            const bool in = row < rows && valid > 0;
            if (BN % 32 == 0 || row < BN) copyAsync(to + TileRows * 128 + place + i * 4096, in ? x + (long long)row * xStride + column : x, in ? valid : 0);
        }
    };

    // The weights need not wait for whoever makes x.
    int tile = share.first / share.steps, k = share.first % share.steps;            // of the unit loaded next
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++)
        if (share.first + s < share.end) {
            loadW(tile, k, stages + s * StageBytes);
            if (++k == share.steps) { k = 0; tile++; }
        }
    awaitPrevious();
    k = share.first % share.steps;
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (share.first + s < share.end) {
            loadX(k, stages + s * StageBytes);
            if (++k == share.steps) k = 0;
        }
        commitCopies();
    }

    float sum[NT][4] = {};
    int stage = 0, free = STAGES - 1;
    for (int unit = share.first; unit < share.end; unit++) {
        awaitCopies<STAGES - 2>();
        syncMma();              // the stage is here for all, and the one before it used up
        if (unit + STAGES - 1 < share.end) {
            loadW(tile, k, stages + free * StageBytes);
            loadX(k, stages + free * StageBytes);
            if (++k == share.steps) { k = 0; tile++; }
        }
        commitCopies();
        multiplyStage<NT>(sum, stages + stage * StageBytes, stages + stage * StageBytes + TileRows * 128);
        if (++stage == STAGES) stage = 0;
        if (++free == STAGES) free = 0;
        if ((unit + 1) % share.steps == 0 || unit + 1 == share.end) flush<NT>(sum, share, unit / share.steps, weight.outputs, rows, y, yPart, yStride);
    }
    awaitCopies<0>();
}
#endif

#if __CUDA_ARCH_FEAT_SM90_ALL
#define RUN_LINEAR(NT) \
    constexpr int fit = STAGE_LIMIT / ((TileRows + 8 * NT) * 128), stages = fit < 8 ? fit : 8; \
    const Share share = shareOf(weight); \
    u64 *full = (u64*)(memory + 16384), *empty = full + 8; \
    if (threadIdx.x == 0) { \
        for (int i = 0; i < stages; i++) { initBarrier(full + i, 1); initBarrier(empty + i, MmaThreads / 32); } \
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); \
    } \
    __syncthreads(); \
    if (threadIdx.x < MmaThreads) multiply<NT, stages>(*rowCount, share, weight, y, yPart, yStride, full, empty, memory + HeaderBytes); \
    else if (threadIdx.x >= MmaThreads + AdapterThreads) fetchShare<NT, stages>(share, wMap, xMap, full, empty, memory + HeaderBytes); \
    else if (site.parts > 0) { \
        shrink(step, groups, site, x, xStride, ready, (float*)memory); \
        expandAll(*rowCount, rows, site, ready, extra, yStride, (float*)memory); \
    } else awaitPrevious();
#else
#define RUN_LINEAR(NT) \
    constexpr int fit = STAGE_LIMIT / ((TileRows + 8 * NT) * 128); \
    if (threadIdx.x < MmaThreads) multiply<NT, (fit < 8 ? fit : 8)>(*rowCount, shareOf(weight), weight, x, xStride, y, yPart, yStride, memory + HeaderBytes); \
    else if (threadIdx.x < MmaThreads + AdapterThreads && site.parts > 0) { \
        shrink(step, groups, site, x, xStride, ready, (float*)memory); \
        expandAll(*rowCount, rows, site, ready, extra, yStride, (float*)memory); \
    } else awaitPrevious();
#endif

// rowCount: the step's rows or those of its logits, written long before this kernel begins. 544 threads, of 96
// registers each by the bound, so that others fit beside them; no more blocks than multiprocessors, for they wait for each other; their number, and so the parts, are the weight's own and do not change with the rows.
#define LINEAR(NT) \
    extern "C" __global__ __launch_bounds__(640, 1) void linear_##NT(const Step* step, const int* rowCount, const Row* rows, const Group* groups, Weight weight, const u16* x, int xStride, \
        float* y, long long yPart, int yStride, Site site, u32* ready, float* extra, const __grid_constant__ TensorMap wMap, const __grid_constant__ TensorMap xMap) { \
        DYNAMIC_SHARED(memory); \
        letNextStart(); \
        RUN_LINEAR(NT) \
    }
LINEAR(1) LINEAR(2) LINEAR(4) LINEAR(8) LINEAR(16)

// z alone, beside a product that another library makes.
extern "C" __global__ __launch_bounds__(MmaThreads + AdapterThreads, 1) void shrinkShort(const Step* step, const Group* groups, const u16* x, int xStride, Site site) {
    DYNAMIC_SHARED(memory);
    letNextStart();
    if (threadIdx.x >= MmaThreads) shrink(step, groups, site, x, xStride, 0, (float*)memory);
}
