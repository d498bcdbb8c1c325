//! The token table: one row per supervised token with the model's statistics about it, and a second table with one row per example.
//!
//! ```text
//! scored examples -> parts/tokens-00000.parquet, parts/rows-00000.parquet, ...   (write.rs, while the engine runs)
//!                 -> tokens.parquet with the quadrant column, rows.parquet       (finish.rs, at the end and on every re-sort)
//!                 -> chunks of the columns that a later pass needs               (read.rs)
//! ```
//!
//! Further tables and helpers:
//!
//! ```text
//! rows.rs         one row per example
//! conflicts.rs    kinds of conflicts, and near-duplicate rows; in_context.rs conflicts re-scored with another row shown first
//! alternatives.rs the model's second to fifth choices
//! learnt.rs       the effect of training on each row
//! bounds.rs       bounds of scores that came through a server; offline.rs exchange with an engine that runs elsewhere
//! join.rs         merges the shards of a run
//! frames.rs       writes Parquet; quantiles.rs exact quantiles of columns
//! ```
//!
//! `diagnosis::quadrants` assigns the quadrants; this module only stores them. Text columns are Parquet dictionaries (`category` in pandas): a few
//! bytes per row instead of a string keep a table of fifty million tokens usable in a notebook, and no pass has to hash a string per row.

mod alternatives;
mod bounds;
mod conflicts;
mod finish;
mod frames;
mod in_context;
mod join;
mod learnt;
mod offline;
mod quantiles;
mod read;
mod rows;
mod write;

use std::sync::Arc;

pub use alternatives::{ALTERNATIVES_FILE, Alternative, keep_alternatives, read_alternatives};
pub(crate) use bounds::certainty;
pub use bounds::{Bounded, for_each_bounded, has_bounds};
pub use conflicts::{CONFLICTS_FILE, KnownConflict, NearPair, PAIRS_FILE, read_conflicts, write_conflicts, write_pairs};
pub use finish::{Finished, THRESHOLDS_KEY, finish, sort_again};
pub use in_context::{IN_CONTEXT_FILE, PromptedToken, write_in_context};
pub(crate) use join::join_shards;
pub use learnt::{LEARNT_FILE, LearntRow, write_learnt};
pub(crate) use offline::{ANSWERS_FOLDER, Answers, SEQUENCES_FILE, are_sequences, write_sequences};
pub use quantiles::{quantile_of, quantiles};
pub use read::{Chunks, read_chunks, read_provenance, texts_of};
pub use rows::{Row, RowMasses, read_rows};
pub use write::{Part, PartWriter, ScoredExample, SkippedExample, finished_parts};

use crate::spelling::named;

/// The name of the token table in a run folder.
pub const TOKENS_FILE: &str = "tokens.parquet";
/// The name of the table of examples.
pub const ROWS_FILE: &str = "rows.parquet";

/// Tokens per row group of a finished table: 20 MB decoded, so that a streaming pass needs little memory whatever the table's size.
pub const ROW_GROUP_TOKENS: usize = 1 << 18;

/// The class of a token by low or high probability and low or high entropy; see `diagnosis::quadrants` for the thresholds. The order is that of the
/// category codes in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Quadrant {
    /// Low p, low H: the model is sure of another token.
    ConfidentConflict,
    /// Low p, high H: the model does not know.
    Uncertain,
    /// High p, low H: the model expected this token, nearly always as its first choice.
    Confident,
    /// High p, high H: one of several tokens that the model considers likely, usually its first choice.
    Hesitant,
}

named! {
    pub Quadrant, "a quadrant":
    ConfidentConflict = "confident_conflict",
    Uncertain = "uncertain",
    Confident = "confident",
    Hesitant = "hesitant",
}

impl Quadrant {
    /// Returns the position in [`Quadrant::ALL`], which is also the stored category code.
    pub fn index(self) -> usize {
        self as usize
    }
}

/// A column of the token table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    Row,
    Turn,
    Pos,
    Source,
    TokenId,
    Token,
    Begin,
    End,
    Logprob,
    Entropy,
    EntropyTopk,
    Rank,
    Tail,
    Varentropy,
    Grad,
    TopId,
    Top,
    TopLogprob,
    Quadrant,
}

/// The storage type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    U16,
    U32,
    F32,
    /// Strings from a growing dictionary.
    Text,
    /// One of the four names of [`Quadrant`].
    Label,
}

impl Column {
    /// The columns in stored order: name, type, meaning and unit (natural logarithms; nats).
    pub const ALL: [(Column, &'static str, ColumnType, &'static str); 19] = {
        use Column::*;
        use ColumnType::*;
        [
            (Row, "row", U32, "example, numbered over the whole input"),
            (Turn, "turn", U16, "turn in the example, counted from 0; system prompts and tool results count"),
            (Pos, "pos", U32, "index of the token in the rendered sequence"),
            (Source, "source", Text, "file, or the row's own source field"),
            (TokenId, "token_id", U32, "target token"),
            (Token, "token", Text, "text of the target token"),
            (Begin, "begin", U32, "first byte in the turn's text"),
            (
                End,
                "end",
                U32,
                "byte after the last; equal to begin if the token is not part of the content, but of reasoning, a tool call or the template",
            ),
            (Logprob, "logprob", F32, "ln p of the target"),
            (Entropy, "entropy", F32, "entropy over the whole vocabulary, nats: 0 to ln V"),
            (
                EntropyTopk,
                "entropy_topk",
                F32,
                "entropy of the 20 most probable tokens, renormalised and divided by ln 20: 0 to 1, not nats",
            ),
            (Rank, "rank", U32, "1 + number of tokens with a larger logit"),
            (Tail, "tail", F32, "probability mass of all tokens no more probable than the target"),
            (Varentropy, "varentropy", F32, "variance of -ln p under the model, nats^2"),
            (Grad, "grad", F32, "L2 norm of the cross-entropy gradient with respect to the logits"),
            (TopId, "top_id", U32, "the model's first choice"),
            (Top, "top", Text, "text of the model's first choice"),
            (TopLogprob, "top_logprob", F32, "ln p of the model's first choice"),
            (Quadrant, "quadrant", Label, "confident_conflict, uncertain, confident or hesitant"),
        ]
    };

    /// Returns the name in files.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// Returns the storage type.
    pub fn column_type(self) -> ColumnType {
        Self::ALL[self as usize].2
    }
}

/// Columns of consecutive tokens as plain vectors, so that later passes are loops over slices. A column that was not requested is empty; every
/// other one has [`TokenChunk::len`] entries. Units are those of [`Column::ALL`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenChunk {
    pub row: Vec<u32>,
    pub turn: Vec<u16>,
    pub pos: Vec<u32>,
    /// Indices into [`TokenChunk::sources`].
    pub source: Vec<u32>,
    pub token_id: Vec<u32>,
    pub begin: Vec<u32>,
    pub end: Vec<u32>,
    pub logprob: Vec<f32>,
    pub entropy: Vec<f32>,
    pub entropy_topk: Vec<f32>,
    pub rank: Vec<u32>,
    pub tail: Vec<f32>,
    pub varentropy: Vec<f32>,
    pub grad: Vec<f32>,
    pub top_id: Vec<u32>,
    pub top_logprob: Vec<f32>,
    pub quadrant: Vec<Quadrant>,
    /// The names of the sources seen so far in this read. Later chunks only append, so an index keeps its meaning.
    pub sources: Arc<Vec<String>>,
    len: usize,
}

impl TokenChunk {
    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets the number of tokens, for tests that fill in the columns themselves.
    #[cfg(test)]
    pub(crate) fn with_len(self, len: usize) -> TokenChunk {
        TokenChunk { len, ..self }
    }

    /// Appends the wanted tokens of another chunk of the same read. Both have the same columns.
    pub(crate) fn append_where(&mut self, other: &TokenChunk, wanted: impl Fn(usize) -> bool) {
        let wanted: Vec<usize> = (0..other.len).filter(|&i| wanted(i)).collect();
        fn append<T: Copy>(own: &mut Vec<T>, other: &[T], wanted: &[usize]) {
            own.extend(wanted.iter().filter_map(|&i| other.get(i)));
        }
        // Without `..`, so that a new column is a compile error here.
        let TokenChunk {
            row,
            turn,
            pos,
            source,
            token_id,
            begin,
            end,
            logprob,
            entropy,
            entropy_topk,
            rank,
            tail,
            varentropy,
            grad,
            top_id,
            top_logprob,
            quadrant,
            sources,
            len,
        } = self;
        append(row, &other.row, &wanted);
        append(turn, &other.turn, &wanted);
        append(pos, &other.pos, &wanted);
        append(source, &other.source, &wanted);
        append(token_id, &other.token_id, &wanted);
        append(begin, &other.begin, &wanted);
        append(end, &other.end, &wanted);
        append(logprob, &other.logprob, &wanted);
        append(entropy, &other.entropy, &wanted);
        append(entropy_topk, &other.entropy_topk, &wanted);
        append(rank, &other.rank, &wanted);
        append(tail, &other.tail, &wanted);
        append(varentropy, &other.varentropy, &wanted);
        append(grad, &other.grad, &wanted);
        append(top_id, &other.top_id, &wanted);
        append(top_logprob, &other.top_logprob, &wanted);
        append(quadrant, &other.quadrant, &wanted);
        *sources = Arc::clone(&other.sources);
        *len += wanted.len();
    }

    /// Drops tokens with an infinite or NaN value, and returns their number.
    pub fn retain_finite(&mut self) -> usize {
        let TokenChunk { logprob, entropy, entropy_topk, tail, varentropy, grad, top_logprob, .. } = &*self;
        let fractions: [&[f32]; 7] = [logprob, entropy, entropy_topk, tail, varentropy, grad, top_logprob];
        // Usually there is nothing to drop.
        if fractions.iter().all(|column| column.iter().all(|value| value.is_finite())) {
            return 0;
        }
        let is_finite = |i: usize| fractions.iter().all(|column| column.get(i).is_none_or(|value| value.is_finite()));
        let mut kept = TokenChunk::default();
        kept.append_where(self, is_finite);
        let n_dropped = self.len - kept.len;
        *self = kept;
        n_dropped
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
