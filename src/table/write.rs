//! Writes scored examples as numbered parts of the two tables, each of which appears atomically.
//!
//! The engine pushes the examples of one stretch of the data set in the order of scoring, then finishes the part. The rows of a part are sorted, so
//! that the same stretches give the same table however often the run was interrupted. `rows-00000.parquet` is written after `tokens-00000.parquet`
//! and `alternatives-00000.parquet`; a part counts once it exists.

use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use polars::prelude as pl;
use polars::prelude::IntoColumn;

use super::alternatives;
use super::bounds;
use super::frames::{TextColumn, write_frames};
use super::rows::{Row, write_rows};
use super::{ROW_GROUP_TOKENS, TokenChunk};
use crate::dataset::Place;
use crate::engine::bounds::Bounds;
use crate::kernels::TokenStatistics;
use crate::provenance::PARTS_FOLDER;
use crate::tokens::{Sequence, fingerprint};
use crate::{Context, Error, Result};

/// The results of the engine for one example.
pub struct ScoredExample<'a> {
    /// The token sequence.
    pub sequence: &'a Sequence,
    /// One entry per supervised token, in order.
    pub statistics: &'a [TokenStatistics],
    /// One entry per supervised token in a table with bounds, otherwise empty.
    pub bounds: &'a [Bounds],
    /// The record's own `id`, if it has one.
    pub id: Option<&'a str>,
    /// The record's own `source` field, or the name of its file.
    pub source: &'a str,
    /// The file and line of the record.
    pub place: &'a Place,
    /// Whether the sequence was truncated at the maximum length.
    pub truncated: bool,
}

/// An example that could not be scored, or that has nothing to score.
pub struct SkippedExample<'a> {
    /// The example, numbered over the whole input.
    pub row: u32,
    /// The record's own `id`, if it has one.
    pub id: Option<&'a str>,
    /// The record's own `source` field, or the name of its file.
    pub source: &'a str,
    /// The file and line of the record.
    pub place: &'a Place,
    /// Length of the rendered sequence, or 0 if it was not rendered.
    pub tokens: u32,
    /// Whether the sequence was truncated, perhaps before the first answer.
    pub truncated: bool,
    pub reason: &'a str,
}

/// Collects examples and writes them in parts under `RUN/parts`.
pub struct PartWriter {
    folder: PathBuf,
    next_part: usize,
    text_of: Box<dyn Fn(u32) -> String + Send>,
    provenance: Vec<(String, String)>,
    texts: TextColumn,
    /// The category code of each token's text, filled on first use.
    codes: HashMap<u32, u32>,
    pending: PendingTokens,
    /// Whether the table has columns for bounds.
    with_bounds: bool,
    alternatives: alternatives::Pending,
    rows: Vec<Row>,
}

/// A finished part, whose files are complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The number of the part, from 0.
    pub number: usize,
    /// The file of the tokens.
    pub tokens: PathBuf,
    /// The file of the examples.
    pub rows: PathBuf,
    /// The file of the further choices; absent if no token has any.
    pub alternatives: PathBuf,
}

/// Returns the complete parts of a run folder in order, without those that a killed run left unfinished.
pub fn finished_parts(run: &Path) -> Result<Vec<Part>> {
    let folder = run.join(PARTS_FOLDER);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut parts = Vec::new();
    for entry in fs::read_dir(&folder).context_at(&folder, "cannot list the folder")? {
        let name = entry.context_at(&folder, "cannot list the folder")?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("rows-")?.strip_suffix(".parquet")?.parse().ok());
        let Some(part) = number.map(|number| part(&folder, number)) else { continue };
        if part.tokens.exists() {
            parts.push(part);
        }
    }
    parts.sort_by_key(|part| part.number);
    Ok(parts)
}

impl PartWriter {
    /// Creates a writer that continues after the existing parts. `text_of` returns the display text of a token id; `provenance` (names and values:
    /// model, template hash, ...) is written to the files' key-value metadata.
    pub fn create(
        run: &Path,
        text_of: Box<dyn Fn(u32) -> String + Send>,
        provenance: Vec<(String, String)>,
    ) -> Result<PartWriter> {
        let folder = run.join(PARTS_FOLDER);
        fs::create_dir_all(&folder).context_at(&folder, "cannot create the folder")?;
        let next_part = finished_parts(run)?.last().map_or(0, |part| part.number + 1);
        Ok(PartWriter {
            folder,
            next_part,
            text_of,
            provenance,
            texts: TextColumn::new(),
            codes: HashMap::new(),
            pending: PendingTokens::default(),
            with_bounds: false,
            alternatives: alternatives::Pending::default(),
            rows: Vec::new(),
        })
    }

    /// Adds columns for bounds, where some of the scores are known only by their bounds.
    pub fn with_bounds(self) -> PartWriter {
        PartWriter { with_bounds: true, ..self }
    }

    /// Returns the number of the part that [`PartWriter::finish_part`] will write.
    pub fn next_part(&self) -> usize {
        self.next_part
    }

    /// The number of supervised tokens pushed since the last finished part.
    fn pending_tokens(&self) -> usize {
        self.pending.chunk.logprob.len()
    }

    /// Adds a scored example. Returns an error unless there is one entry of statistics per supervised token.
    pub fn push(&mut self, example: &ScoredExample) -> Result<()> {
        let Sequence { row, ids, supervised, spans } = example.sequence;
        let n_supervised = example.sequence.n_targets();
        if n_supervised != example.statistics.len() || ids.len() != spans.len() || ids.len() != supervised.len() {
            return Err(Error::new(format!(
                "row {row} has {n_supervised} supervised tokens of {}, but {} token statistics",
                ids.len(),
                example.statistics.len()
            ))
            .at_line(&*example.place.path, example.place.line));
        }
        if self.with_bounds && example.bounds.len() != n_supervised {
            let found = example.bounds.len();
            return Err(Error::new(format!("row {row} has {n_supervised} supervised tokens, and bounds of {found}"))
                .at_line(&*example.place.path, example.place.line));
        }
        let source = self.texts.code(example.source)?;
        let first = self.pending_tokens();
        let targets = (0..ids.len()).filter(|pos| supervised[*pos]);
        for (pos, statistics) in targets.zip(example.statistics) {
            let token = self.code_of_token(ids[pos])?;
            let top = self.code_of_token(statistics.top_id)?;
            let PendingTokens { chunk, source: sources, token: tokens, top: tops, .. } = &mut self.pending;
            chunk.row.push(*row);
            chunk.turn.push(spans[pos].turn);
            chunk.pos.push(pos as u32);
            sources.push(source);
            chunk.token_id.push(ids[pos]);
            tokens.push(token);
            chunk.begin.push(spans[pos].begin);
            chunk.end.push(spans[pos].end);
            chunk.logprob.push(statistics.logprob);
            chunk.entropy.push(statistics.entropy);
            chunk.entropy_topk.push(statistics.entropy_topk);
            chunk.rank.push(statistics.rank);
            chunk.tail.push(statistics.tail);
            chunk.varentropy.push(statistics.varentropy);
            chunk.grad.push(statistics.grad);
            chunk.top_id.push(statistics.top_id);
            tops.push(top);
            chunk.top_logprob.push(statistics.top_logprob);
            if alternatives::is_told(statistics) {
                for (rank, choice) in (2..).zip(&statistics.next).filter(|(_, choice)| choice.logprob.is_finite()) {
                    let code = self.code_of_token(choice.id)?;
                    self.alternatives.push(*row, pos as u32, rank, choice.id, code, choice.logprob);
                }
            }
        }
        if self.with_bounds {
            self.pending.bounds.extend_from_slice(example.bounds);
        }
        self.pending.examples.push((*row, first..self.pending_tokens()));

        let mean = |of: fn(&TokenStatistics) -> f32| {
            let sum: f64 = example.statistics.iter().map(|statistics| f64::from(of(statistics))).sum();
            (n_supervised > 0).then(|| sum / n_supervised as f64)
        };
        let mean_logprob = mean(|statistics| statistics.logprob);
        self.rows.push(Row {
            row: *row,
            id: example.id.map(str::to_owned),
            source: example.source.to_owned(),
            path: example.place.path.display().to_string(),
            line: example.place.line,
            tokens: ids.len() as u32,
            supervised: n_supervised as u32,
            truncated: example.truncated,
            mean_logprob: mean_logprob.map(|mean| mean as f32),
            perplexity: mean_logprob.map(|mean| (-mean).exp() as f32),
            mean_entropy: mean(|statistics| statistics.entropy).map(|mean| mean as f32),
            fingerprint: Some(example.sequence.fingerprint()),
            ids_fingerprint: Some(fingerprint(&example.sequence.ids)),
            ..Row::default()
        });
        Ok(())
    }

    /// Adds an example that was not scored: it gets a row in the table of examples, but no tokens.
    pub fn push_skipped(&mut self, example: &SkippedExample) {
        self.rows.push(Row {
            row: example.row,
            id: example.id.map(str::to_owned),
            source: example.source.to_owned(),
            path: example.place.path.display().to_string(),
            line: example.place.line,
            tokens: example.tokens,
            truncated: example.truncated,
            skipped: Some(example.reason.to_owned()),
            ..Row::default()
        });
    }

    /// Writes the pushed examples as one more part, if there are any.
    pub fn finish_part(&mut self) -> Result<()> {
        if self.rows.is_empty() { Ok(()) } else { self.write_part() }
    }

    /// Writes the examples pushed since the last part. A run without any part gets an empty one, so that it has tables.
    pub fn finish(mut self) -> Result<()> {
        if self.next_part == 0 { self.write_part() } else { self.finish_part() }
    }

    fn write_part(&mut self) -> Result<()> {
        let part = part(&self.folder, self.next_part);
        let frame = std::mem::take(&mut self.pending).into_sorted_frame(&self.texts, self.with_bounds)?;
        write_frames(&part.tokens, "tokens", frame.schema(), &self.provenance, |writer| {
            for begin in (0..frame.height()).step_by(ROW_GROUP_TOKENS) {
                writer.write_batch(&frame.slice(begin as i64, ROW_GROUP_TOKENS))?;
            }
            Ok(())
        })?;
        std::mem::take(&mut self.alternatives).write(&part.alternatives, &self.texts, &self.provenance)?;
        let mut rows = std::mem::take(&mut self.rows);
        rows.sort_by_key(|row| row.row);
        write_rows(&part.rows, &rows, &self.provenance)?;
        self.next_part += 1;
        Ok(())
    }

    fn code_of_token(&mut self, id: u32) -> Result<u32> {
        if let Some(code) = self.codes.get(&id) {
            return Ok(*code);
        }
        let code = self.texts.code(&(self.text_of)(id))?;
        self.codes.insert(id, code);
        Ok(code)
    }
}

/// The tokens of a part in the order of scoring, with text columns as category codes.
#[derive(Default)]
struct PendingTokens {
    chunk: TokenChunk,
    /// The bounds of each token in a table with bounds, otherwise empty.
    bounds: Vec<Bounds>,
    source: Vec<u32>,
    token: Vec<u32>,
    top: Vec<u32>,
    /// The row and the token range of each example.
    examples: Vec<(u32, Range<usize>)>,
}

impl PendingTokens {
    /// Makes a frame of all columns but the quadrant, in the order of [`super::Column::ALL`], and of the bounds if there are any.
    fn into_sorted_frame(mut self, texts: &TextColumn, with_bounds: bool) -> Result<pl::DataFrame> {
        self.examples.sort_by_key(|(row, _)| *row);
        let ranges: Vec<Range<usize>> = self.examples.into_iter().map(|(_, range)| range).collect();
        let chunk = self.chunk;
        let n_tokens = chunk.row.len();
        let mut columns = vec![
            column("row", gather(&chunk.row, &ranges)),
            column("turn", gather(&chunk.turn, &ranges)),
            column("pos", gather(&chunk.pos, &ranges)),
            texts.column("source", gather(&self.source, &ranges)),
            column("token_id", gather(&chunk.token_id, &ranges)),
            texts.column("token", gather(&self.token, &ranges)),
            column("begin", gather(&chunk.begin, &ranges)),
            column("end", gather(&chunk.end, &ranges)),
            column("logprob", gather(&chunk.logprob, &ranges)),
            column("entropy", gather(&chunk.entropy, &ranges)),
            column("entropy_topk", gather(&chunk.entropy_topk, &ranges)),
            column("rank", gather(&chunk.rank, &ranges)),
            column("tail", gather(&chunk.tail, &ranges)),
            column("varentropy", gather(&chunk.varentropy, &ranges)),
            column("grad", gather(&chunk.grad, &ranges)),
            column("top_id", gather(&chunk.top_id, &ranges)),
            texts.column("top", gather(&self.top, &ranges)),
            column("top_logprob", gather(&chunk.top_logprob, &ranges)),
        ];
        if with_bounds {
            columns.extend(bounds::columns(&gather(&self.bounds, &ranges)));
        }
        Ok(pl::DataFrame::new(n_tokens, columns)?)
    }
}

fn gather<T: Copy>(values: &[T], ranges: &[Range<usize>]) -> Vec<T> {
    ranges.iter().flat_map(|range| values[range.clone()].iter().copied()).collect()
}

fn column<T>(name: &str, values: Vec<T>) -> pl::Column
where
    T: pl::NumericNative,
    T::PolarsType: pl::PolarsNumericType<Native = T>,
{
    pl::ChunkedArray::<T::PolarsType>::from_vec(name.into(), values).into_column()
}

pub(super) fn part(folder: &Path, number: usize) -> Part {
    let file = |table: &str| folder.join(format!("{table}-{number:05}.parquet"));
    Part { number, tokens: file("tokens"), rows: file("rows"), alternatives: file("alternatives") }
}
