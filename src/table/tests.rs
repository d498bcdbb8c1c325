//! Tests of the whole table: what is written is read back, through parts, finishing and sorting again.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use polars::prelude as pl;
use polars::prelude::SerReader;
use polars_arrow::datatypes::{ArrowDataType, IntegerType};

use super::testing::{Example, push, random_examples, token, write_parts};
use super::*;
use crate::Result;
use crate::provenance::PARTS_FOLDER;

const EVERY_COLUMN: [Column; 17] = {
    use Column::*;
    [
        Row,
        Turn,
        Pos,
        Source,
        TokenId,
        Begin,
        End,
        Logprob,
        Entropy,
        EntropyTopk,
        Rank,
        Tail,
        Varentropy,
        Grad,
        TopId,
        TopLogprob,
        Quadrant,
    ]
};

fn by_p_and_h(logprob: f32, entropy: f32, _tail: f32) -> Quadrant {
    match (logprob <= 0.25f32.ln(), entropy <= 1.0) {
        (true, true) => Quadrant::ConfidentConflict,
        (true, false) => Quadrant::Uncertain,
        (false, true) => Quadrant::Confident,
        (false, false) => Quadrant::Hesitant,
    }
}

fn read_all(paths: &[PathBuf], columns: &[Column]) -> Vec<TokenChunk> {
    read_chunks(paths, columns).collect::<Result<_>>().unwrap()
}

#[test]
fn two_rows_by_hand() {
    let run = tempfile::tempdir().unwrap();
    let conflict = token(5, 0.125, 0.5);
    let known = token(6, 0.5, 0.25);
    // The engine may score the later row first; the part is still sorted.
    let rows = [
        Example { row: 1, source: "b", tokens: vec![known] },
        Example { row: 0, source: "a", tokens: vec![known, conflict] },
        Example { row: 2, source: "b", tokens: vec![] },
    ];
    write_parts(run.path(), &[&rows]);
    assert_eq!(finish(run.path(), "test", by_p_and_h).unwrap(), Finished { tokens: 3, rows: 3 });

    let tokens = run.path().join(TOKENS_FILE);
    let chunks = read_all(std::slice::from_ref(&tokens), &EVERY_COLUMN);
    assert_eq!(chunks.len(), 1);
    let chunk = &chunks[0];
    assert_eq!(chunk.row, [0, 0, 1]);
    assert_eq!(chunk.pos, [1, 2, 1]);
    assert_eq!(chunk.turn, [1, 1, 1]);
    assert_eq!(chunk.token_id, [6, 5, 6]);
    assert_eq!(chunk.logprob, [0.5f32.ln(), 0.125f32.ln(), 0.5f32.ln()]);
    assert_eq!(chunk.tail, [0.5, 0.125, 0.5]);
    assert_eq!(chunk.source.iter().map(|source| chunk.sources[*source as usize].as_str()).collect::<Vec<_>>(), ["a", "a", "b"]);
    assert_eq!(chunk.quadrant, [Quadrant::Confident, Quadrant::ConfidentConflict, Quadrant::Confident]);

    let rows = read_rows(&run.path().join(ROWS_FILE)).unwrap();
    assert_eq!(
        rows.iter().map(|row| (row.row, row.conflicts, row.supervised)).collect::<Vec<_>>(),
        [(0, 1, 2), (1, 0, 1), (2, 0, 0)]
    );
    let loss = 8f32.ln();
    assert!((rows[0].conflict_loss - loss).abs() < 1e-6);
    assert!((rows[0].conflict_surplus - (loss - 0.5)).abs() < 1e-6);
    assert!((rows[0].perplexity.unwrap() - 4.0).abs() < 1e-5, "sqrt(2 * 8) is 4");
    assert_eq!((rows[2].skipped.as_deref(), rows[2].line, rows[2].perplexity), (Some("nothing to score"), 3, None));

    let texts = texts_of(std::slice::from_ref(&tokens), &HashSet::from([5, 7, 1000])).unwrap();
    assert_eq!(texts, [(5, "t5".to_owned()), (7, "t7".to_owned())].into());
    assert!(read_provenance(&tokens).unwrap().contains(&("diagnose.model".to_owned(), "a test".to_owned())));
    assert!(!run.path().join(PARTS_FOLDER).exists());

    // The state after a kill while the parts were removed.
    let retired = run.path().join(".parts.retired");
    std::fs::create_dir(&retired).unwrap();
    finish(run.path(), "test", by_p_and_h).unwrap();
    assert!(!retired.exists());
}

#[test]
fn parts_and_one_piece_give_the_same_table() {
    let examples = random_examples(1, 0..60);
    let (whole, split) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_parts(whole.path(), &[&examples]);
    write_parts(split.path(), &[&examples[..20], &examples[20..45], &examples[45..]]);
    let paths = |parts: &[Part]| parts.iter().map(|part| part.tokens.clone()).collect::<Vec<_>>();
    let stored = &EVERY_COLUMN[..16];
    let parts = read_all(&paths(&finished_parts(split.path()).unwrap()), stored);
    assert_eq!(parts.len(), 3);
    // A source has the same index in every chunk of one read.
    assert!(parts.windows(2).all(|pair| pair[1].sources.starts_with(&pair[0].sources)));

    let of = |run: &std::path::Path| {
        finish(run, "test", by_p_and_h).unwrap();
        (read_all(&[run.join(TOKENS_FILE)], &EVERY_COLUMN), read_rows(&run.join(ROWS_FILE)).unwrap())
    };
    let (whole, split) = (of(whole.path()), of(split.path()));
    assert_eq!(whole, split);
    assert_eq!(whole.0[0].row, parts.iter().flat_map(|chunk| chunk.row.clone()).collect::<Vec<_>>());
}

/// pandas cannot read unsigned ones with pyarrow 21 and 22.
#[test]
fn codes_of_texts_are_signed_in_what_readers_are_told() {
    let run = tempfile::tempdir().unwrap();
    write_parts(run.path(), &[&random_examples(1, 0..5)]);
    finish(run.path(), "test", by_p_and_h).unwrap();
    let mut n_texts = 0;
    for file in [TOKENS_FILE, ROWS_FILE] {
        let mut reader = pl::ParquetReader::new(fs::File::open(run.path().join(file)).unwrap());
        for field in reader.schema().unwrap().iter_values() {
            if let ArrowDataType::Dictionary(codes, ..) = &field.dtype {
                n_texts += 1;
                assert!(matches!(codes, IntegerType::Int8 | IntegerType::Int32), "{file} {}: {codes:?}", field.name);
            }
        }
    }
    assert!(n_texts >= 4, "{n_texts}");
}

#[test]
fn sorting_again_equals_a_fresh_sort() {
    let examples = random_examples(2, 0..40);
    let other = |logprob: f32, entropy: f32, tail: f32| by_p_and_h(logprob * 0.5, entropy * 2.0, tail);
    let (fresh, sorted) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_parts(fresh.path(), &[&examples]);
    write_parts(sorted.path(), &[&examples[..7], &examples[7..]]);
    finish(fresh.path(), "test", other).unwrap();
    finish(sorted.path(), "test", by_p_and_h).unwrap();
    sort_again(sorted.path(), "test", other).unwrap();
    for file in [TOKENS_FILE, ROWS_FILE] {
        assert_eq!(fs::read(fresh.path().join(file)).unwrap(), fs::read(sorted.path().join(file)).unwrap(), "{file}");
    }
}

#[test]
fn a_writer_goes_on_after_the_complete_parts() {
    let examples = random_examples(3, 0..9);
    let run = tempfile::tempdir().unwrap();
    write_parts(run.path(), &[&examples[..3], &examples[3..6]]);
    // A kill between the two renames leaves a part without rows.
    fs::remove_file(run.path().join(PARTS_FOLDER).join("rows-00001.parquet")).unwrap();
    let done: Vec<usize> = finished_parts(run.path()).unwrap().iter().map(|part| part.number).collect();
    assert_eq!(done, [0]);
    write_parts(run.path(), &[&examples[3..]]);
    let straight = tempfile::tempdir().unwrap();
    write_parts(straight.path(), &[&examples]);
    finish(run.path(), "test", by_p_and_h).unwrap();
    finish(straight.path(), "test", by_p_and_h).unwrap();
    let tokens = |run: &tempfile::TempDir| read_all(&[run.path().join(TOKENS_FILE)], &EVERY_COLUMN);
    assert_eq!(tokens(&run), tokens(&straight));
}

#[test]
fn a_table_without_tokens_is_a_table() {
    let run = tempfile::tempdir().unwrap();
    write_parts(run.path(), &[&[Example { row: 0, source: "a", tokens: vec![] }]]);
    assert_eq!(finish(run.path(), "test", by_p_and_h).unwrap(), Finished { tokens: 0, rows: 1 });
    assert_eq!(read_all(&[run.path().join(TOKENS_FILE)], &EVERY_COLUMN), []);
    let message = quantiles(&[run.path().join(TOKENS_FILE)], &[(Column::Entropy, 0.15)]).unwrap_err().to_string();
    assert!(message.contains("has no tokens"), "{message}");
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_its_name() {
    let run = tempfile::tempdir().unwrap();
    let error = |name: &str, columns: &[Column]| {
        let failed = read_chunks(&[run.path().join(name)], columns).find_map(Result::err);
        failed.unwrap_or_else(|| panic!("{name} was read")).to_string()
    };
    fs::write(run.path().join("noise.parquet"), b"not a table").unwrap();
    write_parts(run.path(), &[&random_examples(4, 0..3)]);
    for (message, expected) in [
        (error("absent.parquet", &[Column::Row]), "absent.parquet: cannot open the token table"),
        (error("noise.parquet", &[Column::Row]), "noise.parquet: this is not a complete Parquet table"),
        (
            error("parts/tokens-00000.parquet", &[Column::Quadrant]),
            "tokens-00000.parquet: the token table has no column `quadrant`",
        ),
        (error("parts/rows-00000.parquet", &[Column::Logprob]), "rows-00000.parquet: the token table has no column `logprob`"),
        (sort_again(run.path(), "test", by_p_and_h).unwrap_err().to_string(), "there is no tokens.parquet in this run folder"),
    ] {
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_sequence_and_its_statistics_must_agree() {
    let run = tempfile::tempdir().unwrap();
    let mut writer = PartWriter::create(run.path(), Box::new(|id| id.to_string()), Vec::new()).unwrap();
    push(&mut writer, &random_examples(5, 0..1).remove(0));
    let sequence =
        crate::tokens::Sequence { row: 8, ids: vec![1, 2], supervised: vec![false, true], spans: vec![Default::default(); 2] };
    let place = crate::dataset::Place { path: Arc::new(PathBuf::from("d.jsonl")), line: 9 };
    let example = ScoredExample {
        sequence: &sequence,
        statistics: &[],
        bounds: &[],
        id: None,
        source: "d",
        place: &place,
        truncated: false,
    };
    let message = writer.push(&example).unwrap_err().to_string();
    assert_eq!(message, "d.jsonl:9: row 8 has 1 supervised tokens of 2, but 0 token statistics");
}

#[test]
fn every_text_survives_whatever_its_id() {
    let run = tempfile::tempdir().unwrap();
    // Ids that share a place in the cache of known texts and, in the second part, other texts for the same ids.
    let ids = [7, 7 + (1 << 18), 7, 8, u32::MAX, 7];
    for part in 0..2u32 {
        let mut writer = PartWriter::create(run.path(), Box::new(move |id| format!("{part}:{id}")), Vec::new()).unwrap();
        let tokens = ids.iter().map(|&id| token(id, 0.5, 1.0)).collect();
        push(&mut writer, &Example { row: part, source: ["a", ""][part as usize], tokens });
        writer.finish_part().unwrap();
    }
    finish(run.path(), "test", by_p_and_h).unwrap();
    let frame = {
        use polars::prelude::{DataType, ParquetReader, SerReader};
        let file = fs::File::open(run.path().join(TOKENS_FILE)).unwrap();
        let frame = ParquetReader::new(file).finish().unwrap();
        let is_category = |name: &str| matches!(frame.column(name).unwrap().dtype(), DataType::Categorical(..));
        assert!(["source", "token", "top"].into_iter().all(is_category), "{:?}", frame.schema());
        frame
    };
    let column = |name: &str| -> Vec<String> {
        let texts = frame.column(name).unwrap().cast(&polars::prelude::DataType::String).unwrap();
        texts.str().unwrap().iter().map(|text| text.unwrap().to_owned()).collect()
    };
    let expected =
        |of: &dyn Fn(u32, u32) -> String| -> Vec<String> { (0..2).flat_map(|part| ids.map(|id| of(part, id))).collect() };
    assert_eq!(column("token"), expected(&|part, id| format!("{part}:{id}")));
    assert_eq!(column("top"), expected(&|part, _| format!("{part}:7")));
    assert_eq!(column("source"), expected(&|part, _| ["a", ""][part as usize].to_owned()));
}

#[test]
fn dropped_and_chosen_tokens_are_whole_ones() {
    let run = tempfile::tempdir().unwrap();
    write_parts(run.path(), &[&random_examples(7, 0..20)]);
    finish(run.path(), "test", by_p_and_h).unwrap();
    let chunk = read_all(&[run.path().join(TOKENS_FILE)], &EVERY_COLUMN).remove(0);
    let chosen = |wanted: &dyn Fn(usize) -> bool| {
        let mut chosen = TokenChunk::default();
        chosen.append_where(&chunk, wanted);
        chosen
    };
    assert_eq!(chosen(&|_| true), chunk);
    let bad = [1, chunk.len() - 1];
    let mut damaged = chunk.clone();
    (damaged.varentropy[bad[0]], damaged.top_logprob[bad[1]]) = (f32::NAN, f32::NEG_INFINITY);
    assert_eq!(damaged.retain_finite(), 2);
    assert_eq!(damaged, chosen(&|i| !bad.contains(&i)));
}

#[test]
fn the_guide_lists_the_columns() {
    // The number in the sentence about the top K is the program's.
    assert!(Column::ALL.iter().any(|(.., meaning)| meaning.contains(&format!("ln {}:", crate::engine::TOP_K))));
    let line = |(_, name, _, meaning): &(Column, &str, ColumnType, &str)| format!("| `{name}` | {meaning} |\n");
    let expected = "| column | |\n|---|---|\n".to_owned() + &Column::ALL.iter().map(line).collect::<String>();
    assert!(include_str!("../guide/reading.md").contains(&expected), "src/guide/reading.md should hold this table:\n{expected}");
}
