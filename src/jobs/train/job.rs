//! Opens a training job: its options, and its data and model as found before anything is read.

use std::path::{Path, PathBuf};

use super::checkpoint;
use super::plan::Plan;
use super::record::{TrainRecord, read_record};
use crate::dataset::{DataFile, Dataset};
use crate::error::{Context, Error, Result};
use crate::files::sha256;
use crate::format::count;
use crate::jobs::identity_of_files;
use crate::jobs::other_run::other_run;
use crate::jobs::watch::{Watch, fetching};
use crate::jobs::work::{Work, check_free};
use crate::kernels::level::Level;
use crate::model::{Reference, text_of};
use crate::provenance;
use crate::tokens::Renderer;
use crate::train::options::Options;

/// A training run as the user requested it.
pub(crate) struct Job {
    pub options: Options,
    /// Print only the plan; score, train and write nothing.
    pub dry_run: bool,
    /// Fail if there is no checkpoint to resume from.
    pub must_resume: bool,
    /// The command line, for the record.
    pub command: String,
}

/// How a training job ended.
pub(crate) enum Outcome {
    /// Only the plan was requested.
    Planned(Box<Plan>),
    Finished(Box<TrainRecord>),
    /// The user interrupted it; the checkpoint holds `step` of all steps.
    Interrupted {
        out: PathBuf,
        step: u64,
        total: u64,
    },
}

/// A job whose data and model have been found but not read.
pub(super) struct Opened {
    pub options: Options,
    pub out: PathBuf,
    pub command: String,
    pub dataset: Dataset,
    /// Held-out rows in separate files.
    pub validation: Option<Dataset>,
    pub reference: Reference,
    pub renderer: Renderer,
    pub model_sha256: String,
    pub identity: String,
}

impl Opened {
    /// Finds data and model. Returns an error if the folder holds another run.
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
        let reference = Reference::resolve_named(&options.model_name(), &fetching(watch))?;
        if options.lora {
            // Refuse to train an adapter that could not be saved.
            reference.as_base()?;
        }
        options.max_len = Some(reference.max_len(options.max_len)?);
        let (tokenizer, template) = text_of(&reference)?;
        let renderer = Renderer::new(tokenizer, template, options.render()?)?;
        let (model_sha256, build) = (reference.sha256()?, provenance::build());
        let template_sha256 = renderer.template_sha256().map(str::to_owned);
        let template_sha256 = template_sha256.as_deref();
        let made_of = MadeOf { files: [dataset.files(), held_out], model_sha256: &model_sha256, template_sha256, build: &build };
        let own_identity = identity(&options, &made_of)?;
        let out = options.out.clone().unwrap_or_else(|| Path::new("runs").join(format!("train-{}", &own_identity[..8])));
        let opened =
            Opened { options, out, command, dataset, validation, reference, renderer, model_sha256, identity: own_identity };
        check_free(&opened.out, Work::Training)?;
        if let Some(record) = opened.record()?.filter(|record| record.identity != opened.identity) {
            let Options { epochs, max_steps, .. } = record.options;
            let as_long = Options { epochs, max_steps, ..opened.options.clone() };
            let files = [opened.dataset.files(), opened.held_out_files()];
            let made_of = MadeOf { files, model_sha256: &opened.model_sha256, template_sha256, build: &build };
            if identity(&as_long, &made_of)? == record.identity {
                return Err(opened.of_another_length(&record));
            }
            return Err(other_run(
                &opened.out,
                "another training run",
                record.provenance.kernel_level.as_deref(),
                opened.renderer.writes_date(),
            ));
        }
        if let Some(progress) = checkpoint::latest(&opened.out)? {
            progress.check(&opened.out, &opened.identity, opened.renderer.writes_date())?;
        }
        Ok(opened)
    }

    /// The error for a run of another length: the learning rates of all steps depend on the length, so a longer run does not continue a shorter one.
    fn of_another_length(&self, record: &TrainRecord) -> Error {
        let length = |options: &Options| match options.max_steps {
            Some(steps) => count(steps, "step"),
            None => format!("{} epoch{}", options.epochs, if options.epochs == 1.0 { "" } else { "s" }),
        };
        let (was, wanted) = (length(&record.options), length(&self.options));
        let result = match self.options.lora {
            true => "the model that --merge saves".to_owned(),
            false => format!("--model {}", record.result.display()),
        };
        Error::new(format!("this folder holds a finished run of {was}; a run of {wanted} has different learning rates from its first step on"))
            .at(&self.out)
            .cure(format!("Choose another --out to train for {wanted} from the beginning, or continue from the result with {result} and another --out."))
    }

    /// The files of `--validation`.
    pub(super) fn held_out_files(&self) -> &[DataFile] {
        self.validation.as_ref().map_or(&[], Dataset::files)
    }

    /// The record of the run, if it has ended and its result is there.
    pub(super) fn finished(&self) -> Result<Option<TrainRecord>> {
        let Some(record) = self.record()? else { return Ok(None) };
        let result = record.result.file_name().map_or_else(|| record.result.clone(), |name| self.out.join(name));
        if result.exists() {
            return Ok(Some(record));
        }
        match self.can_resume()? {
            // The last checkpoint has what is to be saved again.
            true => Ok(None),
            false => Err(Error::new("the run has ended, but its result was removed, and so were its checkpoints")
                .at(&result)
                .cure("Train again with another --out.")),
        }
    }

    /// The record of the run, if it has ended.
    pub(super) fn record(&self) -> Result<Option<TrainRecord>> {
        read_record(&self.out)
    }

    /// Whether the run has a checkpoint.
    pub(super) fn can_resume(&self) -> Result<bool> {
        Ok(checkpoint::latest(&self.out)?.is_some())
    }
}

/// The inputs that the options name, as they were found.
struct MadeOf<'a> {
    /// The files to train on, and the held-out files.
    files: [&'a [DataFile]; 2],
    model_sha256: &'a str,
    template_sha256: Option<&'a str>,
    /// The build of this program.
    build: &'a str,
}

/// The SHA-256 of everything that the result depends on.
fn identity(options: &Options, made_of: &MadeOf) -> Result<String> {
    let MadeOf { files: [files, held_out], model_sha256, template_sha256, build } = *made_of;
    // Data, model and template count by their bytes, whatever their paths.
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
        "chat_template": template_sha256,
        "options": by_bytes.to_toml()?,
        // Another kernel level rounds sums differently.
        "kernel_level": Level::current().name(),
    });
    Ok(sha256(serde_json::to_string(&what).context("cannot write down what identifies the run")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_decides_about_the_result_is_in_the_identity_and_paths_are_not() {
        let identity_of = |path: &str, model: &str, build: &str, seed: u64| {
            let options = Options { datasets: vec![path.to_owned()], model: Some(model.to_owned()), seed, ..Options::default() };
            identity(&options, &MadeOf { files: [&[], &[]], model_sha256: "abc", template_sha256: None, build }).unwrap()
        };
        let own = identity_of("rows.jsonl", "model.gguf", "0.1.0 (a)", 0);
        assert_eq!(own, identity_of("./rows.jsonl", "./model.gguf", "0.1.0 (a)", 0));
        assert_ne!(own, identity_of("rows.jsonl", "model.gguf", "0.1.0 (b)", 0), "another commit is another program");
        assert_ne!(own, identity_of("rows.jsonl", "model.gguf", "0.1.0 (a)", 1));
        // Data count by what is in them, and held-out data count otherwise than those that are trained on.
        let data =
            Dataset::open(&[concat!(env!("CARGO_MANIFEST_DIR"), "/data/demo.jsonl").to_owned()], &Default::default()).unwrap();
        let over = |files: [&[DataFile]; 2]| {
            let made_of = MadeOf { files, model_sha256: "abc", template_sha256: None, build: "0.1.0" };
            identity(&Options::default(), &made_of).unwrap()
        };
        let [nothing, trained, held_out] = [over([&[], &[]]), over([data.files(), &[]]), over([&[], data.files()])];
        assert!(nothing != trained && trained != held_out && held_out != nothing);
        // A template also counts by its bytes, whatever its path.
        let under = |path: &str, template_sha256: Option<&str>| {
            let options = Options { chat_template: Some(path.into()), ..Options::default() };
            identity(&options, &MadeOf { files: [&[], &[]], model_sha256: "abc", template_sha256, build: "0.1.0" }).unwrap()
        };
        assert_eq!(under("t.jinja", Some("a")), under("copy.jinja", Some("a")));
        assert_ne!(under("t.jinja", Some("a")), under("t.jinja", Some("b")));
        assert_ne!(under("t.jinja", Some("a")), under("t.jinja", None));
    }
}
