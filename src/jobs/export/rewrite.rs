//! Implements `--rewrite-candidates`: writes the answers with conflicts, what the model would have said there, and an empty field for the new answer.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::dataset::Example;
use crate::dataset::write::said;
use crate::error::{Context, Result};
use crate::table::{Column, Quadrant, Row, TOKENS_FILE, read_chunks, texts_of};

/// One answer; a person or a stronger model fills in `rewrite`.
#[derive(Debug, Serialize)]
pub(super) struct Candidate<'a> {
    row: u32,
    path: &'a str,
    line: u64,
    id: Option<&'a str>,
    turn: u16,
    /// The row's tools, which the answer may call.
    #[serde(skip_serializing_if = "Option::is_none")]
    tools: Option<&'a Value>,
    /// The messages before the answer.
    before: Vec<Map<String, Value>>,
    /// The answer's text, or its whole message if it has calls or reasoning, in which conflicts may lie.
    answer: Value,
    conflicts: &'a [Choice],
    rewrite: &'static str,
}

/// A conflict: a byte range of the answer, what the data contain there and what the model would have said, with their probabilities.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Choice {
    begin: u32,
    end: u32,
    data: String,
    p_data: f32,
    model: String,
    p_model: f32,
    /// -ln p - H of the data's token, nats.
    surplus: f32,
    #[serde(skip)]
    ids: (u32, u32),
}

/// The conflicts of a run by row and turn.
pub(super) fn choices(run: &Path) -> Result<BTreeMap<(u32, u16), Vec<Choice>>> {
    let tables = [run.join(TOKENS_FILE)];
    let columns = [
        Column::Row,
        Column::Turn,
        Column::Begin,
        Column::End,
        Column::TokenId,
        Column::Logprob,
        Column::Entropy,
        Column::TopId,
        Column::TopLogprob,
        Column::Quadrant,
    ];
    let mut choices: BTreeMap<(u32, u16), Vec<Choice>> = BTreeMap::new();
    let mut ids = HashSet::new();
    for chunk in read_chunks(&tables, &columns) {
        let chunk = chunk?;
        for i in (0..chunk.len()).filter(|&i| chunk.quadrant[i] == Quadrant::ConfidentConflict) {
            let (token, top) = (chunk.token_id[i], chunk.top_id[i]);
            ids.extend([token, top]);
            choices.entry((chunk.row[i], chunk.turn[i])).or_default().push(Choice {
                begin: chunk.begin[i],
                end: chunk.end[i],
                data: String::new(),
                p_data: chunk.logprob[i].exp(),
                model: String::new(),
                p_model: chunk.top_logprob[i].exp(),
                surplus: -chunk.logprob[i] - chunk.entropy[i],
                ids: (token, top),
            });
        }
    }
    let texts = texts_of(&tables, &ids)?;
    let text = |id| texts.get(&id).cloned().unwrap_or_default();
    for choice in choices.values_mut().flatten() {
        (choice.data, choice.model) = (text(choice.ids.0), text(choice.ids.1));
    }
    Ok(choices)
}

/// Whether every line of the file is a candidate without a new answer.
pub(super) fn are_open(path: &Path) -> Result<bool> {
    let text = std::fs::read(path).context_at(path, "cannot read the file")?;
    // The field is the last one of a candidate.
    Ok(text.split(|&byte| byte == b'\n').all(|line| line.is_empty() || line.ends_with(b",\"rewrite\":\"\"}")))
}

/// The candidates of one row.
pub(super) fn candidates<'a>(
    row: &'a Row,
    example: &'a Example,
    choices: &'a BTreeMap<(u32, u16), Vec<Choice>>,
) -> impl Iterator<Item = Candidate<'a>> {
    choices.range((row.row, 0)..=(row.row, u16::MAX)).filter_map(move |((_, turn), conflicts)| {
        let answer = example.turns.get(usize::from(*turn))?;
        let is_text = answer.tool_calls.is_none() && answer.reasoning.is_none();
        Some(Candidate {
            row: row.row,
            path: &row.path,
            line: row.line,
            id: row.id.as_deref(),
            turn: *turn,
            tools: example.tools.as_ref(),
            before: example.turns[..usize::from(*turn)].iter().map(said).collect(),
            answer: if is_text { answer.content.as_str().into() } else { Value::Object(said(answer)) },
            conflicts,
            rewrite: "",
        })
    })
}
