//! Weights in MXFP4 as in the checkpoints of gpt-oss. A stack `[E, inputs, outputs]` called NAME is stored as `NAME_blocks`
//! `[E, outputs, inputs / 32, 16]`, bytes of two numbers each, and `NAME_scales` `[E, outputs, inputs / 32]`, powers of 2. All values are
//! exact in f32. Reference: Transformers, `integrations/mxfp4.py`, `convert_moe_packed_tensors`.

use candle_core::{Device, Tensor};

use super::quants::mxfp4_in_pairs;
use crate::error::{Error, Result};

pub(super) const BLOCKS: &str = "_blocks";
pub(super) const SCALES: &str = "_scales";

/// The number of values in a block, which share a scale, and their bytes.
const BLOCK: usize = 32;
const BLOCK_BYTES: usize = BLOCK / 2;
/// The scale that encodes NaN.
const NAN: u8 = 255;

/// The shapes of blocks and scales for a stack of `shape` called `name`.
pub(super) fn shapes(name: &str, shape: &[usize]) -> Result<(Vec<usize>, Vec<usize>)> {
    match *shape {
        [count, inputs, outputs] if inputs.is_multiple_of(BLOCK) => {
            let blocks = inputs / BLOCK;
            Ok((vec![count, outputs, blocks, BLOCK_BYTES], vec![count, outputs, blocks]))
        }
        _ => Err(Error::new(format!(
            "tensor `{name}`: {shape:?} is not a valid shape for MXFP4, whose blocks are {BLOCK} inputs long"
        ))),
    }
}

/// Decodes the values of a whole stack or of one part, in `shape`, from their blocks and scales.
pub(super) fn unpack(name: &str, shape: &[usize], blocks: &[u8], scales: &[u8]) -> Result<Tensor> {
    if scales.contains(&NAN) {
        return Err(Error::new(format!("tensor `{name}{SCALES}` holds the scale {NAN}, which is not a number"))
            .cure("Download the file again; the usual reason is an interrupted download."));
    }
    let mut values = vec![0.0; scales.len() * BLOCK];
    for ((&scale, block), values) in scales.iter().zip(blocks.chunks_exact(BLOCK_BYTES)).zip(values.chunks_exact_mut(BLOCK)) {
        mxfp4_in_pairs(scale, block, values);
    }
    let mut stored = shape.to_vec();
    let rank = stored.len();
    stored.swap(rank - 2, rank - 1);
    Ok(Tensor::from_vec(values, stored, &Device::Cpu)?.t()?.contiguous()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two outputs of 32 inputs: 0.5, 1, 1.5, .. and their negatives, times 2 and times a quarter.
    #[test]
    fn by_hand() {
        let (blocks, scales) = shapes("x", &[1, 32, 2]).unwrap();
        assert_eq!((blocks.as_slice(), scales.as_slice()), (&[1, 2, 1, 16][..], &[1, 2, 1][..]));
        let block: Vec<u8> = (0..16).map(|i| (i * 2 % 16) | ((i * 2 + 1) % 16) << 4).collect();
        let x = unpack("x", &[32, 2], &[block.clone(), block].concat(), &[128, 125]).unwrap().to_vec2::<f32>().unwrap();
        let e2m1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
        for (input, row) in x.iter().enumerate() {
            assert_eq!(row, &[e2m1[input % 16] * 2.0, e2m1[input % 16] * 0.25]);
        }
        assert!(unpack("x", &[32, 2], &[0; 32], &[1, 255]).unwrap_err().to_string().contains("x_scales"));
        assert!(shapes("x", &[1, 33, 2]).is_err() && shapes("x", &[32, 2]).is_err());
    }
}
