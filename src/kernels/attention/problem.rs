//! The arguments of one call of the fused kernels.

use super::arithmetic::AttentionKernel;
use super::factors::Factors;
use super::shape::AttentionShape;
use crate::kernels::Segment;
use crate::kernels::level::Level;
use crate::kernels::rotary::Rotary;

/// The arguments of the fused kernels, already checked.
pub(super) struct Problem<'a> {
    /// The projections `[T, q | k | v]`.
    pub qkv: &'a [f32],
    /// Which tokens see which.
    pub segments: &'a [Segment],
    /// The position of each token in its sequence, `[T]`.
    pub positions: &'a [usize],
    /// The tables of the rotary embedding.
    pub rotary: &'a Rotary,
    /// The heads, and which keys they see.
    pub shape: &'a AttentionShape,
    /// One logit per head with which every softmax starts.
    pub sinks: Option<&'a [f32]>,
    /// The instructions to use.
    pub level: Level,
    /// The format of the factors, for the level and the model's precision.
    pub factors: Factors,
}

impl<'a> Problem<'a> {
    pub(super) fn run<K: AttentionKernel>(&self, kernel: K) -> K::Output {
        self.factors.run(self.level, kernel)
    }

    /// One query head of one token.
    #[inline(always)]
    pub(super) fn query(&self, token: usize, head: usize) -> &'a [f32] {
        let AttentionShape { head_dim, .. } = *self.shape;
        &self.qkv[token * self.shape.columns() + head * head_dim..][..head_dim]
    }
}
