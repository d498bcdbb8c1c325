//! Chat template, supervised mask, mask audit: [`Example`](crate::dataset::Example) -> [`Sequence`].
//!
//! An example becomes text through the model's own chat template (`template`), the places of the answers in that text are found
//! by rendering prefixes of the conversation (`turns`), and the text is tokenised so that every answer begins on a token boundary
//! (`render`), record by record on all cores (`records`). What looks wrong on the way is counted (`audit`). Prompts to be answered, and
//! answers that a model wrote, are `rollout`'s.
//!
//! Templates are Jinja's, and the engine is minijinja: `syntax` translates what the two read in different ways, `methods` and `filters` do what Python's and
//! Jinja's do, `iterables` are what Python goes through, `python` prints values as Python does; `constructs` compares each construct with
//! Transformers.
//!
//! The room knows nothing of model files: a vocabulary comes from a tokenizer.json or as the plain struct [`GgufVocabulary`].

mod audit;
#[cfg(test)]
mod constructs;
mod filters;
mod gguf;
mod iterables;
mod lost;
mod marks;
mod methods;
mod parts;
mod python;
mod records;
mod render;
mod rollout;
mod syntax;
mod template;
#[cfg(test)]
mod test_models;
mod tokenizer;
mod turns;

pub use audit::{Audit, Drawn, Finding, RowAudit};
pub use gguf::GgufVocabulary;
pub use records::{Item, rendered};
pub use render::{DEFAULT_MAX_LEN, RenderOptions, Rendered, Renderer, Supervise};
pub use rollout::{Prompt, fingerprint_of_prompt};
pub use template::ChatTemplate;
pub use tokenizer::{Token, Tokenizer};

use std::hash::{DefaultHasher, Hash, Hasher};

/// A rendered and tokenised example.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// Number of the record in the whole input, bad records counted.
    pub row: u32,
    /// Token ids, length `T`.
    pub ids: Vec<u32>,
    /// `supervised[t]`: is `ids[t]` a target of the loss? Never true at `t = 0`, which nothing predicts. Length `T`.
    pub supervised: Vec<bool>,
    /// Where each token comes from. Length `T`.
    pub spans: Vec<Span>,
}

impl Sequence {
    /// Of all its tokens.
    pub(crate) fn fingerprint(&self) -> u64 {
        fingerprint(&self.ids)
    }
}

/// Equal for equal tokens, and for others by an accident of one in 10^19 pairs.
pub(crate) fn fingerprint(ids: &[u32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    ids.hash(&mut hasher);
    hasher.finish()
}

/// Bytes `begin..end` of `turns[turn].content`; `begin == end` where the token is part of the template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    pub turn: u16,
    pub begin: u32,
    pub end: u32,
}
