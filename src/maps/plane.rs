//! The plane of probability and entropy: its axes, bounds, cells and quadrants.
//!
//! The paper (arXiv 2601.02151, figure 1b) draws p on a linear axis, which crowds nearly all tokens at its two ends. Here x is
//! ln(p / (1 - p)), which spreads both ends equally, so that a token that the model held to be impossible (p = 10⁻⁶) and one that
//! it held to be certain (p = 0.9999) are clearly apart from the middle. y is the square root of the entropy, which gives the
//! range below H = 1 nat, where the conflicts lie, a third of the height and still shows H = 0.
//!
//! Bounds: let a distribution over V tokens have one token of probability p. With h(p) = -p ln p - (1-p) ln(1-p), its entropy is
//! h(p) + (1-p) H(rest), where H(rest) is the entropy of the other tokens, renormalised. H(rest) is at least 0 (all the rest on
//! one token) and at most ln(V-1) (the rest uniform), so that for every p
//!
//! ```text
//! h(p)  <=  H  <=  h(p) + (1-p) ln(V-1)
//! ```

use super::axes::{Axis, Frame};
use super::font;
use super::grid::{Bins, Grid, Tally};
use super::scene::{Anchor, Point, Scene, Text};
use super::style::{self, GRID_LINE, INK, LogScale, NOTE_SIZE, SOFT_INK};
use crate::diagnosis::quadrants::Resolved;
use crate::format::n_tokens;

/// Low p and low H, low p and high H, high p and low H, both high: the order of every `[f64; 4]` and `[u64; 4]` in the maps.
pub const QUADRANT_NAMES: [&str; 4] = ["confident conflict", "uncertain", "confident", "hesitant"];

/// The positions of the threshold lines; a preset without a line of one kind (its p-value is neither p nor H) omits it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cuts {
    /// From 0 to 1.
    pub probability: Option<f64>,
    /// In nats; two values if the preset leaves a band between low and high.
    pub entropies: Vec<f64>,
    /// Drawn in the figure of `tail`.
    pub tail: Option<f64>,
}

impl Cuts {
    /// The lines of these thresholds.
    pub fn of(thresholds: &Resolved) -> Cuts {
        let Resolved { p, entropy, entropy_high, tail, .. } = thresholds;
        Cuts {
            probability: p.map(f64::from),
            entropies: [Some(*entropy), *entropy_high].into_iter().flatten().map(f64::from).collect(),
            tail: tail.map(f64::from),
        }
    }
}

/// The lowest and the highest probability with its own column; f32 log-probabilities resolve 1 - p no further.
const LEAST_P: f64 = 1e-7;
const GREATEST_P: f64 = 1.0 - 1e-5;
/// The number of columns of the plane.
pub const X_BINS: usize = 160;
/// The number of rows of the plane.
pub const Y_BINS: usize = 112;

/// An empty grid over the plane for a model with `vocab_size` tokens.
pub fn grid(vocab_size: usize) -> Grid {
    let x = Bins { from: logit(LEAST_P), to: logit(GREATEST_P), count: X_BINS };
    Grid::new(x, Bins { from: 0.0, to: greatest_entropy(vocab_size).sqrt(), count: Y_BINS })
}

/// The coordinates of a token: ln(p / (1 - p)) and sqrt(H). Rounding errors that make p > 1 or H < 0 are corrected.
pub fn coordinates(logprob: f32, entropy: f32) -> (f64, f64) {
    let (logprob, entropy) = (f64::from(logprob), f64::from(entropy));
    let x = if logprob >= 0.0 { f64::INFINITY } else { logprob - (-logprob.exp_m1()).ln() };
    let y = if entropy < 0.0 { 0.0 } else { entropy.sqrt() };
    (x, y)
}

/// The logit of p, ln(p / (1 - p)).
pub fn logit(p: f64) -> f64 {
    p.ln() - (-p).ln_1p()
}

/// h(p), the lowest entropy of a distribution in which one token has the probability with logit `x`; 0 ln 0 = 0.
pub fn lower_bound(x: f64) -> f64 {
    // -ln p = ln(1 + e^-x) and -ln(1-p) = ln(1 + e^x), each exact where the other loses digits.
    let (p, rest) = (1.0 / (1.0 + (-x).exp()), 1.0 / (1.0 + x.exp()));
    let term = |p: f64, x: f64| if p == 0.0 { 0.0 } else { p * (-x).exp().ln_1p() };
    term(p, x) + term(rest, -x)
}

/// h(p) + (1-p) ln(V-1), the highest entropy.
pub fn upper_bound(x: f64, vocab_size: usize) -> f64 {
    lower_bound(x) + (vocab_size.max(2) as f64 - 1.0).ln() / (1.0 + x.exp())
}

fn greatest_entropy(vocab_size: usize) -> f64 {
    (vocab_size.max(2) as f64).ln()
}

/// The frame of a plane with the bins of `grid`, whose cells are `cell` pixels wide and high.
pub(super) fn frame(grid: &Grid, left: f64, top: f64, cell: f64, x_ticks: &[f64], y_label: &str) -> Frame {
    let x = Axis {
        label: "probability p of the data's token (logit axis)".to_owned(),
        from: grid.x.from,
        to: grid.x.to,
        ticks: x_ticks.iter().map(|p| (logit(*p), probability_label(*p))).collect(),
    };
    let entropies = [0.0f64, 0.1, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0];
    let y = Axis {
        label: y_label.to_owned(),
        from: grid.y.from,
        to: grid.y.to,
        ticks: entropies.map(|h| (h.sqrt(), format!("{h}"))).into_iter().filter(|(y, _)| *y <= grid.y.to).collect(),
    };
    Frame { left, top, width: cell * grid.x.count as f64, height: cell * grid.y.count as f64, x, y }
}

pub(super) const Y_LABEL: &str = "entropy H, nats (square-root axis)";

fn probability_label(p: f64) -> String {
    if p < 0.9e-3 { super::axes::power_of_ten(p.log10().round() as i32) } else { format!("{p}") }
}

/// Draws one rectangle for each run of adjacent cells of one colour; empty cells stay blank.
pub(super) fn draw_cells(scene: &mut Scene, frame: &Frame, grid: &Grid, scale: &LogScale) {
    let x_edge = |idx: usize| frame.left + frame.width * idx as f64 / grid.x.count as f64;
    let y_edge = |idx: usize| frame.bottom() - frame.height * idx as f64 / grid.y.count as f64;
    let mut steps = Vec::with_capacity(grid.x.count);
    for (y_idx, row) in grid.cells.chunks_exact(grid.x.count).enumerate() {
        steps.clear();
        steps.extend(row.iter().map(|amount| (*amount > 0.0).then(|| scale.step(*amount))));
        let mut from = 0;
        for run in steps.chunk_by(|a, b| a == b) {
            let to = from + run.len();
            if let Some(step) = run[0] {
                scene.rect(x_edge(from), y_edge(y_idx + 1), x_edge(to), y_edge(y_idx), LogScale::paint(step));
            }
            from = to;
        }
    }
}

/// Draws both bounds, and lines at the top and bottom of the plane.
pub(super) fn draw_bounds(scene: &mut Scene, frame: &Frame, vocab_size: usize) {
    let curve = |bound: &dyn Fn(f64) -> f64| -> Vec<Point> {
        const N_SEGMENTS: u32 = 240;
        let x_at = |idx| frame.x.from + (frame.x.to - frame.x.from) * f64::from(idx) / f64::from(N_SEGMENTS);
        (0..=N_SEGMENTS).map(|idx| frame.at(x_at(idx), bound(x_at(idx)).sqrt())).collect()
    };
    for y in [frame.top, frame.bottom()] {
        scene.line(&[(frame.left, y), (frame.right(), y)], 1.0, GRID_LINE);
    }
    scene.line(&curve(&lower_bound), 1.5, INK);
    scene.line(&curve(&|x| upper_bound(x, vocab_size)), 1.5, INK);
}

/// Labels the bounds where no token can lie: above the upper and below the lower bound.
pub(super) fn label_bounds(scene: &mut Scene, frame: &Frame, vocab_size: usize) {
    let small = Text { size: NOTE_SIZE, ..Text::small(SOFT_INK) };
    let x = logit(0.86);
    let (right, y) = frame.at(x, upper_bound(x, vocab_size).sqrt());
    scene.veiled_text(right + 12.0, y - 2.0, "upper bound h(p) + (1−p) ln(V−1)", small);
    scene.veiled_text(frame.x_at(logit(0.3)), frame.bottom() - 12.0, "lower bound h(p)", small);
}

/// The height of the strips above and below the plane that hold the names of the quadrants: every cell of the plane itself may
/// hold tokens, and the sharpest conflicts lie in its corner.
pub(super) const STRIP: f64 = 24.0;

/// The frame including both strips: coordinates stay the same, and the outline encloses the strips.
fn with_strips(frame: &Frame) -> Frame {
    let more = STRIP * (frame.y.to - frame.y.from) / frame.height;
    let y = Axis { from: frame.y.from - more, to: frame.y.to + more, ..frame.y.clone() };
    Frame { top: frame.top - STRIP, height: frame.height + 2.0 * STRIP, y, ..frame.clone() }
}

/// Draws what goes above the data: the axes, the lines between the quadrants, and the names and shares of the quadrants, outside
/// the plane at its corners.
pub(super) fn draw_quadrants(scene: &mut Scene, frame: &Frame, cuts: &Cuts, labels: &[[String; 2]; 4]) {
    let whole = with_strips(frame);
    if let Some(p) = cuts.probability.filter(|p| *p > 0.0 && *p < 1.0) {
        let x = frame.x_at(logit(p));
        scene.dashes((x, whole.top), (x, whole.bottom()), 1.5, style::CUT);
    }
    for entropy in cuts.entropies.iter().filter(|entropy| **entropy > 0.0) {
        let y = frame.y_at(entropy.sqrt());
        scene.dashes((frame.left, y), (frame.right(), y), 1.5, style::CUT);
    }
    whole.draw_axes(scene);
    const INSET: f64 = 10.0;
    let (above, below) = (frame.top - 7.0, whole.bottom() - 7.0);
    let share = Text::body(INK);
    let name = Text { bold: true, ..share };
    for ([of_name, of_share], y) in labels.iter().zip([below, above, below, above]).take(2) {
        scene.text(frame.left + INSET, y, of_name, name);
        let width = font::width(of_name, name.size, name.bold);
        scene.text(frame.left + 2.0 * INSET + width, y, of_share, share);
    }
    for ([of_name, of_share], y) in labels.iter().zip([below, above, below, above]).skip(2) {
        scene.text(frame.right() - INSET, y, of_share, share.anchored(Anchor::Right));
        let width = font::width(of_share, share.size, share.bold);
        scene.text(frame.right() - 2.0 * INSET - width, y, of_name, name.anchored(Anchor::Right));
    }
}

/// A note on the points in the edge cells and the points left out.
pub(super) fn tally_note(tally: &Tally) -> String {
    let edges = format!("p < 10⁻⁷ or p > 0.99999: {} drawn in the edge cells", n_tokens(tally.clipped));
    match tally.ignored {
        0 => format!("{edges}."),
        ignored => format!("{edges}; {} with a NaN left out.", n_tokens(ignored)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_token_is_its_logit_and_the_root_of_its_entropy() {
        let check = |logprob: f64, entropy: f32, (x, y): (f64, f64)| {
            let (got_x, got_y) = coordinates(logprob as f32, entropy);
            // f32 holds ln p to seven digits.
            assert!(got_x == x || (got_x - x).abs() < 1e-6, "{got_x} for {x}");
            assert_eq!(got_y, y);
        };
        check(0.5f64.ln(), 4.0, (0.0, 2.0));
        check(0.25f64.ln(), 0.0, (-(3.0f64.ln()), 0.0));
        check(0.75f64.ln(), -1e-7, (3.0f64.ln(), 0.0));
        check(0.0, 0.0, (f64::INFINITY, 0.0));
        check(1e-6, 0.0, (f64::INFINITY, 0.0));
        check(f64::NEG_INFINITY, 1.0, (f64::NEG_INFINITY, 1.0));
        assert!(coordinates(f32::NAN, 1.0).0.is_nan() && coordinates(-1.0, f32::NAN).1.is_nan());
    }

    #[test]
    fn the_bounds_are_those_of_hand_made_distributions() {
        let entropy = |ps: &[f64]| ps.iter().map(|p| -p * p.ln()).sum::<f64>();
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        close(lower_bound(logit(0.5)), 2f64.ln());
        close(lower_bound(logit(0.1)), entropy(&[0.1, 0.9]));
        close(upper_bound(logit(0.1), 4), entropy(&[0.1, 0.3, 0.3, 0.3]));
        close(upper_bound(logit(0.7), 4), entropy(&[0.7, 0.1, 0.1, 0.1]));
        close(upper_bound(logit(0.25), 4), 4f64.ln());
        close(upper_bound(logit(0.3), 2), lower_bound(logit(0.3)));
        assert_eq!([lower_bound(f64::INFINITY), lower_bound(f64::NEG_INFINITY)], [0.0, 0.0]);
    }

    /// Distributions with one token of mass p and the rest at random, from a fixed linear congruential generator.
    #[test]
    fn no_distribution_leaves_the_bounds() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        for _ in 0..2000 {
            let (p, power) = (random(), 1.0 + 40.0 * random());
            let rest: Vec<f64> = (0..7).map(|_| random().powf(power)).collect();
            let sum: f64 = rest.iter().sum();
            let probabilities = rest.iter().map(|r| r / sum * (1.0 - p)).chain([p]);
            let entropy: f64 = probabilities.filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum();
            let x = logit(p);
            assert!(lower_bound(x) <= entropy + 1e-12 && entropy <= upper_bound(x, 8) + 1e-12, "p {p}, H {entropy}");
        }
    }
}
