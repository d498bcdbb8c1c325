//! Packs the page's data block: a JSON header and typed arrays, deflated, in base64.
//!
//! ```text
//! u32 n | header: n bytes of JSON | padding to 8 | arrays, each padded to 8
//! ```
//!
//! with all numbers little-endian. The header gives each array's type, its offset after the header's padding, and its length, so that a browser can
//! view the bytes as an array without decoding them one by one. No base64 character has a meaning in HTML.

use std::collections::BTreeMap;
use std::io::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use flate2::Compression;
use flate2::write::DeflateEncoder;

use crate::error::{Context, Result};

const ALIGNMENT: usize = 8;

/// The type, offset and length of an array.
pub(super) type Place = (&'static str, usize, usize);
pub(super) type Places = BTreeMap<&'static str, Place>;

/// Arrays, one after the other.
#[derive(Default)]
pub(super) struct Block {
    bytes: Vec<u8>,
}

impl Block {
    pub(super) fn u8(&mut self, values: impl Iterator<Item = u8>) -> Place {
        self.put("u8", values.map(u8::to_le_bytes))
    }

    pub(super) fn u16(&mut self, values: impl Iterator<Item = u16>) -> Place {
        self.put("u16", values.map(u16::to_le_bytes))
    }

    pub(super) fn u32(&mut self, values: impl Iterator<Item = u32>) -> Place {
        self.put("u32", values.map(u32::to_le_bytes))
    }

    pub(super) fn f32(&mut self, values: impl Iterator<Item = f32>) -> Place {
        self.put("f32", values.map(f32::to_le_bytes))
    }

    fn put<const N: usize>(&mut self, name: &'static str, values: impl Iterator<Item = [u8; N]>) -> Place {
        let begin = self.bytes.len();
        self.bytes.extend(values.flatten());
        let count = (self.bytes.len() - begin) / N;
        pad(&mut self.bytes);
        (name, begin, count)
    }

    /// The whole block with its header, as embedded in the page.
    pub(super) fn packed(&self, header: &serde_json::Value) -> Result<String> {
        let header = serde_json::to_vec(header).context("cannot write the page's header")?;
        let mut before = (header.len() as u32).to_le_bytes().to_vec();
        before.extend(header);
        pad(&mut before);
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        let written = encoder.write_all(&before).and_then(|()| encoder.write_all(&self.bytes));
        let packed = written.and_then(|()| encoder.finish()).context("cannot compress the page's data")?;
        Ok(BASE64_STANDARD.encode(packed))
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
}
