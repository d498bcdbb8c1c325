//! A weight under training: its f32 master in panels, and the gradient in the same layout.
//!
//! An optimiser treats both as flat arrays and need not know the location of a number of `W [N, K]`; the padding of the last panel has gradient
//! 0. Gradients are summed in the order of the calls, so equal runs give equal bits.
//!
//! In bf16 the master consists of two matrices: the rounded weight, which products read, and the rounding error. Together they are no larger
//! than the master alone, which with a rounded copy would be half as large again (the split of Kalamkar et al. 2020, "Optimizing Deep Learning
//! Recommender Systems Training on CPU Cluster Architectures", arXiv 2005.04680, but rounded to nearest). The rounding error is not the lower
//! part of bf16x3, so the master is not split there.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use rayon::prelude::*;

use super::gradient::add_weight_gradient;
use super::pack::{PANEL, Panels, join, split};
use crate::error::{Error, Result};
use crate::kernels::Dtype;
use crate::kernels::cpu::lock;
use crate::kernels::level::Level;

/// A weight `W [N, K]` with its gradient.
#[derive(Debug)]
pub struct Trained {
    dtype: Dtype,
    out_features: usize,
    in_features: usize,
    master: RwLock<Master>,
    gradient: Mutex<Panels>,
    /// The outputs and inputs of the blocks on the diagonal, if the rest of the matrix has to stay zero.
    blocks: Vec<(usize, usize)>,
}

#[derive(Debug)]
enum Master {
    /// One f32 matrix.
    Whole(Arc<Panels>),
    /// Two matrices: the nearest bf16, and the rounding error.
    Split { upper: Arc<Panels>, lower: Panels },
}

impl Trained {
    pub(super) fn new(master: Panels, dtype: Dtype) -> Trained {
        let (out_features, in_features) = (master.out_features(), master.in_features());
        Trained {
            dtype,
            out_features,
            in_features,
            master: RwLock::new(match dtype {
                Dtype::F32 | Dtype::Bf16x3 => Master::Whole(Arc::new(master)),
                Dtype::Bf16 => {
                    let (upper, lower) = master.split();
                    Master::Split { upper: Arc::new(upper), lower }
                }
            }),
            gradient: Mutex::new(Panels::zeros(out_features, in_features, Dtype::F32)),
            blocks: Vec::new(),
        }
    }

    /// A block-diagonal weight in f32: `blocks` are `(outputs, inputs, W [outputs, inputs] row-major)`, from the upper left to the lower right.
    /// Elements outside the blocks are zero and get no gradient.
    pub fn block_diagonal(blocks: &[(usize, usize, Vec<f32>)], dtype: Dtype) -> Trained {
        let in_features: usize = blocks.iter().map(|(_, inputs, _)| inputs).sum();
        let mut master = Panels::new(in_features, Dtype::F32);
        let mut first = 0;
        for (outputs, inputs, values) in blocks {
            let mut rows = vec![0.0; outputs * in_features];
            // A block without inputs consists of rows of zeros.
            for (row, values) in rows.chunks_exact_mut(in_features).zip(values.chunks_exact((*inputs).max(1))) {
                row[first..first + inputs].copy_from_slice(values);
            }
            master.push(&rows);
            first += inputs;
        }
        Trained { blocks: blocks.iter().map(|(outputs, inputs, _)| (*outputs, *inputs)).collect(), ..Trained::new(master, dtype) }
    }

    /// `N`
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// `K`
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// The format in which the products are computed.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The memory of the weight and its gradient, in bytes.
    pub fn bytes(&self) -> usize {
        let master = match &*self.master() {
            Master::Whole(panels) => panels.bytes(),
            Master::Split { upper, lower } => upper.bytes() + lower.bytes(),
        };
        master + lock(&self.gradient).bytes()
    }

    /// The length of a flat array: `N` rounded up to whole panels, times `K`.
    pub fn len(&self) -> usize {
        self.out_features.div_ceil(PANEL) * self.panel_len()
    }

    /// Whether the weight has no numbers.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The size of a panel, which [`Trained::update`] passes at a time.
    pub fn panel_len(&self) -> usize {
        PANEL * self.in_features
    }

    /// Runs `step(values, gradient, companion)` on each panel, on all threads, with one companion per panel. Returns an error if the weight is
    /// still in use: a graph that goes through it must be dropped first.
    pub fn update<C: Send>(&self, companions: Vec<C>, step: impl Fn(&mut [f32], &mut [f32], C) + Sync) -> Result<()> {
        let len = self.panel_len();
        let mut gradient = lock(&self.gradient);
        let panels = gradient.floats_mut().par_chunks_mut(len).zip(companions);
        match &mut *self.master.write().unwrap_or_else(PoisonError::into_inner) {
            Master::Whole(master) => {
                let values = owned(master)?.floats_mut().par_chunks_mut(len);
                values.zip(panels).for_each(|(values, (gradient, companion))| step(values, gradient, companion));
            }
            Master::Split { upper, lower } => {
                let halves = owned(upper)?.words_mut().zip(lower.words_mut());
                halves.zip(panels).for_each_init(
                    || vec![0.0; len],
                    |values, ((upper, lower), (gradient, companion))| {
                        join(upper, lower, values);
                        step(values, gradient, companion);
                        split(values, upper, lower);
                    },
                );
            }
        }
        Ok(())
    }

    /// Lets `change` modify the whole weight.
    pub fn change<R>(&self, change: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
        match &mut *self.master.write().unwrap_or_else(PoisonError::into_inner) {
            Master::Whole(master) => Ok(change(owned(master)?.floats_mut())),
            Master::Split { upper, lower } => {
                let mut whole = Panels::joined(upper, lower);
                let result = change(whole.floats_mut());
                let halves = whole.split();
                (*upper, *lower) = (Arc::new(halves.0), halves.1);
                Ok(result)
            }
        }
    }

    /// Passes the weight to `look` as a flat array, panel by panel.
    pub fn values<R>(&self, look: impl FnOnce(&[f32]) -> R) -> R {
        match &*self.master() {
            Master::Whole(master) => look(master.floats()),
            Master::Split { upper, lower } => look(Panels::joined(upper, lower).floats()),
        }
    }

    /// Passes the gradient to `look` as a flat array, in the layout of the weight.
    pub fn gradient<R>(&self, look: impl FnOnce(&[f32]) -> R) -> R {
        look(lock(&self.gradient).floats())
    }

    /// The outputs `rows` and inputs `columns` of a flat array as a matrix, row-major.
    pub fn part_of(&self, values: &[f32], rows: Range<usize>, columns: Range<usize>) -> Vec<f32> {
        let mut part = Vec::with_capacity(rows.len() * columns.len());
        for n in rows {
            for k in columns.clone() {
                part.push(values[self.place(n, k)]);
            }
        }
        part
    }

    /// The index of `w_nk` in a flat array.
    pub fn place(&self, n: usize, k: usize) -> usize {
        n / PANEL * PANEL * self.in_features + k * PANEL + n % PANEL
    }

    /// Adds `g [ids.len(), K]` to the gradients of the rows `ids`: the backward pass of [`Matrix::rows`](super::Matrix::rows).
    pub fn add_row_gradients(&self, ids: &[u32], padding: Option<u32>, g: &[f32]) {
        let k = self.in_features;
        assert_eq!(g.len(), ids.len() * k);
        let mut gradient = lock(&self.gradient);
        let to = gradient.floats_mut();
        for (&id, g) in ids.iter().zip(g.chunks_exact(k)).filter(|(id, _)| Some(**id) != padding) {
            let panel = &mut to[id as usize / PANEL * PANEL * k..][..PANEL * k];
            let column = id as usize % PANEL;
            panel.iter_mut().skip(column).step_by(PANEL).zip(g).for_each(|(sum, g)| *sum += g);
        }
    }

    /// Adds `dy^T x` to the gradient.
    pub(in crate::kernels) fn add_gradient(&self, level: Level, x_tk: &[f32], dy_tn: &[f32], n_rows: usize) {
        let mut gradient = lock(&self.gradient);
        add_weight_gradient(level, self.dtype, x_tk, dy_tn, n_rows, &mut gradient);
        let to = gradient.floats_mut();
        let (mut first_row, mut first_column) = (0, 0);
        for &(outputs, inputs) in &self.blocks {
            for n in first_row..first_row + outputs {
                let outside = (0..self.in_features).filter(|k| !(first_column..first_column + inputs).contains(k));
                outside.for_each(|k| to[self.place(n, k)] = 0.0);
            }
            first_row += outputs;
            first_column += inputs;
        }
    }

    /// The panels for products: those of the master, except in bf16x3, where its two parts are computed temporarily. This takes one pass over
    /// the weight for the arithmetic of all tokens; stored, the parts would take as much memory as the master.
    pub(super) fn panels(&self) -> Arc<Panels> {
        let stored = self.stored();
        if self.dtype == Dtype::Bf16x3 { Arc::new(stored.in_parts()) } else { stored }
    }

    /// The master, rounded in bf16.
    pub(super) fn stored(&self) -> Arc<Panels> {
        match &*self.master() {
            Master::Whole(panels) | Master::Split { upper: panels, .. } => panels.clone(),
        }
    }

    fn master(&self) -> RwLockReadGuard<'_, Master> {
        self.master.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn owned(panels: &mut Arc<Panels>) -> Result<&mut Panels> {
    Arc::get_mut(panels).ok_or_else(|| Error::new("a weight cannot change while a graph goes through it"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::noise;

    #[test]
    fn the_two_halves_hold_every_bit_and_products_read_the_nearest_bf16() {
        for (n, k) in [(1, 1), (49, 47), (96, 5), (100, 64)] {
            let mut master = Panels::new(k, Dtype::F32);
            let mut numbers = noise(n * k, 1.0, 5);
            numbers[0] = f32::MAX;
            master.push(&numbers);
            let mut nearest = Panels::new(k, Dtype::Bf16);
            nearest.push(&numbers);
            let expected = master.floats().to_vec();
            let trained = Trained::new(master, Dtype::Bf16);
            assert_eq!(trained.values(<[f32]>::to_vec), expected);
            assert_eq!(trained.bytes(), 2 * 4 * trained.len() + if k % 2 == 1 { n.div_ceil(PANEL) * PANEL * 4 } else { 0 });
            let row = |panels: &Panels, n: usize| {
                let mut row = vec![0.0; k];
                panels.row_into(n, &mut row);
                row
            };
            assert!((0..n).all(|n| row(&trained.panels(), n) == row(&nearest, n)));

            // The same change, once panel by panel and once as a whole.
            let halve = |values: &mut [f32]| values.iter_mut().for_each(|x| *x *= 0.3);
            let panels = vec![(); n.div_ceil(PANEL)];
            trained.update(panels, |values, _, ()| halve(values)).unwrap();
            let once: Vec<f32> = expected.iter().map(|x| x * 0.3).collect();
            assert_eq!(trained.values(<[f32]>::to_vec), once);
            trained.change(halve).unwrap();
            assert_eq!(trained.values(<[f32]>::to_vec), once.iter().map(|x| x * 0.3).collect::<Vec<f32>>());
        }
    }

    #[test]
    fn a_number_midway_between_two_bf16_moves_by_its_last_bit_at_most() {
        // 1 + 2^-8 lies between 1 and 1 + 2^-7; the even one is 1, and the error is half a unit, for which the lower half has no room.
        let mut master = Panels::new(2, Dtype::F32);
        master.push(&[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0]);
        let trained = Trained::new(master, Dtype::Bf16);
        let values = trained.values(|values| [values[0], values[PANEL]]);
        assert_eq!(values, [1.0 + 1.0 / 256.0 - f32::EPSILON, 1.0 + 3.0 / 256.0]);
    }
}
