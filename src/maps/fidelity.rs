//! The entropy of the K most probable tokens compared with the entropy over the whole vocabulary, for each K (the paper's figure
//! 6).

use std::path::Path;

use super::axes::{Axis, Frame, round_ticks};
use super::scene::{Anchor, Point, Scene, Text};
use super::style::{self, BLUE, Caption, HEADER_HEIGHT, INK, SOFT_INK, VERMILLION};
use crate::diagnosis::fidelity::{Fidelity, FidelityAtK};
use crate::error::Result;
use crate::format::n_tokens;

/// Draws two panels over K: the correlation, on an axis that counts nines, and the differences that a correlation hides.
/// `marked_k` is the K of the gate.
pub fn draw(data: &Fidelity, marked_k: usize, caption: &Caption, path: &Path) -> Result<()> {
    scene(data, marked_k, caption).save(path)
}

pub(super) fn scene(data: &Fidelity, marked_k: usize, caption: &Caption) -> Scene {
    const PANEL_HEIGHT: f64 = 240.0;
    /// A smaller 1 - r is drawn at the end of the axis, since f32 entropies resolve no more.
    const LEAST_MISS: f64 = 1e-6;
    let mut scene = Scene::new(800);
    let n = format!("{} (a sample of the data)", n_tokens(data.n()));
    style::header(&mut scene, "Top-K entropy as a stand-in for the full entropy", &n, caption);

    let summary: Vec<FidelityAtK> = data.summary().into_iter().filter(|at_k| at_k.n > 0).collect();
    let greatest_k = summary.iter().map(|at_k| at_k.k).max().unwrap_or(0).max(2) as f64;
    let k_ticks = [1, 2, 3, 5, 10, 20, 32, 64, 128, 256].map(|k| (f64::from(k).ln(), k.to_string()));
    let x = Axis {
        label: "K, the number of most probable tokens kept (logarithmic)".to_owned(),
        from: 0.0,
        to: greatest_k.ln() * 1.02,
        ticks: k_ticks.into_iter().filter(|(value, _)| *value <= greatest_k.ln() + 1e-9).collect(),
    };

    let nines = |r: f64| -(1.0 - r).max(LEAST_MISS).log10();
    let correlations: Vec<(f64, f64)> =
        summary.iter().filter_map(|at_k| Some(((at_k.k as f64).ln(), nines(at_k.pearson?.max(0.0))))).collect();
    let greatest_nines = correlations.iter().map(|(_, nines)| *nines).fold(3.0, f64::max);
    let y_ticks = ["0", "0.9", "0.99", "0.999", "0.9999", "0.99999", "0.999999"];
    let y = Axis {
        label: "Pearson correlation r".to_owned(),
        from: 0.0,
        to: greatest_nines * 1.08,
        ticks: y_ticks
            .iter()
            .enumerate()
            .map(|(nines, label)| (nines as f64, (*label).to_owned()))
            .filter(|(nines, _)| *nines <= greatest_nines * 1.08)
            .collect(),
    };
    let upper = Frame { left: 112.0, top: HEADER_HEIGHT + 4.0, width: 990.0, height: PANEL_HEIGHT, x: x.clone(), y };

    let errors: Vec<(f64, f64)> = summary.iter().map(|at_k| ((at_k.k as f64).ln(), at_k.mean_abs_error)).collect();
    let ratios: Vec<(f64, f64)> = summary.iter().filter_map(|at_k| Some(((at_k.k as f64).ln(), at_k.mean_ratio?))).collect();
    let greatest = errors.iter().chain(&ratios).map(|(_, y)| *y).fold(1.0, f64::max) * 1.08;
    let y = Axis { label: "ratio, and error in nats".to_owned(), from: 0.0, to: greatest, ticks: round_ticks(0.0, greatest, 5) };
    let lower = Frame { top: upper.bottom() + 52.0, y, x, ..upper.clone() };

    let upper_axes = Frame { x: Axis { label: String::new(), ..upper.x.clone() }, ..upper.clone() };
    for frame in [&upper_axes, &lower] {
        frame.draw_grid(&mut scene);
    }
    let marked = summary.iter().find(|at_k| at_k.k == marked_k);
    if marked.is_some() {
        let x = upper.x_at((marked_k as f64).ln());
        scene.dashes((x, upper.top), (x, upper.bottom()), 1.5, SOFT_INK);
        scene.dashes((x, lower.top), (x, lower.bottom()), 1.5, SOFT_INK);
    }
    draw_curve(&mut scene, &upper, &correlations, BLUE);
    draw_curve(&mut scene, &lower, &ratios, BLUE);
    draw_curve(&mut scene, &lower, &errors, VERMILLION);
    for frame in [&upper_axes, &lower] {
        frame.draw_axes(&mut scene);
    }

    if let Some(at_k) = marked {
        draw_numbers(&mut scene, &upper, at_k);
    }
    draw_legend(&mut scene, &lower);
    if summary.is_empty() {
        style::no_tokens(&mut scene, upper.left + upper.width / 2.0, upper.top + upper.height / 2.0);
    }
    let reading = match data.n_ignored() {
        0 => String::new(),
        ignored => format!(" {} without finite entropies left out.", n_tokens(ignored)),
    };
    style::notes(
        &mut scene,
        &[format!(
            "r is undefined at K = 1, where the top-K entropy is always 0. Each step of the upper axis is one more nine of r.{reading}"
        )],
    );
    scene
}

/// Writes the numbers of both panels at one K into the upper one.
fn draw_numbers(scene: &mut Scene, upper: &Frame, at_k: &FidelityAtK) {
    let pearson = at_k.pearson.map_or("undefined".to_owned(), |r| format!("{r:.5}"));
    let ratio = at_k.mean_ratio.map_or("undefined".to_owned(), |ratio| format!("{ratio:.4}"));
    let lines = [
        format!("K = {}", at_k.k),
        format!("r = {pearson}"),
        format!("ratio of means {ratio}"),
        format!("mean error {:.4} nats", at_k.mean_abs_error),
    ];
    // On the side of the line that has more room.
    let x = upper.x_at((at_k.k as f64).ln());
    let (x, anchor) = if x < upper.left + 0.72 * upper.width { (x + 12.0, Anchor::Left) } else { (x - 12.0, Anchor::Right) };
    for (idx, line) in lines.iter().enumerate() {
        let style = Text { bold: idx == 0, anchor, ..Text::body(INK) };
        scene.veiled_text(x, upper.bottom() - 82.0 + 22.0 * idx as f64, line, style);
    }
}

/// Draws the legend of the lower panel's curves.
fn draw_legend(scene: &mut Scene, lower: &Frame) {
    let legend = [(BLUE, "mean top-K entropy / mean full entropy"), (VERMILLION, "mean |top-K entropy − full entropy|, nats")];
    for (idx, (paint, label)) in legend.into_iter().enumerate() {
        let (x, y) = (lower.left + 20.0 + 370.0 * idx as f64, lower.bottom() + 82.0);
        scene.line(&[(x, y - 5.0), (x + 26.0, y - 5.0)], 3.0, paint);
        scene.text(x + 34.0, y, label, Text::body(INK));
    }
}

fn draw_curve(scene: &mut Scene, frame: &Frame, values: &[(f64, f64)], paint: super::scene::Paint) {
    let points: Vec<Point> = values.iter().map(|(x, y)| frame.at(*x, *y)).collect();
    scene.line(&points, 2.5, paint);
    points.iter().for_each(|point| scene.dot(*point, 3.0, paint));
}
