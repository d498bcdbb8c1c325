//! The activations that gate a feed-forward network.

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

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClampedSwiglu {
    pub alpha: f32,
    /// Positive.
    pub limit: f32,
}
