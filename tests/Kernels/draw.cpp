#include "emulator.h"
#include "draw.cu"
#include <random>
#include <map>
std::mt19937 rng(7);
double uni() { return (rng() & 0xFFFFFF) / 16777216.0; }
struct Rule {
    DrawRow r;
    std::map<int, int> hist;
    std::map<int, float> bias;
};
int fails = 0;
int main() {
    for (int trial = 0; trial < 60; trial++) {
        int vocab = (int[]){1, 5, 33, 257, 1000, 4099, 9001, 20011}[trial % 8], tileShift = 7, stride = trial % 3 == 1 ? vocab + 1 : (vocab + 3) / 4 * 4,
            rows = 9;
        int parts = 1 + trial % 4;
        long long ps = (long long)stride * rows;
        std::vector<unsigned char> pt((vocab + 127) / 128);
        for (auto& p : pt) p = 1 + rng() % parts;
        float* L = (float*)aligned_alloc(64, (parts * ps * 4 + 127) / 64 * 64);
        memset(L, 0xFF, parts * ps * 4);
        int ws = (vocab + 3) / 4 * 4;
        float* W = (float*)aligned_alloc(64, (ws * rows * 4 + 127) / 64 * 64);
        memset(W, 0xFF, ws * rows * 4);
        double spread = trial % 5 == 0 ? 0.01 : trial % 5 == 1 ? 30 : 4;
        bool grid = trial % 7 == 3;
        std::normal_distribution<double> nd(0, spread);
        std::vector<Rule> R(rows);
        std::vector<int> pairs;
        for (int r = 0; r < rows; r++) {
            for (int c = 0; c < vocab; c++) {
                double v = nd(rng);
                if (grid) v = std::round(v / 2) * 2;
                int n = pt[c / 128];
                for (int p = 0; p < n; p++) L[p * ps + r * stride + c] = p == n - 1 ? (float)v : (float)(grid ? 1 : uni());
            }
            DrawRow& d = R[r].r;
            d = {};
            d.topP = 1;
            d.repetition = 1;
            d.logProbabilities = -1;
            d.uniform = uni();
            int kind = r;
            if (kind > 0 && kind != 8) d.temperature = (float[]){1, .7f, 2, .1f}[rng() % 4];
            if (kind == 2 || kind == 4) d.topK = 1 + rng() % 50;
            if (kind == 3 || kind == 4 || kind == 6) d.topP = (float[]){.9f, .5f, .99f, 0}[rng() % 4];
            if (kind == 5 || kind == 4) d.minP = .05f;
            if (kind == 7) d.topK = vocab - 1;
            if (rng() % 3 == 0) d.logProbabilities = rng() % 21;
            if (rng() % 3 == 0) {
                d.repetition = 1.3f;
                d.frequency = .5f;
                d.presence = .25f;
                for (int i = 0; i < 40; i++) R[r].hist[rng() % vocab] = rng() % 3 << 1 | rng() % 2;
                for (auto& h : R[r].hist)
                    if (!h.second) h.second = 1;
            }
            if (rng() % 3 == 0)
                for (int i = 0; i < 20; i++) R[r].bias[rng() % vocab] = i % 4 == 0 ? -INFINITY : (float)(rng() % 9 - 4.0);
        }
        int off = rows * 7;
        std::vector<char> buf(rows * 56);
        for (auto& q : R) {
            q.r.history = off;
            q.r.historyCount = q.hist.size();
            for (auto& h : q.hist) {
                pairs.push_back(h.first);
                pairs.push_back(h.second);
                off++;
            }
            q.r.bias = off;
            q.r.biasCount = q.bias.size();
            for (auto& h : q.bias) {
                pairs.push_back(h.first);
                pairs.push_back(__float_as_int(h.second));
                off++;
            }
        }
        static_assert(sizeof(DrawRow) == 56);
        for (int r = 0; r < rows; r++) memcpy(&buf[r * 56], &R[r].r, 56);
        buf.insert(buf.end(), (char*)pairs.data(), (char*)pairs.data() + pairs.size() * 4);
        buf.resize(buf.size() + 8);
        int badRow = trial % 4 == 2 ? rng() % rows : -1;
        int badCol = rng() % vocab;
        if (badRow >= 0) L[badRow * stride + badCol] = (float[]){NAN, INFINITY, -INFINITY}[rng() % 3];
        std::vector<float> L0(L, L + parts * ps);
        std::vector<int> drawn(rows + 1, -77);
        std::vector<DrawResult> res(rows + 1);
        std::vector<DrawTop> tops(rows * 20);
        Step step = {};
        step.logitRows = rows;
        Logits l = {L, parts == 1 ? nullptr : pt.data(), ps, tileShift, stride, vocab, 0};
        emu::launch(dim3(trial % 2 ? 4 : 16), 1024, 0, [&] { draw(&step, (unsigned char*)buf.data(), l, W, ws, drawn.data(), res.data(), tops.data()); });
        if (memcmp(L0.data(), L, parts * ps * 4)) {
            puts("logits changed");
            fails++;
        }
        if (drawn[rows] != -77) {
            puts("row beyond");
            fails++;
        }
        for (int r = 0; r < rows; r++) {
            auto& q = R[r];
            std::vector<float> raw(vocab), s;
            for (int c = 0; c < vocab; c++) {
                raw[c] = L[r * stride + c];
                for (int p = 1; p < (parts == 1 ? 1 : pt[c / 128]); p++) raw[c] += L[p * ps + r * stride + c];
            }
            s = raw;
            bool bad = false;
            for (float v : raw) bad |= !std::isfinite(v);
            int expect = -1;
            bool border = false;
            std::vector<int> kept;
            if (!bad) {
                for (auto& h : q.hist) {
                    float& v = s[h.first];
                    v = v > 0 ? v / q.r.repetition : v * q.r.repetition;
                    if (h.second >> 1) v -= q.r.frequency * (h.second >> 1) + q.r.presence;
                }
                for (auto& h : q.bias) s[h.first] += h.second;
                int best = 0;
                for (int c = 1; c < vocab; c++)
                    if (s[c] > s[best]) best = c;
                if (!std::isfinite(s[best])) expect = -1;
                else if (q.r.temperature == 0) expect = best;
                else {
                    std::vector<float> w(vocab);
                    for (int c = 0; c < vocab; c++) w[c] = expf((s[c] - s[best]) / q.r.temperature);
                    std::vector<int> o(vocab);
                    for (int c = 0; c < vocab; c++) o[c] = c;
                    std::stable_sort(o.begin(), o.end(), [&](int a, int b) { return w[a] > w[b]; });
                    if (q.r.topK > 0 && q.r.topK < vocab) o.resize(q.r.topK);
                    double tot = 0;
                    for (int c : o) tot += w[c];
                    if (q.r.topP < 1) {
                        double sum = 0;
                        size_t n = 0;
                        while (n < o.size()) {
                            sum += w[o[n++]];
                            if (fabs(sum - q.r.topP * tot) < 1e-6 * tot) border = true;
                            if (sum >= q.r.topP * tot) break;
                        }
                        o.resize(n);
                    }
                    while (w[o.back()] < q.r.minP) o.pop_back();
                    std::sort(o.begin(), o.end());
                    tot = 0;
                    for (int c : o) tot += w[c];
                    double run = 0;
                    for (int c : o) {
                        run += w[c];
                        if (fabs(run - q.r.uniform * tot) < 1e-6 * tot) border = true;
                        if (run > q.r.uniform * tot && w[c] > 0) {
                            expect = c;
                            break;
                        }
                    }
                    kept = o;
                }
            }
            if (drawn[r] != expect || res[r].token != expect) {
                if (border) {
                    printf("border\n");
                    continue;
                }
                printf("trial %d row %d vocab %d: %d, expected %d (T %g k %d p %g m %g u %g)\n", trial, r, vocab, drawn[r], expect, q.r.temperature, q.r.topK,
                       q.r.topP, q.r.minP, q.r.uniform);
                fails++;
                continue;
            }
            if (expect >= 0 && q.r.logProbabilities >= 0) {
                int best = 0;
                for (int c = 1; c < vocab; c++)
                    if (raw[c] > raw[best]) best = c;
                double tot = 0;
                std::vector<float> w(vocab);
                for (int c = 0; c < vocab; c++) tot += w[c] = expf(raw[c] - raw[best]);
                double lt = log(tot) + raw[best];
                std::vector<int> o(vocab);
                for (int c = 0; c < vocab; c++) o[c] = c;
                std::stable_sort(o.begin(), o.end(), [&](int a, int b) { return w[a] > w[b]; });
                int n = std::min(q.r.logProbabilities, vocab);
                bool ok = res[r].top == n && fabs(res[r].logProbability - (raw[expect] - lt)) < 2e-5 * (1 + fabs(lt));
                for (int i = 0; i < n && ok; i++)
                    ok = tops[r * 20 + i].token == o[i] && fabs(tops[r * 20 + i].logProbability - (raw[o[i]] - lt)) < 2e-5 * (1 + fabs(lt) + fabs(raw[o[i]]));
                if (!ok) {
                    printf("trial %d row %d vocab %d: log-probabilities wrong (top %d of %d) %g %g\n", trial, r, vocab, res[r].top, n, res[r].logProbability,
                           raw[expect] - lt);
                    fails++;
                }
            } else if (res[r].top != 0) {
                puts("top");
                fails++;
            }
        }
        free(L);
        free(W);
    }
    printf("%d fails\n", fails);
    return fails;
}
