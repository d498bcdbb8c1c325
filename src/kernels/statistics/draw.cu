// Samples a token from each row of logits, with the same bits as engine/generate/sampling.rs on the host: the weight of a token is
// exp((logit - largest) scale), by the exponential of exp.rs with fused multiply-adds; weights are summed in f64, in blocks of 512 from the
// first on, and the result is the first token at which the cumulative sum exceeds a random number times the total.

#define BLOCK 512
#define THREADS 128
#define NONE 0xffffffffu

__device__ __forceinline__ float share_of(float logit, float largest, float scale) {
    // Avoids 0 times infinity: the largest logit gives 0 for any scale.
    float x = logit == largest ? 0.0f : (logit - largest) * scale;
    if (x < -87.33654f) return 0.0f;
    float rounded = fmaf(x, 1.44269504088896340736f, 12582912.0f), n = rounded - 12582912.0f;
    float r = fmaf(n, 2.1219444e-4f, fmaf(n, -355.0f / 512.0f, x));
    float p = 1.9875691e-4f;
    p = fmaf(p, r, 1.3981999e-3f);
    p = fmaf(p, r, 8.333452e-3f);
    p = fmaf(p, r, 4.1665796e-2f);
    p = fmaf(p, r, 1.6666665e-1f);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r * r, r) + 1.0f;
    return __uint_as_float(__float_as_uint(p) + (__float_as_uint(rounded) << 23));
}

// The weights of the tokens of a block of the vocabulary, 0 past its end. All threads of the block must take part.
__device__ __forceinline__ void shares_of(float* shares, const float* logits, u32 block, u32 vocabulary, float largest, float scale) {
    for (u32 j = threadIdx.x; j < BLOCK; j += THREADS) {
        u32 id = block * BLOCK + j;
        shares[j] = id < vocabulary ? share_of(logits[id], largest, scale) : 0.0f;
    }
    __syncthreads();
}

// logits [N, V] and the ids of their largest [N], NONE if a row has none -> sums [N, ceil(V / 512)] of the weights of each block.
extern "C" __global__ void __launch_bounds__(THREADS)
sum_shares(const float* logits, const u32* largest, double* sums, u32 vocabulary, float scale) {
    __shared__ float shares[BLOCK];
    u32 row = blockIdx.y;
    if (largest[row] == NONE) return;
    logits += (u64)row * vocabulary;
    shares_of(shares, logits, blockIdx.x, vocabulary, logits[largest[row]], scale);
    if (threadIdx.x == 0) {
        double sum = 0.0;
        for (u32 j = 0; j < BLOCK; ++j) sum += shares[j];
        sums[(u64)row * gridDim.x + blockIdx.x] = sum;
    }
}

// The same, and random numbers in 0..1 [N] -> ids [N]; NONE stays NONE. One block per row.
extern "C" __global__ void __launch_bounds__(THREADS)
draw(const float* logits, const u32* largest, const double* sums, const double* randoms, u32* ids, u32 vocabulary, float scale) {
    __shared__ float shares[BLOCK];
    __shared__ u32 block, found;
    u32 row = blockIdx.x, n_blocks = (vocabulary + BLOCK - 1) / BLOCK;
    if (largest[row] == NONE) {
        if (threadIdx.x == 0) ids[row] = NONE;
        return;
    }
    logits += (u64)row * vocabulary, sums += (u64)row * n_blocks;
    float top = logits[largest[row]];
    double rest = 0.0;
    if (threadIdx.x == 0) {
        double all = 0.0;
        for (u32 i = 0; i < n_blocks; ++i) all += sums[i];
        // Rounded separately, as on the host.
        rest = __dmul_rn(randoms[row], all);
        block = 0, found = NONE;
    }
    while (true) {
        if (threadIdx.x == 0) {
            while (block < n_blocks && rest >= sums[block]) rest -= sums[block++];
        }
        __syncthreads();
        if (block == n_blocks) break;
        shares_of(shares, logits, block, vocabulary, top, scale);
        if (threadIdx.x == 0) {
            u32 len = min(vocabulary - block * BLOCK, BLOCK);
            for (u32 j = 0; j < len && found == NONE; ++j) {
                if (rest < shares[j]) found = block * BLOCK + j;
                else rest -= shares[j];
            }
            ++block;
        }
        __syncthreads();
        if (found != NONE) break;
    }
    // If rounding left a small remainder, this takes the last token with any weight.
    if (found == NONE) {
        __syncthreads();
        if (threadIdx.x == 0) found = 0;
        __syncthreads();
        for (u32 id = threadIdx.x; id < vocabulary; id += THREADS) {
            if (share_of(logits[id], top, scale) > 0.0f) atomicMax(&found, id);
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) ids[row] = found;
}
