//! Reads and writes samples.parquet: one row per item and choice, from which every score of the folder that is based on
//! log-likelihoods can be recomputed; written answers are in `answers.rs`.
//!
//! | column | meaning |
//! |---|---|
//! | task, id str | |
//! | subject, group str | the part of the task, and the group of items that were drawn together; null if there is none |
//! | choice, answer u32 | both counted from 0 |
//! | logprob f64 | ln P(continuation given context) |
//! | greedy bool | is every token of the continuation the model's most probable one? |
//! | tokens, chars, bytes, words u32 | of the choice without the space before it; tokens: those that were scored |
//! | picked, picked_norm bool | is it the choice with the highest logprob of its item, in total and per character? |
//! | prompt_sha256 str | of the first context, as lm-evaluation-harness hashes it (`prompt_hash`); of a training row, its turns; null for a text |
//!
//! A text has one row per window, with `choice` 0.

use std::collections::HashMap;
use std::path::Path;

use polars::prelude as pl;
use polars::prelude::SerReader;

use super::metrics::{ChoiceScore, Sample};
use crate::error::{Context, Error, Result};
use crate::files::write_atomically;

/// The name of the file in the folder of an evaluation.
pub const SAMPLES_FILE: &str = "samples.parquet";

/// Writes the samples of `tasks`, which are pairs of a task's name and its samples, in this order.
pub fn write(path: &Path, tasks: &[(&str, &[Sample])]) -> Result<()> {
    struct Row<'a> {
        task: &'a str,
        sample: &'a Sample,
        choice: usize,
        picked: bool,
        picked_norm: bool,
    }
    let mut rows = Vec::new();
    for (task, samples) in tasks {
        for sample in *samples {
            let (picked, picked_norm) = (sample.picked(|_| 1.0), sample.picked(|score| f64::from(score.chars)));
            rows.extend((0..sample.choices.len()).map(|choice| Row {
                task,
                sample,
                choice,
                picked: choice == picked,
                picked_norm: choice == picked_norm,
            }));
        }
    }
    macro_rules! column {
        ($name:literal, $row:ident, $value:expr) => {
            pl::Column::new($name.into(), rows.iter().map(|$row| $value).collect::<Vec<_>>())
        };
    }
    let columns = vec![
        column!("task", row, row.task),
        column!("id", row, row.sample.id.as_str()),
        column!("subject", row, row.sample.subject.as_deref()),
        column!("group", row, row.sample.group.as_deref()),
        column!("choice", row, row.choice as u32),
        column!("answer", row, row.sample.answer),
        column!("logprob", row, row.sample.choices[row.choice].logprob),
        column!("greedy", row, row.sample.choices[row.choice].greedy),
        column!("tokens", row, row.sample.choices[row.choice].tokens),
        column!("chars", row, row.sample.choices[row.choice].chars),
        column!("bytes", row, row.sample.choices[row.choice].bytes),
        column!("words", row, row.sample.choices[row.choice].words),
        column!("picked", row, row.picked),
        column!("picked_norm", row, row.picked_norm),
        column!("prompt_sha256", row, row.sample.prompt_sha256.as_deref()),
    ];
    let mut frame = pl::DataFrame::new(rows.len(), columns)?;
    write_atomically(path, |file| {
        pl::ParquetWriter::new(file).finish(&mut frame)?;
        Ok(())
    })
}

/// Reads the samples of each task by its name.
pub fn read(path: &Path) -> Result<HashMap<String, Vec<Sample>>> {
    let file = std::fs::File::open(path).context_at(path, "cannot open the table of samples")?;
    let frame = pl::ParquetReader::new(file).finish().context_at(path, "cannot read the table of samples")?;
    samples_of(&frame).map_err(|error| error.at(path))
}

fn samples_of(frame: &pl::DataFrame) -> Result<HashMap<String, Vec<Sample>>> {
    let column = |name: &str| {
        frame.column(name).map_err(|_| {
            Error::new(format!("the table of samples has no column `{name}`"))
                .cure("Evaluate again with this version of the program.")
        })
    };
    let (task, id) = (column("task")?.str()?, column("id")?.str()?);
    // A column without any value has no type.
    let (subject, group) = (column("subject")?.cast(&pl::DataType::String)?, column("group")?.cast(&pl::DataType::String)?);
    let (subject, group) = (subject.str()?, group.str()?);
    let (choice, answer, greedy) = (column("choice")?.u32()?, column("answer")?.u32()?, column("greedy")?.bool()?);
    let (logprob, tokens) = (column("logprob")?.f64()?, column("tokens")?.u32()?);
    let (chars, bytes, words) = (column("chars")?.u32()?, column("bytes")?.u32()?, column("words")?.u32()?);
    // Older tables lack this column.
    let prompt = frame.column("prompt_sha256").ok().map(|column| column.cast(&pl::DataType::String)).transpose()?;
    let prompt = prompt.as_ref().map(|column| column.str()).transpose()?;
    let mut tasks: HashMap<String, Vec<Sample>> = HashMap::new();
    for row in 0..frame.height() {
        let whole = |column: &pl::UInt32Chunked| column.get(row).unwrap_or_default();
        let samples = tasks.entry(task.get(row).unwrap_or_default().to_owned()).or_default();
        if whole(choice) == 0 {
            samples.push(Sample {
                id: id.get(row).unwrap_or_default().to_owned(),
                subject: subject.get(row).map(str::to_owned),
                group: group.get(row).map(str::to_owned),
                answer: whole(answer),
                prompt_sha256: prompt.and_then(|column| column.get(row)).map(str::to_owned),
                ..Sample::default()
            });
        }
        let score = ChoiceScore {
            logprob: logprob.get(row).unwrap_or(f64::NAN),
            greedy: greedy.get(row).unwrap_or_default(),
            tokens: whole(tokens),
            chars: whole(chars),
            bytes: whole(bytes),
            words: whole(words),
        };
        match samples.last_mut() {
            Some(sample) if sample.choices.len() == whole(choice) as usize => sample.choices.push(score),
            _ => {
                return Err(Error::new(format!("row {row} of the table of samples is not the next choice of its item"))
                    .cure("Evaluate the task again, into another folder."));
            }
        }
    }
    Ok(tasks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let score = |logprob, chars| ChoiceScore { logprob, greedy: chars > 1, tokens: 3, chars, bytes: 9, words: 1 };
        let sample = |id: &str, name: Option<&str>, choices| Sample {
            id: id.into(),
            subject: name.map(Into::into),
            group: name.map(|name| name.repeat(2)),
            answer: 1,
            choices,
            prompt_sha256: name.map(str::to_owned),
            draws: Vec::new(),
        };
        let a = vec![sample("x", Some("law"), vec![score(-1.5, 1), score(-2.0, 4)]), sample("y", None, vec![score(-0.25, 2)])];
        let b = vec![sample("x", None, vec![score(f64::NEG_INFINITY, 1)])];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SAMPLES_FILE);
        write(&path, &[("a", &a), ("b", &b)]).unwrap();
        let mut found = read(&path).unwrap();
        assert_eq!((found.remove("a").unwrap(), found.remove("b").unwrap(), found.len()), (a, b, 0));
    }
}
