//! Rules about how a text is written: signs, white space, case, and how an answer ends.

use super::words::SHORT_ANSWER;

/// What shows that an answer was cut off, if anything does.
pub(super) fn open_end(text: &str) -> Option<String> {
    let text = text.trim_end();
    if text.is_empty() {
        return Some("the answer is empty".to_owned());
    }
    if text.matches("```").count() % 2 == 1 {
        return Some("a block of code is not closed".to_owned());
    }
    let last = text.chars().next_back()?;
    let ends = last.is_ascii_digit() || !last.is_alphanumeric();
    let n_words = text.split_whitespace().count();
    // Items of a list and lines of verse need no sign at their end.
    let mut lines = text.lines().rev().filter(|line| !line.trim().is_empty());
    let is_line_of_many = lines.nth(1).and_then(|line| line.trim_end().chars().next_back()).is_some_and(char::is_alphanumeric);
    match ends || is_line_of_many || n_words <= SHORT_ANSWER {
        true => None,
        false => Some(format!("the answer ends `{}`, without a sign of an end", last_chars(text, 20))),
    }
}

fn last_chars(text: &str, n: usize) -> &str {
    let at = text.char_indices().rev().nth(n - 1).map_or(0, |(at, _)| at);
    &text[at..]
}

/// How the data's text differs from the model's, if only in form or in a mark; the token begins at `begin`.
pub(super) fn other_form(text: &str, begin: usize, token: &str, top: &str) -> Option<&'static str> {
    let (own, other) = (token.trim(), top.trim());
    let (is_mark, is_other_mark) = (is_punctuation(text, begin, token), is_punctuation("", 0, top));
    if own.is_empty() && other.is_empty() && !top.is_empty() {
        return Some("other white space");
    }
    if own.is_empty() && token.contains('\n') {
        return Some("a line ends where the model writes on");
    }
    if own == other {
        return Some("the same text with other white space");
    }
    if is_mark {
        return Some(if is_other_mark { "another sign" } else { "a sign where the model writes something else" });
    }
    if !own.is_empty() && own.to_lowercase() == other.to_lowercase() {
        return Some("the same text in another case");
    }
    // A longer token is the same text only if the text continues like it. A shorter one could begin another word.
    if other.len() > own.len() && text[begin..].trim_start().starts_with(other) {
        return Some("the same text in other tokens");
    }
    let bare = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect::<String>();
    (!bare(own).is_empty() && bare(own) == bare(other)).then_some("the same text with other signs around it")
}

const PUNCTUATION: &str = ".,:;!?…\"'“”‘’«»`*_#-–—|。，、：；！？「」『』《》";

/// Does the token consist of marks that divide, quote or lay out a text? Marks within a number do not count, nor do brackets and operators,
/// which have a meaning in code and in calculations.
fn is_punctuation(text: &str, begin: usize, token: &str) -> bool {
    let own = token.trim();
    let is_mark = !own.is_empty() && own.chars().all(|c| PUNCTUATION.contains(c)) && !is_of_sum(text, begin, token);
    is_mark || is_double_bracket(text, begin, token)
}

/// Is the token `<<` or `>>`, or half of one? These enclose something, such as a step of a calculation in `so 3 + 4 = <<3+4=7>>7 eggs`, and do not
/// compare.
fn is_double_bracket(text: &str, begin: usize, token: &str) -> bool {
    let own = token.trim();
    let (before, after) = (text.get(..begin).unwrap_or_default(), text.get(begin + token.len()..).unwrap_or_default());
    let is_half = |bracket: &str| {
        own == bracket && (token.starts_with(own) && before.ends_with(own) || token.ends_with(own) && after.starts_with(own))
    };
    own.contains("<<") || own.contains(">>") || is_half("<") || is_half(">")
}

/// Is the token an operator or a currency sign beside a number, a minus sign after one, or the point within one?
pub(super) fn is_of_sum(text: &str, begin: usize, token: &str) -> bool {
    let own = token.trim();
    let (before, after) = (text.get(..begin).unwrap_or_default(), text.get(begin + token.len()..).unwrap_or_default());
    let is_digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    // At the beginning of a line, `- 2` is an item of a list.
    let follows = is_digit(before.trim_end_matches(' ').chars().next_back());
    let precedes = is_digit(after.trim_start_matches(' ').chars().next());
    let is_within = token == own && is_digit(before.chars().next_back()) && is_digit(after.chars().next());
    let is_operator = !own.is_empty() && own.chars().all(|c| "+−×÷/=<>≤≥^%°$€£¥".contains(c));
    match own {
        "-" | "*" | "–" => follows && precedes,
        "." | "," | ":" => is_within,
        _ => is_operator && (follows || precedes) && !is_double_bracket(text, begin, token),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_end_without_a_sign() {
        assert_eq!(open_end("These are they:\n1. October\n2. December"), None);
        assert!(open_end("These are they.\nThen we went on to the").is_some());
    }
}
