//! Long conversations: what stands around some of the answers, and how that tells where the others are.
//!
//! Where an answer begins and ends is found by rendering the conversation up to it (`turns.rs`), which for all answers takes the square of their
//! number. Here one rendering with marks in the place of all contents shows where the contents stand in the text. Between two contents stands what the
//! template writes: a seam, in which an answer begins, or ends. Of a seam that has the very text of those of answers that were looked for, the answer
//! begins or ends at the same place of it. The first answers, the last ones and some in between are looked for in any case: where one of them is
//! not where its seam says, all are looked for.

use std::collections::HashMap;
use std::ops::Range;

/// Where the contents of a conversation stand in its text, and what its seams have shown so far.
pub(super) struct Seams<'a> {
    text: &'a str,
    /// Where the content of each message stands; `None` where it has none to mark.
    contents: Vec<Option<Range<usize>>>,
    begins: HashMap<&'a str, Shown>,
    ends: HashMap<&'a str, Shown>,
    /// An answer was not where its seam said.
    is_contradicted: bool,
}

/// What a seam has shown of its answers.
enum Shown {
    /// The place in the seam, whether the text before it is unlike the prompt, and how often that was so.
    Place(usize, bool, u32),
    /// Now one place, now another.
    Varies,
}

/// A seam is believed once so many answers have shown the same.
const ENOUGH: u32 = 3;

/// Answers that are looked for at the beginning and at the end of a conversation.
const AT_ENDS: usize = 4;

/// Is answer `nth` of `n` looked for, whatever is known of its seams?
pub(super) fn is_looked_for(nth: usize, n: usize) -> bool {
    nth < AT_ENDS || nth + AT_ENDS >= n || nth.is_power_of_two()
}

/// Has a conversation of so many answers some that need not be looked for?
pub(super) fn is_long(n: usize) -> bool {
    n > 4 * AT_ENDS
}

impl<'a> Seams<'a> {
    pub(super) fn new(text: &'a str, contents: Vec<Option<Range<usize>>>) -> Seams<'a> {
        Seams { text, contents, begins: HashMap::new(), ends: HashMap::new(), is_contradicted: false }
    }

    pub(super) fn is_contradicted(&self) -> bool {
        self.is_contradicted
    }

    /// Where the answer that is message `idx` begins, and whether it follows another text than its prompt.
    pub(super) fn begin(&self, idx: usize) -> Option<(usize, bool)> {
        let seam = self.before(idx)?;
        believed(self.begins.get(&self.text[seam.clone()])).map(|(at, unlike)| (seam.start + at, unlike))
    }

    /// Where the text of the answer that is message `idx` ends.
    pub(super) fn end(&self, idx: usize) -> Option<usize> {
        let seam = self.behind(idx)?;
        believed(self.ends.get(&self.text[seam.clone()])).map(|(at, _)| seam.start + at)
    }

    /// Learns where an answer that was looked for begins.
    pub(super) fn learn_begin(&mut self, idx: usize, begin: usize, unlike: bool) {
        if let Some(seam) = self.before(idx) {
            let place = (seam.contains(&begin) || begin == seam.end).then(|| begin - seam.start);
            self.is_contradicted |= !learn(&mut self.begins, &self.text[seam], place.map(|at| (at, unlike)));
        }
    }

    /// Learns where an answer that was looked for ends.
    pub(super) fn learn_end(&mut self, idx: usize, end: usize) {
        if let Some(seam) = self.behind(idx) {
            let place = (seam.contains(&end) || end == seam.end).then(|| end - seam.start);
            self.is_contradicted |= !learn(&mut self.ends, &self.text[seam], place.map(|at| (at, false)));
        }
    }

    /// The text between the content before and that of message `idx`.
    fn before(&self, idx: usize) -> Option<Range<usize>> {
        let own = self.contents[idx].as_ref()?;
        let before = self.contents[..idx].iter().rev().flatten().next()?;
        Some(before.end..own.start)
    }

    /// The text between the content of message `idx` and the next one.
    fn behind(&self, idx: usize) -> Option<Range<usize>> {
        let own = self.contents[idx].as_ref()?;
        let next = self.contents[idx + 1..].iter().flatten().next()?;
        Some(own.end..next.start)
    }
}

fn believed(shown: Option<&Shown>) -> Option<(usize, bool)> {
    match shown {
        Some(Shown::Place(at, unlike, times)) if *times >= ENOUGH => Some((*at, *unlike)),
        _ => None,
    }
}

/// `false` where the seam was believed to show another place.
fn learn<'a>(known: &mut HashMap<&'a str, Shown>, seam: &'a str, place: Option<(usize, bool)>) -> bool {
    let was_believed = believed(known.get(seam));
    let next = match (known.remove(seam), place) {
        (None, Some((at, unlike))) => Shown::Place(at, unlike, 1),
        (Some(Shown::Place(at, unlike, times)), Some(place)) if place == (at, unlike) => Shown::Place(at, unlike, times + 1),
        _ => Shown::Varies,
    };
    let agrees = was_believed.is_none() || matches!(next, Shown::Place(..));
    known.insert(seam, next);
    agrees
}
