//! The product `x W^T` with a weight that stays in the 8- or 4-bit blocks of its file.
//!
//! Shapes as in [`matmul`](super::matmul): `T` tokens, `K` inputs, `N` outputs. A block of 16 or 32 neighbouring inputs of one output has a scale
//! `d`, optionally a minimum `m`, and small integers `q`: `w = d q + m`. The product is
//!
//! ```text
//! y = sum over blocks of  d (sum over the block of q x)  +  m (sum over the block of x)
//! ```
//!
//! with every `q`, `d` and `m` exact and all sums in f32. It equals the product with the dequantised weight, except for the order of f32 rounding;
//! unlike in most implementations, inputs are not rounded to eight bits. (Dot products of bytes, with three bytes per input, were a twentieth
//! faster for one row and a sixth slower for sixteen.) A decoding step, which spends its time reading the weights, has a sixth to a third of the
//! bytes to read.
//!
//! ```text
//! blocks.rs      the storage format
//! task.rs        what a thread processes at a time
//! product.rs     the product
//! ```

mod blocks;
mod product;
mod task;

pub(crate) use blocks::{Blocks, Form, Group};
pub(super) use product::multiply;

#[cfg(test)]
mod tests;
