//! Tests odd but legal rows, generated at random: which bytes are supervised and which keys are reported, by the program's readers and by a slow,
//! plain statement of the rules. Tests of the way from a file to the supervised bytes, without a model, belong here.
//!
//! The statement, [`Plain`], is built together with each row and so knows the intended weight of every character. It uses no code of the program.

use std::collections::BTreeSet;
use std::sync::Arc;

use diagnose::dataset::{Dataset, ReadOptions};
use diagnose::tokens::{ChatTemplate, GgufVocabulary, RenderOptions, Renderer, Tokenizer};
use serde_json::{Map, Value, json};

/// Rows of each container; a fault of one in a thousand rows shows.
const N_ROWS: usize = 400;

/// What the row says, character by character.
#[derive(Debug, Clone, Default)]
struct Plain {
    turns: Vec<PlainTurn>,
    /// Keys that promise to switch something and do not, with the numbers left out.
    named: BTreeSet<String>,
    /// The row contradicts itself, so that it must be refused.
    contradicts: bool,
}

#[derive(Debug, Clone)]
struct PlainTurn {
    role: &'static str,
    /// The text, and the weight of each character.
    text: Vec<(char, f32)>,
    /// The weight of the turn as a whole, which the token that ends it has, too.
    weight: f32,
    /// Whether the turn itself states that it counts.
    asked_for: bool,
}

impl Plain {
    /// The supervised text: all characters and ends of turns with a weight, with the weight of each byte.
    fn learnt(&self) -> (String, Vec<f32>) {
        let (mut text, mut weights) = (String::new(), Vec::new());
        for turn in self.turns.iter().filter(|turn| turn.role == "assistant") {
            for &(c, weight) in turn.text.iter().filter(|(_, weight)| *weight > 0.0) {
                text.push(c);
                weights.extend(std::iter::repeat_n(weight, c.len_utf8()));
            }
            // The end is learnt with the turn, also where all of its text is switched off one by one.
            let is_learnt = turn.weight > 0.0;
            if is_learnt {
                text.push_str("<|im_end|>");
                weights.push(turn.weight);
            }
        }
        (text, weights)
    }
}

#[test]
fn odd_rows_are_learnt_as_they_say_and_no_switch_goes_unnamed() {
    let renderer = renderer();
    let folder = tempfile::tempdir().unwrap();
    let (mut n_learnt, mut n_refused, mut n_named) = (0, 0, 0);
    for (seed, container) in CONTAINERS.iter().enumerate() {
        let mut dice = Dice(1 + seed as u64);
        let rows: Vec<(Map<String, Value>, Plain)> = (0..N_ROWS).map(|_| made(&mut dice, container)).collect();
        let path = folder.path().join(format!("rows.{container}"));
        std::fs::write(&path, file(&rows, container)).unwrap();
        let dataset = Dataset::open(&[path.to_string_lossy().into_owned()], &ReadOptions::default()).unwrap();
        let records: Vec<_> = dataset.records().map(|record| record.unwrap()).collect();
        assert_eq!(records.len(), N_ROWS, "{container}");
        for (record, (row, plain)) in records.into_iter().zip(&rows) {
            let row = Value::Object(row.clone());
            let example = match (record.example, plain.contradicts) {
                (Ok(example), false) => example,
                (Err(error), true) => {
                    assert!(error.to_string().contains("contradict"), "{container}: {row}\n{error}");
                    n_refused += 1;
                    continue;
                }
                (Ok(_), true) => panic!("{container}: a contradiction passed: {row}"),
                (Err(error), false) => panic!("{container}: {row}\n{error}"),
            };
            let roles: Vec<&str> = example.turns.iter().map(|turn| turn.role.name()).collect();
            assert_eq!(roles, plain.turns.iter().map(|turn| turn.role).collect::<Vec<_>>(), "{container}: {row}");
            let named: BTreeSet<String> = example.unused.iter().map(|key| without_numbers(key)).collect();
            assert_eq!(named, plain.named, "{container}: {row}");
            n_named += named.len();

            let rendered = renderer.render(0, &example).unwrap();
            let (text, weights) = plain.learnt();
            let learnt = rendered.sequence.ids.iter().zip(&rendered.sequence.supervised).filter(|(_, learnt)| **learnt);
            let bytes: Vec<u8> = learnt.flat_map(|(&id, _)| renderer.tokenizer().bytes(id).to_vec()).collect();
            assert_eq!(String::from_utf8_lossy(&bytes), text, "{container}: {row}");
            assert_eq!(rendered.target_weights, weights, "{container}: {row}");
            n_learnt += weights.len();
        }
    }
    println!("{n_learnt} learnt tokens, {n_refused} contradictions, {n_named} names");
    assert!(n_learnt > 10_000 && n_refused > 20 && n_named > 100);
}

const CONTAINERS: [&str; 5] = ["jsonl", "json", "wrapped.json", "csv", "columns.json"];

fn file(rows: &[(Map<String, Value>, Plain)], container: &str) -> String {
    let rows = rows.iter().map(|(row, _)| row);
    match container {
        "jsonl" => rows.map(|row| Value::Object(row.clone()).to_string() + "\n").collect(),
        "json" => serde_json::to_string_pretty(&rows.collect::<Vec<_>>()).unwrap(),
        "wrapped.json" => json!({"version": 1, "data": rows.collect::<Vec<_>>()}).to_string(),
        // Cells hold text or nothing; what is no text stands in them as JSON.
        "csv" => {
            let columns: BTreeSet<&String> = rows.clone().flat_map(Map::keys).collect();
            let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
            let cell = |value: Option<&Value>| match value {
                None | Some(Value::Null) => String::new(),
                Some(Value::String(text)) => quoted(text),
                Some(other) => quoted(&other.to_string()),
            };
            let head = columns.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(",");
            let lines = rows.map(|row| columns.iter().map(|name| cell(row.get(*name))).collect::<Vec<_>>().join(","));
            std::iter::once(head).chain(lines).collect::<Vec<_>>().join("\n")
        }
        // pandas' to_json.
        _ => {
            let mut columns: Map<String, Value> = Map::new();
            let rows: Vec<_> = rows.collect();
            let names: BTreeSet<&String> = rows.iter().flat_map(|row| row.keys()).collect();
            for name in names {
                let cells =
                    rows.iter().enumerate().map(|(idx, row)| (idx.to_string(), row.get(name).cloned().unwrap_or(Value::Null)));
                columns.insert(name.clone(), Value::Object(cells.collect()));
            }
            Value::Object(columns).to_string()
        }
    }
}

/// A row and what it means. In CSV all rows have all columns, and nothing tells `false` from its text.
fn made(dice: &mut Dice, container: &str) -> (Map<String, Value>, Plain) {
    let mut plain = Plain::default();
    let typed = container != "csv";
    let sharegpt = typed && dice.one_in(3);
    let list = match (typed, sharegpt) {
        (false, _) => "messages",
        (true, true) => *dice.pick(&["conversations", "conversation"]),
        (true, false) => *dice.pick(&["messages", "conversations"]),
    };
    let mut messages = Vec::new();
    if dice.one_in(3) {
        messages.push(turn(dice, "system", sharegpt, list, &mut plain));
    }
    for _ in 0..1 + dice.below(3) {
        messages.push(turn(dice, "user", sharegpt, list, &mut plain));
        messages.push(turn(dice, "assistant", sharegpt, list, &mut plain));
    }
    let mut row = vec![(list.to_owned(), Value::Array(messages))];
    if dice.one_in(8) {
        row[0].1 = row[0].1.to_string().into();
    }
    row_switches(dice, &mut row, &mut plain, typed);
    for key in ["id", "source", "lossless_note", "score", "language"] {
        if dice.one_in(5) {
            row.push((key.to_owned(), json!("x")));
            plain.named.extend(key.starts_with("loss").then(|| key.to_owned()));
        }
    }
    dice.shuffle(&mut row);
    (row.into_iter().collect(), plain)
}

fn row_switches(dice: &mut Dice, row: &mut Vec<(String, Value)>, plain: &mut Plain, typed: bool) {
    let answers: Vec<usize> = (0..plain.turns.len()).filter(|&idx| plain.turns[idx].role == "assistant").collect();
    if dice.one_in(5) {
        // One for each answer, or one for each turn.
        let by_answer = dice.one_in(2);
        let flags: Vec<bool> = answers.iter().map(|_| dice.one_in(2)).collect();
        let of_answers = answers.iter().zip(&flags).map(|(idx, flag)| (*idx, *flag)).collect::<Vec<_>>();
        let mask: Vec<u8> = match by_answer {
            true => flags.iter().map(|flag| u8::from(*flag)).collect(),
            false => (0..plain.turns.len()).map(|turn| u8::from(of_answers.contains(&(turn, true)))).collect(),
        };
        row.push(("loss_mask".to_owned(), json!(mask)));
        for (idx, flag) in of_answers {
            let turn = &mut plain.turns[idx];
            plain.contradicts |= if flag { turn.weight == 0.0 } else { turn.asked_for };
            if !flag {
                unlearn(turn);
            }
        }
    }
    if dice.one_in(6) {
        let wanted = dice.one_in(2);
        // A table of text has its words, in any case.
        let word = if typed { json!(wanted) } else { json!(if wanted { "True" } else { "FALSE" }) };
        row.push((dice.pick(&["label", "kto_tag"]).to_string(), word));
        if !wanted {
            plain.contradicts |= plain.turns.iter().any(|turn| turn.role == "assistant" && turn.asked_for);
            plain.turns.iter_mut().filter(|turn| turn.role == "assistant").for_each(unlearn);
        }
    }
    if dice.one_in(5) {
        let key =
            *dice.pick(&["train_on", "mask_history", "weights", "generation_kwargs", "my_loss", "Loss", "token_weight", "learn"]);
        row.push((key.to_owned(), if typed { dice.pick(&[json!(0), json!("no"), json!([1])]).clone() } else { json!("no") }));
        plain.named.insert(key.to_owned());
    }
}

fn unlearn(turn: &mut PlainTurn) {
    turn.weight = 0.0;
    turn.asked_for = false;
    turn.text.iter_mut().for_each(|(_, weight)| *weight = 0.0);
}

fn turn(dice: &mut Dice, role: &'static str, sharegpt: bool, list: &str, plain: &mut Plain) -> Value {
    let names: &[&str] = match role {
        "system" => &["system", "System", "SYSTEM"],
        "user" => &["user", "human", "User", "HUMAN", "prompter"],
        _ => &["assistant", "gpt", "Assistant", "model", "AI", "chatbot"],
    };
    let (role_key, content_key) = if sharegpt { ("from", "value") } else { ("role", "content") };
    let mut message = vec![(role_key.to_owned(), json!(dice.pick(names)))];
    let (weight, contradicts) = switches(dice, role, &format!("{list}[]."), &mut message, plain);
    plain.contradicts |= contradicts;
    let asked_for = weight.is_some_and(|weight| weight > 0.0);
    let weight = weight.unwrap_or(1.0);
    // A content is a text, a text with details, or a list of parts with weights of their own.
    let mut text: Vec<(char, f32)> = Vec::new();
    match dice.below(4) {
        0 if !sharegpt => {
            let parts = (0..1 + dice.below(3)).map(|_| {
                let words = words(dice);
                let mut part = vec![("type".to_owned(), json!("text")), ("text".to_owned(), json!(words))];
                let (own, contradicts) = switches(dice, role, &format!("{list}[].content[]."), &mut part, plain);
                // A part may be off where its turn is on, but it does not weigh otherwise than a turn that says its own weight.
                let outweighs = own.is_some_and(|own| own > 0.0 && own != weight) && weight != 1.0;
                plain.contradicts |= contradicts || outweighs;
                text.extend(words.chars().map(|c| (c, own.unwrap_or(weight))));
                dice.shuffle(&mut part);
                Value::Object(part.into_iter().collect())
            });
            let parts: Vec<Value> = parts.collect();
            message.push((content_key.to_owned(), Value::Array(parts)));
        }
        1 if role == "assistant" => {
            let words = words(dice);
            // Text outside all pieces is not supervised.
            text.extend(words.chars().map(|c| (c, 0.0)));
            let first = dice.below(text.len());
            let last = first + dice.below(text.len() - first);
            let trained = dice.one_in(2);
            plain.contradicts |= trained && weight == 0.0;
            let inside = if trained { weight } else { 0.0 };
            text[first..=last].iter_mut().for_each(|(_, weight)| *weight = inside);
            let key = dice.pick(&["train_detail", "training_detail"]).to_string();
            message.push((key, json!([{"begin_offset": first, "end_offset": last, "train": trained}])));
            message.push((content_key.to_owned(), json!(words)));
        }
        _ => {
            let words = words(dice);
            text.extend(words.chars().map(|c| (c, weight)));
            message.push((content_key.to_owned(), json!(words)));
        }
    }
    dice.shuffle(&mut message);
    plain.turns.push(PlainTurn { role, text, weight, asked_for });
    Value::Object(message.into_iter().collect())
}

/// Puts none, one or two switches on a turn or a part; gives its weight, if any is said, and whether the two contradict each other.
fn switches(dice: &mut Dice, role: &str, path: &str, at: &mut Vec<(String, Value)>, plain: &mut Plain) -> (Option<f32>, bool) {
    let mut said: Vec<(String, Value)> = Vec::new();
    for _ in 0..*dice.pick(&[0, 0, 1, 1, 2]) {
        let key = *dice.pick(&["weight", "loss_weight", "loss_scale", "train", "training", "loss", "mask", "masked"]);
        let values: &[Value] = match key {
            "mask" | "masked" => &[json!(true), json!(false), Value::Null],
            _ => &[json!(0), json!(1), json!(0.5), json!(2.0), json!(true), json!(false), json!(0.0), Value::Null],
        };
        if said.iter().all(|(other, _)| other != key) {
            said.push((key.to_owned(), dice.pick(values).clone()));
        }
    }
    // One that nobody knows.
    if dice.one_in(12) {
        let key = *dice.pick(&["lossy", "masking", "trainable", "learn_this", "LOSS", "sample_weight", "isTrained", "skip_loss"]);
        at.push((key.to_owned(), json!(1)));
        plain.named.insert(format!("{path}{key}"));
    }
    let (mut exact, mut on, mut off) = (Vec::new(), false, false);
    for (key, value) in &said {
        let is_mask = key.starts_with("mask");
        match value {
            Value::Bool(value) => {
                on |= *value != is_mask;
                off |= *value == is_mask;
            }
            Value::Number(number) => {
                let weight = number.as_f64().unwrap() as f32;
                exact.push(weight);
                on |= weight > 0.0;
                off |= weight == 0.0;
            }
            _ => {}
        }
    }
    let contradicts = (on && off) || exact.iter().any(|weight| *weight != exact[0]);
    let weight = exact.first().copied().or(off.then_some(0.0)).or(on.then_some(1.0));
    // Only answers are supervised, so switching on anything else has no effect, which is reported.
    if role != "assistant" && weight.is_some_and(|weight| weight > 0.0) {
        plain.named.extend(said.iter().filter(|(_, value)| !value.is_null()).map(|(key, _)| format!("{path}{key}")));
    }
    at.extend(said);
    (weight, contradicts)
}

fn words(dice: &mut Dice) -> String {
    let words = ["five", "Tea,", "naïve", "東京", "\"so\"", "a\\b", "{x}", "😀", "line\nend", "0", "True", "null"];
    (0..1 + dice.below(4)).map(|_| *dice.pick(&words)).collect::<Vec<_>>().join(" ")
}

fn without_numbers(key: &str) -> String {
    let mut out = String::new();
    for (idx, piece) in key.split(']').enumerate() {
        out.push_str(if idx > 0 { "]" } else { "" });
        out.push_str(piece.split_inclusive('[').next().unwrap_or_default());
        // What stands between a bracket and the next is a number; nothing else does.
        debug_assert!(piece.matches('[').count() <= 1);
    }
    out
}

/// One token per byte, so that each character is supervised or not independently.
fn renderer() -> Renderer {
    let mut tokens: Vec<String> = ["<|im_start|>", "<|im_end|>"].map(str::to_owned).to_vec();
    let mut token_types = vec![3; tokens.len()];
    // GPT-2's table: printable bytes are themselves, the others are moved up.
    let is_printable = |byte: &u32| (33..=126).contains(byte) || (161..=172).contains(byte) || (174..=255).contains(byte);
    let mut moved = 256;
    for byte in 0..256 {
        let code = if is_printable(&byte) { byte } else { moved };
        moved += u32::from(!is_printable(&byte));
        tokens.push(char::from_u32(code).unwrap().to_string());
    }
    token_types.resize(tokens.len(), 1);
    let vocabulary = GgufVocabulary {
        model: "gpt2".into(),
        pre: Some("smollm".into()),
        tokens,
        token_types,
        eos: Some(1),
        ..GgufVocabulary::default()
    };
    let template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let template = ChatTemplate::new(template, None, Some("<|im_end|>")).unwrap();
    let tokenizer = Arc::new(Tokenizer::from_gguf(vocabulary).unwrap());
    Renderer::new(tokenizer, Some(template), RenderOptions { max_len: usize::MAX, ..RenderOptions::default() }).unwrap()
}

/// SplitMix64: the same rows on every machine.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.below(end + 1));
        }
    }
}
