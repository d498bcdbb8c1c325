//! The keys and values of a batch in the order in which the register tiles read them.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::AttentionShape;
use super::plan::{GRANULE, Plan};
use crate::kernels::cpu::written;
use crate::kernels::lanes::Lanes;
use crate::kernels::level::{Kernel, Level};
use crate::kernels::rotary::Rotary;

/// Rows of a head padded with zeros to whole granules of columns, so that no vector is partial.
pub fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(GRANULE)
}

/// `[kv_heads, granules, 16, padded head_dim]`: the rows of one part of the projection (keys or values), rotated if `rotary` is
/// given; zeros where a granule has no row.
pub fn by_row(level: Level, qkv: &[f32], plan: &Plan, shape: &AttentionShape, part: Part) -> Vec<f32> {
    let padded = padded(shape.head_dim);
    pack(level, qkv, plan, shape, part, Order { lane_step: padded, element_step: 1, elements: padded })
}

/// `[kv_heads, granules, head_dim, 16]`: the same, transposed within each granule.
pub fn by_column(level: Level, qkv: &[f32], plan: &Plan, shape: &AttentionShape, part: Part) -> Vec<f32> {
    pack(level, qkv, plan, shape, part, Order { lane_step: 1, element_step: GRANULE, elements: shape.head_dim })
}

/// Which columns of the projection, and what to do with them.
#[derive(Clone, Copy)]
pub enum Part<'a> {
    /// Rotated by each row's position.
    Keys(&'a Rotary, &'a [usize]),
    Values,
}

#[derive(Clone, Copy)]
struct Order {
    lane_step: usize,
    element_step: usize,
    /// Elements of a row, at least `head_dim`.
    elements: usize,
}

fn pack(level: Level, qkv: &[f32], plan: &Plan, shape: &AttentionShape, part: Part, order: Order) -> Vec<f32> {
    let granules = plan.rows.len();
    let size = order.elements * GRANULE;
    let first_head = match part {
        Part::Keys(..) => shape.heads,
        Part::Values => shape.heads + shape.kv_heads,
    };
    let fill = |packed: &mut [MaybeUninit<f32>]| {
        packed.par_chunks_mut(size).enumerate().with_min_len(4).for_each_init(
            || vec![0.0; shape.head_dim],
            |head, (i, granule)| {
                let column = (first_head + i / granules) * shape.head_dim;
                let rows = plan.rows[i % granules].clone();
                let row = |t: usize| &qkv[t * shape.columns() + column..][..shape.head_dim];
                level.run(Pack { row, rows, part, order, head, granule });
            },
        );
    };
    // SAFETY: `Pack` writes every element of its granule.
    unsafe { written(shape.kv_heads * granules * size, fill) }
}

struct Pack<'a, F> {
    row: F,
    rows: std::ops::Range<usize>,
    part: Part<'a>,
    order: Order,
    head: &'a mut [f32],
    granule: &'a mut [MaybeUninit<f32>],
}

impl<'a, F: Fn(usize) -> &'a [f32]> Kernel for Pack<'a, F> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Pack { row, rows, part, order, head, granule } = self;
        for lane in 0..GRANULE {
            let start = lane * order.lane_step;
            let mut written = 0;
            if lane < rows.len() {
                let token = rows.start + lane;
                head.copy_from_slice(row(token));
                if let Part::Keys(rotary, positions) = part {
                    rotary.rotate_head(head, positions[token], 1.0);
                }
                for (d, &x) in head.iter().enumerate() {
                    granule[start + d * order.element_step].write(x);
                }
                written = head.len();
            }
            for d in written..order.elements {
                granule[start + d * order.element_step].write(0.0);
            }
        }
    }
}
