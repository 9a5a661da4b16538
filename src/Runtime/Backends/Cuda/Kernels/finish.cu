// The kernels that read what a linear left behind: they add up its partial sums and the bias, and go on with what comes next in the layer, residual
// and norm, rotation and cache, SwiGLU. Each comes twice. For few rows the adapters' part is there already (linear.cu made it beside the sums), and
// the kernel is so small that it shares a multiprocessor with the products before and after it: they fetch weights while it runs. For many rows
// it makes the adapters' part itself, which so costs no trip of y through memory.
//
//   for o:  y[o] = Σ_p part[p, o] + bias[o] + scale·(Σ_k b[k, t]·z[(k − i·shiftB) mod r'] + Σ_k bVec[k, o]·z[r' + k]),  o = i·chunkHeight + t

// What a linear left: parts to be added in order. How many a column has is its tile's.
struct Sums {
    const float* y;             // [part][row][stride]
    long long part;             // elements between parts
    int stride;
    const unsigned char* parts; // of each tile of 128 columns; null: 1
    const float* bias;          // or null
    const float* extra;         // [row][stride]: what the adapters add to their rows; null: nothing
};

static const int TileColumns = 128;

DEVICE float summed(const Sums& s, int row, int column, bool adapted = false) {
    const int parts = s.parts ? s.parts[column / TileColumns] : 1;
    const float* y = s.y + (long long)row * s.stride + column;
    float w[4];
#pragma unroll
    for (int p = 0; p < 4; p++) w[p] = p < parts ? y[p * s.part] : 0.f;     // on their way together
    const float more = adapted ? s.extra[(long long)row * s.stride + column] : 0.f;
    float sum = ((w[0] + w[1]) + w[2]) + w[3];
    for (int p = 4; p < parts; p++) sum += y[p * s.part];
    if (s.bias) sum += s.bias[column];
    return sum + more;
}

// Columns column … column + 3, in one tile and aligned.
DEVICE F32x4 summed4(const Sums& s, int row, int column, int parts, bool adapted) {
    const float* y = s.y + (long long)row * s.stride + column;
    F32x4 w[4], more = {0, 0, 0, 0};
#pragma unroll
    for (int p = 0; p < 4; p++) w[p] = p < parts ? *(const F32x4*)(y + p * s.part) : F32x4{0, 0, 0, 0};
    if (adapted) more = *(const F32x4*)(s.extra + (long long)row * s.stride + column);
    F32x4 v = {((w[0].x + w[1].x) + w[2].x) + w[3].x, ((w[0].y + w[1].y) + w[2].y) + w[3].y, ((w[0].z + w[1].z) + w[2].z) + w[3].z, ((w[0].w + w[1].w) + w[2].w) + w[3].w};
    for (int p = 4; p < parts; p++) {
        const F32x4 u = *(const F32x4*)(y + p * s.part);
        v.x += u.x; v.y += u.y; v.z += u.z; v.w += u.w;
    }
    if (s.bias) { v.x += s.bias[column]; v.y += s.bias[column + 1]; v.z += s.bias[column + 2]; v.w += s.bias[column + 3]; }
    v.x += more.x; v.y += more.y; v.z += more.z; v.w += more.w;
    return v;
}
DEVICE int partsAt(const Sums& s, int column) { return s.parts ? s.parts[column / TileColumns] : 1; }

// Columns column … column + V − 1, of which `count` exist.
template <int V>
DEVICE void summed(const Sums& s, int row, int column, int count, float (&v)[V]) {
    const float* y = s.y + (long long)row * s.stride + column;
    if (V % 4 == 0 && count == V && column % TileColumns + V <= TileColumns && ((u64)y & 15) == 0 && s.part % 4 == 0) {
        const int parts = s.parts ? s.parts[column / TileColumns] : 1;
        F32x4 w[V / 4 + 1];
#pragma unroll
        for (int i = 0; i < V / 4; i++) w[i] = *(const F32x4*)(y + 4 * i);
#pragma unroll 4
        for (int p = 1; p < parts; p++)
#pragma unroll
            for (int i = 0; i < V / 4; i++) {
                const F32x4 more = *(const F32x4*)(y + p * s.part + 4 * i);
                w[i].x += more.x; w[i].y += more.y; w[i].z += more.z; w[i].w += more.w;
            }
#pragma unroll
        for (int i = 0; i < V / 4; i++) { v[4 * i] = w[i].x; v[4 * i + 1] = w[i].y; v[4 * i + 2] = w[i].z; v[4 * i + 3] = w[i].w; }
        if (s.bias) for (int i = 0; i < V; i++) v[i] += s.bias[column + i];
    } else
        for (int i = 0; i < V; i++) v[i] = i < count ? summed(s, row, column + i) : 0.f;
}

// A module's z of one row, scaled, by threads first, first + stride, …
DEVICE void takeZ(float* to, const Site& site, const Lora& m, int part, int row, const Row& info, int first, int stride) {
    const int ranks = m.shared + m.unshared;
    if (info.shortIndex < 0) {
        const float* z = site.whole + (long long)part * site.wholePart + (long long)row * site.zStride;
        for (int k = first; k < ranks; k += stride) to[k] = z[k] * m.scale;
    } else {
        const float* z = site.z + (long long)part * site.zPart + (long long)info.shortIndex * MaxSlices * site.zStride;
        const int slices = slicesOf(m.strideA);
        for (int k = first; k < ranks; k += stride) {
            float sum = z[k];
#pragma unroll 4
            for (int s = 1; s < slices; s++) sum += z[s * site.zStride + k];
            to[k] = sum * m.scale;
        }
    }
}

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

// line[o] += the adapter's part, for all columns of a module: item i is V neighbours t and up to four chunks.
template <int V, int CHUNKS>
DEVICE void expandLine(const Lora& m, const float* z, float* line) {
    const int across = (m.chunkHeight + V - 1) / V, items = across * ((m.chunksB + CHUNKS - 1) / CHUNKS);
    for (int item = threadIdx.x; item < items; item += blockDim.x) {
        const int t = item % across * V, chunk = item / across * CHUNKS;
        float sum[CHUNKS][V] = {};
        expand<V, CHUNKS>(m, z, t, chunk, sum);
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
#pragma unroll
            for (int v = 0; v < V; v++) {
                const int o = (chunk + c) * m.chunkHeight + t + v;
                if (chunk + c < m.chunksB && t + v < m.chunkHeight && o < m.outputs) line[o] += sum[c][v];
            }
    }
}
DEVICE void expandLine(const Lora& m, const float* z, float* line) {
    if (m.chunksB == 1) expandLine<4, 1>(m, z, line);
    else expandLine<2, 4>(m, z, line);
}

// The row's finished y of one part of a site, in shared memory; z is room for the ranks.
DEVICE void finishLine(float* line, float* z, const Sums& sums, const Site& site, int part, const Row& info, int row, int column, int columns) {
    for (int c = threadIdx.x * 4; c < columns; c += blockDim.x * 4) {
        float v[4];
        summed<4>(sums, row, column + c, min(4, columns - c), v);
        for (int i = 0; i < 4; i++) if (c + i < columns) line[c + i] = v[i];
    }
    if (site.parts > 0 && info.adapter >= 0) {
        const Lora m = site.table[info.adapter * site.perAdapter + part];
        takeZ(z, site, m, part, row, info, threadIdx.x, blockDim.x);
        __syncthreads();
        expandLine(m, z, line);
    }
    __syncthreads();
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

// x += y where there is one; h = x / sqrt(mean(x²) + ε) · weight. A block a row. Shared: columns + zStride + 32 floats.
extern "C" __global__ __launch_bounds__(512) void addNormMany(const Step* step, const Row* rows, Sums delta, Site site, float* x, int xStride, const float* weight, float epsilon,
    u16* h, float* full, int hStride, int columns) {
    DYNAMIC_SHARED(memory);
    float *room = (float*)memory, *z = room + 32, *line = z + site.zStride;
    letNextStart();
    awaitPrevious();
    const int row = blockIdx.x;
    if (row >= step->rows) return;
    if (delta.y) finishLine(line, z, delta, site, 0, rows[row], row, 0, columns);
    x += (long long)row * xStride;
    float squares = 0.f;
    for (int c = threadIdx.x; c < columns; c += blockDim.x) {
        const float v = delta.y ? x[c] + line[c] : x[c];
        line[c] = v;
        if (delta.y) x[c] = v;
        squares += v * v;
    }
    const float factor = 1.f / sqrtf(blockSum(squares, room) / columns + epsilon);
    for (int c = threadIdx.x; c < columns; c += blockDim.x) {
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
// [row][head][dimStride], k and v to the cache. Block (row, part). Shared: the widest part's columns + headDim + zStride floats.
extern "C" __global__ __launch_bounds__(256) void ropeStoreMany(const Step* step, const Row* rows, const int* positions, const int* slots, Sums sums, Site site, int heads,
    const float* queryNorm, const float* keyNorm, float epsilon, const float* frequencies, u16* q, Cache cache) {
    DYNAMIC_SHARED(memory);
    const int row = blockIdx.x, part = blockIdx.y, dim = cache.headDim, half = dim / 2;
    float *z = (float*)memory, *turn = z + site.zStride, *line = turn + dim;
    letNextStart();
    if (row >= step->rows) { awaitPrevious(); return; }
    const int mine = part == 0 ? heads : cache.kvHeads, column = part == 0 ? 0 : (heads + (part - 1) * cache.kvHeads) * dim;
    const float* norm = part == 0 ? queryNorm : part == 1 ? keyNorm : 0;
    if (part < 2)
        for (int i = threadIdx.x; i < half; i += blockDim.x) {
            float s, c;
            sincosf(positions[row] * frequencies[i], &s, &c);
            turn[i] = c;
            turn[half + i] = s;
        }
    awaitPrevious();
    finishLine(line, z, sums, site, part, rows[row], row, column, mine * dim);

    const int lane = threadIdx.x % 32, slot = slots[row], block = slot / cache.blockSize, at = slot % cache.blockSize;
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

// y[i] = silu(gate[i])·up[i], gate the first `inner` columns of the sums. Warps take pieces of about 512 columns: those of one piece and one
// adapter are neighbours, so that B comes from the first level cache for all rows but one. Shared: 2·zStride floats a warp.
template <int CHUNKS>
DEVICE void swiGluPiece(const Sums& sums, const Lora& gate, const Lora& up, const float* z, int zStride, int row, int inner, int height, int chunks, int t, int chunk, u16* y) {
    float g[CHUNKS][4] = {}, u[CHUNKS][4] = {};
    expand<4, CHUNKS>(gate, z, t, chunk, g);
    expand<4, CHUNKS>(up, z + zStride, t, chunk, u);
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int o = (chunk + c) * height + t, count = chunk + c < chunks ? min(min(4, height - t), inner - o) : 0;
        if (count <= 0) continue;
        float a[4], b[4];
        summed<4>(sums, row, o, count, a);
        summed<4>(sums, row, inner + o, count, b);
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = swish(a[i] + g[c][i], b[i] + u[c][i]);
        if (count == 4 && ((u64)(y + o) & 7) == 0) *(U32x2*)(y + o) = U32x2{packBf16(v[0], v[1]), packBf16(v[2], v[3])};
        else for (int i = 0; i < count; i++) y[o + i] = toBf16(v[i]);
    }
}

extern "C" __global__ __launch_bounds__(128) void swiGluMany(const Step* step, const Row* rows, Sums sums, Site site, int inner, u16* y, int yStride) {
    DYNAMIC_SHARED(memory);
    const int lane = threadIdx.x % 32, pieces = (inner + 511) / 512;
    float* z = (float*)memory + threadIdx.x / 32 * 2 * site.zStride;
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
    awaitPrevious();
    y += (long long)row * yStride;
    const bool gates = gate.shared + gate.unshared > 0, ups = up.shared + up.unshared > 0;
    if (gates) takeZ(z, site, gate, 0, row, mine, lane, 32);
    if (ups) takeZ(z + site.zStride, site, up, 1, row, mine, lane, 32);
    __syncwarp();
    if (gates && ups && (gate.chunksB != up.chunksB || gate.chunkHeight != up.chunkHeight))
        // Two geometries: column by column.
        for (int o = piece * 512 + lane; o < min(inner, (piece + 1) * 512); o += 32)
            y[o] = toBf16(swish(summed(sums, row, o) + expandAt(gate, z, o), summed(sums, row, inner + o) + expandAt(up, z + site.zStride, o)));
    else {
        const int chunks = gates ? gate.chunksB : ups ? up.chunksB : 4;
        const int height = gates ? gate.chunkHeight : ups ? up.chunkHeight : (inner + 15) / 16 * 4, across = (height + 127) / 128;
        if (chunks == 1) for (int p = piece; p < across; p += pieces) swiGluPiece<1>(sums, gate, up, z, site.zStride, row, inner, height, 1, p * 128 + lane * 4, 0, y);
        else
            for (int p = piece; p < across * ((chunks + 3) / 4); p += pieces)
                swiGluPiece<4>(sums, gate, up, z, site.zStride, row, inner, height, chunks, p % across * 128 + lane * 4, p / across * 4, y);
    }
}

// ---- For few rows. Registers are held under 48, so that 256 threads fit beside a product's block.

// x += y where there is one; h = x / sqrt(mean(x²) + ε) · weight. A block a row. Shared: 2·columns + 32 floats.
extern "C" __global__ __launch_bounds__(256, 5) void addNorm(const Step* step, const Row* rows, Sums delta, Site site, float* x, int xStride, const float* weight, float epsilon,
    u16* h, float* full, int hStride, int columns) {
    DYNAMIC_SHARED(memory);
    float *room = (float*)memory, *line = room + 32, *scale = line + columns;
    letNextStart();
    const int row = blockIdx.x, real = step->rows;
    const bool adapted = delta.extra && rows[row].adapter >= 0;
    for (int c = threadIdx.x; c < columns; c += 256) scale[c] = weight[c];
    awaitPrevious();
    if (row >= real) return;
    x += (long long)row * xStride;
    float squares = 0.f;
    if (columns % 4 == 0 && delta.part % 4 == 0) {
#pragma unroll 2
        for (int c = threadIdx.x * 4; c < columns; c += 1024) {
            F32x4 v = *(const F32x4*)(x + c);
            if (delta.y) {
                const F32x4 y = summed4(delta, row, c, partsAt(delta, c), adapted);
                v.x += y.x; v.y += y.y; v.z += y.z; v.w += y.w;
                *(F32x4*)(x + c) = v;
            }
            line[c] = v.x; line[c + 1] = v.y; line[c + 2] = v.z; line[c + 3] = v.w;
            squares += (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
        }
    } else
        for (int c = threadIdx.x; c < columns; c += 256) {
            float v = x[c];
            if (delta.y) x[c] = v = v + summed(delta, row, c, adapted);
            line[c] = v;
            squares += v * v;
        }
    const float factor = 1.f / sqrtf(blockSum(squares, room) / columns + epsilon);
    if (h && columns % 2 == 0)
        for (int c = threadIdx.x * 2; c < columns; c += 512) *(u32*)(h + (long long)row * hStride + c) = packBf16(line[c] * factor * scale[c], line[c + 1] * factor * scale[c + 1]);
    else
        for (int c = threadIdx.x; c < columns; c += 256) {
            const float v = line[c] * factor * scale[c];
            if (h) h[(long long)row * hStride + c] = toBf16(v);
            else full[(long long)row * hStride + c] = v;
        }
}

// q, k and v of a row as in ropeStoreMany, for head sizes up to 256; a warp a head. Block (row, run of eight heads).
extern "C" __global__ __launch_bounds__(256, 5) void ropeStore(const Step* step, const Row* rows, const int* positions, const int* slots, Sums sums, Site site, int heads,
    const float* queryNorm, const float* keyNorm, float epsilon, const float* frequencies, u16* q, Cache cache) {
    const int row = blockIdx.x, head = blockIdx.y * 8 + threadIdx.x / 32, lane = threadIdx.x % 32, dim = cache.headDim, half = dim / 2;
    letNextStart();
    const int real = step->rows, position = positions[row], slot = slots[row];
    const bool adapted = sums.extra && rows[row].adapter >= 0;
    const int part = head < heads ? 0 : head < heads + cache.kvHeads ? 1 : 2;
    const float* norm = part == 0 ? queryNorm : part == 1 ? keyNorm : 0;
    float s[4], c[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (lane + i * 32 < half && part < 2) sincosf(position * frequencies[lane + i * 32], &s[i], &c[i]);
    awaitPrevious();
    if (row >= real || head >= heads + 2 * cache.kvHeads) return;
    float a[4], b[4], squares = 0.f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        a[i] = b[i] = 0.f;
        if (lane + i * 32 < half) {
            a[i] = summed(sums, row, head * dim + lane + i * 32, adapted);
            b[i] = summed(sums, row, head * dim + lane + i * 32 + half, adapted);
        }
        squares += a[i] * a[i] + b[i] * b[i];
    }
    const float factor = norm ? 1.f / sqrtf(warpSum(squares) / dim + epsilon) : 1.f;
    const int kvHead = head - heads - (part == 2 ? cache.kvHeads : 0);
    u16* to = part == 0 ? q + ((long long)row * heads + head) * cache.dimStride
        : (part == 1 ? cache.keys : cache.values) + ((long long)(slot / cache.blockSize * cache.kvHeads + kvHead) * cache.blockSize + slot % cache.blockSize) * cache.dimStride;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int d = lane + i * 32;
        if (d >= half) continue;
        if (norm) { a[i] = a[i] * factor * norm[d]; b[i] = b[i] * factor * norm[d + half]; }
        to[d] = toBf16(part < 2 ? a[i] * c[i] - b[i] * s[i] : a[i]);
        to[d + half] = toBf16(part < 2 ? b[i] * c[i] + a[i] * s[i] : b[i]);
    }
    for (int d = dim + lane; d < cache.dimStride; d += 32) to[d] = 0;
}

// y[i] = silu(gate[i])·up[i], gate the first `inner` columns of the sums. Block (run of 1024 columns, row).
extern "C" __global__ __launch_bounds__(256, 5) void swiGlu(const Step* step, const Row* rows, Sums sums, Site site, int inner, u16* y, int yStride) {
    letNextStart();
    const int row = blockIdx.y, o = (blockIdx.x * 256 + threadIdx.x) * 4, real = step->rows;
    const bool adapted = sums.extra && rows[row].adapter >= 0, run = o + 4 <= inner && inner % 4 == 0 && sums.part % 4 == 0;
    const int gates = run ? partsAt(sums, o) : 1, ups = run ? partsAt(sums, inner + o) : 1;
    awaitPrevious();
    if (row >= real) return;
    y += (long long)row * yStride;
    if (run) {
        const F32x4 a = summed4(sums, row, o, gates, adapted), b = summed4(sums, row, inner + o, ups, adapted);
        *(U32x2*)(y + o) = U32x2{packBf16(swish(a.x, b.x), swish(a.y, b.y)), packBf16(swish(a.z, b.z), swish(a.w, b.w))};
    } else
        for (int i = o; i < min(inner, o + 4); i++) y[i] = toBf16(swish(summed(sums, row, i, adapted), summed(sums, row, inner + i, adapted)));
}

// y itself, for whoever wants to see it: block (row). Shared: zStride floats.
extern "C" __global__ void finish(const Step* step, const Row* rows, Sums sums, Site site, int firstColumn, int secondColumn, int columns, float* y, int yStride) {
    DYNAMIC_SHARED(memory);
    awaitPrevious();
    const int row = blockIdx.x;
    if (row >= step->rows) return;
    y += (long long)row * yStride;
    for (int c = threadIdx.x; c < columns; c += blockDim.x) y[c] = summed(sums, row, c, sums.extra && rows[row].adapter >= 0);
    for (int part = 0; part < site.parts && rows[row].adapter >= 0 && !sums.extra; part++) {
        const Lora m = site.table[rows[row].adapter * site.perAdapter + part];
        __syncthreads();
        if (m.shared + m.unshared == 0) continue;
        takeZ((float*)memory, site, m, part, row, rows[row], threadIdx.x, blockDim.x);
        __syncthreads();
        const int from = part == 0 ? 0 : part == 1 ? firstColumn : secondColumn;
        for (int c = threadIdx.x; c < m.outputs; c += blockDim.x) y[from + c] += expandAt(m, (const float*)memory, c);
    }
}
