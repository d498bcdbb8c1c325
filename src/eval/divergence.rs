//! How far apart two models are on general text: the mean divergence per token on the questions that ship with the program, each
//! followed by its right answer. It moves long before an accuracy does.

use serde::{Deserialize, Serialize};

use super::requests::windows;
use super::tasks;
use crate::engine;
use crate::error::{Error, Result};
use crate::fetch::Progress;
use crate::model::Model;
use crate::stats::{Estimate, Link, Term, estimate};
use crate::tokens::Sequence;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Divergence {
    pub texts: usize,
    pub tokens: u64,
    /// Nats per token, KL(before || after); the interval draws whole texts.
    pub mean: Estimate,
}

/// Fails where the two do not read text alike.
pub fn measure(before: &Model, after: &Model, max_len: usize, progress: Progress) -> Result<Divergence> {
    let probe = tasks::probe()?;
    let mut sequences: Vec<Sequence> = Vec::new();
    for item in &probe.items {
        let request = &item.requests[item.answer];
        let text = format!("{}{}{}", item.preamble, request.context, request.continuation);
        let (ours, theirs) = (windows(&before.tokenizer, &text, max_len)?, windows(&after.tokenizer, &text, max_len)?);
        if ours != theirs {
            return Err(Error::new("the two models cut text into different tokens"));
        }
        sequences.extend(ours.into_iter().map(|(window, _)| window.sequence(0)));
    }
    let total = sequences.len() as u64;
    let found = engine::divergence(before, after, &sequences, &mut |done| progress("Measuring the divergence", done, total))?;
    let term = |tokens: &Vec<f64>| Term { numerator: tokens.iter().sum(), denominator: tokens.len() as f64 };
    let terms: Vec<Term> = found.iter().map(term).collect();
    let tokens = found.iter().map(|tokens| tokens.len() as u64).sum();
    Ok(Divergence { texts: probe.items.len(), tokens, mean: estimate(&terms, Link::Identity) })
}
