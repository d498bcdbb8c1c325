//! Converts requests to token sequences, split as in lm-evaluation-harness.
//!
//! `lm_eval/api/model.py` (`TemplateLM._encode_pair`): spaces at the end of the context move to the continuation; both are
//! tokenised together and split at the length of the context's own encoding. `lm_eval/utils.py` (`get_rolling_token_windows`,
//! `make_disjoint_window`): a text is scored in windows that predict every token once. `lm_eval/models/huggingface.py`
//! (`tok_encode`, `tok_batch_encode`): a prompt is truncated at its beginning if it leaves no room for the answer.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::tokens::{Sequence, Span, Token, Tokenizer};

/// The tokens of a request; the last `n_targets` are those of the continuation.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// The token ids, context first.
    pub ids: Vec<u32>,
    /// How many of the last tokens belong to the continuation.
    pub n_targets: usize,
    /// Was the beginning of the context cut off?
    pub truncated: bool,
}

/// Encodes `context` and `continuation` as the model sees them, keeping at most the last `max_len` input tokens.
pub fn encode(tokenizer: &Tokenizer, context: &str, continuation: &str, max_len: usize) -> Result<Encoded> {
    let kept = context.trim_end_matches(is_python_space);
    let continuation = format!("{}{continuation}", &context[kept.len()..]);
    let mut ids;
    let n_targets;
    if kept.is_empty() {
        ids = vec![prefix_token(tokenizer)?];
        let rest = ids_of(&tokenizer.encode(&continuation)?);
        n_targets = rest.len();
        ids.extend(rest);
    } else {
        ids = leading(tokenizer, kept, tokenizer.bos().or(tokenizer.eos())).to_vec();
        let own = tokenizer.encode(kept)?;
        let whole = tokenizer.encode(&format!("{kept}{continuation}"))?;
        let rest = whole.get(own.len()..).unwrap_or_default();
        n_targets = rest.len();
        ids.extend(ids_of(&own));
        ids.extend(ids_of(rest));
    }
    if n_targets == 0 {
        return Err(Error::new(format!(
            "the tokenizer merges the continuation {continuation:?} into the last token of the context, so it cannot be scored on its own"
        ))
        .cure("Begin it at the start of a word, including the space before it."));
    }
    if n_targets > max_len {
        return Err(Error::new(format!("the continuation has {n_targets} tokens, more than --max-len {max_len}"))
            .cure("Use a larger --max-len."));
    }
    // The last token is only predicted and never enters the model.
    let surplus = ids.len().saturating_sub(max_len + 1);
    ids.drain(..surplus);
    Ok(Encoded { ids, n_targets, truncated: surplus > 0 })
}

/// Encodes a prompt, keeping at most its last `most` tokens; `true` if its beginning was cut off.
pub fn encode_prompt(tokenizer: &Tokenizer, context: &str, most: usize) -> Result<(Vec<u32>, bool)> {
    let mut ids: Vec<u32> = leading(tokenizer, context, tokenizer.bos()).to_vec();
    ids.extend(ids_of(&tokenizer.encode(context)?));
    let surplus = ids.len().saturating_sub(most);
    ids.drain(..surplus);
    match ids.is_empty() {
        true => {
            Err(Error::new("the prompt has no token").cure("Give it some text; this model's tokenizer adds no beginning token."))
        }
        false => Ok((ids, surplus > 0)),
    }
}

/// The tokens that the tokenizer puts before a text. Empty if the text already begins with the string of `prefix`, as it does
/// with many chat templates (`has_bos_prefix` in the harness), since the token would otherwise appear twice.
fn leading<'a>(tokenizer: &'a Tokenizer, text: &str, prefix: Option<u32>) -> &'a [u32] {
    let prefix = prefix.map(|prefix| tokenizer.text(prefix)).filter(|prefix| !prefix.is_empty());
    let has_one = prefix.is_some_and(|prefix| text.starts_with(&prefix));
    if has_one { &[] } else { tokenizer.leading() }
}

/// Cuts a text into windows that predict each of its tokens once: the first window starts with the prefix token, every other one
/// with as many preceding tokens as fit into `max_len` together with those it predicts. The ranges are bytes of the text.
///
/// If a tokenizer puts a beginning token before every text, the harness (0.4.13) has it after the prefix token, too, and counts
/// it as predicted; here it appears once, as the prefix token.
pub fn windows(tokenizer: &Tokenizer, text: &str, max_len: usize) -> Result<Vec<(Encoded, Range<usize>)>> {
    Ok(windows_behind(prefix_token(tokenizer)?, &tokenizer.encode(text)?, max_len))
}

/// Like [`windows`], but if the tokenizer has no prefix token, the first token of the text takes its place, and is not predicted.
pub(super) fn windows_of_any(tokenizer: &Tokenizer, text: &str, max_len: usize) -> Result<Vec<(Encoded, Range<usize>)>> {
    let tokens = tokenizer.encode(text)?;
    Ok(match (tokenizer.bos().or(tokenizer.eos()), tokens.split_first()) {
        (Some(prefix), _) => windows_behind(prefix, &tokens, max_len),
        (None, Some((first, rest))) => windows_behind(first.id, rest, max_len),
        (None, None) => Vec::new(),
    })
}

fn windows_behind(prefix: u32, tokens: &[Token], max_len: usize) -> Vec<(Encoded, Range<usize>)> {
    let mut all = vec![prefix];
    all.extend(ids_of(tokens));
    let starts = (0..tokens.len()).step_by(max_len);
    let window = |start: usize| {
        let end = (start + max_len).min(tokens.len());
        // `all` has the prefix token in front, so that the token before the window is `all[start]`.
        let ids = all[(end + 1).saturating_sub(max_len + 1)..=end].to_vec();
        let encoded = Encoded { ids, n_targets: end - start, truncated: false };
        (encoded, tokens[start].begin..tokens[end - 1].end)
    };
    starts.map(window).collect()
}

/// The token that represents the empty context, as in the harness: the beginning token, or else the end token.
fn prefix_token(tokenizer: &Tokenizer) -> Result<u32> {
    let prefix = tokenizer.bos().or(tokenizer.eos());
    prefix.ok_or_else(|| {
        Error::new("an empty context means the beginning or end token, but the tokenizer names neither")
            .cure("Set bos_token or eos_token in tokenizer_config.json.")
    })
}

fn ids_of(tokens: &[Token]) -> Vec<u32> {
    tokens.iter().map(|token| token.id).collect()
}

/// White space as Python's `str.rstrip` defines it: Unicode's white space, and four separators that Rust does not include.
pub(super) fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

impl Encoded {
    /// A sequence for the engine: the continuation's tokens are the targets, and `row` is its number.
    pub fn sequence(self, row: u32) -> Sequence {
        let n = self.ids.len();
        let supervised = (0..n).map(|t| t >= n - self.n_targets).collect();
        Sequence { row, ids: self.ids, supervised, spans: vec![Span::default(); n] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::GgufVocabulary;

    /// A tokenizer with six letters, `" t"`, `"th"` and a beginning token with id 0.
    fn tokenizer() -> Tokenizer {
        let tokens = ["<s>", "a", "b", "t", "h", "Ġ", "Ċ", "Ġt", "th"].map(str::to_owned).to_vec();
        let mut token_types = vec![1; tokens.len()];
        token_types[0] = 3;
        Tokenizer::from_gguf(GgufVocabulary {
            model: "gpt2".into(),
            pre: Some("gpt-2".into()),
            tokens,
            token_types,
            merges: vec!["Ġ t".into(), "t h".into()],
            bos: Some(0),
            ..GgufVocabulary::default()
        })
        .unwrap()
    }

    #[test]
    fn the_cut_is_at_the_length_of_the_contexts_own_encoding() {
        let tokenizer = tokenizer();
        let check = |context: &str, continuation: &str, max_len, ids: &[u32], n_targets, truncated| {
            let encoded = encode(&tokenizer, context, continuation, max_len).unwrap();
            assert_eq!(encoded, Encoded { ids: ids.to_vec(), n_targets, truncated });
        };
        check("ab", " t", 9, &[1, 2, 7], 1, false);
        // Spaces at the end of the context move to the continuation: " " + " t".
        check("ab ", " t", 9, &[1, 2, 5, 7], 2, false);
        // A merge over the boundary: "t" + "h" is one token, so that nothing is left for the continuation.
        assert!(encode(&tokenizer, "t", "h", 9).unwrap_err().to_string().contains("merges the continuation"));
        // .. and with more behind it, the context keeps its own encoding and the continuation starts after as many tokens.
        check("t", "ha", 9, &[3, 1], 1, false);
        check("", " a", 9, &[0, 5, 1], 2, false);
        check(" \n", " a", 9, &[0, 5, 6, 5, 1], 4, false);
        // One token beyond the model's limit is the last target.
        check("abab", " a", 3, &[1, 2, 5, 1], 2, true);
        assert!(encode(&tokenizer, "a", "bbbb", 3).unwrap_err().to_string().contains("--max-len 3"));
    }

    #[test]
    fn a_beginning_token_is_not_put_before_one_that_is_there() {
        let vocabulary = |adds_bos: bool| GgufVocabulary {
            model: "gpt2".into(),
            pre: Some("gpt-2".into()),
            tokens: ["<s>", "a", "b"].map(str::to_owned).to_vec(),
            token_types: vec![3, 1, 1],
            bos: Some(0),
            add_bos: Some(adds_bos),
            ..GgufVocabulary::default()
        };
        let tokenizer = Tokenizer::from_gguf(vocabulary(true)).unwrap();
        let prompt = |text: &str, most| encode_prompt(&tokenizer, text, most).unwrap();
        assert_eq!([prompt("ab", 9), prompt("<s>ab", 9)], [(vec![0, 1, 2], false), (vec![0, 1, 2], false)]);
        // The beginning is cut off.
        assert_eq!(prompt("abab", 2), (vec![1, 2], true));
        assert_eq!(encode(&tokenizer, "<s>a", "b", 9).unwrap().ids, [0, 1, 2]);
        assert_eq!(encode(&tokenizer, "a", "b", 9).unwrap().ids, [0, 1, 2]);
        let without = Tokenizer::from_gguf(vocabulary(false)).unwrap();
        assert_eq!(encode_prompt(&without, "ab", 9).unwrap().0, [1, 2]);
        assert!(encode_prompt(&without, "", 9).is_err());
    }

    #[test]
    fn windows_predict_every_token_once() {
        let tokenizer = tokenizer();
        let found: Vec<_> =
            windows(&tokenizer, "abaabba", 3).unwrap().into_iter().map(|(e, bytes)| (e.ids, e.n_targets, bytes)).collect();
        // Derived by hand from get_rolling_token_windows with max_seq_len 3 and context_len 1, followed by make_disjoint_window.
        let expected = [(vec![0, 1, 2, 1], 3, 0..3), (vec![1, 1, 2, 2], 3, 3..6), (vec![1, 2, 2, 1], 1, 6..7)];
        assert_eq!(found, expected);
    }
}
