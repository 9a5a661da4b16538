#include "emulator.h"
#include "lora.cuh"
#include "finish.cuh"
#include "chain.cu"
#include "adapters.h"

static const int Geometries[][4] = {{14, 2, 4, 4}, {7, 1, 7, 7}, {8, 0, 1, 1}, {16, 0, 8, 8}, {0, 4, 1, 1}, {5, 3, 6, 8}, {3, 2, 7, 5}, {28, 4, 4, 8}, {200, 0, 1, 1}, {0, 0, 1, 1}, {2, 1, 9, 3}};

// A weight, its bias, and how its bytes are shared out among blocks.
struct Matrix {
    int outputs, inputs, stride, blocks, most = 1;
    std::vector<float> W, bias;
    u16* w;
    std::vector<unsigned char> parts;
    Matrix(int o, int h, int most_, bool biased) : outputs(o), inputs(h), stride(r8(h)) {
        const int tiles = (o + TileRows - 1) / TileRows, steps = (h + StageColumns - 1) / StageColumns;
        blocks = std::min(most_, tiles * steps);
        w = room<u16>((size_t)o * stride);
        for (int r = 0; r < o; r++)
            for (int c = 0; c < stride; c++) {
                if (c < h) W.push_back(rnd());
                w[(size_t)r * stride + c] = c < h ? toBf16(W.back()) : 0;
            }
        for (int c = 0; biased && c < o; c++) bias.push_back(rnd());
        for (long long t = 0, units = (long long)tiles * steps; t < tiles; t++) {
            int n = 0;      // blocks whose share meets the tile
            for (int b = 0; b < blocks; b++) n += b * units / blocks < (t + 1) * steps && (b + 1) * units / blocks > t * steps;
            parts.push_back(n);
            most = std::max(most, n);
        }
    }
};

// One linear of a chain with everything that it writes, and what it should come to.
struct Link {
    Matrix m;
    int rows, stride, parts;
    std::vector<int> begins;
    std::vector<Module> modules;        // [adapter][part]
    std::vector<Lora> table;
    std::vector<float> z;
    std::vector<u32> counters;
    Op op = {};
    Link(int outputs, int inputs, int rows, int blocks, bool biased, int kind, std::vector<int> begins, int adapters, int which, const int* adapterOf)
        : m(outputs, inputs, blocks, biased), rows(rows), stride(r8(outputs)), parts(begins.size()), begins(begins) {
        for (int a = 0; a < adapters; a++)
            for (int p = 0; p < parts; p++) {
                auto& g = Geometries[(which + a * 3 + p) % 11];
                modules.push_back(make(inputs, (p + 1 < parts ? begins[p + 1] : outputs) - begins[p], g[0], g[1], g[2], g[3]));
            }
        table = tableOf(modules);
        const int zStride = 208, tiles = m.parts.size();
        z.assign((size_t)3 * rows * MaxSlices * zStride, NAN);
        counters.assign((3 + tiles) * CounterStride, 0);
        op.w = m.w;
        op.outputs = outputs; op.inputs = inputs; op.wStride = m.stride; op.xStride = r8(inputs); op.blocks = m.blocks;
        op.tiles = counters.data() + 3 * CounterStride;
        op.counters = counters.data();
        float* y = room<float>((size_t)(m.most + 1) * rows * stride);
        op.sums = {y, (long long)rows * stride, m.parts.data(), biased ? m.bias.data() : nullptr, parts && adapters ? y + (size_t)m.most * rows * stride : nullptr, nullptr, stride, inputs, 1e-5f, stride};
        if (adapters) {
            op.site = {table.data(), parts, parts, kind, zStride, z.data(), nullptr, rows * MaxSlices * zStride, 0, parts > 1 ? begins[1] : 0, parts > 2 ? begins[2] : 0, outputs};
            setRuns(op.site);
        }
    }
    int slices() const {
        int most = 0;
        for (auto& m : modules) if (m.d.rowsA) most = std::max(most, m.d.slices);
        return most;
    }
    // y of a row of x in double; factor is its norm's.
    std::vector<double> yOf(int row, int adapter, double factor) const {
        std::vector<float> x(op.inputs);
        for (int c = 0; c < op.inputs; c++) x[c] = fromBf16(op.x[(size_t)row * op.xStride + c]);
        std::vector<double> y(op.outputs, 0.0);
        for (int o = 0; o < op.outputs; o++)
            for (int c = 0; c < op.inputs; c++) y[o] += (double)m.W[(size_t)o * op.inputs + c] * x[c];
        for (int p = 0; adapter >= 0 && p < parts; p++) {
            const Module& module = modules[adapter * parts + p];
            const auto added = addedOf(module, zOf(module, x.data()));
            for (size_t o = 0; o < added.size(); o++) y[begins[p] + o] += added[o];
        }
        for (int o = 0; o < op.outputs; o++) y[o] = y[o] * factor + (m.bias.size() ? m.bias[o] : 0);
        return y;
    }
};

static int columnTiles(int rows) { return rows <= 8 ? 1 : rows <= 16 ? 2 : rows <= 32 ? 4 : rows <= 64 ? 8 : 16; }

static void launch(std::vector<Link*> links, const Step& step, const int* adapterOf, int blocks) {
    static Chain chain;
    chain = {};
    chain.step = &step; chain.adapterOf = adapterOf; chain.count = links.size();
    for (size_t i = 0; i < links.size(); i++) chain.ops[i] = links[i]->op;
    emu::launchTogether(dim3(blocks), 512, SHARED_LIMIT, [&] {
        switch (columnTiles(links[0]->rows)) {
            case 1: chain_1(chain); break;
            case 2: chain_2(chain); break;
            case 4: chain_4(chain); break;
            case 8: chain_8(chain); break;
            case 16: chain_16(chain); break;
        }
    });
}

// Rows 0 … rows − 1 under adapters 0 to 2 or none, and the arrays that name them.
struct Rows {
    std::vector<int> adapterOf;
    Step step = {};
    Rows(int rows, bool adapted) {
        for (int r = 0; r < rows; r++) adapterOf.push_back(adapted && r % 5 != 4 ? r * 3 / std::max(rows, 3) : -1);
        step.rows = rows;
        step.shortRows = rows;
    }
};

// One product, its sums finished as they are: every column tile count, shares that cut tiles anywhere, ragged everything. The step has two rows fewer
// than there is room for: nothing is written there. A row's bits are those of the row alone.
static void products() {
    int which = 0;
    for (auto [rows, h, o, blocks] : {std::tuple{1, 96, 160, 5}, {3, 257, 300, 7}, {14, 520, 177, 3}, {33, 200, 515, 4}, {62, 136, 256, 6}, {1, 7, 101, 2}, {5, 515, 136, 6}, {9, 64, 700, 2},
                                      {100, 72, 140, 3}, {4, 4100, 164, 7}}) {
        const bool adapted = ++which % 4 != 0;
        Rows those(rows, adapted);
        const int form = rows + 2;
        Link link(o, h, form, blocks, which % 2, 1, {0, 50}, adapted ? 3 : 0, which, those.adapterOf.data());
        u16* x = room<u16>((size_t)form * r8(h));
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < h; c++) x[r * r8(h) + c] = toBf16(rnd());
        link.op.x = x;
        link.op.rows = &those.step.rows;
        float *y = room<float>((size_t)form * link.stride), *alone = room<float>((size_t)form * link.stride);
        link.op.finish.kind = Plain; link.op.finish.columns = o; link.op.finish.x = y; link.op.finish.xStride = link.stride;
        those.step.slices[1] = link.slices();
        launch({&link}, those.step, those.adapterOf.data(), blocks);
        Worst worst;
        for (int r = 0; r < rows; r++) {
            const auto expected = link.yOf(r, those.adapterOf[r], 1);
            for (int c = 0; c < o; c++) worst.see(y[(size_t)r * link.stride + c], expected[c]);
        }
        expectBelow("a product", worst.relative(), 1e-5);
        bool beyond = false;
        for (size_t i = (size_t)rows * link.stride; i < (size_t)form * link.stride; i++) beyond |= __float_as_uint(y[i]) != 0xFFFFFFFF;
        expectBelow("rows beyond the step", beyond, 0);
        for (int r : {0, rows / 2, rows - 1}) {
            Rows one(1, false);
            one.adapterOf[0] = those.adapterOf[r];
            one.step.slices[1] = those.step.slices[1];
            link.rows = 1;
            link.op.x = x + (size_t)r * r8(h);
            link.op.rows = &one.step.rows;
            link.op.finish.x = alone;
            std::fill(link.counters.begin(), link.counters.end(), 0);
            launch({&link}, one.step, one.adapterOf.data(), blocks);
            expectBelow("a row alone", memcmp(alone, y + (size_t)r * link.stride, o * sizeof(float)) != 0, 0);
        }
    }
}

// A layer's way from one attention to the next, and to a norm that nobody has asked for.
static void chains() {
    int which = 0;
    for (auto [rows, attended, hidden, inner, heads, kvHeads, dim, norms, blocks] : {std::tuple{5, 48, 136, 200, 4, 2, 24, 0, 5}, {1, 130, 257, 131, 3, 1, 64, 1, 3}, {17, 64, 128, 256, 2, 2, 96, 1, 4},
                                                                                     {66, 40, 72, 40, 2, 1, 16, 0, 2}, {3, 40, 96, 64, 2, 1, 20, 1, 3}, {5, 72, 80, 48, 2, 1, 200, 1, 3}}) {
        which++;
        Rows those(rows, which != 3);
        const int adapters = which != 3 ? 3 : 0, *on = those.adapterOf.data(), blockSize = 7, dimStride = (dim + 15) / 16 * 16, qkvColumns = (heads + 2 * kvHeads) * dim;
        Link output(hidden, attended, rows, blocks, false, 1, {0}, adapters, which, on), gateUp(2 * inner, hidden, rows, blocks, which == 1, 2, {0, inner}, adapters, which + 1, on),
            down(hidden, inner, rows, std::max(1, blocks - 1), false, 3, {0}, adapters, which + 2, on),
            qkv(qkvColumns, hidden, rows, blocks, which == 1, 0, {0, heads * dim, (heads + kvHeads) * dim}, adapters, which + 3, on);
        std::vector<Link*> links = {&output, &gateUp, &down, &qkv};
        for (auto* l : links) {
            l->op.rows = &those.step.rows;
            those.step.slices[l->op.site.kind] = l->slices();
        }
        const int hs = r8(hidden), is = r8(inner), tiles = (hidden + 127) / 128;
        u16 *x0 = room<u16>((size_t)rows * r8(attended)), *h1 = room<u16>((size_t)rows * hs), *act = room<u16>((size_t)rows * is), *h2 = room<u16>((size_t)rows * hs);
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < attended; c++) x0[r * r8(attended) + c] = toBf16(rnd());
        float *x = room<float>((size_t)rows * hs), *squares1 = room<float>(rows * tiles), *squares2 = room<float>(rows * tiles), *norm1 = room<float>(hidden), *norm2 = room<float>(hidden);
        std::vector<double> before((size_t)rows * hidden);
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < hidden; c++) before[(size_t)r * hidden + c] = x[(size_t)r * hs + c] = rnd();
        for (int c = 0; c < hidden; c++) { norm1[c] = 1 + rnd() / 2; norm2[c] = 1 + rnd() / 2; }
        std::vector<int> positions, slots;
        for (int r = 0; r < rows; r++) { positions.push_back(r * 37 % 1000); slots.push_back((r * 13 + 5) % 700); }
        std::vector<float> frequencies, queryNorm, keyNorm;
        for (int i = 0; i < dim / 2; i++) frequencies.push_back(powf(10000, -2.f * i / dim));
        for (int i = 0; i < dim; i++) { queryNorm.push_back(1 + rnd() / 2); keyNorm.push_back(1 + rnd() / 2); }
        u16 *q = room<u16>((size_t)rows * heads * dimStride), *keys = room<u16>((size_t)101 * kvHeads * blockSize * dimStride), *values = room<u16>((size_t)101 * kvHeads * blockSize * dimStride);

        output.op.x = x0;
        output.op.finish = {Residual, hidden, x, h1, squares1, norm1, hs, hs};
        gateUp.op.x = h1;
        gateUp.op.sums.squares = squares1;
        gateUp.op.finish = {SwiGlu, inner, nullptr, act, nullptr, nullptr, 0, is};
        down.op.x = act;
        down.op.finish = {Residual, hidden, x, h2, squares2, norm2, hs, hs};
        qkv.op.x = h2;
        qkv.op.sums.squares = squares2;
        std::vector<F32x2> turns;
        for (int r = 0; r < rows; r++)
            for (float f : frequencies) turns.push_back({cosf(positions[r] * f), sinf(positions[r] * f)});
        qkv.op.finish = {Rope, qkvColumns, nullptr, q, nullptr, nullptr, 0, 0, slots.data(), turns.data(), norms ? queryNorm.data() : nullptr, norms ? keyNorm.data() : nullptr, 1e-6f, heads,
                         {keys, values, blockSize, kvHeads, dim, dimStride}};
        launch(links, those.step, on, blocks);

        Worst h, gated, sum, head;
        for (int r = 0; r < rows; r++) {
            const auto factor = [&](const std::vector<double>& x) {
                double squares = 0;
                for (double v : x) squares += v * v;
                return 1 / sqrt(squares / hidden + 1e-5);
            };
            std::vector<double> residual(before.begin() + (size_t)r * hidden, before.begin() + (size_t)(r + 1) * hidden);
            auto y = output.yOf(r, on[r], 1);
            for (int c = 0; c < hidden; c++) h.see(fromBf16(h1[(size_t)r * hs + c]), (residual[c] += y[c]) * norm1[c]);
            y = gateUp.yOf(r, on[r], factor(residual));
            for (int c = 0; c < inner; c++) gated.see(fromBf16(act[(size_t)r * is + c]), y[c] / (1 + exp(-y[c])) * y[inner + c]);
            y = down.yOf(r, on[r], 1);
            for (int c = 0; c < hidden; c++) {
                sum.see(x[(size_t)r * hs + c], residual[c] += y[c]);
                h.see(fromBf16(h2[(size_t)r * hs + c]), residual[c] * norm2[c]);
            }
            y = qkv.yOf(r, on[r], factor(residual));
            for (int n = 0; n < heads + 2 * kvHeads; n++) {
                std::vector<double> v(dimStride, 0.0);
                for (int i = 0; i < dim; i++) v[i] = y[n * dim + i];
                const bool rotated = n < heads + kvHeads;
                if (norms && rotated) {
                    double squares = 0;
                    for (double e : v) squares += e * e;
                    for (int i = 0; i < dim; i++) v[i] *= (n < heads ? queryNorm : keyNorm)[i] / sqrt(squares / dim + 1e-6);
                }
                for (int i = 0; rotated && i < dim / 2; i++) {
                    const double angle = (float)positions[r] * frequencies[i], a = v[i], b = v[i + dim / 2];
                    v[i] = a * cos(angle) - b * sin(angle);
                    v[i + dim / 2] = b * cos(angle) + a * sin(angle);
                }
                const u16* got = n < heads ? q + ((size_t)r * heads + n) * dimStride
                                           : (rotated ? keys : values) + ((size_t)(slots[r] / blockSize * kvHeads + (n - heads) % kvHeads) * blockSize + slots[r] % blockSize) * dimStride;
                for (int i = 0; i < dimStride; i++) head.see(fromBf16(got[i]), v[i]);
            }
        }
        // Again as the backend lays it out: one place for both norms, both sums of what is added to the residual, and every z; with more blocks than shares.
        const auto written = [&] {
            std::vector<u16> all;
            const auto keep = [&](const void* p, size_t bytes) { all.insert(all.end(), (const u16*)p, (const u16*)p + bytes / 2); };
            keep(act, (size_t)rows * is * 2); keep(x, (size_t)rows * hs * 4); keep(h2, (size_t)rows * hs * 2); keep(q, (size_t)rows * heads * dimStride * 2);
            keep(keys, (size_t)101 * kvHeads * blockSize * dimStride * 2); keep(values, (size_t)101 * kvHeads * blockSize * dimStride * 2);
            return all;
        };
        const auto apart = written();
        std::vector<float> z(output.z.size() * 3, NAN);
        float* sums = room<float>((size_t)(std::max(output.m.most, down.m.most) + 1) * rows * output.stride);
        for (auto* l : links) {
            std::fill(l->counters.begin(), l->counters.end(), 0);
            if (adapters) l->op.site.z = z.data();
        }
        for (auto* l : {&output, &down}) {
            l->op.sums.y = sums;
            if (adapters) l->op.sums.extra = sums + (size_t)l->m.most * rows * l->stride;
        }
        output.op.finish.out = h2; output.op.finish.squares = squares2;
        gateUp.op.x = h2; gateUp.op.sums.squares = squares2;
        // And launched while what makes its input still runs: nothing of it may be read, and nothing written, before that is over.
        const std::vector<u16> input(x0, x0 + (size_t)rows * r8(attended));
        memset(x0, 0xFF, input.size() * 2);
        for (auto [p, bytes] : {std::pair{(void*)x, (size_t)rows * hs * 4}, {(void*)act, (size_t)rows * is * 2}, {(void*)h2, (size_t)rows * hs * 2}, {(void*)q, (size_t)rows * heads * dimStride * 2}}) memset(p, 0xFF, bytes);
        emu::during([&] {
            bool early = false;
            for (auto* l : links)
                for (u32 c : l->counters) early |= c != 0;
            for (size_t i = 0; i < (size_t)rows * is; i++) early |= act[i] != 0xFFFF;
            for (size_t i = 0; i < (size_t)rows * output.stride; i++) early |= __float_as_uint(sums[i]) != 0xFFFFFFFF;
            for (size_t i = 0; i < z.size(); i++) early |= !std::isnan(z[i]);
            expectBelow("written too early", early, 0);
            std::copy(input.begin(), input.end(), x0);
            for (int r = 0; r < rows; r++)
                for (int c = 0; c < hidden; c++) x[(size_t)r * hs + c] = before[(size_t)r * hidden + c];
        });
        launch(links, those.step, on, blocks + 2);
        expectBelow("bits that depend on the layout", written() != apart, 0);

        expectBelow("x·weight", h.relative(), 4e-3);
        expectBelow("SwiGLU", gated.relative(), 4e-3);
        expectBelow("the residual", sum.relative(), 1e-5);
        expectBelow("heads", head.relative(), 4e-3);
    }
}

// As Sums, Site, Finish, Op, Chain and LoraEntry in C#, which CudaLayoutTests holds to the same numbers.
static_assert(sizeof(Sums) == 80 && sizeof(Site) == 72 && sizeof(Finish) == 120 && sizeof(Op) == 336 && sizeof(Chain) == 2432 && sizeof(Lora) == 80);
static_assert(sizeof(Room) == 2208 + 2048 * (SHARED_LIMIT >= 200000 ? 4 : SHARED_LIMIT >= 150000 ? 2 : 1));

int main() {
    products();
    chains();
    return finished();
}
