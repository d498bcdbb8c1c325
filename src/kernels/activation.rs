//! The activations that gate a feed-forward network.

/// The activation function applied to the gate of a feed-forward network or of attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`: Llama, Qwen, GLM.
    Silu,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`: Gemma.
    GeluTanh,
    /// `1 / (1 + exp(-x))`: the gates of attention in Qwen3-Next.
    Sigmoid,
    /// `(1 + clamp(up)) g / (1 + exp(-alpha g))`, `g = min(gate, limit)`, `up` between `-limit` and `limit`: gpt-oss.
    ClampedSwiglu(ClampedSwiglu),
}

/// The parameters of [`Activation::ClampedSwiglu`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClampedSwiglu {
    /// The factor of the gate inside the sigmoid.
    pub alpha: f32,
    /// The bound of gate and up-projection; positive.
    pub limit: f32,
}
