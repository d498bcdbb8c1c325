//! Judges LaTeX answers: normalises them and compares them as text, like lm-evaluation-harness (`hendrycks_math/utils.py`,
//! `aime/utils.py`, `minerva_math/utils.py`, 0.4.13).
//!
//! The harness's Minerva task then asks sympy whether two different normal forms are equal, and additionally uses the library
//! math-verify. Neither is reproduced: answers whose text differs are wrong here, under a metric of its own (`string_match`),
//! which is never above the harness's `exact_match`.
//!
//! The tests compare verdicts with those of the harness's own code, which `tests/fixtures/eval/written.py` recorded.

use std::sync::LazyLock;

use fancy_regex::Regex;
use serde_json::Value;

use super::{MAX_NEW_TOKENS, Spec, Verdict};
use crate::error::{Error, Result};
use crate::eval::requests::is_python_space;
use crate::format::beginning;

/// `hendrycks_math/*.yaml`, version 1. The data are the published solution, with its answer in a box.
///
/// `exact_match` is the harness's: it takes the text between the first and the last dollar sign of the answer. `boxed_match`
/// takes the content of its last box, as for AIME, which suits models that write boxes.
pub const HENDRYCKS: Spec =
    Spec { stops: &["Problem:"], max_new_tokens: MAX_NEW_TOKENS, few_shot: 0, primary: "exact_match", check: hendrycks };

/// `minerva_math/*.yaml`, version 3.1. The data are the published solution.
pub const MINERVA: Spec =
    Spec { stops: &["Problem:"], max_new_tokens: MAX_NEW_TOKENS, few_shot: 4, primary: "string_match", check: minerva };

/// `aime/aime24.yaml` and its siblings, version 0. The data are the answer.
pub const AIME: Spec = Spec {
    stops: &["Question:", "</s>", "<|im_end|>", "<|eot_id|>"],
    max_new_tokens: 32768,
    few_shot: 0,
    primary: "exact_match",
    check: aime,
};

fn hendrycks(data: &Value, answer: &str) -> Result<Vec<Verdict>> {
    let gold = boxed_answer(text(data)?)?;
    Ok(vec![
        Verdict::of_answer("exact_match", is_equivalent(between_dollars(answer), gold)),
        Verdict::of_answer("boxed_match", is_equivalent(in_box_or_dollars(answer), gold)),
    ])
}

fn aime(data: &Value, answer: &str) -> Result<Vec<Verdict>> {
    Ok(vec![Verdict::of_answer("exact_match", is_equivalent(in_box_or_dollars(answer), text(data)?))])
}

fn minerva(data: &Value, answer: &str) -> Result<Vec<Verdict>> {
    let (gold, found) = (minerva_forms()?.of(boxed_answer(text(data)?)?)?, minerva_normal_form(answer)?);
    Ok(vec![Verdict::of_answer("string_match", !found.is_empty() && found == gold)])
}

/// The final answer in Minerva's normal form.
pub(super) fn minerva_normal_form(answer: &str) -> Result<String> {
    minerva_forms()?.of(&final_answer(answer)?)
}

/// The answer in the last box of a published solution.
pub fn boxed_answer(solution: &str) -> Result<&str> {
    let boxed = last_box(solution).and_then(without_box);
    boxed.ok_or_else(|| {
        Error::new(format!("expected a solution with its answer in a \\boxed{{..}}, found none in `{}`", beginning(solution, 60)))
    })
}

fn text(data: &Value) -> Result<&str> {
    data.as_str().ok_or_else(|| Error::new("expected a text to judge the answer by"))
}

/// The text between the first and the last dollar sign; all of it if there are fewer than two.
fn between_dollars(answer: &str) -> &str {
    match (answer.find('$'), answer.rfind('$')) {
        (Some(first), Some(last)) if first < last => &answer[first + 1..last],
        _ => answer,
    }
}

/// The content of the last box; if there is no valid box, the text between dollar signs.
fn in_box_or_dollars(answer: &str) -> &str {
    last_box(answer).and_then(without_box).unwrap_or_else(|| between_dollars(answer))
}

/// The harness's `last_boxed_only_string`: `\boxed 7` up to a dollar sign, or the last `\boxed{..}` or `\fbox{..}` with balanced
/// braces.
fn last_box(text: &str) -> Option<&str> {
    if let Some(at) = text.rfind("\\boxed ") {
        let end = text[at..].find('$').map_or(text.len(), |end| at + end);
        return Some(&text[at..end]);
    }
    let at = text.rfind("\\boxed").or_else(|| text.rfind("\\fbox"))?;
    let mut open = 0i64;
    for (idx, byte) in text.bytes().enumerate().skip(at) {
        match byte {
            b'{' => open += 1,
            b'}' => {
                open -= 1;
                if open == 0 {
                    return Some(&text[at..=idx]);
                }
            }
            _ => {}
        }
    }
    None
}

/// The harness's `remove_boxed`; `None` where that fails.
fn without_box(boxed: &str) -> Option<&str> {
    const SPACED: &str = "\\boxed ";
    match boxed.contains(SPACED) {
        true => boxed.strip_prefix(SPACED),
        false => boxed.strip_prefix("\\boxed{")?.strip_suffix('}'),
    }
}

/// The harness's `is_equiv`: equal normal forms, or equal texts if one has none.
fn is_equivalent(a: &str, b: &str) -> bool {
    match (normal_form(a), normal_form(b)) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// The harness's `strip_string`; `None` where that fails.
fn normal_form(text: &str) -> Option<String> {
    let mut text = text.replace('\n', "").replace("\\!", "").replace("\\\\", "\\");
    for fraction in ["tfrac", "dfrac"] {
        text = text.replace(fraction, "frac");
    }
    for gone in ["\\left", "\\right", "^{\\circ}", "^\\circ", "\\$"] {
        text = text.replace(gone, "");
    }
    // Removes units on the right.
    if let Some((before, after)) = text.split_once("\\text{ ") {
        if after.contains("\\text{ ") {
            return None;
        }
        text = before.to_owned();
    }
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.");
    if text.is_empty() {
        return Some(text);
    }
    if text.starts_with('.') {
        text.insert(0, '0');
    }
    // Removes the left side of "k = 7".
    if let Some((before, after)) = text.split_once('=')
        && !after.contains('=')
        && before.chars().count() <= 2
    {
        text = after.to_owned();
    }
    text = with_braced_roots(&text)?.replace(' ', "");
    text = with_braced_fractions(&text)?;
    if text == "0.5" {
        return Some("\\frac{1}{2}".to_owned());
    }
    with_slash_as_fraction(text)
}

/// `\sqrt3` -> `\sqrt{3}`
fn with_braced_roots(text: &str) -> Option<String> {
    let mut pieces = text.split("\\sqrt");
    let mut whole = pieces.next()?.to_owned();
    for piece in pieces {
        let first = piece.chars().next()?;
        let rest = &piece[first.len_utf8()..];
        match first {
            '{' => whole += &format!("\\sqrt{piece}"),
            _ => whole += &format!("\\sqrt{{{first}}}{rest}"),
        }
    }
    Some(whole)
}

/// `\frac12` -> `\frac{1}{2}`, `\frac1{72}` -> `\frac{1}{72}`; the text is unchanged if too little follows a `\frac`.
fn with_braced_fractions(text: &str) -> Option<String> {
    let mut pieces = text.split("\\frac");
    let mut whole = pieces.next()?.to_owned();
    for piece in pieces {
        let mut chars = piece.chars();
        let first = chars.next()?;
        if first == '{' {
            whole += &format!("\\frac{piece}");
            continue;
        }
        let Some(second) = chars.next() else { return Some(text.to_owned()) };
        let rest = chars.as_str();
        match second {
            '{' => whole += &format!("\\frac{{{first}}}{{{rest}"),
            _ => whole += &format!("\\frac{{{first}}}{{{second}}}{rest}"),
        }
    }
    Some(whole)
}

/// `1/2` -> `\frac{1}{2}` if both are integers as Python writes them. A single slash between anything else makes the original
/// fail.
fn with_slash_as_fraction(text: String) -> Option<String> {
    let Some((a, b)) = text.split_once('/').filter(|(_, b)| !b.contains('/')) else { return Some(text) };
    if !is_python_int(a) || !is_python_int(b) {
        return None;
    }
    let is_canonical = |number: &str| {
        let digits = number.strip_prefix('-').unwrap_or(number);
        digits.bytes().all(|byte| byte.is_ascii_digit()) && (number == "0" || !digits.starts_with('0'))
    };
    Some(if is_canonical(a) && is_canonical(b) { format!("\\frac{{{a}}}{{{b}}}") } else { text })
}

/// Does Python's `int(text)` accept it?
fn is_python_int(text: &str) -> bool {
    let digits = text.trim_matches(is_python_space);
    let digits = digits.strip_prefix(['+', '-']).unwrap_or(digits);
    digits.split('_').all(|group| !group.is_empty() && group.chars().all(char::is_numeric))
}

/// The harness's `get_unnormalized_answer`: the answer in the sentence with which Minerva's examples end.
fn final_answer(answer: &str) -> Result<String> {
    let forms = minerva_forms()?;
    let text = format!("{answer}I hope it is correct.");
    let found = forms.sentence.captures(&text).map_err(too_long)?;
    let found = found.and_then(|found| found.get(1).map(|found| found.as_str().trim_matches(is_python_space).to_owned()));
    Ok(found.unwrap_or_else(|| "[invalidanswer]".to_owned()))
}

const SUBSTITUTIONS: [(&str, &str); 10] = [
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
];

const REMOVED: [&str; 42] = [
    "square",
    "ways",
    "integers",
    "dollars",
    "mph",
    "inches",
    "ft",
    "hours",
    "km",
    "units",
    "\\ldots",
    "sue",
    "points",
    "feet",
    "minutes",
    "digits",
    "cents",
    "degrees",
    "cm",
    "gm",
    "pounds",
    "meters",
    "meals",
    "edges",
    "students",
    "childrentickets",
    "multiples",
    "\\text{s}",
    "\\text{.}",
    "\\text{\ns}",
    "\\text{}^2",
    "\\text{}^3",
    "\\text{\n}",
    "\\text{}",
    "\\mathrm{th}",
    "^\\circ",
    "^{\\circ}",
    "\\;",
    ",\\!",
    "{,}",
    "\"",
    "\\dots",
];

/// The patterns of `minerva_math/utils.py`, whose syntax is the same here as in Python.
struct MinervaForms {
    sentence: Regex,
    words: Vec<Regex>,
    commands: Regex,
    rewrites: Vec<(Regex, &'static str)>,
    thousands: Regex,
}

static MINERVA_FORMS: LazyLock<Result<MinervaForms, String>> =
    LazyLock::new(|| MinervaForms::compile().map_err(|error| error.to_string()));

fn minerva_forms() -> Result<&'static MinervaForms> {
    MINERVA_FORMS.as_ref().map_err(|error| Error::new("a pattern cannot be read").caused_by(Error::new(error.clone())))
}

fn too_long(error: fancy_regex::Error) -> Error {
    Error::new("an answer cannot be normalised").caused_by(error)
}

fn is_word(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphabetic())
}

impl MinervaForms {
    fn compile() -> Result<MinervaForms, fancy_regex::Error> {
        let words = REMOVED.iter().filter(|word| is_word(word)).map(|word| Regex::new(&format!(r"(?<!\\)\b{word}\b")));
        let rewrites = [
            (r"(.*?)(\$)(.*?)(\$)(.*)", "$$${3}$$"),
            (r"(\\text\{)(.*?)(\})", "${2}"),
            (r"(\\textbf\{)(.*?)(\})", "${2}"),
            (r"(\\overline\{)(.*?)(\})", "${2}"),
            (r"(\\boxed\{)(.*)(\})", "${2}"),
            (r"(frac)([^{])(.)", "frac{${2}}{${3}}"),
            (r"(sqrt)(\[[^\]]*\])(\w)", "${1}${2}{${3}}"),
            (r"(sqrt)(?!\[)([^{])", "sqrt{${2}}"),
        ];
        Ok(MinervaForms {
            sentence: Regex::new(r"Final Answer: The final answer is(.*?). I hope it is correct.")?,
            words: words.collect::<Result<_, _>>()?,
            commands: Regex::new(r"\\[a-zA-Z]+")?,
            rewrites: rewrites
                .into_iter()
                .map(|(pattern, by)| Regex::new(pattern).map(|regex| (regex, by)))
                .collect::<Result<_, _>>()?,
            thousands: Regex::new(r"\A-?\d{1,3}(,\d{3})+\z")?,
        })
    }

    /// The harness's `normalize_final_answer`.
    fn of(&self, answer: &str) -> Result<String> {
        let mut text = answer.rsplit('=').next().unwrap_or(answer).to_owned();
        for word in &self.words {
            text = word.try_replacen(&text, 0, "").map_err(too_long)?.into_owned();
        }
        for (before, after) in SUBSTITUTIONS {
            text = text.replace(before, after);
        }
        for gone in REMOVED {
            text = if is_word(gone) { self.without(&text, gone)? } else { text.replace(gone, "") };
        }
        for (pattern, by) in &self.rewrites {
            text = pattern.try_replacen(&text, 0, *by).map_err(too_long)?.into_owned();
        }
        text = text.replace('$', "");
        Ok(if self.thousands.is_match(&text).map_err(too_long)? { text.replace(',', "") } else { text })
    }

    /// The text without this word, except where it is part of a LaTeX command.
    fn without(&self, text: &str, word: &str) -> Result<String> {
        let (mut whole, mut at) = (String::with_capacity(text.len()), 0);
        for command in self.commands.find_iter(text) {
            let command = command.map_err(too_long)?;
            whole += &text[at..command.start()].replace(word, "");
            whole += command.as_str();
            at = command.end();
        }
        Ok(whole + &text[at..].replace(word, ""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_found_and_opened() {
        let check = |text: &str, inside: Option<&str>| assert_eq!(last_box(text).and_then(without_box), inside, "{text}");
        check(r"so $\boxed{\frac{1}{2}}$ and \boxed{3}.", Some("3"));
        check(r"\boxed{\sqrt{2} + {1}} $", Some(r"\sqrt{2} + {1}"));
        check(r"$\boxed 7$ or so", Some("7"));
        check(r"\fbox{7}", None);
        check(r"\boxed{7", None);
        check("7", None);
    }

    #[test]
    fn normal_forms_of_hendrycks() {
        let check = |text: &str, form: Option<&str>| assert_eq!(normal_form(text).as_deref(), form, "{text}");
        check(r"x = \tfrac12", Some(r"\frac{1}{2}"));
        check(r"\dfrac1{72}", Some(r"\frac{1}{72}"));
        check("1/2", Some(r"\frac{1}{2}"));
        check("01/2", Some("01/2"));
        // The cases in which the original fails: the text is then compared as it is.
        check("x/2", None);
        check(r"\sqrt", None);
        check(r"5\text{ cm}\text{ s}", None);
        check(r"5\text{ cm}", Some("5"));
        check(r"\sqrt2 + \left( .5 \right)", Some(r"\sqrt{2}+(0.5)"));
        check("0.5", Some(r"\frac{1}{2}"));
        check(r"50\%", Some("50"));
        check(r"90^\circ", Some("90"));
        check("abc = 3", Some("abc=3"));
        check("", Some(""));
    }

    #[test]
    fn minerva_reads_the_sentence_and_strips_units() {
        let right = |answer: &str, solution: &str| minerva(&solution.into(), answer).unwrap()[0].right == 1;
        let solution = r"Hence \boxed{1,000}.";
        assert!(right("So..\nFinal Answer: The final answer is $1000$. I hope it is correct.", solution));
        assert!(right("Final Answer: The final answer is $x = 1000$ units. I hope it is correct.", solution));
        assert!(!right("The final answer is $1000$. I hope it is correct.", solution));
        assert!(!right("1000", solution));
        let forms = minerva_forms().unwrap();
        for (answer, form) in [
            (r"2\pi cm", r"2\pi"),
            (r"$\frac12$", r"\frac{1}{2}"),
            (r"\sqrt[3]8", r"\sqrt[3]{8}"),
            (r"\left(0,1\right)", r"\left(0,1\right)"),
            ("12,345,678", "12345678"),
            (r"\text{Evelyn}", "Evelyn"),
        ] {
            assert_eq!(forms.of(answer).unwrap(), form, "{answer}");
        }
    }
}
