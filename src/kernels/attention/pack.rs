//! Packs the keys and values of a batch in the order in which the register tiles read them.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::arithmetic::{Arithmetic, AttentionKernel};
use super::factors::Factors;
use super::packed::{Packed, padded};
use super::plan::{GRANULE, Plan};
use super::problem::Problem;
use super::shape::AttentionShape;
use super::strip::as_words;
use crate::kernels::cpu::written;
use crate::kernels::lanes::prefetch;

/// The columns of the projection to pack.
#[derive(Clone, Copy)]
pub(super) enum Part {
    /// The keys, rotated by each row's position.
    Keys,
    Values,
}

impl Packed {
    /// Packs each granule and head as `[16 / factors per word, padded head_dim]`, with words of vertically adjacent factors, padded with
    /// zeros.
    pub(super) fn by_row(problem: &Problem, plan: &Plan, part: Part) -> Packed {
        pack(problem, plan, part, Order::Rows, row_size(problem.factors, problem.shape.head_dim))
    }

    /// Packs each granule and head transposed, as `[words of a row, 16]`: keys by [`Arithmetic::finely`], values by [`Arithmetic::along`],
    /// padded with zeros.
    pub(super) fn by_column(problem: &Problem, plan: &Plan, part: Part) -> Packed {
        let size = match part {
            Part::Keys => key_size(problem.factors, problem.shape.head_dim),
            Part::Values => padded(problem.shape.head_dim) / problem.factors.per_word() * GRANULE,
        };
        pack(problem, plan, part, Order::Columns, size)
    }
}

/// The words of one head's granule packed by row.
pub(super) fn row_size(factors: Factors, head_dim: usize) -> usize {
    padded(head_dim) * GRANULE / factors.per_word()
}

/// The words of one head's granule of keys packed by column. f32 keys need no padding.
pub(super) fn key_size(factors: Factors, head_dim: usize) -> usize {
    match factors {
        #[cfg(target_arch = "x86_64")]
        Factors::Tiles => padded(head_dim) * GRANULE,
        _ => head_dim * GRANULE,
    }
}

#[derive(Clone, Copy)]
enum Order {
    Rows,
    Columns,
}

fn pack(problem: &Problem, plan: &Plan, part: Part, order: Order, size: usize) -> Packed {
    let kv_heads = problem.shape.kv_heads;
    let fill = |packed: &mut [MaybeUninit<u32>]| {
        // One task packs all heads of a granule, so that the projection is read from front to back.
        let granules = packed.par_chunks_mut(kv_heads * size).enumerate();
        granules.with_min_len(4).for_each_init(
            || vec![0.0; GRANULE * padded(problem.shape.head_dim)],
            |rows, (granule, packed)| problem.run(Pack { problem, plan, granule, part, order, rows, packed }),
        );
    };
    // SAFETY: `Pack` writes every element of its granule.
    let words = unsafe { written(plan.rows.len() * kv_heads * size, fill) };
    Packed { words, kv_heads, size }
}

struct Pack<'a> {
    problem: &'a Problem<'a>,
    plan: &'a Plan,
    granule: usize,
    part: Part,
    order: Order,
    /// Scratch for one granule of one head, with zeros after each row's `head_dim` numbers.
    rows: &'a mut [f32],
    /// The destination of the granule.
    packed: &'a mut [MaybeUninit<u32>],
}

impl AttentionKernel for Pack<'_> {
    type Output = ();

    /// Mostly moves data: it uses few explicit vectors, but the compiler may use more.
    #[inline(always)]
    unsafe fn run<A: Arithmetic<S>, const S: usize>(self) {
        let Pack { problem, plan, granule, part, order, rows, packed } = self;
        let tokens = &plan.rows[granule];
        let Problem { qkv, rotary, positions, shape, .. } = *problem;
        let AttentionShape { heads, kv_heads, head_dim, .. } = *shape;
        let width = padded(head_dim);
        let first_head = match part {
            Part::Keys => heads,
            Part::Values => heads + kv_heads,
        };
        // Rows are a whole projection apart, too far for the hardware prefetcher.
        for token in plan.rows.get(granule + 1).into_iter().flatten() {
            prefetch(&qkv[token * shape.columns() + first_head * head_dim..][..kv_heads * head_dim]);
        }
        rows[tokens.len() * width..].fill(0.0);
        for (kv_head, packed) in packed.chunks_exact_mut(packed.len() / kv_heads).enumerate() {
            for (&token, row) in tokens.iter().zip(rows.chunks_exact_mut(width)) {
                let (row, padding) = row.split_at_mut(head_dim);
                row.copy_from_slice(&qkv[token * shape.columns() + (first_head + kv_head) * head_dim..][..head_dim]);
                padding.fill(0.0);
                if let Part::Keys = part {
                    rotary.rotate_head(row, positions[token], 1.0);
                }
            }
            match order {
                Order::Rows => {
                    for (rows, to) in rows.chunks_exact(A::PER_WORD * width).zip(packed.chunks_exact_mut(width)) {
                        // SAFETY: the instructions are there by contract; a row is whole granules, and so is its place.
                        unsafe { A::across(rows.as_ptr(), width, width, to.as_mut_ptr().cast()) };
                    }
                }
                Order::Columns => {
                    for row in rows.chunks_exact_mut(width) {
                        // SAFETY: as above.
                        unsafe {
                            match part {
                                Part::Keys => A::finely(row),
                                Part::Values => A::along(row),
                            }
                        }
                    }
                    let rows = as_words(rows);
                    let (columns, _) = packed.as_chunks_mut::<GRANULE>();
                    for (d, column) in columns.iter_mut().enumerate() {
                        for lane in 0..GRANULE {
                            column[lane].write(rows[lane * width + d]);
                        }
                    }
                }
            }
        }
    }
}
