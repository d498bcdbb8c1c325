//! The diagnosis of the data by the base model, for the methods that need it before the first step.

use std::collections::HashMap;
use std::path::Path;

use super::watch::Watch;
use crate::diagnosis::gate::{Gate, Population};
use crate::diagnosis::quadrants::Thresholds;
use crate::error::{Error, Result};
use crate::jobs::score;
use crate::kernels::Kernels;
use crate::model::Placement;
use crate::table::{ROWS_FILE, TOKENS_FILE, read_rows};
use crate::tokens::Sequence;
use crate::train::method::{Method, flow_weights};
use crate::train::options::Options;

/// The run folder of the diagnosis, in that of the training run.
pub const BEFORE_FOLDER: &str = "before";

/// Diagnoses the data with the base model, unless that was done before.
pub fn score_before(options: &Options, out: &Path, command: &str, watch: &dyn Watch) -> Result<()> {
    let job = score::Job {
        inputs: options.datasets.clone(),
        read: options.read()?,
        model: options.model.clone(),
        out: Some(out.to_owned()),
        dtype: options.dtype()?,
        kernels: Kernels::Fused,
        device: Placement::Cpu,
        render: options.render()?,
        limit: options.limit,
        thresholds: Thresholds::default(),
        command: command.to_owned(),
    };
    score::run(&job, watch.of_scoring()).map(|_| ())
}

/// Quantiles for the gates that need them, and the method's weights of the sequences.
pub fn from_scores(options: &Options, before: &Path, sequences: &[Sequence]) -> Result<(Population, Vec<f32>)> {
    let gate = options.gate()?.unwrap_or(options.method.gate());
    let population = match gate {
        Gate::Pilot | Gate::EaftMask { .. } => Population::of_tables(&[before.join(TOKENS_FILE)], &[gate])?,
        _ => Population::default(),
    };
    if options.method != Method::Flow {
        return Ok((population, vec![1.0; sequences.len()]));
    }
    let rows = read_rows(&before.join(ROWS_FILE))?;
    let losses: HashMap<u32, f64> = rows.iter().filter_map(|row| Some((row.row, -f64::from(row.mean_logprob?)))).collect();
    let of_sequence = |sequence: &Sequence| {
        let loss = losses.get(&sequence.row).copied();
        loss.ok_or_else(|| Error::new(format!("row {} has no score", sequence.row)).at(before).cure("Remove the folder."))
    };
    let losses: Vec<f64> = sequences.iter().map(of_sequence).collect::<Result<_>>()?;
    Ok((population, flow_weights(&losses)))
}
