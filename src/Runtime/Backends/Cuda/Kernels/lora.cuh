
// One adapted linear in compact form; see LoraModule. Ranks are rows of a and b, so that neighbouring threads read neighbouring columns.
struct Lora {
    const u16* a;         // [shared][strideA]
    const u16* b;         // [shared][strideB], transposed against the file
    const u16* aVec;      // [k·chunksA + j][strideA]: chunk j of A_vec's row k
    const u16* bVec;      // [k·chunksB + i][strideB]
    int shared, unshared; // r', u
    int chunksA, chunksB; // m, n
    int shiftA, shiftB;
    int chunkWidth, chunkHeight;
    int strideA, strideB; // chunkWidth and chunkHeight rounded up to 8; pads are zero
    float scale;
    int inputs, outputs, reserved;
};

// The adapters' table has layers·7 entries for each adapter; a site is up to three neighbouring projections of a layer. z is x·Aᵀ, rank by rank,
// shared ones first. Rows of short segments have it in slices of A's columns, to be added up in order.
struct Site {
    const Lora* table;    // of the site's layer and first projection, for adapter 0
    int perAdapter;       // entries of the table
    int parts;            // 0: no adapters here
    int kind;             // 0 qkv, 1 output, 2 gate-up, 3 down
    int zStride;          // elements: the highest rank
    float* z;             // [part][shortIndex][slice][zStride]
    float* whole;         // [part][row][zStride]
    int zPart, wholePart; // elements between parts
    int second, third;    // columns of y at which the parts behind the first begin
    int columns, reserved;// of y
};

static const int MaxSlices = 16;

// Columns of a slice: 256, or as many as make 16 slices.
DEVICE int sliceWidth(int stride) { return max(256, ((stride + MaxSlices - 1) / MaxSlices + 31) / 32 * 32); }
DEVICE int slicesOf(int stride) { return (stride + sliceWidth(stride) - 1) / sliceWidth(stride); }

// Rows of a group that one warp takes together: their chunks fill at most 32 columns.
DEVICE int rowsOfUnit(int chunks) { return max(1, 32 / chunks); }

DEVICE int modulo(int a, int n) { return ((a % n) + n) % n; }

DEVICE void loadPairs(u32 (&w)[1], const u16* p) { w[0] = *(const u32*)p; }
DEVICE void loadPairs(u32 (&w)[2], const u16* p) { const U32x2 v = *(const U32x2*)p; w[0] = v.x; w[1] = v.y; }

// sum[c][v] += the adapter's part of column (chunk + c)·chunkHeight + t + v. t is a multiple of V; columns beyond the chunk get the pads' zeros.
template <int V, int CHUNKS>
DEVICE void expand(const Lora& m, const float* z, int t, int chunk, float (&sum)[CHUNKS][V]) {
    if (m.shared > 0) {
        int from[CHUNKS];
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) from[c] = modulo(-(chunk + c) * m.shiftB, m.shared);
        const u16* b = m.b + t;
#pragma unroll 7
        for (int k = 0; k < m.shared; k++, b += m.strideB) {
            u32 w[V / 2];
            loadPairs(w, b);
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                const float f = z[from[c]];
                if (++from[c] == m.shared) from[c] = 0;
#pragma unroll
                for (int i = 0; i < V / 2; i++) { sum[c][2 * i] += lowOf(w[i]) * f; sum[c][2 * i + 1] += highOf(w[i]) * f; }
            }
        }
    }
    for (int k = 0; k < m.unshared; k++) {
        const float f = z[m.shared + k];
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
            if (chunk + c < m.chunksB) {
                u32 w[V / 2];
                loadPairs(w, m.bVec + (long long)(k * m.chunksB + chunk + c) * m.strideB + t);
#pragma unroll
                for (int i = 0; i < V / 2; i++) { sum[c][2 * i] += lowOf(w[i]) * f; sum[c][2 * i + 1] += highOf(w[i]) * f; }
            }
    }
}
