// Root-mean-square normalisation, as norm.rs defines it: y = x / sqrt(mean(x^2) + eps) * weight, in f32.
//
// One block a row. x [T, D] f32; y [T, D] f32 or bf16. With `add`, y is f32 and the result is added to what stands there: the norm
// behind what a block adds to the residual stream (Gemma 3).

template <typename Out, bool ADD>
__device__ void rms_norm(const float* x, const float* weight, Out* y, u32 width, float eps) {
    __shared__ float sums[WARP];
    const float* row = x + (u64)blockIdx.x * width;
    Out* to = y + (u64)blockIdx.x * width;
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) squares += row[i] * row[i];
    squares = block_sum(squares, sums);
    float scale = 1.0f / sqrtf(squares / (float)width + eps);
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float normed = row[i] * scale * weight[i];
        store(to, i, ADD ? load(to, i) + normed : normed);
    }
}

extern "C" __global__ void rms_norm_f32(const float* x, const float* weight, float* y, u32 width, float eps) {
    rms_norm<float, false>(x, weight, y, width, eps);
}

extern "C" __global__ void rms_norm_bf16(const float* x, const float* weight, bf16* y, u32 width, float eps) {
    rms_norm<bf16, false>(x, weight, y, width, eps);
}

extern "C" __global__ void rms_norm_add(const float* x, const float* weight, float* y, u32 width, float eps) {
    rms_norm<float, true>(x, weight, y, width, eps);
}
