//! The Kullback-Leibler divergence of a second model from a first one, over the whole vocabulary, token by token.
//!
//! `KL(first || second) = sum_v p_v (ln p_v - ln q_v)` in nats, with p of the first model; `0 ln 0 = 0`. Uses the fused kernels if the
//! models have them, otherwise the plain expression ([`divergences`]); either way logits are stored for a few hundred tokens at a time.
//! Two loaded models are compared by [`divergence`]. Training only has the first model before its first step, and keeps its logits in a
//! file: [`KeptLogits`].

use std::fs::File;
use std::io::{BufWriter, Read, Seek, Write};
use std::path::Path;

use candle_core::Tensor;

use super::batch::{Packed, TOKEN_BUDGET, pack};
use crate::error::{Context, Error, Result};
use crate::kernels::statistics::{chunk_rows, divergences, logits};
use crate::model::Model;
use crate::tokens::Sequence;

/// The divergence of the second model from the first at one supervised token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenDivergence {
    /// KL(first || second), nats.
    pub kl: f64,
    /// ln p of the target under the second model.
    pub logprob: f64,
}

/// The divergence at each supervised token of each sequence. `progress` receives the number of sequences done.
pub fn divergence(
    before: &Model,
    after: &Model,
    sequences: &[Sequence],
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<Vec<TokenDivergence>>> {
    if before.config.vocab_size != after.config.vocab_size {
        return Err(Error::new(format!(
            "the vocabularies differ: {} tokens before, {} after",
            before.config.vocab_size, after.config.vocab_size
        )));
    }
    let packs = pack(sequences, TOKEN_BUDGET, TOKEN_BUDGET);
    let mut hidden_nd = None;
    let of_before = |packed: &Packed, begin: usize, n: usize| {
        if begin == 0 {
            hidden_nd = None;
        }
        let hidden_nd = match &mut hidden_nd {
            Some(hidden_nd) => hidden_nd,
            none => none.insert(before.hidden(&packed.batch, &packed.rows)?),
        };
        logits(&hidden_nd.narrow(0, begin, n)?, before.head(), &before.head_options(1))
    };
    compared(after, &packs, sequences.len(), of_before, progress)
}

/// A model's logits at every supervised token of some sequences, stored for a comparison with the model's later state.
pub struct KeptLogits {
    packs: Vec<Packed>,
    n_sequences: usize,
    /// `[n, V]` f32, little-endian, in the order of the packs. The file is unnamed and is deleted when the process ends.
    file: File,
}

impl KeptLogits {
    /// Stores the logits of `model` in a file in `folder`: four bytes per token and word of the vocabulary.
    pub fn of(model: &Model, sequences: &[Sequence], folder: &Path) -> Result<KeptLogits> {
        const CANNOT: &str = "cannot write the base model's logits";
        let packs = pack(sequences, TOKEN_BUDGET, TOKEN_BUDGET);
        let mut file = BufWriter::new(tempfile::tempfile_in(folder).context_at(folder, CANNOT)?);
        for packed in &packs {
            let hidden_nd = model.hidden(&packed.batch, &packed.rows)?;
            for (begin, n) in chunks(model, packed) {
                for logit in logits(&hidden_nd.narrow(0, begin, n)?, model.head(), &model.head_options(1))? {
                    file.write_all(&logit.to_le_bytes()).context_at(folder, CANNOT)?;
                }
            }
        }
        let file = file.into_inner().map_err(|error| error.into_error()).context_at(folder, CANNOT)?;
        Ok(KeptLogits { packs, n_sequences: sequences.len(), file })
    }

    /// The divergence of `model` from the stored logits, at each supervised token of each sequence.
    pub fn divergence(&self, model: &Model) -> Result<Vec<Vec<TokenDivergence>>> {
        const CANNOT: &str = "cannot read the base model's logits";
        let vocabulary = model.head().out_features();
        let mut file = &self.file;
        file.rewind().context(CANNOT)?;
        let mut row = vec![0; 4 * vocabulary];
        let of_base = |_: &Packed, _: usize, n: usize| {
            let mut logits: Vec<f32> = Vec::with_capacity(n * vocabulary);
            for _ in 0..n {
                file.read_exact(&mut row).context(CANNOT)?;
                logits.extend(row.as_chunks().0.iter().map(|&logit| f32::from_le_bytes(logit)));
            }
            Ok(logits)
        };
        compared(model, &self.packs, self.n_sequences, of_base, &mut |_| {})
    }
}

/// The divergences of `model`; `of_base` returns the first model's logits for `n` rows of a pack from a given row on, and is called in
/// their order.
fn compared(
    model: &Model,
    packs: &[Packed],
    n_sequences: usize,
    mut of_base: impl FnMut(&Packed, usize, usize) -> Result<Vec<f32>>,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<Vec<TokenDivergence>>> {
    let mut by_sequence: Vec<Vec<TokenDivergence>> = vec![Vec::new(); n_sequences];
    let mut done = 0;
    for packed in packs {
        let hidden_nd: Tensor = model.hidden(&packed.batch, &packed.rows)?;
        let mut found = Vec::with_capacity(packed.rows.len());
        for (begin, n) in chunks(model, packed) {
            let (hidden_nd, targets) = (hidden_nd.narrow(0, begin, n)?, &packed.targets[begin..begin + n]);
            let of_base = of_base(packed, begin, n)?;
            let pairs = divergences(&hidden_nd, model.head(), targets, &of_base, &model.head_options(1))?;
            found.extend(pairs.into_iter().map(|(statistics, divergence)| TokenDivergence {
                kl: f64::from(divergence.from_reference),
                logprob: f64::from(statistics.logprob),
            }));
        }
        if found.iter().any(|token| token.kl.is_nan()) {
            return Err(Error::new("the logits of one of the models are not numbers").cure("Check the model files."));
        }
        for (sequence, targets) in &packed.scatter {
            by_sequence[*sequence] = targets.iter().map(|&target| found[target as usize]).collect();
            done += 1;
        }
        progress(done);
    }
    Ok(by_sequence)
}

/// The rows of a pack in chunks whose logits fit into memory: their beginning and length.
fn chunks(model: &Model, packed: &Packed) -> impl Iterator<Item = (usize, usize)> + use<> {
    let (chunk, rows) = (chunk_rows(model.head().out_features()), packed.rows.len());
    (0..rows).step_by(chunk).map(move |begin| (begin, chunk.min(rows - begin)))
}
