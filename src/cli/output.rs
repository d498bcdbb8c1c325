//! What is printed, and how.

use std::io::{IsTerminal, Write};

use serde::Serialize;

use crate::error::{Context, Result};

/// Prints a summary. Standard output that was closed has been read enough.
pub(super) fn print(text: &str) -> Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot print the summary"),
    }
}

/// What a job has found as lines of JSON, for [`print`].
pub(super) fn json(found: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(found).context("cannot write JSON")? + "\n")
}

/// Prints lines for people to the standard error, broken at words to the width of the terminal, if it is one.
pub(super) fn say(text: &str) {
    let width = terminal_size::terminal_size_of(std::io::stderr()).map(|(width, _)| usize::from(width.0));
    for line in text.lines() {
        eprintln!("{}", width.map_or_else(|| line.to_owned(), |width| wrapped(line, width)));
    }
}

/// Characters in a line of the standard output, if it is a terminal.
pub(super) fn width() -> Option<usize> {
    terminal_size::terminal_size_of(std::io::stdout()).map(|(width, _)| usize::from(width.0))
}

/// The line as it is printed to the standard output, broken at words in the same way.
pub(super) fn fitted(line: &str) -> String {
    width().map_or_else(|| line.to_owned(), |width| wrapped(line, width))
}

/// The characters of a word that are seen: colours are not.
fn n_seen(word: &str) -> usize {
    let mut parts = word.split('\x1b');
    let first = parts.next().map_or(0, |part| part.chars().count());
    first + parts.map(|part| part.split_once('m').map_or(0, |(_, rest)| rest.chars().count())).sum::<usize>()
}

/// The line in lines of at most `width` characters, the further ones indented by two more; longer words stand alone.
fn wrapped(line: &str, width: usize) -> String {
    let indent = line.len() - line.trim_start_matches(' ').len();
    let (mut out, mut at) = (line[..indent].to_owned(), indent);
    for word in line[indent..].split(' ') {
        let n_chars = n_seen(word);
        if at > indent && at + 1 + n_chars > width {
            at = indent + 2;
            out.push('\n');
            out.push_str(&" ".repeat(at));
        } else if at > indent || out.len() > indent {
            out.push(' ');
            at += 1;
        }
        out.push_str(word);
        at += n_chars;
    }
    out
}

/// Colours on a terminal, unless the user does not want them.
pub(super) fn coloured() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// The argument as one would type it in a shell.
pub(super) fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    match !argument.is_empty() && argument.chars().all(plain) {
        true => argument.to_owned(),
        false => format!("'{}'", argument.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::wrapped;

    #[test]
    fn lines_break_at_words() {
        assert_eq!(wrapped("  one two three", 10), "  one two\n    three");
        assert_eq!(wrapped("a.jsonl:3: averylongword here", 12), "a.jsonl:3:\n  averylongword\n  here");
        assert_eq!(wrapped("fits  as it is", 20), "fits  as it is");
        assert_eq!(wrapped("é é é é", 3), "é é\n  é\n  é");
        assert_eq!(wrapped("", 5), "");
        assert_eq!(wrapped("\x1b[1mone\x1b[0m two three", 7), "\x1b[1mone\x1b[0m two\n  three");
    }
}
