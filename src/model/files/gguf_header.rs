//! Looks through the header of a .gguf file before it is read: a length in a damaged file may ask for more memory than there is.
//!
//! Format: github.com/ggml-org/ggml, docs/gguf.md. What is of another format passes, and the reader says what it is.

use std::io::{Read, Seek, SeekFrom};

/// Lists within lists: no writer makes any.
const DEEPEST: u32 = 4;
/// No type stores a number in less than a bit.
const NUMBERS_PER_BYTE: u64 = 8;

/// An error if a length or an offset leads out of the file, whose size is `bytes`.
pub(super) fn check(reader: &mut (impl Read + Seek), bytes: u64) -> Result<(), String> {
    reader.seek(SeekFrom::Start(0)).map_err(|error| error.to_string())?;
    let mut walk = Walk { reader, bytes, at: 0, wide: true };
    if walk.bytes::<4>()? != *b"GGUF" {
        return Ok(());
    }
    let version = walk.u32()?;
    // A file of the other byte order has large numbers here.
    if !(1..=3).contains(&version) {
        return Ok(());
    }
    walk.wide = version > 1;
    let (tensors, settings) = (walk.length()?, walk.length()?);
    for _ in 0..settings {
        walk.text()?;
        let kind = walk.u32()?;
        walk.value(kind, 0)?;
    }
    for _ in 0..tensors {
        walk.tensor()?;
    }
    Ok(())
}

struct Walk<'a, R> {
    reader: &'a mut R,
    bytes: u64,
    at: u64,
    /// Lengths are of 8 bytes, not 4.
    wide: bool,
}

impl<R: Read + Seek> Walk<'_, R> {
    fn left(&self) -> u64 {
        self.bytes.saturating_sub(self.at)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(|error| format!("at byte {}: {error}", self.at))?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn length(&mut self) -> Result<u64, String> {
        Ok(match self.wide {
            true => u64::from_le_bytes(self.bytes()?),
            false => u64::from(self.u32()?),
        })
    }

    fn skip(&mut self, n: u64) -> Result<(), String> {
        if n > self.left() {
            return Err(format!("at byte {}: {n} bytes should follow, and there are {}", self.at, self.left()));
        }
        self.at += n;
        self.reader.seek(SeekFrom::Start(self.at)).map_err(|error| error.to_string())?;
        Ok(())
    }

    fn text(&mut self) -> Result<(), String> {
        let length = self.length()?;
        self.skip(length)
    }

    fn value(&mut self, kind: u32, depth: u32) -> Result<(), String> {
        match (kind, size(kind)) {
            (_, Some(size)) => self.skip(size),
            (8, _) => self.text(),
            (9, _) if depth < DEEPEST => {
                let kind = self.u32()?;
                let length = self.length()?;
                match size(kind) {
                    Some(size) => self.skip(length.saturating_mul(size)),
                    None if length > self.left() => {
                        Err(format!("at byte {}: {length} items should follow, and there are {} bytes", self.at, self.left()))
                    }
                    None => (0..length).try_for_each(|_| self.value(kind, depth + 1)),
                }
            }
            _ => Err(format!("at byte {}: no value is of the type {kind}", self.at)),
        }
    }

    fn tensor(&mut self) -> Result<(), String> {
        let begin = self.at;
        self.text()?;
        let dimensions = self.u32()?;
        if dimensions > 8 {
            return Err(format!("at byte {begin}: a tensor of {dimensions} dimensions"));
        }
        let mut numbers = 1u64;
        for _ in 0..dimensions {
            numbers = numbers.saturating_mul(self.length()?);
        }
        self.u32()?;
        let offset = u64::from_le_bytes(self.bytes()?);
        if numbers > self.bytes.saturating_mul(NUMBERS_PER_BYTE) || offset > self.bytes {
            return Err(format!(
                "at byte {begin}: a tensor of {numbers} numbers at {offset} cannot lie in a file of {} bytes",
                self.bytes
            ));
        }
        Ok(())
    }
}

/// Of a value with a fixed size.
fn size(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::path::Path;

    use super::*;

    #[test]
    fn lengths_that_lead_out_of_the_file_are_found_and_good_files_pass() {
        let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
        let good = std::fs::read(families.join("qwen3/model.gguf")).unwrap();
        let check = |bytes: &[u8]| check(&mut Cursor::new(bytes), bytes.len() as u64);
        check(&good).unwrap();
        check(b"GGML nothing of ours").unwrap();
        // The number of tensors, that of settings, the length of the first key.
        for place in [8, 16, 24] {
            let mut damaged = good.clone();
            damaged[place + 6] = 1;
            assert!(check(&damaged).is_err(), "{place}");
        }
        let mut nested = [b"GGUF".as_slice(), &3u32.to_le_bytes(), &0u64.to_le_bytes(), &1u64.to_le_bytes()].concat();
        nested.extend([&1u64.to_le_bytes()[..], b"k", &9u32.to_le_bytes()].concat());
        for _ in 0..100_000 {
            nested.extend([&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat());
        }
        assert!(check(&nested).unwrap_err().contains("type 9"));
    }
}
