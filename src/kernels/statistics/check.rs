//! Checks that hidden states, head, targets and options fit together.

use candle_core::{DType, Tensor};

use super::options::HeadOptions;
use crate::error::{Error, Result};
use crate::kernels::matmul::Matrix;

/// Returns the number of hidden states.
pub(super) fn check_hidden(hidden_nd: &Tensor, head_vd: &Matrix) -> Result<usize> {
    match hidden_nd.dims() {
        [n_rows, width] if *width == head_vd.in_features() && hidden_nd.dtype() == DType::F32 => Ok(*n_rows),
        found => Err(Error::new(format!(
            "a head of width {width} takes hidden states [N, {width}] f32, and got {found:?} {dtype:?}",
            width = head_vd.in_features(),
            dtype = hidden_nd.dtype()
        ))),
    }
}

/// Returns an error unless hidden states, head, targets and options fit together.
pub(super) fn check(hidden_nd: &Tensor, head_vd: &Matrix, targets: &[u32], options: &HeadOptions) -> Result<()> {
    let (n_rows, vocabulary) = (check_hidden(hidden_nd, head_vd)?, head_vd.out_features());
    if n_rows != targets.len() {
        return Err(Error::new(format!("{n_rows} hidden states came with {} targets", targets.len())));
    }
    if let Some(target) = targets.iter().find(|&&target| target as usize >= vocabulary) {
        return Err(Error::new(format!("token id {target} lies outside the model's vocabulary of {vocabulary}"))
            .cure("The tokenizer and the weights do not match."));
    }
    if options.top_k == 0 {
        return Err(Error::new("the entropy over the K largest logits needs K >= 1, and got K = 0"));
    }
    Ok(())
}
