//! What the rule learns.

use candle_core::Tensor;

/// What is learnt beside the projections.
pub struct DeltaWeights {
    /// `[channels, kernel]`
    pub convolution: Tensor,
    /// `[value_heads]`: the logarithm of how fast a head forgets.
    pub a_log: Tensor,
    /// `[value_heads]`, added to `a`.
    pub dt_bias: Tensor,
}
