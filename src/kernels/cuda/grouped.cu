// The two products of the experts, each for all experts in one launch. Shapes: T tokens of width D, E experts, S slots (experts.cu), F an
// expert's width. `open_experts`: x [T, D] -> y [S, F], activation(gate) * up of the row of x of each slot. `close_experts`: y [S, F] -> some
// columns of the experts' outputs, [S, N], f32.
//
// A block computes COLUMNS columns of a tile of at most ROWS slots over the whole length of their rows: asynchronous copies fill STAGES buffers
// with pieces of the factors while pieces that have arrived are multiplied. There are two shapes. If experts have few slots, reading the weights
// takes most of the time, and the shape wastes little work on absent rows; if they have many, each piece is multiplied with as many rows as
// registers allow. Both shapes add the products of a number in the order of the factors and in f32, so its bits depend neither on the shape, nor
// on its place in a tile, nor on other rows.
//
// Columns come in two halves. In `open_experts` these are gates and their up-projections, in `close_experts` they are alike; the thread that
// holds a number of the first half also holds its counterpart in the second.

__device__ __forceinline__ void* dynamic_memory() {
    extern __shared__ __align__(16) unsigned char dynamic[];
    return dynamic;
}

// The index of a unit in shared memory. Rows are copied and stored in units of 16 bytes; the swizzle puts the units with one number in eight
// rows, which are read at a time, into different banks.
template <typename T, u32 UNITS>
__device__ __forceinline__ u32 place(u32 row, u32 unit) {
    return (row * UNITS + (unit ^ row / (8 / UNITS) % UNITS)) * (16 / sizeof(T));
}

// Sums [ROWS, COLUMNS] of bf16 products on the tensor cores, by DOWN times ACROSS warps.
template <u32 DOWN, u32 ACROSS, u32 ROWS_, u32 COLUMNS_, u32 UNITS_, u32 STAGES_>
struct TensorSums {
    typedef bf16 Factor;
    static constexpr u32 ROWS = ROWS_, COLUMNS = COLUMNS_, UNITS = UNITS_, STAGES = STAGES_, THREADS = WARP * DOWN * ACROSS;
    // A warp's rows, and its columns of either half.
    static constexpr u32 OWN_ROWS = ROWS / DOWN, HALF = COLUMNS / 2, OWN_COLUMNS = HALF / ACROSS;
    static constexpr u32 NEIGHBOURS = 2;

    float sums[OWN_ROWS / 16][OWN_COLUMNS / 8][2][4] = {};

    static __device__ __forceinline__ u32 first_row() { return threadIdx.x / WARP / ACROSS * OWN_ROWS; }
    static __device__ __forceinline__ u32 first_column() { return threadIdx.x / WARP % ACROSS * OWN_COLUMNS; }

    // Adds the products of rows of UNITS units.
    __device__ __forceinline__ void add(const bf16* x, const bf16* weights) {
        u32 lane = threadIdx.x % WARP;
#pragma unroll
        for (u32 unit = 0; unit < UNITS; unit += 2) {
            u32 a[OWN_ROWS / 16][4];
#pragma unroll
            for (u32 m = 0; m < OWN_ROWS / 16; ++m) {
                load_matrices(a[m], x + place<bf16, UNITS>(first_row() + 16 * m + lane % 16, unit + lane / 16));
            }
#pragma unroll
            for (u32 n = 0; n < OWN_COLUMNS / 8; ++n) {
                u32 b[4];
                u32 row = lane / 16 * HALF + first_column() + 8 * n + lane % 8;
                load_matrices(b, weights + place<bf16, UNITS>(row, unit + lane / 8 % 2));
#pragma unroll
                for (u32 m = 0; m < OWN_ROWS / 16; ++m) {
                    multiply_add(sums[m][n][0], a[m], b[0], b[1]);
                    multiply_add(sums[m][n][1], a[m], b[2], b[3]);
                }
            }
        }
    }

    // Calls `use(row, column, first, second)` for all groups of neighbouring numbers of this thread, with their counterparts in the second half.
    template <typename Use>
    __device__ __forceinline__ void each(Use use) const {
        u32 lane = threadIdx.x % WARP;
#pragma unroll
        for (u32 m = 0; m < OWN_ROWS / 16; ++m) {
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
#pragma unroll
                for (u32 n = 0; n < OWN_COLUMNS / 8; ++n) {
                    const float(&both)[2][4] = sums[m][n];
                    float first[2] = {both[0][2 * half], both[0][2 * half + 1]}, second[2] = {both[1][2 * half], both[1][2 * half + 1]};
                    use(first_row() + 16 * m + 8 * half + lane / 4, first_column() + 8 * n + lane % 4 * 2, first, second);
                }
            }
        }
    }
};

// The same for f32, with 16 threads across; each thread has every 16th column and every DOWN-th row.
template <u32 DOWN, u32 ROWS_, u32 COLUMNS_, u32 UNITS_, u32 STAGES_>
struct FloatSums {
    typedef float Factor;
    static constexpr u32 ROWS = ROWS_, COLUMNS = COLUMNS_, UNITS = UNITS_, STAGES = STAGES_, THREADS = 16 * DOWN;
    static constexpr u32 HALF = COLUMNS / 2, OWN_ROWS = ROWS / DOWN, OWN_COLUMNS = COLUMNS / 16, NEIGHBOURS = 1;

    float sums[OWN_ROWS][OWN_COLUMNS] = {};

    __device__ __forceinline__ void add(const float* x, const float* weights) {
#pragma unroll 1
        for (u32 unit = 0; unit < UNITS; ++unit) {
            float4 a[OWN_ROWS];
#pragma unroll
            for (u32 i = 0; i < OWN_ROWS; ++i) a[i] = load_four(x + place<float, UNITS>(threadIdx.x / 16 + DOWN * i, unit));
#pragma unroll
            for (u32 j = 0; j < OWN_COLUMNS; ++j) {
                float4 b = load_four(weights + place<float, UNITS>(threadIdx.x % 16 + 16 * j, unit));
#pragma unroll
                for (u32 i = 0; i < OWN_ROWS; ++i) {
                    float sum = fmaf(a[i].y, b.y, fmaf(a[i].x, b.x, sums[i][j]));
                    sums[i][j] = fmaf(a[i].w, b.w, fmaf(a[i].z, b.z, sum));
                }
            }
        }
    }

    template <typename Use>
    __device__ __forceinline__ void each(Use use) const {
#pragma unroll
        for (u32 i = 0; i < OWN_ROWS; ++i) {
#pragma unroll
            for (u32 j = 0; j < OWN_COLUMNS / 2; ++j) {
                float first[1] = {sums[i][j]}, second[1] = {sums[i][j + OWN_COLUMNS / 2]};
                use(threadIdx.x / 16 + DOWN * i, threadIdx.x % 16 + 16 * j, first, second);
            }
        }
    }
};

// These need no more shared memory than a block has on every supported card: 60 KiB for few rows, 68 KiB for many.
typedef TensorSums<1, 4, 16, 64, 8, 6> FewBf16;
typedef TensorSums<2, 2, 128, 128, 4, 4> ManyBf16;
typedef FloatSums<4, 16, 64, 8, 6> FewF32;
typedef FloatSums<16, 128, 128, 4, 4> ManyF32;

// The factors of a block's product.
template <typename T>
struct Factors {
    const u64* weights;  // the address of the weight [.., width] of each expert
    const T* x;          // [.., width]
    const u32* rows;     // the row of x of each slot; null if it is the slot itself
    u32 width;
    u32 in_units;  // Whether all rows begin at a multiple of a unit.
};

// The rows of a buffer of which this thread copies one unit: every (THREADS / UNITS)th.
template <typename Sums, u32 ROWS>
struct Copies {
    typedef typename Sums::Factor T;
    static constexpr u32 STEP = Sums::THREADS / Sums::UNITS, LEN = 16 / sizeof(T);

    const T* from[ROWS / STEP];  // the start of each row; any valid address if there is no row
    u32 there = 0;               // one bit per row

    // `find(row)` returns the start of a row, or null.
    template <typename Find>
    __device__ __forceinline__ Copies(const T* anywhere, Find find) {
        static_assert(ROWS % STEP == 0 && ROWS / STEP <= 32, "every thread has as many rows");
#pragma unroll
        for (u32 i = 0; i < ROWS / STEP; ++i) {
            const T* found = find(threadIdx.x / Sums::UNITS + STEP * i);
            from[i] = found ? found : anywhere, there |= (found ? 1u : 0u) << i;
        }
    }

    // Copies elements `k ..` of all rows, with zeros after their width.
    __device__ __forceinline__ void copy(T* to, u32 k, u32 width, bool in_units) const {
        u32 row = threadIdx.x / Sums::UNITS, unit = threadIdx.x % Sums::UNITS;
        k += LEN * unit;
        if (in_units) {
            u32 at = k < width ? k : 0, here = k < width ? there : 0;
#pragma unroll
            for (u32 i = 0; i < ROWS / STEP; ++i) copy_async(to + place<T, Sums::UNITS>(row + STEP * i, unit), from[i] + at, here >> i & 1);
            return;
        }
#pragma unroll
        for (u32 i = 0; i < ROWS / STEP; ++i) {
            T* own = to + place<T, Sums::UNITS>(row + STEP * i, unit);
#pragma unroll 1
            for (u32 j = 0; j < LEN; ++j) own[j] = (there >> i & 1) && k + j < width ? from[i][k + j] : (T)0;
        }
    }
};

// The products of a tile's slots and COLUMNS rows of their expert's weight: `weight_row(weight, column)` is the start of the row for a column, or
// null.
template <typename Sums, typename WeightRow>
__device__ __forceinline__ Sums multiply(const Factors<typename Sums::Factor>& of, const RowTile& tile, WeightRow weight_row) {
    typedef typename Sums::Factor T;
    constexpr u32 DEPTH = Sums::UNITS * (16 / sizeof(T)), STAGE = (Sums::ROWS + Sums::COLUMNS) * DEPTH;
    T* buffers = (T*)dynamic_memory();
    const T* weight = (const T*)of.weights[tile.expert];
    Copies<Sums, Sums::ROWS> x(of.x, [&](u32 row) -> const T* {
        if (row >= tile.rows) return nullptr;
        u32 slot = tile.slot + row;
        return of.x + (u64)(of.rows ? of.rows[slot] : slot) * of.width;
    });
    Copies<Sums, Sums::COLUMNS> weights(weight, [&](u32 column) { return weight_row(weight, column); });
    u32 n_stages = (of.width + DEPTH - 1) / DEPTH;
    auto fill = [&](u32 stage, u32 buffer) {
        if (stage < n_stages) {
            x.copy(buffers + buffer * STAGE, stage * DEPTH, of.width, of.in_units);
            weights.copy(buffers + buffer * STAGE + Sums::ROWS * DEPTH, stage * DEPTH, of.width, of.in_units);
        }
        // Commits a group even if it is empty, so that every iteration has the same number of groups under way.
        commit_copies();
    };

#pragma unroll 1
    for (u32 stage = 0; stage < Sums::STAGES - 1; ++stage) fill(stage, stage);
    Sums sums;
    u32 buffer = 0;
#pragma unroll 1
    for (u32 stage = 0; stage < n_stages; ++stage) {
        wait_for_copies<Sums::STAGES - 2>();
        // This stage has arrived for all threads, and no thread reads the previous one any more, which the next stage overwrites.
        __syncthreads();
        fill(stage + Sums::STAGES - 1, buffer == 0 ? Sums::STAGES - 1 : buffer - 1);
        sums.add(buffers + buffer * STAGE, buffers + buffer * STAGE + Sums::ROWS * DEPTH);
        buffer = buffer + 1 == Sums::STAGES ? 0 : buffer + 1;
    }
    return sums;
}

// Stores those of N neighbouring numbers that lie within a row of `columns`.
template <typename T, u32 N>
__device__ __forceinline__ void store_row(T* row, u32 column, u32 columns, const float (&x)[N]) {
    if constexpr (N == 2) {
        if (columns % 2 == 0) {
            if (column < columns) store_pair(row + column, x[0], x[1]);
            return;
        }
    }
#pragma unroll
    for (u32 i = 0; i < N; ++i) {
        if (column + i < columns) store(row, column + i, x[i]);
    }
}

// An activation by its number (grouped.rs).
struct Gate {
    u32 activation;
    float alpha, limit;
    __device__ __forceinline__ float operator()(float gate, float up) const {
        switch (activation) {
            case 0: return Silu()(gate, up);
            case 1: return GeluTanh()(gate, up);
            case 2: return Sigmoid()(gate, up);
            default: return ClampedSwiglu{alpha, limit}(gate, up);
        }
    }
};

// `bias` [E, 2 F] or null, y [S, F]. A block computes HALF columns of y: the first F rows of a weight are gates, the others up-projections.
template <typename Sums>
__device__ __forceinline__ void open_experts(const Factors<typename Sums::Factor>& of, const RowTile* tiles, const float* bias,
                                             typename Sums::Factor* y, u32 columns, const Gate& activation) {
    typedef typename Sums::Factor T;
    u32 blocks = (columns + Sums::HALF - 1) / Sums::HALF, first_column = blockIdx.x % blocks * Sums::HALF;
    RowTile tile = tiles[blockIdx.x / blocks];
    if (tile.rows == 0) return;
    Sums sums = multiply<Sums>(of, tile, [&](const T* weight, u32 column) -> const T* {
        u32 at = first_column + column % Sums::HALF;
        return at < columns ? weight + (u64)(column / Sums::HALF * columns + at) * of.width : nullptr;
    });
    // Goes through shared memory, so that rows are written whole, and one loop applies the activation. Eight numbers of padding put eight rows
    // that are written at a time into different banks.
    constexpr u32 STRIDE = Sums::COLUMNS + 8, N = Sums::NEIGHBOURS;
    float* kept = (float*)dynamic_memory();
    __syncthreads();  // No thread reads factors any more.
    sums.each([&](u32 row, u32 column, const float(&gates)[N], const float(&ups)[N]) {
        store_row(kept + row * STRIDE, column, Sums::HALF, gates);
        store_row(kept + row * STRIDE + Sums::HALF, column, Sums::HALF, ups);
    });
    __syncthreads();
    if (bias) bias += (u64)tile.expert * 2 * columns;
    y += (u64)tile.slot * columns;
#pragma unroll 1
    for (u32 i = threadIdx.x; i < tile.rows * Sums::HALF; i += Sums::THREADS) {
        u32 row = i / Sums::HALF, own = i % Sums::HALF, column = first_column + own;
        if (column >= columns) continue;
        float gate = kept[row * STRIDE + own], up = kept[row * STRIDE + Sums::HALF + own];
        if (bias) gate += bias[column], up += bias[columns + column];
        store(y, (u64)row * columns + column, activation(gate, up));
    }
}

// Columns `first .. first + columns` of the experts' outputs: y [S, columns].
template <typename Sums>
__device__ __forceinline__ void close_experts(const Factors<typename Sums::Factor>& of, const RowTile* tiles, float* y, u32 first,
                                              u32 columns) {
    typedef typename Sums::Factor T;
    u32 blocks = (columns + Sums::COLUMNS - 1) / Sums::COLUMNS, first_column = blockIdx.x % blocks * Sums::COLUMNS;
    RowTile tile = tiles[blockIdx.x / blocks];
    if (tile.rows == 0) return;
    Sums sums = multiply<Sums>(of, tile, [&](const T* weight, u32 column) -> const T* {
        u32 at = first_column + column;
        return at < columns ? weight + (u64)(first + at) * of.width : nullptr;
    });
    y += (u64)tile.slot * columns;
    constexpr u32 N = Sums::NEIGHBOURS;
    sums.each([&](u32 row, u32 column, const float(&x)[N], const float(&others)[N]) {
        if (row >= tile.rows) return;
        store_row(y + (u64)row * columns, first_column + column, columns, x);
        store_row(y + (u64)row * columns, first_column + column + Sums::HALF, columns, others);
    });
}

extern "C" __global__ void __launch_bounds__(128)
open_experts_few_bf16(const u64* weights, const bf16* x, const u32* rows, u32 width, u32 in_units, const RowTile* tiles, const float* bias,
                      bf16* y, u32 columns, u32 activation, float alpha, float limit) {
    open_experts<FewBf16>({weights, x, rows, width, in_units}, tiles, bias, y, columns, {activation, alpha, limit});
}

extern "C" __global__ void __launch_bounds__(128)
open_experts_many_bf16(const u64* weights, const bf16* x, const u32* rows, u32 width, u32 in_units, const RowTile* tiles, const float* bias,
                       bf16* y, u32 columns, u32 activation, float alpha, float limit) {
    open_experts<ManyBf16>({weights, x, rows, width, in_units}, tiles, bias, y, columns, {activation, alpha, limit});
}

extern "C" __global__ void __launch_bounds__(64)
open_experts_few_f32(const u64* weights, const float* x, const u32* rows, u32 width, u32 in_units, const RowTile* tiles, const float* bias,
                     float* y, u32 columns, u32 activation, float alpha, float limit) {
    open_experts<FewF32>({weights, x, rows, width, in_units}, tiles, bias, y, columns, {activation, alpha, limit});
}

extern "C" __global__ void __launch_bounds__(256, 2)
open_experts_many_f32(const u64* weights, const float* x, const u32* rows, u32 width, u32 in_units, const RowTile* tiles, const float* bias,
                      float* y, u32 columns, u32 activation, float alpha, float limit) {
    open_experts<ManyF32>({weights, x, rows, width, in_units}, tiles, bias, y, columns, {activation, alpha, limit});
}

extern "C" __global__ void __launch_bounds__(128)
close_experts_few_bf16(const u64* weights, const bf16* x, u32 width, u32 in_units, const RowTile* tiles, float* y, u32 first, u32 columns) {
    close_experts<FewBf16>({weights, x, nullptr, width, in_units}, tiles, y, first, columns);
}

extern "C" __global__ void __launch_bounds__(128)
close_experts_many_bf16(const u64* weights, const bf16* x, u32 width, u32 in_units, const RowTile* tiles, float* y, u32 first, u32 columns) {
    close_experts<ManyBf16>({weights, x, nullptr, width, in_units}, tiles, y, first, columns);
}

extern "C" __global__ void __launch_bounds__(64)
close_experts_few_f32(const u64* weights, const float* x, u32 width, u32 in_units, const RowTile* tiles, float* y, u32 first, u32 columns) {
    close_experts<FewF32>({weights, x, nullptr, width, in_units}, tiles, y, first, columns);
}

extern "C" __global__ void __launch_bounds__(256, 2)
close_experts_many_f32(const u64* weights, const float* x, u32 width, u32 in_units, const RowTile* tiles, float* y, u32 first, u32 columns) {
    close_experts<ManyF32>({weights, x, nullptr, width, in_units}, tiles, y, first, columns);
}
