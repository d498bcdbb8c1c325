//! Characters that mark positions in a rendered text.

/// Unicode noncharacters: legitimate text does not contain them, and rows that do are refused.
pub(super) const GENERATION_BEGIN: char = '\u{FDD0}';
pub(super) const GENERATION_END: char = '\u{FDD1}';
/// Replaces a message's content in a rendering that locates it.
pub(super) const CONTENT: char = '\u{FDD2}';

/// Whether the character is one of these three marks.
pub(super) fn is_mark(c: char) -> bool {
    matches!(c, GENERATION_BEGIN | GENERATION_END | CONTENT)
}
