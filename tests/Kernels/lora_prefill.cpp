#include "emulator.h"
#include "lora.cuh"
#include "finish.cuh"
#include "finish.cu"
#undef FINISH
#include "lora_prefill.cu"
#include "adapters.h"

static const int geometries[][4] = {{14, 2, 4, 4}, {7, 1, 7, 7}, {8, 0, 1, 1},    {16, 0, 8, 8}, {0, 4, 1, 1},  {5, 3, 6, 8},
                                    {3, 2, 7, 5},  {28, 4, 4, 8}, {200, 0, 1, 1}, {0, 0, 1, 1},  {0, 5, 4, 11}, {61, 9, 3, 13}, {500, 3, 2, 4}};
static const int kinds = sizeof geometries / sizeof geometries[0], highest = 512;

// Three adapters of a site and rows of x. Part p of adapter a is of geometry which + 3a + p.
struct Case {
    int rows, inputs, parts, xStride, columns, yStride, bad;
    std::vector<float> X;
    u16* x;
    std::vector<Module> modules;
    std::vector<Lora> table;
    std::vector<int> adapterOf;
    Site site = {};
    float* y;

    Case(int which, int rows, int inputs, std::vector<int> outputs) : rows(rows), inputs(inputs), parts(outputs.size()), X(rows * inputs), adapterOf(rows, -1) {
        xStride = r8(inputs);
        x = room<u16>(rows * xStride);
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < inputs; c++) x[r * xStride + c] = toBf16(X[r * inputs + c] = rnd());
        bad = rows > 10 ? rows / 2 : -1;  // a row's NaN stays its own
        if (bad >= 0) x[bad * xStride + inputs / 2] = 0x7FC0;
        for (int a = 0; a < 3; a++)
            for (int p = 0; p < parts; p++) {
                auto& g = geometries[(which + a * 3 + p) % kinds];
                modules.push_back(make(inputs, outputs[p], g[0], g[1], g[2], g[3]));
            }
        table = tableOf(modules);
        columns = 0;
        for (int o : outputs) columns += o;
        yStride = r8(columns) + 8;
        site.table = table.data();
        site.perAdapter = site.parts = parts;
        site.kind = 2;
        site.zStride = highest;
        site.second = outputs[0];
        site.third = outputs[0] + (parts > 1 ? outputs[1] : 0);
        site.columns = columns;
        site.wholePart = rows * highest;
        site.whole = room<float>((size_t)parts * site.wholePart);
        y = room<float>((size_t)rows * yStride);
    }
    const Module* moduleOf(int row, int part) const { return adapterOf[row] < 0 ? nullptr : &modules[adapterOf[row] * parts + part]; }
    std::vector<double> z(int row, int part) const { return zOf(*moduleOf(row, part), &X[row * inputs]); }

    // y against the plain loops; of rows that are not `there` nothing may be written, nor beyond the columns.
    void expectY(const char* what, const std::vector<bool>& there) {
        Worst worst;
        bool beyond = false;
        for (int r = 0; r < rows; r++) {
            std::vector<double> expected(columns, 0.0);
            for (int p = 0; p < parts && there[r]; p++)
                if (auto m = moduleOf(r, p)) {
                    auto added = addedOf(*m, z(r, p));
                    std::copy(added.begin(), added.end(), expected.begin() + partBegin(site, p));
                }
            for (int c = 0; c < yStride; c++) {
                const float got = y[(size_t)r * yStride + c];
                if (!there[r] || c >= columns) beyond |= __float_as_uint(got) != 0xFFFFFFFF;
                else if (r != bad || !moduleOf(r, 0)) worst.see(got, expected[c]);
            }
        }
        expectBelow(what, worst.relative(), 1e-5);
        expectBelow("written beyond y", beyond, 0);
    }
};

static void testShort(int which, int rows, int inputs, std::vector<int> outputs, int blocks) {
    Case c(which, rows, inputs, outputs);
    std::vector<int> shortRows;
    std::vector<bool> there(rows, false);
    for (int r = 0; r < rows; r++) {
        c.adapterOf[r] = (int)(rng() % 4) - 1;
        if (rng() % 4 || rows < 4) shortRows.push_back(r), there[r] = c.adapterOf[r] >= 0;
    }
    std::shuffle(shortRows.begin(), shortRows.end(), rng);
    const int n = shortRows.size();
    Step step = {rows, rows, n};
    for (auto& d : c.table)
        if (d.rowsA) step.slices[c.site.kind] = std::max(step.slices[c.site.kind], d.slices);
    setRuns(c.site);
    c.site.zPart = n * MaxSlices * highest;
    c.site.z = room<float>((size_t)c.parts * c.site.zPart);
    std::vector<int> shortAdapters;
    for (int r : shortRows) shortAdapters.push_back(c.adapterOf[r]);
    u32 shrunk = 0;
    emu::launchTogether(dim3(blocks), 256, 8 * sizeof(Room),
                        [&] { adaptShort(&step, shortAdapters.data(), shortRows.data(), c.x, c.xStride, c.site, &shrunk, c.y, c.yStride); });
    Worst worst;
    for (int i = 0; i < n; i++)
        for (int p = 0; p < c.parts; p++) {
            const int r = shortRows[i];
            if (!c.moduleOf(r, p) || r == c.bad) continue;
            auto z = c.z(r, p);
            for (size_t k = 0; k < z.size(); k++) {
                double got = 0;
                for (int s = 0; s < c.moduleOf(r, p)->d.slices; s++) got += c.site.z[(size_t)p * c.site.zPart + ((size_t)i * MaxSlices + s) * highest + k];
                worst.see(got, z[k]);
            }
        }
    expectBelow("adaptShort z", worst.relative(), 1e-5);
    c.expectY("adaptShort y", there);
}

// Tiles of 1 to 64 rows, of an adapter, the base model, or rows one by one; what is added to the latter is in memory.
static void testLong(int which, int rows, int inputs, std::vector<int> outputs, int blocks) {
    Case c(which, rows, inputs, outputs);
    std::vector<AdapterTile> tiles;
    for (int r = 0; r < rows;) {
        const int n = std::min(rows - r, 1 + (int)(rng() % 64)), of[] = {0, 1, -1, 2, OneByOne}, adapter = of[(tiles.size() + which) % 5];
        tiles.push_back({r, n, adapter, 0});
        for (int i = 0; i < n; i++) c.adapterOf[r + i] = adapter == OneByOne ? (int)(rng() % 4) - 1 : adapter;
        r += n;
    }
    std::vector<bool> oneByOne(rows, false);
    for (auto& t : tiles) std::fill_n(oneByOne.begin() + t.firstRow, t.rows, t.adapter == OneByOne);
    Step step = {rows};
    step.adapterTiles = tiles.size();
    int ranks = 0;
    for (int a = 0; a < 3; a++) {
        int sum = 0;
        for (int p = 0; p < c.parts; p++) sum += c.table[a * c.parts + p].shared + c.table[a * c.parts + p].unshared;
        ranks = std::max(ranks, sum);
    }
    const int splits = (inputs + SplitColumns - 1) / SplitColumns, partialStride = (ranks + 3) / 4 * 4;
    float* partial = room<float>(tiles.size() * splits * TileRows * partialStride);
    std::vector<u32> arrived(tiles.size(), 0);
    const auto shrink = [&](int grid, const Step& step, const AdapterTile* tiles) {
        emu::launch(dim3(grid), LongThreads, LongStages * LongStageBytes,
                    [&] { shrinkLong(&step, tiles, c.x, c.xStride, inputs, c.site, partial, partialStride, arrived.data()); });
    };
    for (int again = 0; again < 2; again++) shrink(blocks, step, tiles.data());
    for (u32 n : arrived) expectBelow("arrived", n, 0);

    Worst worst;
    bool beyond = false;
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < c.parts; p++) {
            auto z = c.moduleOf(r, p) && !oneByOne[r] ? c.z(r, p) : std::vector<double>();
            for (int k = 0; k < highest; k++) {
                const float got = c.site.whole[(size_t)p * c.site.wholePart + (size_t)r * highest + k];
                if (k >= (int)z.size()) beyond |= __float_as_uint(got) != 0xFFFFFFFF;
                else if (r != c.bad) worst.see(got, z[k]);
            }
        }
    expectBelow("shrinkLong", worst.relative(), 1e-5);
    expectBelow("written beyond z", beyond, 0);

    // What the adapters add, by plain loops, and the sums that it is added to.
    float *added = room<float>((size_t)rows * c.yStride), *y = room<float>((size_t)rows * c.yStride), *squares = room<float>(rows * 3), *weight = room<float>(c.columns), *bias = room<float>(c.columns);
    for (int r = 0; r < rows; r++) {
        for (int t = 0; t < 3; t++) squares[r * 3 + t] = 1 + rnd();
        for (int n = 0; n < c.columns; n++) y[(size_t)r * c.yStride + n] = rnd();
        for (int p = 0; p < c.parts; p++) {
            const auto m = c.moduleOf(r, p);
            const auto values = m ? addedOf(*m, c.z(r, p)) : std::vector<double>(outputs[p], 0.0);
            for (int n = 0; n < outputs[p]; n++) added[(size_t)r * c.yStride + partBegin(c.site, p) + n] = values[n];
        }
    }
    for (int n = 0; n < c.columns; n++) { weight[n] = 1 + rnd() / 2; bias[n] = rnd(); }
    Sums whole = {y, 0, nullptr, bias, added, squares, c.yStride, 300, 1e-5f, c.yStride}, sums = whole;
    sums.extra = room<float>((size_t)rows * c.yStride);
    for (int r = 0; r < rows; r++)
        if (oneByOne[r]) memcpy(sums.extra + (size_t)r * c.yStride, added + (size_t)r * c.yStride, c.yStride * 4);

    // Each way of finishing, beside the kernel that finds all of it in memory.
    Finish f = {};
    f.xStride = f.outStride = c.yStride;
    f.weight = weight;
    const int one = outputs[0];
    const int dim = c.parts == 3 && outputs[1] == outputs[2] && one % outputs[1] % 4 == 0 ? outputs[1] / (outputs[1] % 64 == 0 ? 2 : 1) : 0;
    f.kind = dim ? Rope : c.parts == 2 && one == outputs[1] ? SwiGlu : c.parts == 1 ? Residual : Plain;
    f.columns = f.kind == SwiGlu ? one : c.columns;
    const int dimStride = (dim + 15) / 16 * 16, kvHeads = dim ? outputs[1] / dim : 0, tilesOfX = (c.columns + 127) / 128;
    std::vector<int> slots;
    std::vector<F32x2> turns;
    for (int r = 0; r < rows; r++) slots.push_back((r * 7 + 3) % rows);
    for (int i = 0; i < rows * (dim / 2); i++) turns.push_back({cosf(i), sinf(i)});
    if (dim) { f.heads = one / dim; f.slots = slots.data(); f.turns = turns.data(); f.cache = {nullptr, nullptr, rows, kvHeads, dim, dimStride}; }
    struct Results { float *x, *squares; u16 *out, *keys, *values; };
    const size_t outs = (size_t)rows * std::max(c.yStride, (f.heads + 1) * dimStride), cached = (size_t)rows * kvHeads * dimStride;
    const auto fresh = [&] {
        Results to = {room<float>((size_t)rows * c.yStride), room<float>((size_t)rows * tilesOfX), room<u16>(outs), room<u16>(cached), room<u16>(cached)};
        for (size_t i = 0; i < (size_t)rows * c.yStride; i++) to.x[i] = i % 7 - 3.f;
        f.x = to.x; f.squares = to.squares; f.out = to.out; f.cache.keys = to.keys; f.cache.values = to.values;
        return to;
    };
    const auto finishTiles = [&](const std::vector<AdapterTile>& tiles) {
        const int columns = f.kind == Rope ? (dim + 31) / 32 * 32 : 2 * TileColumns, count = std::min(3, runsOf(f));
        emu::launch(dim3(tiles.size() * ((runsOf(f) + count - 1) / count)), FinishWarps * 32, 2 * ZBytes + TileRows * 4 * (columns + 8), [&] {
            if (f.kind == Rope) adaptedRope(tiles.data(), c.adapterOf.data(), sums, f, c.site, count);
            else if (f.kind == SwiGlu) adaptedSwiGlu(tiles.data(), c.adapterOf.data(), sums, f, c.site, count);
            else if (f.kind == Residual) adaptedResidual(tiles.data(), c.adapterOf.data(), sums, f, c.site, count);
            else adaptedPlain(tiles.data(), c.adapterOf.data(), sums, f, c.site, count);
        });
    };
    const Results expected = fresh();
    emu::launch(dim3((itemsOf(f, rows) + Warps - 1) / Warps), Warps * 32, 16, [&] {
        if (f.kind == Rope) rope(&rows, c.adapterOf.data(), whole, f);
        else if (f.kind == SwiGlu) swiGlu(&rows, c.adapterOf.data(), whole, f);
        else if (f.kind == Residual) residual(&rows, c.adapterOf.data(), whole, f);
        else plain(&rows, c.adapterOf.data(), whole, f);
    });
    const Results got = fresh();
    finishTiles(tiles);
    Worst full, rounded;
    const auto compare = [&](size_t n, size_t each, auto got, auto expected, Worst& worst, auto rowAt) {
        bool beyond = false;
        for (size_t i = 0; i < n; i++) {
            const int row = rowAt(i / each);
            if (row == c.bad) continue;
            const double a = sizeof *got == 2 ? fromBf16(got[i]) : got[i], b = sizeof *got == 2 ? fromBf16(expected[i]) : expected[i];
            if (std::isnan(b)) beyond |= !std::isnan(a);
            else worst.see(a, b);
        }
        expectBelow("written beyond what is finished", beyond, 0);
    };
    const auto asIs = [](int r) { return r; };
    compare((size_t)rows * c.yStride, c.yStride, got.x, expected.x, full, asIs);
    compare((size_t)rows * tilesOfX, tilesOfX, got.squares, expected.squares, full, asIs);
    if (dim) compare((size_t)rows * f.heads * dimStride, f.heads * dimStride, got.out, expected.out, rounded, asIs);
    else compare((size_t)rows * c.yStride, c.yStride, got.out, expected.out, rounded, asIs);
    const auto bySlot = [&](int line) { return (int)(std::find(slots.begin(), slots.end(), line % rows) - slots.begin()); };          // one block of `rows` positions
    compare(cached, std::max(dimStride, 1), got.keys, expected.keys, rounded, bySlot);
    compare(cached, std::max(dimStride, 1), got.values, expected.values, rounded, bySlot);
    expectBelow("tiles finished, fp32", full.relative(), 1e-5);
    expectBelow("tiles finished, bf16", rounded.relative(), 8e-3);

    // A row alone is the same to the bit.
    const size_t zBytes = (size_t)c.parts * c.site.wholePart * 4;
    std::vector<char> z((char*)c.site.whole, (char*)c.site.whole + zBytes);
    step.adapterTiles = 1;
    const Results alone = fresh();
    std::vector<AdapterTile> ones;
    for (int r = 0; r < rows; r += 7) {
        ones.push_back({r, 1, oneByOne[r] ? OneByOne : c.adapterOf[r], 0});
        shrink(1, step, &ones.back());
    }
    expectBelow("z alone", memcmp(z.data(), c.site.whole, zBytes) != 0, 0);
    finishTiles(ones);
    const int width = dim ? f.heads * dimStride : c.yStride;
    for (int r = 0; r < rows; r += 7) {
        const size_t x = (size_t)r * c.yStride, out = (size_t)r * width, slot = (size_t)slots[r] * dimStride;
        expectBelow("x alone", memcmp(got.x + x, alone.x + x, c.yStride * 4) != 0, 0);
        expectBelow("out alone", memcmp(got.out + out, alone.out + out, width * 2) != 0, 0);
        expectBelow("keys alone", memcmp(got.keys + slot, alone.keys + slot, dimStride * 2) != 0, 0);
    }
}

int main() {
    int which = 0;
    for (auto [rows, inputs, outputs, blocks] : {std::tuple{3, 96, std::vector{160, 64, 64}, 3},
                                                 {7, 257, {300, 131}, 1},
                                                 {5, 1100, {1100}, 4},
                                                 {1, 7, {101}, 2},
                                                 {16, 136, {256, 257}, 12},
                                                 {4, 2304, {50}, 5},
                                                 {2, 3073, {177, 700, 5}, 2},
                                                 {9, 520, {136, 33, 520}, 7},
                                                 {20, 72, {140, 7, 32}, 3},
                                                 {4, 1792, {164, 3000}, 6},
                                                 {6, 200, {515, 96}, 2},
                                                 {8, 4100, {48, 31}, 9}})
        testShort(which++, rows, inputs, outputs, blocks);
    which = 1;
    for (auto [rows, inputs, outputs, blocks] : {std::tuple{64, 96, std::vector{160, 64, 64}, 3},
                                                 {70, 257, {300, 131}, 1},
                                                 {33, 1100, {1100, 40, 8}, 4},
                                                 {1, 7, {101}, 2},
                                                 {130, 136, {256, 257}, 50},
                                                 {90, 2304, {50}, 5},
                                                 {20, 3073, {177, 700, 5}, 2},
                                                 {65, 520, {136, 33, 520}, 7},
                                                 {100, 72, {1400, 72, 36}, 3},
                                                 {40, 1792, {164, 3000, 31}, 6},
                                                 {75, 200, {516, 96}, 1},
                                                 {70, 136, {200, 200}, 4},
                                                 {40, 72, {131, 131}, 2},
                                                 {90, 260, {256, 256}, 3},
                                                 {66, 96, {60, 20, 20}, 2},
                                                 {36, 64, {320, 160, 160}, 2},
                                                 {67, 64, {320, 64, 64}, 2}})
        testLong(which++, rows, inputs, outputs, blocks);
    return finished();
}
