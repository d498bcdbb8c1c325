//! Reads the scores of a run from the answers that another program left, row by row in data order.

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender};

use super::part::{Part, Stages};
use super::plan::Plan;
use crate::error::Result;
use crate::jobs::watch::Watch;
use crate::table::Answers;

pub(super) fn score(
    plan: &Plan,
    folder: &Path,
    from_reader: &Receiver<Part>,
    to_writer: &SyncSender<Part>,
    done_tokens: u64,
    watch: &dyn Watch,
) -> Result<Stages> {
    let mut stages = Stages::default();
    let mut answers = Answers::open(folder, plan.vocab_size)?;
    for mut part in from_reader {
        if watch.interrupted() {
            stages.interrupted = true;
            break;
        }
        for sequence in &part.sequences {
            let positions = answers.of(sequence)?;
            let scored = positions.iter().map(|position| position.statistics(plan.vocab_size));
            let (scores, bounds) = scored.collect::<Result<Vec<_>>>()?.into_iter().unzip();
            part.scores.push(scores);
            part.bounds.push(bounds);
            stages.input_tokens += sequence.ids.len() as u64;
        }
        stages.to_first_row.get_or_insert_with(|| plan.began.elapsed().as_secs_f64());
        watch.tokens("Scoring", done_tokens + stages.input_tokens, plan.totals.tokens);
        if to_writer.send(part).is_err() {
            // The writer has failed; `join` reports its error.
            break;
        }
    }
    Ok(stages)
}
