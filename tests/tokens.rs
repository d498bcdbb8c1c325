//! Tests the tokens of a real model against the reference. Tests that need the default model's GGUF file or the reference files belong here.
//!
//! The model is looked for in `DIAGNOSE_TEST_GGUF`, then in the user's cache folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::gguf_file::{Content, Value};
use diagnose::dataset::{Example, Role, Turn};
use diagnose::tokens::{ChatTemplate, GgufVocabulary, RenderOptions, Renderer, Tokenizer};

use crate::workdir::{absent, shared};

#[test]
fn token_ids_equal_the_reference_on_all_rows() {
    let Some(metadata) = default_model() else { return };
    let read = |name: &str| shared(&format!("reference/{name}")).map(|path| std::fs::read_to_string(path).unwrap());
    let Some(rows) = read("smollm2_alpaca200.jsonl") else { return };
    let Some(sequences) = read("smollm2_alpaca200_sequences.jsonl") else { return };

    let renderer = renderer(&metadata, 512);
    let tokenizer = renderer.tokenizer();
    let newline = tokenizer.id("Ċ").unwrap();
    let end_of_turn = tokenizer.id("<|im_end|>").unwrap();
    let mut n_rows = 0;
    for (row, (messages, expected)) in rows.lines().zip(sequences.lines()).enumerate() {
        let example = example(messages);
        let expected: serde_json::Value = serde_json::from_str(expected).unwrap();
        let ids: Vec<u32> = serde_json::from_value(expected["input_ids"].clone()).unwrap();
        let mut mask: Vec<bool> = match &expected["mask"] {
            serde_json::Value::Array(mask) => mask.iter().map(|m| m.as_bool().unwrap_or(m == 1)).collect(),
            other => panic!("unexpected mask {other}"),
        };
        let rendered = renderer.render(row as u32, &example).unwrap();
        assert_eq!(rendered.sequence.ids, ids, "row {row}");
        // The reference supervises the newline after the end of the turn, which is the template's.
        if ids.ends_with(&[end_of_turn, newline]) {
            mask[ids.len() - 1] = false;
        }
        assert_eq!(rendered.sequence.supervised, mask, "row {row}");
        assert_spans_show_their_text(&renderer, &example, &rendered.sequence);
        n_rows += 1;
    }
    assert_eq!(n_rows, 200);
}

#[test]
fn spans_tile_mixed_text() {
    let Some(metadata) = default_model() else { return };
    let renderer = renderer(&metadata, 10_000);
    for text in
        ["naïve café – 你好，世界 👩‍👩‍👧 e\u{301}", "a\u{a0}\u{3000} b\r\n\t\tc  \n\n d", "x = [1234, 5.6e-7]; // ok", "١٢٣ Ⅷ ½"]
    {
        let tokens = renderer.tokenizer().encode(text).unwrap();
        let mut bytes: Vec<u8> = Vec::new();
        for token in &tokens {
            assert_eq!(token.begin, bytes.len());
            bytes.extend(renderer.tokenizer().bytes(token.id));
            assert_eq!(token.end, bytes.len());
        }
        assert_eq!(bytes, text.as_bytes());
        let digits = text.chars().filter(char::is_ascii_digit).count();
        assert_eq!(tokens.iter().filter(|t| matches!(renderer.tokenizer().bytes(t.id), [b'0'..=b'9'])).count(), digits, "{text}");
    }
}

/// Driven by tests/peers/tokenisation.py, which writes the vocabularies, the lines and Transformers' ids.
#[test]
fn gguf_vocabularies_split_as_transformers_does() {
    let Some(folder) = std::env::var_os("DIAGNOSE_TEST_TOKENISATION").map(PathBuf::from) else {
        absent("tokenisation", "tests/peers/tokenisation.py sets DIAGNOSE_TEST_TOKENISATION");
        return;
    };
    let read = |path: &Path| serde_json::from_slice::<serde_json::Value>(&std::fs::read(path).unwrap()).unwrap();
    let lines: Vec<String> = serde_json::from_value(read(&folder.join("lines.json"))).unwrap();
    let mut n_differing = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "gguf") {
            continue;
        }
        let content = Content::read(&mut std::fs::File::open(&path).unwrap()).unwrap();
        let tokenizer = Tokenizer::from_gguf(vocabulary(&content)).unwrap();
        let expected: Vec<Vec<u32>> = serde_json::from_value(read(&path.with_extension("ids.json"))).unwrap();
        assert_eq!(lines.len(), expected.len());
        let ids = |line: &String| tokenizer.encode(line).unwrap().iter().map(|token| token.id).collect::<Vec<_>>();
        let differing: Vec<_> = lines.iter().zip(&expected).filter(|(line, expected)| ids(line) != **expected).collect();
        let n_tokens: usize = expected.iter().map(Vec::len).sum();
        let name = path.file_stem().unwrap().display();
        println!("{name}: {} of {} lines differ ({n_tokens} tokens)", differing.len(), lines.len());
        for (line, expected) in differing.iter().take(3) {
            println!("  {line:?}\n    ours   {:?}\n    theirs {expected:?}", ids(line));
        }
        n_differing += differing.len();
    }
    assert_eq!(n_differing, 0);
}

/// Every token with a span has exactly the bytes of its span; the spans of an answer cover it.
fn assert_spans_show_their_text(renderer: &Renderer, example: &Example, sequence: &diagnose::tokens::Sequence) {
    let mut covered = vec![0; example.turns.len()];
    for (&id, span) in sequence.ids.iter().zip(&sequence.spans).filter(|(_, span)| span.begin < span.end) {
        let turn = usize::from(span.turn);
        let text = &example.turns[turn].content.as_bytes()[span.begin as usize..span.end as usize];
        assert_eq!(text, renderer.tokenizer().bytes(id));
        covered[turn] += text.len();
    }
    if sequence.ids.len() < 512 {
        let lengths: Vec<usize> = example.turns.iter().map(|turn| turn.content.len()).collect();
        assert_eq!(covered, lengths);
    }
}

fn renderer(metadata: &Content, max_len: usize) -> Renderer {
    let template = metadata.metadata["tokenizer.chat_template"].to_string().unwrap();
    let tokenizer = Tokenizer::from_gguf(vocabulary(metadata)).unwrap();
    let template = ChatTemplate::new(template, Some("<|im_start|>"), Some("<|im_end|>")).unwrap();
    let options = RenderOptions { max_len, ..RenderOptions::default() };
    Renderer::new(Arc::new(tokenizer), Some(template), options).unwrap()
}

fn example(line: &str) -> Example {
    let json: serde_json::Value = serde_json::from_str(line).unwrap();
    let turns = json["messages"].as_array().unwrap().iter().map(|message| {
        let role = match message["role"].as_str().unwrap() {
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "system" => Role::System,
            other => panic!("unexpected role {other}"),
        };
        Turn::plain(role, message["content"].as_str().unwrap())
    });
    Example { source: "reference".into(), turns: turns.collect(), ..Example::default() }
}

fn vocabulary(content: &Content) -> GgufVocabulary {
    let get = |key: &str| content.metadata.get(&format!("tokenizer.ggml.{key}"));
    let list = |key: &str| get(key).map_or(&[][..], |value| value.to_vec().unwrap());
    let strings = |key: &str| list(key).iter().map(|value| value.to_string().unwrap().clone()).collect();
    GgufVocabulary {
        model: get("model").unwrap().to_string().unwrap().clone(),
        pre: get("pre").map(|value| value.to_string().unwrap().clone()),
        tokens: strings("tokens"),
        token_types: list("token_type").iter().map(|value| value.to_i32().unwrap()).collect(),
        scores: list("scores").iter().map(|value| value.to_f32().unwrap()).collect(),
        merges: strings("merges"),
        bos: get("bos_token_id").map(|value| value.to_u32().unwrap()),
        eos: get("eos_token_id").map(|value| value.to_u32().unwrap()),
        add_bos: get("add_bos_token").map(|value| value.to_bool().unwrap()),
        add_space_prefix: get("add_space_prefix").map(|value| matches!(value, Value::Bool(true))),
        name: None,
        architecture: None,
    }
}

fn default_model() -> Option<Content> {
    let path = std::env::var_os("DIAGNOSE_TEST_GGUF").map(PathBuf::from).or_else(crate::workdir::default_model)?;
    let mut file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Some(Content::read(&mut file).unwrap())
}
