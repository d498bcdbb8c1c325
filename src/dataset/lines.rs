//! Splits bytes into lines at `\n` only: real strings contain U+2028 and other characters that count as line ends elsewhere.

use std::io::{self, BufRead, Read};

use super::literal;
use crate::error::{Error, Result};

/// The maximum length of a record: a longer one shows that the file lost its separators, and would fill the memory.
pub(super) const MAX_RECORD_BYTES: usize = 256 << 20;

/// The number of a line, and its bytes or why they are unusable.
pub(super) type Line<'a> = (u64, Result<&'a [u8]>);

pub(super) struct Lines<R> {
    reader: R,
    /// The number of the last line read, from 1.
    number: u64,
    buffer: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Lines { reader, number: 0, buffer: Vec::new() }
    }

    /// Returns the next non-blank line, without its end.
    pub(super) fn next_line(&mut self) -> io::Result<Option<Line<'_>>> {
        loop {
            // One huge row must not hold its memory for the rest of the file.
            if self.buffer.capacity() > (1 << 20) && self.buffer.len() < (1 << 16) {
                self.buffer = Vec::new();
            }
            self.buffer.clear();
            let n_read = self.reader.by_ref().take(MAX_RECORD_BYTES as u64 + 1).read_until(b'\n', &mut self.buffer)?;
            if n_read == 0 {
                return Ok(None);
            }
            self.number += 1;
            if n_read > MAX_RECORD_BYTES {
                if self.buffer.last() != Some(&b'\n') {
                    self.reader.skip_until(b'\n')?;
                }
                return Ok(Some((self.number, Err(too_long()))));
            }
            if self.buffer.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let line = self.buffer.strip_suffix(b"\n").unwrap_or(&self.buffer);
            return Ok(Some((self.number, Ok(line.strip_suffix(b"\r").unwrap_or(line)))));
        }
    }
}

pub(super) fn too_long() -> Error {
    Error::new(format!("expected a record of at most {} MiB, found a longer one", MAX_RECORD_BYTES >> 20))
}

pub(super) const NOT_UTF8: &str =
    "Convert the file from its encoding, for example: iconv -f LATIN1 -t UTF-8 or iconv -f GB18030 -t UTF-8.";

/// Decodes the bytes as text, or reports what is wrong with them.
pub(super) fn utf8(bytes: &[u8]) -> Result<&str> {
    if let Some(position) = bytes.iter().position(|&byte| byte == 0) {
        return Err(Error::new(format!("expected text, found a NUL byte at byte {position} of the record")));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let byte = bytes.get(error.valid_up_to()).copied().unwrap_or_default();
        let place = error.valid_up_to();
        Error::new(format!("expected UTF-8, found the byte 0x{byte:02X} at byte {place} of the record, which is not UTF-8"))
            .cure(NOT_UTF8)
    })?;
    literal::text(text)
}
