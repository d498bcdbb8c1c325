//! Finished numbers -> terminal, Markdown, JSON, HTML.

pub(crate) mod diff;
mod document;
pub(crate) mod eval;
pub(crate) mod markdown;
pub(crate) mod terminal;

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
