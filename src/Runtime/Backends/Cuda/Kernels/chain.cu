// Decoding streams weights that each serve a handful of rows, so the floor is their bytes over the memory's rate, and what keeps a step from it are
// the pauses between its products. Here up to four of them, from one attention to the next, are one kernel: y = x·wᵀ, what every row's adapter adds
// to it, and what becomes of it (finish.cuh), which is the next one's x. One block stays on each multiprocessor, and the weights of the next product
// are on their way while the last one is finished; they wait for nobody.
//
// A product's bytes are shared out equally, or in whole shares of a tile where that keeps nearly all blocks busy. A share that ends within a tile leaves
// a partial sum; whoever finishes adds the parts in order. Where shares end depends on the weight's shape and the GPU alone, so a row's sums are the
// same in every batch.
//
//   for p, r, o:  part[p, r, o] = Σ_{k in part p} x[r, k]·w[o, k]
//   for r, o:     extra[r, o] = what lora.cuh says
//
// Who does what in a block: warps 0 to 7 multiply, by Hopper's wide matrix units or by mma; warps 8 to 15, the crew, see to adapters; both then finish.
// On Hopper warp 16 fetches weights and warp 17 rows of x, by the copy engine. They hand over by barriers in shared memory, and blocks to each
// other by counters in memory: all are resident.

static const int MmaThreads = 256, CrewThreads = 256;
static const int TileRows = 128;                            // of w
static const int StageColumns = 64;                         // k's of a stage: 128 bytes of each row
#if __CUDA_ARCH_FEAT_SM90_ALL
static const int HeaderBytes = 2048, Alignment = 1024;      // barriers and the desk; of what follows: the crew's rooms, where there are adapters, then stages
#else
static const int HeaderBytes = 1088, Alignment = 64;
#endif
static const int RoomBytes = (CrewThreads / 32 * (int)sizeof(Room) + Alignment - 1) / Alignment * Alignment;
static const int MostOps = 4;
static const int MmaBarrier = 1, CrewBarrier = 2, FactorsBarrier = 3, AllBarrier = 4;

struct alignas(64) TensorMap { u64 words[16]; };            // CUtensorMap: boxes of 64 columns, rows of 128 bytes swizzled; Hopper's alone

struct Op {
    const u16 *w, *x;           // (outputs, inputs), (rows, inputs)
    int outputs, inputs, wStride, xStride;
    int blocks;                 // that share the weight's bytes
    int reserved;
    const int* rows;            // the step's, or those of its logits
    u32* tiles;                 // counters of finished sums, or null where nobody waits
    u32* counters;              // blocks that have shrunk, CounterStride on those that have expanded, then those that have finished; all 0 when a step begins
    Sums sums;
    Site site;
    Finish finish;
};

struct Chain {
    TensorMap w[MostOps], x[MostOps];
    Op ops[MostOps];
    const Step* step;
    const int* adapterOf;
    int count;
    int stages;                 // of the weights' ring, on Hopper
};
DEVICE bool adapted(const Chain& chain) {
    bool any = false;
    for (int i = 0; i < chain.count; i++) any |= chain.ops[i].site.parts > 0;
    return any;
}

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

// Writes what this warp has of a tile as this block's part of it, and says so.
template <int NT>
DEVICE void flush(const float (&sum)[NT][4], const Share& share, const Op& op, int tile, int rows) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int firstBlock = (int)((((long long)tile * share.steps + 1) * share.blocks - 1) / share.units);     // the first whose share reaches into the tile
    const int o = tile * TileRows + warp * 16 + g, stride = op.sums.stride;
    const bool first = o < op.outputs, second = o + 8 < op.outputs;
    float* y = op.sums.y + (blockIdx.x - firstBlock) * op.sums.part + (long long)(2 * q) * stride + o;
    // Few instructions: they are new to the multiprocessor each time, and come from afar.
#pragma unroll
    for (int n = 0; n < NT; n++, y += 8 * stride) {
        const int row = n * 8 + 2 * q;
        if (row < rows && first) y[0] = sum[n][0];
        if (row < rows && second) y[8] = sum[n][2];
        if (row + 1 < rows && first) y[stride] = sum[n][1];
        if (row + 1 < rows && second) y[stride + 8] = sum[n][3];
    }
    if (!op.tiles) return;
    __syncwarp();
    if (lane == 0) raise(op.tiles + tile * CounterStride);
}

// ---- Finishing, by whoever of a block is free: the crew, and those that multiply once they are through.

// In shared memory, behind Hopper's barriers.
struct Desk {
    int next[MostOps];          // of the block's items
    float factors[128];         // of the rows' norms
    int adapters[128];          // the rows'
    int rows, slices[4];        // as in Step
};
DEVICE Desk& deskOf(unsigned char* memory) { return *(Desk*)(memory + HeaderBytes - sizeof(Desk)); }
DEVICE Room* roomsOf(unsigned char* memory) { return (Room*)(memory + HeaderBytes); }

static constexpr Party Mma = {MmaBarrier, MmaThreads}, Crew = {CrewBarrier, CrewThreads}, All = {AllBarrier, MmaThreads + CrewThreads};

DEVICE u32* finishedOf(const Op& op) { return op.counters + 2 * CounterStride; }

DEVICE void finishOp(const Chain& chain, int index, Desk& desk) {
    const Op& op = chain.ops[index];
    if (op.finish.kind == Nothing) return;
    const int rows = *op.rows, lane = threadIdx.x % 32, items = itemsOf(op.finish, rows);
    bool expanded = op.site.parts == 0;
#pragma unroll 1
    for (;;) {
        int n = 0;
        if (lane == 0) n = atomicAdd(desk.next + index, 1);
        n = __shfl_sync(0xFFFFFFFFu, n, 0) * gridDim.x + blockIdx.x;
        if (n >= items) break;
        const Item item = itemAt(rows, n);
        if (!expanded) {
            if (lane == 0) awaitCount(op.counters + CounterStride, gridDim.x);
            __syncwarp();
            expanded = true;
        }
        if (op.finish.kind == Residual) finishResidual<4>(op.finish, op.sums, chain.adapterOf, rows, item, op.tiles, desk.factors);
        else if (op.finish.kind == Rope) finishRope<4>(op.finish, op.sums, chain.adapterOf, rows, item, op.tiles, desk.factors);
        else if (op.finish.kind == SwiGlu) finishSwiGlu<2>(op.finish, op.sums, chain.adapterOf, rows, item, op.tiles, desk.factors);
        else finishPlain<4>(op.finish, op.sums, chain.adapterOf, rows, item, op.tiles, desk.factors);
    }
#if __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("fence.proxy.async.global;" ::: "memory"); // the copy engines of all blocks read it
#endif
    announce(All, finishedOf(op));
}

// Until the op before has been finished in all blocks; for the first, the kernel before.
DEVICE void awaitInput(const Chain& chain, int index, Party party) {
    if (index == 0) awaitPrevious();
    else awaitBlocks(party, finishedOf(chain.ops[index - 1]));
}

// The rows' adapters to the desk, and their entries of the table to the L2, where they are to stay.
DEVICE void takeAdapters(const Chain& chain, Desk& desk) {
    const int thread = threadIdx.x % CrewThreads, rows = chain.step->rows;
    if (thread < rows) desk.adapters[thread] = chain.adapterOf[thread];
    if (thread < 4) desk.slices[thread] = chain.step->slices[thread];
    if (thread == 0) desk.rows = rows;
    meet(CrewBarrier, CrewThreads);
#pragma unroll 1
    for (int i = 0; i < chain.count; i++) {
        const Site& site = chain.ops[i].site;
        for (int e = thread * gridDim.x + blockIdx.x; e < rows * site.parts; e += CrewThreads * gridDim.x) {
            const int adapter = desk.adapters[e / site.parts];
            if (adapter >= 0) prefetchToStay(site.table + adapter * site.perAdapter + e % site.parts);
        }
    }
}

// Adapters, and the factors of the rows' norms; then finishing.
DEVICE void crew(const Chain& chain, unsigned char* memory) {
    Desk& desk = deskOf(memory);
    const int warp = threadIdx.x % CrewThreads / 32, warps = CrewThreads / 32;
    Room& room = roomsOf(memory)[warp];
    Walk ahead;                 // of the adapters' B
    const auto shortsOf = [&](const Op& op) { return ShortRows{desk.rows, desk.slices[op.site.kind], desk.adapters, 0}; };
    if (adapted(chain)) takeAdapters(chain, desk);
    int started = -1;           // the op that it is at
    const auto startAhead = [&](int i) {
        if (started < i) start(ahead, shortsOf(chain.ops[i]), chain.ops[i].site, warp, warps, room);
        started = i;
    };
    // The next op's factors, while this one's product takes its time or its finishing is told to all.
    const auto prepare = [&](int i) {
        if (i == chain.count || chain.ops[i].site.parts == 0 || started == i) return;
        prefetchSlices(shortsOf(chain.ops[i]), chain.ops[i].site, warp, warps, room);
        startAhead(i);
    };
#pragma unroll 1
    for (int i = 0; i < chain.count; i++) {
        const Op& op = chain.ops[i];
        bool ready = false;
        const auto whenReady = [&] {
            if (ready) return;
            ready = true;
            awaitInput(chain, i, Crew);
        };
        if (op.site.parts > 0) {
            adaptRows(shortsOf(op), op.site, op.x, op.xStride, op.sums.extra, op.sums.extraStride, Crew, op.counters, room, ahead, [&] { startAhead(i); }, whenReady);
            announce(Crew, op.counters + CounterStride);
        } else whenReady();
        if (op.site.kind >= GateUp) prepare(i + 1);
        if (op.finish.kind == Nothing) continue;
        if (op.sums.squares)
            for (int first = warp * 8; first < *op.rows; first += warps * 8) {
                const int row = first + threadIdx.x % 32 / 4;
                const float factor = factorOf(op.sums.squares, op.sums.inputs, op.sums.epsilon, min(row, *op.rows - 1));
                if (threadIdx.x % 4 == 0) desk.factors[row] = factor;
            }
        meet(CrewBarrier, CrewThreads);
        pass(FactorsBarrier, MmaThreads + CrewThreads);     // those that multiply find the factors there
        finishOp(chain, i, desk);
        prepare(i + 1);
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
            :: "r"(sharedAddress(to)), "l"(&map), "r"(column), "r"(row), "r"(sharedAddress(barrier)), "l"(First) : "memory");
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

static const int XStages = 4, MostWStages = 12;
// Stages of weights under way together: more would only make everybody else's loads queue behind them, adapters' above all. Ahead of a product, while the
// one before it is being finished, fewer: what is finished then waits for its loads, and a ring's length of weights is there in time all the same.
struct UnderWay { int within, ahead; };
static constexpr UnderWay WhereNoneAdapts = {4, 2}, WhereAnyAdapts = {3, 1};
static const int WBytes = TileRows * 128;                   // of a stage
template <int NT> struct Rows { static const int Bytes = 8 * NT * 128; };

// One lane keeps the weights' stages filled, through all ops.
DEVICE void fetchWeights(const Chain& chain, const Ring& ring) {
    Turn turn = {0, 1}, arrived = {0, 0};
    const UnderWay most = adapted(chain) ? WhereAnyAdapts : WhereNoneAdapts;
    int underWay = 0;
#pragma unroll 1
    for (int i = 0; i < chain.count; i++) {
        const Share share = shareOf(chain.ops[i]);
        for (int unit = share.first; unit < share.end; unit++, turn.next(chain.stages)) {
            await(ring.empty + turn.stage, turn.phase);
            const bool begun = unit - share.first >= chain.stages;      // the product has used up stages of its own
            for (; underWay >= (begun ? most.within : most.ahead); underWay--) {
                await(ring.full + arrived.stage, arrived.phase);
                arrived.next(chain.stages);
            }
            underWay++;
            expect(ring.full + turn.stage, WBytes);
            fetch(ring.stages + turn.stage * WBytes, chain.w[i], unit % share.steps * StageColumns, unit / share.steps * TileRows, ring.full + turn.stage, true);
        }
    }
}

// Another those of x, as soon as the op before has been finished.
template <int NT>
DEVICE void fetchRows(const Chain& chain, const Ring& ring) {
    Turn turn = {0, 1};
#pragma unroll 1
    for (int i = 0; i < chain.count; i++) {
        const Share share = shareOf(chain.ops[i]);
        if (i == 0) awaitPrevious();
        else {
            awaitCount(finishedOf(chain.ops[i - 1]), gridDim.x);
            asm volatile("fence.proxy.async.global;" ::: "memory");
        }
        for (int unit = share.first; unit < share.end; unit++, turn.next(XStages)) {
            await(ring.empty + turn.stage, turn.phase);
            expect(ring.full + turn.stage, Rows<NT>::Bytes);
            fetch(ring.stages + turn.stage * Rows<NT>::Bytes, chain.x[i], unit % share.steps * StageColumns, 0, ring.full + turn.stage, false);
        }
    }
}

template <int NT>
DEVICE void multiply(const Chain& chain, const Ring& weights, const Ring& x, Desk& desk) {
    const int half = threadIdx.x / 128;
    awaitPrevious();
    Turn w = {0, 0}, r = {0, 0};
#pragma unroll 1
    for (int i = 0; i < chain.count; i++) {
        const Op& op = chain.ops[i];
        const Share share = shareOf(op);
        const int rows = *op.rows;
        for (int unit = share.first; unit < share.end;) {
            const int tile = unit / share.steps, begin = unit, end = min(share.end, (tile + 1) * share.steps);
            int wBefore = 0, rBefore = 0;       // stages that the group under way still reads
            float sum[NT][4] = {};
            for (; unit < end; unit++) {
                await(weights.full + w.stage, w.phase);
                await(x.full + r.stage, r.phase);
                const u64 a = tileOf(weights.stages + w.stage * WBytes + half * 8192), b = tileOf(x.stages + r.stage * Rows<NT>::Bytes);
                fenceWide();
#pragma unroll
                for (int kk = 0; kk < 4; kk++) wide(sum, a + kk * 2, b + kk * 2);
                commitWide();
                awaitWide<1>();
                if (unit > begin && threadIdx.x % 32 == 0) { arrive(weights.empty + wBefore); arrive(x.empty + rBefore); }
                wBefore = w.stage;
                rBefore = r.stage;
                w.next(chain.stages);
                r.next(XStages);
            }
            awaitWide<0>();
            if (threadIdx.x % 32 == 0) { arrive(weights.empty + wBefore); arrive(x.empty + rBefore); }
            flush<NT>(sum, share, op, tile, rows);
        }
        if (op.finish.kind == Nothing) continue;
        meet(FactorsBarrier, MmaThreads + CrewThreads);
        finishOp(chain, i, desk);
    }
}

template <int NT>
DEVICE void run(const Chain& chain, unsigned char* memory) {
    // The rings' barriers: of weights those that count bytes, then those that count readers; of x likewise.
    u64* barriers = (u64*)memory;
    unsigned char* stages = memory + HeaderBytes + (adapted(chain) ? RoomBytes : 0);
    const Ring weights = {barriers, barriers + MostWStages, stages}, x = {barriers + 2 * MostWStages, barriers + 2 * MostWStages + XStages, stages + chain.stages * WBytes};
    const int mine = threadIdx.x;
    if (mine < 2 * MostWStages + 2 * XStages) {
        const bool readers = mine >= MostWStages && mine < 2 * MostWStages || mine >= 2 * MostWStages + XStages;
        initBarrier(barriers + mine, readers ? MmaThreads / 32 : 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    if (threadIdx.x < MostOps) deskOf(memory).next[threadIdx.x] = 0;
    __syncthreads();
    // 96 registers each at first. What the fetchers give back is just what the others take.
    if (threadIdx.x < MmaThreads) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
        multiply<NT>(chain, weights, x, deskOf(memory));
    } else if (threadIdx.x < MmaThreads + CrewThreads) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
        crew(chain, memory);
    } else {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        if (threadIdx.x == MmaThreads + CrewThreads) fetchWeights(chain, weights);
        else if (threadIdx.x == MmaThreads + CrewThreads + 32) fetchRows<NT>(chain, x);
    }
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
DEVICE void multiply(const Chain& chain, int index, Desk& desk, unsigned char* stages) {
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
    awaitInput(chain, index, Mma);
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
        if ((unit + 1) % share.steps == 0 || unit + 1 == share.end) {
            flush<NT>(sum, share, op, unit / share.steps, rows);
#pragma unroll
            for (int n = 0; n < NT; n++)
                for (int e = 0; e < 4; e++) sum[n][e] = 0.f;
        }
    }
    awaitCopies<0>();
    meet(MmaBarrier, MmaThreads);               // the stages are free for the next product
    if (op.finish.kind == Nothing) return;
    meet(FactorsBarrier, MmaThreads + CrewThreads);
    finishOp(chain, index, desk);
}

template <int NT>
DEVICE void run(const Chain& chain, unsigned char* memory) {
    constexpr int fit = (SHARED_LIMIT - HeaderBytes - RoomBytes) / ((TileRows + 8 * NT) * 128), stages = fit < 8 ? fit : 8;
    if (threadIdx.x < MostOps) deskOf(memory).next[threadIdx.x] = 0;
    __syncthreads();
    if (threadIdx.x < MmaThreads) for (int i = 0; i < chain.count; i++) multiply<NT, stages>(chain, i, deskOf(memory), memory + HeaderBytes + RoomBytes);
    else if (threadIdx.x < MmaThreads + CrewThreads) crew(chain, memory);
}
#endif

// 640 threads on Hopper, 512 elsewhere; one block a multiprocessor and no more: they wait for each other.
#define CHAIN(NT) \
    extern "C" __global__ __launch_bounds__(640, 1) void chain_##NT(const __grid_constant__ Chain chain) { \
        DYNAMIC_SHARED(memory); \
        letNextStart(); \
        run<NT>(chain, memory); \
    }
CHAIN(1) CHAIN(2) CHAIN(4) CHAIN(8) CHAIN(16)
