//! A mixture of experts: a router picks a few of many small networks for each token.
//!
//! Shapes: `T` tokens, `D` hidden width, `E` experts, `F` an expert's width. The output for a token is
//! `sum over its experts of weight * expert(x)`, with weights from the router's scores, plus `shared(x)` if there is a shared network. The
//! experts run one after the other, each on the tokens that chose it, and are summed in that order, so a token's result does not depend on
//! the other tokens.

use candle_core::{D, DType, Device, Tensor, Var};

use super::config::{ExpertsConfig, Scoring};
use super::layers::{Adapting, Layer, Linear, Mlp};
use super::lora::Adapters;
use super::parameters::Parameter;
use super::source::part;
use crate::error::{Error, Result};
use crate::kernels::Dtype;
use crate::kernels::cpu::sum;
use crate::kernels::gated::Activation;

pub(super) struct Experts {
    pub(super) router: Linear,
    pub(super) experts: Vec<Mlp>,
    /// The shared network, which every token uses.
    pub(super) shared: Option<Box<Mlp>>,
    /// `[1, D]`: the sigmoid of this projection multiplies the output of the shared network.
    pub(super) shared_gate: Option<Linear>,
    pub(super) scoring: Scoring,
    /// `[E]`: added to the scores for the choice of experts; it gets no gradient.
    pub(super) correction: Option<Vec<f32>>,
    pub(super) per_token: usize,
    pub(super) normalise: bool,
    pub(super) scale: f64,
    /// See [`ExpertsConfig::modules`].
    modules: bool,
}

/// The suffix of the name of the tensor that corrects a router's choice.
pub(super) const CORRECTION: &str = ".mlp.gate.e_score_correction_bias";

impl Experts {
    /// Loads the experts from `mlp.gate` and `mlp.experts`, one at a time, in any of the layouts that files use.
    pub(super) fn load(layer: &Layer, config: &ExpertsConfig, activation: Activation) -> Result<Experts> {
        let (width, inner, count) = (layer.config.hidden_size, config.intermediate_size, config.count);
        // The router stays in f32: it is small, and rounding would change which experts are chosen.
        let in_f32 = Layer { options: super::LoadOptions { dtype: Dtype::F32, ..layer.options }, ..*layer };
        let router = if config.transposed { "mlp.router" } else { "mlp.gate" };
        let router = Linear::load(&in_f32, &[(router, count)], width, config.transposed)?;
        let has = |module: &str| layer.source.has(&layer.name(&format!("mlp.experts.{module}")));
        let load = |expert: usize| {
            let stacked = |module: &str, out: usize, input: usize| {
                let name = layer.name(&format!("mlp.experts.{module}"));
                part(layer.source, &name, &[count, out, input], Some(expert), layer.options)
            };
            let single = |module: &str, out: usize, input: usize| {
                let name = layer.name(&format!("mlp.experts.{expert}.{module}.weight"));
                part(layer.source, &name, &[out, input], None, layer.options)
            };
            let (gate_up, down) = if config.transposed {
                let (gate, up) = halves(&stacked("gate_up_proj", width, 2 * inner)?)?;
                (vec![Ok(gate.t()?), Ok(up.t()?)], Ok(stacked("down_proj", inner, width)?.t()?))
            } else if has("gate_up_proj") {
                // The layout of Transformers 5.
                (vec![stacked("gate_up_proj", 2 * inner, width)], stacked("down_proj", width, inner))
            } else if has("gate_proj.weight") {
                // The layout of GGUF.
                let gate_up = vec![stacked("gate_proj.weight", inner, width), stacked("up_proj.weight", inner, width)];
                (gate_up, stacked("down_proj.weight", width, inner))
            } else {
                // The layout of Transformers 4: one tensor per expert.
                let gate_up = vec![single("gate_proj", inner, width), single("up_proj", inner, width)];
                (gate_up, single("down_proj", width, inner))
            };
            let name = |module: &str| layer.name(&format!("mlp.experts.{expert}.{module}"));
            let modules = vec![(name("gate_proj"), inner), (name("up_proj"), inner)];
            let gate_up = Linear::from_weights(modules, gate_up, layer.options)?;
            let down = Linear::from_weights(vec![(name("down_proj"), width)], [down], layer.options)?;
            let (gate_up, down) = match config.transposed {
                false => (gate_up, down),
                true => {
                    let bias = |module: &str, out: usize| {
                        layer.source.slice(&layer.name(&format!("mlp.experts.{module}_bias")), &[count, out], expert)
                    };
                    let (gate, up) = halves(&bias("gate_up_proj", 2 * inner)?)?;
                    (gate_up.with_bias(Tensor::cat(&[gate, up], 0)?), down.with_bias(bias("down_proj", width)?))
                }
            };
            Ok(Mlp::new(gate_up, down, activation, layer.options.kernels))
        };
        let correction = match config.scoring {
            Scoring::Softmax => None,
            Scoring::Sigmoid => {
                let name = layer.name(CORRECTION.trim_start_matches('.'));
                Some(layer.source.tensor(&name, &[count])?.flatten_all()?.to_vec1()?)
            }
        };
        let experts = (0..count).map(load).collect::<Result<Vec<Mlp>>>()?;
        let shared = match config.shared_size {
            0 => None,
            size => {
                let module = if config.shared_gate { "mlp.shared_expert" } else { "mlp.shared_experts" };
                Some(Box::new(Mlp::load_in(layer, module, size, activation)?))
            }
        };
        let shared_gate = match config.shared_gate && shared.is_some() {
            true => Some(Linear::load(&in_f32, &[("mlp.shared_expert_gate", 1)], width, false)?),
            false => None,
        };
        let ExpertsConfig { per_token, normalise, scoring, scale, modules, .. } = *config;
        Ok(Experts { router, experts, shared, shared_gate, scoring, correction, per_token, normalise, scale, modules })
    }

    /// Returns `residual + experts(x)`; `x` and `residual` are `[T, D]`.
    pub(super) fn forward_add(&self, x: &Tensor, residual: &Tensor, adapters: Adapters) -> Result<Tensor> {
        let sum = self.routed_add(x, residual, adapters)?;
        match (&self.shared, &self.shared_gate) {
            (None, _) => Ok(sum),
            (Some(shared), None) => shared.close_add(&shared.open(x, adapters)?, &sum, adapters),
            (Some(shared), Some(gate)) => {
                let share = sigmoid(&gate.forward(x, adapters)?)?;
                Ok((sum + shared.forward(x, adapters)?.broadcast_mul(&share)?)?)
            }
        }
    }

    /// Like [`Experts::forward_add`], without the shared network.
    fn routed_add(&self, x: &Tensor, residual: &Tensor, adapters: Adapters) -> Result<Tensor> {
        let (chosen, weights_te) = self.weigh(&self.router.forward(x, adapters)?)?;
        let mut total = residual.clone();
        for (e, expert) in self.experts.iter().enumerate() {
            let Some((rows, weight)) = tokens_of(e, &chosen, &weights_te)? else { continue };
            let y = expert.forward(&x.index_select(&rows, 0)?, adapters)?.broadcast_mul(&weight)?;
            total = total.index_add(&rows, &y, 0)?;
        }
        Ok(total)
    }

    /// The chosen experts of each token, and the weights `[T, E]`, from the router's logits `[T, E]`.
    fn weigh(&self, logits_te: &Tensor) -> Result<(Vec<Vec<usize>>, Tensor)> {
        let scores_te = match self.scoring {
            Scoring::Softmax => {
                let exp_te = logits_te.broadcast_sub(&logits_te.max_keepdim(1)?)?.exp()?;
                exp_te.broadcast_div(&exp_te.sum_keepdim(1)?)?
            }
            Scoring::Sigmoid => sigmoid(logits_te)?,
        };
        let chosen = self.choose(&scores_te.to_vec2::<f32>()?)?;
        let mut weights_te = (&scores_te * mask(&chosen, self.experts.len(), logits_te)?)?;
        if self.normalise {
            weights_te = weights_te.broadcast_div(&(weights_te.sum_keepdim(1)? + LEAST)?)?;
        }
        if self.scale != 1.0 {
            weights_te = (weights_te * self.scale)?;
        }
        Ok((chosen, weights_te))
    }

    /// Chooses the experts of each token from the scores of all experts.
    fn choose(&self, scores: &[Vec<f32>]) -> Result<Vec<Vec<usize>>> {
        let Some(correction) = &self.correction else { return choose(scores, self.per_token) };
        let corrected = scores.iter().map(|row| row.iter().zip(correction).map(|(score, added)| score + added).collect());
        choose(&corrected.collect::<Vec<Vec<f32>>>(), self.per_token)
    }

    /// The gradient of `x`, given the gradient `dy` of the output. The choice of experts is treated as a constant, as in every implementation.
    /// The gradients of the weight matrices accumulate as in all products; candle's autograd leads from the experts' weights to the router's
    /// logits.
    pub(super) fn backward(&self, x: &Tensor, dy: &Tensor, adapters: Adapters) -> Result<Tensor> {
        let logits_te = Var::from_tensor(&self.router.forward(x, adapters)?)?;
        let (chosen, weights_te) = self.weigh(&logits_te)?;
        let constant = weights_te.detach();
        let mut dx = x.zeros_like()?;
        let mut d_weights_te = weights_te.zeros_like()?;
        for (e, expert) in self.experts.iter().enumerate() {
            let Some((rows, weight)) = tokens_of(e, &chosen, &constant)? else { continue };
            let (x, dy) = (x.index_select(&rows, 0)?, dy.index_select(&rows, 0)?);
            let gate_up = expert.open(&x, adapters)?;
            let d_weight = (expert.close(&gate_up, adapters)? * &dy)?.sum_keepdim(1)?;
            let of_expert = mask(&[vec![e]], self.experts.len(), &x)?;
            d_weights_te = d_weights_te.index_add(&rows, &d_weight.matmul(&of_expert)?, 0)?;
            dx = dx.index_add(&rows, &expert.backward(&x, &gate_up, &dy.broadcast_mul(&weight)?, adapters)?, 0)?;
        }
        let gradients = (weights_te * d_weights_te)?.sum_all()?.backward()?;
        let d_logits_te = gradients.get(&logits_te).ok_or_else(|| Error::new("no gradient reached the experts' router"))?;
        let dx = sum(&dx, &self.router.backward(x, d_logits_te, adapters)?)?;
        match (&self.shared, &self.shared_gate) {
            (None, _) => Ok(dx),
            (Some(shared), None) => Ok(sum(&dx, &shared.backward(x, &shared.open(x, adapters)?, dy, adapters)?)?),
            (Some(shared), Some(gate)) => {
                let share = sigmoid(&gate.forward(x, adapters)?)?;
                let gate_up = shared.open(x, adapters)?;
                let d_share = (shared.close(&gate_up, adapters)? * dy)?.sum_keepdim(1)?;
                // The derivative of the sigmoid: `s (1 - s)`.
                let d_logit = ((d_share * &share)? * share.affine(-1.0, 1.0)?)?;
                let dx = sum(&dx, &shared.backward(x, &gate_up, &dy.broadcast_mul(&share)?, adapters)?)?;
                Ok(sum(&dx, &gate.backward(x, &d_logit, adapters)?)?)
            }
        }
    }

    /// Makes all weights trainable, the router in f32.
    pub(super) fn train(&mut self, dtype: Dtype, parameters: &mut Vec<Parameter>) -> Result<()> {
        self.router.train(Dtype::F32, parameters)?;
        self.experts.iter_mut().chain(self.shared.as_deref_mut()).try_for_each(|expert| expert.train(dtype, parameters))?;
        self.shared_gate.as_mut().map_or(Ok(()), |gate| gate.train(Dtype::F32, parameters))
    }

    /// Adapts the experts or, if PEFT does not treat them as modules, the shared network, whose matrices have the same names. The gate of the
    /// shared network is adapted by its own name, the router never.
    pub(super) fn adapt(&mut self, how: &Adapting, parameters: &mut Vec<Parameter>) -> Result<()> {
        match self.modules {
            true => self.experts.iter_mut().try_for_each(|expert| expert.adapt(how, parameters)),
            false => self.shared.as_deref_mut().map_or(Ok(()), |shared| shared.adapt(how, parameters)),
        }?;
        self.shared_gate.as_mut().map_or(Ok(()), |gate| gate.adapt(how, parameters))
    }
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    Ok((x.neg()?.exp()? + 1.0)?.recip()?)
}

/// Avoids a division by 0; too small to change any sum that occurs in practice.
const LEAST: f64 = 1e-20;

/// The `k` experts with the highest scores for each token; ties go to the lower index.
fn choose(probabilities: &[Vec<f32>], k: usize) -> Result<Vec<Vec<usize>>> {
    if probabilities.iter().flatten().any(|p| p.is_nan()) {
        return Err(Error::new("the router's probabilities are not numbers")
            .cure("The weights are damaged, or overflow: check the model file."));
    }
    let top = |row: &Vec<f32>| {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        order.truncate(k);
        order
    };
    Ok(probabilities.iter().map(top).collect())
}

/// The tokens that chose expert `e`, and their weights `[tokens, 1]`; `None` if there are none.
fn tokens_of(e: usize, chosen: &[Vec<usize>], weights_te: &Tensor) -> Result<Option<(Tensor, Tensor)>> {
    let rows: Vec<u32> = (0u32..).zip(chosen).filter(|(_, chosen)| chosen.contains(&e)).map(|(t, _)| t).collect();
    if rows.is_empty() {
        return Ok(None);
    }
    let rows = Tensor::new(rows, weights_te.device())?;
    let weight = weights_te.index_select(&rows, 0)?.narrow(1, e, 1)?;
    Ok(Some((rows, weight)))
}

/// Splits `both` into gate and up, whose elements alternate in its last dimension.
fn halves(both: &Tensor) -> Result<(Tensor, Tensor)> {
    let (rank, columns) = (both.rank(), both.dim(D::Minus1)?);
    let pairs = both.reshape([&both.dims()[..rank - 1], &[columns / 2, 2]].concat())?;
    Ok((pairs.narrow(rank, 0, 1)?.squeeze(rank)?, pairs.narrow(rank, 1, 1)?.squeeze(rank)?))
}

/// The inverse of [`halves`].
pub(super) fn alternating(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let rank = gate.rank();
    Ok(Tensor::stack(&[gate, up], rank)?.flatten_from(rank - 1)?)
}

/// Builds the tensor of `shape` that a checkpoint stacks as `name`. `single` returns an expert's tensor by its name and shape in training.
/// Returns `None` if `name` is not a stack.
pub(super) fn stack(
    config: &ExpertsConfig,
    name: &str,
    shape: &[usize],
    single: &mut dyn FnMut(&str, &[usize]) -> Result<Tensor>,
) -> Result<Option<Tensor>> {
    let Some((experts, kind)) = name.split_once(".mlp.experts.").filter(|(_, kind)| !kind.starts_with(char::is_numeric)) else {
        return Ok(None);
    };
    let of_expert = |expert: usize| {
        let mut of =
            |module: &str, kind: &str, shape: &[usize]| single(&format!("{experts}.mlp.experts.{expert}.{module}.{kind}"), shape);
        match (kind, &shape[1..]) {
            ("gate_up_proj", &[inputs, columns]) if config.transposed => {
                let shape = [columns / 2, inputs];
                alternating(&of("gate_proj", "weight", &shape)?.t()?, &of("up_proj", "weight", &shape)?.t()?)
            }
            ("gate_up_proj_bias", &[columns]) if config.transposed => {
                let shape = [columns / 2];
                alternating(&of("gate_proj", "bias", &shape)?, &of("up_proj", "bias", &shape)?)
            }
            ("down_proj", &[inputs, outputs]) if config.transposed => Ok(of("down_proj", "weight", &[outputs, inputs])?.t()?),
            ("down_proj_bias", shape) if config.transposed => of("down_proj", "bias", shape),
            ("gate_up_proj", &[rows, inputs]) => {
                let shape = [rows / 2, inputs];
                Ok(Tensor::cat(&[of("gate_proj", "weight", &shape)?, of("up_proj", "weight", &shape)?], 0)?)
            }
            (kind, shape) => of(kind.trim_end_matches(".weight"), "weight", shape),
        }
    };
    let experts = (0..shape[0]).map(of_expert).collect::<Result<Vec<_>>>()?;
    Ok(Some(Tensor::stack(&experts, 0)?))
}

/// `[T, E]`: 1 if the token chose the expert, otherwise 0.
fn mask(chosen: &[Vec<usize>], n_experts: usize, x: &Tensor) -> Result<Tensor> {
    let mut mask = vec![0f32; chosen.len() * n_experts];
    for (t, experts) in chosen.iter().enumerate() {
        for e in experts {
            mask[t * n_experts + e] = 1.0;
        }
    }
    Ok(Tensor::from_vec(mask, (chosen.len(), n_experts), &Device::Cpu)?.to_dtype(DType::F32)?.to_device(x.device())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_probable_experts_are_chosen() {
        let chosen = choose(&[vec![0.1, 0.4, 0.2, 0.3], vec![0.3, 0.3, 0.3, 0.1]], 2).unwrap();
        assert_eq!(chosen, [vec![1, 3], vec![0, 1]]);
        assert!(choose(&[vec![f32::NAN]], 1).is_err());
        let x = Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(mask(&chosen, 4, &x).unwrap().to_vec2::<f32>().unwrap(), [[0., 1., 0., 1.], [1., 1., 0., 0.]]);
    }
}
