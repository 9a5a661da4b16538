// The kernels that read what a linear left behind. They add up its partial sums, the bias and the row's adapter, and go on with what comes next
// in the layer: residual and norm, rotation and cache, SwiGLU. So an adapter's B is read where its result is needed, and costs no launch and no
// trip of y through memory.
//
//   for o:  y[o] = Σ_p part[p, o] + bias[o] + scale·(Σ_k b[k, t]·z[(k − i·shiftB) mod r'] + Σ_k bVec[k, o]·z[r' + k]),  o = i·chunkHeight + t
//
// A thread takes a few neighbouring t and up to four chunks i at once: b is read once for all of them, and rotation is where z is read.

// What a linear left: parts to be added in order. How many a column has is its tile's.
struct Sums {
    const float* y;             // [part][row][stride]
    long long part;             // elements between parts
    int stride;
    const unsigned char* parts; // of each tile of 128 columns; null: 1
    const float* bias;          // or null
};

static const int TileColumns = 128;

DEVICE int partsAt(const Sums& s, int column) { return s.parts ? s.parts[column / TileColumns] : 1; }

DEVICE float summed(const Sums& s, int row, int column) {
    const int parts = partsAt(s, column);
    const float* y = s.y + (long long)row * s.stride + column;
    float sum = y[0];
    for (int p = 1; p < parts; p++) sum += y[p * s.part];
    return s.bias ? sum + s.bias[column] : sum;
}

DEVICE void loadRun(float (&v)[2], const float* p) { const F32x2 w = *(const F32x2*)p; v[0] = w.x; v[1] = w.y; }
DEVICE void loadRun(float (&v)[4], const float* p) { const F32x4 w = *(const F32x4*)p; v[0] = w.x; v[1] = w.y; v[2] = w.z; v[3] = w.w; }
DEVICE void loadRun(float (&v)[8], const float* p) {
    const F32x4 w = *(const F32x4*)p, u = *(const F32x4*)(p + 4);
    v[0] = w.x; v[1] = w.y; v[2] = w.z; v[3] = w.w; v[4] = u.x; v[5] = u.y; v[6] = u.z; v[7] = u.w;
}

// Columns column … column + V − 1, of which `count` exist and which lie in one tile of `parts` parts, if the run is aligned. Four parts are on their way together.
template <int V>
DEVICE void summed(const Sums& s, int row, int column, int count, int parts, float (&v)[V]) {
    const float* y = s.y + (long long)row * s.stride + column;
    if (count == V && column % V == 0 && ((u64)y & (V * 4 < 16 ? V * 4 - 1 : 15)) == 0 && s.part % 4 == 0) {
        float w[4][V];
#pragma unroll
        for (int p = 0; p < 4; p++)
            if (p < parts) loadRun(w[p], y + p * s.part);
            else
#pragma unroll
                for (int i = 0; i < V; i++) w[p][i] = 0.f;
#pragma unroll
        for (int i = 0; i < V; i++) v[i] = ((w[0][i] + w[1][i]) + w[2][i]) + w[3][i];
        for (int p = 4; p < parts; p++) {
            loadRun(w[0], y + p * s.part);
#pragma unroll
            for (int i = 0; i < V; i++) v[i] += w[0][i];
        }
        if (s.bias) for (int i = 0; i < V; i++) v[i] += s.bias[column + i];
    } else
        for (int i = 0; i < V; i++) v[i] = i < count ? summed(s, row, column + i) : 0.f;
}

// A module's z of one row, scaled, by threads first … of `threads`, which meet at `meet`. `room` holds slices·ranks floats; a slice's value comes by a thread of its own.
template <class Meet>
DEVICE void takeZ(float* to, float* room, const Site& site, const Lora& m, int part, int row, const Row& info, int first, int threads, Meet meet) {
    const int ranks = m.shared + m.unshared, slices = info.shortIndex < 0 ? 1 : slicesOf(m.strideA), step = info.shortIndex < 0 ? 0 : site.zStride;
    const float* z = info.shortIndex < 0 ? site.whole + (long long)part * site.wholePart + (long long)row * site.zStride
        : site.z + (long long)part * site.zPart + (long long)info.shortIndex * MaxSlices * site.zStride;
    for (int i = first; i < slices * ranks; i += threads) room[i] = z[i / ranks * step + i % ranks];
    meet();
    for (int k = first; k < ranks; k += threads) {
        float sum = room[k];
        for (int s = 1; s < slices; s++) sum += room[s * ranks + k];
        to[k] = sum * m.scale;
    }
    meet();
}

DEVICE void loadPairs(u32 (&w)[1], const u16* p) { w[0] = *(const u32*)p; }
DEVICE void loadPairs(u32 (&w)[4], const u16* p) { const U32x4 v = *(const U32x4*)p; w[0] = v.x; w[1] = v.y; w[2] = v.z; w[3] = v.w; }

template <int V>
DEVICE void addPairs(float (&sum)[V], const u32 (&w)[V / 2], float f) {
#pragma unroll
    for (int i = 0; i < V / 2; i++) { sum[2 * i] += lowOf(w[i]) * f; sum[2 * i + 1] += highOf(w[i]) * f; }
}

// B at V neighbouring columns t of a chunk, and B_vec at those of CHUNKS chunks: the first ranks, in registers before their z is known.
// t is a multiple of V; beyond the chunk are the pads' zeros.
template <int V, int CHUNKS>
struct Factor {
    static const int Ranks = 16, Vecs = 2;
    u32 b[Ranks][V / 2], vec[Vecs][CHUNKS][V / 2];

    DEVICE_MEMBER void load(const Lora& m, int t, int chunk, bool in) {
#pragma unroll
        for (int k = 0; k < Ranks; k++)
            if (in && k < m.shared) loadPairs(b[k], m.b + (long long)k * m.strideB + t);
            else
#pragma unroll
                for (int i = 0; i < V / 2; i++) b[k][i] = 0;
#pragma unroll
        for (int k = 0; k < Vecs; k++)
#pragma unroll
            for (int c = 0; c < CHUNKS; c++)
                if (in && k < m.unshared && chunk + c < m.chunksB) loadPairs(vec[k][c], m.bVec + (long long)(k * m.chunksB + chunk + c) * m.strideB + t);
                else
#pragma unroll
                    for (int i = 0; i < V / 2; i++) vec[k][c][i] = 0;
    }

    // sum[c][v] += the adapter's part of column (chunk + c)·chunkHeight + t + v.
    DEVICE_MEMBER void expand(const Lora& m, const float* z, int t, int chunk, float (&sum)[CHUNKS][V]) {
        int from[CHUNKS];
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) from[c] = m.shared > 0 ? modulo(-(chunk + c) * m.shiftB, m.shared) : 0;
#pragma unroll
        for (int k = 0; k < Ranks; k++)
            if (k < m.shared)
#pragma unroll
                for (int c = 0; c < CHUNKS; c++) {
                    addPairs<V>(sum[c], b[k], z[from[c]]);
                    if (++from[c] == m.shared) from[c] = 0;
                }
        for (int k = Ranks; k < m.shared; k++) {
            u32 w[V / 2];
            loadPairs(w, m.b + (long long)k * m.strideB + t);
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                addPairs<V>(sum[c], w, z[from[c]]);
                if (++from[c] == m.shared) from[c] = 0;
            }
        }
#pragma unroll
        for (int k = 0; k < Vecs; k++)
            if (k < m.unshared)
#pragma unroll
                for (int c = 0; c < CHUNKS; c++) addPairs<V>(sum[c], vec[k][c], z[m.shared + k]);
        for (int k = Vecs; k < m.unshared; k++)
#pragma unroll
            for (int c = 0; c < CHUNKS; c++)
                if (chunk + c < m.chunksB) {
                    u32 w[V / 2];
                    loadPairs(w, m.bVec + (long long)(k * m.chunksB + chunk + c) * m.strideB + t);
                    addPairs<V>(sum[c], w, z[m.shared + k]);
                }
    }
};

// The same for one column, anywhere.
DEVICE float expandAt(const Lora& m, const float* z, int column) {
    const int chunk = column / m.chunkHeight, t = column % m.chunkHeight;
    float sum = 0.f;
    int from = m.shared > 0 ? modulo(-chunk * m.shiftB, m.shared) : 0;
    for (int k = 0; k < m.shared; k++) {
        sum += fromBf16(m.b[(long long)k * m.strideB + t]) * z[from];
        if (++from == m.shared) from = 0;
    }
    for (int k = 0; k < m.unshared; k++) sum += fromBf16(m.bVec[(long long)(k * m.chunksB + chunk) * m.strideB + t]) * z[m.shared + k];
    return sum;
}

// How a module's columns are dealt out: V neighbours t of CHUNKS chunks are eight columns. Rows of the base have one chunk.
struct Cut {
    int chunks, height, across, items;
};
template <int V, int CHUNKS>
DEVICE Cut cutOf(const Lora& m, int columns, bool adapted) {
    Cut c;
    c.chunks = adapted ? m.chunksB : 1;
    c.height = adapted ? m.chunkHeight : columns;
    c.across = (c.height + V - 1) / V;
    c.items = c.across * ((c.chunks + CHUNKS - 1) / CHUNKS);
    return c;
}

// line[o] = the row's finished y of one part, in shared memory. The first item's B is on its way before anything is awaited; then `begin` may ask for more.
template <int V, int CHUNKS, class Begin>
DEVICE void finishItems(float* line, float* z, const Sums& sums, const Site& site, const Lora& m, bool adapted, int part, const Row& info, int row, int column, int columns, Begin begin) {
    const Cut cut = cutOf<V, CHUNKS>(m, columns, adapted);
    Factor<V, CHUNKS> factor;
    int item = threadIdx.x;
    factor.load(m, item % cut.across * V, item / cut.across * CHUNKS, adapted && item < cut.items);
    int parts[CHUNKS];
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) parts[c] = partsAt(sums, column + min(columns - 1, (item / cut.across * CHUNKS + c) * cut.height + item % cut.across * V));
    awaitPrevious();
    begin();
    bool first = true;
    for (; item < cut.items || first; item += blockDim.x) {
        const int t = item % cut.across * V, chunk = item / cut.across * CHUNKS;
        float sum[CHUNKS][V];
        int count[CHUNKS];
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            const int o = (chunk + c) * cut.height + t;
            count[c] = item < cut.items && chunk + c < cut.chunks ? max(0, min(min(V, cut.height - t), columns - o)) : 0;
            if (!first) parts[c] = partsAt(sums, column + min(columns - 1, o));
            summed<V>(sums, row, column + o, count[c], parts[c], sum[c]);
        }
        if (adapted) {
            if (first) takeZ(z, z + site.zStride, site, m, part, row, info, threadIdx.x, blockDim.x, [] { __syncthreads(); });
            else factor.load(m, t, chunk, item < cut.items);
            if (item < cut.items) factor.expand(m, z, t, chunk, sum);
        }
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
#pragma unroll
            for (int v = 0; v < V; v++)
                if (v < count[c]) line[(chunk + c) * cut.height + t + v] = sum[c][v];
        first = false;
    }
    __syncthreads();
}

// z is room for the ranks, and for those of 16 slices behind them.
template <class Begin>
DEVICE void finishLine(float* line, float* z, const Sums& sums, const Site& site, int part, const Row& info, int row, int column, int columns, Begin begin) {
    Lora m = {};
    bool adapted = site.parts > 0 && info.adapter >= 0;
    if (adapted) {
        m = site.table[info.adapter * site.perAdapter + part];
        adapted = m.shared + m.unshared > 0;
    }
    if (adapted && m.chunksB > 1) finishItems<2, 4>(line, z, sums, site, m, true, part, info, row, column, columns, begin);
    else finishItems<8, 1>(line, z, sums, site, m, adapted, part, info, row, column, columns, begin);
}

// Sum over the block, the same in every thread; `room` has 32 floats.
DEVICE float blockSum(float v, float* room) {
    v = warpSum(v);
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = v;
    __syncthreads();
    float sum = 0.f;
    for (int i = 0; i < (int)blockDim.x / 32; i++) sum += room[i];
    __syncthreads();
    return sum;
}

// x += y where there is one; h = x / sqrt(mean(x²) + ε) · weight. A block a row. Shared: columns + 17·zStride + 32 floats.
extern "C" __global__ __launch_bounds__(512) void addNorm(const Step* step, const Row* rows, Sums delta, Site site, float* x, int xStride, const float* weight, float epsilon,
    u16* h, float* full, int hStride, int columns) {
    DYNAMIC_SHARED(memory);
    float *room = (float*)memory, *z = room + 32, *line = z + 17 * site.zStride;
    letNextStart();
    const int row = blockIdx.x;
    if (row >= step->rows) { awaitPrevious(); return; }
    x += (long long)row * xStride;
    // The first columns' x and weights are here by the time they are wanted.
    float early[8], scale[8];
    const int mine = threadIdx.x * 8;
    const bool run = columns % 8 == 0 && xStride % 4 == 0 && mine < columns;
    if (run) loadRun(scale, weight + mine);
    auto begin = [&] { if (run) loadRun(early, x + mine); };
    if (delta.y) finishLine(line, z, delta, site, 0, rows[row], row, 0, columns, begin);
    else { awaitPrevious(); begin(); }

    float squares = 0.f;
    if (run) {
        float y[8];
        if (delta.y) {
            loadRun(y, line + mine);
#pragma unroll
            for (int i = 0; i < 8; i++) early[i] += y[i];
            *(F32x4*)(x + mine) = F32x4{early[0], early[1], early[2], early[3]};
            *(F32x4*)(x + mine + 4) = F32x4{early[4], early[5], early[6], early[7]};
        }
#pragma unroll
        for (int i = 0; i < 8; i++) squares += early[i] * early[i];
    }
    const int rest = columns % 8 == 0 && xStride % 4 == 0 ? (int)blockDim.x * 8 : 0;
    for (int c = rest + threadIdx.x; c < columns; c += blockDim.x) {
        const float v = delta.y ? x[c] + line[c] : x[c];
        line[c] = v;
        if (delta.y) x[c] = v;
        squares += v * v;
    }
    const float factor = 1.f / sqrtf(blockSum(squares, room) / columns + epsilon);
    if (run) {
#pragma unroll
        for (int i = 0; i < 8; i++) early[i] = early[i] * factor * scale[i];
        if (h) *(U32x4*)(h + (long long)row * hStride + mine) = U32x4{packBf16(early[0], early[1]), packBf16(early[2], early[3]), packBf16(early[4], early[5]), packBf16(early[6], early[7])};
        else
#pragma unroll
            for (int i = 0; i < 8; i++) full[(long long)row * hStride + mine + i] = early[i];
    }
    for (int c = rest + threadIdx.x; c < columns; c += blockDim.x) {
        const float v = line[c] * factor * weight[c];
        if (h) h[(long long)row * hStride + c] = toBf16(v);
        else full[(long long)row * hStride + c] = v;
    }
}

// Where a layer's keys and values lie: [block][kvHead][position][dimStride], dimStride = headDim rounded up to 16, pads zero.
struct Cache {
    u16 *keys, *values;
    int blockSize, kvHeads, headDim, dimStride;
};

// q, k and v of a row: finished, their heads normalised where weights are given, q and k rotated by the position. q goes to its own bf16 place
// [row][head][dimStride], k and v to the cache. Block (row, part). Shared: the widest part's columns + headDim + 17·zStride floats.
extern "C" __global__ __launch_bounds__(512) void ropeStore(const Step* step, const Row* rows, const int* positions, const int* slots, Sums sums, Site site, int heads,
    const float* queryNorm, const float* keyNorm, float epsilon, const float* frequencies, u16* q, Cache cache) {
    DYNAMIC_SHARED(memory);
    const int row = blockIdx.x, part = blockIdx.y, dim = cache.headDim, half = dim / 2;
    float *z = (float*)memory, *line = z + 17 * site.zStride, *turn = line + max(heads, cache.kvHeads) * dim;
    letNextStart();
    if (row >= step->rows) { awaitPrevious(); return; }
    const int mine = part == 0 ? heads : cache.kvHeads, column = part == 0 ? 0 : (heads + (part - 1) * cache.kvHeads) * dim;
    const float* norm = part == 0 ? queryNorm : part == 1 ? keyNorm : 0;
    const int slot = slots[row], block = slot / cache.blockSize, at = slot % cache.blockSize;
    if (part < 2)
        for (int i = threadIdx.x; i < half; i += blockDim.x) {
            float s, c;
            sincosf(positions[row] * frequencies[i], &s, &c);
            turn[i] = c;
            turn[half + i] = s;
        }
    finishLine(line, z, sums, site, part, rows[row], row, column, mine * dim, [] {});

    const int lane = threadIdx.x % 32;
    for (int head = threadIdx.x / 32; head < mine; head += blockDim.x / 32) {
        const float* v = line + head * dim;
        const long long place = ((long long)(block * cache.kvHeads + head) * cache.blockSize + at) * cache.dimStride;
        u16* to = part == 0 ? q + ((long long)row * heads + head) * cache.dimStride : (part == 1 ? cache.keys : cache.values) + place;
        float factor = 1.f;
        if (norm) {
            float squares = 0.f;
            for (int i = lane; i < dim; i += 32) squares += v[i] * v[i];
            factor = 1.f / sqrtf(warpSum(squares) / dim + epsilon);
        }
        if (part == 2) for (int i = lane; i < dim; i += 32) to[i] = toBf16(v[i]);
        else
            for (int i = lane; i < half; i += 32) {
                const float a = norm ? v[i] * factor * norm[i] : v[i], b = norm ? v[i + half] * factor * norm[i + half] : v[i + half];
                to[i] = toBf16(a * turn[i] - b * turn[half + i]);
                to[i + half] = toBf16(b * turn[i] + a * turn[half + i]);
            }
        for (int i = dim + lane; i < cache.dimStride; i += 32) to[i] = 0;
    }
}

DEVICE float swish(float gate, float up) { return gate / (1.f + __expf(-gate)) * up; }

// y[i] = silu(gate[i])·up[i], gate the first `inner` columns of the sums. A warp takes 256 columns of a row, eight a lane; those of one piece and
// one adapter are neighbours, so that B comes from the first level cache for all rows but one. Shared: 19·zStride floats a warp.
template <int V, int CHUNKS>
DEVICE void swiGluPiece(const Sums& sums, const Site& site, const Lora& gate, const Lora& up, bool gates, bool ups, float* z, const Row& info, int row, int inner, const Cut& cut, int item, bool first, u16* y) {
    const int lane = threadIdx.x % 32, t = item % cut.across * V, chunk = item / cut.across * CHUNKS;
    const bool in = item < cut.items;
    Factor<V, CHUNKS> g, u;
    g.load(gate, t, chunk, gates && in);
    u.load(up, t, chunk, ups && in);
    int count[CHUNKS], parts[CHUNKS][2];
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int o = (chunk + c) * cut.height + t;
        count[c] = in && chunk + c < cut.chunks ? max(0, min(min(V, cut.height - t), inner - o)) : 0;
        parts[c][0] = partsAt(sums, min(o, inner - 1));
        parts[c][1] = partsAt(sums, inner + min(o, inner - 1));
    }
    if (first) awaitPrevious();
    float a[CHUNKS][V], b[CHUNKS][V];
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int o = (chunk + c) * cut.height + t;
        summed<V>(sums, row, o, count[c], parts[c][0], a[c]);
        summed<V>(sums, row, inner + o, count[c], parts[c][1], b[c]);
    }
    if (first && gates) takeZ(z, z + 2 * site.zStride, site, gate, 0, row, info, lane, 32, [] { __syncwarp(); });
    if (first && ups) takeZ(z + site.zStride, z + 2 * site.zStride, site, up, 1, row, info, lane, 32, [] { __syncwarp(); });
    if (!in) return;
    if (gates) g.expand(gate, z, t, chunk, a);
    if (ups) u.expand(up, z + site.zStride, t, chunk, b);
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int o = (chunk + c) * cut.height + t;
        if (count[c] == V && ((u64)(y + o) & (V * 2 - 1)) == 0) {
            u32 w[V / 2];
#pragma unroll
            for (int i = 0; i < V / 2; i++) w[i] = packBf16(swish(a[c][2 * i], b[c][2 * i]), swish(a[c][2 * i + 1], b[c][2 * i + 1]));
            if constexpr (V == 8) *(U32x4*)(y + o) = U32x4{w[0], w[1], w[2], w[3]};
            else *(u32*)(y + o) = w[0];
        } else
            for (int i = 0; i < V; i++) if (i < count[c]) y[o + i] = toBf16(swish(a[c][i], b[c][i]));
    }
}

extern "C" __global__ __launch_bounds__(128) void swiGlu(const Step* step, const Row* rows, Sums sums, Site site, int inner, u16* y, int yStride) {
    DYNAMIC_SHARED(memory);
    const int lane = threadIdx.x % 32, pieces = (inner + 255) / 256;
    float* z = (float*)memory + threadIdx.x / 32 * 19 * site.zStride;
    letNextStart();
    const int item = blockIdx.x * 4 + threadIdx.x / 32;
    if (item / pieces >= step->rows) { awaitPrevious(); return; }
    const Row info = rows[item / pieces];
    const int local = item - info.segmentFirst * pieces, row = info.segmentFirst + local % info.segmentRows, piece = local / info.segmentRows;
    Row mine = info;
    mine.shortIndex = rows[row].shortIndex;
    Lora gate = {}, up = {};
    if (site.parts > 0 && info.adapter >= 0) {
        gate = site.table[info.adapter * site.perAdapter];
        up = site.table[info.adapter * site.perAdapter + 1];
    }
    y += (long long)row * yStride;
    const bool gates = gate.shared + gate.unshared > 0, ups = up.shared + up.unshared > 0;
    if (gates && ups && (gate.chunksB != up.chunksB || gate.chunkHeight != up.chunkHeight)) {
        // Two geometries: column by column.
        awaitPrevious();
        takeZ(z, z + 2 * site.zStride, site, gate, 0, row, mine, lane, 32, [] { __syncwarp(); });
        takeZ(z + site.zStride, z + 2 * site.zStride, site, up, 1, row, mine, lane, 32, [] { __syncwarp(); });
        for (int o = piece * 256 + lane; o < min(inner, (piece + 1) * 256); o += 32)
            y[o] = toBf16(swish(summed(sums, row, o) + expandAt(gate, z, o), summed(sums, row, inner + o) + expandAt(up, z + site.zStride, o)));
        return;
    }
    const Lora& shape = gates ? gate : up;
    if ((gates || ups) && shape.chunksB > 1) {
        const Cut cut = cutOf<2, 4>(shape, inner, true);
        for (int p = piece; p * 32 < cut.items || p == piece; p += pieces) swiGluPiece<2, 4>(sums, site, gate, up, gates, ups, z, mine, row, inner, cut, p * 32 + lane, p == piece, y);
    } else {
        const Cut cut = cutOf<8, 1>(shape, inner, gates || ups);
        for (int p = piece; p * 32 < cut.items || p == piece; p += pieces) swiGluPiece<8, 1>(sums, site, gate, up, gates, ups, z, mine, row, inner, cut, p * 32 + lane, p == piece, y);
    }
}

// y itself, for whoever wants to see it: block (row). Shared: 17·zStride floats.
extern "C" __global__ void finish(const Step* step, const Row* rows, Sums sums, Site site, int firstColumn, int secondColumn, int columns, float* y, int yStride) {
    DYNAMIC_SHARED(memory);
    awaitPrevious();
    const int row = blockIdx.x;
    if (row >= step->rows) return;
    y += (long long)row * yStride;
    for (int c = threadIdx.x; c < columns; c += blockDim.x) y[c] = summed(sums, row, c);
    for (int part = 0; part < site.parts && rows[row].adapter >= 0; part++) {
        const Lora m = site.table[rows[row].adapter * site.perAdapter + part];
        __syncthreads();
        if (m.shared + m.unshared == 0) continue;
        takeZ((float*)memory, (float*)memory + site.zStride, site, m, part, row, rows[row], threadIdx.x, blockDim.x, [] { __syncthreads(); });
        const int from = part == 0 ? 0 : part == 1 ? firstColumn : secondColumn;
        for (int c = threadIdx.x; c < m.outputs; c += blockDim.x) y[from + c] += expandAt(m, (const float*)memory, c);
    }
}
