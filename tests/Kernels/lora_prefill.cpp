#include "emulator.h"
#include "lora.cuh"
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
        if (rng() % 4 || rows < 4) shortRows.push_back(r), there[r] = true;
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

static void testLong(int which, int rows, int inputs, std::vector<int> outputs, int blocks) {
    Case c(which, rows, inputs, outputs);
    std::vector<AdapterTile> tiles;
    for (int r = 0; r < rows;) {
        const int n = std::min(rows - r, 1 + (int)(rng() % 64)), adapter = tiles.size() % 4 == 3 ? -1 : tiles.size() % 4;
        tiles.push_back({r, n, adapter, 0});
        std::fill_n(c.adapterOf.begin() + r, n, adapter);
        r += n;
    }
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
            auto z = c.moduleOf(r, p) ? c.z(r, p) : std::vector<double>();
            for (int k = 0; k < highest; k++) {
                const float got = c.site.whole[(size_t)p * c.site.wholePart + (size_t)r * highest + k];
                if (k >= (int)z.size()) beyond |= __float_as_uint(got) != 0xFFFFFFFF;
                else if (r != c.bad) worst.see(got, z[k]);
            }
        }
    expectBelow("shrinkLong", worst.relative(), 1e-5);
    expectBelow("written beyond z", beyond, 0);

    // A row alone is the same to the bit, in z and in y.
    const size_t zBytes = (size_t)c.parts * c.site.wholePart * 4, yBytes = (size_t)rows * c.yStride * 4;
    const auto expand = [&](int grid, const Step& step, const AdapterTile* tiles) {
        emu::launch(dim3(grid), LongThreads, GroupRanks / 16 * 4096, [&] { expandLong(&step, tiles, c.site, c.y, c.yStride); });
    };
    expand(blocks, step, tiles.data());
    c.expectY("expandLong", std::vector<bool>(rows, true));
    std::vector<char> z((char*)c.site.whole, (char*)c.site.whole + zBytes), y((char*)c.y, (char*)c.y + yBytes);
    step.adapterTiles = 1;
    for (int r = 0; r < rows; r += 7) {
        const AdapterTile one = {r, 1, c.adapterOf[r], 0};
        shrink(1, step, &one);
        expand(3, step, &one);
    }
    expectBelow("z alone", memcmp(z.data(), c.site.whole, zBytes) != 0, 0);
    expectBelow("y alone", memcmp(y.data(), c.y, yBytes) != 0, 0);
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
                                                 {75, 200, {516, 96}, 1}})
        testLong(which++, rows, inputs, outputs, blocks);
    return finished();
}
