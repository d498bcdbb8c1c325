//! Tokenises text into ids with byte spans, and maps token ids to display texts.
//!
//! This wraps the `tokenizers` library, with two additions. First, spans tile the text: where several tokens share a character, the library gives
//! each of them the whole character, whereas here each gets its own bytes; a space that the vocabulary inserts before the first word has an empty
//! span, as it is not in the text. Only white space that an added token consumes (`rstrip` and `lstrip` in tokenizer.json) belongs to no token.
//! Second, a text can be encoded as the continuation of another one ([`Tokenizer::encode_after`]), without the space before the first word.
//!
//! Beginning and end tokens are not added here; see [`Tokenizer::leading`].

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::{ModelWrapper, Tokenizer as Inner};

use super::gguf::{GgufVocabulary, inner_from_gguf};
use super::parts::{Parts, PrefixSpace, Spelling};
use super::settings::{add_tokens, refuse_split, token_text, tokenizer_settings};
use crate::error::{Context, Error, Result};
use crate::files::refuse_pointer;
use crate::json;

/// One token of a text, with its byte range `begin..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// The id in the vocabulary.
    pub id: u32,
    /// The offset of the first byte.
    pub begin: usize,
    /// The offset after the last byte.
    pub end: usize,
}

/// A model's vocabulary and its splitting rules.
pub struct Tokenizer {
    inner: Inner,
    /// `inner` without the space before the first word, for texts that continue another; only for vocabularies that insert such a space.
    continuation: Option<Box<Inner>>,
    prefix_space: PrefixSpace,
    /// The bytes that each id stands for.
    bytes: Vec<Box<[u8]>>,
    /// Whether each id is a control token, such as `<|im_end|>`.
    special: Vec<bool>,
    /// Which adjacent white space each added token consumes.
    added: HashMap<u32, Swallows>,
    bos: Option<u32>,
    eos: Option<u32>,
    leading: Vec<u32>,
    ends_texts: bool,
    /// The number of ids for which the model has an embedding; a token may have been added without one.
    known: usize,
}

/// The sides on which an added token consumes white space.
#[derive(Debug, Clone, Copy)]
struct Swallows {
    before: bool,
    behind: bool,
}

impl Tokenizer {
    /// Reads a tokenizer.json. The tokenizer_config.json beside it, if there is one, names the beginning and end tokens and may define additional
    /// tokens.
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).context_at(path, "cannot read the tokenizer")?;
        refuse_pointer(path)?;
        let settings = tokenizer_settings(path.parent().unwrap_or(Path::new("")))?;
        parts_from_json(&bytes, &settings).map(Self::from_parts).map_err(|error| error.at(path))
    }

    /// Builds the tokenizer that a GGUF file describes. An unknown pre-tokenizer is refused by name.
    pub fn from_gguf(vocabulary: GgufVocabulary) -> Result<Self> {
        inner_from_gguf(vocabulary).map(Self::from_parts)
    }

    /// Serialises the tokenizer as a tokenizer.json.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(true).context("the tokenizers library cannot write the tokenizer")
    }

    fn from_parts(parts: Parts) -> Self {
        let added = parts.inner.get_added_tokens_decoder();
        let vocabulary = parts.inner.get_vocab(true);
        let n_ids = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
        let mut bytes = vec![Box::default(); n_ids];
        let mut special = vec![false; n_ids];
        let table = byte_of_char();
        for (token, id) in vocabulary {
            bytes[id as usize] = match added.get(&id) {
                Some(added) => added.content.as_bytes().into(),
                None => spelled_bytes(&token, parts.spelling, &table),
            };
        }
        for (&id, token) in added.iter().filter(|(_, token)| token.special) {
            // An id can have several strings; texts contain that of the added token.
            if let Some(flag) = special.get_mut(id as usize) {
                *flag = true;
                bytes[id as usize] = token.content.as_bytes().into();
            }
        }
        // The beginning and end tokens are control tokens, even if their entries state otherwise.
        for id in parts.bos.into_iter().chain(parts.eos) {
            if let Some(flag) = special.get_mut(id as usize) {
                *flag = true;
            }
        }
        let added = added.iter().map(|(&id, token)| (id, Swallows { before: token.lstrip, behind: token.rstrip })).collect();
        Self {
            inner: parts.inner,
            continuation: parts.continuation,
            prefix_space: parts.prefix_space,
            bytes,
            special,
            added,
            bos: parts.bos,
            eos: parts.eos,
            leading: parts.leading,
            ends_texts: parts.ends_texts,
            known: usize::MAX,
        }
    }

    /// Limits the tokenizer to a model whose embedding has `rows` rows: texts with a token beyond them are refused.
    pub fn bounded(self, rows: usize) -> Self {
        Self { known: rows, ..self }
    }

    /// Tokenises a text at the beginning of a sequence. Special tokens in the text are recognised, as in Transformers; none is added.
    pub fn encode(&self, text: &str) -> Result<Vec<Token>> {
        let encoding = self.inner.encode(text, false).context("the tokenizer refused the text")?;
        self.check(encoding.get_ids())?;
        Ok(self.tile(text, encoding.get_ids(), encoding.get_offsets()))
    }

    /// Tokenises a text that follows the token `before`, without inserting a space before its first word.
    pub fn encode_after(&self, before: u32, text: &str) -> Result<Vec<Token>> {
        let Some(continuation) = &self.continuation else { return self.encode(text) };
        let every_fragment = self.prefix_space == PrefixSpace::EveryFragment;
        if every_fragment && self.is_special(before) {
            return self.encode(text);
        }
        let encoding = continuation.encode(text, false).context("the tokenizer refused the text")?;
        self.check(encoding.get_ids())?;
        let mut tokens = self.tile(text, encoding.get_ids(), encoding.get_offsets());
        if every_fragment && let Some(n_before) = tokens.iter().position(|token| self.is_special(token.id)) {
            // The text from the first special token on is a new fragment, so it gets its space again.
            let begin = tokens[n_before].begin;
            tokens.truncate(n_before);
            let rest = self.encode(&text[begin..])?;
            tokens.extend(rest.into_iter().map(|t| Token { id: t.id, begin: t.begin + begin, end: t.end + begin }));
        }
        Ok(tokens)
    }

    /// Whether [`Self::encode`] and [`Self::encode_after`] can differ.
    pub fn has_prefix_space(&self) -> bool {
        self.continuation.is_some()
    }

    /// Whether some token consumes adjacent white space, so that a text cut beside it is tokenised differently than the whole.
    pub(super) fn swallows_space(&self) -> bool {
        self.added.values().any(|swallows| swallows.before || swallows.behind)
    }

    /// Returns the rest of a text after the token `before`, which may consume the white space at its beginning.
    pub(super) fn left_behind<'a>(&self, before: u32, text: &'a str) -> &'a str {
        match self.added.get(&before) {
            Some(Swallows { behind: true, .. }) => text.trim_start(),
            _ => text,
        }
    }

    /// Returns the display text, for example ` the`, `\n`, `<|im_end|>`; bytes that form no whole character appear as `<0xE4>`.
    pub fn text(&self, id: u32) -> String {
        let mut text = String::new();
        for chunk in self.bytes(id).utf8_chunks() {
            text.push_str(chunk.valid());
            for byte in chunk.invalid() {
                text.push_str(&format!("<0x{byte:02X}>"));
            }
        }
        text
    }

    /// Returns the bytes that a token stands for; empty for an id outside the vocabulary.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], |bytes| bytes)
    }

    /// Decodes generated tokens without control tokens, like `decode` of Transformers with `skip_special_tokens`.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).context("the tokenizer refused the tokens")
    }

    /// Returns the largest id plus one.
    pub fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    /// Returns an error if the model has no embedding for one of the tokens.
    pub fn check(&self, ids: &[u32]) -> Result<()> {
        let Some(id) = ids.iter().find(|&&id| id as usize >= self.known) else { return Ok(()) };
        Err(Error::new(format!(
            "the token `{}` has the id {id}, but the model's embedding has {} rows",
            self.text(*id),
            self.known
        ))
        .cure("Remove the token from the text, or add a row for it to the model (resize_token_embeddings in Transformers)."))
    }

    /// Returns the id of a token by its string in the vocabulary, such as `<|im_end|>`.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The id of the beginning-of-sequence token, if the vocabulary has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The id of the end-of-sequence token, if the vocabulary has one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The tokens that the model expects before a plain text: usually the beginning token, or none.
    pub fn leading(&self) -> &[u32] {
        &self.leading
    }

    /// Whether the tokenizer appends the end token to a plain text.
    pub(super) fn ends_texts(&self) -> bool {
        self.ends_texts
    }

    /// Whether the id is a control token, such as `<|im_end|>`.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// The strings of all control tokens.
    pub fn special_tokens(&self) -> impl Iterator<Item = String> {
        self.special.iter().enumerate().filter(|(_, special)| **special).map(|(id, _)| self.text(id as u32))
    }

    /// Gives each token its own bytes, in order and without overlap.
    ///
    /// The library's offsets locate a token's characters. Within them, a token whose bytes continue the text at the cursor gets exactly these, and
    /// an added token those that spell it. A space inserted before the first word has the offsets of that word's first character, which the next
    /// token covers, so it gets none. A token that a normaliser has changed gets the library's range, and the bytes before the next token, such as
    /// an accent that was merged into its letter.
    fn tile(&self, text: &str, ids: &[u32], offsets: &[(usize, usize)]) -> Vec<Token> {
        let mut cursor = 0;
        let mut tokens = Vec::with_capacity(ids.len());
        for (idx, (&id, &(low, high))) in ids.iter().zip(offsets).enumerate() {
            let bytes = self.bytes(id);
            let own = cursor + bytes.len();
            let next = offsets.get(idx + 1).map_or(text.len(), |next| next.0);
            let spelt = || text.get(low..high).and_then(|found| found.find(std::str::from_utf8(bytes).ok()?));
            if let Some(at) = self.added.get(&id).filter(|_| cursor <= low && !bytes.is_empty()).and_then(|_| spelt()) {
                tokens.push(Token { id, begin: low + at, end: low + at + bytes.len() });
                cursor = high;
                continue;
            }
            let continues = low <= cursor && own <= high && text.as_bytes()[cursor..].starts_with(bytes);
            let is_put_before = bytes == b" " && next <= cursor;
            let end = match (is_put_before, continues) {
                (true, _) => cursor,
                (false, true) => own,
                (false, false) => high.max(next).clamp(cursor, text.len()),
            };
            tokens.push(Token { id, begin: cursor, end });
            cursor = end;
        }
        if let Some(last) = tokens.last_mut().filter(|_| cursor < text.len()) {
            last.end = text.len();
        }
        tokens
    }
}

/// Loads a tokenizer without truncation and padding, which training may have left in the file. Transformers disables both unless requested.
fn inner_of(bytes: &[u8], refused: &'static str) -> Result<Inner> {
    let mut inner = Inner::from_bytes(bytes).context(refused)?;
    inner.with_truncation(None).context(refused)?;
    inner.with_padding(None);
    refuse_dropout(&inner)?;
    Ok(inner)
}

/// Returns an error for BPE dropout, which omits merges at random when a tokenizer is trained with it: as in Transformers, a text would be
/// tokenised differently every time, and no result would be reproducible.
fn refuse_dropout(inner: &Inner) -> Result<()> {
    match inner.get_model() {
        ModelWrapper::BPE(bpe) => match bpe.dropout.filter(|rate| *rate > 0.0) {
            Some(rate) => Err(Error::new(format!(
                "the tokenizer's `dropout` is {rate}: merges are skipped at random, and a text is tokenised differently each time"
            ))
            .cure("Set it to null in tokenizer.json for the usual tokens.")),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

fn parts_from_json(bytes: &[u8], settings: &Map<String, Value>) -> Result<Parts> {
    let json: Value = json::from_slice(bytes).context("expected the JSON of a tokenizer")?;
    refuse_split(settings)?;
    let mut inner = inner_of(bytes, "the tokenizers library refused the file")?;
    add_tokens(&mut inner, settings)?;
    let prefix_space = prefix_space_of(&json);
    let continuation = match prefix_space {
        PrefixSpace::Never => None,
        PrefixSpace::First | PrefixSpace::EveryFragment => {
            let mut json = json.clone();
            remove_prefix_space(&mut json);
            let bytes = serde_json::to_vec(&json).context("cannot rewrite the tokenizer")?;
            let refused = "the tokenizers library refused the file without its prefix space";
            let mut continuation = inner_of(&bytes, refused)?;
            add_tokens(&mut continuation, settings)?;
            Some(Box::new(continuation))
        }
    };
    let named = |key: &str| settings.get(key).and_then(token_text).and_then(|token| inner.token_to_id(token));
    let (bos, eos) = (named("bos_token"), named("eos_token"));
    // Only the post-processor determines the tokens around a text: `add_bos_token` is ignored if there is a tokenizer.json.
    let ids =
        |special: bool| Ok::<_, Error>(inner.encode("a", special).context("the tokenizer refused a text")?.get_ids().to_vec());
    let (bare, whole) = (ids(false)?, ids(true)?);
    let at = whole.windows(bare.len().max(1)).position(|ids| ids == bare).unwrap_or(whole.len());
    let (leading, behind) = whole.split_at(at);
    let ends_texts = eos.is_some() && behind.get(bare.len()).copied() == eos;
    let leading = leading.to_vec();
    let spelling = if mentions(&json["pre_tokenizer"], "ByteLevel") || mentions(&json["decoder"], "ByteLevel") {
        Spelling::ByteLevel
    } else if mentions(&json["decoder"], "Metaspace") || mentions(&json["decoder"], "ByteFallback") {
        Spelling::SentencePiece
    } else {
        Spelling::Plain
    };
    Ok(Parts { inner, continuation, prefix_space, spelling, bos, eos, leading, ends_texts })
}

/// Whether a part of the pipeline, or a step of its sequence, has this `type`.
fn mentions(part: &Value, kind: &str) -> bool {
    steps(part).any(|step| step["type"] == kind)
}

/// Returns a part of the pipeline and, if it is a sequence, its steps.
fn steps(part: &Value) -> impl Iterator<Item = &Value> {
    let inner = ["normalizers", "pretokenizers", "decoders"].iter().filter_map(|key| part[*key].as_array()).flatten();
    std::iter::once(part).chain(inner)
}

fn prefix_space_of(json: &Value) -> PrefixSpace {
    if mentions(&json["normalizer"], "Prepend") {
        return PrefixSpace::EveryFragment;
    }
    for step in steps(&json["pre_tokenizer"]) {
        match (step["type"].as_str(), step["prepend_scheme"].as_str(), step["add_prefix_space"].as_bool()) {
            (Some("Metaspace"), Some("first"), _) => return PrefixSpace::First,
            (Some("Metaspace"), Some("always"), _) | (Some("Metaspace"), None, None | Some(true)) => {
                return PrefixSpace::EveryFragment;
            }
            (Some("ByteLevel"), _, Some(true)) => return PrefixSpace::EveryFragment,
            _ => {}
        }
    }
    PrefixSpace::Never
}

fn remove_prefix_space(json: &mut Value) {
    let normalizer = &mut json["normalizer"];
    if normalizer["type"] == "Prepend" {
        *normalizer = Value::Null;
    } else if let Some(steps) = normalizer.get_mut("normalizers").and_then(Value::as_array_mut) {
        steps.retain(|step| step["type"] != "Prepend");
    }
    fn change(step: &mut Value) {
        match step["type"].as_str() {
            Some("Metaspace") => {
                step["prepend_scheme"] = "never".into();
                if step.get("add_prefix_space").is_some() {
                    step["add_prefix_space"] = false.into();
                }
            }
            Some("ByteLevel") => step["add_prefix_space"] = false.into(),
            _ => {}
        }
    }
    let Some(pre_tokenizer) = json.get_mut("pre_tokenizer").filter(|part| !part.is_null()) else { return };
    change(pre_tokenizer);
    if let Some(steps) = pre_tokenizer.get_mut("pretokenizers").and_then(Value::as_array_mut) {
        steps.iter_mut().for_each(change);
    }
}

fn spelled_bytes(token: &str, spelling: Spelling, table: &[Option<u8>; 512]) -> Box<[u8]> {
    match spelling {
        Spelling::ByteLevel => {
            let bytes: Option<Vec<u8>> = token.chars().map(|c| table.get(c as usize).copied().flatten()).collect();
            // A string outside the table was added to the vocabulary verbatim.
            bytes.unwrap_or_else(|| token.as_bytes().to_vec()).into()
        }
        Spelling::SentencePiece => match byte_fallback(token) {
            Some(byte) => [byte].into(),
            None => token.replace('▁', " ").into_bytes().into(),
        },
        Spelling::Plain => token.as_bytes().into(),
    }
}

/// Parses `<0x0A>` as 10.
fn byte_fallback(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// Returns GPT-2's table from characters to bytes (`bytes_to_unicode` in openai/gpt-2, src/encoder.py): printable bytes map to themselves, the
/// others to the characters from U+0100 on, in order.
pub(super) fn byte_of_char() -> [Option<u8>; 512] {
    let mut table = [None; 512];
    let mut n_moved = 0;
    for byte in 0..=255u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let character = if printable { byte as usize } else { 256 + n_moved };
        n_moved += usize::from(!printable);
        table[character] = Some(byte);
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tokens::test_models::{byte_tokenizer, byte_vocabulary, sentence_vocabulary};

    /// Returns the display texts of a text's tokens, after checking that their spans tile it.
    fn tokens(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
        let tokens = tokenizer.encode(text).unwrap();
        let mut cursor = 0;
        for token in &tokens {
            assert_eq!(token.begin, cursor, "{text:?}");
            cursor = token.end;
        }
        assert_eq!(cursor, text.len(), "{text:?}");
        tokens.iter().map(|token| tokenizer.text(token.id)).collect()
    }

    #[test]
    fn a_pointer_in_the_place_of_the_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n").unwrap();
        assert!(Tokenizer::from_file(&path).err().is_some_and(|error| error.to_string().contains("Git LFS pointer")));
    }

    #[test]
    fn smollm_splits_digits_one_by_one_and_keeps_words_with_their_space() {
        let tokenizer = byte_tokenizer();
        let check = |text: &str, expected: &[&str]| assert_eq!(tokens(&tokenizer, text), expected, "{text:?}");
        check("hello the", &["hello", " the"]);
        // There is a merge of 1 and 2, but the pre-tokenizer splits them.
        check("12 the", &["1", "2", " the"]);
        // Two newlines are one token; the last space before a word belongs to it.
        check("he\n\n  the", &["he", "\n\n", " ", " the"]);
        check("", &[]);
        check("<|im_start|>hello<|im_end|>", &["<|im_start|>", "hello", "<|im_end|>"]);
        check("<tool_call>he", &["<tool_call>", "he"]);
    }

    #[test]
    fn a_character_split_over_tokens_is_shared_out_byte_by_byte() {
        let tokenizer = byte_tokenizer();
        // 你 is E4 BD A0 and has a token; 好 is E5 A5 BD and has none.
        assert_eq!(tokens(&tokenizer, "你好"), ["你", "<0xE5>", "<0xA5>", "<0xBD>"]);
        let spans: Vec<_> = tokenizer.encode("a你好").unwrap().iter().map(|token| (token.begin, token.end)).collect();
        assert_eq!(spans, [(0, 1), (1, 4), (4, 5), (5, 6), (6, 7)]);
    }

    #[test]
    fn sentence_piece_puts_a_space_before_the_first_word_only() {
        let tokenizer = Tokenizer::from_gguf(sentence_vocabulary()).unwrap();
        assert!(tokenizer.has_prefix_space());
        let texts = |tokens: Vec<Token>| tokens.iter().map(|token| tokenizer.text(token.id)).collect::<Vec<_>>();
        assert_eq!(texts(tokenizer.encode("hello the").unwrap()), [" hello", " the"]);
        let (word, end) = (tokenizer.id("he").unwrap(), tokenizer.id("</s>").unwrap());
        assert_eq!(texts(tokenizer.encode_after(word, "hello the").unwrap()), ["hello", " the"]);
        assert_eq!(texts(tokenizer.encode("é").unwrap()), [" ", "<0xC3>", "<0xA9>"]);
        // After a special token a new fragment begins, with its own space.
        assert_eq!(texts(tokenizer.encode_after(word, "hello</s>hello").unwrap()), ["hello", "</s>", " hello"]);
        assert_eq!(texts(tokenizer.encode_after(end, "hello").unwrap()), [" hello"]);
        let spans = |text: &str| tokenizer.encode(text).unwrap().iter().map(|t| (t.begin, t.end)).collect::<Vec<_>>();
        assert_eq!(spans("hello é"), [(0, 5), (5, 6), (6, 7), (7, 8)]);
        // The space inserted before a character of several tokens covers none of its bytes.
        assert_eq!(spans("é the"), [(0, 0), (0, 1), (1, 2), (2, 6)]);
        assert_eq!(spans("</s>\nhe"), [(0, 4), (4, 4), (4, 5), (5, 7)]);
        assert_eq!(spans(" "), [(0, 0), (0, 1)]);
    }

    /// Phi-3's control tokens consume the white space after them, as in Transformers and llama.cpp.
    #[test]
    fn added_tokens_swallow_white_space_where_they_are_told_to() {
        let named = |name: &str| GgufVocabulary { name: Some(name.into()), ..sentence_vocabulary() };
        let tokenizer = Tokenizer::from_gguf(named("Phi 3 mini")).unwrap();
        let texts = |tokens: Vec<Token>| tokens.iter().map(|token| tokenizer.text(token.id)).collect::<Vec<_>>();
        assert_eq!(texts(tokenizer.encode("<s> \n he").unwrap()), ["<s>", " ", " ", "\n", " ", "he"]);
        let architecture = GgufVocabulary { architecture: Some("phi3".into()), ..named("tuned") };
        for vocabulary in [named("Phi-3-mini"), named("my phi3"), architecture] {
            let tokenizer = Tokenizer::from_gguf(vocabulary).unwrap();
            let texts = |tokens: Vec<Token>| tokens.iter().map(|token| tokenizer.text(token.id)).collect::<Vec<_>>();
            assert!(tokenizer.swallows_space());
            let tokens = tokenizer.encode("t</s> \n hello</s>\n").unwrap();
            let spans: Vec<_> = tokens.iter().map(|token| (token.begin, token.end)).collect();
            assert_eq!(spans, [(0, 1), (1, 5), (8, 13), (13, 17)]);
            assert_eq!(texts(tokens), [" t", "</s>", " hello", "</s>"]);
            // The exceptions in llama.cpp keep the white space.
            assert_eq!(texts(tokenizer.encode("<s> he").unwrap()), ["<s>", " ", " ", "he"]);
        }
    }

    #[test]
    fn runs_of_spaces_are_merged_in_pairs() {
        let mut vocabulary = GgufVocabulary { add_space_prefix: Some(false), ..sentence_vocabulary() };
        // The form in which llama.cpp's converter writes Gemma's.
        for run in ["  ", "   "] {
            vocabulary.tokens.push(run.to_owned());
            vocabulary.token_types.push(4);
            vocabulary.scores.push(-1000.0);
        }
        let tokenizer = Tokenizer::from_gguf(vocabulary).unwrap();
        let texts = |text: &str| tokenizer.encode(text).unwrap().iter().map(|token| tokenizer.text(token.id)).collect::<Vec<_>>();
        assert_eq!(texts("   "), ["   "]);
        // Not three and one.
        assert_eq!(texts("    "), ["  ", "  "]);
        // Runs are merged before words, whose merges have real scores.
        assert_eq!(texts("  the the"), ["  ", "t", "he", " the"]);
    }

    #[test]
    fn what_the_vocabulary_says_about_itself() {
        let tokenizer = byte_tokenizer();
        assert_eq!(tokenizer.vocab_size(), byte_vocabulary().tokens.len());
        assert_eq!(tokenizer.id("<|im_end|>"), Some(1));
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.leading()), (Some(2), Some(3), &[][..]));
        assert_eq!(tokenizer.text(1_000_000), "");
        assert!(tokenizer.is_special(1) && !tokenizer.is_special(16));
    }

    #[test]
    fn a_beginning_token_that_is_asked_for_and_not_named_is_refused() {
        let of_gguf = |vocabulary: GgufVocabulary| Tokenizer::from_gguf(vocabulary).err().map(|error| error.to_string());
        let unnamed = |vocabulary: GgufVocabulary, add_bos| GgufVocabulary { bos: None, add_bos, ..vocabulary };
        let error = of_gguf(unnamed(byte_vocabulary(), Some(true))).unwrap();
        assert!(error.contains("add_bos_token is true, and tokenizer.ggml.bos_token_id does not say which one"), "{error}");
        let error = of_gguf(unnamed(sentence_vocabulary(), None)).unwrap();
        assert!(error.contains("this kind of vocabulary") && error.contains("tokenizer.ggml.bos_token_id"), "{error}");
        assert_eq!(of_gguf(unnamed(sentence_vocabulary(), Some(false))), None);
        assert_eq!(of_gguf(unnamed(byte_vocabulary(), None)), None);
    }

    #[test]
    fn texts_are_neither_cut_nor_filled_up_by_what_the_file_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let mut file: Value = serde_json::from_str(&byte_tokenizer().to_json().unwrap()).unwrap();
        file["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
        file["padding"] = json!({
            "strategy": {"Fixed": 40}, "direction": "Left", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"
        });
        std::fs::write(&path, file.to_string()).unwrap();
        let text = "hello the 12 你好";
        assert_eq!(Tokenizer::from_file(&path).unwrap().encode(text).unwrap(), byte_tokenizer().encode(text).unwrap());
    }

    #[test]
    fn a_tokenizer_json_splits_like_the_gguf_file_it_came_from() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let load = |vocabulary: GgufVocabulary, change: &dyn Fn(&mut Value), config: Value| {
            let inner = inner_from_gguf(vocabulary).unwrap().inner;
            let mut json = serde_json::from_str(&inner.to_string(false).unwrap()).unwrap();
            change(&mut json);
            std::fs::write(&path, json.to_string()).unwrap();
            std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
            Tokenizer::from_file(&path).unwrap()
        };
        let config = json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>"});
        let text = "<s>hello the 12 你好";

        let decoder = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let bytes = load(byte_vocabulary(), &|json| json["decoder"] = decoder.clone(), config.clone());
        assert_eq!(bytes.encode(text).unwrap(), byte_tokenizer().encode(text).unwrap());
        assert_eq!((bytes.bos(), bytes.eos(), bytes.leading()), (Some(2), Some(3), &[][..]));
        assert!(!bytes.has_prefix_space() && bytes.text(20) == byte_tokenizer().text(20));

        let decoder = json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]});
        let add_bos = json!({"bos_token": "<s>", "add_bos_token": false});
        let sentences = load(sentence_vocabulary(), &|json| json["decoder"] = decoder.clone(), add_bos);
        let reference = Tokenizer::from_gguf(sentence_vocabulary()).unwrap();
        assert_eq!(sentences.encode(text).unwrap(), reference.encode(text).unwrap());
        assert_eq!(sentences.encode_after(9, text).unwrap(), reference.encode_after(9, text).unwrap());
        assert_eq!((sentences.leading(), sentences.eos()), (&[1][..], None));

        // Transformers' newer form: a space only at the beginning of the text.
        let first = |json: &mut Value| {
            json["normalizer"] = Value::Null;
            json["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
            json["decoder"] = decoder.clone();
        };
        let first = load(sentence_vocabulary(), &first, config);
        assert_eq!(tokens(&first, "hello<s>hello"), [" hello", "<s>", "hello"]);
        let after: Vec<_> = first.encode_after(1, "hello").unwrap().iter().map(|token| first.text(token.id)).collect();
        assert_eq!(after, ["hello"]);

        std::fs::write(&path, "{").unwrap();
        let Err(error) = Tokenizer::from_file(&path) else { panic!("half a file was read") };
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
    }

    #[test]
    fn what_would_give_a_text_other_tokens_each_time_or_no_control_tokens_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let load = |dropout: Value, settings: Value| {
            let mut json: Value = serde_json::from_str(&byte_tokenizer().to_json().unwrap()).unwrap();
            json["model"]["dropout"] = dropout;
            std::fs::write(&path, json.to_string()).unwrap();
            std::fs::write(folder.path().join("tokenizer_config.json"), settings.to_string()).unwrap();
            Tokenizer::from_file(&path).map(|tokenizer| tokenizer.encode("hello the hello").unwrap())
        };
        let plain = load(Value::Null, json!({})).unwrap();
        assert_eq!(load(json!(0.0), json!({"split_special_tokens": false})).unwrap(), plain);
        let refused = |dropout: Value, settings: Value| load(dropout, settings).unwrap_err().to_string();
        let error = refused(json!(0.1), json!({}));
        assert!(error.contains("the tokenizer's `dropout` is 0.1") && error.contains("tokenizer.json"), "{error}");
        let error = refused(Value::Null, json!({"split_special_tokens": true}));
        assert!(error.contains("`split_special_tokens` is set in tokenizer_config.json"), "{error}");
    }

    /// As in Transformers 5.24: tokens in the settings that tokenizer.json lacks are added, and the older files are used only if
    /// tokenizer_config.json lists no added tokens.
    #[test]
    fn tokens_that_only_the_settings_know_are_added() {
        let folder = tempfile::tempdir().unwrap();
        let mut json: Value = serde_json::from_str(&byte_tokenizer().to_json().unwrap()).unwrap();
        let n = json["model"]["vocab"].as_object().unwrap().len();
        json["decoder"] = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let write = |name: &str, value: &Value| std::fs::write(folder.path().join(name), value.to_string()).unwrap();
        let path = folder.path().join("tokenizer.json");
        write("tokenizer.json", &json);
        let load = || Tokenizer::from_file(&path);
        let texts = |tokenizer: &Tokenizer, text: &str| {
            tokenizer.encode(text).unwrap().iter().map(|token| tokenizer.text(token.id)).collect::<Vec<_>>()
        };
        let added = |content: &str, rstrip: bool| json!({"content": content, "lstrip": false, "rstrip": rstrip, "normalized": false, "single_word": false, "special": false});
        let text = "<|a|> he<|b|>he<|c|><|d|>";
        assert!(texts(&load().unwrap(), text).len() > 20);
        // Listed tokens are added by id, and are special if a key of tokenizer_config.json names them; its other tokens come after them.
        let decoder = json!({(n + 1).to_string(): added("<|b|>", false), n.to_string(): added("<|a|>", true)});
        write(
            "tokenizer_config.json",
            &json!({"added_tokens_decoder": decoder, "eos_token": "<|b|>", "extra_special_tokens": ["<|c|>"], "image_token": "<|d|>"}),
        );
        // The older files are ignored beside such a list.
        write("special_tokens_map.json", &json!({"eos_token": "</s>"}));
        let tokenizer = load().unwrap();
        assert_eq!(texts(&tokenizer, text), ["<|a|>", "he", "<|b|>", "he", "<|c|>", "<|d|>"]);
        let id = |token: &str| tokenizer.id(token).unwrap() as usize;
        assert_eq!((id("<|a|>"), id("<|b|>"), tokenizer.eos()), (n, n + 1, Some(n as u32 + 1)));
        assert_eq!(
            ["<|a|>", "<|b|>", "<|c|>", "<|d|>"].map(|token| tokenizer.is_special(id(token) as u32)),
            [false, true, true, true]
        );
        // An id other than the model's would select another row of the embedding.
        write("tokenizer_config.json", &json!({"added_tokens_decoder": {(n + 7).to_string(): added("<|a|>", false)}}));
        let error = load().err().unwrap().to_string();
        assert!(error.contains("`<|a|>`") && error.contains(&format!("is {n}")), "{error}");

        write("tokenizer_config.json", &json!({"eos_token": "</s>", "bos_token": "<s>"}));
        write(
            "special_tokens_map.json",
            &json!({"eos_token": {"content": "<|im_end|>"}, "additional_special_tokens": ["<|a|>"]}),
        );
        write("added_tokens.json", &json!({"<|a|>": n, "<|b|>": n + 1}));
        let tokenizer = load().unwrap();
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(2), Some(1)));
        assert_eq!(texts(&tokenizer, "<|a|> he<|b|>"), ["<|a|>", " ", "he", "<|b|>"]);
        assert!(tokenizer.is_special(n as u32) && !tokenizer.is_special(n as u32 + 1));
    }

    /// The end token of many ChatML fine-tunes: added but not special, and named as the end token.
    #[test]
    fn the_end_token_is_special_whatever_its_entry_says() {
        let folder = tempfile::tempdir().unwrap();
        let mut json: Value = serde_json::from_str(&byte_tokenizer().to_json().unwrap()).unwrap();
        for token in json["added_tokens"].as_array_mut().unwrap() {
            token["special"] = false.into();
        }
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, json.to_string()).unwrap();
        std::fs::write(folder.path().join("tokenizer_config.json"), json!({"eos_token": "<|im_end|>"}).to_string()).unwrap();
        let tokenizer = Tokenizer::from_file(&path).unwrap();
        assert!(tokenizer.is_special(1) && !tokenizer.is_special(0));
    }

    /// `add_bos_token` is ignored beside a tokenizer.json (Transformers 5): the post-processor determines the tokens around a text.
    #[test]
    fn the_post_processor_says_what_stands_around_a_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let load = |single: &[Value], config: Value| {
            let mut json: Value = serde_json::from_str(&byte_tokenizer().to_json().unwrap()).unwrap();
            let token = |name: &str, id: u32| json!({"id": name, "ids": [id], "tokens": [name]});
            let special = json!({"<s>": token("<s>", 2), "</s>": token("</s>", 3)});
            let pair = [single, &[json!({"Sequence": {"id": "B", "type_id": 1}})]].concat();
            json["post_processor"] =
                json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special});
            std::fs::write(&path, json.to_string()).unwrap();
            std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
            let tokenizer = Tokenizer::from_file(&path).unwrap();
            (tokenizer.leading().to_vec(), tokenizer.ends_texts())
        };
        let special = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
        let (bos, eos, text) = (special("<s>"), special("</s>"), json!({"Sequence": {"id": "A", "type_id": 0}}));
        let names = |adds: bool| json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": adds});
        assert_eq!(load(&[bos.clone(), text.clone()], names(false)), (vec![2], false));
        assert_eq!(load(std::slice::from_ref(&text), names(true)), (vec![], false));
        assert_eq!(load(&[text.clone(), eos.clone()], names(true)), (vec![], true));
        assert_eq!(load(&[bos.clone(), bos.clone(), text.clone(), eos], json!({})), (vec![2, 2], false));
        assert_eq!(load(&[bos, text], json!({"bos_token": "</s>"})), (vec![2], false));
    }

    #[test]
    fn vocabularies_that_cannot_work_are_refused_by_name() {
        let check = |vocabulary: GgufVocabulary, expected: &str| {
            let Err(error) = Tokenizer::from_gguf(vocabulary) else { panic!("expected {expected}") };
            assert!(error.to_string().contains(expected), "{error}");
        };
        check(GgufVocabulary { pre: Some("klingon".into()), ..byte_vocabulary() }, "\"klingon\"");
        check(GgufVocabulary { pre: None, ..byte_vocabulary() }, "tokenizer.ggml.pre");
        check(GgufVocabulary { model: "bert".into(), ..byte_vocabulary() }, "\"bert\"");
        check(GgufVocabulary { merges: vec!["x".into()], ..byte_vocabulary() }, "\"x\"");
        check(GgufVocabulary { merges: vec!["q zz".into()], ..byte_vocabulary() }, "do not match");
        check(GgufVocabulary { scores: vec![], ..sentence_vocabulary() }, "one score");
        check(GgufVocabulary { eos: Some(9999), ..byte_vocabulary() }, "9999");
        for token_types in [vec![1], vec![]] {
            check(GgufVocabulary { token_types, ..byte_vocabulary() }, "one token type");
        }
        check(GgufVocabulary { tokens: vec![], ..byte_vocabulary() }, "found none");
    }
}
