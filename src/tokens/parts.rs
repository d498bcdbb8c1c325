//! What a tokenizer.json and the vocabulary of a GGUF file have in common.

use tokenizers::Tokenizer as Inner;

/// Where a vocabulary puts a space that is not in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PrefixSpace {
    Never,
    /// Before the first word of a text.
    First,
    /// Before the first word of a text, and of the text after each special token.
    EveryFragment,
}

/// How the strings of a vocabulary stand for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Each character is one byte, by GPT-2's table.
    ByteLevel,
    /// `▁` is a space, `<0x0A>` a byte.
    SentencePiece,
    Plain,
}

/// What both kinds of file are read into.
pub(super) struct Parts {
    /// The vocabulary and its splitting rules, as the `tokenizers` library has them.
    pub inner: Inner,
    /// `inner` without the space before the first word, for texts that continue another; `None` where no such space is put.
    pub continuation: Option<Box<Inner>>,
    /// Where a space is put that is not in the text.
    pub prefix_space: PrefixSpace,
    /// How the tokens' strings stand for bytes.
    pub spelling: Spelling,
    /// The id of the beginning token.
    pub bos: Option<u32>,
    /// The id of the end token.
    pub eos: Option<u32>,
    /// The tokens that stand before a plain text.
    pub leading: Vec<u32>,
    /// Does the end token stand behind a plain text?
    pub ends_texts: bool,
}
