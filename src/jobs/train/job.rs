//! What is asked for, before anything is read.

use std::path::{Path, PathBuf};

use super::checkpoint;
use super::record::{RUN_FILE, TrainRecord, read_record};
use super::watch::Watch;
use crate::dataset::Dataset;
use crate::error::{Context, Error, Result};
use crate::files::sha256;
use crate::model::Reference;
use crate::train::options::Options;

/// What is asked for: options, data and model, found but not read.
pub struct Job {
    pub options: Options,
    pub out: PathBuf,
    pub(super) dataset: Dataset,
    pub(super) reference: Reference,
    pub(super) identity: String,
}

impl Job {
    /// Finds data and model. An error if the folder holds another run.
    pub fn open(options: Options, watch: &dyn Watch) -> Result<Job> {
        let dataset = Dataset::open(&options.datasets, &options.read()?)?;
        let fetching = |what: &str, done, total| watch.fetching(what, done, total);
        let reference = Reference::resolve(options.model.as_deref(), &fetching)?;
        let identity = identity(&options, &dataset, &reference)?;
        let out = options.out.clone().unwrap_or_else(|| Path::new("runs").join(format!("train-{}", &identity[..8])));
        let job = Job { options, out, dataset, reference, identity };
        if job.record()?.is_some_and(|record| record.identity != job.identity) {
            return Err(Error::new("this folder holds another training run").at(&job.out).cure("Give another --out."));
        }
        if let Some(progress) = checkpoint::latest(&job.out)? {
            progress.check(&job.identity).map_err(|error| error.at(&job.out))?;
        }
        Ok(job)
    }

    /// The record of the run, if it has ended.
    pub fn record(&self) -> Result<Option<TrainRecord>> {
        let path = self.out.join(RUN_FILE);
        if path.is_file() { read_record(&path).map(Some) } else { Ok(None) }
    }

    /// Is there a checkpoint of the run?
    pub fn can_resume(&self) -> Result<bool> {
        Ok(checkpoint::latest(&self.out)?.is_some())
    }
}

/// SHA-256 over all that the result depends on.
fn identity(options: &Options, dataset: &Dataset, reference: &Reference) -> Result<String> {
    let files: Vec<_> = dataset.files().iter().map(|file| (&file.path, &file.sha256)).collect();
    let what = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "files": files,
        "model": reference.sha256()?,
        "options": options.identity().to_toml()?,
    });
    Ok(sha256(serde_json::to_string(&what).context("cannot write down what identifies the run")?))
}
