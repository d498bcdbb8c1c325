//! A forest plot of how much each score changed, with intervals and the macro average at the bottom.

use std::path::Path;

use super::axes::{Axis, Frame, round_ticks};
use super::font;
use super::scene::{Anchor, Paint, Scene, Text};
use super::style::{self, BLUE, HEADER_HEIGHT, INK, MARGIN, SOFT_INK, TITLE_SIZE, VERMILLION};
use crate::error::Result;
use crate::format::thousands;

/// A change in percentage points, after minus before.
#[derive(Debug, Clone)]
pub struct Row {
    /// The task.
    pub name: String,
    /// The number of items; `None` for an average.
    pub n: Option<usize>,
    /// In percentage points; above 0 is better.
    pub value: f64,
    /// The 95 % interval; absent if there are too few items.
    pub ci95: Option<[f64; 2]>,
}

/// Draws the figure. `before` and `after` are the names of the models.
pub fn draw(rows: &[Row], average: Option<&Row>, before: &str, after: &str, path: &Path) -> Result<()> {
    scene(rows, average, before, after).save(path)
}

const ROW_HEIGHT: f64 = 34.0;
/// The names stand to the left of the plot, the numbers to the right.
const NAMES_WIDTH: f64 = 330.0;
const NUMBERS_WIDTH: f64 = 260.0;

pub(super) fn scene(rows: &[Row], average: Option<&Row>, before: &str, after: &str) -> Scene {
    let n_lines = rows.len() + average.map_or(0, |_| 1);
    let plot_height = ROW_HEIGHT * (n_lines.max(1) as f64 + 0.5);
    let mut scene = Scene::new((HEADER_HEIGHT + plot_height + 122.0).ceil() as u32);
    let width = scene.width() - 2.0 * MARGIN;
    let mut header = |y: f64, text: &str, style: Text| {
        scene.text(MARGIN, y, &font::elide(text, style.size, style.bold, width), style);
    };
    header(40.0, "What changed: accuracy after minus before", Text { size: TITLE_SIZE, bold: true, ..Text::label(INK) });
    let models = format!("before: {}   ·   after: {}", font::printable(before), font::printable(after));
    header(67.0, &models, Text::body(SOFT_INK));

    // The axis is symmetric, so that 0 always shows, and spans at least one point in each direction.
    let places = |row: &Row| row.ci95.into_iter().flatten().chain([row.value]).map(f64::abs).fold(1.0, f64::max);
    let reach = rows.iter().chain(average).map(places).fold(1.0, f64::max) * 1.08;
    let x = Axis { label: "points".to_owned(), from: -reach, to: reach, ticks: round_ticks(-reach, reach, 8) };
    let y = Axis { label: String::new(), from: 0.0, to: 1.0, ticks: Vec::new() };
    let left = MARGIN + NAMES_WIDTH;
    let frame = Frame { left, top: HEADER_HEIGHT, width: width - NAMES_WIDTH - NUMBERS_WIDTH, height: plot_height, x, y };
    frame.draw_grid(&mut scene);
    scene.line(&[(frame.x_at(0.0), frame.top), (frame.x_at(0.0), frame.bottom())], 1.5, SOFT_INK);
    for (idx, row) in rows.iter().chain(average).enumerate() {
        let y = frame.top + ROW_HEIGHT * (idx as f64 + 0.75);
        draw_row(&mut scene, &frame, row, y);
    }
    if average.is_some() && !rows.is_empty() {
        let y = frame.top + ROW_HEIGHT * (rows.len() as f64 + 0.25);
        scene.dashes((frame.left, y), (frame.right(), y), 1.0, SOFT_INK);
    }
    frame.draw_axes(&mut scene);
    let note =
        "Bars: 95 % intervals of the changes on the same items. Coloured if the interval excludes 0: drops red, gains blue.";
    style::notes(&mut scene, &[note.to_owned()]);
    scene
}

fn draw_row(scene: &mut Scene, frame: &Frame, row: &Row, y: f64) {
    let paint = paint(row);
    let bold = row.n.is_none();
    let n = row.n.map_or_else(String::new, |n| format!("  (n = {})", thousands(n as u64)));
    let label = Text { bold, anchor: Anchor::Right, ..Text::body(INK) };
    let name = font::elide_name(["", &font::printable(&row.name), &n], label.size, bold, NAMES_WIDTH - 12.0);
    scene.text(frame.left - 12.0, y + 5.5, &name, label);
    if let Some([low, high]) = row.ci95.map(|ends| ends.map(|end| frame.x_at(end))) {
        scene.line(&[(low, y), (high, y)], 2.5, paint);
        for end in [low, high] {
            scene.line(&[(end, y - 5.0), (end, y + 5.0)], 2.5, paint);
        }
    }
    let at = frame.x_at(row.value);
    match bold {
        // A diamond, the usual sign for a summary.
        true => scene.polygon(vec![(at - 9.0, y), (at, y - 7.0), (at + 9.0, y), (at, y + 7.0)], paint),
        false => scene.dot((at, y), 5.5, paint),
    }
    let ends = row.ci95.map_or_else(String::new, |[low, high]| format!("   [{low:+.2}, {high:+.2}]"));
    let numbers = format!("{:+.2}{ends}", row.value);
    scene.text(frame.right() + 14.0, y + 5.5, &numbers, Text { bold, ..Text::body(INK) });
}

fn paint(row: &Row) -> Paint {
    match row.ci95 {
        Some([_, high]) if high < 0.0 => VERMILLION,
        Some([low, _]) if low > 0.0 => BLUE,
        _ => SOFT_INK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, n: Option<usize>, value: f64, low: f64, high: f64) -> Row {
        Row { name: name.to_owned(), n, value, ci95: Some([low, high]) }
    }

    #[test]
    fn rows_are_named_and_coloured_by_their_interval() {
        let rows = [
            row("arc_easy_test, acc", Some(1600), -3.2, -5.1, -1.4),
            row("hellaswag_val, acc_norm", Some(1500), 0.4, -0.9, 1.7),
            row("a_task_with_a_name_that_is_far_too_long_for_the_column, acc", Some(12_345), 6.0, 4.0, 8.0),
        ];
        let average = row("macro average", None, -0.9, -1.9, 0.1);
        let scene = scene(&rows, Some(&average), "before.gguf", "模型");
        scene.check_texts();
        let texts = scene.texts().join("\n");
        assert!(texts.contains("-3.20   [-5.10, -1.40]") && texts.contains("arc_easy_test, acc  (n = 1,600)"), "{texts}");
        assert_eq!([&rows[0], &rows[1], &rows[2]].map(paint), [VERMILLION, SOFT_INK, BLUE]);
        if let Some(folder) = std::env::var_os("MAPS_OUT") {
            scene.save(&Path::new(&folder).join("forest.png")).unwrap();
        }
        // A change without an interval gets no colour, since it may be chance.
        let alone = Row { ci95: None, ..row("one_item, acc", Some(1), -100.0, 0.0, 0.0) };
        assert_eq!(paint(&alone), SOFT_INK);
        let alone = super::scene(&[alone], None, "a", "b");
        alone.check_texts();
        assert!(alone.texts().contains(&"-100.00"), "{:?}", alone.texts());
        super::scene(&[], None, "", "").check_texts();
        super::scene(&[row("t", Some(1), 0.0, 0.0, 0.0)], None, "a", "b").check_texts();
    }
}
