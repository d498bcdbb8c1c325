//! Scores the data with the base model for the methods that need its scores before the first step.

use std::collections::HashMap;
use std::path::Path;

use crate::diagnosis::gate::{Beside, Gate, Method};
use crate::diagnosis::population::{Needs, Population, Quantity};
use crate::diagnosis::quadrants::Thresholds;
use crate::engine::{self, Work};
use crate::error::{Error, Result};
use crate::jobs::score;
use crate::jobs::watch::Watch;
use crate::kernels::Kernels;
use crate::model::{LoadOptions, Model, Placement};
use crate::table::{Column, ROWS_FILE, TOKENS_FILE, read_chunks, read_rows};
use crate::tokens::Sequence;
use crate::train::loss::flow_weights;
use crate::train::options::Options;

/// Scores the data with the base model, unless that was done before.
pub(super) fn score_before(options: &Options, out: &Path, command: &str, watch: &dyn Watch) -> Result<()> {
    let job = score::Job {
        inputs: options.datasets.clone(),
        read: options.read()?,
        model: options.model_name(),
        max_len: options.max_len,
        out: Some(out.to_owned()),
        load: LoadOptions { dtype: options.dtype, kernels: Kernels::Fused, device: Placement::Cpu },
        elsewhere: None,
        render: options.render()?,
        choice: options.choice(),
        shard: None,
        thresholds: Some(Thresholds::default()),
        with_page: false,
        in_context: false,
        command: command.to_owned(),
    };
    score::run(job, watch).map(|_| ())
}

/// What a method needs from the base model's scores.
pub(super) struct Before {
    pub population: Population,
    /// The method's weight for each sequence.
    pub rows: Vec<f32>,
    /// ln p of each target of each sequence; empty if no gate reads it.
    pub earlier: Vec<Vec<f32>>,
}

impl Before {
    /// A placeholder for methods that need no scores.
    pub(super) fn of_nothing(sequences: &[Sequence]) -> Before {
        let n = sequences.len();
        Before { population: Population::default(), rows: vec![1.0; n], earlier: vec![Vec::new(); n] }
    }

    /// Reads the folder written by [`score_before`].
    pub(super) fn read(method: &Method, gate: &Gate, folder: &Path, sequences: &[Sequence]) -> Result<Before> {
        let needs = gate.needs();
        let mut before = Before::of_nothing(sequences);
        // TALR's temperature is computed per batch.
        before.population = Population::of_tables(&[folder.join(TOKENS_FILE)], &Needs { tau: false, ..needs.clone() })?;
        if method.beside == Beside::RowWeights {
            let rows = read_rows(&folder.join(ROWS_FILE))?;
            let losses: HashMap<u32, f64> =
                rows.iter().filter_map(|row| Some((row.row, -f64::from(row.mean_logprob?)))).collect();
            let of_sequence = |sequence: &Sequence| losses.get(&sequence.row).copied().ok_or_else(|| unscored(sequence, folder));
            before.rows = flow_weights(&sequences.iter().map(of_sequence).collect::<Result<Vec<f64>>>()?);
        }
        if needs.base_logprobs {
            before.earlier = logprobs(folder, sequences)?;
        }
        Ok(before)
    }
}

/// ln p of the supervised tokens of each sequence, in order.
fn logprobs(folder: &Path, sequences: &[Sequence]) -> Result<Vec<Vec<f32>>> {
    let mut by_row: HashMap<u32, Vec<f32>> = HashMap::new();
    for chunk in read_chunks(&[folder.join(TOKENS_FILE)], &[Column::Row, Column::Logprob]) {
        let chunk = chunk?;
        for (row, logprob) in chunk.row.iter().zip(&chunk.logprob) {
            by_row.entry(*row).or_default().push(*logprob);
        }
    }
    let of_sequence = |sequence: &Sequence| {
        let found = by_row.remove(&sequence.row).unwrap_or_default();
        if found.len() == sequence.n_targets() { Ok(found) } else { Err(unscored(sequence, folder)) }
    };
    sequences.iter().map(of_sequence).collect()
}

fn unscored(sequence: &Sequence, folder: &Path) -> Error {
    Error::new(format!("row {} has no score", sequence.row)).at(folder).cure("Remove the folder.")
}

/// Adds the quantiles that no token table holds: those of the top-K entropy for a K other than the table's. The model, still untrained, computes the
/// entropies again for all rows.
pub(super) fn with_topk_entropies(
    mut population: Population,
    gate: &Gate,
    model: &Model,
    parts: &[&[Sequence]],
) -> Result<Population> {
    for (quantity, share) in gate.needs().quantiles {
        let Quantity::EntropyTopk { k } = quantity else { continue };
        if quantity.is_in_tables() {
            continue;
        }
        let mut entropies = Vec::new();
        for sequences in parts {
            let scores = engine::score_top_k(model, sequences, k, &mut Work::default(), &mut |_| {})?;
            entropies.extend(scores.iter().flatten().map(|token| token.entropy_topk));
        }
        population = population.with_topk_entropies(k, share, &entropies);
    }
    Ok(population)
}
