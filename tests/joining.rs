//! The memory of joining shards, on runs that no model has made: a million rows in twenty shards must fit into two gibibytes, and a smaller number,
//! which is what a test has time for, into as much less.
//!
//! ```sh
//! DIAGNOSE_JOIN_ROWS=1000000 cargo test --release --test tests joining -- --nocapture      # some minutes, 4 GB of disk
//! ```

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use diagnose::dataset::{Place, Shard};
use diagnose::diagnosis::quadrants::{Thresholds, resolve};
use diagnose::kernels::{Choice, TokenStatistics};
use diagnose::table::{PartWriter, ScoredExample, finish, keep_alternatives};
use diagnose::tokens::{Sequence, Span};
use serde_json::{Value, json};

use crate::tiny_model;
use crate::workdir::Workdir;

const SHARDS: u32 = 20;
/// Supervised ones of a row.
const TOKENS: usize = 30;
const VOCABULARY: u32 = 5000;
const ROWS: u32 = 60_000;
/// The most memory with the small number of rows: a few row groups at a time, and what is kept of each row and each conflict.
const MOST_BYTES: u64 = 450 << 20;
/// The most memory with a million rows.
const MOST_BYTES_OF_A_MILLION: u64 = 2 << 30;

/// SplitMix64, as fractions.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32
    }

    fn exponential(&mut self, mean: f32) -> f32 {
        -mean * self.next().max(1e-7).ln()
    }

    fn token(&mut self) -> u32 {
        (self.next() * VOCABULARY as f32) as u32
    }
}

/// A quarter of them are conflicts, of any target against any choice: five times as many as a data set has, and hardly two alike, which is the
/// most that can be to keep.
fn statistics(random: &mut Random) -> TokenStatistics {
    let (logprob, entropy) = (-random.exponential(1.5), random.exponential(1.0));
    let is_conflict = logprob <= 0.25f32.ln() && entropy <= 1.0;
    let mut next = TokenStatistics::default().next;
    if is_conflict {
        next[0] = Choice { id: random.token(), logprob: logprob * 0.8 };
    }
    TokenStatistics {
        logprob,
        entropy,
        entropy_topk: (entropy / 3.0).min(1.0),
        rank: if is_conflict { 3 } else { 1 },
        tail: logprob.exp(),
        varentropy: 1.0,
        grad: 1.0 - logprob.exp(),
        top_id: random.token(),
        top_logprob: logprob * 0.3,
        next,
    }
}

fn row(i: u32) -> Value {
    // Every tenth asks what one has asked before.
    let asked = if i % 10 == 9 { i / 2 / 10 * 10 } else { i };
    let question =
        format!("What comes of {asked} and {} where it is asked for the {asked}th time?", u64::from(asked) * 7919 % 1_000_003);
    let answer = format!("the answer to it is {} and nothing else", u64::from(i) * 31);
    json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
}

/// A run over a shard, as `template` is one of other rows.
fn write_shard(folder: &Path, template: &Path, shard: Shard, rows: u32) {
    std::fs::create_dir(folder).unwrap();
    let mut random = Random(u64::from(shard.index));
    let mut writer = PartWriter::create(folder, Box::new(|id| format!("tok{id}")), Vec::new()).unwrap();
    let path = Arc::new(PathBuf::from("rows.jsonl"));
    let mut own = Vec::new();
    for row in (0..rows).filter(|row| shard.holds(*row)) {
        own.push(row);
        let begins = (0..TOKENS as u32).map(|i| Span { turn: 1, begin: i, end: i + 1 });
        let sequence = Sequence {
            row,
            ids: std::iter::once(1).chain((0..TOKENS).map(|_| random.token())).collect(),
            supervised: std::iter::once(false).chain([true; TOKENS]).collect(),
            spans: std::iter::once(Span::default()).chain(begins).collect(),
        };
        let statistics: Vec<TokenStatistics> = (0..TOKENS).map(|_| statistics(&mut random)).collect();
        let place = Place { path: path.clone(), line: u64::from(row) + 1 };
        let example = ScoredExample {
            sequence: &sequence,
            statistics: &statistics,
            bounds: &[],
            id: None,
            source: "rows.jsonl",
            place: &place,
            truncated: false,
        };
        writer.push(&example).unwrap();
        if own.len() % 4096 == 0 {
            writer.finish_part().unwrap();
        }
    }
    writer.finish().unwrap();
    let fixed = resolve(Thresholds::Fixed, &[]).unwrap();
    finish(folder, &fixed.key(), |logprob, entropy, tail| fixed.label(logprob, entropy, tail)).unwrap();
    keep_alternatives(folder, || Ok(HashSet::from_iter(own.iter().copied()))).unwrap();

    std::fs::copy(template.join("summary.json"), folder.join("summary.json")).unwrap();
    let mut record: Value = serde_json::from_slice(&std::fs::read(template.join("run.json")).unwrap()).unwrap();
    let (n, tokens) = (own.len(), own.len() * TOKENS);
    record["limit"] = Value::Null;
    record["shard"]["index"] = shard.index.into();
    record["identity"] = format!("{:064}", shard.index).into();
    record["counts"] = json!({"records": n, "scored": n, "tokens": tokens + n, "supervised": tokens, "rollouts": {"rows": 0, "respelt": 0, "exact": 0}});
    std::fs::write(folder.join("run.json"), record.to_string()).unwrap();
}

/// The largest resident set of a process, watched until it ends; `None` where the system does not tell.
fn peak_bytes(child: &mut Child) -> Option<u64> {
    let status = format!("/proc/{}/status", child.id());
    let mut peak = None;
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).map(|kb| kb << 10).or(peak);
        std::thread::sleep(Duration::from_millis(5));
    }
    peak
}

#[test]
fn joining_takes_little_memory() {
    let rows = std::env::var("DIAGNOSE_JOIN_ROWS").map_or(ROWS, |rows| rows.parse().unwrap());
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    let lines: Vec<String> = (0..rows).map(|i| row(i).to_string()).collect();
    workdir.write("rows.jsonl", lines.join("\n"));
    drop(lines);
    let shard = format!("0/{SHARDS}");
    workdir
        .run(&["rows.jsonl", "--model", "tiny.gguf", "--limit", "200", "--shard", &shard, "--out", "template", "--no-view"])
        .ok();
    let template = workdir.path("template");
    for index in 0..SHARDS {
        write_shard(&workdir.path(&format!("run-shard-{index}")), &template, Shard { index, of: SHARDS }, rows);
    }

    let began = Instant::now();
    let mut command = workdir.command(&["run-shard-*", "--out", "joined"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap();
    let peak = peak_bytes(&mut child);
    assert!(child.wait().unwrap().success());
    let summary: Value = serde_json::from_slice(&std::fs::read(workdir.path("joined/summary.json")).unwrap()).unwrap();
    assert_eq!(summary["overall"]["tokens"], u64::from(rows) * TOKENS as u64);
    let conflicts = summary["overall"]["quadrants"]["confident_conflict"]["tokens"].as_u64().unwrap();
    let kinds = summary["kinds"]["kinds"].as_array().unwrap();
    assert_eq!(kinds.iter().map(|kind| kind["tokens"].as_u64().unwrap()).sum::<u64>(), conflicts);
    assert!(summary["kinds"]["near_duplicates"].as_u64().unwrap() >= u64::from(rows) / 20, "{}", summary["kinds"]);
    assert!(workdir.path("joined/view.html").exists());
    let Some(peak) = peak else { return println!("this system does not tell how much memory a program takes") };
    println!(
        "{rows} rows, {conflicts} conflicts, {SHARDS} shards: {:.2} GiB in {:.1} s",
        peak as f64 / f64::from(1 << 30),
        began.elapsed().as_secs_f64()
    );
    let most = if rows <= ROWS { MOST_BYTES } else { MOST_BYTES_OF_A_MILLION };
    assert!(peak < most, "{peak} bytes of {most}");
}
