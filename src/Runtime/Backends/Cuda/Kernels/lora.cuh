
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
};

static const int MaxSlices = 16;

// Columns of a slice: 256, or as many as make 16 slices.
DEVICE int sliceWidth(int stride) { return max(256, ((stride + MaxSlices - 1) / MaxSlices + 31) / 32 * 32); }
DEVICE int slicesOf(int stride) { return (stride + sliceWidth(stride) - 1) / sliceWidth(stride); }

// Rows of a group that one warp takes together: their chunks fill at most 32 columns.
DEVICE int rowsOfUnit(int chunks) { return max(1, 32 / chunks); }

DEVICE int modulo(int a, int n) { return ((a % n) + n) % n; }
