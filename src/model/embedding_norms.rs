//! How long the vectors of tokens are: those that training never touched stand out.

use super::Model;
use crate::error::Result;
use crate::kernels::matmul::Matrix;

/// L2 norms of rows of the embedding, or of the head where that is another matrix.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Norms {
    /// The norms of the tokens that were asked for, in that order.
    pub tokens: Vec<f32>,
    /// The median of the norms of the vocabulary.
    pub median: f32,
}

impl Model {
    pub(crate) fn embedding_norms(&self, ids: &[u32]) -> Result<Norms> {
        norms(&self.decoder.embedding, ids)
    }

    /// `None` where the head is the embedding.
    pub(crate) fn head_norms(&self, ids: &[u32]) -> Result<Option<Norms>> {
        if self.config.tied { Ok(None) } else { norms(self.head(), ids).map(Some) }
    }
}

/// Tokens from all over the vocabulary, whose median is the vocabulary's but for a per cent or two.
const N_SAMPLED: usize = 4096;

fn norms(matrix: &Matrix, ids: &[u32]) -> Result<Norms> {
    let n_rows = matrix.out_features();
    let of = |ids: &[u32]| -> Result<Vec<f32>> {
        if ids.is_empty() { Ok(Vec::new()) } else { Ok(matrix.rows(ids)?.sqr()?.sum(1)?.sqrt()?.to_vec1()?) }
    };
    let sampled: Vec<u32> = (0..n_rows).step_by(n_rows.div_ceil(N_SAMPLED).max(1)).map(|id| id as u32).collect();
    let mut all = of(&sampled)?;
    all.sort_by(f32::total_cmp);
    Ok(Norms { tokens: of(ids)?, median: all.get(all.len() / 2).copied().unwrap_or(0.0) })
}
