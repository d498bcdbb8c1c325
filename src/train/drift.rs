//! How far training has moved the model on general text: the mean KL(base || model) over a fixed sample of tokens.
//!
//! The text is the probe of general knowledge that ships with the program (`data/probe`), each question with its right answer. The base
//! model's logits of the sample are kept from before the first step, in a file: a hundred megabytes with a vocabulary of 49,152, five
//! hundred with one of 262,144.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, Write};
use std::path::Path;

use candle_core::Tensor;

use crate::engine::{Packed, TOKEN_BUDGET, pack};
use crate::error::{Context, Result};
use crate::eval::tasks;
use crate::kernels::head::{chunk_rows, divergences, logits};
use crate::model::Model;
use crate::tokens::Sequence;

use super::metrics::Drift;

const SAMPLE_TOKENS: usize = 512;

pub struct DriftProbe {
    packs: Vec<Packed>,
    /// The base model's logits at the packs' targets, `[n, V]` f32, little-endian. The file has no name, and goes with the process.
    base_logits: File,
    /// Of the base itself: no divergence, and its cross-entropy.
    pub base: Drift,
}

impl DriftProbe {
    /// Samples the probe, its items cut to `max_len` tokens, and keeps what `base` says of it now in `folder`.
    pub fn new(base: &Model, max_len: usize, folder: &Path) -> Result<DriftProbe> {
        let probe = tasks::probe()?;
        let items = &probe.items;
        // Every seventh item: all fields and both languages are among them.
        const STRIDE: usize = 7;
        let (mut sequences, mut n) = (Vec::new(), 0);
        for item in (0..STRIDE).flat_map(|first| items.iter().skip(first).step_by(STRIDE)) {
            let Some(request) = item.requests.get(item.answer) else { continue };
            let tokens = base.tokenizer.encode(&format!("{}{}", request.context, request.continuation))?;
            let ids: Vec<u32> = tokens.iter().take(max_len).map(|token| token.id).collect();
            let mut supervised = vec![true; ids.len()];
            supervised.iter_mut().take(1).for_each(|first| *first = false);
            n += ids.len().saturating_sub(1);
            sequences.push(Sequence { row: sequences.len() as u32, spans: Vec::new(), supervised, ids });
            if n >= SAMPLE_TOKENS {
                break;
            }
        }
        let packs = pack(&sequences, TOKEN_BUDGET, TOKEN_BUDGET);
        let mut file = BufWriter::new(tempfile::tempfile_in(folder).context_at(folder, "cannot write the base model's logits")?);
        let mut sums = Sums::default();
        each_chunk(base, &packs, |hidden, targets| {
            let of_base = logits(&hidden, base.head(), &base.head_options(1))?;
            for logit in &of_base {
                file.write_all(&logit.to_le_bytes()).context_at(folder, "cannot write the base model's logits")?;
            }
            sums.add(base, &hidden, targets, &of_base)
        })?;
        let base_logits = file.into_inner().map_err(|error| error.into_error());
        let base_logits = base_logits.context_at(folder, "cannot write the base model's logits")?;
        Ok(DriftProbe { packs, base_logits, base: sums.mean() })
    }

    /// How far `model` is from the base now.
    pub fn measure(&self, model: &Model) -> Result<Drift> {
        let vocabulary = model.head().out_features();
        let mut sums = Sums::default();
        let mut file = &self.base_logits;
        file.rewind().context("cannot read the base model's logits")?;
        each_chunk(model, &self.packs, |hidden, targets| {
            let mut row = vec![0; 4 * vocabulary];
            let mut of_base: Vec<f32> = Vec::with_capacity(targets.len() * vocabulary);
            for _ in targets {
                file.read_exact(&mut row).context("cannot read the base model's logits")?;
                of_base.extend(row.as_chunks().0.iter().map(|&logit| f32::from_le_bytes(logit)));
            }
            sums.add(model, &hidden, targets, &of_base)
        })?;
        Ok(sums.mean())
    }
}

/// Over tokens.
#[derive(Default)]
struct Sums {
    kl: f64,
    cross_entropy: f64,
    tokens: u64,
}

impl Sums {
    fn add(&mut self, model: &Model, hidden: &Tensor, targets: &[u32], of_base: &[f32]) -> Result<()> {
        for (statistics, divergence) in divergences(hidden, model.head(), targets, of_base, &model.head_options(1))? {
            self.kl += f64::from(divergence.from_reference);
            self.cross_entropy -= f64::from(statistics.logprob);
        }
        self.tokens += targets.len() as u64;
        Ok(())
    }

    fn mean(&self) -> Drift {
        let mean = |sum: f64| sum / self.tokens.max(1) as f64;
        Drift { kl: mean(self.kl), cross_entropy: mean(self.cross_entropy), tokens: self.tokens }
    }
}

/// Hidden states `[n, D]` and targets of all packs, as many at a time as logits are to be in memory.
fn each_chunk(model: &Model, packs: &[Packed], mut work: impl FnMut(Tensor, &[u32]) -> Result<()>) -> Result<()> {
    let chunk = chunk_rows(model.head().out_features());
    for packed in packs {
        let hidden = model.hidden(&packed.batch, &packed.rows)?;
        for (i, targets) in packed.targets.chunks(chunk).enumerate() {
            work(hidden.narrow(0, i * chunk, targets.len())?, targets)?;
        }
    }
    Ok(())
}
