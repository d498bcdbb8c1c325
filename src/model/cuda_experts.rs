//! A mixture of experts on a GPU, for all tokens of a batch at once; the CPU counterpart is `experts.rs`.
//!
//! The host never waits. If NaNs reach the router, the token's logits become NaN, and whoever reads the logits reports the error.

use super::config::{ExpertsConfig, Scoring};
use super::cuda_parts::{bias, factor, on_device, open};
use super::experts::Experts;
use super::layers::Linear;
use crate::error::{Error, Result};
use crate::kernels::Stored;
use crate::kernels::cuda::{Arena, Array, Buffer, Device, ExpertWeights, RouterOptions, Routing, arena_bytes, routing_bytes};

/// The most numbers that the experts output before they are summed: 128 MiB.
const GIVEN_NUMBERS: usize = 32 << 20;
/// The fewest output columns computed at a time; the column blocks of the products divide it.
const LEAST_COLUMNS: usize = 128;

/// The parameters of the experts on the device, apart from the matrices of the decoder.
pub(super) struct ExpertVectors {
    gate_up: ExpertWeights,
    down: ExpertWeights,
    router_bias: Option<Buffer>,
    correction: Option<Buffer>,
    /// The biases of the gates and up-projections, one expert after the other.
    gate_up_biases: Option<Buffer>,
    down_biases: Option<Buffer>,
}

/// The sizes that determine how much memory experts take.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExpertSizes {
    count: usize,
    per_token: usize,
    inner: usize,
    /// The inner width of the shared network; 0 for none.
    shared: usize,
}

impl ExpertSizes {
    pub(super) fn new(config: &ExpertsConfig) -> ExpertSizes {
        let ExpertsConfig { count, per_token, intermediate_size: inner, shared_size: shared, .. } = *config;
        ExpertSizes { count, per_token, inner, shared }
    }

    /// The bytes that [`ExpertVectors::add_to`] and its input take for `tokens` tokens of width `D`, with weights in `dtype`.
    pub(super) fn batch_bytes(&self, tokens: usize, width: usize, dtype: Stored) -> usize {
        let ExpertSizes { count, per_token, inner, shared } = *self;
        let f32s = |len: usize| arena_bytes(len, Stored::F32);
        let factors = |len: usize| arena_bytes(len, dtype);
        let slots = tokens * per_token;
        let routed = f32s(tokens * count)
            + routing_bytes(tokens, count, per_token)
            + factors(slots * inner)
            + f32s(slots * columns_at_a_time(slots, width));
        let of_shared = factors(2 * tokens * shared) + factors(tokens * shared) + f32s(tokens) + f32s(tokens * width);
        f32s(tokens * width) + factors(tokens * width) + routed.max(of_shared)
    }
}

/// How many of the `width` output columns are computed at a time for `slots` pairs of a token and an expert.
fn columns_at_a_time(slots: usize, width: usize) -> usize {
    (GIVEN_NUMBERS / slots.max(1)).max(1).next_multiple_of(LEAST_COLUMNS).min(width)
}

impl ExpertVectors {
    pub(super) fn new(device: &'static Device, experts: &Experts) -> Result<ExpertVectors> {
        let networks = &experts.experts;
        if let Some(shared) = &experts.shared
            && (shared.gate_up.bias.is_some() || shared.down.bias.is_some())
        {
            return Err(
                Error::new("a network with biases beside experts has no kernels on the GPU").cure("Leave out --device cuda.")
            );
        }
        let joined = |biases: Vec<&Linear>| -> Result<Option<Buffer>> {
            let mut all = Vec::new();
            for bias in biases.iter().filter_map(|linear| linear.bias.as_ref()) {
                all.extend(bias.get().flatten_all()?.to_vec1::<f32>()?);
            }
            if all.is_empty() { Ok(None) } else { device.upload(&all, Stored::F32).map(Some) }
        };
        let weights = |matrices: Vec<&Linear>| -> Result<ExpertWeights> {
            let weights = matrices.iter().map(|linear| on_device(&linear.matrix).cloned()).collect::<Result<_>>()?;
            ExpertWeights::new(device, weights)
        };
        Ok(ExpertVectors {
            gate_up: weights(networks.iter().map(|expert| &expert.gate_up).collect())?,
            down: weights(networks.iter().map(|expert| &expert.down).collect())?,
            router_bias: bias(device, &experts.router)?,
            correction: experts.correction.as_ref().map(|correction| device.upload(correction, Stored::F32)).transpose()?,
            gate_up_biases: joined(networks.iter().map(|expert| &expert.gate_up).collect())?,
            down_biases: joined(networks.iter().map(|expert| &expert.down).collect())?,
        })
    }

    /// Adds to the residual stream the outputs of the routed experts for the first `held` rows of `x [T, D]`, f32, and of the shared
    /// network for all rows. The rows from `held` on are padding, and routing them would compute experts that no token chose.
    pub(super) fn add_to<'a>(
        &self,
        device: &'static Device,
        experts: &Experts,
        x: Array<'a>,
        held: usize,
        residual: Array,
        arena: &Arena<'a>,
    ) -> Result<()> {
        let width = self.gate_up.in_features();
        let tokens = x.len() / width;
        let x_rounded = factor(device, x, self.gate_up.dtype(), arena)?;
        // The stream executes in the order of these calls, so memory may be given back as soon as its last reader has been enqueued.
        let mark = arena.mark();
        let routing = self.route(device, experts, x, held, arena)?;
        let slots = routing.n_slots();
        let first = experts.experts.first().ok_or_else(|| Error::new("a router without experts"))?;
        let inner = arena.array(slots * self.down.in_features(), x_rounded.dtype())?;
        device.open_experts(x_rounded, &self.gate_up, self.gate_up_biases.as_ref(), first.activation, &routing, inner)?;
        let chosen_for = residual.part(0, held * width)?;
        let at_a_time = columns_at_a_time(slots, width);
        let given = arena.array(slots * at_a_time, Stored::F32)?;
        for begin in (0..width).step_by(at_a_time) {
            let given = given.part(0, slots * at_a_time.min(width - begin))?;
            device.close_experts(inner, &self.down, &routing, begin, given)?;
            device.add_experts(given, &routing, begin, self.down_biases.as_ref(), chosen_for, width)?;
        }
        arena.give_back(mark);
        let Some(shared) = &experts.shared else { return Ok(()) };
        let inner = open(device, shared, None, x_rounded, arena)?;
        let down = on_device(&shared.down.matrix)?;
        let Some(gate) = &experts.shared_gate else { return device.multiply(inner, down, residual, true, arena.rows()) };
        let (gates, given) = (arena.array(tokens, Stored::F32)?, arena.array(tokens * width, Stored::F32)?);
        device.multiply(x, on_device(&gate.matrix)?, gates, false, arena.rows())?;
        device.multiply(inner, down, given, false, arena.rows())?;
        device.add_gated(given, gates, residual, width)
    }

    /// Routes the first `held` rows of `x` to their experts.
    pub(super) fn route<'a>(
        &self,
        device: &'static Device,
        experts: &Experts,
        x: Array,
        held: usize,
        arena: &Arena<'a>,
    ) -> Result<Routing<'a>> {
        let router = on_device(&experts.router.matrix)?;
        let n_experts = experts.experts.len();
        let logits = arena.array(x.len() / router.in_features() * n_experts, Stored::F32)?;
        device.multiply(x, router, logits, false, arena.rows())?;
        let options = RouterOptions {
            n_experts,
            per_token: experts.per_token,
            softmax: experts.scoring == Scoring::Softmax,
            normalise: experts.normalise,
            scale: experts.scale as f32,
            bias: self.router_bias.as_ref(),
            correction: self.correction.as_ref(),
        };
        device.route(logits.part(0, held * n_experts)?, &options, arena)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_experts_give_takes_no_more_memory_for_more_tokens() {
        let columns = |tokens: usize| columns_at_a_time(8 * tokens, 2048);
        assert_eq!([0, 1, 64, 2048].map(columns), [2048; 4], "all at once");
        assert_eq!([10_000, 16_384, 32_768, 1 << 30].map(columns), [512, 256, 128, 128], "whole blocks of columns");
    }
}
