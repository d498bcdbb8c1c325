//! The common form of tokenizers from a tokenizer.json and from a GGUF file.

use tokenizers::Tokenizer as Inner;

/// Where a tokenizer inserts a space that is not in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PrefixSpace {
    Never,
    /// Before the first word of a text.
    First,
    /// Before the first word of a text, and of the text after each special token.
    EveryFragment,
}

/// How the strings of a vocabulary encode bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Each character encodes one byte, by GPT-2's table.
    ByteLevel,
    /// `▁` encodes a space, `<0x0A>` a byte.
    SentencePiece,
    Plain,
}

/// The tokenizer that either kind of file describes.
pub(super) struct Parts {
    /// The vocabulary and its splitting rules in the `tokenizers` library.
    pub inner: Inner,
    /// `inner` without the space before the first word, for texts that continue another; `None` if no such space is inserted.
    pub continuation: Option<Box<Inner>>,
    /// Where a space is inserted that is not in the text.
    pub prefix_space: PrefixSpace,
    /// How the tokens' strings encode bytes.
    pub spelling: Spelling,
    /// The id of the beginning-of-sequence token.
    pub bos: Option<u32>,
    /// The id of the end-of-sequence token.
    pub eos: Option<u32>,
    /// The tokens that precede a plain text.
    pub leading: Vec<u32>,
    /// Whether the end token follows a plain text.
    pub ends_texts: bool,
}
