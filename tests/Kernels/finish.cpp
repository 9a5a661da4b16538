#define main linear_main
#include "linear.cpp"
#undef main

#include "finish.cu"
std::vector<double> ex(const Mod& M, std::vector<double> z) {
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
int main() {
    int geo[][4] = {{14, 2, 4, 4}, {7, 1, 7, 7}, {8, 0, 1, 1}, {16, 0, 8, 8}, {0, 4, 1, 1}, {5, 3, 6, 8}, {3, 2, 7, 5}, {28, 4, 4, 8}, {60, 0, 1, 1}};
    for (int variant = 0; variant < 6; variant++)
        for (int inner : {96, 131, 1100}) {
            int rows = 7, hd = 24, heads = 4, kvh = 2;
            int h = 40;
            // adapters: 3, parts: 2
            std::vector<Mod> mods;
            for (int a = 0; a < 3; a++)
                for (int p = 0; p < 2; p++) {
                    auto& g = geo[(variant + a * 3 + (variant == 5 ? p : 0)) % 9];
                    mods.push_back(make(h, inner, g[0], g[1], g[2], g[3]));
                    fix(mods.back());
                }
            std::vector<Lora> table;
            for (auto& m : mods) table.push_back(m.d);
            if (variant == 4) { memset(&table[2], 0, sizeof(Lora)); }
            int ad[7] = {0, 0, -1, 1, 2, 2, 2};
            std::vector<Row> info(rows);
            for (int r = 0; r < rows; r++) {
                int f = r;
                while (f && ad[f - 1] == ad[r]) f--;
                int e = r;
                while (e + 1 < rows && ad[e + 1] == ad[r]) e++;
                info[r] = {ad[r], f, e - f + 1, r < 5 ? r : -1};
            }
            int zs = 64, parts = 3;
            Step step = {rows, rows};
            std::vector<float> Z(2 * rows * 16 * zs, NAN), Wh(2 * rows * zs, NAN);
            std::vector<std::vector<double>> zz(2 * rows);
            for (int p = 0; p < 2; p++)
                for (int r = 0; r < rows; r++)
                    if (ad[r] >= 0) {
                        Lora& d = table[ad[r] * 2 + p];
                        for (int k = 0; k < d.shared + d.unshared; k++) {
                            double t = 0;
                            if (r < 5)
                                for (int s = 0; s < slicesOf(d.strideA); s++) {
                                    float v = rnd();
                                    Z[((p * rows + r) * 16 + s) * zs + k] = v;
                                    t += v;
                                }
                            else t = Wh[(p * rows + r) * zs + k] = rnd();
                            zz[p * rows + r].push_back(t);
                        }
                    }
            Site site = {table.data(), 2, 2, 2, zs, Z.data(), Wh.data(), rows * 16 * zs, rows * zs};
            int N = 2 * inner, stride = (N + 7) / 8 * 8;
            std::vector<unsigned char> pt((N + 127) / 128);
            for (auto& v : pt) v = 1 + rng() % parts;
            std::vector<float> bias(N);
            for (auto& b : bias) b = rnd();
            float* Y = (float*)aligned_alloc(64, 64 + (parts * rows * stride * 4 + 127) / 64 * 64);
            std::fill(Y, Y + parts * rows * stride, NAN);
            std::vector<double> E(rows * N);
            for (int r = 0; r < rows; r++)
                for (int c = 0; c < N; c++) {
                    E[r * N + c] = bias[c];
                    for (int p = 0; p < pt[c / 128]; p++) E[r * N + c] += Y[((long)p * rows + r) * stride + c] = rnd();
                }
            std::vector<double> F = E;
            for (int r = 0; r < rows; r++)
                if (ad[r] >= 0)
                    for (int p = 0; p < 2; p++) {
                        if (!zz[p * rows + r].size()) continue;
                        auto e = ex(mods[ad[r] * 2 + p], zz[p * rows + r]);
                        for (int c = 0; c < inner; c++) F[r * N + p * inner + c] += e[c];
                    }
            Sums sums = {Y, (long long)rows * stride, stride, pt.data(), bias.data(), nullptr};
            {
                std::vector<float> out(rows * N, NAN);
                emu::launch(dim3(rows + 2), 64, 17 * zs * 4, [&] { finish(&step, info.data(), sums, site, inner, 0, N, out.data(), N); });
                double w = 0;
                for (int i = 0; i < rows * N; i++) w = std::max(w, std::isnan(out[i]) ? 1e9 : fabs(out[i] - F[i]));
                expectBelow("finish", w, 1e-5);
            }
            {
                int ys = (inner + 7) / 8 * 8;
                std::vector<u16> out(rows * ys + 8, 0x7FFF);
                int pieces = (inner + 511) / 512;
                emu::launch(dim3(((rows + 3) * pieces + 3) / 4), 128, 8 * zs * 4, [&] { swiGluMany(&step, info.data(), sums, site, inner, out.data(), ys); });
                double w = 0;
                for (int r = 0; r < rows; r++)
                    for (int c = 0; c < inner; c++) {
                        double g = F[r * N + c], u = F[r * N + inner + c], e = g / (1 + exp(-g)) * u, got = fromBf16(out[r * ys + c]);
                        w = std::max(w, std::isnan(got) ? 1e9 : fabs(got - e) / (1 + fabs(e)));
                    }
                expectBelow("swiGluMany", w, 5e-3);
            }
            {
                Site s1 = site;
                s1.parts = 1;
                s1.perAdapter = 2;
                std::vector<float> x(rows * inner), x0, wt(inner), full(rows * inner, NAN);
                for (auto& v : x) v = rnd();
                for (auto& v : wt) v = rnd();
                x0 = x;
                Sums s2 = sums;
                emu::launch(dim3(rows + 1), 512, (inner + 17 * zs + 32) * 4,
                            [&] { addNormMany(&step, info.data(), s2, s1, x.data(), inner, wt.data(), 1e-5f, nullptr, full.data(), inner, inner); });
                double w = 0;
                for (int r = 0; r < rows; r++) {
                    double ss = 0;
                    for (int c = 0; c < inner; c++) {
                        double v = x0[r * inner + c] + F[r * N + c];
                        ss += v * v;
                    }
                    double f = 1 / sqrt(ss / inner + 1e-5);
                    for (int c = 0; c < inner; c++) {
                        double v = x0[r * inner + c] + F[r * N + c];
                        w = std::max(w, fabs(x[r * inner + c] - v));
                        double e = v * f * wt[c];
                        w = std::max(w, std::isnan(full[r * inner + c]) ? 1e9 : fabs(full[r * inner + c] - e));
                    }
                }
                expectBelow("addNormMany", w, 1e-5);
            }
            {  // lean, with extra
                float* X = (float*)aligned_alloc(64, (rows * stride * 4 + 127) / 64 * 64);
                for (int i = 0; i < rows * stride; i++) X[i] = NAN;
                for (int r = 0; r < rows; r++)
                    if (ad[r] >= 0)
                        for (int c = 0; c < N; c++) X[r * stride + c] = F[r * N + c] - E[r * N + c];
                Sums sl = sums;
                sl.extra = X;
                int ys = (inner + 7) / 8 * 8;
                u16* out = (u16*)aligned_alloc(64, (rows * ys * 2 + 127) / 64 * 64);
                memset(out, 0x7F, rows * ys * 2);
                emu::launch(dim3((inner + 1023) / 1024, rows + 2), 256, 16, [&] { swiGlu(&step, info.data(), sl, Site(), inner, out, ys); });
                double w = 0;
                for (int r = 0; r < rows; r++)
                    for (int c = 0; c < inner; c++) {
                        double g = F[r * N + c], u = F[r * N + inner + c], e = g / (1 + exp(-g)) * u, got = fromBf16(out[r * ys + c]);
                        w = std::max(w, std::isnan(got) ? 1e9 : fabs(got - e) / (1 + fabs(e)));
                    }
                expectBelow("swiGlu", w, 5e-3);
                std::vector<float> wt(inner), full(rows * inner, NAN);
                float* x = (float*)aligned_alloc(64, (rows * inner * 4 + 127) / 64 * 64);
                std::vector<float> x0(rows * inner);
                for (int i = 0; i < rows * inner; i++) x0[i] = x[i] = rnd();
                for (auto& v : wt) v = rnd();
                emu::launch(dim3(rows + 2), 256, (2 * inner + 32) * 4,
                            [&] { addNorm(&step, info.data(), sl, Site(), x, inner, wt.data(), 1e-5f, nullptr, full.data(), inner, inner); });
                w = 0;
                for (int r = 0; r < rows; r++) {
                    double ss = 0;
                    for (int c = 0; c < inner; c++) {
                        double v = x0[r * inner + c] + F[r * N + c];
                        ss += v * v;
                    }
                    double f = 1 / sqrt(ss / inner + 1e-5);
                    for (int c = 0; c < inner; c++) {
                        double v = x0[r * inner + c] + F[r * N + c];
                        w = std::max(w, fabs(x[r * inner + c] - v));
                        double e = v * f * wt[c];
                        w = std::max(w, std::isnan(full[r * inner + c]) ? 1e9 : fabs(full[r * inner + c] - e));
                    }
                }
                expectBelow("addNorm", w, 1e-5);
            }
        }
    // rope
    for (auto [heads, kvh, hd, bs, norms] : {std::tuple{4, 2, 16, 16, 0}, {6, 2, 24, 4, 1}, {5, 1, 64, 7, 1}, {7, 1, 96, 32, 0}}) {
        int rows = 5, N = (heads + 2 * kvh) * hd, st = (N + 7) / 8 * 8, ds = (hd + 15) / 16 * 16, h = 40, zs = 64;
        std::vector<Mod> mods;
        int outs[3] = {heads * hd, kvh * hd, kvh * hd};
        for (int p = 0; p < 3; p++) {
            auto& g = geo[p];
            mods.push_back(make(h, outs[p], g[0], g[1], g[2], g[3]));
            fix(mods.back());
        }
        std::vector<Lora> table;
        for (auto& m : mods) table.push_back(m.d);
        Step step = {rows, rows};
        std::vector<Row> info;
        for (int r = 0; r < rows; r++) info.push_back({r % 2 ? -1 : 0, r, 1, r});
        std::vector<float> Z(3 * rows * 16 * zs, 0.f);
        Site site = {table.data(), 3, 3, 0, zs, Z.data(), nullptr, rows * 16 * zs, 0};
        float* Y = (float*)aligned_alloc(64, rows * st * 4 + 64);
        std::vector<double> F(rows * N);
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < N; c++) F[r * N + c] = Y[r * st + c] = rnd();
        for (int r = 0; r < rows; r += 2) {
            int col = 0;
            for (int p = 0; p < 3; p++) {
                std::vector<double> z;
                for (int k = 0; k < table[p].shared + table[p].unshared; k++) z.push_back(Z[(p * rows + r) * 16 * zs + k] = rnd());
                auto e = ex(mods[p], z);
                for (int c = 0; c < outs[p]; c++) F[r * N + col + c] += e[c];
                col += outs[p];
            }
        }
        std::vector<int> pos = {0, 5, 1000, 3, 77}, slots = {3, 40, 9, 17, 60};
        int blocks = 64;
        std::vector<u16> K(blocks * kvh * bs * ds, 0x7FFF), V = K, Q(rows * heads * ds, 0x7FFF);
        std::vector<float> fr(hd / 2), qn(hd), kn(hd);
        for (int i = 0; i < hd / 2; i++) fr[i] = powf(10000, -2.f * i / hd);
        for (auto& v : qn) v = rnd();
        for (auto& v : kn) v = rnd();
        Sums sums = {Y, 0, st, nullptr, nullptr, nullptr};
        Cache cache = {K.data(), V.data(), bs, kvh, hd, ds};
        int most = heads * hd;
        emu::launch(dim3(rows + 2, 3), 256, (most + hd + 17 * zs) * 4, [&] {
            ropeStoreMany(&step, info.data(), pos.data(), slots.data(), sums, site, heads, norms ? qn.data() : nullptr, norms ? kn.data() : nullptr, 1e-6f,
                          fr.data(), Q.data(), cache);
        });
        double w = 0;
        for (int r = 0; r < rows; r++)
            for (int hh = 0; hh < heads + 2 * kvh; hh++) {
                std::vector<double> v(ds, 0.0);
                for (int i = 0; i < hd; i++) v[i] = F[r * N + hh * hd + i];
                bool isv = hh >= heads + kvh;
                auto& nn = hh < heads ? qn : kn;
                if (norms && !isv) {
                    double ss = 0;
                    for (int i = 0; i < hd; i++) ss += v[i] * v[i];
                    double f = 1 / sqrt(ss / hd + 1e-6);
                    for (int i = 0; i < hd; i++) v[i] *= f * nn[i];
                }
                if (!isv)
                    for (int i = 0; i < hd / 2; i++) {
                        float a = pos[r] * fr[i];
                        double c = cos(a), s = sin(a), x = v[i], y = v[i + hd / 2];
                        v[i] = x * c - y * s;
                        v[i + hd / 2] = y * c + x * s;
                    }
                for (int i = 0; i < ds; i++) {
                    int kh = hh < heads ? 0 : (hh - heads) % kvh;
                    u16 got = hh < heads ? Q[(r * heads + hh) * ds + i] : (isv ? V : K)[((long)(slots[r] / bs * kvh + kh) * bs + slots[r] % bs) * ds + i];
                    double gv = fromBf16(got);
                    w = std::max(w, std::isnan(gv) ? 1e9 : fabs(gv - v[i]) / (1 + fabs(v[i])));
                }
            }
        expectBelow("ropeStoreMany", w, 5e-3);
        {
            float* X = (float*)aligned_alloc(64, (rows * st * 4 + 127) / 64 * 64);
            for (int i = 0; i < rows * st; i++) X[i] = NAN;
            for (int r = 0; r < rows; r += 2)
                for (int c = 0; c < N; c++) X[r * st + c] = F[r * N + c] - Y[r * st + c];
            Sums sl = sums;
            sl.extra = X;
            std::fill(K.begin(), K.end(), 0x7FFF);
            V = K;
            std::fill(Q.begin(), Q.end(), 0x7FFF);
            Cache c2 = {K.data(), V.data(), bs, kvh, hd, ds};
            emu::launch(dim3(rows + 2, (heads + 2 * kvh + 7) / 8), 256, 16, [&] {
                ropeStore(&step, info.data(), pos.data(), slots.data(), sl, Site(), heads, norms ? qn.data() : nullptr, norms ? kn.data() : nullptr, 1e-6f,
                          fr.data(), Q.data(), c2);
            });
            w = 0;
            for (int r = 0; r < rows; r++)
                for (int hh = 0; hh < heads + 2 * kvh; hh++) {
                    std::vector<double> v(ds, 0.0);
                    for (int i = 0; i < hd; i++) v[i] = F[r * N + hh * hd + i];
                    bool isv = hh >= heads + kvh;
                    auto& nn = hh < heads ? qn : kn;
                    if (norms && !isv) {
                        double ss = 0;
                        for (int i = 0; i < hd; i++) ss += v[i] * v[i];
                        double f = 1 / sqrt(ss / hd + 1e-6);
                        for (int i = 0; i < hd; i++) v[i] *= f * nn[i];
                    }
                    if (!isv)
                        for (int i = 0; i < hd / 2; i++) {
                            float a = pos[r] * fr[i];
                            double c = cos(a), s = sin(a), x = v[i], y = v[i + hd / 2];
                            v[i] = x * c - y * s;
                            v[i + hd / 2] = y * c + x * s;
                        }
                    for (int i = 0; i < ds; i++) {
                        int kh = hh < heads ? 0 : (hh - heads) % kvh;
                        u16 got = hh < heads ? Q[(r * heads + hh) * ds + i] : (isv ? V : K)[((long)(slots[r] / bs * kvh + kh) * bs + slots[r] % bs) * ds + i];
                        double gv = fromBf16(got);
                        w = std::max(w, std::isnan(gv) ? 1e9 : fabs(gv - v[i]) / (1 + fabs(v[i])));
                    }
                }
            expectBelow("ropeStore", w, 5e-3);
        }
    }
    return finished();
}
