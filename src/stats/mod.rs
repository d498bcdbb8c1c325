//! Computes how certain a score is, and the difference of two scores on the same items. Everything is computed in f64 and with
//! fixed seeds.
//!
//! ```text
//! terms.rs      a metric as a ratio of sums over items; an estimate with its uncertainty and the method
//! shares.rs     intervals of shares and of their differences: Wilson's, Tango's
//! bootstrap.rs  percentile intervals of everything else
//! design.rs     which items were drawn together, and which parts a task has
//! items.rs      items -> estimates and paired differences, also over the parts of a task and over tasks
//! flips.rs      tests of flipped items, corrections for multiple tests, and their power
//! clusters.rs   estimates over rows, in one pass over a table of any size
//! ```

mod bootstrap;
mod clusters;
mod design;
mod flips;
mod items;
mod shares;
mod terms;

pub(crate) use bootstrap::two_sample_intervals;
pub(crate) use clusters::{ClusterSums, PerRow, Scale, cluster_interval, over_clusters};
pub(crate) use design::Design;
pub(crate) use flips::{detectable_drop, holm, mcnemar_exact, sign_flip};
pub(crate) use items::{
    estimate, macro_difference, mean_difference_over_parts, mean_over_parts, paired_difference, ratio, variance_inflation,
};
pub(crate) use terms::{Estimate, Interval, Link, Term};
pub(crate) use terms::{effective_number, share};

#[cfg(test)]
mod tests;
