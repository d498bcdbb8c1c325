// The common beginning of every CUDA source of this program. It needs no CUDA header, so NVRTC can compile it anywhere.
//
// Requires sm_80 or later, for bfloat16 conversions, asynchronous copies and the m16n8k16 product. All PTX instructions are in this file,
// as functions; tests/device/emulated implements them for a CPU.

typedef unsigned short bf16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define WARP 32
#define ALL_LANES 0xffffffffu

__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float((u32)x << 16); }

#ifndef EMULATED_INSTRUCTIONS

// Rounds to nearest, ties to even.
__device__ __forceinline__ bf16 round_bf16(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

// Converts two numbers to bfloat16, with `low` in the lower half.
__device__ __forceinline__ u32 round_bf16_pair(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// 2^x within two units in the last place; 0 if that is subnormal.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The larger number, or NaN if either is NaN.
__device__ __forceinline__ float max_or_nan(float a, float b) {
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}

__device__ __forceinline__ u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// Starts copying 16 bytes, or zeros, to shared memory; they can be read after wait_for_copies.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool is_there) {
    int bytes = is_there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}

// Makes one group of this thread's copies so far.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all groups of this thread except the last LEFT have arrived.
template <int LEFT = 0>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// Loads four 8 by 8 matrices from shared memory: lane 8 m + r gives the address of row r of matrix m, and lane 4 r + c gets elements 2 c
// and 2 c + 1 of row r of each.
__device__ __forceinline__ void load_matrices(u32 (&to)[4], const bf16* from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(from))
                 : "memory");
}

// Like load_matrices, with the matrices transposed.
__device__ __forceinline__ void load_matrices_transposed(u32 (&to)[4], const bf16* from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(from))
                 : "memory");
}

// sum [16, 8] += a [16, 16] b [16, 8]
__device__ __forceinline__ void multiply_add(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#endif

__device__ __forceinline__ float load(const float* from, u64 i) { return from[i]; }
__device__ __forceinline__ float load(const bf16* from, u64 i) { return widen(from[i]); }
__device__ __forceinline__ void store(float* to, u64 i, float x) { to[i] = x; }
__device__ __forceinline__ void store(bf16* to, u64 i, float x) { to[i] = round_bf16(x); }

// Loads two neighbouring numbers, at an even index.
__device__ __forceinline__ float2 load_pair(const float* from) { return *(const float2*)from; }
__device__ __forceinline__ float2 load_pair(const bf16* from) {
    u32 pair = *(const u32*)from;
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}
__device__ __forceinline__ void store_pair(float* to, float a, float b) { *(float2*)to = make_float2(a, b); }
__device__ __forceinline__ void store_pair(bf16* to, float a, float b) { *(u32*)to = round_bf16_pair(a, b); }

// Loads or stores four of them, at an index divisible by four.
__device__ __forceinline__ float4 load_four(const float* from) { return *(const float4*)from; }
__device__ __forceinline__ void store_four(float* to, float4 x) { *(float4*)to = x; }
__device__ __forceinline__ void store_four(bf16* to, float4 x) {
    *(uint2*)to = make_uint2(round_bf16_pair(x.x, x.y), round_bf16_pair(x.z, x.w));
}

__device__ __forceinline__ float warp_sum(float x) {
    for (int lane = WARP / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(ALL_LANES, x, lane);
    return x;
}

__device__ __forceinline__ double warp_sum(double x) {
    for (int lane = WARP / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(ALL_LANES, x, lane);
    return x;
}
