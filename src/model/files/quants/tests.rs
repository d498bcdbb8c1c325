use std::path::Path;

use candle_core::{Device, Tensor};

use super::*;
use crate::files::sha256;
use crate::kernels::quantized::Blocks;
use crate::kernels::testing::noise;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `tests/fixtures/gguf/make.py` wrote the expected values there: gguf-py's results for blocks of each type.
#[test]
fn every_number_is_that_of_gguf_py() {
    let path = root().join("tests/fixtures/gguf/blocks.safetensors");
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    assert_eq!(tensors.len(), 4 * TAKEN.len(), "types in the fixture, and types that are taken");
    for taken in TAKEN {
        let tensor = |what: &str| -> &Tensor { &tensors[&format!("{}.{what}", taken.name)] };
        assert_eq!(tensor("type").to_vec1::<u32>().unwrap(), [taken.number, taken.values as u32], "{}", taken.name);
        assert_eq!(tensor("bytes").dim(1).unwrap(), taken.bytes, "{}", taken.name);
        let bytes = tensor("bytes").flatten_all().unwrap().to_vec1::<u8>().unwrap();
        let expected = tensor("values").to_vec1::<f32>().unwrap();
        let mut values = vec![f32::NAN; bytes.len() / taken.bytes * taken.values];
        taken.decode(&bytes, &mut values);
        for (i, (value, expected)) in values.iter().zip(&expected).enumerate() {
            assert_eq!(value.to_bits(), expected.to_bits(), "{} at {i}: {value}, expected {expected}", taken.name);
        }
        let all: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let digest: String = tensor("sha256").to_vec1::<u8>().unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(sha256(all), digest, "{} behind its first {} numbers", taken.name, expected.len());
    }
}

#[test]
fn each_number_stands_once() {
    let mut numbers: Vec<u32> = TAKEN.iter().map(|taken| taken.number).chain(REFUSED.iter().map(|(_, n, _)| *n)).collect();
    numbers.sort_unstable();
    // ggml has assigned the numbers 0 to 42.
    assert_eq!(numbers, (0..43).collect::<Vec<_>>());
    for (name, number, why) in REFUSED {
        let message = by_number(*number, "blk.0.x").err().unwrap().to_string();
        assert!([name, why, "`blk.0.x`"].iter().all(|part| message.contains(part)), "{message}");
    }
    let message = by_number(77, "blk.0.x").err().unwrap().to_string();
    assert!(message.contains("number 77"), "{message}");
}

/// More numbers than a chunk, and cut at the end of a chunk.
#[test]
fn chunks_are_decoded_in_their_places() {
    for taken in TAKEN {
        let n_blocks = 3 * CHUNK / taken.values - 1;
        let bytes: Vec<u8> = (0..n_blocks * taken.bytes).map(|i| ((i * 2_654_435_761) >> 9) as u8).collect();
        let (mut at_once, mut by_chunks) = (vec![0.0; n_blocks * taken.values], vec![0.0; n_blocks * taken.values]);
        (taken.decode)(&bytes, &mut at_once);
        taken.decode(&bytes, &mut by_chunks);
        assert!(at_once.iter().zip(&by_chunks).all(|(a, b)| a.to_bits() == b.to_bits()), "{}", taken.name);
    }
}

#[test]
fn the_table_in_the_guide_is_true() {
    let guide = std::fs::read_to_string(root().join("src/guide/models.md")).unwrap();
    let row = |title: &str| -> Vec<String> {
        let line = guide.lines().find(|line| line.starts_with(&format!("| {title} |"))).unwrap();
        let cell = line.split('|').nth(2).unwrap();
        cell.split([',', ';']).map(|name| name.trim().to_owned()).collect()
    };
    assert_eq!(row("GGUF types that are read"), TAKEN.iter().map(|taken| taken.name).collect::<Vec<_>>());
    assert_eq!(row("refused by name"), REFUSED.iter().map(|(name, ..)| *name).collect::<Vec<_>>());
}

/// For arbitrary bytes, the kept blocks represent exactly the numbers that the type is decoded to, which are gguf-py's.
#[test]
fn what_is_kept_is_what_is_decoded() {
    for &(name, form, group) in apart::KEPT {
        let kind = TAKEN.iter().find(|taken| taken.name == name).unwrap();
        let (rows, blocks) = (50, 3);
        let (width, row_bytes) = (blocks * kind.values, blocks * kind.bytes);
        let mut bytes: Vec<u8> = noise(rows * row_bytes, 128.0, 7).iter().map(|x| *x as i8 as u8).collect();
        // Any byte may be the upper one of a scale: this avoids infinite scales and NaNs, and scales that overflow when multiplied
        // by eight.
        bytes.iter_mut().filter(|byte| **byte & 0x70 == 0x70).for_each(|byte| *byte ^= 0x40);
        let mut expected = vec![0.0; rows * width];
        kind.decode(&bytes, &mut expected);
        let kept = Blocks::new(form, rows, width, |n, i| group(&bytes[n * row_bytes..][..row_bytes], i)).unwrap();
        let mut row = vec![0.0; width];
        for (n, expected) in expected.chunks_exact(width).enumerate() {
            kept.row_into(n, &mut row);
            assert!(row.iter().zip(expected).all(|(a, b)| a == b), "{name}, row {n}");
        }
    }
}
