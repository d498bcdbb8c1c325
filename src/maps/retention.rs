//! What fine-tuning runs gained on their target and lost in general: one point with error bars per run.
//!
//! The paper's Figures 2 and 5. The upper right corner is good: a gain on the target and no loss in general.

use std::path::Path;

use super::axes::{Axis, Frame, round_ticks};
use super::font;
use super::scene::{Paint, Scene, Text};
use super::style::{self, BLUE, GREEN, HEADER_HEIGHT, INK, MARGIN, ORANGE, PAPER, SOFT_INK, TITLE_SIZE, VERMILLION};
use crate::error::Result;
use crate::format::thousands;

/// A run: its changes from the base model in percentage points, with 95 % intervals.
#[derive(Debug, Clone)]
pub struct Run {
    /// The label of its point.
    pub name: String,
    /// The change on the task that it was trained for.
    pub target: Change,
    /// The change on all other tasks.
    pub general: Change,
}

/// A change in percentage points, after minus before, with its 95 % interval.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    /// In percentage points; above 0 is better.
    pub value: f64,
    /// The lower end of the interval.
    pub low: f64,
    /// The upper end of the interval.
    pub high: f64,
    /// The number of items that it is the mean of.
    pub n: usize,
}

/// Draws the figure. `base` is the name of the base model.
pub fn draw(runs: &[Run], base: &str, path: &Path) -> Result<()> {
    scene(runs, base).save(path)
}

pub(super) fn scene(runs: &[Run], base: &str) -> Scene {
    const HEIGHT: u32 = 760;
    let mut scene = Scene::new(HEIGHT);
    let width = scene.width() - 2.0 * MARGIN;
    let mut header = |y: f64, text: &str, style: Text| {
        scene.text(MARGIN, y, &font::elide(text, style.size, style.bold, width), style);
    };
    header(40.0, "What was gained and what was forgotten", Text { size: TITLE_SIZE, bold: true, ..Text::label(INK) });
    let origin = format!("{} runs   ·   changes against {}", runs.len(), font::printable(base));
    header(67.0, &origin, Text::body(SOFT_INK));

    let axis = |label: &str, of: fn(&Run) -> Change| {
        let (low, high) = runs.iter().map(of).fold((-1.0f64, 1.0f64), |(low, high), c| (low.min(c.low), high.max(c.high)));
        let room = 0.06 * (high - low);
        let (from, to) = (low - room, high + room);
        let n = runs.iter().map(|run| of(run).n as u64);
        let n = match n.clone().min().zip(n.max()) {
            Some((fewest, most)) if fewest < most => format!(" (n = {} to {})", thousands(fewest), thousands(most)),
            Some((n, _)) => format!(" (n = {})", thousands(n)),
            None => String::new(),
        };
        Axis { label: format!("{label}{n}"), from, to, ticks: round_ticks(from, to, 7) }
    };
    let x = axis("target, points gained", |run| run.target);
    let y = axis("general ability, points", |run| run.general);
    let frame = Frame { left: 118.0, top: HEADER_HEIGHT, width: 720.0, height: f64::from(HEIGHT) - HEADER_HEIGHT - 122.0, x, y };
    frame.draw_grid(&mut scene);
    scene.line(&[frame.at(0.0, frame.y.from), frame.at(0.0, frame.y.to)], 1.5, SOFT_INK);
    scene.line(&[frame.at(frame.x.from, 0.0), frame.at(frame.x.to, 0.0)], 1.5, SOFT_INK);
    let at = |run: &Run| frame.at(run.target.value, run.general.value);
    let coincide = |a: &Run, b: &Run| {
        let ((x, y), (other_x, other_y)) = (at(a), at(b));
        (x - other_x).hypot(y - other_y) < NEAR
    };
    for (idx, run) in runs.iter().enumerate() {
        let n_under = runs[..idx].iter().filter(|other| coincide(run, other)).count();
        let n_over = runs[idx + 1..].iter().filter(|other| coincide(run, other)).count();
        draw_run(&mut scene, &frame, idx, run, n_under, n_over);
    }
    frame.draw_axes(&mut scene);
    let note = "Bars: 95 % intervals. Right of the vertical line the target was gained; below the horizontal line something was forgotten.";
    style::notes(&mut scene, &[note.to_owned()]);
    scene
}

/// Points closer than this, in pixels, hide each other.
const NEAR: f64 = 9.0;

/// Draws a run. Points are numbered, since they may be close together and colours repeat; the names stand at the right. Where
/// runs coincide, the first are drawn larger and with wider bars, later ones on top of them, with their numbers side by side.
fn draw_run(scene: &mut Scene, frame: &Frame, idx: usize, run: &Run, n_under: usize, n_over: usize) {
    const PAINTS: [Paint; 4] = [BLUE, VERMILLION, GREEN, ORANGE];
    let paint = PAINTS[idx % PAINTS.len()];
    let (x, y) = frame.at(run.target.value, run.general.value);
    let width = 2.0 + 4.0 * n_over as f64;
    scene.line(&[(frame.x_at(run.target.low), y), (frame.x_at(run.target.high), y)], width, paint);
    scene.line(&[(x, frame.y_at(run.general.low)), (x, frame.y_at(run.general.high))], width, paint);
    let radius = 6.0 + 5.0 * n_over as f64;
    if n_under > 0 {
        // Also separates runs of the same colour.
        scene.dot((x, y), radius + 1.5, PAPER);
    }
    scene.dot((x, y), radius, paint);
    let number_x = x + 10.0 + 5.0 * (n_under + n_over) as f64 + 22.0 * n_under as f64;
    let number_y = y - 9.0 - 5.0 * (n_under + n_over) as f64;
    scene.veiled_text(number_x, number_y, &(idx + 1).to_string(), Text { bold: true, ..Text::small(paint) });
    let left = frame.right() + 24.0;
    let top = frame.top + 22.0 + 26.0 * idx as f64;
    // If there are more runs than lines, the points are drawn, but not the names.
    if top < frame.bottom() {
        scene.dot((left, top - 5.0), 6.0, paint);
        let (number, changes) = (format!("{}  ", idx + 1), format!("  ({:+.1}, {:+.1})", run.target.value, run.general.value));
        let (style, room) = (Text::body(INK), scene.width() - left - 14.0 - MARGIN);
        let name = font::elide_name([&number, &font::printable(&run.name), &changes], style.size, false, room);
        scene.text(left + 14.0, top, &name, style);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_is_named_with_its_changes() {
        let change = |value: f64, width: f64| Change { value, low: value - width, high: value + width, n: 1200 };
        let run =
            |name: &str, target, general| Run { name: name.into(), target: change(target, 2.0), general: change(general, 0.8) };
        let runs = [
            run("SFT", 9.0, -6.1),
            run("EAFT", 8.7, -1.2),
            run("DFT", 4.0, -2.0),
            run("asft, a longer name for a run, and all that was changed in it", -16.04, -33.0),
        ];
        let scene = scene(&runs, "SmolLM2-135M-Instruct");
        scene.check_texts();
        assert!(scene.texts().contains(&"2  EAFT  (+8.7, -1.2)"));
        let is_whole = |text: &&str| text.starts_with("4  asft") && text.ends_with("in it  (-16.0, -33.0)");
        assert!(scene.texts().iter().any(is_whole), "{:?}", scene.texts());
        assert!(scene.texts().contains(&"general ability, points (n = 1,200)"));
        if let Some(folder) = std::env::var_os("MAPS_OUT") {
            scene.save(&Path::new(&folder).join("retention.png")).unwrap();
        }
        super::scene(&[], "").check_texts();
    }

    /// Two runs with the same changes, and a third one in the colour of the first.
    #[test]
    fn runs_that_coincide_are_all_to_be_seen() {
        let change = |value: f64, width: f64| Change { value, low: value - width, high: value + width, n: 1200 };
        let run =
            |name: &str, target, general| Run { name: name.into(), target: change(target, 2.0), general: change(general, 0.8) };
        let runs = [
            run("one", 3.0, -1.0),
            run("its equal", 3.0, -1.0),
            run("another", -2.0, 1.0),
            run("a fourth", 5.0, 0.5),
            run("of the first's colour", 3.0, -1.0),
        ];
        let scene = scene(&runs, "base");
        scene.check_texts();
        // Each disc is larger than the next one, with a gap in between.
        let dots = scene.dots();
        let first = dots[0].0;
        let there = dots.iter().filter(|(at, _)| (at.0 - first.0).hypot(at.1 - first.1) < 1e-6);
        assert_eq!(there.map(|(_, radius)| radius.round()).collect::<Vec<_>>(), [16.0, 13.0, 11.0, 8.0, 6.0]);
        if let Some(folder) = std::env::var_os("MAPS_OUT") {
            scene.save(&Path::new(&folder).join("retention_coincident.png")).unwrap();
        }
    }
}
