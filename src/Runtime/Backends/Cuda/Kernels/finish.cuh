// What becomes of a linear's sums: the parts are added up, and what comes next in the layer is done at once, residual and norm, rotation and cache,
// or SwiGLU. A warp does an item, of a tile's columns or a head; it waits for the sums of just those columns where they are still being made.
//
// A norm is cut in two. Whoever makes x leaves h = x·weight in bf16 and, of each tile of 128 columns, the sum of x²; whoever adds up a linear of h
// multiplies by 1 / sqrt(mean(x²) + ε), which is a row's. So no row is waited for as a whole.
//
//   for o:  y[o] = factor·(Σ_p part[p, o] + extra[o]) + bias[o],  factor = 1 / sqrt(Σ_t squares[t] / inputs + ε)

struct Sums {
    float* y;                   // [part][row][stride]: parts to be added in order; null: none
    long long part;             // elements between parts
    const unsigned char* parts; // of each tile of 128 columns; null: 1
    const float* bias;          // or null
    float* extra;               // [row][stride]: what adapters add to their rows; null: nothing
    const float* squares;       // [row][tile of the linear's inputs]; null: factor is 1
    int stride, inputs;
    float epsilon;
    int reserved;
};

// Where a layer's keys and values lie: [block][kvHead][position][dimStride], dimStride = headDim rounded up to 16, pads zero.
struct Cache {
    u16 *keys, *values;
    int blockSize, kvHeads, headDim, dimStride;
};

enum { Nothing, Residual, Rope, SwiGlu, Plain };            // Finish.kind

struct Finish {
    int kind, columns;          // of what comes out
    float* x;                   // Residual: x += y. Plain: y itself
    u16* out;                   // Residual: x·weight, or null. Rope: q, [row][head][dimStride]. SwiGlu: silu(gate)·up
    float* squares;             // Residual: [row][tile]
    const float* weight;
    int xStride, outStride;
    const int *positions, *slots;                           // Rope, and what follows
    const float *queryNorm, *keyNorm, *frequencies;         // norms or null
    float epsilon;
    int heads;
    Cache cache;
};

static const int TileColumns = 128, CounterStride = 32;     // a tile's counter has a line of its own, for many ask
static const int TileWarps = 8;                             // that raise it for each of its parts

DEVICE int partsAt(const Sums& s, int column) { return s.parts ? s.parts[column / TileColumns] : 1; }

// Until the sums of columns from … end − 1 are there; `tiles` null: they are.
DEVICE void awaitColumns(const Sums& s, const u32* tiles, int from, int end) {
    if (!tiles) return;
    if (threadIdx.x % 32 == 0)
        for (int t = from / TileColumns; t * TileColumns < end; t++) awaitCount(tiles + t * CounterStride, s.parts[t] * TileWarps);
    __syncwarp();
}

// The factor of a row's norm; asked by a whole warp.
DEVICE float factorOf(const float* squares, int columns, float epsilon, int row) {
    const int tiles = (columns + TileColumns - 1) / TileColumns;
    float sum = 0.f;
    for (int t = threadIdx.x % 32; t < tiles; t += 32) sum += loadFresh(squares + (long long)row * tiles + t);
    return 1.f / sqrtf(warpSum(sum) / columns + epsilon);
}
DEVICE float factorOf(const Sums& s, int row) { return s.squares ? factorOf(s.squares, s.inputs, s.epsilon, row) : 1.f; }

DEVICE float summed(const Sums& s, int row, int column, float factor, bool adapted) {
    const int parts = partsAt(s, column);
    const float* y = s.y + (long long)row * s.stride + column;
    float w[4];
#pragma unroll
    for (int p = 0; p < 4; p++) w[p] = p < parts ? loadFresh(y + p * s.part) : 0.f;     // on their way together
    const float more = adapted ? loadFresh(s.extra + (long long)row * s.stride + column) : 0.f;
    float sum = ((w[0] + w[1]) + w[2]) + w[3];
    for (int p = 4; p < parts; p++) sum += loadFresh(y + p * s.part);
    return (sum + more) * factor + (s.bias ? s.bias[column] : 0.f);
}

// Two neighbouring rows, the second once more where there is none.
struct Pair {
    int row[2];
    bool second;
    bool adapted[2];
    float factor[2];
};
DEVICE Pair pairOf(const Sums& s, const int* adapterOf, int rows, int row) {
    Pair p;
    p.second = row + 1 < rows;
    p.row[0] = row;
    p.row[1] = p.second ? row + 1 : row;
#pragma unroll
    for (int i = 0; i < 2; i++) p.adapted[i] = s.extra && adapterOf[p.row[i]] >= 0;
    return p;
}

// Columns column … column + 3 of both rows, of which `count` exist; PARTS: how many parts are fetched together.
template <int PARTS>
DEVICE void summed4(float (&v)[2][4], const Sums& s, const Pair& rows, int column, int count) {
    if (count == 4 && column % 4 == 0) {
        const int parts = partsAt(s, column);
        const float* y[2];
        F32x4 w[2][PARTS], more[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            y[i] = s.y + (long long)rows.row[i] * s.stride + column;
#pragma unroll
            for (int p = 0; p < PARTS; p++) w[i][p] = p < parts ? loadFresh4(y[i] + p * s.part) : F32x4{0, 0, 0, 0};
            more[i] = rows.adapted[i] ? loadFresh4(s.extra + (long long)rows.row[i] * s.stride + column) : F32x4{0, 0, 0, 0};
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
#pragma unroll
            for (int p = 1; p < PARTS; p++) { w[i][0].x += w[i][p].x; w[i][0].y += w[i][p].y; w[i][0].z += w[i][p].z; w[i][0].w += w[i][p].w; }
            for (int p = PARTS; p < parts; p++) {
                const F32x4 u = loadFresh4(y[i] + p * s.part);
                w[i][0].x += u.x; w[i][0].y += u.y; w[i][0].z += u.z; w[i][0].w += u.w;
            }
            v[i][0] = (w[i][0].x + more[i].x) * rows.factor[i];
            v[i][1] = (w[i][0].y + more[i].y) * rows.factor[i];
            v[i][2] = (w[i][0].z + more[i].z) * rows.factor[i];
            v[i][3] = (w[i][0].w + more[i].w) * rows.factor[i];
            if (s.bias)
#pragma unroll
                for (int e = 0; e < 4; e++) v[i][e] += s.bias[column + e];
        }
    } else
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int e = 0; e < 4; e++) v[i][e] = e < count ? summed(s, rows.row[i], column + e, rows.factor[i], rows.adapted[i]) : 0.f;
}

DEVICE void put4(float* to, const float (&v)[4], int count) {
    if (count == 4) *(F32x4*)to = F32x4{v[0], v[1], v[2], v[3]};
    else
#pragma unroll
        for (int e = 0; e < 4; e++) if (e < count) to[e] = v[e];
}
DEVICE void put4(u16* to, const float (&v)[4], int count) {
    if (count == 4) *(U32x2*)to = U32x2{packBf16(v[0], v[1]), packBf16(v[2], v[3])};
    else
#pragma unroll
        for (int e = 0; e < 4; e++) if (e < count) to[e] = toBf16(v[e]);
}

// x += y where there is one, x·weight and the tile's squares: two rows, 128 columns.
DEVICE void finishResidual(const Finish& f, const Sums& s, const int* adapterOf, int rows, int item, const u32* tiles) {
    const int twos = (rows + 1) / 2, tile = item / twos, lane = threadIdx.x % 32, column = tile * TileColumns + lane * 4, count = min(4, f.columns - column);
    Pair pair = pairOf(s, adapterOf, rows, item % twos * 2);
    float v[2][4] = {}, x[2][4] = {}, weight[4] = {};
    if (count == 4) {
        const F32x4 w = *(const F32x4*)(f.weight + column);
        weight[0] = w.x; weight[1] = w.y; weight[2] = w.z; weight[3] = w.w;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const F32x4 u = loadFresh4(f.x + (long long)pair.row[i] * f.xStride + column);
            x[i][0] = u.x; x[i][1] = u.y; x[i][2] = u.z; x[i][3] = u.w;
        }
    } else
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (e < count) {
                weight[e] = f.weight[column + e];
                for (int i = 0; i < 2; i++) x[i][e] = loadFresh(f.x + (long long)pair.row[i] * f.xStride + column + e);
            }
    if (s.y) {
        for (int i = 0; i < 2; i++) pair.factor[i] = factorOf(s, pair.row[i]);
        awaitColumns(s, tiles, tile * TileColumns, min(f.columns, (tile + 1) * TileColumns));
        if (count > 0) summed4<4>(v, s, pair, column, count);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (i == 1 && !pair.second) break;
        float squares = 0.f, h[4];
#pragma unroll
        for (int e = 0; e < 4; e++) {
            x[i][e] += v[i][e];
            squares += x[i][e] * x[i][e];
            h[e] = x[i][e] * weight[e];
        }
        if (s.y && count > 0) put4(f.x + (long long)pair.row[i] * f.xStride + column, x[i], count);
        if (f.out && count > 0) put4(f.out + (long long)pair.row[i] * f.outStride + column, h, count);
        squares = warpSum(squares);
        if (lane == 0) f.squares[(long long)pair.row[i] * ((f.columns + TileColumns - 1) / TileColumns) + tile] = squares;
    }
}

// A head of q, k or v of one row: normalised where weights are given, q and k rotated by the position. q goes to its own place, k and v to the cache.
DEVICE void finishRope(const Finish& f, const Sums& s, const int* adapterOf, int rows, int item, const u32* tiles) {
    const Cache& cache = f.cache;
    const int row = item % rows, head = item / rows, lane = threadIdx.x % 32, dim = cache.headDim, half = dim / 2, heads = f.heads;
    const int part = head < heads ? 0 : head < heads + cache.kvHeads ? 1 : 2, position = f.positions[row], slot = f.slots[row];
    const bool adapted = s.extra && adapterOf[row] >= 0;
    const float* norm = part == 0 ? f.queryNorm : part == 1 ? f.keyNorm : 0;
    float sine[4], cosine[4], a[4], b[4], squares = 0.f;
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (lane + i * 32 < half && part < 2) sincosf(position * f.frequencies[lane + i * 32], &sine[i], &cosine[i]);
    const float factor = factorOf(s, row);
    awaitColumns(s, tiles, head * dim, (head + 1) * dim);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        a[i] = b[i] = 0.f;
        if (lane + i * 32 < half) {
            a[i] = summed(s, row, head * dim + lane + i * 32, factor, adapted);
            b[i] = summed(s, row, head * dim + lane + i * 32 + half, factor, adapted);
        }
        squares += a[i] * a[i] + b[i] * b[i];
    }
    const float scale = norm ? 1.f / sqrtf(warpSum(squares) / dim + f.epsilon) : 1.f;
    const int kvHead = head - heads - (part == 2 ? cache.kvHeads : 0);
    u16* to = part == 0 ? f.out + ((long long)row * heads + head) * cache.dimStride
        : (part == 1 ? cache.keys : cache.values) + ((long long)(slot / cache.blockSize * cache.kvHeads + kvHead) * cache.blockSize + slot % cache.blockSize) * cache.dimStride;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int d = lane + i * 32;
        if (d >= half) continue;
        if (norm) { a[i] = a[i] * scale * norm[d]; b[i] = b[i] * scale * norm[d + half]; }
        to[d] = toBf16(part < 2 ? a[i] * cosine[i] - b[i] * sine[i] : a[i]);
        to[d + half] = toBf16(part < 2 ? b[i] * cosine[i] + a[i] * sine[i] : b[i]);
    }
    for (int d = dim + lane; d < cache.dimStride; d += 32) to[d] = 0;
}

DEVICE float swish(float gate, float up) { return gate / (1.f + __expf(-gate)) * up; }

// silu(gate)·up, gate the first `columns` of the sums: two rows, 128 columns.
DEVICE void finishSwiGlu(const Finish& f, const Sums& s, const int* adapterOf, int rows, int item, const u32* tiles) {
    const int twos = (rows + 1) / 2, run = item / twos, column = run * TileColumns + threadIdx.x % 32 * 4, end = min(f.columns, (run + 1) * TileColumns), count = min(4, f.columns - column);
    Pair pair = pairOf(s, adapterOf, rows, item % twos * 2);
    for (int i = 0; i < 2; i++) pair.factor[i] = factorOf(s, pair.row[i]);
    awaitColumns(s, tiles, run * TileColumns, end);
    awaitColumns(s, tiles, f.columns + run * TileColumns, f.columns + end);
    if (count <= 0) return;
    float gate[2][4], up[2][4];
    summed4<2>(gate, s, pair, column, count);
    summed4<2>(up, s, pair, f.columns + column, count);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (i == 1 && !pair.second) break;
#pragma unroll
        for (int e = 0; e < 4; e++) gate[i][e] = swish(gate[i][e], up[i][e]);
        put4(f.out + (long long)pair.row[i] * f.outStride + column, gate[i], count);
    }
}

// y itself, for whoever wants to see it: two rows, 128 columns.
DEVICE void finishPlain(const Finish& f, const Sums& s, const int* adapterOf, int rows, int item, const u32* tiles) {
    const int twos = (rows + 1) / 2, tile = item / twos, column = tile * TileColumns + threadIdx.x % 32 * 4, count = min(4, f.columns - column);
    Pair pair = pairOf(s, adapterOf, rows, item % twos * 2);
    for (int i = 0; i < 2; i++) pair.factor[i] = factorOf(s, pair.row[i]);
    awaitColumns(s, tiles, tile * TileColumns, min(f.columns, (tile + 1) * TileColumns));
    if (count <= 0) return;
    float v[2][4];
    summed4<4>(v, s, pair, column, count);
    put4(f.x + (long long)pair.row[0] * f.xStride + column, v[0], count);
    if (pair.second) put4(f.x + (long long)pair.row[1] * f.xStride + column, v[1], count);
}

DEVICE int itemsOf(const Finish& f, int rows) {
    if (f.kind == Nothing) return 0;
    return f.kind == Rope ? rows * (f.heads + 2 * f.cache.kvHeads) : (f.columns + TileColumns - 1) / TileColumns * ((rows + 1) / 2);
}
