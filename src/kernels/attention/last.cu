// Attention of the last token of each sequence over its cached keys, for heads of HEAD_DIM elements, of which a block computes GROUP with
// the same keys (defined by the compiler). Shapes: qkv [T, C], prepared, C = (heads + 2 kv_heads) HEAD_DIM; y [T, heads HEAD_DIM]; the cache
// has one row per position, with the keys of all heads and then their values; PAGE contiguous rows belong to one sequence.
//
// A sequence is split at every KEYS positions. Each block computes one part, so that a few long sequences keep the whole GPU busy;
// `sum_of_parts` adds the parts in order. The splits depend on positions only, so a token's result does not depend, to the bit, on what else
// is in the batch.

#define MINUS_INFINITY __int_as_float(0xff800000)
#define KEYS 256u
#define PAGE 64u
// The neighbouring elements of a value that a thread sums, the threads that together cover a row, and the rows that they process at a time.
#define PAIR (HEAD_DIM % 2 == 0 ? 2 : 1)
#define ROW_THREADS (HEAD_DIM / PAIR)
#define ROWS (KEYS / ROW_THREADS)

struct Query {
    u32 row;         // in the batch
    u32 position;    // of the token in its sequence
    u32 first_page;  // in the list of pages
    u32 first_part;
    u32 parts;       // 0 for padding rows
};

struct Part {
    u32 query;
    u32 position;  // of its first key
};

// A part's largest score, and the sum of its weights relative to that.
struct Mass {
    float largest, sum;
};

template <typename T, int N>
struct __align__(sizeof(T) * N) Numbers {
    T at[N];
};

// The maximum, or the sum, over the KEYS threads of a block; `shared` must not be reused before the next barrier.
__device__ __forceinline__ float block_max(float x, float* shared) {
    for (int lane = WARP / 2; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, lane));
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = x;
    __syncthreads();
    x = shared[0];
    for (int i = 1; i < KEYS / WARP; ++i) x = fmaxf(x, shared[i]);
    return x;
}

__device__ __forceinline__ float block_sum(float x, float* shared) {
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = x;
    __syncthreads();
    x = 0.0f;
    for (int i = 0; i < KEYS / WARP; ++i) x += shared[i];
    return x;
}

// blockIdx.x is the part, blockIdx.y the group of heads. sums [parts, heads, HEAD_DIM], masses [parts, heads].
template <typename T>
__device__ void attend_to_part(const T* qkv, const T* cache, const Query* queries, const Part* parts, const u32* pages, float* sums,
                               Mass* masses, u32 heads, u32 kv_heads, float scale, u32 window, float softcap) {
    constexpr int VECTOR = HEAD_DIM % (16 / sizeof(T)) == 0 ? 16 / sizeof(T) : 1;
    __shared__ __align__(16) float group[GROUP][HEAD_DIM];
    __shared__ float weights[GROUP][KEYS];
    __shared__ float added[ROWS][GROUP][HEAD_DIM];
    __shared__ float of_warps[2][GROUP][KEYS / WARP];
    __shared__ u32 page_rows[KEYS / PAGE];
    Part part = parts[blockIdx.x];
    Query query = queries[part.query];
    u32 head = blockIdx.y * GROUP, kv_head = head / (heads / kv_heads);
    u32 n_keys = min(KEYS, query.position + 1 - part.position);
    u64 columns = 2 * kv_heads * HEAD_DIM;
    u64 place = (u64)blockIdx.x * heads + head;
    if (query.position - (part.position + n_keys - 1) >= window) {
        if (threadIdx.x < GROUP) masses[place + threadIdx.x] = {MINUS_INFINITY, 0.0f};
        return;
    }
    const T* own = qkv + (u64)query.row * (heads + 2 * kv_heads) * HEAD_DIM + head * HEAD_DIM;
    for (u32 i = threadIdx.x; i < GROUP * HEAD_DIM; i += KEYS) group[i / HEAD_DIM][i % HEAD_DIM] = load(own, i);
    if (threadIdx.x < KEYS / PAGE && threadIdx.x * PAGE < n_keys) {
        page_rows[threadIdx.x] = pages[query.first_page + part.position / PAGE + threadIdx.x] * PAGE;
    }
    __syncthreads();

    // One key per thread.
    bool is_seen = threadIdx.x < n_keys && query.position - (part.position + threadIdx.x) < window;
    float scores[GROUP] = {};
    if (is_seen) {
        const T* key = cache + (page_rows[threadIdx.x / PAGE] + threadIdx.x % PAGE) * columns + kv_head * HEAD_DIM;
#pragma unroll 4
        for (u32 i = 0; i < HEAD_DIM; i += VECTOR) {
            Numbers<T, VECTOR> some = *(const Numbers<T, VECTOR>*)(key + i);
#pragma unroll
            for (u32 j = 0; j < VECTOR; ++j) {
                float k = load(some.at, j);
#pragma unroll
                for (u32 g = 0; g < GROUP; ++g) scores[g] = fmaf(group[g][i + j], k, scores[g]);
            }
        }
    }
#pragma unroll
    for (u32 g = 0; g < GROUP; ++g) {
        float score = scores[g] * scale;
        if (softcap > 0.0f) score = softcap * tanhf(score / softcap);
        score = is_seen ? score : MINUS_INFINITY;
        float largest = block_max(score, of_warps[0][g]);
        float weight = is_seen ? expf(score - largest) : 0.0f;
        weights[g][threadIdx.x] = weight;
        float mass = block_sum(weight, of_warps[1][g]);
        if (threadIdx.x == 0) masses[place + g] = {largest, mass};
    }
    __syncthreads();

    // ROWS values at a time, with rows split by column, so that neighbouring threads read neighbouring numbers.
    u32 column = threadIdx.x % ROW_THREADS * PAIR, first = threadIdx.x / ROW_THREADS;
    if (first < ROWS) {
        float mixed[GROUP][PAIR] = {};
#pragma unroll 4
        for (u32 i = first; i < n_keys; i += ROWS) {
            const T* value = cache + (page_rows[i / PAGE] + i % PAGE) * columns + (kv_heads + kv_head) * HEAD_DIM + column;
            Numbers<T, PAIR> some = *(const Numbers<T, PAIR>*)value;
#pragma unroll
            for (u32 j = 0; j < PAIR; ++j) {
                float v = load(some.at, j);
#pragma unroll
                for (u32 g = 0; g < GROUP; ++g) mixed[g][j] = fmaf(weights[g][i], v, mixed[g][j]);
            }
        }
#pragma unroll
        for (u32 g = 0; g < GROUP; ++g) {
#pragma unroll
            for (u32 j = 0; j < PAIR; ++j) added[first][g][column + j] = mixed[g][j];
        }
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < GROUP * HEAD_DIM; i += KEYS) {
        float sum = 0.0f;
        for (u32 row = 0; row < ROWS; ++row) sum += added[row][i / HEAD_DIM][i % HEAD_DIM];
        sums[place * HEAD_DIM + i] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(KEYS)
attend_to_part_f32(const float* qkv, const float* cache, const Query* queries, const Part* parts, const u32* pages, float* sums,
                   Mass* masses, u32 heads, u32 kv_heads, float scale, u32 window, float softcap) {
    attend_to_part(qkv, cache, queries, parts, pages, sums, masses, heads, kv_heads, scale, window, softcap);
}

extern "C" __global__ void __launch_bounds__(KEYS)
attend_to_part_bf16(const bf16* qkv, const bf16* cache, const Query* queries, const Part* parts, const u32* pages, float* sums,
                    Mass* masses, u32 heads, u32 kv_heads, float scale, u32 window, float softcap) {
    attend_to_part(qkv, cache, queries, parts, pages, sums, masses, heads, kv_heads, scale, window, softcap);
}

// One block per query; each of its 8 warps takes every eighth head. A head's sink, if there are sinks, takes a share of the weights and has
// no value. Padding rows become 0.
template <typename T>
__device__ void sum_of_parts(const float* sums, const Mass* masses, const Query* queries, const float* sinks, T* y, u32 heads) {
    constexpr int COLUMNS = (HEAD_DIM + WARP - 1) / WARP;
    Query query = queries[blockIdx.x];
    u32 lane = threadIdx.x % WARP;
    for (u32 head = threadIdx.x / WARP; head < heads; head += 8) {
        float largest = sinks ? sinks[head] : MINUS_INFINITY, total = 0.0f;
        for (u32 i = 0; i < query.parts; ++i) largest = fmaxf(largest, masses[(u64)(query.first_part + i) * heads + head].largest);
        if (sinks) total = expf(sinks[head] - largest);
        float mixed[COLUMNS] = {};
        for (u32 i = 0; i < query.parts; ++i) {
            u64 place = (u64)(query.first_part + i) * heads + head;
            Mass mass = masses[place];
            // Parts outside the window have no sums.
            if (mass.sum == 0.0f) continue;
            float factor = expf(mass.largest - largest);
            total = fmaf(mass.sum, factor, total);
#pragma unroll
            for (u32 c = 0; c < COLUMNS; ++c) {
                u32 column = lane + WARP * c;
                if (column < HEAD_DIM) mixed[c] = fmaf(sums[place * HEAD_DIM + column], factor, mixed[c]);
            }
        }
        T* to = y + ((u64)query.row * heads + head) * HEAD_DIM;
#pragma unroll
        for (u32 c = 0; c < COLUMNS; ++c) {
            u32 column = lane + WARP * c;
            if (column < HEAD_DIM) store(to, column, query.parts > 0 ? mixed[c] / total : 0.0f);
        }
    }
}

extern "C" __global__ void __launch_bounds__(8 * WARP)
sum_of_parts_f32(const float* sums, const Mass* masses, const Query* queries, const float* sinks, float* y, u32 heads) {
    sum_of_parts(sums, masses, queries, sinks, y, heads);
}

extern "C" __global__ void __launch_bounds__(8 * WARP)
sum_of_parts_bf16(const float* sums, const Mass* masses, const Query* queries, const float* sinks, bf16* y, u32 heads) {
    sum_of_parts(sums, masses, queries, sinks, y, heads);
}
