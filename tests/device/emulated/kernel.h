// CUDA C++ for g++: what a kernel may use, as the CUDA C++ Programming Guide and the PTX ISA define it. Every kernel is compiled behind it.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <tuple>

#include "device.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define threadIdx (emulated::here->thread)
#define blockIdx (emulated::here->block)
#define blockDim (emulated::here->threads)
#define gridDim (emulated::here->blocks)
static constexpr int warpSize = 32;

// clang-format off
#define VECTORS(T, name) \
    struct __align__(2 * sizeof(T)) name##2 { T x, y; }; \
    struct name##3 { T x, y, z; }; \
    struct __align__(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; }; \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; } \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTORS(float, float)
VECTORS(double, double)
VECTORS(int, int)
VECTORS(unsigned, uint)
VECTORS(short, short)
VECTORS(unsigned short, ushort)
#undef VECTORS
// clang-format on

template <typename To, typename From>
inline To emulated_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof(To));
    return to;
}
inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
inline int __float_as_int(float x) { return emulated_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
inline float __int_as_float(int x) { return emulated_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulated_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulated_bits<double>(x); }

// As in CUDA, a mixed pair is compared as unsigned.
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline unsigned min(int a, unsigned b) { return min((unsigned)a, b); }
inline unsigned min(unsigned a, int b) { return min(a, (unsigned)b); }
inline unsigned max(int a, unsigned b) { return max((unsigned)a, b); }
inline unsigned max(unsigned a, int b) { return max(a, (unsigned)b); }
inline unsigned long long min(unsigned long long a, unsigned long long b) { return a < b ? a : b; }
inline unsigned long long max(unsigned long long a, unsigned long long b) { return a > b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
// Never part of a fused multiply-add.
inline double __dmul_rn(double a, double b) {
    double product = a * b;
    asm("" : "+x"(product));
    return product;
}
inline float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }

template <typename T>
inline T __ldg(const T* from) {
    return *from;
}

// --- memory that several threads change ---

template <typename T, typename Change>
inline T emulated_change(T* at, Change change) {
    T old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (true) {
        T wanted = change(old);
        if (__atomic_compare_exchange_n(at, &old, wanted, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) return old;
    }
}
template <typename T>
inline T atomicAdd(T* at, T x) {
    return __atomic_fetch_add(at, x, __ATOMIC_SEQ_CST);
}
template <>
inline float atomicAdd(float* at, float x) {
    unsigned old = emulated_change((unsigned*)at, [=](unsigned old) { return __float_as_uint(__uint_as_float(old) + x); });
    return __uint_as_float(old);
}
template <>
inline double atomicAdd(double* at, double x) {
    long long old = emulated_change((long long*)at, [=](long long old) { return __double_as_longlong(__longlong_as_double(old) + x); });
    return __longlong_as_double(old);
}
template <typename T>
inline T atomicMin(T* at, T x) {
    return emulated_change(at, [=](T old) { return old < x ? old : x; });
}
template <typename T>
inline T atomicMax(T* at, T x) {
    return emulated_change(at, [=](T old) { return old > x ? old : x; });
}
template <typename T>
inline T atomicExch(T* at, T x) {
    return __atomic_exchange_n(at, x, __ATOMIC_SEQ_CST);
}
template <typename T>
inline T atomicCAS(T* at, T expected, T wanted) {
    __atomic_compare_exchange_n(at, &expected, wanted, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return expected;
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

// --- what threads do together ---

inline void __syncthreads() { emulated::sync_threads(); }

// The thread's place in its warp.
inline unsigned emulated_lane() {
    const emulated::Place& at = *emulated::here;
    return (at.thread.x + at.threads.x * (at.thread.y + at.threads.y * at.thread.z)) % 32;
}

// Calls `each(part, lane)` for every lane that is there.
template <typename Part, typename Each>
inline void emulated_each(unsigned lanes, void** parts, Each each) {
    for (unsigned lane = 0; lane < 32; ++lane) {
        if (lanes >> lane & 1) each(*(Part*)parts[lane], lane);
    }
}

inline void __syncwarp(unsigned mask = 0xffffffffu) {
    emulated::meet(mask, [](void**, unsigned) {}, nullptr);
}

// The value of lane `source`. That of a lane which does not take part is undefined: all bits 1, not a number.
template <typename T>
inline T emulated_shuffle(unsigned mask, T value, unsigned source) {
    struct Part {
        T value, result;
        unsigned source;
    } part = {value, value, source};
    auto work = [](void** parts, unsigned lanes) {
        emulated_each<Part>(lanes, parts, [=](Part& part, unsigned) {
            if (lanes >> part.source & 1) part.result = ((Part*)parts[part.source])->value;
            else memset(&part.result, 0xff, sizeof(T));
        });
    };
    emulated::meet(mask, work, &part);
    return part.result;
}
template <typename T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    return emulated_shuffle(mask, value, (emulated_lane() & ~(width - 1)) | (source & (width - 1)));
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    unsigned lane = emulated_lane(), source = lane ^ lanes;
    // A lane of a later group is out of reach.
    return emulated_shuffle(mask, value, source < (lane & ~(width - 1)) + width ? source : lane);
}
template <typename T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32) {
    unsigned lane = emulated_lane();
    return emulated_shuffle(mask, value, (lane & (width - 1)) + lanes < (unsigned)width ? lane + lanes : lane);
}
template <typename T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32) {
    unsigned lane = emulated_lane();
    return emulated_shuffle(mask, value, (lane & (width - 1)) >= lanes ? lane - lanes : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    struct Part {
        bool holds;
        unsigned result;
    } part = {predicate != 0, 0};
    auto work = [](void** parts, unsigned lanes) {
        unsigned all = 0;
        emulated_each<Part>(lanes, parts, [&](Part& part, unsigned lane) { all |= (unsigned)part.holds << lane; });
        emulated_each<Part>(lanes, parts, [=](Part& part, unsigned) { part.result = all; });
    };
    emulated::meet(mask, work, &part);
    return part.result;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

// --- the instructions of common.cuh, which are PTX on a card ---

#define EMULATED_INSTRUCTIONS

// cvt.rn.bf16.f32: to nearest, ties to even.
inline unsigned short round_bf16(float x) {
    unsigned bits = __float_as_uint(x);
    if (x != x) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// cvt.rn.bf16x2.f32
inline unsigned round_bf16_pair(float low, float high) { return round_bf16(low) | (unsigned)round_bf16(high) << 16; }

// ex2.approx.ftz.f32: subnormal numbers are 0 on both sides.
inline float exp2_fast(float x) {
    float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}

// max.NaN.f32
inline float max_or_nan(float a, float b) { return a != a || b != b ? NAN : fmaxf(a, b); }

// cp.async.cg.shared.global
inline void copy_async(void* to, const void* from, bool is_there) { emulated::copy_async(to, from, is_there ? 16 : 0); }
inline void commit_copies() { emulated::commit_copies(); }
template <int LEFT = 0>
inline void wait_for_copies() {
    emulated::wait_for_copies(LEFT);
}

// ldmatrix.x4: lane 8 m + r brings the address of row r of matrix m; lane 4 r + c gets elements 2 c and 2 c + 1 of row r of each, or of
// column r where they are transposed.
template <bool TRANSPOSED>
inline void emulated_load_matrices(unsigned (&to)[4], const unsigned short* from) {
    struct Part {
        unsigned (&to)[4];
        const unsigned short* row;
    } part = {to, from};
    emulated::expect_shared(from, 16);
    auto work = [](void** parts, unsigned lanes) {
        if (lanes != 0xffffffffu) emulated::fail("ldmatrix without some lanes of its warp");
        auto row = [=](unsigned lane) { return ((Part*)parts[lane])->row; };
        emulated_each<Part>(lanes, parts, [=](Part& part, unsigned lane) {
            unsigned r = lane / 4, c = lane % 4 * 2;
            for (unsigned m = 0; m < 4; ++m) {
                unsigned low = TRANSPOSED ? row(8 * m + c)[r] : row(8 * m + r)[c];
                unsigned high = TRANSPOSED ? row(8 * m + c + 1)[r] : row(8 * m + r)[c + 1];
                part.to[m] = low | high << 16;
            }
        });
    };
    emulated::meet(0xffffffffu, work, &part);
}
inline void load_matrices(unsigned (&to)[4], const unsigned short* from) { emulated_load_matrices<false>(to, from); }
inline void load_matrices_transposed(unsigned (&to)[4], const unsigned short* from) { emulated_load_matrices<true>(to, from); }

// mma.sync.m16n8k16.row.col.f32.bf16.bf16.f32. With g = lane / 4 and c = 2 (lane % 4): a[i] holds row g + 8 (i % 2), columns c + 8 (i / 2)
// and the next; b_i rows c + 8 i and the next of column g; sum[i] row g + 8 (i / 2), column c + i % 2.
inline void multiply_add(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    struct Part {
        float (&sum)[4];
        const unsigned (&a)[4];
        unsigned b[2];
    } part = {sum, a, {b0, b1}};
    auto work = [](void** parts, unsigned lanes) {
        if (lanes != 0xffffffffu) emulated::fail("mma without some lanes of its warp");
        float left[16][16], right[16][8], sums[16][8];
        for (unsigned lane = 0; lane < 32; ++lane) {
            const Part& part = *(Part*)parts[lane];
            unsigned g = lane / 4, c = lane % 4 * 2;
            for (unsigned i = 0; i < 4; ++i) {
                left[g + i % 2 * 8][c + i / 2 * 8] = __uint_as_float(part.a[i] << 16);
                left[g + i % 2 * 8][c + i / 2 * 8 + 1] = __uint_as_float(part.a[i] & 0xffff0000u);
                sums[g + i / 2 * 8][c + i % 2] = part.sum[i];
            }
            for (unsigned i = 0; i < 2; ++i) {
                right[c + 8 * i][g] = __uint_as_float(part.b[i] << 16);
                right[c + 8 * i + 1][g] = __uint_as_float(part.b[i] & 0xffff0000u);
            }
        }
        for (unsigned row = 0; row < 16; ++row) {
            for (unsigned k = 0; k < 16; ++k) {
                for (unsigned column = 0; column < 8; ++column) sums[row][column] += left[row][k] * right[k][column];
            }
        }
        for (unsigned lane = 0; lane < 32; ++lane) {
            for (unsigned i = 0; i < 4; ++i) ((Part*)parts[lane])->sum[i] = sums[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
        }
    };
    emulated::meet(0xffffffffu, work, &part);
}

// --- how nvrtc.cpp rewrites shared variables and hands out kernels ---

template <typename T, typename Key>
inline T& emulated_shared(Key, size_t alignment) {
    static const char key = 0;
    return *(T*)emulated::shared_variable(&key, sizeof(T), alignment);
}

template <typename... P, size_t... I>
inline std::function<void()> emulated_bind(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
    return [kernel, values = std::tuple<P...>(*(P*)arguments[I]...)] { std::apply(kernel, values); };
}
template <typename... P>
inline std::function<void()> emulated_bind(void (*kernel)(P...), void** arguments) {
    return emulated_bind(kernel, arguments, std::index_sequence_for<P...>());
}
#define EMULATED_KERNEL(name, max_threads) \
    extern "C" const emulated::Kernel emulated_kernel_##name = { \
        [](void** arguments) { return emulated_bind(name, arguments); }, max_threads};
