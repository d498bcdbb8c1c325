//! Resolves thresholds to numbers, and gives every token one of four labels.
//!
//! ```text
//!            low H                 high H
//!        +--------------------+-----------+
//! low p  | confident_conflict | uncertain |   the data contains what the model did not expect
//!        +--------------------+-----------+  p
//! high p | confident          | hesitant  |   the data contains what the model expected
//!        +--------------------+-----------+
//!                             H
//! ```
//!
//! Low means at or below the threshold, so that a quantile used as a threshold includes at least its share of the tokens. Entropy-Adaptive
//! Fine-Tuning (arXiv 2601.02151) defines confident conflicts in three ways that do not agree. The presets are those three, one fixed pair that is
//! comparable between data sets, and one with a stated error rate. `summary` sums over the quadrants.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use crate::table::Quadrant;
use crate::table::{Column, quantiles, read_chunks};
use crate::{Error, Result};

/// The thresholds that the user selects: `--thresholds fixed|pilot|groups|tail[:FDR]|p=P,H=H`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Thresholds {
    /// p 0.25 and H 1.0 nat for every data set and model, so that results are comparable.
    #[default]
    Fixed,
    /// The data set's own 15 % quantiles of p and of H: the pilot mask of the paper (section 3).
    Pilot,
    /// H <= 0.5 is low and H >= 2.0 is high: the two groups of the paper's Figure 4, which considers entropy alone. p is split at 0.25 as in `fixed`.
    /// Tokens between the two entropies belong to neither group of the paper; here they get the label of high H, so that conflicts stay strict. The
    /// summary gives their number.
    Groups,
    /// Low p means that the tail probability passes the Benjamini-Hochberg procedure at this false-discovery rate; low H is at most 1.0 nat.
    Tail { fdr: f64 },
    /// Thresholds given by the user.
    Numbers { p: f64, entropy: f64 },
}

const FIXED_P: f64 = 0.25;
const FIXED_ENTROPY: f64 = 1.0;
/// The paper's pilot study masks the tokens in the lowest 15 % of both rankings.
pub const PILOT_SHARE: f64 = 0.15;
/// The paper's Figure 4.
const GROUPS_ENTROPY: (f64, f64) = (0.5, 2.0);
const DEFAULT_FDR: f64 = 0.05;

/// Thresholds as numbers, in the precision of the table, so that summary.json reproduces them exactly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resolved {
    /// What the user would type to get these thresholds.
    pub preset: String,
    /// Low p is p <= this; absent for `tail`. Only for people to read: tokens are compared with its logarithm.
    pub p: Option<f32>,
    /// The logarithm of `p`.
    pub logprob: Option<f32>,
    /// For `tail`: low p is a tail probability <= this. Also absent if no token passed.
    pub tail: Option<f32>,
    /// For `tail`: the false-discovery rate asked for.
    pub fdr: Option<f64>,
    /// Low H is H <= this, nats.
    pub entropy: f32,
    /// For `groups`: the high-entropy group begins here; tokens between count as high H.
    pub entropy_high: Option<f32>,
}

impl Resolved {
    /// A text that is the same for equal thresholds only; tables store it to name the thresholds that they were sorted by.
    pub fn key(&self) -> String {
        // Serialising plain fields cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Whether `other` gives every token the same quadrant, even if it was typed differently.
    pub fn sorts_like(&self, other: &Resolved) -> bool {
        let numbers = |thresholds: &Resolved| Resolved { preset: String::new(), fdr: None, ..thresholds.clone() };
        numbers(self) == numbers(other)
    }

    /// The quadrant of a token; see the drawing at the top of this file. A token with numbers that are not finite, about which nothing is known, has
    /// neither low p nor low H.
    pub fn label(&self, logprob: f32, entropy: f32, tail: f32) -> Quadrant {
        if !logprob.is_finite() || !entropy.is_finite() {
            return Quadrant::Hesitant;
        }
        let low_p = match self.logprob {
            Some(threshold) => logprob <= threshold,
            None => self.tail.is_some_and(|threshold| tail <= threshold),
        };
        match (low_p, entropy <= self.entropy) {
            (true, true) => Quadrant::ConfidentConflict,
            (true, false) => Quadrant::Uncertain,
            (false, true) => Quadrant::Confident,
            (false, false) => Quadrant::Hesitant,
        }
    }
}

/// For titles and tables, such as `fixed: p <= 0.25, H <= 1 nat`.
impl fmt::Display for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.preset)?;
        match (self.p, self.tail, self.fdr) {
            (Some(p), ..) => write!(f, "p <= {}", short(p))?,
            (None, Some(tail), _) => write!(f, "tail <= {}", short(tail))?,
            (None, None, _) => write!(f, "no tail small enough")?,
        }
        write!(f, ", H <= {} nat", short(self.entropy))?;
        match self.entropy_high {
            Some(high) => write!(f, " (high from {})", short(high)),
            None => Ok(()),
        }
    }
}

/// Resolves the thresholds to numbers. `fixed`, `groups` and explicit numbers do not read the tables; `pilot` reads them twice, `tail` once, keeping
/// four bytes for every low-entropy token whose tail is at most the false-discovery rate.
pub fn resolve(thresholds: Thresholds, tables: &[PathBuf]) -> Result<Resolved> {
    let preset = thresholds.to_string();
    let numbers = |logprob: f32, entropy: f32| Resolved {
        preset: preset.clone(),
        p: Some(logprob.exp()),
        logprob: Some(logprob),
        tail: None,
        fdr: None,
        entropy,
        entropy_high: None,
    };
    // Keep p as the user gave it, since it would change slightly through ln and exp.
    let stated = |p: f64, entropy: f64| Resolved { p: Some(p as f32), ..numbers(p.ln() as f32, entropy as f32) };
    Ok(match thresholds {
        Thresholds::Fixed => stated(FIXED_P, FIXED_ENTROPY),
        Thresholds::Numbers { p, entropy } => stated(p, entropy),
        Thresholds::Groups => Resolved { entropy_high: Some(GROUPS_ENTROPY.1 as f32), ..stated(FIXED_P, GROUPS_ENTROPY.0) },
        Thresholds::Pilot => {
            let found = quantiles(tables, &[(Column::Logprob, PILOT_SHARE), (Column::Entropy, PILOT_SHARE)])?;
            numbers(found[0], found[1])
        }
        Thresholds::Tail { fdr } => {
            let tail = tail_threshold(fdr, tables)?;
            Resolved { p: None, logprob: None, tail, fdr: Some(fdr), ..numbers(0.0, FIXED_ENTROPY as f32) }
        }
    })
}

/// The largest tail probability that still counts as a discovery among the low-entropy tokens.
///
/// On text sampled from the model, the tails are independent and uniform (Rosenblatt, 1952), or larger where ties are not split at random. H depends
/// on the context alone and is known before the token is sampled, so selecting the low-entropy tokens first leaves their tails uniform. Testing only
/// them makes the stated rate hold for the conflicts themselves.
fn tail_threshold(fdr: f64, tables: &[PathBuf]) -> Result<Option<f32>> {
    let mut n_tests = 0;
    let mut small = Vec::new();
    for chunk in read_chunks(tables, &[Column::Entropy, Column::Tail]) {
        let chunk = chunk?;
        for (entropy, tail) in chunk.entropy.iter().zip(&chunk.tail) {
            if f64::from(*entropy) <= FIXED_ENTROPY && tail.is_finite() {
                n_tests += 1;
                if f64::from(*tail) <= fdr {
                    small.push(*tail);
                }
            }
        }
    }
    Ok(benjamini_hochberg(small, n_tests, fdr))
}

/// The step-up procedure of Benjamini and Hochberg (1995): with the p-values in ascending order, the largest p_(k) <= k / n * fdr.
///
/// `small` holds all p-values of at most `fdr`, in any order; no larger one can pass. `n_tests` is the number of all p-values.
fn benjamini_hochberg(mut small: Vec<f32>, n_tests: u64, fdr: f64) -> Option<f32> {
    small.sort_unstable_by(f32::total_cmp);
    let passes = |k: usize| f64::from(small[k]) * n_tests as f64 <= (k + 1) as f64 * fdr;
    (0..small.len()).rev().find(|k| passes(*k)).map(|k| small[k])
}

impl FromStr for Thresholds {
    type Err = Error;

    fn from_str(text: &str) -> Result<Thresholds> {
        let wrong = |what: &str| {
            Error::usage(format!("unknown thresholds `{text}`: {what}"))
                .cure("Use fixed, pilot, groups, tail, tail:FDR, or numbers like p=0.2,H=0.8 (H in nats).")
        };
        let number = |text: &str| -> Result<f64> {
            text.trim()
                .parse()
                .ok()
                .filter(|number: &f64| number.is_finite())
                .ok_or_else(|| wrong(&format!("`{text}` is not a number")))
        };
        match text {
            "fixed" => return Ok(Thresholds::Fixed),
            "pilot" => return Ok(Thresholds::Pilot),
            "groups" => return Ok(Thresholds::Groups),
            "tail" => return Ok(Thresholds::Tail { fdr: DEFAULT_FDR }),
            _ => {}
        }
        if let Some(fdr) = text.strip_prefix("tail:") {
            let fdr = number(fdr)?;
            if !(fdr > 0.0 && fdr < 1.0) {
                return Err(wrong("a false-discovery rate must lie between 0 and 1"));
            }
            return Ok(Thresholds::Tail { fdr });
        }
        let (mut p, mut entropy) = (None, None);
        for part in text.split(',') {
            match part.split_once('=').map(|(name, value)| (name.trim(), value)) {
                Some(("p", value)) => p = Some(number(value)?),
                Some(("H" | "h", value)) => entropy = Some(number(value)?),
                _ => return Err(wrong("expected a preset, or p=... and H=...")),
            }
        }
        match (p, entropy) {
            (Some(p), Some(entropy)) if p > 0.0 && p < 1.0 && entropy > 0.0 => Ok(Thresholds::Numbers { p, entropy }),
            (Some(_), Some(_)) => Err(wrong("p must lie between 0 and 1, and H above 0")),
            _ => Err(wrong("both p and H are needed")),
        }
    }
}

/// Prints the thresholds as the user would type them.
impl fmt::Display for Thresholds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Thresholds::Fixed => f.write_str("fixed"),
            Thresholds::Pilot => f.write_str("pilot"),
            Thresholds::Groups => f.write_str("groups"),
            Thresholds::Tail { fdr } => write!(f, "tail:{fdr}"),
            Thresholds::Numbers { p, entropy } => write!(f, "p={p},H={entropy}"),
        }
    }
}

/// Formats three significant digits: thresholds computed from data have more than a title can use.
fn short(value: f32) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let decimals = (2 - value.abs().log10().floor() as i32).max(0) as usize;
    let text = if decimals > 6 { format!("{value:.2e}") } else { format!("{value:.decimals$}") };
    if text.contains('.') && !text.contains('e') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::finished_parts;
    use crate::table::testing::{Example, random_examples, token, write_parts};

    #[test]
    fn the_four_corners_and_the_lines_themselves() {
        let fixed = resolve(Thresholds::Fixed, &[]).unwrap();
        let label = |p: f32, entropy| fixed.label(p.ln(), entropy, 1.0);
        assert_eq!(label(0.1, 0.5), Quadrant::ConfidentConflict);
        assert_eq!(label(0.1, 1.5), Quadrant::Uncertain);
        assert_eq!(label(0.9, 0.5), Quadrant::Confident);
        assert_eq!(label(0.9, 1.5), Quadrant::Hesitant);
        // The thresholds themselves belong to the low side.
        assert_eq!(label(0.26, 1.0), Quadrant::Confident);
        assert_eq!(fixed.label(-2.0, 1.0, 1.0), Quadrant::ConfidentConflict);
        for broken in [f32::NAN, f32::NEG_INFINITY] {
            assert_eq!(fixed.label(broken, 0.5, 0.0), Quadrant::Hesitant);
            assert_eq!(fixed.label(-2.0, broken, 0.0), Quadrant::Hesitant);
        }
        assert_eq!(fixed.to_string(), "fixed: p <= 0.25, H <= 1 nat");
    }

    #[test]
    fn thresholds_are_alike_by_their_numbers() {
        let of = |written: &str| resolve(written.parse().unwrap(), &[]).unwrap();
        assert!(of("fixed").sorts_like(&of("p=0.25,H=1")) && of("fixed") != of("p=0.25,H=1"));
        assert!(!of("fixed").sorts_like(&of("p=0.2,H=1")) && !of("fixed").sorts_like(&of("groups")));
    }

    #[test]
    fn groups_count_the_middle_as_high() {
        let groups = resolve(Thresholds::Groups, &[]).unwrap();
        assert_eq!(groups.label(0.1f32.ln(), 0.5, 1.0), Quadrant::ConfidentConflict);
        assert_eq!(groups.label(0.1f32.ln(), 0.51, 1.0), Quadrant::Uncertain);
        assert_eq!(groups.to_string(), "groups: p <= 0.25, H <= 0.5 nat (high from 2)");
    }

    #[test]
    fn pilot_thresholds_are_values_of_the_table() {
        let run = tempfile::tempdir().unwrap();
        // Of twenty tokens, 15 % are three: the third smallest p and the third smallest H, which belong to different tokens.
        let tokens = (1..=20).map(|i| token(i, i as f32 / 32.0, (21 - i) as f32 / 8.0)).collect();
        write_parts(run.path(), &[&[Example { row: 0, source: "a", tokens }]]);
        let tables: Vec<PathBuf> = finished_parts(run.path()).unwrap().into_iter().map(|part| part.tokens).collect();
        let pilot = resolve(Thresholds::Pilot, &tables).unwrap();
        assert_eq!(pilot.logprob, Some((3f32 / 32.0).ln()));
        assert_eq!(pilot.entropy, 3.0 / 8.0);
        let low = (1..=20).filter(|i| pilot.label((*i as f32 / 32.0).ln(), 9.0, 1.0) == Quadrant::Uncertain).count();
        assert_eq!(low, 3);
    }

    #[test]
    fn benjamini_hochberg_by_hand() {
        // n = 5, rate 0.1: the bounds are 0.02, 0.04, 0.06, 0.08, 0.1. The second value exceeds its own bound, but passes because the third value
        // meets its bound: that is what step-up means.
        assert_eq!(benjamini_hochberg(vec![0.055, 0.01, 0.05, 0.09], 5, 0.1), Some(0.055));
        assert_eq!(benjamini_hochberg(vec![0.03, 0.09], 5, 0.1), None);
        assert_eq!(benjamini_hochberg(vec![0.02], 5, 0.1), Some(0.02f32));
        // Ties share the largest rank.
        assert_eq!(benjamini_hochberg(vec![0.04, 0.04], 5, 0.1), Some(0.04f32));
        assert_eq!(benjamini_hochberg(vec![], 0, 0.1), None);
    }

    /// A literal implementation of the definition, over all values.
    fn slow_benjamini_hochberg(values: &[f32], fdr: f64) -> Option<f32> {
        let passes = |t: &&f32| {
            let at_most = values.iter().filter(|value| value <= t).count();
            f64::from(**t) * values.len() as f64 <= at_most as f64 * fdr
        };
        values.iter().filter(passes).copied().max_by(f32::total_cmp)
    }

    #[test]
    fn tail_tests_the_low_entropy_tokens_only() {
        let run = tempfile::tempdir().unwrap();
        let mut examples = random_examples(11, 0..80);
        let tails = |low: fn(f32) -> bool, examples: &[Example]| -> Vec<f32> {
            let tokens = examples.iter().flat_map(|example| &example.tokens);
            tokens.filter(|token| low(token.statistics.entropy)).map(|token| token.statistics.tail).collect()
        };
        for token in examples.iter_mut().flat_map(|example| &mut example.tokens) {
            token.statistics.tail = token.statistics.tail.powi(2);
        }
        write_parts(run.path(), &[&examples]);
        let tables: Vec<PathBuf> = finished_parts(run.path()).unwrap().into_iter().map(|part| part.tokens).collect();
        let mut differs = false;
        for fdr in [0.01, 0.05, 0.2] {
            let resolved = resolve(Thresholds::Tail { fdr }, &tables).unwrap();
            let expected = slow_benjamini_hochberg(&tails(|entropy| entropy <= 1.0, &examples), fdr);
            assert_eq!(resolved.tail, expected, "fdr {fdr}");
            differs |= expected != slow_benjamini_hochberg(&tails(|_| true, &examples), fdr);
        }
        assert!(differs, "the choice of the tests made no difference: this test would not notice");
    }

    #[test]
    fn on_uniform_tails_nothing_or_little_is_found() {
        // Text sampled from the model gives uniform p-values; at rate 0.05, any discovery should be rare.
        let n = 400;
        let mut discoveries = 0;
        for seed in 0..200 {
            let mut random = crate::table::testing::random(seed * 7919 + 1);
            let values: Vec<f32> = (0..n).map(|_| random()).collect();
            let small = values.iter().copied().filter(|value| *value <= 0.05).collect();
            discoveries += usize::from(benjamini_hochberg(small, n, 0.05).is_some());
        }
        // Expected are 0.05 * 200 = 10, with a standard deviation of 3.1.
        assert!((1..=22).contains(&discoveries), "{discoveries} of 200");
    }

    #[test]
    fn what_is_typed_comes_back() {
        for text in ["fixed", "pilot", "groups", "tail:0.05", "p=0.2,H=0.8"] {
            assert_eq!(text.parse::<Thresholds>().unwrap().to_string(), text);
        }
        assert_eq!("tail".parse::<Thresholds>().unwrap(), Thresholds::Tail { fdr: 0.05 });
        assert_eq!("H=0.8, p=0.2".parse::<Thresholds>().unwrap(), Thresholds::Numbers { p: 0.2, entropy: 0.8 });
        for text in ["", "p=0.2", "H=1", "p=2,H=1", "p=0,H=1", "p=x,H=1", "tail:0", "tail:1.5", "tail:", "p=nan,H=1", "median"] {
            let error = text.parse::<Thresholds>().unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text}");
            assert!(error.to_string().contains("p=0.2,H=0.8"), "{error}");
        }
    }

    #[test]
    fn json_gives_the_same_thresholds_back() {
        let run = tempfile::tempdir().unwrap();
        let examples = random_examples(12, 0..50);
        write_parts(run.path(), &[&examples]);
        let tables: Vec<PathBuf> = finished_parts(run.path()).unwrap().into_iter().map(|part| part.tokens).collect();
        let resolved = resolve(Thresholds::Pilot, &tables).unwrap();
        let read: Resolved = serde_json::from_str(&serde_json::to_string(&resolved).unwrap()).unwrap();
        assert_eq!(read, resolved);
    }

    #[test]
    fn three_digits() {
        for (value, text) in
            [(0.25, "0.25"), (1.0, "1"), (0.123456, "0.123"), (12.345, "12.3"), (100.0, "100"), (1.5e-9, "1.50e-9")]
        {
            assert_eq!(short(value), text);
        }
    }
}
