//! Sizes and colours of all figures.
//!
//! Both palettes are safe for the common forms of colour blindness: viridis for amounts (S. van der Walt and N. Smith,
//! matplotlib, CC0; monotone in lightness, so that it also works in greyscale), Okabe and Ito (2008) for the four quadrants.

use plotters::style::{RGBAColor, ShapeStyle};

/// A colour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Paint {
    /// Red, green and blue, eight bits each.
    pub rgb: u32,
    /// From 0, invisible, to 1, opaque.
    pub alpha: f64,
}

impl Paint {
    /// An opaque colour.
    pub const fn opaque(rgb: u32) -> Self {
        Self { rgb, alpha: 1.0 }
    }

    /// The same colour with another opacity, 0 to 1.
    pub fn with_alpha(self, alpha: f64) -> Self {
        Self { alpha, ..self }
    }

    pub(super) fn colour(self) -> RGBAColor {
        RGBAColor((self.rgb >> 16) as u8, (self.rgb >> 8) as u8, self.rgb as u8, self.alpha)
    }

    pub(super) fn shape(self, stroke_width: u32) -> ShapeStyle {
        ShapeStyle { color: self.colour(), filled: true, stroke_width }
    }
}

/// The width of every figure in pixels, the unit of all lengths here.
pub const WIDTH: u32 = 1200;
/// The height of the title block; the plot starts below it.
pub const HEADER_HEIGHT: f64 = 112.0;
/// The free space at the edges.
pub const MARGIN: f64 = 28.0;

/// The size of a figure's title. Text sizes are the em in pixels.
pub const TITLE_SIZE: f64 = 25.0;
/// The size of the names of axes and panels.
pub const LABEL_SIZE: f64 = 17.0;
/// The size of tick labels and of the lines below a title.
pub const TEXT_SIZE: f64 = 15.5;
/// The size of notes in and below a figure.
pub const NOTE_SIZE: f64 = 14.0;

/// The colour of text and axes.
pub const INK: Paint = Paint::opaque(0x1a1a1a);
/// The colour of less important text and lines.
pub const SOFT_INK: Paint = Paint::opaque(0x555555);
/// The colour of grid lines behind the data.
pub const GRID_LINE: Paint = Paint::opaque(0xe4e4e4);
/// The colour of bars that need no distinction.
pub const BAR: Paint = Paint::opaque(0x8a97a8);
/// The background colour.
pub const PAPER: Paint = Paint::opaque(0xffffff);
/// A translucent background for text above data.
pub const VEIL: Paint = Paint { rgb: 0xffffff, alpha: 0.82 };

/// The colour of threshold lines.
pub const CUT: Paint = Paint::opaque(0xc0215a);

/// Okabe and Ito's blue.
pub const BLUE: Paint = Paint::opaque(0x0072b2);
/// Okabe and Ito's vermillion.
pub const VERMILLION: Paint = Paint::opaque(0xd55e00);
/// Okabe and Ito's bluish green.
pub const GREEN: Paint = Paint::opaque(0x009e73);
/// Okabe and Ito's orange.
pub const ORANGE: Paint = Paint::opaque(0xe69f00);

/// The colours of the quadrants, in the order of [`super::QUADRANT_NAMES`].
pub const QUADRANT_PAINTS: [Paint; 4] = [VERMILLION, BLUE, GREEN, ORANGE];

/// matplotlib's viridis at 0, 1/8, .., 1.
const VIRIDIS: [u32; 9] = [0x440154, 0x472d7b, 0x3b528b, 0x2c728e, 0x21918c, 0x28ae80, 0x5ec962, 0xaddc30, 0xfde725];

/// The viridis colour at `at`, from 0 (dark violet) to 1 (yellow).
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
