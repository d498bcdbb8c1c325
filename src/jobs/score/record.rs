//! Defines run.json of a score run, as it is written and read again.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::part::Stages;
use super::plan::Totals;
use super::shard::ShardRecord;
use crate::dataset::{Choice, DataFile, FieldMap, Format, ReadOptions, RoleMap};
use crate::engine::remote::Checked;
use crate::error::{Error, Result};
use crate::files::read_json;
use crate::format::{count, thousands};
use crate::model::Info;
use crate::provenance::{Provenance, RUN_FILE};
use crate::report::markdown;
use crate::tokens::{Audit, Supervise};

/// The settings and measurements of a run: run.json.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    #[serde(flatten)]
    pub provenance: Provenance,
    /// The command that scored the data.
    pub command: String,
    pub identity: String,
    pub model: Info,
    /// The data files in their order.
    pub data: Vec<DataFile>,
    /// How their rows were read; absent in records of earlier programs.
    #[serde(default)]
    pub read: Option<ReadRecord>,
    pub template_sha256: Option<String>,
    /// The control tokens with which answers end; absent in records of earlier programs.
    #[serde(default)]
    pub turn_ends: Option<Vec<String>>,
    pub system: Option<String>,
    /// Variables for the template, a JSON object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_switches: Option<Value>,
    /// Whether the end token was appended to plain texts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub append_eos: bool,
    pub max_len: usize,
    pub supervise: Supervise,
    /// Only the first `limit` records were read.
    pub limit: Option<u64>,
    /// The number of randomly sampled records. Nothing else in scoring is random.
    #[serde(default)]
    pub sample: Option<u64>,
    /// The number of records they were sampled from.
    #[serde(default)]
    pub sampled_from: Option<u64>,
    /// The seed of the sample.
    pub seed: Option<u64>,
    /// The precision of the matrix products, such as `f32`, or `as served`.
    pub dtype: String,
    /// The kernels of this program, or the program that ran the model.
    pub kernels: String,
    pub vocab_size: usize,
    pub counts: Totals,
    pub audit: Audit,
    /// One line per finding of the mask audit.
    pub audit_lines: Vec<String>,
    pub seconds: Stages,
    /// Input tokens per second of wall time after the model is loaded, including audit, scoring and writing.
    pub tokens_per_second: f64,
    /// Seconds from the start of the run, including a download of the model, to the first example's scores.
    pub seconds_to_first_row: Option<f64>,
    /// The peak resident set size of the scoring process; absent where the system does not report it.
    pub peak_memory_bytes: Option<u64>,
    /// The peak GPU memory held by this program, excluding the driver's own; absent where the model ran on the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_device_memory_bytes: Option<u64>,
    /// The engine that ran the model, if this program did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerRecord>,
    /// The run that this shard belongs to, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<ShardRecord>,
}

/// The servers of a run, and the result of the checks before it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ServerRecord {
    #[serde(flatten)]
    pub checked: Checked,
    /// Requests that were sent again.
    pub retries: u64,
}

/// The options by which the rows of the data became examples.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReadRecord {
    /// The requested format; if absent, each file's own is recorded with the file.
    pub format: Option<Format>,
    /// The values of `--map` and `--role`.
    pub maps: Vec<String>,
    pub roles: Vec<String>,
}

impl ReadRecord {
    pub(crate) fn of(options: &ReadOptions) -> ReadRecord {
        ReadRecord { format: options.format, maps: options.mapping.rules().to_vec(), roles: options.roles.rules().to_vec() }
    }

    /// Options that read the same rows again. Bad rows were skipped or ended the run, so they are no errors now.
    pub(crate) fn options(&self) -> Result<ReadOptions> {
        let (mapping, roles) = (FieldMap::parse(&self.maps)?, RoleMap::parse(&self.roles)?);
        Ok(ReadOptions { format: self.format, mapping, roles, strict: false })
    }
}

impl RunRecord {
    /// Whether both runs read the same files in the same way, and so have the same rows under the same numbers.
    pub(crate) fn reads_like(&self, other: &RunRecord) -> bool {
        let hashes = |run: &RunRecord| run.data.iter().map(|file| file.sha256.clone()).collect::<Vec<_>>();
        hashes(self) == hashes(other) && self.read.clone().unwrap_or_default() == other.read.clone().unwrap_or_default()
    }

    /// The settings on which the tokens of a row depend besides the model and the longest sequence, each with its name in messages.
    pub(crate) fn rendering(&self) -> [(&'static str, Value); 4] {
        let RunRecord { template_sha256, system, template_switches, append_eos, .. } = self;
        [
            ("the template", json!(template_sha256)),
            ("the system prompt (--system)", json!(system)),
            ("the template's variables (--chat-template-kwargs)", json!(template_switches)),
            ("the end of plain texts (--append-eos)", json!(append_eos)),
        ]
    }

    /// Which records of the data were read.
    pub(crate) fn choice(&self) -> Choice {
        match (self.sample, self.seed) {
            (Some(n), Some(seed)) => Choice::Random { n, seed },
            _ => Choice::first(self.limit),
        }
    }

    /// The names of the data files, shortened for a caption.
    pub(crate) fn data_names(&self) -> String {
        names_of(&self.data)
    }

    /// Which rows were read, in a few words.
    pub(super) fn rows_read(&self) -> String {
        let records = count(self.counts.records, "row");
        if let Some(ShardRecord { shard, .. }) = &self.shard {
            return format!("{records}, shard {shard} of the data");
        }
        match (self.limit, self.sampled_from) {
            (Some(limit), _) if limit <= self.counts.records => {
                format!("the first {records} of the data, not a random sample")
            }
            (_, Some(of)) if of > self.counts.records => {
                format!("{records} drawn at random of {}, seed {}", thousands(of), self.seed.unwrap_or_default())
            }
            _ => "all rows read".to_owned(),
        }
    }

    pub(super) fn description(&self, command: &str, without_text: Option<String>) -> markdown::Origin {
        markdown::Origin {
            command: command.to_owned(),
            scored_by: self.command.clone(),
            model: self.model.name.clone(),
            model_sha256: self.model.sha256.clone(),
            data: self.data_names(),
            dtype: self.dtype.clone(),
            version: self.provenance.build(),
            audit: self.audit_lines.clone(),
            without_text,
            rows: self.rows_read(),
            records: self.counts.records,
            scored: self.counts.scored,
            tokens: self.counts.tokens,
            tokens_per_second: self.tokens_per_second,
        }
    }
}

/// The names of the files; for more than three, the name of the first and the number of the others.
pub(super) fn names_of(files: &[DataFile]) -> String {
    match files {
        [] => "-".to_owned(),
        [first, rest @ ..] if rest.len() > 2 => format!("{} and {} more", first.name(), thousands(rest.len() as u64)),
        files => files.iter().map(DataFile::name).collect::<Vec<_>>().join(", "),
    }
}

pub(crate) fn read_record(folder: &Path) -> Result<RunRecord> {
    let path = folder.join(RUN_FILE);
    read_json(&path)?.ok_or_else(|| {
        Error::new("the run folder holds no run.json: the run was not finished")
            .at(path)
            .cure("Run the command that started it again.")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_keeps_its_bytes_and_one_of_the_first_release_is_read() {
        let written = json!({
            "program": "diagnose", "version": "0.1.0", "commit": "abc", "started": "2026-11-27T20:01:24Z", "processor": "AMD EPYC",
            "kernel_level": "avx512bf16", "threads": 2, "device": "cpu", "command": "diagnose rows.jsonl", "identity": "6ac0",
            "model": { "name": "tiny", "reference": "t.gguf", "path": "t.gguf", "sha256": "b1", "architecture": "llama", "parameters": 9 },
            "data": [{ "path": "rows.jsonl", "container": "json-lines", "compression": "none", "format": "messages", "sha256": "03", "bytes": 361 }],
            "read": { "format": null, "maps": [], "roles": [] },
            "template_sha256": "87", "turn_ends": ["<|im_end|>"], "system": null, "max_len": 2048, "supervise": "last",
            "limit": null, "sample": null, "sampled_from": null, "seed": null, "dtype": "bf16", "kernels": "fused", "vocab_size": 96,
            "counts": { "records": 2, "scored": 2, "tokens": 10, "supervised": 4, "rollouts": { "rows": 0, "respelt": 0, "exact": 0 } },
            "audit": {
                "rows": 2, "refused": 0,
                "findings": [{ "name": "empty_mask", "rows": 1, "examples": ["rows.jsonl:1"], "example_rows": [0] }],
                "equal": { "rows": 0, "of": 2 }
            },
            "audit_lines": [],
            "seconds": {
                "load": 0.5, "audit": 0.25, "wall": 1.5, "read_and_tokenise": 0.1, "decoder": 1.0, "head": 0.2, "write": 0.1,
                "engine_waited": 0.1, "input_tokens": 10, "computed_tokens": 8
            },
            "tokens_per_second": 5.5, "seconds_to_first_row": 2.0, "peak_memory_bytes": 1000
        });
        let record: RunRecord = serde_json::from_str(&written.to_string()).unwrap();
        assert_eq!(serde_json::to_string(&record).unwrap(), written.to_string());
        assert_eq!((record.supervise, record.audit.findings[0].rows), (Supervise::Last, 1));
        let mut older = written;
        for (place, keys) in [
            ("", &["read", "turn_ends", "sample", "sampled_from"][..]),
            ("/counts", &["rollouts"]),
            ("/audit", &["equal"]),
            ("/audit/findings/0", &["example_rows"]),
        ] {
            let object = older.pointer_mut(place).and_then(Value::as_object_mut).unwrap();
            keys.iter().for_each(|key| drop(object.remove(*key).unwrap()));
        }
        // The first release also measured what is measured no more.
        older["seconds"]["sample"] = 0.1.into();
        let record: RunRecord = serde_json::from_value(older).unwrap();
        assert_eq!(record.choice(), Choice::All);
        assert_eq!(record.audit.findings[0].examples, ["rows.jsonl:1"]);
    }
}
