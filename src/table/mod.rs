//! The token table: what the model believed about every supervised token, one row each, and one row per example beside it.
//!
//! ```text
//! scored examples -> parts/tokens-00000.parquet, parts/rows-00000.parquet, ...   (write.rs, while the engine runs)
//!                 -> tokens.parquet with the quadrant column, rows.parquet       (finish.rs, at the end, and again when re-sorted)
//!                 -> chunks of the columns a later pass needs                    (read.rs)
//! ```
//!
//! What else stands beside them, and what serves them all:
//!
//! ```text
//! rows.rs         a row per example
//! conflicts.rs    the kinds of the conflicts, and rows that are alike; in_context.rs conflicts with another row shown first
//! alternatives.rs the choices after the first
//! learnt.rs       what training did to each row
//! bounds.rs       columns of scores that came through a server; offline.rs what goes to another engine and comes back from it
//! join.rs         the shards of a run -> one
//! frames.rs       frames -> Parquet; quantiles.rs exact quantiles of columns
//! ```
//!
//! Left out here: which quadrant a token belongs to is decided in `diagnosis::quadrants`; this room only stores the answer. The text
//! columns are Parquet dictionaries (`category` in pandas): at a few bytes a row instead of a string each they keep a table of
//! fifty million tokens usable in a notebook, and nothing has to hash a string per row on the way.

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
pub(crate) use offline::{ANSWERS_FOLDER, Answers, SEQUENCES_FILE, write_sequences};
pub use quantiles::{quantile_of, quantiles};
pub use read::{Chunks, read_chunks, read_provenance, texts_of};
pub use rows::{Row, RowMasses, read_rows};
pub use write::{Part, PartWriter, ScoredExample, SkippedExample, finished_parts};

use crate::spelling::named;

/// Names of the files in a run folder.
pub const TOKENS_FILE: &str = "tokens.parquet";
/// The table of examples.
pub const ROWS_FILE: &str = "rows.parquet";
/// The folder of the parts that are not yet joined.
pub const PARTS_FOLDER: &str = "parts";

/// Tokens per row group of a finished table: 20 MB decoded, so that a streaming pass stays small whatever the table's size.
pub const ROW_GROUP_TOKENS: usize = 1 << 18;

/// Where a token stands by low or high probability and low or high entropy; see `diagnosis::quadrants` for the thresholds. The order is that of
/// the category codes in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Quadrant {
    /// Low p, low H: the model is sure, and the data says otherwise.
    ConfidentConflict,
    /// Low p, high H: the model does not know.
    Uncertain,
    /// High p, low H: what the model expected, nearly always its first choice.
    Confident,
    /// High p, high H: one of several tokens that the model thought likely, mostly its first choice.
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
    /// Position in [`Quadrant::ALL`]; also the stored category code.
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

/// How a column is stored.
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
            (End, "end", U32, "byte after the last; equal to begin if the token is part of the template"),
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

    /// The name in files.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// How the column is stored.
    pub fn column_type(self) -> ColumnType {
        Self::ALL[self as usize].2
    }
}

/// Columns of a run of tokens, plain vectors so that later passes are loops over slices. A column that was not asked for is
/// empty; every other one has [`TokenChunk::len`] entries. Units are those of [`Column::ALL`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenChunk {
    pub row: Vec<u32>,
    pub turn: Vec<u16>,
    pub pos: Vec<u32>,
    /// Index into [`TokenChunk::sources`].
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
    /// Names of the sources seen so far in this read. Later chunks only append, so an index means the same in all of them.
    pub sources: Arc<Vec<String>>,
    len: usize,
}

impl TokenChunk {
    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Are there no tokens?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The chunk with `len` as its number of tokens, for tests that fill in the columns themselves.
    #[cfg(test)]
    pub(crate) fn with_len(self, len: usize) -> TokenChunk {
        TokenChunk { len, ..self }
    }

    /// Appends those of the tokens of another chunk of the same read that are wanted. Both have the same columns.
    pub(crate) fn append_where(&mut self, other: &TokenChunk, wanted: impl Fn(usize) -> bool) {
        let wanted: Vec<usize> = (0..other.len).filter(|&i| wanted(i)).collect();
        fn append<T: Copy>(own: &mut Vec<T>, other: &[T], wanted: &[usize]) {
            own.extend(wanted.iter().filter_map(|&i| other.get(i)));
        }
        // Without `..`, so that the compiler asks for a new column.
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

    /// Drops the tokens one of whose fractions is infinite or not a number, and says how many.
    pub fn retain_finite(&mut self) -> usize {
        let TokenChunk { logprob, entropy, entropy_topk, tail, varentropy, grad, top_logprob, .. } = &*self;
        let fractions: [&[f32]; 7] = [logprob, entropy, entropy_topk, tail, varentropy, grad, top_logprob];
        // Nearly always there is nothing to drop.
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
