//! Judges the answers that the model writes: pure functions from an answer's text and its item's data to verdicts.
//!
//! ```text
//! bfcl/        function calls, compared as syntax trees; BFCL
//! extract.rs   the filters and the exact match of lm-evaluation-harness; GSM8K
//! ifeval/      instructions that can be verified; IFEval
//! math.rs      answers in LaTeX: boxes, Hendrycks' and Minerva's normal forms; MATH, AIME
//! uniform.rs   a user's own questions: exact, number, contains, regex
//! ```
//!
//! Metrics have the names that lm-evaluation-harness uses in its samples and results: `exact_match`, or
//! `exact_match,strict-match` with the name of the filter.

pub mod bfcl;
pub mod extract;
pub mod ifeval;
pub mod math;
pub mod uniform;

#[cfg(test)]
mod tests;

use serde_json::Value;

use crate::error::Result;

/// How the answers to a task's questions are generated and judged.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// Strings that end an answer and are not part of it (`until` in the harness).
    pub stops: &'static [&'static str],
    /// The default for the longest answer, in tokens (`max_gen_toks`).
    pub max_new_tokens: usize,
    /// The default number of examples before every question (`num_fewshot`).
    pub few_shot: usize,
    /// The name of the primary metric.
    pub primary: &'static str,
    /// Judges an answer.
    pub check: Check,
}

/// The harness's default for `max_gen_toks`.
pub const MAX_NEW_TOKENS: usize = 256;

/// Judges an answer by its item's data, which the task's own function produced; an error if the data do not have the expected
/// form.
///
/// Every item of a task gets verdicts for the same metrics in the same order.
pub type Check = fn(data: &Value, answer: &str) -> Result<Vec<Verdict>>;

/// The result of an answer by one metric: `right` out of `of`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The name of the metric.
    pub metric: String,
    /// The number of right things in the answer.
    pub right: u32,
    /// The number of things that count.
    pub of: u32,
}

impl Verdict {
    /// A verdict by a metric for which an answer is either right or wrong.
    pub fn of_answer(metric: &str, is_right: bool) -> Verdict {
        Verdict::of_parts(metric, u32::from(is_right), 1)
    }

    /// A verdict by a metric that counts several things in an answer, such as followed instructions: its value is the share over
    /// all answers.
    pub fn of_parts(metric: &str, right: u32, of: u32) -> Verdict {
        Verdict { metric: metric.to_owned(), right, of }
    }
}
