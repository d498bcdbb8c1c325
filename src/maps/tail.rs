//! Shows whether the targets are as improbable as the model says they should be: the distribution of `tail`, the p-value of a
//! token.
//!
//! `tail` is the total probability of all tokens no more probable than the target. If the model itself had written the text,
//! P(tail <= t) <= t would hold for every t; and with the target's own mass p spread evenly over [tail - p, tail], which is what
//! random tie-breaking does on average, the values would be exactly uniform (the non-randomised PIT histogram of Czado, Gneiting
//! and Held, Biometrics 65, 2009, here ordered by probability). The left panel shows that histogram; the right panel shows how
//! often `tail` is below t, on logarithmic axes, where confident conflicts stand out above the diagonal.

use std::path::Path;

use super::axes::{Axis, Frame, power_of_ten, round_ticks};
use super::grid::{Bins, Histogram, Tally};
use super::plane::Cuts;
use super::scene::{Anchor, Paint, Point, Scene, Text};
use super::style::{self, BAR, BLUE, CUT, Caption, HEADER_HEIGHT, INK, LABEL_SIZE, SOFT_INK, VEIL, VERMILLION};
use crate::error::Result;
use crate::format::{n_tokens, percent};

/// Collects both distributions of `tail` in one streaming pass; those of several parts can be merged.
#[derive(Debug, Clone)]
pub struct Tail {
    /// Tokens per bin of 0 to 1, each token spread over its own mass.
    spread: [f64; N_SPREAD],
    /// Counts over log10 tail.
    plain: Histogram,
    tally: Tally,
}

/// The number of bins in the left panel.
const N_SPREAD: usize = 40;
const LEAST_POWER: i32 = -8;
const BINS_PER_DECADE: usize = 10;

impl Default for Tail {
    fn default() -> Self {
        let count = LEAST_POWER.unsigned_abs() as usize * BINS_PER_DECADE;
        let plain = Histogram::new(Bins { from: f64::from(LEAST_POWER), to: 0.0, count });
        Self { spread: [0.0; N_SPREAD], plain, tally: Tally::default() }
    }
}

impl Tail {
    /// Adds a token by `tail` and the ln p of the target. Values that rounding put outside 0 to 1 are clamped.
    pub fn add(&mut self, tail: f32, logprob: f32) {
        if tail.is_nan() || logprob.is_nan() {
            self.tally.ignored += 1;
            return;
        }
        self.tally.added += 1;
        let upper = f64::from(tail).clamp(0.0, 1.0);
        // Rounding may put log10 of a bin's edge into the bin below, which is invisible in the picture.
        self.plain.add(upper.log10(), 1.0);

        let lower = (upper - f64::from(logprob).exp()).max(0.0);
        let n = N_SPREAD as f64;
        let first = ((lower * n) as usize).min(N_SPREAD - 1);
        let last = ((upper * n) as usize).min(N_SPREAD - 1);
        if first == last || upper <= lower {
            self.spread[last] += 1.0;
            return;
        }
        for (idx, bin) in self.spread[first..=last].iter_mut().enumerate() {
            let (from, to) = ((first + idx) as f64 / n, (first + idx + 1) as f64 / n);
            *bin += (to.min(upper) - from.max(lower)) / (upper - lower);
        }
    }

    /// Adds the counts of another part of the same data set.
    pub fn merge(&mut self, other: &Tail) {
        self.spread.iter_mut().zip(&other.spread).for_each(|(bin, more)| *bin += more);
        self.plain.merge(&other.plain);
        self.tally.added += other.tally.added;
        self.tally.ignored += other.tally.ignored;
    }

    /// (log10 t, share of the tokens with tail <= t) at the upper edges of all bins, from the first non-empty one on.
    fn cumulated(&self) -> Vec<(f64, f64)> {
        let mut below = 0.0;
        let edges = self.plain.cells.iter().enumerate().map(|(idx, count)| {
            below += count;
            (self.plain.bins.edge(idx + 1), below / self.tally.added as f64)
        });
        edges.filter(|(_, share)| *share > 0.0).collect()
    }
}

/// Draws the figure, marking `cuts.tail` if the preset has one.
pub fn draw(data: &Tail, cuts: &Cuts, caption: &Caption, path: &Path) -> Result<()> {
    scene(data, cuts, caption).save(path)
}

pub(super) fn scene(data: &Tail, cuts: &Cuts, caption: &Caption) -> Scene {
    let mut scene = Scene::new(640);
    let n = n_tokens(data.tally.added);
    style::header(&mut scene, "Are the targets as improbable as the model expects? The tail p-value", &n, caption);
    draw_histogram(&mut scene, data);
    draw_low_end(&mut scene, data, cuts);
    let ignored = match data.tally.ignored {
        0 => String::new(),
        ignored => format!(" {} with a NaN left out.", n_tokens(ignored)),
    };
    let left = "tail: the mass of all tokens no more probable than the target. Left: each target's own mass is spread evenly, so that text";
    let right =
        "which the model itself wrote gives the flat line; it gives no point above the diagonal at the right, but for chance.";
    style::notes(&mut scene, &[left.to_owned(), format!("{right}{ignored}")]);
    scene
}

const TOP: f64 = HEADER_HEIGHT + 30.0;
const PANEL_HEIGHT: f64 = 370.0;

fn draw_histogram(scene: &mut Scene, data: &Tail) {
    let densities = data.spread.map(|count| count * N_SPREAD as f64 / data.tally.added.max(1) as f64);
    let greatest = densities.iter().copied().fold(1.2, f64::max) * 1.08;
    let x = Axis { label: "tail".to_owned(), from: 0.0, to: 1.0, ticks: round_ticks(0.0, 1.0, 5) };
    let y = Axis { label: "density".to_owned(), from: 0.0, to: greatest, ticks: round_ticks(0.0, greatest, 6) };
    let frame = Frame { left: 92.0, top: TOP, width: 470.0, height: PANEL_HEIGHT, x, y };
    frame.draw_grid(scene);
    for (idx, density) in densities.iter().enumerate() {
        let edge = |idx: usize| frame.x_at(idx as f64 / N_SPREAD as f64);
        scene.rect(edge(idx), frame.y_at(*density), edge(idx + 1) - 1.0, frame.bottom(), BAR);
    }
    scene.dashes(frame.at(0.0, 1.0), frame.at(1.0, 1.0), 2.0, VERMILLION);
    frame.draw_axes(scene);
    panel_title(scene, &frame, "All tokens; dashed: uniform");
    if data.tally.added == 0 {
        style::no_tokens(scene, frame.left + frame.width / 2.0, frame.top + 200.0);
    }
}

fn draw_low_end(scene: &mut Scene, data: &Tail, cuts: &Cuts) {
    let axis = |label: &str, from: i32, step: usize| Axis {
        label: label.to_owned(),
        from: f64::from(from),
        to: 0.0,
        ticks: (from..=0).step_by(step).map(|power| (f64::from(power), power_of_ten(power))).collect(),
    };
    let x = axis("t (logarithmic)", LEAST_POWER, 2);
    let y = axis("share of tokens with tail ≤ t", LEAST_POWER + 2, 1);
    let frame = Frame { left: 690.0, top: TOP, width: 470.0, height: PANEL_HEIGHT, x, y };
    frame.draw_grid(scene);
    let start = frame.y.from;
    scene.dashes(frame.at(start, start), frame.at(0.0, 0.0), 2.0, VERMILLION);
    if let Some(cut) = cuts.tail.filter(|cut| *cut > 0.0 && *cut < 1.0) {
        let x = frame.x_at(cut.log10());
        scene.dashes((x, frame.top), (x, frame.bottom()), 1.5, CUT);
        scene.veiled_text(x - 9.0, frame.top + 20.0, "threshold", Text::small(CUT).anchored(Anchor::Right));
    }
    let cumulated = data.cumulated();
    let curve: Vec<Point> = cumulated.iter().map(|(t, share)| frame.at(*t, share.log10())).collect();
    scene.line(&curve, 2.5, BLUE);
    curve.iter().for_each(|point| scene.dot(*point, 2.0, BLUE));
    frame.draw_axes(scene);
    panel_title(scene, &frame, "The low end: surprises beyond the model's own");

    if data.tally.added == 0 {
        style::no_tokens(scene, frame.left + frame.width / 2.0, frame.top + 120.0);
        return;
    }
    // A small table in the corner below the diagonal.
    let (right, top) = (frame.right() - 12.0, frame.bottom() - 88.0);
    scene.rect(right - 222.0, top - 16.0, frame.right() - 1.0, frame.bottom() - 1.0, VEIL);
    let mut row = |idx: usize, cells: [&str; 3], paint: Paint| {
        for (cell, inset) in cells.into_iter().zip([174.0, 108.0, 0.0]) {
            scene.text(right - inset, top + 23.0 * idx as f64, cell, Text::small(paint).anchored(Anchor::Right));
        }
    };
    row(0, ["t", "found", "by chance ≤"], SOFT_INK);
    for (idx, power) in [-2, -3, -4].into_iter().enumerate() {
        let share = cumulated.iter().rfind(|(t, _)| *t <= f64::from(power) + 1e-9).map_or(0.0, |(_, share)| *share);
        row(idx + 1, [&power_of_ten(power), &percent(share), &percent(10f64.powi(power))], INK);
    }
}

fn panel_title(scene: &mut Scene, frame: &Frame, title: &str) {
    scene.text(frame.left, frame.top - 10.0, title, Text { bold: true, size: LABEL_SIZE - 1.0, ..Text::label(INK) });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_spread_over_its_own_mass() {
        // p = 0.05 and tail = 0.1: half in [0.05, 0.075), half in [0.075, 0.1), bins 2 and 3 of 40.
        let mut tail = Tail::default();
        tail.add(0.1, 0.05f32.ln());
        assert!((tail.spread[2] - 0.5).abs() < 1e-6 && (tail.spread[3] - 0.5).abs() < 1e-6);
        // p = 1: spread evenly over all bins.
        let mut tail = Tail::default();
        tail.add(1.0, 0.0);
        assert!(tail.spread.iter().all(|bin| (bin - 1.0 / 40.0).abs() < 1e-12));
        tail.add(f32::NAN, 0.0);
        tail.add(0.0, f32::NEG_INFINITY);
        assert_eq!((tail.tally.added, tail.tally.ignored), (2, 1));
        assert_eq!(tail.spread[0], 1.0 + 1.0 / 40.0);
        let copy = tail.clone();
        tail.merge(&copy);
        assert_eq!((tail.tally.added, tail.spread[0]), (4, 2.0 + 2.0 / 40.0));
    }

    /// Every token of a distribution, weighted by its own probability, represents text written by the model.
    #[test]
    fn text_of_the_model_itself_is_uniform_and_below_the_diagonal() {
        let thousandths = [500, 300, 100, 50, 40, 9, 1u32];
        let mut tail = Tail::default();
        for (idx, count) in thousandths.iter().enumerate() {
            let mass: u32 = thousandths[idx..].iter().sum();
            (0..*count).for_each(|_| tail.add(mass as f32 / 1000.0, (*count as f32 / 1000.0).ln()));
        }
        // f32 inputs have errors of 1e-7; a bin holds 25 of the 1000 tokens.
        assert!(tail.spread.iter().all(|bin| (bin - 25.0).abs() < 1e-3), "{:?}", tail.spread);
        for (t, share) in tail.cumulated() {
            assert!(share <= 10f64.powf(t) * 1.000_001, "{share} above {t}");
        }
    }

    #[test]
    fn the_low_end_counts_what_lies_below() {
        let mut tail = Tail::default();
        [1.5e-3, 1.5e-5, 0.0, 0.5].into_iter().for_each(|value: f32| tail.add(value, value.ln()));
        let share = |power: f64| tail.cumulated().iter().rfind(|(t, _)| *t <= power + 1e-9).map(|(_, share)| *share);
        assert_eq!([share(-4.0), share(-3.0), share(-2.0), share(0.0)], [Some(0.5), Some(0.5), Some(0.75), Some(1.0)]);
    }
}
