// Attention for any head size, one block a row and head: simple, and right where the fast kernels do not apply.
//
//   y[r, h] = Σ_p softmax_p(q[r, h]·k[p] / sqrt(headDim)) v[p] over p ≤ position[r], and p > position[r] − window where there is one
//
// Needs attend.cuh.

static const int Threads = 128;

DEVICE void attendRow(int position, const int* blocks, const u16* q, int kvHead, int window, const Cache& cache, u16* y, float* shared) {
    float *query = shared, *sums = shared + cache.dimStride;                // sums: (max, total), then headDim, of each warp
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, dim = cache.headDim, each = 2 + cache.dimStride;
    __syncthreads();
    for (int i = threadIdx.x; i < dim; i += Threads) query[i] = fromBf16(q[i]);
    float* mine = sums + warp * each;
    for (int i = lane; i < each; i += 32) mine[i] = i == 0 ? -1e30f : 0.f;
    __syncthreads();
    const float scale = rsqrtf((float)dim);
    const int first = window > 0 ? max(0, position - window + 1) : 0;
    for (int p = first + warp; p <= position; p += Threads / 32) {
        const long long at = (((long long)blocks[p / cache.blockSize] * cache.kvHeads + kvHead) * cache.blockSize + p % cache.blockSize) * cache.dimStride;
        float dot = 0.f;
        for (int i = lane; i < dim; i += 32) dot += query[i] * fromBf16(cache.keys[at + i]);
        dot = warpSum(dot) * scale;
        const float before = mine[0], most = dot > before ? dot : dot <= before ? before : dot, keep = __expf(before - most), weight = __expf(dot - most);
        __syncwarp();
        if (lane == 0) { mine[0] = most; mine[1] = mine[1] * keep + weight; }
        for (int i = lane; i < dim; i += 32) mine[2 + i] = mine[2 + i] * keep + weight * fromBf16(cache.values[at + i]);
        __syncwarp();
    }
    __syncthreads();
    for (int i = threadIdx.x; i < dim; i += Threads) {
        float most = sums[0], total = 0.f, sum = 0.f;
        for (int w = 1; w < Threads / 32; w++) most = sums[w * each] > most ? sums[w * each] : sums[w * each] <= most ? most : sums[w * each];
        for (int w = 0; w < Threads / 32; w++) {
            const float keep = __expf(sums[w * each] - most);
            total += sums[w * each + 1] * keep;
            sum += sums[w * each + 2 + i] * keep;
        }
        y[i] = toBf16(sum / total);
    }
}

// Blocks (anything, heads). Shared: dimStride + 4·(2 + dimStride) floats.
extern "C" __global__ __launch_bounds__(Threads) void attendAny(const Step* step, const AttendItem* items, const AttendTile* tiles, const int* blockTable, const u16* q, Cache cache, int heads, int window, u16* y, int yStride) {
    DYNAMIC_SHARED(memory);
    letNextStart();
    awaitPrevious();
    const int head = blockIdx.y, kvHead = head / (heads / cache.kvHeads);
    for (int i = blockIdx.x; i < step->attendItems; i += gridDim.x)
        if (items[i].part == 0) {
            const int row = items[i].row;
            attendRow(items[i].position, blockTable + items[i].blocks, q + ((long long)row * heads + head) * cache.dimStride, kvHead, window, cache, y + (long long)row * yStride + head * cache.headDim, (float*)memory);
        }
    for (int i = blockIdx.x; i < step->tiles * AttendTileRows; i += gridDim.x) {
        const AttendTile tile = tiles[i / AttendTileRows];
        if (i % AttendTileRows >= tile.rows) continue;
        const int row = tile.firstRow + i % AttendTileRows;
        attendRow(tile.firstPosition + i % AttendTileRows, blockTable + tile.blocks, q + ((long long)row * heads + head) * cache.dimStride, kvHead, window, cache, y + (long long)row * yStride + head * cache.headDim, (float*)memory);
    }
}
