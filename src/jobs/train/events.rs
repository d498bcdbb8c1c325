//! Writes TensorBoard event files: one scalar per tag and step, which `tensorboard --logdir` draws.
//!
//! A file is a sequence of records (TFRecord: tensorflow/core/lib/io/record_writer.h), each
//!
//! ```text
//! u64 length | u32 masked CRC-32C of the length | bytes | u32 masked CRC-32C of the bytes      all little-endian
//! ```
//!
//! whose bytes are one `Event` message (tensorflow/core/util/event.proto, summary.proto). The six fields needed are encoded by hand; images,
//! histograms and hyper-parameters are left out.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Context, Result};

/// Appends to one event file.
pub(super) struct EventWriter {
    path: PathBuf,
    file: BufWriter<File>,
}

impl EventWriter {
    /// Opens a new event file in `folder`, which is created if missing. TensorBoard reads all files of a folder as one run, in order of their names,
    /// and a later file replaces the steps of an earlier one, so that a resumed run continues the curve.
    pub(super) fn create(folder: &Path) -> Result<EventWriter> {
        std::fs::create_dir_all(folder).context_at(folder, "cannot create the folder for event files")?;
        let now = wall_time();
        // The names must sort by time, and two files of the same second must differ.
        let mut attempt = 0;
        let (path, file) = loop {
            let path = folder.join(format!("events.out.tfevents.{:010}.{attempt}", now as u64));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => attempt += 1,
                opened => break (path.clone(), opened.context_at(&path, "cannot create the event file")?),
            }
        };
        let mut writer = EventWriter { path, file: BufWriter::new(file) };
        writer.record(&version_event(now))?;
        writer.flush()?;
        Ok(writer)
    }

    /// Writes the values of a step as one event.
    pub(super) fn scalars(&mut self, step: u64, values: &[(&str, f32)]) -> Result<()> {
        self.record(&scalar_event(wall_time(), step, values))
    }

    /// Flushes to the operating system, so that TensorBoard sees the events.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.file.flush().context_at(&self.path, "cannot write the event file")
    }

    fn record(&mut self, event: &[u8]) -> Result<()> {
        self.file.write_all(&framed(event)).context_at(&self.path, "cannot write the event file")
    }
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn framed(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(event.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(event);
    record.extend(masked_crc(event).to_le_bytes());
    record
}

/// `Mask` of tensorflow/core/lib/hash/crc32c.h: a checksum over data that contains checksums is weak without it.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

// Event: wall_time = 1 (double), step = 2 (int64), file_version = 3 (string), summary = 5 (Summary).
// Summary: value = 1 (repeated Value). Value: tag = 1 (string), simple_value = 2 (float).

/// The first record of every file.
fn version_event(wall_time: f64) -> Vec<u8> {
    let mut event = Vec::new();
    double(&mut event, 1, wall_time);
    bytes(&mut event, 3, b"brain.Event:2");
    event
}

fn scalar_event(wall_time: f64, step: u64, values: &[(&str, f32)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in values {
        let mut entry = Vec::new();
        bytes(&mut entry, 1, tag.as_bytes());
        float(&mut entry, 2, *value);
        bytes(&mut summary, 1, &entry);
    }
    let mut event = Vec::new();
    double(&mut event, 1, wall_time);
    key(&mut event, 2, VARINT);
    varint(&mut event, step);
    bytes(&mut event, 5, &summary);
    event
}

// The wire format of Protocol Buffers: a key combines the field number with the type of its value (protobuf.dev/programming-guides/encoding).
const VARINT: u64 = 0;
const EIGHT_BYTES: u64 = 1;
const LENGTH_PREFIXED: u64 = 2;
const FOUR_BYTES: u64 = 5;

fn key(out: &mut Vec<u8>, field: u64, kind: u64) {
    varint(out, field << 3 | kind);
}

fn double(out: &mut Vec<u8>, field: u64, value: f64) {
    key(out, field, EIGHT_BYTES);
    out.extend(value.to_le_bytes());
}

fn float(out: &mut Vec<u8>, field: u64, value: f32) {
    key(out, field, FOUR_BYTES);
    out.extend(value.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    key(out, field, LENGTH_PREFIXED);
    varint(out, value.len() as u64);
    out.extend(value);
}

/// Encodes seven bits per byte, the lowest first; the top bit says that more bytes follow.
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standards() {
        // RFC 3720, B.4: 32 bytes of zeros, of ones, and 0 to 31.
        let ascending: Vec<u8> = (0..32).collect();
        for (bytes, expected) in [(vec![0; 32], 0x8a91_36aa), (vec![0xff; 32], 0x62a8_ab43), (ascending, 0x46dd_794e)] {
            assert_eq!(crc32c::crc32c(&bytes), expected);
        }
        // tensorboard.compat.tensorflow_stub.pywrap_tensorflow.masked_crc32c(b"123456789")
        assert_eq!(masked_crc(b"123456789"), MASKED_CHECK);
    }

    /// rotate_right(0xe3069283, 15) + 0xa282ead8
    const MASKED_CHECK: u32 = 0xc78a_b0e5;

    #[test]
    fn messages_by_hand() {
        // 300 = 0b10_0101100.
        let mut out = Vec::new();
        varint(&mut out, 300);
        assert_eq!(out, [0xac, 0x02]);
        let expected = [
            0x09, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f, // wall_time = 1.5
            0x10, 0xac, 0x02, // step = 300
            0x2a, 11, // summary
            0x0a, 9, // value
            0x0a, 2, b'l', b'r', // tag
            0x15, 0, 0, 0x80, 0x3e, // simple_value = 0.25
        ];
        assert_eq!(scalar_event(1.5, 300, &[("lr", 0.25)]), expected);
    }

    #[test]
    fn a_file_is_decoded_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path()).unwrap();
        writer.scalars(1, &[("loss", 2.5), ("lr", 1e-5)]).unwrap();
        writer.scalars(2, &[("loss", -0.5)]).unwrap();
        writer.flush().unwrap();
        let second = EventWriter::create(folder.path()).unwrap();
        assert_ne!(second.path, writer.path);
        let name = writer.path.file_name().unwrap().to_string_lossy().into_owned();
        // TensorBoard looks for this in the name.
        assert!(name.contains("tfevents"), "{name}");

        let file = std::fs::read(writer.path).unwrap();
        let mut rest = file.as_slice();
        let mut events = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked_crc(&rest[..8]).to_le_bytes());
            let event = &rest[12..12 + length];
            assert_eq!(rest[12 + length..16 + length], masked_crc(event).to_le_bytes());
            events.push(event);
            rest = &rest[16 + length..];
        }
        assert!(events[0].ends_with(b"brain.Event:2"));
        // Skip the nine bytes of the wall time.
        let values: &[&[(&str, f32)]] = &[&[("loss", 2.5), ("lr", 1e-5)], &[("loss", -0.5)]];
        for ((event, values), step) in events[1..].iter().zip(values).zip(1..) {
            assert_eq!(event[9..], scalar_event(0.0, step, values)[9..]);
        }
        assert_eq!(events.len(), 3);
    }
}
