#include "emulator.h"
#define EMULATED
DEVICE float powerOf2(float v) { return exp2f(v); }
#include "attend.cuh"
#include "attend_prefill.cu"
#include <random>
#include <tuple>
std::mt19937 rng(1);
float rnd() { return fromBf16(toBf16((rng() % 20001) / 5000.f - 2)); }
template <class T>
T* room(size_t n) {
    T* p = (T*)aligned_alloc(64, (n * sizeof(T) + 127) / 64 * 64);
    memset(p, 0xFF, n * sizeof(T));
    return p;
}
void kernel(int D, const Step* s, const AttendTile* it, const int* bt, const u16* q, Cache c, int h, int w, u16* y, int ys) {
    switch (D) {
#define K(N)                                             \
    case N:                                              \
        attendPrefill_##N(s, it, bt, q, c, h, w, y, ys); \
        break;
        K(16) K(32) K(48) K(64) K(80) K(96) K(112) K(128)
    }
}
int fails = 0;
int main() {
    for (auto [heads, kvHeads, dim, bs, window] : {std::tuple{4, 2, 16, 16, 0},
                                                   {4, 4, 24, 16, 0},
                                                   {6, 2, 32, 4, 0},
                                                   {5, 1, 64, 7, 0},
                                                   {4, 1, 16, 16, 16},
                                                   {2, 2, 80, 16, 5},
                                                   {7, 1, 96, 32, 20},
                                                   {3, 3, 128, 1, 0},
                                                   {8, 2, 128, 16, 0},
                                                   {3, 1, 40, 16, 100},
                                                   {2, 1, 112, 5, 150}}) {
        int D = (dim + 15) / 16 * 16, group = heads / kvHeads;
        struct Seq {
            int context, rows;
        };
        std::vector<Seq> seqs = {{1, 1}, {17, 17}, {64, 64}, {65, 3}, {130, 130}, {300, 150}, {700, 333}, {520, 2}};
        if (dim == 128) seqs = {{65, 65}, {300, 150}, {400, 2}};
        int rows = 3;
        std::vector<int> firstRow;
        for (auto& s : seqs) {
            firstRow.push_back(rows);
            rows += s.rows;
        }
        rows += 2;
        int ys = heads * dim + 6;
        int total = 0;
        for (auto& s : seqs) total += (s.context + bs - 1) / bs;
        std::vector<int> perm(total + 3);
        for (size_t i = 0; i < perm.size(); i++) perm[i] = i;
        std::shuffle(perm.begin(), perm.end(), rng);
        size_t size = perm.size() * kvHeads * bs * D;
        u16 *keys = room<u16>(size), *values = room<u16>(size), *q = room<u16>((size_t)rows * heads * D);
        std::vector<int> table, base;
        auto at = [&](int i, int p, int kv) { return (((size_t)table[base[i] + p / bs] * kvHeads + kv) * bs + p % bs) * D; };
        for (size_t i = 0; i < seqs.size(); i++) {
            base.push_back(table.size());
            for (int b = 0; b < (seqs[i].context + bs - 1) / bs; b++) table.push_back(perm[table.size()]);
            for (int p = 0; p < seqs[i].context; p++)
                for (int kv = 0; kv < kvHeads; kv++)
                    for (int d = 0; d < D; d++) {
                        keys[at(i, p, kv) + d] = d < dim ? toBf16(rnd()) : 0;
                        values[at(i, p, kv) + d] = d < dim ? toBf16(rnd()) : 0;
                    }
            for (int r = 0; r < seqs[i].rows; r++)
                for (int h = 0; h < heads; h++)
                    for (int d = 0; d < D; d++) q[((size_t)(firstRow[i] + r) * heads + h) * D + d] = d < dim ? toBf16(rnd()) : 0;
            if (window)
                for (int p = 0; p + window < seqs[i].context - seqs[i].rows + 1; p++)
                    for (int kv = 0; kv < kvHeads; kv++)
                        for (int d = 0; d < D; d++) keys[at(i, p, kv) + d] = values[at(i, p, kv) + d] = 0x7FC0;
        }
        // one sequence has a NaN value amid its rows, one a NaN key, one an infinite value, one a NaN query
        int nanValue = dim == 128 ? 1 : 5, nanKey = dim == 128 ? 0 : 4, nanQuery = 1, at0 = seqs[nanValue].context - 40, at1 = seqs[nanKey].context - 7,
            at2 = 5;
        values[at(nanValue, at0, 0) + 3] = window ? 0x7F80 : 0x7FC0;
        keys[at(nanKey, at1, kvHeads - 1) + 1] = 0x7FC0;
        q[((size_t)(firstRow[nanQuery] + at2) * heads + heads - 1) * D + 2] = 0x7FC0;
        Cache cache = {keys, values, bs, kvHeads, dim, D};
        u16* first = nullptr;
        double worst = 0;
        for (auto [grid, most] : {std::pair{1, 128}, {7, 128}, {200, 128}, {5, 64}, {3, 0}}) {
            std::vector<AttendTile> tiles;
            for (size_t i = 0; i < seqs.size(); i++)
                for (int r = 0; r < seqs[i].rows;) {
                    int n = std::min(seqs[i].rows - r, most ? most : (int)(1 + rng() % 128));
                    tiles.push_back({firstRow[i] + r, n, seqs[i].context - seqs[i].rows + r, base[i]});
                    r += n;
                }
            u16* y = room<u16>((size_t)rows * ys);
            memset(y, 0x7A, (size_t)rows * ys * 2);
            Step st = {};
            st.tiles = tiles.size();
            emu::launch(dim3(grid), 128, (D + 8) * 768 + 768,
                        [&, heads = heads, window = window] { kernel(D, &st, tiles.data(), table.data(), q, cache, heads, window, y, ys); });
            if (!first) first = y;
            else
                for (size_t c = 0; c < (size_t)rows * ys; c++)
                    if (first[c] != y[c] && !(std::isnan(fromBf16(y[c])) && std::isnan(fromBf16(first[c]))) &&
                        !((int)(c / ys) >= firstRow[nanValue] && (int)(c / ys) < firstRow[nanValue] + seqs[nanValue].rows && c % ys < (size_t)group * dim)) {
                        printf("grid %d tiles %d differ at row %d col %d\n", grid, most, (int)(c / ys), (int)(c % ys));
                        fails++;
                        break;
                    }
        }
        for (int r : {0, 1, 2, rows - 1, rows - 2})
            for (int c = 0; c < ys; c++)
                if (first[(size_t)r * ys + c] != 0x7A7A) {
                    puts("wrote another row");
                    fails++;
                    break;
                }
        for (int r = 0; r < rows; r++)
            for (int c = heads * dim; c < ys; c++)
                if (first[(size_t)r * ys + c] != 0x7A7A) {
                    puts("wrote pad");
                    fails++;
                    break;
                }
        for (size_t i = 0; i < seqs.size(); i++)
            for (int r = 0; r < seqs[i].rows; r++)
                for (int h = 0; h < heads; h++) {
                    int row = firstRow[i] + r, kv = h / group, pos = seqs[i].context - seqs[i].rows + r, from = window ? std::max(0, pos - window + 1) : 0;
                    std::vector<double> w;
                    double most = -1e300, sum = 0;
                    for (int p = from; p <= pos; p++) {
                        double s = 0;
                        for (int d = 0; d < dim; d++) s += (double)fromBf16(q[((size_t)row * heads + h) * D + d]) * fromBf16(keys[at(i, p, kv) + d]);
                        w.push_back(s / sqrt((double)dim));
                        most = std::max(most, w.back());
                    }
                    for (auto& v : w) sum += v = exp(v - most);
                    bool all = ((int)i == nanKey && kv == kvHeads - 1 && pos >= at1 && from <= at1) || ((int)i == nanQuery && h == heads - 1 && r == at2);
                    bool value = (int)i == nanValue && kv == 0 && pos >= at0 && from <= at0;
                    for (int d = 0; d < dim; d++) {
                        double e = 0;
                        for (size_t p = 0; p < w.size(); p++) e += w[p] * fromBf16(values[at(i, from + p, kv) + d]);
                        e /= sum;
                        float got = fromBf16(first[(size_t)row * ys + h * dim + d]);
                        bool nan = all || (value && d == 3);
                        if (value && d != 3) continue;
                        if (nan != !std::isfinite(got)) {
                            printf("seq %d row %d head %d d %d: %g, expected %g\n", (int)i, r, h, d, got, e);
                            if (++fails > 20) return 1;
                            continue;
                        }
                        if (!nan) worst = std::max(worst, fabs(got - e) / (1 + fabs(e)));
                    }
                }
        if (!(worst < 1e-2)) fails++;
        printf("(%d,%d,%d,%d,%d): %.1e\n", heads, kvHeads, dim, bs, window, worst);
        fflush(stdout);
    }
    printf("%d fails\n", fails);
    return fails;
}
