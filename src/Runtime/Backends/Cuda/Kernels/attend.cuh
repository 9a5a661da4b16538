// What the attention kernels share: where keys and values lie, the host's pieces of work, and one step of the running softmax.

struct Cache {
    const u16 *keys, *values;       // [block][kvHead][position][dimStride]; keys rotated, columns from headDim on are 0; slots not yet written hold anything
    int blockSize, kvHeads, headDim, dimStride;
};

// Positions first … end − 1 (at most 512, first a multiple of 512) for a row at `position`; the window is not yet applied.
// blocks: where the row's table starts. Part `part` of `parts`; a row's parts are neighbours in order.
struct AttendItem { int row, position, first, end, blocks, part, parts, reserved; };

// Neighbouring rows of one sequence, at most AttendTileRows.
struct AttendTile { int firstRow, rows, firstPosition, blocks; };
static const int AttendTileRows = 128;

#ifndef EMULATED
DEVICE float powerOf2(float v) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}
#endif

DEVICE float nothing() { return __uint_as_float(0xFF800000u); }     // −∞: the score of what is not seen

// Scores are dot products; weights are powers of two.
DEVICE float scaleOf(const Cache& cache) { return 1.44269504f * rsqrtf((float)cache.headDim); }

// Where position p lies, in rows of dimStride.
DEVICE int slotOf(const Cache& cache, const int* table, int kvHead, int p) {
    const int block = p / cache.blockSize;
    return (table[block] * cache.kvHeads + kvHead) * cache.blockSize + p - block * cache.blockSize;
}

// Scores s of 16 rows and 8·TILES positions become weights 2^(s·scale − top·scale), after `out` and `sum` have been brought to the new top.
// Lane 4g + q holds rows g and g + 8 as mma leaves them; sum is the lane's own share. A row that has seen nothing keeps top −∞ and zeros;
// fmaxf passes over NaN, so a row's NaN goes into its weights and no further.
template <int TILES, int COLUMNS>
DEVICE void weigh(float (&s)[TILES][4], float (&out)[COLUMNS][4], float (&top)[2], float (&sum)[2], float scale) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float most = top[half];
#pragma unroll
        for (int n = 0; n < TILES; n++) most = fmaxf(most, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFFu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFFu, most, 2));
        const float reference = most == nothing() ? 0.f : most * scale, keep = powerOf2(top[half] * scale - reference);
        top[half] = most;
        float total = sum[half] * keep;
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            s[n][2 * half] = powerOf2(s[n][2 * half] * scale - reference);
            s[n][2 * half + 1] = powerOf2(s[n][2 * half + 1] * scale - reference);
            total += s[n][2 * half] + s[n][2 * half + 1];
        }
        sum[half] = total;
#pragma unroll
        for (int n = 0; n < COLUMNS; n++) {
            out[n][2 * half] *= keep;
            out[n][2 * half + 1] *= keep;
        }
    }
}

// A row's sum over the four lanes that share it.
DEVICE float quadSum(float v) {
    v += __shfl_xor_sync(0xFFFFFFFFu, v, 1);
    return v + __shfl_xor_sync(0xFFFFFFFFu, v, 2);
}

// This lane's row of a 16×16 piece for loadMatrices as mma's a (and, transposed, as b of two neighbouring column tiles); and not transposed as b.
DEVICE int pieceOffset(int lane, int stride) { return (lane & 15) * stride + (lane >> 4) * 8; }
DEVICE int rowsAsColumnsOffset(int lane, int stride) { return ((lane & 7) + (lane >> 4) * 8) * stride + ((lane >> 3) & 1) * 8; }
