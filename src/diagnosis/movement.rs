//! Two scorings of the same data set -> how its tokens moved between the quadrants.
//!
//! Tokens are paired by row, position and token id in one pass over both tables, which are sorted by row and position. A run
//! under another template or with other data shows in the number of tokens that stand on one side only.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::table::{Chunks, Column, Quadrant, TOKENS_FILE, TokenChunk, read_chunks};

/// diff.json of two score runs. Quadrants are in the order of [`Quadrant::ALL`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Movement {
    pub before: String,
    pub after: String,
    /// Tokens on both sides.
    pub tokens: u64,
    pub tokens_only_before: u64,
    pub tokens_only_after: u64,
    /// `moved[i][j]`: tokens of quadrant i before and j after.
    pub moved: [[u64; 4]; 4],
    /// Means over the tokens of a quadrant before.
    pub by_quadrant: [Change; 4],
    pub overall: Change,
}

/// Nats, after minus before; `None` where there is no token.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Change {
    pub tokens: u64,
    pub logprob: Option<f64>,
    pub entropy: Option<f64>,
}

const COLUMNS: [Column; 6] = [Column::Row, Column::Pos, Column::TokenId, Column::Logprob, Column::Entropy, Column::Quadrant];

/// Both are run folders.
pub fn compare(before: &Path, after: &Path) -> Result<Movement> {
    let mut left = Stream::open(before);
    let mut right = Stream::open(after);
    let (mut moved, mut sums) = ([[0; 4]; 4], [(0u64, 0.0, 0.0); 4]);
    let (mut only_before, mut only_after) = (0, 0);
    let (mut x, mut y) = (left.next()?, right.next()?);
    loop {
        match (x, y) {
            (None, None) => break,
            (Some(a), Some(b)) if a.key == b.key => {
                moved[a.quadrant.index()][b.quadrant.index()] += 1;
                let sum = &mut sums[a.quadrant.index()];
                sum.0 += 1;
                sum.1 += f64::from(b.logprob) - f64::from(a.logprob);
                sum.2 += f64::from(b.entropy) - f64::from(a.entropy);
                (x, y) = (left.next()?, right.next()?);
            }
            (Some(a), b) if b.is_none_or(|b| a.key < b.key) => {
                only_before += 1;
                x = left.next()?;
            }
            _ => {
                only_after += 1;
                y = right.next()?;
            }
        }
    }
    let total = sums.iter().fold((0, 0.0, 0.0), |sum, own| (sum.0 + own.0, sum.1 + own.1, sum.2 + own.2));
    if total.0 == 0 {
        return Err(Error::new("the two runs have no token in common: nothing stands at the same row and position")
            .cure("Compare runs over the same data files with the same template."));
    }
    let change = |(tokens, logprob, entropy): (u64, f64, f64)| {
        let mean = |sum: f64| (tokens > 0).then(|| sum / tokens as f64);
        Change { tokens, logprob: mean(logprob), entropy: mean(entropy) }
    };
    Ok(Movement {
        before: before.display().to_string(),
        after: after.display().to_string(),
        tokens: total.0,
        tokens_only_before: only_before,
        tokens_only_after: only_after,
        moved,
        by_quadrant: sums.map(change),
        overall: change(total),
    })
}

#[derive(Debug, Clone, Copy)]
struct Token {
    /// Row, position, token id.
    key: (u32, u32, u32),
    logprob: f32,
    entropy: f32,
    quadrant: Quadrant,
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
        let key = (chunk.row[at], chunk.pos[at], chunk.token_id[at]);
        if key < self.last {
            return Err(Error::new(format!("the table is not sorted by row and position: row {} comes too late", key.0))
                .at(&self.path)
                .cure("Compare tables as the program wrote them."));
        }
        self.last = key;
        self.at += 1;
        Ok(Some(Token { key, logprob: chunk.logprob[at], entropy: chunk.entropy[at], quadrant: chunk.quadrant[at] }))
    }
}
