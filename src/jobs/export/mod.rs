//! Implements `diagnose export`: writes the data of a run in their order, changed as rules and a person's decisions say.
//!
//! ```text
//! rules.rs     the rules: --drop, --mask
//! verdicts.rs  the table, rules and decisions -> what happens to each row
//! changes.rs   what was changed and why, one line each
//! rewrite.rs   answers to be rewritten
//! beside.rs    the settings that trainers need for the file
//! peers.rs     what another program would make of the rows, compared with what the run supervises
//! ```
//!
//! Every file appears complete or not at all; if the format cannot express a row, none appears.

mod beside;
mod changes;
mod peers;
mod rewrite;
mod rules;
mod verdicts;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use super::decisions::Decisions;
use super::reopened::Reopened;
use super::score::sorted_by;
use super::work::check_replaceable;
use crate::dataset::write::{self, Forms, Reading, Target};
use crate::dataset::{self, Container, DataFile, Example, Original, Role, Turn, WeightedPart, are_changes};
use crate::diagnosis::gate::Gate;
use crate::error::{Context, Error, Result};
use crate::files::{identified, write_atomically};
use crate::table::Row;
use crate::tokens::Supervise;

pub(crate) use rules::{DropRule, MaskRule};

use changes::{Change, What};
use peers::{Peer, beside_rows, holds_switches, title, with_defaults};
use verdicts::{MaskSums, Verdict, Wanted, verdicts};

/// An export as the user requested it.
pub(crate) struct Job {
    pub run: PathBuf,
    /// The current paths of the data, if they have moved.
    pub data: Vec<String>,
    pub target: Target,
    /// JSON Lines, or Parquet if the extension says so.
    pub out: PathBuf,
    pub drop: Vec<DropRule>,
    pub mask: Vec<MaskRule>,
    pub weight: Option<Gate>,
    pub select: Option<usize>,
    pub decisions: Option<PathBuf>,
    pub rewrite: Option<PathBuf>,
    pub command: String,
}

/// The result of an export.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Exported {
    pub out: PathBuf,
    pub changes: PathBuf,
    /// The settings file for the trainer.
    pub beside: Option<PathBuf>,
    pub rewrite: Option<PathBuf>,
    pub rows_read: u64,
    /// Rows of the data that the run did not read (`--limit`, `--sample`, `--shard`) and that are not written.
    pub rows_not_read: u64,
    pub rows_written: u64,
    pub rows_dropped: u64,
    pub rows_masked: u64,
    pub rows_weighted: u64,
    /// Answers with conflicts, written to the file of rewrite candidates.
    pub candidates: u64,
    /// Records that could not be read as rows.
    pub unreadable: u64,
    /// Unreadable records that are left out because they cannot be copied.
    pub unreadable_left_out: u64,
    /// Conflicts that a rule would mask but that are template tokens, which have no place in the text.
    pub conflicts_beside_content: u64,
    /// The thresholds of the run, if rules depend on conflicts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thresholds: Option<String>,
    /// Columns of the data, and members of columns, that the format drops or whose types are not supported.
    pub columns_left_out: BTreeSet<String>,
    /// Further remarks for the user.
    pub notes: Vec<String>,
}

/// A row to be written.
enum Written {
    Bytes(Vec<u8>),
    Object(serde_json::Map<String, Value>),
}

pub(crate) fn export(job: &Job) -> Result<Exported> {
    check_extension(&job.out)?;
    let is_table = is_table(&job.out);
    let run = Reopened::open(&job.run, &job.data)?;
    let files = run.dataset.files();
    if job.target == Target::Read && files.iter().any(|file| file.format != files[0].format) {
        let formats: BTreeSet<String> = files.iter().map(|file| file.format.to_string()).collect();
        let formats: Vec<String> = formats.into_iter().collect();
        return Err(Error::usage(format!(
            "the files of the run have several formats ({}), which one file cannot hold",
            formats.join(", ")
        ))
        .cure("Choose a --format."));
    }
    check_places(job, files)?;
    let decisions = match &job.decisions {
        Some(path) => Decisions::read(path, &run.record.identity, &run.dataset)?,
        None => Decisions::default(),
    };
    let wanted = Wanted { drop: job.drop.clone(), mask: job.mask.clone(), weight: job.weight, select: job.select, decisions };
    let (verdicts, conflicts_beside_content) = verdicts(&job.run, &run.rows, &wanted).map_err(|error| match &job.decisions {
        Some(path) if !wanted.decisions.rows.is_empty() => error.at(path),
        _ => error,
    })?;
    let mut export = Export {
        job,
        run: &run,
        wanted: &wanted,
        verdicts,
        choices: match &job.rewrite {
            Some(_) => rewrite::choices(&job.run)?,
            None => BTreeMap::new(),
        },
        forms: Forms::default(),
        is_table,
        changes: Vec::new(),
        peer: None,
        candidates: Vec::new(),
        exported: Exported {
            out: job.out.clone(),
            changes: changes_path(&job.out),
            rewrite: job.rewrite.clone(),
            conflicts_beside_content,
            thresholds: sorted_by(&job.run)?.filter(|_| wanted.asks_for_conflicts()).map(|thresholds| thresholds.to_string()),
            columns_left_out: run.dataset.unread_columns()?,
            ..Exported::default()
        },
    };
    if let Some(n) = job.select.filter(|n| *n >= run.rows.len()) {
        export.exported.notes.push(format!("--select {n} leaves no row out: there are {}", run.rows.len()));
    }
    export.exported.notes.extend(beside_rows(job.target, &run.record));
    if job.target != Target::Read {
        match Peer::of(job.target, &run.record) {
            Ok(peer) => export.peer = Some(peer),
            Err(error) => {
                let (who, why) = (title(job.target), error.reason());
                export.exported.notes.push(format!("not checked whether {who} learns the same tokens: {why}"))
            }
        }
    }
    if job.target == Target::Trl {
        export.forms = export.forms()?;
        let how = match export.forms {
            Forms { has_talks: false, .. } => None,
            Forms { learns_history: false, .. } => Some("TRL learns the completion of each row, its default"),
            Forms { .. } => Some("to learn only the answers, set SFTConfig(assistant_only_loss=True) in TRL"),
        };
        export.exported.notes.extend(how.map(str::to_owned));
    }
    export.write()
}

/// The bytes of a row as they follow those of other files: a byte order mark may only stand at the beginning of a file.
fn within(file: usize, bytes: &[u8]) -> Vec<u8> {
    match bytes.strip_prefix(b"\xEF\xBB\xBF") {
        Some(rest) if file > 0 => rest.to_vec(),
        _ => bytes.to_vec(),
    }
}

/// Extensions of formats that are read but not written; JSON Lines under such a name would mislead.
const NOT_WRITTEN: [&str; 13] =
    ["csv", "tsv", "txt", "arrow", "feather", "gz", "zst", "bz2", "xz", "zip", "yaml", "toml", "xlsx"];

fn check_extension(out: &Path) -> Result<()> {
    let extension = out.extension().map(|extension| extension.to_ascii_lowercase().to_string_lossy().into_owned());
    match extension.filter(|extension| NOT_WRITTEN.contains(&extension.as_str())) {
        Some(found) => Err(Error::usage(format!("expected an output name in .jsonl or .parquet, found .{found}"))
            .at(out)
            .cure("End the name in .jsonl or .parquet.")),
        None => Ok(()),
    }
}

/// Returns an error if an output file is an input file, another output file, or a file that no export has written.
fn check_places(job: &Job, files: &[DataFile]) -> Result<()> {
    let read = files.iter().map(|file| (file.path.as_path(), "a data file of the run"));
    let read = read.chain(job.decisions.iter().map(|path| (path.as_path(), "the file of --decisions")));
    let mut taken: Vec<(PathBuf, &str)> = read.map(|(path, what)| (identified(path), what)).collect();
    let beside = beside::path(job.target, &job.out);
    let written = [
        (Some(job.out.clone()), "--out"),
        (Some(changes_path(&job.out)), "the file of changes beside --out"),
        (beside, "the file for the trainer beside --out"),
        (job.rewrite.clone(), "--rewrite-candidates"),
    ];
    for (path, what) in written.into_iter().filter_map(|(path, what)| path.map(|path| (path, what))) {
        let place = identified(&path);
        let other = taken.iter().find(|(other, _)| *other == place).map(|(_, other)| *other);
        if let Some(other) = other {
            return Err(Error::usage(format!("{what} names {other}, which is not overwritten"))
                .at(path)
                .cure("Name another file."));
        }
        taken.push((place, what));
    }
    let changes = changes_path(&job.out);
    check_replaceable(&job.out, "an earlier export, beside which its changes lie", |_| Ok(are_changes(&changes)))?;
    check_replaceable(&changes, "the changes of an earlier export", |path| Ok(are_changes(path)))?;
    if let Some(path) = beside::path(job.target, &job.out) {
        check_replaceable(&path, "one that an earlier export wrote for the trainer", |path| beside::is_own(job.target, path))?;
    }
    match &job.rewrite {
        Some(path) => check_replaceable(path, "a file of candidates, all of them still without an answer", rewrite::are_open),
        None => Ok(()),
    }
}

fn is_table(out: &Path) -> bool {
    out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("parquet"))
}

/// `clean.changes.jsonl` for `clean.jsonl`, and `clean.parquet.changes.jsonl` for `clean.parquet`, since both may be in one folder.
fn changes_path(out: &Path) -> PathBuf {
    let stem = if is_table(out) { out.file_name() } else { out.file_stem() };
    let stem = stem.map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    out.with_file_name(format!("{stem}.changes.jsonl"))
}

struct Export<'a> {
    job: &'a Job,
    run: &'a Reopened,
    wanted: &'a Wanted,
    verdicts: BTreeMap<u32, Verdict>,
    choices: BTreeMap<(u32, u16), Vec<rewrite::Choice>>,
    /// For TRL: what the rows to be written hold.
    forms: Forms,
    is_table: bool,
    changes: Vec<Change>,
    /// The reader of the rows, which renders them with the run's model.
    peer: Option<Peer>,
    /// The lines of the rewrite candidates file, as JSON.
    candidates: Vec<String>,
    exported: Exported,
}

impl Export<'_> {
    fn write(mut self) -> Result<Exported> {
        let out = self.job.out.clone();
        let is_table = self.is_table;
        if let Some(folder) = out.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).context_at(folder, "cannot create the folder")?;
        }
        // Write the data last: if they are there, the other files are, too.
        let mut rows = Vec::new();
        write_atomically(&out, |file| {
            match is_table {
                true => {
                    self.each_row(|row| {
                        if let Written::Object(row) = row {
                            rows.push(row);
                        }
                        Ok(())
                    })?;
                    let is_of_table = |file: &DataFile| matches!(file.container, Container::Parquet | Container::Arrow);
                    write::write_parquet(&rows, self.run.dataset.files().iter().all(is_of_table), file)?;
                }
                false => self.write_lines(file)?,
            }
            self.write_beside()
        })?;
        Ok(self.exported)
    }

    fn write_lines(&mut self, file: &mut BufWriter<File>) -> Result<()> {
        let mut ends_line = true;
        let mut put = |bytes: &[u8]| -> Result<()> {
            // The last line of a file may lack a line feed, and another file may follow.
            if !ends_line {
                file.write_all(b"\n").context("cannot write the data")?;
            }
            ends_line = bytes.is_empty() || bytes.ends_with(b"\n");
            file.write_all(bytes).context("cannot write the data")
        };
        self.each_row(|row| match row {
            Written::Bytes(bytes) => put(&bytes),
            Written::Object(row) => put((dataset::line(&row) + "\n").as_bytes()),
        })
    }

    /// Passes on what is written of each row, in order.
    fn each_row(&mut self, mut put: impl FnMut(Written) -> Result<()>) -> Result<()> {
        let chosen: BTreeMap<u32, &Row> = self.run.rows.iter().map(|row| (row.row, row)).collect();
        let mut last_file = None;
        let mut found = 0;
        for original in self.run.dataset.originals() {
            let original = original?;
            if last_file.is_some_and(|last| last != original.file) {
                self.end_of_file(last_file, &mut put)?;
            }
            last_file = Some(original.file);
            let Some(row) = chosen.get(&original.row) else {
                self.exported.rows_not_read += 1;
                continue;
            };
            if row.line != original.place.line {
                return Err(Error::new("the row is not the one that the run has under this number")
                    .at_line(&*original.place.path, original.place.line)
                    .cure("Score the data again."));
            }
            found += 1;
            self.exported.rows_read += 1;
            let written = self.row(row, &original).map_err(|error| error.at_line(&*original.place.path, original.place.line))?;
            if let Some(written) = written {
                self.exported.rows_written += 1;
                put(written)?;
            }
        }
        if found != chosen.len() {
            return Err(Error::new(format!("the run has {} rows, and its data {found} of them", chosen.len()))
                .at(&self.run.folder)
                .cure("Score the data again."));
        }
        self.end_of_file(last_file, &mut put)
    }

    fn end_of_file(&self, file: Option<usize>, put: &mut impl FnMut(Written) -> Result<()>) -> Result<()> {
        match file.filter(|_| self.job.target == Target::Read && !self.is_table) {
            Some(file) => {
                let blank = self.run.dataset.blank_end(file)?;
                if blank.is_empty() { Ok(()) } else { put(Written::Bytes(blank)) }
            }
            None => Ok(()),
        }
    }

    fn row(&mut self, row: &Row, original: &Original) -> Result<Option<Written>> {
        let verdict = self.verdicts.remove(&row.row).unwrap_or_default();
        if let Some(change) = verdict.drop {
            self.exported.rows_dropped += 1;
            self.changes.push(change);
            return Ok(None);
        }
        let as_read = match &original.example {
            Ok(example) => example,
            Err(error) => return self.unreadable(row, original, &error.reason()),
        };
        if let Some(decision) = self.wanted.decisions.rows.get(&row.row) {
            let path = self.job.decisions.clone().unwrap_or_default();
            decision.check(&as_read.turns).map_err(|error| error.at_line(path, decision.line))?;
        }
        let (mut example, changes) = decided(as_read, &verdict)?;
        if self.job.target == Target::Axolotl && self.run.record.supervise == Supervise::Last {
            forget_history(&mut example);
        }
        if holds_switches(self.job.target) {
            example.template_switches = with_defaults(example.template_switches, self.run.record.template_switches.as_ref());
        }
        let is_touched = !changes.is_empty();
        for candidate in rewrite::candidates(row, as_read, &self.choices) {
            self.candidates.push(serde_json::to_string(&candidate).context("cannot write a candidate")?);
        }
        if self.job.target == Target::Read
            && let (false, false, Some(bytes)) = (is_touched, self.is_table, &original.bytes)
        {
            return Ok(Some(Written::Bytes(within(original.file, bytes))));
        }
        let file = &self.run.dataset.files()[original.file];
        let source = file.name();
        let options = self.run.dataset.options();
        let reading =
            Reading { format: file.format, mapping: &options.mapping, roles: &options.roles, source: &source, forms: self.forms };
        if self.job.target != Target::Read && example.turns.iter().any(is_adapted) {
            example.turns = match self.peer.as_ref().and_then(|peer| peer.turns(&example)) {
                Some(turns) => turns,
                None => example.turns.into_iter().map(as_text).collect(),
            };
        }
        let (written, read_again) = match write::row(self.job.target, original, &example, &reading) {
            Ok(written) => written,
            Err(error) if self.job.drop.contains(&DropRule::Inexpressible) => {
                self.exported.rows_dropped += 1;
                let why = format!("{}: {}", DropRule::Inexpressible, error.reason());
                self.changes.push(Change::new(row, What::Drop, why));
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if let Some(peer) = &mut self.peer {
            peer.read(&original.place, example, &read_again);
        }
        self.exported.columns_left_out.extend(write::left_out(self.job.target, original, &options.mapping));
        self.exported.rows_masked += u64::from(changes.iter().any(|change| matches!(change.what, What::Mask { .. })));
        self.exported.rows_weighted += u64::from(changes.iter().any(|change| change.what == What::Weight));
        self.changes.extend(changes);
        Ok(Some(Written::Object(written)))
    }

    /// Copies an unreadable record if rows are written in the form in which they were read.
    fn unreadable(&mut self, row: &Row, original: &Original, reason: &str) -> Result<Option<Written>> {
        self.exported.unreadable += 1;
        self.changes.push(Change::new(row, What::Unreadable, reason.to_owned()));
        let bytes = original.bytes.as_deref().filter(|_| !self.is_table).map(|bytes| within(original.file, bytes));
        let written = match self.job.target {
            Target::Read => bytes.map(Written::Bytes).or_else(|| original.object.clone().map(Written::Object)),
            _ => None,
        };
        self.exported.unreadable_left_out += u64::from(written.is_none());
        Ok(written)
    }

    fn forms(&self) -> Result<Forms> {
        let mut forms = Forms { has_switches: self.run.record.template_switches.is_some(), ..Forms::default() };
        let chosen: BTreeSet<u32> = self.run.rows.iter().map(|row| row.row).collect();
        for original in self.run.dataset.originals() {
            let original = original?;
            let verdict = self.verdicts.get(&original.row);
            let is_dropped = verdict.is_some_and(|verdict| verdict.drop.is_some());
            if let (true, false, Ok(example)) = (chosen.contains(&original.row), is_dropped, &original.example) {
                forms.add(&decided(example, verdict.unwrap_or(&Verdict::default()))?.0);
            }
        }
        Ok(forms)
    }

    /// Writes every file but the data: the changes, the settings for the trainer, the rewrite candidates.
    fn write_beside(&mut self) -> Result<()> {
        self.exported.notes.extend(self.peer.as_ref().and_then(Peer::note));
        let head = json!({
            "changes": 1,
            "run": self.run.record.identity,
            "data": self.run.dataset.files().iter().map(|file| json!({"path": file.path, "sha256": file.sha256})).collect::<Vec<_>>(),
            "format": self.job.target,
            "rows_not_read": self.exported.rows_not_read,
            "command": self.job.command,
        });
        let lines = self
            .changes
            .iter()
            .map(serde_json::to_string)
            .collect::<serde_json::Result<Vec<_>>>()
            .context("cannot write the changes")?;
        write_lines(&self.exported.changes, &[vec![head.to_string()], lines].concat())?;
        if let Some(path) = &self.job.rewrite {
            self.exported.candidates = self.candidates.len() as u64;
            write_lines(path, &self.candidates)?;
        }
        self.exported.beside = beside::write(self.job.target, &self.job.out, self.is_table, &self.run.record)?;
        Ok(())
    }
}

fn write_lines(path: &Path, lines: &[String]) -> Result<()> {
    write_atomically(path, |file| lines.iter().try_for_each(|line| writeln!(file, "{line}")).context("cannot write the file"))
}

/// The example as changed by the verdict, and the changes.
fn decided(as_read: &Example, verdict: &Verdict) -> Result<(Example, Vec<Change>)> {
    let mut example = as_read.clone();
    let mut changes = Vec::new();
    let mut is_masked = vec![false; verdict.places.len()];
    for (mask, change) in &verdict.masks {
        let Some(turn) = example.turns.get_mut(usize::from(mask.turn)) else {
            return Err(Error::new(format!("the row has no turn {}", mask.turn)));
        };
        let span = mask.span.map(|span| whole_characters(&turn.content, span));
        let mut sums = MaskSums::default();
        let mut is_new = true;
        for (place, is_masked) in verdict.places.iter().zip(&mut is_masked).filter(|(place, _)| place.is_in(mask.turn, span)) {
            match std::mem::replace(is_masked, true) {
                true => is_new = false,
                false => sums.add(place),
            }
        }
        // The sums of a whole turn that a rule masks are known before, and its tokens are not all among the places.
        let change = if change.tokens.is_some() { change.clone() } else { sums.of(change.clone()) };
        if change.tokens == Some(0) && !is_new {
            continue;
        }
        apply(turn, span);
        let text = span.and_then(|(begin, end)| turn.content.get(begin as usize..end as usize)).map(str::to_owned);
        changes.push(Change { text, ..change });
    }
    if let Some((weight, change)) = &verdict.weight {
        let answers = example.turns.iter_mut().filter(|turn| matches!(turn.role, Role::Assistant | Role::Text));
        answers.for_each(|turn| write::scale(turn, *weight));
        changes.push(change.clone());
    }
    Ok((example, changes))
}

/// Whether a template may get the turn in another form than the row has.
fn is_adapted(turn: &Turn) -> bool {
    let dataset::Written { role, without_content, parts, value, .. } = &turn.written;
    role.is_some() || *without_content || !parts.is_empty() || value.is_some() || turn.tool_calls.is_some()
}

/// The turn in the form that every template takes, where that of the run is not at hand.
fn as_text(mut turn: Turn) -> Turn {
    turn.written =
        dataset::Written { has_switch: turn.written.has_switch, others: turn.written.others, ..dataset::Written::default() };
    turn
}

/// Excludes all answers but the last from the loss, as in a run that supervises only the last.
fn forget_history(example: &mut Example) {
    let last = example.turns.iter().rposition(|turn| turn.role == Role::Assistant);
    for (idx, turn) in example.turns.iter_mut().enumerate().filter(|(_, turn)| turn.role == Role::Assistant) {
        if Some(idx) != last {
            turn.mask();
        }
    }
}

/// The bytes widened to whole characters, of which a token may contain a part.
fn whole_characters(text: &str, (begin, end): (u32, u32)) -> (u32, u32) {
    (text.floor_char_boundary(begin as usize) as u32, text.ceil_char_boundary(end as usize) as u32)
}

/// Excludes a part of the turn, or all of it, from the loss.
fn apply(turn: &mut Turn, span: Option<(u32, u32)>) {
    match span {
        Some((begin, end)) => turn.parts.push(WeightedPart { begin: begin as usize, end: end as usize, weight: 0.0 }),
        None => turn.mask(),
    }
}
