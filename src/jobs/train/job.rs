//! What is asked for, and found, before anything is read.

use std::path::{Path, PathBuf};

use super::checkpoint;
use super::plan::Plan;
use super::record::{RUN_FILE, TrainRecord, read_record};
use crate::dataset::{DataFile, Dataset};
use crate::error::{Context, Error, Result};
use crate::files::{file_sha256, sha256};
use crate::jobs::watch::{Watch, fetching};
use crate::jobs::work::{Work, check_free};
use crate::jobs::{identity_of_files, level};
use crate::kernels::level::Level;
use crate::model::Reference;
use crate::provenance;
use crate::train::options::Options;

/// A training run as the user asked for it.
pub(crate) struct Job {
    pub options: Options,
    /// Only the plan is wanted: nothing is scored, trained or written.
    pub dry_run: bool,
    /// It is an error if there is no checkpoint to go on from.
    pub must_resume: bool,
    /// The command line, for the record.
    pub command: String,
}

/// How a run ended.
pub(crate) enum Outcome {
    /// Only the plan was wanted.
    Planned(Box<Plan>),
    Finished(Box<TrainRecord>),
    /// The user interrupted it; the checkpoint holds this many steps, of that many.
    Interrupted {
        out: PathBuf,
        step: u64,
        total: u64,
    },
}

/// A job whose data and model were found, but not read.
pub(super) struct Opened {
    pub options: Options,
    pub out: PathBuf,
    pub command: String,
    pub dataset: Dataset,
    /// Rows to hold out that are no part of it.
    pub validation: Option<Dataset>,
    pub reference: Reference,
    pub model_sha256: String,
    pub identity: String,
}

impl Opened {
    /// Finds data and model. An error if the folder holds another run.
    pub(super) fn new(job: Job, watch: &dyn Watch) -> Result<Opened> {
        let Job { mut options, command, .. } = job;
        let dataset = Dataset::open(&options.datasets, &options.read()?)?;
        watch.opened(dataset.files());
        let validation = match options.validation.is_empty() {
            true => None,
            false => Some(Dataset::open(&options.validation, &options.read()?)?),
        };
        let held_out = validation.as_ref().map_or(&[][..], Dataset::files);
        watch.opened(held_out);
        let reference = Reference::resolve_on(options.model.as_deref(), options.base.as_deref(), &fetching(watch))?;
        if options.lora {
            // What cannot be saved is not trained.
            reference.as_base()?;
        }
        options.max_len = Some(reference.max_len(options.max_len)?);
        let (model_sha256, build) = (reference.sha256()?, provenance::build());
        let own_identity = identity(&options, [dataset.files(), held_out], &model_sha256, &build)?;
        let out = options.out.clone().unwrap_or_else(|| Path::new("runs").join(format!("train-{}", &own_identity[..8])));
        let opened = Opened { options, out, command, dataset, validation, reference, model_sha256, identity: own_identity };
        check_free(&opened.out, Work::Training)?;
        if let Some(record) = opened.record()?.filter(|record| record.identity != opened.identity) {
            let Options { epochs, max_steps, .. } = record.options;
            let as_long = Options { epochs, max_steps, ..opened.options.clone() };
            let files = [opened.dataset.files(), opened.held_out_files()];
            if identity(&as_long, files, &opened.model_sha256, &build)? == record.identity {
                return Err(opened.of_another_length(&record));
            }
            if let Some(error) = level::at_another(record.provenance.kernel_level.as_deref()) {
                return Err(error.at(&opened.out));
            }
            return Err(Error::new("this folder holds another training run").at(&opened.out).cure(
                "It has other options, data or another model, or was made by another version or commit of the program: give \
                    another --out.",
            ));
        }
        if let Some(progress) = checkpoint::latest(&opened.out)? {
            progress.check(&opened.identity).map_err(|error| error.at(&opened.out))?;
        }
        Ok(opened)
    }

    /// The learning rates of all steps follow from the length, so that a longer run is no continuation of a shorter one.
    fn of_another_length(&self, record: &TrainRecord) -> Error {
        let length = |options: &Options| match options.max_steps {
            Some(steps) => format!("{steps} step{}", if steps == 1 { "" } else { "s" }),
            None => format!("{} epoch{}", options.epochs, if options.epochs == 1.0 { "" } else { "s" }),
        };
        let (was, wanted) = (length(&record.options), length(&self.options));
        let result = match self.options.lora {
            true => "the model that --merge saves".to_owned(),
            false => format!("--model {}", record.result.display()),
        };
        Error::new(format!("this folder holds a finished run of {was}, and a run of {wanted} has other learning rates from its first step on"))
            .at(&self.out)
            .cure(format!("Give another --out to train for {wanted} from the beginning, or go on from the result with {result} and another --out."))
    }

    /// The files of `--validation`.
    pub(super) fn held_out_files(&self) -> &[DataFile] {
        self.validation.as_ref().map_or(&[], Dataset::files)
    }

    /// The record of the run, if it has ended.
    pub(super) fn record(&self) -> Result<Option<TrainRecord>> {
        let path = self.out.join(RUN_FILE);
        if path.is_file() { read_record(&path).map(Some) } else { Ok(None) }
    }

    /// Is there a checkpoint of the run?
    pub(super) fn can_resume(&self) -> Result<bool> {
        Ok(checkpoint::latest(&self.out)?.is_some())
    }
}

/// SHA-256 over all that the result depends on: the files to train on and those that are held out, ..; `build` is the program.
fn identity(options: &Options, [files, held_out]: [&[DataFile]; 2], model_sha256: &str, build: &str) -> Result<String> {
    // Data, model and template count by their bytes, however the user spells them.
    let template = options.chat_template.as_deref().map(file_sha256).transpose()?;
    let by_bytes = Options {
        datasets: Vec::new(),
        validation: Vec::new(),
        model: None,
        base: None,
        chat_template: None,
        ..options.identity()
    };
    let what = serde_json::json!({
        "program": build,
        "files": identity_of_files(files),
        "held_out_files": identity_of_files(held_out),
        "model": model_sha256,
        "chat_template": template,
        "options": by_bytes.to_toml()?,
        // Other instructions round other sums.
        "kernel_level": Level::current().name(),
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
            identity(&options, [dataset.files(), &[]], "abc", build).unwrap()
        };
        let own = identity_of(&path, "model.gguf", "0.1.0 (a)", 0);
        assert_eq!(own, identity_of(&spelling, "./model.gguf", "0.1.0 (a)", 0));
        assert_ne!(own, identity_of(&path, "model.gguf", "0.1.0 (b)", 0), "another commit is another program");
        assert_ne!(own, identity_of(&path, "model.gguf", "0.1.0 (a)", 1));
        // A template counts by its bytes, too.
        let [template, copy] = ["t.jinja", "copy.jinja"].map(|name| folder.path().join(name));
        let under = |template: &Path| {
            let options = Options { chat_template: Some(template.to_owned()), ..Options::default() };
            identity(&options, [&[], &[]], "abc", "0.1.0").unwrap()
        };
        std::fs::write(&template, "{{ messages }}").unwrap();
        std::fs::copy(&template, &copy).unwrap();
        let before = under(&template);
        assert_eq!(before, under(&copy));
        std::fs::write(&template, "{{ messages }}.").unwrap();
        assert_ne!(before, under(&template));
    }
}
