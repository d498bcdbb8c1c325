//! The filters and the exact match of lm-evaluation-harness (`lm_eval/filters/extraction.py`, `lm_eval/api/metrics.py`), as its
//! tasks of word problems use them.
//!
//! The tests compare 200 verdicts with those of the harness's own code, which `tests/fixtures/eval/written.py` recorded.

use serde_json::Value;

use super::{MAX_NEW_TOKENS, Spec, Verdict};
use crate::error::{Error, Result};

/// `gsm8k/gsm8k.yaml`, version 3. The data are the published answer, which ends with `#### ` and the number.
pub const GSM8K: Spec = Spec {
    stops: &["Question:", "</s>", "<|im_end|>"],
    max_new_tokens: MAX_NEW_TOKENS,
    few_shot: 5,
    primary: "exact_match,strict-match",
    check: gsm8k,
};

/// Replaces an answer that was not found.
pub(super) const INVALID: &str = "[invalid]";

fn gsm8k(data: &Value, answer: &str) -> Result<Vec<Verdict>> {
    let gold = data.as_str().ok_or_else(|| Error::new("expected the published answer"))?;
    let verdict = |metric: &str, found: Option<&str>| Verdict::of_answer(metric, is_same(found.unwrap_or(INVALID), gold));
    Ok(vec![verdict("exact_match,strict-match", strict(answer)), verdict("exact_match,flexible-extract", flexible(answer))])
}

/// The group of the first match of `#### (\-?[0-9\.\,]+)`.
pub(super) fn strict(answer: &str) -> Option<&str> {
    const MARK: &str = "#### ";
    answer.match_indices(MARK).find_map(|(at, _)| {
        let rest = &answer[at + MARK.len()..];
        let sign = usize::from(rest.starts_with('-'));
        let n = run(&rest[sign..], |c| c.is_ascii_digit() || ".,".contains(c));
        (n > 0).then(|| &rest[..sign + n])
    })
}

/// The last match of `(-?[$0-9.,]{2,})|(-?[0-9]+)`.
pub(super) fn flexible(answer: &str) -> Option<&str> {
    let (mut last, mut at) = (None, 0);
    while at < answer.len() {
        let rest = &answer[at..];
        let sign = usize::from(rest.starts_with('-'));
        let long = run(&rest[sign..], |c| c.is_ascii_digit() || "$.,".contains(c));
        let n = if long >= 2 { long } else { run(&rest[sign..], |c| c.is_ascii_digit()) };
        if n > 0 {
            last = Some(&rest[..sign + n]);
            at += sign + n;
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    last
}

/// The length in bytes of the longest prefix of characters that satisfy `is_one`, all of which are ASCII.
fn run(text: &str, is_one: impl Fn(char) -> bool) -> usize {
    text.find(|c| !is_one(c)).unwrap_or(text.len())
}

/// `exact_match` with `ignore_case` and the `regexes_to_ignore` of the word problems: `,`, `\$`, `(?s).*#### `, `\.$`.
fn is_same(found: &str, gold: &str) -> bool {
    let kept = |text: &str| {
        let text = text.replace([',', '$'], "");
        let text = text.rsplit_once("#### ").map_or(text.as_str(), |(_, after)| after);
        // In Python, `$` also matches before a final newline.
        match text.strip_suffix(".\n") {
            Some(before) => format!("{before}\n").to_lowercase(),
            None => text.strip_suffix('.').unwrap_or(text).to_lowercase(),
        }
    };
    kept(found) == kept(gold)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_marked_number_and_the_last_of_all() {
        let check = |answer: &str, by_mark: Option<&str>, last: Option<&str>| {
            assert_eq!((strict(answer), flexible(answer)), (by_mark, last), "{answer}");
        };
        check("so #### 18", Some("18"), Some("18"));
        check("#### -1,234.50 and 7", Some("-1,234.50"), Some("7"));
        // Marks without a number are skipped; a sign alone is not a number.
        check("#### x #### -", None, None);
        check("#### $5", None, Some("$5"));
        // The long form needs two characters; a single digit matches the short form.
        check("It costs $ . , 3", None, Some("3"));
        check("5-3", None, Some("-3"));
        check("--4", None, Some("-4"));
        check("3 apples.", None, Some("3"));
        check("It is 3.", None, Some("3."));
        check("é …", None, None);
    }

    #[test]
    fn commas_dollars_and_a_final_dot_do_not_count() {
        for (found, gold, same) in [
            ("$1,000.", "He has\n#### 1000", true),
            ("1000.0", "#### 1000", false),
            ("[INVALID]", "[invalid]", true),
            ("18.\n", "18\n", true),
            ("18..", "18", false),
        ] {
            assert_eq!(is_same(found, gold), same, "{found} {gold}");
        }
    }
}
