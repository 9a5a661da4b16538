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
    float* extra;               // [row][extraStride]: what adapters add to their rows, or where a kernel says so the whole sums of all; null: nothing
    const float* squares;       // [row][tile of the linear's inputs]; null: factor is 1
    int stride, inputs;
    float epsilon;
    int extraStride, firstRow, firstColumn, secondColumn;   // where `extra` begins; the last for the second half of SwiGLU's columns
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
    const int* slots;                                       // Rope, and what follows
    const F32x2* turns;                                     // [row][headDim / 2]: cosine and sine of the row's angles
    const float *queryNorm, *keyNorm;                       // or null
    float epsilon;
    int heads;
    Cache cache;
};

static const int TileColumns = 128, CounterStride = 32;     // a tile's counter has a line of its own, for many ask
static const int TileWarps = 8;                             // that raise it for each of its parts

DEVICE int partsAt(const Sums& s, int column) { return s.parts ? s.parts[column / TileColumns] : 1; }

// Until the sums of columns from … end − 1, and of as many from `second` on if that is not negative, are there; `tiles` null: they are. Each lane asks for one.
DEVICE void awaitColumns(const Sums& s, const u32* tiles, int from, int end, int second = -1) {
    if (!tiles) return;
    const int lane = threadIdx.x % 32, begin = lane < 16 ? from : second, t = begin / TileColumns + lane % 16;
    if (begin >= 0 && t * TileColumns < begin + end - from) awaitCount(tiles + t * CounterStride, s.parts[t] * TileWarps);
    __syncwarp();
}

// The factor of a row's norm; asked by a whole warp, in which four neighbouring lanes have a row: eight rows, or one more than once. The sum of 32 tiles
// is that of a tree: those 16 apart first, then 8, and so on.
DEVICE float factorOf(const float* squares, int columns, float epsilon, int row) {
    const int tiles = (columns + TileColumns - 1) / TileColumns;
    const float* from = squares + (long long)row * tiles;
    float sums[8] = {};
    for (int t = threadIdx.x % 4; t < tiles; t += 32)
#pragma unroll
        for (int i = 0; i < 8; i++) sums[i] += t + 4 * i < tiles ? loadFresh(from + t + 4 * i) : 0.f;
    float sum = ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
    sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 2);
    sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
    return 1.f / sqrtf(sum / columns + epsilon);
}
// `factors`: of all rows, where there is a norm.
DEVICE float factorOf(const Sums& s, const float* factors, int row) { return s.squares ? factors[row] : 1.f; }

DEVICE const float* extraAt(const Sums& s, int row, int column) { return s.extra + (long long)(row - s.firstRow) * s.extraStride + column - s.firstColumn; }

// PARTS: how many are fetched together; 0: `extra` holds the whole sums of all rows.
template <int PARTS>
DEVICE float summed(const Sums& s, int row, int column, float factor, bool adapted) {
    if (PARTS == 0) return *extraAt(s, row, column) * factor + (s.bias ? s.bias[column] : 0.f);
    const int parts = partsAt(s, column);
    const float* y = s.y + (long long)row * s.stride + column;
    float w[4];
#pragma unroll
    for (int p = 0; p < 4; p++) w[p] = p < parts ? loadFresh(y + p * s.part) : 0.f;     // on their way together
    const float more = adapted ? loadFreshAnywhere(extraAt(s, row, column)) : 0.f;
    float sum = ((w[0] + w[1]) + w[2]) + w[3];
#pragma unroll 1
    for (int p = 4; p < parts; p++) sum += loadFresh(y + p * s.part);
    return (sum + more) * factor + (s.bias ? s.bias[column] : 0.f);
}

// What a warp does at a time: a run of columns, 128 of them or a head, of two rows.
struct Item { int run, first; };
DEVICE Item itemAt(int rows, u32 n) {
    const u32 twos = (rows + 1) / 2, run = n / twos;
    return {(int)run, (int)(n - run * twos) * 2};
}

// Two neighbouring rows, the first once more where there is no second.
struct Pair {
    int row[2], count;
    bool adapted[2];
    float factor[2];
};
DEVICE Pair pairOf(const Sums& s, const int* adapterOf, int rows, int first) {
    Pair p;
    p.count = min(2, rows - first);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        p.row[i] = min(first + i, rows - 1);
        p.adapted[i] = s.extra && adapterOf[p.row[i]] >= 0;
    }
    return p;
}

template <int PARTS>
DEVICE void summedByColumn(float (&v)[4], const Sums& s, int row, int column, int count, float factor, bool adapted) {
    v[0] = v[1] = v[2] = v[3] = 0.f;
#pragma unroll 1
    for (int e = 0; e < count; e++) {
        const float w = summed<PARTS>(s, row, column + e, factor, adapted);
#pragma unroll
        for (int i = 0; i < 4; i++) if (i == e) v[i] = w;
    }
}

// Columns column … column + 3 of both rows, of which `count` exist.
template <int PARTS>
DEVICE void summed4(float (&v)[2][4], const Sums& s, const Pair& rows, int column, int count) {
    if (PARTS == 0 && count == 4 && column % 4 == 0) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const F32x4 y = *(const F32x4*)extraAt(s, rows.row[i], column);
            v[i][0] = y.x * rows.factor[i]; v[i][1] = y.y * rows.factor[i]; v[i][2] = y.z * rows.factor[i]; v[i][3] = y.w * rows.factor[i];
            if (s.bias)
#pragma unroll
                for (int e = 0; e < 4; e++) v[i][e] += s.bias[column + e];
        }
    } else if (PARTS > 0 && count == 4 && column % 4 == 0) {
        const int parts = partsAt(s, column);
        F32x4 w[2][PARTS > 0 ? PARTS : 1], more[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float* y = s.y + (long long)rows.row[i] * s.stride + column;
#pragma unroll
            for (int p = 0; p < PARTS; p++) w[i][p] = p < parts ? loadFresh4(y + p * s.part) : F32x4{0, 0, 0, 0};
            more[i] = rows.adapted[i] ? loadFreshAnywhere4(extraAt(s, rows.row[i], column)) : F32x4{0, 0, 0, 0};
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
#pragma unroll
            for (int p = 1; p < PARTS; p++) { w[i][0].x += w[i][p].x; w[i][0].y += w[i][p].y; w[i][0].z += w[i][p].z; w[i][0].w += w[i][p].w; }
#pragma unroll 1
            for (int p = PARTS; p < parts; p++) {
                const F32x4 u = loadFresh4(s.y + (long long)rows.row[i] * s.stride + column + p * s.part);
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
        for (int i = 0; i < 2; i++) summedByColumn<PARTS>(v[i], s, rows.row[i], column, count, rows.factor[i], rows.adapted[i]);
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

// x += y where there is one, x·weight and the tile's squares: two rows, 128 columns. Where `extra` holds whole sums, x is beside them.
template <int PARTS>
DEVICE void finishResidual(const Finish& f, const Sums& s, const int* adapterOf, int rows, Item item, const u32* tiles, const float* factors) {
    const int tile = item.run, lane = threadIdx.x % 32, column = tile * TileColumns + lane * 4, count = min(4, f.columns - column);
    Pair pair = pairOf(s, adapterOf, rows, item.first);
    float v[2][4] = {}, x[2][4] = {}, weight[4] = {};
    if (count == 4) {
        const F32x4 w = *(const F32x4*)(f.weight + column);
        weight[0] = w.x; weight[1] = w.y; weight[2] = w.z; weight[3] = w.w;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const F32x4 u = PARTS == 0 ? *(const F32x4*)(extraAt(s, pair.row[i], column) + TileColumns) : loadFresh4(f.x + (long long)pair.row[i] * f.xStride + column);
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
        for (int i = 0; i < 2; i++) pair.factor[i] = factorOf(s, factors, pair.row[i]);
        awaitColumns(s, tiles, tile * TileColumns, min(f.columns, (tile + 1) * TileColumns));
        if (count > 0) summed4<PARTS>(v, s, pair, column, count);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (i >= pair.count) break;
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

// Where a head of q, k or v of a row goes: part 0 is q, which has a place of its own, 1 and 2 are the cache's.
DEVICE u16* placeOf(const Finish& f, int row, int head, int part) {
    const Cache& cache = f.cache;
    if (part == 0) return f.out + ((long long)row * f.heads + head) * cache.dimStride;
    const u32 slot = f.slots[row], block = slot / (u32)cache.blockSize;
    const int kvHead = head - f.heads - (part == 2 ? cache.kvHeads : 0);
    return (part == 1 ? cache.keys : cache.values) + ((long long)(block * cache.kvHeads + kvHead) * cache.blockSize + slot - block * cache.blockSize) * cache.dimStride;
}

// The same for heads of any size up to 256, one row at a time.
template <int PARTS>
DEVICE void ropeByColumn(const Finish& f, const Sums& s, int row, int head, int part, const float* norm, float factor, bool adapted) {
    const int lane = threadIdx.x % 32, dim = f.cache.headDim, half = dim / 2;
    const F32x2* turns = f.turns + (long long)row * half;
    u16* to = placeOf(f, row, head, part);
    float a[4], b[4], squares = 0.f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int d = lane + i * 32;
        a[i] = d < half ? summed<PARTS>(s, row, head * dim + d, factor, adapted) : 0.f;
        b[i] = d < half ? summed<PARTS>(s, row, head * dim + d + half, factor, adapted) : 0.f;
        squares += a[i] * a[i] + b[i] * b[i];
    }
    const float scale = norm ? rsqrtf(warpSum(squares) / dim + f.epsilon) : 1.f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int d = lane + i * 32;
        if (d >= half) continue;
        const F32x2 turn = part < 2 ? turns[d] : F32x2{1.f, 0.f};
        if (norm) { a[i] *= scale * norm[d]; b[i] *= scale * norm[d + half]; }
        to[d] = toBf16(a[i] * turn.x - b[i] * turn.y);
        to[d + half] = toBf16(b[i] * turn.x + a[i] * turn.y);
    }
    for (int d = dim + lane; d < f.cache.dimStride; d += 32) to[d] = 0;
}

// A head of q, k or v of two rows: normalised where weights are given, q and k rotated by the position. A lane takes four columns, and gets from another
// those half a head away.
template <int PARTS>
DEVICE void finishRope(const Finish& f, const Sums& s, const int* adapterOf, int rows, Item item, const u32* tiles, const float* factors) {
    const int head = item.run, lane = threadIdx.x % 32, dim = f.cache.headDim, half = dim / 2, d = lane * 4;
    const int part = head < f.heads ? 0 : head < f.heads + f.cache.kvHeads ? 1 : 2;
    const float* norm = part == 0 ? f.queryNorm : part == 1 ? f.keyNorm : 0;
    Pair pair = pairOf(s, adapterOf, rows, item.first);
#pragma unroll
    for (int r = 0; r < 2; r++) pair.factor[r] = factorOf(s, factors, pair.row[r]);
    if (dim > 128 || half % 4 != 0) {
        awaitColumns(s, tiles, head * dim, (head + 1) * dim);
#pragma unroll 1
        for (int r = 0; r < pair.count; r++) ropeByColumn<PARTS>(f, s, r == 0 ? pair.row[0] : pair.row[1], head, part, norm, r == 0 ? pair.factor[0] : pair.factor[1], r == 0 ? pair.adapted[0] : pair.adapted[1]);
        return;
    }
    F32x4 turn[2][2];
    u16* to[2];
    const int partner = d < half ? lane + half / 4 : lane - half / 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const F32x4* at = (const F32x4*)(f.turns + (long long)pair.row[r] * half + (d < half ? d : d - half));
        turn[r][0] = part < 2 && d < dim ? at[0] : F32x4{1.f, 0.f, 1.f, 0.f};
        turn[r][1] = part < 2 && d < dim ? at[1] : F32x4{1.f, 0.f, 1.f, 0.f};
        to[r] = placeOf(f, pair.row[r], head, part);
    }
    awaitColumns(s, tiles, head * dim, (head + 1) * dim);
    float v[2][4];
    summed4<PARTS>(v, s, pair, head * dim + d, d < dim ? 4 : 0);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (norm) {
            const float scale = rsqrtf(warpSum((v[r][0] * v[r][0] + v[r][1] * v[r][1]) + (v[r][2] * v[r][2] + v[r][3] * v[r][3])) / dim + f.epsilon);
#pragma unroll
            for (int e = 0; e < 4; e++) v[r][e] *= d < dim ? scale * norm[d + e] : 0.f;
        }
        float other[4];
#pragma unroll
        for (int e = 0; e < 4; e++) other[e] = __shfl_sync(0xFFFFFFFFu, v[r][e], partner & 31) * (d < half ? -1.f : 1.f);
        const float turned[4] = {v[r][0] * turn[r][0].x + other[0] * turn[r][0].y, v[r][1] * turn[r][0].z + other[1] * turn[r][0].w,
                                 v[r][2] * turn[r][1].x + other[2] * turn[r][1].y, v[r][3] * turn[r][1].z + other[3] * turn[r][1].w};
        const float none[4] = {};
        if (r >= pair.count) continue;
        if (d < dim) put4(to[r] + d, turned, 4);
        else if (d < f.cache.dimStride) put4(to[r] + d, none, 4);
    }
}

DEVICE float swish(float gate, float up) { return __fdividef(gate, 1.f + __expf(-gate)) * up; }

// silu(gate)·up, gate the first `columns` of the sums: two rows, 128 columns.
template <int PARTS>
DEVICE void finishSwiGlu(const Finish& f, const Sums& s, const int* adapterOf, int rows, Item item, const u32* tiles, const float* factors) {
    const int begin = item.run * TileColumns, end = min(f.columns, begin + TileColumns), column = begin + threadIdx.x % 32 * 4, count = min(4, f.columns - column);
    Pair pair = pairOf(s, adapterOf, rows, item.first);
#pragma unroll
    for (int i = 0; i < 2; i++) pair.factor[i] = factorOf(s, factors, pair.row[i]);
    awaitColumns(s, tiles, begin, end, f.columns + begin);
    if (count <= 0) return;
    float gate[2][4], up[2][4];
    summed4<PARTS>(gate, s, pair, column, count);
    Sums second = s;
    second.firstColumn = s.secondColumn;
    summed4<PARTS>(up, second, pair, f.columns + column, count);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (i >= pair.count) break;
#pragma unroll
        for (int e = 0; e < 4; e++) gate[i][e] = swish(gate[i][e], up[i][e]);
        put4(f.out + (long long)pair.row[i] * f.outStride + column, gate[i], count);
    }
}

// y itself, for whoever wants to see it: two rows, 128 columns.
template <int PARTS>
DEVICE void finishPlain(const Finish& f, const Sums& s, const int* adapterOf, int rows, Item item, const u32* tiles, const float* factors) {
    const int tile = item.run, column = tile * TileColumns + threadIdx.x % 32 * 4, count = min(4, f.columns - column);
    Pair pair = pairOf(s, adapterOf, rows, item.first);
    for (int i = 0; i < 2; i++) pair.factor[i] = factorOf(s, factors, pair.row[i]);
    awaitColumns(s, tiles, tile * TileColumns, min(f.columns, (tile + 1) * TileColumns));
    if (count <= 0) return;
    float v[2][4];
    summed4<PARTS>(v, s, pair, column, count);
    put4(f.x + (long long)pair.row[0] * f.xStride + column, v[0], count);
    if (pair.count > 1) put4(f.x + (long long)pair.row[1] * f.xStride + column, v[1], count);
}

DEVICE int runsOf(const Finish& f) { return f.kind == Rope ? f.heads + 2 * f.cache.kvHeads : (f.columns + TileColumns - 1) / TileColumns; }
DEVICE int itemsOf(const Finish& f, int rows) { return f.kind == Nothing ? 0 : runsOf(f) * ((rows + 1) / 2); }
