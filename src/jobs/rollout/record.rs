//! Defines run.json of a rollout: its settings and its result.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::dataset::DataFile;
use crate::engine::generate::{Ended, Sampling, Written};
use crate::engine::remote::Checked;
use crate::error::Result;
use crate::files::read_existing_json;
use crate::format::{count, counted, n_tokens};
use crate::jobs::answer::Entry;
use crate::model::Info;
use crate::provenance::{Provenance, RUN_FILE};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    #[serde(flatten)]
    pub provenance: Provenance,
    pub command: String,
    pub identity: String,
    pub model: Info,
    /// The servers that ran the model, with the results of their checks; absent if this program ran it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<Checked>,
    pub data: Vec<DataFile>,
    pub template_sha256: Option<String>,
    pub dtype: String,
    pub max_len: usize,
    pub max_new_tokens: usize,
    /// The number of answers to each prompt.
    pub n: u32,
    pub sampling: Sampling,
    pub stops: Vec<String>,
    /// The tokens that end an answer.
    pub ends: Vec<String>,
    pub seed: u64,
    pub notes: Vec<String>,
    pub prompts: u64,
    pub left_out: LeftOut,
    pub counts: Counts,
    /// How much of the work the finishing process did.
    pub written: Written,
    pub seconds: f64,
    /// Tokens of answers per second of wall time after loading the model; absent if nothing was left to generate.
    pub tokens_per_second: Option<f64>,
    pub peak_memory_bytes: Option<u64>,
}

/// The numbers of rows without answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeftOut {
    /// Rows whose prompt leaves no room in `max_len`.
    pub too_long: u64,
    /// Rows that could not be read, or have no prompt.
    pub unusable: u64,
}

/// The numbers of answers by how they ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub answers: u64,
    pub tokens: u64,
    pub ended_with_end_token: u64,
    pub ended_with_stop: u64,
    pub ended_by_length: u64,
}

impl Counts {
    pub(super) fn of<'a>(entries: impl Iterator<Item = &'a Entry>) -> Counts {
        let mut counts = Counts::default();
        for entry in entries {
            counts.answers += 1;
            counts.tokens += entry.ids.len() as u64;
            match entry.ended {
                Ended::EndToken => counts.ended_with_end_token += 1,
                Ended::Stop => counts.ended_with_stop += 1,
                Ended::Length => counts.ended_by_length += 1,
            }
        }
        counts
    }
}

impl Record {
    pub(super) fn read(folder: &Path) -> Result<Record> {
        read_existing_json(&folder.join(RUN_FILE))
    }

    /// The lines about the run on the terminal.
    pub(crate) fn lines(&self) -> Vec<String> {
        let Counts { answers, tokens, ended_with_end_token, ended_with_stop, ended_by_length } = self.counts;
        let by = self.server.as_ref().map(|server| format!(" by {}", server.program())).unwrap_or_default();
        let mut lines = vec![format!(
            "{} to {} with {}{by}, {}: {ended_with_end_token} ended by themselves, {ended_by_length} were cut at the maximum length{}",
            count(answers, "answer"),
            count(self.prompts, "prompt"),
            self.model.name,
            n_tokens(tokens),
            if self.stops.is_empty() { String::new() } else { format!(", {ended_with_stop} reached a stop string") }
        )];
        if self.left_out.too_long > 0 {
            let prompts = counted(self.left_out.too_long, "prompt leaves", "prompts leave");
            lines.push(format!("{prompts} no room for an answer in --max-len {}", self.max_len));
        }
        if self.left_out.unusable > 0 {
            lines.push(counted(
                self.left_out.unusable,
                "row could not be read, or has no prompt",
                "rows could not be read, or have no prompt",
            ));
        }
        lines.extend(self.tokens_per_second.map(|rate| format!("{rate:.0} tokens/s")));
        lines
    }
}
