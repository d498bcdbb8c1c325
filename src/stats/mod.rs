//! How sure a score is, and a difference of two scores on the same items. All of it in f64, all of it with a fixed seed.
//!
//! ```text
//! terms.rs      a metric as a ratio of sums over items, a number with its uncertainty, and how the latter was found
//! shares.rs     intervals of shares and of their differences: Wilson's, Tango's
//! bootstrap.rs  percentile intervals of everything else
//! design.rs     which items were drawn together, and which parts a task has
//! items.rs      items -> estimates and paired differences, also over the parts of a task and over tasks
//! flips.rs      tests of what flipped, corrections for many of them, and their power
//! clusters.rs   the same for sums over rows, in one pass over a table of any size
//! ```

mod bootstrap;
mod clusters;
mod design;
mod flips;
mod items;
mod shares;
mod terms;

pub(crate) use bootstrap::two_sample_intervals;
pub(crate) use clusters::{ClusterSums, Scale, cluster_interval, over_clusters};
pub(crate) use design::Design;
pub(crate) use flips::{detectable_drop, holm, mcnemar_exact, sign_flip};
pub(crate) use items::{
    estimate, macro_difference, mean_difference_over_parts, mean_over_parts, paired_difference, ratio, variance_inflation,
};
pub(crate) use terms::{Estimate, Interval, Link, Term};
pub(crate) use terms::{effective_number, share};

#[cfg(test)]
mod tests;
