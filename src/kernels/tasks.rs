//! Divides a product `[T, K] x [K, N]` with packed panels into tasks, each of which one thread processes at a time.

use std::ops::Range;

use rayon::prelude::*;

/// The outputs of a panel: three AVX-512 vectors.
pub(crate) const PANEL: usize = 48;
/// The rows per task: 288 KiB in the larger block of `matmul/fused.rs`, for the second-level cache.
const ROW_BLOCK: usize = 96;
/// The most panels per task.
const PANEL_BLOCK: usize = 16;
/// The fewest tasks per thread, if there are enough panels: a thread that has finished waits for at most one of them.
const TASKS: usize = 16;
/// The fewest tasks per thread for a product with few rows, which spends its time reading the weight.
const FEW_ROWS_TASKS: usize = 4;

/// Calls `work` with the rows and panels of each task, on all threads; together the tasks cover every row and panel once.
pub(super) fn for_each_task(n_rows: usize, n_panels: usize, work: impl Fn(Range<usize>, Range<usize>) + Sync) {
    let row_blocks = n_rows.div_ceil(ROW_BLOCK);
    let tasks = rayon::current_num_threads() * if row_blocks == 1 { FEW_ROWS_TASKS } else { TASKS };
    let panel_block = (n_panels * row_blocks).div_ceil(tasks).clamp(1, PANEL_BLOCK);
    let panel_blocks = n_panels.div_ceil(panel_block);
    // Row blocks vary fastest, so that a block of panels is read from memory once for all of them.
    (0..row_blocks * panel_blocks).into_par_iter().with_max_len(1).for_each(|task| {
        let row = task % row_blocks * ROW_BLOCK;
        let panel = task / row_blocks * panel_block;
        work(row..(row + ROW_BLOCK).min(n_rows), panel..(panel + panel_block).min(n_panels));
    });
}

/// Runs `work` on a thread of the pool, which shares each operation with the other threads. Any other thread would hand over everything,
/// and two threads would have to be woken instead of one.
pub(crate) fn on_the_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn every_row_meets_every_panel_once() {
        for (n_rows, n_panels) in [(0, 3), (1, 1), (1, 100), (96, 17), (97, 16), (300, 5), (5, 0)] {
            let met = Mutex::new(vec![0; n_rows * n_panels]);
            for_each_task(n_rows, n_panels, |rows, panels| {
                let mut met = met.lock().unwrap();
                rows.for_each(|row| panels.clone().for_each(|panel| met[row * n_panels + panel] += 1));
            });
            assert!(met.into_inner().unwrap().iter().all(|&times| times == 1), "{n_rows} rows, {n_panels} panels");
        }
    }
}
