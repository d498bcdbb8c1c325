//! Finished numbers -> terminal, Markdown, JSON, HTML.

pub mod diff;
mod document;
pub mod eval;
pub mod markdown;
pub mod terminal;

/// A token as one line of text in quotes.
fn quoted(token: &str) -> String {
    format!("`{}`", token.replace('\n', "⏎").replace('\t', "⇥").replace(' ', "␣").replace('`', "ˋ"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_for_people() {
        assert_eq!(quoted(" a`\n"), "`␣aˋ⏎`");
    }
}
