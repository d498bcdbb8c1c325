//! The training run: everything opened and checked, then steps, each looked at, saved and able to be taken up again.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::adamw::{AdamW, gradient_norm};
use super::checkpoint::{self, Progress};
use super::data::{Order, Random, TrainingSet};
use super::drift::DriftProbe;
use super::method::{Loss, flow_weights};
use super::metrics::{Drift, Standing, StepMetrics, Validation, fixed_thresholds};
use super::options::Options;
use super::schedule::Schedule;
use super::step::{Base, RowWeight, StepOptions, accumulate, supervised};
use super::{Method, Watch};
use crate::dataset::{DataFile, Dataset};
use crate::diagnosis::gate::{Gate, Population};
use crate::diagnosis::quadrants::{Resolved, Thresholds};
use crate::engine::{self, Work};
use crate::error::{Context, Error, Result};
use crate::files::sha256;
use crate::files::{write_atomically, write_json};
use crate::kernels::{Dtype, Kernels, TokenStatistics};
use crate::maps;
use crate::model::{AdapterSwitch, Info, LoadOptions, Model, Parameter, Placement, Reference, memory};
use crate::table::{ROWS_FILE, TOKENS_FILE, read_rows};
use crate::tokens::{Renderer, Sequence};

pub const RUN_FILE: &str = "run.json";
pub const METRICS_FILE: &str = "metrics.jsonl";
pub const OPTIONS_FILE: &str = "train.toml";
/// The diagnosis of the data by the base model, for the methods that need it.
const BEFORE_FOLDER: &str = "before";

/// What a finished run leaves in run.json.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TrainRecord {
    pub program: String,
    pub version: String,
    pub command: String,
    pub identity: String,
    pub options: Options,
    pub model: Info,
    pub data: serde_json::Value,
    pub plan: Plan,
    pub steps: u64,
    pub input_tokens: u64,
    pub supervised_tokens: u64,
    pub seconds: f64,
    /// All input tokens of the steps over the time spent in steps.
    pub tokens_per_second: f64,
    pub peak_memory_bytes: Option<u64>,
    /// Of the base model; empty in records of programs that did not look.
    #[serde(default)]
    pub before: Standing,
    /// After the last update.
    pub validation: Option<Validation>,
    pub drift: Option<Drift>,
    /// One line per finding of the mask audit.
    pub audit_lines: Vec<String>,
    /// Where the result lies.
    pub result: PathBuf,
}

/// What a run will do: `--dry-run` prints it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    pub sequences: u64,
    pub validation_sequences: u64,
    /// In an epoch without a mix.
    pub input_tokens: u64,
    pub supervised_tokens: u64,
    pub steps_per_epoch: u64,
    pub total_steps: u64,
    pub warmup_steps: u64,
    pub learning_rate: f64,
    pub trained_parameters: u64,
    /// The program, weights, gradients, moments and activations.
    pub memory_bytes: u64,
    /// What the loss does with a sample of the data.
    pub preview: Preview,
}

/// The loss on the first sequences, with the model as it is.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Preview {
    pub tokens: u64,
    pub cross_entropy: f64,
    pub mean_weight: f64,
    pub effective_tokens: f64,
    pub confident_conflicts: u64,
}

/// What is asked for: options, data and model, found but not read.
pub struct Job {
    pub options: Options,
    pub out: PathBuf,
    dataset: Dataset,
    reference: Reference,
    identity: String,
}

/// Everything a run needs, read and checked.
pub struct Trainer {
    pub options: Options,
    pub out: PathBuf,
    pub plan: Plan,
    reference: Reference,
    model: Model,
    base: Option<Model>,
    switch: Option<std::sync::Arc<AdapterSwitch>>,
    parameters: Vec<Parameter>,
    set: TrainingSet,
    weights: Vec<RowWeight>,
    order: Order,
    /// The epoch of the last step, and the order of its sequences.
    epoch: Option<(u64, Vec<u32>)>,
    epoch_ends: Vec<u64>,
    loss: Loss,
    schedule: Schedule,
    thresholds: Resolved,
    identity: String,
    data: Vec<DataFile>,
    command: String,
}

/// How a run ended.
pub enum Outcome {
    Finished(Box<TrainRecord>),
    /// The user interrupted it; the checkpoint holds this many steps, of that many.
    Interrupted {
        out: PathBuf,
        step: u64,
        total: u64,
    },
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

impl Trainer {
    /// Reads model and data and plans the steps.
    pub fn prepare(job: Job, command: &str, watch: &dyn Watch) -> Result<Trainer> {
        let Job { options, out, dataset, reference, identity } = job;
        let dtype = options.dtype()?;
        // What learns keeps f32 masters; a frozen base is stored as it is multiplied.
        let stored = if options.lora { dtype } else { Dtype::F32 };
        let load = |dtype| LoadOptions { dtype, kernels: Kernels::Fused, device: Placement::Cpu };
        let mut model = Model::load(&reference, load(stored), options.max_len)?;
        let renderer = Renderer::new(model.tokenizer.clone(), model.template.take(), options.render()?)?;
        let mut reading = |records| watch.reading(records);
        let set = TrainingSet::read(
            &dataset,
            &renderer,
            options.limit,
            options.strict,
            options.validation_share,
            options.seed,
            &mut reading,
        )?;
        watch.audited(&set.audit);
        let order = set.order(&options.mix, options.seed)?;
        let intended = set.named(&options.intended)?;
        // Adapters take little memory; the gradients of all weights can wait until the data have been scored.
        let adapted = options.lora().map(|lora| model.adapt(&lora, options.seed)).transpose()?;
        let adapters = adapted.as_ref().map(|(parameters, _)| parameters.as_slice());
        let beside = memory_beside(&options, &model, adapters)?;
        memory::check_training(&model.info.name, beside)?;

        let (population, weights) = match options.method.needs_scores(options.gate()?) {
            true => {
                let before = out.join(BEFORE_FOLDER);
                score_before(&options, &before, command, watch)?;
                from_scores(&options, &before, &set.sequences)?
            }
            false => (Population::default(), vec![1.0; set.sequences.len()]),
        };
        let rows = weights.into_iter().zip(intended).zip(&set.target_weights);
        let weights: Vec<RowWeight> = rows
            .map(|((weight, intended), targets)| {
                let weight = if intended { 1.0 } else { weight };
                RowWeight { weight, intended, targets: targets.clone() }
            })
            .collect();
        let loss = Loss::new(options.method, options.gate()?, options.normaliser, options.top_k, options.kl_weight, population);

        let base = match options.needs_base() {
            true => Some(Model::load(&reference, load(dtype), options.max_len)?),
            false => None,
        };
        let thresholds = fixed_thresholds()?;
        let (parameters, switch) = match adapted {
            Some((parameters, switch)) => (parameters, Some(switch)),
            None => (model.train(dtype)?, None),
        };
        let preview = preview(&model, &set.sequences, &weights, &loss, &thresholds)?;

        let epoch_ends = order.epoch_ends(options.epochs, options.max_steps, options.batch_size);
        let total_steps = options.max_steps.unwrap_or(epoch_ends.last().copied().unwrap_or(0));
        let warmup = options.warmup_steps.unwrap_or((options.warmup_ratio * total_steps as f64).ceil() as u64);
        let schedule = Schedule { shape: options.schedule, peak: options.learning_rate(), warmup, total: total_steps };
        let plan = Plan {
            sequences: set.sequences.len() as u64,
            validation_sequences: set.validation.len() as u64,
            input_tokens: set.sequences.iter().map(|sequence| sequence.ids.len() as u64).sum(),
            supervised_tokens: set.supervised_tokens(),
            steps_per_epoch: epoch_ends.first().copied().unwrap_or(0),
            total_steps,
            warmup_steps: warmup,
            learning_rate: options.learning_rate(),
            trained_parameters: parameters.iter().map(|parameter| parameter.elements() as u64).sum(),
            memory_bytes: memory::PROGRAM_BYTES + model.info.parameters * stored.size_in_bytes() + beside,
            preview,
        };
        Ok(Trainer {
            out,
            plan,
            reference,
            model,
            base,
            switch,
            parameters,
            set,
            weights,
            order,
            epoch: None,
            epoch_ends,
            loss,
            schedule,
            thresholds,
            identity,
            data: dataset.files().to_vec(),
            command: command.to_owned(),
            options,
        })
    }

    /// Trains, from the newest checkpoint on if there is one, and saves the result.
    pub fn run(mut self, watch: &dyn Watch) -> Result<Outcome> {
        fs::create_dir_all(&self.out).context_at(&self.out, "cannot create the run folder")?;
        let options = self.options.to_toml()?;
        write_atomically(&self.out.join(OPTIONS_FILE), |file| {
            file.write_all(options.as_bytes()).context("cannot write the options")
        })?;
        watch.stage("Looking at the base model");
        // Before a checkpoint replaces the base's weights.
        let drift = DriftProbe::new(&self.model, self.options.max_len, &self.out)?;
        let mut optimizer = AdamW::new(self.options.adamw()?, &self.parameters);
        let resumed = checkpoint::load(&self.out, &self.identity, &self.parameters, &mut optimizer)?;
        let mut progress = match resumed {
            Some(progress) => progress,
            None => Progress {
                identity: self.identity.clone(),
                before: Standing { validation: self.validate()?, drift: Some(drift.base) },
                step: 0,
                input_tokens: 0,
                supervised_tokens: 0,
                seconds: 0.0,
            },
        };
        let mut log = Log::open(&self.out, progress.step)?;
        let total = self.schedule.total;
        watch.training(progress.step, total);
        crate::kernels::allocator::keep_freed_memory();
        let eval_every = self.options.eval_every.unwrap_or((total / 10).max(1));
        while progress.step < total {
            let step = progress.step;
            let began = Instant::now();
            let mut metrics = self.step(step, &mut optimizer)?;
            let seconds = began.elapsed().as_secs_f64();
            progress.step += 1;
            progress.input_tokens += metrics.tokens;
            progress.supervised_tokens += metrics.supervised;
            progress.seconds += seconds;
            metrics.tokens_per_second = metrics.tokens as f64 / seconds;
            // After the update: how things stand at the end of this step.
            if progress.step.is_multiple_of(eval_every) || progress.step == total {
                metrics.standing = Standing { validation: self.validate()?, drift: Some(drift.measure(&self.model)?) };
            }
            log.push(&metrics)?;
            watch.step(&metrics, total);
            let interrupted = watch.interrupted();
            let due = match self.options.save_every {
                Some(every) => progress.step.is_multiple_of(every),
                None => self.epoch_ends.contains(&progress.step),
            };
            if due || interrupted || progress.step == total {
                log.flush()?;
                let keep = self.options.keep_checkpoints;
                checkpoint::save(&self.out, &progress, &self.parameters, &optimizer, keep)?;
            }
            if interrupted && progress.step < total {
                return Ok(Outcome::Interrupted { out: self.out, step: progress.step, total });
            }
        }
        log.flush()?;
        drop(optimizer);
        self.finish(progress, watch)
    }

    /// What stands below the figures' titles.
    fn caption(&self) -> maps::training::Run {
        let name = |file: &DataFile| file.path.file_name().map(|name| name.to_string_lossy().into_owned());
        let data: Vec<String> = self.data.iter().filter_map(name).collect();
        let gate = self.options.gate.as_ref().map(|gate| format!(" {gate}")).unwrap_or_default();
        let trained = match self.options.lora() {
            Some(lora) => format!("LoRA r {}", lora.rank),
            None => "all weights".to_owned(),
        };
        maps::training::Run {
            model: self.model.info.name.clone(),
            data: data.join(", "),
            method: format!("{}{gate}, {trained}", self.options.method),
        }
    }

    /// One update; the metrics are of before it.
    fn step(&mut self, step: u64, optimizer: &mut AdamW) -> Result<StepMetrics> {
        let (batch, epoch) = self.batch(step);
        let sequences: Vec<Sequence> = batch.iter().map(|&index| self.set.sequences[index].clone()).collect();
        let weights: Vec<RowWeight> = batch.iter().map(|&index| self.weights[index].clone()).collect();
        let base = match (&self.base, &self.switch) {
            (Some(base), _) => Base::Model(base),
            (None, Some(switch)) if self.options.method.needs_reference() => Base::Adapters(switch),
            _ => Base::None,
        };
        let options = StepOptions {
            loss: &self.loss,
            top_k: self.options.top_k,
            pack_tokens: self.options.pack_tokens,
            activation_bytes: self.options.activation_bytes(),
            base,
            dropout: self.switch.as_deref().map(|switch| (switch, Random::new(self.options.seed ^ DROPOUT, step).next())),
        };
        let result = accumulate(&self.model, &sequences, &weights, &options)?;
        if !result.diverged.is_empty() {
            let rows: Vec<usize> = result.diverged.iter().map(|&index| batch[index]).collect();
            return Err(self.diverged(step, "loss", &rows));
        }
        let norm = gradient_norm(&self.parameters);
        if !norm.is_finite() {
            return Err(self.diverged(step, "gradient", &batch));
        }
        // torch.nn.utils.clip_grad_norm_
        let factor = if self.options.clip > 0.0 { (self.options.clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let learning_rate = self.schedule.rate(step);
        optimizer.update(&self.parameters, learning_rate, factor as f32)?;

        let mut metrics = StepMetrics::of(&result.tokens, &self.thresholds);
        metrics.step = step + 1;
        metrics.epoch = epoch;
        metrics.loss = result.loss;
        metrics.gradient_norm = norm;
        metrics.learning_rate = learning_rate;
        metrics.tokens = result.input_tokens;
        if self.options.method.needs_reference() {
            let kl = |token: &super::step::StepToken| match self.options.method {
                Method::Asft => f64::from(token.divergence.from_reference),
                _ => f64::from(token.divergence.to_reference),
            };
            let sum: f64 = result.tokens.iter().flatten().map(kl).sum();
            metrics.kl_to_base = Some(sum / metrics.supervised.max(1) as f64);
        }
        Ok(metrics)
    }

    fn diverged(&self, step: u64, what: &str, rows: &[usize]) -> Error {
        const NAMED: usize = 8;
        let mut names: Vec<String> = rows.iter().take(NAMED).map(|&row| self.set.names[row].to_string()).collect();
        if rows.len() > NAMED {
            names.push(format!("{} more", rows.len() - NAMED));
        }
        let kept = match checkpoint::latest(&self.out) {
            Ok(Some(progress)) => format!("The checkpoint of step {} is kept.", progress.step),
            _ => "There is no checkpoint yet: --save-every makes them more often.".to_owned(),
        };
        Error::new(format!("training has diverged: the {what} is not a number at step {}, in {}", step + 1, names.join(", ")))
            .cure(format!("Give a smaller --lr and another --out, and look at metrics.jsonl and those rows. {kept}"))
    }

    /// Indices of the sequences of step `step`, and the epochs that are over after it.
    fn batch(&mut self, step: u64) -> (Vec<usize>, f64) {
        let epoch = self.epoch_ends.partition_point(|&end| end <= step);
        let begin = epoch.checked_sub(1).map_or(0, |before| self.epoch_ends[before]);
        let (_, order) = match self.epoch.take() {
            Some(known) if known.0 == epoch as u64 => self.epoch.insert(known),
            _ => self.epoch.insert((epoch as u64, self.order.epoch(epoch as u64))),
        };
        let first = (step - begin) as usize * self.options.batch_size;
        let last = (first + self.options.batch_size).min(order.len());
        let batch = order[first..last].iter().map(|&index| index as usize).collect();
        (batch, epoch as f64 + last as f64 / order.len() as f64)
    }

    fn validate(&self) -> Result<Option<Validation>> {
        if self.set.validation.is_empty() {
            return Ok(None);
        }
        let scores = engine::score(&self.model, &self.set.validation, &mut Work::default(), &mut |_| {})?;
        let tokens: Vec<TokenStatistics> = scores.into_iter().flatten().collect();
        let n = tokens.len().max(1) as f64;
        Ok(Some(Validation {
            cross_entropy: -tokens.iter().map(|token| f64::from(token.logprob)).sum::<f64>() / n,
            accuracy: tokens.iter().filter(|token| token.rank == 1).count() as f64 / n,
            tokens: tokens.len() as u64,
        }))
    }

    fn finish(self, progress: Progress, watch: &dyn Watch) -> Result<Outcome> {
        watch.stage("Saving");
        let metrics = read_metrics(&self.out.join(METRICS_FILE))?;
        // The last step has looked after its update.
        let after = metrics.last().map(|last| last.standing).unwrap_or_default();
        let (lora, dtype) = (self.options.lora(), self.options.save_dtype()?);
        let result = super::result::save(&self.reference, &self.out, &self.parameters, lora.as_ref(), self.options.merge, dtype)?;
        let record = TrainRecord {
            program: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            command: self.command.clone(),
            identity: self.identity.clone(),
            options: self.options.clone(),
            model: self.model.info.clone(),
            data: serde_json::to_value(&self.data).context("cannot write down the run")?,
            plan: self.plan.clone(),
            steps: progress.step,
            input_tokens: progress.input_tokens,
            supervised_tokens: progress.supervised_tokens,
            seconds: progress.seconds,
            tokens_per_second: progress.input_tokens as f64 / progress.seconds.max(f64::MIN_POSITIVE),
            peak_memory_bytes: crate::run::peak_memory_bytes(),
            before: progress.before,
            validation: after.validation,
            drift: after.drift,
            audit_lines: self.set.audit.lines(),
            result,
        };
        watch.stage("Drawing");
        super::figures::draw(&self.out, &metrics, &progress.before, &self.thresholds.preset, &self.caption())?;
        write_json(&self.out.join(RUN_FILE), &record)?;
        Ok(Outcome::Finished(Box::new(record)))
    }
}

/// Keeps the draws of dropout apart from those for the order.
const DROPOUT: u64 = 0x6472_6f70_6f75_7400;

/// metrics.jsonl and the TensorBoard events, cut to the steps that a checkpoint knows.
struct Log {
    file: fs::File,
    events: super::events::EventWriter,
}

impl Log {
    fn open(out: &Path, step: u64) -> Result<Log> {
        let path = out.join(METRICS_FILE);
        let kept: Vec<StepMetrics> = read_metrics(&path)?.into_iter().filter(|metrics| metrics.step <= step).collect();
        write_atomically(&path, |file| {
            for metrics in &kept {
                serde_json::to_writer(&mut *file, metrics).context("cannot write the metrics")?;
                file.write_all(b"\n").context("cannot write the metrics")?;
            }
            Ok(())
        })?;
        let file = OpenOptions::new().append(true).open(&path).context_at(&path, "cannot open the metrics")?;
        Ok(Log { file, events: super::events::EventWriter::create(&out.join("tensorboard"))? })
    }

    fn push(&mut self, metrics: &StepMetrics) -> Result<()> {
        let mut line = serde_json::to_vec(metrics).context("cannot write the metrics")?;
        line.push(b'\n');
        self.file.write_all(&line).context("cannot write the metrics")?;
        let scalars: Vec<(&str, f32)> = metrics.scalars().into_iter().map(|(tag, value)| (tag, value as f32)).collect();
        self.events.scalars(metrics.step, &scalars)
    }

    fn flush(&mut self) -> Result<()> {
        self.events.flush()?;
        self.file.sync_all().context("cannot write the metrics to the disk")
    }
}

/// The steps in metrics.jsonl; a last line that a killed run left broken is not one.
pub fn read_metrics(path: &Path) -> Result<Vec<StepMetrics>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().map_while(|line| serde_json::from_str(line).ok()).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).context_at(path, "cannot read the metrics"),
    }
}

pub fn read_record(path: &Path) -> Result<TrainRecord> {
    let text = fs::read_to_string(path).context_at(path, "cannot read the run")?;
    serde_json::from_str(&text).context_at(path, "this run.json is not of a training run")
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

/// What training takes beside the model as it was loaded, about, in bytes: gradients, moments, activations, the base to compare with.
fn memory_beside(options: &Options, model: &Model, adapters: Option<&[Parameter]>) -> Result<u64> {
    let moments = if options.adamw()?.bf16_moments { 4 } else { 8 };
    let learning = match adapters {
        None => model.info.parameters * (4 + moments),
        Some(adapters) => adapters.iter().map(|adapter| adapter.len() as u64 * (8 + moments)).sum(),
    };
    let base = if options.needs_base() { model.info.parameters * options.dtype()?.size_in_bytes() } else { 0 };
    let block_inputs = 4 * options.pack_tokens * model.config.hidden_size * model.config.layers;
    Ok(learning + base + (options.activation_bytes() + block_inputs) as u64)
}

/// Diagnoses the data with the base model, unless that was done before.
fn score_before(options: &Options, out: &Path, command: &str, watch: &dyn Watch) -> Result<()> {
    let job = crate::run::Job {
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
    crate::run::run(&job, watch.of_scoring()).map(|_| ())
}

/// Quantiles for the gates that need them, and the method's weights of the sequences.
fn from_scores(options: &Options, before: &Path, sequences: &[Sequence]) -> Result<(Population, Vec<f32>)> {
    let gate = options.gate()?.unwrap_or(options.method.gate());
    let population = match gate {
        Gate::Pilot | Gate::EaftMask { .. } => Population::of_tables(&[before.join(TOKENS_FILE)], &[gate])?,
        _ => Population::default(),
    };
    if options.method != Method::Flow {
        return Ok((population, vec![1.0; sequences.len()]));
    }
    let rows = read_rows(&before.join(ROWS_FILE))?;
    let losses: std::collections::HashMap<u32, f64> =
        rows.iter().filter_map(|row| Some((row.row, -f64::from(row.mean_logprob?)))).collect();
    let of_sequence = |sequence: &Sequence| {
        let loss = losses.get(&sequence.row).copied();
        loss.ok_or_else(|| Error::new(format!("row {} has no score", sequence.row)).at(before).cure("Remove the folder."))
    };
    let losses: Vec<f64> = sequences.iter().map(of_sequence).collect::<Result<_>>()?;
    Ok((population, flow_weights(&losses)))
}

/// What the loss does with the first sequences, which have these weights.
fn preview(model: &Model, sequences: &[Sequence], weights: &[RowWeight], loss: &Loss, thresholds: &Resolved) -> Result<Preview> {
    const TOKENS: usize = 1024;
    let mut n = 0;
    let enough = sequences.iter().take_while(|sequence| {
        let before = n;
        n += supervised(sequence);
        before < TOKENS
    });
    let sample = &sequences[..enough.count()];
    let scores = engine::score(model, sample, &mut Work::default(), &mut |_| {})?;
    let mean = |tokens: &Vec<TokenStatistics>| {
        -tokens.iter().map(|token| f64::from(token.logprob)).sum::<f64>() / tokens.len().max(1) as f64
    };
    let mut means: Vec<f64> = scores.iter().map(mean).collect();
    let of_batch = loss.of_batch(Some(&mut means))?;
    let of_row = |(tokens, row): (&Vec<TokenStatistics>, &RowWeight)| -> Vec<f64> {
        tokens.iter().enumerate().map(|(n, token)| f64::from(row.of_token(n, token, &of_batch))).collect()
    };
    let weights: Vec<f64> = scores.iter().zip(weights).flat_map(of_row).collect();
    let tokens: Vec<TokenStatistics> = scores.into_iter().flatten().collect();
    let (sum, squares) = (weights.iter().sum::<f64>(), weights.iter().map(|w| w * w).sum::<f64>());
    let label = |token: &&TokenStatistics| {
        thresholds.label(token.logprob, token.entropy, token.tail) == crate::table::Quadrant::ConfidentConflict
    };
    let n = tokens.len().max(1) as f64;
    Ok(Preview {
        tokens: tokens.len() as u64,
        cross_entropy: -tokens.iter().map(|token| f64::from(token.logprob)).sum::<f64>() / n,
        mean_weight: sum / n,
        effective_tokens: if squares > 0.0 { sum * sum / squares } else { 0.0 },
        confident_conflicts: tokens.iter().filter(label).count() as u64,
    })
}
