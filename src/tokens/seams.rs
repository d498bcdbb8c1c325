//! Finds the answers of long conversations from the text around some of them.
//!
//! The begin and end of an answer are found by rendering the conversation up to it (`turns.rs`), which for all answers takes quadratic time. Here a
//! single rendering, with marks instead of contents, reasoning and the names of calls, locates in the text what each message writes of its own. The
//! template's text between what two messages write is a seam, in which an answer begins or ends. If a seam has the same text as those of answers
//! that were located by rendering, the answer begins or ends at the same offset in it. The first answers, the last ones and some in between are
//! always located by rendering; if one of them contradicts its seam, all are.

use std::collections::HashMap;
use std::ops::Range;

/// The positions of the messages of a conversation in its text, and what is known of its seams.
pub(super) struct Seams<'a> {
    text: &'a str,
    /// The range of what each message writes of its own, or `None` if it writes nothing.
    own: Vec<Option<Range<usize>>>,
    /// Whether each message follows reasoning that the template may leave out, so that the text before it differs from its prompt.
    follows_reasoning: Vec<bool>,
    begins: HashMap<(bool, &'a str), Shown>,
    ends: HashMap<(bool, &'a str), Shown>,
    /// Whether an answer was not where its seam predicted.
    is_contradicted: bool,
}

/// What is known of a seam.
enum Shown {
    /// The offset in the seam.
    Place {
        at: usize,
        /// Whether the text before it differs from the prompt; `None` if that varies.
        unlike: Option<bool>,
        /// How often it was observed.
        times: u32,
    },
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
    pub(super) fn new(text: &'a str, own: Vec<Option<Range<usize>>>, follows_reasoning: Vec<bool>) -> Seams<'a> {
        Seams { text, own, follows_reasoning, begins: HashMap::new(), ends: HashMap::new(), is_contradicted: false }
    }

    pub(super) fn is_contradicted(&self) -> bool {
        self.is_contradicted
    }

    /// Predicts where the answer in message `idx` begins, and whether the text before it differs from its prompt, if that does not vary.
    pub(super) fn begin(&self, idx: usize) -> Option<(usize, Option<bool>)> {
        let seam = self.before(idx)?;
        believed(self.begins.get(&self.key(idx, &seam))).map(|(at, unlike)| (seam.start + at, unlike))
    }

    /// Predicts where the text of the answer in message `idx` ends.
    pub(super) fn end(&self, idx: usize) -> Option<usize> {
        let seam = self.behind(idx)?;
        believed(self.ends.get(&self.key(idx, &seam))).map(|(at, _)| seam.start + at)
    }

    /// Records where an answer that was located by rendering begins.
    pub(super) fn learn_begin(&mut self, idx: usize, begin: usize, unlike: bool) {
        if let Some(seam) = self.before(idx) {
            let place = (seam.contains(&begin) || begin == seam.end).then(|| (begin - seam.start, unlike));
            let key = self.key(idx, &seam);
            self.is_contradicted |= !learn(&mut self.begins, key, place);
        }
    }

    /// Records where an answer that was located by rendering ends.
    pub(super) fn learn_end(&mut self, idx: usize, end: usize) {
        if let Some(seam) = self.behind(idx) {
            let place = (seam.contains(&end) || end == seam.end).then(|| (end - seam.start, false));
            let key = self.key(idx, &seam);
            self.is_contradicted |= !learn(&mut self.ends, key, place);
        }
    }

    /// Seams of the same key have the answer of their message at the same offset.
    fn key(&self, idx: usize, seam: &Range<usize>) -> (bool, &'a str) {
        (self.follows_reasoning[idx], &self.text[seam.clone()])
    }

    /// Returns the range between what the previous message writes and what message `idx` does.
    fn before(&self, idx: usize) -> Option<Range<usize>> {
        let own = self.own[idx].as_ref()?;
        let before = self.own[..idx].iter().rev().flatten().next()?;
        Some(before.end..own.start)
    }

    /// Returns the range between what message `idx` writes and what the next one does.
    fn behind(&self, idx: usize) -> Option<Range<usize>> {
        let own = self.own[idx].as_ref()?;
        let next = self.own[idx + 1..].iter().flatten().next()?;
        Some(own.end..next.start)
    }
}

fn believed(shown: Option<&Shown>) -> Option<(usize, Option<bool>)> {
    match shown {
        Some(Shown::Place { at, unlike, times }) if *times >= ENOUGH => Some((*at, *unlike)),
        _ => None,
    }
}

/// Records an observation. Returns `false` if the seam was trusted to predict another.
fn learn<'a>(known: &mut HashMap<(bool, &'a str), Shown>, key: (bool, &'a str), place: Option<(usize, bool)>) -> bool {
    let was_believed = believed(known.get(&key));
    let next = match (known.remove(&key), place) {
        (None, Some((at, unlike))) => Shown::Place { at, unlike: Some(unlike), times: 1 },
        (Some(Shown::Place { at, unlike, times }), Some((found, is_unlike))) if at == found => {
            Shown::Place { at, unlike: unlike.filter(|&unlike| unlike == is_unlike), times: times + 1 }
        }
        _ => Shown::Varies,
    };
    let agrees = was_believed.is_none() || matches!(next, Shown::Place { .. });
    known.insert(key, next);
    agrees
}
