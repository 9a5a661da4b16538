// The finishing of sums (finish.cuh) as kernels of their own, a warp an item: for steps of many rows, whose products another library makes, and for
// norms and readers that follow no product. Where many rows are adapted, lora_prefill.cu finishes them.

static const int Warps = 8;

#define FINISH(NAME, ITEM) \
    extern "C" __global__ __launch_bounds__(Warps * 32, 4) void NAME(const int* rows, const int* adapterOf, Sums sums, Finish finish) { \
        __shared__ float factors[Warps][2]; \
        letNextStart(); \
        awaitPrevious(); \
        const int n = blockIdx.x * Warps + threadIdx.x / 32; \
        if (n >= itemsOf(finish, *rows)) return; \
        const Item item = itemAt(*rows, n); \
        float* mine = factors[threadIdx.x / 32]; \
        if (sums.squares) { \
            const int r = threadIdx.x % 32 / 4; \
            const float factor = factorOf(sums.squares, sums.inputs, sums.epsilon, min(item.first + min(r, 1), *rows - 1)); \
            if (threadIdx.x % 4 == 0 && r < 2) mine[r] = factor; \
        } \
        __syncwarp(); \
        ITEM(finish, sums, adapterOf, *rows, item, 0, mine - item.first); \
    }
FINISH(residual, finishResidual<1>)
FINISH(rope, finishRope<1>)
FINISH(swiGlu, finishSwiGlu<1>)
FINISH(plain, finishPlain<1>)

// y[i] = x[r] / sqrt(mean(x[r]²) + ε) · weight, r = chosen[i], or i where `chosen` is null. `squares` as the residual has left them. A block a row.
extern "C" __global__ __launch_bounds__(Warps * 32) void takeNormed(const int* count, const int* chosen, const float* x, int xStride, const float* squares, const float* weight, float epsilon, int columns,
    u16* out, float* full, int outStride) {
    letNextStart();
    awaitPrevious();
    const int i = blockIdx.x;
    if (i >= *count) return;
    const int row = chosen ? chosen[i] : i;
    const float factor = factorOf(squares, columns, epsilon, row);
    x += (long long)row * xStride;
    for (int c = threadIdx.x; c < columns; c += Warps * 32) {
        const float v = x[c] * factor * weight[c];
        if (out) out[(long long)i * outStride + c] = toBf16(v);
        else full[(long long)i * outStride + c] = v;
    }
}

// turns[r, i] = (cos, sin)(position[r]·frequency[i]), once a step for all layers. A block a row.
extern "C" __global__ void turnsOf(const Step* step, const int* positions, const float* frequencies, int half, F32x2* turns) {
    letNextStart();
    awaitPrevious();
    const int row = blockIdx.x;
    if (row >= step->rows) return;
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
        F32x2 turn;
        sincosf(positions[row] * frequencies[i], &turn.y, &turn.x);
        turns[(long long)row * half + i] = turn;
    }
}
