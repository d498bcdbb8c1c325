//! Runs reader -> engine -> writer, each on its own thread, so that the engine does not wait for the others.
//!
//! The unit of work is a part: consecutive records that end where [`PartEnds`] says, whose tables appear together under their final names. A killed
//! run resumes after its last part. Parts begin and end at the same records as in an uninterrupted run, so that the table is the same to the bit.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use serde_json::json;

use super::answers;
use super::engine::Engine;
use super::part::{Part, PartEnds, Stages};
use super::plan::Plan;
use super::record::read_record;
use super::servers;
use crate::diagnosis::fidelity::Fidelity;
use crate::engine::remote::Checked;
use crate::engine::{Sample, Scorer, Scores, TOP_K, Work};
use crate::error::{Context, Error, Result};
use crate::files::{read_existing_json, read_json, write_json};
use crate::format::thousands;
use crate::jobs::other_run::other_run;
use crate::jobs::watch::Watch;
use crate::jobs::work::FIDELITY_FILE;
use crate::kernels::allocator;
use crate::kernels::level::Level;
use crate::model::{Info, Model};
use crate::provenance::{self, PARTS_FOLDER, RUN_FILE};
use crate::table::{PartWriter, ScoredExample, SkippedExample, TOKENS_FILE, finished_parts, read_rows};
use crate::tokens::{Item, Sequence, rendered};

/// The number of sampled tokens on which the top-K entropies are compared with the full one, and the largest K.
const FIDELITY_TOKENS: usize = 512;
const FIDELITY_K: usize = 64;

/// Identifies the run that the parts belong to.
pub(super) const IDENTITY_FILE: &str = "identity.json";
/// The server's scores of the probe at the beginning of the run.
const PROBE_FILE: &str = "probe.json";

/// Scores what is not scored yet. Returns `None` if the run was finished before.
pub(super) fn score(plan: &Plan, watch: &dyn Watch) -> Result<Option<Stages>> {
    if is_finished(plan)? {
        return Ok(None);
    }
    claim(plan)?;
    allocator::keep_freed_memory();
    let (mut done_records, mut done_tokens, mut done_parts) = (0, 0, 0);
    for part in finished_parts(&plan.out)? {
        done_parts += 1;
        for row in read_rows(&part.rows)? {
            done_records += 1;
            done_tokens += if row.skipped.is_none() { u64::from(row.tokens) } else { 0 };
        }
    }
    let provenance = provenance(&plan.identity, &plan.info);
    let tokenizer = plan.tokenizer.clone();
    let mut writer = PartWriter::create(&plan.out, Box::new(move |id| tokenizer.text(id)), provenance)?;
    if plan.engine.is_bounded() {
        writer = writer.with_bounds();
    }

    // The curves need the whole vocabulary.
    let has_fidelity = plan.engine.is_bounded() || plan.out.join(FIDELITY_FILE).exists();
    let began = Instant::now();
    let sample = if has_fidelity { Sample::default() } else { fidelity_sample(plan)? };
    // From here on, time is measured and interrupts are noted.
    watch.tokens("Scoring", done_tokens, plan.totals.tokens);
    watch.heeds_interrupts(true);
    // One part waits on either side of the engine while it works on a third, which bounds the memory.
    let (to_engine, from_reader) = sync_channel::<Part>(1);
    let (to_writer, from_engine) = sync_channel::<Part>(1);
    let mut stages = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(plan, done_records, done_parts, to_engine));
        let writer = scope.spawn(|| write(plan, writer, from_engine));
        let engine = match &plan.engine {
            Engine::Own(model) => run_engine(plan, model, &sample, &from_reader, &to_writer, done_tokens, watch),
            Engine::Servers(pool, checked) => servers::score(plan, pool, checked, &from_reader, &to_writer, done_tokens, watch),
            Engine::Answers(folder, _) => answers::score(plan, folder, &from_reader, &to_writer, done_tokens, watch),
        };
        // Close the channels, since the threads at the other ends wait on them.
        drop((from_reader, to_writer));
        // A failing thread closes its channel, which stops the others; its own error is the one to report.
        let read_seconds = join(reader)?;
        let (write_seconds, writer) = join(writer)?;
        let stages = engine?;
        watch.heeds_interrupts(false);
        if stages.interrupted {
            return Err(interrupted(done_tokens + stages.input_tokens, plan));
        }
        // Only for a completed run: otherwise an empty part would become the first part of the resumed run.
        writer.finish()?;
        Ok::<_, Error>(Stages { read_and_tokenise: read_seconds, write: write_seconds, ..stages })
    })?;
    if !has_fidelity {
        join_fidelity(&plan.out)?;
    }
    stages.wall = began.elapsed().as_secs_f64();
    (stages.load, stages.audit) = (plan.load_seconds, plan.audit_seconds);
    Ok(Some(stages))
}

fn interrupted(done: u64, plan: &Plan) -> Error {
    let [done, total] = [done, plan.totals.tokens].map(thousands);
    Error::new(format!("interrupted after {done} of {total} tokens, whose scores are in {}", plan.out.display()))
        .cure("Run the same command again to resume.")
}

/// The metadata of the tables.
pub(super) fn provenance(identity: &str, model: &Info) -> Vec<(String, String)> {
    vec![
        ("diagnose.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("diagnose.commit".to_owned(), provenance::commit().unwrap_or_default().to_owned()),
        ("diagnose.identity".to_owned(), identity.to_owned()),
        ("diagnose.model".to_owned(), model.name.clone()),
        ("diagnose.model_sha256".to_owned(), model.sha256.clone()),
    ]
}

fn join<T>(thread: std::thread::ScopedJoinHandle<Result<T>>) -> Result<T> {
    // A panic is a bug of ours, so propagate it.
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Whether these scores were finished before. A folder with other scores is refused rather than overwritten.
fn is_finished(plan: &Plan) -> Result<bool> {
    let tokens = plan.out.join(TOKENS_FILE);
    if !tokens.exists() {
        return Ok(false);
    }
    let found = crate::table::read_provenance(&tokens)?;
    match found.iter().find(|(name, _)| name == "diagnose.identity") {
        // Parts beside a finished table were left by a killed run; the finishing pass removes them.
        Some((_, identity)) if *identity == plan.identity && plan.out.join(PARTS_FOLDER).exists() => Ok(false),
        Some((_, identity)) if *identity == plan.identity => match plan.engine.checked() {
            None => Ok(true),
            Some(checked) => {
                let before = read_record(&plan.out)?.server.ok_or_else(|| other_scores(plan))?;
                checked.compare(&before.checked).map_err(|error| error.at(&plan.out))?;
                Ok(true)
            }
        },
        _ => Err(other_scores(plan)),
    }
}

fn other_scores(plan: &Plan) -> Error {
    // The kernel level is in the identity file while a run is in progress, and in its record afterwards.
    let kept = |file: PathBuf| read_json::<serde_json::Value>(&file).ok().flatten()?["kernel_level"].as_str().map(str::to_owned);
    let found = kept(plan.out.join(PARTS_FOLDER).join(IDENTITY_FILE)).or_else(|| kept(plan.out.join(RUN_FILE)));
    other_run(&plan.out, "another run", found.as_deref(), plan.renderer.writes_date())
}

/// Creates the run folder, or checks that the parts in it belong to the same command.
fn claim(plan: &Plan) -> Result<()> {
    let parts = plan.out.join(PARTS_FOLDER);
    std::fs::create_dir_all(&parts).context_at(&parts, "cannot create the run folder")?;
    claim_parts(plan, &parts)?;
    plan.engine.checked().map_or(Ok(()), |checked| claim_served(checked, &parts))
}

/// A server does not report a hash of the model, so its scores of the probe must equal those when the run began.
fn claim_served(checked: &Checked, parts: &Path) -> Result<()> {
    let path = parts.join(PROBE_FILE);
    match read_json::<Checked>(&path)? {
        Some(before) => checked.compare(&before).map_err(|error| error.at(parts)),
        None => write_json(&path, checked),
    }
}

fn claim_parts(plan: &Plan, parts: &Path) -> Result<()> {
    let path = parts.join(IDENTITY_FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let found: serde_json::Value = serde_json::from_str(&text).context_at(&path, "this is not JSON")?;
            if found["identity"] != plan.identity.as_str() {
                return Err(other_scores(plan));
            }
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // A server has its own kernel level.
            let level = plan.engine.checked().is_none().then(|| Level::current().name());
            write_json(&path, &json!({ "identity": plan.identity, "kernel_level": level }))
        }
        Err(error) => Err(Error::new("cannot read the file").at(&path).caused_by(error)),
    }
}

/// Reads, renders and tokenizes ahead of the engine. Returns the seconds spent.
fn read(plan: &Plan, done_records: u64, done_parts: usize, to_engine: SyncSender<Part>) -> Result<f64> {
    let mut seconds = 0.0;
    let mut began = Instant::now();
    let (mut items, mut ends) = (Vec::new(), PartEnds::new(&plan.engine.device(), plan.info.parameters, done_parts));
    // False if the engine has failed and no longer receives; its own error is reported.
    let mut send = |items: &mut Vec<Item>, began: &mut Instant| {
        let items = std::mem::take(items);
        let sequences = items.iter().filter_map(scorable).cloned().collect();
        seconds += began.elapsed().as_secs_f64();
        let sent = to_engine.send(Part { items, sequences, scores: Vec::new(), bounds: Vec::new(), curves: Vec::new() }).is_ok();
        *began = Instant::now();
        sent
    };
    for chunk in rendered(&plan.dataset, &plan.renderer, done_records, &plan.chosen) {
        for item in chunk? {
            let is_last = ends.add(scorable(&item).map_or(0, |sequence| sequence.ids.len()));
            items.push(item);
            if is_last && !send(&mut items, &mut began) {
                return Ok(0.0);
            }
        }
    }
    if !items.is_empty() {
        send(&mut items, &mut began);
    }
    Ok(seconds)
}

/// The sequence of an item, if it has supervised tokens.
fn scorable(item: &Item) -> Option<&Sequence> {
    item.rendered.as_ref().ok().map(|rendered| &rendered.sequence).filter(|sequence| sequence.has_targets())
}

fn run_engine(
    plan: &Plan,
    model: &Model,
    sample: &Sample,
    from_reader: &Receiver<Part>,
    to_writer: &SyncSender<Part>,
    done_tokens: u64,
    watch: &dyn Watch,
) -> Result<Stages> {
    let (mut stages, mut work) = (Stages::default(), Work::default());
    let mut to_first_row = None;
    let mut progress = |tokens| {
        to_first_row.get_or_insert_with(|| plan.began.elapsed().as_secs_f64());
        watch.tokens("Scoring", done_tokens + tokens, plan.totals.tokens);
    };
    let mut scorer = Scorer::new(model, TOP_K, sample, &mut work);
    // Parts whose scores are incomplete.
    let mut waiting: VecDeque<Part> = VecDeque::new();
    loop {
        let part = match from_reader.try_recv() {
            Ok(part) => part,
            // Nothing can be batched with the current sequences, so do not wait.
            Err(_) => {
                if !hand_on(scorer.finish(&mut progress)?, &mut waiting, to_writer, &mut stages)? {
                    break;
                }
                let began = Instant::now();
                let Ok(part) = from_reader.recv() else { break };
                stages.engine_waited += began.elapsed().as_secs_f64();
                part
            }
        };
        // The scores up to here are complete and are kept.
        if watch.interrupted() {
            stages.interrupted = true;
            hand_on(scorer.finish(&mut progress)?, &mut waiting, to_writer, &mut stages)?;
            break;
        }
        let scores = scorer.add(&part.sequences, &mut progress)?;
        waiting.push_back(part);
        if !hand_on(scores, &mut waiting, to_writer, &mut stages)? {
            break;
        }
    }
    let Work { computed_tokens, decoder_seconds: decoder, head_seconds: head } = work;
    Ok(Stages { decoder, head, computed_tokens, to_first_row, ..stages })
}

/// Passes the parts with complete scores to the writer. Returns false if it has failed; its own error is reported.
fn hand_on(
    scores: impl IntoIterator<Item = Scores>,
    waiting: &mut VecDeque<Part>,
    to_writer: &SyncSender<Part>,
    stages: &mut Stages,
) -> Result<bool> {
    for Scores { tokens, curves } in scores {
        let part = waiting.pop_front().ok_or_else(|| Error::new("scores came of a part that was never read"))?;
        stages.input_tokens += part.sequences.iter().map(|sequence| sequence.ids.len() as u64).sum::<u64>();
        if to_writer.send(Part { scores: tokens, curves, ..part }).is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The tokens on which the top-K entropies are compared with the full one: those of the data's first sequences with [`FIDELITY_TOKENS`] supervised
/// tokens in total. They are taken from the data rather than from what this process scores, so that a resumed run has the same sample.
fn fidelity_sample(plan: &Plan) -> Result<Sample> {
    let (mut sequences, mut supervised) = (Vec::new(), 0);
    for chunk in rendered(&plan.dataset, &plan.renderer, 0, &plan.chosen) {
        for item in &chunk? {
            let Some(sequence) = scorable(item) else { continue };
            supervised += sequence.n_targets();
            sequences.push(sequence.clone());
            if supervised >= FIDELITY_TOKENS {
                return Ok(Sample::new(&sequences, FIDELITY_K, FIDELITY_TOKENS));
            }
        }
    }
    Ok(Sample::new(&sequences, FIDELITY_K, FIDELITY_TOKENS))
}

/// Where the statistics of a part's share of the sample are stored until the parts are joined.
fn fidelity_path(out: &Path, part: usize) -> PathBuf {
    out.join(PARTS_FOLDER).join(format!("fidelity-{part:05}.json"))
}

/// Joins the parts' statistics of the sample.
fn join_fidelity(out: &Path) -> Result<()> {
    let mut whole = Fidelity::default();
    for part in finished_parts(out)? {
        let path = fidelity_path(out, part.number);
        if path.exists() {
            whole.merge(&read_existing_json(&path)?);
        }
    }
    write_json(&out.join(FIDELITY_FILE), &whole)
}

/// Writes the parts that come from the engine. Returns the seconds spent, and the writer.
fn write(plan: &Plan, mut writer: PartWriter, from_engine: Receiver<Part>) -> Result<(f64, PartWriter)> {
    let mut seconds = 0.0;
    for part in from_engine {
        let began = Instant::now();
        let mut scored = part.sequences.iter().zip(&part.scores).enumerate();
        for item in &part.items {
            let Item { row, place, example, .. } = item;
            let row = *row;
            let id = example.as_ref().and_then(|example| example.id.as_deref());
            let source = example.as_ref().map_or("", |example| example.source.as_str());
            match (&item.rendered, scorable(item)) {
                (Ok(rendered), Some(_)) => {
                    let Some((i, (sequence, statistics))) = scored.next() else {
                        return Err(Error::new("the engine returned fewer sequences than it was given"));
                    };
                    let truncated = rendered.audit.truncated.is_some();
                    let bounds = part.bounds.get(i).map_or(&[][..], Vec::as_slice);
                    writer.push(&ScoredExample { sequence, statistics, bounds, id, source, place, truncated })?;
                }
                (Ok(rendered), None) => {
                    let (tokens, truncated) = (rendered.sequence.ids.len() as u32, rendered.audit.truncated.is_some());
                    let reason = "nothing is supervised";
                    writer.push_skipped(&SkippedExample { row, id, source, place, tokens, truncated, reason });
                }
                (Err(error), _) => {
                    let (tokens, truncated, reason) = (0, false, &error.reason());
                    writer.push_skipped(&SkippedExample { row, id, source, place, tokens, truncated, reason });
                }
            }
        }
        if !part.curves.is_empty() {
            let mut fidelity = Fidelity::default();
            part.curves.iter().for_each(|curve| fidelity.add(&curve.by_k, curve.entropy));
            // Write this before the part counts: a part that never counts is scored again, and this is written again.
            write_json(&fidelity_path(&plan.out, writer.next_part()), &fidelity)?;
        }
        writer.finish_part()?;
        seconds += began.elapsed().as_secs_f64();
    }
    Ok((seconds, writer))
}
