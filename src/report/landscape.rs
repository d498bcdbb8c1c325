//! Describes several runs side by side: a table, and what its numbers mean.

use std::fmt::Write;

use serde::Serialize;

use crate::diagnosis::breakdown::Breakdown;
use crate::diagnosis::landscape::{Gap, Gaps};
use crate::format::{number_with_interval, percent_with_interval, thousands};

/// A run and its distance from the first one.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Side {
    /// The name of the run.
    pub run: String,
    /// The names of its data files.
    pub data: String,
    pub model: String,
    /// The sums over all of its tokens.
    pub overall: Breakdown,
    /// The distance from the first run; absent for the first.
    pub gaps: Option<Gaps>,
}

/// Formats as Markdown, which is also readable on a terminal.
pub(crate) fn text(sides: &[Side], thresholds: &str) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let mut line = |content: String| {
        let _ = writeln!(text, "{content}");
    };
    line("| run | data | rows | tokens | confident conflicts | mean surplus, nat | mean entropy, nat |".to_owned());
    line("|---|---|---|---|---|---|---|".to_owned());
    for Side { run, data, overall, .. } in sides {
        let conflicts = overall.quadrants.confident_conflict;
        line(format!(
            "| {run} | {data} | {} | {} | {} | {:+.3} | {:.3} |",
            thousands(overall.rows),
            thousands(overall.tokens),
            percent_with_interval(conflicts.token_share, conflicts.token_share_ci95),
            overall.mean_surplus,
            overall.mean_entropy
        ));
    }
    for (side, gaps) in sides.iter().filter_map(|side| Some((side, side.gaps.as_ref()?))) {
        let Gaps { conflict_share, mean_surplus, distance, distance_by_chance } = gaps;
        let points =
            Gap { value: 100.0 * conflict_share.value, ci95: conflict_share.ci95.map(|ends| ends.map(|end| 100.0 * end)) };
        let number = |gap: &Gap, digits| number_with_interval(Some(gap.value), gap.ci95, digits);
        line(String::new());
        line(format!(
            "{} against {}: the share of confident conflicts differs by {} points, the mean surplus by {} nat. The distributions of (p, H) \
             are {} apart (total variation); two samples of one distribution would be {} apart.",
            side.run,
            sides.first().map_or("", |first| &first.run),
            number(&points, 2),
            number(mean_surplus, 3),
            number(distance, 3),
            number_with_interval(Some(*distance_by_chance), None, 3)
        ));
    }
    line(String::new());
    line(format!("In brackets: 95 % intervals over rows. Thresholds: {thresholds}."));
    text
}
