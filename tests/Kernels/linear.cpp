#include "emulator.h"
#define EMULATED
static void syncMma() { emuNamed(1, 256); }
static const int MmaFirst = 0;
static void awaitSlices(const u32* ready, u32 slices) {
    while (*(volatile const u32*)ready < slices) {
        int me = emu::current;
        emu::yieldTo(0);
        emu::current = me;
        threadIdx = dim3(me);
    }
}
static float loadShared(const float* p) { return *p; }
#include "lora.cuh"
#include "linear.cu"
#include <random>
std::mt19937 rng(1);
float rnd() { return fromBf16(toBf16((rng() % 20001) / 10000.f - 1)); }
int r8(int v) { return (v + 7) / 8 * 8; }
struct Mod {
    Lora d;
    std::vector<u16> a, b, av, bv;
    std::vector<float> A, B, AV, BV;
};
Mod make(int h, int o, int rs, int u, int m, int n) {
    Mod M;
    Lora& d = M.d;
    memset(&d, 0, sizeof d);
    d.shared = rs;
    d.unshared = u;
    d.chunksA = m;
    d.chunksB = n;
    d.shiftA = rs ? std::max(rs / m, 1) : 1;
    d.shiftB = rs ? std::max(rs / n, 1) : 1;
    d.chunkWidth = (h + m - 1) / m;
    d.chunkHeight = (o + n - 1) / n;
    d.strideA = r8(d.chunkWidth);
    d.strideB = r8(d.chunkHeight);
    d.scale = .625f;
    d.inputs = h;
    d.outputs = o;
    M.A.resize(rs * d.chunkWidth);
    M.a.assign(rs * d.strideA + 8, 0);
    for (int k = 0; k < rs; k++)
        for (int t = 0; t < d.chunkWidth; t++) M.a[k * d.strideA + t] = toBf16(M.A[k * d.chunkWidth + t] = rnd());
    M.B.resize(rs * d.chunkHeight);
    M.b.assign(rs * d.strideB + 8, 0);
    for (int t = 0; t < d.chunkHeight; t++)
        for (int k = 0; k < rs; k++) M.b[k * d.strideB + t] = toBf16(M.B[t * rs + k] = rnd());
    M.AV.resize(u * h);
    M.av.assign(u * m * d.strideA + 8, 0);
    for (int k = 0; k < u; k++)
        for (int c = 0; c < h; c++) M.av[(k * m + c / d.chunkWidth) * d.strideA + c % d.chunkWidth] = toBf16(M.AV[k * h + c] = rnd());
    M.BV.resize(u * o);
    M.bv.assign(u * n * d.strideB + 8, 0);
    for (int k = 0; k < u; k++)
        for (int c = 0; c < o; c++) M.bv[(k * n + c / d.chunkHeight) * d.strideB + c % d.chunkHeight] = toBf16(M.BV[k * o + c] = rnd());
    return M;
}
void fix(Mod& M) {
    auto al = [](std::vector<u16>& v) {
        u16* p = (u16*)aligned_alloc(64, (v.size() * 2 + 127) / 64 * 64);
        memcpy(p, v.data(), v.size() * 2);
        return p;
    };
    M.d.a = al(M.a);
    M.d.b = al(M.b);
    M.d.aVec = al(M.av);
    M.d.bVec = al(M.bv);
}
std::vector<double> z(const Mod& M, const float* x) {
    const Lora& d = M.d;
    std::vector<double> r(d.shared + d.unshared, 0.0);
    for (int k = 0; k < d.shared; k++)
        for (int j = 0; j < d.chunksA; j++)
            for (int t = 0; t < d.chunkWidth && j * d.chunkWidth + t < d.inputs; t++)
                r[k] += (double)M.A[(k + j * d.shiftA) % d.shared * d.chunkWidth + t] * x[j * d.chunkWidth + t];
    for (int k = 0; k < d.unshared; k++)
        for (int c = 0; c < d.inputs; c++) r[d.shared + k] += (double)M.AV[k * d.inputs + c] * x[c];
    return r;
}
std::vector<double> expandRef(const Mod& M, std::vector<double> z) {
    const Lora& d = M.d;
    std::vector<double> y(d.outputs, 0.0);
    for (int i = 0; i < d.chunksB && d.shared; i++)
        for (int t = 0; t < d.chunkHeight && i * d.chunkHeight + t < d.outputs; t++)
            for (int k = 0; k < d.shared; k++)
                y[i * d.chunkHeight + t] += d.scale * (double)M.B[t * d.shared + k] * z[((k - i * d.shiftB) % d.shared + d.shared) % d.shared];
    for (int u = 0; u < d.unshared; u++)
        for (int o = 0; o < d.outputs; o++) y[o] += d.scale * (double)M.BV[u * d.outputs + o] * z[d.shared + u];
    return y;
}
int failures = 0, checks = 0;
void expectBelow(const char* what, double found, double most) {
    checks++;
    if (!(found <= most)) {
        failures++;
        printf("%s: off by %.1e, at most %.1e expected\n", what, found, most);
    }
}
int finished() {
    printf("%d checks, %d fails\n", checks, failures);
    return failures > 0;
}
int main() {
    for (auto [rows, h, o, blocks, which] : {std::tuple{1, 96, 160, 5, 0},
                                             {3, 257, 300, 7, 1},
                                             {16, 520, 177, 3, 2},
                                             {33, 200, 515, 4, 3},
                                             {64, 136, 256, 13, 4},
                                             {1, 7, 101, 2, 0},
                                             {5, 515, 136, 6, 5},
                                             {9, 64, 700, 2, 6},
                                             {100, 72, 140, 3, 7},
                                             {4, 4100, 164, 9, 8}}) {
        int xs = r8(h), nt = rows <= 8 ? 1 : rows <= 16 ? 2 : rows <= 32 ? 4 : rows <= 64 ? 8 : 16;
        std::vector<float> X(rows * h), W(o * h);
        u16* x = (u16*)aligned_alloc(64, (rows * xs * 2 + 127) / 64 * 64);
        u16* w = (u16*)aligned_alloc(64, (o * xs * 2 + 127) / 64 * 64);
        memset(x, 0xFF, rows * xs * 2);
        memset(w, 0, o * xs * 2);
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < h; c++) x[r * xs + c] = toBf16(X[r * h + c] = rnd());
        for (int r = 0; r < o; r++)
            for (int c = 0; c < h; c++) w[r * xs + c] = toBf16(W[r * h + c] = rnd());
        int geo[][4] = {{14, 2, 4, 4}, {7, 1, 7, 7}, {8, 0, 1, 1}, {16, 0, 8, 8}, {0, 4, 1, 1}, {5, 3, 6, 8}, {3, 2, 7, 5}, {28, 4, 4, 8}, {200, 0, 1, 1}};
        std::vector<Mod> mods;
        for (int a = 0; a < 3; a++)
            for (int p = 0; p < 2; p++) {
                auto& g = geo[(which + a * 2 + p) % 9];
                mods.push_back(make(h, 50, g[0], g[1], g[2], g[3]));
                fix(mods.back());
            }
        std::vector<Lora> table;
        for (auto& m : mods) table.push_back(m.d);
        std::vector<Group> groups;
        std::vector<int> ad(rows);
        for (int r = 0; r < rows; r++) ad[r] = (r * 3 / std::max(rows, 3)) - (r % 5 == 4 ? 9 : 0), ad[r] = ad[r] < 0 ? -1 : ad[r];
        for (int r = 0; r < rows; r++)
            if (r && ad[r] == ad[r - 1] && groups.back().rows < 16) groups.back().rows++;
            else groups.push_back({r, 1, ad[r], 0});
        Step step = {rows, rows, (int)groups.size(), 0, 0, 0, {0}};
        int zs = 208;
        std::vector<float> Z(2 * rows * zs * 16, NAN);
        Site site = {table.data(), 2, 2, 1, zs, Z.data(), 0, rows * zs * 16, 0, 50, 0, 100, 0};
        for (auto& g : groups) g.firstShort = g.firstRow;
        step.units[1] = 1;
        for (auto& g : groups)
            if (g.adapter >= 0)
                for (int p = 0; p < 2; p++) {
                    auto& d = table[g.adapter * 2 + p];
                    step.units[1] = std::max(step.units[1], slicesOf(d.strideA) * ((g.rows + rowsOfUnit(d.chunksA) - 1) / rowsOfUnit(d.chunksA)));
                }
        std::vector<Row> infos;
        {
            int sr = 0;
            for (int r = 0; r < rows; r++) infos.push_back({ad[r], r, 1, r});
        }
        for (int mt = 1; mt <= 2; mt++) {
            int B = mt == 1 ? blocks : 1;
            Site use = site;
            if (mt == 1) use.parts = 0;
            std::vector<u32> ready(2 * 128, 0);
            std::vector<float> ex(rows * std::max(o, 100), NAN);
            int parts = 40;
            std::vector<float> Y((size_t)parts * rows * o, NAN);
            Weight wt = {w, xs, o, h};
            std::fill(Z.begin(), Z.end(), NAN);
            emu::launch(dim3(B), 544, 232448, [&] {
#define GO(N)                                                                                                                                             \
    if (nt == N)                                                                                                                                          \
        linear_##N(&step, &step.rows, infos.data(), groups.data(), wt, x, xs, Y.data(), (long long)rows* o, o, use, ready.data(), ex.data(), TensorMap(), \
                   TensorMap());
                GO(1) GO(2) GO(4) GO(8) GO(16)
            });
            double worst = 0, big = 1e-9;
            int bm = 128 * mt, steps = (h + 63) / 64, tiles = (o + bm - 1) / bm;
            long long units = (long long)tiles * steps;
            int G = std::min<long long>(B, units);
            for (int r = 0; r < rows; r++)
                for (int c = 0; c < o; c++) {
                    double e = 0;
                    for (int k = 0; k < h; k++) e += (double)X[r * h + k] * W[c * h + k];
                    int t = c / bm;
                    int f = ((long long)t * steps + 1) * G - 1;
                    f /= units;
                    int l = (((long long)t * steps + steps) * G - 1) / units;
                    double got = 0;
                    for (int p = 0; p <= l - f; p++) got += Y[((size_t)p * rows + r) * o + c];
                    worst = std::max(worst, std::isnan(got) ? 1e9 : fabs(got - e));
                    big = std::max(big, fabs(e));
                }
            expectBelow("linear y", worst / big, 1e-5);
            if (mt == 1) continue;
            double xw = 0, xb = 1e-9;
            for (int r = 0; r < rows; r++)
                if (ad[r] >= 0)
                    for (int p = 0; p < 2; p++) {
                        auto zz = z(mods[ad[r] * 2 + p], &X[r * h]);
                        auto e = expandRef(mods[ad[r] * 2 + p], zz);
                        for (int c = 0; c < 50; c++) {
                            double got = ex[r * o + p * 50 + c];
                            xw = std::max(xw, std::isnan(got) ? 1e9 : fabs(got - e[c]));
                            xb = std::max(xb, fabs(e[c]));
                        }
                    }
            expectBelow("linear extra", xw / xb, 1e-5);
            double zw = 0, zb = 1e-9;
            for (int r = 0; r < rows; r++)
                if (ad[r] >= 0)
                    for (int p = 0; p < 2; p++) {
                        auto e = z(mods[ad[r] * 2 + p], &X[r * h]);
                        for (size_t k = 0; k < e.size(); k++) {
                            double got = 0;
                            for (int s = 0; s < slicesOf(mods[ad[r] * 2 + p].d.strideA); s++) got += Z[((p * rows + r) * 16 + s) * zs + k];
                            zw = std::max(zw, std::isnan(got) ? 1e9 : fabs(got - e[k]));
                            zb = std::max(zb, fabs(e[k]));
                        }
                    }
            expectBelow("linear z", zw / zb, 1e-5);
        }
    }
    return finished();
}
