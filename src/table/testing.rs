//! Small tables for the tests of this module and of those that use it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{PartWriter, ScoredExample, SkippedExample};
use crate::dataset::Place;
use crate::kernels::TokenStatistics;
use crate::tokens::{Sequence, Span};

/// One supervised token of a test table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Token {
    /// The token id.
    pub id: u32,
    /// The index of the turn that contains it.
    pub turn: u16,
    /// The offset of its first byte in the turn's content.
    pub begin: u32,
    /// The offset after its last byte.
    pub end: u32,
    /// The statistics of the model's prediction.
    pub statistics: TokenStatistics,
}

/// Returns a token with the given p and entropy, and a tail of p.
pub(crate) fn token(id: u32, p: f32, entropy: f32) -> Token {
    let statistics = TokenStatistics {
        logprob: p.ln(),
        entropy,
        entropy_topk: (entropy / 20f32.ln()).min(1.0),
        rank: 1,
        tail: p,
        varentropy: 1.0,
        grad: 1.0 - p,
        top_id: 7,
        top_logprob: p.max(0.5).ln(),
        ..TokenStatistics::default()
    };
    Token { id, turn: 1, begin: 0, end: 1, statistics }
}

/// An example whose first token is a prompt, while all others are supervised.
pub(crate) struct Example {
    /// The example, numbered over the whole input.
    pub row: u32,
    /// The source of the example.
    pub source: &'static str,
    /// The supervised tokens.
    pub tokens: Vec<Token>,
}

/// Writes each slice of examples as one part of `run`.
pub(crate) fn write_parts(run: &Path, parts: &[&[Example]]) {
    let provenance = vec![("diagnose.model".to_owned(), "a test".to_owned())];
    let mut writer = PartWriter::create(run, Box::new(|id| format!("t{id}")), provenance).unwrap();
    for part in parts {
        for example in *part {
            push(&mut writer, example);
        }
        writer.finish_part().unwrap();
    }
}

pub(crate) fn push(writer: &mut PartWriter, example: &Example) {
    let place = Place { path: Arc::new(PathBuf::from("data.jsonl")), line: u64::from(example.row) + 1 };
    if example.tokens.is_empty() {
        let skipped = SkippedExample {
            row: example.row,
            id: None,
            source: example.source,
            place: &place,
            tokens: 0,
            truncated: false,
            reason: "nothing to score",
        };
        return writer.push_skipped(&skipped);
    }
    let span = |token: &Token| Span { turn: token.turn, begin: token.begin, end: token.end };
    let sequence = Sequence {
        row: example.row,
        ids: std::iter::once(1).chain(example.tokens.iter().map(|token| token.id)).collect(),
        supervised: std::iter::once(false).chain(example.tokens.iter().map(|_| true)).collect(),
        spans: std::iter::once(Span::default()).chain(example.tokens.iter().map(span)).collect(),
    };
    let statistics: Vec<TokenStatistics> = example.tokens.iter().map(|token| token.statistics).collect();
    writer
        .push(&ScoredExample {
            sequence: &sequence,
            statistics: &statistics,
            bounds: &[],
            id: Some("x"),
            source: example.source,
            place: &place,
            truncated: false,
        })
        .unwrap();
}

/// A reproducible stream of fractions in 0..1.
pub(crate) fn random(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32
    }
}

/// Examples of 1 to 30 tokens with plausible statistics.
pub(crate) fn random_examples(seed: u64, rows: std::ops::Range<u32>) -> Vec<Example> {
    let mut random = random(seed);
    rows.map(|row| {
        let n_tokens = 1 + (random() * 30.0) as usize;
        let source = ["chat", "code", "医疗"][row as usize % 3];
        let tokens = (0..n_tokens).map(|i| {
            let entropy = random() * random() * 6.0;
            let mut token = token((random() * 50.0) as u32, random().powi(3).max(1e-6), entropy);
            token.statistics.varentropy = random();
            token.statistics.tail = random() * random();
            token.statistics.top_id = (random() * 50.0) as u32;
            (token.begin, token.end) = (i as u32 * 3, i as u32 * 3 + 3);
            token
        });
        Example { row, source, tokens: tokens.collect() }
    })
    .collect()
}
