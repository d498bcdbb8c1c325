//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864): the tables, and the plain form of the rotation.
//!
//! The fused rotation is part of the attention kernel, which processes each row anyway. Angles are computed in f64, because
//! at position 4,000 the product of position and frequency has lost four digits in f32.

use std::sync::Arc;

use candle_core::{D, Tensor};

use crate::error::{Error, Result};

/// Which elements of a head are rotated as a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotaryStyle {
    /// Elements `i` and `i + rotary_dim / 2`: GPT-NeoX, and Llama and Qwen as stored by Hugging Face.
    Half,
    /// Elements `2 i` and `2 i + 1`: GPT-J, GLM, and Llama as stored in GGUF.
    Interleaved,
}

/// The cosines and sines for every position and pair; cheap to clone.
#[derive(Debug, Clone)]
pub struct Rotary {
    pub(crate) style: RotaryStyle,
    /// The number of pairs per head; the first `2 * pairs` elements of a head are rotated, the others are unchanged.
    pub(crate) pairs: usize,
    max_positions: usize,
    /// `[max_positions, pairs]`
    pub(crate) cos: Arc<[f32]>,
    pub(crate) sin: Arc<[f32]>,
}

impl Rotary {
    /// Computes the tables from one frequency per pair. `rotary_dim = 2 * inverse_frequencies.len()` may be less than the
    /// head's width; without frequencies there is no rotation. `attention_scaling` multiplies the tables (YaRN and LongRoPE;
    /// otherwise 1).
    pub fn new(inverse_frequencies: &[f64], max_positions: usize, style: RotaryStyle, attention_scaling: f32) -> Self {
        let angles = || (0..max_positions).flat_map(|position| inverse_frequencies.iter().map(move |f| position as f64 * f));
        let scaling = f64::from(attention_scaling);
        Self {
            style,
            pairs: inverse_frequencies.len(),
            max_positions,
            cos: angles().map(|angle| (angle.cos() * scaling) as f32).collect(),
            sin: angles().map(|angle| (angle.sin() * scaling) as f32).collect(),
        }
    }

    /// The number of elements of a head that are rotated.
    pub fn rotary_dim(&self) -> usize {
        2 * self.pairs
    }

    /// The number of positions in the tables.
    pub fn max_positions(&self) -> usize {
        self.max_positions
    }

    /// Refuses heads narrower than the rotation and positions beyond the tables.
    pub(crate) fn check(&self, head_dim: usize, positions: &[usize]) -> Result<()> {
        if self.rotary_dim() > head_dim {
            return Err(Error::new(format!("the rotary embedding turns {} elements, a head has {head_dim}", self.rotary_dim())));
        }
        match positions.iter().max() {
            Some(&last) if self.pairs > 0 && last >= self.max_positions => {
                Err(Error::new(format!("position {last} lies beyond the rotary tables, which hold {}", self.max_positions))
                    .cure("Lower --max-len or build the tables for longer sequences."))
            }
            _ => Ok(()),
        }
    }

    /// Rotates one head in place; with `sign` -1 by the inverse rotation, which is also the transpose, for gradients.
    #[inline(always)]
    pub(crate) fn rotate_head(&self, head: &mut [f32], position: usize, sign: f32) {
        let table = position * self.pairs..(position + 1) * self.pairs;
        let turns = self.cos[table.clone()].iter().zip(&self.sin[table]);
        let turning = &mut head[..2 * self.pairs];
        let turn = |a: &mut f32, b: &mut f32, cos: f32, sin: f32| (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        match self.style {
            RotaryStyle::Half => {
                let (first, second) = turning.split_at_mut(self.pairs);
                first.iter_mut().zip(second).zip(turns).for_each(|((a, b), (cos, sin))| turn(a, b, *cos, sign * sin));
            }
            RotaryStyle::Interleaved => {
                let (pairs, _) = turning.as_chunks_mut::<2>();
                pairs.iter_mut().zip(turns).for_each(|([a, b], (cos, sin))| turn(a, b, *cos, sign * sin));
            }
        }
    }

    /// The reference rotation of `x [T, heads, head_dim]`, f32; row `t` has the position `positions[t]`.
    pub(crate) fn rotate(&self, x: &Tensor, positions: &[usize]) -> Result<Tensor> {
        if self.pairs == 0 {
            return Ok(x.clone());
        }
        let (tokens, heads, head_dim) = x.dims3()?;
        let table = |values: &[f32]| -> Result<Tensor> {
            let rows: Vec<f32> = positions.iter().flat_map(|p| &values[p * self.pairs..(p + 1) * self.pairs]).copied().collect();
            Ok(Tensor::from_vec(rows, (tokens, 1, self.pairs), x.device())?)
        };
        let (cos, sin) = (table(&self.cos)?, table(&self.sin)?);
        let turning = x.narrow(D::Minus1, 0, self.rotary_dim())?;
        let (a, b) = match self.style {
            RotaryStyle::Half => (turning.narrow(2, 0, self.pairs)?, turning.narrow(2, self.pairs, self.pairs)?),
            RotaryStyle::Interleaved => {
                let pairs = turning.contiguous()?.reshape((tokens, heads, self.pairs, 2))?;
                (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?)
            }
        };
        let new_a = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let new_b = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        let turned = match self.style {
            RotaryStyle::Half => Tensor::cat(&[new_a, new_b], 2)?,
            RotaryStyle::Interleaved => Tensor::stack(&[new_a, new_b], 3)?.reshape((tokens, heads, self.rotary_dim()))?,
        };
        if self.rotary_dim() == head_dim {
            return Ok(turned);
        }
        let resting = x.narrow(2, self.rotary_dim(), head_dim - self.rotary_dim())?;
        Ok(Tensor::cat(&[turned, resting], 2)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn a_quarter_turn_by_hand() {
        // One pair with frequency pi / 2: position 1 rotates (1, 2) to (-2, 1); the third element is unchanged.
        let x = Tensor::new(&[[[1f32, 2.0, 5.0]]], &Device::Cpu).unwrap();
        for style in [RotaryStyle::Half, RotaryStyle::Interleaved] {
            let rotary = Rotary::new(&[std::f64::consts::FRAC_PI_2], 2, style, 1.0);
            let y = rotary.rotate(&x, &[1]).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!((y[0] + 2.0).abs() < 1e-6 && (y[1] - 1.0).abs() < 1e-6 && y[2] == 5.0, "{y:?}");
        }
    }

    #[test]
    fn styles_pair_different_elements() {
        let x = Tensor::new(&[[[1f32, 2.0, 3.0, 4.0]]], &Device::Cpu).unwrap();
        let turned = |style| {
            let rotary = Rotary::new(&[std::f64::consts::FRAC_PI_2, 0.0], 2, style, 2.0);
            rotary
                .rotate(&x, &[1])
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap()
                .iter()
                .map(|x| x.round())
                .collect::<Vec<_>>()
        };
        // Scaled by 2; `Half` rotates (1, 3) and keeps (2, 4), `Interleaved` rotates (1, 2) and keeps (3, 4).
        assert_eq!(turned(RotaryStyle::Half), [-6.0, 4.0, 2.0, 8.0]);
        assert_eq!(turned(RotaryStyle::Interleaved), [-4.0, 2.0, 6.0, 8.0]);
    }

    #[test]
    fn positions_beyond_the_tables_are_refused() {
        let rotary = Rotary::new(&[1.0], 2, RotaryStyle::Half, 1.0);
        assert!(rotary.check(2, &[0, 1]).is_ok());
        assert!(rotary.check(2, &[2]).unwrap_err().message().contains("position 2"));
        assert!(rotary.check(1, &[0]).is_err());
    }
}
