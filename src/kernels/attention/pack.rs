//! The keys and values of a batch in the order in which the register tiles read them.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::plan::{GRANULE, Plan};
use super::problem::Problem;
use super::shape::AttentionShape;
use crate::kernels::cpu::written;
use crate::kernels::lanes::{Lanes, prefetch};
use crate::kernels::level::Kernel;

/// The rows of one part of the projection, granule by granule and in each head by head.
pub(super) struct Packed {
    values: Vec<f32>,
    kv_heads: usize,
    /// Floats of one head in one granule.
    size: usize,
}

/// Which columns of the projection, and what to do with them.
#[derive(Clone, Copy)]
pub(super) enum Part {
    /// Turned by each row's position.
    Keys,
    Values,
}

impl Packed {
    /// Each granule and head `[16, padded head_dim]`; zeros where there is nothing.
    pub(super) fn by_row(problem: &Problem, plan: &Plan, part: Part) -> Packed {
        pack(problem, plan, part, Order::Rows, padded(problem.shape.head_dim))
    }

    /// Each granule and head `[head_dim, 16]`, that is, transposed; zeros where there is nothing.
    pub(super) fn by_column(problem: &Problem, plan: &Plan, part: Part) -> Packed {
        pack(problem, plan, part, Order::Columns, problem.shape.head_dim)
    }

    /// Room for so many granules, `size` floats of each head, with nothing in it.
    pub(super) fn zeros(n_granules: usize, kv_heads: usize, size: usize) -> Packed {
        Packed { values: vec![0.0; n_granules * kv_heads * size], kv_heads, size }
    }

    pub(super) fn floats_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    pub(super) fn head(&self, kv_head: usize) -> Head<'_> {
        Head { packed: self, kv_head }
    }
}

/// One head of it.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    packed: &'a Packed,
    kv_head: usize,
}

impl<'a> Head<'a> {
    #[inline(always)]
    pub(super) fn granule(self, granule: usize) -> &'a [f32] {
        let Packed { values, kv_heads, size } = self.packed;
        &values[(granule * kv_heads + self.kv_head) * size..][..*size]
    }
}

/// Rows of a head padded with zeros to whole granules of columns, so that no vector is partial.
pub(super) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(GRANULE)
}

#[derive(Clone, Copy)]
enum Order {
    Rows,
    Columns,
}

fn pack(problem: &Problem, plan: &Plan, part: Part, order: Order, width: usize) -> Packed {
    let (kv_heads, size) = (problem.shape.kv_heads, width * GRANULE);
    let fill = |packed: &mut [MaybeUninit<f32>]| {
        // All heads of a granule in one task: so the projection is read from front to back.
        let granules = packed.par_chunks_mut(kv_heads * size).enumerate();
        granules.with_min_len(4).for_each_init(
            || vec![0.0; GRANULE * problem.shape.head_dim],
            |rows, (granule, packed)| problem.level.run(Pack { problem, plan, granule, part, order, rows, packed }),
        );
    };
    // SAFETY: `Pack` writes every element of its granule.
    let values = unsafe { written(plan.rows.len() * kv_heads * size, fill) };
    Packed { values, kv_heads, size }
}

struct Pack<'a> {
    problem: &'a Problem<'a>,
    plan: &'a Plan,
    granule: usize,
    part: Part,
    order: Order,
    /// Scratch for one granule of one head.
    rows: &'a mut [f32],
    /// The granule's place.
    packed: &'a mut [MaybeUninit<f32>],
}

impl Kernel for Pack<'_> {
    type Output = ();

    /// Mostly moving data: no vectors named here, but the compiler may use them.
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Pack { problem, plan, granule, part, order, rows, packed } = self;
        let tokens = &plan.rows[granule];
        let Problem { qkv, rotary, positions, shape, .. } = *problem;
        let AttentionShape { heads, kv_heads, head_dim, .. } = *shape;
        let first_head = match part {
            Part::Keys => heads,
            Part::Values => heads + kv_heads,
        };
        // The rows lie a projection apart, too far for the hardware to guess the next.
        for token in plan.rows.get(granule + 1).into_iter().flatten() {
            prefetch(&qkv[token * shape.columns() + first_head * head_dim..][..kv_heads * head_dim]);
        }
        rows[tokens.len() * head_dim..].fill(0.0);
        for (kv_head, packed) in packed.chunks_exact_mut(packed.len() / kv_heads).enumerate() {
            for (&token, row) in tokens.iter().zip(rows.chunks_exact_mut(head_dim)) {
                row.copy_from_slice(&qkv[token * shape.columns() + (first_head + kv_head) * head_dim..][..head_dim]);
                if let Part::Keys = part {
                    rotary.rotate_head(row, positions[token], 1.0);
                }
            }
            match order {
                Order::Rows => {
                    for (to, row) in packed.chunks_exact_mut(packed.len() / GRANULE).zip(rows.chunks_exact(head_dim)) {
                        let (to, padding) = to.split_at_mut(head_dim);
                        to.write_copy_of_slice(row);
                        padding.iter_mut().for_each(|x| _ = x.write(0.0));
                    }
                }
                Order::Columns => {
                    let (columns, _) = packed.as_chunks_mut::<GRANULE>();
                    for (d, column) in columns.iter_mut().enumerate() {
                        for lane in 0..GRANULE {
                            column[lane].write(rows[lane * head_dim + d]);
                        }
                    }
                }
            }
        }
    }
}
