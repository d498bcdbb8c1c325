// The statistics of each target token, from rows of logits; the formulas are those of running.rs and reference.rs.
//
// `sum_rows`: one block of THREADS per row, which it reads once, VECTOR words at a time (four if V is divisible by four). Sums run over all
// words except the target, relative to a logit `m`, with d = logit - m and e = exp(d): within a thread in f32, across the block in f64. Each
// thread has its own `m`, initially the largest logit of the row's first part, and rescales its sums when a larger one appears, as in
// running.rs: d is never positive, so no terms cancel. At the end all sums are rescaled to the largest logit of the row.
//
// The K largest logits are found exactly. The words are dealt to GROUPS groups of threads. The K-th largest of the groups' maxima, `least`, is a
// lower bound of the K-th largest logit. All logits above `least` are in fewer than K groups, so a list of (K - 1) times a group's words can
// hold them, and the rest of the K equal `least`. This bound is only known at the end of the row: until then, the ids of words above the same
// bound for the first part are noted, and those above `least` are listed in the end. Rarely, for example if logits grow with the id, there are
// too many to note, and the row is read again. The ids of the first CHOICES of the K are found in the same way, with a bound of their own:
// logits above it are listed by id, from the end of the list, instead of by value, so the list never overflows.

#define THREADS 512
// One group for two threads; K must not be larger.
#define GROUPS 256
#define GROUP (THREADS / GROUPS)
// The vectors of a thread in the first part of a row, and the groups that this part is dealt to.
#define FIRST 4
#define FIRST_GROUPS 64
#define FIRST_GROUP (THREADS / FIRST_GROUPS)
#define N_SUMS 5
// The first choice and the later ones whose ids are reported.
#define CHOICES 5
#define NO_WORD 0xffffffffu

#define MINUS_INFINITY __int_as_float(0xff800000)
#define INFINITE __int_as_float(0x7f800000)
#define LOWEST __int_as_float(0xff7fffff)
#define NOT_A_NUMBER __int_as_float(0x7fc00000)
#define LOG2_E 1.4426950408889634f
// As in reference.rs.
#define LEAST_EXACT 1e-290

// The result of one pass over a row, for `finish`.
struct RowSums {
    double e, e_d, e_dd, e_e, tail;
    float largest, target_logit;
    u32 n_larger, choices[CHOICES];
};

struct TokenStatistics {
    float logprob, entropy, entropy_topk;
    u32 rank;
    float tail, varentropy, grad;
    u32 top_id;
    float top_logprob;
    u32 next_ids[CHOICES - 1];
    float next_logprobs[CHOICES - 1];  // -inf if there is no such choice
};

__device__ __forceinline__ float capped(float logit, float softcap) {
    return softcap > 0.0f ? tanhf(logit / softcap) * softcap : logit;
}

__device__ __forceinline__ float largest_of_lanes(float x, int lanes) {
    for (int lane = lanes / 2; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, lane));
    return x;
}

template <int VECTOR>
struct Words;

template <>
struct Words<1> {
    float at[1];
    __device__ __forceinline__ void load(const float* from) { at[0] = from[0]; }
};

template <>
struct Words<4> {
    float at[4];
    __device__ __forceinline__ void load(const float* from) {
        float4 x = load_four(from);
        at[0] = x.x, at[1] = x.y, at[2] = x.z, at[3] = x.w;
    }
};

template <int VECTOR>
__device__ __forceinline__ Words<VECTOR> capped(Words<VECTOR> words, float softcap) {
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) words.at[i] = capped(words.at[i], softcap);
    return words;
}

// A NaN is never the largest.
template <int VECTOR>
__device__ __forceinline__ float largest_of(const Words<VECTOR>& words) {
    float top = words.at[0];
#pragma unroll
    for (int i = 1; i < VECTOR; ++i) top = fmaxf(top, words.at[i]);
    return top;
}

// The sums of one thread, relative to `m`.
struct Sums {
    float m, e, e_d, e_dd, e_e, tail;

    // Rescales to a logit that is larger by `s`: d' = d - s, e' = e exp(-s), and no terms cancel, because d <= 0 <= s. Terms more than 128 below
    // have no mass left in f32, and the square of the distance might overflow.
    __device__ __forceinline__ void refer_to(float larger) {
        float s = fminf(larger - m, 128.0f), scale = exp2_fast(-s * LOG2_E);
        e_dd = scale * (e_dd - 2.0f * s * e_d + s * s * e);
        e_d = scale * (e_d - s * e);
        e_e *= scale * scale;
        e *= scale;
        tail *= scale;
        m = larger;
    }
};

// The number of the N numbers that are larger than this thread's own; ties are broken by index.
template <u32 N>
__device__ __forceinline__ u32 place_among(const float* numbers) {
    u32 before = 0;
    float own = numbers[threadIdx.x];
#pragma unroll 8
    for (u32 i = 0; i < N; ++i) before += numbers[i] > own || (numbers[i] == own && i < threadIdx.x);
    return before;
}

// logits [N, V] f32, targets [N], row_sums [N], top_logits [N, top_k]: the largest logits, largest first. Dynamic shared memory: top_k floats,
// then the list of (top_k - 1) * GROUP * VECTOR * ceil(V / (VECTOR * THREADS)).
template <int VECTOR>
__device__ void sum_rows(const float* logits, const u32* targets, RowSums* row_sums, float* top_logits, u32 vocabulary, u32 top_k,
                         float softcap) {
    __shared__ float maxima[GROUPS];
    __shared__ double block_sums[N_SUMS][THREADS / WARP];
    __shared__ float tops[WARP];
    // The `top_k`-th largest of the maxima of the first part; the `top_k`-th and the `n_choices`-th of those of the whole row; the lowest id
    // whose logit equals the latter.
    __shared__ float first_least, least, least_choice;
    __shared__ u32 n_noted, n_listed, n_ids, tied_id, n_larger_sum;
    extern __shared__ float largest[];
    constexpr u32 STRIDE = VECTOR * THREADS;
    u32 n_choices = min(top_k, CHOICES);
    float* list = largest + top_k;
    u32 n_listable = (top_k - 1) * (GROUP * VECTOR) * ((vocabulary + STRIDE - 1) / STRIDE);
    // The noted ids use the first half of the list; the second half has room to list all of them.
    u32* noted = (u32*)list;
    // Read from shared memory in a rare branch: in a register it would make other variables of the loop spill.
    volatile __shared__ u32 n_notable_there;
    u32 n_notable = n_listable / 2;
    if (threadIdx.x == 0) n_notable_there = n_notable;
    // The i-th id is ids[-i].
    u32* ids = (u32*)list + n_listable - 1;

    const float* row = logits + (u64)blockIdx.x * vocabulary;
    u32 target = targets[blockIdx.x], lane = threadIdx.x % WARP;
    float target_logit = capped(row[target], softcap);

    // The first part: the largest logit of each group, and a bound for noting ids.
    float top = MINUS_INFINITY;
#pragma unroll
    for (u32 i = 0; i < FIRST; ++i) {
        u32 v = VECTOR * threadIdx.x + i * STRIDE;
        if (v >= vocabulary) continue;
        Words<VECTOR> words;
        words.load(row + v);
        top = fmaxf(top, largest_of(capped(words, softcap)));
    }
    top = largest_of_lanes(top, FIRST_GROUP);
    if (threadIdx.x % FIRST_GROUP == 0) maxima[threadIdx.x / FIRST_GROUP] = top;
    if (threadIdx.x == 0) first_least = INFINITE, n_noted = 0, n_listed = 0, n_ids = 0, tied_id = NO_WORD, n_larger_sum = 0;
    __syncthreads();
    if (threadIdx.x < FIRST_GROUPS && place_among<FIRST_GROUPS>(maxima) == top_k - 1) first_least = maxima[threadIdx.x];
    top = MINUS_INFINITY;
    for (u32 i = lane; i < FIRST_GROUPS; i += WARP) top = fmaxf(top, maxima[i]);
    // At least LOWEST, so that a row that starts with -inf has finite differences.
    Sums sums = {fmaxf(largest_of_lanes(top, WARP), LOWEST), 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    __syncthreads();

    // The whole row. The next words are loaded while the current ones are processed.
    float bound = first_least;
    u32 n_larger = 0;
    top = MINUS_INFINITY;
    Words<VECTOR> next;
    if (VECTOR * threadIdx.x < vocabulary) next.load(row + VECTOR * threadIdx.x);
#pragma unroll 1
    for (u32 v = VECTOR * threadIdx.x; v < vocabulary; v += STRIDE) {
        Words<VECTOR> words = next;
        if (v + STRIDE < vocabulary) next.load(row + v + STRIDE);
        words = capped(words, softcap);
        float most = largest_of(words);
        top = fmaxf(top, most);
        if (most > bound) {
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) {
                if (!(words.at[i] > bound)) continue;
                u32 at = atomicAdd(&n_noted, 1u);
                if (at < n_notable_there) noted[at] = v + i;
            }
        }
        if (most > sums.m) sums.refer_to(most);
        // The sums omit the target.
        if (target - v < VECTOR) {
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) words.at[i] = v + i == target ? MINUS_INFINITY : words.at[i];
        }
        float part_e = 0.0f, part_ed = 0.0f, part_edd = 0.0f, part_ee = 0.0f, part_tail = 0.0f;
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            float logit = words.at[i];
            bool is_larger = logit > target_logit;
            n_larger += is_larger;
            // Below -100 there is no mass in f32, and the product of -inf with its own exponential would be NaN.
            float d = max_or_nan(logit - sums.m, -100.0f), e = exp2_fast(d * LOG2_E), ed = e * d;
            part_e += e;
            part_ed += ed;
            part_edd = fmaf(ed, d, part_edd);
            part_ee = fmaf(e, e, part_ee);
            part_tail += is_larger ? 0.0f : e;
        }
        sums.e += part_e, sums.e_d += part_ed, sums.e_dd += part_edd, sums.e_e += part_ee, sums.tail += part_tail;
    }

    // The largest logit of each group, and of the row.
    float group_top = largest_of_lanes(top, GROUP);
    if (threadIdx.x % GROUP == 0) maxima[threadIdx.x / GROUP] = group_top;
    top = largest_of_lanes(top, WARP);
    if (lane == 0) tops[threadIdx.x / WARP] = top;
    if (n_larger > 0) atomicAdd(&n_larger_sum, n_larger);
    __syncthreads();
    top = largest_of_lanes(lane < THREADS / WARP ? tops[lane] : MINUS_INFINITY, WARP);
    if (top > sums.m) sums.refer_to(top);
    float own[N_SUMS] = {sums.e, sums.e_d, sums.e_dd, sums.e_e, sums.tail};
#pragma unroll
    for (int i = 0; i < N_SUMS; ++i) {
        double sum = warp_sum((double)own[i]);
        if (lane == 0) block_sums[i][threadIdx.x / WARP] = sum;
    }
    if (threadIdx.x < GROUPS) {
        u32 place = place_among<GROUPS>(maxima);
        if (place == top_k - 1) least = maxima[threadIdx.x];
        if (place == n_choices - 1) least_choice = maxima[threadIdx.x];
    }
    __syncthreads();

    RowSums* out = row_sums + blockIdx.x;
    if (threadIdx.x < N_SUMS) {
        double sum = 0.0;
        for (int i = 0; i < THREADS / WARP; ++i) sum += block_sums[threadIdx.x][i];
        (&out->e)[threadIdx.x] = sum;
    }
    if (threadIdx.x == 0) out->largest = top, out->target_logit = target_logit, out->n_larger = n_larger_sum;
    // Lists the logits above the bounds of the whole row.
    for (u32 i = threadIdx.x; i < top_k; i += THREADS) largest[i] = least;
    bool all_are_noted = top_k <= FIRST_GROUPS && n_noted <= n_notable;
    if (all_are_noted) list += n_notable;
    for (u32 i = threadIdx.x; i < (all_are_noted ? n_noted : vocabulary); i += THREADS) {
        u32 id = all_are_noted ? noted[i] : i;
        float logit = capped(row[id], softcap);
        if (!(logit > least)) continue;
        if (logit > least_choice) ids[-(int)atomicAdd(&n_ids, 1u)] = id;
        else {
            list[atomicAdd(&n_listed, 1u)] = logit;
            if (logit == least_choice) atomicMin(&tied_id, id);
        }
    }
    __syncthreads();
    // Sorts the K largest: a logit's place is the number of larger ones, which includes all those listed by id.
    for (u32 i = threadIdx.x; i < n_listed; i += THREADS) {
        u32 place = n_ids;
        for (u32 j = 0; j < n_listed; ++j) place += list[j] > list[i] || (list[j] == list[i] && j < i);
        if (place < top_k) largest[place] = list[i];
    }
    // Ties are sorted by id.
    for (u32 i = threadIdx.x; i < n_ids; i += THREADS) {
        u32 place = 0, id = ids[-(int)i];
        float own = capped(row[id], softcap);
#pragma unroll 1
        for (u32 j = 0; j < n_ids; ++j) {
            u32 other_id = ids[-(int)j];
            float other = capped(row[other_id], softcap);
            place += other > own || (other == own && other_id < id);
        }
        if (place < top_k) largest[place] = own;
        if (place < n_choices) out->choices[place] = id;
    }
    __syncthreads();
    // The remaining choices equal `least_choice`, lowest ids first. The first of them is already known if it is larger than `least`.
    u32 first = 0;
#pragma unroll 1
    for (u32 place = n_ids; place < n_choices; ++place) {
        if (tied_id == NO_WORD) {
            __syncthreads();  // All threads have read tied_id.
            for (u32 v = first + threadIdx.x; v < vocabulary; v += THREADS) {
                if (capped(row[v], softcap) != least_choice) continue;
                atomicMin(&tied_id, v);
                break;
            }
            __syncthreads();
        }
        u32 found = tied_id;
        __syncthreads();
        if (threadIdx.x == 0) out->choices[place] = found, tied_id = NO_WORD;
        first = found == NO_WORD ? vocabulary : found + 1;
        __syncthreads();
    }
    for (u32 i = threadIdx.x; i < top_k; i += THREADS) top_logits[(u64)blockIdx.x * top_k + i] = largest[i];
}

extern "C" __global__ void __launch_bounds__(THREADS, 3)
sum_rows_4(const float* logits, const u32* targets, RowSums* row_sums, float* top_logits, u32 vocabulary, u32 top_k, float softcap) {
    sum_rows<4>(logits, targets, row_sums, top_logits, vocabulary, top_k, softcap);
}

extern "C" __global__ void __launch_bounds__(THREADS, 3)
sum_rows_1(const float* logits, const u32* targets, RowSums* row_sums, float* top_logits, u32 vocabulary, u32 top_k, float softcap) {
    sum_rows<1>(logits, targets, row_sums, top_logits, vocabulary, top_k, softcap);
}

// row_sums [N], top_logits [N, top_k] -> statistics [N]. One warp per token, 8 per block.
extern "C" __global__ void __launch_bounds__(8 * WARP)
finish(const RowSums* row_sums, const float* top_logits, TokenStatistics* statistics, u32 n, u32 top_k) {
    u32 token = blockIdx.x * 8 + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (token >= n) return;
    const float* largest = top_logits + (u64)token * top_k;
    double top_e = 0.0, top_ed = 0.0;
    for (u32 k = lane; k < top_k; k += WARP) {
        // A logit of -inf has no mass: 0 ln 0 = 0.
        if (largest[k] > MINUS_INFINITY) {
            double d = (double)largest[k] - (double)largest[0], e = exp(d);
            top_e += e;
            top_ed += e * d;
        }
    }
    top_e = warp_sum(top_e);
    top_ed = warp_sum(top_ed);
    if (lane != 0) return;

    RowSums others = row_sums[token];
    double d = (double)others.target_logit - (double)others.largest, e = exp(d), total = others.e + e;
    TokenStatistics out = {NOT_A_NUMBER, NOT_A_NUMBER, NOT_A_NUMBER, 0, NOT_A_NUMBER, NOT_A_NUMBER, NOT_A_NUMBER, 0, NOT_A_NUMBER};
    for (u32 i = 0; i < CHOICES - 1; ++i) out.next_ids[i] = 0, out.next_logprobs[i] = MINUS_INFINITY;
    // A NaN or +inf makes `e d` NaN; a row of only -inf has no mass.
    if (total > 0.0 && others.e_d - others.e_d == 0.0) {
        double ed = e > 0.0 ? e * d : 0.0, edd = e > 0.0 ? e * d * d : 0.0;
        // ln p = -ln(1 + others / e), exact even if p is close to 1; if e has lost digits or underflowed, the total is that of the others.
        double ln_total = d == 0.0 ? log1p(others.e) : log(total);
        double mean_d = (others.e_d + ed) / total, not_target = others.e / total;
        out.logprob = (float)(e > LEAST_EXACT ? -log1p(others.e / e) : d - ln_total);
        out.entropy = (float)(ln_total - mean_d);
        out.entropy_topk = (float)(top_k > 1 ? (log(top_e) - top_ed / top_e) / log((double)top_k) : 0.0);
        out.rank = 1 + others.n_larger;
        out.tail = (float)fmin((others.tail + e) / total, 1.0);
        out.varentropy = (float)fmax((others.e_dd + edd) / total - mean_d * mean_d, 0.0);
        out.grad = (float)sqrt(not_target * not_target + others.e_e / (total * total));
        out.top_id = others.choices[0];
        out.top_logprob = (float)-ln_total;
        for (u32 i = 1; i < min(top_k, CHOICES) && largest[i] > MINUS_INFINITY; ++i) {
            out.next_ids[i - 1] = others.choices[i];
            out.next_logprobs[i - 1] = (float)((double)largest[i] - (double)others.largest - ln_total);
        }
    }
    statistics[token] = out;
}
