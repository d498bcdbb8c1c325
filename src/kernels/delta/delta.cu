// The gated delta rule over a packed batch, including what precedes and follows it, as defined in delta/mod.rs, for keys of KEY_DIM elements
// (defined by the compiler). Everything is in f32.
//
// Shapes: S steps, each a token for the rule, in the order of cuda/delta.rs; G key heads, H value heads, V numbers of a value, P = PADDED_KEYS;
// x [T, columns] the projections, with columns as in delta/shape.rs. `delta_prepare` computes queries, keys, values and gates of each step.
// `delta_rule` runs the recurrence of delta/rule.rs over them, one step after the other, so that a token's result only depends on earlier
// tokens; the columns of a state are independent. `delta_open` normalises and gates the output.

#define NONE 0xffffffffu
// The number of lanes that share a column of the state: part p of it has the keys 4 (PARTS g + p) and the next three, g = 0 .. GROUPS.
#define PARTS (KEY_DIM > 128 ? 8 : 4)
#define GROUPS ((KEY_DIM + 4 * PARTS - 1) / (4 * PARTS))
#define PADDED_KEYS (4 * PARTS * GROUPS)
#define RULE_THREADS 128
#define COLUMNS (RULE_THREADS / PARTS)
// The steps that are fetched at a time, and the record of each in groups of four: keys, queries, values of the block's columns, alpha and beta.
#define STEPS 8
#define RECORD (2 * PADDED_KEYS / 4 + COLUMNS / 4 + 1)
#define OWN_GROUPS ((STEPS * RECORD + RULE_THREADS - 1) / RULE_THREADS)
// The epsilon of the norm of queries and keys.
#define EPSILON 1e-6f

// The heads, and the columns of their numbers in a row.
struct Heads {
    u32 key_heads, value_heads, value_dim, grouped;

    __device__ __forceinline__ u32 group() const { return value_heads / key_heads; }
    __device__ __forceinline__ u32 channels() const { return 2 * key_heads * KEY_DIM + value_heads * value_dim; }
    __device__ __forceinline__ u32 wide() const { return channels() + value_heads * value_dim; }
    __device__ __forceinline__ u32 columns() const { return wide() + 2 * value_heads; }
    // The first column of a key head, if its columns are contiguous.
    __device__ __forceinline__ u32 of_key_head(u32 head) const { return head * 2 * (KEY_DIM + group() * value_dim); }
    // The columns of a head's key or query, and its channels in the convolution.
    __device__ __forceinline__ u32 key(u32 head, bool is_key) const {
        return grouped ? of_key_head(head) + (is_key ? KEY_DIM : 0) : key_channel(head, is_key);
    }
    __device__ __forceinline__ u32 key_channel(u32 head, bool is_key) const { return ((is_key ? key_heads : 0) + head) * KEY_DIM; }
    __device__ __forceinline__ u32 value(u32 head) const {
        return grouped ? of_key_head(head / group()) + 2 * KEY_DIM + head % group() * value_dim : value_channel(head);
    }
    __device__ __forceinline__ u32 value_channel(u32 head) const { return 2 * key_heads * KEY_DIM + head * value_dim; }
    __device__ __forceinline__ u32 gates(u32 head) const { return grouped ? value(head) + group() * value_dim : channels() + head * value_dim; }
    __device__ __forceinline__ u32 beta(u32 head) const {
        return wide() + (grouped ? head / group() * 2 * group() + head % group() : head);
    }
    __device__ __forceinline__ u32 alpha(u32 head) const { return beta(head) + (grouped ? group() : value_heads); }
};

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }

// The output of the convolution in one channel, given its `weights` and the rows to read, oldest first; rows before the sequence are NONE.
__device__ __forceinline__ float convolved(const float* x, u32 columns, u32 column, const u32* rows, const float* weights, u32 kernel) {
    float sum = 0.0f;
    for (u32 tap = 0; tap < kernel; ++tap) {
        if (rows[tap] != NONE) sum = fmaf(x[(u64)rows[tap] * columns + column], weights[tap], sum);
    }
    return sum;
}

// steps [S, kernel]: rows of x, the step's own last; convolution [channels, kernel]; rates and dt_bias [H] -> queries, keys [S, G, P], values
// [S, H, V], alphas, betas [S, H]. One block of 256 threads per step; each of its 8 warps takes every eighth head of queries and keys.
extern "C" __global__ void __launch_bounds__(256)
delta_prepare(const float* x, const u32* steps, const float* convolution, const float* rates, const float* dt_bias, float* queries,
              float* keys, float* values, float* alphas, float* betas, u32 key_heads, u32 value_heads, u32 value_dim, u32 grouped, u32 kernel) {
    constexpr u32 OWN = (PADDED_KEYS + WARP - 1) / WARP;
    Heads heads = {key_heads, value_heads, value_dim, grouped};
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, columns = heads.columns();
    const u32* rows = steps + (u64)blockIdx.x * kernel;
    for (u32 i = warp; i < 2 * key_heads; i += 8) {
        bool is_key = i >= key_heads;
        u32 head = is_key ? i - key_heads : i, column = heads.key(head, is_key), channel = heads.key_channel(head, is_key);
        float own[OWN], squares = 0.0f;
#pragma unroll
        for (u32 k = 0; k < OWN; ++k) {
            u32 at = lane + k * WARP;
            own[k] = at < KEY_DIM ? silu(convolved(x, columns, column + at, rows, convolution + (channel + at) * kernel, kernel)) : 0.0f;
            squares += own[k] * own[k];
        }
        float norm = 1.0f / sqrtf(warp_sum(squares) + EPSILON), scale = is_key ? 1.0f : 1.0f / sqrtf((float)KEY_DIM);
        float* to = (is_key ? keys : queries) + ((u64)blockIdx.x * key_heads + head) * PADDED_KEYS;
#pragma unroll
        for (u32 k = 0; k < OWN; ++k) {
            u32 at = lane + k * WARP;
            if (at < PADDED_KEYS) to[at] = own[k] * norm * scale;
        }
    }
    for (u32 i = threadIdx.x; i < value_heads * value_dim; i += blockDim.x) {
        u32 head = i / value_dim, at = i % value_dim;
        const float* weights = convolution + (heads.value_channel(head) + at) * kernel;
        values[(u64)blockIdx.x * value_heads * value_dim + i] = silu(convolved(x, columns, heads.value(head) + at, rows, weights, kernel));
    }
    const float* own_row = x + (u64)rows[kernel - 1] * columns;
    for (u32 head = threadIdx.x; head < value_heads; head += blockDim.x) {
        float shifted = own_row[heads.alpha(head)] + dt_bias[head];
        float softplus = fmaxf(shifted, 0.0f) + log1pf(expf(-fabsf(shifted)));
        alphas[(u64)blockIdx.x * value_heads + head] = expf(-rates[head] * softplus);
        betas[(u64)blockIdx.x * value_heads + head] = sigmoid(own_row[heads.beta(head)]);
    }
}

// A run of consecutive steps.
struct Run {
    u32 first, steps;  // the first step, and the number of steps
    u32 again;         // the number of leading steps whose outputs another run writes
    u32 row;           // the row of the first step whose output this run writes
    u32 from, to;      // the states to start from and to write, or NONE
};

// Runs [..]; states [.., H, V, P] -> y [T, H, V]. One block takes COLUMNS columns (`blockIdx.y`) of a value head's state through a run.
extern "C" __global__ void __launch_bounds__(RULE_THREADS)
delta_rule(const float* queries, const float* keys, const float* values, const float* alphas, const float* betas, const Run* runs,
           float* states, float* y, u32 key_heads, u32 value_heads, u32 value_dim) {
    __shared__ float4 records[STEPS][RECORD];
    Run run = runs[blockIdx.x / value_heads];
    u32 head = blockIdx.x % value_heads, key_head = head / (value_heads / key_heads), first_column = blockIdx.y * COLUMNS;
    u32 part = threadIdx.x % PARTS, own_column = threadIdx.x / PARTS, column = first_column + own_column;
    bool has_column = column < value_dim;

    // Loads four numbers of a step's record; zeros after the last step.
    auto fetch = [&](u32 step, u32 group) {
        float4 zeros = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (step >= run.steps) return zeros;
        u64 row = run.first + step;
        if (group < PADDED_KEYS / 4) return load_four(keys + (row * key_heads + key_head) * PADDED_KEYS + 4 * group);
        group -= PADDED_KEYS / 4;
        if (group < PADDED_KEYS / 4) return load_four(queries + (row * key_heads + key_head) * PADDED_KEYS + 4 * group);
        group -= PADDED_KEYS / 4;
        u64 at = row * value_heads + head;
        if (group == COLUMNS / 4) return make_float4(alphas[at], betas[at], 0.0f, 0.0f);
        u32 c = first_column + 4 * group;
        const float* from = values + at * value_dim;
        return make_float4(c < value_dim ? from[c] : 0.0f, c + 1 < value_dim ? from[c + 1] : 0.0f, c + 2 < value_dim ? from[c + 2] : 0.0f,
                           c + 3 < value_dim ? from[c + 3] : 0.0f);
    };
    auto state_at = [&](u32 slot, u32 group) {
        return states + (((u64)slot * value_heads + head) * value_dim + column) * PADDED_KEYS + 4 * (group * PARTS + part);
    };

    float4 state[GROUPS];
#pragma unroll
    for (u32 g = 0; g < GROUPS; ++g) {
        bool is_there = has_column && run.from != NONE;
        state[g] = is_there ? load_four(state_at(run.from, g)) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    float4 next[OWN_GROUPS];
#pragma unroll
    for (u32 i = 0; i < OWN_GROUPS; ++i) {
        u32 at = threadIdx.x + i * RULE_THREADS;
        if (at < STEPS * RECORD) next[i] = fetch(at / RECORD, at % RECORD);
    }
    for (u32 begin = 0; begin < run.steps; begin += STEPS) {
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < OWN_GROUPS; ++i) {
            u32 at = threadIdx.x + i * RULE_THREADS;
            if (at < STEPS * RECORD) records[at / RECORD][at % RECORD] = next[i];
        }
        __syncthreads();
        // Prefetches the next steps while the current ones are computed.
#pragma unroll
        for (u32 i = 0; i < OWN_GROUPS; ++i) {
            u32 at = threadIdx.x + i * RULE_THREADS;
            if (at < STEPS * RECORD) next[i] = fetch(begin + STEPS + at / RECORD, at % RECORD);
        }
        for (u32 step = 0; step < min(STEPS, run.steps - begin); ++step) {
            const float4* record = records[step];
            const float4* query = record + PADDED_KEYS / 4;
            float value = ((const float*)(record + 2 * PADDED_KEYS / 4))[own_column];
            float alpha = record[RECORD - 1].x, beta = record[RECORD - 1].y;
            float4 sums = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
            for (u32 g = 0; g < GROUPS; ++g) {
                float4 k = record[g * PARTS + part], s = state[g];
                sums = make_float4(fmaf(k.x, s.x, sums.x), fmaf(k.y, s.y, sums.y), fmaf(k.z, s.z, sums.z), fmaf(k.w, s.w, sums.w));
            }
            float expected = (sums.x + sums.y) + (sums.z + sums.w);
            for (int lane = PARTS / 2; lane > 0; lane /= 2) expected += __shfl_xor_sync(ALL_LANES, expected, lane);
            float learnt = beta * (value - alpha * expected);
            sums = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
            for (u32 g = 0; g < GROUPS; ++g) {
                float4 k = record[g * PARTS + part], q = query[g * PARTS + part], s = state[g];
                s = make_float4(fmaf(k.x, learnt, alpha * s.x), fmaf(k.y, learnt, alpha * s.y), fmaf(k.z, learnt, alpha * s.z),
                                fmaf(k.w, learnt, alpha * s.w));
                sums = make_float4(fmaf(q.x, s.x, sums.x), fmaf(q.y, s.y, sums.y), fmaf(q.z, s.z, sums.z), fmaf(q.w, s.w, sums.w));
                state[g] = s;
            }
            float read = (sums.x + sums.y) + (sums.z + sums.w);
            for (int lane = PARTS / 2; lane > 0; lane /= 2) read += __shfl_xor_sync(ALL_LANES, read, lane);
            u32 at = begin + step;
            if (part == 0 && has_column && at >= run.again) {
                y[((u64)(run.row + at - run.again) * value_heads + head) * value_dim + column] = read;
            }
        }
    }
    if (run.to == NONE || !has_column) return;
#pragma unroll
    for (u32 g = 0; g < GROUPS; ++g) store_four(state_at(run.to, g), state[g]);
}

// x [T, columns], given [T, H, V], weight [V] -> y [T, H, V] = silu(gates) given / sqrt(mean(given^2) + eps) weight. One warp per head, 8 a
// block.
template <typename T>
__device__ void delta_open(const float* x, const float* given, const float* weight, T* y, u32 n_heads, const Heads& heads, float eps) {
    u32 lane = threadIdx.x % WARP, row = blockIdx.x * 8 + threadIdx.x / WARP;
    if (row >= n_heads) return;
    u32 head = row % heads.value_heads;
    const float* gates = x + (u64)(row / heads.value_heads) * heads.columns() + heads.gates(head);
    given += (u64)row * heads.value_dim, y += (u64)row * heads.value_dim;
    float squares = 0.0f;
    for (u32 i = lane; i < heads.value_dim; i += WARP) squares += given[i] * given[i];
    float scale = 1.0f / sqrtf(warp_sum(squares) / (float)heads.value_dim + eps);
    for (u32 i = lane; i < heads.value_dim; i += WARP) store(y, i, silu(gates[i]) * (given[i] * scale * weight[i]));
}

extern "C" __global__ void __launch_bounds__(256)
delta_open_f32(const float* x, const float* given, const float* weight, float* y, u32 n_heads, u32 key_heads, u32 value_heads, u32 value_dim,
               u32 grouped, float eps) {
    delta_open(x, given, weight, y, n_heads, {key_heads, value_heads, value_dim, grouped}, eps);
}

extern "C" __global__ void __launch_bounds__(256)
delta_open_bf16(const float* x, const float* given, const float* weight, bf16* y, u32 n_heads, u32 key_heads, u32 value_heads, u32 value_dim,
                u32 grouped, float eps) {
    delta_open(x, given, weight, y, n_heads, {key_heads, value_heads, value_dim, grouped}, eps);
}
