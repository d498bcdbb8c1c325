//! The gated delta net on a GPU; the CPU counterpart is `delta_net.rs`.

use super::cuda_parts::{norm, on_device};
use super::delta_net::DeltaNet;
use crate::error::Result;
use crate::kernels::Stored;
use crate::kernels::cuda::{
    Arena, Array, Buffer, DeltaArrays, DeltaPlan, Device, Indices, KeptStates, Rows, StatesLists, StatesPlan, arena_bytes,
};
use crate::kernels::delta::DeltaShape;

/// The parameters of a layer on the device, apart from its matrices.
pub(super) struct DeltaVectors {
    learnt: DeltaArrays,
    norm: Buffer,
}

/// The order in which the gated delta rule processes a batch's tokens, on the host and on the device.
pub(super) struct DeltaInputs<'a> {
    /// The order in which the rule processes the tokens.
    pub plan: DeltaPlan,
    /// [`DeltaPlan::steps`] on the device.
    pub steps: Indices<'a>,
    /// [`DeltaPlan::runs`] on the device.
    pub runs: Indices<'a>,
}

/// The bytes that [`DeltaVectors::mix`] takes for `tokens` tokens and for the lists of its plan, with weights in `dtype`.
pub(super) fn batch_bytes(tokens: usize, shape: &DeltaShape, dtype: Stored) -> usize {
    let lists = arena_bytes(tokens * shape.kernel, Stored::F32) + arena_bytes(tokens * DeltaPlan::RUN_WORDS, Stored::F32);
    let projected = arena_bytes(tokens * shape.columns(), Stored::F32);
    lists + projected + DeltaPlan::most_room(tokens, shape) + arena_bytes(tokens * shape.width(), dtype)
}

impl DeltaVectors {
    pub(super) fn new(device: &'static Device, net: &DeltaNet) -> Result<DeltaVectors> {
        Ok(DeltaVectors { learnt: DeltaArrays::new(device, &net.weights()?, &net.shape)?, norm: norm(device, &net.norm)? })
    }

    /// The gated output of the heads, `[T, W]`, given the normalised residual stream `x [T, D]`. Everything between the two products is
    /// computed in f32.
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

    /// Like `mix`, for sequences that continue from the states in `kept`; `rows` says which rows the projections compute together, and
    /// `layer` is the index of the layer among those with the rule.
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
