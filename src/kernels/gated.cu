// The gated activation between the two products of a feed-forward layer, as gated.rs defines it: activation(gate) * up.
//
// gate_up [T, 2 F], the gate in the first F columns -> y [T, F]; `bias` [2 F] is added first, where there is one. One thread for two
// neighbouring columns (F is even), `blockIdx.x` the token.

struct Silu {
    static __device__ __forceinline__ float of(float x) { return x / (1.0f + expf(-x)); }
};

struct GeluTanh {
    static __device__ __forceinline__ float of(float x) {
        return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
    }
};

__device__ __forceinline__ float2 load_pair(const float* from) { return *(const float2*)from; }
__device__ __forceinline__ float2 load_pair(const bf16* from) {
    u32 pair = *(const u32*)from;
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}
__device__ __forceinline__ void store_pair(float* to, float a, float b) { *(float2*)to = make_float2(a, b); }
__device__ __forceinline__ void store_pair(bf16* to, float a, float b) { *(u32*)to = round_bf16_pair(a, b); }

template <typename T, typename Activation>
__device__ void gated(const T* gate_up, const float* bias, T* y, u32 width) {
    u32 column = 2 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (column >= width) return;
    const T* row = gate_up + (u64)blockIdx.x * 2 * width;
    float2 gate = load_pair(row + column), up = load_pair(row + width + column);
    if (bias) {
        gate.x += bias[column], gate.y += bias[column + 1];
        up.x += bias[width + column], up.y += bias[width + column + 1];
    }
    store_pair(y + (u64)blockIdx.x * width + column, Activation::of(gate.x) * up.x, Activation::of(gate.y) * up.y);
}

extern "C" __global__ void silu_f32(const float* gate_up, const float* bias, float* y, u32 width) {
    gated<float, Silu>(gate_up, bias, y, width);
}

extern "C" __global__ void silu_bf16(const bf16* gate_up, const float* bias, bf16* y, u32 width) {
    gated<bf16, Silu>(gate_up, bias, y, width);
}

extern "C" __global__ void gelu_tanh_f32(const float* gate_up, const float* bias, float* y, u32 width) {
    gated<float, GeluTanh>(gate_up, bias, y, width);
}

extern "C" __global__ void gelu_tanh_bf16(const bf16* gate_up, const float* bias, bf16* y, u32 width) {
    gated<bf16, GeluTanh>(gate_up, bias, y, width);
}
