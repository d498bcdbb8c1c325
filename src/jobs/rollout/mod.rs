//! Samples the model's own answers to the prompts of a data set into rollouts.jsonl, a data set that can be scored like any other.
//!
//! ```text
//! plan.rs      opens and checks everything, renders the prompts and computes an identity that equal commands share
//! record.rs    run.json
//! ```
//!
//! A killed run keeps every finished answer (`jobs/journal.rs`). An answer depends only on its prompt, the seed, its row and its number, so an
//! interrupted run gives the same result as an uninterrupted one. The sampled answers of a server may also depend on what it generates alongside.

mod plan;
mod record;

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::Value;

use crate::dataset::write::{Forms, Reading, conversation};
use crate::dataset::{Example, FieldMap, Format, Role, RoleMap, Rollout, Turn, dumps};
use crate::engine::generate::{Request, Way};
use crate::error::{Context, Error, Result};
use crate::files::{hold, write_atomically, write_json};
use crate::jobs::answer::{Entries, Entry, Wanted, entries, write_open};
use crate::jobs::journal::Journal;
use crate::jobs::other_run::other_run;
use crate::jobs::watch::Watch;
use crate::jobs::work::{Work, check_free};
use crate::jobs::{peak_memory_bytes, provenance_of};
use crate::provenance::{JOURNAL_FILE, ROLLOUTS_FILE, RUN_FILE};
use crate::random;
use crate::tokens::fingerprint_of_prompt;
pub(crate) use plan::Job;
use plan::Plan;
pub(crate) use record::Record;

/// The result of a rollout run.
pub(crate) struct Outcome {
    pub out: PathBuf,
    pub record: Record,
}

impl Outcome {
    pub(crate) fn rollouts(&self) -> PathBuf {
        self.out.join(ROLLOUTS_FILE)
    }
}

/// Generates the answers that are still missing.
pub(crate) fn run(job: &Job, watch: &dyn Watch) -> Result<Outcome> {
    let (plan, source) = Plan::make(job, watch)?;
    check_free(&plan.out, Work::Answers)?;
    let finished = plan.out.join(RUN_FILE);
    let before = match finished.exists() && plan.out.join(ROLLOUTS_FILE).exists() {
        true => Some(Record::read(&plan.out)?),
        false => None,
    };
    if before.as_ref().is_some_and(|record| record.identity != plan.identity) {
        return Err(other_rollouts(&plan));
    }
    let _held = hold(&plan.out)?;
    let device = source.device();
    // Servers are checked even if the folder is finished, since another model may have replaced the one that wrote it.
    let author = source.author(&plan.out, watch)?;
    if let Some(record) = before {
        Journal::clear(&plan.out.join(JOURNAL_FILE))?;
        return Ok(Outcome { out: plan.out, record });
    }
    let (mut journal, answers) = Journal::open(&plan.out.join(JOURNAL_FILE), &plan.identity, || Some(other_rollouts(&plan)))?;
    let mut entries = entries(answers);

    let rows: Vec<u32> = plan.prompts.iter().map(|prompt| prompt.row).collect();
    let way = Way { sampling: job.sampling, ends: plan.ends.clone(), stops: job.stops.clone(), at_once: job.at_once };
    let wanted = Wanted { rows: &rows, repeats: job.n, way: &way, request: &|prompt, draw| request(&plan, job, prompt, draw) };
    let began = Instant::now();
    let written = write_open(&author, &wanted, &mut journal, &mut entries, watch)?;
    let seconds = began.elapsed().as_secs_f64();

    watch.stage("Writing the rows");
    let path = plan.out.join(ROLLOUTS_FILE);
    write_atomically(&path, |file| write_rows(&plan, job, &entries, file))?;
    let record = Record {
        provenance: provenance_of(plan.started, device, author.checked().is_some()),
        command: job.command.clone(),
        identity: plan.identity.clone(),
        model: plan.info.clone(),
        server: author.checked().cloned(),
        data: plan.dataset.files().to_vec(),
        template_sha256: plan.renderer.template_sha256().map(str::to_owned),
        dtype: plan.dtype.clone(),
        max_len: plan.max_len,
        max_new_tokens: job.max_new_tokens,
        n: job.n,
        sampling: job.sampling,
        stops: job.stops.clone(),
        ends: plan.ends.iter().map(|&id| plan.tokenizer.text(id)).collect(),
        seed: job.seed,
        notes: plan.notes.clone(),
        prompts: plan.prompts.len() as u64,
        left_out: plan.left_out,
        counts: record::Counts::of(entries.values()),
        seconds,
        tokens_per_second: (written.tokens > 0 && seconds > 0.0).then(|| written.tokens as f64 / seconds),
        written,
        peak_memory_bytes: peak_memory_bytes(),
    };
    write_json(&finished, &record)?;
    journal.remove()?;
    Ok(Outcome { out: plan.out, record })
}

fn request(plan: &Plan, job: &Job, prompt: usize, draw: u32) -> Request {
    let plan::Asked { row, ids, .. } = &plan.prompts[prompt];
    Request {
        prompt: ids.clone(),
        max_new_tokens: job.max_new_tokens.min(plan.max_len - ids.len()),
        seed: random::own_seed(&format!("rollout {} {row} {draw}", job.seed)),
    }
}

fn other_rollouts(plan: &Plan) -> Error {
    let level = Record::read(&plan.out).ok().and_then(|record| record.provenance.kernel_level);
    other_run(&plan.out, "other rollouts", level.as_deref(), plan.renderer.writes_date())
}

/// Writes the rows in data order, each with its answers one after the other.
fn write_rows(plan: &Plan, job: &Job, entries: &Entries, file: &mut impl Write) -> Result<()> {
    let mut prompts = plan.prompts.iter().peekable();
    for record in plan.dataset.chosen(&plan.chosen) {
        let record = record?;
        let Some(asked) = prompts.next_if(|asked| asked.row == record.row) else { continue };
        let example = record.example?;
        for draw in 0..job.n {
            let Some(entry) = entries.get(&(asked.row, draw)) else {
                return Err(Error::new(format!("the answer {draw} to row {} is missing", asked.row)));
            };
            let row = row(plan, job, &example, asked, entry)?;
            file.write_all(dumps(&row).as_bytes()).context("cannot write a row")?;
            file.write_all(b"\n").context("cannot write a row")?;
        }
    }
    Ok(())
}

fn row(plan: &Plan, job: &Job, example: &Example, asked: &plan::Asked, entry: &Entry) -> Result<Value> {
    let mut turns = example.turns[..asked.n_turns].to_vec();
    // Earlier answers from the data are not the model's own, so they are not supervised.
    turns.iter_mut().filter(|turn| turn.role == Role::Assistant).for_each(Turn::mask);
    turns.push(Turn::plain(Role::Assistant, entry.text(&plan.tokenizer)));
    let rollout = Rollout {
        row: entry.row,
        draw: entry.draw,
        ids: entry.ids.clone(),
        ended: entry.ended.name().to_owned(),
        prompt: fingerprint_of_prompt(&asked.ids),
        model: plan.info.sha256.clone(),
        dtype: plan.dtype.clone(),
        plain: job.sampling.is_plain() && job.stops.is_empty(),
    };
    let written = Example { turns, planted: Vec::new(), unused: Vec::new(), ..example.clone() };
    let (mapping, roles) = (FieldMap::default(), RoleMap::default());
    let reading = Reading { format: Format::Messages, mapping: &mapping, roles: &roles, source: "", forms: Forms::default() };
    let mut row = conversation(&written, &reading)?;
    row.insert("rollout".to_owned(), serde_json::to_value(rollout).context("cannot write down an answer")?);
    Ok(Value::Object(row))
}
