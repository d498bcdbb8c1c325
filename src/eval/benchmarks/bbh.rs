//! BIG-Bench Hard as multiple-choice questions, following `lm_eval/tasks/leaderboard/bbh_mc`.
//!
//! A blank line follows the description, as in BIG-Bench Hard itself; the harness has none. The choices are those of the task, as
//! in the harness, even if a question has fewer. Left out are `dyck_languages`, `multistep_arithmetic_two` and `word_sorting`,
//! whose answers must be generated.

use serde_json::{Value, json};

use super::rows::Row;
use crate::error::{Error, Result};

/// Converts a row; `None` for the few rows of `movie_recommendation` and `ruin_names` whose answer is not among the choices.
pub(super) fn question(row: &Row) -> Result<Option<Value>> {
    let part = &*row.part;
    let known = TASKS.iter().find(|(name, ..)| *name == part);
    let (_, description, choices) = known.ok_or_else(|| {
        let names = TASKS.map(|(name, ..)| name).join(", ");
        Error::new(format!("`{part}` is not a multiple-choice task of BIG-Bench Hard; expected one of {names}"))
    })?;
    let choices: Vec<String> = match choices {
        Choices::Words(words) => words.iter().map(|word| (*word).to_owned()).collect(),
        Choices::Letters(n) => ('A'..='Z').take(*n).map(|letter| format!("({letter})")).collect(),
        Choices::UpTo(last) => (0..=*last).map(|number| number.to_string()).collect(),
    };
    let target = row.text("target")?;
    let context = format!("Q: {}\nA:", row.text("input")?);
    Ok(choices.iter().position(|choice| choice == target).map(|answer| {
        json!({"description": format!("{description}\n\n"), "context": context, "choices": choices, "answer": answer, "subject": part})
    }))
}

enum Choices {
    Words(&'static [&'static str]),
    Letters(usize),
    UpTo(usize),
}
use Choices::{Letters, UpTo, Words};

const DEDUCTION: &str = "A logical deduction task which requires deducing the order of a sequence of objects.";
const TRACKING: &str = "A task requiring determining the final positions of a set of objects given their initial positions and a \
                        description of a sequence of swaps.";

#[rustfmt::skip]
const TASKS: [(&str, &str, Choices); 24] = [
    ("boolean_expressions", "Evaluate the result of a random Boolean expression.", Words(&["False", "True"])),
    ("causal_judgement", "Answer questions about causal attribution.", Words(&["Yes", "No"])),
    ("date_understanding", "Infer the date from context.", Letters(6)),
    ("disambiguation_qa", "Clarify the meaning of sentences with ambiguous pronouns.", Letters(3)),
    ("formal_fallacies", "Distinguish deductively valid arguments from formal fallacies.", Words(&["valid", "invalid"])),
    ("geometric_shapes", "Name geometric shapes from their SVG paths.", Letters(11)),
    ("hyperbaton", "Order adjectives correctly in English sentences.", Letters(2)),
    ("logical_deduction_five_objects", DEDUCTION, Letters(5)),
    ("logical_deduction_seven_objects", DEDUCTION, Letters(7)),
    ("logical_deduction_three_objects", DEDUCTION, Letters(3)),
    ("movie_recommendation", "Recommend movies similar to the given list of movies.", Letters(6)),
    ("navigate", "Given a series of navigation instructions, determine whether one would end up back at the starting point.", Words(&["Yes", "No"])),
    ("object_counting", "Questions that involve enumerating objects and asking the model to count them.", UpTo(18)),
    ("penguins_in_a_table", "Answer questions about a table of penguins and their attributes.", Letters(5)),
    ("reasoning_about_colored_objects", "Answer extremely simple questions about the colors of objects on a surface.", Letters(18)),
    ("ruin_names", "Select the humorous edit that 'ruins' the input movie or musical artist name.", Letters(6)),
    ("salient_translation_error_detection", "Detect the type of error in an English translation of a German source sentence.", Letters(6)),
    ("snarks", "Determine which of two sentences is sarcastic.\n\nAccording to Cambridge University Dictionary, sarcasm is \"the use of remarks that \
        clearly mean the opposite of what they say, made in order to hurt someone's feelings or to criticize something in a humorous way.\" \
        Sarcastic sentences often contain satirical or ironic utterances, hyperboles, ambivalent or witty remarks.", Letters(2)),
    ("sports_understanding", "Determine whether an artificially constructed sentence relating to sports is plausible or not.", Words(&["yes", "no"])),
    ("temporal_sequences", "Task description: Answer questions about which times certain events could have occurred.", Letters(4)),
    ("tracking_shuffled_objects_five_objects", TRACKING, Letters(5)),
    ("tracking_shuffled_objects_seven_objects", TRACKING, Letters(7)),
    ("tracking_shuffled_objects_three_objects", TRACKING, Letters(3)),
    ("web_of_lies", "Evaluate a random boolean function expressed as a word problem.", Words(&["Yes", "No"])),
];
