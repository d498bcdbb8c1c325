//! Tests random damage to good data files: for any bytes, reading ends without a panic.
//!
//! The random numbers are seeded, so a failure is reproducible from the round that it prints.

use std::fs;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use diagnose::dataset::{Dataset, FieldMap, Format, ReadOptions};

const N_ROUNDS: u64 = 3_000;

/// Far more than the small files below hold, also unpacked.
const MAX_RECORDS: usize = 100_000;

#[test]
fn damaged_files_never_panic_and_always_end() {
    let seeds = seeds();
    let folder = tempfile::tempdir().unwrap();
    let (mut n_good, mut n_bad, mut n_broken) = (0, 0, 0);
    for round in 0..N_ROUNDS {
        let mut random = Random(0x9E37_79B9_7F4A_7C15 ^ (round + 1).wrapping_mul(0xD134_2543_DE82_EF95));
        let (name, seed) = &seeds[random.below(seeds.len())];
        let other = &seeds[random.below(seeds.len())].1;
        let mut bytes = damage(&mut random, seed, other);
        match random.below(16) {
            0 | 1 => bytes = gzip(&bytes),
            2 | 3 => bytes = zstd::encode_all(bytes.as_slice(), 1).unwrap(),
            4 => bytes = damage(&mut random, &gzip(&bytes), other),
            5 => bytes = damage(&mut random, &zstd::encode_all(bytes.as_slice(), 1).unwrap(), other),
            _ => {}
        }
        let path = folder.path().join(name);
        // A new file each time: some file systems wait for the disk when an old one is overwritten.
        let _ = fs::remove_file(&path);
        fs::write(&path, &bytes).unwrap();
        let rules = if random.below(8) == 0 { vec!["prompt={text:a|{text}}\\n".to_owned()] } else { Vec::new() };
        let options = ReadOptions {
            format: (random.below(4) == 0).then(|| Format::ALL[random.below(Format::ALL.len())]),
            mapping: FieldMap::parse(&rules).unwrap(),
            strict: random.below(8) == 0,
            ..ReadOptions::default()
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let dataset = Dataset::open(&[path.to_str().unwrap().to_owned()], &options)?;
            let mut counts = (0, 0);
            for (n_records, record) in dataset.records().enumerate() {
                assert!(n_records < MAX_RECORDS, "reading does not end");
                match record?.example {
                    Ok(_) => counts.0 += 1,
                    Err(_) => counts.1 += 1,
                }
            }
            Ok::<_, diagnose::Error>(counts)
        }));
        match outcome {
            Ok(Ok((good, bad))) => (n_good, n_bad) = (n_good + good, n_bad + bad),
            Ok(Err(error)) => {
                n_broken += 1;
                assert!(error.to_string().contains(name.as_str()), "round {round}: no file in the message: {error}");
            }
            Err(_) => panic!("round {round}: reading {name} panicked on {:?}", String::from_utf8_lossy(&bytes)),
        }
    }
    println!("{n_good} good rows, {n_bad} bad rows, {n_broken} broken files in {N_ROUNDS} rounds");
    assert!(n_good > 1000 && n_bad > 1000 && n_broken > 100, "the damage is too weak or too strong to test anything");
}

/// Small good files of every format and container.
fn seeds() -> Vec<(String, Vec<u8>)> {
    let rows = [
        r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "value": "né"}]}, {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}], "loss_weight": 0.5}, {"role": "tool", "tool_call_id": "1", "content": {"b": [1, 2]}}], "tools": [{"name": "f"}], "planted": [{"turn": 1, "begin": 1, "end": 3}]}"#,
        r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {}}"}, {"from": "observation", "value": "1"}, {"from": "gpt", "value": "b"}], "tools": "[{\"name\": \"f\"}]", "system": "s"}"#,
        r#"{"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]], "source": 7}"#,
        r#"{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}], "id": "x"}"#,
        r#"{"question": "a", "answer": "b"}"#,
        r#"{"text": "1"}"#,
        r#"{"message_id": "b", "parent_id": "a", "role": "assistant", "text": "t"}"#,
        r#"{"message_id": "a", "parent_id": null, "role": "prompter", "text": "t"}"#,
        r#"{"instruction": "a", "instances": [{"input": "b", "output": "c"}, {"output": "d"}]}"#,
    ];
    let mut seeds = Vec::new();
    for row in rows {
        let lines = format!("{row}\n{row}\r\n\n{row}\n");
        seeds.push(("a.json".to_owned(), row.replace(", \"", ",\n\"").into_bytes()));
        seeds.push(("a.json".to_owned(), format!("[{row},\n {row},\n{row}]\n").into_bytes()));
        seeds.push(("a".to_owned(), format!("[{row}]").into_bytes()));
        seeds.push(("a.jsonl".to_owned(), lines.into_bytes()));
    }
    seeds.push(("a.csv".to_owned(), b"prompt,completion,id\n\"a, \"\"b\"\"\nc\",d,1\ne,f,2\n".to_vec()));
    seeds.push(("a".to_owned(), b"question;answer\n1;2\n3;4\n".to_vec()));
    seeds.push(("a.txt".to_owned(), "one\n\u{2028}two\nthree".as_bytes().to_vec()));
    let mut parquet = Vec::new();
    let mut frame = polars::df!("prompt" => ["a", "b", "c"], "completion" => ["d", "e", "f"], "id" => [1, 2, 3]).unwrap();
    polars::prelude::ParquetWriter::new(&mut parquet).finish(&mut frame).unwrap();
    seeds.push(("a.parquet".to_owned(), parquet));
    seeds
}

/// One to four changes: bytes replaced, flipped, cut out, repeated, taken from another file, or the end cut off.
fn damage(random: &mut Random, seed: &[u8], other: &[u8]) -> Vec<u8> {
    const TELLING: &[u8] = b"{}[]\",:\\\n\r\0\xFF 019-ntf";
    let mut bytes = seed.to_vec();
    for _ in 0..1 + random.below(4) {
        if bytes.is_empty() {
            break;
        }
        let begin = random.below(bytes.len());
        let end = (begin + 1 + random.below(16)).min(bytes.len());
        match random.below(7) {
            0 => bytes[begin] = TELLING[random.below(TELLING.len())],
            1 => bytes[begin] ^= 1 << random.below(8),
            2 => drop(bytes.drain(begin..end)),
            3 => bytes.insert(begin, TELLING[random.below(TELLING.len())]),
            4 => {
                let piece = bytes[begin..end].to_vec();
                bytes.splice(begin..begin, piece);
            }
            5 => {
                let from = random.below(other.len());
                let piece = other[from..(from + 16).min(other.len())].to_vec();
                bytes.splice(begin..end, piece);
            }
            _ if random.below(4) == 0 => bytes.truncate(begin),
            _ => {}
        }
    }
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// xorshift64*, Vigna 2014.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize) % n
    }
}
