//! An answer while it is being generated, and the conditions that end it.

use crate::spelling::named;
use crate::tokens::Tokenizer;

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It generated an end token, which is its last token.
    EndToken,
    /// It contains a stop string.
    Stop,
    /// It reached the maximum length.
    Length,
}

named! { pub Ended, "a reason for the end of an answer": EndToken = "end_token", Stop = "stop", Length = "length" }

/// A finished answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// All generated tokens, including the end token.
    pub ids: Vec<u32>,
    /// Why the answer ends.
    pub ended: Ended,
}

impl Answer {
    /// The bytes of the tokens, without the end token.
    pub fn bytes(&self, tokenizer: &Tokenizer) -> Vec<u8> {
        bytes_of(&self.ids, self.ended, tokenizer)
    }

    /// The whole text, without the end token. Invalid UTF-8, such as the beginning of a truncated character, becomes U+FFFD.
    pub fn text(&self, tokenizer: &Tokenizer) -> String {
        text_of(&self.ids, self.ended, tokenizer)
    }
}

/// Like [`Answer::text`], from the parts of an answer.
pub fn text_of(ids: &[u32], ended: Ended, tokenizer: &Tokenizer) -> String {
    String::from_utf8_lossy(&bytes_of(ids, ended, tokenizer)).into_owned()
}

fn bytes_of(ids: &[u32], ended: Ended, tokenizer: &Tokenizer) -> Vec<u8> {
    let n = ids.len() - usize::from(ended == Ended::EndToken);
    ids[..n].iter().flat_map(|&id| tokenizer.bytes(id)).copied().collect()
}

/// The answer that consists of these tokens, of which there may be at most `most`, up to the one that ends it; `None` if none
/// does.
pub(crate) fn answer_of(ids: &[u32], most: usize, ends: &[u32], stops: &[String], tokenizer: &Tokenizer) -> Option<Answer> {
    let mut writing = Writing::new(tokenizer, ends, stops, most);
    ids.iter().find_map(|&id| writing.push(id))
}

/// An answer that is being generated.
pub(super) struct Writing<'a> {
    tokenizer: &'a Tokenizer,
    ends: &'a [u32],
    stops: &'a [String],
    most: usize,
    ids: Vec<u32>,
    /// The bytes of all tokens so far; not kept if there are no stop strings.
    bytes: Vec<u8>,
}

impl<'a> Writing<'a> {
    /// Begins an answer of at most `most` tokens.
    pub(super) fn new(tokenizer: &'a Tokenizer, ends: &'a [u32], stops: &'a [String], most: usize) -> Writing<'a> {
        Writing { tokenizer, ends, stops, most, ids: Vec::new(), bytes: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// The tokens so far.
    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Adds the next token; returns the answer if it is the last one.
    pub(super) fn push(&mut self, id: u32) -> Option<Answer> {
        self.ids.push(id);
        if self.ends.contains(&id) {
            return Some(self.finished(Ended::EndToken));
        }
        if self.completes_stop(id) {
            return Some(self.finished(Ended::Stop));
        }
        (self.ids.len() >= self.most).then(|| self.finished(Ended::Length))
    }

    /// Whether a stop string ends within this token.
    fn completes_stop(&mut self, id: u32) -> bool {
        let Some(longest) = self.stops.iter().map(String::len).max() else { return false };
        let begin = (self.bytes.len() + 1).saturating_sub(longest);
        self.bytes.extend_from_slice(self.tokenizer.bytes(id));
        let tail = &self.bytes[begin.min(self.bytes.len())..];
        self.stops.iter().any(|stop| tail.windows(stop.len().max(1)).any(|window| window == stop.as_bytes()))
    }

    fn finished(&mut self, ended: Ended) -> Answer {
        Answer { ids: std::mem::take(&mut self.ids), ended }
    }
}
