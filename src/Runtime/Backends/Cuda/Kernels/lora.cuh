// What the adapters' kernels share: how an adapter lies in memory, and what it adds to a row, one row at a time.
//
//   for r, o:  y[r, o] = scale·(Σ_k b[k, t]·z[r, (k − i·shiftB) mod r'] + Σ_k bVec[k, o]·z[r, r' + k]),  o = i·chunkHeight + t
//   where      z[r, k] = Σ_j Σ_t a[(k + j·shiftA) mod r', t]·x[r, j·chunkWidth + t];  z[r, r' + k] = Σ_c aVec[k, c]·x[r, c]
//
// The factors lie in the order in which a warp reads them for its tensor cores, so that every load is 512 bytes in one piece. All chunks of a
// row are columns of one tile, so a byte of an adapter is read once for them.

// One adapted linear in compact form; see LoraModule. The factors' rows are the shared ranks, then the pieces of the unshared ones: chunk j of
// A_vec's row k is row shared + k·chunksA + j of a; chunk i of B_vec's row k is row shared + k·chunksB + i of b.
struct Lora {
    const u16* a;         // [t / 8][row][t % 8], t a column of a chunk; t up to a multiple of 8, zeros beyond the chunk
    const u16* b;         // [t / 32][row / 2][t % 8][t % 32 / 8][row % 2], t a row of a chunk; zeros beyond chunk and rows
    int shared, unshared; // r', u; none of either: the linear is not adapted
    int chunksA, chunksB; // m, n
    int shiftA, shiftB;   // less than r'
    int chunkWidth, chunkHeight;
    int rowsA, rowsB;     // shared + unshared·chunks
    int inputs, outputs;
    float scale;
    int sliceWidth, slices; // of z: columns of a chunk
    int tiles;            // of 32 rows in a chunk of b
};

enum { Qkv, Output, GateUp, Down };                        // Site.kind; the latter two have most of a layer's weights

// The adapters' table has layers·7 entries for each adapter; a site is up to three neighbouring projections of a layer.
struct Site {
    const Lora* table;    // of the site's layer and first projection, for adapter 0
    int perAdapter;       // entries of the table
    int parts;            // 0: no adapters here
    int kind;             // where in the layer
    int zStride;          // elements: the highest rank
    float* z;             // [part][short row][slice][zStride]: z in slices of A's columns, to be added up in order
    float* whole;         // [part][row][zStride]: z of rows in tiles
    int zPart, wholePart; // elements between parts
    int second, third;    // columns of y at which the parts behind the first begin
    int columns;          // of y
    int runs[3];          // of RunColumns in each part
};
DEVICE int partBegin(const Site& s, int part) { return part == 0 ? 0 : part == 1 ? s.second : part == 2 ? s.third : s.columns; }
DEVICE int partEnd(const Site& s, int part) { return part + 1 < s.parts ? partBegin(s, part + 1) : s.columns; }

#ifndef SHARED_LIMIT
#define SHARED_LIMIT 232448                                  // bytes of shared memory that a block can have
#endif

static const int MaxSlices = 16;                            // 64 columns each, or more. They depend on the shape alone, and so does the order of sums

// What a warp has of shared memory: the linears that it is at and that it fetches for, a z of the highest rank, and a ring of B's pieces on their way.
static const int RingSteps = SHARED_LIMIT >= 200000 ? 4 : SHARED_LIMIT >= 150000 ? 2 : 1, StepBytes = 2048;
struct alignas(16) Room {
    Lora now, ahead;
    float z[512];
    unsigned char ring[RingSteps][StepBytes];
};

// An entry of the table, for the whole warp.
DEVICE void takeEntry(Lora& to, const Lora* entry) {
    __syncwarp();
    if (threadIdx.x % 32 < sizeof(Lora) / 16) ((U32x4*)&to)[threadIdx.x % 32] = ((const U32x4*)entry)[threadIdx.x % 32];
    __syncwarp();
}

// Rows whose adapters are worked on one by one.
struct ShortRows {
    int count, slices;          // slices of the site's z: the most that any of the adapters has
    const int* adapters;        // indices into the table, −1: base
    const int* rows;            // null: they are rows 0 … count − 1
    DEVICE_MEMBER int row(int i) const { return rows ? rows[i] : i; }
};

// ---- z = A·x of a row: ranks are the tile's rows, chunks its columns. Within 32 columns the order of k is free as long as both factors agree:
// each lane takes 8 neighbours as two k-steps' halves.

// 8 values of x at chunk j, column t; those outside the chunk or the row are 0.
DEVICE U32x4 chunkByColumn(const u16* x, const Lora& m, int j, int t) {
    u32 w[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        w[i] = 0;
        for (int e = 0; e < 2; e++) {
            const int column = t + 2 * i + e, c = j * m.chunkWidth + column;
            if (column < m.chunkWidth && c < m.inputs) w[i] |= loadFresh(x + c) << 16 * e;
        }
    }
    return {w[0], w[1], w[2], w[3]};
}
DEVICE U32x4 chunkOf(const u16* x, const Lora& m, int j, int t) {
    const int c = j * m.chunkWidth + t;
    if (j >= m.chunksA || t >= m.chunkWidth || c >= m.inputs) return {0, 0, 0, 0};
    return m.chunkWidth % 8 == 0 && m.inputs % 8 == 0 ? loadFresh4(x + c) : chunkByColumn(x, m, j, t);
}

// One slice of one row's z, to z. `whenReady` is called before anything of x is read; A's first bytes are on their way by then. `room` is this warp's.
template <class Ready>
DEVICE void shrinkSlice(const Lora& m, const u16* x, int slice, float* z, float* room, const Ready& whenReady) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, begin = slice * m.sliceWidth, end = min((m.chunkWidth + 7) / 8 * 8, begin + m.sliceWidth);
    const U32x4 zero = {0, 0, 0, 0};
    for (int rank = 0; rank < m.rowsA; rank += 32)
        for (int chunk = 0; chunk < m.chunksA; chunk += 8) {
            float sum[2][4] = {};
            for (int t = begin; t < end; t += 64) {
                U32x4 a[2][4], v[2];
#pragma unroll
                for (int s = 0; s < 2; s++)
#pragma unroll
                    for (int f = 0; f < 4; f++) {
                        const int column = t + s * 32 + q * 8, row = rank + f * 8 + g;
                        a[s][f] = column < end && row < m.rowsA ? loadOnce(m.a + ((long long)(column / 8) * m.rowsA + row) * 8) : zero;
                    }
                whenReady();
#pragma unroll
                for (int s = 0; s < 2; s++) v[s] = t + s * 32 + q * 8 < end ? chunkOf(x, m, chunk + g, t + s * 32 + q * 8) : zero;
#pragma unroll
                for (int s = 0; s < 2; s++)
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        mma(sum[h], a[s][2 * h].x, a[s][2 * h + 1].x, a[s][2 * h].y, a[s][2 * h + 1].y, v[s].x, v[s].y);
                        mma(sum[h], a[s][2 * h].z, a[s][2 * h + 1].z, a[s][2 * h].w, a[s][2 * h + 1].w, v[s].z, v[s].w);
                    }
            }
            // Rank by rank over the chunks, each of which met another row of the factors.
            __syncwarp();
#pragma unroll
            for (int h = 0; h < 2; h++)
#pragma unroll
                for (int e = 0; e < 4; e++) room[(h * 16 + g + e / 2 * 8) * 8 + 2 * q + e % 2] = sum[h][e];
            __syncwarp();
            for (int k = lane; k < m.shared + m.unshared; k += 32) {
                float total = rank == 0 && chunk == 0 ? 0.f : z[k];
                const bool shared = k < m.shared;
                int row = shared ? (chunk == 0 ? k : (int)((u32)(k + chunk * m.shiftA) % (u32)m.shared)) : m.shared + (k - m.shared) * m.chunksA + chunk;
                for (int c = 0; c < min(8, m.chunksA - chunk); c++) {
                    if (row >= rank && row < rank + 32) total += room[(row - rank) * 8 + c];
                    row += shared ? m.shiftA : 1;
                    if (shared && row >= m.shared) row -= m.shared;
                }
                z[k] = total;
            }
        }
}

// All short rows' slices, dealt out to the warps of all blocks, of which this is number `warp` of `warps` in its block: `visit` is told of part, short
// row and slice, the linear being in the room.
template <class Visit>
DEVICE void eachSlice(const ShortRows& shorts, const Site& site, int warp, int warps, Room& room, const Visit& visit) {
    const u32 slices = shorts.slices, parts = site.parts, all = shorts.count * parts * slices;
    for (u32 unit = warp * gridDim.x + blockIdx.x; unit < all; unit += warps * gridDim.x) {
        const u32 slice = unit % slices, part = unit / slices % parts, i = unit / slices / parts;
        const int adapter = shorts.adapters[i];
        if (adapter < 0) continue;
        takeEntry(room.now, site.table + adapter * site.perAdapter + part);
        if (room.now.rowsA > 0 && slice < room.now.slices) visit(part, i, slice);
    }
}

template <class Ready>
DEVICE void shrinkRows(const ShortRows& shorts, const Site& site, const u16* x, int xStride, int warp, int warps, Room& room, const Ready& whenReady) {
    eachSlice(shorts, site, warp, warps, room, [&](int part, int i, int slice) {
        shrinkSlice(room.now, x + (long long)shorts.row(i) * xStride, slice, site.z + (long long)part * site.zPart + ((long long)i * MaxSlices + slice) * site.zStride, room.z, whenReady);
    });
}

// A warp's slices, to the L2, for a linear that is yet to come.
DEVICE void prefetchSlices(const ShortRows& shorts, const Site& site, int warp, int warps, Room& room) {
    eachSlice(shorts, site, warp, warps, room, [&](int, int, int slice) {
        const Lora& m = room.now;
        const int begin = slice * m.sliceWidth / 8, end = min((m.chunkWidth + 7) / 8, begin + m.sliceWidth / 8);
        for (int at = begin * m.rowsA * 16 + threadIdx.x % 32 * 128; at < end * m.rowsA * 16; at += 4096) prefetch((const char*)m.a + at);
    });
}

// ---- y = scale·B(z) of a row: columns of y within a chunk are the tile's rows, chunks its columns. z is fp32 and goes in as the sum of two bf16:
// the upper halves of four chunks are columns 0 to 3, the lower ones 4 to 7.

// z as B's rows k and k + 1 meet it at a chunk: rotated, scaled. `turned` is by how much, less than r'.
DEVICE u32 zPair(const Lora& m, const float* z, int k, int chunk, int turned, bool low) {
    float v[2] = {0.f, 0.f};
    if (chunk < m.chunksB)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int r = k + i, from = r - turned;
            if (r < m.shared) v[i] = z[from < 0 ? from + m.shared : from];
            else if (r < m.rowsB) {
                const u32 e = r - m.shared, row = e / (u32)m.chunksB;
                if (e - row * m.chunksB == chunk) v[i] = z[m.shared + row];
            }
        }
    const u32 high = packBf16(v[0], v[1]);
    return low ? packBf16(v[0] - lowOf(high), v[1] - highOf(high)) : high;
}

static const int RunColumns = 128;                          // of y, by which work is dealt out

// A warp's way through its runs of columns, mostly of one row. A piece is 32 of a chunk's rows for four chunks, a step 32 of B's rows for them: what
// lies in one piece in memory.
struct Walk {
    int at, end;                // runs that are still to come
    int i, part;                // short row, part
    int left, tile, chunk, group;           // pieces left, and where the first of them is
    int tiles, groups;          // of the linear's B
    DEVICE_MEMBER bool over() const { return left <= 0; }
    DEVICE_MEMBER bool last() const { return group + 1 == groups; }
};
DEVICE Walk walkOf(const ShortRows& shorts, const Site& site, int warp, int warps) {
    const u32 total = shorts.count * (site.runs[0] + site.runs[1] + site.runs[2]), n = warp * gridDim.x + blockIdx.x, all = warps * gridDim.x, each = total / all, more = total % all;
    Walk walk = {};
    walk.at = n * each + (n < more ? n : more);
    walk.end = walk.at + each + (n < more);
    return walk;
}

// What an adapted row's part gets where its adapter leaves it alone: zeros, if y is given.
struct Blank { float* y; int stride; };

// The next run's first piece, where there is nothing left of this one, and its linear. Rows and parts that are not adapted have none.
DEVICE void open(Walk& walk, const ShortRows& shorts, const Site& site, Lora& m, const Blank& blank) {
    while (walk.over() && walk.at < walk.end) {
        const u32 all = site.runs[0] + site.runs[1] + site.runs[2];
        walk.i = (u32)walk.at / all;
        int run = walk.at - walk.i * all;
        walk.part = 0;
        if (run >= site.runs[0]) { run -= site.runs[0]; walk.part++; }
        if (walk.part == 1 && run >= site.runs[1]) { run -= site.runs[1]; walk.part++; }
        const int runs = walk.part == 0 ? site.runs[0] : walk.part == 1 ? site.runs[1] : site.runs[2], count = min(walk.end - walk.at, runs - run), adapter = shorts.adapters[walk.i];
        walk.at += count;
        if (adapter >= 0) takeEntry(m, site.table + adapter * site.perAdapter + walk.part);
        if (adapter >= 0 && m.rowsB > 0) {
            walk.tiles = m.tiles;
            walk.groups = (m.rowsB + 31) / 32;
            const u32 pieces = walk.tiles * ((m.chunksB + 3) / 4), first = run * pieces / (u32)runs, tiles = walk.tiles;
            walk.left = (run + count) * pieces / (u32)runs - first;
            walk.chunk = first / tiles;
            walk.tile = first - walk.chunk * tiles;
            walk.chunk *= 4;
            walk.group = 0;
        } else if (blank.y && adapter >= 0) {
            const int begin = partBegin(site, walk.part), columns = partEnd(site, walk.part) - begin;
            float* to = blank.y + (long long)shorts.row(walk.i) * blank.stride + begin;
            for (int c = run * RunColumns + threadIdx.x % 32; c < min(columns, (run + count) * RunColumns); c += 32) to[c] = 0.f;
        }
    }
}
DEVICE void advance(Walk& walk, const ShortRows& shorts, const Site& site, Lora& m, const Blank& blank) {
    if (++walk.group < walk.groups) return;
    walk.group = 0;
    if (++walk.tile == walk.tiles) { walk.tile = 0; walk.chunk += 4; }
    if (--walk.left == 0) open(walk, shorts, site, m, blank);
}

// Fetches B a ring's length ahead of the arithmetic, and for the first steps ahead of anything else.
// [row / 2][t % 8][t % 32 / 8][row % 2] of a step. What is beyond B's rows is left as it was.
DEVICE void fetchNext(Walk& ahead, const ShortRows& shorts, const Site& site, Room& room, int slot) {
    if (!ahead.over()) {
        const int pairs = (room.ahead.rowsB + 1) / 2, count = min(16, pairs - ahead.group * 16) * 8;          // of 16 bytes
        const u16* from = room.ahead.b + ((long long)ahead.tile * pairs + ahead.group * 16) * 64;
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const int at = n * 32 + threadIdx.x % 32;
            if (at < count) copyOnce(room.ring[slot] + at * 16, from + at * 8);
        }
        advance(ahead, shorts, site, room.ahead, Blank{});
    }
    commitCopies();
}
DEVICE void start(Walk& ahead, const ShortRows& shorts, const Site& site, int warp, int warps, Room& room) {
    ahead = walkOf(shorts, site, warp, warps);
    open(ahead, shorts, site, room.ahead, Blank{});
#pragma unroll 1
    for (int slot = 0; slot < RingSteps; slot++) fetchNext(ahead, shorts, site, room, slot);
}

// z as B's rows 32·group … + 31 and four chunks meet it, as mma's second factor.
DEVICE void turnZ(u32 (&b)[4], const Lora& m, const float* z, int group, int chunk) {
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    const int turned = m.shared > 0 ? (u32)((chunk + g % 4) * m.shiftB) % (u32)m.shared : 0;
#pragma unroll
    for (int s = 0; s < 4; s++) b[s] = group * 32 + s * 8 < m.rowsB ? zPair(m, z, group * 32 + s * 8 + 2 * q, chunk + g % 4, turned, g >= 4) : 0;
}

// Upper and lower halves joined and written: lanes q < 2 write rows 0 … 15 of a tile, the others rows 16 … 31.
DEVICE void storeB(const float (&sum)[2][4], const Lora& m, int tile, int chunk, int columns, float* y) {
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const float kept = q < 2 ? sum[0][e] : sum[1][e], given = q < 2 ? sum[1][e] : sum[0][e];
        const float v = kept + __shfl_xor_sync(0xFFFFFFFFu, given, 2);
        const int t = tile * 32 + (q < 2 ? 0 : 16) + g + e / 2 * 8, c = chunk + q % 2 * 2 + e % 2, o = c * m.chunkHeight + t;
        if (t < m.chunkHeight && c < m.chunksB && o < columns) y[o] = v;
    }
}

// A short row's z of one part from its slices, scaled, to the warp's room.
DEVICE void takeZ(const Site& site, const Lora& m, int part, int shortRow, float* room) {
    const float* z = site.z + (long long)part * site.zPart + (long long)shortRow * MaxSlices * site.zStride;
    const int slices = m.slices;
    __syncwarp();
    for (int k = threadIdx.x % 32; k < m.shared + m.unshared; k += 32) {
        float sum = loadFresh(z + k);
#pragma unroll 8
        for (int s = 1; s < slices; s++) sum += loadFresh(z + s * site.zStride + k);
        room[k] = sum * m.scale;
    }
    __syncwarp();
}

// What adapters add to all short rows, to y, by one party of every block; all blocks are resident, for they wait for each other's z. Of a base row
// nothing is written. `shrunk` is 0 before; startAhead starts `ahead`, unless it has been started before; whenReady waits for x.
template <class Start, class Ready>
DEVICE void adaptRows(const ShortRows& shorts, const Site& site, const u16* x, int xStride, float* y, int stride, Party party, u32* shrunk, Room& room, Walk& ahead, const Start& startAhead, const Ready& whenReady) {
    const int warp = threadIdx.x % party.threads / 32, warps = party.threads / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    shrinkRows(shorts, site, x, xStride, warp, warps, room, whenReady);
    whenReady();
    startAhead();
    announce(party, shrunk);

    const Blank blank = {y, stride};
    Walk now = walkOf(shorts, site, warp, warps);
    const Lora& m = room.now;
    open(now, shorts, site, room.now, blank);
    awaitBlocks(party, shrunk);
    int row = -1, part = -1, chunk = -1;            // whose z is in the room, turned for which chunk
    u32 b[4];
    float sum[2][4] = {};
    for (int slot = 0; !now.over(); slot = (slot + 1) % RingSteps) {
        if (now.i != row || now.part != part) {
            takeZ(site, m, now.part, now.i, room.z);
            row = now.i; part = now.part; chunk = -1;
        }
        const bool last = now.last();
        if (chunk != now.chunk || now.groups > 1) turnZ(b, m, room.z, now.group, now.chunk);
        chunk = now.chunk;
        awaitCopies<RingSteps - 1>();
        __syncwarp();
#pragma unroll
        for (int s = 0; s < 4; s += 2) {
            if (now.group * 32 + s * 8 >= m.rowsB) continue;
            // Rows beyond B meet zeros, but must be numbers.
            const U32x4 zero = {0, 0, 0, 0}, *at = (const U32x4*)room.ring[slot] + s * 32 + q * 8 + g;
            const int pairs = (m.rowsB + 1) / 2 - now.group * 16 - s * 4 - q;
            const U32x4 w = pairs > 0 ? at[0] : zero, v = pairs > 4 ? at[32] : zero;
            mma(sum[0], w.x, w.y, v.x, v.y, b[s], b[s + 1]);
            mma(sum[1], w.z, w.w, v.z, v.w, b[s], b[s + 1]);
        }
        __syncwarp();
        fetchNext(ahead, shorts, site, room, slot);
        if (last) {
            const int begin = partBegin(site, now.part);
            storeB(sum, m, now.tile, chunk, partEnd(site, now.part) - begin, y + (long long)shorts.row(now.i) * stride + begin);
#pragma unroll
            for (int e = 0; e < 8; e++) sum[e / 4][e % 4] = 0.f;
        }
        advance(now, shorts, site, room.now, blank);
    }
    awaitCopies<0>();
}
