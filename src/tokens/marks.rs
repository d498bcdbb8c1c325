//! Characters that stand for places in a rendered text, where something has to be found again.

/// Unicode noncharacters: no text that is meant to be read contains them, and rows that do are refused.
pub(super) const GENERATION_BEGIN: char = '\u{FDD0}';
pub(super) const GENERATION_END: char = '\u{FDD1}';
/// Stands for a message's content where a rendering shows the place of it.
pub(super) const CONTENT: char = '\u{FDD2}';

/// Is the character one of the three that this room uses as marks?
pub(super) fn is_mark(c: char) -> bool {
    matches!(c, GENERATION_BEGIN | GENERATION_END | CONTENT)
}
