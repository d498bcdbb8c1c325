//! Reads and writes answers.parquet: one row per item and written answer, from which every score of the folder that depends on
//! written answers can be recomputed.
//!
//! | column | meaning |
//! |---|---|
//! | task, id str | |
//! | subject, group str | the part of the task, and the group of items that were drawn together; null if there is none |
//! | draw u32 | the number of the answer to its item, from 0 |
//! | text str | the text that was judged: without control tokens, up to the first stop string |
//! | tokens u32 | the number of generated tokens, including the end token |
//! | ended str | `end_token`, `stop` or `length` |
//! | prompt_sha256 str | of the text before the answer, as lm-evaluation-harness hashes it (`prompt_hash`) |
//! | METRIC u32 | how many things in the answer are right, for each metric of any task; null in the rows of other tasks |
//! | METRIC of u32 | .. out of how many: 1 for an answer that is right or wrong as a whole |

use std::collections::HashMap;
use std::path::Path;

use polars::prelude as pl;
use polars::prelude::SerReader;

use super::metrics::{Draw, Sample};
use super::written::Verdict;
use crate::engine::generate::Ended;
use crate::error::{Context, Error, Result};
use crate::files::write_atomically;

/// The name of the file in the folder of an evaluation.
pub const ANSWERS_FILE: &str = "answers.parquet";

/// The columns before those of the metrics.
const FIXED: [&str; 9] = ["task", "id", "subject", "group", "draw", "text", "tokens", "ended", "prompt_sha256"];

/// Writes the samples of `tasks`, which are pairs of a task's name and its samples, in this order.
pub fn write(path: &Path, tasks: &[(&str, &[Sample])]) -> Result<()> {
    struct Row<'a> {
        task: &'a str,
        sample: &'a Sample,
        number: usize,
        draw: &'a Draw,
    }
    let mut rows = Vec::new();
    let mut metrics: Vec<&str> = Vec::new();
    for (task, samples) in tasks {
        for sample in *samples {
            rows.extend(sample.draws.iter().enumerate().map(|(number, draw)| Row { task, sample, number, draw }));
        }
    }
    for verdict in rows.iter().flat_map(|row| &row.draw.verdicts) {
        if !metrics.contains(&verdict.metric.as_str()) {
            metrics.push(&verdict.metric);
        }
    }
    macro_rules! column {
        ($name:literal, $row:ident, $value:expr) => {
            pl::Column::new($name.into(), rows.iter().map(|$row| $value).collect::<Vec<_>>())
        };
    }
    let mut columns = vec![
        column!("task", row, row.task),
        column!("id", row, row.sample.id.as_str()),
        column!("subject", row, row.sample.subject.as_deref()),
        column!("group", row, row.sample.group.as_deref()),
        column!("draw", row, row.number as u32),
        column!("text", row, row.draw.text.as_str()),
        column!("tokens", row, row.draw.tokens),
        column!("ended", row, row.draw.ended.name()),
        column!("prompt_sha256", row, row.sample.prompt_sha256.as_deref()),
    ];
    for metric in metrics {
        let of_metric = |row: &Row| row.draw.verdicts.iter().find(|verdict| verdict.metric == metric).cloned();
        let counts: Vec<Option<Verdict>> = rows.iter().map(of_metric).collect();
        let column = |name: String, count: fn(&Verdict) -> u32| {
            pl::Column::new(name.into(), counts.iter().map(|verdict| verdict.as_ref().map(count)).collect::<Vec<_>>())
        };
        columns.push(column(metric.to_owned(), |verdict| verdict.right));
        columns.push(column(format!("{metric} of"), |verdict| verdict.of));
    }
    let mut frame = pl::DataFrame::new(rows.len(), columns)?;
    write_atomically(path, |file| {
        pl::ParquetWriter::new(file).finish(&mut frame)?;
        Ok(())
    })
}

/// Reads the samples of each task by its name.
pub fn read(path: &Path) -> Result<HashMap<String, Vec<Sample>>> {
    let file = std::fs::File::open(path).context_at(path, "cannot open the table of answers")?;
    let frame = pl::ParquetReader::new(file).finish().context_at(path, "cannot read the table of answers")?;
    samples_of(&frame).map_err(|error| error.at(path))
}

fn samples_of(frame: &pl::DataFrame) -> Result<HashMap<String, Vec<Sample>>> {
    let column = |name: &str| {
        frame.column(name).map_err(|_| {
            Error::new(format!("the table of answers has no column `{name}`"))
                .cure("Evaluate again with this version of the program.")
        })
    };
    // A column without any value has no type.
    let texts = |name: &str| Ok::<_, Error>(column(name)?.cast(&pl::DataType::String)?);
    let counts = |name: &str| Ok::<_, Error>(column(name)?.cast(&pl::DataType::UInt32)?);
    let [task, id, subject, group] = [texts("task")?, texts("id")?, texts("subject")?, texts("group")?];
    let [text, ended, prompt] = [texts("text")?, texts("ended")?, texts("prompt_sha256")?];
    let (task, id, subject, group) = (task.str()?, id.str()?, subject.str()?, group.str()?);
    let (text, ended, prompt) = (text.str()?, ended.str()?, prompt.str()?);
    let [draw, tokens] = [counts("draw")?, counts("tokens")?];
    let (draw, tokens) = (draw.u32()?, tokens.u32()?);
    let names: Vec<String> = frame.get_column_names().into_iter().map(|name| name.to_string()).collect();
    let metrics: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| !FIXED.contains(name) && names.contains(&format!("{name} of"))).collect();
    let columns = metrics.iter().map(|metric| Ok((counts(metric)?, counts(&format!("{metric} of"))?)));
    let columns = columns.collect::<Result<Vec<_>>>()?;
    let verdict_columns = columns.iter().map(|(right, of)| Ok((right.u32()?, of.u32()?))).collect::<Result<Vec<_>>>()?;
    let mut tasks: HashMap<String, Vec<Sample>> = HashMap::new();
    for row in 0..frame.height() {
        let number = draw.get(row).unwrap_or_default();
        let samples = tasks.entry(task.get(row).unwrap_or_default().to_owned()).or_default();
        if number == 0 {
            samples.push(Sample {
                id: id.get(row).unwrap_or_default().to_owned(),
                subject: subject.get(row).map(str::to_owned),
                group: group.get(row).map(str::to_owned),
                prompt_sha256: prompt.get(row).map(str::to_owned),
                ..Sample::default()
            });
        }
        let verdict = |(metric, (right, of)): (&&str, &(&pl::UInt32Chunked, &pl::UInt32Chunked))| {
            Some(Verdict::of_parts(metric, right.get(row)?, of.get(row)?))
        };
        let ended = Ended::ALL.into_iter().find(|known| Some(known.name()) == ended.get(row));
        let ended =
            ended.ok_or_else(|| damaged(format!("row {row} of the table of answers does not record how its answer ended")))?;
        let draw = Draw {
            text: text.get(row).unwrap_or_default().to_owned(),
            tokens: tokens.get(row).unwrap_or_default(),
            ended,
            verdicts: metrics.iter().zip(&verdict_columns).filter_map(verdict).collect(),
        };
        match samples.last_mut() {
            Some(sample) if sample.draws.len() == number as usize => sample.draws.push(draw),
            _ => return Err(damaged(format!("row {row} of the table of answers is not the next answer to its item"))),
        }
    }
    Ok(tasks)
}

fn damaged(what: String) -> Error {
    Error::new(what).cure("Evaluate the task again, into another folder.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let draw = |text: &str, ended, verdicts| Draw { text: text.into(), tokens: 3, ended, verdicts };
        let sample = |id: &str, name: Option<&str>, draws| Sample {
            id: id.into(),
            subject: name.map(str::to_owned),
            prompt_sha256: Some("ab".into()),
            draws,
            ..Sample::default()
        };
        let (strict, flexible) =
            (Verdict::of_answer("exact_match,strict-match", true), Verdict::of_answer("exact_match,flexible-extract", false));
        let a = vec![
            sample("x", Some("law"), vec![draw("a\nb", Ended::Stop, vec![strict.clone(), flexible.clone()]); 2]),
            sample("y", None, vec![draw("", Ended::Length, vec![flexible, strict]); 2]),
        ];
        let b = vec![sample("x", None, vec![draw("é", Ended::EndToken, vec![Verdict::of_parts("parts", 2, 5)])])];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(ANSWERS_FILE);
        write(&path, &[("a", &a), ("b", &b)]).unwrap();
        let mut found = read(&path).unwrap();
        let (mut found_a, found_b) = (found.remove("a").unwrap(), found.remove("b").unwrap());
        assert_eq!((found_b, found.len()), (b, 0));
        // Verdicts come in a fixed order, which may differ from the original.
        found_a[1].draws.iter_mut().for_each(|draw| draw.verdicts.reverse());
        assert_eq!(found_a, a);
    }
}
