//! Reads what a row excludes from the loss: switches on turns, on parts of a content, and on the row.
//!
//! ```text
//! turn, part   weight, loss_weight, loss_scale     a weight of 0 or more in the loss; 0 is not supervised         OpenAI, ms-swift
//!              train, training, loss               true or false, or such a number                               axolotl, ms-swift
//!              mask, masked                        true: not supervised                                          torchtune
//! turn         train_detail, training_detail       [{"begin_offset", "end_offset", "train"}], in characters, both ends included; text
//!                                                  outside all ranges is not supervised                          axolotl
//! row          loss_mask                           [0, 1, ..], one for each answer or for each turn              LLaMA-Factory
//!              label, kto_tag                      false: a rejected answer                                      TRL, LLaMA-Factory
//!              chat_template_kwargs                {"enable_thinking": false}, passed to the template            TRL
//! ```
//!
//! Contradictory switches are refused. A key that looks like a switch but is none of these is kept in [`Example::unused`](super::Example::unused)
//! and reported by the audit, lest users train on what they believe is excluded.

use serde_json::Value;

use super::example::{Role, Turn, WeightedPart};
use super::fields::{Object, list, object, wrong_type};
use super::literal::is_nothing;
use crate::error::{Error, Result};

/// Switches of a turn or a part for which true means exclusion from the loss.
pub(super) const MASKS: [&str; 2] = ["mask", "masked"];
/// All switches of a turn or a part; those that are not [`MASKS`] give a weight.
pub(super) const NAMES: [&str; 8] = ["weight", "loss_weight", "loss_scale", "train", "training", "loss", "mask", "masked"];
pub(super) const DETAILS: [&str; 2] = ["train_detail", "training_detail"];
pub(super) const LOSS_MASK: &str = "loss_mask";
pub(super) const LABELS: [&str; 2] = ["label", "kto_tag"];
pub(super) const TEMPLATE_SWITCHES: &str = "chat_template_kwargs";

/// Whether the name suggests an effect on the loss or input other than text, such as `isTrainable`, `completion_mask` and `images`.
pub(super) fn looks_like_switch(key: &str) -> bool {
    const WORDS: [&str; 7] = ["loss", "mask", "train", "weight", "supervis", "learn", "ignore"];
    const WHOLE: [&str; 13] = [
        "label",
        "labels",
        "kto_tag",
        "image",
        "images",
        "audio",
        "audios",
        "video",
        "videos",
        "mm_inputs",
        "kwargs",
        "skip",
        "exclude",
    ];
    let lower = key.to_ascii_lowercase();
    // A word begins after a non-alphanumeric character, and with a capital after a lower-case letter.
    let begins_word = |at: usize| {
        let (before, first) = (key[..at].chars().next_back(), key[at..].chars().next());
        before.is_none_or(|before| !before.is_alphanumeric() || (before.is_lowercase() && first.is_some_and(char::is_uppercase)))
    };
    let has_word = |word: &str| lower.match_indices(word).any(|(at, _)| begins_word(at));
    lower.ends_with("_kwargs") || WHOLE.contains(&lower.as_str()) || WORDS.iter().any(|word| has_word(word))
}

/// Whether the value is null or empty.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty() || is_nothing(value),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        _ => false,
    }
}

/// Adds the keys of an object that look like switches and were not used, including those in its nested metadata, to `unused`.
pub(super) fn note_unused(at: &Object, used: &[&str], path: &str, unused: &mut Vec<String>) {
    for (key, value) in at.iter().filter(|(key, value)| !used.contains(&key.as_str()) && !is_empty(value)) {
        if looks_like_switch(key) {
            unused.push(format!("{path}{key}"));
        } else if let (Value::Object(about), true) = (value, ["meta", "extra"].iter().any(|begin| key.starts_with(begin))) {
            note_unused(about, &[], &format!("{path}{key}."), unused);
        }
    }
}

/// Combines the switches of one turn or part into one weight, or `None` if there are none.
///
/// `true` is compatible with any weight but 0: `"train": true, "weight": 0.5` is no contradiction.
pub(super) fn weight(at: &Object, path: &str) -> Result<Option<f32>> {
    let mut agreed: Option<(&str, f32, bool)> = None;
    for key in NAMES {
        let Some(value) = at.get(key).filter(|value| !is_nothing(value)) else { continue };
        let is_mask = MASKS.contains(&key);
        let (weight, is_exact) = match value {
            Value::Bool(value) => (if *value != is_mask { 1.0 } else { 0.0 }, false),
            // Both meanings of 1 are in use: masked, and supervised as in `loss_mask`.
            Value::Number(number) if is_mask => {
                return Err(Error::new(format!("`{path}{key}`: expected true or false, found {number}, which is ambiguous"))
                    .cure("Use `weight` instead: 0 excludes from the loss, 1 includes."));
            }
            Value::Number(number) => (number.as_f64().unwrap_or(f64::NAN) as f32, true),
            other => return Err(wrong_type(&format!("{path}{key}"), "a finite number of 0 or more, or a boolean", other)),
        };
        if !weight.is_finite() || weight < 0.0 {
            return Err(Error::new(format!("`{path}{key}`: expected a finite number from 0, found {value}")));
        }
        // A number that rounds to 0 would be taken for exclusion.
        if weight == 0.0 && value.as_f64().is_some_and(|number| number != 0.0) {
            return Err(Error::new(format!("`{path}{key}`: expected 0 or a number from 1e-45, found {value}")));
        }
        agreed = match agreed {
            None => Some((key, weight, is_exact)),
            Some((other, its, exact)) if (its == 0.0) != (weight == 0.0) || (exact && is_exact && its != weight) => {
                return Err(Error::new(format!(
                    "`{path}{other}` and `{path}{key}` contradict each other: {} and {value}",
                    at.get(other).unwrap_or(&Value::Null)
                ))
                .cure("Keep only one of them."));
            }
            Some(known) if is_exact && !known.2 => Some((key, weight, true)),
            known => known,
        };
    }
    Ok(agreed.map(|(_, weight, _)| weight))
}

/// Applies the switches of a message to its turn.
pub(super) fn of_turn(turn: &mut Turn, message: &Object, path: &str, unused: &mut Vec<String>) -> Result<()> {
    let mut used: Vec<&str> = Vec::new();
    if let Some(weight) = weight(message, path)? {
        turn.weight = weight;
        turn.written.has_switch = true;
        if let Some(part) = turn.parts.iter().find(|part| part.weight > 0.0 && weight != 1.0 && part.weight != weight) {
            return Err(Error::new(format!(
                "`{}` contradicts the switch of a part of its content: a weight of {weight}, and one of {}",
                path.trim_end_matches('.'),
                part.weight
            ))
            .cure("Keep only one of them."));
        }
        // Only answers are supervised, so that in another turn a weight of 0 is followed and any other is not.
        if turn.role == Role::Assistant || weight == 0.0 {
            used.extend(NAMES);
        }
    }
    for key in DETAILS {
        let is_said = |value: &&Value| !is_nothing(value) && value.as_str() != Some("");
        if let Some(value) = message.get(key).filter(is_said) {
            add_details(turn, value, &format!("{path}{key}"))?;
            // Only answers are supervised.
            if turn.role == Role::Assistant || turn.parts.iter().all(|part| part.weight == 0.0) {
                used.push(key);
            }
        }
    }
    note_unused(message, &used, path, unused);
    Ok(())
}

/// Adds axolotl's `train_detail`, whose offsets count characters and include both ends. Text of an answer outside its ranges is not supervised
/// (`get_offsets_for_train_detail` in its prompt_strategies/chat_template.py).
fn add_details(turn: &mut Turn, value: &Value, path: &str) -> Result<()> {
    let n_chars = turn.content.chars().count();
    let details = list(value, path)?;
    if details.is_empty() {
        return Err(Error::new(format!(
            "`{path}`: expected at least one range, found an empty list, from which axolotl learns nothing"
        ))
        .cure("Remove the key to learn the whole turn, or set `weight` to 0."));
    }
    let mut pieces: Vec<(usize, usize, f32)> = Vec::new();
    for (idx, detail) in details.iter().enumerate() {
        let path = format!("{path}[{idx}]");
        let detail = object(detail, &path)?;
        let offset = |key: &str| {
            let value = detail.get(key).unwrap_or(&Value::Null);
            let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
            number.ok_or_else(|| Error::new(format!("`{path}.{key}`: expected a character index of 0 or more, found {value}")))
        };
        let (first, last) = (offset("begin_offset")?, offset("end_offset")?);
        if first > last || last >= n_chars {
            return Err(Error::new(format!(
                "`{path}`: expected begin_offset <= end_offset < {n_chars}, the characters of the content, found {first} and {last}"
            )));
        }
        let Some(Value::Bool(is_trained)) = detail.get("train") else {
            let found = detail.get("train").unwrap_or(&Value::Null);
            return Err(Error::new(format!("`{path}.train`: expected true or false, found {found}")));
        };
        let byte = |n: usize| turn.content.char_indices().nth(n).map_or(turn.content.len(), |(at, _)| at);
        if *is_trained && turn.weight == 0.0 {
            return Err(Error::new(format!("`{path}.train` contradicts the switch of its turn: true, and a weight of 0"))
                .cure("Keep only one of them."));
        }
        let weight = if *is_trained { turn.weight } else { 0.0 };
        let (begin, end) = (byte(first), byte(last + 1));
        if pieces.iter().any(|&(other, its_end, its)| begin < its_end && other < end && its != weight) {
            return Err(Error::new(format!("`{path}` overlaps an earlier range")).cure("Put each character into only one range."));
        }
        pieces.push((begin, end, weight));
    }
    pieces.sort_unstable_by_key(|&(begin, end, _)| (begin, end));
    let mut at = 0;
    let mut parts: Vec<WeightedPart> = Vec::new();
    for (begin, end, weight) in pieces.into_iter().chain([(turn.content.len(), turn.content.len(), 0.0)]) {
        if at < begin && turn.role == Role::Assistant {
            parts.push(WeightedPart { begin: at, end: begin, weight: 0.0 });
        }
        if begin < end {
            parts.push(WeightedPart { begin, end, weight });
        }
        at = at.max(end);
    }
    turn.parts.append(&mut parts);
    Ok(())
}

/// Applies the switches of the row to its turns. Returns the variables for the template.
pub(super) fn of_row(row: &Object, turns: &mut [Turn], unused: &mut Vec<String>) -> Result<Option<Value>> {
    let mut used: Vec<&str> = Vec::new();
    if let Some(value) = row.get(LOSS_MASK).filter(|value| !is_empty(value)) {
        if turns.iter().any(|turn| turn.role == Role::Text) {
            return Err(Error::new(format!("`{LOSS_MASK}`: a plain text has no turns to exclude"))
                .cure("Provide the row as messages, with `weight` on each turn."));
        }
        add_loss_mask(value, turns)?;
        used.push(LOSS_MASK);
    }
    for key in LABELS {
        let Some(is_wanted) = row.get(key).and_then(truth) else { continue };
        used.push(key);
        for turn in turns.iter_mut().filter(|turn| !is_wanted && matches!(turn.role, Role::Assistant | Role::Text)) {
            if is_asked_for(turn) {
                return Err(Error::new(format!(
                    "`{key}` contradicts a turn's own switch: false, and a weight of {}",
                    turn.weight
                ))
                .cure("Keep only one of them."));
            }
            turn.mask();
        }
    }
    // NVIDIA's files list the speakers that are not supervised.
    if let Some(Value::String(names)) = row.get("mask") {
        let is_asker = |name: &str| matches!(super::roles::usual(name), Some((Role::User | Role::System | Role::Tool, _)));
        if names.split(',').all(|name| is_asker(name.trim())) {
            used.push("mask");
        }
    }
    let switches = match row.get(TEMPLATE_SWITCHES) {
        None => None,
        Some(nothing) if is_nothing(nothing) => None,
        Some(Value::Object(switches)) if switches.is_empty() => None,
        Some(Value::Object(switches)) => Some(Value::Object(switches.clone())),
        Some(Value::String(text)) if text.trim().is_empty() => None,
        Some(Value::String(text)) => match super::fields::embedded(text) {
            Ok(switches @ Value::Object(_)) => Some(switches),
            _ => return Err(wrong_type(TEMPLATE_SWITCHES, "an object of template variables", &row[TEMPLATE_SWITCHES])),
        },
        Some(other) => return Err(wrong_type(TEMPLATE_SWITCHES, "an object of template variables", other)),
    };
    used.push(TEMPLATE_SWITCHES);
    note_unused(row, &used, "", unused);
    Ok(switches)
}

/// Parses a boolean, also as a word in a table that holds only text.
fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(value) => Some(*value),
        Value::String(word) if word.eq_ignore_ascii_case("true") => Some(true),
        Value::String(word) if word.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// Whether the turn's own switch asks for supervision.
fn is_asked_for(turn: &Turn) -> bool {
    turn.role == Role::Assistant && turn.written.has_switch && turn.weight > 0.0
}

fn add_loss_mask(value: &Value, turns: &mut [Turn]) -> Result<()> {
    let mask = list(value, LOSS_MASK)?;
    let answers: Vec<usize> = (0..turns.len()).filter(|&turn| turns[turn].role == Role::Assistant).collect();
    let targets: Vec<usize> = match mask.len() {
        n if n == answers.len() => answers,
        n if n == turns.len() => (0..n).collect(),
        n => {
            return Err(Error::new(format!(
                "`{LOSS_MASK}`: expected {} values, one for each answer, or {}, one for each turn, found {n}",
                answers.len(),
                turns.len()
            ))
            .cure("Set `weight` on the turns instead."));
        }
    };
    for (idx, (value, turn)) in mask.iter().zip(targets).enumerate() {
        let turn = &mut turns[turn];
        let is_learnt = match value {
            Value::Bool(is_learnt) => *is_learnt,
            Value::Number(number) if number.as_f64() == Some(0.0) => false,
            Value::Number(number) if number.as_f64() == Some(1.0) => true,
            other => return Err(Error::new(format!("`{LOSS_MASK}[{idx}]`: expected 0 or 1, found {other}"))),
        };
        if !is_learnt && is_asked_for(turn) {
            return Err(Error::new(format!(
                "`{LOSS_MASK}[{idx}]` contradicts the turn's own switch: {value}, and a weight of {}",
                turn.weight
            ))
            .cure("Keep only one of them."));
        } else if !is_learnt {
            turn.mask();
        } else if turn.role != Role::Assistant {
            return Err(Error::new(format!("`{LOSS_MASK}[{idx}]`: asks to learn a turn that is not an answer"))
                .cure("Only assistant turns can be chosen individually; --supervise all learns the whole text."));
        } else if turn.weight == 0.0 {
            return Err(Error::new(format!("`{LOSS_MASK}[{idx}]` contradicts the turn's own switch: 1, and a weight of 0"))
                .cure("Keep only one of them."));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::chat::plain;
    use serde_json::json;

    fn found(message: Value) -> Result<Option<f32>> {
        weight(message.as_object().unwrap(), "")
    }

    #[test]
    fn every_name_is_heard_and_contradictions_are_refused() {
        for (message, expected) in [
            (json!({}), None),
            (json!({"weight": null, "loss": false}), Some(0.0)),
            (json!({"loss": true, "weight": 0.5}), Some(0.5)),
            (json!({"loss_scale": 0.25}), Some(0.25)),
            (json!({"training": false, "train": false, "loss_weight": 0}), Some(0.0)),
            (json!({"mask": true}), Some(0.0)),
            (json!({"masked": false, "weight": 2}), Some(2.0)),
        ] {
            assert_eq!(found(message.clone()).unwrap(), expected, "{message}");
        }
        for (message, part) in [
            (json!({"weight": 1, "loss": false}), "`weight` and `loss` contradict each other: 1 and false"),
            (json!({"weight": 1, "loss_weight": 0.5}), "contradict"),
            (json!({"train": true, "mask": true}), "contradict"),
            (json!({"mask": 1}), "found 1, which is ambiguous"),
            (json!({"loss": -1}), "found -1"),
            (json!({"weight": 1e-50}), "found 1e-50"),
            (json!({"train": "no"}), "found a string"),
        ] {
            let error = found(message.clone()).unwrap_err().to_string();
            assert!(error.contains(part), "{message}: {error}");
        }
    }

    #[test]
    fn offsets_count_characters_and_include_both_ends() {
        let mut turn = plain(Role::Assistant, "né, five.");
        let details =
            json!([{"begin_offset": 0, "end_offset": 3, "train": false}, {"begin_offset": 4, "end_offset": 8, "train": true}]);
        add_details(&mut turn, &details, "d").unwrap();
        let parts: Vec<(&str, f32)> = turn.parts.iter().map(|part| (&turn.content[part.begin..part.end], part.weight)).collect();
        assert_eq!(parts, [("né, ", 0.0), ("five.", 1.0)]);
        // Text outside all ranges is not supervised, whether the ranges are or not.
        let parts = |details: Value| {
            let mut turn = plain(Role::Assistant, "né, five.");
            add_details(&mut turn, &details, "d").unwrap();
            turn.parts.iter().map(|part| (turn.content[part.begin..part.end].to_owned(), part.weight)).collect::<Vec<_>>()
        };
        let piece = |first: usize, last: usize, train: bool| json!({"begin_offset": first, "end_offset": last, "train": train});
        let text = |text: &str, weight: f32| (text.to_owned(), weight);
        assert_eq!(parts(json!([piece(1, 2, true)])), [text("n", 0.0), text("é,", 1.0), text(" five.", 0.0)]);
        assert_eq!(parts(json!([piece(0, 1, false)])), [text("né", 0.0), text(", five.", 0.0)]);
        assert_eq!(parts(json!([piece(6, 8, true), piece(0, 1, true)])), [text("né", 1.0), text(", fi", 0.0), text("ve.", 1.0)]);
        for bad in [
            json!([piece(0, 9, true)]),
            json!([{"begin_offset": 0, "end_offset": 1}]),
            json!([]),
            json!([piece(0, 4, true), piece(4, 8, false)]),
        ] {
            assert!(add_details(&mut turn, &bad, "d").is_err(), "{bad}");
        }
        // The switches of a turn, of its parts and of its ranges must not contradict each other.
        let of = |message: Value, parts: &[f32]| {
            let mut turn = plain(Role::Assistant, "né, five.");
            turn.parts = parts.iter().map(|&weight| WeightedPart { begin: 0, end: 4, weight }).collect();
            let mut unused = Vec::new();
            of_turn(&mut turn, message.as_object().unwrap(), "m.", &mut unused).map(|()| unused)
        };
        for (message, parts) in [
            (json!({"train": false, "train_detail": [piece(0, 1, true)]}), &[][..]),
            (json!({"weight": 0}), &[1.0]),
            (json!({"weight": 0.5}), &[1.0]),
        ] {
            assert!(of(message.clone(), parts).unwrap_err().to_string().contains("contradict"), "{message}");
        }
        for (message, parts) in [
            (json!({"train": false, "train_detail": [piece(0, 1, false)]}), &[][..]),
            (json!({"weight": 0.5}), &[0.0, 0.5]),
            (json!({"weight": 1}), &[0.5]),
        ] {
            assert_eq!(of(message.clone(), parts).unwrap(), [""; 0], "{message}");
        }
        // Ranges of a question are not supervised, and are reported as unused.
        let mut question = plain(Role::User, "né, five.");
        let message = json!({"train_detail": [piece(0, 1, true)]});
        let mut unused = Vec::new();
        of_turn(&mut question, message.as_object().unwrap(), "m.", &mut unused).unwrap();
        assert_eq!(unused, ["m.train_detail"]);
    }

    #[test]
    fn a_loss_mask_speaks_of_answers_or_of_turns() {
        let mask = |mask: Value| {
            let mut turns =
                vec![plain(Role::User, "a"), plain(Role::Assistant, "b"), plain(Role::User, "c"), plain(Role::Assistant, "d")];
            let row = json!({"loss_mask": mask});
            of_row(row.as_object().unwrap(), &mut turns, &mut Vec::new())
                .map(|_| turns.iter().map(|turn| turn.weight).collect::<Vec<_>>())
        };
        assert_eq!(mask(json!([0, 1])).unwrap(), [1.0, 0.0, 1.0, 1.0]);
        assert_eq!(mask(json!([0, 1, 0, 0])).unwrap(), [0.0, 1.0, 0.0, 0.0]);
        for (bad, part) in
            [(json!([1, 1, 0, 1]), "not an answer"), (json!([1]), "expected 2 values"), (json!([0, 0.5]), "0 or 1")]
        {
            assert!(mask(bad.clone()).unwrap_err().to_string().contains(part), "{bad}");
        }
    }

    /// The audit relies on this: every key that looks like a switch is reported, unless it was used or is empty.
    #[test]
    fn no_unused_switch_goes_unnamed() {
        let keys = [
            "loss",
            "loss_mask2",
            "lossy",
            "mask_prompt",
            "masks",
            "train_on_input",
            "trainable",
            "label",
            "labels",
            "my_kwargs",
            "images",
            "audios",
            "completion_mask",
            "weights",
            "image",
            "token_loss",
            "generation_kwargs",
            "LOSS_MASK",
            "Train",
            "isTrainable",
            "compute_loss",
            "do-train",
            "ÉTÉ_mask",
        ];
        for key in keys {
            for value in [json!(0), json!("x"), json!([1]), json!({"a": 1}), json!(1.5)] {
                let row = json!({key: value, "content": "x", "id": 7});
                let mut unused = Vec::new();
                of_row(row.as_object().unwrap(), &mut [plain(Role::User, "a")], &mut unused).unwrap();
                assert_eq!(unused, [key], "{row}");
                let (about, mut unused) = (json!({"metadata": {"extra": row}}), Vec::new());
                note_unused(about.as_object().unwrap(), &[], "messages[0].", &mut unused);
                assert_eq!(unused, [format!("messages[0].metadata.extra.{key}")]);
            }
        }
        // Words that merely contain the letters of a switch.
        for key in ["glossary", "unmasked", "constraint", "restrained", "flossed", "id", "counterweight"] {
            assert!(!looks_like_switch(key), "{key}");
        }
    }
}
