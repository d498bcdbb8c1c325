//! The entropy-probability density: where the tokens of a data set lie in the plane (the paper's figure 1b).
//!
//! Colour shows the number of tokens per cell on a logarithmic scale; the marginals at the top and at the right are linear.
//! [`super::plane`] explains the axes and derives the two bounds.

use std::path::Path;

use rayon::prelude::*;

use super::grid::Grid;
use super::plane::{self, Cuts, QUADRANT_NAMES};
use super::scene::{Scene, Text};
use super::style::{self, BAR, Caption, HEADER_HEIGHT, LogScale, SOFT_INK};
use crate::error::Result;
use crate::format::{n_tokens, percent, thousands};

/// Counts tokens over the plane in one streaming pass; counts of several parts can be merged.
#[derive(Debug, Clone)]
pub struct Density {
    vocab_size: usize,
    grid: Grid,
}

impl Density {
    /// Creates an empty count for a model with `vocab_size` tokens, which bound the entropy.
    pub fn new(vocab_size: usize) -> Self {
        Self { vocab_size, grid: plane::grid(vocab_size) }
    }

    /// Counts a token by the ln p of the target and the entropy in nats.
    pub fn add(&mut self, logprob: f32, entropy: f32) {
        let (x, y) = plane::coordinates(logprob, entropy);
        self.grid.add(x, y, 1.0);
    }

    /// Counts many tokens on all cores. Counts in f64 are exact, so that the order does not matter.
    pub fn add_all(&mut self, logprobs: &[f32], entropies: &[f32]) {
        const CHUNK: usize = 1 << 15;
        let counted = logprobs.par_chunks(CHUNK).zip(entropies.par_chunks(CHUNK)).map(|(logprobs, entropies)| {
            let mut part = Density::new(self.vocab_size);
            logprobs.iter().zip(entropies).for_each(|(logprob, entropy)| part.add(*logprob, *entropy));
            part
        });
        for part in counted.collect::<Vec<_>>() {
            self.merge(&part);
        }
    }

    /// Adds the counts of another part of the same data set.
    pub fn merge(&mut self, other: &Density) {
        self.grid.merge(&other.grid);
    }

    /// The number of tokens per cell of the plane.
    pub fn grid(&self) -> &Grid {
        &self.grid
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.vocab_size
    }
}

/// Draws the figure. `shares` are the quadrants' shares of the tokens, 0 to 1, in the order of [`QUADRANT_NAMES`].
pub fn draw(data: &Density, shares: [f64; 4], cuts: &Cuts, caption: &Caption, path: &Path) -> Result<()> {
    scene(data, shares, cuts, caption).save(path)
}

pub(super) fn scene(data: &Density, shares: [f64; 4], cuts: &Cuts, caption: &Caption) -> Scene {
    const CELL: f64 = 5.0;
    const TOP_MARGINAL: f64 = 84.0;
    const RIGHT_MARGINAL: f64 = 100.0;
    const GAP: f64 = 6.0;
    let grid = &data.grid;
    let mut scene = Scene::new(920);
    style::header(&mut scene, "Where the tokens lie: probability and entropy", &n_tokens(grid.tally.added), caption);

    let ticks = [1e-6, 1e-5, 1e-4, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999];
    let frame = plane::frame(grid, 92.0, HEADER_HEIGHT + TOP_MARGINAL + GAP + plane::STRIP, CELL, &ticks, plane::Y_LABEL);
    frame.draw_grid(&mut scene);
    let most = grid.cells.iter().copied().fold(0.0, f64::max);
    let scale = LogScale { from: 1.0, to: most.max(10.0) };
    plane::draw_cells(&mut scene, &frame, grid, &scale);
    plane::draw_bounds(&mut scene, &frame, data.vocab_size);
    let labels = std::array::from_fn(|idx| [QUADRANT_NAMES[idx].to_owned(), format!("{} of tokens", percent(shares[idx]))]);
    plane::draw_quadrants(&mut scene, &frame, cuts, &labels);
    // Above the lines of the thresholds, which may lie where the labels are.
    plane::label_bounds(&mut scene, &frame, data.vocab_size);

    let (base, left) = (HEADER_HEIGHT + TOP_MARGINAL, frame.right() + GAP);
    let longest = |counts: &[f64]| counts.iter().copied().fold(1.0, f64::max);
    let (x_counts, y_counts) = (grid.x_marginal(), grid.y_marginal());
    for (idx, count) in x_counts.iter().enumerate() {
        let x = frame.left + CELL * idx as f64;
        scene.rect(x, base - TOP_MARGINAL * count / longest(&x_counts), x + CELL, base, BAR);
    }
    for (idx, count) in y_counts.iter().enumerate() {
        let y = frame.bottom() - CELL * idx as f64;
        scene.rect(left, y - CELL, left + RIGHT_MARGINAL * count / longest(&y_counts), y, BAR);
    }
    scene.line(&[(frame.left, base), (frame.right(), base)], 1.0, SOFT_INK);
    scene.line(&[(left, frame.top), (left, frame.bottom())], 1.0, SOFT_INK);
    let peak = |counts: &[f64]| format!("tallest bar: {}", thousands(longest(counts) as u64));
    let small = Text::small(SOFT_INK);
    if grid.tally.added > 0 {
        scene.text(left, base - 4.0, &peak(&x_counts), small);
        scene.text(left, frame.bottom() + 18.0, &peak(&y_counts), small);
    }

    let bar_left = left + RIGHT_MARGINAL + 46.0;
    scale.draw(&mut scene, bar_left, frame.top, frame.height, "tokens per cell", |amount| thousands(amount as u64));
    if grid.tally.added == 0 {
        style::no_tokens(&mut scene, frame.left + frame.width / 2.0, frame.y_at(1.6));
    }
    style::notes(&mut scene, &[format!("{} Dashed: thresholds.", plane::tally_note(&grid.tally))]);
    scene
}
