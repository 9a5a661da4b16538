// Runs a .cu kernel on the CPU: a thread block's threads are fibers; barriers and warp collectives are meeting points. For checking arithmetic and indices, not
// races or speed. Use: #include "emulator.h" then #include "kernel.cu" (no common.cuh: this replaces it), then emu::launch(dim3 grid, threads,
// dynamicSharedBytes, []{ kernel(args...); });
#pragma once
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
    int rows, logitRows, groups, attendItems, tiles, shrinkTiles, units[4];
};
struct Group {
    int firstRow, rows, adapter, firstShort;
};
struct Row {
    int adapter, segmentFirst, segmentRows, shortIndex;
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
#ifdef EMU_REVERSE  // threads run in another order: finds missing barriers
#define EMU_NEXT(j, n) ((n)-1 - (j))
#else
#define EMU_NEXT(j, n) (j)
#endif
namespace emu {
struct Fiber {
    ucontext_t c;
    std::vector<char> stack;
    int state; /*0 ready 1 done 2 block barrier 3 warp wait*/
    u64 id;
};
static std::vector<Fiber> fibers;
static ucontext_t home;
static int current;
static std::function<void()> body;
static int nthreads;
struct Warp {
    int arrived = 0;
    unsigned long long in[32][8];
    unsigned long long out[32][8];
    int op = -1;
};
static std::vector<Warp> warps;
static std::vector<char> dyn;
static void yieldTo(int state) {
    fibers[current].state = state;
    int me = current;
    swapcontext(&fibers[me].c, &home);
}
static void entry() {
    body();
    fibers[current].state = 1;
    swapcontext(&fibers[current].c, &home);
}
// All 32 lanes meet; the last computes for all.
template <class F>
static void meet(int op, F f) {
    int w = current / 32;
    Warp& W = warps[w];
    if (W.op != -1 && W.op != op) {
        fprintf(stderr, "warp %d diverged: op %d meets %d\n", w, W.op, op);
        abort();
    }
    W.op = op;
    int lanes = std::min(32, nthreads - w * 32);
    if (++W.arrived == lanes) {
        f(W);
        W.arrived = 0;
        W.op = -1;
        for (int l = 0; l < lanes; l++)
            if (fibers[w * 32 + l].state == 3) fibers[w * 32 + l].state = 0;
    } else yieldTo(3);
}
static int lane() { return current % 32; }
static u64 maxShared = 0;
template <class F>
static void launch(dim3 grid, int threads, size_t dynBytes, F f) {
    nthreads = threads;
    body = f;
    dyn.assign(dynBytes + 1024, (char)0xFF);
    fibers.resize(threads);
    warps.assign((threads + 31) / 32, Warp());
    blockDim = dim3(threads);
    gridDim = grid;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                blockIdx = dim3(x, y, z);
                std::fill(dyn.begin(), dyn.end(), (char)0xFF);
                for (int i = 0; i < threads; i++) {
                    Fiber& b = fibers[i];
                    if (b.stack.empty()) b.stack.resize(256 << 10);
                    getcontext(&b.c);
                    b.c.uc_stack.ss_sp = b.stack.data();
                    b.c.uc_stack.ss_size = b.stack.size();
                    b.c.uc_link = &home;
                    makecontext(&b.c, entry, 0);
                    b.state = 0;
                }
                for (;;) {
                    bool ran = false;
                    int done = 0, barrier = 0;
                    for (int j = 0; j < threads; j++)
                        if (int i = EMU_NEXT(j, threads); fibers[i].state == 0) {
                            current = i;
                            threadIdx = dim3(i);
                            ran = true;
                            swapcontext(&home, &fibers[i].c);
                        }
                    for (int i = 0; i < threads; i++) {
                        done += fibers[i].state == 1;
                        barrier += fibers[i].state == 2;
                    }
                    if (done == threads) break;
                    if (barrier && barrier + done == threads) {
                        for (int i = 0; i < threads; i++)
                            if (fibers[i].state == 2) fibers[i].state = 0;
                        continue;
                    }
                    if (!ran) {
                        fprintf(stderr, "deadlock in block %u,%u,%u: done %d barrier %d of %d\n", x, y, z, done, barrier, threads);
                        abort();
                    }
                }
            }
}
static void* dynamicShared() { return (void*)(((uintptr_t)dyn.data() + 127) & ~(uintptr_t)127); }
static int namedArrived[16];
static void named(int id, int count) {
    int me = current;
    if (++namedArrived[id] == count) {
        namedArrived[id] = 0;
        for (auto& b : fibers)
            if (b.state == 10 + id) b.state = 0;
    } else yieldTo(10 + id);
    current = me;
}
}  // namespace emu
static inline void emuSet(int i) { threadIdx = dim3(i); }
static inline void __syncthreads() {
    int me = emu::current;
    emu::yieldTo(2);
    threadIdx = dim3(me);
}
static int emuOr;
static inline int __syncthreads_or(int p) {
    emuOr |= p != 0;
    __syncthreads();
    int r = emuOr;
    __syncthreads();
    if (threadIdx.x == 0) emuOr = 0;
    __syncthreads();
    return r;
}
static inline void emuMeetEnd(int me) {
    emu::current = me;
    threadIdx = dim3(me);
}
static inline void emuNamed(int id, int count) {
    int me = emu::current;
    emu::named(id, count);
    emu::current = me;
    threadIdx = dim3(me);
}
template <class F>
static inline void emuMeet(int op, F f) {
    int me = emu::current;
    emu::meet(op, f);
    emuMeetEnd(me);
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
static std::vector<std::vector<std::vector<EmuCopy>>> emuGroups(2048, {{}});
DEVICE void copyAsync(void* s, const void* g, int valid) {
    if ((uintptr_t)s % 16 || (uintptr_t)g % 16) {
        fprintf(stderr, "copyAsync not aligned\n");
        abort();
    }
    emuGroups[emu::current].back().push_back({s, g, valid});
}
DEVICE void commitCopies() { emuGroups[emu::current].push_back({}); }
template <int N>
DEVICE void awaitCopies() {
    auto& G = emuGroups[emu::current];
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
DEVICE void letNextStart() {}
DEVICE void prefetchLine(const void*) {}
DEVICE void awaitPrevious() {}
DEVICE U32x4 loadOnce(const void* p) {
    if ((uintptr_t)p % 16) {
        fprintf(stderr, "loadOnce not aligned\n");
        abort();
    }
    return *(const U32x4*)p;
}
DEVICE float warpSum(float v) {
    for (int i = 16; i > 0; i >>= 1) v += __shfl_xor_sync(0xFFFFFFFFu, v, i);
    return v;
}
DEVICE float warpMax(float v) {
    for (int i = 16; i > 0; i >>= 1) v = fmaxf(v, __shfl_xor_sync(0xFFFFFFFFu, v, i));
    return v;
}
// Dynamic shared memory: in kernels write  DYNAMIC_SHARED(name)  and get  unsigned char* name.
#define DYNAMIC_SHARED(name) unsigned char* name = (unsigned char*)emu::dynamicShared()
