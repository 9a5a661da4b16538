#include "emulator.h"
#include "lora.cuh"
#include "finish.cuh"
#include "finish.cu"
#include "adapters.h"

// The kernels alone, on one whole sum as a library leaves it; in a chain they are tested with it (chain.cpp).
static void heads() {
    for (auto [rows, heads, kvHeads, dim, norms] : {std::tuple{5, 4, 2, 64, 1}, {2, 3, 1, 20, 0}, {3, 2, 1, 160, 1}}) {
        const int columns = (heads + 2 * kvHeads) * dim, stride = r8(columns), dimStride = (dim + 15) / 16 * 16, blockSize = 4, half = dim / 2;
        Step step = {rows};
        std::vector<int> adapterOf(rows, -1), positions, slots;
        std::vector<float> frequencies, norm;
        for (int r = 0; r < rows; r++) { positions.push_back(r * 911); slots.push_back(r * 5 + 2); }
        for (int i = 0; i < half; i++) frequencies.push_back(powf(10000, -2.f * i / dim));
        for (int i = 0; i < dim; i++) norm.push_back(1 + rnd() / 2);
        F32x2* turns = room<F32x2>(rows * half);
        emu::launch(dim3(rows + 2), 128, 16, [&] { turnsOf(&step, positions.data(), frequencies.data(), half, turns); });
        float* y = room<float>(rows * stride);
        for (int i = 0; i < rows * stride; i++) y[i] = rnd();
        u16 *q = room<u16>(rows * heads * dimStride), *keys = room<u16>(40 * kvHeads * dimStride), *values = room<u16>(40 * kvHeads * dimStride);
        Sums sums = {y, 0, nullptr, nullptr, nullptr, nullptr, stride, columns};
        Finish f = {Rope, columns, nullptr, q, nullptr, nullptr, 0, 0, slots.data(), turns, norms ? norm.data() : nullptr, norms ? norm.data() : nullptr, 1e-6f, heads, {keys, values, blockSize, kvHeads, dim, dimStride}};
        emu::launch(dim3(((heads + 2 * kvHeads) * ((rows + 1) / 2) + 7) / 8), 256, 16, [&] { rope(&step.rows, adapterOf.data(), sums, f); });
        Worst worst;
        for (int r = 0; r < rows; r++)
            for (int n = 0; n < heads + 2 * kvHeads; n++) {
                std::vector<double> v(y + r * stride + n * dim, y + r * stride + (n + 1) * dim);
                v.resize(dimStride);
                const bool rotated = n < heads + kvHeads;
                double squares = 0;
                for (int i = 0; i < dim; i++) squares += v[i] * v[i];
                for (int i = 0; rotated && norms && i < dim; i++) v[i] *= norm[i] / sqrt(squares / dim + 1e-6);
                for (int i = 0; rotated && i < half; i++) {
                    const double angle = (float)positions[r] * frequencies[i], a = v[i], b = v[i + half];
                    v[i] = a * cos(angle) - b * sin(angle);
                    v[i + half] = b * cos(angle) + a * sin(angle);
                }
                const u16* got = n < heads ? q + (r * heads + n) * dimStride
                                           : (rotated ? keys : values) + ((slots[r] / blockSize * kvHeads + (n - heads) % kvHeads) * blockSize + slots[r] % blockSize) * dimStride;
                for (int i = 0; i < dimStride; i++) worst.see(fromBf16(got[i]), v[i]);
            }
        expectBelow("heads", worst.relative(), 4e-3);
    }
}

int main() {
    heads();
    for (auto [rows, columns] : {std::pair{1, 5}, {7, 136}, {6, 1027}, {3, 256}}) {
        const int stride = r8(columns), tiles = (columns + 127) / 128, twos = (rows + 1) / 2;
        Step step = {rows};
        std::vector<int> adapterOf(rows, -1);
        float *x = room<float>(rows * stride), *y = room<float>(rows * 2 * stride), *weight = room<float>(columns), *squares = room<float>(rows * tiles), *bias = room<float>(2 * columns), *full = room<float>(rows * 2 * stride);
        u16 *h = room<u16>(rows * stride), *taken = room<u16>(rows * stride);
        std::vector<double> before(rows * columns), after(rows * columns);
        for (int c = 0; c < columns; c++) weight[c] = 1 + rnd() / 2;
        for (int c = 0; c < 2 * columns; c++) bias[c] = rnd();
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < columns; c++) before[r * columns + c] = x[r * stride + c] = rnd();
        const auto finish = [&](int kind, float* to, u16* out) {
            Finish f = {};
            f.kind = kind; f.columns = columns; f.x = to; f.out = out; f.xStride = stride; f.outStride = stride; f.squares = squares; f.weight = weight;
            return f;
        };
        // A norm of x, taken in the opposite order.
        Finish norm = finish(Residual, x, h);
        emu::launch(dim3((tiles * twos + 7) / 8), 256, 16, [&] { residual(&step.rows, adapterOf.data(), Sums(), norm); });
        std::vector<int> order;
        for (int r = rows - 1; r >= 0; r--) order.push_back(r);
        emu::launch(dim3(rows + 2), 256, 16, [&] { takeNormed(&step.rows, order.data(), x, stride, squares, weight, 1e-5f, columns, taken, nullptr, stride); });
        emu::launch(dim3(rows), 256, 16, [&] { takeNormed(&step.rows, nullptr, x, stride, squares, weight, 1e-5f, columns, nullptr, full, stride); });
        Worst products, normed, exact;
        std::vector<double> factors;
        for (int r = 0; r < rows; r++) {
            double sum = 0;
            for (int c = 0; c < columns; c++) sum += before[r * columns + c] * before[r * columns + c];
            factors.push_back(1 / sqrt(sum / columns + 1e-5));
            for (int c = 0; c < columns; c++) {
                const double v = before[r * columns + c] * weight[c];
                products.see(fromBf16(h[r * stride + c]), v);
                normed.see(fromBf16(taken[(rows - 1 - r) * stride + c]), v * factors[r]);
                exact.see(full[r * stride + c], v * factors[r]);
            }
        }
        expectBelow("x·weight", products.relative(), 4e-3);
        expectBelow("a norm", normed.relative(), 4e-3);
        expectBelow("a norm in fp32", exact.relative(), 1e-6);

        // Sums of a product of that norm, twice as wide, as they are and as gate and up; and half of them added to x.
        const int wide = r8(2 * columns);
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < 2 * columns; c++) y[r * wide + c] = rnd();
        Sums sums = {y, 0, nullptr, bias, nullptr, squares, wide, columns, 1e-5f};
        Finish plain = finish(Plain, full, nullptr), gated = finish(SwiGlu, nullptr, taken);
        plain.columns = 2 * columns; plain.xStride = wide;
        emu::launch(dim3(((2 * columns + 127) / 128 * twos + 7) / 8), 256, 16, [&] { ::plain(&step.rows, adapterOf.data(), sums, plain); });
        emu::launch(dim3((tiles * twos + 7) / 8), 256, 16, [&] { swiGlu(&step.rows, adapterOf.data(), sums, gated); });
        Worst whole, gates, added;
        const auto yOf = [&](int r, int c) { return y[r * wide + c] * factors[r] + bias[c]; };
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < 2 * columns; c++) {
                whole.see(full[r * wide + c], yOf(r, c));
                if (c < columns) gates.see(fromBf16(taken[r * stride + c]), yOf(r, c) / (1 + exp(-yOf(r, c))) * yOf(r, columns + c));
            }
        sums.squares = nullptr; sums.bias = nullptr;
        emu::launch(dim3((tiles * twos + 7) / 8), 256, 16, [&] { residual(&step.rows, adapterOf.data(), sums, norm); });
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < columns; c++) added.see(x[r * stride + c], before[r * columns + c] + y[r * wide + c]);
        expectBelow("y", whole.relative(), 1e-6);
        expectBelow("SwiGLU", gates.relative(), 4e-3);
        expectBelow("the residual", added.relative(), 1e-6);
    }
    return finished();
}
