// What the gate of a feed-forward network goes through, and its product with the up-projection, as activation.rs defines them.

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
        // A NaN must stay one, which the functions for the least and the largest do not see to.
        gate = gate > limit ? limit : gate;
        up = up > limit ? limit : up < -limit ? -limit : up;
        return (1.0f + up) * gate / (1.0f + expf(-alpha * gate));
    }
};
