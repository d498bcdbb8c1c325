//! The forward pass of all heads over all tokens of a batch.

use rayon::prelude::*;

use super::cache::{DeltaCache, Memory};
use super::head::{Head, Problem};
use super::plan::{Tree, trees};
use crate::error::Result;
use crate::kernels::Segment;
use crate::kernels::attention::Stretch;
use crate::kernels::cpu::Shared;

/// The tokens that a head processes at a time.
const PIECE: usize = 64;

/// `x [T, columns] -> [T, value_heads, 2 value_dim]` for segments that see each other.
pub(super) fn forward(x: &[f32], problem: &Problem, segments: &[Segment]) -> Vec<f32> {
    let rows = Rows::of(x, problem);
    let trees = trees(segments, problem.shape.kernel, usize::MAX);
    let tasks: Vec<(&Tree, usize)> =
        trees.iter().flat_map(|tree| (0..problem.shape.key_heads).map(move |head| (tree, head))).collect();
    let mut y = vec![0.0; rows.len() * 2 * problem.shape.width()];
    let outputs = Outputs { y: Shared::of(&mut y), problem };
    tasks.par_iter().with_max_len(1).for_each(|&(tree, head)| {
        let mut left: Vec<(Vec<f32>, usize)> = tree.iter().map(|run| (Vec::new(), run.heirs)).collect();
        for (number, run) in tree.iter().enumerate() {
            let mut states = match run.parent {
                None => vec![0.0; problem.shape.state_len()],
                Some(parent) => {
                    let (states, heirs) = &mut left[parent];
                    *heirs -= 1;
                    if *heirs == 0 { std::mem::take(states) } else { states.clone() }
                }
            };
            let read: Vec<&[f32]> = run.before.iter().chain(&run.rows).map(|&row| rows.row(row)).collect();
            outputs.of_head(head, &read, &mut states, &run.rows, run.again);
            if run.heirs > 0 {
                left[number].0 = states;
            }
        }
    });
    y
}

/// Like [`forward`], for tokens that continue the sequences of a cache, which is updated.
pub(super) fn forward_onto(x: &[f32], problem: &Problem, stretches: &[Stretch], cache: &mut DeltaCache) -> Result<Vec<f32>> {
    let rows = Rows::of(x, problem);
    let mut memories = cache.take(stretches, rows.len())?;
    let mut y = vec![0.0; rows.len() * 2 * problem.shape.width()];
    let outputs = Outputs { y: Shared::of(&mut y), problem };
    let mut tasks: Vec<(&Stretch, &[f32], usize, &mut Vec<f32>)> = Vec::new();
    for (stretch, Memory { states, last, .. }) in stretches.iter().zip(&mut memories) {
        tasks.extend(states.iter_mut().enumerate().map(|(head, states)| (stretch, last.as_slice(), head, states)));
    }
    tasks.par_iter_mut().with_max_len(1).for_each(|(stretch, last, head, states)| {
        let before = last.chunks_exact(rows.columns);
        let read: Vec<&[f32]> = before.chain(stretch.tokens.clone().map(|row| rows.row(row))).collect();
        outputs.of_head(*head, &read, states, &stretch.tokens.clone().collect::<Vec<usize>>(), 0);
    });
    for (stretch, memory) in stretches.iter().zip(&mut memories) {
        memory.read(
            &x[stretch.tokens.start * rows.columns..stretch.tokens.end * rows.columns],
            rows.columns,
            problem.shape.kernel,
        );
    }
    cache.put_back(stretches, memories);
    Ok(y)
}

/// The projections, row by row.
struct Rows<'a> {
    x: &'a [f32],
    columns: usize,
}

impl<'a> Rows<'a> {
    fn of(x: &'a [f32], problem: &Problem) -> Rows<'a> {
        Rows { x, columns: problem.shape.columns() }
    }

    fn len(&self) -> usize {
        self.x.len() / self.columns
    }

    fn row(&self, row: usize) -> &'a [f32] {
        &self.x[row * self.columns..][..self.columns]
    }
}

/// The output, to which all heads write.
struct Outputs<'a> {
    y: Shared<f32>,
    problem: &'a Problem<'a>,
}

impl Outputs<'_> {
    /// Runs a key head over the last of the rows `read`, one for each row of the batch in `to`; the rows before are for the convolution
    /// only. Writes no output for the first `again` tokens.
    ///
    /// Processes one piece after the other, so that intermediate results stay in the first-level caches.
    fn of_head(&self, head: usize, read: &[&[f32]], states: &mut [f32], to: &[usize], again: usize) {
        let before = read.len() - to.len();
        for (piece, to) in to.chunks(PIECE).enumerate() {
            let first = before + piece * PIECE;
            let from = first.saturating_sub(self.problem.shape.kernel - 1);
            let rows = &read[from..first + to.len()];
            let found = Head { problem: self.problem, head, rows, before: first - from }.forward(states);
            let own = rows[first - from..].iter().zip(to).skip(again.saturating_sub(piece * PIECE));
            self.put(head, own, &found);
        }
    }

    /// Writes the last outputs of a key head, `[L, value heads of it * value_dim]`, and the gates of these heads to rows of the batch.
    fn put<'b>(&self, head: usize, rows: impl ExactSizeIterator<Item = (&'b &'b [f32], &'b usize)>, found: &[f32]) {
        let shape = self.problem.shape;
        let (value_dim, group) = (shape.value_dim, shape.group() * shape.value_dim);
        let [gates, ..] = shape.zba(head);
        let found = &found[found.len() - rows.len() * group..];
        for ((row, &to), found) in rows.zip(found.chunks_exact(group)) {
            // SAFETY: a row belongs to one run, apart from repeated rows, which are not written; and a run's head belongs to one task.
            let y = unsafe {
                std::slice::from_raw_parts_mut(self.y.at(to * 2 * shape.width() + head * 2 * group, 2 * group), 2 * group)
            };
            let gates = row[gates.clone()].chunks_exact(value_dim);
            for ((y, gates), found) in y.chunks_exact_mut(2 * value_dim).zip(gates).zip(found.chunks_exact(value_dim)) {
                y[..value_dim].copy_from_slice(gates);
                y[value_dim..].copy_from_slice(found);
            }
        }
    }
}
