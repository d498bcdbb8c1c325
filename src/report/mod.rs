//! Finished numbers -> terminal, Markdown, JSON, HTML.
//!
//! ```text
//! document.rs     a report as blocks -> Markdown or HTML: the one place where text is kept from turning into markup
//! markdown.rs     report.md of a run of scores; terminal.rs its summary
//! diff.rs         what changed between two; learnt.rs what was learnt between two runs of scores
//! landscape.rs    several runs side by side
//! eval.rs         an evaluation on the terminal
//! view/           the page to read a run in
//! ```

pub(crate) mod diff;
mod document;
pub(crate) mod eval;
pub(crate) mod landscape;
mod learnt;
pub(crate) mod markdown;
pub(crate) mod terminal;
pub(crate) mod view;

use std::fmt::Write;

/// A token as one line of text in quotes.
fn quoted(token: &str) -> String {
    format!("`{}`", isolated(&visible(token).replace(' ', "␣").replace('`', "ˋ")))
}

/// Text on one line that cannot do anything but be read: line ends, tabs and control characters are shown by signs, and so are the
/// invisible characters that would turn the order of the text round (Unicode's bidirectional controls) or hide in it.
fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => shown.push('⏎'),
            '\t' => shown.push('⇥'),
            '\0'..='\u{1F}' => shown.push(char::from_u32(0x2400 + c as u32).unwrap_or('�')),
            '\u{7F}' => shown.push('␡'),
            '\u{A0}' | '\u{2007}' | '\u{202F}' => shown.push('⍽'),
            '\u{80}'..='\u{9F}'
            | '\u{AD}'
            | '\u{61C}'
            | '\u{180E}'
            | '\u{200B}'..='\u{200F}'
            | '\u{2028}'..='\u{202E}'
            | '\u{2060}'..='\u{206F}'
            | '\u{FEFF}'
            | '\u{FFF9}'..='\u{FFFB}'
            | '\u{E0000}'..='\u{E007F}' => {
                // Writing to a String cannot fail.
                let _ = write!(shown, "⟨U+{:04X}⟩", c as u32);
            }
            c => shown.push(c),
        }
    }
    shown
}

/// Text written from right to left keeps its order to itself: it is put between the marks of an isolate (Unicode, UAX 9).
fn isolated(text: &str) -> String {
    let is_from_the_right = |c: char| matches!(c, '\u{590}'..='\u{8FF}' | '\u{FB1D}'..='\u{FDFF}' | '\u{FE70}'..='\u{FEFC}' | '\u{10800}'..='\u{10FFF}' | '\u{1E800}'..='\u{1EFFF}');
    match text.chars().any(is_from_the_right) {
        true => format!("\u{2068}{text}\u{2069}"),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_for_people() {
        assert_eq!(quoted(" a`\n"), "`␣aˋ⏎`");
    }

    #[test]
    fn nothing_that_is_shown_acts_on_the_terminal_or_turns_the_line_round() {
        assert_eq!(visible("a\u{1B}[31m\r\u{202E}b\u{0}c\u{2028}"), "a␛[31m␍⟨U+202E⟩b␀c⟨U+2028⟩");
        assert_eq!(quoted("שלום"), "`\u{2068}שלום\u{2069}`");
        let all: String = (0..=0x10FFFF).filter_map(char::from_u32).collect();
        let is_dangerous =
            |c: char| c.is_control() || ('\u{202A}'..='\u{202E}').contains(&c) || ('\u{2066}'..='\u{2069}').contains(&c);
        assert!(!visible(&all).chars().any(is_dangerous));
    }
}
