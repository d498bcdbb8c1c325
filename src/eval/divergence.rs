//! Measures how far apart two models are on general text by the mean divergence per token, which changes long before an accuracy
//! does.
//!
//! `diagnose diff` and the drift that training monitors share this definition. The texts are the questions that ship with the
//! program, each followed by its right answer; each is read after the token that represents an empty context, in windows of
//! `--max-len`, and all of its tokens count (with a tokenizer that has neither a beginning nor an end token: all but the first).
//! The order of the texts is random but fixed, so that the first texts are a sample of all. `diff` reads all texts; training,
//! which must keep the base model's logits, reads as many whole texts as make [`FEW_TOKENS`]. Both report the number, and the
//! interval is over whole texts.

use serde::{Deserialize, Serialize};

use super::requests::windows_of_any;
use super::tasks;
use crate::engine::{self, TokenDivergence};
use crate::error::{Error, Result};
use crate::fetch::Progress;
use crate::model::Model;
use crate::random;
use crate::stats::{ClusterSums, Estimate, Scale, Term};
use crate::tokens::{Sequence, Tokenizer};

/// The number of tokens whose logits training keeps: a hundred megabytes with a vocabulary of 49,152.
pub const FEW_TOKENS: u64 = 512;

/// How far a model is from another on general text.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Divergence {
    /// The number of texts.
    pub texts: usize,
    /// The number of their tokens.
    pub tokens: u64,
    /// The mean KL(before || after) in nats per token, with an interval over whole texts.
    pub mean: Estimate,
    /// The cross-entropy of the model after, in nats per token.
    pub cross_entropy: f64,
}

/// Measures the divergence on all texts. Returns an error if the two models tokenise text differently.
pub fn measure(before: &Model, after: &Model, max_len: usize, progress: Progress) -> Result<Divergence> {
    let sequences = general_text(&before.tokenizer, max_len, u64::MAX)?;
    if sequences != general_text(&after.tokenizer, max_len, u64::MAX)? {
        return Err(Error::new("the two models tokenise text differently, so their probabilities are not comparable")
            .cure("Compare them without --kl, or with a model that has the same tokenizer."));
    }
    let total = sequences.len() as u64;
    let found = engine::divergence(before, after, &sequences, &mut |done| progress("Measuring the divergence", done, total))?;
    Ok(Divergence::new(&sequences, &found))
}

/// The texts as sequences, whose `row` is the number of the text: enough texts for `tokens` tokens, or all.
pub fn general_text(tokenizer: &Tokenizer, max_len: usize, tokens: u64) -> Result<Vec<Sequence>> {
    const SEED: u64 = 20_260_102;
    let items = tasks::probe()?.items;
    let (mut sequences, mut n) = (Vec::new(), 0);
    for (text, idx) in (0..).zip(random::order(SEED, items.len() as u32)) {
        let item = &items[idx as usize];
        let Some(request) = item.requests.get(item.answer) else { continue };
        for (window, _) in
            windows_of_any(tokenizer, &format!("{}{}{}", item.description, request.context, request.continuation), max_len)?
        {
            n += window.n_targets as u64;
            sequences.push(window.sequence(text));
        }
        if n >= tokens {
            break;
        }
    }
    Ok(sequences)
}

impl Divergence {
    /// The mean over the tokens of `sequences`, which [`general_text`] returned; the windows of one text count as one draw.
    pub fn new(sequences: &[Sequence], found: &[Vec<TokenDivergence>]) -> Divergence {
        let mut sums = ClusterSums::default();
        let (mut texts, mut tokens, mut cross_entropy) = (0, 0, 0.0);
        let mut rest = sequences.iter().zip(found).peekable();
        while let Some((first, of_first)) = rest.next() {
            let mut text = Term::default();
            let mut add = |of_window: &Vec<TokenDivergence>| {
                text.numerator += of_window.iter().map(|token| token.kl).sum::<f64>();
                text.denominator += of_window.len() as f64;
                cross_entropy -= of_window.iter().map(|token| token.logprob).sum::<f64>();
                tokens += of_window.len() as u64;
            };
            add(of_first);
            while let Some((_, of_next)) = rest.next_if(|(next, _)| next.row == first.row) {
                add(of_next);
            }
            sums.add(text);
            texts += 1;
        }
        Divergence { texts, tokens, mean: sums.estimate(Scale::Log), cross_entropy: cross_entropy / tokens as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix;

    fn sequence(row: u32) -> Sequence {
        Sequence { row, ids: Vec::new(), supervised: Vec::new(), spans: Vec::new() }
    }

    #[test]
    fn windows_of_a_text_count_together() {
        let token = |kl: f64| TokenDivergence { kl, logprob: -2.0 };
        let found = [vec![token(0.1), token(0.3)], vec![token(0.2)], vec![token(0.5)]];
        let together = Divergence::new(&[sequence(0), sequence(0), sequence(1)], &found);
        assert_eq!((together.texts, together.tokens, together.cross_entropy), (2, 4, 2.0));
        assert!((together.mean.value - 1.1 / 4.0).abs() < 1e-12);
        let merged = [[&found[0][..], &found[1]].concat(), found[2].clone()];
        assert_eq!(together.mean, Divergence::new(&[sequence(0), sequence(1)], &merged).mean);
    }

    /// Divergences are heavy-tailed and vary between texts; training measures some twenty texts. Nominally 95 %; 1000 experiments
    /// leave a standard deviation of 0.7 points, and intervals over so few texts cover some points less.
    #[test]
    fn the_interval_covers_the_truth_as_often_as_it_says() {
        let mut random = SplitMix(37);
        let mut uniform = move || random.unit();
        for (texts, lowest) in [(20, 0.90), (320, 0.93)] {
            let mut covered = 0;
            for _ in 0..1000 {
                let found: Vec<Vec<TokenDivergence>> = (0..texts)
                    .map(|_| {
                        // A level with mean 1 for the text times the square of an exponential variable, with mean 2, for the
                        // token.
                        let (n, level) = (10 + (uniform() * 30.0) as usize, -(1.0 - uniform()).ln());
                        let mut kl = || level * (1.0 - uniform()).ln().powi(2);
                        (0..n).map(|_| TokenDivergence { kl: kl(), logprob: 0.0 }).collect()
                    })
                    .collect();
                let sequences: Vec<Sequence> = (0..texts).map(sequence).collect();
                let [low, high] = Divergence::new(&sequences, &found).mean.ci95.unwrap();
                covered += usize::from(low <= 2.0 && 2.0 <= high);
            }
            let share = covered as f64 / 1000.0;
            println!("{texts} texts: the mean divergence is covered {share}");
            assert!((lowest..=0.975).contains(&share), "{texts} texts: {share}");
        }
    }
}
