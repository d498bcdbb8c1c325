// What every CUDA source of this program begins with: no header of CUDA is needed, so that NVRTC compiles it anywhere.
//
// Written for sm_80 and later: bfloat16 conversions, asynchronous copies and the m16n8k16 product are instructions from there on.

typedef unsigned short bf16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define WARP 32
#define ALL_LANES 0xffffffffu

__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float((u32)x << 16); }

// Round to nearest, ties to even.
__device__ __forceinline__ bf16 round_bf16(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

// Two numbers as bfloat16, `low` in the lower half.
__device__ __forceinline__ u32 round_bf16_pair(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

__device__ __forceinline__ float load(const float* from, u64 i) { return from[i]; }
__device__ __forceinline__ float load(const bf16* from, u64 i) { return widen(from[i]); }
__device__ __forceinline__ void store(float* to, u64 i, float x) { to[i] = x; }
__device__ __forceinline__ void store(bf16* to, u64 i, float x) { to[i] = round_bf16(x); }

// Two neighbouring numbers, at an even place.
__device__ __forceinline__ float2 load_pair(const float* from) { return *(const float2*)from; }
__device__ __forceinline__ float2 load_pair(const bf16* from) {
    u32 pair = *(const u32*)from;
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}
__device__ __forceinline__ void store_pair(float* to, float a, float b) { *(float2*)to = make_float2(a, b); }
__device__ __forceinline__ void store_pair(bf16* to, float a, float b) { *(u32*)to = round_bf16_pair(a, b); }

// Four of them, at a place that four divides.
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
