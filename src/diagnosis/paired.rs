//! The tokens of two scorings of the same data set, paired by row, position and token id in one pass over both tables, which are sorted by
//! row and position. A run under another template or with other data shows in the number of tokens that stand on one side only.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::table::{Chunks, Column, Quadrant, TOKENS_FILE, TokenChunk, read_chunks};

const COLUMNS: [Column; 12] = [
    Column::Row,
    Column::Turn,
    Column::Pos,
    Column::Source,
    Column::TokenId,
    Column::Begin,
    Column::End,
    Column::Logprob,
    Column::Entropy,
    Column::Rank,
    Column::TopId,
    Column::Quadrant,
];

/// A token on one side.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token {
    pub row: u32,
    pub pos: u32,
    pub token_id: u32,
    pub turn: u16,
    /// Among the names that [`each_pair`] gives; of the side before.
    pub source: u32,
    pub begin: u32,
    pub end: u32,
    pub logprob: f32,
    pub entropy: f32,
    pub rank: u32,
    pub top_id: u32,
    pub quadrant: Quadrant,
}

/// What stands on one side only, and the names of the sources before.
pub(super) struct Rest {
    /// Tokens that the run after does not have.
    pub only_before: u64,
    /// Tokens that the run before does not have.
    pub only_after: u64,
    /// The names of the sources before.
    pub sources: Arc<Vec<String>>,
}

/// Visits the pairs in the order of the data. Both are run folders.
pub(super) fn each_pair(before: &Path, after: &Path, mut visit: impl FnMut(&Token, &Token)) -> Result<Rest> {
    let mut left = Stream::open(before);
    let mut right = Stream::open(after);
    let (mut only_before, mut only_after, mut n_pairs) = (0, 0, 0u64);
    let (mut x, mut y) = (left.next()?, right.next()?);
    loop {
        match (x, y) {
            (None, None) => break,
            (Some(a), Some(b)) if a.key() == b.key() => {
                n_pairs += 1;
                visit(&a, &b);
                (x, y) = (left.next()?, right.next()?);
            }
            (Some(a), b) if b.is_none_or(|b| a.key() < b.key()) => {
                only_before += 1;
                x = left.next()?;
            }
            _ => {
                only_after += 1;
                y = right.next()?;
            }
        }
    }
    if n_pairs == 0 {
        return Err(Error::new("the two runs have no token in common: nothing stands at the same row and position")
            .cure("Compare runs over the same data files with the same template."));
    }
    Ok(Rest { only_before, only_after, sources: left.chunk.sources })
}

impl Token {
    fn key(&self) -> (u32, u32, u32) {
        (self.row, self.pos, self.token_id)
    }
}

/// The tokens of a table one by one.
struct Stream {
    path: PathBuf,
    chunks: Chunks,
    chunk: TokenChunk,
    at: usize,
    last: (u32, u32, u32),
}

impl Stream {
    fn open(folder: &Path) -> Stream {
        let path = folder.join(TOKENS_FILE);
        let chunks = read_chunks(std::slice::from_ref(&path), &COLUMNS);
        Stream { path, chunks, chunk: TokenChunk::default(), at: 0, last: (0, 0, 0) }
    }

    fn next(&mut self) -> Result<Option<Token>> {
        while self.at == self.chunk.len() {
            match self.chunks.next() {
                Some(chunk) => (self.chunk, self.at) = (chunk?, 0),
                None => return Ok(None),
            }
        }
        let (chunk, at) = (&self.chunk, self.at);
        let token = Token {
            row: chunk.row[at],
            pos: chunk.pos[at],
            token_id: chunk.token_id[at],
            turn: chunk.turn[at],
            source: chunk.source[at],
            begin: chunk.begin[at],
            end: chunk.end[at],
            logprob: chunk.logprob[at],
            entropy: chunk.entropy[at],
            rank: chunk.rank[at],
            top_id: chunk.top_id[at],
            quadrant: chunk.quadrant[at],
        };
        if token.key() < self.last {
            return Err(Error::new(format!("the table is not sorted by row and position: row {} comes too late", token.row))
                .at(&self.path)
                .cure("Compare tables as the program wrote them."));
        }
        self.last = token.key();
        self.at += 1;
        Ok(Some(token))
    }
}
