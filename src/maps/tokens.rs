//! The most frequent tokens of each quadrant, as ranked bars (the paper's figure 7).
//!
//! The four panels are arranged like the quadrants in the plane: uncertain and hesitant at the top, conflicts and confident at
//! the bottom. White space in a token is made visible, and characters that the font lacks are written as code points, never as
//! empty boxes; a part of a multi-byte character, which has no text of its own, is shown by its id.

use std::path::Path;

use super::font;
use super::plane::QUADRANT_NAMES;
use super::scene::{Anchor, Scene, Text};
use super::style::{self, Caption, HEADER_HEIGHT, INK, MARGIN, QUADRANT_PAINTS, SOFT_INK};
use crate::error::Result;
use crate::format::{n_tokens, percent, thousands};

/// A token and its number of occurrences in a quadrant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenCount {
    /// The id in the model's vocabulary.
    pub id: u32,
    /// The text when decoded alone; a part of a character decodes to U+FFFD.
    pub text: String,
    /// The number of occurrences in the quadrant.
    pub count: u64,
}

/// The most frequent tokens of the quadrants, in the order of [`QUADRANT_NAMES`].
#[derive(Debug, Clone, Default)]
pub struct FrequentTokens {
    /// The most frequent first; the first [`N_SHOWN`] are drawn.
    pub tokens: [Vec<TokenCount>; 4],
    /// The number of all tokens in the quadrant.
    pub totals: [u64; 4],
}

/// The number of tokens in a panel.
pub const N_SHOWN: usize = 12;

/// Draws the four panels to a PNG or an SVG.
pub fn draw(data: &FrequentTokens, caption: &Caption, path: &Path) -> Result<()> {
    scene(data, caption).save(path)
}

pub(super) fn scene(data: &FrequentTokens, caption: &Caption) -> Scene {
    const DESCRIPTIONS: [&str; 4] = ["low p, low H", "low p, high H", "high p, low H", "high p, high H"];
    let mut scene = Scene::new(960);
    let n: u64 = data.totals.iter().sum();
    style::header(&mut scene, "The most frequent tokens of each quadrant", &n_tokens(n), caption);
    let (right_column, lower_row) = (MARGIN + 586.0, HEADER_HEIGHT + 414.0);
    let places = [(MARGIN, lower_row), (MARGIN, HEADER_HEIGHT), (right_column, lower_row), (right_column, HEADER_HEIGHT)];
    for (quadrant, (left, top)) in places.into_iter().enumerate() {
        let share = if n == 0 { 0.0 } else { data.totals[quadrant] as f64 / n as f64 };
        let size = format!("{}: {}, {}", DESCRIPTIONS[quadrant], n_tokens(data.totals[quadrant]), percent(share));
        draw_panel(&mut scene, left, top, quadrant, &size, data);
    }
    let bars = "Bars: number of tokens, on each panel's own scale; in brackets the share of the quadrant.";
    let marks = "␣ space   ⏎ line feed   ⇥ tab   ⟨U+4E2D⟩ a character outside the font   <0xE6> a byte of one   ⟨#7⟩ token 7, without text";
    style::notes(&mut scene, &[bars.to_owned(), marks.to_owned()]);
    scene
}

fn draw_panel(scene: &mut Scene, left: f64, top: f64, quadrant: usize, size: &str, data: &FrequentTokens) {
    const NAMES_WIDTH: f64 = 170.0;
    const BARS_WIDTH: f64 = 270.0;
    const ROW: f64 = 27.5;
    let paint = QUADRANT_PAINTS[quadrant];
    scene.rect(left, top + 6.0, left + 14.0, top + 20.0, paint);
    let name = QUADRANT_NAMES[quadrant];
    scene.text(left + 22.0, top + 19.0, name, Text { bold: true, ..Text::label(INK) });
    let name_width = font::width(name, style::LABEL_SIZE, true);
    scene.text(left + 36.0 + name_width, top + 19.0, size, Text::small(SOFT_INK));

    let (tokens, total) = (&data.tokens[quadrant], data.totals[quadrant].max(1) as f64);
    let bars = left + NAMES_WIDTH + 8.0;
    let most = tokens.iter().map(|token| token.count).max().unwrap_or(1).max(1) as f64;
    for (idx, token) in tokens.iter().take(N_SHOWN).enumerate() {
        let y = top + 36.0 + ROW * idx as f64;
        let baseline = y + 16.5;
        let label = shown(token);
        let label = font::elide(&label, style::TEXT_SIZE, false, NAMES_WIDTH);
        scene.text(left + NAMES_WIDTH, baseline, &label, Text::body(INK).anchored(Anchor::Right));
        let end = bars + BARS_WIDTH * token.count as f64 / most;
        scene.rect(bars, y + 2.0, end.max(bars + 1.0), y + ROW - 4.0, paint);
        let count = format!("{}  ({})", thousands(token.count), percent(token.count as f64 / total));
        scene.text(end + 7.0, baseline, &count, Text::small(SOFT_INK));
    }
    if tokens.is_empty() {
        style::no_tokens(scene, left + 270.0, top + 180.0);
    } else {
        let bottom = top + 36.0 + ROW * tokens.len().min(N_SHOWN) as f64;
        scene.line(&[(bars, top + 34.0), (bars, bottom)], 1.0, SOFT_INK);
    }
}

/// The text of a token as the figure shows it.
fn shown(token: &TokenCount) -> String {
    if token.text.is_empty() || token.text.contains(char::REPLACEMENT_CHARACTER) {
        format!("⟨#{}⟩", token.id)
    } else {
        font::visible_token(&token.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_without_text_is_shown_by_its_id() {
        let check = |text: &str, expected: &str| {
            assert_eq!(shown(&TokenCount { id: 7, text: text.to_owned(), count: 1 }), expected);
        };
        check(" is", "␣is");
        check("\u{fffd}", "⟨#7⟩");
        check(" \u{fffd}", "⟨#7⟩");
        check("", "⟨#7⟩");
        check("好", "⟨U+597D⟩");
    }
}
