//! The trained parameters of the rule.

use candle_core::{DType, Tensor};

use super::shape::DeltaShape;
use crate::error::{Error, Result};

/// The trained parameters besides the projections.
pub struct DeltaWeights {
    /// `[channels, kernel]`
    pub convolution: Tensor,
    /// `[value_heads]`: the logarithm of the rate at which a head forgets.
    pub a_log: Tensor,
    /// `[value_heads]`, added to `a`.
    pub dt_bias: Tensor,
}

/// The parameters, or their gradients, as numbers.
pub(in crate::kernels) struct DeltaNumbers {
    /// `[channels, kernel]`, row-major.
    pub convolution: Vec<f32>,
    /// `[value_heads]`
    pub a_log: Vec<f32>,
    /// `[value_heads]`
    pub dt_bias: Vec<f32>,
}

impl DeltaNumbers {
    pub(in crate::kernels) fn new(weights: &DeltaWeights, shape: DeltaShape) -> Result<DeltaNumbers> {
        let numbers = |tensor: &Tensor, what: &str, expected: &[usize]| -> Result<Vec<f32>> {
            if tensor.dims() != expected {
                return Err(Error::new(format!("{what} is {:?}; expected {expected:?}", tensor.dims())));
            }
            Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
        };
        Ok(DeltaNumbers {
            convolution: numbers(&weights.convolution, "the convolution", &[shape.channels(), shape.kernel])?,
            a_log: numbers(&weights.a_log, "A_log", &[shape.value_heads])?,
            dt_bias: numbers(&weights.dt_bias, "dt_bias", &[shape.value_heads])?,
        })
    }
}
