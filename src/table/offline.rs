//! Exchanges files with an engine that runs elsewhere: the sequences to score, and the answers about them.
//!
//! ```text
//! sequences.parquet         row u32, ids list u32, targets list u32 (indices of the tokens to score)
//! answers/NNNNN.parquet     row u32, pos u32, token_id u32, logprob f32, rank u32, top_ids list u32, top_logprobs list f32
//! ```
//!
//! Answers are in the order of the sequences and of their targets; the answer files are read in the order of their names. The metadata of each name
//! the model that gave the answers.

use std::path::{Path, PathBuf};

use polars::prelude as pl;
use polars::prelude::{IntoColumn, ListBuilderTrait};

use super::frames::{TABLE_KEY, write_frames};
use super::read::{RowGroups, read_provenance};
use crate::engine::bounds::{LEAST_TOP_K, Position, TopTokens};
use crate::error::{Context, Error, Result};
use crate::files::{file_sha256, sha256};
use crate::kernels::Choice;
use crate::tokens::Sequence;

pub(crate) const SEQUENCES_FILE: &str = "sequences.parquet";
pub(crate) const ANSWERS_FOLDER: &str = "answers";
/// The metadata key of the answers for the model that gave them.
const MODEL_KEY: &str = "diagnose.model";
/// The name of the table of sequences in its metadata.
const SEQUENCES: &str = "sequences";

const COLUMNS: [&str; 7] = ["row", "pos", "token_id", "logprob", "rank", "top_ids", "top_logprobs"];

fn lists<'a>(name: &str, n: usize, lists: impl Iterator<Item = &'a [u32]>) -> pl::Column {
    let mut builder = pl::ListPrimitiveChunkedBuilder::<pl::UInt32Type>::new(name.into(), n, 64 * n, pl::DataType::UInt32);
    lists.for_each(|list| builder.append_slice(list));
    builder.finish().into_column()
}

/// Writes batches of sequences, each cut after its last target, and returns their number.
pub(crate) fn write_sequences(path: &Path, batches: impl Iterator<Item = Result<Vec<Sequence>>>) -> Result<u64> {
    let list = pl::DataType::List(Box::new(pl::DataType::UInt32));
    let fields = [("row", pl::DataType::UInt32), ("ids", list.clone()), ("targets", list)];
    let schema: pl::Schema = fields.into_iter().map(|(name, dtype)| pl::Field::new(name.into(), dtype)).collect();
    let mut n_written = 0;
    write_frames(path, SEQUENCES, &schema, &[], |writer| {
        for batch in batches {
            let batch = batch?;
            let targets: Vec<Vec<u32>> =
                batch.iter().map(|sequence| sequence.targets().map(|(pos, _)| pos as u32).collect()).collect();
            let n = batch.len();
            let columns = vec![
                pl::UInt32Chunked::from_vec("row".into(), batch.iter().map(|sequence| sequence.row).collect()).into_column(),
                lists("ids", n, batch.iter().map(|sequence| &sequence.ids[..sequence.targets_end()])),
                lists("targets", n, targets.iter().map(Vec::as_slice)),
            ];
            writer.write_batch(&pl::DataFrame::new(n, columns)?)?;
            n_written += n as u64;
        }
        Ok(())
    })?;
    Ok(n_written)
}

/// Whether the file is one that [`write_sequences`] wrote.
pub(crate) fn are_sequences(path: &Path) -> bool {
    let is_name = |(key, value): &(String, String)| key == TABLE_KEY && value == SEQUENCES;
    path.is_file() && read_provenance(path).is_ok_and(|provenance| provenance.iter().any(is_name))
}

/// Reads the answers in a folder, in the order of the sequences.
pub(crate) struct Answers {
    groups: RowGroups,
    /// The sequences that were answered.
    sent: RowGroups,
    /// Sequences that have been read but not used, the next one last: rows with their ids.
    sent_ready: Vec<(u32, Vec<u32>)>,
    /// Positions that have been read but not used, the next one last.
    ready: Vec<(u32, u32, Position)>,
    folder: PathBuf,
    /// The size of the vocabulary; all ids are below it.
    vocab: usize,
    /// The number of most probable tokens at each position; 0 before the first is read.
    pub top_k: usize,
}

impl Answers {
    /// Opens the answers of a model whose vocabulary has `vocab` tokens, and the file of the sequences that were sent, which is beside them.
    pub(crate) fn open(folder: &Path, vocab: usize) -> Result<Answers> {
        let groups = RowGroups::one_by_one(&Answers::files(folder)?, COLUMNS.to_vec());
        let sequences = folder.join(SEQUENCES_FILE);
        if !sequences.exists() {
            return Err(Error::new("the file of the answered sequences is missing: the answers may belong to others")
                .at(sequences)
                .cure("Put the one written by --emit back beside the folder of the answers."));
        }
        let sent = RowGroups::one_by_one(&[sequences], vec!["row", "ids"]);
        let folder = folder.join(ANSWERS_FOLDER);
        Ok(Answers { groups, sent, sent_ready: Vec::new(), ready: Vec::new(), folder, vocab, top_k: 0 })
    }

    /// Checks that the answered sequence of this row has the same ids as `sequence`, up to its last target.
    fn check_sent(&mut self, sequence: &Sequence) -> Result<()> {
        let other = |what: String| {
            Error::new(what).at(self.folder.with_file_name(SEQUENCES_FILE)).cure(
                "Use the same data and options as with --emit (template, --system, --max-len, --supervise ..), or emit into another folder.",
            )
        };
        let (row, ids) = loop {
            match self.sent_ready.pop() {
                Some((row, _)) if row < sequence.row => {}
                Some(found) => break found,
                None => match self.sent.next_frames()?.pop() {
                    Some((_, frame)) => {
                        self.sent_ready = sent_of(&frame)?;
                        self.sent_ready.reverse();
                    }
                    None => return Err(other(format!("the sequences that were answered end before row {}", sequence.row))),
                },
            }
        };
        if row != sequence.row {
            return Err(other(format!("row {} was not scored; the next scored row is row {row}", sequence.row)));
        }
        let own = &sequence.ids[..sequence.targets_end()];
        if let Some(at) = (0..own.len().max(ids.len())).find(|&at| own.get(at) != ids.get(at)) {
            let said = |id: Option<&u32>| id.map_or_else(|| "no".to_owned(), |id| format!("id {id} as"));
            return Err(other(format!(
                "row {row} has {} token {at}, and {} token {at} in the answered sequences: the answers belong to other sequences",
                said(own.get(at)),
                said(ids.get(at))
            )));
        }
        Ok(())
    }

    fn files(folder: &Path) -> Result<Vec<PathBuf>> {
        let answers = folder.join(ANSWERS_FOLDER);
        let cannot = "cannot list the folder of the answers";
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(&answers).context_at(&answers, cannot)? {
            paths.push(entry.context_at(&answers, cannot)?.path());
        }
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "parquet"));
        paths.sort();
        Ok(paths)
    }

    /// Returns the model that gave the answers, with the options on which its numbers depend, if the files name it. Returns an error if they name
    /// several.
    pub(crate) fn model(folder: &Path) -> Result<Option<String>> {
        let mut known: Option<(PathBuf, Option<String>)> = None;
        for path in Answers::files(folder)? {
            let named = read_provenance(&path)?.into_iter().find(|(key, _)| key == MODEL_KEY).map(|(_, model)| model);
            match &known {
                Some((other, model)) if *model != named => {
                    let said = |model: &Option<String>| model.clone().unwrap_or_else(|| "no model".to_owned());
                    return Err(Error::new(format!(
                        "the answers are of several models: this file names {}, and {} names {}",
                        said(&named),
                        other.display(),
                        said(model)
                    ))
                    .at(path)
                    .cure("Remove the answers of all models but one, and run the driver again with that one."));
                }
                Some(_) => {}
                None => known = Some((path, named)),
            }
        }
        Ok(known.and_then(|(_, model)| model))
    }

    /// Returns the SHA-256 over the hashes of all files in order. File names affect only the order.
    pub(crate) fn hash(folder: &Path) -> Result<String> {
        let hashes = Answers::files(folder)?.iter().map(|path| file_sha256(path)).collect::<Result<Vec<_>>>()?;
        Ok(sha256(hashes.join("\n")))
    }

    /// Returns the answers to a sequence, skipping earlier rows.
    pub(crate) fn of(&mut self, sequence: &Sequence) -> Result<Vec<Position>> {
        self.check_sent(sequence)?;
        let missing = |what: String| {
            Error::new(what).at(&self.folder).cure(
                "Run the driver again: it completes what is missing. After another --emit, first remove the answers to the earlier sequences.",
            )
        };
        let mut positions = Vec::new();
        for (pos, id) in sequence.targets().map(|(pos, id)| (pos as u32, id)) {
            let (row, at, position) = loop {
                match self.ready.pop() {
                    Some((row, ..)) if row < sequence.row => {}
                    Some(found) => break found,
                    None => match self.groups.next_frames()?.pop() {
                        Some((path, frame)) => {
                            self.ready = positions_of(&frame, &mut self.top_k, self.vocab).map_err(|error| error.at(path))?;
                            self.ready.reverse();
                        }
                        None => return Err(missing(format!("the answers end before row {}, token {pos}", sequence.row))),
                    },
                }
            };
            if (row, at) != (sequence.row, pos) {
                return Err(missing(format!(
                    "expected the answer to row {}, token {pos}, found row {row}, token {at}",
                    sequence.row
                )));
            }
            if position.target.id != id {
                return Err(missing(format!(
                    "row {row} has {id} as its token {pos}, the answer is about {}: it belongs to other sequences",
                    position.target.id
                )));
            }
            positions.push(position);
        }
        Ok(positions)
    }
}

fn sent_of(frame: &pl::DataFrame) -> Result<Vec<(u32, Vec<u32>)>> {
    let rows = frame.column("row")?.u32()?.cont_slice()?;
    let ids = frame.column("ids")?.list()?.amortized_iter();
    let with_ids = rows.iter().zip(ids).map(|(row, ids)| {
        let ids = ids.and_then(|ids| ids.as_ref().u32().ok().and_then(|ids| ids.to_vec_null_aware().left()));
        ids.map(|ids| (*row, ids)).ok_or_else(|| Error::new(format!("the ids of row {row} are missing")))
    });
    with_ids.collect()
}

fn positions_of(frame: &pl::DataFrame, top_k: &mut usize, vocab: usize) -> Result<Vec<(u32, u32, Position)>> {
    let numbers = |name: &str| -> Result<Vec<u32>> { Ok(frame.column(name)?.u32()?.cont_slice()?.to_vec()) };
    let (rows, pos, ids, ranks) = (numbers("row")?, numbers("pos")?, numbers("token_id")?, numbers("rank")?);
    let logprobs = frame.column("logprob")?.f32()?.cont_slice()?;
    let (top_ids, top_logprobs) = (frame.column("top_ids")?.list()?, frame.column("top_logprobs")?.list()?);
    let mut positions = Vec::with_capacity(rows.len());
    for (i, (ids_of, logprobs_of)) in top_ids.amortized_iter().zip(top_logprobs.amortized_iter()).enumerate() {
        let (Some(ids_of), Some(logprobs_of)) = (ids_of, logprobs_of) else {
            return Err(Error::new(format!("the most probable tokens of answer {i} are missing")));
        };
        let (ids_of, logprobs_of) = (ids_of.as_ref().u32()?.to_vec_null_aware(), logprobs_of.as_ref().f32()?.to_vec_null_aware());
        let (Some(ids_of), Some(logprobs_of)) = (ids_of.left(), logprobs_of.left()) else {
            return Err(Error::new(format!("one of the most probable tokens of answer {i} is missing")));
        };
        let top: Vec<Choice> =
            ids_of.iter().zip(&logprobs_of).map(|(id, logprob)| Choice { id: *id, logprob: *logprob }).collect();
        let target = Choice { id: ids[i], logprob: logprobs[i] };
        if *top_k == 0 {
            *top_k = top.len().max(LEAST_TOP_K);
        }
        positions.push((
            rows[i],
            pos[i],
            Position::new(pos[i] as usize, target, Some(ranks[i]), top, TopTokens { top_k: *top_k, vocab })?,
        ));
    }
    Ok(positions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::Span;

    fn sequence(row: u32, ids: &[u32], targets: &[usize]) -> Sequence {
        let supervised = (0..ids.len()).map(|i| targets.contains(&i)).collect();
        Sequence { row, ids: ids.to_vec(), supervised, spans: vec![Span::default(); ids.len()] }
    }

    fn write_answers(path: &Path, answers: &[(u32, u32, u32, f32)]) {
        write_answers_of(None, path, answers);
    }

    /// Writes answers `(row, pos, token_id, logprob)` as an engine does, with twenty most probable tokens each.
    fn write_answers_of(model: Option<&str>, path: &Path, answers: &[(u32, u32, u32, f32)]) {
        let n = answers.len();
        let top: Vec<u32> = (100..120).collect();
        let mut logprobs =
            pl::ListPrimitiveChunkedBuilder::<pl::Float32Type>::new("top_logprobs".into(), n, 20 * n, pl::DataType::Float32);
        let top_logprobs: Vec<f32> = (0..20).map(|i| -1.5 - 0.2 * i as f32).collect();
        answers.iter().for_each(|_| logprobs.append_slice(&top_logprobs));
        let numbers = |name: &str, of: fn(&(u32, u32, u32, f32)) -> u32| {
            pl::UInt32Chunked::from_vec(name.into(), answers.iter().map(of).collect()).into_column()
        };
        let columns = vec![
            numbers("row", |answer| answer.0),
            numbers("pos", |answer| answer.1),
            numbers("token_id", |answer| answer.2),
            pl::Float32Chunked::from_vec("logprob".into(), answers.iter().map(|answer| answer.3).collect()).into_column(),
            numbers("rank", |_| 30),
            lists("top_ids", n, answers.iter().map(|_| top.as_slice())),
            logprobs.finish().into_column(),
        ];
        let frame = pl::DataFrame::new(n, columns).unwrap();
        let provenance: Vec<_> = model.iter().map(|model| (MODEL_KEY.to_owned(), (*model).to_owned())).collect();
        write_frames(path, "answers", frame.schema(), &provenance, |writer| Ok(writer.write_batch(&frame)?)).unwrap();
    }

    #[test]
    fn answers_come_back_to_the_sequences_that_went_out() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path();
        let sequences = [sequence(3, &[7, 8, 9, 2], &[1, 2]), sequence(5, &[7, 4], &[1]), sequence(9, &[1, 2, 3], &[2])];
        let batches = [Ok(sequences[..2].to_vec()), Ok(sequences[2..].to_vec())];
        assert_eq!(write_sequences(&out.join(SEQUENCES_FILE), batches.into_iter()).unwrap(), 3);
        // The written sequences end at their last target.
        let file = std::fs::File::open(out.join(SEQUENCES_FILE)).unwrap();
        let written = pl::SerReader::finish(<pl::ParquetReader<_> as pl::SerReader<_>>::new(file)).unwrap();
        let ids = written.column("ids").unwrap().list().unwrap();
        let lengths: Vec<usize> = ids.amortized_iter().map(|list| list.unwrap().as_ref().len()).collect();
        assert_eq!(lengths, [3, 2, 3]);

        let answers = out.join(ANSWERS_FOLDER);
        std::fs::create_dir(&answers).unwrap();
        write_answers(&answers.join("00000.parquet"), &[(3, 1, 8, -6.0), (3, 2, 9, -7.0), (5, 1, 4, -8.0)]);
        write_answers(&answers.join("00001.parquet"), &[(9, 2, 3, -9.0)]);
        std::fs::write(answers.join("00002.17.part"), "half").unwrap();
        let mut read = Answers::open(out, 1000).unwrap();
        let first = read.of(&sequences[0]).unwrap();
        assert_eq!(
            first.iter().map(|position| (position.target.id, position.target.logprob)).collect::<Vec<_>>(),
            [(8, -6.0), (9, -7.0)]
        );
        assert_eq!((first[0].rank, first[0].top.len(), read.top_k), (Some(30), 20, 20));
        // A resumed run skips the answers that it has used before.
        assert_eq!(read.of(&sequences[2]).unwrap()[0].target.logprob, -9.0);

        let of_first = |sequence: &Sequence| Answers::open(out, 1000).unwrap().of(sequence).unwrap_err().to_string();
        let is_other = "has id 6 as token 0, and id 7 as token 0 in the answered sequences";
        assert!(of_first(&sequence(3, &[6, 8, 9], &[1, 2])).contains(is_other), "the same targets behind another prompt");
        assert!(of_first(&sequence(3, &[7, 8, 9], &[1])).contains("has no token 2, and id 9 as token 2"));
        assert!(of_first(&sequence(4, &[7, 6], &[1])).contains("row 4 was not scored; the next scored row is row 5"));
        assert!(of_first(&sequence(10, &[7, 6], &[1])).contains("the sequences that were answered end before row 10"));
        // Equal ids with other targets.
        assert!(of_first(&sequence(3, &[7, 8, 9], &[2])).contains("expected the answer to row 3, token 2, found row 3, token 1"));
        std::fs::rename(answers.join("00001.parquet"), out.join("elsewhere")).unwrap();
        assert!(of_first(&sequences[2]).contains("the answers end before row 9, token 2"));
        std::fs::rename(out.join(SEQUENCES_FILE), out.join("sent")).unwrap();
        assert!(Answers::open(out, 1000).err().unwrap().to_string().contains("the answers may belong to others"));
    }

    #[test]
    fn answers_are_of_one_model() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path();
        std::fs::create_dir(out.join(ANSWERS_FOLDER)).unwrap();
        let found = |models: [Option<&str>; 2]| {
            for (name, model) in ["00000.parquet", "00001.parquet"].into_iter().zip(models) {
                write_answers_of(model, &out.join(ANSWERS_FOLDER).join(name), &[(3, 1, 8, -6.0)]);
            }
            Answers::model(out).map_err(|error| error.to_string())
        };
        assert_eq!(found([Some("/m/a dtype=float16"); 2]).unwrap().as_deref(), Some("/m/a dtype=float16"));
        assert_eq!(found([None; 2]).unwrap(), None, "another program may not name it");
        let error = found([Some("/m/a"), Some("/m/b")]).unwrap_err();
        assert!(error.contains("00001.parquet") && error.contains("names /m/b") && error.contains("names /m/a"), "{error}");
        assert!(found([Some("/m/a"), None]).unwrap_err().contains("names no model"));
    }

    #[test]
    fn answers_are_known_by_all_their_files() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path();
        let path = |name: &str| out.join(ANSWERS_FOLDER).join(name);
        std::fs::create_dir(out.join(ANSWERS_FOLDER)).unwrap();
        let write = |logprobs: [f32; 2]| {
            write_answers(&path("00000.parquet"), &[(3, 1, 8, logprobs[0])]);
            write_answers(&path("00001.parquet"), &[(9, 2, 3, logprobs[1])]);
            Answers::hash(out).unwrap()
        };
        let size = || std::fs::metadata(path("00001.parquet")).unwrap().len();
        let before = (write([-6.0, -9.0]), size());
        assert_ne!(write([-6.5, -9.0]), before.0);
        // Another number of the same length, in a file that is not the first.
        let after = (write([-6.0, -9.5]), size());
        assert_eq!(after.1, before.1);
        assert_ne!(after.0, before.0);
        assert_eq!(write([-6.0, -9.0]), before.0);
        std::fs::rename(path("00001.parquet"), path("00002.parquet")).unwrap();
        assert_eq!(Answers::hash(out).unwrap(), before.0, "their order counts, not their names");
        std::fs::rename(path("00002.parquet"), path("0.parquet")).unwrap();
        assert_ne!(Answers::hash(out).unwrap(), before.0);
    }
}
