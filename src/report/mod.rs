//! Presents finished results on the terminal and as Markdown, JSON and HTML.
//!
//! ```text
//! columns.rs      a table on the terminal
//! document.rs     renders blocks as Markdown or HTML; only this module escapes text against becoming markup
//! markdown.rs     report.md of a score run; terminal.rs its summary
//! diff.rs         comparisons; learnt.rs what the model learnt between two score runs
//! landscape.rs    several runs side by side
//! eval.rs         an evaluation on the terminal
//! view/           the page to read a run in
//! ```

mod columns;
pub(crate) mod diff;
mod document;
pub(crate) mod eval;
pub(crate) mod landscape;
mod learnt;
pub(crate) mod markdown;
pub(crate) mod terminal;
pub(crate) mod view;

#[cfg(test)]
mod tables_tests;

use crate::format::{ISOLATE, visible};

/// A token as one line of text in quotes.
fn quoted(token: &str) -> String {
    format!("`{}`", isolated(&visible(token).replace(' ', "␣").replace('`', "ˋ")))
}

/// Keeps right-to-left text from reordering its surroundings, by putting it between the marks of an isolate (Unicode, UAX 9).
fn isolated(text: &str) -> String {
    let [begin, end] = ISOLATE;
    let is_from_the_right = |c: char| matches!(c, '\u{590}'..='\u{8FF}' | '\u{FB1D}'..='\u{FDFF}' | '\u{FE70}'..='\u{FEFC}' | '\u{10800}'..='\u{10FFF}' | '\u{1E800}'..='\u{1EFFF}');
    match text.chars().any(is_from_the_right) {
        true => format!("{begin}{text}{end}"),
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
    fn text_from_the_right_keeps_its_order_to_itself() {
        assert_eq!(quoted("שלום"), "`\u{2068}שלום\u{2069}`");
    }
}
