//! Trains a model: reads and checks everything, then runs the steps, evaluating and saving so that the run can resume.

use std::path::PathBuf;
use std::time::{Instant, SystemTime};

use super::before::{Before, score_before, with_topk_entropies};
use super::checkpoint::{self, Progress};
use super::job::{Opened, Outcome};
use super::log::{Log, read_metrics};
use super::plan::{Plan, Preview, memory_beside, preview, what};
use super::record::TrainRecord;
use super::result::Left;
use super::snapshot::Snapshot;
use super::{figures, result, special_tokens};
use crate::dataset::DataFile;
use crate::diagnosis::quadrants::Resolved;
use crate::engine;
use crate::error::{Error, Result};
use crate::files::{hold, write_json, write_text};
use crate::jobs::watch::Watch;
use crate::jobs::work::{BEFORE_FOLDER, METRICS_FILE, TEMPLATE_FILE};
use crate::jobs::{peak_memory_bytes, provenance_of};
use crate::kernels::level::Level;
use crate::kernels::tasks::on_the_pool;
use crate::kernels::{Dtype, Kernels};
use crate::maps;
use crate::model::{LoadOptions, Model, Parameter, Placement, Reference, memory};
use crate::provenance::{OPTIONS_FILE, RUN_FILE};
use crate::random;
use crate::tokens::Sequence;
use crate::train::adamw::{AdamW, gradient_norm};
use crate::train::data::{Epochs, HeldOut, TrainingSet};
use crate::train::drift::DriftProbe;
use crate::train::keep::{Keep, Lowest};
use crate::train::loss::Loss;
use crate::train::metrics::{Drift, Standing, StepMetrics, Validation, fixed_thresholds};
use crate::train::options::Options;
use crate::train::schedule::Schedule;
use crate::train::step::{Base, RowWeight, StepOptions, StepToken, accumulate};

/// Everything that a run needs, read and checked.
pub(super) struct Trainer {
    options: Options,
    out: PathBuf,
    plan: Plan,
    reference: Reference,
    model: Model,
    base: Option<Model>,
    parameters: Vec<Parameter>,
    set: TrainingSet,
    /// The source of `--chat-template`, as the rows were rendered with it; the result gets it.
    template: Option<String>,
    /// Tokens that end answers in the data but not the model's; the result gets them as end tokens.
    new_ends: Vec<u32>,
    weights: Vec<RowWeight>,
    epochs: Epochs,
    /// The epoch of the last step, and the order of its sequences.
    epoch: Option<(u64, Vec<u32>)>,
    loss: Loss,
    schedule: Schedule,
    thresholds: Resolved,
    identity: String,
    model_sha256: String,
    data: Vec<DataFile>,
    held_out_data: Vec<DataFile>,
    command: String,
    started: SystemTime,
}

/// The plan that `--dry-run` prints. Reads model and data; scores and writes nothing.
pub(super) fn plan(opened: Opened, watch: &dyn Watch) -> Result<Plan> {
    let mut read = Read::new(&opened, watch)?;
    let trained: Vec<Parameter> = match read.adapted.take() {
        Some(parameters) => parameters,
        None => read.model.train(opened.options.dtype)?,
    };
    Ok(read.steps(&opened.options)?.plan(&opened.options, &read, &trained, None))
}

/// Model and data, checked against each other and against the available memory.
struct Read {
    model: Model,
    set: TrainingSet,
    epochs: Epochs,
    /// For each sequence, whether its conflicts are intended to be learnt.
    intended: Vec<bool>,
    adapted: Option<Vec<Parameter>>,
    /// Tokens that end answers in the data but not the model's.
    new_ends: Vec<u32>,
    memory_bytes: u64,
}

/// The number of steps, and the learning rate of each.
struct Steps {
    per_epoch: u64,
    schedule: Schedule,
}

pub(super) const fn load_options(dtype: Dtype) -> LoadOptions {
    LoadOptions { dtype, kernels: Kernels::Fused, device: Placement::Cpu }
}

/// The precision of the stored weights: trained weights are f32 masters; a frozen base is stored in the precision of its products.
pub(super) fn stored_dtype(options: &Options) -> Dtype {
    if options.lora { options.dtype } else { Dtype::F32 }
}

/// Returns an error for an option that exceeds a size of this model.
fn check_sizes(options: &Options, model: &Model) -> Result<()> {
    let (vocabulary, widest) = (model.config.vocab_size, model.config.hidden_size.max(model.config.intermediate_size));
    if let Some(k) = options.top_k.filter(|k| *k > vocabulary) {
        return Err(Error::usage(format!("--top-k {k}: {} has {vocabulary} tokens to choose from", model.info.name))
            .cure("Give a smaller --top-k, or leave it out for 20."));
    }
    if options.lora && options.lora_r > widest {
        return Err(Error::usage(format!(
            "--lora-r {}: the matrices of {} have at most {widest} rows or columns, and a higher rank adds nothing",
            options.lora_r, model.info.name
        ))
        .cure("Give a smaller --lora-r, such as 16."));
    }
    Ok(())
}

impl Read {
    fn new(opened: &Opened, watch: &dyn Watch) -> Result<Read> {
        let Opened { options, dataset, validation, reference, renderer, .. } = opened;
        let stored = stored_dtype(options);
        let mut model = Model::load(reference, load_options(stored), options.max_len())?;
        check_sizes(options, &model)?;
        let mut reading = |records| watch.reading(records);
        let chosen = dataset.choose(options.choice())?;
        let held_out = validation.as_ref().map_or(HeldOut::Share(options.validation_share), HeldOut::Apart);
        let mut set = TrainingSet::read(dataset, renderer, &chosen, options.strict, held_out, options.seed, &mut reading)?;
        set.audit.notes.extend(chosen.remark());
        let new_ends = special_tokens::unknown_ends(&set, &model.tokenizer, reference)?;
        let saves_model = !options.lora || options.merge;
        set.audit.notes.extend(special_tokens::note_of_ends(&new_ends, &model.tokenizer, saves_model));
        set.audit.notes.extend(special_tokens::untrained(&set, &model, options.lora)?);
        set.audit.notes.extend(result::note_of_base(&reference.path, options));
        watch.audited(&set.audit);
        watch.remarks(&model.info.name, &[&model.remarks[..], &reference.training_remarks()?].concat());
        let epochs = Epochs::new(set.order(&options.mix, options.seed)?, options.batch_size);
        let intended = set.named(&options.intended)?;
        // Adapters take little memory; the gradients of all weights are allocated after the data have been scored.
        let adapted = options.lora().map(|lora| model.adapt(&lora, options.seed)).transpose()?;
        let beside = memory_beside(options, &model, adapted.as_deref());
        memory::check_training(&model.info.name, beside)?;
        let memory_bytes = memory::PROGRAM_BYTES + model.info.parameters * stored.size_in_bytes() + beside;
        Ok(Read { model, set, epochs, intended, adapted, new_ends, memory_bytes })
    }

    /// Returns an error if no step would change anything.
    fn steps(&mut self, options: &Options) -> Result<Steps> {
        let total = options.max_steps.unwrap_or_else(|| self.epochs.steps(options.epochs));
        let warmup = options.warmup(total);
        let schedule = Schedule { shape: options.schedule, peak: options.learning_rate(), warmup, total };
        schedule.check()?;
        Ok(Steps { per_epoch: self.epochs.first(), schedule })
    }
}

impl Steps {
    fn plan(&self, options: &Options, read: &Read, trained: &[Parameter], preview: Option<Preview>) -> Plan {
        let Read { set, memory_bytes, model, .. } = read;
        Plan {
            what: what(options, &self.schedule, &model.info.name),
            sequences: set.sequences.len() as u64,
            validation_sequences: set.validation.len() as u64,
            input_tokens: set.sequences.iter().map(|sequence| sequence.ids.len() as u64).sum(),
            supervised_tokens: set.supervised_tokens(),
            steps_per_epoch: self.per_epoch,
            total_steps: self.schedule.total,
            warmup_steps: self.schedule.warmup,
            learning_rate: self.schedule.peak,
            trained_parameters: trained.iter().map(|parameter| parameter.elements() as u64).sum(),
            memory_bytes: *memory_bytes,
            preview,
        }
    }
}

impl Trainer {
    /// Reads model and data, computes the scores that the method needs before the first step, and plans the steps.
    pub(super) fn prepare(opened: Opened, watch: &dyn Watch) -> Result<Trainer> {
        let started = SystemTime::now();
        let mut read = Read::new(&opened, watch)?;
        let steps = read.steps(&opened.options)?;
        let held_out_data = opened.held_out_files().to_vec();
        let Opened { options, out, command, dataset, reference, renderer, model_sha256, identity, .. } = opened;
        let template = options.chat_template.as_ref().and_then(|_| renderer.template_source().map(str::to_owned));
        let (dtype, set, intended) = (options.dtype, &read.set, std::mem::take(&mut read.intended));

        let gate = options.gate()?;
        let before = match options.method.needs_scores(&gate) {
            true => {
                let folder = out.join(BEFORE_FOLDER);
                score_before(&options, &folder, &command, watch)?;
                Before::read(&options.method, &gate, &folder, &set.sequences)?
            }
            false => Before::of_nothing(&set.sequences),
        };
        let Before { population, rows, earlier } = before;
        let rows = rows.into_iter().zip(earlier).zip(intended).zip(&set.target_weights);
        let weights: Vec<RowWeight> = rows
            .map(|(((weight, earlier), intended), targets)| {
                let weight = if intended { 1.0 } else { weight };
                RowWeight { weight, intended, targets: targets.clone(), earlier }
            })
            .collect();

        let base = match options.needs_base() {
            true => Some(Model::load(&reference, load_options(dtype), options.max_len())?),
            false => None,
        };
        let thresholds = fixed_thresholds()?;
        let parameters = match read.adapted.take() {
            Some(parameters) => parameters,
            None => read.model.train(dtype)?,
        };
        // The quantiles are over all rows of the data, like the tables, and so include rows held out of them, but not a separate held-out file.
        let drawn = if options.validation.is_empty() { &set.validation[..] } else { &[] };
        let population = with_topk_entropies(population, &gate, &read.model, &[&set.sequences, drawn])?;
        let loss = Loss::new(options.method, gate, options.kl_weight, population);
        let preview = preview(&read.model, &set.sequences, &weights, &loss, &thresholds)?;
        let plan = steps.plan(&options, &read, &parameters, Some(preview));
        let (Read { model, set, epochs, new_ends, .. }, Steps { schedule, .. }) = (read, steps);
        Ok(Trainer {
            out,
            plan,
            reference,
            model,
            base,
            parameters,
            set,
            template,
            new_ends,
            weights,
            epochs,
            epoch: None,
            loss,
            schedule,
            thresholds,
            identity,
            model_sha256,
            data: dataset.files().to_vec(),
            held_out_data,
            command,
            started,
            options,
        })
    }

    /// Trains, resuming from the newest checkpoint if there is one, and saves the result.
    pub(super) fn run(mut self, watch: &dyn Watch) -> Result<Outcome> {
        let _held = hold(&self.out)?;
        write_text(&self.out.join(OPTIONS_FILE), &self.options.to_toml()?)?;
        if let Some(template) = &self.template {
            write_text(&self.out.join(TEMPLATE_FILE), template)?;
        }
        watch.stage("Evaluating the base model");
        // Measure the base before a checkpoint replaces its weights.
        let drift = DriftProbe::new(&self.model, self.options.max_len(), &self.out)?;
        let mut optimizer = AdamW::new(self.options.adamw(), &self.parameters);
        let resumed = checkpoint::load(&self.out, &self.identity, &self.parameters, &mut optimizer)?;
        let mut progress = resumed.map_or_else(|| self.beginning(drift.base), Ok)?;
        let mut log = Log::open(&self.out, progress.step)?;
        let total = self.schedule.total;
        watch.trains(&self.out, &self.plan.what, progress.step, total);
        watch.heeds_interrupts(true);
        crate::kernels::allocator::keep_freed_memory();
        let eval_every = self.options.eval_every.unwrap_or((total / 10).max(1));
        let (keep, looks) = (self.options.kept(), self.options.stop_after_worse);
        let ended = |progress: &Progress| {
            let enough = looks.is_some_and(|looks| progress.lowest.worse_since >= looks);
            enough || progress.step >= total
        };
        while !ended(&progress) {
            let step = progress.step;
            let began = Instant::now();
            let mut metrics = self.step(step, &mut optimizer, &mut progress.snapshot)?;
            let seconds = began.elapsed().as_secs_f64();
            progress.step += 1;
            progress.snapshot = progress.snapshot.filter(|snapshot| snapshot.of(progress.step).is_some());
            progress.input_tokens += metrics.tokens;
            progress.supervised_tokens += metrics.supervised;
            progress.seconds += seconds;
            metrics.tokens_per_second = metrics.tokens as f64 / seconds;
            // The standing is measured after the update, at the end of this step.
            if progress.step.is_multiple_of(eval_every) || progress.step == total {
                metrics.standing = Standing { validation: self.validate()?, drift: Some(drift.measure(&self.model)?) };
            }
            let mut is_to_be_kept = false;
            if let Some(validation) = metrics.standing.validation {
                let is_lowest = progress.lowest.look(progress.step, validation.cross_entropy);
                is_to_be_kept = is_lowest && keep == Keep::Best;
                metrics.lowest = Some(progress.lowest);
            }
            log.push(&metrics)?;
            watch.step(&metrics, total);
            let interrupted = watch.interrupted();
            let due = match self.options.save_every {
                Some(every) => progress.step.is_multiple_of(every),
                None => self.epochs.ends_after(progress.step),
            };
            if due || interrupted || is_to_be_kept || ended(&progress) {
                log.flush()?;
                let best = progress.lowest.step.filter(|_| keep == Keep::Best);
                checkpoint::save(&self.out, &progress, &self.parameters, &optimizer, self.options.keep_checkpoints, best)?;
            }
            if interrupted && !ended(&progress) {
                return Ok(Outcome::Interrupted { out: self.out, step: progress.step, total });
            }
        }
        log.flush()?;
        drop(optimizer);
        let kept_step = self.restore(keep, &progress)?;
        self.finish(progress, kept_step, watch)
    }

    /// The progress before the first step; `drift` is that of the base model.
    fn beginning(&self, drift: Drift) -> Result<Progress> {
        Ok(Progress {
            identity: self.identity.clone(),
            model_sha256: self.model_sha256.clone(),
            kernel_level: Level::current().name().to_owned(),
            new_ends: self.new_ends.clone(),
            lowest: Lowest::default(),
            before: Standing { validation: self.validate()?, drift: Some(drift) },
            step: 0,
            input_tokens: 0,
            supervised_tokens: 0,
            seconds: 0.0,
            snapshot: None,
        })
    }

    /// Makes the model that is kept the current one, and returns the number of its step.
    fn restore(&self, keep: Keep, progress: &Progress) -> Result<u64> {
        let kept_step = match keep {
            Keep::Last => progress.step,
            Keep::Best => progress.lowest.step.ok_or_else(|| {
                Error::new("no evaluation on the held-out rows gave a finite loss, so there is no best model")
                    .at(&self.out)
                    .cure("Check metrics.jsonl and those rows, and use a smaller --lr and another --out.")
            })?,
        };
        if kept_step != progress.step {
            checkpoint::read_values(&checkpoint::path(&self.out, kept_step), &self.parameters)?;
        }
        Ok(kept_step)
    }

    /// The text below the figures' titles.
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

    /// Runs one update; the metrics describe the model before it.
    fn step(&mut self, step: u64, optimizer: &mut AdamW, snapshot: &mut Option<Snapshot>) -> Result<StepMetrics> {
        if let Some(every) = self.options.snapshot_every()
            && snapshot.is_none()
        {
            let steps = step..(step + every).min(self.schedule.total);
            let batches: Vec<Vec<usize>> = steps.map(|step| self.batch(step).0).collect();
            let steps: Vec<Vec<Sequence>> = batches.iter().map(|batch| self.sequences(batch)).collect();
            *snapshot = Some(Snapshot::take(&self.model, step, &steps)?);
        }
        let (batch, epoch) = self.batch(step);
        let sequences = self.sequences(&batch);
        let mut weights: Vec<RowWeight> = batch.iter().map(|&index| self.weights[index].clone()).collect();
        let earlier = snapshot.as_ref().and_then(|snapshot| snapshot.of(step)).unwrap_or_default();
        weights.iter_mut().zip(earlier).for_each(|(weight, earlier)| weight.earlier.clone_from(earlier));
        let lora = self.options.lora();
        let base = match &self.base {
            Some(base) => Base::Model(base),
            None if lora.is_some() && self.options.method.needs_reference() => Base::WithoutAdapters,
            None => Base::None,
        };
        let options = StepOptions {
            loss: &self.loss,
            pack_tokens: self.options.pack_tokens,
            activation_bytes: self.options.activation_bytes(),
            base,
            dropout: lora.map_or(0.0, |lora| lora.dropout),
            dropout_key: random::stream(self.options.seed ^ DROPOUT, step).next(),
        };
        let result = on_the_pool(|| accumulate(&self.model, &sequences, &weights, &options))?;
        if !result.diverged.is_empty() {
            let rows: Vec<usize> = result.diverged.iter().map(|&index| batch[index]).collect();
            return Err(self.diverged(step, "loss", &rows));
        }
        let norm = on_the_pool(|| gradient_norm(&self.parameters));
        if !norm.is_finite() {
            return Err(self.diverged(step, "gradient", &batch));
        }
        // As torch.nn.utils.clip_grad_norm_ does.
        let factor = if self.options.clip > 0.0 { (self.options.clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let learning_rate = self.schedule.rate(step);
        on_the_pool(|| optimizer.update(&self.parameters, learning_rate, factor as f32))?;

        let mut metrics = StepMetrics::of(&result.tokens, &self.thresholds);
        metrics.step = step + 1;
        metrics.epoch = epoch;
        metrics.loss = result.loss;
        metrics.gradient_norm = norm;
        metrics.learning_rate = learning_rate;
        metrics.tokens = result.input_tokens;
        if self.options.method.needs_reference() {
            let kl = |token: &StepToken| f64::from(self.loss.divergence(&token.divergence));
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
            _ => "There is no checkpoint yet: use --save-every to save more often.".to_owned(),
        };
        Error::new(format!("training has diverged: the {what} is not a number at step {}, in {}", step + 1, names.join(", ")))
            .cure(format!("Use a smaller --lr and another --out, and check metrics.jsonl and those rows. {kept}"))
    }

    fn sequences(&self, indices: &[usize]) -> Vec<Sequence> {
        indices.iter().map(|&index| self.set.sequences[index].clone()).collect()
    }

    /// The indices of the sequences of a step, and the number of epochs completed after it.
    fn batch(&mut self, step: u64) -> (Vec<usize>, f64) {
        let (epoch, begin) = self.epochs.of_step(step);
        let (_, order) = match self.epoch.take() {
            Some(known) if known.0 == epoch => self.epoch.insert(known),
            _ => self.epoch.insert((epoch, self.epochs.order(epoch))),
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
        let scores = engine::score(&self.model, &self.set.validation)?;
        Ok(Some(Validation::of(&self.set.validation, &scores)))
    }

    /// Saves the current model, which is that of `kept_step`.
    fn finish(self, progress: Progress, kept_step: u64, watch: &dyn Watch) -> Result<Outcome> {
        watch.stage("Saving");
        let metrics = read_metrics(&self.out.join(METRICS_FILE))?;
        // Both the last step and the step with the lowest loss were measured after their updates.
        let kept = metrics.iter().rfind(|metrics| metrics.step == kept_step);
        let after = kept.map(|metrics| metrics.standing).unwrap_or_default();
        let left = Left {
            reference: &self.reference,
            options: &self.options,
            template: self.template.as_deref(),
            new_ends: &self.new_ends,
        };
        let result = left.save(&self.out, &self.parameters)?;
        let record = TrainRecord {
            provenance: provenance_of(self.started, self.model.placement.description(), false),
            command: self.command.clone(),
            identity: self.identity.clone(),
            options: self.options.clone(),
            model: self.model.info.clone(),
            data: self.data.clone(),
            held_out_data: self.held_out_data.clone(),
            plan: self.plan.clone(),
            steps: progress.step,
            kept_step: Some(kept_step),
            lowest: progress.lowest.step.map(|_| progress.lowest),
            input_tokens: progress.input_tokens,
            supervised_tokens: progress.supervised_tokens,
            seconds: progress.seconds,
            tokens_per_second: progress.input_tokens as f64 / progress.seconds.max(f64::MIN_POSITIVE),
            peak_memory_bytes: peak_memory_bytes(),
            before: progress.before,
            validation: after.validation,
            drift: after.drift,
            audit_lines: self.set.audit.lines(),
            result,
        };
        watch.stage("Drawing");
        figures::draw(&self.out, &metrics, &progress.before, &self.thresholds.preset, &self.caption())?;
        write_json(&self.out.join(RUN_FILE), &record)?;
        Ok(Outcome::Finished(Box::new(record)))
    }
}

/// Separates the random numbers of dropout from those of the data order.
const DROPOUT: u64 = 0x6472_6f70_6f75_7400;
