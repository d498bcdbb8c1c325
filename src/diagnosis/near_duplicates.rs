//! Finds rows with the same question by a hash of their words, and rows with nearly the same question by MinHash (Broder 1997) with banding
//! (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, chapter 3).
//!
//! The shingles of a text are its runs of three words (three characters in Chinese and Japanese, which have no spaces). For each of `HASHES` hash
//! functions, the signature keeps the smallest hash of any shingle. Two signatures agree in a place with a probability equal to the Jaccard
//! similarity of their texts. Rows are compared if they agree in all places of a band: of pairs with similarity 0.9, this finds
//! 1 - (1 - 0.9^4)^16 = 0.99999996, and of those with 0.5 two in three. For a question with a context, the bands of both must agree:
//! 1 - (1 - 0.9^8)^16 = 0.9999 if both have similarity 0.9. The standard error of an estimated similarity is at most 0.06.

use std::collections::HashMap;

use crate::random::SplitMix;

const HASHES: usize = 64;
const PER_BAND: usize = 4;

/// The similarity from which two prompts count as nearly the same.
pub const NEAR: f32 = 0.85;

/// The MinHash signature of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Signature([u32; HASHES]);

impl Signature {
    /// Returns `None` for a text without words.
    pub fn of(text: &str) -> Option<Signature> {
        let words = words(text);
        if words.is_empty() {
            return None;
        }
        let mut least = [u32::MAX; HASHES];
        let n = words.len().min(3);
        for shingle in words.windows(n) {
            let base = hash(shingle);
            for (idx, least) in least.iter_mut().enumerate() {
                *least = (*least).min(mixed(base ^ mixed(idx as u64 + 1)) as u32);
            }
        }
        Some(Signature(least))
    }

    /// An estimate of the Jaccard similarity of the shingles of two texts.
    pub fn similarity(&self, other: &Signature) -> f32 {
        let n_equal = self.0.iter().zip(&other.0).filter(|(a, b)| a == b).count();
        n_equal as f32 / HASHES as f32
    }
}

/// The words of a text in lower case, without punctuation; in Chinese and Japanese, each character is a word.
pub fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut is_open = false;
    for c in text.chars() {
        let stands_alone = matches!(c, '\u{3040}'..='\u{30FF}' | '\u{3400}'..='\u{9FFF}' | '\u{20000}'..='\u{3FFFF}');
        match (c.is_alphanumeric(), is_open && !stands_alone, words.last_mut()) {
            (false, ..) => is_open = false,
            (true, true, Some(word)) => word.extend(c.to_lowercase()),
            (true, ..) => {
                words.push(c.to_lowercase().collect());
                is_open = !stands_alone;
            }
        }
    }
    words
}

/// Separate signatures of the last question of a prompt and of what precedes it. One signature for both would make all rows that share a long system
/// prompt look alike, and so would a last question such as "Go on."
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    question: Signature,
    context: Option<Box<Signature>>,
}

impl Prompt {
    /// Returns `None` if the question has no words.
    pub fn of(context: &str, question: &str) -> Option<Prompt> {
        Some(Prompt { question: Signature::of(question)?, context: Signature::of(context).map(Box::new) })
    }

    /// The smaller one of the similarities of the two parts.
    pub fn similarity(&self, other: &Prompt) -> f32 {
        let contexts = match (&self.context, &other.context) {
            (Some(own), Some(other)) => own.similarity(other),
            (None, None) => 1.0,
            _ => 0.0,
        };
        contexts.min(self.question.similarity(&other.question))
    }
}

/// Two prompts that are nearly the same, given by their numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Near {
    /// The number of the first prompt.
    pub earlier: u32,
    /// The number of the second prompt.
    pub later: u32,
    /// The estimate of [`Prompt::similarity`], at least [`NEAR`].
    pub similarity: f32,
}

/// Finds the prompts that are [`NEAR`] an earlier one, each with the first such prompt found. `prompts` come with their numbers.
pub fn near_pairs(prompts: &[(u32, Prompt)]) -> Vec<Near> {
    let mut pairs: HashMap<(usize, usize), f32> = HashMap::new();
    for band in 0..HASHES / PER_BAND {
        let mut firsts: HashMap<_, Vec<usize>> = HashMap::new();
        for (idx, (_, prompt)) in prompts.iter().enumerate() {
            let of_band =
                |signature: &Signature| -> [u32; PER_BAND] { std::array::from_fn(|place| signature.0[band * PER_BAND + place]) };
            let bands = (of_band(&prompt.question), prompt.context.as_deref().map(of_band));
            let firsts = firsts.entry(bands).or_default();
            // Many prompts that are not alike may share a band, such as that of a common template; the first few of them stand for all.
            let near = firsts.iter().find_map(|&first| {
                let similarity = prompts[first].1.similarity(prompt);
                (similarity >= NEAR).then_some((first, similarity))
            });
            match near {
                Some((first, similarity)) => {
                    pairs.insert((first, idx), similarity);
                }
                None if firsts.len() < 64 => firsts.push(idx),
                None => {}
            }
        }
    }
    let mut pairs: Vec<(usize, usize, f32)> = pairs.into_iter().map(|((a, b), similarity)| (a, b, similarity)).collect();
    pairs.sort_unstable_by_key(|(a, b, _)| (*b, *a));
    // If several bands found earlier prompts for one prompt, keep the first of them.
    pairs.dedup_by_key(|(_, later, _)| *later);
    let near = |(a, b, similarity): (usize, usize, f32)| Near { earlier: prompts[a].0, later: prompts[b].0, similarity };
    pairs.into_iter().map(near).collect()
}

/// An answer of a row, with hashes of its prompt and of its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    /// Equal for the same prompt.
    pub question: u64,
    /// The number of the row.
    pub row: u32,
    /// The index of the answer's turn.
    pub turn: u16,
    /// Whether it is the last answer of the row.
    pub is_last: bool,
    /// Equal for answers with the same content.
    pub answer: u64,
}

/// The largest number of different answers kept per question.
const ANSWERS: usize = 8;

/// The answers to one question.
#[derive(Debug)]
pub struct SameQuestion<'a> {
    /// All answers, ordered by row.
    pub rows: &'a [Asked],
    /// The first answer of each content.
    answers: Vec<Asked>,
}

impl SameQuestion<'_> {
    /// Returns the row and turn of the first of each group of answers that differ from `answer`.
    pub fn otherwise(&self, answer: u64) -> impl Iterator<Item = (u32, u16)> {
        self.answers.iter().filter(move |other| other.answer != answer).map(|other| (other.row, other.turn))
    }
}

/// Groups answers by their prompt.
pub fn by_question(rows: &mut [Asked]) -> impl Iterator<Item = SameQuestion<'_>> {
    rows.sort_unstable();
    rows.chunk_by(|a, b| a.question == b.question).map(|rows| {
        let mut answers: Vec<Asked> = Vec::new();
        for row in rows {
            if answers.len() < ANSWERS && answers.iter().all(|other| other.answer != row.answer) {
                answers.push(*row);
            }
        }
        SameQuestion { rows, answers }
    })
}

fn hash(words: &[String]) -> u64 {
    // FNV-1a (http://www.isthe.com/chongo/tech/comp/fnv/), which gives the same hash on every machine.
    let mut hash = 0xCBF2_9CE4_8422_2325_u64;
    for byte in words.iter().flat_map(|word| word.bytes().chain([b' '])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
    }
    hash
}

fn mixed(z: u64) -> u64 {
    SplitMix(z).next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn jaccard(a: &str, b: &str) -> f32 {
        let shingles = |text: &str| words(text).windows(3).map(<[String]>::to_vec).collect::<HashSet<_>>();
        let (a, b) = (shingles(a), shingles(b));
        a.intersection(&b).count() as f32 / a.union(&b).count() as f32
    }

    #[test]
    fn words_by_hand() {
        assert_eq!(words("It's 3.5 km; 名古"), ["it", "s", "3", "5", "km", "名", "古"]);
        assert_eq!(Signature::of(" .,"), None);
    }

    #[test]
    fn the_estimate_is_the_jaccard_similarity() {
        let long: Vec<String> = (0..120).map(|n| format!("w{n}")).collect();
        for n_same in [120, 110, 90, 60, 0] {
            let other: Vec<String> = (0..120).map(|n| if n < n_same { format!("w{n}") } else { format!("v{n}") }).collect();
            let (a, b) = (long.join(" "), other.join(" "));
            let estimate = Signature::of(&a).unwrap().similarity(&Signature::of(&b).unwrap());
            // Three standard errors of a share of 64 places.
            assert!((estimate - jaccard(&a, &b)).abs() < 3.0 * 0.0625, "{n_same}: {estimate}, {}", jaccard(&a, &b));
        }
    }

    #[test]
    fn near_prompts_are_found_and_others_are_not() {
        let base =
            "Please write a short and friendly letter to my neighbour about the loud music at night, and ask him to turn it down";
        let texts = [
            base.to_owned(),
            "Name the capital of France.".to_owned(),
            format!("{base}, please!"),
            "Name the capital of Spain.".to_owned(),
            base.to_uppercase(),
        ];
        let pairs = |prompt: &dyn Fn(&String) -> Prompt| -> Vec<_> {
            let prompts: Vec<_> = (10..).zip(texts.iter().map(prompt)).collect();
            near_pairs(&prompts).into_iter().map(|near| (near.earlier, near.later)).collect()
        };
        assert_eq!(pairs(&|text| Prompt::of("", text).unwrap()), [(10, 12), (10, 14)]);
        // All have the same context, or all the same question.
        let preamble = (0..500).map(|n| format!("rule {n} ")).collect::<String>();
        assert_eq!(pairs(&|text| Prompt::of(&preamble, text).unwrap()), [(10, 12), (10, 14)]);
        assert_eq!(pairs(&|text| Prompt::of(text, "Go on, please.").unwrap()), [(10, 12), (10, 14)]);
        let alone = Prompt::of("", &texts[0]).unwrap();
        assert_eq!(alone.similarity(&Prompt::of(&preamble, &texts[0]).unwrap()), 0.0);
    }

    /// Every row of a question is paired with the rows that answer it differently, wherever they stand.
    #[test]
    fn of_a_question_every_row_is_known_that_is_answered_otherwise() {
        let otherwise = |answers: &[u64]| -> Vec<Vec<u32>> {
            // Rows with other questions stand between them.
            let asked = |question, row, answer| Asked { question, row, turn: row as u16 * 2, is_last: true, answer };
            let rows = (0..)
                .zip(answers)
                .flat_map(|(row, &answer)| [asked(7, row, answer), asked(1 + u64::from(row) * 10, 100 + row, 0)]);
            let mut rows: Vec<Asked> = rows.collect();
            rows.reverse();
            let mut found = vec![vec![]; answers.len()];
            for same in by_question(&mut rows) {
                for row in same.rows {
                    match found.get_mut(row.row as usize) {
                        Some(found) => {
                            let others = same.otherwise(row.answer);
                            *found =
                                others.inspect(|(row, turn)| assert_eq!(u32::from(*turn), row * 2)).map(|(row, _)| row).collect();
                        }
                        None => assert_eq!((same.rows.len(), same.otherwise(0).count()), (1, 0)),
                    }
                }
            }
            found
        };
        assert_eq!(otherwise(&[5, 6, 5, 5]), [vec![1], vec![0], vec![1], vec![1]]);
        assert_eq!(otherwise(&[5, 5, 6]), [vec![2], vec![2], vec![0]]);
        assert_eq!(otherwise(&[5, 6, 7, 8, 5])[4], [1, 2, 3]);
        assert_eq!(otherwise(&[5, 5]), [[0u32; 0]; 2]);
        let many: Vec<u64> = (0..100).collect();
        assert!(otherwise(&many).iter().all(|others| others.len() >= ANSWERS - 1));
    }
}
