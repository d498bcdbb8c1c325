//! The looks of every figure, once: size, palette, text sizes, title block, notes, colour scale.
//!
//! Both palettes are safe for the common forms of colour blindness: viridis (S. van der Walt and N. Smith, matplotlib, CC0;
//! monotone in lightness, so that it survives grey printing) for amounts, Okabe and Ito (2008) for the four quadrants.

use super::font;
use super::scene::{Anchor, Paint, Scene, Text};

/// What every picture says about its origin, below the title.
#[derive(Debug, Clone, Default)]
pub struct Caption {
    pub model: String,
    pub data: String,
    /// The preset and its resolved numbers.
    pub thresholds: String,
}

pub const WIDTH: u32 = 1200;
/// The figure's own drawing starts here; the title block is above.
pub const HEADER_HEIGHT: f64 = 112.0;
pub const MARGIN: f64 = 28.0;

pub const TITLE_SIZE: f64 = 25.0;
pub const LABEL_SIZE: f64 = 17.0;
pub const TEXT_SIZE: f64 = 15.5;
pub const NOTE_SIZE: f64 = 14.0;

pub const INK: Paint = Paint::opaque(0x1a1a1a);
pub const SOFT_INK: Paint = Paint::opaque(0x555555);
pub const GRID_LINE: Paint = Paint::opaque(0xe4e4e4);
pub const BAR: Paint = Paint::opaque(0x8a97a8);
pub const PAPER: Paint = Paint::opaque(0xffffff);
/// Laid under text that may stand on data.
pub const VEIL: Paint = Paint { rgb: 0xffffff, alpha: 0.82 };

/// Threshold lines.
pub const CUT: Paint = Paint::opaque(0xc0215a);

pub const BLUE: Paint = Paint::opaque(0x0072b2);
pub const VERMILLION: Paint = Paint::opaque(0xd55e00);
pub const GREEN: Paint = Paint::opaque(0x009e73);
pub const ORANGE: Paint = Paint::opaque(0xe69f00);

/// In the order of [`super::QUADRANT_NAMES`].
pub const QUADRANT_PAINTS: [Paint; 4] = [VERMILLION, BLUE, GREEN, ORANGE];

/// Matplotlib's viridis at 0, 1/8, .., 1.
const VIRIDIS: [u32; 9] = [0x440154, 0x472d7b, 0x3b528b, 0x2c728e, 0x21918c, 0x28ae80, 0x5ec962, 0xaddc30, 0xfde725];

/// viridis at `at`, 0 (dark violet) to 1 (yellow).
pub fn viridis(at: f64) -> Paint {
    let at = at.clamp(0.0, 1.0) * (VIRIDIS.len() - 1) as f64;
    let idx = (at as usize).min(VIRIDIS.len() - 2);
    let mix = |shift: u32| {
        let channel = |colour: u32| f64::from(colour >> shift & 0xff);
        let (from, to) = (channel(VIRIDIS[idx]), channel(VIRIDIS[idx + 1]));
        ((from + (to - from) * (at - idx as f64)).round() as u32) << shift
    };
    Paint::opaque(mix(16) | mix(8) | mix(0))
}

/// A logarithmic colour scale from `from` to `to`, both positive.
#[derive(Debug, Clone, Copy)]
pub struct LogScale {
    pub from: f64,
    pub to: f64,
}

impl LogScale {
    /// Steps of colour: few enough that neighbouring cells share one and are drawn as one rectangle.
    pub const STEPS: usize = 96;

    /// The colour step of a positive amount.
    pub fn step(&self, amount: f64) -> usize {
        let at = (amount / self.from).ln() / (self.to / self.from).ln();
        (at.clamp(0.0, 1.0) * (Self::STEPS - 1) as f64).round() as usize
    }

    pub fn paint(step: usize) -> Paint {
        viridis(step as f64 / (Self::STEPS - 1) as f64)
    }

    /// A vertical bar with ticks at the powers of ten (and at 2 and 5 of each where few decades are shown).
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

/// Title, and below it n, model, data; then the thresholds.
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

/// Small print along the lower edge.
pub fn notes(scene: &mut Scene, lines: &[String]) {
    let (width, height) = (scene.width() - 2.0 * MARGIN, scene.height());
    for (idx, line) in lines.iter().enumerate() {
        let y = height - 16.0 - 20.0 * (lines.len() - 1 - idx) as f64;
        scene.text(MARGIN, y, &font::elide(line, NOTE_SIZE, false, width), Text::small(SOFT_INK));
    }
}

/// In place of the data of an empty figure.
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
