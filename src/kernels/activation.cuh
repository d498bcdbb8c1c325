// The activations of a gated feed-forward network, including the product with the up-projection; activation.rs defines them.

struct Silu {
    __device__ __forceinline__ float operator()(float gate, float up) const { return gate / (1.0f + expf(-gate)) * up; }
};

struct GeluTanh {
    __device__ __forceinline__ float operator()(float x, float up) const {
        return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x))) * up;
    }
};

struct Sigmoid {
    __device__ __forceinline__ float operator()(float gate, float up) const { return up / (1.0f + expf(-gate)); }
};

struct ClampedSwiglu {
    float alpha, limit;
    __device__ __forceinline__ float operator()(float gate, float up) const {
        // Comparisons rather than fminf and fmaxf, which would drop a NaN.
        gate = gate > limit ? limit : gate;
        up = up > limit ? limit : up < -limit ? -limit : up;
        return (1.0f + up) * gate / (1.0f + expf(-alpha * gate));
    }
};
