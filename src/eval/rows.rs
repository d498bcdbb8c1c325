//! Evaluates a user's own rows as a task: how probable does the model find their answers?
//!
//! Accepts every training format; loss mask and chat template are applied as in training and scoring (`tokens`). Rows are the
//! items, over which the intervals are computed; if the rows have several sources, these are the parts of the task. The metric is
//! the cross-entropy of the answers: nats per supervised token, over all tokens of all rows.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use rayon::prelude::*;
use serde_json::{Value, json};

use super::metrics::{ChoiceScore, Sample};
use super::score::{Said, Say, Scored, take_chunk};
use super::tasks::{Examples, FewShot, Item, Task, TaskKind, task_name};
use crate::dataset::{self, Dataset, Example, Format, ReadOptions, Role};
use crate::error::{Error, Result};
use crate::files::{file_sha256, sha256};
use crate::tokens::{Renderer, Sequence};

/// The version of the metric.
const VERSION: u32 = 1;

/// Does the file contain training rows rather than questions or a text? The first row decides.
pub fn holds_rows(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_ascii_lowercase());
    if extension.is_some_and(|extension| extension == "txt") {
        return false;
    }
    // If the file cannot be read, the reader of questions reports why.
    let Some((_, row)) = dataset::rows(path).ok().and_then(|mut rows| rows.next()?.ok()) else { return false };
    let has = |keys: &[&str]| keys.iter().any(|key| row.get(*key).is_some_and(|value| !value.is_null()));
    // The forms of questions in `tasks.rs`.
    if has(&["choices", "continuation"]) {
        return false;
    }
    let is_asked = has(&["prompt", "messages"]) && has(&["answer", "answers", "match"]);
    let Ok(data) = open(path) else { return false };
    data.files().iter().all(|file| match file.format {
        // A column `text` beside messages or an instruction does not make a row a text: the keys that define a format decide.
        Format::Text => false,
        _ if !is_asked => true,
        // A row that has an answer to learn is no question, though another column may name the short form of that answer.
        Format::Messages | Format::ShareGpt | Format::Oasst => {
            let first = data.records().next().and_then(|record| record.ok()?.example.ok());
            first.and_then(|example| Some(example.turns.last()?.role)) == Some(Role::Assistant)
        }
        Format::PromptCompletion | Format::QuestionAnswer => has(&["completion", "response", "output", "chosen"]),
        Format::Alpaca | Format::SelfInstruct => true,
    })
}

fn open(path: &Path) -> Result<Dataset> {
    Dataset::open(&[path.to_string_lossy().into_owned()], &ReadOptions::default())
}

/// Reads the rows of a file. A row that cannot be read is an error.
pub fn read(path: &Path) -> Result<Task> {
    let dataset = open(path)?;
    let mut rows: Vec<(u32, Example)> = Vec::new();
    for record in dataset.records() {
        let record = record?;
        rows.push((record.row, record.example.map_err(|error| error.cure("Correct the row, or remove it."))?));
    }
    if rows.is_empty() {
        return Err(Error::new("the file holds no rows").at(path).cure("Name a file with training rows."));
    }
    let sources: HashSet<&str> = rows.iter().map(|(_, example)| example.source.as_str()).collect();
    let ids: HashSet<&str> = rows.iter().filter_map(|(_, example)| example.id.as_deref()).collect();
    let (has_sources, has_ids) = (sources.len() > 1, ids.len() == rows.len());
    let mut counts: HashMap<String, u32> = HashMap::new();
    let item = |(_, example): (u32, Example)| Item {
        id: example.id.clone().filter(|_| has_ids).unwrap_or_else(|| own_name(&example, &mut counts)),
        subject: has_sources.then(|| example.source.clone()),
        row: Some(Box::new(example)),
        ..Item::default()
    };
    Ok(Task {
        name: task_name(path, "rows"),
        version: VERSION,
        path: path.to_string_lossy().into_owned(),
        sha256: file_sha256(path)?,
        kind: TaskKind::Rows,
        written: None,
        items: rows.into_iter().map(item).collect(),
        examples: Examples::Own,
        few_shot: FewShot::default(),
    })
}

/// A name for a row without a unique id, derived from its content, so that a comparison finds the row even in another order; rows
/// with equal content are numbered.
fn own_name(example: &Example, counts: &mut HashMap<String, u32>) -> String {
    let mut name = content_sha256(example);
    name.truncate(12);
    let n = counts.entry(name.clone()).or_default();
    *n += 1;
    if *n > 1 { format!("{name}-{n}") } else { name }
}

/// The hash of everything in a row that the model sees.
fn content_sha256(example: &Example) -> String {
    let turns: Vec<Value> = example
        .turns
        .iter()
        .map(|turn| {
            json!([turn.role.name(), turn.content, turn.reasoning, turn.tool_calls, turn.tool_call_id, turn.name, turn.weight])
        })
        .collect();
    sha256(json!([turns, example.tools, example.template_switches]).to_string())
}

/// Scores the rows. `progress` receives the number of tokens done and the total.
pub fn score(task: &Task, renderer: &Renderer, say: &mut Say, progress: &mut dyn FnMut(u64, u64)) -> Result<Scored> {
    let rendered = |item: &Item| -> Result<(Sequence, bool)> {
        let example = item.row.as_ref().ok_or_else(|| Error::new("an item is not a training row"))?;
        let rendered = renderer.render(0, example)?;
        match rendered.sequence.has_targets() {
            true => Ok((rendered.sequence, rendered.audit.truncated.is_some())),
            false => Err(Error::new("none of its tokens is supervised: it has no answer, or --max-len cuts it off")
                .cure("Remove the row, or use a larger --max-len.")),
        }
    };
    let named = |item: &Item| {
        rendered(item).map_err(|error| Error::new(format!("row `{}` cannot be scored", item.id)).caused_by(error).at(&task.path))
    };
    let (mut open, cut): (Vec<Sequence>, Vec<bool>) =
        task.items.par_iter().map(named).collect::<Result<Vec<_>>>()?.into_iter().unzip();
    let tokens: u64 = open.iter().map(|sequence| sequence.ids.len() as u64).sum();
    let (mut done, mut scores) = (0, Vec::with_capacity(open.len()));
    while !open.is_empty() {
        let chunk = take_chunk(&mut open, |sequence| sequence.ids.len());
        scores.extend(say(&chunk, &mut |within| progress(done + within, tokens))?);
        done += chunk.iter().map(|sequence| sequence.ids.len() as u64).sum::<u64>();
    }
    let sample = |(item, said): (&Item, Said)| Sample {
        id: item.id.clone(),
        subject: item.subject.clone(),
        choices: vec![ChoiceScore { logprob: said.logprob, greedy: said.greedy, tokens: said.tokens, ..ChoiceScore::default() }],
        // A comparison counts the rows with the same id but a different hash.
        prompt_sha256: item.row.as_deref().map(content_sha256),
        ..Sample::default()
    };
    Ok(Scored {
        samples: task.items.iter().zip(scores).map(sample).collect(),
        truncated: cut.into_iter().filter(|is_cut| *is_cut).count() as u64,
        without_system: 0,
        tokens,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_to_learn_from_are_told_from_questions() {
        let folder = tempfile::tempdir().unwrap();
        let holds = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            holds_rows(&path)
        };
        for row in [
            r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
            r#"{"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}]}"#,
            r#"{"instruction":"a","input":"","output":"b"}"#,
            r#"{"prompt":"a","completion":"b"}"#,
            r#"{"question":"a","answer":"b"}"#,
            // The text of the whole conversation beside its parts.
            r#"{"text":"a b","messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
            r#"{"instruction":"a","input":"","output":"b","text":"a b"}"#,
            // The short form of the answer beside it.
            r#"{"prompt":"a","completion":"It is b.","answer":"b"}"#,
            r#"{"problem":"a","solution":"b","answer":"b","messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
            // However the conversation is written.
            r#"{"messages":"[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]","answer":"b"}"#,
            r#"{"messages":[{"role":"user","content":"a"},{"role":"gpt","content":"b"}],"answer":"b"}"#,
            r#"{"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}],"prompt":"a","answer":"b"}"#,
        ] {
            assert!(holds("a.jsonl", row) && holds("a.json", &format!("[{row}]")), "{row}");
        }
        for row in [
            r#"{"context":"a","choices":["b","c"],"answer":0}"#,
            r#"{"context":"a","continuation":"b"}"#,
            r#"{"text":"a"}"#,
            r#"{"prompt":"a","answer":"b"}"#,
            r#"{"messages":[{"role":"user","content":"a"}],"answers":["b"]}"#,
            r#"{"messages":[{"role":"user","content":"a"}],"match":"exact"}"#,
            // A row of no known format.
            r#"{"prompt":"a"}"#,
            r#"{"a":1}"#,
            "no JSON",
        ] {
            assert!(!holds("a.jsonl", row), "{row}");
        }
        assert!(!holds("a.txt", r#"{"instruction":"a","output":"b"}"#));
    }

    #[test]
    fn rows_are_items_and_several_sources_are_parts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("held.out.jsonl");
        let row = |id: &str, source: &str| format!(r#"{{"id":"{id}","source":"{source}","prompt":"a","completion":"b"}}"#);
        std::fs::write(&path, [row("x", "law"), row("y", "art")].join("\n")).unwrap();
        let task = read(&path).unwrap();
        let named = |task: &Task| task.items.iter().map(|item| (item.id.clone(), item.subject.clone())).collect::<Vec<_>>();
        assert_eq!((task.name.as_str(), task.kind), ("held", TaskKind::Rows));
        assert_eq!(named(&task), [("x".to_owned(), Some("law".to_owned())), ("y".to_owned(), Some("art".to_owned()))]);
        // Ids that are not unique are ignored, and a single source does not form a part.
        std::fs::write(&path, [row("x", "law"), row("x", "law")].join("\n")).unwrap();
        let [(first, None), (second, None)] = &named(&read(&path).unwrap())[..] else { panic!("a single source is no part") };
        assert!(first.len() == 12 && *second == format!("{first}-2"), "{first} {second}");
        std::fs::write(&path, format!("{}\n{{\"prompt\": 7}}", row("x", "law"))).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("held.out.jsonl:2"));
    }
}
