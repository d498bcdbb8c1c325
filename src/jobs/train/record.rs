//! Defines run.json of a training run.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::plan::Plan;
use super::result::note_of_base;
use crate::dataset::DataFile;
use crate::error::Result;
use crate::files::read_json;
use crate::model::Info;
use crate::provenance::{Provenance, RUN_FILE};
use crate::train::keep::Lowest;
use crate::train::metrics::{Drift, Standing, Validation};
use crate::train::options::Options;

/// The content of run.json of a finished run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TrainRecord {
    #[serde(flatten)]
    pub provenance: Provenance,
    pub command: String,
    pub identity: String,
    pub options: Options,
    pub model: Info,
    pub data: Vec<DataFile>,
    /// The files of `--validation`.
    #[serde(default)]
    pub held_out_data: Vec<DataFile>,
    pub plan: Plan,
    /// The number of updates; fewer than planned if `--stop-after-worse` ended the run.
    pub steps: u64,
    /// The step whose model was kept; absent in records of earlier programs, which kept the last.
    #[serde(default)]
    pub kept_step: Option<u64>,
    /// The lowest held-out loss, if there are held-out rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lowest: Option<Lowest>,
    pub input_tokens: u64,
    pub supervised_tokens: u64,
    pub seconds: f64,
    /// Input tokens of all steps per second spent in steps.
    pub tokens_per_second: f64,
    pub peak_memory_bytes: Option<u64>,
    /// The base model's measurements before training; empty in records of earlier programs.
    #[serde(default)]
    pub before: Standing,
    /// The saved model's loss on the held-out rows; absent if there are none.
    pub validation: Option<Validation>,
    /// The saved model's divergence from the base on general text; absent if it was not measured.
    pub drift: Option<Drift>,
    /// One line per finding of the mask audit.
    pub audit_lines: Vec<String>,
    /// The path of the result.
    pub result: PathBuf,
}

impl TrainRecord {
    /// Advice for the user, if other programs cannot load what was trained.
    pub(crate) fn note_of_base(&self) -> Option<String> {
        note_of_base(&self.model.path, &self.options)
    }
}

/// The record in a run folder; `None` if the run has not ended.
pub(crate) fn read_record(folder: &Path) -> Result<Option<TrainRecord>> {
    read_json(&folder.join(RUN_FILE))
}
