//! Defines the gates, what each needs to know about the other tokens, and the weight functions that result.

use super::eaft::{Curve, Eaft};
use super::weight::Weight;
use crate::diagnosis::population::{Needs, Population, Quantity};
use crate::diagnosis::quadrants::PILOT_SHARE;
use crate::engine::TOP_K;
use crate::error::Result;

/// The rule that weighs a token; [`METHODS`](super::METHODS) explains each. [`Gate::bind`] turns it into a weight function.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Gate {
    One,
    Eaft(Eaft),
    Pilot,
    /// Masks the tokens with 1/p above `tau` under the base model.
    Stm {
        tau: f32,
    },
    Probability,
    Deft,
    Tempered,
    /// Weighs by the ratio of the probability to that under an earlier model; 0 where the ratio exceeds `most`.
    Ratio {
        most: f32,
    },
}

impl Gate {
    /// What the gate needs to know beyond the token that it weighs.
    pub fn needs(&self) -> Needs {
        let quantiles = |quantiles: Vec<(Quantity, f64)>| Needs { quantiles, ..Needs::default() };
        match *self {
            Gate::Eaft(Eaft { curve: Curve::Mask { share }, k, .. }) => quantiles(vec![(Quantity::EntropyTopk { k }, share)]),
            Gate::Pilot => quantiles(vec![(Quantity::Logprob, PILOT_SHARE), (Quantity::Entropy, PILOT_SHARE)]),
            Gate::Stm { .. } => Needs { base_logprobs: true, ..Needs::default() },
            Gate::Tempered => Needs { tau: true, ..Needs::default() },
            Gate::One | Gate::Eaft(_) | Gate::Probability | Gate::Deft | Gate::Ratio { .. } => Needs::default(),
        }
    }

    /// The K of the top-K entropy that the gate reads; the table's K for gates that read none.
    pub fn top_k(&self) -> usize {
        match self {
            Gate::Eaft(eaft) => eaft.k,
            _ => TOP_K,
        }
    }

    /// Fills in what the gate needs to know about the other tokens.
    pub fn bind(&self, population: &Population) -> Result<Weight> {
        Ok(match *self {
            Gate::One => Weight::One,
            Gate::Eaft(eaft) => eaft.bind(population)?,
            Gate::Pilot => Weight::OutsideCorner {
                logprob: population.quantile(Quantity::Logprob, PILOT_SHARE)?,
                entropy: population.quantile(Quantity::Entropy, PILOT_SHARE)?,
            },
            Gate::Stm { tau } => Weight::Likely { logprob: -tau.ln() },
            Gate::Probability => Weight::Probability,
            Gate::Deft => Weight::Deft,
            Gate::Tempered => Weight::Tempered { tau: population.tau()? },
            Gate::Ratio { most } => Weight::Ratio { most },
        })
    }
}
