//! Computes what the gates that compare a token with the others need to know about the others: quantiles over the data, and TALR's temperature.
//!
//! A quantile of the top-K entropy holds for one K. The token table has the entropies for K = 20; for any other K they must be computed anew, and it
//! is an error to ask a population without them.

use std::path::PathBuf;

use crate::engine::TOP_K;
use crate::stats::{PerRow, Term};
use crate::table::{Column, quantile_of, quantiles, read_chunks};
use crate::{Error, Result};

/// A number of each token of which gates need quantiles.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Quantity {
    Logprob,
    Entropy,
    /// The entropy of the renormalised top K over ln K.
    EntropyTopk {
        k: usize,
    },
}

/// What a gate needs to know about the other tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Needs {
    /// Quantiles over the whole data set under the base model: the quantity, and the share.
    pub quantiles: Vec<(Quantity, f64)>,
    /// The median over sequences of their mean -ln p: over the batch in training, over the data set in the preview.
    pub tau: bool,
    /// The token's own ln p under the base model, before training.
    pub base_logprobs: bool,
}

/// What is known about the tokens of a data set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Population {
    quantiles: Vec<((Quantity, f64), f32)>,
    tau: Option<f32>,
}

/// Perfect predictions give tau 0, and 0 / 0 is no weight; any tau as small as this gives p = 1 the weight 1.
const SMALLEST_TAU: f64 = 1e-6;

impl Needs {
    /// The needs of both gates together.
    pub fn and(mut self, other: Needs) -> Needs {
        for quantile in other.quantiles {
            if !self.quantiles.contains(&quantile) {
                self.quantiles.push(quantile);
            }
        }
        self.tau |= other.tau;
        self.base_logprobs |= other.base_logprobs;
        self
    }
}

impl Quantity {
    /// The column of the token table that holds it, if there is one.
    fn column(self) -> Option<Column> {
        match self {
            Quantity::Logprob => Some(Column::Logprob),
            Quantity::Entropy => Some(Column::Entropy),
            Quantity::EntropyTopk { k: TOP_K } => Some(Column::EntropyTopk),
            Quantity::EntropyTopk { .. } => None,
        }
    }

    /// Whether a token table holds it.
    pub fn is_in_tables(self) -> bool {
        self.column().is_some()
    }

    fn name(self) -> String {
        match self {
            Quantity::Logprob => "ln p".to_owned(),
            Quantity::Entropy => "the entropy".to_owned(),
            Quantity::EntropyTopk { k } => format!("the top-{k} entropy"),
        }
    }
}

impl Population {
    /// Reads what `needs` requires from the tables of a whole data set, as far as the tables hold it.
    pub fn of_tables(tables: &[PathBuf], needs: &Needs) -> Result<Population> {
        let wanted: Vec<((Quantity, f64), Column)> =
            needs.quantiles.iter().filter_map(|&wanted| Some((wanted, wanted.0.column()?))).collect();
        let values = quantiles(tables, &wanted.iter().map(|&((_, share), column)| (column, share)).collect::<Vec<_>>())?;
        let tau = if needs.tau { temperature(&mut sequence_losses(tables)?) } else { None };
        Ok(Population {
            quantiles: wanted.into_iter().map(|(wanted, _)| wanted).zip(values).collect(),
            tau: tau.map(|tau| tau as f32),
        })
    }

    /// Takes the paper's 15 % quantiles as given; that of the top-K entropy is for K = 20.
    #[cfg(test)]
    pub(crate) fn of_thresholds(entropy_topk: f32, logprob: f32, entropy: f32) -> Population {
        let share = super::quadrants::PILOT_SHARE;
        let known =
            [(Quantity::EntropyTopk { k: TOP_K }, entropy_topk), (Quantity::Logprob, logprob), (Quantity::Entropy, entropy)];
        Population { quantiles: known.map(|(quantity, value)| ((quantity, share), value)).to_vec(), tau: None }
    }

    /// Adds a quantile of the top-K entropy, given the value of every token of the data.
    pub fn with_topk_entropies(mut self, k: usize, share: f64, values: &[f32]) -> Population {
        let value = quantile_of(values, share).map(|value| ((Quantity::EntropyTopk { k }, share), value));
        self.quantiles.extend(value);
        self
    }

    /// Computes tau from one training batch, given the mean -ln p of each of its sequences: the original TALR computes it per batch, the preview over
    /// the whole data set.
    pub fn with_batch_tau(mut self, mean_losses: &mut [f64]) -> Population {
        self.tau = temperature(mean_losses).map(|tau| tau as f32);
        self
    }

    pub(super) fn quantile(&self, quantity: Quantity, share: f64) -> Result<f32> {
        let found = self.quantiles.iter().find(|(known, _)| *known == (quantity, share));
        found.map(|(_, value)| *value).ok_or_else(|| {
            let missing = Error::new(format!("this gate needs the {share} quantile of {} over the data set", quantity.name()));
            match quantity.column() {
                Some(_) => missing.cure("Score the data set with the same model first."),
                None => missing.cure(format!("The token table holds the entropy of the top {TOP_K}: leave --top-k out.")),
            }
        })
    }

    pub(super) fn tau(&self) -> Result<f32> {
        self.tau.ok_or_else(|| Error::new("this gate needs the mean loss of the sequences, but there are none"))
    }
}

/// The temperature of TALR and FLOW: the median of the mean -ln p of the sequences (of an even number, the mean of the two middle ones).
pub(crate) fn temperature(mean_losses: &mut [f64]) -> Option<f64> {
    mean_losses.sort_unstable_by(f64::total_cmp);
    let upper = *mean_losses.get(mean_losses.len() / 2)?;
    let lower = mean_losses[(mean_losses.len() - 1) / 2];
    Some(((lower + upper) / 2.0).max(SMALLEST_TAU))
}

/// The mean -ln p of each sequence, in table order. The tokens of a sequence are contiguous.
fn sequence_losses(tables: &[PathBuf]) -> Result<Vec<f64>> {
    let (mut means, mut open) = (Vec::new(), PerRow::<Term>::default());
    let mean = |Term { numerator, denominator }| numerator / denominator;
    for chunk in read_chunks(tables, &[Column::Row, Column::Logprob]) {
        let chunk = chunk?;
        let tokens = chunk.row.iter().zip(&chunk.logprob).filter(|(_, logprob)| logprob.is_finite());
        for (row, logprob) in tokens {
            means.extend(open.go_to(*row).map(mean));
            open.sums += Term { numerator: -f64::from(*logprob), denominator: 1.0 };
        }
    }
    means.extend(open.end().map(mean));
    Ok(means)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::finished_parts;
    use crate::table::testing::{Example, token, write_parts};

    #[test]
    fn tau_is_a_median_of_sequence_means() {
        assert_eq!(temperature(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(temperature(&mut [4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(temperature(&mut [0.0]), Some(1e-6));
        assert_eq!(temperature(&mut []), None);
        let run = tempfile::tempdir().unwrap();
        let row = |row, ps: &[f32]| Example { row, source: "a", tokens: ps.iter().map(|p| token(1, *p, 1.0)).collect() };
        // The mean losses are ln 4, ln 2 and ln 16; the sequences are in two parts.
        write_parts(run.path(), &[&[row(0, &[0.5, 0.125])], &[row(1, &[0.5]), row(2, &[0.0625, 0.0625, 0.0625])]]);
        let tables: Vec<PathBuf> = finished_parts(run.path()).unwrap().into_iter().map(|part| part.tokens).collect();
        let topk = |k| (Quantity::EntropyTopk { k }, 0.15);
        let needs = Needs { quantiles: vec![topk(20), (Quantity::Logprob, 0.15), topk(50)], tau: true, base_logprobs: false };
        let population = Population::of_tables(&tables, &needs).unwrap();
        assert!((population.tau.unwrap() - 4f32.ln()).abs() < 1e-6);
        assert_eq!(population.quantiles.len(), 2, "the table has no top-50 entropy");
        assert_eq!(population.with_batch_tau(&mut [1.0, 5.0]).tau, Some(3.0));
    }

    #[test]
    fn needs_are_joined_without_repetition() {
        let one = |quantity| Needs { quantiles: vec![(quantity, 0.15)], ..Needs::default() };
        let both = one(Quantity::Entropy).and(one(Quantity::Logprob)).and(one(Quantity::Entropy));
        assert_eq!(both.quantiles, [(Quantity::Entropy, 0.15), (Quantity::Logprob, 0.15)]);
        assert!(Needs::default().and(Needs { tau: true, ..Needs::default() }).tau);
    }
}
