// The routing of experts: which expert computes which tokens, and the sum of their outputs. Shapes: T tokens, E experts, K of them per token, D
// width, S = T K slots.
//
// `choose_experts` picks each token's experts and their weights from the router's logits. `list_tokens` sorts the T K choices by expert and,
// within an expert, by token: the places in this order are the slots, in which the rows of each expert are contiguous. The products are in
// grouped.cu. `add_experts` adds each token's outputs to the residual stream, in the order of the experts.

#define CHOOSING_WARPS 8
#define LISTING_THREADS 256
#define MINUS_INFINITY __int_as_float(0xff800000)
#define NOT_A_NUMBER __int_as_float(0x7fffffff)
// Added to the sum by which the weights of a token's experts are divided: avoids a division by 0, and is too small to change other sums.
#define LEAST 1e-20f

// logits [T, E], `bias` and `correction` [E] or null -> experts and weights [T, K], a token's experts in ascending order. A score is the logit's
// softmax or its sigmoid; the `correction` is added for the choice only, not for the weights; ties go to the first. If a score is NaN, all
// weights of the token are NaN, and so are its logits in the end, which whoever reads them reports, as with damaged weights elsewhere. One warp
// per token, each with 2 E + K words of shared memory.
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
        for (u32 k = lane; k < per_token; k += WARP) experts[k] = k, weights[k] = NOT_A_NUMBER;
        return;
    }

    for (u32 k = 0; k < per_token; ++k) {
        float best = MINUS_INFINITY;
        u32 found = n_experts;
        for (u32 e = lane; e < n_experts; e += WARP) {
            // Experts that are already chosen have NaN here.
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

// Returns the sum of `own` over the threads before this one, and in `all` that over all threads. All threads of the block must take part.
__device__ __forceinline__ u32 sum_before(u32 own, u32& all) {
    __shared__ u32 of_warps[LISTING_THREADS / WARP];
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, sum = own;
    for (u32 distance = 1; distance < WARP; distance *= 2) {
        u32 other = __shfl_up_sync(ALL_LANES, sum, distance);
        if (lane >= distance) sum += other;
    }
    __syncthreads();  // No thread reads the previous values any more.
    if (lane == WARP - 1) of_warps[warp] = sum;
    __syncthreads();
    u32 before = sum - own;
    all = 0;
    for (u32 i = 0; i < LISTING_THREADS / WARP; ++i) {
        if (i == warp) before += all;
        all += of_warps[i];
    }
    return before;
}

// A tile: some slots of one expert that are computed together.
struct RowTile {
    u32 expert, slot;  // the first slot
    u32 rows;          // 0 in unused tiles
};

// experts [T, K] -> the slot of each choice, [T, K], the token of each slot, and tiles of at most `rows_of_tile` slots of one expert that
// together cover all slots. Only the device knows how many tiles are needed; the rest up to `n_tiles` are empty. One block per expert, with E
// words of shared memory.
extern "C" __global__ void __launch_bounds__(LISTING_THREADS)
list_tokens(const u32* experts, u32* slots, u32* tokens, RowTile* tiles, u32 n_choices, u32 n_experts, u32 per_token, u32 rows_of_tile,
            u32 n_tiles) {
    extern __shared__ u32 counts[];
    for (u32 e = threadIdx.x; e < n_experts; e += LISTING_THREADS) counts[e] = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < n_choices; i += LISTING_THREADS) atomicAdd(&counts[experts[i]], 1u);
    __syncthreads();
    auto tiles_of = [&](u32 expert) { return (counts[expert] + rows_of_tile - 1) / rows_of_tile; };
    u32 slots_before = 0, tiles_before = 0, first_slot, first_tile, all;
    for (u32 e = threadIdx.x; e < blockIdx.x; e += LISTING_THREADS) slots_before += counts[e], tiles_before += tiles_of(e);
    sum_before(slots_before, first_slot);
    sum_before(tiles_before, first_tile);

    // The choices of this thread: a contiguous part of them, in order.
    u32 len = (n_choices + LISTING_THREADS - 1) / LISTING_THREADS, begin = min(threadIdx.x * len, n_choices), end = min(begin + len, n_choices);
    u32 found = 0;
    for (u32 i = begin; i < end; ++i) found += experts[i] == blockIdx.x;
    u32 slot = first_slot + sum_before(found, all);
    for (u32 i = begin; i < end; ++i) {
        if (experts[i] == blockIdx.x) slots[i] = slot, tokens[slot] = i / per_token, ++slot;
    }

    u32 own_tiles = tiles_of(blockIdx.x);
    for (u32 i = threadIdx.x; i < own_tiles; i += LISTING_THREADS) {
        tiles[first_tile + i] = {blockIdx.x, first_slot + i * rows_of_tile, min(rows_of_tile, all - i * rows_of_tile)};
    }
    if (blockIdx.x + 1 < n_experts) return;
    for (u32 i = first_tile + own_tiles + threadIdx.x; i < n_tiles; i += LISTING_THREADS) tiles[i] = {0, 0, 0};
}

// N numbers in one access, at an index divisible by N.
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

// Columns `first .. first + columns` of residual [T, D] += the sum of weight (y + bias) over a token's experts, in their order: y [S, columns],
// `bias` [E, D] or null. One block per token.
template <u32 N>
__device__ __forceinline__ void add_experts(const float* y, const u32* experts, const u32* slots, const float* weights, const float* bias,
                                            float* residual, u32 width, u32 per_token, u32 first, u32 columns) {
    experts += (u64)blockIdx.x * per_token, slots += (u64)blockIdx.x * per_token, weights += (u64)blockIdx.x * per_token;
    residual += (u64)blockIdx.x * width + first;
    for (u32 i = N * threadIdx.x; i < columns; i += N * blockDim.x) {
        Numbers<N> sum = load_numbers<N>(residual + i);
        for (u32 k = 0; k < per_token; ++k) {
            Numbers<N> of_expert = load_numbers<N>(y + (u64)slots[k] * columns + i), own = {};
            if (bias) own = load_numbers<N>(bias + (u64)experts[k] * width + first + i);
            for (u32 j = 0; j < N; ++j) sum.of[j] += weights[k] * (of_expert.of[j] + own.of[j]);
        }
        store_numbers(residual + i, sum);
    }
}

extern "C" __global__ void add_experts_1(const float* y, const u32* experts, const u32* slots, const float* weights, const float* bias,
                                         float* residual, u32 width, u32 per_token, u32 first, u32 columns) {
    add_experts<1>(y, experts, slots, weights, bias, residual, width, per_token, first, columns);
}

// For D, first column and number of columns divisible by 4.
extern "C" __global__ void add_experts_4(const float* y, const u32* experts, const u32* slots, const float* weights, const float* bias,
                                         float* residual, u32 width, u32 per_token, u32 first, u32 columns) {
    add_experts<4>(y, experts, slots, weights, bias, residual, width, per_token, first, columns);
}

// residual [T, D] += sigmoid(gates [T]) y [T, D]: the gated shared network. One block per token.
extern "C" __global__ void add_gated(const float* y, const float* gates, float* residual, u32 width) {
    float share = 1.0f / (1.0f + expf(-gates[blockIdx.x]));
    y += (u64)blockIdx.x * width, residual += (u64)blockIdx.x * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) residual[i] += share * y[i];
}
