//! Finds out by which thresholds a run is sorted, from summary.json and from its table.

use std::path::Path;

use crate::diagnosis::Report;
use crate::diagnosis::quadrants::{Resolved, Thresholds};
use crate::error::{Error, Result};
use crate::files::read_json;
use crate::jobs::work::SUMMARY_FILE;
use crate::table::{THRESHOLDS_KEY, TOKENS_FILE, finished_parts, read_provenance};

/// The thresholds that the user names, else those by which the run is sorted, else the default ones.
pub(super) fn named_or_own(named: Option<Thresholds>, out: &Path) -> Result<Thresholds> {
    match named {
        Some(thresholds) => Ok(thresholds),
        None => sorted_by(out)?.map_or(Ok(Thresholds::default()), |thresholds| thresholds.preset.parse()),
    }
}

/// The thresholds by which a run is sorted; `None` if it is not sorted.
pub(crate) fn sorted_by(out: &Path) -> Result<Option<Resolved>> {
    let is_sorted = out.join(TOKENS_FILE).exists() && finished_parts(out)?.is_empty();
    let report = if is_sorted { read_report(out)? } else { None };
    Ok(report.map(|report| report.summary.thresholds))
}

/// Reads summary.json of a finished run; errors as for [`read_report`].
pub(crate) fn read_finished_report(out: &Path) -> Result<Report> {
    read_report(out)?.ok_or_else(|| {
        Error::new("the run folder holds no summary.json: the run was not finished").at(out).cure("Run its command again.")
    })
}

/// Reads summary.json, if there is one. Returns an error if its thresholds are not those of the quadrants in the table: sorting was interrupted
/// between the table and the summary, which is written last.
pub(super) fn read_report(out: &Path) -> Result<Option<Report>> {
    let Some(report) = read_json::<Report>(&out.join(SUMMARY_FILE))? else { return Ok(None) };
    let table = out.join(TOKENS_FILE);
    let provenance = if table.exists() { read_provenance(&table)? } else { Vec::new() };
    let of_table = provenance.iter().find(|(key, _)| key == THRESHOLDS_KEY).map(|(_, thresholds)| thresholds);
    let of_report = &report.summary.thresholds;
    let Some(of_table) = of_table.filter(|of_table| **of_table != of_report.key()) else { return Ok(Some(report)) };
    let told: Option<Resolved> = serde_json::from_str(of_table).ok();
    let by = told.map_or_else(|| of_table.clone(), |told| told.preset);
    Err(Error::new(format!(
        "sorting this run by {by} was interrupted: its tokens are sorted by these thresholds, but its summary is still about {}",
        of_report.preset
    ))
    .at(out)
    .cure(format!("Sort it again: diagnose {} --thresholds {by}", out.display())))
}
