//! The figures of a training run over its steps: the cross-entropy of groups of tokens, the loss, and the drift from the base
//! model.
//!
//! `dynamics` is the paper's Figure 4 (cross-entropy of the tokens on which the model is unsure, H >= 2.0, and sure, H <= 0.5),
//! with the four quadrants below it; `loss` shows the plain cross-entropy and the minimised loss, above the learning rate;
//! `drift` is the mean KL divergence from the base model on general text. Values that are not finite, such as the mean of a group
//! without tokens in a step, are left out.

use std::path::Path;

use super::axes::{Axis, Frame, round_ticks};
use super::scene::{Paint, Point, Scene, Text};
use super::style::{self, BLUE, GREEN, HEADER_HEIGHT, INK, MARGIN, QUADRANT_PAINTS, SOFT_INK, TITLE_SIZE, VERMILLION};
use super::{QUADRANT_NAMES, font};
use crate::error::Result;
use crate::format::{n_tokens, thousands};

/// The description of a run below the titles.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// The name of the trained model.
    pub model: String,
    /// The names of the data files.
    pub data: String,
    /// Loss, gate, and what is trained: `eaft, LoRA r 16`.
    pub method: String,
}

/// The values at the steps that have one: `(step, value)`, in the order of the steps.
pub type Curve = Vec<(u64, f64)>;

/// The mean cross-entropy of each group's supervised tokens in nats.
#[derive(Debug, Clone, Default)]
pub struct Dynamics {
    /// Tokens with H >= 2.0.
    pub high: Curve,
    /// Tokens with H <= 0.5.
    pub low: Curve,
    /// By quadrant, in the order of [`QUADRANT_NAMES`].
    pub quadrants: [Curve; 4],
    /// The bounds of the quadrants, as the user gave them.
    pub thresholds: String,
}

/// The loss of each step in nats per token, and the learning rate.
#[derive(Debug, Clone, Default)]
pub struct Losses {
    /// Mean -ln p of the supervised tokens.
    pub cross_entropy: Curve,
    /// The minimised loss; equals the cross-entropy in plain fine-tuning.
    pub minimised: Curve,
    /// Mean -ln p of the held-out rows.
    pub held_out: Curve,
    /// The optimiser's learning rate, without unit.
    pub learning_rate: Curve,
}

/// Mean KL(base || model) per token of general text, in nats.
#[derive(Debug, Clone, Default)]
pub struct Drift {
    /// The mean after each step at which it was measured.
    pub kl: Curve,
    /// The number of tokens of general text per measurement.
    pub tokens: u64,
}

/// Draws the cross-entropy of the groups of tokens to a PNG or an SVG.
pub fn draw_dynamics(data: &Dynamics, run: &Run, path: &Path) -> Result<()> {
    dynamics(data, run).save(path)
}

/// Draws loss and learning rate to a PNG or an SVG.
pub fn draw_losses(data: &Losses, run: &Run, path: &Path) -> Result<()> {
    losses(data, run).save(path)
}

/// Draws the drift to a PNG or an SVG.
pub fn draw_drift(data: &Drift, run: &Run, path: &Path) -> Result<()> {
    drift(data, run).save(path)
}

const LEFT: f64 = 112.0;
const PANEL_WIDTH: f64 = 1050.0;
/// The distance from the bottom of the lowest panel to the legend's baseline.
const TO_LEGEND: f64 = 80.0;

fn dynamics(data: &Dynamics, run: &Run) -> Scene {
    let mut scene = Scene::new(830);
    header(&mut scene, "Which tokens the model learns", run);
    let [high, low] = [(&data.high, "unsure: H ≥ 2.0 nats", BLUE), (&data.low, "sure: H ≤ 0.5 nats", VERMILLION)].map(Series::of);
    let groups = [high, low];
    let quadrants: Vec<Series> =
        (0..4).map(|i| Series::of((&data.quadrants[i], QUADRANT_NAMES[i], QUADRANT_PAINTS[i]))).collect();
    let last = last_step(groups.iter().chain(&quadrants));
    let label = "cross-entropy, nats";
    let upper = panel(HEADER_HEIGHT + 4.0, 270.0, "", steps_axis(last), value_axis(label, &groups));
    let lower = panel(upper.bottom() + 58.0, 230.0, "training step", steps_axis(last), value_axis(label, &quadrants));
    draw_panel(&mut scene, &upper, &groups);
    legend(&mut scene, upper.bottom() + 43.0, &groups);
    draw_panel(&mut scene, &lower, &quadrants);
    legend(&mut scene, lower.bottom() + TO_LEGEND, &quadrants);
    let bounds = if data.thresholds.is_empty() { "not stated".to_owned() } else { font::printable(&data.thresholds) };
    let sure = "What sure tokens cost is conflict: where the model is sure and right, it pays next to nothing.";
    style::notes(
        &mut scene,
        &[format!("{} Quadrants by {bounds}, judged before each step.", smoothing_note(last)), sure.to_owned()],
    );
    scene
}

fn losses(data: &Losses, run: &Run) -> Scene {
    let mut scene = Scene::new(770);
    header(&mut scene, "Loss", run);
    let gated = data.minimised != data.cross_entropy;
    let mut series = vec![Series::of((&data.cross_entropy, "cross-entropy", BLUE))];
    series.extend(gated.then(|| Series::of((&data.minimised, "loss that is minimised", VERMILLION))));
    series.extend(
        (!data.held_out.is_empty())
            .then(|| Series { sparse: true, ..Series::of((&data.held_out, "held-out cross-entropy", GREEN)) }),
    );
    let rate = [Series { sparse: false, ..Series::of((&data.learning_rate, "learning rate", SOFT_INK)) }];
    let last = last_step(series.iter().chain(&rate));
    let upper = panel(HEADER_HEIGHT + 4.0, 380.0, "", steps_axis(last), value_axis("nats per token", &series));
    let peak = rate[0].points.iter().map(|point| point.1).fold(0.0, f64::max);
    let peak = if peak > 0.0 { peak } else { 1.0 };
    let ticks = [0.0, peak / 2.0, peak].map(|rate| (rate, if rate == 0.0 { "0".to_owned() } else { format!("{rate:.1e}") }));
    let y = Axis { label: "learning rate".to_owned(), from: 0.0, to: peak * 1.1, ticks: ticks.into() };
    let lower = panel(upper.bottom() + 40.0, 100.0, "training step", steps_axis(last), y);
    draw_panel(&mut scene, &upper, &series);
    lower.draw_grid(&mut scene);
    scene.line(&rate[0].points.iter().map(|(step, rate)| lower.at(*step as f64, *rate)).collect::<Vec<_>>(), 2.0, SOFT_INK);
    lower.draw_axes(&mut scene);
    legend(&mut scene, lower.bottom() + TO_LEGEND, &series);
    style::notes(&mut scene, &[smoothing_note(last)]);
    scene
}

fn drift(data: &Drift, run: &Run) -> Scene {
    let mut scene = Scene::new(570);
    header(&mut scene, "Drift from the base model on general text", run);
    let series = [Series { sparse: true, ..Series::of((&data.kl, "mean KL(base ‖ model)", VERMILLION)) }];
    let last = last_step(&series);
    let frame = panel(
        HEADER_HEIGHT + 4.0,
        340.0,
        "training step",
        steps_axis(last),
        value_axis("KL to the base, nats per token", &series),
    );
    draw_panel(&mut scene, &frame, &series);
    let at_end = match series[0].points.last() {
        Some((step, kl)) => format!(" After step {}: {kl:.4} nats per token.", thousands(*step)),
        None => String::new(),
    };
    let tokens = match data.tokens {
        0 => String::new(),
        tokens => format!(" over {}", n_tokens(tokens)),
    };
    style::notes(
        &mut scene,
        &[format!("Mean{tokens} of general text, none of which is trained on. 0 is the base model.{at_end}")],
    );
    scene
}

/// A curve with its label and colour.
struct Series<'a> {
    label: &'a str,
    paint: Paint,
    points: Curve,
    /// Measured only at intervals: drawn as points and not smoothed.
    sparse: bool,
}

impl<'a> Series<'a> {
    fn of((curve, label, paint): (&Curve, &'a str, Paint)) -> Series<'a> {
        let points = curve.iter().copied().filter(|(_, value)| value.is_finite()).collect();
        Series { label, paint, points, sparse: false }
    }

    /// The thick line: the mean over the last [`window`] steps.
    fn smooth(&self, last: u64) -> Curve {
        if self.sparse {
            return self.points.clone();
        }
        let window = window(last);
        let mut begin = 0;
        let mut sum = 0.0;
        let mut means = Vec::with_capacity(self.points.len());
        for (idx, (step, value)) in self.points.iter().enumerate() {
            sum += value;
            while self.points[begin].0 + window <= *step {
                sum -= self.points[begin].1;
                begin += 1;
            }
            means.push((*step, sum / (idx + 1 - begin) as f64));
        }
        means
    }
}

/// The number of steps that a smoothed value averages: a fiftieth of the run.
fn window(last: u64) -> u64 {
    (last / 50).max(1)
}

fn smoothing_note(last: u64) -> String {
    match window(last) {
        1 => "Each step by itself.".to_owned(),
        window => format!("Thin: each step. Thick: the mean of the last {window} steps."),
    }
}

fn last_step<'a>(series: impl IntoIterator<Item = &'a Series<'a>>) -> u64 {
    series.into_iter().filter_map(|series| series.points.last()).map(|point| point.0).max().unwrap_or(1).max(1)
}

fn steps_axis(last: u64) -> Axis {
    let to = last as f64;
    // Ticks only at whole steps, even in a short run.
    let ticks = round_ticks(0.0, to, 8).into_iter().filter(|(step, _)| step.fract() == 0.0);
    Axis { label: String::new(), from: 0.0, to, ticks: ticks.map(|(step, _)| (step, thousands(step as u64))).collect() }
}

/// An axis from 0 to somewhat above the smoothed curves; a spike of a single step may be cut off.
fn value_axis(label: &str, series: &[Series]) -> Axis {
    let last = last_step(series);
    let largest = |points: &Curve| points.iter().map(|point| point.1).fold(0.0, f64::max);
    let raw = series.iter().map(|series| largest(&series.points)).fold(0.0, f64::max);
    let smooth = series.iter().map(|series| largest(&series.smooth(last))).fold(0.0, f64::max);
    let to = match raw.min(1.6 * smooth) * 1.08 {
        to if to > 0.0 => to,
        _ => 1.0,
    };
    Axis { label: label.to_owned(), from: 0.0, to, ticks: round_ticks(0.0, to, 5) }
}

fn panel(top: f64, height: f64, x_label: &str, x: Axis, y: Axis) -> Frame {
    Frame { left: LEFT, top, width: PANEL_WIDTH, height, x: Axis { label: x_label.to_owned(), ..x }, y }
}

fn draw_panel(scene: &mut Scene, frame: &Frame, series: &[Series]) {
    let last = frame.x.to as u64;
    frame.draw_grid(scene);
    let pixels = |curve: &Curve| -> Vec<Point> { curve.iter().map(|(step, value)| frame.at(*step as f64, *value)).collect() };
    if window(last) > 1 {
        for series in series.iter().filter(|series| !series.sparse) {
            scene.line(&pixels(&series.points), 1.0, series.paint.with_alpha(0.28));
        }
    }
    for series in series {
        let points = pixels(&series.smooth(last));
        scene.line(&points, 2.5, series.paint);
        // A line of one point would be invisible.
        if series.sparse || points.len() == 1 {
            points.iter().for_each(|point| scene.dot(*point, 4.0, series.paint));
        }
    }
    frame.draw_axes(scene);
    if series.iter().all(|series| series.points.is_empty()) {
        style::no_tokens(scene, frame.left + frame.width / 2.0, frame.top + frame.height / 2.0);
    }
}

fn legend(scene: &mut Scene, y: f64, series: &[Series]) {
    let mut x = LEFT + 20.0;
    for series in series {
        let style = Text::body(INK);
        scene.line(&[(x, y - 5.0), (x + 26.0, y - 5.0)], 3.0, series.paint);
        let last = series.points.last().map_or(String::new(), |(_, value)| format!(" (last {value:.3})"));
        let text = format!("{}{last}", series.label);
        scene.text(x + 34.0, y, &text, style);
        x += 34.0 + font::width(&text, style.size, false) + 30.0;
    }
}

fn header(scene: &mut Scene, title: &str, run: &Run) {
    let width = scene.width() - 2.0 * MARGIN;
    let mut line = |y: f64, text: &str, style: Text| {
        scene.text(MARGIN, y, &font::elide(text, style.size, style.bold, width), style);
    };
    let known = |text: &str| if text.is_empty() { "not stated".to_owned() } else { font::printable(text) };
    line(40.0, title, Text { size: TITLE_SIZE, bold: true, ..Text::label(INK) });
    line(67.0, &format!("model: {}   ·   data: {}", known(&run.model), known(&run.data)), Text::body(SOFT_INK));
    line(90.0, &format!("method: {}", known(&run.method)), Text::body(SOFT_INK));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> Run {
        let text = |text: &str| text.to_owned();
        Run {
            model: text("SmolLM2-135M-Instruct"),
            data: text("train.jsonl (2,000 rows)"),
            method: text("eaft, full, learning rate 1e-5"),
        }
    }

    /// A curve that falls from `from` to `to` over `n` steps, with independent noise at each step.
    fn falling(from: f64, to: f64, n: u64, seed: u64) -> Curve {
        let noise = |step: u64| {
            let x = (step * 7919 + seed).wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 40) as f64 / (1u64 << 24) as f64 - 0.5
        };
        (1..=n).map(|step| (step, to + (from - to) * (-3.0 * step as f64 / n as f64).exp() + 0.25 * from * noise(step))).collect()
    }

    fn data(n: u64) -> (Dynamics, Losses, Drift) {
        let mut low = falling(0.6, 0.2, n, 2);
        // A step without such a token.
        if n > 10 {
            low[7].1 = f64::NAN;
        }
        let dynamics = Dynamics {
            high: falling(4.2, 3.1, n, 1),
            low,
            quadrants: [falling(4.8, 4.4, n, 3), falling(3.9, 2.8, n, 4), falling(0.2, 0.1, n, 5), falling(0.9, 0.7, n, 6)],
            thresholds: "p 0.25, H 1.0".to_owned(),
        };
        let losses = Losses {
            cross_entropy: falling(2.2, 1.3, n, 7),
            minimised: falling(1.1, 0.8, n, 8),
            held_out: (0..=n)
                .step_by((n as usize / 10).max(1))
                .map(|step| (step, 2.0 - 0.4 * (step as f64 / n as f64)))
                .collect(),
            learning_rate: (0..n).map(|step| (step, 1e-5 * (1.0 - step as f64 / n as f64))).collect(),
        };
        let kl = (0..=10).map(|at| (at * n / 10, 0.03 * (at as f64 / 10.0).powf(0.7))).collect();
        (dynamics, losses, Drift { kl, tokens: 20_000 })
    }

    #[test]
    fn means_look_back_over_the_last_steps_only() {
        // A run of 100 steps has windows of 2; step 4 is missing.
        let curve = vec![(1, 1.0), (2, 3.0), (3, 5.0), (5, 9.0), (100, 0.0)];
        let smooth = Series::of((&curve, "", BLUE)).smooth(100);
        assert_eq!(smooth, [(1, 1.0), (2, 2.0), (3, 4.0), (5, 9.0), (100, 0.0)]);
        assert_eq!(Series::of((&curve, "", BLUE)).smooth(49), curve, "short runs are drawn as they are");
    }

    #[test]
    fn every_figure_of_long_short_single_and_empty_runs() {
        let folder = tempfile::tempdir().unwrap();
        let kept = std::env::var_os("MAPS_OUT").map(std::path::PathBuf::from);
        for n in [1000, 30, 1] {
            let (dynamics_data, losses_data, drift_data) = data(n);
            let scenes = [
                ("dynamics", dynamics(&dynamics_data, &run())),
                ("loss", losses(&losses_data, &run())),
                ("drift", drift(&drift_data, &run())),
            ];
            for (name, scene) in scenes {
                scene.check_texts();
                scene.save(&kept.as_deref().unwrap_or(folder.path()).join(format!("training-{name}-{n}.png"))).unwrap();
            }
        }
        let (dynamics_data, ..) = data(1000);
        let scene = dynamics(&dynamics_data, &run());
        assert!(scene.texts().iter().any(|text| text.starts_with("confident conflict (last ")), "{:?}", scene.texts());
        assert!(scene.texts().contains(
            &"Thin: each step. Thick: the mean of the last 20 steps. Quadrants by p 0.25, H 1.0, judged before each step."
        ));

        dynamics(&Dynamics::default(), &Run::default()).check_texts();
        losses(&Losses::default(), &Run::default()).check_texts();
        let nan = Drift { kl: vec![(3, f64::NAN), (4, f64::INFINITY)], tokens: 0 };
        let scene = drift(&nan, &Run::default());
        scene.check_texts();
        assert!(scene.texts().contains(&"no tokens"));
    }
}
