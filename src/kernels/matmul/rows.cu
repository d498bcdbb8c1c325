// Operations on rows of matrices: embeddings, selected rows, biases, and conversion of the number
// format. One block per row.

template <typename T>
__device__ void embed(const T* table, const u32* ids, float* y, u32 width, float scale) {
    const T* from = table + (u64)ids[blockIdx.x] * width;
    float* to = y + (u64)blockIdx.x * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) to[i] = load(from, i) * scale;
}

// y[t] = scale * table[ids[t]]
extern "C" __global__ void embed_f32(const float* table, const u32* ids, float* y, u32 width, float scale) {
    embed(table, ids, y, width, scale);
}

extern "C" __global__ void embed_bf16(const bf16* table, const u32* ids, float* y, u32 width, float scale) {
    embed(table, ids, y, width, scale);
}

// y[i] = x[rows[i]]
extern "C" __global__ void take_rows_f32(const float* x, const u32* rows, float* y, u32 width) {
    const float* from = x + (u64)rows[blockIdx.x] * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) y[(u64)blockIdx.x * width + i] = from[i];
}

extern "C" __global__ void take_rows_bf16(const bf16* x, const u32* rows, bf16* y, u32 width) {
    const bf16* from = x + (u64)rows[blockIdx.x] * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) y[(u64)blockIdx.x * width + i] = from[i];
}

// The same for rows of any format, in units of 16 bytes.
extern "C" __global__ void take_rows_16(const uint4* x, const u32* rows, uint4* y, u32 units) {
    const uint4* from = x + (u64)rows[blockIdx.x] * units;
    for (u32 i = threadIdx.x; i < units; i += blockDim.x) y[(u64)blockIdx.x * units + i] = from[i];
}

// y[rows[i]] = columns first .. first + width of x[i], which has x_width columns.
template <typename T>
__device__ void put_rows(const T* x, const u32* rows, T* y, u32 x_width, u32 first, u32 width) {
    const T* from = x + (u64)blockIdx.x * x_width + first;
    T* to = y + (u64)rows[blockIdx.x] * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) to[i] = from[i];
}

extern "C" __global__ void put_rows_f32(const float* x, const u32* rows, float* y, u32 x_width, u32 first, u32 width) {
    put_rows(x, rows, y, x_width, first, width);
}

extern "C" __global__ void put_rows_bf16(const bf16* x, const u32* rows, bf16* y, u32 x_width, u32 first, u32 width) {
    put_rows(x, rows, y, x_width, first, width);
}

// y[t] += bias
extern "C" __global__ void add_bias(const float* bias, float* y, u32 width) {
    float* to = y + (u64)blockIdx.x * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) to[i] += bias[i];
}

// Converts `n` numbers from f32 to bf16.
extern "C" __global__ void round_to_bf16(const float* x, bf16* y, u64 n) {
    u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) y[i] = round_bf16(x[i]);
}

// Converts `n` numbers from bf16 to f32.
extern "C" __global__ void widen_to_f32(const bf16* x, float* y, u64 n) {
    u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) y[i] = widen(x[i]);
}
