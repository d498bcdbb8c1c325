//! Judges answers of IFEval (Zhou et al. 2023, arXiv 2311.07911): does an answer follow the instructions of its prompt? Supports
//! every kind of instruction that lm-evaluation-harness 0.4.13 checks (`lm_eval/tasks/ifeval`, version 4), by the same rules,
//! including their quirks.
//!
//! ```text
//! instruction.rs  the kinds of instructions in a published row, and whether an answer follows one
//! sentences.rs    Punkt, for the number of sentences; words.rs splits them, for words in capitals
//! language.rs     langdetect, for the three kinds that detect a language; python_random.rs its draws
//! json.rs         what Python accepts as JSON
//! tools.rs        all tables and patterns together, from the packages that fetched.rs fetches
//! pattern.rs      patterns that match as in Python
//! ```
//!
//! If a row does not specify its arguments, the harness draws them at random; here the row is rejected. The published file has
//! one such case: two rows ask for the letters `!` and `#`, for which the harness counts a letter of its own choice, while this
//! module counts what the prompt names. The language detector is unseeded in the harness and has seed 0 here.

mod fetched;
mod instruction;
mod json;
mod language;
mod pattern;
mod python_random;
mod sentences;
mod tools;
mod words;

use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use super::{Spec, Verdict};
use crate::error::{Error, Result};
use crate::fetch::Progress;
use instruction::Instruction;

pub use tools::Tools;

/// `ifeval/ifeval.yaml`. The data are `instruction_id_list` and `kwargs` of a published row.
pub const SPEC: Spec = Spec { stops: &[], max_new_tokens: 1280, few_shot: 0, primary: "prompt_level_strict_acc", check };

static TOOLS: OnceLock<Tools> = OnceLock::new();

/// Fetches the tables that [`SPEC`] needs and registers them; the code that loads the task calls this.
pub fn prepare(progress: Progress) -> Result<()> {
    if TOOLS.get().is_none() {
        // If two threads fetch at once, the first result is kept; both have read the same files.
        let _ = TOOLS.set(fetched::tools(progress)?);
    }
    Ok(())
}

fn check(data: &Value, answer: &str) -> Result<Vec<Verdict>> {
    let tools = TOOLS.get().ok_or_else(|| Error::new("the tables that IFEval's checks need are not loaded"))?;
    judge(data, answer, tools)
}

/// The data for [`judge`] from a published row; an error if it has an unknown kind of instruction, or lacks arguments.
pub fn data(row: &Map<String, Value>) -> Result<Value> {
    let data = json!({"instruction_id_list": row.get("instruction_id_list"), "kwargs": row.get("kwargs")});
    instructions(&data)?;
    Ok(data)
}

/// The four accuracies of an answer: for the whole prompt (all instructions) and for single instructions, strict and loose.
pub fn judge(data: &Value, answer: &str, tools: &Tools) -> Result<Vec<Verdict>> {
    let (mut strict, mut loose) = (Vec::new(), Vec::new());
    let variants = variants(answer);
    for instruction in instructions(data)? {
        let follows = |answer: &String| -> Result<bool> {
            Ok(!instruction::stripped(answer).is_empty() && instruction.follows(answer, tools)?)
        };
        let is_strict = follows(&variants[0])?;
        strict.push(is_strict);
        // The first variant is the answer itself.
        let mut is_loose = is_strict;
        for variant in &variants[1..] {
            is_loose = is_loose || follows(variant)?;
        }
        loose.push(is_loose);
    }
    let verdicts = |prompt: &str, single: &str, followed: &[bool]| {
        let right = followed.iter().filter(|&&is_followed| is_followed).count() as u32;
        let of = followed.len() as u32;
        [Verdict::of_answer(prompt, right == of), Verdict::of_parts(single, right, of)]
    };
    let strict = verdicts("prompt_level_strict_acc", "inst_level_strict_acc", &strict);
    Ok([strict, verdicts("prompt_level_loose_acc", "inst_level_loose_acc", &loose)].concat())
}

/// The answer, and the answer without its first line, its last line and both, each also without asterisks.
fn variants(answer: &str) -> [String; 8] {
    let lines: Vec<&str> = answer.split('\n').collect();
    let joined =
        |from: usize, until: usize| instruction::stripped(&lines.get(from..until).unwrap_or_default().join("\n")).to_owned();
    let n = lines.len();
    let plain = [answer.to_owned(), joined(1, n), joined(0, n - 1), joined(1, n.max(2) - 1)];
    let [whole, no_first, no_last, neither] = plain.each_ref().map(|text| text.replace('*', ""));
    let [answer, first, last, both] = plain;
    [answer, whole, first, last, both, no_first, no_last, neither]
}

fn instructions(data: &Value) -> Result<Vec<Instruction>> {
    let list =
        |key: &str| data[key].as_array().ok_or_else(|| Error::new(format!("expected `{key}` to be a list, found {}", data[key])));
    let (ids, arguments) = (list("instruction_id_list")?, list("kwargs")?);
    if ids.is_empty() || ids.len() != arguments.len() {
        return Err(Error::new(format!(
            "expected as many `kwargs` as instructions, found {} and {}",
            arguments.len(),
            ids.len()
        )));
    }
    ids.iter().zip(arguments).map(|(id, arguments)| Instruction::parse(id, arguments)).collect()
}

#[cfg(test)]
mod tests;
