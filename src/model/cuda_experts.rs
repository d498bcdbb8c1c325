//! A routed feed-forward network on a GPU: what `experts.rs` computes, for all tokens of a batch at once.

use super::config::{ExpertsConfig, Scoring};
use super::cuda_parts::{bias, factor, on_device, open};
use super::experts::Experts;
use super::layers::Linear;
use crate::error::{Error, Result};
use crate::kernels::Stored;
use crate::kernels::cuda::{Arena, Array, Buffer, Device, RouterOptions, arena_bytes, most_rows, routing_bytes};

/// What experts need on the device beside their matrices.
pub(super) struct ExpertVectors {
    router_bias: Option<Buffer>,
    correction: Option<Buffer>,
    /// The biases of gates and up-projections of all experts, one expert after the other.
    gate_up_biases: Option<Buffer>,
    down_biases: Option<Buffer>,
}

/// What the memory of experts depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExpertSizes {
    count: usize,
    per_token: usize,
    inner: usize,
    /// The inner width of the network that all tokens share; 0 without one.
    shared: usize,
}

impl ExpertSizes {
    pub(super) fn new(config: &ExpertsConfig) -> ExpertSizes {
        let ExpertsConfig { count, per_token, intermediate_size: inner, shared_size: shared, .. } = *config;
        ExpertSizes { count, per_token, inner, shared }
    }

    /// Bytes that [`ExpertVectors::add_to`] takes for `tokens` tokens of width `D`, and its input, with weights in `dtype`.
    pub(super) fn batch_bytes(&self, tokens: usize, width: usize, dtype: Stored) -> usize {
        let ExpertSizes { count, per_token, inner, shared } = *self;
        let f32s = |len: usize| arena_bytes(len, Stored::F32);
        let factors = |len: usize| arena_bytes(len, dtype);
        let rows = most_rows(tokens);
        let routing = f32s(tokens * count) + routing_bytes(tokens, count, per_token);
        let of_group = factors(rows * width) + f32s(rows * width) + factors(2 * rows * inner) + factors(rows * inner);
        let of_shared = factors(2 * tokens * shared) + factors(tokens * shared) + f32s(tokens) + f32s(tokens * width);
        f32s(tokens * width) + factors(tokens * width) + routing + of_group.max(of_shared)
    }
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
        Ok(ExpertVectors {
            router_bias: bias(device, &experts.router)?,
            correction: experts.correction.as_ref().map(|correction| device.upload(correction, Stored::F32)).transpose()?,
            gate_up_biases: joined(networks.iter().map(|expert| &expert.gate_up).collect())?,
            down_biases: joined(networks.iter().map(|expert| &expert.down).collect())?,
        })
    }

    /// Adds to the residual stream what the experts make of the first `held` rows of `x [T, D]`, f32, and what all tokens share: the other
    /// rows hold no token, and would have experts multiplied that nobody chose.
    pub(super) fn add_to<'a>(
        &self,
        device: &'static Device,
        experts: &Experts,
        x: Array<'a>,
        held: usize,
        residual: Array,
        arena: &Arena<'a>,
    ) -> Result<()> {
        let router = on_device(&experts.router.matrix)?;
        let (width, n_experts) = (router.in_features(), experts.experts.len());
        let tokens = x.len() / width;
        let logits = arena.array(tokens * n_experts, Stored::F32)?;
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
        let routing = device.route(logits.part(0, held * n_experts)?, &options, arena)?;
        let chosen_for = residual.part(0, held * width)?;
        let first = experts.experts.first().ok_or_else(|| Error::new("a router without experts"))?;
        let x_rounded = factor(device, x, on_device(&first.gate_up.matrix)?.dtype(), arena)?;
        // All work is done in the order in which it is asked for here: memory may be given back as soon as its last reader is asked for.
        for group in routing.groups(most_rows(tokens)) {
            let mark = arena.mark();
            let rows = group.slots.len();
            let taken = arena.array(rows * width, x_rounded.dtype())?;
            device.take_tokens(x_rounded, &routing, &group.slots, taken, width)?;
            let given = arena.array(rows * width, Stored::F32)?;
            for expert in group.experts.filter(|expert| !routing.slots(*expert).is_empty()) {
                let mark = arena.mark();
                let (slots, mlp) = (routing.slots(expert), &experts.experts[expert]);
                let own = |array: Array<'a>| array.part((slots.start - group.slots.start) * width, slots.len() * width);
                let columns = on_device(&mlp.gate_up.matrix)?.out_features();
                let biases = self.gate_up_biases.as_ref();
                let bias = biases.map(|biases| biases.array(4 * expert * columns, columns, Stored::F32)).transpose()?;
                let inner = open(device, mlp, bias, own(taken)?, arena)?;
                device.multiply(inner, on_device(&mlp.down.matrix)?, own(given)?, false, arena.rows())?;
                arena.give_back(mark);
            }
            device.add_experts(given, &routing, &group.slots, self.down_biases.as_ref(), chosen_for, width)?;
            arena.give_back(mark);
        }
        let Some(shared) = &experts.shared else { return Ok(()) };
        let inner = open(device, shared, None, x_rounded, arena)?;
        let down = on_device(&shared.down.matrix)?;
        let Some(gate) = &experts.shared_gate else { return device.multiply(inner, down, residual, true, arena.rows()) };
        let (gates, given) = (arena.array(tokens, Stored::F32)?, arena.array(tokens * width, Stored::F32)?);
        device.multiply(x, on_device(&gate.matrix)?, gates, false, arena.rows())?;
        device.multiply(inner, down, given, false, arena.rows())?;
        device.add_gated(given, gates, residual, width)
    }
}
