//! The mask audit: what a person should know about the mask before trusting a number that comes from it.
//!
//! Each row carries plain flags; [`Audit`] counts them over all rows and keeps the first places of each.

use serde::Serialize;

use crate::dataset::Place;
use crate::error::Error;

/// What is odd about one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RowAudit {
    /// No token is supervised.
    pub empty_mask: bool,
    /// Every token but the first is supervised, though only answers should be.
    pub full_mask: bool,
    /// A supervised answer has no end-of-turn token.
    pub missing_end_of_turn: bool,
    /// `<think></think>` with nothing in it is supervised.
    pub empty_think_supervised: bool,
    /// The text of the data spells out a control token.
    pub special_in_content: bool,
    /// An answer follows another text than the generation prompt.
    pub unlike_prompt: bool,
    /// The row has tools, tool calls or reasoning that the template does not render.
    pub dropped_fields: bool,
    /// The original length, in tokens, of a sequence that was cut.
    pub truncated: Option<usize>,
    /// The cut took supervised tokens away.
    pub answer_cut: bool,
}

/// The sum over all rows.
#[derive(Debug, Clone, Serialize)]
pub struct Audit {
    /// Rows that were rendered.
    pub rows: u64,
    /// Rows that the template or the tokenizer refused.
    pub refused: u64,
    /// One entry for each check, whether it found something or not.
    pub findings: Vec<Finding>,
}

/// One check and what it found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub name: &'static str,
    pub rows: u64,
    /// The first places, `file:line`; for errors with the reason.
    pub examples: Vec<String>,
}

struct Check {
    name: &'static str,
    holds: fn(&RowAudit) -> bool,
    /// Follows the number of rows.
    finding: &'static str,
    meaning: &'static str,
    cure: &'static str,
}

const N_EXAMPLES: usize = 3;

const CHECKS: &[Check] = &[
    Check {
        name: "empty_mask",
        holds: |row| row.empty_mask,
        finding: "have no supervised token",
        meaning: "Nothing can be learnt from them, and they are not scored.",
        cure: "Look for empty answers, turns of weight 0, and prompts longer than --max-len.",
    },
    Check {
        name: "full_mask",
        holds: |row| row.full_mask,
        finding: "have no token that is not supervised",
        meaning: "The model would learn to write the prompt as well.",
        cure: "Look for rows without a prompt, and at the {% generation %} tags of the template.",
    },
    Check {
        name: "missing_end_of_turn",
        holds: |row| row.missing_end_of_turn,
        finding: "have an answer without a supervised end-of-turn token",
        meaning: "A model trained on them does not learn to stop.",
        cure: "Check that the template closes the assistant's turn with a special token, inside the {% generation %} block if it has one.",
    },
    Check {
        name: "empty_think_supervised",
        holds: |row| row.empty_think_supervised,
        finding: "have a supervised empty think block",
        meaning: "The model would learn not to reason.",
        cure: "Use a template without the block, or add the reasoning; nothing to do if that is what you want.",
    },
    Check {
        name: "special_in_content",
        holds: |row| row.special_in_content,
        finding: "spell out a control token in their text",
        meaning: "It is read as the token itself, as Transformers does, so a turn can end in the middle.",
        cure: "Remove or rewrite these strings, unless they are meant.",
    },
    Check {
        name: "unlike_prompt",
        holds: |row| row.unlike_prompt,
        finding: "have an answer that does not follow the template's generation prompt",
        meaning: "The model sees another text before the answer when it is used than when it is trained.",
        cure: "Compare the template's rendering of an answer with its add_generation_prompt part.",
    },
    Check {
        name: "dropped_fields",
        holds: |row| row.dropped_fields,
        finding: "have tools, tool calls or reasoning that the template does not render",
        meaning: "The model sees and learns nothing of them; the rest of the answer may make no sense alone.",
        cure: "Use a model whose template knows them, or write them into the content.",
    },
    Check {
        name: "truncated",
        holds: |row| row.truncated.is_some(),
        finding: "are longer than --max-len and were cut",
        meaning: "What is beyond it is not scored.",
        cure: "Raise --max-len if memory allows.",
    },
    Check {
        name: "answer_cut",
        holds: |row| row.answer_cut,
        finding: "lost a part of an answer by that",
        meaning: "A model trained on them does not learn how these answers end.",
        cure: "Raise --max-len, or leave these rows out of training.",
    },
];

const REFUSED: &str = "template_error";

impl Default for Audit {
    fn default() -> Self {
        let names = CHECKS.iter().map(|check| check.name).chain([REFUSED]);
        let findings = names.map(|name| Finding { name, rows: 0, examples: Vec::new() }).collect();
        Self { rows: 0, refused: 0, findings }
    }
}

impl Audit {
    pub fn add(&mut self, place: &Place, row: &RowAudit) {
        self.rows += 1;
        for (check, finding) in CHECKS.iter().zip(&mut self.findings) {
            if (check.holds)(row) {
                finding.add(|| format!("{}:{}", place.path.display(), place.line));
            }
        }
    }

    /// A row that could not be rendered.
    pub fn add_error(&mut self, place: &Place, error: &Error) {
        self.refused += 1;
        if let Some(finding) = self.findings.last_mut() {
            finding.add(|| format!("{}:{}: {}", place.path.display(), place.line, error.reason()));
        }
    }

    /// Nothing found?
    pub fn is_clean(&self) -> bool {
        self.findings.iter().all(|finding| finding.rows == 0)
    }

    /// One line for each thing that was found: what, what it means, what to do, where.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (check, finding) in CHECKS.iter().zip(&self.findings).filter(|(_, finding)| finding.rows > 0) {
            let Check { finding: what, meaning, cure, .. } = check;
            let (n, of, examples) = (finding.rows, self.rows, finding.examples.join(", "));
            lines.push(format!("{n} of {of} rows {what}. {meaning} {cure} For example: {examples}"));
        }
        if let Some(finding) = self.findings.last().filter(|finding| finding.rows > 0) {
            let (n, of) = (finding.rows, self.rows + self.refused);
            lines.push(format!("{n} of {of} rows were refused and skipped. For example: {}", finding.examples.join("; ")));
        }
        lines
    }
}

impl Finding {
    fn add(&mut self, place: impl FnOnce() -> String) {
        self.rows += 1;
        if self.examples.len() < N_EXAMPLES {
            self.examples.push(place());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn counts_and_first_places_add_up() {
        let mut audit = Audit::default();
        let place = |line| Place { path: Arc::new("a.jsonl".into()), line };
        for line in 1..=5 {
            audit.add(&place(line), &RowAudit { empty_mask: line > 1, ..RowAudit::default() });
        }
        assert!(!audit.is_clean());
        audit.add_error(&place(6), &Error::new("no"));
        let lines = audit.lines();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("4 of 5 rows have no supervised token. "), "{}", lines[0]);
        assert!(lines[0].ends_with("For example: a.jsonl:2, a.jsonl:3, a.jsonl:4"), "{}", lines[0]);
        assert_eq!(lines[1], "1 of 6 rows were refused and skipped. For example: a.jsonl:6: no");
        assert!(Audit::default().is_clean());
    }
}
