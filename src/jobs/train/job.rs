//! What is asked for, before anything is read.

use std::path::{Path, PathBuf};

use super::checkpoint;
use super::record::{RUN_FILE, TrainRecord, read_record};
use super::watch::Watch;
use crate::dataset::{DataFile, Dataset};
use crate::error::{Context, Error, Result};
use crate::files::sha256;
use crate::jobs::identity_of_files;
use crate::model::Reference;
use crate::provenance;
use crate::train::options::Options;

/// What is asked for: options, data and model, found but not read.
pub(crate) struct Job {
    pub options: Options,
    pub out: PathBuf,
    pub(super) dataset: Dataset,
    pub(super) reference: Reference,
    pub(super) identity: String,
}

impl Job {
    /// Finds data and model. An error if the folder holds another run.
    pub(crate) fn open(mut options: Options, watch: &dyn Watch) -> Result<Job> {
        let dataset = Dataset::open(&options.datasets, &options.read()?)?;
        let fetching = |what: &str, done, total| watch.fetching(what, done, total);
        let reference = Reference::resolve_on(options.model.as_deref(), options.base.as_deref(), &fetching)?;
        options.max_len = Some(reference.max_len(options.max_len)?);
        let identity = identity(&options, dataset.files(), &reference.sha256()?, &provenance::build())?;
        let out = options.out.clone().unwrap_or_else(|| Path::new("runs").join(format!("train-{}", &identity[..8])));
        let job = Job { options, out, dataset, reference, identity };
        if job.record()?.is_some_and(|record| record.identity != job.identity) {
            return Err(Error::new("this folder holds another training run")
                .at(&job.out)
                .cure("It has other options, data or another model, or was made by another version or commit of the program: give another --out."));
        }
        if let Some(progress) = checkpoint::latest(&job.out)? {
            progress.check(&job.identity).map_err(|error| error.at(&job.out))?;
        }
        Ok(job)
    }

    /// The record of the run, if it has ended.
    pub(crate) fn record(&self) -> Result<Option<TrainRecord>> {
        let path = self.out.join(RUN_FILE);
        if path.is_file() { read_record(&path).map(Some) } else { Ok(None) }
    }

    /// Is there a checkpoint of the run?
    pub(crate) fn can_resume(&self) -> Result<bool> {
        Ok(checkpoint::latest(&self.out)?.is_some())
    }
}

/// SHA-256 over all that the result depends on; `build` is the program.
fn identity(options: &Options, files: &[DataFile], model_sha256: &str, build: &str) -> Result<String> {
    // Data and model count by their bytes, however the user spells them.
    let options = Options { datasets: Vec::new(), model: None, base: None, ..options.identity() };
    let what = serde_json::json!({
        "program": build,
        "files": identity_of_files(files),
        "model": model_sha256,
        "options": options.to_toml()?,
    });
    Ok(sha256(serde_json::to_string(&what).context("cannot write down what identifies the run")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_and_the_program_make_a_run_and_paths_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, r#"{"text":"one"}"#).unwrap();
        let spelling = folder.path().join(".").join("rows.jsonl");
        let identity_of = |path: &Path, model: &str, build: &str, seed: u64| {
            let datasets = vec![path.to_string_lossy().into_owned()];
            let options = Options { datasets, model: Some(model.to_owned()), seed, ..Options::default() };
            let dataset = Dataset::open(&options.datasets, &options.read().unwrap()).unwrap();
            identity(&options, dataset.files(), "abc", build).unwrap()
        };
        let own = identity_of(&path, "model.gguf", "0.1.0 (a)", 0);
        assert_eq!(own, identity_of(&spelling, "./model.gguf", "0.1.0 (a)", 0));
        assert_ne!(own, identity_of(&path, "model.gguf", "0.1.0 (b)", 0), "another commit is another program");
        assert_ne!(own, identity_of(&path, "model.gguf", "0.1.0 (a)", 1));
    }
}
