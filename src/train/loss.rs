//! A training method with its parameters: maps a token's statistics to the factors of its loss terms.
//!
//! The methods, their formulas and sources are listed in [`METHODS`](crate::diagnosis::gate::METHODS). With `N` supervised tokens
//! in the batch of an optimiser step, a token's loss is `weight (-ln p) + b KL`, divided by `N`. In rows named by `--intended` a
//! token counts fully: its weight and its row's are 1 (`+ b KL` stays).

use crate::diagnosis::gate::{Beside, Gate, Method, Token, Weight};
use crate::diagnosis::population::{Population, temperature};
use crate::error::Result;
use crate::kernels::TokenStatistics;
use crate::kernels::statistics::{Divergence, TokenLoss};
use crate::stats::share;

/// A method with its parameters.
#[derive(Debug, Clone)]
pub(crate) struct Loss {
    /// The training method.
    pub method: Method,
    /// The method's gate, with the user's changes.
    pub gate: Gate,
    /// The factor of the divergence from the base model.
    kl_weight: f32,
    /// The statistics of the data set that the gate needs.
    population: Population,
}

/// The loss of one optimiser step's batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchLoss {
    weight: Weight,
    /// The factors of `KL(base || model)` and of `KL(model || base)`.
    from_base: f32,
    to_base: f32,
}

/// How much a token counts: the sum of the weights of the sequences that contain it, over `N`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Share {
    /// The weights of those sequences where the method weights the token.
    pub weighted: f32,
    /// The weights of those sequences whose conflicts are intended.
    pub whole: f32,
}

impl Loss {
    /// Creates the loss; `kl_weight` replaces the method's default.
    pub(crate) fn new(method: Method, gate: Gate, kl_weight: Option<f32>, population: Population) -> Loss {
        Loss { method, gate, kl_weight: kl_weight.unwrap_or(method.kl_weight()), population }
    }

    /// The loss of one step. `mean_losses` are the mean `-ln p` of the batch's sequences, if the gate needs them.
    pub(crate) fn of_batch(&self, mean_losses: Option<&mut [f64]>) -> Result<BatchLoss> {
        let weight = match mean_losses {
            Some(means) => self.gate.bind(&self.population.clone().with_batch_tau(means))?,
            None => self.gate.bind(&self.population)?,
        };
        let (from_base, to_base) = match self.method.beside {
            Beside::FromBase { .. } => (self.kl_weight, 0.0),
            Beside::ToBase { .. } => (0.0, self.kl_weight),
            Beside::Nothing | Beside::RowWeights | Beside::Snapshots { .. } => (0.0, 0.0),
        };
        Ok(BatchLoss { weight, from_base, to_base })
    }

    /// The divergence of a token that the method adds to its loss.
    pub(crate) fn divergence(&self, divergence: &Divergence) -> f32 {
        match self.method.beside {
            Beside::FromBase { .. } => divergence.from_reference,
            _ => divergence.to_reference,
        }
    }
}

impl BatchLoss {
    /// The factor of a token's gradient.
    pub(crate) fn weight(&self, token: &Token) -> f32 {
        self.weight.of(token)
    }

    /// The factors of a token's loss terms.
    pub(crate) fn factors(&self, token: &Token, share: Share) -> TokenLoss {
        let Share { weighted, whole } = share;
        TokenLoss {
            cross_entropy: self.weight(token) * weighted + whole,
            from_reference: self.from_base * (weighted + whole),
            to_reference: self.to_base * (weighted + whole),
        }
    }

    /// The token's loss before division by `N`; `intended` says whether the conflicts of its row are intended.
    pub(crate) fn value(&self, token: &Token, divergence: &Divergence, intended: bool) -> f64 {
        let weighed = if intended { -f64::from(token.logprob) } else { self.weight.loss(token) };
        weighed
            + f64::from(self.from_base) * f64::from(divergence.from_reference)
            + f64::from(self.to_base) * f64::from(divergence.to_reference)
    }
}

/// The mean `-ln p` of a sequence's targets, in nats; 0 without targets.
pub(crate) fn mean_loss(tokens: &[TokenStatistics]) -> f64 {
    -share(tokens.iter().map(|token| f64::from(token.logprob)).sum(), tokens.len() as f64)
}

/// FLOW's weights of the sequences, from their mean losses under the base model: `exp(-l_i / tau)`, scaled to mean 1.
pub(crate) fn flow_weights(mean_losses: &[f64]) -> Vec<f32> {
    let Some(tau) = temperature(&mut mean_losses.to_vec()) else { return Vec::new() };
    let weights: Vec<f64> = mean_losses.iter().map(|loss| (-loss / tau).exp()).collect();
    let mean = weights.iter().sum::<f64>() / weights.len() as f64;
    weights.iter().map(|weight| (weight / mean) as f32).collect()
}
