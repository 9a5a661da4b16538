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
    int shiftA, shiftB;
    int chunkWidth, chunkHeight;
    int rowsA, rowsB;     // shared + unshared·chunks
    int inputs, outputs;
    float scale;
    int reserved;
};

// The adapters' table has layers·7 entries for each adapter; a site is up to three neighbouring projections of a layer.
struct Site {
    const Lora* table;    // of the site's layer and first projection, for adapter 0
    int perAdapter;       // entries of the table
    int parts;            // 0: no adapters here
    int kind;             // 0 qkv, 1 output, 2 gate-up, 3 down
    int zStride;          // elements: the highest rank
    float* z;             // [part][short row][slice][zStride]: z in slices of A's columns, to be added up in order
    float* whole;         // [part][row][zStride]: z of rows in tiles
    int zPart, wholePart; // elements between parts
    int second, third;    // columns of y at which the parts behind the first begin
    int columns, reserved;// of y
    u32* ready;           // [part][short row]: slices of z that are there; 0 when a step begins
};
DEVICE int partBegin(const Site& s, int part) { return part == 0 ? 0 : part == 1 ? s.second : part == 2 ? s.third : s.columns; }
DEVICE int partEnd(const Site& s, int part) { return part + 1 < s.parts ? partBegin(s, part + 1) : s.columns; }

static const int MaxSlices = 16, RoomFloats = 512;          // RoomFloats: of shared memory for each warp, a z of the highest rank

// Columns of a slice: 128, or as many as make 16 slices. It depends on the shape alone, and so does the order of sums.
DEVICE int sliceWidth(int chunkWidth) { return max(128, ((chunkWidth + MaxSlices - 1) / MaxSlices + 31) / 32 * 32); }
DEVICE int slicesOf(int chunkWidth) { return (chunkWidth + sliceWidth(chunkWidth) - 1) / sliceWidth(chunkWidth); }

DEVICE int modulo(int a, int n) { return ((a % n) + n) % n; }

// ---- z = A·x of a row: ranks are the tile's rows, chunks its columns. Within 32 columns the order of k is free as long as both factors agree:
// each lane takes 8 neighbours as two k-steps' halves.

// 8 values of x at chunk j, column t; those outside the chunk or the row are 0.
DEVICE U32x4 chunkOf(const u16* x, const Lora& m, int j, int t) {
    U32x4 v = {0, 0, 0, 0};
    const int c = j * m.chunkWidth + t;
    if (j >= m.chunksA) return v;
    if (m.chunkWidth % 8 == 0 && m.inputs % 8 == 0) { if (t < m.chunkWidth && c < m.inputs) v = loadFresh4(x + c); }
    else {
        u32 w[4];
        for (int i = 0; i < 4; i++) {
            u32 low = t + 2 * i < m.chunkWidth && c + 2 * i < m.inputs ? loadFresh(x + c + 2 * i) : 0;
            u32 high = t + 2 * i + 1 < m.chunkWidth && c + 2 * i + 1 < m.inputs ? loadFresh(x + c + 2 * i + 1) : 0;
            w[i] = low | high << 16;
        }
        v.x = w[0]; v.y = w[1]; v.z = w[2]; v.w = w[3];
    }
    return v;
}

// One slice of one row's z, to z. `whenReady` is called before anything of x is read; A's first bytes are on their way by then. `room` is this warp's.
template <class Ready>
DEVICE void shrinkSlice(const Lora& m, const u16* x, int slice, float* z, float* room, const Ready& whenReady) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, width = sliceWidth(m.chunkWidth), begin = slice * width, end = min((m.chunkWidth + 7) / 8 * 8, begin + width);
    const U32x4 zero = {0, 0, 0, 0};
    for (int rank = 0; rank < m.rowsA; rank += 32)
        for (int chunk = 0; chunk < m.chunksA; chunk += 8) {
            float sum[2][4] = {};
            for (int t = begin; t < end; t += 128) {
                U32x4 a[4][4], v[4];
#pragma unroll
                for (int s = 0; s < 4; s++)
#pragma unroll
                    for (int f = 0; f < 4; f++) {
                        const int column = t + s * 32 + q * 8, row = rank + f * 8 + g;
                        a[s][f] = column < end && row < m.rowsA ? loadOnce(m.a + ((long long)(column / 8) * m.rowsA + row) * 8) : zero;
                    }
                whenReady();
#pragma unroll
                for (int s = 0; s < 4; s++) v[s] = t + s * 32 + q * 8 < end ? chunkOf(x, m, chunk + g, t + s * 32 + q * 8) : zero;
#pragma unroll
                for (int s = 0; s < 4; s++)
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
                for (int c = chunk; c < min(chunk + 8, m.chunksA); c++) {
                    const int row = (k < m.shared ? (k + c * m.shiftA) % m.shared : m.shared + (k - m.shared) * m.chunksA + c) - rank;
                    if (row >= 0 && row < 32) total += room[row * 8 + c - chunk];
                }
                z[k] = total;
            }
        }
}

// All short rows' slices, dealt out to the warps of all blocks, of which this is number `warp` of `warps` in its block.
template <class Ready>
DEVICE void shrinkRows(const Step* step, const int* adapterOf, const int* shortRows, const Site& site, const u16* x, int xStride, int warp, int warps, float* room, const Ready& whenReady) {
    const int slices = step->slices[site.kind], all = step->shortRows * site.parts * slices;
    for (int unit = warp * gridDim.x + blockIdx.x; unit < all; unit += warps * gridDim.x) {
        const int slice = unit % slices, part = unit / slices % site.parts, i = unit / slices / site.parts, row = shortRows[i], adapter = adapterOf[row];
        if (adapter < 0) continue;
        const Lora m = site.table[adapter * site.perAdapter + part];
        if (m.rowsA == 0 || slice >= slicesOf(m.chunkWidth)) continue;
        shrinkSlice(m, x + (long long)row * xStride, slice, site.z + (long long)part * site.zPart + ((long long)i * MaxSlices + slice) * site.zStride, room, whenReady);
        __threadfence();
        __syncwarp();
        if (threadIdx.x % 32 == 0) atomicAdd(site.ready + part * step->shortRows + i, 1u);
    }
}

// ---- y = scale·B(z) of a row: columns of y within a chunk are the tile's rows, chunks its columns. z is fp32 and goes in as the sum of two bf16:
// the upper halves of four chunks are columns 0 to 3, the lower ones 4 to 7.

// z as B's rows k and k + 1 meet it at a chunk: rotated, scaled.
DEVICE u32 zPair(const Lora& m, const float* z, int k, int chunk, bool low) {
    float v[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int r = k + i, e = r - m.shared;
        if (chunk >= m.chunksB || r >= m.rowsB) v[i] = 0.f;
        else if (e < 0) v[i] = z[modulo(r - chunk * m.shiftB, m.shared)];
        else v[i] = e % m.chunksB == chunk ? z[m.shared + e / m.chunksB] : 0.f;
    }
    const u32 high = packBf16(v[0], v[1]);
    return low ? packBf16(v[0] - lowOf(high), v[1] - highOf(high)) : high;
}

static const int RunColumns = 256;                          // of y, that a warp takes at a time
static const int ExpandTiles = 2, ExpandRows = 32 * ExpandTiles;    // 32 of a chunk's rows in a tile

// B's rows 32·group … + 31 for 64 of a chunk's rows from t on.
DEVICE void loadB(U32x4 (&w)[ExpandTiles][4], const Lora& m, int t, int group) {
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4, pairs = (m.rowsB + 1) / 2;
    const U32x4 zero = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < ExpandTiles; i++)
#pragma unroll
        for (int s = 0; s < 4; s++) {
            const int tile = t / 32 + i, pair = group * 16 + s * 4 + q;
            w[i][s] = tile * 32 < m.chunkHeight && pair < pairs ? loadOnce(m.b + (((long long)tile * pairs + pair) * 8 + g) * 8) : zero;
        }
}

// Adds B's share to 64 rows of four chunks: sum[i][h] is rows 32·i + 16·h … + 15.
DEVICE void multiplyB(float (&sum)[ExpandTiles][2][4], const U32x4 (&w)[ExpandTiles][4], const Lora& m, const float* z, int group, int chunk) {
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
    for (int s = 0; s < 4; s += 2) {
        const int k = group * 32 + s * 8 + 2 * q;
        if (group * 32 + s * 8 >= m.rowsB) continue;
        const u32 b0 = zPair(m, z, k, chunk + g % 4, g >= 4), b1 = zPair(m, z, k + 8, chunk + g % 4, g >= 4);
#pragma unroll
        for (int i = 0; i < ExpandTiles; i++) {
            mma(sum[i][0], w[i][s].x, w[i][s].y, w[i][s + 1].x, w[i][s + 1].y, b0, b1);
            mma(sum[i][1], w[i][s].z, w[i][s].w, w[i][s + 1].z, w[i][s + 1].w, b0, b1);
        }
    }
}

// Upper and lower halves joined and written: lanes q < 2 write rows 0 … 15 of a tile, the others rows 16 … 31.
DEVICE void storeB(const float (&sum)[ExpandTiles][2][4], const Lora& m, int t, int chunk, int columns, float* y) {
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < ExpandTiles; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float kept = q < 2 ? sum[i][0][e] : sum[i][1][e], given = q < 2 ? sum[i][1][e] : sum[i][0][e];
            const float v = kept + __shfl_xor_sync(0xFFFFFFFFu, given, 2);
            const int row = t + 32 * i + (q < 2 ? 0 : 16) + g + e / 2 * 8, c = chunk + q % 2 * 2 + e % 2, o = c * m.chunkHeight + row;
            if (row < m.chunkHeight && c < m.chunksB && o < columns) y[o] = v;
        }
}

// A short row's z of one part from its slices, scaled, to the warp's room.
DEVICE void takeZ(const Site& site, const Lora& m, int part, int shortRow, float* room) {
    const float* z = site.z + (long long)part * site.zPart + (long long)shortRow * MaxSlices * site.zStride;
    const int slices = slicesOf(m.chunkWidth);
    for (int k = threadIdx.x % 32; k < m.shared + m.unshared; k += 32) {
        float sum = loadFresh(z + k);
#pragma unroll 8
        for (int s = 1; s < slices; s++) sum += loadFresh(z + s * site.zStride + k);
        room[k] = sum * m.scale;
    }
    __syncwarp();
}

// What adapters add to all short rows, to y. Of a base row nothing is written, unless `zeros`.
DEVICE void expandRows(const Step* step, const int* adapterOf, const int* shortRows, const Site& site, int warp, int warps, float* room, float* y, int stride, bool zeros) {
    const int lane = threadIdx.x % 32;
    int runs[3], all = 0;
#pragma unroll
    for (int p = 0; p < 3; p++) all += runs[p] = p < site.parts ? (partEnd(site, p) - partBegin(site, p) + RunColumns - 1) / RunColumns : 0;
    for (int item = warp * gridDim.x + blockIdx.x; item < step->shortRows * all; item += warps * gridDim.x) {
        const int i = item / all, row = shortRows[i], adapter = adapterOf[row];
        if (adapter < 0 && !zeros) continue;
        int run = item % all, part = 0;
        while (run >= runs[part]) run -= runs[part++];
        const int begin = partBegin(site, part), columns = partEnd(site, part) - begin;
        float* to = y + (long long)row * stride + begin;
        Lora m = {};
        if (adapter >= 0) m = site.table[adapter * site.perAdapter + part];
        if (m.rowsB == 0) {
            for (int c = run * RunColumns + lane; c < min(columns, (run + 1) * RunColumns); c += 32) to[c] = 0.f;
            continue;
        }
        const int across = (m.chunkHeight + ExpandRows - 1) / ExpandRows, pieces = across * ((m.chunksB + 3) / 4);
        U32x4 w[ExpandTiles][4];
        if (run < pieces) loadB(w, m, run % across * ExpandRows, 0);        // on its way while z is made
        if (lane == 0) awaitCount(site.ready + part * step->shortRows + i, slicesOf(m.chunkWidth));
        __syncwarp();
        takeZ(site, m, part, i, room);
        for (int piece = run; piece < pieces; piece += runs[part]) {
            const int t = piece % across * ExpandRows, chunk = piece / across * 4;
            float sum[ExpandTiles][2][4] = {};
            for (int group = 0; group * 32 < m.rowsB; group++) {
                if (piece != run || group > 0) loadB(w, m, t, group);
                multiplyB(sum, w, m, room, group, chunk);
            }
            storeB(sum, m, t, chunk, columns, to);
        }
        __syncwarp();
    }
}
