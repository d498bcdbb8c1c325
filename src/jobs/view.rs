//! Writes view.html, the page in which a person reads the rows of finished runs and decides about them.
//!
//! Every run leaves a page in its folder; `diagnose view` writes it again, or one that shows two runs side by side.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::folders;
use super::score::{RunRecord, find_data, read_finished_report, read_record};
use super::work::{VIEW_FILE, check_replaceable};
use crate::dataset::{Chosen, Dataset, Example};
use crate::diagnosis::Report;
use crate::diagnosis::bounded::Bounded;
use crate::diagnosis::gate::{Gate, Weight};
use crate::diagnosis::kinds::ConflictKind;
use crate::diagnosis::population::{Needs, Population};
use crate::diagnosis::quadrants::Resolved;
use crate::diagnosis::shown::{Shown, rows_shown, shown, shown_of};
use crate::error::{Context, Error, Result};
use crate::files::write_text;
use crate::report::view::{self, Run, Subject};
use crate::table::{
    self, Alternative, CONFLICTS_FILE, KnownConflict, ROWS_FILE, Row, TOKENS_FILE, read_alternatives, read_conflicts, read_rows,
};

/// The page that compares two runs.
pub(crate) const COMPARED_FILE: &str = "compared.html";
/// The tokens on a page: four to six megabytes, which open within a second.
pub(crate) const MOST_TOKENS: usize = 100_000;

/// A view as the user requested it.
pub(crate) struct Job {
    /// One run, or the run before and the run after.
    pub runs: Vec<PathBuf>,
    /// The data files of a run, in their order, if they have moved.
    pub data: Vec<String>,
    /// `None` means a file in the last run's folder.
    pub out: Option<PathBuf>,
    pub most_tokens: usize,
}

/// A written page, and what it lacks.
pub(crate) struct Written {
    pub path: PathBuf,
    /// Why the texts of a run were not available.
    pub without_text: Vec<String>,
    /// Whether the existing page is kept, because it has texts that a new page would lack.
    pub stays: bool,
}

/// Returns an error if a page is to be written over a file that is not one.
pub(super) fn check_page(path: &Path) -> Result<()> {
    check_replaceable(path, "a page of this program", |path| Ok(!Subject::of_page(path)?.is_empty()))
}

/// Writes the requested page.
pub(crate) fn view(job: &Job) -> Result<Written> {
    if !(1..=2).contains(&job.runs.len()) {
        return Err(Error::usage(format!("expected one run, or two to compare, found {}", job.runs.len()))
            .cure("Name one run folder, or two: before and after."));
    }
    let path = job.out.clone().unwrap_or_else(|| {
        let name = if job.runs.len() == 1 { VIEW_FILE } else { COMPARED_FILE };
        job.runs.last().map_or_else(|| PathBuf::from(name), |folder| folder.join(name))
    });
    check_page(&path)?;
    let mut opened = Vec::new();
    let mut refused = Vec::new();
    for folder in &job.runs {
        if !folders::holds_scores(folder) {
            return Err(folders::not_scores(folder));
        }
        let record = read_record(folder)?;
        let data = match find_data(folder, &record, &job.data) {
            // The named files may belong to the other run.
            Err(error) if !job.data.is_empty() => {
                refused.push(error);
                find_data(folder, &record, &[])
            }
            found => found,
        };
        opened.push((folder, record, data));
    }
    if refused.len() == job.runs.len()
        && let Some(error) = refused.into_iter().next()
    {
        return Err(error);
    }
    let mut seen: Vec<Seen> = Vec::new();
    let mut without_text = Vec::new();
    for ((folder, record, data), name) in opened.iter().zip(folders::names(&job.runs)) {
        let data = data.as_ref().map(|(dataset, chosen)| (dataset, chosen));
        without_text.extend(data.as_ref().err().map(|error| format!("{}: {}", folder.display(), error.reason_and_cure())));
        let own = Seen::of(folder, record, data.ok(), job.most_tokens, seen.first())?;
        seen.push(Seen { title: name, ..own });
    }
    let (own, standing): (Vec<_>, _) = (seen.iter().map(|seen| seen.run().subject()).collect(), Subject::of_page(&path)?);
    // If the data are gone, a page with their texts is the only copy left.
    let is_of_them = standing.len() == own.len() && standing.iter().zip(&own).all(|(standing, own)| standing.is_like(own));
    let stays = is_of_them && standing.iter().zip(&own).any(|(standing, own)| standing.has_texts && !own.has_texts);
    if !stays {
        write(&path, &seen).map_err(|error| match job.out {
            None => error.cure("Choose where to write the page with --out, if not in the run's folder."),
            Some(_) => error,
        })?;
    }
    Ok(Written { path, without_text, stays })
}

/// Keeps the alternatives to the first choice, which scoring put aside, for the rows shown on the run's page. `all` keeps those of all rows: for a
/// shard, it is not yet known which rows the page of the whole run shows.
pub(crate) fn keep_alternatives(folder: &Path, has_kinds: bool, all: bool) -> Result<()> {
    table::keep_alternatives(folder, || {
        if all {
            return Ok(read_rows(&folder.join(ROWS_FILE))?.iter().map(|row| row.row).collect());
        }
        let of_form = conflicts_of_form(folder, has_kinds)?;
        rows_shown(&[folder.join(TOKENS_FILE)], &read_rows(&folder.join(ROWS_FILE))?, &of_form, MOST_TOKENS)
    })
}

/// Tokens by row and position.
type Places = HashSet<(u32, u32)>;

/// The conflicts of a run that concern form; none if it was sorted without its data and so has no kinds.
fn conflicts_of_form(folder: &Path, has_kinds: bool) -> Result<Places> {
    if !has_kinds {
        return Ok(Places::new());
    }
    let is_of_form = |conflict: &KnownConflict| conflict.kind.parse().is_ok_and(ConflictKind::is_of_form);
    let place = |conflict: KnownConflict| is_of_form(&conflict).then_some((conflict.row, conflict.pos));
    read_conflicts(&folder.join(CONFLICTS_FILE)).filter_map(|conflict| conflict.map(place).transpose()).collect()
}

/// The conflicts of the shown rows, with their kinds.
fn conflicts_of(folder: &Path, shown: &Shown) -> Result<Vec<KnownConflict>> {
    let rows: HashSet<u32> = shown.rows.iter().map(|row| row.row.row).collect();
    let is_shown = |conflict: &Result<KnownConflict>| conflict.as_ref().map_or(true, |conflict| rows.contains(&conflict.row));
    read_conflicts(&folder.join(CONFLICTS_FILE)).filter(is_shown).collect()
}

/// Removes a page that shows the run sorted by other thresholds. If the data are not available, a page with their texts is renamed instead, since no
/// new page could contain them; the new name is returned.
pub(crate) fn retire(folder: &Path, record: &RunRecord, thresholds: &Resolved, has_data: bool) -> Result<Option<PathBuf>> {
    let path = folder.join(VIEW_FILE);
    let own = Subject::new(&record.identity, thresholds, false);
    let Some(standing) = Subject::of_page(&path)?.into_iter().next().filter(|standing| !standing.is_like(&own)) else {
        return Ok(None);
    };
    if has_data || !standing.has_texts {
        std::fs::remove_file(&path).context_at(&path, "cannot remove the page of the run under other thresholds")?;
        return Ok(None);
    }
    let aside = folder.join(format!("view-{}.html", standing.preset));
    std::fs::rename(&path, &aside).context_at(&path, "cannot move the page aside")?;
    Ok(Some(aside))
}

/// Writes the page of a run that has just been sorted. `data` are its files, if they are available.
pub(crate) fn write_own(folder: &Path, record: &RunRecord, data: Option<(&Dataset, &Chosen)>) -> Result<()> {
    write(&folder.join(VIEW_FILE), &[Seen::of(folder, record, data, MOST_TOKENS, None)?])
}

fn write(path: &Path, seen: &[Seen]) -> Result<()> {
    let page = view::page(&seen.iter().map(Seen::run).collect::<Vec<_>>())?;
    write_text(path, &page)
}

/// All that the page shows of a run.
struct Seen<'a> {
    record: &'a RunRecord,
    title: String,
    data: serde_json::Value,
    read: serde_json::Value,
    report: Report,
    gates: Vec<(String, Weight)>,
    /// The conflicts of the shown rows, with their kinds; `None` if the run has no kinds.
    conflicts: Option<Vec<KnownConflict>>,
    alternatives: Vec<Alternative>,
    shown: Shown,
    examples: Option<HashMap<u32, Example>>,
}

impl<'a> Seen<'a> {
    /// `first` is the run that this one is set beside: where its page holds a part of its rows, the same are shown here.
    fn of(
        folder: &Path,
        record: &'a RunRecord,
        data: Option<(&Dataset, &Chosen)>,
        most_tokens: usize,
        first: Option<&Seen>,
    ) -> Result<Seen<'a>> {
        let report = read_finished_report(folder)?;
        let tables = [folder.join(TOKENS_FILE)];
        let of_form = conflicts_of_form(folder, report.kinds.is_some())?;
        let rows = read_rows(&folder.join(ROWS_FILE))?;
        let shown = match first.filter(|first| first.shown.rows.len() < first.shown.of_rows) {
            Some(first) => shown_of(&tables, &rows, &partners(first, record, &rows))?,
            None => shown(&tables, &rows, &of_form, most_tokens)?,
        };
        let conflicts = report.kinds.is_some().then(|| conflicts_of(folder, &shown)).transpose()?;
        if shown.of_rows == 0 {
            return Err(Error::new("the run has no tokens: there is nothing to show").at(folder).cure("Its report.md says why."));
        }
        let examples = data.map(|(dataset, chosen)| examples_of(&shown, dataset, chosen)).transpose()?;
        let name = folder.file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(Seen {
            record,
            title: name.unwrap_or_else(|| record.data_names()),
            data: serde_json::to_value(&record.data).context("cannot write down the data files")?,
            read: serde_json::to_value(record.read.clone().unwrap_or_default())
                .context("cannot write down how they were read")?,
            report,
            gates: gates(&tables)?,
            conflicts,
            alternatives: read_alternatives(folder)?,
            shown,
            examples,
        })
    }

    fn run(&self) -> Run<'_> {
        Run {
            title: self.title.clone(),
            identity: &self.record.identity,
            data: &self.data,
            read: &self.read,
            rendering: rendering(self.record),
            data_names: self.record.data_names(),
            model: &self.record.model.name,
            vocab_size: self.record.vocab_size,
            thresholds: &self.report.summary.thresholds,
            exact: self.report.bounded.as_ref().map(Bounded::line),
            gates: self.gates.clone(),
            shown: &self.shown,
            alternatives: &self.alternatives,
            kinds: self.conflicts.as_deref().zip(self.report.kinds.as_ref()),
            totals: [self.report.summary.overall.loss, self.report.summary.overall.grad],
            examples: self.examples.as_ref(),
        }
    }
}

/// The numbers of the rows that belong to those that the first run shows, by the rule of the page (`compare.js`).
fn partners(first: &Seen, record: &RunRecord, rows: &[Row]) -> HashSet<u32> {
    let shown = || first.shown.rows.iter().map(|row| &row.row);
    let have_ids = shown().any(|row| row.id.is_some()) && rows.iter().any(|row| row.id.is_some());
    let by_id = have_ids && !first.record.reads_like(record);
    let numbers: HashSet<u32> = shown().map(|row| row.row).collect();
    let ids: HashSet<&str> = shown().filter_map(|row| row.id.as_deref()).collect();
    let belongs = |row: &&Row| match by_id {
        true => row.id.as_deref().is_some_and(|id| ids.contains(id)),
        false => numbers.contains(&row.row),
    };
    rows.iter().filter(belongs).map(|row| row.row).collect()
}

/// All gates of the preview, bound to the whole run.
fn gates(tables: &[PathBuf]) -> Result<Vec<(String, Weight)>> {
    let previewed = Gate::preview();
    let needs = previewed.iter().fold(Needs::default(), |needs, gate| needs.and(gate.needs()));
    let population = Population::of_tables(tables, &needs)?;
    previewed.iter().map(|gate| Ok((gate.to_string(), gate.bind(&population)?))).collect()
}

/// The settings on which the tokens of a row depend: runs in which they are equal give rows with the same text the same tokens.
fn rendering(record: &RunRecord) -> String {
    let settings = record.rendering().map(|(_, value)| value);
    serde_json::json!([settings, record.max_len, record.vocab_size]).to_string()
}

/// The shown rows as the data have them.
fn examples_of(shown: &Shown, dataset: &Dataset, chosen: &Chosen) -> Result<HashMap<u32, Example>> {
    let lines: HashMap<u32, u64> = shown.rows.iter().map(|row| (row.row.row, row.row.line)).collect();
    let mut examples = HashMap::new();
    for record in dataset.chosen(&chosen.only(lines.keys().copied())) {
        let record = record?;
        let line = lines[&record.row];
        let unlike = |found: &str| {
            Error::new(format!("expected row {} of the run at line {line}, found {found}", record.row))
                .at_line(&*record.place.path, record.place.line)
                .cure("Score the data again: the run's tables belong to other rows.")
        };
        match record.example {
            Ok(example) if record.place.line == line => examples.insert(record.row, example),
            Ok(_) => return Err(unlike("it elsewhere")),
            Err(_) => return Err(unlike("a row that cannot be read")),
        };
    }
    Ok(examples)
}
