//! Applies chat templates, tokenises, and makes and audits loss masks: [`Example`](crate::dataset::Example) -> [`Sequence`].
//!
//! This module does not read model files: a vocabulary comes from a tokenizer.json or as the plain struct [`GgufVocabulary`].
//!
//! ```text
//! template.rs     runs a chat template like Transformers: syntax.rs translates its source; methods.rs, filters.rs, iterables.rs and python.rs
//!                 imitate Python and Jinja
//! turns.rs        finds the answers in a rendered conversation by rendering its prefixes; seams.rs finds those of long conversations by the text
//!                 between what their messages write; own.rs the texts of a turn, and marks in their places; marks.rs the characters of marks
//! render.rs       a conversation -> token ids and mask, so that every answer begins on a token boundary; records.rs renders many on all cores
//! audit.rs        counts suspicious properties of rows; lost.rs finds parts of a row that its text lacks;
//!                 written.rs finds reasoning and tool calls in the text of a turn
//! tokenizer.rs    text -> token ids; gguf.rs the tokenizer of a GGUF file, parts.rs the common form of both, settings.rs the tokens that a
//!                 model folder defines beside tokenizer.json
//! rollout.rs      prompts to be answered, and answers that a model generated
//! ```

mod audit;
#[cfg(test)]
mod constructs;
mod filters;
mod gguf;
mod iterables;
mod lost;
mod marks;
mod methods;
mod own;
mod parts;
mod python;
mod records;
mod render;
mod rollout;
mod seams;
mod settings;
mod syntax;
mod template;
#[cfg(test)]
mod test_models;
mod tokenizer;
mod turns;
mod written;

pub(crate) use audit::refused_strictly;
pub use audit::{Audit, Drawn, EqualRows, Finding, RowAudit};
pub use gguf::GgufVocabulary;
pub(crate) use own::said;
pub use records::{Item, rendered};
pub(crate) use render::with_parsed_arguments;
pub use render::{DEFAULT_MAX_LEN, RenderOptions, Rendered, Renderer, Supervise};
pub use rollout::{Prompt, fingerprint_of_prompt};
pub(crate) use settings::{token_text, tokenizer_settings};
pub use template::ChatTemplate;
pub use tokenizer::{Token, Tokenizer};
pub use written::{FoundCall, FoundParts, Part, Stretch, find_parts, writes_beside_content};

use sha2::{Digest, Sha256};

use crate::files::first_bytes;

/// A rendered and tokenised example.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// The index of the record over the whole input; bad records count.
    pub row: u32,
    /// Token ids, length `T`.
    pub ids: Vec<u32>,
    /// The loss mask: whether `ids[t]` is a target of the loss. Never true at `t = 0`, which has no prediction. Length `T`.
    pub supervised: Vec<bool>,
    /// The position of each token in the contents of the turns. Length `T`.
    pub spans: Vec<Span>,
}

impl Sequence {
    /// Iterates over positions and ids of the supervised tokens, in order.
    pub fn targets(&self) -> impl DoubleEndedIterator<Item = (usize, u32)> {
        self.ids.iter().copied().enumerate().filter(|&(at, _)| self.supervised.get(at) == Some(&true))
    }

    pub fn n_targets(&self) -> usize {
        self.supervised.iter().filter(|&&supervised| supervised).count()
    }

    pub fn has_targets(&self) -> bool {
        self.supervised.contains(&true)
    }

    /// Returns the length up to and including the last target, since later tokens affect no score; 0 without a target.
    pub fn targets_end(&self) -> usize {
        self.supervised.iter().rposition(|&supervised| supervised).map_or(0, |last| last + 1)
    }

    /// Returns a hash that is equal for rows with the same tokens and loss mask, like [`fingerprint`] for equal tokens.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hash = Fingerprint::default();
        hash.add(&self.ids);
        hash.digest.update(self.supervised.iter().map(|&supervised| u8::from(supervised)).collect::<Vec<_>>());
        hash.value()
    }

    /// Returns the turns with supervised tokens, in order.
    pub(crate) fn learnt_turns(&self) -> Vec<u16> {
        let mut turns: Vec<u16> = self.targets().map(|(at, _)| self.spans[at].turn).collect();
        turns.sort_unstable();
        turns.dedup();
        turns
    }
}

/// Returns the first eight bytes of the SHA-256 of the ids: equal for equal tokens; different ones collide in one of 10^19 pairs.
pub(crate) fn fingerprint(ids: &[u32]) -> u64 {
    let mut hash = Fingerprint::default();
    hash.add(ids);
    hash.value()
}

/// Computes [`fingerprint`] incrementally.
#[derive(Default)]
struct Fingerprint {
    digest: Sha256,
}

impl Fingerprint {
    fn add(&mut self, ids: &[u32]) {
        self.digest.update(ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
    }

    fn value(&self) -> u64 {
        first_bytes(&self.digest.clone().finalize())
    }
}

/// Bytes `begin..end` of `turns[turn].content`; `begin == end` if the token is part of the template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// The index of the turn.
    pub turn: u16,
    /// The offset of the first byte.
    pub begin: u32,
    /// The offset after the last byte.
    pub end: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_equal_by_their_tokens_and_by_what_is_learnt_of_them() {
        let sequence = |ids: &[u32], supervised: &[u8]| Sequence {
            row: 0,
            ids: ids.to_vec(),
            supervised: supervised.iter().map(|&is| is == 1).collect(),
            // Two tokens per turn.
            spans: (0..ids.len()).map(|at| Span { turn: at as u16 / 2, begin: 0, end: 1 }).collect(),
        };
        let whole = sequence(&[1, 2, 3, 4, 5, 6, 7, 8], &[0, 0, 1, 1, 0, 0, 1, 1]);
        let masked = sequence(&[1, 2, 3, 4, 5, 6, 7, 8], &[0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(whole.fingerprint(), whole.clone().fingerprint());
        assert_ne!(whole.fingerprint(), masked.fingerprint());
        assert_eq!(fingerprint(&whole.ids), fingerprint(&masked.ids));
        assert_eq!((whole.learnt_turns(), masked.learnt_turns()), (vec![1, 3], vec![3]));
    }
}
