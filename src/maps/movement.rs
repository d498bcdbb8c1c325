//! How tokens moved between the quadrants from one scoring to the next: a table with a row for each quadrant before and a column
//! for each quadrant after.

use std::path::Path;

use super::font;
use super::plane::QUADRANT_NAMES;
use super::scene::{Anchor, Scene, Text};
use super::style::{self, BLUE, HEADER_HEIGHT, INK, LABEL_SIZE, MARGIN, PAPER, QUADRANT_PAINTS, SOFT_INK, TITLE_SIZE};
use crate::error::Result;
use crate::format::{n_tokens, percent, thousands};

/// The movement between two scorings, with quadrants in the order of [`QUADRANT_NAMES`].
#[derive(Debug, Clone)]
pub struct Movement {
    /// The name of the first scoring.
    pub before: String,
    /// The name of the second scoring.
    pub after: String,
    /// `moved[i][j]` tokens were in quadrant i before and are in j after.
    pub moved: [[u64; 4]; 4],
    /// The mean changes of log-probability and entropy in nats, by the quadrant before.
    pub changes: [[Option<f64>; 2]; 4],
}

/// Draws the table to a PNG or an SVG.
pub fn draw(movement: &Movement, path: &Path) -> Result<()> {
    scene(movement).save(path)
}

const CELL_WIDTH: f64 = 166.0;
const CELL_HEIGHT: f64 = 92.0;
const LEFT: f64 = 206.0;
/// The column names stand above the cells.
const TOP: f64 = HEADER_HEIGHT + 62.0;

pub(super) fn scene(movement: &Movement) -> Scene {
    let mut scene = Scene::new((TOP + 4.0 * CELL_HEIGHT + 78.0).ceil() as u32);
    let width = scene.width() - 2.0 * MARGIN;
    let total: u64 = movement.moved.iter().flatten().sum();
    let stayed: u64 = (0..4).map(|idx| movement.moved[idx][idx]).sum();
    let mut header = |y: f64, text: &str, style: Text| {
        scene.text(MARGIN, y, &font::elide(text, style.size, style.bold, width), style);
    };
    header(40.0, "How the tokens moved between the quadrants", Text { size: TITLE_SIZE, bold: true, ..Text::label(INK) });
    let models = format!("before: {}   ·   after: {}", font::printable(&movement.before), font::printable(&movement.after));
    header(67.0, &models, Text::body(SOFT_INK));
    let share = percent(stayed as f64 / total as f64);
    header(90.0, &format!("n = {}   ·   {share} stayed where they were", n_tokens(total)), Text::body(SOFT_INK));

    let centred = Text::body(INK).anchored(Anchor::Middle);
    let column = |idx: usize| LEFT + CELL_WIDTH * idx as f64;
    for (idx, name) in QUADRANT_NAMES.iter().enumerate() {
        let middle = column(idx) + CELL_WIDTH / 2.0;
        scene.rect(column(idx) + 3.0, TOP - 7.0, column(idx + 1) - 3.0, TOP - 3.0, QUADRANT_PAINTS[idx]);
        scene.text(middle, TOP - 16.0, name, centred);
    }
    scene.text(column(2), TOP - 40.0, "after", Text { size: LABEL_SIZE, bold: true, ..centred });
    let changes = ["ln p", "entropy"].map(|name| format!("change of {name}"));
    let change_at = |idx: usize| column(4) + 72.0 + 138.0 * idx as f64;
    for (idx, name) in changes.iter().enumerate() {
        scene.text(change_at(idx), TOP - 16.0, name, Text::small(INK).anchored(Anchor::Middle));
    }
    for (row, name) in QUADRANT_NAMES.iter().enumerate() {
        let top = TOP + CELL_HEIGHT * row as f64;
        let middle = top + CELL_HEIGHT / 2.0;
        scene.rect(LEFT - 7.0, top + 3.0, LEFT - 3.0, top + CELL_HEIGHT - 3.0, QUADRANT_PAINTS[row]);
        let right = Text::body(INK).anchored(Anchor::Right);
        scene.text(LEFT - 16.0, middle - 3.0, name, right);
        let of_row: u64 = movement.moved[row].iter().sum();
        scene.text(
            LEFT - 16.0,
            middle + 16.0,
            &n_tokens(of_row),
            Text { paint: SOFT_INK, ..Text::small(INK).anchored(Anchor::Right) },
        );
        for (idx, count) in movement.moved[row].into_iter().enumerate() {
            draw_cell(&mut scene, column(idx), top, count, of_row, row == idx);
        }
        for (idx, change) in movement.changes[row].into_iter().enumerate() {
            let text = change.map_or_else(|| "–".to_owned(), |change| format!("{change:+.3}"));
            scene.text(change_at(idx), middle + 5.5, &text, centred);
        }
    }
    let notes = "Shares are of the row: of the tokens of a quadrant before, where they are after. Framed: those that stayed. Changes are means in nats, after minus before.";
    style::notes(&mut scene, &[notes.to_owned()]);
    scene
}

fn draw_cell(scene: &mut Scene, left: f64, top: f64, count: u64, of_row: u64, stayed: bool) {
    let (right, bottom) = (left + CELL_WIDTH - 3.0, top + CELL_HEIGHT - 3.0);
    let (left, top) = (left + 3.0, top + 3.0);
    let share = count as f64 / of_row as f64;
    let depth = if of_row == 0 { 0.0 } else { share };
    scene.rect(left, top, right, bottom, BLUE.with_alpha(0.04 + 0.86 * depth));
    if stayed {
        scene.outline(left, top, right, bottom, 2.0, INK);
    }
    let paint = if depth > 0.75 { PAPER } else { INK };
    let (x, y) = ((left + right) / 2.0, (top + bottom) / 2.0);
    let centred = Text { paint, anchor: Anchor::Middle, ..Text::label(INK) };
    scene.text(x, y - 2.0, &percent(share), centred);
    scene.text(x, y + 19.0, &thousands(count), Text { size: style::NOTE_SIZE, ..centred });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_show_shares_of_their_row() {
        let movement = Movement {
            before: "runs/before".into(),
            after: "runs/a run with quite a long name 模型".into(),
            moved: [[130, 20, 45, 5], [80, 9000, 700, 220], [12, 400, 31_000, 588], [0, 0, 0, 0]],
            changes: [[Some(2.4), Some(0.31)], [Some(0.2), Some(-0.11)], [Some(-0.02), Some(0.0)], [None, None]],
        };
        let scene = scene(&movement);
        scene.check_texts();
        let texts = scene.texts().join("\n");
        // 130 of 200; 400 of 32,000.
        assert!(["65.0 %", "1.2 %", "+2.400", "–", "0 tokens", "31,000"].iter().all(|part| texts.contains(part)), "{texts}");
        if let Some(folder) = std::env::var_os("MAPS_OUT") {
            scene.save(&Path::new(&folder).join("movement.png")).unwrap();
        }
        super::scene(&Movement { moved: [[0; 4]; 4], ..movement }).check_texts();
    }
}
