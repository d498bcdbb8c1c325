//! Reads the header of a `.gguf` file: the metadata, and the location of each tensor. The format is described in ggml's
//! `docs/gguf.md`.
//!
//! candle has a reader, too, but it fails on a tensor of an unknown type, and accepts files with duplicate entries.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use candle_core::quantized::gguf_file::Value;

use super::quants::{self, TensorType};
use crate::error::{Context, Error, Result};

pub(super) struct Header {
    pub(super) metadata: HashMap<String, Value>,
    pub(super) tensors: HashMap<String, TensorInfo>,
}

/// The location and the storage type of a tensor.
pub(super) struct TensorInfo {
    pub(super) kind: &'static TensorType,
    /// Rows first, columns last: the reverse of the order in the file.
    pub(super) shape: Vec<usize>,
    /// The offset of its first byte in the file.
    pub(super) begin: u64,
}

impl TensorInfo {
    pub(super) fn elements(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }

    /// The number of bytes in the file.
    pub(super) fn bytes(&self) -> u64 {
        self.elements() / self.kind.values as u64 * self.kind.bytes as u64
    }
}

/// Limits on the nesting of arrays and the dimensions of a tensor, which no real file exceeds.
const MAX_DEPTH: usize = 8;
const MAX_DIMENSIONS: u32 = 4;

const CONVERT: &str = "Convert the model again.";
const CURE: &str = "Download or convert the file again; the usual reason is an interrupted download.";

impl Header {
    /// Reads the header of the file at `path` and leaves the reader behind it. Checks that every tensor lies within the file.
    pub(super) fn read(path: &Path, reader: &mut BufReader<File>) -> Result<Header> {
        let len = reader.get_ref().metadata().context_at(path, "cannot look at the model file")?.len();
        let mut head = Head { path, reader, left: len, wide: true };
        if head.array()? != *b"GGUF" {
            return Err(head.broken("it does not begin with `GGUF`"));
        }
        match head.u32()? {
            1 => head.wide = false,
            2 | 3 => {}
            version if version.swap_bytes() <= 3 => {
                return Err(Error::new("this GGUF file is big-endian, which is not supported").at(path).cure(CONVERT));
            }
            version => {
                return Err(Error::new(format!("this GGUF file has version {version}; supported are 1 to 3")).at(path));
            }
        }
        let (n_tensors, n_keys) = (head.length()?, head.length()?);
        let mut metadata = HashMap::new();
        for _ in 0..n_keys {
            let key = head.text()?;
            let kind = head.u32()?;
            let value = head.value(kind, &key, 0)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(Error::new(format!("the GGUF metadata hold `{key}` twice")).at(path).cure(CONVERT));
            }
        }
        let mut tensors = HashMap::new();
        for _ in 0..n_tensors {
            let (name, info) = head.tensor()?;
            if tensors.insert(name.clone(), info).is_some() {
                return Err(Error::new(format!("the file holds the tensor `{name}` twice")).at(path).cure(CONVERT));
            }
        }
        let begin = (len - head.left).next_multiple_of(alignment(path, &metadata)?);
        for (name, info) in &mut tensors {
            // Offsets in the file are relative to the end of the header.
            info.begin = info.begin.saturating_add(begin);
            if info.begin.saturating_add(info.bytes()) > len {
                return Err(Error::new(format!(
                    "cannot read the tensor `{name}`: it spans bytes {} to {}, but the file has {len}",
                    info.begin,
                    info.begin.saturating_add(info.bytes()),
                ))
                .at(path)
                .cure("The file is truncated: download it again."));
            }
        }
        Ok(Header { metadata, tensors })
    }
}

/// The alignment of the tensors' offsets.
fn alignment(path: &Path, metadata: &HashMap<String, Value>) -> Result<u64> {
    match metadata.get("general.alignment") {
        None => Ok(32),
        Some(Value::U32(alignment)) if alignment.is_power_of_two() => Ok(u64::from(*alignment)),
        Some(other) => {
            Err(Error::new(format!("`general.alignment` is {other:?}; expected a power of 2 as a 32-bit number")).at(path))
        }
    }
}

struct Head<'a> {
    path: &'a Path,
    reader: &'a mut BufReader<File>,
    /// The number of bytes that are left in the file.
    left: u64,
    /// Whether lengths have 64 bits, not 32 as in the first version of the format.
    wide: bool,
}

impl Head<'_> {
    fn broken(&self, what: impl Into<String>) -> Error {
        Error::new(format!("this is not a complete GGUF file: {}", what.into())).at(self.path).cure(CURE)
    }

    /// Accounts for bytes that are about to be read.
    fn take(&mut self, len: u64) -> Result<()> {
        match self.left.checked_sub(len) {
            Some(left) => self.left = left,
            None => return Err(self.broken(format!("its header needs {len} bytes, but {} are left", self.left))),
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N as u64)?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).context_at(self.path, "cannot read the model file")?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// The length of a string or an array.
    fn length(&mut self) -> Result<u64> {
        if self.wide { self.u64() } else { self.u32().map(u64::from) }
    }

    fn text(&mut self) -> Result<String> {
        let len = self.length()?;
        self.take(len)?;
        let mut bytes = vec![0; len as usize];
        self.reader.read_exact(&mut bytes).context_at(self.path, "cannot read the model file")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The value of `key`, of the format's type `kind`, inside `depth` nested arrays.
    fn value(&mut self, kind: u32, key: &str, depth: usize) -> Result<Value> {
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.array()?)),
            1 => Value::I8(i8::from_le_bytes(self.array()?)),
            2 => Value::U16(u16::from_le_bytes(self.array()?)),
            3 => Value::I16(i16::from_le_bytes(self.array()?)),
            4 => Value::U32(self.u32()?),
            5 => Value::I32(i32::from_le_bytes(self.array()?)),
            6 => Value::F32(f32::from_le_bytes(self.array()?)),
            7 => match self.array()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(self.broken(format!("`{key}` is {other}; expected true or false"))),
            },
            // Strings may be padded with zero bytes, as in C.
            8 => Value::String(self.text()?.trim_end_matches('\0').to_owned()),
            9 if depth < MAX_DEPTH => {
                let (kind, len) = (self.u32()?, self.length()?);
                if len > self.left {
                    return Err(self.broken(format!("`{key}` has {len} items, but {} bytes are left", self.left)));
                }
                Value::Array((0..len).map(|_| self.value(kind, key, depth + 1)).collect::<Result<_>>()?)
            }
            10 => Value::U64(self.u64()?),
            11 => Value::I64(i64::from_le_bytes(self.array()?)),
            12 => Value::F64(f64::from_le_bytes(self.array()?)),
            other => return Err(self.broken(format!("`{key}` has the unknown type number {other}"))),
        })
    }

    /// The name and location of a tensor, relative to the end of the header.
    fn tensor(&mut self) -> Result<(String, TensorInfo)> {
        let name = self.text()?;
        let n_dimensions = self.u32()?;
        if n_dimensions > MAX_DIMENSIONS {
            return Err(self.broken(format!("the tensor `{name}` has {n_dimensions} dimensions")));
        }
        let mut shape = Vec::new();
        for _ in 0..n_dimensions {
            shape.push(self.length()? as usize);
        }
        let kind = quants::by_number(self.u32()?, &name).map_err(|error| error.at(self.path))?;
        let begin = self.u64()?;
        let columns = shape.first().copied().unwrap_or(1);
        shape.reverse();
        if !columns.is_multiple_of(kind.values) {
            return Err(Error::new(format!(
                "the tensor `{name}` has rows of {columns} numbers; the type {} needs a multiple of {}",
                kind.name, kind.values
            ))
            .at(self.path)
            .cure(CONVERT));
        }
        // Rules out overflows in all later size computations.
        if shape.iter().try_fold(kind.bytes, |product, &n| product.checked_mul(n)).is_none() {
            return Err(self.broken(format!("the tensor `{name}` has the shape {shape:?}")));
        }
        Ok((name, TensorInfo { kind, shape, begin }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Header> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        std::fs::write(&path, bytes).unwrap();
        Header::read(&path, &mut BufReader::new(File::open(&path).unwrap()))
    }

    fn fixture() -> Vec<u8> {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families/qwen3/model.gguf")).unwrap()
    }

    /// Untrusted lengths cause neither a panic nor an allocation larger than the file.
    #[test]
    fn damaged_heads_are_refused_or_read_and_end() {
        let whole = fixture();
        let head = read(&whole).unwrap();
        let len = head.tensors.values().map(|info| info.begin).min().unwrap() as usize;
        let end = head.tensors.values().map(|info| info.begin + info.bytes()).max().unwrap() as usize;
        for cut in (0..end).step_by(97) {
            let error = read(&whole[..cut]).err().unwrap_or_else(|| panic!("the first {cut} bytes are taken")).to_string();
            assert!(error.contains("m.gguf"), "{error}");
        }
        for i in 0..2000 {
            let mut damaged = whole.clone();
            damaged[i * 2_654_435_761 % len] ^= 1 << (i % 8);
            damaged[i * 40_503 % len] = [0, 1, 0x7f, 0xff][i % 4];
            drop(read(&damaged));
        }
        // The numbers of tensors and keys, and the length of the first key.
        for place in [8, 16, 24] {
            let mut damaged = whole.clone();
            damaged[place + 6] = 1;
            assert!(read(&damaged).is_err(), "{place}");
        }
    }

    #[test]
    fn other_versions_and_orders_are_named() {
        let check = |place: usize, bytes: &[u8], expected: &str| {
            let mut changed = fixture();
            changed[place..place + bytes.len()].copy_from_slice(bytes);
            let error = read(&changed).err().unwrap().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(0, b"GGJT", "does not begin with `GGUF`");
        check(4, &3u32.to_be_bytes(), "big-endian");
        check(4, &9u32.to_le_bytes(), "version 9");
    }
}
