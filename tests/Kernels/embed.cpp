#include "emulator.h"
#include "embed.cu"
#include <random>
std::mt19937 rng(3);
float rnd() { return (rng() % 20001) / 10000.f - 1; }
template <class T>
T* room(size_t n) {
    T* p = (T*)aligned_alloc(64, (n * sizeof(T) + 127) / 64 * 64);
    memset(p, 0xFF, n * sizeof(T));
    return p;
}
int fails = 0;
template <class F, class T, class K>
void check(const char* name, K launch, bool take) {
    for (auto [cols, fs, ts, rows, grid] :
         {std::tuple{64, 64, 64, 5, 7}, {77, 80, 80, 3, 2}, {77, 77, 79, 4, 9}, {8, 12, 8, 3, 1}, {1, 1, 1, 2, 2}, {2056, 2056, 2056, 3, 3}}) {
        int vocab = 11;
        F* from = room<F>(vocab * fs);
        T* to = room<T>((rows + 1) * ts);
        for (int i = 0; i < vocab * fs; i++) store(from + i, rnd());
        std::vector<int> idx = {3, take ? 10 : -1, take ? 0 : -2, 4, 7}, drawn = {9, -1};
        Step step = {};
        (take ? step.logitRows : step.rows) = rows;
        emu::launch(dim3(grid), 128, 0, [&] { launch(&step, idx.data(), drawn.data(), from, fs, cols, to, ts); });
        for (int r = 0; r <= rows; r++)
            for (int c = 0; c < ts; c++) {
                T poison, got = to[r * ts + c], want;
                memset(&poison, 0xFF, sizeof poison);
                want = poison;
                if (r < rows && c < cols) {
                    int t = idx[r] >= 0 ? idx[r] : std::max(drawn[~idx[r]], 0);
                    store(&want, valueOf(from[t * fs + c]));
                }
                if (memcmp(&got, &want, sizeof got)) {
                    fails++;
                    printf("%s cols %d row %d col %d\n", name, cols, r, c);
                    goto next;
                }
            }
    next:;
    }
}
int main() {
#define E(N, F, T) \
    check<F, T>(   \
        #N, [](const Step* s, const int* i, const int* d, const F* f, int fs, int c, T* t, int ts) { N(s, i, d, f, fs, c, t, ts); }, false);
#define R(N, F, T) \
    check<F, T>(   \
        #N, [](const Step* s, const int* i, const int* d, const F* f, int fs, int c, T* t, int ts) { N(s, i, f, fs, c, t, ts); }, true);
    E(embedFull, u16, float)
    E(embedOperand, u16, u16) E(embedFull_f32, float, float) E(embedOperand_f32, float, u16) R(takeRows_full, float, float) R(takeRows_operand, u16, u16)
        R(takeRows_round, float, u16) printf("%d fails\n", fails);
    return fails;
}
