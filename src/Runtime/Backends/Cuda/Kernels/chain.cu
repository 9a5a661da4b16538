// Decoding streams weights that each serve a handful of rows, so the floor is their bytes over the memory's rate, and what keeps a step from it are
// the pauses between its products. Here up to four of them, from one attention to the next, are one kernel: y = x·wᵀ, what every row's adapter adds
// to it, and what becomes of it (finish.cuh), which is the next one's x. One block stays on each multiprocessor, and the weights of the next product
// are on their way while the last one is finished; they wait for nobody.
//
// A product's bytes are shared out equally whatever its shape (a tile's columns are cut where a share ends). A share that ends within a tile leaves
// a partial sum; whoever finishes adds the parts in order. Where shares end depends on the weight's shape and the GPU alone, so a row's sums are the
// same in every batch.
//
//   for p, r, o:  part[p, r, o] = Σ_{k in part p} x[r, k]·w[o, k]
//   for r, o:     extra[r, o] = what lora.cuh says
//
// Who does what in a block: warps 0 to 7 multiply, by Hopper's wide matrix units or by mma; warps 8 to 15, the crew, see to adapters and then finish;
// on Hopper warp 16 fetches weights and warp 17 rows of x, by the copy engine. They hand over by barriers in shared memory, and blocks to each
// other by counters in memory: all are resident.

#ifndef SHARED_LIMIT
#define SHARED_LIMIT 232448
#endif

static const int MmaThreads = 256, CrewThreads = 256;
static const int TileRows = 128;                            // of w
static const int StageColumns = 64;                         // k's of a stage: 128 bytes of each row
static const int HeaderBytes = 17408;                       // the crew's rooms, then barriers; stages follow
static const int MostOps = 4;
static const int MmaBarrier = 1, CrewBarrier = 2;

struct alignas(64) TensorMap { u64 words[16]; };            // CUtensorMap: boxes of 64 columns, rows of 128 bytes swizzled; Hopper's alone

struct Op {
    const u16 *w, *x;           // (outputs, inputs), (rows, inputs)
    int outputs, inputs, wStride, xStride;
    int blocks;                 // that share the weight's bytes
    int reserved;
    const int* rows;            // the step's, or those of its logits
    u32* tiles;                 // counters of finished sums, or null where nobody waits
    u32* counters;              // blocks whose adapters are done, and, CounterStride on, blocks that have finished; all 0 when a step begins
    Sums sums;
    Site site;
    Finish finish;
};

struct Chain {
    TensorMap w[MostOps], x[MostOps];
    Op ops[MostOps];
    const Step* step;
    const int *adapterOf, *shortRows;
    int count, reserved;
};

// A block's share of tiles of 128 rows of w: units first … end − 1, where unit u is stage columns u % steps of tile u / steps.
struct Share {
    int steps, first, end, blocks;
    long long units;
};
DEVICE Share shareOf(const Op& op) {
    Share s;
    s.steps = (op.inputs + StageColumns - 1) / StageColumns;
    s.units = (long long)((op.outputs + TileRows - 1) / TileRows) * s.steps;
    s.blocks = op.blocks;
    s.first = (int)(blockIdx.x * s.units / s.blocks);
    s.end = (int)((blockIdx.x + 1ll) * s.units / s.blocks);
    if ((int)blockIdx.x >= s.blocks) s.first = s.end = 0;
    return s;
}

// Writes what this warp has of a tile as this block's part of it, says so, and starts anew.
template <int NT>
DEVICE void flush(float (&sum)[NT][4], const Share& share, const Op& op, int tile, int rows) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int firstBlock = (int)((((long long)tile * share.steps + 1) * share.blocks - 1) / share.units);     // the first whose share reaches into the tile
    float* y = op.sums.y + (blockIdx.x - firstBlock) * op.sums.part;
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int o = tile * TileRows + warp * 16 + g + e / 2 * 8, row = n * 8 + 2 * q + e % 2;
            if (o < op.outputs && row < rows) y[(long long)row * op.sums.stride + o] = sum[n][e];
            sum[n][e] = 0.f;
        }
    if (!op.tiles) return;
    __threadfence();
    __syncwarp();
    if (lane == 0) atomicAdd(op.tiles + tile * CounterStride, 1u);
}

// ---- The crew: adapters, then finishing.

// Until the op before has finished in all blocks; for the first, the kernel before. `said` is called by one thread then.
template <class Said>
DEVICE void awaitInput(const Chain& chain, int i, int barrier, int threads, const Said& said) {
    if (i == 0) awaitPrevious();
    else {
        if (threadIdx.x % threads == 0) {
            awaitCount(chain.ops[i - 1].counters + CounterStride, gridDim.x);
            said();
        }
        meet(barrier, threads);
    }
}

// All of the crew have written what they had to, and one of them says so.
DEVICE void announce(u32* counter) {
    __threadfence();
#if __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("fence.proxy.async;" ::: "memory");        // the copy engine of other blocks reads it
#endif
    meet(CrewBarrier, CrewThreads);
    if (threadIdx.x % CrewThreads == 0) atomicAdd(counter, 1u);
}

DEVICE void finishItem(const Op& op, const int* adapterOf, int rows, int item) {
    if (op.finish.kind == Residual) finishResidual(op.finish, op.sums, adapterOf, rows, item, op.tiles);
    else if (op.finish.kind == Rope) finishRope(op.finish, op.sums, adapterOf, rows, item, op.tiles);
    else if (op.finish.kind == SwiGlu) finishSwiGlu(op.finish, op.sums, adapterOf, rows, item, op.tiles);
    else finishPlain(op.finish, op.sums, adapterOf, rows, item, op.tiles);
}

template <class Said>
DEVICE void crew(const Chain& chain, float* rooms, const Said& said) {
    const int warps = CrewThreads / 32, warp = threadIdx.x % CrewThreads / 32;
    float* room = rooms + warp * RoomFloats;
    for (int i = 0; i < chain.count; i++) {
        const Op& op = chain.ops[i];
        bool ready = false, adapted = op.site.parts == 0;
        const auto whenReady = [&] {
            if (!ready) awaitInput(chain, i, CrewBarrier, CrewThreads, said);
            ready = true;
        };
        if (!adapted) shrinkRows(chain.step, chain.adapterOf, chain.shortRows, op.site, op.x, op.xStride, warp, warps, room, whenReady);
        whenReady();
        if (!adapted) {
            expandRows(chain.step, chain.adapterOf, chain.shortRows, op.site, warp, warps, room, op.sums.extra, op.sums.stride, false);
            announce(op.counters);
        }
        if (op.finish.kind == Nothing) continue;
        const int rows = *op.rows;
        for (int item = warp * gridDim.x + blockIdx.x; item < itemsOf(op.finish, rows); item += warps * gridDim.x) {
            if (!adapted) {
                if (threadIdx.x % 32 == 0) awaitCount(op.counters, gridDim.x);
                __syncwarp();
                adapted = true;
            }
            finishItem(op, chain.adapterOf, rows, item);
        }
        announce(op.counters + CounterStride);
    }
}

#if __CUDA_ARCH_FEAT_SM90_ALL
// ---- The products on Hopper.

// Hopper's matrix units read both factors from shared memory, in the very layout in which the stages lie: rows of 128 bytes, 16-byte pieces at
// piece ^ (row % 8). d (64×8·NT) += a (64×16) · bᵀ; lane 4g + q of warp w of the four holds rows 16w + g and 16w + g + 8 as mma does.
DEVICE u64 tileOf(const void* p) { return (u64)((sharedAddress(p) & 0x3FFFF) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62; }
DEVICE void fenceWide() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void commitWide() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most N of this warp's latest groups are under way.
template <int N> DEVICE void awaitWide() { asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory"); }

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

// Stages of a ring, in shared memory: `full` counts the copies' bytes, `empty` the warps that have read.
struct Ring { u64 *full, *empty; unsigned char* stages; };
struct Turn {
    int stage;
    u32 phase;
    DEVICE_MEMBER void next(int stages) { if (++stage == stages) { stage = 0; phase ^= 1; } }
};

static const int XStages = 4;
template <int NT> struct Sizes {
    static const int X = 8 * NT * 128, W = TileRows * 128;                              // bytes of a stage
    static const int Fit = (SHARED_LIMIT - HeaderBytes - XStages * X) / W, WStages = Fit < 12 ? Fit : 12;
};

// One lane keeps the weights' stages filled, through all ops.
template <int NT>
DEVICE void fetchWeights(const Chain& chain, const Ring& ring) {
    Turn turn = {0, 1};
    for (int i = 0; i < chain.count; i++) {
        const Share share = shareOf(chain.ops[i]);
        for (int unit = share.first; unit < share.end; unit++, turn.next(Sizes<NT>::WStages)) {
            await(ring.empty + turn.stage, turn.phase);
            expect(ring.full + turn.stage, Sizes<NT>::W);
            fetch(ring.stages + turn.stage * Sizes<NT>::W, chain.w[i], unit % share.steps * StageColumns, unit / share.steps * TileRows, ring.full + turn.stage, true);
        }
    }
}

// Another those of x, as soon as the crew says that it is there.
template <int NT>
DEVICE void fetchRows(const Chain& chain, const Ring& ring, u64* ready) {
    Turn turn = {0, 1};
    for (int i = 0; i < chain.count; i++) {
        const Share share = shareOf(chain.ops[i]);
        if (i == 0) awaitPrevious();
        else {
            await(ready, (i - 1) & 1);
            asm volatile("fence.proxy.async;" ::: "memory");
        }
        for (int unit = share.first; unit < share.end; unit++, turn.next(XStages)) {
            await(ring.empty + turn.stage, turn.phase);
            expect(ring.full + turn.stage, Sizes<NT>::X);
            fetch(ring.stages + turn.stage * Sizes<NT>::X, chain.x[i], unit % share.steps * StageColumns, 0, ring.full + turn.stage, false);
        }
    }
}

template <int NT>
DEVICE void multiply(const Chain& chain, const Ring& weights, const Ring& x) {
    const int half = threadIdx.x / 128;
    awaitPrevious();
    float sum[NT][4] = {};
    Turn w = {0, 0}, r = {0, 0};
    for (int i = 0; i < chain.count; i++) {
        const Op& op = chain.ops[i];
        const Share share = shareOf(op);
        const int rows = *op.rows;
        Turn wBefore, rBefore;
        bool before = false;
        const auto release = [&] {
            if (before && threadIdx.x % 32 == 0) { arrive(weights.empty + wBefore.stage); arrive(x.empty + rBefore.stage); }
            before = false;
        };
        for (int unit = share.first; unit < share.end; unit++, w.next(Sizes<NT>::WStages), r.next(XStages)) {
            await(weights.full + w.stage, w.phase);
            await(x.full + r.stage, r.phase);
            const u64 a = tileOf(weights.stages + w.stage * Sizes<NT>::W + half * 8192), b = tileOf(x.stages + r.stage * Sizes<NT>::X);
            fenceWide();
#pragma unroll
            for (int kk = 0; kk < 4; kk++) wide(sum, a + kk * 2, b + kk * 2);
            commitWide();
            if (before) awaitWide<1>();
            release();
            wBefore = w; rBefore = r; before = true;
            if ((unit + 1) % share.steps == 0 || unit + 1 == share.end) {
                awaitWide<0>();
                release();
                flush<NT>(sum, share, op, unit / share.steps, rows);
            }
        }
    }
}

template <int NT>
DEVICE void run(const Chain& chain, unsigned char* memory) {
    u64* barriers = (u64*)(memory + CrewThreads / 32 * RoomFloats * 4);
    const Ring weights = {barriers, barriers + 12, memory + HeaderBytes}, x = {barriers + 24, barriers + 24 + XStages, memory + HeaderBytes + Sizes<NT>::WStages * Sizes<NT>::W};
    u64* ready = barriers + 24 + 2 * XStages;
    if (threadIdx.x == 0) {
        for (int i = 0; i < Sizes<NT>::WStages; i++) { initBarrier(weights.full + i, 1); initBarrier(weights.empty + i, MmaThreads / 32); }
        for (int i = 0; i < XStages; i++) { initBarrier(x.full + i, 1); initBarrier(x.empty + i, MmaThreads / 32); }
        initBarrier(ready, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x < MmaThreads) multiply<NT>(chain, weights, x);
    else if (threadIdx.x < MmaThreads + CrewThreads) crew(chain, (float*)memory, [&] { arrive(ready); });
    else if (threadIdx.x == MmaThreads + CrewThreads) fetchWeights<NT>(chain, weights);
    else if (threadIdx.x == MmaThreads + CrewThreads + 32) fetchRows<NT>(chain, x, ready);
}
#else
// ---- The products elsewhere: the threads copy, a few stages ahead, and mma multiplies.

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
DEVICE void multiply(const Chain& chain, int index, unsigned char* stages) {
    const Op& op = chain.ops[index];
    const Share share = shareOf(op);
    const int BN = 8 * NT, StageBytes = (TileRows + BN) * 128, thread = threadIdx.x, rows = *op.rows;
    // A thread copies the same 16-byte piece of every 32nd row, to piece ^ (row % 8): neighbours in different banks.
    const int piece = thread % 8, place = thread / 8 * 128 + ((piece ^ (thread / 8 & 7)) << 4);
    auto loadW = [&](int tile, int k, unsigned char* to) {
        const int column = k * StageColumns + piece * 8, valid = max(0, min(16, (op.inputs - column) * 2)), o = tile * TileRows + thread / 8;
        const u16* from = op.w + (long long)o * op.wStride + column;
#pragma unroll
        for (int i = 0; i < TileRows / 32; i++, from += 32ll * op.wStride) {
            const bool in = o + i * 32 < op.outputs && valid > 0;
            copyAsync(to + place + i * 4096, in ? from : op.w, in ? valid : 0);
        }
    };
    auto loadX = [&](int k, unsigned char* to) {
        const int column = k * StageColumns + piece * 8, valid = max(0, min(16, (op.inputs - column) * 2));
#pragma unroll
        for (int i = 0; i < (BN + 31) / 32; i++) {
            const int row = thread / 8 + i * 32;
            const bool in = row < rows && valid > 0;
            if (BN % 32 == 0 || row < BN) copyAsync(to + TileRows * 128 + place + i * 4096, in ? op.x + (long long)row * op.xStride + column : op.x, in ? valid : 0);
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
    awaitInput(chain, index, MmaBarrier, MmaThreads, [] {});
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
        meet(MmaBarrier, MmaThreads);           // the stage is here for all, and the one before it used up
        if (unit + STAGES - 1 < share.end) {
            loadW(tile, k, stages + free * StageBytes);
            loadX(k, stages + free * StageBytes);
            if (++k == share.steps) { k = 0; tile++; }
        }
        commitCopies();
        multiplyStage<NT>(sum, stages + stage * StageBytes, stages + stage * StageBytes + TileRows * 128);
        if (++stage == STAGES) stage = 0;
        if (++free == STAGES) free = 0;
        if ((unit + 1) % share.steps == 0 || unit + 1 == share.end) flush<NT>(sum, share, op, unit / share.steps, rows);
    }
    awaitCopies<0>();
    meet(MmaBarrier, MmaThreads);               // the stages are free for the next product
}

template <int NT>
DEVICE void run(const Chain& chain, unsigned char* memory) {
    constexpr int fit = (SHARED_LIMIT - HeaderBytes) / ((TileRows + 8 * NT) * 128), stages = fit < 8 ? fit : 8;
    if (threadIdx.x < MmaThreads) for (int i = 0; i < chain.count; i++) multiply<NT, stages>(chain, i, memory + HeaderBytes);
    else if (threadIdx.x < MmaThreads + CrewThreads) crew(chain, (float*)memory, [] {});
}
#endif

// 576 threads, one block a multiprocessor and no more: they wait for each other.
#define CHAIN(NT) \
    extern "C" __global__ __launch_bounds__(576, 1) void chain_##NT(const __grid_constant__ Chain chain) { \
        DYNAMIC_SHARED(memory); \
        letNextStart(); \
        run<NT>(chain, memory); \
    }
CHAIN(1) CHAIN(2) CHAIN(4) CHAIN(8) CHAIN(16)
