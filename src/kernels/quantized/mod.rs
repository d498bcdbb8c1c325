//! `x W^T` against a weight that stays in the 8- or 4-bit blocks of its file.
//!
//! Shapes as in [`matmul`](super::matmul): `T` tokens, `K` inputs, `N` outputs. A block of 16 or 32 neighbouring inputs of one output has
//! a scale `d`, perhaps a least value `m`, and small whole numbers `q`: `w = d q + m`. The product is
//!
//! ```text
//! y = sum over blocks of  d (sum over the block of q x)  +  m (sum over the block of x)
//! ```
//!
//! with every `q`, `d` and `m` exact and all sums in f32. It is the product of the dequantised weight up to the order in which f32 numbers
//! are rounded, and no factor of it is rounded to eight bits, as is usual elsewhere. (Dot products of bytes, with three bytes for an input, were a
//! twentieth faster for one row and a sixth slower for sixteen.) A step of generation, whose time is that of reading the
//! weights, has a sixth to a third of the bytes to read.
//!
//! ```text
//! blocks.rs      the stored form
//! task.rs        what a thread does at a time
//! product.rs     the product
//! ```

mod blocks;
mod product;
mod task;

pub(crate) use blocks::{Blocks, Form, Group};
pub(super) use product::multiply;

#[cfg(test)]
mod tests;
