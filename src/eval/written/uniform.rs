//! Judges answers to a user's own questions: `{"id", "prompt" | "messages", "answer" | "answers", "match": "exact" | "number" |
//! "contains" | "regex"}`.
//!
//! It suffices to match one of several answers. `exact`, the default, compares the whole text and `number` its last number, both
//! without surrounding white space; `contains` finds the answer anywhere; `regex` is a pattern in the syntax of Rust's
//! `fancy-regex`. Matching is case-sensitive.

use fancy_regex::Regex;
use serde_json::{Map, Value, json};

use super::{MAX_NEW_TOKENS, Spec, Verdict};
use crate::error::{Error, Result};
use crate::json::expected;

/// How answers to a user's own questions are generated and judged.
pub const SPEC: Spec = Spec { stops: &[], max_new_tokens: MAX_NEW_TOKENS, few_shot: 0, primary: "match", check };

const MATCHES: [&str; 4] = ["exact", "number", "contains", "regex"];

/// The data for `check` from a row.
pub fn data(row: &Map<String, Value>) -> Result<Value> {
    let how = match row.get("match") {
        None | Some(Value::Null) => MATCHES[0],
        Some(Value::String(how)) if MATCHES.contains(&how.as_str()) => how,
        Some(other) => return Err(expected("match", "exact, number, contains or regex", other)),
    };
    let answers = match (row.get("answer"), row.get("answers")) {
        (Some(_), Some(_)) => return Err(Error::new("expected `answer` or `answers`, found both")),
        (Some(single), None) => std::slice::from_ref(single),
        (None, Some(Value::Array(several))) => several.as_slice(),
        (None, Some(other)) => return Err(expected("answers", "a list", other)),
        (None, None) => return Err(Error::new("expected `answer` or `answers` to judge what is written, found neither")),
    };
    let text = |answer: &Value| {
        let text = match answer {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            other => return Err(expected("answer", "a text or a number", other)),
        };
        match how {
            _ if text.trim().is_empty() => Err(Error::new("an answer is empty")),
            "number" if number_of(&text).is_none() => Err(expected("answer", "a number, as `match` says", answer)),
            "regex" => compile(&text).map(|_| text),
            _ => Ok(text),
        }
    };
    let answers: Vec<String> = answers.iter().map(text).collect::<Result<_>>()?;
    match answers.is_empty() {
        true => Err(Error::new("`answers` is an empty list: no answer could be right")),
        false => Ok(json!({"match": how, "answers": answers})),
    }
}

fn check(data: &Value, written: &str) -> Result<Vec<Verdict>> {
    let (Some(how), Some(answers)) = (data["match"].as_str(), data["answers"].as_array()) else {
        return Err(Error::new("expected `match` and `answers`"));
    };
    let found = last_number(written);
    let is_right = |answer: &str| match how {
        "number" => Ok(found.is_some() && found == number_of(answer)),
        "contains" => Ok(written.contains(answer)),
        "regex" => compile(answer)?.is_match(written).map_err(|error| {
            Error::new(format!("the pattern `{answer}` takes too long on an answer")).caused_by(error).cure("Write it simpler.")
        }),
        _ => Ok(written.trim() == answer.trim()),
    };
    let verdicts = answers.iter().filter_map(Value::as_str).map(is_right).collect::<Result<Vec<bool>>>()?;
    Ok(vec![Verdict::of_answer("match", verdicts.contains(&true))])
}

fn compile(pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|error| Error::new(format!("the pattern `{pattern}` cannot be read")).caused_by(error))
}

/// The last number in a text. Commas may group its digits; a minus is a sign unless a word or a number precedes it.
fn last_number(text: &str) -> Option<f64> {
    let bytes = text.as_bytes();
    let mut last = None;
    let mut at = 0;
    while at < bytes.len() {
        if !bytes[at].is_ascii_digit() {
            at += 1;
            continue;
        }
        // `.5` is also a number, but not after a character that may end a sentence or a range.
        let begins_number = |c: char| c.is_whitespace() || is_sign(c) || "+(=".contains(c) || is_currency(c);
        let begin = match text[..at].strip_suffix('.') {
            Some(before) if before.chars().next_back().is_none_or(begins_number) => at - 1,
            _ => at,
        };
        let end = end_of_number(bytes, at);
        // The sign may precede a currency symbol.
        let before = text[..begin].strip_suffix(is_currency).unwrap_or(&text[..begin]);
        let ends_term = |c: char| c.is_alphanumeric() || ")]}".contains(c);
        let is_negative = before.strip_suffix(is_sign).is_some_and(|before| !before.ends_with(ends_term));
        last = match is_negative {
            true => number_of(&format!("-{}", &text[begin..end])),
            false => number_of(&text[begin..end]),
        };
        at = end;
    }
    last
}

fn is_sign(c: char) -> bool {
    matches!(c, '-' | '\u{2212}')
}

fn is_currency(c: char) -> bool {
    "$€£¥₹".contains(c)
}

/// The end of the number whose first digit is at `at`: digits, groups of three after commas, decimals, an exponent.
fn end_of_number(bytes: &[u8], mut at: usize) -> usize {
    let digits = |from: usize| bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    at += digits(at);
    while bytes.get(at) == Some(&b',') && digits(at + 1) == 3 {
        at += 4;
    }
    if bytes.get(at) == Some(&b'.') && digits(at + 1) > 0 {
        at += 1 + digits(at + 1);
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
        if at + 1 + sign < bytes.len() && digits(at + 1 + sign) > 0 {
            at += 1 + sign + digits(at + 1 + sign);
        }
    }
    at
}

/// The number that the whole text represents, with an optional dollar sign before and a per cent sign after it.
fn number_of(text: &str) -> Option<f64> {
    let text = text.trim().replace(',', "").replace('\u{2212}', "-");
    let text = text.trim_end_matches('%').replacen('$', "", 1);
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_right(row: Value, written: &str) -> bool {
        let data = data(row.as_object().unwrap()).unwrap();
        check(&data, written).unwrap()[0] == Verdict::of_answer("match", true)
    }

    #[test]
    fn each_match_finds_its_answer() {
        let exact = || json!({"answer": "Paris"});
        assert!(is_right(exact(), " Paris\n") && !is_right(exact(), "paris") && !is_right(exact(), "Paris."));
        let several = || json!({"answers": ["four", 4], "match": "contains"});
        assert!(is_right(several(), "It is four.") && is_right(several(), "It is 4.") && !is_right(several(), "It is Four."));
        let pattern = || json!({"answer": r"(?i)^the answer is (?!no)\w+$", "match": "regex"});
        assert!(is_right(pattern(), "The answer is yes") && !is_right(pattern(), "The answer is no"));
        let number = || json!({"answer": 1250, "match": "number"});
        for written in ["1250", "2 and then $1,250.", "so 1250.0 in all", "x = 1.25e3", "= 1,250\n"] {
            assert!(is_right(number(), written), "{written}");
        }
        for written in ["1251", "none", "1250 or 3", "-1250", "1,25,0"] {
            assert!(!is_right(number(), written), "{written}");
        }
    }

    #[test]
    fn a_minus_is_a_sign_or_a_difference() {
        for (text, number) in [("5-3", 3.0), ("is -3", -3.0), ("(a)-2", 2.0), ("−7", -7.0), ("= -.5", -0.5), ("v1.2", 1.2)] {
            assert_eq!(last_number(text), Some(number), "{text}");
        }
        for (text, number) in [("-$5", -5.0), ("$-5", -5.0), ("is −€5", -5.0), ("10-$5", 5.0), ("$.5", 0.5), ("(.5)", 0.5)] {
            assert_eq!(last_number(text), Some(number), "{text}");
        }
        for (text, number) in [("so...5", 5.0), ("...5", 5.0), ("3..5", 5.0), ("x.5", 5.0), ("Yes.5", 5.0), (".5", 0.5)] {
            assert_eq!(last_number(text), Some(number), "{text}");
        }
        // A date is not a number with commas.
        assert_eq!(last_number("2,0,14"), Some(14.0));
        assert_eq!(last_number("3e"), Some(3.0));
    }

    #[test]
    fn rows_that_no_answer_could_satisfy_are_refused() {
        let refused = |row: Value, what: &str| {
            let error = data(row.as_object().unwrap()).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        refused(json!({}), "found neither");
        refused(json!({"answer": "a", "answers": ["b"]}), "found both");
        refused(json!({"answers": []}), "empty list");
        refused(json!({"answer": " "}), "is empty");
        refused(json!({"answer": ["a"]}), "a text or a number, found [\"a\"]");
        refused(json!({"answer": "six", "match": "number"}), "a number");
        refused(json!({"answer": "(", "match": "regex"}), "`(` cannot be read");
        refused(json!({"answer": "a", "match": "fuzzy"}), "exact, number, contains or regex, found \"fuzzy\"");
    }
}
