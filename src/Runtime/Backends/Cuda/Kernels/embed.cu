// Rows copied from where an index says, and turned from one type into another: a token's embedding, and the rows whose logits are wanted.
// The token may be one that the step before drew and the host has not seen: its id is taken from the device. One block a row, any number of columns.
//
//   embed:     x[r] = table[t], t = tokens[r] ≥ 0 ? tokens[r] : max(drawn[~tokens[r]], 0)     (a row that failed drew −1; its sequence ends)
//   takeRows:  y[i] = x[logitRows[i]]

DEVICE float valueOf(float v) { return v; }
DEVICE float valueOf(u16 v) { return fromBf16(v); }
DEVICE void store(float* to, float v) { *to = v; }
DEVICE void store(u16* to, float v) { *to = toBf16(v); }

// Eight neighbours, 16-byte aligned.
DEVICE void load8(float (&v)[8], const float* from) {
    const F32x4 low = ((const F32x4*)from)[0], high = ((const F32x4*)from)[1];
    v[0] = low.x; v[1] = low.y; v[2] = low.z; v[3] = low.w; v[4] = high.x; v[5] = high.y; v[6] = high.z; v[7] = high.w;
}
DEVICE void load8(float (&v)[8], const u16* from) {
    const U32x4 p = *(const U32x4*)from;
    v[0] = lowOf(p.x); v[1] = highOf(p.x); v[2] = lowOf(p.y); v[3] = highOf(p.y); v[4] = lowOf(p.z); v[5] = highOf(p.z); v[6] = lowOf(p.w); v[7] = highOf(p.w);
}
DEVICE void store8(float* to, const float (&v)[8]) {
    ((F32x4*)to)[0] = {v[0], v[1], v[2], v[3]};
    ((F32x4*)to)[1] = {v[4], v[5], v[6], v[7]};
}
DEVICE void store8(u16* to, const float (&v)[8]) {
    *(U32x4*)to = {packBf16(v[0], v[1]), packBf16(v[2], v[3]), packBf16(v[4], v[5]), packBf16(v[6], v[7])};
}

// bf16 to bf16 passes through fp32 and comes out the same.
template <class From, class To> DEVICE void copyRow(const From* from, To* to, int cols) {
    const int whole = ((u64)from | (u64)to) % 16 == 0 ? cols / 8 : 0;
    for (int i = threadIdx.x; i < whole; i += blockDim.x) {
        float v[8];
        load8(v, from + 8 * i);
        store8(to + 8 * i, v);
    }
    for (int c = whole * 8 + threadIdx.x; c < cols; c += blockDim.x) store(to + c, valueOf(from[c]));
}

// Strides in elements. `drawn` may be null where no token refers to it.
template <class From, class To>
DEVICE void embedRows(const Step* step, const int* tokens, const int* drawn, const From* table, int tableStride, int cols, To* x, int xStride) {
    letNextStart();
    awaitPrevious();
    for (int r = blockIdx.x; r < step->rows; r += gridDim.x) {
        int token = tokens[r];
        if (token < 0) token = max(drawn[~token], 0);
        copyRow(table + (long long)token * tableStride, x + (long long)r * xStride, cols);
    }
}

template <class From, class To>
DEVICE void takeLogitRows(const Step* step, const int* logitRows, const From* x, int xStride, int cols, To* y, int yStride) {
    letNextStart();
    awaitPrevious();
    for (int i = blockIdx.x; i < step->logitRows; i += gridDim.x)
        copyRow(x + (long long)logitRows[i] * xStride, y + (long long)i * yStride, cols);
}

#define EMBED(NAME, FROM, TO) \
    extern "C" __global__ void NAME(const Step* step, const int* tokens, const int* drawn, const FROM* table, int tableStride, int cols, TO* x, int xStride) { \
        embedRows(step, tokens, drawn, table, tableStride, cols, x, xStride); \
    }
EMBED(embedFull, u16, float)
EMBED(embedOperand, u16, u16)
EMBED(embedFull_f32, float, float)
EMBED(embedOperand_f32, float, u16)

#define TAKE_ROWS(NAME, FROM, TO) \
    extern "C" __global__ void NAME(const Step* step, const int* logitRows, const FROM* x, int xStride, int cols, TO* y, int yStride) { \
        takeLogitRows(step, logitRows, x, xStride, cols, y, yStride); \
    }
TAKE_ROWS(takeRows_full, float, float)
TAKE_ROWS(takeRows_operand, u16, u16)
TAKE_ROWS(takeRows_round, float, u16)
