//! The statistics of the head in one pass over the vocabulary, a tile of logits at a time.
//!
//! The logits of a tile (8 tokens by a few hundred words) are computed into a buffer in the first-level cache and folded into
//! each token's [`Running`] statistics. The vocabulary is divided into spans of fixed size, so that a few tokens keep all
//! cores busy; [`Running::join`] combines the spans in f64, always in the same order. The result does not depend, to the bit,
//! on the other tokens of a call or on the number of threads.

use std::ops::Range;

use rayon::prelude::*;

use super::options::{Curves, HeadOptions};
use super::running::Running;
use crate::kernels::exp::tanh;
use crate::kernels::lanes::Lanes;
use crate::kernels::level::Level;
use crate::kernels::matmul::{MANY_ROWS, PANEL, Panels, Product, ProductKernel, Rows, dispatch, tile, widen, widens};
use crate::kernels::{Dtype, TokenStatistics};

/// The panels of a span: 24,576 words.
pub(super) const SPAN_PANELS: usize = 512;
/// The weights of a tile stay in the second-level cache while all rows of a task are processed.
const TILE_BYTES: usize = 512 << 10;
pub(super) const MAX_TILE_PANELS: usize = 8;
/// The rows of the highest tile.
const MAX_ROWS: usize = 16;
/// The rows of a task. The weights are read from memory once for all of them, so few rows would wait for memory.
const ROW_BLOCK: std::ops::RangeInclusive<usize> = 32..=256;

/// The statistics of all targets, and the curves of some.
pub(super) fn head_statistics(
    level: Level,
    hidden_nd: &[f32],
    head_vd: &Panels,
    targets: &[u32],
    options: &HeadOptions,
    curves: Curves,
) -> (Vec<TokenStatistics>, Vec<Vec<f32>>) {
    let n_rows = targets.len();
    let mut kept = vec![0; n_rows];
    curves.of.iter().for_each(|&target| kept[target as usize] = curves.k_max.min(head_vd.out_features()));
    let rows = Rows::new(level, hidden_nd, n_rows, head_vd);
    let logits = Logits { rows: &rows, head_vd, softcap: options.softcap };
    let tokens: Vec<(u32, f32)> = targets
        .par_chunks(MAX_ROWS)
        .enumerate()
        .flat_map_iter(|(i, targets)| {
            let kernel = TargetLogits { logits, targets, first_row: i * MAX_ROWS };
            targets.iter().copied().zip(dispatch(level, head_vd.dtype(), kernel))
        })
        .collect();

    let n_spans = head_vd.n_panels().div_ceil(SPAN_PANELS);
    // Four tasks per thread, if that leaves enough rows for each.
    let row_block = (n_rows * n_spans).div_ceil(4 * rayon::current_num_threads()).next_multiple_of(MAX_ROWS);
    let row_block = row_block.clamp(*ROW_BLOCK.start(), *ROW_BLOCK.end());
    let n_blocks = n_rows.div_ceil(row_block);
    let swept: Vec<Vec<Running>> = (0..n_blocks * n_spans)
        .into_par_iter()
        .with_max_len(1)
        .map(|task| {
            let (block, span) = (task % n_blocks, task / n_blocks);
            let first_row = block * row_block;
            let first_panel = span * SPAN_PANELS;
            let sweep = Sweep {
                logits,
                tokens: &tokens[first_row..(first_row + row_block).min(n_rows)],
                kept: &kept[first_row..],
                first_row,
                first_panel,
                end_panel: (first_panel + SPAN_PANELS).min(head_vd.n_panels()),
                tile_panels: tile_panels(level, head_vd),
                top_k: options.top_k.min(head_vd.out_features()),
            };
            let widened = sweep.tokens.len() >= MANY_ROWS && widens(level, head_vd.dtype());
            if widened { dispatch(level, head_vd.dtype(), WidenedSweep(sweep)) } else { dispatch(level, head_vd.dtype(), sweep) }
        })
        .collect();

    let whole = |row: usize| {
        let of_span = |span: usize| &swept[span * n_blocks + row / row_block][row % row_block];
        (1..n_spans).fold(of_span(0).clone(), |whole, span| whole.join(of_span(span)))
    };
    let (rows, curve_rows) = (tokens.par_iter().enumerate(), curves.of.par_iter().map(|&row| row as usize));
    let statistics = rows.map(|(row, &(target, target_logit))| whole(row).finish(target, target_logit)).collect();
    let of_row = |row: usize| whole(row).finish_with_curve(tokens[row].0, tokens[row].1, curves.k_max).1;
    (statistics, curve_rows.map(of_row).collect())
}

/// The number of panels in a tile.
pub(super) fn tile_panels(level: Level, head_vd: &Panels) -> usize {
    let widened = if widens(level, head_vd.dtype()) { 2 } else { 1 };
    let panel_bytes = widened * head_vd.depth() * PANEL * size_of::<u32>();
    (TILE_BYTES / panel_bytes).clamp(1, MAX_TILE_PANELS)
}

/// Folds a tile of logits, of which the first `n_words` belong to words, into a row's statistics.
///
/// # Safety
/// As [`Running::take`].
#[inline(always)]
pub(super) unsafe fn take<V: Lanes>(
    running: &mut Running,
    logits: &mut [f32],
    n_words: usize,
    first_id: usize,
    target: u32,
    target_logit: f32,
) {
    // The last panel's padding is not part of the vocabulary, and the target is counted separately at the end.
    logits[n_words..].fill(f32::NEG_INFINITY);
    if let Some(logit) = (target as usize).checked_sub(first_id).and_then(|i| logits[..n_words].get_mut(i)) {
        *logit = f32::NEG_INFINITY;
    }
    // SAFETY: by contract.
    unsafe { running.take::<V>(logits, first_id as u32, target_logit) };
}

/// The matrix of logits, which is never stored as a whole.
#[derive(Clone, Copy)]
struct Logits<'a> {
    rows: &'a Rows<'a>,
    head_vd: &'a Panels,
    softcap: Option<f32>,
}

impl Logits<'_> {
    /// Computes the logits of `R` rows for one panel and passes them on a vector at a time: `store(row, column, logits)`.
    ///
    /// # Safety
    /// `w` must be a panel's words; the processor must have `P`'s instructions.
    #[inline(always)]
    unsafe fn compute<P: Product, const R: usize>(
        &self,
        first_row: usize,
        w: *const u32,
        mut store: impl FnMut(usize, usize, P::V),
    ) {
        let x = self.rows.rows(first_row, R);
        // SAFETY: `rows` has checked that they exist; the rest is by contract.
        unsafe {
            tile::<P, R>(
                x,
                self.rows.stride(),
                w,
                self.head_vd.depth(),
                #[inline(always)]
                |_, _| P::V::splat(0.0),
                #[inline(always)]
                |r, column, logits| {
                    let logits = match self.softcap {
                        None => logits,
                        Some(cap) => tanh(logits.div(P::V::splat(cap))).mul(P::V::splat(cap)),
                    };
                    store(r, column, logits);
                },
            );
        }
    }
}

/// The logit of each target, which the sweep needs from the start, with the same bits as when the sweep reaches it.
struct TargetLogits<'a> {
    logits: Logits<'a>,
    targets: &'a [u32],
    first_row: usize,
}

impl ProductKernel for TargetLogits<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    unsafe fn run<P: Product>(self) -> Vec<f32> {
        let mut target_logits = Vec::with_capacity(self.targets.len());
        for (i, &target) in self.targets.iter().enumerate() {
            let mut logits = [0.0; PANEL];
            let to = logits.as_mut_ptr();
            // SAFETY: `column + N <= PANEL` in every call, and the panel is whole; the instructions are there by contract.
            unsafe {
                self.logits.compute::<P, 1>(
                    self.first_row + i,
                    self.logits.head_vd.panel(target as usize / PANEL).as_ptr(),
                    #[inline(always)]
                    |_, column, logits| logits.store(to.add(column)),
                );
            }
            target_logits.push(logits[target as usize % PANEL]);
        }
        target_logits
    }
}

/// Some rows and one span of the vocabulary.
struct Sweep<'a> {
    logits: Logits<'a>,
    /// The target of each row and its logit.
    tokens: &'a [(u32, f32)],
    /// The number of largest logits that each row keeps, if more than `top_k`.
    kept: &'a [usize],
    first_row: usize,
    first_panel: usize,
    end_panel: usize,
    tile_panels: usize,
    top_k: usize,
}

/// The logits of a tile, `[MAX_ROWS][MAX_TILE_PANELS * PANEL]`: 12 KiB for a tile of eight rows, twice that with AMX.
#[repr(align(64))]
struct Tile([[f32; MAX_TILE_PANELS * PANEL]; MAX_ROWS]);

impl ProductKernel for Sweep<'_> {
    type Output = Vec<Running>;

    #[inline(always)]
    unsafe fn run<P: Product>(self) -> Vec<Running> {
        let mut running = self.begin();
        let mut buffer = Tile([[0.0; MAX_TILE_PANELS * PANEL]; MAX_ROWS]);
        for panels in self.tiles() {
            // SAFETY: the panels are whole; the instructions are there by contract.
            unsafe { self.tile::<P>(&mut buffer, panels, self.logits.head_vd, 0, &mut running) };
        }
        running
    }
}

/// A [`Sweep`], with the same bits, for products that widen their panels to f32 first.
struct WidenedSweep<'a>(Sweep<'a>);

impl ProductKernel for WidenedSweep<'_> {
    type Output = Vec<Running>;

    #[inline(always)]
    unsafe fn run<P: Product>(self) -> Vec<Running> {
        assert!(P::WIDENS, "this product takes words as they are");
        let WidenedSweep(sweep) = self;
        let mut running = sweep.begin();
        let mut buffer = Tile([[0.0; MAX_TILE_PANELS * PANEL]; MAX_ROWS]);
        let head_vd = sweep.logits.head_vd;
        let depth = 2 * head_vd.depth();
        let mut widened = Panels::zeros(sweep.tile_panels * PANEL, depth, Dtype::F32);
        for panels in sweep.tiles() {
            // SAFETY: the panels are whole, and each is widened; the instructions are there by contract.
            unsafe {
                for (panel, words) in panels.clone().zip(widened.floats_mut().chunks_exact_mut(depth * PANEL)) {
                    widen::<P::V>(head_vd.panel(panel), words);
                }
                let first = panels.start;
                sweep.tile::<P::Widened>(&mut buffer, panels, &widened, first, &mut running);
            }
        }
        running
    }
}

impl Sweep<'_> {
    fn begin(&self) -> Vec<Running> {
        let rows = self.tokens.iter().zip(self.kept);
        rows.map(|(&(_, logit), &kept)| Running::new(logit, self.top_k, kept)).collect()
    }

    /// The panels of one tile after the other.
    fn tiles(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (end, step) = (self.end_panel, self.tile_panels);
        (self.first_panel..end).step_by(step).map(move |panel| panel..(panel + step).min(end))
    }

    /// Folds the words of some panels into the statistics of all rows; `packed` holds the panels from index `first` on.
    ///
    /// # Safety
    /// The panels must have whole words of `P`'s; the processor must have its instructions.
    #[inline(always)]
    unsafe fn tile<P: Product>(
        &self,
        buffer: &mut Tile,
        panels: Range<usize>,
        packed: &Panels,
        first: usize,
        running: &mut [Running],
    ) {
        let mut row = 0;
        while row < running.len() {
            let n_rows = P::MAX_ROWS.min(MAX_ROWS).min(running.len() - row);
            let (panels, running) = (panels.clone(), &mut running[row..]);
            // SAFETY: by contract.
            row += unsafe {
                match n_rows {
                    16.. if const { P::MAX_ROWS >= 16 } => self.rows::<P, 16>(buffer, row, panels, packed, first, running),
                    8.. => self.rows::<P, 8>(buffer, row, panels, packed, first, running),
                    4.. => self.rows::<P, 4>(buffer, row, panels, packed, first, running),
                    3.. => self.rows::<P, 3>(buffer, row, panels, packed, first, running),
                    2.. => self.rows::<P, 2>(buffer, row, panels, packed, first, running),
                    _ => self.rows::<P, 1>(buffer, row, panels, packed, first, running),
                }
            };
        }
    }

    /// Folds a tile into the statistics of the `R` rows from `row` on; returns `R`.
    ///
    /// # Safety
    /// As [`Sweep::tile`].
    #[inline(always)]
    unsafe fn rows<P: Product, const R: usize>(
        &self,
        buffer: &mut Tile,
        row: usize,
        panels: Range<usize>,
        packed: &Panels,
        first: usize,
        running: &mut [Running],
    ) -> usize {
        let Range { start: first_panel, end: end_panel } = panels;
        for panel in panels {
            let offset = (panel - first_panel) * PANEL;
            let mut rows = [std::ptr::null_mut(); MAX_ROWS];
            for (to, row) in rows.iter_mut().zip(&mut buffer.0) {
                *to = row[offset..offset + PANEL].as_mut_ptr();
            }
            // SAFETY: `column + N <= PANEL` in every call; the rest is by contract.
            unsafe {
                self.logits.compute::<P, R>(
                    self.first_row + row,
                    packed.panel(panel - first).as_ptr(),
                    #[inline(always)]
                    |r, column, logits| logits.store(rows[r].add(column)),
                );
            }
        }
        let first_id = first_panel * PANEL;
        let n_words = (end_panel * PANEL).min(self.logits.head_vd.out_features()) - first_id;
        for (r, running) in running.iter_mut().take(R).enumerate() {
            let logits = &mut buffer.0[r][..(end_panel - first_panel) * PANEL];
            let (target, target_logit) = self.tokens[row + r];
            // SAFETY: the tile's width is a multiple of the panel's, which is divisible by every vector length.
            unsafe { take::<P::V>(running, logits, n_words, first_id, target, target_logit) };
        }
        R
    }
}
