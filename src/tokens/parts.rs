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
    pub inner: Inner,
    pub continuation: Option<Box<Inner>>,
    pub prefix_space: PrefixSpace,
    pub spelling: Spelling,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub adds_bos: bool,
}
