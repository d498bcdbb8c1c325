//! Reads decisions.jsonl, a person's decisions about the rows of a run, one JSON object per line.
//!
//! ```text
//! {"decisions": 1, "run": IDENTITY, "data": [{"path": "rows.jsonl", "sha256": "..", "format": "messages"}]}     the first line
//! {"row": 7, "action": "drop"}                                          the row goes
//! {"row": 8, "action": "keep"}                                          the row stays, whatever a rule says; reverts a drop
//! {"row": 9, "action": "mask", "turn": 1}                               the turn is not supervised
//! {"row": 9, "action": "mask", "turn": 3, "begin": 25, "end": 29}       these bytes of its text (UTF-8) are not supervised
//! {"row": 9, "action": "note", "text": "see the source"}                changes nothing in the data
//! ```
//!
//! Rows are numbered over the whole input, as in the tables. If several lines decide the same thing, the last one counts. A decision is about texts,
//! not about a model or a template: it applies to every run that read the same bytes in the same way, and is refused for any other. The first line
//! records how they were read: the format of each file, and `maps` and `roles` where `--map` and `--role` were given.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::dataset::{DataFile, Dataset, Format, Turn};
use crate::error::{Context, Error, Result};
use crate::format::beginning;

/// The version of the format: the value of the first line's `decisions`.
const VERSION: u64 = 1;

/// The decisions about a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Decisions {
    /// The decisions by row number.
    pub rows: BTreeMap<u32, RowDecision>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RowDecision {
    /// `Some(true)`: the row stays, whatever a rule says; `Some(false)`: it is dropped.
    pub keep: Option<bool>,
    /// The parts of the row to exclude from the loss.
    pub masks: Vec<Mask>,
    /// The person's note on the row.
    pub note: Option<String>,
    /// The last line about the row, counted from 1.
    pub line: u64,
}

/// A turn, or the bytes `begin..end` of its content, to exclude from the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mask {
    /// The index of the turn.
    pub turn: u16,
    /// The bytes of its content; `None`: the whole turn.
    pub span: Option<(u32, u32)>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    decisions: u64,
    run: String,
    data: Vec<HeadFile>,
    #[serde(default)]
    maps: Vec<String>,
    #[serde(default)]
    roles: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct HeadFile {
    path: String,
    sha256: String,
    /// Absent in the files of older pages.
    format: Option<Format>,
}

/// What decisions must refer to: a run, its data, and how these were read.
struct About<'a> {
    run: &'a str,
    data: &'a [DataFile],
    maps: &'a [String],
    roles: &'a [String],
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    row: u32,
    action: String,
    turn: Option<u16>,
    begin: Option<u32>,
    end: Option<u32>,
    text: Option<String>,
}

impl Decisions {
    /// Reads the file; it must belong to the run with this identity, or to another run that read this data set in the same way.
    pub(crate) fn read(path: &Path, run: &str, dataset: &Dataset) -> Result<Decisions> {
        let bytes = std::fs::read(path).context_at(path, "cannot read the decisions")?;
        let text = std::str::from_utf8(&bytes).map_err(|error| {
            let line = 1 + bytes[..error.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count() as u64;
            Error::new("expected UTF-8, found an invalid byte").at_line(path, line)
        })?;
        let options = dataset.options();
        let about = About { run, data: dataset.files(), maps: options.mapping.rules(), roles: options.roles.rules() };
        Decisions::parse(text, &about).map_err(|(line, error)| error.at_line(path, line))
    }

    fn parse(text: &str, about: &About) -> Result<Decisions, (u64, Error)> {
        // Windows editors add a byte order mark; the page skips it as well.
        let text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
        let mut lines = (1..).zip(text.split('\n')).filter(|(_, line)| !line.trim().is_empty());
        let (number, first) = lines.next().ok_or_else(|| (1, head_expected("an empty file")))?;
        check_head(first, about).map_err(|error| (number, error))?;
        let mut decisions = Decisions::default();
        for (number, line) in lines {
            decisions.add(line, number).map_err(|error| (number, error))?;
        }
        Ok(decisions)
    }

    fn add(&mut self, line: &str, number: u64) -> Result<()> {
        let Line { row, action, turn, begin, end, text } = serde_json::from_str(line)
            .map_err(|error| unreadable(line, "a decision such as {\"row\": 7, \"action\": \"drop\"}", &error))?;
        let decision = self.rows.entry(row).or_default();
        decision.line = number;
        let too_much = |what: &str, is_there: bool| match is_there {
            true => Err(Error::new(format!("a {action} takes no {what}, found `{line}`"))),
            false => Ok(()),
        };
        match action.as_str() {
            "drop" | "keep" => {
                too_much("turn and no span", turn.is_some() || begin.is_some() || end.is_some())?;
                too_much("text", text.is_some())?;
                decision.keep = Some(action == "keep");
            }
            "mask" => {
                too_much("text", text.is_some())?;
                let turn = turn.ok_or_else(|| Error::new(format!("a mask needs a turn, found `{line}`")))?;
                let span = match (begin, end) {
                    (None, None) => None,
                    (Some(begin), Some(end)) if begin < end => Some((begin, end)),
                    _ => return Err(Error::new(format!("a mask needs begin < end, or neither, found `{line}`"))),
                };
                let mask = Mask { turn, span };
                if !decision.masks.contains(&mask) {
                    decision.masks.push(mask);
                }
            }
            "note" => {
                too_much("turn and no span", turn.is_some() || begin.is_some() || end.is_some())?;
                decision.note = Some(text.ok_or_else(|| Error::new(format!("a note needs a text, found `{line}`")))?);
            }
            other => {
                return Err(Error::new(format!("expected the action drop, keep, mask or note, found `{other}`")));
            }
        }
        Ok(())
    }
}

impl RowDecision {
    /// Checks that the masks fit the text of the row.
    pub(crate) fn check(&self, turns: &[Turn]) -> Result<()> {
        self.masks.iter().try_for_each(|mask| mask.check(turns))
    }
}

impl Mask {
    fn check(&self, turns: &[Turn]) -> Result<()> {
        let turn = turns.get(usize::from(self.turn)).ok_or_else(|| {
            Error::new(format!(
                "expected a turn of the row, which has {} (counted from 0), found turn {}",
                turns.len(),
                self.turn
            ))
        })?;
        let Some((begin, end)) = self.span else { return Ok(()) };
        let (begin, end) = (begin as usize, end as usize);
        if end > turn.content.len() {
            return Err(Error::new(format!(
                "expected a span within the {} bytes of turn {}, found {begin}..{end}",
                turn.content.len(),
                self.turn
            )));
        }
        if !turn.content.is_char_boundary(begin) || !turn.content.is_char_boundary(end) {
            return Err(Error::new(format!("expected a span of whole characters of turn {}, found {begin}..{end}", self.turn))
                .cure("begin and end count the bytes of the text in UTF-8, and must not cut a character."));
        }
        Ok(())
    }
}

fn head_expected(found: &str) -> Error {
    Error::new(format!(
        "expected decisions of this program, which begin with {{\"decisions\": 1, \"run\": .., \"data\": ..}}, found {found}"
    ))
}

fn check_head(line: &str, about: &About) -> Result<()> {
    let data = about.data;
    let head: Head =
        serde_json::from_str(line).map_err(|error| head_expected(&format!("`{}`", beginning(line, 80))).caused_by(error))?;
    if head.decisions != VERSION {
        return Err(Error::new(format!("expected decisions of version {VERSION}, found {}", head.decisions)));
    }
    let (expected, found) = (data.iter().map(|file| &file.sha256), head.data.iter().map(|file| &file.sha256));
    if !expected.eq(found) {
        let found: Vec<String> = head.data.iter().map(|file| format!("{} ({:.12})", file.path, file.sha256)).collect();
        let expected: Vec<String> = data.iter().map(|file| format!("{} ({:.12})", file.name(), file.sha256)).collect();
        return Err(Error::new(format!(
            "the decisions are about other data: expected {}, found {}",
            expected.join(", "),
            found.join(", ")
        ))
        .cure("Row numbers and spans are valid only for the exact bytes that they were made for."));
    }
    // The identity of a run also covers how it read its data.
    if head.run == about.run {
        return Ok(());
    }
    let run = head.run.get(..8).unwrap_or(&head.run);
    let formats: Option<Vec<Format>> = head.data.iter().map(|file| file.format).collect();
    let Some(formats) = formats else {
        return Err(Error::new(format!("the decisions were made for another run ({run}..), and do not say how it read its rows"))
            .cure("Write `format` into each of `data`, and `maps` and `roles`, as `data` and `read` of that run's run.json have them; or export from that run."));
    };
    let own = reading(data.iter().map(|file| file.format), about.maps, about.roles);
    let theirs = reading(formats.into_iter(), &head.maps, &head.roles);
    if own != theirs {
        return Err(Error::new(format!(
            "the decisions were made for another run ({run}..), which read these data as {theirs}; this run read them as {own}"
        ))
        .cure("Its rows and turns are numbered differently: export from that run, or decide again on this run's page."));
    }
    Ok(())
}

/// Describes the settings on which row and turn numbers depend, such as `messages, --map prompt=question`.
fn reading(formats: impl Iterator<Item = Format>, maps: &[String], roles: &[String]) -> String {
    let mut words: Vec<String> = formats.map(|format| format.to_string()).collect();
    for (option, rules) in [("--map", maps), ("--role", roles)] {
        let mut rules: Vec<&String> = rules.iter().collect();
        // The order of the options does not matter.
        rules.sort_unstable();
        words.extend(rules.into_iter().map(|rule| format!("{option} {rule}")));
    }
    words.join(", ")
}

fn unreadable(line: &str, expected: &str, error: &serde_json::Error) -> Error {
    Error::new(format!("expected {expected}, found `{}` ({error})", beginning(line, 80)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{Compression, Container, Format, Role};

    fn data() -> Vec<DataFile> {
        vec![DataFile {
            path: "rows.jsonl".into(),
            container: Container::JsonLines,
            compression: Compression::None,
            format: Format::Messages,
            sha256: "ab".repeat(32),
            bytes: 3,
            name_folders: 0,
        }]
    }

    fn head() -> String {
        format!(
            "{{\"decisions\": 1, \"run\": \"r\", \"data\": [{{\"path\": \"a/rows.jsonl\", \"sha256\": \"{}\"}}]}}",
            "ab".repeat(32)
        )
    }

    fn parse(lines: &str) -> Result<Decisions, String> {
        with_head(&head(), lines)
    }

    fn with_head(head: &str, lines: &str) -> Result<Decisions, String> {
        let data = data();
        let about = About { run: "r", data: &data, maps: &["b=c".to_owned(), "a=b".to_owned()], roles: &[] };
        Decisions::parse(&format!("{head}\n{lines}"), &about).map_err(|(line, error)| format!("{line}: {error}"))
    }

    #[test]
    fn decisions_of_a_run_that_read_the_same_bytes_otherwise_are_refused() {
        let of = |run: &str, file: &str, more: &str| {
            let sha256 = "ab".repeat(32);
            let head = format!(
                "{{\"decisions\": 1, \"run\": \"{run}\", \"data\": [{{\"path\": \"a\", \"sha256\": \"{sha256}\"{file}}}]{more}}}"
            );
            with_head(&head, "{\"row\": 7, \"action\": \"drop\"}")
        };
        let (messages, maps) = (", \"format\": \"messages\"", ", \"maps\": [\"a=b\", \"b=c\"]");
        // The same run passes, whatever else the line says, and so does another run that read the data in the same way.
        assert!(of("r", "", "").is_ok() && of("other", messages, maps).is_ok());
        for (file, more, part) in [
            (", \"format\": \"sharegpt\"", maps, "as sharegpt, --map a=b, --map b=c; this run read them as messages, --map a=b"),
            (messages, "", "which read these data as messages; this run read them as messages, --map a=b, --map b=c"),
            (messages, ", \"maps\": [\"a=b\", \"b=d\"]", "--map b=d; this run"),
            (messages, ", \"maps\": [\"a=b\", \"b=c\"], \"roles\": [\"x=user\"]", "--role x=user; this run"),
            ("", maps, "do not say how it read its rows"),
        ] {
            let error = of("other", file, more).unwrap_err();
            assert!(error.starts_with("1: the decisions were made for another run (other..)") && error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_read_over() {
        let found = with_head(&format!("\u{FEFF}{}\r", head()), "{\"row\": 7, \"action\": \"drop\"}\r\n");
        assert_eq!(found.unwrap().rows[&7].keep, Some(false));
    }

    #[test]
    fn a_later_line_counts() {
        let found = parse(
            "{\"row\": 7, \"action\": \"drop\"}\n{\"row\": 7, \"action\": \"keep\"}\n\n{\"row\": 2, \"action\": \"mask\", \"turn\": 1}\n\
             {\"row\": 2, \"action\": \"mask\", \"turn\": 1, \"begin\": 0, \"end\": 2}\n{\"row\": 2, \"action\": \"mask\", \"turn\": 1}\n\
             {\"row\": 2, \"action\": \"note\", \"text\": \"a\"}\n{\"row\": 2, \"action\": \"note\", \"text\": \"b\"}\n",
        )
        .unwrap();
        assert_eq!(found.rows[&7], RowDecision { keep: Some(true), line: 3, ..RowDecision::default() });
        let masks = vec![Mask { turn: 1, span: None }, Mask { turn: 1, span: Some((0, 2)) }];
        assert_eq!(found.rows[&2], RowDecision { masks, note: Some("b".to_owned()), line: 9, keep: None });
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_line() {
        for (line, part) in [
            ("{\"row\": 1, \"action\": \"delete\"}", "2: expected the action drop, keep, mask or note, found `delete`"),
            ("{\"row\": -1, \"action\": \"drop\"}", "2: expected a decision"),
            ("{\"row\": 1, \"action\": \"drop\", \"turn\": 1}", "takes no turn"),
            ("{\"row\": 1, \"action\": \"mask\"}", "needs a turn"),
            ("{\"row\": 1, \"action\": \"mask\", \"turn\": 0, \"begin\": 3}", "begin < end"),
            ("{\"row\": 1, \"action\": \"mask\", \"turn\": 0, \"begin\": 3, \"end\": 3}", "begin < end"),
            ("{\"row\": 1, \"action\": \"note\"}", "needs a text"),
            ("{\"row\": 1, \"action\": \"drop\", \"why\": 1}", "unknown field `why`"),
            ("row 7", "found `row 7`"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
        let of_head = |head: &str| with_head(head, "").unwrap_err();
        assert!(of_head("").contains("an empty file"));
        assert!(of_head("{\"row\": 1, \"action\": \"drop\"}").contains("begin with"));
        assert!(of_head(&head().replace("\": 1,", "\": 2,")).contains("version 1, found 2"));
        assert!(of_head(&head().replace("abab", "cdcd")).contains("other data"));
    }

    #[test]
    fn spans_hold_whole_characters_of_the_turn() {
        let turns = [Turn::plain(Role::User, "a"), Turn::plain(Role::Assistant, "né.")];
        let check = |turn, span| RowDecision { masks: vec![Mask { turn, span }], ..RowDecision::default() }.check(&turns);
        assert!(check(1, None).is_ok() && check(1, Some((1, 3))).is_ok() && check(1, Some((0, 4))).is_ok());
        for (turn, span, part) in [
            (2, None, "which has 2"),
            (1, Some((0, 2)), "whole characters"),
            (1, Some((2, 4)), "whole characters"),
            (1, Some((0, 5)), "4 bytes"),
        ] {
            assert!(check(turn, span).unwrap_err().to_string().contains(part), "{turn} {span:?}");
        }
    }
}
