// Experts: who computes which tokens, and what becomes of their outputs. Shapes: T tokens, E experts, K of them for each token, D width.
//
// `choose_experts` picks each token's experts and their weights from the router's logits. `count_experts` and `list_tokens` sort the T K
// choices by expert, those of one expert in the order of the tokens, so that each expert multiplies rows that lie side by side: its slots,
// filled up to a multiple of `padding` with rows that nobody reads, as many different products would have to be planned as there are numbers
// of tokens. `add_experts` adds each token's outputs to the residual stream, in the order of the experts.

#define CHOOSING_WARPS 8
#define LISTING_THREADS 256
#define MINUS_INFINITY __int_as_float(0xff800000)
#define NOT_A_NUMBER __int_as_float(0x7fffffff)
// The weights of a token's experts are divided by a sum, which this is added to: it changes none that matters, and none is 0.
#define LEAST 1e-20f

// logits [T, E], `bias` and `correction` [E] or null -> experts and weights [T, K], a token's experts in ascending order. A score is the
// logit's share of all (softmax) or its sigmoid; the `correction` is added to choose, and left out of the weights; of equals the first is
// chosen. Where a score is not a number, the experts are E. One warp a token, each with 2 E + K words of shared memory.
extern "C" __global__ void __launch_bounds__(CHOOSING_WARPS* WARP)
choose_experts(const float* logits, const float* bias, const float* correction, u32* experts, float* weights, u32 n_tokens, u32 n_experts,
               u32 per_token, u32 softmax, u32 normalise, float scale) {
    extern __shared__ float choosing[];
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, token = blockIdx.x * CHOOSING_WARPS + warp;
    if (token >= n_tokens) return;
    float* scores = choosing + warp * (2 * n_experts + per_token);
    float* compared = scores + n_experts;
    u32* chosen = (u32*)(compared + n_experts);
    logits += (u64)token * n_experts, experts += (u64)token * per_token, weights += (u64)token * per_token;

    float largest = MINUS_INFINITY;
    for (u32 e = lane; e < n_experts; e += WARP) {
        scores[e] = logits[e] + (bias ? bias[e] : 0.0f);
        largest = fmaxf(largest, scores[e]);
    }
    for (int other = WARP / 2; other > 0; other /= 2) largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, other));
    float sum = 0.0f;
    for (u32 e = lane; e < n_experts; e += WARP) {
        scores[e] = softmax ? expf(scores[e] - largest) : 1.0f / (1.0f + expf(-scores[e]));
        sum += scores[e];
    }
    sum = softmax ? warp_sum(sum) : 1.0f;
    float damaged = 0.0f;
    for (u32 e = lane; e < n_experts; e += WARP) {
        scores[e] /= sum;
        compared[e] = scores[e] + (correction ? correction[e] : 0.0f);
        if (compared[e] != compared[e]) damaged = 1.0f;
    }
    if (warp_sum(damaged) > 0.0f) {
        for (u32 k = lane; k < per_token; k += WARP) experts[k] = n_experts, weights[k] = 0.0f;
        return;
    }

    for (u32 k = 0; k < per_token; ++k) {
        float best = MINUS_INFINITY;
        u32 found = n_experts;
        for (u32 e = lane; e < n_experts; e += WARP) {
            // Those that are chosen are no numbers any more.
            if (compared[e] > best || (found == n_experts && compared[e] == best)) best = compared[e], found = e;
        }
        for (int other = WARP / 2; other > 0; other /= 2) {
            float their_best = __shfl_xor_sync(ALL_LANES, best, other);
            u32 their_found = __shfl_xor_sync(ALL_LANES, found, other);
            if (their_best > best || (their_best == best && their_found < found)) best = their_best, found = their_found;
        }
        if (lane == 0) chosen[k] = found, compared[found] = NOT_A_NUMBER;
        __syncwarp();
    }
    float total = 0.0f;
    for (u32 k = 0; k < per_token; ++k) total += scores[chosen[k]];
    total = normalise ? total + LEAST : 1.0f;
    for (u32 k = lane; k < per_token; k += WARP) {
        u32 place = 0;
        for (u32 other = 0; other < per_token; ++other) place += chosen[other] < chosen[k];
        experts[place] = chosen[k];
        weights[place] = scores[chosen[k]] / total * scale;
    }
}

// The sum of `own` over the threads before this one, and that over all of them. All threads of the block take part.
__device__ __forceinline__ u32 sum_before(u32 own, u32& all) {
    __shared__ u32 sums[LISTING_THREADS];
    __syncthreads();  // Nobody reads the last ones any more.
    sums[threadIdx.x] = own;
    __syncthreads();
    u32 before = 0;
    all = 0;
    for (u32 i = 0; i < LISTING_THREADS; ++i) {
        if (i == threadIdx.x) before = all;
        all += sums[i];
    }
    return before;
}

// The choices that this thread goes through: a stretch of them, in order.
struct Stretch {
    u32 begin, end;
    __device__ __forceinline__ explicit Stretch(u32 n_choices) {
        u32 len = (n_choices + LISTING_THREADS - 1) / LISTING_THREADS;
        begin = min(threadIdx.x * len, n_choices), end = min(begin + len, n_choices);
    }
};

// experts [T, K] -> counts [E + 1]: how many tokens chose each expert, and the choices that damaged logits left. One block an expert.
extern "C" __global__ void __launch_bounds__(LISTING_THREADS) count_experts(const u32* experts, u32* counts, u32 n_choices) {
    Stretch own(n_choices);
    u32 found = 0, all;
    for (u32 i = own.begin; i < own.end; ++i) found += experts[i] == blockIdx.x;
    sum_before(found, all);
    if (threadIdx.x == 0) counts[blockIdx.x] = all;
}

// experts [T, K] and counts [E] -> of each choice its slot [T, K], and of each slot its token: the first one in those that fill up. One block
// an expert.
extern "C" __global__ void __launch_bounds__(LISTING_THREADS)
list_tokens(const u32* experts, const u32* counts, u32* slots, u32* tokens, u32 n_choices, u32 per_token, u32 padding) {
    Stretch own(n_choices);
    u32 found = 0, slots_before = 0, first, all;
    for (u32 i = threadIdx.x; i < blockIdx.x; i += LISTING_THREADS) slots_before += (counts[i] + padding - 1) / padding * padding;
    sum_before(slots_before, first);
    for (u32 i = own.begin; i < own.end; ++i) found += experts[i] == blockIdx.x;
    u32 slot = first + sum_before(found, all);
    for (u32 i = own.begin; i < own.end; ++i) {
        if (experts[i] == blockIdx.x) slots[i] = slot, tokens[slot] = i / per_token, ++slot;
    }
    u32 filled = (all + padding - 1) / padding * padding;
    for (u32 i = all + threadIdx.x; i < filled; i += LISTING_THREADS) tokens[first + i] = 0;
}

// So many numbers at a time, at a place that their number divides.
template <u32 N>
struct Numbers {
    float of[N];
};
template <u32 N>
__device__ __forceinline__ Numbers<N> load_numbers(const float* from) {
    Numbers<N> x;
    if constexpr (N == 4) {
        float4 four = load_four(from);
        x.of[0] = four.x, x.of[1] = four.y, x.of[2] = four.z, x.of[3] = four.w;
    } else {
        x.of[0] = *from;
    }
    return x;
}
__device__ __forceinline__ void store_numbers(float* to, const Numbers<4>& x) {
    store_four(to, make_float4(x.of[0], x.of[1], x.of[2], x.of[3]));
}
__device__ __forceinline__ void store_numbers(float* to, const Numbers<1>& x) { *to = x.of[0]; }

// y [slots, D] of slots `begin .. end`: residual [T, D] += the sum of weight (y + bias), `bias` [E, D] or null, over those of a token's
// experts whose slots are among them. One block a token.
template <u32 N>
__device__ __forceinline__ void add_experts(const float* y, const u32* experts, const u32* slots, const float* weights, const float* bias,
                                            float* residual, u32 width, u32 per_token, u32 begin, u32 end) {
    experts += (u64)blockIdx.x * per_token, slots += (u64)blockIdx.x * per_token, weights += (u64)blockIdx.x * per_token;
    bool is_among = false;
    for (u32 k = 0; k < per_token; ++k) is_among |= slots[k] >= begin && slots[k] < end;
    if (!is_among) return;
    residual += (u64)blockIdx.x * width;
    for (u32 i = N * threadIdx.x; i < width; i += N * blockDim.x) {
        Numbers<N> sum = load_numbers<N>(residual + i);
        for (u32 k = 0; k < per_token; ++k) {
            if (slots[k] < begin || slots[k] >= end) continue;
            Numbers<N> of_expert = load_numbers<N>(y + (u64)(slots[k] - begin) * width + i), own = {};
            if (bias) own = load_numbers<N>(bias + (u64)experts[k] * width + i);
            for (u32 j = 0; j < N; ++j) sum.of[j] += weights[k] * (of_expert.of[j] + own.of[j]);
        }
        store_numbers(residual + i, sum);
    }
}

extern "C" __global__ void add_experts_1(const float* y, const u32* experts, const u32* slots, const float* weights, const float* bias,
                                         float* residual, u32 width, u32 per_token, u32 begin, u32 end) {
    add_experts<1>(y, experts, slots, weights, bias, residual, width, per_token, begin, end);
}

// For widths that 4 divides.
extern "C" __global__ void add_experts_4(const float* y, const u32* experts, const u32* slots, const float* weights, const float* bias,
                                         float* residual, u32 width, u32 per_token, u32 begin, u32 end) {
    add_experts<4>(y, experts, slots, weights, bias, residual, width, per_token, begin, end);
}

// residual [T, D] += sigmoid(gates [T]) y [T, D]: what all tokens share, where a gate multiplies it. One block a token.
extern "C" __global__ void add_gated(const float* y, const float* gates, float* residual, u32 width) {
    float share = 1.0f / (1.0f + expf(-gates[blockIdx.x]));
    y += (u64)blockIdx.x * width, residual += (u64)blockIdx.x * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) residual[i] += share * y[i];
}
