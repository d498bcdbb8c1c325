//! A plotting area with two axes: maps values to pixels and draws grid lines, ticks and labels.

use super::font;
use super::scene::{Anchor, Scene, Text};
use super::style::{GRID_LINE, INK, LABEL_SIZE, SOFT_INK, TEXT_SIZE};

/// An axis in units in which it is linear: values of a logarithmic axis are given as logarithms.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    /// The quantity and its unit.
    pub label: String,
    /// The value at the left or lower end.
    pub from: f64,
    /// The value at the right or upper end.
    pub to: f64,
    /// The positions of the ticks and their labels.
    pub ticks: Vec<(f64, String)>,
}

/// The rectangle between the axes, in pixels.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    /// Pixels from the left edge of the figure.
    pub left: f64,
    /// Pixels from the upper edge of the figure.
    pub top: f64,
    /// In pixels.
    pub width: f64,
    /// In pixels.
    pub height: f64,
    /// The horizontal axis, from left to right.
    pub x: Axis,
    /// The vertical axis, from bottom to top.
    pub y: Axis,
}

impl Frame {
    pub(super) fn right(&self) -> f64 {
        self.left + self.width
    }

    pub(super) fn bottom(&self) -> f64 {
        self.top + self.height
    }

    /// The pixel of an x value; values beyond the axis are moved to its ends.
    pub(super) fn x_at(&self, value: f64) -> f64 {
        self.left + self.width * ((value - self.x.from) / (self.x.to - self.x.from)).clamp(0.0, 1.0)
    }

    pub(super) fn y_at(&self, value: f64) -> f64 {
        self.bottom() - self.height * ((value - self.y.from) / (self.y.to - self.y.from)).clamp(0.0, 1.0)
    }

    pub(super) fn at(&self, x: f64, y: f64) -> (f64, f64) {
        (self.x_at(x), self.y_at(y))
    }

    /// Draws the grid, which goes below the data.
    pub(super) fn draw_grid(&self, scene: &mut Scene) {
        for (value, _) in &self.x.ticks {
            scene.line(&[(self.x_at(*value), self.top), (self.x_at(*value), self.bottom())], 1.0, GRID_LINE);
        }
        for (value, _) in &self.y.ticks {
            scene.line(&[(self.left, self.y_at(*value)), (self.right(), self.y_at(*value))], 1.0, GRID_LINE);
        }
    }

    /// Draws the axes, which go above the data. A y axis without a label gets no tick labels either, since it shares those of its
    /// neighbour.
    pub(super) fn draw_axes(&self, scene: &mut Scene) {
        scene.outline(self.left, self.top, self.right(), self.bottom(), 1.0, SOFT_INK);
        let centred = Text::body(INK).anchored(Anchor::Middle);
        for (value, label) in &self.x.ticks {
            let x = self.x_at(*value);
            scene.line(&[(x, self.bottom()), (x, self.bottom() + 5.0)], 1.0, SOFT_INK);
            scene.text(x, self.bottom() + 22.0, label, centred);
        }
        if !self.x.label.is_empty() {
            scene.text(self.left + self.width / 2.0, self.bottom() + 49.0, &self.x.label, Text { size: LABEL_SIZE, ..centred });
        }
        for (value, label) in &self.y.ticks {
            let y = self.y_at(*value);
            scene.line(&[(self.left - 5.0, y), (self.left, y)], 1.0, SOFT_INK);
            if !self.y.label.is_empty() {
                scene.text(self.left - 9.0, y + 5.5, label, Text::body(INK).anchored(Anchor::Right));
            }
        }
        if self.y.label.is_empty() {
            return;
        }
        let vertical = Text { vertical: true, anchor: Anchor::Middle, ..Text::label(INK) };
        let widest = self.y.ticks.iter().map(|(_, label)| font::width(label, TEXT_SIZE, false)).fold(30.0, f64::max);
        scene.text(self.left - 25.0 - widest, self.top + self.height / 2.0, &self.y.label, vertical);
    }
}

/// About `n` ticks at multiples of 1, 2 or 5 times a power of ten.
pub(super) fn round_ticks(from: f64, to: f64, n: usize) -> Vec<(f64, String)> {
    let rough = (to - from) / n as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough * 0.999).unwrap_or(rough);
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    ((from / step).ceil() as i64..=(to / step * (1.0 + 1e-12)).floor() as i64)
        .map(|multiple| (multiple as f64 * step, format!("{:.decimals$}", multiple as f64 * step)))
        .collect()
}

/// `10⁻⁴` for -4; `0.01`, `0.1`, `1`, `10`, `100` in full.
pub(super) fn power_of_ten(power: i32) -> String {
    match power {
        -2..0 => format!("{:.*}", power.unsigned_abs() as usize, 10f64.powi(power)),
        0..3 => format!("{}", 10i32.pow(power.unsigned_abs())),
        _ => {
            let superscript = |c| match c {
                '-' => '⁻',
                '1' => '¹',
                '2' => '²',
                '3' => '³',
                digit => char::from_u32('⁰' as u32 + (digit as u32 - '0' as u32)).unwrap_or(digit),
            };
            format!("10{}", power.to_string().chars().map(superscript).collect::<String>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within_the_axis() {
        let labels = |from, to, n| round_ticks(from, to, n).into_iter().map(|(_, label)| label).collect::<Vec<_>>().join(" ");
        assert_eq!(labels(0.0, 1.0, 5), "0.0 0.2 0.4 0.6 0.8 1.0");
        assert_eq!(labels(0.0, 37.0, 4), "0 10 20 30");
        assert_eq!(labels(0.0, 0.03, 3), "0.00 0.01 0.02 0.03");
    }

    #[test]
    fn powers_of_ten_are_written_short() {
        assert_eq!([-10, -3, -2, 0, 2, 3, 12].map(power_of_ten), ["10⁻¹⁰", "10⁻³", "0.01", "1", "100", "10³", "10¹²"]);
    }

    #[test]
    fn values_map_to_pixels_with_y_upwards() {
        let axis = |to| Axis { label: String::new(), from: 0.0, to, ticks: vec![] };
        let frame = Frame { left: 100.0, top: 50.0, width: 200.0, height: 80.0, x: axis(1.0), y: axis(4.0) };
        assert_eq!(frame.at(0.25, 1.0), (150.0, 110.0));
        assert_eq!(frame.at(7.0, -1.0), (300.0, 130.0), "beyond the axis: on its ends");
    }
}
