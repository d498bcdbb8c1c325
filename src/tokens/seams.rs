//! Finds the answers of long conversations from the text around some of them.
//!
//! The begin and end of an answer are found by rendering the conversation up to it (`turns.rs`), which for all answers takes quadratic time. Here a
//! single rendering, with marks instead of contents, locates the contents in the text. The template's text between two contents is a seam, in which
//! an answer begins or ends. If a seam has the same text as those of answers that were located by rendering, the answer begins or ends at the same
//! offset in it. The first answers, the last ones and some in between are always located by rendering; if one of them contradicts its seam, all
//! are.

use std::collections::HashMap;
use std::ops::Range;

/// The positions of the contents of a conversation in its text, and what is known of its seams.
pub(super) struct Seams<'a> {
    text: &'a str,
    /// The range of each message's content, or `None` if it has none to mark.
    contents: Vec<Option<Range<usize>>>,
    begins: HashMap<&'a str, Shown>,
    ends: HashMap<&'a str, Shown>,
    /// Whether an answer was not where its seam predicted.
    is_contradicted: bool,
}

/// What is known of a seam.
enum Shown {
    /// The offset in the seam, whether the text before it differs from the prompt, and how often this was observed.
    Place(usize, bool, u32),
    /// Different offsets were observed.
    Varies,
}

/// The number of consistent observations after which a seam is trusted.
const ENOUGH: u32 = 3;

/// The number of answers at the beginning and at the end of a conversation that are always located by rendering.
const AT_ENDS: usize = 4;

/// Whether answer `nth` of `n` is located by rendering, whatever is known of its seams.
pub(super) fn is_looked_for(nth: usize, n: usize) -> bool {
    nth < AT_ENDS || nth + AT_ENDS >= n || nth.is_power_of_two()
}

/// Whether a conversation with `n` answers has some that need not be located by rendering.
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

    /// Predicts where the answer in message `idx` begins, and whether the text before it differs from its prompt.
    pub(super) fn begin(&self, idx: usize) -> Option<(usize, bool)> {
        let seam = self.before(idx)?;
        believed(self.begins.get(&self.text[seam.clone()])).map(|(at, unlike)| (seam.start + at, unlike))
    }

    /// Predicts where the text of the answer in message `idx` ends.
    pub(super) fn end(&self, idx: usize) -> Option<usize> {
        let seam = self.behind(idx)?;
        believed(self.ends.get(&self.text[seam.clone()])).map(|(at, _)| seam.start + at)
    }

    /// Records where an answer that was located by rendering begins.
    pub(super) fn learn_begin(&mut self, idx: usize, begin: usize, unlike: bool) {
        if let Some(seam) = self.before(idx) {
            let place = (seam.contains(&begin) || begin == seam.end).then(|| begin - seam.start);
            self.is_contradicted |= !learn(&mut self.begins, &self.text[seam], place.map(|at| (at, unlike)));
        }
    }

    /// Records where an answer that was located by rendering ends.
    pub(super) fn learn_end(&mut self, idx: usize, end: usize) {
        if let Some(seam) = self.behind(idx) {
            let place = (seam.contains(&end) || end == seam.end).then(|| end - seam.start);
            self.is_contradicted |= !learn(&mut self.ends, &self.text[seam], place.map(|at| (at, false)));
        }
    }

    /// Returns the range between the previous content and that of message `idx`.
    fn before(&self, idx: usize) -> Option<Range<usize>> {
        let own = self.contents[idx].as_ref()?;
        let before = self.contents[..idx].iter().rev().flatten().next()?;
        Some(before.end..own.start)
    }

    /// Returns the range between the content of message `idx` and the next one.
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

/// Records an observation. Returns `false` if the seam was trusted to predict another.
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
