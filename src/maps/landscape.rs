//! The densities of several data sets side by side, on the same axes and in the same colours, such as fine-tuning data beside a
//! model's own answers (the paper's figure 1b).

use std::path::Path;

use super::density::Density;
use super::font;
use super::grid::Tally;
use super::plane::{self, Cuts, QUADRANT_NAMES};
use super::scene::{Scene, Text};
use super::style::{self, Caption, HEADER_HEIGHT, INK, LogScale};
use crate::error::Result;
use crate::format::{n_tokens, percent};

/// One data set.
pub struct Panel {
    /// Its title.
    pub name: String,
    /// The density of its tokens.
    pub density: Density,
    /// The quadrants' shares of the tokens, 0 to 1, in the order of [`QUADRANT_NAMES`].
    pub shares: [f64; 4],
}

/// Draws a panel for each data set, with the lines of `cuts` in all of them, to a PNG or an SVG.
pub fn draw(panels: &[Panel], cuts: &Cuts, caption: &Caption, path: &Path) -> Result<()> {
    scene(panels, cuts, caption).save(path)
}

pub(super) fn scene(panels: &[Panel], cuts: &Cuts, caption: &Caption) -> Scene {
    const CELL: f64 = 3.0;
    const ROW_HEIGHT: f64 = 472.0;
    const DECADES: i32 = 3;
    let n_rows = panels.len().div_ceil(2).max(1);
    let mut scene = Scene::new(652 + (ROW_HEIGHT as u32) * (n_rows as u32 - 1));
    let n = panels.iter().map(|panel| n_tokens(panel.density.grid().tally.added)).collect::<Vec<_>>().join(" and ");
    style::header(&mut scene, "Where the tokens lie, data set by data set", &n, caption);
    let grids = panels.iter().map(|panel| {
        let mut grid = panel.density.grid().clone();
        let total = grid.total().max(f64::MIN_POSITIVE);
        grid.cells.iter_mut().for_each(|cell| *cell /= total);
        grid
    });
    let grids: Vec<_> = grids.collect();
    let most = grids.iter().flat_map(|grid| &grid.cells).copied().fold(0.0, f64::max);
    let to = if most > 0.0 { most } else { 1.0 };
    let scale = LogScale { from: to * 10f64.powi(-DECADES), to };
    let ticks = [1e-6, 1e-4, 0.01, 0.5, 0.99, 0.9999];
    for (idx, (panel, grid)) in panels.iter().zip(&grids).enumerate() {
        let (left, top) = (88.0 + 506.0 * (idx % 2) as f64, HEADER_HEIGHT + 32.0 + plane::STRIP + ROW_HEIGHT * (idx / 2) as f64);
        let frame = plane::frame(grid, left, top, CELL, &ticks, if idx % 2 == 0 { plane::Y_LABEL } else { "" });
        frame.draw_grid(&mut scene);
        plane::draw_cells(&mut scene, &frame, grid, &scale);
        plane::draw_bounds(&mut scene, &frame, panel.density.vocab_size());
        let labels = std::array::from_fn(|idx| [QUADRANT_NAMES[idx].to_owned(), percent(panel.shares[idx])]);
        plane::draw_quadrants(&mut scene, &frame, cuts, &labels);
        let style = Text { bold: true, ..Text::body(INK) };
        let share = format!(": {} confident conflicts", percent(panel.shares[0]));
        let name = font::elide_name(["", &font::printable(&panel.name), &share], style.size, style.bold, frame.width);
        scene.text(left, top - plane::STRIP - 11.0, &name, style);
        if grid.tally.added == 0 {
            style::no_tokens(&mut scene, left + frame.width / 2.0, frame.y_at(1.7));
        }
        if idx % 2 == 1 || idx + 1 == panels.len() {
            scale.draw(&mut scene, frame.right() + 34.0, top, frame.height, "share of the tokens per cell", share_label);
        }
    }
    let reading = "Percentages: the quadrants' shares of the tokens of each data set. Colours are the same in all panels.";
    let mut tally = Tally::default();
    panels.iter().for_each(|panel| tally.merge(&panel.density.grid().tally));
    style::notes(&mut scene, &[reading.to_owned(), plane::tally_note(&tally)]);
    scene
}

/// Formats a share with one significant digit, since the scale goes down to shares that are usually rounded to 0.
fn share_label(share: f64) -> String {
    let percents = 100.0 * share;
    if percents < 0.9e-3 {
        // Enough zeros to leave the picture.
        return format!("{percents:.0e} %");
    }
    let digits = (-percents.log10()).ceil().clamp(0.0, 9.0) as usize;
    format!("{percents:.digits$} %")
}
