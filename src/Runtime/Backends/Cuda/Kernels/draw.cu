// Draws a token from each row of logits as its rule says (see DrawRule): one block a row, and never a sort of the vocabulary. A greedy row that
// adjusts nothing is read once; 64 rows of 128k logits are 33 MB, so the memory's rate bounds it. A sampled row is turned into weights in `work`;
// the few that can be kept are picked out into shared memory, and the edge of top-k and top-p is found there by a radix select.
// Masses of weights are 64-bit fixed point: integers add up to the same whatever the order, so atomics and block sums cannot change a draw.
//
//   s[c] = Σ_p logits[p, row, c], adjusted;  w[c] = exp((s[c] − max)/T);  token = first c of the kept whose running Σ w exceeds uniform·Σ w

static const int DrawThreads = 1024, DrawWarps = 32;
static const int Candidates = 4096;                         // weights that fit into shared memory
static const int MostReported = 20;
static const int FloorCount = 3;                            // 2^-8, 2^-14, 2^-20 of the largest weight: candidates are those above one of them
DEVICE float floorOf(int f) { return __uint_as_float((u32)(127 - 8 - 6 * f) << 23); }

struct DrawRow {
    float temperature, topP, minP, repetition, frequency, presence;
    int topK;
    int logProbabilities;           // −1: none
    double uniform;
    int history, historyCount;      // pairs (token, count << 1 | in the prompt), each token once; offset in pairs from the buffer's beginning
    int bias, biasCount;            // pairs (token, float)
};
struct DrawResult { int token; float logProbability; int top; int reserved; };
struct DrawTop { int token; float logProbability; };

// Logits as a split product leaves them. Columns from `vocabulary` on are padding.
struct Logits {
    const float* sums;                      // [part][row][stride]
    const unsigned char* partsOfTile;       // parts that columns c have, at [c >> tileShift]; null: one
    long long partStride;
    int tileShift, stride, vocabulary, reserved;
};

struct DrawScratch {
    u64 bins[1024];
    float weights[Candidates];
    int ids[Candidates];
    u64 reduced[DrawWarps];
    u64 masses[FloorCount + 1][DrawWarps];  // by warp: of the weights from floor f on, and of all
    int counts[FloorCount][DrawWarps];
    int ties[DrawWarps];
    u64 above, amount;
    u64 top[MostReported];
    int digit, index, found;
};

// ---- Sums and orders

DEVICE u64 warpSum(u64 v) {
    for (int i = 16; i > 0; i >>= 1) v += __shfl_xor_sync(0xFFFFFFFFu, v, i);
    return v;
}
DEVICE int warpSum(int v) {
    for (int i = 16; i > 0; i >>= 1) v += __shfl_xor_sync(0xFFFFFFFFu, v, i);
    return v;
}
// Of this lane and those before it.
template <class T> DEVICE T warpScan(T v) {
    for (int i = 1; i < 32; i <<= 1) {
        T before = __shfl_up_sync(0xFFFFFFFFu, v, i);
        if ((int)(threadIdx.x % 32) >= i) v += before;
    }
    return v;
}
DEVICE u64 blockSum(u64 v, DrawScratch& s) {
    v = warpSum(v);
    if (threadIdx.x % 32 == 0) s.reduced[threadIdx.x / 32] = v;
    __syncthreads();
    v = warpSum(s.reduced[threadIdx.x % 32]);
    __syncthreads();
    return v;
}
DEVICE u64 blockMax(u64 v, DrawScratch& s) {
    for (int i = 16; i > 0; i >>= 1) v = max(v, __shfl_xor_sync(0xFFFFFFFFu, v, i));
    if (threadIdx.x % 32 == 0) s.reduced[threadIdx.x / 32] = v;
    __syncthreads();
    v = s.reduced[threadIdx.x % 32];
    for (int i = 16; i > 0; i >>= 1) v = max(v, __shfl_xor_sync(0xFFFFFFFFu, v, i));
    __syncthreads();
    return v;
}

// A score and its column as one number: the larger score is the larger, of equals the lower column. Those that are no numbers are Wild.
static const u64 Wild = ~0ull;
DEVICE u64 scored(float score, int column) {
    u32 bits = __float_as_uint(score == 0.f ? 0.f : score);
    return (u64)(bits >> 31 ? ~bits : bits | 0x80000000u) << 32 | (u32)~column;
}
DEVICE float scoreOf(u64 scored) {
    u32 bits = (u32)(scored >> 32);
    return __uint_as_float(bits >> 31 ? bits & 0x7FFFFFFFu : ~bits);
}
DEVICE int columnOf(u64 scored) { return (int)~(u32)scored; }

// A weight lies in [0, 1]; its bits order it and need 30 of 32.
DEVICE u64 massOf(float weight) { return (u64)(weight * 1099511627776.f); }

// ---- Reading logits

DEVICE int partsOf(const Logits& l, int column) { return l.partsOfTile ? l.partsOfTile[column >> l.tileShift] : 1; }

DEVICE float logitOf(const Logits& l, int row, int column) {
    const float* from = l.sums + (long long)row * l.stride + column;
    float logit = from[0];
    for (int p = 1; p < partsOf(l, column); p++) logit += from[p * l.partStride];
    return logit;
}

// Four neighbours; in place of those beyond the last column, the first of the four.
DEVICE F32x4 fourOf(const float* from, int left, bool vectors) {
    F32x4 v;
    if (vectors) v = *(const F32x4*)from;
    else { v.x = from[0]; v.y = left > 1 ? from[1] : 0.f; v.z = left > 2 ? from[2] : 0.f; v.w = left > 3 ? from[3] : 0.f; }
    if (left < 2) v.y = v.x;
    if (left < 3) v.z = v.x;
    if (left < 4) v.w = v.x;
    return v;
}

// The best of a row. Adjusted scores may be −∞, which bans a token; in logits as they came it is as bad as a NaN.
DEVICE u64 scan(const Logits& l, int row, float* copy, bool adjusted, DrawScratch& s) {
    const int Unroll = 4, Stride = DrawThreads * 4;
    const float* from = l.sums + (long long)row * l.stride;
    const bool vectors = l.stride % 4 == 0 && l.partStride % 4 == 0 && (u64)from % 16 == 0;
    float best = -__uint_as_float(0x7F800000u);
    int column = 0;
    u32 wild = 0;
    for (int begin = threadIdx.x * 4; begin < l.vocabulary; begin += Stride * Unroll) {
        F32x4 v[Unroll];
        int parts[Unroll], most = 1;
#pragma unroll
        for (int u = 0; u < Unroll; u++) {
            int c = begin + u * Stride;
            parts[u] = c < l.vocabulary ? partsOf(l, c) : 0;
            if (parts[u] > 0) v[u] = fourOf(from + c, l.vocabulary - c, vectors);
            most = max(most, parts[u]);
        }
        for (int p = 1; p < most; p++) {
#pragma unroll
            for (int u = 0; u < Unroll; u++) {
                int c = begin + u * Stride;
                if (p >= parts[u]) continue;
                F32x4 more = fourOf(from + p * l.partStride + c, l.vocabulary - c, vectors);
                v[u].x += more.x; v[u].y += more.y; v[u].z += more.z; v[u].w += more.w;
            }
        }
#pragma unroll
        for (int u = 0; u < Unroll; u++) {
            if (parts[u] == 0) continue;
            int c = begin + u * Stride;
            const float four[4] = {v[u].x, v[u].y, v[u].z, v[u].w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 bits = __float_as_uint(four[i]);
                if (!adjusted || bits != 0xFF800000u) wild = max(wild, bits & 0x7FFFFFFFu);
            }
            float largest = fmaxf(fmaxf(four[0], four[1]), fmaxf(four[2], four[3]));
            if (largest > best) {
                best = largest;
                column = c + (four[0] == largest ? 0 : four[1] == largest ? 1 : four[2] == largest ? 2 : 3);
            }
            if (copy) *(F32x4*)(copy + c) = v[u];
        }
    }
    return blockMax(wild >= 0x7F800000u ? Wild : scored(best, column), s);
}

// Scores from penalties and bias. A token is once in a list; no multiply is fused with an add, so that other backends can do the same.
DEVICE void adjust(float* scores, int vocabulary, const DrawRow& rule, const unsigned char* rules) {
    const int* history = (const int*)rules + 2ll * rule.history;
    for (int i = threadIdx.x; i < rule.historyCount; i += DrawThreads) {
        int token = history[2 * i], count = history[2 * i + 1] >> 1;
        if ((u32)token >= (u32)vocabulary) continue;
        float score = scores[token];
        if (rule.repetition != 1.f) score = score > 0.f ? score / rule.repetition : __fmul_rn(score, rule.repetition);
        if (count > 0) score -= __fadd_rn(__fmul_rn(rule.frequency, (float)count), rule.presence);
        scores[token] = score;
    }
    __syncthreads();
    const int* bias = (const int*)rules + 2ll * rule.bias;
    for (int i = threadIdx.x; i < rule.biasCount; i += DrawThreads)
        if ((u32)bias[2 * i] < (u32)vocabulary) scores[bias[2 * i]] += __int_as_float(bias[2 * i + 1]);
    __syncthreads();
}

// ---- Weights

// A warp's share of `count` neighbours, whole vectors of its lanes.
DEVICE int shareOf(int count) { return ((count + DrawWarps - 1) / DrawWarps + 127) / 128 * 128; }

// Scores become weights in place; masses and counts from each floor on go to the scratch.
DEVICE void weigh(float* scores, int vocabulary, float largest, float temperature, DrawScratch& s) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, share = shareOf(vocabulary), end = min(vocabulary, (warp + 1) * share);
    u64 mass[FloorCount + 1] = {};
    int count[FloorCount] = {};
    for (int c = warp * share + lane * 4; c < end; c += 128) {
        F32x4 v = *(const F32x4*)(scores + c);
        float four[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (c + i >= vocabulary) continue;
            float weight = four[i] = expf((four[i] - largest) / temperature);
            u64 m = massOf(weight);
            mass[FloorCount] += m;
            if (weight < floorOf(FloorCount - 1)) continue;
#pragma unroll
            for (int f = 0; f < FloorCount; f++)
                if (weight >= floorOf(f)) { mass[f] += m; count[f]++; }
        }
        v.x = four[0]; v.y = four[1]; v.z = four[2]; v.w = four[3];
        *(F32x4*)(scores + c) = v;
    }
#pragma unroll
    for (int f = 0; f <= FloorCount; f++) {
        mass[f] = warpSum(mass[f]);
        if (lane == 0) s.masses[f][warp] = mass[f];
    }
#pragma unroll
    for (int f = 0; f < FloorCount; f++) {
        count[f] = warpSum(count[f]);
        if (lane == 0) s.counts[f][warp] = count[f];
    }
    __syncthreads();
}

// Weights in order of id; without ids it is the whole row.
struct Weights { const float* weights; const int* ids; int count; };
DEVICE int idOf(const Weights& w, int i) { return w.ids ? w.ids[i] : i; }

// The weights from the highest floor on that has as many and as heavy; the whole row where they do not fit.
DEVICE Weights pick(const float* row, int vocabulary, int atLeast, u64 asHeavy, DrawScratch& s) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int f = 0; f < FloorCount; f++) {
        const int mine = s.counts[f][lane], count = warpSum(mine);
        if (count < atLeast || count > Candidates || warpSum(s.masses[f][lane]) < asHeavy) continue;
        int to = warpSum(lane < warp ? mine : 0);
        const int share = shareOf(vocabulary), end = min(vocabulary, (warp + 1) * share);
        for (int begin = warp * share; begin < end; begin += 128) {
            const int c = begin + lane * 4;
            float four[4] = {};
            int here = 0;
            if (c < end) {
                F32x4 v = *(const F32x4*)(row + c);
                four[0] = v.x; four[1] = v.y; four[2] = v.z; four[3] = v.w;
#pragma unroll
                for (int i = 0; i < 4; i++) here += c + i < end && four[i] >= floorOf(f);
            }
            if (!__any_sync(0xFFFFFFFFu, here)) continue;
            const int upTo = warpScan(here);
            int at = to + upTo - here;
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (c + i < end && four[i] >= floorOf(f)) { s.weights[at] = four[i]; s.ids[at++] = c + i; }
            to += __shfl_sync(0xFFFFFFFFu, upTo, 31);
        }
        __syncthreads();
        return {s.weights, s.ids, count};
    }
    return {row, nullptr, vocabulary};
}

// What is kept: weights whose bits are above `key`, and of those equal to it the first `ties`.
struct Cut { u32 key; int ties; };

// The cut at which the largest weights first reach `target`, in number or in mass; 1 ≤ target ≤ what all have. Ten bits of the weight at a time.
DEVICE Cut select(const Weights& from, bool byMass, u64 target, DrawScratch& s) {
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    u32 prefix = 0;
    u64 above = 0;
    for (int shift = 20; shift >= 0; shift -= 10) {
        s.bins[thread] = 0;
        __syncthreads();
        for (int i = thread; i < from.count; i += DrawThreads) {
            u32 key = __float_as_uint(from.weights[i]);
            if (key >> shift >> 10 == prefix) atomicAdd(&s.bins[key >> shift & 1023], byMass ? massOf(from.weights[i]) : (u64)1);
        }
        __syncthreads();
        const u64 amount = s.bins[1023 - thread];           // thread 0 has the largest
        u64 upTo = warpScan(amount);
        if (lane == 31) s.reduced[warp] = upTo;
        __syncthreads();
        upTo += above + warpSum(lane < warp ? s.reduced[lane] : (u64)0);
        if (upTo >= target && upTo - amount < target) { s.digit = 1023 - thread; s.above = upTo - amount; }
        __syncthreads();
        prefix = prefix << 10 | (u32)s.digit;
        above = s.above;
    }
    const u64 each = byMass ? massOf(__uint_as_float(prefix)) : 1;
    return {prefix, (int)((target - above + each - 1) / each)};
}

DEVICE u64 keptMass(const Weights& from, const Cut& cut, DrawScratch& s) {
    u64 mass = 0;
    for (int i = threadIdx.x; i < from.count; i += DrawThreads)
        if (__float_as_uint(from.weights[i]) > cut.key) mass += massOf(from.weights[i]);
    return blockSum(mass, s) + massOf(__uint_as_float(cut.key)) * (u64)cut.ties;
}

// The least mass that is at least the share p of `total`.
DEVICE u64 massOfShare(float p, u64 total) {
    double exact = (double)p * (double)total;
    u64 mass = (u64)exact;
    if ((double)mass < exact) mass++;
    return min(max(mass, (u64)1), total);
}

// The kept at which the running mass first exceeds uniform·total, walking in order of id; −1 when nothing is kept.
DEVICE int walk(const Weights& from, const Cut& cut, double uniform, DrawScratch& s) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, share = shareOf(from.count), first = warp * share, end = min(from.count, first + share);
    const u64 tied = massOf(__uint_as_float(cut.key));
    u64 mass = 0;
    int ties = 0;
    for (int i = first + lane; i < end; i += 32) {
        u32 key = __float_as_uint(from.weights[i]);
        if (key > cut.key) mass += massOf(from.weights[i]);
        ties += key == cut.key;
    }
    mass = warpSum(mass);
    ties = warpSum(ties);
    if (lane == 0) { s.reduced[warp] = mass; s.ties[warp] = ties; }
    __syncthreads();

    const u64 massUpTo = warpScan(s.reduced[lane]);
    const int tiesUpTo = warpScan(s.ties[lane]);
    const u64 upTo = massUpTo + tied * (u64)min(tiesUpTo, cut.ties);
    const u64 total = __shfl_sync(0xFFFFFFFFu, upTo, 31);
    if (total == 0) { __syncthreads(); return -1; }
    const u64 target = min((u64)(uniform * (double)total), total - 1);
    const int owner = __ffs(__ballot_sync(0xFFFFFFFFu, upTo > target)) - 1;     // the warp in whose share it lies
    u64 massBefore = __shfl_sync(0xFFFFFFFFu, massUpTo - s.reduced[lane], owner);
    int tiesBefore = __shfl_sync(0xFFFFFFFFu, tiesUpTo - s.ties[lane], owner);
    if (warp == owner)
        for (int begin = first; begin < end; begin += 32) {
            const int i = begin + lane;
            const u32 key = i < end ? __float_as_uint(from.weights[i]) : 0;
            const u64 massHere = massBefore + warpScan(i < end && key > cut.key ? massOf(from.weights[i]) : (u64)0);
            const int tiesHere = tiesBefore + warpScan((int)(i < end && key == cut.key));
            const u32 past = __ballot_sync(0xFFFFFFFFu, massHere + tied * (u64)min(tiesHere, cut.ties) > target);
            if (past) {
                if (lane == __ffs(past) - 1) s.index = i;
                break;
            }
            massBefore = __shfl_sync(0xFFFFFFFFu, massHere, 31);
            tiesBefore = __shfl_sync(0xFFFFFFFFu, tiesHere, 31);
        }
    __syncthreads();
    return idOf(from, s.index);
}

DEVICE int choose(const float* row, int vocabulary, const DrawRow& rule, DrawScratch& s) {
    const bool all = rule.topK <= 0 || rule.topK >= vocabulary;
    Weights from = {row, nullptr, vocabulary};
    Cut cut = {0, 0};
    if (!all || rule.topP < 1.f) {
        u64 target = all ? massOfShare(rule.topP, warpSum(s.masses[FloorCount][threadIdx.x % 32])) : 0;
        from = pick(row, vocabulary, all ? 1 : rule.topK, target, s);
        if (!all) {
            cut = select(from, false, rule.topK, s);
            if (rule.topP < 1.f) target = massOfShare(rule.topP, keptMass(from, cut, s));
        }
        if (rule.topP < 1.f) cut = select(from, true, target, s);
    }
    if (__uint_as_float(cut.key) < rule.minP) cut = {__float_as_uint(rule.minP), 0x7FFFFFFF};
    return walk(from, cut, rule.uniform, s);
}

// ---- Log-probabilities

// The `wanted` heaviest of the row, by falling weight, ties by id.
DEVICE void report(const float* row, const Logits& l, int logitRow, int wanted, float logTotal, DrawTop* top, DrawScratch& s) {
    const Weights from = pick(row, l.vocabulary, wanted, 0, s);
    const Cut cut = select(from, false, wanted, s);
    if (threadIdx.x == 0) s.found = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < from.count; i += DrawThreads)
        if (__float_as_uint(from.weights[i]) > cut.key) s.top[atomicAdd(&s.found, 1)] = scored(from.weights[i], idOf(from, i));
    __syncthreads();
    // Each round finds the next tie; there is seldom more than one.
    const int above = s.found;
    for (int t = 0, last = -1; t < cut.ties; t++) {
        u64 next = 0;
        for (int i = threadIdx.x; i < from.count; i += DrawThreads)
            if (__float_as_uint(from.weights[i]) == cut.key && idOf(from, i) > last) next = max(next, scored(from.weights[i], idOf(from, i)));
        next = blockMax(next, s);
        last = columnOf(next);
        if (threadIdx.x == 0) s.top[above + t] = next;
    }
    __syncthreads();
    if ((int)threadIdx.x < wanted) {
        const u64 mine = s.top[threadIdx.x];
        int rank = 0;
        for (int i = 0; i < wanted; i++) rank += s.top[i] > mine;
        top[rank] = {columnOf(mine), logitOf(l, logitRow, columnOf(mine)) - logTotal};
    }
    __syncthreads();
}

// ---- Rows. `work` is [row][workStride], 16-byte aligned and workStride a multiple of 4; `drawn` stays on the device for the next step's embedding.
extern "C" __global__ __launch_bounds__(DrawThreads, 1) void draw(const Step* step, const unsigned char* rules, Logits logits, float* work, int workStride, int* drawn, DrawResult* results, DrawTop* tops) {
    __shared__ DrawScratch s;
    letNextStart();
    awaitPrevious();
    for (int row = blockIdx.x; row < step->logitRows; row += gridDim.x) {
        const DrawRow rule = ((const DrawRow*)rules)[row];
        const bool adjusts = rule.historyCount + rule.biasCount > 0, samples = rule.temperature > 0.f, reports = rule.logProbabilities >= 0;
        const int vocabulary = logits.vocabulary;
        float* scores = work + (long long)row * workStride;
        float logTotal = 0.f;
        int token = -1, top = 0;
        u64 best = scan(logits, row, adjusts || samples || reports ? scores : nullptr, false, s);
        if (best != Wild) {
            bool weighed = false;
            if (reports) {
                weigh(scores, vocabulary, scoreOf(best), 1.f, s);
                logTotal = scoreOf(best) + logf((float)((double)warpSum(s.masses[FloorCount][threadIdx.x % 32]) * (1.0 / 1099511627776.0)));
                top = min(min(rule.logProbabilities, MostReported), vocabulary);
                if (top > 0) report(scores, logits, row, top, logTotal, tops + row * MostReported, s);
                weighed = samples && !adjusts && rule.temperature == 1.f;
                if (!weighed && (adjusts || samples)) { __syncthreads(); scan(logits, row, scores, false, s); }
            }
            if (adjusts) {
                adjust(scores, vocabulary, rule, rules);
                best = scan({scores, nullptr, 0, 0, workStride, vocabulary, 0}, 0, nullptr, true, s);
            }
            if (best != Wild && scoreOf(best) > -__uint_as_float(0x7F800000u)) {
                if (samples && !weighed) weigh(scores, vocabulary, scoreOf(best), rule.temperature, s);
                token = samples ? choose(scores, vocabulary, rule, s) : columnOf(best);
            }
        }
        if (threadIdx.x == 0) {
            drawn[row] = token;
            results[row] = {token, reports && token >= 0 ? logitOf(logits, row, token) - logTotal : 0.f, token >= 0 ? top : 0, 0};
        }
        __syncthreads();
    }
}
