// Runs a .cu kernel on the CPU: threads are fibers; barriers and warp collectives are meeting points. For checking arithmetic and indices, not
// races or speed. Use: #include "emulator.h" then #include "kernel.cu" (no common.cuh: this replaces it), then emu::launch(dim3 grid, threads,
// dynamicSharedBytes, []{ kernel(args...); }); its blocks run one after another. Kernels whose blocks wait for each other take emu::launchTogether,
// and must not have __shared__ variables: those are one for all blocks.
#pragma once
#undef _FORTIFY_SOURCE  // its longjmp keeps to one stack
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cmath>
#include <vector>
#include <functional>
#include <algorithm>
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
#define DEVICE static inline
#define DEVICE_MEMBER inline
#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __noinline__
#define __constant__ static
#define __shared__ static
#define __launch_bounds__(...)
#define __CUDA_ARCH__ 900
#define __align__(n) alignas(n)
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
static dim3 threadIdx, blockIdx, blockDim, gridDim;
struct alignas(8) U32x2 {
    u32 x, y;
};
struct alignas(16) U32x4 {
    u32 x, y, z, w;
};
struct alignas(8) F32x2 {
    float x, y;
};
struct alignas(16) F32x4 {
    float x, y, z, w;
};
struct Step {
    int rows, logitRows, shortRows, attendItems, tiles, adapterTiles, slices[4];
};
template <class A, class B>
static inline auto min(A a, B b) {
    return a < b ? a : b;
}
template <class A, class B>
static inline auto max(A a, B b) {
    return a > b ? a : b;
}
static inline float __uint_as_float(u32 v) {
    float f;
    memcpy(&f, &v, 4);
    return f;
}
static inline u32 __float_as_uint(float f) {
    u32 v;
    memcpy(&v, &f, 4);
    return v;
}
static inline int __float_as_int(float f) {
    int v;
    memcpy(&v, &f, 4);
    return v;
}
static inline float __int_as_float(int v) {
    float f;
    memcpy(&f, &v, 4);
    return f;
}
#define __expf(x) expf(x)
static inline float exp2f_(float x) { return exp2f(x); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
static inline float __frcp_rn(float x) { return 1.f / x; }
static inline float __fmul_rn(float a, float b) {
    volatile float r = a * b;
    return r;
}
static inline float __fadd_rn(float a, float b) {
    volatile float r = a + b;
    return r;
}
static inline int __popc(u32 v) { return __builtin_popcount(v); }
static inline int __clz(u32 v) { return v ? __builtin_clz(v) : 32; }
static inline int __ffs(u32 v) { return __builtin_ffs(v); }
template <class T>
static inline T __ldg(const T* p) {
    return *p;
}
template <class T>
static inline T atomicAdd(T* p, T v) {
    T o = *p;
    *p = o + v;
    return o;
}
template <class T>
static inline T atomicMax(T* p, T v) {
    T o = *p;
    if (v > o) *p = v;
    return o;
}
template <class T>
static inline T atomicMin(T* p, T v) {
    T o = *p;
    if (v < o) *p = v;
    return o;
}
static inline u64 atomicMax(u64* p, u64 v) {
    u64 o = *p;
    if (v > o) *p = v;
    return o;
}
static inline u32 atomicInc(u32* p, u32 v) {
    u32 o = *p;
    *p = o >= v ? 0 : o + 1;
    return o;
}
static inline void __threadfence() {}
static inline void __nanosleep(unsigned) {}
namespace emu {
struct Fiber {
    ucontext_t first;
    jmp_buf at;
    bool begun;
    enum { Ready, Done, Barrier, Warp, Count, Named } state;  // what it waits for; Named + i: named barrier i
    const u32* counter;                                       // of Count
    u32 count;
};
struct Warp {
    int arrived = 0, op = -1;
    u64 in[32][8], out[32][8];
};
struct Block {
    dim3 index;
    std::vector<char> shared;
    int named[16], any;
};
static std::vector<Fiber> fibers;  // of block i from i · stride on
static std::vector<Warp> warps;
static std::vector<Block> blocks;
static std::function<void()> body;
static jmp_buf home;
static int current, threads, stride;  // current: fiber; it is fiber % 32 of warp fiber / 32
static int lane() { return current % 32; }
static Block& block() { return blocks[current / stride]; }

static const size_t StackBytes = 256 << 10;  // only what is touched takes memory
static char* stackOf(size_t fiber) {
    static char* stacks = nullptr;
    static size_t most = 0;
    if (fibers.size() > most) {
        if (stacks) munmap(stacks, most * StackBytes);
        most = fibers.size();
        stacks = (char*)mmap(nullptr, most * StackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stacks == MAP_FAILED) {
            perror("stacks");
            abort();
        }
    }
    return stacks + fiber * StackBytes;
}
static void yieldTo(int state) {
    Fiber& f = fibers[current];
    f.state = decltype(f.state)(state);
    if (!_setjmp(f.at)) _longjmp(home, 1);
}
static void entry() {
    body();
    yieldTo(Fiber::Done);
}
static void resume(int fiber) {
    Fiber& f = fibers[fiber];
    current = fiber;
    threadIdx = dim3(fiber % stride);
    blockIdx = block().index;
    if (_setjmp(home)) return;
    if (f.begun) _longjmp(f.at, 1);
    f.begun = true;
    setcontext(&f.first);
}
static bool canRun(Fiber& f) {
    if (f.state == Fiber::Count && *(volatile const u32*)f.counter >= f.count) f.state = Fiber::Ready;
    return f.state == Fiber::Ready;
}
static void wake(int first, int count, int state) {
    for (int i = first; i < first + count; i++)
        if (fibers[i].state == state) fibers[i].state = Fiber::Ready;
}

// The kernel before this one: it has run once nobody can go on without it.
static std::function<void()> previous;
static u32 previousDone = 1;
// The next launch comes while `kernel` still runs, as dependent launches do: what it writes is there behind awaitPrevious only.
static void during(std::function<void()> kernel) {
    previous = kernel;
    previousDone = 0;
}

// Blocks first … first + count − 1 of the grid, to their end.
static void run(int first, int count, size_t sharedBytes) {
    stride = (threads + 31) / 32 * 32;
    blocks.resize(count);
    fibers.resize(count * stride);
    warps.assign(count * stride / 32, Warp());
    for (int i = 0; i < count; i++) {
        const unsigned n = first + i;
        Block& b = blocks[i];
        b.index = dim3(n % gridDim.x, n / gridDim.x % gridDim.y, n / gridDim.x / gridDim.y);
        b.shared.assign(sharedBytes + 1024, (char)0xFF);
        std::fill(b.named, b.named + 16, b.any = 0);
        for (int t = 0; t < stride; t++) {
            Fiber& f = fibers[i * stride + t];
            f.begun = false;
            f.state = t < threads ? Fiber::Ready : Fiber::Done;
            getcontext(&f.first);
            f.first.uc_stack.ss_sp = stackOf(i * stride + t);
            f.first.uc_stack.ss_size = StackBytes;
            makecontext(&f.first, entry, 0);
        }
    }
    const int all = count * stride;
    for (;;) {
        bool ran = false;
        int done = 0;
        for (int j = 0; j < all; j++) {
#ifdef EMU_REVERSE  // threads run in another order: finds missing barriers
            const int i = all - 1 - j;
#else
            const int i = j;
#endif
            if (canRun(fibers[i])) {
                ran = true;
                resume(i);
            }
        }
        for (int b = 0; b < count; b++) {
            int over = 0, waiting = 0;
            for (int i = b * stride; i < (b + 1) * stride; i++) {
                over += fibers[i].state == Fiber::Done;
                waiting += fibers[i].state == Fiber::Barrier;
            }
            done += over;
            if (waiting && waiting + over == stride) {
                wake(b * stride, stride, Fiber::Barrier);
                ran = true;
            }
        }
        if (done == all) return;
        if (!ran && !previousDone) {
            previous();
            previousDone = 1;
            continue;
        }
        if (!ran) {
            for (int b = 0; b < count; b++) {
                int of[Fiber::Named + 16] = {};
                for (int i = b * stride; i < (b + 1) * stride; i++) of[fibers[i].state]++;
                int named = 0;
                for (int i = 0; i < 16; i++) named += of[Fiber::Named + i];
                fprintf(stderr, "deadlock in block %u,%u,%u: done %d barrier %d warp %d count %d named %d of %d\n", blocks[b].index.x, blocks[b].index.y, blocks[b].index.z, of[Fiber::Done],
                        of[Fiber::Barrier], of[Fiber::Warp], of[Fiber::Count], named, stride);
            }
            abort();
        }
    }
}
template <class F>
static void launch(dim3 grid, int blockThreads, size_t sharedBytes, F f, bool together = false) {
    body = f;
    threads = blockThreads;
    blockDim = dim3(threads);
    gridDim = grid;
    const int all = grid.x * grid.y * grid.z;
    if (together) run(0, all, sharedBytes);
    else
        for (int i = 0; i < all; i++) run(i, 1, sharedBytes);
}
template <class F>
static void launchTogether(dim3 grid, int blockThreads, size_t sharedBytes, F f) {
    launch(grid, blockThreads, sharedBytes, f, true);
}
static void* dynamicShared() { return (void*)(((uintptr_t)block().shared.data() + 1023) & ~(uintptr_t)1023); }
}  // namespace emu

static inline void __syncthreads() { emu::yieldTo(emu::Fiber::Barrier); }
static inline int __syncthreads_or(int p) {
    emu::block().any |= p != 0;
    __syncthreads();
    int r = emu::block().any;
    __syncthreads();
    if (threadIdx.x == 0) emu::block().any = 0;
    __syncthreads();
    return r;
}
DEVICE bool lastAt(int barrier, int threads) {
    const int begin = emu::current / emu::stride * emu::stride;
    int& arrived = emu::block().named[barrier];
    if (++arrived < threads) return false;
    arrived = 0;
    emu::wake(begin, emu::stride, emu::Fiber::Named + barrier);
    return true;
}
DEVICE void meet(int barrier, int threads) { if (!lastAt(barrier, threads)) emu::yieldTo(emu::Fiber::Named + barrier); }
DEVICE void pass(int barrier, int threads) { lastAt(barrier, threads); }
DEVICE void awaitCount(const u32* counter, u32 count) {
    if (*counter >= count) return;
    emu::Fiber& f = emu::fibers[emu::current];
    f.counter = counter;
    f.count = count;
    emu::yieldTo(emu::Fiber::Count);
}
DEVICE void raise(u32* counter) { atomicAdd(counter, 1u); }
struct Party { int barrier, threads; };
DEVICE void announce(Party party, u32* counter) {
    meet(party.barrier, party.threads);
    if (threadIdx.x % party.threads == 0) atomicAdd(counter, 1u);
}
DEVICE void awaitBlocks(Party party, const u32* counter) {
    if (threadIdx.x % party.threads == 0) awaitCount(counter, gridDim.x);
    meet(party.barrier, party.threads);
}

// All 32 lanes meet; the last computes for all.
template <class F>
static inline void emuMeet(int op, F f) {
    const int w = emu::current / 32, lanes = std::min(32, emu::threads - w * 32 % emu::stride);
    emu::Warp& W = emu::warps[w];
    if (W.op != -1 && W.op != op) {
        fprintf(stderr, "warp %d diverged: op %d meets %d\n", w, W.op, op);
        abort();
    }
    W.op = op;
    if (++W.arrived < lanes) return emu::yieldTo(emu::Fiber::Warp);
    f(W);
    W.arrived = 0;
    W.op = -1;
    emu::wake(w * 32, lanes, emu::Fiber::Warp);
}
static inline void __syncwarp(u32 = 0xFFFFFFFFu) {
    emuMeet(1, [](emu::Warp&) {});
}
template <class T, class G>
static inline T emuExchange(int op, T v, G source) {
    int w = emu::current / 32, l = emu::lane();
    memcpy(&emu::warps[w].in[l], &v, sizeof(T));
    int s = source(l);
    emuMeet(op, [](emu::Warp& W) { memcpy(W.out, W.in, sizeof W.in); });
    T r;
    memcpy(&r, &emu::warps[w].out[s], sizeof(T));
    emuMeet(op + 100, [](emu::Warp&) {});
    return r;
}
template <class T>
static inline T __shfl_xor_sync(u32, T v, int m, int = 32) {
    return emuExchange(2, v, [m](int l) { return l ^ m; });
}
template <class T>
static inline T __shfl_sync(u32, T v, int s, int width = 32) {
    return emuExchange(3, v, [s, width](int l) { return (l & ~(width - 1)) | (s & (width - 1)); });
}
template <class T>
static inline T __shfl_down_sync(u32, T v, int d, int = 32) {
    return emuExchange(4, v, [d](int l) { return l + d < 32 ? l + d : l; });
}
template <class T>
static inline T __shfl_up_sync(u32, T v, int d, int = 32) {
    return emuExchange(5, v, [d](int l) { return l >= d ? l - d : l; });
}
static inline u32 __ballot_sync(u32, int p) {
    u32 r = 0;
    int w = emu::current / 32;
    emu::warps[w].in[emu::lane()][0] = p != 0;
    emuMeet(6, [](emu::Warp& W) {
        u32 b = 0;
        for (int l = 0; l < 32; l++) b |= (u32)(W.in[l][0] & 1) << l;
        for (int l = 0; l < 32; l++) W.out[l][0] = b;
    });
    r = (u32)emu::warps[w].out[emu::lane()][0];
    emuMeet(106, [](emu::Warp&) {});
    return r;
}
static inline int __any_sync(u32 m, int p) { return __ballot_sync(m, p) != 0; }
static inline int __all_sync(u32 m, int p) { return __ballot_sync(m, p) == 0xFFFFFFFFu; }
DEVICE float fromBf16(u16 v) { return __uint_as_float((u32)v << 16); }
DEVICE float lowOf(u32 p) { return __uint_as_float(p << 16); }
DEVICE float highOf(u32 p) { return __uint_as_float(p & 0xFFFF0000u); }
DEVICE u16 toBf16(float v) {
    u32 u = __float_as_uint(v);
    if ((u & 0x7FFFFFFF) > 0x7F800000) return 0x7FFF;
    return (u16)((u + 0x7FFF + ((u >> 16) & 1)) >> 16);
}
DEVICE u32 packBf16(float low, float high) { return toBf16(low) | ((u32)toBf16(high) << 16); }
DEVICE void mma(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    int w = emu::current / 32, l = emu::lane();
    auto& in = emu::warps[w].in[l];
    in[0] = a0 | ((u64)a1 << 32);
    in[1] = a2 | ((u64)a3 << 32);
    in[2] = b0 | ((u64)b1 << 32);
    memcpy(&in[3], d, 16);
    emuMeet(7, [](emu::Warp& W) {
        float A[16][16], B[16][8], D[16][8];
        for (int l = 0; l < 32; l++) {
            int g = l / 4, q = l % 4;
            u32 a[4] = {(u32)W.in[l][0], (u32)(W.in[l][0] >> 32), (u32)W.in[l][1], (u32)(W.in[l][1] >> 32)}, b[2] = {(u32)W.in[l][2], (u32)(W.in[l][2] >> 32)};
            float d[4];
            memcpy(d, &W.in[l][3], 16);
            for (int i = 0; i < 4; i++) {
                int r = g + (i % 2) * 8, c = 2 * q + (i / 2) * 8;
                A[r][c] = lowOf(a[i]);
                A[r][c + 1] = highOf(a[i]);
            }
            for (int i = 0; i < 2; i++) {
                B[2 * q + i * 8][g] = lowOf(b[i]);
                B[2 * q + i * 8 + 1][g] = highOf(b[i]);
            }
            D[g][2 * q] = d[0];
            D[g][2 * q + 1] = d[1];
            D[g + 8][2 * q] = d[2];
            D[g + 8][2 * q + 1] = d[3];
        }
        for (int r = 0; r < 16; r++)
            for (int c = 0; c < 8; c++)
                for (int k = 0; k < 16; k++) D[r][c] += A[r][k] * B[k][c];
        for (int l = 0; l < 32; l++) {
            int g = l / 4, q = l % 4;
            float d[4] = {D[g][2 * q], D[g][2 * q + 1], D[g + 8][2 * q], D[g + 8][2 * q + 1]};
            memcpy(W.out[l], d, 16);
        }
    });
    memcpy(d, emu::warps[w].out[l], 16);
    emuMeet(107, [](emu::Warp&) {});
}
static inline void emuLdm(u32 (&r)[4], const void* row, bool t) {
    if ((uintptr_t)row % 16) {
        fprintf(stderr, "ldmatrix address not aligned to 16\n");
        abort();
    }
    int w = emu::current / 32, l = emu::lane();
    emu::warps[w].in[l][0] = (u64)(uintptr_t)row;
    emuMeet(t ? 9 : 8, [t](emu::Warp& W) {
        for (int l = 0; l < 32; l++) {
            int g = l / 4, q = l % 4;
            u32 o[4];
            for (int m = 0; m < 4; m++) {
                u16 e[2];
                for (int i = 0; i < 2; i++) {
                    int rr = t ? 2 * q + i : g, cc = t ? g : 2 * q + i;
                    e[i] = ((const u16*)(uintptr_t)W.in[m * 8 + rr][0])[cc];
                }
                o[m] = e[0] | ((u32)e[1] << 16);
            }
            memcpy(W.out[l], o, 16);
        }
    });
    memcpy(r, emu::warps[w].out[l], 16);
    emuMeet(108, [](emu::Warp&) {});
}
DEVICE void loadMatrices(u32 (&r)[4], const void* row) { emuLdm(r, row, false); }
DEVICE void loadMatricesTransposed(u32 (&r)[4], const void* row) { emuLdm(r, row, true); }
#ifdef EMU_LAZY  // copies land only when awaited: finds reads before awaitCopies
struct EmuCopy {
    void* s;
    const void* g;
    int valid;
};
static std::vector<std::vector<EmuCopy>>& emuGroups() {  // of this fiber
    static std::vector<std::vector<std::vector<EmuCopy>>> all;
    if (all.size() < emu::fibers.size()) all.resize(emu::fibers.size(), {{}});
    return all[emu::current];
}
DEVICE void copyAsync(void* s, const void* g, int valid) {
    if ((uintptr_t)s % 16 || (uintptr_t)g % 16) {
        fprintf(stderr, "copyAsync not aligned\n");
        abort();
    }
    emuGroups().back().push_back({s, g, valid});
}
DEVICE void commitCopies() { emuGroups().push_back({}); }
template <int N>
DEVICE void awaitCopies() {
    auto& G = emuGroups();
    while ((int)G.size() > N + 1) {
        for (auto& c : G[0]) {
            char b[16] = {};
            memcpy(b, c.g, c.valid < 0 ? 0 : c.valid);
            memcpy(c.s, b, 16);
        }
        G.erase(G.begin());
    }
}
#else
DEVICE void copyAsync(void* s, const void* g, int valid) {
    if ((uintptr_t)s % 16 || (uintptr_t)g % 16) {
        fprintf(stderr, "copyAsync not aligned\n");
        abort();
    }
    char b[16] = {};
    memcpy(b, g, valid < 0 ? 0 : valid);
    memcpy(s, b, 16);
}
DEVICE void commitCopies() {}
template <int N>
DEVICE void awaitCopies() {}
#endif
DEVICE void copyOnce(void* s, const void* g) { copyAsync(s, g, 16); }
DEVICE void letNextStart() {}
DEVICE void prefetch(const void*) {}
DEVICE void prefetchToStay(const void*) {}
DEVICE void awaitPrevious() { awaitCount(&emu::previousDone, 1); }
template <class T>
static inline T emuLoad(const void* p, const char* what) {
    if ((uintptr_t)p % 16) {
        fprintf(stderr, "%s not aligned\n", what);
        abort();
    }
    return *(const T*)p;
}
DEVICE U32x4 loadOnce(const void* p) { return emuLoad<U32x4>(p, "loadOnce"); }
DEVICE float loadFresh(const float* p) { return *p; }
DEVICE u32 loadFresh(const u16* p) { return *p; }
DEVICE F32x4 loadFresh4(const float* p) { return emuLoad<F32x4>(p, "loadFresh4"); }
DEVICE float loadFreshAnywhere(const float* p) { return *p; }
DEVICE F32x4 loadFreshAnywhere4(const float* p) { return emuLoad<F32x4>(p, "loadFreshAnywhere4"); }
DEVICE U32x4 loadFresh4(const u16* p) { return emuLoad<U32x4>(p, "loadFresh4"); }
DEVICE float warpSum(float v) {
    for (int i = 16; i > 0; i >>= 1) v += __shfl_xor_sync(0xFFFFFFFFu, v, i);
    return v;
}
// Dynamic shared memory: in kernels write  DYNAMIC_SHARED(name)  and get  unsigned char* name.
#define DYNAMIC_SHARED(name) unsigned char* name = (unsigned char*)emu::dynamicShared()
