//! The norms of token vectors, which reveal tokens that training never touched.

use super::Model;
use crate::error::Result;
use crate::kernels::matmul::Matrix;

/// L2 norms of rows of the embedding, or of the head if that is another matrix.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Norms {
    /// The norms of the requested tokens, in their order.
    pub tokens: Vec<f32>,
    /// The median norm over the vocabulary.
    pub median: f32,
}

impl Model {
    pub(crate) fn embedding_norms(&self, ids: &[u32]) -> Result<Norms> {
        norms(&self.decoder.embedding, ids)
    }

    /// Returns `None` if the head is the embedding.
    pub(crate) fn head_norms(&self, ids: &[u32]) -> Result<Option<Norms>> {
        if self.config.tied { Ok(None) } else { norms(self.head(), ids).map(Some) }
    }
}

/// The most tokens, spread over the vocabulary, that the median is taken from: within one or two
/// per cent of the true median.
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
