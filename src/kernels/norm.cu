// Root-mean-square normalisation, as defined in norm.rs: y = x / sqrt(mean(x^2) + eps) * weight, in f32.
//
// x [T, D] f32; y [T, D] f32 or bf16. With ADD, y is f32 and the result is added to it: for the norm on what a block adds to the residual
// stream (Gemma 3). A block has 256 threads; `row_threads` of them (32, 128 or 256) process a row, four numbers at a time if D is divisible
// by four, which then stay in registers between the sum and the result.

#define THREADS 256
// The groups of four numbers that a thread keeps.
#define KEPT 8

// The sum over the threads of one row.
__device__ __forceinline__ float row_sum(float x, u32 row_threads, float* shared) {
    x = warp_sum(x);
    if (row_threads == WARP) return x;
    u32 warp = threadIdx.x / WARP, first = warp - warp % (row_threads / WARP);
    if (threadIdx.x % WARP == 0) shared[warp] = x;
    __syncthreads();
    x = 0.0f;
    for (u32 i = 0; i < row_threads / WARP; ++i) x += shared[first + i];
    return x;
}

template <typename Out, bool ADD>
__device__ void rms_norm(const float* x, const float* weight, Out* y, u32 rows, u32 width, u32 row_threads, float eps) {
    __shared__ float sums[THREADS / WARP];
    u32 row = blockIdx.x * (THREADS / row_threads) + threadIdx.x / row_threads, thread = threadIdx.x % row_threads;
    // All threads have to reach the barrier; those without a row read the last one.
    bool has_row = row < rows;
    const float* from = x + (u64)min(row, rows - 1) * width;
    Out* to = y + (u64)min(row, rows - 1) * width;
    float squares = 0.0f;
    if (width % 4 == 0 && width <= 4 * KEPT * row_threads) {
        float4 kept[KEPT];
#pragma unroll
        for (int k = 0; k < KEPT; ++k) {
            u32 i = 4 * (thread + k * row_threads);
            kept[k] = i < width ? load_four(from + i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            squares += kept[k].x * kept[k].x + kept[k].y * kept[k].y + kept[k].z * kept[k].z + kept[k].w * kept[k].w;
        }
        float scale = 1.0f / sqrtf(row_sum(squares, row_threads, sums) / (float)width + eps);
        if (!has_row) return;
#pragma unroll
        for (int k = 0; k < KEPT; ++k) {
            u32 i = 4 * (thread + k * row_threads);
            if (i >= width) break;
            float4 w = load_four(weight + i);
            float4 z = make_float4(kept[k].x * scale * w.x, kept[k].y * scale * w.y, kept[k].z * scale * w.z, kept[k].w * scale * w.w);
            if (ADD) {
                float4 old = load_four((const float*)to + i);
                z = make_float4(old.x + z.x, old.y + z.y, old.z + z.z, old.w + z.w);
            }
            store_four(to + i, z);
        }
        return;
    }
    for (u32 i = thread; i < width; i += row_threads) squares += from[i] * from[i];
    float scale = 1.0f / sqrtf(row_sum(squares, row_threads, sums) / (float)width + eps);
    if (!has_row) return;
    for (u32 i = thread; i < width; i += row_threads) {
        float normed = from[i] * scale * weight[i];
        store(to, i, ADD ? load(to, i) + normed : normed);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
rms_norm_f32(const float* x, const float* weight, float* y, u32 rows, u32 width, u32 row_threads, float eps) {
    rms_norm<float, false>(x, weight, y, rows, width, row_threads, eps);
}

extern "C" __global__ void __launch_bounds__(THREADS)
rms_norm_bf16(const float* x, const float* weight, bf16* y, u32 rows, u32 width, u32 row_threads, float eps) {
    rms_norm<bf16, false>(x, weight, y, rows, width, row_threads, eps);
}

extern "C" __global__ void __launch_bounds__(THREADS)
rms_norm_add(const float* x, const float* weight, float* y, u32 rows, u32 width, u32 row_threads, float eps) {
    rms_norm<float, true>(x, weight, y, rows, width, row_threads, eps);
}
