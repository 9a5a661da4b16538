// What every kernel file starts from. It is compiled at run time for the GPU at hand and includes nothing: no toolkit's headers are needed.
// Names: a row is a token of the step, t a column within a chunk, k a rank. Device memory is bf16 (u16) or fp32; sums are fp32.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__

struct alignas(8) U32x2 { u32 x, y; };
struct alignas(16) U32x4 { u32 x, y, z, w; };
struct alignas(8) F32x2 { float x, y; };
struct alignas(16) F32x4 { float x, y, z, w; };

// bf16 is the upper half of fp32.
DEVICE float fromBf16(u16 v) { return __uint_as_float((u32)v << 16); }
DEVICE float lowOf(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float highOf(u32 pair) { return __uint_as_float(pair & 0xFFFF0000u); }

// Round to nearest, ties to even; low goes into the lower half.
DEVICE u32 packBf16(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
DEVICE u16 toBf16(float v) { return (u16)packBf16(v, 0.f); }

// d (16×8, fp32) += a (16×16, bf16) · b (16×8, bf16). Lane l = 4g + q holds a[g, 2q..], a[g+8, 2q..], a[g, 2q+8..], a[g+8, 2q+8..];
// b[2q.., g], b[2q+8.., g]; d[g, 2q], d[g, 2q+1], d[g+8, 2q], d[g+8, 2q+1].
DEVICE void mma(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

DEVICE u32 sharedAddress(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Four 8×8 bf16 matrices; lane l gives the address of row l % 8 of matrix l / 8 (16 bytes, aligned). Afterwards lane 4g + q holds [g, 2q..2q+1] of each.
DEVICE void loadMatrices(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(sharedAddress(row)) : "memory");
}
// The same, each matrix transposed on the way.
DEVICE void loadMatricesTransposed(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(sharedAddress(row)) : "memory");
}

static const u64 First = 0x12F0000000000000ull;            // the L2's policy for what nobody reads again: it is the first to leave

// 16 bytes to shared memory in the background; bytes beyond the first `valid` become zero. Both addresses aligned to 16.
DEVICE void copyAsync(void* shared, const void* global, int valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(sharedAddress(shared)), "l"(global), "r"(valid) : "memory");
}
DEVICE void copyOnce(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" :: "r"(sharedAddress(shared)), "l"(global), "l"(First) : "memory");
}
DEVICE void commitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most N of this thread's latest groups are under way.
template <int N> DEVICE void awaitCopies() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }

// Programmatic dependent launch: the next kernel of the stream may start while this one runs, and waits here before it touches what this one writes.
// Weights, adapters, the step's arrays, and keys and values of earlier steps may be read before; nothing may be written.
DEVICE void letNextStart() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
DEVICE void awaitPrevious() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// What other multiprocessors have written while this kernel runs: past the L1.
DEVICE float loadFresh(const float* p) {
    float v;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
    return v;
}
DEVICE F32x4 loadFresh4(const float* p) {
    F32x4 v;
    asm volatile("ld.global.cg.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p) : "memory");
    return v;
}
// The same where it may be shared memory as well.
DEVICE float loadFreshAnywhere(const float* p) {
    float v;
    asm volatile("ld.cg.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
    return v;
}
DEVICE F32x4 loadFreshAnywhere4(const float* p) {
    F32x4 v;
    asm volatile("ld.cg.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p) : "memory");
    return v;
}
DEVICE U32x4 loadFresh4(const u16* p) {
    U32x4 v;
    asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
}
DEVICE u32 loadFresh(const u16* p) {
    u16 v;
    asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(v) : "l"(p) : "memory");
    return v;
}

// Until a counter that others raise has reached `count`; what they wrote before is seen after.
DEVICE void awaitCount(const u32* counter, u32 count) {
    u32 there;
    for (;;) {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(there) : "l"(counter) : "memory");
        if (there >= count) return;
        __nanosleep(32);
    }
}
// Raises a counter; what this thread wrote, and those wrote that it has met, is seen by whoever finds it raised. Cheaper than __threadfence, which also
// keeps an order among all that is written anywhere.
DEVICE void raise(u32* counter) { asm volatile("red.release.gpu.global.add.u32 [%0], 1;" :: "l"(counter) : "memory"); }

// `threads` of a block meet at one of its barriers 1 to 15; or say that they were there, and wait for nobody.
DEVICE void meet(int barrier, int threads) { asm volatile("bar.sync %0, %1;" :: "r"(barrier), "r"(threads) : "memory"); }
DEVICE void pass(int barrier, int threads) { asm volatile("bar.arrive %0, %1;" :: "r"(barrier), "r"(threads) : "memory"); }

// So many neighbouring threads of every block, which work through the same stages: `announce` says for a block that one is behind it, `awaitBlocks`
// waits for all blocks to say so. What they wrote before is seen after.
struct Party { int barrier, threads; };
DEVICE void announce(Party party, u32* counter) {
    meet(party.barrier, party.threads);
    if (threadIdx.x % party.threads == 0) raise(counter);
}
DEVICE void awaitBlocks(Party party, const u32* counter) {
    if (threadIdx.x % party.threads == 0) awaitCount(counter, gridDim.x);
    meet(party.barrier, party.threads);
}

// To the L2 in the background: a line, or one that is to stay there.
DEVICE void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" :: "l"(p)); }
DEVICE void prefetchToStay(const void* p) { asm volatile("prefetch.global.L2::evict_last [%0];" :: "l"(p)); }

// Read once: past the L1, first to leave the L2.
DEVICE U32x4 loadOnce(const void* p) {
    U32x4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0,%1,%2,%3}, [%4], %5;" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p), "l"(First));
    return v;
}

DEVICE float warpSum(float v) {
    for (int i = 16; i > 0; i >>= 1) v += __shfl_xor_sync(0xFFFFFFFFu, v, i);
    return v;
}
// The step's index arrays on the device. They stay at the same addresses from step to step, so that a recorded step can be replayed.
struct Step {
    int rows;             // of this step; a recorded step is launched for more, and those beyond are skipped
    int logitRows;
    int shortRows;        // rows whose adapters are worked on one by one; the others are in adapter tiles
    int attendItems;      // pieces of attention over at most 512 positions each, decoding rows only
    int tiles;            // tiles of rows of a prompt, for attention
    int adapterTiles;     // tiles of rows of a prompt, for adapters
    int slices[4];        // of a row's z at qkv, output, gate-up and down: the most that any adapter of the step has
};

#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
