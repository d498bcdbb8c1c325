//! The mask audit: reports what a user should know about the loss mask before trusting results that depend on it.
//!
//! Each row has plain flags; [`Audit`] counts them over all rows and keeps the first locations of each.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::dataset::{Dataset, Place};
use crate::error::Error;
use crate::format::{part_of, thousands};

/// Suspicious properties of one row.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RowAudit {
    /// No token is supervised.
    pub empty_mask: bool,
    /// Every token but the first is supervised, though only answers should be.
    pub full_mask: bool,
    /// A supervised answer has no end-of-turn token.
    pub missing_end_of_turn: bool,
    /// A plain text does not end with the end token.
    pub missing_end_of_text: bool,
    /// An empty `<think></think>` is supervised.
    pub empty_think_supervised: bool,
    /// The text of the data contains a control token as text.
    pub special_in_content: bool,
    /// The text before an answer differs from the generation prompt.
    pub unlike_prompt: bool,
    /// Prompt and answer are concatenated, since the model has no chat template.
    pub without_template: bool,
    /// The row has tools or tool calls that the template does not render.
    pub dropped_fields: bool,
    /// The template does not render the system prompt.
    pub lost_system: bool,
    /// The template does not render the content of another turn.
    pub lost_content: bool,
    /// The template does not render the reasoning of an answer to the last question.
    pub lost_reasoning: bool,
    /// The template does not render the reasoning of an earlier answer.
    pub earlier_reasoning: bool,
    /// The template prints arguments that are text as a quoted JSON string.
    pub arguments_quoted: bool,
    /// Paths of keys that look like loss switches and were not used, such as `messages[1].lossy`.
    pub unused_switches: Vec<String>,
    /// Text columns that no turn holds, such as `choices`.
    pub unread_columns: Vec<String>,
    /// A `--map` value that would show the model the first of them.
    pub unread_map: Option<String>,
    /// Names of roles that the template does not know, such as `developer`.
    pub renamed_roles: Vec<String>,
    /// A content is a list of parts, which the template does not support.
    pub joined_parts: bool,
    /// A question has no text, or null instead.
    pub empty_question: bool,
    /// A supervised answer has no text, no reasoning and no tool call.
    pub empty_answer: bool,
    /// The original length in tokens of a truncated sequence.
    pub truncated: Option<usize>,
    /// The truncation removed supervised tokens.
    pub answer_cut: bool,
    /// Whether the tokens of a rollout were used; `None` if the row is no rollout.
    pub drawn: Option<Drawn>,
}

/// What became of the tokens that a row records as drawn by a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drawn {
    /// The text tokenises to the same tokens.
    Same,
    /// The text tokenises to others; the drawn ones are used.
    Respelt,
    /// They do not match the row, whose text is tokenised instead.
    Foreign,
}

/// The counts over all rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Rows that were rendered.
    pub rows: u64,
    /// Rows that the template or the tokenizer refused.
    pub refused: u64,
    /// One entry per check, whether it found something or not.
    pub findings: Vec<Finding>,
    /// Notes about what was not read of the files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Rows that equal others, if this was checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equal: Option<EqualRows>,
}

/// The number of rows with supervised tokens that equal an earlier one, token by token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EqualRows {
    /// The number of such rows.
    pub rows: u64,
    /// The number of rows that were compared.
    pub of: u64,
}

/// A check and its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub name: String,
    pub rows: u64,
    /// The first locations, `file:line`; for errors with the reason.
    pub examples: Vec<String>,
    /// The numbers of these rows; absent in records of earlier programs.
    #[serde(default)]
    pub example_rows: Vec<u32>,
    /// For refused rows and for unread columns: the remedy for the first row that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
    /// The row that `cure` belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cure_row: Option<u32>,
    /// For unused switches, unread columns and renamed roles: the number of rows with each name, indices removed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<String, u64>,
}

struct Check {
    name: &'static str,
    holds: fn(&RowAudit) -> bool,
    /// Follows the number of rows: the verb for one row and for several, and the rest.
    verb: [&'static str; 2],
    finding: &'static str,
    meaning: &'static str,
    cure: &'static str,
}

const N_EXAMPLES: usize = 3;
const HAVE: [&str; 2] = ["has", "have"];
const ARE: [&str; 2] = ["is", "are"];

const CHECKS: &[Check] = &[
    Check {
        name: "empty_mask",
        holds: |row| row.empty_mask,
        verb: HAVE,
        finding: "no supervised token",
        meaning: "Nothing can be learnt from them, and they are not scored.",
        cure: "Look for empty answers, turns of weight 0, and prompts longer than --max-len.",
    },
    Check {
        name: "full_mask",
        holds: |row| row.full_mask,
        verb: HAVE,
        finding: "only supervised tokens",
        meaning: "The model would also learn to write the prompt.",
        cure: "Look for rows without a prompt, and check the {% generation %} tags of the template.",
    },
    Check {
        name: "missing_end_of_turn",
        holds: |row| row.missing_end_of_turn,
        verb: HAVE,
        finding: "an answer without a supervised end-of-turn token",
        meaning: "A model trained on them does not learn to stop.",
        cure: "Check that the template closes the assistant's turn with a special token, inside the {% generation %} block if it has one.",
    },
    Check {
        name: "without_template",
        holds: |row| row.without_template,
        verb: ARE,
        finding: "joined as plain text, the answer directly after the prompt: the model has no chat template",
        meaning: "TRL does the same for prompts and completions that are texts, and refuses conversations.",
        cure: "Nothing to do if that is what you want; otherwise pass a template with --chat-template FILE, or use the chat version of the model.",
    },
    Check {
        name: "missing_end_of_text",
        holds: |row| row.missing_end_of_text,
        verb: ARE,
        finding: "plain text without the end token",
        meaning: "A model trained on them does not learn to stop; TRL appends the token.",
        cure: "Pass --append-eos to do as TRL does; nothing to do for texts that continue.",
    },
    Check {
        name: UNUSED,
        holds: |row| !row.unused_switches.is_empty(),
        verb: HAVE,
        finding: "keys that look like switches but have no effect",
        meaning: "The turns or parts that they should exclude are still learnt, and a variable that the chat template does not read changes nothing.",
        cure: "Set `weight` (0 excludes from the loss) on the turn or part, correct the name of the variable, or remove the keys if they mean something else.",
    },
    Check {
        name: UNREAD,
        holds: |row| !row.unread_columns.is_empty(),
        verb: HAVE,
        finding: "columns with text that appears in no turn",
        meaning: "The model does not see that text, even if it is the context of a question or the answers to choose from.",
        cure: "Put text that the model should see into a turn; nothing to do for notes.",
    },
    Check {
        name: RENAMED,
        holds: |row| !row.renamed_roles.is_empty(),
        verb: HAVE,
        finding: "roles that the chat template does not know",
        meaning: "They are replaced by system, user, assistant or tool; Transformers would skip such turns or print the name.",
        cure: "Nothing to do if that is what you want; otherwise map the names with --role NAME=ROLE.",
    },
    Check {
        name: "joined_parts",
        holds: |row| row.joined_parts,
        verb: HAVE,
        finding: "contents in parts, which the chat template does not support",
        meaning: "The texts of the parts are joined; Transformers would print the list or refuse it.",
        cure: "Nothing to do if that is what you want; otherwise write the contents as text, or pass a template that supports parts (--chat-template FILE).",
    },
    Check {
        name: "empty_question",
        holds: |row| row.empty_question,
        verb: HAVE,
        finding: "an empty question",
        meaning: "The model learns to answer without a question.",
        cure: "Remove these rows, or look for text that was lost earlier: null and NaN are read as empty.",
    },
    Check {
        name: "empty_answer",
        holds: |row| row.empty_answer,
        verb: HAVE,
        finding: "an empty answer",
        meaning: "A model trained on them learns to answer nothing.",
        cure: "Remove these rows, or give the turns weight 0.",
    },
    Check {
        name: "empty_think_supervised",
        holds: |row| row.empty_think_supervised,
        verb: HAVE,
        finding: "a supervised empty think block",
        meaning: "The model would learn not to reason.",
        cure: "Use a template without the block, or add the reasoning; nothing to do if that is what you want.",
    },
    Check {
        name: "special_in_content",
        holds: |row| row.special_in_content,
        verb: ["contains", "contain"],
        finding: "a control token as text",
        meaning: "It is read as the token itself, as in Transformers, so a turn can end in the middle.",
        cure: "Remove or rewrite these strings, unless they are intended.",
    },
    Check {
        name: "unlike_prompt",
        holds: |row| row.unlike_prompt,
        verb: HAVE,
        finding: "an answer that does not follow the template's generation prompt",
        meaning: "The model sees a different text before the answer at inference than in training.",
        cure: "Compare the template's rendering of an answer with its add_generation_prompt part.",
    },
    Check {
        name: "dropped_fields",
        holds: |row| row.dropped_fields,
        verb: HAVE,
        finding: "tools or tool calls that the template does not render",
        meaning: "The model neither sees nor learns them; the rest of the answer may make no sense alone.",
        cure: "Pass a template that supports them (--chat-template FILE), or write them into the content.",
    },
    Check {
        name: "lost_reasoning",
        holds: |row| row.lost_reasoning,
        verb: HAVE,
        finding: "reasoning that the template does not render",
        meaning: "The model neither sees nor learns it, only what comes after.",
        cure: "Pass a template that renders reasoning (--chat-template FILE).",
    },
    Check {
        name: "earlier_reasoning",
        holds: |row| row.earlier_reasoning,
        verb: HAVE,
        finding: "reasoning in earlier turns that the template leaves out",
        meaning: "It is not learnt: only answers to the last question keep their reasoning, as at inference.",
        cure: "To learn it, make each answer a row of its own, or pass another template (--chat-template FILE).",
    },
    Check {
        name: "lost_system",
        holds: |row| row.lost_system,
        verb: HAVE,
        finding: "a system prompt that the template does not render",
        meaning: "The model does not see it.",
        cure: "Write it into the first question, or pass a template that renders it (--chat-template FILE).",
    },
    Check {
        name: "lost_content",
        holds: |row| row.lost_content,
        verb: HAVE,
        finding: "a turn whose content the template does not render",
        meaning: "The model does not see it.",
        cure: "Check the template: some omit the text beside a tool call; --chat-template FILE uses another one.",
    },
    Check {
        name: "arguments_quoted",
        holds: |row| row.arguments_quoted,
        verb: HAVE,
        finding: "tool-call arguments as a string, which the template prints in quotes",
        meaning: "The model learns to write its arguments as a string with backslashes, as Transformers renders it.",
        cure: "Make them JSON objects in the data.",
    },
    Check {
        name: "respelt",
        holds: |row| row.drawn == Some(Drawn::Respelt),
        verb: ARE,
        finding: "rollouts whose text tokenises differently from the tokens that the model drew",
        meaning: "They are scored with the drawn tokens; a trainer that reads the text learns different ones.",
        cure: "Nothing to do: a word can be tokenised in several ways.",
    },
    Check {
        name: "foreign_rollout",
        holds: |row| row.drawn == Some(Drawn::Foreign),
        verb: ARE,
        finding: "rollouts whose drawn tokens do not match the row as it is read here",
        meaning: "They are scored by their text instead.",
        cure: "Use the tokenizer, template and --system that they were written with, and do not edit their text. Nothing helps where the template leaves out part of an earlier turn once an answer follows, as gpt-oss does with text beside a call.",
    },
    Check {
        name: "truncated",
        holds: |row| row.truncated.is_some(),
        verb: ARE,
        finding: "longer than --max-len and were cut",
        meaning: "The text beyond --max-len is not scored.",
        cure: "Raise --max-len if the model and memory allow it; otherwise split these rows.",
    },
    Check {
        name: "answer_cut",
        holds: |row| row.answer_cut,
        verb: ["lost", "lost"],
        finding: "part of an answer to that cut",
        meaning: "A model trained on them does not learn how these answers end.",
        cure: "Raise --max-len if the model allows it, split these rows, or leave them out of training.",
    },
];

const UNUSED: &str = "unused_switches";
const UNREAD: &str = "unread_columns";
const RENAMED: &str = "renamed_roles";
const REFUSED: &str = "template_error";

impl Default for Audit {
    fn default() -> Self {
        let names = CHECKS.iter().map(|check| check.name).chain([REFUSED]);
        let finding = |name: &str| Finding {
            name: name.to_owned(),
            rows: 0,
            examples: Vec::new(),
            example_rows: Vec::new(),
            cure: None,
            cure_row: None,
            keys: BTreeMap::new(),
        };
        Self { rows: 0, refused: 0, findings: names.map(finding).collect(), notes: Vec::new(), equal: None }
    }
}

impl Audit {
    /// Returns an audit that contains only the notes of the data set.
    pub fn of(dataset: &Dataset) -> Audit {
        Audit { notes: dataset.notes().to_vec(), ..Audit::default() }
    }

    /// Counts the row with this number. Rows must come in order.
    pub fn add(&mut self, row: u32, place: &Place, audit: &RowAudit) {
        self.rows += 1;
        for (check, finding) in CHECKS.iter().zip(&mut self.findings) {
            if (check.holds)(audit) {
                finding.add(row, || place.to_string());
                match check.name {
                    UNUSED => finding.count_keys(&audit.unused_switches),
                    UNREAD => {
                        finding.count_keys(&audit.unread_columns);
                        let cure = |map: &String| {
                            let map = map.replace('\'', r"'\''");
                            format!("Map them to a field, such as --map '{map}'; nothing to do for notes.")
                        };
                        finding.add_cure(row, audit.unread_map.as_ref().map(cure));
                    }
                    RENAMED => finding.count_keys(&audit.renamed_roles),
                    _ => {}
                }
            }
        }
    }

    /// Counts a row that could not be read or rendered.
    pub fn add_error(&mut self, row: u32, place: &Place, error: &Error) {
        self.refused += 1;
        if let Some(finding) = self.findings.last_mut() {
            finding.add(row, || format!("{place}: {}", error.reason()));
            finding.add_cure(row, error.known_cure().map(str::to_owned));
        }
    }

    /// Adds the results for other rows of the same data. Equal rows are unknown afterwards, since those in different parts were never compared.
    pub(crate) fn merge(&mut self, other: &Audit) {
        // Without `..`, so that a new field is a compile error here.
        let Audit { rows, refused, findings, notes: _, equal: _ } = other;
        self.rows += rows;
        self.refused += refused;
        self.equal = None;
        self.findings.iter_mut().zip(findings).for_each(|(finding, other)| finding.merge(other));
    }

    /// Returns one line per result: what it is, what it means, what to do, and where.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = self.notes.clone();
        if let Some(EqualRows { rows: n @ 1.., of }) = self.equal {
            let rows = part_of(n, of, "row", ARE);
            lines.push(format!("{rows} equal to an earlier one, token by token, and counted again each time."));
        }
        for (check, finding) in CHECKS.iter().zip(&self.findings).filter(|(_, finding)| finding.rows > 0) {
            let Check { verb, finding: what, meaning, cure, .. } = check;
            let cure = finding.cure.as_deref().unwrap_or(cure);
            let (rows, examples) = (part_of(finding.rows, self.rows, "row", *verb), finding.examples.join(", "));
            let keys: Vec<String> = finding.keys.iter().map(|(key, n)| format!("`{key}` in {}", thousands(*n))).collect();
            let keys = if keys.is_empty() { String::new() } else { format!(": {}", keys.join(", ")) };
            lines.push(format!("{rows} {what}{keys}. {meaning} {cure} For example: {examples}"));
        }
        if let Some(finding) = self.findings.last().filter(|finding| finding.rows > 0) {
            let rows = part_of(finding.rows, self.rows + self.refused, "row", ["was", "were"]);
            let cure = finding.cure.as_ref().map_or(String::new(), |cure| format!(" {cure}"));
            lines.push(format!("{rows} refused and skipped.{cure} For example: {}", finding.examples.join("; ")));
        }
        lines
    }
}

/// The error that ends a `--strict` run at a refused row.
pub(crate) fn refused_strictly(error: Error) -> Error {
    error.cure("Correct the row, or leave out --strict to skip it.")
}

impl Finding {
    /// Counts each name once per row. `messages[3].lossy` counts as `messages[].lossy`.
    fn count_keys(&mut self, keys: &[String]) {
        let without_numbers = |key: &String| {
            let mut name = String::new();
            let mut in_brackets = false;
            for c in key.chars() {
                in_brackets = if c == '[' { true } else { in_brackets && c != ']' };
                if !in_brackets || c == '[' {
                    name.push(c);
                }
            }
            name
        };
        for name in keys.iter().map(without_numbers).collect::<BTreeSet<_>>() {
            *self.keys.entry(name).or_default() += 1;
        }
    }

    fn add(&mut self, row: u32, place: impl FnOnce() -> String) {
        self.rows += 1;
        if self.examples.len() < N_EXAMPLES {
            self.examples.push(place());
            self.example_rows.push(row);
        }
    }

    /// Sets the remedy for this row, unless an earlier row has set one.
    fn add_cure(&mut self, row: u32, cure: Option<String>) {
        if let (None, Some(cure)) = (&self.cure, cure) {
            (self.cure, self.cure_row) = (Some(cure), Some(row));
        }
    }

    fn merge(&mut self, other: &Finding) {
        let Finding { name: _, rows, examples, example_rows, cure, cure_row, keys } = other;
        self.rows += rows;
        let own = self.example_rows.drain(..).zip(self.examples.drain(..));
        let mut first: Vec<(u32, String)> = own.chain(example_rows.iter().copied().zip(examples.iter().cloned())).collect();
        first.sort();
        first.truncate(N_EXAMPLES);
        (self.example_rows, self.examples) = first.into_iter().unzip();
        if cure.is_some() && (self.cure.is_none() || *cure_row < self.cure_row) {
            (self.cure, self.cure_row) = (cure.clone(), *cure_row);
        }
        for (key, n) in keys {
            *self.keys.entry(key.clone()).or_default() += n;
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
            audit.add(line as u32, &place(line), &RowAudit { empty_mask: line > 1, ..RowAudit::default() });
        }
        assert_eq!(audit.lines().len(), 1);
        audit.add_error(6, &place(6), &Error::new("no"));
        let lines = audit.lines();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("4 of 5 rows have no supervised token. "), "{}", lines[0]);
        assert!(lines[0].ends_with("For example: a.jsonl:2, a.jsonl:3, a.jsonl:4"), "{}", lines[0]);
        assert_eq!(lines[1], "1 of 6 rows was refused and skipped. For example: a.jsonl:6: no");
        assert!(Audit::default().lines().is_empty());
    }

    #[test]
    fn audits_of_shares_of_the_rows_add_up_to_that_of_all() {
        let place = |row: u32| Place { path: Arc::new("a.jsonl".into()), line: u64::from(row) + 1 };
        let add = |audit: &mut Audit, row: u32| match row % 7 {
            0 => audit.add_error(row, &place(row), &Error::new(format!("no {row}"))),
            1 if row > 10 => audit.add_error(row, &place(row), &Error::new("no").cure(format!("Mend {row}."))),
            n => {
                let unused_switches = if n == 3 { vec![format!("messages[{row}].lossy")] } else { Vec::new() };
                let empty_answer = row.is_multiple_of(5);
                audit.add(row, &place(row), &RowAudit { unused_switches, empty_answer, ..RowAudit::default() });
            }
        };
        let of = |holds: &dyn Fn(u32) -> bool| {
            let mut audit = Audit { notes: vec!["of the files".to_owned()], ..Audit::default() };
            (0..200).filter(|row| holds(*row)).for_each(|row| add(&mut audit, row));
            audit
        };
        let whole = of(&|_| true);
        assert!(whole.findings.iter().filter(|finding| finding.rows > 3).count() >= 3 && whole.lines().len() == 4);
        let share = |n: u32| of(&|row| row.wrapping_mul(2_654_435_761) % 3 == n);
        for order in [[0, 1, 2], [2, 0, 1]] {
            // Audits are merged after a round trip through JSON.
            let read = order.map(|n| serde_json::from_value::<Audit>(serde_json::to_value(share(n)).unwrap()).unwrap());
            let mut joined = read[0].clone();
            read[1..].iter().for_each(|other| joined.merge(other));
            assert_eq!(joined, whole);
        }
    }

    #[test]
    fn a_refused_row_keeps_the_first_cure_that_is_known() {
        let mut audit = Audit::default();
        let place = |line| Place { path: Arc::new("a.jsonl".into()), line };
        let refused = || Err(Error::new("no such role").cure("Give --role."));
        assert!(audit.take(1, &place(1), Err(Error::new("no")), false).unwrap().is_none());
        for (line, cure) in [(2, "Give --role."), (3, "Do something else.")] {
            assert!(audit.take(line as u32, &place(line), Err(Error::new("no such role").cure(cure)), false).unwrap().is_none());
        }
        let expected = "3 of 3 rows were refused and skipped. Give --role. \
                        For example: a.jsonl:1: no; a.jsonl:2: no such role; a.jsonl:3: no such role";
        assert_eq!(audit.lines(), [expected]);
        assert_eq!(audit.take(4, &place(4), refused(), true).unwrap_err().to_string(), "no such role\n  Give --role.");
        let plain = audit.take(4, &place(4), Err(Error::new("no")), true).unwrap_err().to_string();
        assert!(plain.ends_with("leave out --strict to skip it."), "{plain}");
        assert_eq!((audit.rows, audit.refused), (0, 3));
    }
}
