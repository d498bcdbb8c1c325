// Causal grouped-query attention over a packed batch, as attention/mod.rs defines it, for heads of HEAD_DIM elements (a definition of
// the compiler's). Shapes: T tokens; qkv [T, C], C = (heads + 2 kv_heads) HEAD_DIM; y [T, heads HEAD_DIM].
//
// `prepare` normalises and turns queries and keys. Then one block computes one query head of one tile of tokens: it walks over the
// ranges of rows that the tile's segment sees, some keys at a time, with the running softmax of FlashAttention (arXiv 2205.14135), so
// that no matrix of tokens by tokens exists. `attention_bf16` multiplies on the tensor cores, QUERIES = 16 WARPS tokens a tile;
// `attention_f32` in plain f32.

#ifndef WARPS
#define WARPS 4
#endif

#define MINUS_INFINITY __int_as_float(0xff800000)
#define LOG2_E 1.4426950408889634f

// Some tokens of one segment.
struct Tile {
    u32 row, rows;              // of the batch
    u32 position;               // of the first token in its sequence
    u32 first_range, end_range; // what its segment sees; the last range is the segment itself
};

// Keys that lie side by side.
struct Range {
    u32 row, rows, position;
};

// One warp a head of a token: 8 heads a block, blockIdx.x the token. The norms' weights and the bias may be null.
template <typename Out>
__device__ void prepare(const float* qkv, const float* bias, const float* q_norm, const float* k_norm, float eps, const float* cos,
                        const float* sin, const u32* positions, u32 pairs, u32 interleaved, u32 heads, u32 kv_heads, Out* out) {
    __shared__ float shared[8][HEAD_DIM];
    u32 lane = threadIdx.x % WARP, head = blockIdx.y * 8 + threadIdx.x / WARP, n_heads = heads + 2 * kv_heads;
    if (head >= n_heads) return;
    u64 offset = ((u64)blockIdx.x * n_heads + head) * HEAD_DIM;
    float* own = shared[threadIdx.x / WARP];
    float squares = 0.0f;
    for (u32 i = lane; i < HEAD_DIM; i += WARP) {
        own[i] = qkv[offset + i] + (bias ? bias[head * HEAD_DIM + i] : 0.0f);
        squares += own[i] * own[i];
    }
    const float* norm = head < heads ? q_norm : head < heads + kv_heads ? k_norm : nullptr;
    if (norm) {
        float scale = 1.0f / sqrtf(warp_sum(squares) / (float)HEAD_DIM + eps);
        for (u32 i = lane; i < HEAD_DIM; i += WARP) own[i] *= scale * norm[i];
    }
    __syncwarp();
    u32 turning = head < heads + kv_heads ? 2 * pairs : 0;
    const float* cosines = cos + (u64)positions[blockIdx.x] * pairs;
    const float* sines = sin + (u64)positions[blockIdx.x] * pairs;
    for (u32 i = lane; i < HEAD_DIM; i += WARP) {
        float x = own[i];
        if (i < turning) {
            u32 pair = interleaved ? i / 2 : i % pairs;
            bool second = interleaved ? i % 2 : i >= pairs;
            float partner = own[interleaved ? i ^ 1 : second ? i - pairs : i + pairs];
            x = second ? x * cosines[pair] + partner * sines[pair] : x * cosines[pair] - partner * sines[pair];
        }
        store(out, offset + i, x);
    }
}

extern "C" __global__ void prepare_f32(const float* qkv, const float* bias, const float* q_norm, const float* k_norm, float eps,
                                       const float* cos, const float* sin, const u32* positions, u32 pairs, u32 interleaved,
                                       u32 heads, u32 kv_heads, float* out) {
    prepare(qkv, bias, q_norm, k_norm, eps, cos, sin, positions, pairs, interleaved, heads, kv_heads, out);
}

extern "C" __global__ void prepare_bf16(const float* qkv, const float* bias, const float* q_norm, const float* k_norm, float eps,
                                        const float* cos, const float* sin, const u32* positions, u32 pairs, u32 interleaved,
                                        u32 heads, u32 kv_heads, bf16* out) {
    prepare(qkv, bias, q_norm, k_norm, eps, cos, sin, positions, pairs, interleaved, heads, kv_heads, out);
}

// Up to KEYS keys of one range that some token of the tile sees; `rows` is 0 behind the last.
template <u32 KEYS>
struct KeyTiles {
    const Range* ranges;
    Tile tile;
    u32 window;
    u32 range, offset;
    u32 row, rows, position;

    __device__ KeyTiles(const Range* ranges, const Tile& tile, u32 window)
        : ranges(ranges), tile(tile), window(window), range(tile.first_range), offset(0) {
        find();
    }

    __device__ void advance() {
        offset += KEYS;
        find();
    }

    // From range and offset on to the next keys in sight.
    __device__ void find() {
        for (; range < tile.end_range; ++range, offset = 0) {
            Range keys = ranges[range];
            for (; offset < keys.rows; offset += KEYS) {
                row = keys.row + offset;
                rows = min(KEYS, keys.rows - offset);
                position = keys.position + offset;
                // Positions grow along the ranges: behind the tile's last token nothing is in sight any more.
                if (position > tile.position + tile.rows - 1) break;
                if (tile.position - min(tile.position, position + rows - 1) < window) return;
            }
        }
        rows = 0;
    }

    // Does every token from `first` on see all KEYS of them?
    __device__ bool all_seen(u32 first) const {
        return rows == KEYS && position + KEYS - 1 <= first && tile.position + tile.rows - 1 - position < window;
    }

    __device__ bool seen(u32 query_position, u32 key) const {
        return key < rows && position + key <= query_position && query_position - (position + key) < window;
    }
};

// --- bf16 on the tensor cores ---

#define PADDED_DIM ((HEAD_DIM + 15) / 16 * 16)
// Eight elements more than a row needs: the eight rows that one instruction reads then lie in different banks.
#define STRIDE (PADDED_DIM + 8)
#define QUERIES (16 * WARPS)
#define KEYS (HEAD_DIM > 128 ? 32 : 64)
// Queries stay in registers where these suffice; their shared memory is then the keys'.
#define KEEP_QUERIES (HEAD_DIM <= 128)

__device__ __forceinline__ u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// 16 bytes, or zeros.
__device__ __forceinline__ void copy_async(bf16* to, const bf16* from, bool is_there) {
    int bytes = is_there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}

__device__ __forceinline__ void load_matrices(u32 (&to)[4], const bf16* from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(from))
                 : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(u32 (&to)[4], const bf16* from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(from))
                 : "memory");
}

// sum [16, 8] += a [16, 16] b [16, 8]
__device__ __forceinline__ void multiply_add(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// `rows` rows of one head into shared memory, zeros up to `all` rows and up to PADDED_DIM columns.
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
attention_bf16(const bf16* qkv, const Tile* tiles, const Range* ranges, bf16* y, u32 heads, u32 kv_heads, float scale, u32 window,
               float softcap) {
    extern __shared__ __align__(16) bf16 shared[];
    bf16* keys_and_values = shared + (KEEP_QUERIES ? 0 : QUERIES * STRIDE);
    Tile tile = tiles[blockIdx.x / heads];
    u32 head = blockIdx.x % heads, kv_head = head / (heads / kv_heads);
    u64 columns = (u64)(heads + 2 * kv_heads) * HEAD_DIM;
    const bf16* keys = qkv + (heads + kv_head) * HEAD_DIM;
    const bf16* values = qkv + (heads + kv_heads + kv_head) * HEAD_DIM;
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    // What this lane holds of a [16, 8] tile: rows `own_row` and `own_row + 8`, columns `own_column` and the next.
    u32 own_row = lane / 4, own_column = lane % 4 * 2;
    u32 first_position = tile.position + 16 * warp;

    load_rows(shared, qkv + (u64)tile.row * columns + head * HEAD_DIM, columns, tile.rows, QUERIES);
    asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;" ::: "memory");
    __syncthreads();
    const bf16* own_queries = shared + (16 * warp + lane % 16) * STRIDE + lane / 16 * 8;
#if KEEP_QUERIES
    u32 queries[PADDED_DIM / 16][4];
#pragma unroll
    for (int k = 0; k < PADDED_DIM / 16; ++k) load_matrices(queries[k], own_queries + 16 * k);
    __syncthreads();
#endif

    float sums[PADDED_DIM / 8][4] = {};
    float largest[2] = {MINUS_INFINITY, MINUS_INFINITY}, mass[2] = {0.0f, 0.0f};
    float to_log2 = softcap > 0.0f ? LOG2_E : scale * LOG2_E;

    KeyTiles<KEYS> current(ranges, tile, window);
    u32 buffer = 0;
    load_rows(keys_and_values, keys + current.row * columns, columns, current.rows, KEYS);
    load_rows(keys_and_values + KEYS * STRIDE, values + current.row * columns, columns, current.rows, KEYS);
    asm volatile("cp.async.commit_group;" ::: "memory");
    while (current.rows > 0) {
        KeyTiles<KEYS> next = current;
        next.advance();
        if (next.rows > 0) {
            bf16* to = keys_and_values + (buffer ^ 1) * 2 * KEYS * STRIDE;
            load_rows(to, keys + next.row * columns, columns, next.rows, KEYS);
            load_rows(to + KEYS * STRIDE, values + next.row * columns, columns, next.rows, KEYS);
            asm volatile("cp.async.commit_group;\ncp.async.wait_group 1;" ::: "memory");
        } else {
            asm volatile("cp.async.wait_group 0;" ::: "memory");
        }
        __syncthreads();
        const bf16* from = keys_and_values + buffer * 2 * KEYS * STRIDE;
        const bf16* key_rows = from + (lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8;
        const bf16* value_rows = from + (KEYS + lane % 16) * STRIDE + lane / 16 * 8;

        float scores[KEYS / 8][4] = {};
#pragma unroll
        for (int k = 0; k < PADDED_DIM / 16; ++k) {
#if KEEP_QUERIES
            const u32(&q)[4] = queries[k];
#else
            u32 q[4];
            load_matrices(q, own_queries + 16 * k);
#endif
#pragma unroll
            for (int n = 0; n < KEYS / 16; ++n) {
                u32 b[4];
                load_matrices(b, key_rows + 16 * n * STRIDE + 16 * k);
                multiply_add(scores[2 * n], q, b[0], b[1]);
                multiply_add(scores[2 * n + 1], q, b[2], b[3]);
            }
        }

        if (softcap > 0.0f) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) scores[n][i] = softcap * tanhf(scores[n][i] * scale / softcap);
            }
        }
        if (!current.all_seen(first_position)) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    u32 position = first_position + own_row + i / 2 * 8;
                    if (!current.seen(position, 8 * n + own_column + i % 2)) scores[n][i] = MINUS_INFINITY;
                }
            }
        }

#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float top = largest[half];
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n) top = fmaxf(top, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
            top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
            top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
            // A row that has seen nothing yet keeps its sums of 0.
            float reference = top == MINUS_INFINITY ? 0.0f : top * to_log2;
            float shrink = exp2_fast(largest[half] * to_log2 - reference);
            largest[half] = top;
            mass[half] *= shrink;
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; ++i) {
                    scores[n][i] = exp2_fast(scores[n][i] * to_log2 - reference);
                    mass[half] += scores[n][i];
                }
            }
#pragma unroll
            for (int n = 0; n < PADDED_DIM / 8; ++n) sums[n][2 * half] *= shrink, sums[n][2 * half + 1] *= shrink;
        }

#pragma unroll
        for (int k = 0; k < KEYS / 16; ++k) {
            u32 p[4] = {round_bf16_pair(scores[2 * k][0], scores[2 * k][1]), round_bf16_pair(scores[2 * k][2], scores[2 * k][3]),
                        round_bf16_pair(scores[2 * k + 1][0], scores[2 * k + 1][1]),
                        round_bf16_pair(scores[2 * k + 1][2], scores[2 * k + 1][3])};
#pragma unroll
            for (int n = 0; n < PADDED_DIM / 16; ++n) {
                u32 b[4];
                load_matrices_transposed(b, value_rows + 16 * k * STRIDE + 16 * n);
                multiply_add(sums[2 * n], p, b[0], b[1]);
                multiply_add(sums[2 * n + 1], p, b[2], b[3]);
            }
        }
        __syncthreads();
        current = next;
        buffer ^= 1;
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float total = mass[half];
        total += __shfl_xor_sync(ALL_LANES, total, 1);
        total += __shfl_xor_sync(ALL_LANES, total, 2);
        u32 row = 16 * warp + own_row + 8 * half;
        if (row >= tile.rows) continue;
        bf16* to = y + ((u64)(tile.row + row) * heads + head) * HEAD_DIM;
        float inverse = 1.0f / total;
#pragma unroll
        for (int n = 0; n < PADDED_DIM / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                u32 column = 8 * n + own_column + i;
                if (column < HEAD_DIM) to[column] = round_bf16(sums[n][2 * half + i] * inverse);
            }
        }
    }
}

// --- f32 ---

// Threads 16 by 16; each has FLOAT_QUERIES / 16 rows, and of these every 16th column.
#define FLOAT_QUERIES (HEAD_DIM > 128 ? 32 : 64)
#define FLOAT_KEYS (HEAD_DIM > 128 ? 16 : 32)
#define FLOAT_STRIDE (HEAD_DIM + 1)

extern "C" __global__ void __launch_bounds__(256)
attention_f32(const float* qkv, const Tile* tiles, const Range* ranges, float* y, u32 heads, u32 kv_heads, float scale, u32 window,
              float softcap) {
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
    for (int r = 0; r < ROWS; ++r) largest[r] = MINUS_INFINITY, mass[r] = 0.0f;

    for (KeyTiles<FLOAT_KEYS> current(ranges, tile, window); current.rows > 0; current.advance()) {
        __syncthreads();
        for (u32 i = threadIdx.x; i < FLOAT_KEYS * HEAD_DIM; i += 256) {
            u32 row = i / HEAD_DIM, column = i % HEAD_DIM;
            const float* from = qkv + (current.row + row) * columns + (heads + kv_head) * HEAD_DIM + column;
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
                scores[r][c] = current.seen(tile.position + first_row + r, x + 16 * c) ? score : MINUS_INFINITY;
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
        __syncwarp();  // A row's weights are written and read by one half of a warp.
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
