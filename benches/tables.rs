//! Measures how long the tables of a large run take: `cargo bench --bench tables -- [MILLIONS OF TOKENS] [FOLDER]`.
//!
//! Writes a synthetic run in parts of half a million tokens. Then a second process, so that the memory used for writing does not
//! count, assigns quadrants by the run's own quantiles, summarises it and draws the density map. Prints each step's wall time,
//! processor time (the better measure on a busy machine) and the peak memory so far. This is not a criterion benchmark, since one
//! step takes seconds and memory is the point. A second run on the same folder assigns the quadrants of the finished table again.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use diagnose::dataset::Place;
use diagnose::diagnosis::quadrants::{Thresholds, resolve};
use diagnose::diagnosis::summary::summarise;
use diagnose::kernels::TokenStatistics;
use diagnose::maps::density::{self, Density};
use diagnose::maps::{Caption, Cuts};
use diagnose::table::{self, Column, PartWriter, Quadrant, ScoredExample};
use diagnose::tokens::{Sequence, Span};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TOKENS_PER_ROW: usize = 200;
const ROWS_PER_PART: u32 = 2500;
const VOCABULARY: u32 = 49152;

fn main() -> diagnose::Result<()> {
    let arguments = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned());
    let arguments: Vec<String> = arguments.filter(|argument| !argument.starts_with("--")).collect();
    let millions: usize = arguments.first().and_then(|argument| argument.parse().ok()).unwrap_or(5);
    let folder = arguments.get(1).map_or_else(|| std::env::temp_dir().join("diagnose-bench-tables"), PathBuf::from);
    if arguments.get(2).is_some_and(|argument| argument == "sort") {
        return sort(&folder);
    }
    let n_rows = (millions * 1_000_000 / TOKENS_PER_ROW) as u32;
    if !folder.join(table::TOKENS_FILE).exists() {
        step("write parts", || write_parts(&folder, n_rows))?;
    }
    let itself = std::env::current_exe().expect("the name of this program");
    let status = Command::new(itself).arg(millions.to_string()).arg(&folder).arg("sort").status().expect("a second process");
    assert!(status.success(), "sorting failed");
    Ok(())
}

fn sort(folder: &Path) -> diagnose::Result<()> {
    let began = Instant::now();
    let tokens = [folder.join(table::TOKENS_FILE)];
    let tables: Vec<PathBuf> = match table::finished_parts(folder)?.as_slice() {
        [] => tokens.to_vec(),
        parts => parts.iter().map(|part| part.tokens.clone()).collect(),
    };
    let thresholds = step("thresholds", || resolve(Thresholds::Pilot, &tables))?;
    step("quadrants", || {
        table::finish(folder, &thresholds.key(), |logprob, entropy, tail| thresholds.label(logprob, entropy, tail)).map(drop)
    })?;
    let rows = step("rows", || table::read_rows(&folder.join(table::ROWS_FILE)))?;
    let summary = step("summary", || summarise(&tokens, &rows, &thresholds))?;
    step("density map", || {
        let mut plane = Density::new(VOCABULARY as usize);
        for chunk in table::read_chunks(&tokens, &[Column::Logprob, Column::Entropy]) {
            let chunk = chunk?;
            plane.add_all(&chunk.logprob, &chunk.entropy);
        }
        let shares = Quadrant::ALL.map(|quadrant| summary.overall.quadrants.get(quadrant).token_share);
        let cuts = Cuts { probability: thresholds.p.map(f64::from), entropies: vec![f64::from(thresholds.entropy)], tail: None };
        let caption = Caption { model: "synthetic".into(), data: "synthetic".into(), thresholds: thresholds.to_string() };
        density::draw(&plane, shares, &cuts, &caption, &folder.join("density.png"))
    })?;
    let conflicts = summary.overall.quadrants.confident_conflict.tokens;
    println!("{} tokens, {conflicts} confident conflicts ({thresholds})", summary.overall.tokens);
    println!("all steps {:.1} s, {:.1} processor seconds", began.elapsed().as_secs_f64(), processor_seconds());
    Ok(())
}

fn step<T>(name: &str, work: impl FnOnce() -> diagnose::Result<T>) -> diagnose::Result<T> {
    let (began, used) = (Instant::now(), processor_seconds());
    let result = work()?;
    let (seconds, used) = (began.elapsed().as_secs_f64(), processor_seconds() - used);
    println!("{name:<12} {seconds:6.1} s, {used:6.1} processor seconds, peak {} MB so far", peak_memory_mb());
    Ok(result)
}

/// The processor time of this process on all cores, in seconds, from Linux's /proc; 0 on other systems.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Counted after the name in parentheses; fields 14 and 15 of the line are user and system time in hundredths of a second.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
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
        // Low ids are frequent, like frequent words.
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
                    next: Default::default(),
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
            bounds: &[],
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

/// The peak resident set in megabytes, from Linux's /proc; 0 on other systems.
fn peak_memory_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).map_or(0, |kb| kb / 1024)
}
