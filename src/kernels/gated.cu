// The gated activation between the two products of a feed-forward layer, as defined in gated.rs: activation(gate) * up.
//
// gate_up [T, 2 F], with the gate in the first F columns -> y [T, F]; `bias` [2 F] is added first, if given. Each thread computes
// COLUMNS neighbouring columns, eight or two if F is divisible by that; `blockIdx.x` is the token. The activations are in
// activation.cuh.

// The numbers of one thread, read in one access.
template <typename T, int COLUMNS>
struct __align__(sizeof(T) * COLUMNS < 16 ? sizeof(T) * COLUMNS : 16) Columns {
    T at[COLUMNS];
};

template <typename T, typename Activation, int COLUMNS>
__device__ __forceinline__ void gated_columns(const T* row, const float* bias, T* y, u32 column, u32 width, Activation activation) {
    typedef Columns<T, COLUMNS> Own;
    Own gate = *(const Own*)(row + column), up = *(const Own*)(row + width + column), product;
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i) {
        float g = load(gate.at, i), u = load(up.at, i);
        if (bias) g += bias[column + i], u += bias[width + column + i];
        store(product.at, i, activation(g, u));
    }
    *(Own*)(y + column) = product;
}

template <typename T, typename Activation>
__device__ void gated(const T* gate_up, const float* bias, T* y, u32 width, Activation activation) {
    u32 thread = blockIdx.y * blockDim.x + threadIdx.x;
    const T* row = gate_up + (u64)blockIdx.x * 2 * width;
    y += (u64)blockIdx.x * width;
    if (width % 8 == 0) {
        if (8 * thread < width) gated_columns<T, Activation, 8>(row, bias, y, 8 * thread, width, activation);
    } else if (width % 2 == 0) {
        if (2 * thread < width) gated_columns<T, Activation, 2>(row, bias, y, 2 * thread, width, activation);
    } else if (thread < width) {
        gated_columns<T, Activation, 1>(row, bias, y, thread, width, activation);
    }
}

extern "C" __global__ void silu_f32(const float* gate_up, const float* bias, float* y, u32 width) {
    gated(gate_up, bias, y, width, Silu());
}

extern "C" __global__ void gelu_tanh_f32(const float* gate_up, const float* bias, float* y, u32 width) {
    gated(gate_up, bias, y, width, GeluTanh());
}

extern "C" __global__ void sigmoid_f32(const float* gate_up, const float* bias, float* y, u32 width) {
    gated(gate_up, bias, y, width, Sigmoid());
}

extern "C" __global__ void clamped_swiglu_f32(const float* gate_up, const float* bias, float* y, u32 width, float alpha, float limit) {
    gated(gate_up, bias, y, width, ClampedSwiglu{alpha, limit});
}

extern "C" __global__ void silu_bf16(const bf16* gate_up, const float* bias, bf16* y, u32 width) {
    gated(gate_up, bias, y, width, Silu());
}

extern "C" __global__ void gelu_tanh_bf16(const bf16* gate_up, const float* bias, bf16* y, u32 width) {
    gated(gate_up, bias, y, width, GeluTanh());
}

extern "C" __global__ void sigmoid_bf16(const bf16* gate_up, const float* bias, bf16* y, u32 width) {
    gated(gate_up, bias, y, width, Sigmoid());
}

extern "C" __global__ void clamped_swiglu_bf16(const bf16* gate_up, const float* bias, bf16* y, u32 width, float alpha, float limit) {
    gated(gate_up, bias, y, width, ClampedSwiglu{alpha, limit});
}
