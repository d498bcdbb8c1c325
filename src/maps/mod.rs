//! The figures: each file turns computed numbers into one picture.
//!
//! Every figure has a data type, which is filled in one streaming pass (or is a plain list of computed numbers), and a
//! `draw(&data, .., &Caption, path)`, which writes a PNG or an SVG, depending on the extension of the path, and never leaves a
//! partial file under that name. Nothing here reads a score table or knows where a threshold comes from: the caller passes plain
//! numbers.
//!
//! ```text
//! density   where the tokens lie in the plane of probability and entropy      (the paper's figure 1b)
//! landscape several data sets in that plane, side by side                     (figure 1b)
//! gradient  where the gradient norm lies in that plane, SFT beside a gate     (figure 3)
//! tokens    the most frequent tokens of each quadrant                         (figure 7)
//! fidelity  how well the top-K entropy approximates the full entropy          (figure 6)
//! tail      are the targets as improbable as the model says they should be?
//! movement  how tokens moved between the quadrants from one scoring to the next
//! forest    how much each score of an evaluation changed, with its interval
//! training  a run's dynamics by group of tokens, loss and drift over its steps  (figure 4)
//! retention what fine-tuning runs gained on their target and lost in general  (figures 2 and 5)
//! ```
//!
//! They share: grid.rs (histograms), plane.rs (the plane's axes and bounds), axes.rs (drawing axes), scene.rs (the list of shapes
//! that becomes a PNG or an SVG), and font.rs, palette.rs and style.rs (the common design).

#![warn(missing_docs)]

pub mod density;
pub mod fidelity;
pub mod forest;
pub mod gradient;
pub mod landscape;
pub mod movement;
pub mod retention;
pub mod tail;
pub mod tokens;
pub mod training;

pub mod grid;
pub mod plane;

mod axes;
mod font;
mod palette;
mod scene;
pub mod style;

pub use plane::{Cuts, QUADRANT_NAMES};
pub use style::Caption;

#[cfg(test)]
mod tests;
