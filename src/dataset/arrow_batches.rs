//! Checks the claimed sizes of compressed Arrow batches before they are unpacked, since the reader allocates whatever a few bytes claim.
//!
//! A message consists of its length, its metadata (a flatbuffer, which lists the buffers), and the buffers. A compressed buffer begins with its
//! uncompressed length, or with -1 if it is stored uncompressed.

use std::io::{Read, Seek, SeekFrom};

use polars_arrow::io::ipc::format::ipc::planus::ReadAsRoot;
use polars_arrow::io::ipc::format::ipc::{Block, MessageHeaderRef, MessageRef, RecordBatchRef};

use super::files::{bomb, broken, is_bomb};
use crate::error::{Error, Result};

pub(super) const DAMAGED: &str = "cannot read the Arrow data: they are damaged or of an unknown kind";

/// Refuses a stream if one of its messages would unpack to far more bytes than it has. The messages follow each other from the beginning.
pub(super) fn refuse_bombs_of_stream(mut file: impl Read + Seek) -> Result<()> {
    let mut messages = Messages::of(&mut file)?;
    let mut at = 0;
    // The loop ends at bytes that form no message; the reader reports them.
    while let Some(Message { end, packed, unpacked, .. }) = messages.at(at)? {
        if is_bomb(packed, unpacked) {
            return Err(bomb());
        }
        at = end;
    }
    Ok(())
}

/// Refuses a file if one of its messages would unpack to far more bytes than it has. `blocks`, from the footer, locate the messages.
pub(super) fn refuse_bombs_of_file<'a>(mut file: impl Read + Seek, blocks: impl Iterator<Item = &'a Block>) -> Result<()> {
    let mut messages = Messages::of(&mut file)?;
    for block in blocks {
        let Ok(at) = u64::try_from(block.offset) else { return Err(damaged()) };
        if let Some(Message { packed, unpacked, .. }) = messages.at(at)?
            && is_bomb(packed, unpacked)
        {
            return Err(bomb());
        }
    }
    Ok(())
}

#[derive(Default)]
struct Message {
    /// The offset at which the next message begins.
    end: u64,
    /// The bytes of the compressed buffers: as stored, and as they claim to unpack to.
    packed: u64,
    unpacked: u64,
    /// The offsets of the buffers' length fields.
    #[cfg(test)]
    lengths: Vec<u64>,
}

struct Messages<'a, F> {
    file: &'a mut F,
    n_bytes: u64,
}

impl<'a, F: Read + Seek> Messages<'a, F> {
    fn of(file: &'a mut F) -> Result<Self> {
        let n_bytes = file.seek(SeekFrom::End(0)).map_err(broken)?;
        Ok(Messages { file, n_bytes })
    }

    /// Returns the message that begins at this offset, or `None` if none does.
    fn at(&mut self, at: u64) -> Result<Option<Message>> {
        const CONTINUES: [u8; 4] = [0xFF; 4];
        let Some(mut length) = self.bytes::<4>(at) else { return Ok(None) };
        let mut begin = at + 4;
        if length == CONTINUES {
            let Some(real) = self.bytes::<4>(begin) else { return Ok(None) };
            (length, begin) = (real, begin + 4);
        }
        let length = u64::from(u32::from_le_bytes(length));
        if length == 0 || begin + length > self.n_bytes {
            return Ok(None);
        }
        let mut metadata = Vec::new();
        let read = self.file.seek(SeekFrom::Start(begin)).and_then(|_| self.file.take(length).read_to_end(&mut metadata));
        read.map_err(broken)?;
        let Ok(message) = MessageRef::read_as_root(&metadata) else { return Ok(None) };
        let body = begin + length;
        let Ok(n_body) = u64::try_from(message.body_length().unwrap_or(-1)) else { return Err(damaged()) };
        let end = body.saturating_add(n_body);
        if end > self.n_bytes {
            // The file is truncated: the messages before this one are still read. A length beyond that of the whole file is damage.
            return if n_body <= self.n_bytes { Ok(None) } else { Err(damaged()) };
        }
        let batch: Option<RecordBatchRef> = match message.header() {
            Ok(Some(MessageHeaderRef::RecordBatch(batch))) => Some(batch),
            Ok(Some(MessageHeaderRef::DictionaryBatch(dictionary))) => dictionary.data().ok().flatten(),
            _ => None,
        };
        let mut found = Message { end, ..Message::default() };
        let Some(batch) = batch else { return Ok(Some(found)) };
        let is_packed = batch.compression().is_ok_and(|compression| compression.is_some());
        for buffer in batch.buffers().ok().flatten().into_iter().flatten() {
            let place = |number: i64| u64::try_from(number).map_err(|_| damaged());
            let (offset, length) = (place(buffer.offset())?, place(buffer.length())?);
            if offset.checked_add(length).is_none_or(|end| end > n_body) {
                return Err(damaged());
            }
            if !is_packed || length < 8 {
                continue;
            }
            let Some(claim) = self.bytes::<8>(body + offset) else { return Err(damaged()) };
            #[cfg(test)]
            found.lengths.push(body + offset);
            found.packed += length;
            found.unpacked = found.unpacked.saturating_add(match i64::from_le_bytes(claim) {
                -1 => length - 8,
                claim => place(claim)?,
            });
        }
        Ok(Some(found))
    }

    fn bytes<const N: usize>(&mut self, at: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.read_exact(&mut bytes)).ok().map(|()| bytes)
    }
}

fn damaged() -> Error {
    Error::new(DAMAGED)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use polars_arrow::io::ipc::read::read_file_metadata;

    /// Takes files of tests/fixtures/arrow/make.py, and makes their compressed buffers claim more than memory holds.
    #[test]
    fn what_claims_too_much_is_refused_before_there_is_room_for_it() {
        let bytes_of = |name: &str| {
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/arrow");
            std::fs::read(folder.join(name)).unwrap()
        };
        let of_stream = |bytes: &[u8]| refuse_bombs_of_stream(Cursor::new(bytes));
        let of_file = |bytes: &[u8]| {
            let metadata = read_file_metadata(&mut Cursor::new(bytes)).unwrap();
            let blocks: Vec<Block> = metadata.dictionaries.unwrap_or_default().into_iter().chain(metadata.blocks).collect();
            assert!(!blocks.is_empty());
            refuse_bombs_of_file(Cursor::new(bytes), blocks.iter())
        };
        // The offsets at which compressed buffers state their length.
        let lengths = |bytes: &[u8], first: u64| {
            let mut cursor = Cursor::new(bytes);
            let mut messages = Messages::of(&mut cursor).unwrap();
            let (mut at, mut lengths) = (first, Vec::new());
            while let Ok(Some(message)) = messages.at(at) {
                lengths.extend(message.lengths);
                at = message.end;
            }
            lengths
        };
        for kind in ["plain", "lz4", "zstd"] {
            let (stream, file) = (bytes_of(&format!("stream-{kind}.arrow")), bytes_of(&format!("file-{kind}.arrow")));
            of_stream(&stream).unwrap();
            of_file(&file).unwrap();
            let places = (lengths(&stream, 0), lengths(&file, 8));
            assert_eq!((places.0.is_empty(), places.1.is_empty()), (kind == "plain", kind == "plain"), "{kind}");
            for (claim, message) in [(1_i64 << 40, "bomb"), (i64::MAX, "bomb"), (-2, "damaged")] {
                let claiming = |bytes: &[u8], at: u64| {
                    let mut bytes = bytes.to_vec();
                    bytes[at as usize..][..8].copy_from_slice(&claim.to_le_bytes());
                    bytes
                };
                for &at in &places.0 {
                    assert!(of_stream(&claiming(&stream, at)).unwrap_err().to_string().contains(message), "{kind} {claim}");
                }
                for &at in &places.1 {
                    assert!(of_file(&claiming(&file, at)).unwrap_err().to_string().contains(message), "{kind} {claim}");
                }
            }
        }
        assert!(of_stream(b"").is_ok() && of_stream(b"\xff\xff\xff\xff").is_ok());
    }
}
