//! The gradient landscape: where in the plane the gradient norm lies under plain fine-tuning, and how much of it a gate keeps
//! (the paper's figure 3).
//!
//! The norm is that of the cross-entropy gradient with respect to the logits, summed over the tokens of a cell; a gate multiplies
//! each token's norm by its weight. Both panels show shares of the same total, that of plain fine-tuning, in the same colours, so
//! that a paler cell on the right is what the gate removes.

use std::path::Path;

use super::grid::Grid;
use super::plane::{self, Cuts, QUADRANT_NAMES};
use super::scene::{Scene, Text};
use super::style::{self, Caption, HEADER_HEIGHT, INK, LogScale};
use crate::error::Result;
use crate::format::{n_tokens, percent};

/// Sums gradient norms over the plane, plain and gated, in one streaming pass; sums of several parts can be merged.
#[derive(Debug, Clone)]
pub struct Gradient {
    vocab_size: usize,
    plain: Grid,
    gated: Grid,
}

impl Gradient {
    /// Creates empty sums for a model with `vocab_size` tokens, which bound the entropy.
    pub fn new(vocab_size: usize) -> Self {
        let grid = plane::grid(vocab_size);
        Self { vocab_size, plain: grid.clone(), gated: grid }
    }

    /// Adds a token by its ln p, its entropy in nats, the norm of its gradient with respect to the logits, and the gate's weight.
    pub fn add(&mut self, logprob: f32, entropy: f32, grad: f32, weight: f32) {
        // A token counts in both panels or in neither.
        let (grad, gated) =
            if weight.is_nan() { (f64::NAN, f64::NAN) } else { (f64::from(grad), f64::from(grad) * f64::from(weight)) };
        let (x, y) = plane::coordinates(logprob, entropy);
        self.plain.add(x, y, grad);
        self.gated.add(x, y, gated);
    }

    /// Adds the sums of another part of the same data set.
    pub fn merge(&mut self, other: &Gradient) {
        self.plain.merge(&other.plain);
        self.gated.merge(&other.gated);
    }

    /// The sums of the norms under plain fine-tuning.
    pub fn plain(&self) -> &Grid {
        &self.plain
    }

    /// The sums of the norms times the gate's weights.
    pub fn gated(&self) -> &Grid {
        &self.gated
    }
}

/// Draws the figure. `gate` is the title of the right panel, for example `EAFT, linear`. `plain_shares` and `gated_shares` are
/// the quadrants' shares of the plain total, 0 to 1, in the order of [`QUADRANT_NAMES`]: the former add up to 1, the latter to
/// what the gate keeps.
pub fn draw(
    data: &Gradient,
    gate: &str,
    plain_shares: [f64; 4],
    gated_shares: [f64; 4],
    cuts: &Cuts,
    caption: &Caption,
    path: &Path,
) -> Result<()> {
    scene(data, gate, plain_shares, gated_shares, cuts, caption).save(path)
}

pub(super) fn scene(
    data: &Gradient,
    gate: &str,
    plain_shares: [f64; 4],
    gated_shares: [f64; 4],
    cuts: &Cuts,
    caption: &Caption,
) -> Scene {
    const CELL: f64 = 3.0;
    const DECADES: i32 = 4;
    let mut scene = Scene::new(652);
    let n = n_tokens(data.plain.tally.added);
    style::header(&mut scene, "Where the gradient lies: plain fine-tuning and gated", &n, caption);

    let total = data.plain.total();
    let in_shares = |grid: &Grid| {
        let mut grid = grid.clone();
        grid.cells.iter_mut().for_each(|cell| *cell /= total.max(f64::MIN_POSITIVE));
        grid
    };
    let (plain, gated) = (in_shares(&data.plain), in_shares(&data.gated));
    let most = plain.cells.iter().chain(&gated.cells).copied().fold(0.0, f64::max);
    let to = if most > 0.0 { most } else { 1.0 };
    let scale = LogScale { from: to * 10f64.powi(-DECADES), to };

    let kept = if total > 0.0 { data.gated.total() / total } else { f64::NAN };
    let names = [
        "SFT: every token with weight 1".to_owned(),
        format!("{}: keeps {} of the gradient norm", super::font::printable(gate), percent(kept)),
    ];
    let ticks = [1e-6, 1e-4, 0.01, 0.5, 0.99, 0.9999];
    let top = HEADER_HEIGHT + 32.0 + plane::STRIP;
    for (idx, (grid, shares)) in [(&plain, plain_shares), (&gated, gated_shares)].into_iter().enumerate() {
        let left = 88.0 + 506.0 * idx as f64;
        let frame = plane::frame(grid, left, top, CELL, &ticks, if idx == 0 { plane::Y_LABEL } else { "" });
        frame.draw_grid(&mut scene);
        plane::draw_cells(&mut scene, &frame, grid, &scale);
        plane::draw_bounds(&mut scene, &frame, data.vocab_size);
        let labels = std::array::from_fn(|idx| [QUADRANT_NAMES[idx].to_owned(), percent(shares[idx])]);
        plane::draw_quadrants(&mut scene, &frame, cuts, &labels);
        scene.text(left, top - plane::STRIP - 11.0, &names[idx], Text { bold: true, ..Text::body(INK) });
        if grid.tally.added == 0 {
            style::no_tokens(&mut scene, left + frame.width / 2.0, frame.y_at(1.7));
        }
        if idx == 1 {
            let title = "share of SFT's gradient norm per cell";
            scale.draw(&mut scene, frame.right() + 34.0, top, frame.height, title, share_label);
        }
    }
    let reading = "Percentages: the quadrants' shares of SFT's summed gradient norm, in both panels.";
    style::notes(&mut scene, &[reading.to_owned(), plane::tally_note(&data.plain.tally)]);
    scene
}

fn share_label(share: f64) -> String {
    super::axes::power_of_ten(share.log10().round() as i32)
}
