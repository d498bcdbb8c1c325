//! The work that one thread does at a time, and where its results go.

use std::ops::Range;

use super::blocks::Blocks;
use crate::kernels::cpu::Shared;
use crate::kernels::lanes::Lanes;
use crate::kernels::tasks::PANEL;

/// The number of inputs that are summed, for the minimums.
pub(super) const SUMMED: usize = 32;

/// The layout of a block's scales: one f32, two f16 in a word, two f32.
pub(super) const ONE: u8 = 0;
pub(super) const HALVES: u8 = 1;
pub(super) const TWO: u8 = 2;

/// The sums of each 32 inputs. Plain loops over four lanes at every level, because the order affects the result.
pub(super) fn sums_of(x_tk: &[f32]) -> Vec<f32> {
    let sum = |x: &[f32]| {
        let fours = x.as_chunks::<4>().0;
        let four = fours.iter().fold([0.0; 4], |[a, b, c, d], x| [a + x[0], b + x[1], c + x[2], d + x[3]]);
        (four[0] + four[2]) + (four[1] + four[3])
    };
    x_tk.chunks(SUMMED).map(sum).collect()
}

/// A panel, and the location of its outputs.
pub(super) struct Place<'a> {
    pub(super) part: &'a Blocks,
    pub(super) panel: usize,
    /// The first column of the output, and the number of columns.
    column: usize,
    n_columns: usize,
}

pub(super) fn places(parts: &[Blocks]) -> Vec<Place<'_>> {
    let mut first = 0;
    let mut places = Vec::new();
    for part in parts {
        places.extend((0..part.n_panels()).map(|panel| Place {
            part,
            panel,
            column: first + panel * PANEL,
            n_columns: PANEL.min(part.out_features() - panel * PANEL),
        }));
        first += part.out_features();
    }
    places
}

/// Some rows and some panels to multiply.
pub(super) struct Task<'a> {
    pub(super) panels: &'a [Place<'a>],
    /// The outputs of all panels together: the width of a row of the result.
    pub(super) n: usize,
    pub(super) residual_tn: Option<&'a [f32]>,
    pub(super) rows: Range<usize>,
}

impl Task<'_> {
    /// Stores `sums`, which begin at `column` of the panel, up to the last output, with the residual added.
    ///
    /// # Safety
    /// The processor must have `V`'s instructions, and no other thread may write these elements.
    #[inline(always)]
    pub(super) unsafe fn store<V: Lanes>(&self, output: &Shared<f32>, sums: V, row: usize, column: usize, place: &Place) {
        let n_lanes = place.n_columns.saturating_sub(column).min(V::N);
        if n_lanes == 0 {
            return;
        }
        let at = row * self.n + place.column + column;
        // SAFETY: these `n_lanes` elements belong to this tile only.
        unsafe {
            let to = output.at(at, n_lanes);
            let residual = self.residual_tn.map(|residual| residual[at..at + n_lanes].as_ptr());
            if n_lanes == V::N {
                residual.map_or(sums, |residual| V::load(residual).add(sums)).store(to);
            } else {
                residual.map_or(sums, |residual| V::load_first(residual, n_lanes).add(sums)).store_first(to, n_lanes);
            }
        }
    }
}
