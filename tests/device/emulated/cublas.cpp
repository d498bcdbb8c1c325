// libcublasLt.so.13 (.12): D = alpha op(A) op(B) + beta C of matrices in f32 or bf16, stored by columns, added in f32; or, where parts of
// sums may be added in the format of the result, so.

#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "device.h"

#define API extern "C" __attribute__((visibility("default"))) int

namespace {

enum Code { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum Format { R_32F = 0, R_16BF = 14 };
enum { TRANSPOSE_A = 3, TRANSPOSE_B = 4, COMPUTE_32F = 68, MAX_WORKSPACE_BYTES = 1, REDUCTION_SCHEMES = 3, MIN_ALIGNMENT_A_BYTES = 5 };
enum Scheme : uint32_t { IN_PLACE = 1, IN_COMPUTE_TYPE = 2, IN_OUTPUT_TYPE = 4 };

struct Layout {
    int format;
    uint64_t rows, columns;
    int64_t stride;  // from column to column
    size_t bytes() const { return ((columns - 1) * stride + rows) * (format == R_32F ? 4 : 2); }
};

struct Product {
    int transposes_a = 0, transposes_b = 0;
};

float widen(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

uint16_t round_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// A factor as outer index by inner index.
struct Factor {
    const void* at;
    int format;
    size_t outer_stride, inner_stride;
};

// So many of A's rows by so many of B's columns fit the registers, and so many of the inner index the caches.
constexpr size_t WIDTH = 32, HEIGHT = 8, DEPTH = 256, GROUP = 128;

// to[depth][STEP]: STEP outer ones, 0 where there are none.
template <size_t STEP>
void pack(float* to, const Factor& from, size_t outer, size_t n_outer, size_t depth) {
    memset(to, 0, STEP * depth * sizeof(float));
    for (size_t i = 0; i < STEP && outer + i < n_outer; ++i) {
        size_t first = (outer + i) * from.outer_stride, step = from.inner_stride;
        if (from.format == R_32F) {
            for (size_t k = 0; k < depth; ++k) to[k * STEP + i] = ((const float*)from.at)[first + k * step];
        } else {
            for (size_t k = 0; k < depth; ++k) to[k * STEP + i] = widen(((const uint16_t*)from.at)[first + k * step]);
        }
    }
}

// sums[HEIGHT][WIDTH] += right[depth][HEIGHT] left[depth][WIDTH]
void add_products(float* sums, const float* left, const float* right, size_t depth) {
    typedef float Row __attribute__((vector_size(16 * sizeof(float))));
    Row sum[HEIGHT][WIDTH / 16];
    memcpy(sum, sums, sizeof sum);
    for (size_t k = 0; k < depth; ++k) {
        Row row[WIDTH / 16];
        memcpy(row, left + k * WIDTH, sizeof row);
#pragma GCC unroll 8
        for (size_t i = 0; i < HEIGHT; ++i) {
#pragma GCC unroll 2
            for (size_t j = 0; j < WIDTH / 16; ++j) sum[i][j] += right[k * HEIGHT + i] * row[j];
        }
    }
    memcpy(sums, sum, sizeof sum);
}

struct Scaled {
    float alpha, beta;
    const Layout *c, *d;
    const void* c_at;
    void* d_at;

    void store(size_t row, size_t column, float sum) const {
        float y = alpha * sum;
        if (beta != 0.0f) {
            size_t i = column * c->stride + row;
            y += beta * (c->format == R_32F ? ((const float*)c_at)[i] : widen(((const uint16_t*)c_at)[i]));
        }
        size_t i = column * d->stride + row;
        if (d->format == R_32F) ((float*)d_at)[i] = y;
        else ((uint16_t*)d_at)[i] = round_bf16(y);
    }
};

// One task computes WIDTH rows of D for GROUP columns at a time. Where a sum is divided depends on the number of columns, as it does with the
// algorithms of a card: whoever wants equal bits has to ask for equally many.
void multiply(size_t m, size_t n, size_t depth, const Factor& a, const Factor& b, const Scaled& scaled) {
    size_t widths = (m + WIDTH - 1) / WIDTH, groups = (n + GROUP - 1) / GROUP, cut = depth / (2 + n % 5);
    std::vector<float> right(groups * GROUP * depth);
    emulated::parallel(groups, [&](size_t group) {
        for (size_t part = 0; part < GROUP; part += HEIGHT) {
            size_t first = group * GROUP + part;
            if (first < n) pack<HEIGHT>(&right[first * depth], b, first, n, depth);
        }
    });
    emulated::parallel(widths, [&](size_t width) {
        std::vector<float> left(WIDTH * depth), sums(GROUP * WIDTH), before(GROUP * WIDTH);
        pack<WIDTH>(left.data(), a, width * WIDTH, m, depth);
        for (size_t group = 0; group < n; group += GROUP) {
            std::fill(sums.begin(), sums.end(), 0.0f);
            for (size_t inner = 0, some; inner < depth; inner += some) {
                some = std::min(DEPTH, (inner < cut ? cut : depth) - inner);
                if (inner == cut) before = sums, std::fill(sums.begin(), sums.end(), 0.0f);
                for (size_t part = 0; part < GROUP && group + part < n; part += HEIGHT) {
                    add_products(&sums[part * WIDTH], &left[inner * WIDTH], &right[(group + part) * depth + inner * HEIGHT], some);
                }
            }
            for (size_t column = group; column < std::min(group + GROUP, n); ++column) {
                for (size_t i = 0; i < WIDTH && width * WIDTH + i < m; ++i) {
                    size_t at = (column - group) * WIDTH + i;
                    scaled.store(width * WIDTH + i, column, before[at] + sums[at]);
                }
            }
        }
    });
}

}  // namespace

extern "C" int cuDriverGetVersion(int* version);

// One of a later CUDA than the driver does not start: the number is at the end of the file's name.
API cublasLtCreate(void** handle) {
    static int only;
    int driver = 0;
    Dl_info about;
    cuDriverGetVersion(&driver);
    dladdr((void*)cublasLtCreate, &about);
    const char* number = strrchr(about.dli_fname, '.');
    if (number && atoi(number + 1) > driver / 1000) return NOT_INITIALIZED;
    *handle = &only;
    return SUCCESS;
}

API cublasLtMatrixLayoutCreate(void** layout, int format, uint64_t rows, uint64_t columns, int64_t stride) {
    if (format != R_32F && format != R_16BF) return NOT_SUPPORTED;
    if (rows == 0 || columns == 0 || stride < (int64_t)rows) return INVALID_VALUE;
    *layout = new Layout{format, rows, columns, stride};
    return SUCCESS;
}

API cublasLtMatrixLayoutDestroy(void* layout) {
    delete (Layout*)layout;
    return SUCCESS;
}

API cublasLtMatmulDescCreate(void** product, int compute, int scale) {
    if (compute != COMPUTE_32F || scale != R_32F) return NOT_SUPPORTED;
    *product = new Product;
    return SUCCESS;
}

API cublasLtMatmulDescSetAttribute(void* product, int attribute, const void* value, size_t size) {
    if (size != sizeof(int)) return INVALID_VALUE;
    int transposes = *(const int*)value;
    if (transposes != 0 && transposes != 1) return NOT_SUPPORTED;
    if (attribute == TRANSPOSE_A) ((Product*)product)->transposes_a = transposes;
    else if (attribute == TRANSPOSE_B) ((Product*)product)->transposes_b = transposes;
    else return NOT_SUPPORTED;
    return SUCCESS;
}

API cublasLtMatmulDescDestroy(void* product) {
    delete (Product*)product;
    return SUCCESS;
}

// What the addresses of A, B, C and D are multiples of, and how parts of sums may be added.
struct Preference {
    uint32_t alignments[4] = {256, 256, 256, 256};
    uint32_t schemes = IN_PLACE | IN_COMPUTE_TYPE | IN_OUTPUT_TYPE;
};

API cublasLtMatmulPreferenceCreate(void** preference) {
    *preference = new Preference;
    return SUCCESS;
}

API cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value, size_t size) {
    if (attribute == MAX_WORKSPACE_BYTES) return size == sizeof(size_t) ? SUCCESS : INVALID_VALUE;
    if (attribute == REDUCTION_SCHEMES && size == sizeof(uint32_t)) return memcpy(&((Preference*)preference)->schemes, value, size), SUCCESS;
    int matrix = attribute - MIN_ALIGNMENT_A_BYTES;
    if (matrix < 0 || matrix > 3 || size != sizeof(uint32_t)) return INVALID_VALUE;
    memcpy(&((Preference*)preference)->alignments[matrix], value, size);
    return SUCCESS;
}

API cublasLtMatmulPreferenceDestroy(void* preference) {
    delete (Preference*)preference;
    return SUCCESS;
}

// cublasLtMatmulHeuristicResult_t
struct Choice {
    uint64_t algorithm[8];
    size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
};

namespace {

// The inner length where the shapes belong together, else 0.
uint64_t depth_of(const Product& product, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
    uint64_t m = product.transposes_a ? a.columns : a.rows, depth = product.transposes_a ? a.rows : a.columns;
    uint64_t n = product.transposes_b ? b.rows : b.columns, depth_b = product.transposes_b ? b.columns : b.rows;
    bool fits = depth == depth_b && c.rows == m && c.columns == n && d.rows == m && d.columns == n;
    // What the real one takes: both factors in one format, f32 factors with an f32 result.
    fits &= a.format == b.format && c.format == d.format && (a.format == R_16BF || d.format == R_32F);
    return fits ? depth : 0;
}

}  // namespace

API cublasLtMatmulAlgoGetHeuristic(void*, void* product, void* a, void* b, void* c, void* d, void* preference, int, Choice* choice,
                                   int* found) {
    *found = 0;
    if (!depth_of(*(Product*)product, *(Layout*)a, *(Layout*)b, *(Layout*)c, *(Layout*)d)) return NOT_SUPPORTED;
    *choice = {};
    choice->algorithm[0] = 1;
    memcpy(&choice->algorithm[1], ((Preference*)preference)->alignments, sizeof(Preference));
    *found = 1;
    return SUCCESS;
}

API cublasLtMatmul(void*, void* product_at, const float* alpha, const void* a_at, void* a_layout, const void* b_at, void* b_layout,
                   const float* beta, const void* c_at, void* c_layout, void* d_at, void* d_layout, const uint64_t* algorithm, void*,
                   size_t, void* stream) {
    Product product = *(Product*)product_at;
    Layout a = *(Layout*)a_layout, b = *(Layout*)b_layout, c = *(Layout*)c_layout, d = *(Layout*)d_layout;
    uint64_t depth = depth_of(product, a, b, c, d);
    if (!depth || algorithm[0] != 1) return INVALID_VALUE;
    emulated::expect_device(a_at, a.bytes(), "a product's first factor lies outside of the device's memory");
    emulated::expect_device(b_at, b.bytes(), "a product's second factor lies outside of the device's memory");
    emulated::expect_device(c_at, c.bytes(), "what a product is added to lies outside of the device's memory");
    emulated::expect_device(d_at, d.bytes(), "a product's result lies outside of the device's memory");
    Preference preference;
    memcpy((void*)&preference, &algorithm[1], sizeof preference);
    const void* addresses[4] = {a_at, b_at, c_at, d_at};
    for (int i = 0; i < 4; ++i) {
        if ((uintptr_t)addresses[i] % preference.alignments[i]) emulated::fail("a matrix is less aligned than its algorithm was chosen for");
    }
    float alpha_now = *alpha, beta_now = *beta;
    emulated::enqueue(stream, [=] {
        size_t a_stride = a.stride, b_stride = b.stride;
        Factor left = {a_at, a.format, product.transposes_a ? a_stride : 1, product.transposes_a ? 1 : a_stride};
        Factor right = {b_at, b.format, product.transposes_b ? 1 : b_stride, product.transposes_b ? b_stride : 1};
        // The worst that the caller allows: half of each sum is added to the other as the result is stored.
        size_t first = preference.schemes & (IN_PLACE | IN_OUTPUT_TYPE) ? depth / 2 : 0;
        if (first) multiply(d.rows, d.columns, first, left, right, {alpha_now, beta_now, &c, &d, c_at, d_at});
        auto from = [first](const Factor& all) {
            size_t size = all.format == R_32F ? 4 : 2;
            return Factor{(const char*)all.at + first * all.inner_stride * size, all.format, all.outer_stride, all.inner_stride};
        };
        Scaled rest = first ? Scaled{alpha_now, 1.0f, &d, &d, d_at, d_at} : Scaled{alpha_now, beta_now, &c, &d, c_at, d_at};
        multiply(d.rows, d.columns, depth - first, from(left), from(right), rest);
    });
    return SUCCESS;
}
