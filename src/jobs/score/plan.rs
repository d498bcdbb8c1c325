//! What the user asked for -> everything opened and checked before the long work, and an identity that two equal commands share.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::watch::{Beginning, Watch};
use crate::dataset::{Dataset, PlantedSpan, ReadOptions};
use crate::diagnosis::quadrants::Thresholds;
use crate::error::{Context, Error, Result};
use crate::files::sha256;
use crate::kernels::{Dtype, Kernels};
use crate::model::{LoadOptions, Model, Placement, Reference};
use crate::tokens::{Audit, RenderOptions, Renderer, rendered};

/// The main job as the user asked for it.
pub struct Job {
    /// Files, globs, or `-` for standard input.
    pub inputs: Vec<String>,
    pub read: ReadOptions,
    /// `None`: the default model.
    pub model: Option<String>,
    /// `None`: a folder under `runs/` named after the data and the identity.
    pub out: Option<PathBuf>,
    pub dtype: Dtype,
    pub kernels: Kernels,
    pub device: Placement,
    pub render: RenderOptions,
    /// Records to read at most.
    pub limit: Option<u64>,
    pub thresholds: Thresholds,
    /// The command line, for the report.
    pub command: String,
}

/// A job with everything opened and checked.
pub struct Plan {
    pub dataset: Dataset,
    pub model: Model,
    pub renderer: Renderer,
    pub audit: Audit,
    pub totals: Totals,
    pub out: PathBuf,
    /// Of all that decides the scores: equal identities give equal tables.
    pub identity: String,
    pub planted: Vec<Planted>,
    pub began: Instant,
    /// To load the model, and to read and render everything for the audit.
    pub load_seconds: f64,
    pub audit_seconds: f64,
    pub template_sha256: Option<String>,
    pub render: RenderOptions,
    pub dtype: Dtype,
    pub kernels: Kernels,
    pub device: Placement,
    pub limit: Option<u64>,
    pub thresholds: Thresholds,
    pub command: String,
}

/// What the whole data set holds, from the audit's pass.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Records read, bad ones included.
    pub records: u64,
    /// Records with something to score.
    pub scored: u64,
    /// Tokens of the records with something to score.
    pub tokens: u64,
    pub supervised: u64,
}

/// A span that a row says was planted, for the report on rankings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Planted {
    pub row: u32,
    pub turn: u16,
    pub begin: u32,
    pub end: u32,
}

impl Plan {
    pub fn make(job: &Job, watch: &dyn Watch) -> Result<Plan> {
        let run_began = Instant::now();
        let dataset = Dataset::open(&job.inputs, &job.read)?;
        let reference = Reference::resolve(job.model.as_deref(), &|what, done, total| watch.fetching(what, done, total))?;
        let began = Instant::now();
        let options = LoadOptions { dtype: job.dtype, kernels: job.kernels, device: job.device };
        let mut model = Model::load(&reference, options, job.render.max_len)?;
        let template_sha256 = model.template.as_ref().map(|template| template.sha256().to_owned());
        let renderer = Renderer::new(model.tokenizer.clone(), model.template.take(), job.render.clone())?;
        let load_seconds = began.elapsed().as_secs_f64();
        let began = Instant::now();
        let (audit, totals, planted) = survey(&dataset, &renderer, job, watch)?;
        let audit_seconds = began.elapsed().as_secs_f64();
        if totals.supervised == 0 {
            let reasons = audit.lines().join("\n  ");
            return Err(Error::new("no token of this data set would be trained on: there is nothing to score").cure(reasons));
        }
        let identity = identity(job, &dataset, &model, template_sha256.as_deref())?;
        let out = match &job.out {
            Some(out) => out.clone(),
            None => Path::new("runs").join(format!("{}-{}", stem(&dataset), &identity[..8])),
        };
        let plan = Plan {
            dataset,
            device: model.placement,
            model,
            renderer,
            audit,
            totals,
            out,
            identity,
            planted,
            began: run_began,
            load_seconds,
            audit_seconds,
            template_sha256,
            render: job.render.clone(),
            dtype: job.dtype,
            kernels: job.kernels,
            limit: job.limit,
            thresholds: job.thresholds,
            command: job.command.clone(),
        };
        watch.audited(&Beginning {
            files: plan.dataset.files(),
            audit: &plan.audit,
            supervised: plan.totals.supervised,
            tokens: plan.totals.tokens,
            rows: plan.totals.scored,
            model: &plan.model.info.name,
            device: plan.device.description(),
            passed_over: plan.model.passed_over.as_deref(),
            out: &plan.out,
        });
        Ok(plan)
    }
}

/// Reads and renders everything once, so that the audit comes before the long work and progress knows its end.
fn survey(dataset: &Dataset, renderer: &Renderer, job: &Job, watch: &dyn Watch) -> Result<(Audit, Totals, Vec<Planted>)> {
    let (mut audit, mut totals, mut planted) = (Audit::default(), Totals::default(), Vec::new());
    for chunk in rendered(dataset, renderer, 0, job.limit) {
        for item in chunk? {
            totals.records += 1;
            match item.rendered {
                Ok(rendered) => {
                    audit.add(&item.place, &rendered.audit);
                    let supervised = rendered.sequence.supervised.iter().filter(|&&supervised| supervised).count() as u64;
                    if supervised > 0 {
                        totals.scored += 1;
                        totals.tokens += rendered.sequence.ids.len() as u64;
                        totals.supervised += supervised;
                    }
                    if let Some(example) = &item.example {
                        let row = item.row;
                        planted.extend(example.planted.iter().map(|&PlantedSpan { turn, begin, end }| Planted {
                            row,
                            turn,
                            begin,
                            end,
                        }));
                    }
                }
                Err(error) if job.read.strict => return Err(error.cure("Mend the row, or leave out --strict to skip it.")),
                Err(error) => audit.add_error(&item.place, &error),
            }
        }
        watch.auditing(totals.records);
    }
    Ok((audit, totals, planted))
}

/// `demo` for `data/demo.jsonl`; the first file's and the number of the others where there are several.
fn stem(dataset: &Dataset) -> String {
    let files = dataset.files();
    let name = files.first().and_then(|file| file.path.file_name()).map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_else(|| "run".to_owned());
    let stem = name.split('.').find(|part| !part.is_empty() && *part != "-").unwrap_or("stdin");
    match files.len() {
        0 | 1 => stem.to_owned(),
        n => format!("{stem}-and-{}-more", n - 1),
    }
}

/// SHA-256 over everything that the scores depend on.
fn identity(job: &Job, dataset: &Dataset, model: &Model, template: Option<&str>) -> Result<String> {
    let files: Vec<_> = dataset.files().iter().map(|file| (&file.path, &file.sha256, file.format.to_string())).collect();
    let what = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "files": files,
        "mapping": format!("{:?}", job.read.mapping),
        "limit": job.limit,
        "model": model.info.sha256,
        "template": template,
        "system": job.render.system,
        "max_len": job.render.max_len,
        "supervise": job.render.supervise,
        "dtype": job.dtype.to_string(),
        "kernels": job.kernels.to_string(),
        "device": model.placement.to_string(),
    });
    let text = serde_json::to_string(&what).context("cannot write down what identifies the run")?;
    Ok(sha256(text))
}
