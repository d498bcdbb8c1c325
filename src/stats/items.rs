//! Estimates and paired differences of metrics over items.
//!
//! - standard error: of the linearised ratio, sqrt(n/(n-k) sum (e - mean of e in its part)^2) with e = (a - r b) / sum b over the
//!   n units that were drawn, in k parts. For means of items in one part, this is the sample deviation over sqrt(n), as in
//!   lm-evaluation-harness (`lm_eval/api/metrics.py`, `mean_stderr`); in several parts, that of its groups
//!   (`pooled_sample_stderr`); over groups of items, the clustered error (Liang and Zeger, Biometrika 73, 1986). Multiplied by f'
//!   where f is exp;
//! - interval of a share: Wilson's; of a paired difference of shares: Tango's. Both treat differences between parts as chance;
//! - any other interval, and those over groups of items: percentile bootstrap of the units, resampled jointly for two models,
//!   widened for few units. If all groups are alike, its width would be 0; shares then get Wilson's or Tango's interval, with
//!   each group as one item;
//! - over tasks: half widths added in squares (Zou and Donner, Statistics in Medicine 27, 2008).

use super::bootstrap::{bootstrap_interval, stretch};
use super::design::Design;
use super::shares::{tango, wilson};
use super::terms::{Estimate, Interval, Link, Term};

pub(crate) fn ratio(terms: &[Term], link: Link) -> f64 {
    let total = sum(terms);
    link.apply(total.numerator / total.denominator)
}

pub(crate) fn estimate(terms: &[Term], design: &Design, link: Link) -> Estimate {
    let value = ratio(terms, link);
    let units = design.units(terms);
    if units.len() < 2 {
        return Estimate::bare(value);
    }
    let n = units.len() as f64;
    let influences = influences(&units, link);
    let stderr = Some(deviation(&influences, design));
    if !design.has_groups() && is_right_or_wrong(terms, link) {
        return Estimate { value, stderr, ci95: Some(wilson(sum(terms).numerator, n)), interval: Some(Interval::Wilson) };
    }
    if are_alike(&influences) {
        let is_share = link == Link::Identity && terms.iter().all(Term::is_share);
        let ci95 = is_share.then(|| wilson(value * n, n));
        return Estimate { value, stderr, ci95, interval: ci95.map(|_| Interval::Wilson) };
    }
    // On the scale of the ratio, so that a perplexity stays positive.
    let ends = bootstrap_interval(units.len(), |draw| {
        let mut total = Term::default();
        draw.iter().for_each(|&idx| total += units[idx as usize]);
        total.numerator / total.denominator
    });
    let is_share = link == Link::Identity && terms.iter().all(Term::is_share);
    let is_positive = terms.iter().all(|term| term.numerator >= 0.0);
    let range = [if is_positive { 0.0 } else { f64::NEG_INFINITY }, if is_share { 1.0 } else { f64::INFINITY }];
    let ci95 = stretched(ratio(terms, Link::Identity), ends, units.len(), range).map(|end| link.apply(end));
    Estimate { value, stderr, ci95: Some(ci95), interval: Some(by_bootstrap(design)) }
}

/// `after - before`, where `before[i]` and `after[i]` belong to the same item.
pub(crate) fn paired_difference(before: &[Term], after: &[Term], design: &Design, link: Link) -> Estimate {
    let value = ratio(after, link) - ratio(before, link);
    let (old, new) = (design.units(before), design.units(after));
    if old.len() < 2 {
        return Estimate::bare(value);
    }
    let n = old.len() as f64;
    let influences: Vec<f64> =
        influences(&old, link).iter().zip(influences(&new, link)).map(|(before, after)| after - before).collect();
    let stderr = Some(deviation(&influences, design));
    let by_tango =
        |lost: f64, gained: f64| Estimate { value, stderr, ci95: Some(tango(lost, gained, n)), interval: Some(Interval::Tango) };
    if !design.has_groups() && is_right_or_wrong(before, link) && is_right_or_wrong(after, link) {
        let [lost, gained] = flips(before, after);
        return by_tango(lost, gained);
    }
    let are_shares = link == Link::Identity && before.iter().chain(after).all(Term::is_share);
    if are_alike(&influences) {
        return match are_shares {
            true => by_tango((-value).max(0.0) * n, value.max(0.0) * n),
            false => Estimate { value, stderr, ci95: None, interval: None },
        };
    }
    let ends = bootstrap_interval(old.len(), |draw| {
        let mut totals = [Term::default(); 2];
        for &idx in draw {
            totals[0] += old[idx as usize];
            totals[1] += new[idx as usize];
        }
        let [before, after] = totals.map(|total| link.apply(total.numerator / total.denominator));
        after - before
    });
    let range = if are_shares { [-1.0, 1.0] } else { [f64::NEG_INFINITY, f64::INFINITY] };
    let ci95 = stretched(value, ends, old.len(), range);
    Estimate { value, stderr, ci95: Some(ci95), interval: Some(by_bootstrap(design)) }
}

/// The mean over the parts of the task, equally weighted; `None` if there is one part, or if an item's value is not a share. The
/// interval is Wilson's for the effective number of items, see [`mean_of_parts`].
pub(crate) fn mean_over_parts(terms: &[Term], design: &Design) -> Option<Estimate> {
    let variance = |value: f64| value * (1.0 - value);
    let of_part = |([terms], design): &([Vec<Term>; 1], Design)| Part {
        value: ratio(terms, Link::Identity),
        stderr: stderr_of_mean(terms, design),
        n_units: design.units(terms).len() as f64,
        expected_variance: variance(0.5),
    };
    let parts: Vec<Part> = split([terms], design)?.iter().map(of_part).collect();
    Some(mean_of_parts(&parts, |value, n| (wilson(value * n, n), Interval::Wilson), variance))
}

/// The mean over the parts of their paired differences, equally weighted. The interval is Tango's for the effective number of
/// items.
pub(crate) fn mean_difference_over_parts(before: &[Term], after: &[Term], design: &Design) -> Option<Estimate> {
    let parts = split([before, after], design)?;
    let moved = |[before, after]: &[Vec<Term>; 2]| flips(before, after).iter().sum::<f64>() / before.len() as f64;
    let flipped = parts.iter().map(|(sides, _)| moved(sides)).sum::<f64>() / parts.len() as f64;
    let of_part = |(sides, design): &([Vec<Term>; 2], Design)| {
        let [before, after] = sides;
        let n_units = design.units(before).len() as f64;
        Part {
            value: ratio(after, Link::Identity) - ratio(before, Link::Identity),
            stderr: stderr_of_difference(before, after, design),
            n_units,
            // The share of moved items, with one added that moves and one that does not.
            expected_variance: (moved(sides) * n_units + 1.0) / (n_units + 2.0),
        }
    };
    let parts: Vec<Part> = parts.iter().map(of_part).collect();
    let interval = |value: f64, n: f64| {
        let [lost, gained] = [(flipped - value) / 2.0, (flipped + value) / 2.0];
        (tango(lost.max(0.0) * n, gained.max(0.0) * n, n), Interval::Tango)
    };
    Some(mean_of_parts(&parts, interval, |value| flipped - value * value))
}

/// The mean over tasks of their differences.
pub(crate) fn macro_difference(tasks: &[Estimate]) -> Estimate {
    let n = tasks.len() as f64;
    let value = tasks.iter().map(|task| task.value).sum::<f64>() / n;
    let in_squares = |parts: Option<Vec<f64>>| parts.map(|parts| parts.iter().map(|part| (part / n).powi(2)).sum::<f64>().sqrt());
    let stderr = in_squares(tasks.iter().map(|task| task.stderr).collect());
    let reach = |end: usize| in_squares(tasks.iter().map(|task| Some(task.ci95?[end] - task.value)).collect());
    let ci95 = reach(0).zip(reach(1)).map(|(down, up)| [value - down, value + up]);
    Estimate { value, stderr, ci95, interval: ci95.map(|_| Interval::Combined) }
}

/// The factor by which grouping increases the variance of a paired difference, compared with independently drawn items.
pub(crate) fn variance_inflation(before: &[Term], after: &[Term], design: &Design) -> f64 {
    let of = |design: &Design| stderr_of_difference(before, after, design).map_or(0.0, |stderr| stderr * stderr);
    let alone = of(&Design::ALONE);
    if design.has_groups() && alone > 0.0 { (of(design) / alone).max(1.0) } else { 1.0 }
}

/// A part of a task.
struct Part {
    value: f64,
    /// `None` for a single unit.
    stderr: Option<f64>,
    /// The number of units that were drawn.
    n_units: f64,
    /// The variance of one unit that is expected before any is seen.
    expected_variance: f64,
}

impl Part {
    /// The variance of the value. A part of a few items that happen to be all right shows none, and yet decides as much of a mean
    /// over parts as one with hundreds. So it is that which one more degree of freedom, with the expected variance, makes of the
    /// part's own. Smyth (Statistical Applications in Genetics and Molecular Biology 3, 2004) moderates variances in this way, but
    /// expects of each what all have in common: here, that would take the variance of large easy parts for that of small hard ones.
    fn moderated_variance(&self) -> f64 {
        let (freedom, own) = self.stderr.map_or((0.0, 0.0), |stderr| (self.n_units - 1.0, stderr * stderr * self.n_units));
        (freedom * own + self.expected_variance) / (freedom + 1.0) / self.n_units
    }
}

/// The mean over parts, equally weighted. `interval` maps a value and a number of items to an interval, `variance` a value to the
/// variance of one item.
///
/// The effective number of items is that with which a mean over items would vary as much as this one, by the moderated variances of
/// its parts.
fn mean_of_parts(parts: &[Part], interval: impl Fn(f64, f64) -> ([f64; 2], Interval), variance: impl Fn(f64) -> f64) -> Estimate {
    let k = parts.len() as f64;
    let value = parts.iter().map(|part| part.value).sum::<f64>() / k;
    let own: Option<Vec<f64>> = parts.iter().map(|part| part.stderr).collect();
    let stderr = match own {
        Some(own) => own.iter().map(|stderr| stderr * stderr).sum::<f64>().sqrt() / k,
        // A part with a single item does not show how it varies; the spread between the parts does.
        None => (parts.iter().map(|part| (part.value - value).powi(2)).sum::<f64>() / (k - 1.0) / k).sqrt(),
    };
    // Kish's effective number for items that weigh more or less because their parts differ in size.
    let n_weighted = k * k / parts.iter().map(|part| 1.0 / part.n_units).sum::<f64>();
    let are_single_items = parts.iter().all(|part| part.stderr.is_none());
    let reach = match are_single_items {
        true => stderr * stderr,
        false => parts.iter().map(Part::moderated_variance).sum::<f64>() / (k * k),
    };
    let n_effective = if reach > 0.0 { variance(value).max(0.0) / reach } else { 0.0 };
    let n = if n_effective > 0.0 { n_effective } else { n_weighted };
    let (ci95, method) = interval(value, n);
    Estimate { value, stderr: Some(stderr), ci95: Some(ci95), interval: Some(method) }
}

/// The items of each part on each side, and their design; `None` if there is one part, or if an item's value is not a share.
fn split<const N: usize>(sides: [&[Term]; N], design: &Design) -> Option<Vec<([Vec<Term>; N], Design)>> {
    // Each item is right, wrong, or has the share of its several answers that are right.
    let are_shares = sides.iter().flat_map(|terms| terms.iter()).all(|term| term.is_share() && term.denominator == 1.0);
    let of_part = |part: usize| {
        let items = design.items_of(part);
        (sides.map(|terms| items.iter().map(|&idx| terms[idx]).collect()), design.within(&items))
    };
    (are_shares && design.parts.len() > 1).then(|| (0..design.parts.len()).map(of_part).collect())
}

/// `None` for a single unit.
fn stderr_of_mean(terms: &[Term], design: &Design) -> Option<f64> {
    let units = design.units(terms);
    (units.len() > 1).then(|| deviation(&influences(&units, Link::Identity), design))
}

/// `None` for a single unit.
fn stderr_of_difference(before: &[Term], after: &[Term], design: &Design) -> Option<f64> {
    let [old, new] = [before, after].map(|terms| influences(&design.units(terms), Link::Identity));
    let moved: Vec<f64> = old.iter().zip(new).map(|(old, new)| new - old).collect();
    (moved.len() > 1).then(|| deviation(&moved, design))
}

fn by_bootstrap(design: &Design) -> Interval {
    if design.has_groups() { Interval::GroupBootstrap } else { Interval::Bootstrap }
}

/// Widens the ends of a percentile interval as `n_units` requires, and clamps them to the possible range.
fn stretched(value: f64, ends: [f64; 2], n_units: usize, range: [f64; 2]) -> [f64; 2] {
    ends.map(|end| (value + stretch(n_units) * (end - value)).clamp(range[0], range[1]))
}

fn sum(terms: &[Term]) -> Term {
    let mut total = Term::default();
    terms.iter().for_each(|&term| total += term);
    total
}

fn is_right_or_wrong(terms: &[Term], link: Link) -> bool {
    link == Link::Identity && terms.iter().all(Term::is_right_or_wrong)
}

/// The number of lost and of gained items.
fn flips(before: &[Term], after: &[Term]) -> [f64; 2] {
    let mut flips = [0.0; 2];
    for (before, after) in before.iter().zip(after) {
        flips[usize::from(after.numerator > before.numerator)] += (after.numerator - before.numerator).abs();
    }
    flips
}

/// The influence of each unit on the metric, in the unit of the metric.
fn influences(units: &[Term], link: Link) -> Vec<f64> {
    let total = sum(units);
    let ratio = total.numerator / total.denominator;
    let slope = link.slope(ratio);
    units.iter().map(|unit| slope * (unit.numerator - ratio * unit.denominator) / total.denominator).collect()
}

/// Do all units have the same influence, up to rounding?
fn are_alike(influences: &[f64]) -> bool {
    let squares: f64 = influences.iter().map(|influence| influence * influence).sum();
    squares.sqrt() < 1e-13
}

/// The standard error of a sum of influences.
fn deviation(influences: &[f64], design: &Design) -> f64 {
    let (part_of, n_parts) = design.parts_of_units(influences.len());
    let (mut sums, mut counts) = (vec![0.0; n_parts], vec![0.0; n_parts]);
    for (&part, influence) in part_of.iter().zip(influences) {
        sums[part] += influence;
        counts[part] += 1.0;
    }
    let squares: f64 = part_of.iter().zip(influences).map(|(&part, own)| (own - sums[part] / counts[part]).powi(2)).sum();
    let n = influences.len() as f64;
    (squares * n / (n - n_parts as f64)).sqrt()
}
