//! The positions of tokens in their sequences.

use crate::error::{Error, Result};
use crate::kernels::Segment;

/// Each token's position in its sequence. Refuses segments that do not cover `0..tokens` in order, or that
/// see later tokens.
pub fn positions(segments: &[Segment], tokens: usize) -> Result<Vec<usize>> {
    let mut positions = Vec::with_capacity(tokens);
    for segment in segments {
        if segment.tokens.start != positions.len() || segment.tokens.end < segment.tokens.start {
            return Err(Error::new(format!(
                "segment {:?} does not start at token {}, where the last one ended",
                segment.tokens,
                positions.len()
            )));
        }
        let start = segment.tokens.start;
        if let Some(range) = segment.context.iter().find(|range| range.end < range.start || range.end > start) {
            return Err(Error::new(format!(
                "segment {:?} has {range:?} as context, which does not lie before it",
                segment.tokens
            )));
        }
        let before: usize = segment.context.iter().map(|range| range.len()).sum();
        positions.extend((0..segment.tokens.len()).map(|i| before + i));
    }
    if positions.len() != tokens {
        return Err(Error::new(format!("the segments cover {} tokens of a batch of {tokens}", positions.len())));
    }
    Ok(positions)
}
