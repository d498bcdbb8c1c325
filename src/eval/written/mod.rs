//! Answers that the model writes -> verdicts: pure functions of an answer's text and of what its item says is right.
//!
//! ```text
//! bfcl/        calls of functions, by their syntax trees; BFCL
//! extract.rs   the filters and the exact match of lm-evaluation-harness; GSM8K
//! ifeval/      instructions that can be verified; IFEval
//! math.rs      answers in LaTeX: boxes, Hendrycks' and Minerva's normal forms; MATH, AIME
//! uniform.rs   a user's own questions: exact, number, contains, regex
//! ```
//!
//! Metrics have the names that lm-evaluation-harness gives them in its samples and results: `exact_match`, or with the filter that the answer
//! went through `exact_match,strict-match`.

pub mod bfcl;
pub mod extract;
pub mod ifeval;
pub mod math;
pub mod uniform;

#[cfg(test)]
mod tests;

use serde_json::Value;

use crate::error::Result;

/// How the answers to a task's questions are written and judged.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// Texts that end an answer and are no part of it (`until` in the harness).
    pub stops: &'static [&'static str],
    /// Longest answer in tokens (`max_gen_toks`), where nobody says otherwise.
    pub max_new_tokens: usize,
    /// Examples before every question (`num_fewshot`), where nobody says otherwise.
    pub few_shot: usize,
    /// The metric that is usually quoted.
    pub primary: &'static str,
    /// Judges an answer.
    pub check: Check,
}

/// What the harness takes for `max_gen_toks` where a task names none.
pub const MAX_NEW_TOKENS: usize = 256;

/// Judges an answer by its item's data, which the task's own function made: an error if these are not what it makes.
///
/// Every item of a task gets verdicts of the same metrics in the same order.
pub type Check = fn(data: &Value, answer: &str) -> Result<Vec<Verdict>>;

/// What an answer came to by one metric: `right` of `of`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The name of the metric.
    pub metric: String,
    /// How many things in the answer are right.
    pub right: u32,
    /// How many there are.
    pub of: u32,
}

impl Verdict {
    /// A verdict by a metric for which an answer is right or wrong.
    pub fn of_answer(metric: &str, is_right: bool) -> Verdict {
        Verdict::of_parts(metric, u32::from(is_right), 1)
    }

    /// A verdict by a metric that counts several things in an answer, such as the instructions that it follows: its value is the share over
    /// all answers.
    pub fn of_parts(metric: &str, right: u32, of: u32) -> Verdict {
        Verdict { metric: metric.to_owned(), right, of }
    }
}
