//! The gated delta net on a GPU: what `delta_net.rs` computes.

use super::cuda_parts::{norm, on_device};
use super::delta_net::DeltaNet;
use crate::error::Result;
use crate::kernels::Stored;
use crate::kernels::cuda::{Arena, Array, Buffer, DeltaArrays, DeltaPlan, Device, Indices, arena_bytes};
use crate::kernels::delta::DeltaShape;

/// What a layer needs on the device beside its matrices.
pub(super) struct DeltaVectors {
    learnt: DeltaArrays,
    norm: Buffer,
}

/// In which order a batch's tokens go through the rule, on the device, too.
pub(super) struct DeltaInputs<'a> {
    pub plan: DeltaPlan,
    pub steps: Indices<'a>,
    pub runs: Indices<'a>,
}

/// Bytes that [`DeltaVectors::mix`] takes for `tokens` tokens, and the lists of its plan, with weights in `dtype`.
pub(super) fn batch_bytes(tokens: usize, shape: &DeltaShape, dtype: Stored) -> usize {
    let lists = arena_bytes(tokens * shape.kernel, Stored::F32) + arena_bytes(tokens * DeltaPlan::RUN_WORDS, Stored::F32);
    let projected = arena_bytes(tokens * shape.columns(), Stored::F32);
    lists + projected + DeltaPlan::most_room(tokens, shape) + arena_bytes(tokens * shape.width(), dtype)
}

impl DeltaVectors {
    pub(super) fn new(device: &'static Device, net: &DeltaNet) -> Result<DeltaVectors> {
        Ok(DeltaVectors { learnt: DeltaArrays::new(device, &net.weights()?, &net.shape)?, norm: norm(device, &net.norm)? })
    }

    /// What the gates let through of what the heads give, `[T, W]`, from the normed residual stream `x [T, D]`. All between two products is
    /// in f32.
    pub(super) fn mix<'a>(
        &self,
        device: &'static Device,
        net: &DeltaNet,
        x: Array,
        inputs: &DeltaInputs,
        arena: &Arena<'a>,
    ) -> Result<Array<'a>> {
        let (shape, weight) = (&net.shape, on_device(&net.input.matrix)?);
        let tokens = x.len() / weight.in_features();
        let projected = arena.array(tokens * shape.columns(), Stored::F32)?;
        device.multiply(x, weight, projected, false)?;
        let opened = arena.array(tokens * shape.width(), on_device(&net.output.matrix)?.dtype())?;
        let DeltaInputs { plan, steps, runs } = inputs;
        let given = device.delta(projected, &self.learnt, plan, *steps, *runs, shape, arena)?;
        device.delta_open(projected, given, &self.norm, net.norm.eps, shape, opened)?;
        Ok(opened)
    }
}
