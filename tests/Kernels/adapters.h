// Random adapters as the kernels find them in memory, and what they add by plain loops. Include after lora.cuh.
#pragma once
#include <random>
static std::mt19937 rng(1);
static float rnd() { return fromBf16(toBf16((rng() % 20001) / 10000.f - 1)); }
static int r8(int v) { return (v + 7) / 8 * 8; }
// Filled with NaN, whether read as fp32 or bf16.
template <class T>
static T* room(size_t n) {
    T* p = (T*)aligned_alloc(64, (n * sizeof(T) + 127) / 64 * 64);
    memset(p, 0xFF, (n * sizeof(T) + 127) / 64 * 64);
    return p;
}

struct Module {
    Lora d = {};
    std::vector<float> A, B;    // [shared][chunkWidth], [chunkHeight][shared]
    std::vector<float> AV, BV;  // [unshared][inputs], [unshared][outputs]
};
// Neither shared nor unshared ranks: not adapted.
static Module make(int inputs, int outputs, int shared, int unshared, int chunksA, int chunksB) {
    Module M;
    Lora& d = M.d;
    d.shared = shared;
    d.unshared = unshared;
    d.chunksA = chunksA;
    d.chunksB = chunksB;
    d.shiftA = shared ? std::max(shared / chunksA, 1) % shared : 0;
    d.shiftB = shared ? std::max(shared / chunksB, 1) % shared : 0;
    d.chunkWidth = (inputs + chunksA - 1) / chunksA;
    d.chunkHeight = (outputs + chunksB - 1) / chunksB;
    d.rowsA = shared + unshared * chunksA;
    d.rowsB = shared + unshared * chunksB;
    d.inputs = inputs;
    d.outputs = outputs;
    d.scale = .625f;
    d.sliceWidth = std::max(64, ((d.chunkWidth + 15) / 16 + 31) / 32 * 32);
    d.slices = (d.chunkWidth + d.sliceWidth - 1) / d.sliceWidth;
    d.tiles = (d.chunkHeight + 31) / 32;
    for (auto [v, n] : {std::pair{&M.A, shared * d.chunkWidth}, {&M.B, shared * d.chunkHeight}, {&M.AV, unshared * inputs}, {&M.BV, unshared * outputs}})
        for (int i = 0; i < n; i++) v->push_back(rnd());

    const int octets = (d.chunkWidth + 7) / 8, tiles = (d.chunkHeight + 31) / 32, pairs = (d.rowsB + 1) / 2;
    u16 *a = room<u16>((size_t)octets * d.rowsA * 8), *b = room<u16>((size_t)tiles * pairs * 64);
    for (int t = 0; t < octets * 8; t++)
        for (int row = 0; row < d.rowsA; row++) {
            const int k = (row - shared) / chunksA, c = (row - shared) % chunksA * d.chunkWidth + t;
            float v = 0;
            if (t < d.chunkWidth) v = row < shared ? M.A[row * d.chunkWidth + t] : c < inputs ? M.AV[k * inputs + c] : 0;
            a[(t / 8 * d.rowsA + row) * 8 + t % 8] = toBf16(v);
        }
    for (int t = 0; t < tiles * 32; t++)
        for (int row = 0; row < pairs * 2; row++) {
            const int k = (row - shared) / chunksB, o = (row - shared) % chunksB * d.chunkHeight + t;
            float v = 0;
            if (t < d.chunkHeight && row < d.rowsB) v = row < shared ? M.B[t * shared + row] : o < outputs ? M.BV[k * outputs + o] : 0;
            b[((t / 32 * pairs + row / 2) * 8 + t % 8) * 8 + t % 32 / 8 * 2 + row % 2] = toBf16(v);
        }
    d.a = a;
    d.b = b;
    return M;
}
// The runs of a site's parts, as the host gives them.
static void setRuns(Site& site) {
    for (int p = 0; p < 3; p++) site.runs[p] = p < site.parts ? (partEnd(site, p) - partBegin(site, p) + RunColumns - 1) / RunColumns : 0;
}
static std::vector<Lora> tableOf(const std::vector<Module>& modules) {
    std::vector<Lora> table;
    for (auto& m : modules) table.push_back(m.d);
    return table;
}

static std::vector<double> zOf(const Module& M, const float* x) {
    const Lora& d = M.d;
    std::vector<double> z(d.shared + d.unshared, 0.0);
    for (int k = 0; k < d.shared; k++)
        for (int c = 0; c < d.inputs; c++) z[k] += (double)M.A[(k + c / d.chunkWidth * d.shiftA) % d.shared * d.chunkWidth + c % d.chunkWidth] * x[c];
    for (int k = 0; k < d.unshared; k++)
        for (int c = 0; c < d.inputs; c++) z[d.shared + k] += (double)M.AV[k * d.inputs + c] * x[c];
    return z;
}
// What the module adds to y.
static std::vector<double> addedOf(const Module& M, const std::vector<double>& z) {
    const Lora& d = M.d;
    std::vector<double> y(d.outputs, 0.0);
    for (int o = 0; o < d.outputs; o++) {
        const int i = o / d.chunkHeight, t = o % d.chunkHeight;
        for (int k = 0; k < d.shared; k++) y[o] += (double)M.B[t * d.shared + k] * z[((k - i * d.shiftB) % d.shared + d.shared) % d.shared];
        for (int k = 0; k < d.unshared; k++) y[o] += (double)M.BV[k * d.outputs + o] * z[d.shared + k];
        y[o] *= d.scale;
    }
    return y;
}

static int failures = 0, checks = 0;
static void expectBelow(const char* what, double found, double most) {
    checks++;
    if (found <= most) return;
    failures++;
    printf("%s: off by %.1e, at most %.1e expected\n", what, found, most);
}
static int finished() {
    printf("%d checks, %d fails\n", checks, failures);
    return failures > 0;
}
// The largest error against the largest value; what is missing counts as infinite.
struct Worst {
    double error = 0, largest = 1e-9;
    void see(double got, double expected) {
        error = std::max(error, std::isnan(got) ? 1e9 : fabs(got - expected));
        largest = std::max(largest, fabs(expected));
    }
    double relative() const { return error / largest; }
};
