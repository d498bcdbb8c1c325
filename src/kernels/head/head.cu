// What the model believed about each target token, from rows of logits; the same formulas as running.rs and reference.rs.
//
// One block of 1,024 threads a row, two passes over it. Sums run over all words but the target, relative to the largest logit `m`, with
// d = logit - m and e = exp(d): terms of one thread in f32, of the block in f64. The K largest logits are found exactly. The words are
// dealt to GROUPS groups of threads; the K-th largest of the groups' own maxima, `least`, is a lower bound of the K-th largest logit; all
// logits above `least` lie with fewer than K groups, so that a list of (K - 1) times a group's words holds them, and the rest of the K
// equals `least`.

#define THREADS 1024
// One for four threads; K may not be larger.
#define GROUPS 256
#define GROUP (THREADS / GROUPS)
#define N_SUMS 6

#define MINUS_INFINITY __int_as_float(0xff800000)
#define NOT_A_NUMBER __int_as_float(0x7fc00000)

struct TokenStatistics {
    float logprob, entropy, entropy_topk;
    u32 rank;
    float tail, varentropy, grad;
    u32 top_id;
    float top_logprob;
};

__device__ __forceinline__ float capped(float logit, float softcap) {
    return softcap > 0.0f ? tanhf(logit / softcap) * softcap : logit;
}

struct Word {
    float logit;
    u32 id;
};

// The larger; of equals the one with the lower id. A NaN is never larger.
__device__ __forceinline__ Word larger(Word a, Word b) {
    return b.logit > a.logit || (b.logit == a.logit && b.id < a.id) ? b : a;
}

__device__ __forceinline__ Word larger_of_lanes(Word x, int lanes) {
    for (int lane = lanes / 2; lane > 0; lane /= 2) {
        Word other = {__shfl_xor_sync(ALL_LANES, x.logit, lane), __shfl_xor_sync(ALL_LANES, x.id, lane)};
        x = larger(x, other);
    }
    return x;
}

// logits [N, V] f32, targets [N], statistics [N]. Dynamic shared memory: top_k floats, then the list of
// (top_k - 1) * GROUP * ceil(V / THREADS). Where `top_logits` [N, top_k] is not null, it gets the K largest, largest first.
extern "C" __global__ void __launch_bounds__(THREADS)
token_statistics(const float* logits, const u32* targets, TokenStatistics* statistics, float* top_logits, u32 vocabulary, u32 top_k,
                 float softcap) {
    __shared__ float maxima[GROUPS];
    __shared__ double sums[N_SUMS][WARP];
    __shared__ Word tops[WARP];
    __shared__ float least;
    __shared__ u32 n_listed;
    extern __shared__ float largest[];
    float* list = largest + top_k;

    const float* row = logits + (u64)blockIdx.x * vocabulary;
    u32 target = targets[blockIdx.x], warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float target_logit = capped(row[target], softcap);

    // First pass: the largest logit of each thread, of each group, of all.
    Word top = {MINUS_INFINITY, 0xffffffffu};
    for (u32 v = threadIdx.x; v < vocabulary; v += THREADS) {
        Word word = {capped(row[v], softcap), v};
        top = larger(top, word);
    }
    Word group_top = larger_of_lanes(top, GROUP);
    if (threadIdx.x % GROUP == 0) maxima[threadIdx.x / GROUP] = group_top.logit;
    top = larger_of_lanes(top, WARP);
    if (lane == 0) tops[warp] = top;
    if (threadIdx.x == 0) n_listed = 0;
    __syncthreads();
    top = larger_of_lanes(tops[lane], WARP);

    // The K-th largest of the maxima; ties are told apart by the group.
    if (threadIdx.x < GROUPS) {
        u32 before = 0;
        float own = maxima[threadIdx.x];
        for (u32 i = 0; i < GROUPS; ++i) before += maxima[i] > own || (maxima[i] == own && i < threadIdx.x);
        if (before == top_k - 1) least = own;
    }
    __syncthreads();

    // Second pass.
    float e_sum = 0.0f, e_d = 0.0f, e_dd = 0.0f, e_e = 0.0f, tail = 0.0f;
    u32 n_larger = 0;
    for (u32 v = threadIdx.x; v < vocabulary; v += THREADS) {
        float logit = capped(row[v], softcap);
        if (logit > least) list[atomicAdd(&n_listed, 1u)] = logit;
        if (v == target) continue;
        // Below -100 there is no mass in f32, and -inf would make NaN of its product with its own exponential.
        float d = logit - top.logit;
        d = d < -100.0f ? -100.0f : d;
        float e = expf(d);
        e_sum += e;
        e_d += e * d;
        e_dd += e * d * d;
        e_e += e * e;
        tail += logit <= target_logit ? e : 0.0f;
        n_larger += logit > target_logit;
    }
    double own[N_SUMS] = {e_sum, e_d, e_dd, e_e, tail, (double)n_larger};
#pragma unroll
    for (int i = 0; i < N_SUMS; ++i) {
        own[i] = warp_sum(own[i]);
        if (lane == 0) sums[i][warp] = own[i];
    }
    for (u32 i = threadIdx.x; i < top_k; i += THREADS) largest[i] = least;
    __syncthreads();
    // The K largest in order: a listed logit's place is the number of larger ones.
    for (u32 i = threadIdx.x; i < n_listed; i += THREADS) {
        u32 place = 0;
        for (u32 j = 0; j < n_listed; ++j) place += list[j] > list[i] || (list[j] == list[i] && j < i);
        if (place < top_k) largest[place] = list[i];
    }
    __syncthreads();
    if (warp != 0) return;

#pragma unroll
    for (int i = 0; i < N_SUMS; ++i) own[i] = warp_sum(sums[i][lane]);
    double top_e = 0.0, top_ed = 0.0;
    for (u32 k = lane; k < top_k; k += WARP) {
        // -inf has no mass: 0 ln 0 = 0.
        if (top_logits) top_logits[(u64)blockIdx.x * top_k + k] = largest[k];
        if (largest[k] > MINUS_INFINITY) {
            double d = (double)largest[k] - (double)largest[0], e = exp(d);
            top_e += e;
            top_ed += e * d;
        }
    }
    top_e = warp_sum(top_e);
    top_ed = warp_sum(top_ed);
    if (lane != 0) return;

    double others_e = own[0], d = (double)target_logit - (double)top.logit, e = exp(d), total = others_e + e;
    TokenStatistics out = {NOT_A_NUMBER, NOT_A_NUMBER, NOT_A_NUMBER, 0, NOT_A_NUMBER, NOT_A_NUMBER, NOT_A_NUMBER, 0, NOT_A_NUMBER};
    // One NaN or +inf makes `e d` NaN; nothing but -inf leaves no mass.
    if (total > 0.0 && own[1] - own[1] == 0.0) {
        double ed = e > 0.0 ? e * d : 0.0, edd = e > 0.0 ? e * d * d : 0.0;
        // ln p = -ln(1 + others / e), exact also where p is close to 1.
        double ln_total = d == 0.0 ? log1p(others_e) : log(total);
        double mean_d = (own[1] + ed) / total, not_target = others_e / total;
        out.logprob = (float)(e > 0.0 ? -log1p(others_e / e) : d - ln_total);
        out.entropy = (float)(ln_total - mean_d);
        out.entropy_topk = (float)(top_k > 1 ? (log(top_e) - top_ed / top_e) / log((double)top_k) : 0.0);
        out.rank = 1 + (u32)own[5];
        out.tail = (float)fmin((own[4] + e) / total, 1.0);
        out.varentropy = (float)fmax((own[2] + edd) / total - mean_d * mean_d, 0.0);
        out.grad = (float)sqrt(not_target * not_target + own[3] / (total * total));
        out.top_id = top.id;
        out.top_logprob = (float)-ln_total;
    }
    statistics[blockIdx.x] = out;
}
