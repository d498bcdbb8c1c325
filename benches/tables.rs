//! How long the tables of a large run take: `cargo bench --bench tables -- [MILLIONS OF TOKENS] [FOLDER]`.
//!
//! Writes a synthetic run in parts of half a million tokens, sorts it into quadrants by its own quantiles and summarises it, and
//! prints the seconds and the peak memory after each step. A folder that has a run already is sorted again. Not a criterion
//! benchmark: one step takes seconds, and memory is the point.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use diagnose::dataset::Place;
use diagnose::kernels::TokenStatistics;
use diagnose::quadrants::{Thresholds, resolve};
use diagnose::report::summary::summarise;
use diagnose::scores::{self, PartWriter, ScoredExample};
use diagnose::tokens::{Sequence, Span};

const TOKENS_PER_ROW: usize = 200;
const ROWS_PER_PART: u32 = 2500;
const VOCABULARY: u32 = 49152;

fn main() -> diagnose::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let millions: usize = arguments.first().and_then(|argument| argument.parse().ok()).unwrap_or(5);
    let folder = arguments.get(1).map_or_else(|| std::env::temp_dir().join("diagnose-bench-tables"), PathBuf::from);
    let n_rows = (millions * 1_000_000 / TOKENS_PER_ROW) as u32;

    let tokens = [folder.join(scores::TOKENS_FILE)];
    if !tokens[0].exists() {
        step("write parts", || write_parts(&folder, n_rows))?;
    }
    let tables: Vec<PathBuf> = match scores::finished_parts(&folder)?.as_slice() {
        [] => tokens.to_vec(),
        parts => parts.iter().map(|part| part.tokens.clone()).collect(),
    };
    let thresholds = step("thresholds", || resolve(Thresholds::Pilot, &tables))?;
    step("quadrants", || scores::finish(&folder, |logprob, entropy, tail| thresholds.label(logprob, entropy, tail)).map(drop))?;
    let rows = step("rows", || scores::read_rows(&folder.join(scores::ROWS_FILE)))?;
    let summary = step("summary", || summarise(&tokens, &rows, &thresholds))?;
    let conflicts = summary.overall.quadrants.confident_conflict.tokens;
    println!("{} tokens, {conflicts} confident conflicts ({thresholds})", summary.overall.tokens);
    Ok(())
}

fn step<T>(name: &str, work: impl FnOnce() -> diagnose::Result<T>) -> diagnose::Result<T> {
    let start = Instant::now();
    let result = work()?;
    println!("{name:<12} {:6.1} s, peak {} MB so far", start.elapsed().as_secs_f64(), peak_memory_mb());
    Ok(result)
}

fn write_parts(folder: &Path, n_rows: u32) -> diagnose::Result<()> {
    let mut writer =
        PartWriter::create(folder, Box::new(|id| format!(" tok{id}")), vec![("diagnose.model".into(), "synthetic".into())])?;
    let place = Place { path: Arc::new(PathBuf::from("synthetic.jsonl")), line: 1 };
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    for row in 0..n_rows {
        // Ids crowd at the low end like word frequencies do.
        let ids: Vec<u32> = (0..=TOKENS_PER_ROW).map(|_| (random().powi(4) * VOCABULARY as f32) as u32).collect();
        let statistics: Vec<TokenStatistics> = ids[1..]
            .iter()
            .map(|_| {
                let logprob = random().powi(3).max(1e-7).ln();
                let entropy = random().powi(2) * 6.0;
                TokenStatistics {
                    logprob,
                    entropy,
                    entropy_topk: entropy / 6.0,
                    rank: 1 + (random().powi(6) * 1000.0) as u32,
                    tail: logprob.exp() * random(),
                    varentropy: random() * 4.0,
                    grad: 1.0 - logprob.exp(),
                    top_id: (random().powi(4) * VOCABULARY as f32) as u32,
                    top_logprob: -random(),
                }
            })
            .collect();
        let spans = (0..ids.len()).map(|i| Span { turn: 1, begin: 4 * i as u32, end: 4 * i as u32 + 4 }).collect();
        let supervised = (0..ids.len()).map(|i| i > 0).collect();
        let sequence = Sequence { row, ids, supervised, spans };
        let source = ["alpaca", "gsm8k", "tools"][row as usize % 3];
        writer.push(&ScoredExample {
            sequence: &sequence,
            statistics: &statistics,
            id: None,
            source,
            place: &place,
            truncated: false,
        })?;
        if row % ROWS_PER_PART == ROWS_PER_PART - 1 {
            writer.finish_part()?;
        }
    }
    writer.finish_part()
}

/// The largest resident set so far, from Linux's accounts; 0 elsewhere.
fn peak_memory_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).map_or(0, |kb| kb / 1024)
}
