//! The gated delta net on a GPU: what `delta_net.rs` computes.

use super::cuda_parts::{norm, on_device};
use super::delta_net::DeltaNet;
use crate::error::Result;
use crate::kernels::Stored;
use crate::kernels::cuda::{
    Arena, Array, Buffer, DeltaArrays, DeltaPlan, Device, Indices, KeptStates, Rows, StatesLists, StatesPlan, arena_bytes,
};
use crate::kernels::delta::DeltaShape;

/// What a layer needs on the device beside its matrices.
pub(super) struct DeltaVectors {
    learnt: DeltaArrays,
    norm: Buffer,
}

/// In which order a batch's tokens go through the rule, on the device, too.
pub(super) struct DeltaInputs<'a> {
    /// The order in which the tokens go through the rule.
    pub plan: DeltaPlan,
    /// [`DeltaPlan::steps`] on the device.
    pub steps: Indices<'a>,
    /// [`DeltaPlan::runs`] on the device.
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
        let tokens = x.len() / on_device(&net.input.matrix)?.in_features();
        let projected = arena.array(tokens * net.shape.columns(), Stored::F32)?;
        self.project_and_open(device, net, (x, projected, arena.rows()), arena, &|projected| {
            let DeltaInputs { plan, steps, runs } = inputs;
            device.delta(projected, &self.learnt, plan, *steps, *runs, &net.shape, arena)
        })
    }

    /// As `mix`, for sequences that go on, whose projections are computed by `rows`; `layer` is the layer's number among those with the rule,
    /// and `kept` what they remember.
    pub(super) fn mix_onto<'a>(
        &self,
        device: &'static Device,
        net: &DeltaNet,
        (x, rows): (Array, Rows),
        (plan, lists): (&StatesPlan, &StatesLists),
        (kept, layer): (&KeptStates, usize),
        arena: &Arena<'a>,
    ) -> Result<Array<'a>> {
        let tokens = x.len() / on_device(&net.input.matrix)?.in_features();
        let columns = net.shape.columns();
        let all = arena.array((tokens + plan.recalled.len()) * columns, Stored::F32)?;
        self.project_and_open(device, net, (x, all.part(0, tokens * columns)?, rows), arena, &|_| {
            device.delta_onto(all, &self.learnt, plan, lists, kept, layer, arena)
        })
    }

    fn project_and_open<'a>(
        &self,
        device: &'static Device,
        net: &DeltaNet,
        (x, projected, rows): (Array, Array<'a>, Rows),
        arena: &Arena<'a>,
        rule: &dyn Fn(Array<'a>) -> Result<Array<'a>>,
    ) -> Result<Array<'a>> {
        let shape = &net.shape;
        device.multiply(x, on_device(&net.input.matrix)?, projected, false, rows)?;
        let tokens = projected.len() / shape.columns();
        let opened = arena.array(tokens * shape.width(), on_device(&net.output.matrix)?.dtype())?;
        device.delta_open(projected, rule(projected)?, &self.norm, net.norm.eps, shape, opened)?;
        Ok(opened)
    }
}
