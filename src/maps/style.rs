//! The common design of all figures: title block, notes and colour scale; palette.rs holds sizes and colours.

use super::font;
use super::scene::{Anchor, Paint, Scene, Text};

pub use super::palette::{
    BAR, BLUE, CUT, GREEN, GRID_LINE, HEADER_HEIGHT, INK, LABEL_SIZE, MARGIN, NOTE_SIZE, ORANGE, PAPER, QUADRANT_PAINTS,
    SOFT_INK, TEXT_SIZE, TITLE_SIZE, VEIL, VERMILLION, WIDTH, viridis,
};

/// The origin of a picture's data, shown below its title.
#[derive(Debug, Clone, Default)]
pub struct Caption {
    /// The name of the model.
    pub model: String,
    /// The names of the data files.
    pub data: String,
    /// The preset of the thresholds and its resolved numbers.
    pub thresholds: String,
}

/// A logarithmic colour scale from `from` to `to`, both positive.
#[derive(Debug, Clone, Copy)]
pub struct LogScale {
    /// The amount at the first colour.
    pub from: f64,
    /// The amount at the last colour.
    pub to: f64,
}

impl LogScale {
    /// The number of colour steps: few enough that adjacent cells often share one and are drawn as one rectangle.
    pub const STEPS: usize = 96;

    /// The colour step of a positive amount.
    pub fn step(&self, amount: f64) -> usize {
        let at = (amount / self.from).ln() / (self.to / self.from).ln();
        (at.clamp(0.0, 1.0) * (Self::STEPS - 1) as f64).round() as usize
    }

    /// The colour of a step.
    pub fn paint(step: usize) -> Paint {
        viridis(step as f64 / (Self::STEPS - 1) as f64)
    }

    /// Draws a vertical colour bar with ticks at the powers of ten (and at 2 and 5 times each if few decades are shown).
    pub fn draw(&self, scene: &mut Scene, left: f64, top: f64, height: f64, title: &str, label: impl Fn(f64) -> String) {
        const BAR_WIDTH: f64 = 18.0;
        let bottom = top + height;
        for step in 0..Self::STEPS {
            let y_at = |step: usize| bottom - height * step as f64 / Self::STEPS as f64;
            scene.rect(left, y_at(step + 1), left + BAR_WIDTH, y_at(step), Self::paint(step));
        }
        scene.outline(left, top, left + BAR_WIDTH, bottom, 1.0, SOFT_INK);
        let decades = (self.to / self.from).log10();
        let factors: &[f64] = if decades < 3.2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        for power in self.from.log10().floor() as i32..=self.to.log10().ceil() as i32 {
            for factor in factors {
                let amount = factor * 10f64.powi(power);
                let at = (amount / self.from).log10() / decades;
                if (-1e-9..=1.0 + 1e-9).contains(&at) {
                    let y = bottom - height * at;
                    scene.line(&[(left + BAR_WIDTH, y), (left + BAR_WIDTH + 5.0, y)], 1.0, SOFT_INK);
                    scene.text(left + BAR_WIDTH + 9.0, y + 5.0, &label(amount), Text::small(INK));
                }
            }
        }
        let middle = Text { anchor: Anchor::Middle, vertical: true, ..Text::label(INK) };
        scene.text(left - 9.0, top + height / 2.0, title, middle);
    }
}

/// Draws the title, and below it n, model and data, then the thresholds.
pub fn header(scene: &mut Scene, title: &str, n: &str, caption: &Caption) {
    let width = scene.width() - 2.0 * MARGIN;
    let mut line = |y: f64, text: &str, style: Text| {
        scene.text(MARGIN, y, &font::elide(text, style.size, style.bold, width), style);
    };
    line(40.0, title, Text { size: TITLE_SIZE, bold: true, ..Text::label(INK) });
    let known = |text: &str| if text.is_empty() { "not stated".to_owned() } else { font::printable(text) };
    line(
        67.0,
        &format!("n = {n}   ·   model: {}   ·   data: {}", known(&caption.model), known(&caption.data)),
        Text::body(SOFT_INK),
    );
    line(90.0, &format!("thresholds: {}", known(&caption.thresholds)), Text::body(SOFT_INK));
}

/// Draws notes along the lower edge.
pub fn notes(scene: &mut Scene, lines: &[String]) {
    let (width, height) = (scene.width() - 2.0 * MARGIN, scene.height());
    for (idx, line) in lines.iter().enumerate() {
        let y = height - 16.0 - 20.0 * (lines.len() - 1 - idx) as f64;
        scene.text(MARGIN, y, &font::elide(line, NOTE_SIZE, false, width), Text::small(SOFT_INK));
    }
}

/// Writes "no tokens" in place of the data of an empty figure.
pub fn no_tokens(scene: &mut Scene, x: f64, y: f64) {
    scene.veiled_text(x, y, "no tokens", Text { size: 22.0, anchor: Anchor::Middle, ..Text::label(SOFT_INK) });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_colour_scale_is_logarithmic_and_ends_at_its_ends() {
        let scale = LogScale { from: 1.0, to: 100.0 };
        assert_eq!([scale.step(0.5), scale.step(1.0), scale.step(10.0), scale.step(1e9)], [0, 0, 48, LogScale::STEPS - 1]);
        assert_eq!([viridis(0.0).rgb, viridis(0.5).rgb, viridis(1.0).rgb], [0x440154, 0x21918c, 0xfde725]);
        assert_eq!(viridis(0.0625).rgb, 0x461768, "half-way between the first two anchors");
    }
}
