//! Previews what each loss would do to the data: how much weight, loss and gradient it leaves in each quadrant, and where it removes the rest.
//!
//! Sums run over the supervised tokens. "Gradient" is the sum over tokens of the L2 norms of the cross-entropy gradient with respect to the logits,
//! weighted like the loss. It is an upper bound on a step, since the norm of a sum is at most the sum of the norms. Every loss is a sum divided by
//! the number of supervised tokens, including those of weight zero.

use serde::{Deserialize, Serialize};

use super::by_quadrant::ByQuadrant;
use super::gate::{Gate, Token, Weight};
use crate::stats::{ClusterSums, PerRow, Scale, Term, effective_number, share};
use crate::table::{Quadrant, TokenChunk};

/// One gate applied to the whole data set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GatePreview {
    /// The name of the gate, as `--gate` takes it.
    pub gate: String,
    /// The weight function of the gate, with its thresholds filled in.
    pub weight: Weight,
    /// (sum w)^2 / sum w^2: the number of equally weighted tokens whose mean would have the same variance (Kish, 1965).
    pub effective_tokens: f64,
    /// The mean of the weights over the tokens.
    pub mean_weight: f64,
    /// The factor on SFT's learning rate that keeps the sum of gradient norms the same. Absent if the gate leaves nothing.
    pub learning_rate_factor: Option<f64>,
    /// Its 95 % interval over the rows, with the gate's thresholds taken as given.
    #[serde(default)]
    pub learning_rate_factor_ci95: Option<[f64; 2]>,
    /// The fraction of each quadrant's loss and gradient that remains; it exceeds 1 where weights do.
    pub kept: ByQuadrant<LossAndGrad>,
    /// Each quadrant's share of all remaining loss and gradient. Adds to 1 over the quadrants.
    pub share: ByQuadrant<LossAndGrad>,
    /// Where the gate removes weight, loss and gradient.
    pub taken: GateAttribution,
}

/// What a gate removes, by quadrant: the sums of (1 - w), (1 - w) loss and (1 - w) gradient over tokens with w < 1.
///
/// A gate against forgetting should remove conflicts. What it removes from `confident` are tokens that the model already knows: little loss, but
/// often most of the weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateAttribution {
    /// Fraction of the weight of all tokens that is removed.
    pub weight: f64,
    /// Fraction of all loss that is removed.
    pub loss: f64,
    /// Fraction of all gradient that is removed.
    pub grad: f64,
    /// Fraction of all gradient that is *added*, by weights above 1 (axolotl's normalisation).
    pub grad_added: f64,
    /// Each quadrant's share of what is removed. Adds to 1, or to 0 if nothing is removed.
    pub share: ByQuadrant<WeightLossAndGrad>,
}

/// A number for the loss and one for the gradient.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LossAndGrad {
    /// The number for the loss, the sum of -ln p.
    pub loss: f64,
    /// The number for the gradient, the sum of its norms.
    pub grad: f64,
}

/// A number for the weight, one for the loss and one for the gradient.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct WeightLossAndGrad {
    /// The number for the weight.
    pub weight: f64,
    /// The number for the loss, the sum of -ln p.
    pub loss: f64,
    /// The number for the gradient, the sum of its norms.
    pub grad: f64,
}

/// Running sums of one gate.
pub(super) struct GateSums {
    gate: Gate,
    weight: Weight,
    squares: f64,
    total: [WeightLossAndGrad; 4],
    remaining: [WeightLossAndGrad; 4],
    taken: [WeightLossAndGrad; 4],
    /// The total gradient over the remaining gradient, row by row.
    factor: ClusterSums,
    row: PerRow<Term>,
}

impl GateSums {
    pub(super) fn new(gate: Gate, weight: Weight) -> GateSums {
        GateSums {
            gate,
            weight,
            squares: 0.0,
            total: Default::default(),
            remaining: Default::default(),
            taken: Default::default(),
            factor: ClusterSums::default(),
            row: PerRow::default(),
        }
    }

    pub(super) fn add(&mut self, chunk: &TokenChunk, labels: &[Quadrant]) {
        for (i, quadrant) in labels.iter().enumerate() {
            let weight = f64::from(self.weight.of(&Token::of_table(chunk, i)));
            let (loss, grad) = (-f64::from(chunk.logprob[i]), f64::from(chunk.grad[i]));
            let quadrant = quadrant.index();
            self.factor.extend(self.row.go_to(chunk.row[i]));
            self.row.sums += Term { numerator: grad, denominator: weight * grad };
            self.squares += weight * weight;
            self.total[quadrant].add(1.0, loss, grad);
            self.remaining[quadrant].add(weight, loss, grad);
            self.taken[quadrant].add((1.0 - weight).max(0.0), loss, grad);
        }
    }

    pub(super) fn finish(mut self) -> GatePreview {
        self.factor.extend(self.row.end());
        let sum = |parts: &[WeightLossAndGrad; 4]| {
            parts.iter().fold(WeightLossAndGrad::default(), |sum, part| WeightLossAndGrad {
                weight: sum.weight + part.weight,
                loss: sum.loss + part.loss,
                grad: sum.grad + part.grad,
            })
        };
        let (total, remaining, taken) = (sum(&self.total), sum(&self.remaining), sum(&self.taken));
        GatePreview {
            gate: self.gate.to_string(),
            weight: self.weight,
            effective_tokens: effective_number(remaining.weight, self.squares),
            mean_weight: share(remaining.weight, total.weight),
            learning_rate_factor: (remaining.grad > 0.0).then(|| total.grad / remaining.grad),
            learning_rate_factor_ci95: self.factor.ci95(Scale::Log),
            kept: ByQuadrant::from_fn(|quadrant| {
                let (of, all) = (self.remaining[quadrant.index()], self.total[quadrant.index()]);
                LossAndGrad { loss: share(of.loss, all.loss), grad: share(of.grad, all.grad) }
            }),
            share: ByQuadrant::from_fn(|quadrant| {
                let of = self.remaining[quadrant.index()];
                LossAndGrad { loss: share(of.loss, remaining.loss), grad: share(of.grad, remaining.grad) }
            }),
            taken: GateAttribution {
                weight: share(taken.weight, total.weight),
                loss: share(taken.loss, total.loss),
                grad: share(taken.grad, total.grad),
                grad_added: share(remaining.grad - (total.grad - taken.grad), total.grad).max(0.0),
                share: ByQuadrant::from_fn(|quadrant| {
                    let of = self.taken[quadrant.index()];
                    WeightLossAndGrad {
                        weight: share(of.weight, taken.weight),
                        loss: share(of.loss, taken.loss),
                        grad: share(of.grad, taken.grad),
                    }
                }),
            },
        }
    }
}

impl WeightLossAndGrad {
    /// Adds a token's loss and gradient at this weight.
    fn add(&mut self, weight: f64, loss: f64, grad: f64) {
        self.weight += weight;
        self.loss += weight * loss;
        self.grad += weight * grad;
    }
}
