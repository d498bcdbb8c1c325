// Causal grouped-query attention over a packed batch, as defined in attention/mod.rs, for heads of HEAD_DIM elements (defined by the compiler).
// Shapes: T tokens; qkv [T, C], C = (heads + 2 kv_heads) HEAD_DIM; y [T, heads HEAD_DIM]; a row of kv has `kv_columns` columns and holds the
// keys of all heads and then their values: those of the same qkv, or those of a cache (last.cu).
//
// `prepare` normalises and rotates queries and keys, in place or, if there are gates between them, into an array without the gates. Then each
// block computes one query head for one tile of tokens: it walks over the ranges of rows that the tile's segment sees, some keys at a time,
// with the running softmax of FlashAttention (arXiv 2205.14135), so no matrix of tokens by tokens is stored. Sinks [heads], if given, are one
// logit per head that takes a share of every softmax and has no value. `attention_bf16` uses the tensor cores, with QUERIES = 16 WARPS
// ROW_TILES tokens per tile; `attention_f32` uses plain f32.

#ifndef WARPS
#define WARPS 4
#endif
#ifndef ROW_TILES
#define ROW_TILES 1
#endif

#define MINUS_INFINITY __int_as_float(0xff800000)
#define LOG2_E 1.4426950408889634f

// A tile: some tokens of one segment.
struct Tile {
    u32 row, rows;              // in the batch
    u32 position;               // of the first token in its sequence
    u32 first_range, end_range; // the ranges that its segment sees; the last one is the segment itself
};

// Contiguous rows of kv.
struct Range {
    u32 row, rows, position;
};

// Stores two neighbouring elements of a head, or one at the end of a head of odd width.
template <typename T>
__device__ __forceinline__ void store_two(T* head, u32 i, float a, float b) {
#if HEAD_DIM % 2 == 0
    store_pair(head + i, a, b);
#else
    store(head, i, a);
    if (i + 1 < HEAD_DIM) store(head, i + 1, b);
#endif
}

// How queries and keys are computed from their projections: the parameters of a layer.
struct Preparation {
    const float* bias;    // for every column of the projections; may be null
    const float* q_norm;  // both may be null
    const float* k_norm;
    const float* cos;
    const float* sin;
    float eps;
    u32 whole_norms;  // one norm over all query heads and one over all key heads, instead of one per head
    u32 pairs, interleaved, heads, kv_heads;
    u32 gated;          // each query head of the projections is followed by as many gates, which prepare does not touch
    float growth;       // queries at position p are multiplied by 1 + growth ln(1 + p / original_positions)
    u32 original_positions;  // 0 if queries do not grow
};

// The threads of a block, the neighbouring elements that each thread owns of a head, the threads that share a head (a power of two, neighbours
// within a warp), and the heads that a block processes at a time.
#define PREPARING 256
#define OWN (HEAD_DIM % 8 == 0 ? 8 : HEAD_DIM % 2 == 0 ? 2 : 1)
#define SHARED_BY (HEAD_DIM <= 4 * OWN ? 4 : HEAD_DIM <= 8 * OWN ? 8 : HEAD_DIM <= 16 * OWN ? 16 : 32)
#define HEADS_AT_ONCE (PREPARING / SHARED_BY)

// A thread's elements, read and written in one access.
template <typename T>
struct __align__(sizeof(T) * OWN < 16 ? sizeof(T) * OWN : 16) Own {
    T at[OWN];
};

__device__ __forceinline__ float sum_of_head(float x) {
    for (int lane = SHARED_BY / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(ALL_LANES, x, lane);
    return x;
}

// projected [T, C], or [T, C + heads HEAD_DIM] with gates -> qkv [T, C]; the two may be the same array. The heads of all tokens form one
// sequence, of which a block processes HEADS_AT_ONCE; with whole norms, a block processes the heads of one token.
template <typename T>
__device__ void prepare(const T* projected, T* qkv, const u32* positions, u32 tokens, const Preparation& how) {
    __shared__ __align__(16) float heads_now[HEADS_AT_ONCE][HEAD_DIM];
    __shared__ float partial[2][HEADS_AT_ONCE];
    u32 thread = threadIdx.x % SHARED_BY, group = threadIdx.x / SHARED_BY;
    u32 query_heads = how.heads, turning = how.heads + how.kv_heads, before_query = how.gated ? 2 : 1;
    // Values without a bias stay where they are.
    u32 n_heads = turning + (how.bias || how.gated ? how.kv_heads : 0);
    u32 columns = (before_query * query_heads + 2 * how.kv_heads) * HEAD_DIM;
    float* elements = heads_now[group];

    // Loads a thread's elements of a head from the projections.
    auto load_own = [&](float (&x)[OWN], u64 token, u32 head, u32 i) {
        u32 first = (head < query_heads ? before_query * head : head + (before_query - 1) * query_heads) * HEAD_DIM + i;
        Own<T> own = *(const Own<T>*)(projected + token * columns + first);
#pragma unroll
        for (u32 k = 0; k < OWN; ++k) x[k] = load(own.at, k) + (how.bias ? how.bias[first + k] : 0.0f);
    };

    float q_scale = 1.0f, k_scale = 1.0f;
    if (how.whole_norms) {
        float of_queries = 0.0f, of_keys = 0.0f;
        for (u32 head = group; head < turning; head += HEADS_AT_ONCE) {
            float squares = 0.0f;
            for (u32 i = OWN * thread; i < HEAD_DIM; i += OWN * SHARED_BY) {
                float x[OWN];
                load_own(x, blockIdx.x, head, i);
#pragma unroll
                for (u32 k = 0; k < OWN; ++k) squares += x[k] * x[k];
            }
            if (head < query_heads) of_queries += squares;
            else of_keys += squares;
        }
        of_queries = sum_of_head(of_queries), of_keys = sum_of_head(of_keys);
        if (thread == 0) partial[0][group] = of_queries, partial[1][group] = of_keys;
        __syncthreads();
        of_queries = of_keys = 0.0f;
        for (int i = 0; i < HEADS_AT_ONCE; ++i) of_queries += partial[0][i], of_keys += partial[1][i];
        q_scale = 1.0f / sqrtf(of_queries / (float)(query_heads * HEAD_DIM) + how.eps);
        k_scale = 1.0f / sqrtf(of_keys / (float)(how.kv_heads * HEAD_DIM) + how.eps);
    }

    u32 at_once = how.whole_norms ? n_heads : HEADS_AT_ONCE, begin = blockIdx.x * at_once, end = min(begin + at_once, tokens * n_heads);
    for (u32 first = begin; first < end; first += HEADS_AT_ONCE) {
        // All lanes take part in the reductions; those without a head read the last one.
        bool has_head = first + group < end;
        u32 item = has_head ? first + group : end - 1, token = item / n_heads, head = item % n_heads, position = positions[token];
        bool is_query = head < query_heads, turns = head < turning;
        const float* cosines = how.cos + (u64)position * how.pairs;
        const float* sines = how.sin + (u64)position * how.pairs;
        const float* norm = is_query ? how.q_norm : turns ? how.k_norm : nullptr;
        float squares = 0.0f;
        for (u32 i = OWN * thread; i < HEAD_DIM; i += OWN * SHARED_BY) {
            float x[OWN];
            load_own(x, token, head, i);
#pragma unroll
            for (u32 k = 0; k < OWN; ++k) squares += x[k] * x[k], elements[i + k] = x[k];
        }
        if (how.q_norm) {
            float scale = is_query ? q_scale : k_scale;
            if (!how.whole_norms) scale = 1.0f / sqrtf(sum_of_head(squares) / (float)HEAD_DIM + how.eps);
            else if (norm) norm += (is_query ? head : head - query_heads) * HEAD_DIM;
            for (u32 i = OWN * thread; norm && i < HEAD_DIM; i += OWN * SHARED_BY) {
#pragma unroll
                for (u32 k = 0; k < OWN; ++k) elements[i + k] *= scale * norm[i + k];
            }
        }
        float factor = !is_query ? 1.0f : how.original_positions ? 1.0f + how.growth * logf(1.0f + (float)(position / how.original_positions)) : 1.0f;
        __syncwarp();  // The lanes that share a head read each other's elements.
        for (u32 i = OWN * thread; has_head && i < HEAD_DIM; i += OWN * SHARED_BY) {
            Own<T> own;
#pragma unroll
            for (u32 k = 0; k < OWN; ++k) {
                u32 at = i + k;
                float y = elements[at];
                if (turns && at < 2 * how.pairs) {
                    bool second = how.interleaved ? at % 2 : at >= how.pairs;
                    u32 pair = how.interleaved ? at / 2 : second ? at - how.pairs : at;
                    float partner = elements[how.interleaved ? at ^ 1 : second ? at - how.pairs : at + how.pairs];
                    y = second ? y * cosines[pair] + partner * sines[pair] : y * cosines[pair] - partner * sines[pair];
                }
                store(own.at, k, y * factor);
            }
            *(Own<T>*)(qkv + ((u64)token * (query_heads + 2 * how.kv_heads) + head) * HEAD_DIM + i) = own;
        }
        __syncwarp();  // Before the next heads overwrite them.
    }
}

extern "C" __global__ void __launch_bounds__(PREPARING, 6)
prepare_f32(const float* projected, float* qkv, const u32* positions, u32 tokens, const float* bias, const float* q_norm, const float* k_norm,
            const float* cos, const float* sin, float eps, u32 whole_norms, u32 pairs, u32 interleaved, u32 heads, u32 kv_heads, u32 gated,
            float growth, u32 original_positions) {
    prepare(projected, qkv, positions, tokens,
            {bias, q_norm, k_norm, cos, sin, eps, whole_norms, pairs, interleaved, heads, kv_heads, gated, growth, original_positions});
}

extern "C" __global__ void __launch_bounds__(PREPARING, 6)
prepare_bf16(const bf16* projected, bf16* qkv, const u32* positions, u32 tokens, const float* bias, const float* q_norm, const float* k_norm,
             const float* cos, const float* sin, float eps, u32 whole_norms, u32 pairs, u32 interleaved, u32 heads, u32 kv_heads, u32 gated,
             float growth, u32 original_positions) {
    prepare(projected, qkv, positions, tokens,
            {bias, q_norm, k_norm, cos, sin, eps, whole_norms, pairs, interleaved, heads, kv_heads, gated, growth, original_positions});
}

// Applies the gates of the query heads: y *= sigmoid(gates), with the gates as in the projections; one block per token.
template <typename T>
__device__ void open_gates(const T* projected, const float* bias, T* y, u32 heads, u32 kv_heads) {
    projected += (u64)blockIdx.x * (2 * heads + 2 * kv_heads) * HEAD_DIM;
    y += (u64)blockIdx.x * heads * HEAD_DIM;
    for (u32 i = threadIdx.x; i < heads * HEAD_DIM; i += blockDim.x) {
        u32 at = (2 * (i / HEAD_DIM) + 1) * HEAD_DIM + i % HEAD_DIM;
        float gate = load(projected, at) + (bias ? bias[at] : 0.0f);
        store(y, i, load(y, i) / (1.0f + expf(-gate)));
    }
}

extern "C" __global__ void open_gates_f32(const float* projected, const float* bias, float* y, u32 heads, u32 kv_heads) {
    open_gates(projected, bias, y, heads, kv_heads);
}

extern "C" __global__ void open_gates_bf16(const bf16* projected, const float* bias, bf16* y, u32 heads, u32 kv_heads) {
    open_gates(projected, bias, y, heads, kv_heads);
}

// A run of contiguous keys.
struct KeyTile {
    u32 row, rows, position;

    // Whether every token from position `first` to `last` sees all KEYS keys.
    template <u32 KEYS>
    __device__ __forceinline__ bool all_seen(u32 first, u32 last, u32 window) const {
        return rows == KEYS && position + KEYS - 1 <= first && last - position < window;
    }

    __device__ __forceinline__ bool seen(u32 query_position, u32 key, u32 window) const {
        return key < rows && position + key <= query_position && query_position - (position + key) < window;
    }
};

// Iterates over all keys that some token of a tile sees, up to KEYS of one range at a time.
template <u32 KEYS>
struct KeyTiles {
    const Range* range;
    const Range* end;
    u32 offset;

    __device__ __forceinline__ KeyTiles(const Range* ranges, const Tile& tile)
        : range(ranges + tile.first_range), end(ranges + tile.end_range), offset(0) {}

    // Returns the next keys; `rows` is 0 at the end.
    __device__ __forceinline__ KeyTile next(u32 first, u32 last, u32 window) {
        for (; range < end; ++range, offset = 0) {
            Range keys = *range;
            while (offset < keys.rows) {
                KeyTile found = {keys.row + offset, min(KEYS, keys.rows - offset), keys.position + offset};
                // Positions ascend along the ranges, so nothing after the tile's last token is visible.
                if (found.position > last) break;
                offset += KEYS;
                if (first - min(first, found.position + found.rows - 1) < window) return found;
            }
        }
        return {0, 0, 0};
    }
};

// --- bf16 on the tensor cores ---

#define PADDED_DIM ((HEAD_DIM + 15) / 16 * 16)
// Eight elements of padding, so that the eight rows that one instruction reads lie in different banks.
#define STRIDE (PADDED_DIM + 8)
#define QUERIES (16 * WARPS * ROW_TILES)
#define KEYS (HEAD_DIM > 128 ? 32 : 64)
// Queries stay in registers if there are enough of them; they are loaded through the second buffer of keys and values.
#define KEEP_QUERIES (HEAD_DIM * ROW_TILES <= 128)

// Copies `rows` rows of one head to shared memory, padded with zeros to `all` rows and PADDED_DIM columns.
__device__ __forceinline__ void load_rows(bf16* to, const bf16* from, u64 columns, u32 rows, u32 all) {
#if HEAD_DIM % 8 == 0
    for (u32 i = threadIdx.x; i < all * (PADDED_DIM / 8); i += WARPS * WARP) {
        u32 row = i / (PADDED_DIM / 8), column = i % (PADDED_DIM / 8) * 8;
        bool is_there = row < rows && column < HEAD_DIM;
        copy_async(to + row * STRIDE + column, from + (is_there ? row * columns + column : 0), is_there);
    }
#else
    for (u32 i = threadIdx.x; i < all * PADDED_DIM; i += WARPS * WARP) {
        u32 row = i / PADDED_DIM, column = i % PADDED_DIM;
        to[row * STRIDE + column] = row < rows && column < HEAD_DIM ? from[row * columns + column] : (bf16)0;
    }
#endif
}

extern "C" __global__ void __launch_bounds__(WARPS* WARP)
attention_bf16(const bf16* qkv, const bf16* kv, u32 kv_columns, const Tile* tiles, const Range* ranges, const float* sinks, bf16* y, u32 heads,
               u32 kv_heads, float scale, u32 window, float softcap) {
    extern __shared__ __align__(16) bf16 shared[];
    bf16* keys_and_values = shared + (KEEP_QUERIES ? 0 : QUERIES * STRIDE);
    bf16* query_rows = KEEP_QUERIES ? keys_and_values + 2 * KEYS * STRIDE : shared;
    Tile tile = tiles[blockIdx.x / heads];
    u32 head = blockIdx.x % heads, kv_head = head / (heads / kv_heads);
    u64 columns = (u64)(heads + 2 * kv_heads) * HEAD_DIM;
    const bf16* keys = kv + kv_head * HEAD_DIM;
    const bf16* values = kv + (kv_heads + kv_head) * HEAD_DIM;
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    // This lane's elements of a [16, 8] tile: rows `own_row` and `own_row + 8`, columns `own_column` and the next one.
    u32 own_row = lane / 4, own_column = lane % 4 * 2, first_row = 16 * ROW_TILES * warp;
    u32 last_position = tile.position + tile.rows - 1;
    float to_log2 = softcap > 0.0f ? LOG2_E : scale * LOG2_E;

    KeyTiles<KEYS> key_tiles(ranges, tile);
    KeyTile current = key_tiles.next(tile.position, last_position, window);
    load_rows(query_rows, qkv + (u64)tile.row * columns + head * HEAD_DIM, columns, tile.rows, QUERIES);
    load_rows(keys_and_values, keys + (u64)current.row * kv_columns, kv_columns, current.rows, KEYS);
    load_rows(keys_and_values + KEYS * STRIDE, values + (u64)current.row * kv_columns, kv_columns, current.rows, KEYS);
    commit_copies();
    wait_for_copies();
    __syncthreads();
    const bf16* own_queries = query_rows + (first_row + lane % 16) * STRIDE + lane / 16 * 8;
#if KEEP_QUERIES
    u32 kept_queries[ROW_TILES][PADDED_DIM / 16][4];
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m) {
#pragma unroll
        for (int k = 0; k < PADDED_DIM / 16; ++k) load_matrices(kept_queries[m][k], own_queries + 16 * m * STRIDE + 16 * k);
    }
    __syncthreads();
#endif

    float sums[ROW_TILES][PADDED_DIM / 8][4] = {};
    float largest[ROW_TILES][2], mass[ROW_TILES][2] = {};
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m) {
        // The softmax starts with the sink, counted by one of the four lanes that share a row. Scores are unscaled here, except with a softcap.
        largest[m][0] = largest[m][1] = sinks ? sinks[head] / (softcap > 0.0f ? 1.0f : scale) : MINUS_INFINITY;
        if (sinks && own_column == 0) mass[m][0] = mass[m][1] = 1.0f;
    }

    u32 buffer = 0;
    while (current.rows > 0) {
        KeyTile next = key_tiles.next(tile.position, last_position, window);
        if (next.rows > 0) {
            bf16* to = keys_and_values + (buffer ^ 1) * 2 * KEYS * STRIDE;
            load_rows(to, keys + (u64)next.row * kv_columns, kv_columns, next.rows, KEYS);
            load_rows(to + KEYS * STRIDE, values + (u64)next.row * kv_columns, kv_columns, next.rows, KEYS);
            commit_copies();
        }
        const bf16* from = keys_and_values + buffer * 2 * KEYS * STRIDE;
        const bf16* key_rows = from + (lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8;
        const bf16* value_rows = from + (KEYS + lane % 16) * STRIDE + lane / 16 * 8;

        float scores[ROW_TILES][KEYS / 8][4] = {};
#pragma unroll
        for (int k = 0; k < PADDED_DIM / 16; ++k) {
            u32 q[ROW_TILES][4];
#pragma unroll
            for (int m = 0; m < ROW_TILES; ++m) {
#if KEEP_QUERIES
#pragma unroll
                for (int i = 0; i < 4; ++i) q[m][i] = kept_queries[m][k][i];
#else
                load_matrices(q[m], own_queries + 16 * m * STRIDE + 16 * k);
#endif
            }
#pragma unroll
            for (int n = 0; n < KEYS / 16; ++n) {
                u32 b[4];
                load_matrices(b, key_rows + 16 * n * STRIDE + 16 * k);
#pragma unroll
                for (int m = 0; m < ROW_TILES; ++m) {
                    multiply_add(scores[m][2 * n], q[m], b[0], b[1]);
                    multiply_add(scores[m][2 * n + 1], q[m], b[2], b[3]);
                }
            }
        }

        bool all_seen = current.all_seen<KEYS>(tile.position + first_row, last_position, window);
#pragma unroll
        for (int m = 0; m < ROW_TILES; ++m) {
            if (softcap > 0.0f) {
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) scores[m][n][i] = softcap * tanhf(scores[m][n][i] * scale / softcap);
                }
            }
            if (!all_seen) {
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        u32 position = tile.position + first_row + 16 * m + own_row + i / 2 * 8;
                        if (!current.seen(position, 8 * n + own_column + i % 2, window)) scores[m][n][i] = MINUS_INFINITY;
                    }
                }
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float top = largest[m][half];
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n) top = fmaxf(top, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
                top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
                top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
                // A row that has seen no key yet keeps its sums of 0.
                float reference = top == MINUS_INFINITY ? 0.0f : top * to_log2;
                // Exactly 1 if the maximum did not grow, so that keys that the row does not see leave its sums unchanged.
                float shrink = largest[m][half] == top ? 1.0f : exp2_fast(largest[m][half] * to_log2 - reference);
                largest[m][half] = top;
                mass[m][half] *= shrink;
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i) {
                        scores[m][n][i] = exp2_fast(scores[m][n][i] * to_log2 - reference);
                        mass[m][half] += scores[m][n][i];
                    }
                }
#pragma unroll
                for (int n = 0; n < PADDED_DIM / 8; ++n) sums[m][n][2 * half] *= shrink, sums[m][n][2 * half + 1] *= shrink;
            }
        }

#pragma unroll
        for (int k = 0; k < KEYS / 16; ++k) {
            u32 p[ROW_TILES][4];
#pragma unroll
            for (int m = 0; m < ROW_TILES; ++m) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float(&tile_scores)[4] = scores[m][2 * k + i / 2];
                    p[m][i] = round_bf16_pair(tile_scores[i % 2 * 2], tile_scores[i % 2 * 2 + 1]);
                }
            }
#pragma unroll
            for (int n = 0; n < PADDED_DIM / 16; ++n) {
                u32 b[4];
                load_matrices_transposed(b, value_rows + 16 * k * STRIDE + 16 * n);
#pragma unroll
                for (int m = 0; m < ROW_TILES; ++m) {
                    multiply_add(sums[m][2 * n], p[m], b[0], b[1]);
                    multiply_add(sums[m][2 * n + 1], p[m], b[2], b[3]);
                }
            }
        }
        // The next keys have arrived for all threads, and no thread reads the current ones any more.
        wait_for_copies();
        __syncthreads();
        current = next;
        buffer ^= 1;
    }

#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float total = mass[m][half];
            total += __shfl_xor_sync(ALL_LANES, total, 1);
            total += __shfl_xor_sync(ALL_LANES, total, 2);
            u32 row = first_row + 16 * m + own_row + 8 * half;
            if (row >= tile.rows) continue;
            bf16* to = y + ((u64)(tile.row + row) * heads + head) * HEAD_DIM;
            float inverse = 1.0f / total;
#pragma unroll
            for (int n = 0; n < PADDED_DIM / 8; ++n) {
                u32 column = 8 * n + own_column;
                if (column < HEAD_DIM) store_two(to, column, sums[m][n][2 * half] * inverse, sums[m][n][2 * half + 1] * inverse);
            }
        }
    }
}

// --- f32 ---

// 16 by 16 threads; each computes FLOAT_QUERIES / 16 rows, and every 16th column of these.
#define FLOAT_QUERIES (HEAD_DIM > 128 ? 32 : 64)
#define FLOAT_KEYS (HEAD_DIM > 128 ? 16 : 32)
#define FLOAT_STRIDE (HEAD_DIM + 1)

extern "C" __global__ void __launch_bounds__(256)
attention_f32(const float* qkv, const float* kv, u32 kv_columns, const Tile* tiles, const Range* ranges, const float* sinks, float* y, u32 heads,
              u32 kv_heads, float scale, u32 window, float softcap) {
    constexpr int ROWS = FLOAT_QUERIES / 16, COLUMNS = (HEAD_DIM + 15) / 16, OWN_KEYS = FLOAT_KEYS / 16;
    extern __shared__ float floats[];
    float* queries = floats;
    float* keys = queries + FLOAT_QUERIES * FLOAT_STRIDE;
    float* values = keys + FLOAT_KEYS * FLOAT_STRIDE;
    float* weights = values + FLOAT_KEYS * FLOAT_STRIDE;
    Tile tile = tiles[blockIdx.x / heads];
    u32 head = blockIdx.x % heads, kv_head = head / (heads / kv_heads);
    u64 columns = (u64)(heads + 2 * kv_heads) * HEAD_DIM;
    u32 x = threadIdx.x % 16, first_row = threadIdx.x / 16 * ROWS;

    for (u32 i = threadIdx.x; i < FLOAT_QUERIES * HEAD_DIM; i += 256) {
        u32 row = i / HEAD_DIM, column = i % HEAD_DIM;
        float q = row < tile.rows ? qkv[(tile.row + row) * columns + head * HEAD_DIM + column] : 0.0f;
        queries[row * FLOAT_STRIDE + column] = q;
    }

    float sums[ROWS][COLUMNS] = {};
    float largest[ROWS], mass[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) largest[r] = sinks ? sinks[head] : MINUS_INFINITY, mass[r] = sinks && x == 0 ? 1.0f : 0.0f;

    u32 last_position = tile.position + tile.rows - 1;
    KeyTiles<FLOAT_KEYS> key_tiles(ranges, tile);
    for (;;) {
        KeyTile current = key_tiles.next(tile.position, last_position, window);
        if (current.rows == 0) break;
        __syncthreads();
        for (u32 i = threadIdx.x; i < FLOAT_KEYS * HEAD_DIM; i += 256) {
            u32 row = i / HEAD_DIM, column = i % HEAD_DIM;
            const float* from = kv + (u64)(current.row + row) * kv_columns + kv_head * HEAD_DIM + column;
            bool is_there = row < current.rows;
            keys[row * FLOAT_STRIDE + column] = is_there ? from[0] : 0.0f;
            values[row * FLOAT_STRIDE + column] = is_there ? from[kv_heads * HEAD_DIM] : 0.0f;
        }
        __syncthreads();

        float scores[ROWS][OWN_KEYS] = {};
        for (u32 d = 0; d < HEAD_DIM; ++d) {
            float k[OWN_KEYS];
#pragma unroll
            for (int c = 0; c < OWN_KEYS; ++c) k[c] = keys[(x + 16 * c) * FLOAT_STRIDE + d];
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                float q = queries[(first_row + r) * FLOAT_STRIDE + d];
#pragma unroll
                for (int c = 0; c < OWN_KEYS; ++c) scores[r][c] = fmaf(q, k[c], scores[r][c]);
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            float top = largest[r];
#pragma unroll
            for (int c = 0; c < OWN_KEYS; ++c) {
                float score = scores[r][c] * scale;
                if (softcap > 0.0f) score = softcap * tanhf(score / softcap);
                scores[r][c] = current.seen(tile.position + first_row + r, x + 16 * c, window) ? score : MINUS_INFINITY;
                top = fmaxf(top, scores[r][c]);
            }
            for (int lane = 8; lane > 0; lane /= 2) top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, lane));
            float reference = top == MINUS_INFINITY ? 0.0f : top;
            float shrink = expf(largest[r] - reference);
            largest[r] = top;
            mass[r] *= shrink;
#pragma unroll
            for (int c = 0; c < OWN_KEYS; ++c) {
                float weight = expf(scores[r][c] - reference);
                mass[r] += weight;
                weights[(first_row + r) * (FLOAT_KEYS + 1) + x + 16 * c] = weight;
            }
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) sums[r][c] *= shrink;
        }
        __syncwarp();  // A row's weights are written and read by the same half of a warp.
        for (u32 k = 0; k < current.rows; ++k) {
            float v[COLUMNS];
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) v[c] = x + 16 * c < HEAD_DIM ? values[k * FLOAT_STRIDE + x + 16 * c] : 0.0f;
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                float weight = weights[(first_row + r) * (FLOAT_KEYS + 1) + k];
#pragma unroll
                for (int c = 0; c < COLUMNS; ++c) sums[r][c] = fmaf(weight, v[c], sums[r][c]);
            }
        }
    }

#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        float total = mass[r];
        for (int lane = 8; lane > 0; lane /= 2) total += __shfl_xor_sync(ALL_LANES, total, lane);
        if (first_row + r >= tile.rows) continue;
        float* to = y + ((u64)(tile.row + first_row + r) * heads + head) * HEAD_DIM;
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
            if (x + 16 * c < HEAD_DIM) to[x + 16 * c] = sums[r][c] / total;
        }
    }
}
