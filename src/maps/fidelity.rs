//! How well the entropy of the K most probable tokens stands in for the entropy of the whole vocabulary (the paper's
//! figure 6, which gives r = 0.999 at K = 20).
//!
//! For every K the correlation, the ratio of the means and the mean absolute error are kept by running co-moments (Welford's
//! update; Chan, Golub and LeVeque 1979 for the merge) in f64, so that no token has to be stored. A high correlation alone
//! would hide a bias: the top-K entropy is renormalised and lies below the full one wherever the rest has mass.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::axes::{Axis, Frame, round_ticks};
use super::scene::{Anchor, Point, Scene, Text};
use super::style::{self, BLUE, Caption, HEADER_HEIGHT, INK, SOFT_INK, VERMILLION};
use crate::error::Result;
use crate::format::n_tokens;

/// Statistics of the top-K entropy against the full entropy, for K = 1, 2, ..; one streaming pass, mergeable.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Fidelity {
    /// `by_k[K - 1]`
    by_k: Vec<Comoments>,
    /// Tokens with a NaN or an infinity, counted nowhere else.
    n_ignored: u64,
}

/// What figure and report show of one K.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FidelityAtK {
    pub k: usize,
    pub n: u64,
    /// Absent where either side does not vary: at K = 1 the top-K entropy is always 0.
    pub pearson: Option<f64>,
    /// Mean of |H^topK - H|, nats.
    pub mean_abs_error: f64,
    /// Mean of H^topK over mean of H; absent where H is 0 throughout.
    pub mean_ratio: Option<f64>,
}

impl Fidelity {
    /// Takes the entropies of the softmax over the K largest logits, `topk[K - 1]`, and the full entropy: all in nats, none
    /// divided by ln K. Give every token the same number of K.
    pub fn add(&mut self, topk: &[f32], entropy: f32) {
        if !entropy.is_finite() || !topk.iter().all(|value| value.is_finite()) {
            self.n_ignored += 1;
            return;
        }
        if self.by_k.len() < topk.len() {
            self.by_k.resize(topk.len(), Comoments::default());
        }
        for (comoments, value) in self.by_k.iter_mut().zip(topk) {
            comoments.add(f64::from(*value), f64::from(entropy));
        }
    }

    /// Adds the tokens of another part of the sample.
    pub fn merge(&mut self, other: &Fidelity) {
        if self.by_k.len() < other.by_k.len() {
            self.by_k.resize(other.by_k.len(), Comoments::default());
        }
        self.by_k.iter_mut().zip(&other.by_k).for_each(|(comoments, more)| comoments.merge(more));
        self.n_ignored += other.n_ignored;
    }

    /// Tokens seen.
    pub fn n(&self) -> u64 {
        self.by_k.first().map_or(0, |comoments| comoments.n)
    }

    /// One entry for every K, in order.
    pub fn summary(&self) -> Vec<FidelityAtK> {
        let at_k = |(idx, c): (usize, &Comoments)| FidelityAtK {
            k: idx + 1,
            n: c.n,
            pearson: c.pearson(),
            mean_abs_error: c.mean_abs_error,
            mean_ratio: (c.mean_y != 0.0).then_some(c.mean_x / c.mean_y),
        };
        self.by_k.iter().enumerate().map(at_k).collect()
    }
}

/// Running means and central second moments of pairs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Comoments {
    n: u64,
    mean_x: f64,
    mean_y: f64,
    /// Sums of squared and mixed deviations from the means.
    xx: f64,
    yy: f64,
    xy: f64,
    mean_abs_error: f64,
}

impl Comoments {
    fn add(&mut self, x: f64, y: f64) {
        self.n += 1;
        let n = self.n as f64;
        let (dx, dy) = (x - self.mean_x, y - self.mean_y);
        self.mean_x += dx / n;
        self.mean_y += dy / n;
        self.xx += dx * (x - self.mean_x);
        self.yy += dy * (y - self.mean_y);
        self.xy += dx * (y - self.mean_y);
        self.mean_abs_error += ((x - y).abs() - self.mean_abs_error) / n;
    }

    fn merge(&mut self, other: &Comoments) {
        if other.n == 0 {
            return;
        }
        let (n_a, n_b) = (self.n as f64, other.n as f64);
        let n = n_a + n_b;
        let (dx, dy) = (other.mean_x - self.mean_x, other.mean_y - self.mean_y);
        self.n += other.n;
        self.xx += other.xx + dx * dx * n_a * n_b / n;
        self.yy += other.yy + dy * dy * n_a * n_b / n;
        self.xy += other.xy + dx * dy * n_a * n_b / n;
        self.mean_x += dx * n_b / n;
        self.mean_y += dy * n_b / n;
        self.mean_abs_error += (other.mean_abs_error - self.mean_abs_error) * n_b / n;
    }

    fn pearson(&self) -> Option<f64> {
        let scale = (self.xx * self.yy).sqrt();
        (scale > 0.0).then(|| (self.xy / scale).clamp(-1.0, 1.0))
    }
}

/// Two panels over K: the correlation on an axis that counts nines, and what the correlation hides. `marked_k` is the K
/// that the gate uses.
pub fn draw(data: &Fidelity, marked_k: usize, caption: &Caption, path: &Path) -> Result<()> {
    scene(data, marked_k, caption).save(path)
}

pub(super) fn scene(data: &Fidelity, marked_k: usize, caption: &Caption) -> Scene {
    const PANEL_HEIGHT: f64 = 240.0;
    /// 1 - r of less than this is drawn at the axis's end: f32 entropies resolve no more.
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
        let x = upper.x_at((marked_k as f64).ln());
        let pearson = at_k.pearson.map_or("undefined".to_owned(), |r| format!("{r:.5}"));
        let ratio = at_k.mean_ratio.map_or("undefined".to_owned(), |ratio| format!("{ratio:.4}"));
        let lines = [
            format!("K = {marked_k}"),
            format!("r = {pearson}"),
            format!("ratio of means {ratio}"),
            format!("mean error {:.4} nats", at_k.mean_abs_error),
        ];
        // On the side of the line that has room.
        let (x, anchor) = if x < upper.left + 0.72 * upper.width { (x + 12.0, Anchor::Left) } else { (x - 12.0, Anchor::Right) };
        for (idx, line) in lines.iter().enumerate() {
            let style = Text { bold: idx == 0, anchor, ..Text::body(INK) };
            scene.veiled_text(x, upper.bottom() - 82.0 + 22.0 * idx as f64, line, style);
        }
    }
    let legend = [(BLUE, "mean top-K entropy / mean full entropy"), (VERMILLION, "mean |top-K entropy − full entropy|, nats")];
    for (idx, (paint, label)) in legend.into_iter().enumerate() {
        let (x, y) = (lower.left + 20.0 + 370.0 * idx as f64, lower.bottom() + 82.0);
        scene.line(&[(x, y - 5.0), (x + 26.0, y - 5.0)], 3.0, paint);
        scene.text(x + 34.0, y, label, Text::body(INK));
    }
    if summary.is_empty() {
        style::no_tokens(&mut scene, upper.left + upper.width / 2.0, upper.top + upper.height / 2.0);
    }
    let reading = match data.n_ignored {
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

fn draw_curve(scene: &mut Scene, frame: &Frame, values: &[(f64, f64)], paint: super::scene::Paint) {
    let points: Vec<Point> = values.iter().map(|(x, y)| frame.at(*x, *y)).collect();
    scene.line(&points, 2.5, paint);
    points.iter().for_each(|point| scene.dot(*point, 3.0, paint));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// x = 1, 2, 3 and y = 2, 3, 7: the deviations are -1, 0, 1 and -2, -1, 3, so that r = 5 / sqrt(2 * 14).
    #[test]
    fn pearson_ratio_and_error_of_a_hand_case() {
        let mut fidelity = Fidelity::default();
        for (topk, entropy) in [([0.0, 1.0], 2.0), ([0.0, 2.0], 3.0), ([0.0, 3.0], 7.0)] {
            fidelity.add(&topk, entropy);
        }
        fidelity.add(&[0.0, f32::NAN], 1.0);
        fidelity.add(&[0.0, 1.0], f32::NAN);
        let [one, two] = fidelity.summary()[..] else { panic!("two K") };
        assert_eq!((one.k, one.n, one.pearson, one.mean_ratio), (1, 3, None, Some(0.0)));
        assert_eq!((one.mean_abs_error, fidelity.n_ignored), (4.0, 2));
        assert!((two.pearson.unwrap() - 5.0 / 28f64.sqrt()).abs() < 1e-15);
        assert_eq!(two.mean_ratio, Some(0.5));
        assert!((two.mean_abs_error - 2.0).abs() < 1e-15);
    }

    /// Streaming and merged against the two-pass formula; 1e-12 leaves three digits of f64 for the order of summation.
    #[test]
    fn a_stream_and_its_merged_parts_equal_two_passes() {
        let pair = |idx: u32| {
            let y = 4.0 + (f64::from(idx) * 0.37).sin();
            ((y * 0.9 + 0.1 * (f64::from(idx) * 1.7).cos()) as f32, y as f32)
        };
        let pairs: Vec<(f32, f32)> = (0..1000).map(pair).collect();
        let mean = |side: &dyn Fn(&(f32, f32)) -> f32| pairs.iter().map(|pair| f64::from(side(pair))).sum::<f64>() / 1000.0;
        let (mean_x, mean_y) = (mean(&|pair| pair.0), mean(&|pair| pair.1));
        let sum = |term: &dyn Fn(f64, f64) -> f64| {
            pairs.iter().map(|(x, y)| term(f64::from(*x) - mean_x, f64::from(*y) - mean_y)).sum::<f64>()
        };
        let expected = sum(&|x, y| x * y) / (sum(&|x, _| x * x) * sum(&|_, y| y * y)).sqrt();

        let (mut whole, mut first, mut second) = (Fidelity::default(), Fidelity::default(), Fidelity::default());
        for (idx, (x, y)) in pairs.iter().enumerate() {
            whole.add(&[*x], *y);
            if idx < 300 { &mut first } else { &mut second }.add(&[*x], *y);
        }
        let mut merged = Fidelity::default();
        merged.merge(&first);
        merged.merge(&second);
        merged.merge(&Fidelity::default());
        for fidelity in [&whole, &merged] {
            assert_eq!(fidelity.n(), 1000);
            assert!((fidelity.summary()[0].pearson.unwrap() - expected).abs() < 1e-12);
        }
        let text = serde_json::to_string(&merged).unwrap();
        assert_eq!(serde_json::from_str::<Fidelity>(&text).unwrap().n(), 1000);
    }
}
