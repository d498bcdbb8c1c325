//! Prints results, with control characters of the data made harmless.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::Path;

use serde::Serialize;

use crate::dataset::DataFile;
use crate::error::{Context, Result};
use crate::format::{ISOLATE, acts, count, harmless, n_columns, thousands};

/// Prints a summary in which nothing but its colours affects the terminal. A closed standard output is no error, since the reader has seen enough.
pub(super) fn print(text: &str) -> Result<()> {
    match std::io::stdout().lock().write_all(shown(text, coloured()).as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot print the summary"),
    }
}

/// The escape sequences that colour the summaries: bold, dim, red, green, and reset.
const COLOURS: [&str; 5] = ["\x1b[1m", "\x1b[2m", "\x1b[1;31m", "\x1b[32m", "\x1b[0m"];

/// The text with all characters that affect a terminal replaced by visible signs, except for the colours of a coloured text.
fn shown(text: &str, coloured: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for (idx, part) in text.split('\x1b').enumerate() {
        let colour = COLOURS.iter().find(|colour| coloured && part.starts_with(&colour[1..]));
        let rest = match colour {
            _ if idx == 0 => part,
            Some(colour) => {
                out.push_str(colour);
                &part[colour.len() - 1..]
            }
            None => {
                out.push_str(&harmless("\x1b", &[]));
                part
            }
        };
        out.push_str(&harmless(rest, &ISOLATE));
    }
    out
}

/// Formats results as JSON for [`print`]. Characters that affect a terminal are written as JSON escapes, which does not change the content.
pub(super) fn json(found: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(found).context("cannot write JSON")? + "\n";
    // They occur only inside strings, and each fits into a single escape.
    let escaped = |c: char| if acts(c) { format!("\\u{:04x}", c as u32) } else { c.to_string() };
    Ok(text.chars().map(escaped).collect())
}

/// Like [`json`], for what a folder holds, preceded by the folder.
pub(super) fn json_in(folder: &Path, found: &impl Serialize) -> Result<String> {
    #[derive(Serialize)]
    struct In<'a, T> {
        out: &'a Path,
        #[serde(flatten)]
        found: &'a T,
    }
    json(&In { out: folder, found })
}

/// Prints lines to standard error, wrapped at words to the width of the terminal, if it is one. The lines may quote data and name files, none of
/// which may affect the terminal.
pub(super) fn say(text: &str) {
    let text = harmless(text, &[]);
    let width = terminal_size::terminal_size_of(std::io::stderr()).map(|(width, _)| usize::from(width.0));
    for line in text.lines() {
        eprintln!("{}", width.map_or_else(|| line.to_owned(), |width| wrapped(line, width)));
    }
}

/// The number of data files listed by name; a folder may contain one for every row.
const FILES_NAMED: usize = 20;

/// A line for each of the first files, and one for the rest.
pub(super) fn of_files(files: &[DataFile], line: impl Fn(&DataFile) -> String) -> Vec<String> {
    let (named, others) = files.split_at(files.len().min(FILES_NAMED));
    let mut lines: Vec<String> = named.iter().map(line).collect();
    let mut formats: BTreeMap<String, u64> = BTreeMap::new();
    for file in others {
        *formats.entry(file.format.to_string()).or_default() += 1;
    }
    if !others.is_empty() {
        let formats: Vec<String> = formats.iter().map(|(format, n)| format!("{} of {format}", thousands(*n))).collect();
        let bytes = count(others.iter().map(|file| file.bytes).sum(), "byte");
        lines.push(format!("and {}, {bytes}: {}", count(others.len() as u64, "more file"), formats.join(", ")));
    }
    lines
}

/// The width of standard output in columns, if it is a terminal.
pub(super) fn width() -> Option<usize> {
    terminal_size::terminal_size_of(std::io::stdout()).map(|(width, _)| usize::from(width.0))
}

/// The line as printed to standard output, wrapped at words.
pub(super) fn fitted(line: &str) -> String {
    width().map_or_else(|| line.to_owned(), |width| wrapped(line, width))
}

/// The width of a word in columns, not counting colours.
fn n_seen(word: &str) -> usize {
    let mut parts = word.split('\x1b');
    let first = parts.next().map_or(0, n_columns);
    first + parts.map(|part| part.split_once('m').map_or(0, |(_, rest)| n_columns(rest))).sum::<usize>()
}

/// Wraps the line to at most `width` columns, with continuation lines indented by two more; longer words stand alone.
fn wrapped(line: &str, width: usize) -> String {
    let indent = line.len() - line.trim_start_matches(' ').len();
    let (mut out, mut at) = (line[..indent].to_owned(), indent);
    for word in line[indent..].split(' ') {
        let n_columns = n_seen(word);
        if at > indent && at + 1 + n_columns > width {
            at = indent + 2;
            out.push('\n');
            out.push_str(&" ".repeat(at));
        } else if at > indent || out.len() > indent {
            out.push(' ');
            at += 1;
        }
        out.push_str(word);
        at += n_columns;
    }
    out
}

/// Whether to use colours: on a terminal that supports them, unless the user turns them off.
pub(super) fn coloured() -> bool {
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    std::io::stdout().is_terminal() && !is_dumb && std::env::var_os("NO_COLOR").is_none()
}

/// The argument as typed in a shell.
pub(super) fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    match !argument.is_empty() && argument.chars().all(plain) {
        true => argument.to_owned(),
        false => format!("'{}'", argument.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::{json, shown, wrapped};

    #[test]
    fn nothing_acts_on_the_terminal_but_the_colours() {
        let text = "\x1b[1mbold\x1b[0m \x1b[2J \x1b]0;title\x07 \u{202E}\r\u{9B}31m \u{2068}א\u{2069}\n";
        let rest = " ␛[2J ␛]0;title␇ ⟨U+202E⟩␍⟨U+009B⟩31m \u{2068}א\u{2069}\n";
        assert_eq!(shown(text, true), format!("\x1b[1mbold\x1b[0m{rest}"));
        assert_eq!(shown(text, false), format!("␛[1mbold␛[0m{rest}"));
        assert_eq!(shown("", true), "");
        let printed = json(&[text]).unwrap();
        assert!(!printed.chars().any(|c| c != '\n' && crate::format::acts(c)), "{printed}");
        assert_eq!(serde_json::from_str::<[String; 1]>(&printed).unwrap(), [text]);
    }

    #[test]
    fn lines_break_at_words() {
        assert_eq!(wrapped("  one two three", 10), "  one two\n    three");
        assert_eq!(wrapped("a.jsonl:3: averylongword here", 12), "a.jsonl:3:\n  averylongword\n  here");
        assert_eq!(wrapped("fits  as it is", 20), "fits  as it is");
        assert_eq!(wrapped("é é é é", 3), "é é\n  é\n  é");
        assert_eq!(wrapped("数据 a 数据", 7), "数据 a\n  数据");
        assert_eq!(wrapped("", 5), "");
        assert_eq!(wrapped("\x1b[1mone\x1b[0m two three", 7), "\x1b[1mone\x1b[0m two\n  three");
    }
}
