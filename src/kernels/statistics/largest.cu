// The most probable word of each row of logits [V]: the id of the largest logit, the first of equals. NONE if a logit is NaN or the largest
// is not finite. One block per row.

#define THREADS 512
#define NONE 0xffffffffu
#define INFINITE __int_as_float(0x7f800000)

struct Candidate {
    float logit;
    u32 id;

    __device__ __forceinline__ void meet(float other_logit, u32 other_id) {
        if (other_logit > logit || (other_logit == logit && other_id < id)) logit = other_logit, id = other_id;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) largest_of_rows(const float* logits, u32* ids, u32 vocabulary) {
    __shared__ float warp_logits[THREADS / WARP];
    __shared__ u32 warp_ids[THREADS / WARP];
    const float* row = logits + (u64)blockIdx.x * vocabulary;
    Candidate own = {-INFINITE, NONE};
    bool is_finite = true;
    for (u32 i = threadIdx.x; i < vocabulary; i += THREADS) {
        float logit = row[i];
        is_finite = is_finite && logit < INFINITE;
        if (logit > own.logit) own = {logit, i};
    }
    // Infinity exceeds all other logits, so it is kept.
    if (!is_finite) own = {INFINITE, NONE};
    for (int lane = WARP / 2; lane > 0; lane /= 2) {
        float logit = __shfl_xor_sync(ALL_LANES, own.logit, lane);
        u32 id = __shfl_xor_sync(ALL_LANES, own.id, lane);
        own.meet(logit, id);
    }
    if (threadIdx.x % WARP == 0) warp_logits[threadIdx.x / WARP] = own.logit, warp_ids[threadIdx.x / WARP] = own.id;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (u32 i = 1; i < THREADS / WARP; ++i) own.meet(warp_logits[i], warp_ids[i]);
    ids[blockIdx.x] = own.id;
}
