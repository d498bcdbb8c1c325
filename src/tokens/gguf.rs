//! Builds the tokenizer that a GGUF file describes.
//!
//! A GGUF file contains the vocabulary, but only the name of the pre-tokenizer; [`PRE_TOKENIZERS`] defines the names. Supported: byte-level BPE
//! (`gpt2`) with the names in the table, and BPE by SentencePiece scores (`llama`, which Gemma uses, too). Not supported, and refused by name:
//! unigram (`t5`), WordPiece (`bert`), RWKV.
//!
//! Names and expressions are those of llama.cpp (src/llama-vocab.cpp, `llama_vocab::impl::load` and `llm_tokenizer_bpe`), in the form of the
//! model's own tokenizer.json where llama.cpp had to rewrite them. The other properties of a table row come from the tokenizer.json, too, since the
//! aim is to split as Transformers does.

use std::collections::HashMap;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence as Normalizers, unicode::NFC};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer as Inner};

use super::parts::{Parts, PrefixSpace, Spelling};
use crate::error::{Context, Error, Result};

/// The tokenizer's metadata in a GGUF file; each field is named after its key `tokenizer.ggml.*`, unless stated otherwise.
#[derive(Debug, Clone, Default)]
pub struct GgufVocabulary {
    /// The kind of vocabulary: `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: String,
    /// The name of the pre-tokenizer: `smollm`, `llama-bpe`, `qwen2`, ...
    pub pre: Option<String>,
    /// The tokens in the vocabulary's encoding; the index is the token id.
    pub tokens: Vec<String>,
    /// 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte; one for each token.
    pub token_types: Vec<i32>,
    /// For `llama`: tokens with larger scores are merged earlier.
    pub scores: Vec<f32>,
    /// For `gpt2`: `left right`, in order of priority.
    pub merges: Vec<String>,
    /// The id of the beginning-of-sequence token.
    pub bos: Option<u32>,
    /// The id of the end-of-sequence token.
    pub eos: Option<u32>,
    /// Whether the beginning token precedes every text. If `None`, the kind of vocabulary decides.
    pub add_bos: Option<bool>,
    /// For `llama`: whether a space is prepended to the first word. `None` means true.
    pub add_space_prefix: Option<bool>,
    /// `general.name`: the name of the model.
    pub name: Option<String>,
    /// `general.architecture`, such as `llama`.
    pub architecture: Option<String>,
}

/// The rules of a pre-tokenizer.
struct PreTokenizer {
    names: &'static [&'static str],
    /// Regular expressions that are applied one after another; both matches and the text between them become pieces.
    splits: &'static [&'static str],
    /// Whether texts are normalised to NFC first.
    nfc: bool,
    /// Whether a piece that is a token stays whole, whatever the merges are.
    ignore_merges: bool,
    /// Whether the model expects a beginning token, if the file does not specify it.
    adds_bos: bool,
}

/// openai/gpt-2, src/encoder.py
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// meta-llama/Meta-Llama-3-8B, tokenizer.json; it is cl100k of openai/tiktoken, tiktoken_ext/openai_public.py
const LLAMA3: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen/Qwen2-7B, tokenizer.json: cl100k with single digits
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// mistralai/Mistral-Nemo-Base-2407, tokenizer.json
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen/Qwen3.5-4B, Transformers' `models/qwen3_5/tokenization_qwen3_5.py`: combining marks belong to the letters before them
const QWEN35: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// o200k of openai/tiktoken, tiktoken_ext/openai_public.py: a capital letter begins a new word
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Splits off single digits, before anything else.
const DIGIT: &str = r"\p{N}";

/// The pre-tokenizers of models whose architectures are supported. The rules behind other names have not been tested.
const PRE_TOKENIZERS: &[PreTokenizer] = &[
    PreTokenizer {
        // HuggingFaceTB/SmolLM2-135M-Instruct, tokenizer.json: Digits(individual_digits), then ByteLevel with GPT-2's expression. So has StarCoder,
        // whose rules Refact and Granite took over; Granite's files use Refact's name.
        names: &["smollm", "refact"],
        splits: &[DIGIT, GPT2],
        nfc: false,
        ignore_merges: false,
        adds_bos: false,
    },
    PreTokenizer { names: &["gpt-2"], splits: &[GPT2], nfc: false, ignore_merges: false, adds_bos: false },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3"],
        splits: &[LLAMA3],
        nfc: false,
        ignore_merges: true,
        adds_bos: true,
    },
    PreTokenizer { names: &["qwen2", "deepseek-r1-qwen"], splits: &[QWEN2], nfc: true, ignore_merges: false, adds_bos: false },
    PreTokenizer { names: &["qwen35"], splits: &[QWEN35], nfc: true, ignore_merges: false, adds_bos: false },
    PreTokenizer {
        // gpt-oss and Phi-4-mini, converted from a tiktoken file by Transformers' TikTokenConverter, which sets ignore_merges.
        names: &["gpt-4o"],
        splits: &[O200K],
        nfc: false,
        ignore_merges: true,
        adds_bos: false,
    },
    // OLMo 2 and 3, Phi-4.
    PreTokenizer { names: &["dbrx"], splits: &[LLAMA3], nfc: false, ignore_merges: false, adds_bos: false },
    // SmolLM3, which has Llama 3's vocabulary without its beginning token.
    PreTokenizer { names: &["smaug-bpe"], splits: &[LLAMA3], nfc: false, ignore_merges: true, adds_bos: false },
    PreTokenizer {
        // Converted from a tiktoken file by Transformers' TikTokenConverter, which sets ignore_merges.
        names: &["glm4", "chatglm-bpe"],
        splits: &[LLAMA3],
        nfc: false,
        ignore_merges: true,
        adds_bos: false,
    },
    PreTokenizer { names: &["tekken"], splits: &[TEKKEN], nfc: false, ignore_merges: true, adds_bos: true },
];

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

pub(super) fn inner_from_gguf(vocabulary: GgufVocabulary) -> Result<Parts> {
    let n_tokens = vocabulary.tokens.len();
    if n_tokens == 0 {
        return Err(broken("expected a vocabulary in tokenizer.ggml.tokens, found none"));
    }
    // Without them nothing tells a control token from text.
    if vocabulary.token_types.len() != n_tokens {
        let n_types = vocabulary.token_types.len();
        return Err(broken(format!(
            "expected one token type (tokenizer.ggml.token_type) for each of {n_tokens} tokens, found {n_types}"
        )));
    }
    for (name, id) in [("bos", vocabulary.bos), ("eos", vocabulary.eos)] {
        if let Some(id) = id.filter(|&id| id as usize >= n_tokens) {
            return Err(broken(format!("tokenizer.ggml.{name}_token_id is {id}, but there are {n_tokens} tokens")));
        }
    }
    match vocabulary.model.as_str() {
        "gpt2" => byte_level(vocabulary),
        "llama" => sentence_piece(vocabulary),
        other => Err(Error::new(format!("the tokenizer kind {other:?} (tokenizer.ggml.model) is not supported"))
            .cure("Supported are \"gpt2\" and \"llama\". A folder with the model's tokenizer.json works for every kind.")),
    }
}

fn byte_level(vocabulary: GgufVocabulary) -> Result<Parts> {
    let rules = pre_tokenizer(vocabulary.pre.as_deref())?;
    let merges = vocabulary
        .merges
        .iter()
        .map(|merge| match merge.split_once(' ') {
            Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
            None => Err(broken(format!("expected two tokens in the merge {merge:?}"))),
        })
        .collect::<Result<Vec<_>>>()?;
    let bpe = BPE::builder()
        .vocab_and_merges(ids(&vocabulary.tokens), merges)
        .ignore_merges(rules.ignore_merges)
        .build()
        .context("the vocabulary and the merges of the GGUF file do not match")?;
    let mut inner = Inner::new(bpe);
    if rules.nfc {
        set_normalizer(&mut inner, NFC.into())?;
    }
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    for split in rules.splits {
        let split = Split::new(SplitPattern::Regex((*split).to_owned()), SplitDelimiterBehavior::Isolated, false)
            .context("cannot compile a pre-tokenizer")?;
        steps.push(split.into());
    }
    steps.push(ByteLevel::new(false, false, false).into());
    inner.with_pre_tokenizer(Some(Sequence::new(steps)));
    inner.with_decoder(Some(ByteLevel::new(false, false, false)));
    add_tokens(&mut inner, &vocabulary)?;
    let adds_bos = adds_bos(&vocabulary, rules.adds_bos)?;
    Ok(Parts {
        inner: with_leading_bos(inner, &vocabulary, adds_bos)?,
        continuation: None,
        prefix_space: PrefixSpace::Never,
        spelling: Spelling::ByteLevel,
        bos: vocabulary.bos,
        eos: vocabulary.eos,
        leading: vocabulary.bos.filter(|_| adds_bos).into_iter().collect(),
        ends_texts: false,
    })
}

/// Builds the tokenizer like Transformers (convert_slow_tokenizer.py, `SpmConverter` and `LlamaConverter`): spaces become `▁`, and the merges
/// follow from the scores.
fn sentence_piece(mut vocabulary: GgufVocabulary) -> Result<Parts> {
    let (n_tokens, n_scores) = (vocabulary.tokens.len(), vocabulary.scores.len());
    if n_scores != n_tokens {
        return Err(broken(format!("expected one score for each of {n_tokens} tokens, found {n_scores}")));
    }
    merge_runs_of_spaces(&mut vocabulary);
    let merges = merges_by_score(&vocabulary);
    let build = |prefix_space: bool| -> Result<Inner> {
        let mut builder =
            BPE::builder().vocab_and_merges(ids(&vocabulary.tokens), merges.clone()).byte_fallback(true).fuse_unk(true);
        if let Some(unknown) = vocabulary.token_types.iter().position(|&kind| kind == UNKNOWN) {
            builder = builder.unk_token(vocabulary.tokens[unknown].clone());
        }
        let mut inner = Inner::new(builder.build().context("the vocabulary of the GGUF file is inconsistent")?);
        let space = Replace::new(" ", "▁").context("cannot compile a normalizer")?;
        let mut steps: Vec<NormalizerWrapper> = Vec::new();
        if prefix_space {
            steps.push(Prepend::new("▁".to_owned()).into());
        }
        steps.push(space.into());
        set_normalizer(&mut inner, Normalizers::new(steps).into())?;
        add_tokens(&mut inner, &vocabulary)?;
        Ok(inner)
    };
    let prefix_space = vocabulary.add_space_prefix.unwrap_or(true);
    let adds_bos = adds_bos(&vocabulary, true)?;
    let mut inner = build(prefix_space)?;
    let mut steps: Vec<DecoderWrapper> = vec![
        Replace::new("▁", " ").context("cannot compile a decoder")?.into(),
        ByteFallback::default().into(),
        Fuse::new().into(),
    ];
    if prefix_space {
        steps.push(Strip::new(' ', 1, 0).into());
    }
    inner.with_decoder(Some(Decoders::new(steps)));
    Ok(Parts {
        inner: with_leading_bos(inner, &vocabulary, adds_bos)?,
        continuation: if prefix_space { Some(Box::new(build(false)?)) } else { None },
        prefix_space: if prefix_space { PrefixSpace::EveryFragment } else { PrefixSpace::Never },
        spelling: Spelling::SentencePiece,
        bos: vocabulary.bos,
        eos: vocabulary.eos,
        leading: vocabulary.bos.filter(|_| adds_bos).into_iter().collect(),
        ends_texts: false,
    })
}

/// Turns Gemma's user-defined tokens for 2 to 31 spaces into merges with top priority. llama.cpp and SentencePiece itself find the longest such
/// token in the text: 32 spaces are 31 + 1. Transformers, and hence fine-tuning with it, uses merges: 16 + 16.
fn merge_runs_of_spaces(vocabulary: &mut GgufVocabulary) {
    let kinds = vocabulary.token_types.iter_mut().zip(&mut vocabulary.scores);
    for (token, (kind, score)) in vocabulary.tokens.iter_mut().zip(kinds) {
        let is_run = token.len() > 1 && token.bytes().all(|byte| byte == b' ');
        if *kind == USER_DEFINED && is_run {
            *kind = NORMAL;
            // Above every real score, shorter runs first.
            *score = 1e9 - 1e6 * token.len() as f32;
            *token = "▁".repeat(token.len());
        }
    }
}

/// Returns the merges: all splits of tokens into two others, by descending score of the whole token.
///
/// Ties are broken as in Transformers (`generate_merges`): longer left part, longer right part, then the order of the vocabulary.
fn merges_by_score(vocabulary: &GgufVocabulary) -> Vec<(String, String)> {
    let id_of: HashMap<&str, usize> = vocabulary.tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (token, &score) in vocabulary.tokens.iter().zip(&vocabulary.scores) {
        let first = merges.len();
        let n_chars = token.chars().count();
        for (n_left, (at, _)) in token.char_indices().enumerate().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&left_id), Some(&right_id)) = (id_of.get(left), id_of.get(right)) {
                merges.push((score, (n_left, n_chars - n_left), (left_id, right_id)));
            }
        }
        merges[first..].sort_by_key(|&(_, _, ids)| ids);
    }
    // A stable sort keeps the order of the vocabulary among equals.
    merges.sort_by(|(score_a, n_chars_a, _), (score_b, n_chars_b, _)| score_b.total_cmp(score_a).then(n_chars_b.cmp(n_chars_a)));
    let token = |id: usize| vocabulary.tokens[id].clone();
    merges.into_iter().map(|(_, _, (left, right))| (token(left), token(right))).collect()
}

/// Adds control tokens and user-defined tokens, which are found in the text before it is split.
///
/// Those of Phi-3 also match the white space after them, which no key of the file records: llama.cpp goes by the model's name
/// (`llama_vocab::impl::load`, `LLAMA_TOKEN_ATTR_RSTRIP`). Phi-3's architecture with a SentencePiece vocabulary identifies such models whatever
/// their name.
fn add_tokens(inner: &mut Inner, vocabulary: &GgufVocabulary) -> Result<()> {
    const KEEP_SPACE: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];
    let name = vocabulary.name.as_deref().unwrap_or_default().to_lowercase();
    let is_phi3 = vocabulary.model == "llama" && vocabulary.architecture.as_deref() == Some("phi3");
    let swallows = is_phi3 || name.contains("phi-3") || name.contains("phi3");
    let of_kind = |kind: i32, special: bool| {
        let tokens = vocabulary.tokens.iter().zip(&vocabulary.token_types);
        tokens.filter(move |(token, k)| **k == kind && !token.is_empty()).map(move |(token, _)| {
            // Matched in the original text, before normalisation.
            AddedToken::from(token.clone(), special).normalized(false).rstrip(swallows && !KEEP_SPACE.contains(&token.as_str()))
        })
    };
    let refused = "the tokenizers library refused the added tokens of the GGUF file";
    inner.add_special_tokens(of_kind(CONTROL, true)).context(refused)?;
    inner.add_tokens(of_kind(USER_DEFINED, false)).context(refused)?;
    Ok(())
}

/// Whether a beginning token precedes a text, by the file or else by the kind of its vocabulary. llama.cpp uses token 1 or 11 if the file names
/// none, whatever that token is.
fn adds_bos(vocabulary: &GgufVocabulary, by_kind: bool) -> Result<bool> {
    let adds = vocabulary.add_bos.unwrap_or(by_kind);
    if adds && vocabulary.bos.is_none() {
        let why = match vocabulary.add_bos {
            Some(_) => "tokenizer.ggml.add_bos_token is true",
            None => "texts with this kind of vocabulary begin with a special token",
        };
        return Err(broken(format!("{why}, and tokenizer.ggml.bos_token_id does not say which one")));
    }
    Ok(adds)
}

/// Sets the post-processor. It is not used here, but a saved tokenizer.json must tell other programs to prepend the token.
fn with_leading_bos(mut inner: Inner, vocabulary: &GgufVocabulary, adds_bos: bool) -> Result<Inner> {
    let token = vocabulary.bos.filter(|_| adds_bos).and_then(|id| Some((vocabulary.tokens.get(id as usize)?, id)));
    let Some((token, id)) = token else { return Ok(inner) };
    let refused = "the tokenizers library refused the beginning token of the GGUF file";
    let processor = TemplateProcessing::builder()
        .try_single(vec![token.clone(), "$A".to_owned()])
        .and_then(|builder| builder.try_pair(vec![token.clone(), "$A".to_owned(), "$B:1".to_owned()]))
        .map_err(|cause| Error::new(refused).caused_by(cause.to_string()))?
        .special_tokens(vec![(token.clone(), id)])
        .build()
        .context(refused)?;
    inner.with_post_processor(Some(processor));
    Ok(inner)
}

fn set_normalizer(inner: &mut Inner, normalizer: NormalizerWrapper) -> Result<()> {
    inner.with_normalizer(Some(normalizer)).context("cannot set the normalizer")?;
    Ok(())
}

fn ids(tokens: &[String]) -> Vocab {
    tokens.iter().enumerate().map(|(id, token)| (token.clone(), id as u32)).collect()
}

fn pre_tokenizer(name: Option<&str>) -> Result<&'static PreTokenizer> {
    let Some(name) = name else {
        return Err(broken("the GGUF file does not name its pre-tokenizer (tokenizer.ggml.pre)"));
    };
    PRE_TOKENIZERS.iter().find(|rules| rules.names.contains(&name)).ok_or_else(|| {
        let known = PRE_TOKENIZERS.iter().flat_map(|rules| rules.names).copied().collect::<Vec<_>>().join(", ");
        Error::new(format!(
            "the pre-tokenizer {name:?} (tokenizer.ggml.pre) is unknown, and a guess would split words incorrectly"
        ))
        .cure(format!("Known are {known}. A folder with the model's tokenizer.json always works."))
    })
}

fn broken(message: impl Into<String>) -> Error {
    Error::new(message).cure("The GGUF file is incomplete or from an old converter: convert it again, or use the model's folder.")
}

#[cfg(test)]
mod tests {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    use super::*;

    /// llama.cpp splits words for these like for SmolLM; Command R's own tokenizer also composes characters.
    #[test]
    fn pre_tokenizers_of_models_that_nothing_here_runs_are_refused_by_name() {
        for name in ["command-r", "starcoder", "codeshell", "bloom"] {
            let error = pre_tokenizer(Some(name)).err().unwrap();
            assert!(error.to_string().contains(&format!("{name:?} (tokenizer.ggml.pre) is unknown")), "{error}");
        }
    }

    /// The fixture is made by tests/fixtures/pre_tokenizers/make.py from the models' own tokenizers.
    #[test]
    fn texts_are_cut_where_the_models_own_tokenizers_cut_them() {
        let text = include_str!("../../tests/fixtures/pre_tokenizers/pieces.json");
        let fixture: serde_json::Value = serde_json::from_str(text).unwrap();
        let strings = |value: &serde_json::Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap() };
        let texts = strings(&fixture["texts"]);
        let of_names = fixture["pieces"].as_object().unwrap();
        assert!(of_names.len() >= 8 && texts.len() >= 12);
        for (name, lists) in of_names {
            let rules = pre_tokenizer(Some(name)).unwrap();
            for (text, expected) in texts.iter().zip(lists.as_array().unwrap()) {
                let mut cut = PreTokenizedString::from(text.as_str());
                for split in rules.splits {
                    let pattern = SplitPattern::Regex((*split).to_owned());
                    Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap().pre_tokenize(&mut cut).unwrap();
                }
                let found: Vec<String> = cut
                    .get_splits(OffsetReferential::Original, OffsetType::Byte)
                    .into_iter()
                    .map(|(piece, ..)| piece.to_owned())
                    .collect();
                assert_eq!(found, strings(expected), "{name}: {text:?}");
            }
        }
    }
}
