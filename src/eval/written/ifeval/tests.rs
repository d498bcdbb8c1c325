//! Compares the verdicts with those of the official checker, which `tests/fixtures/eval/ifeval/make.py` recorded.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::*;

/// The path of a fixture; `DIAGNOSE_IFEVAL_CASES` names another folder written by `make.py`.
fn fixture(name: &str) -> PathBuf {
    let other = std::env::var_os("DIAGNOSE_IFEVAL_CASES").map(PathBuf::from);
    other.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/eval/ifeval")).join(name)
}

fn tools() -> Tools {
    Tools::open(&fixture("punkt"), &fixture("langdetect")).unwrap()
}

fn read<T: DeserializeOwned>(name: &str) -> Vec<T> {
    let text = std::fs::read_to_string(fixture(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[derive(Deserialize)]
struct Case {
    kind: String,
    kwargs: Value,
    answer: String,
    strict: bool,
    loose: bool,
}

/// Twelve answers for each kind of instruction; the three kinds that detect a language use seed 0 on both sides.
#[test]
fn verdicts_are_those_of_the_official_checker() {
    let (tools, cases) = (tools(), read::<Case>("cases.jsonl"));
    assert!(cases.len() >= 300, "{}", cases.len());
    let mut of_kind: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
    let mut wrong = Vec::new();
    for case in &cases {
        let data = json!({"instruction_id_list": [case.kind], "kwargs": [case.kwargs]});
        let verdicts = judge(&data, &case.answer, &tools).unwrap();
        let expected = [
            Verdict::of_answer("prompt_level_strict_acc", case.strict),
            Verdict::of_answer("inst_level_strict_acc", case.strict),
            Verdict::of_answer("prompt_level_loose_acc", case.loose),
            Verdict::of_answer("inst_level_loose_acc", case.loose),
        ];
        if verdicts != expected {
            wrong.push(format!("{} {}: {:?} is {verdicts:?}", case.kind, case.kwargs, case.answer));
        }
        of_kind.entry(&case.kind).or_default()[usize::from(case.strict)] += 1;
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert_eq!(of_kind.len(), 25);
    assert!(of_kind.values().all(|[wrong, right]| *wrong > 0 && *right > 0), "{of_kind:?}");
}

#[derive(Deserialize)]
struct Text {
    text: String,
    sentences: Vec<String>,
    words: Vec<String>,
    language: Option<String>,
}

#[test]
fn sentences_words_and_languages_are_those_of_nltk_and_langdetect() {
    let tools = tools();
    let (mut wrong, mut n_spoken) = (Vec::new(), 0);
    for Text { text, sentences, words, language } in read("texts.jsonl") {
        let found = tools.sentences.split(&text).unwrap();
        let mut cut = Vec::new();
        for sentence in &found {
            cut.extend(tools.words.cut(sentence).unwrap());
        }
        let spoken = tools.languages.of(&text).unwrap();
        // The fixture has only the n-grams of its first texts.
        let spoken = spoken.filter(|_| language.is_some());
        n_spoken += usize::from(language.is_some());
        if (&found, &cut, spoken) != (&sentences, &words, language.as_deref()) {
            wrong.push(format!("{text:?}\n  {found:?}\n  {sentences:?}\n  {cut:?}\n  {words:?}\n  {spoken:?} {language:?}"));
        }
    }
    assert!(n_spoken > 20, "{n_spoken} languages");
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_prompt_is_followed_if_all_its_instructions_are() {
    let data = json!({
        "instruction_id_list": ["punctuation:no_comma", "startend:quotation", "keywords:existence"],
        "kwargs": [{}, {"num_words": null}, {"keywords": ["sea", "salt"], "frequency": 0}],
    });
    // Without its first line the answer is quoted; without its last line as well, a word is missing.
    let answer = "Sure:\n\"the sea\nis salt\"";
    assert_eq!(
        judge(&data, answer, &tools()).unwrap(),
        [
            Verdict::of_answer("prompt_level_strict_acc", false),
            Verdict::of_parts("inst_level_strict_acc", 2, 3),
            Verdict::of_answer("prompt_level_loose_acc", true),
            Verdict::of_parts("inst_level_loose_acc", 3, 3),
        ]
    );
    // An empty answer follows no instruction, not even one that it does not violate.
    assert_eq!(judge(&data, " \n", &tools()).unwrap()[1], Verdict::of_parts("inst_level_strict_acc", 0, 3));
}

#[test]
fn rows_that_leave_open_what_they_ask_for_are_refused() {
    let refused = |kind: &str, arguments: Value, expected: &str| {
        let row = json!({"instruction_id_list": [kind], "kwargs": [arguments]});
        let error = data(row.as_object().unwrap()).unwrap_err().to_string();
        assert!(error.contains(expected), "{kind}: {error}");
    };
    refused("keywords:frequency", json!({"keyword": "a", "frequency": 0, "relation": "at least"}), "`frequency`");
    refused("keywords:frequency", json!({"keyword": "a", "frequency": 2, "relation": "at most"}), "at most");
    refused(
        "keywords:letter_frequency",
        json!({"letter": "ab", "let_frequency": 2, "let_relation": "at least"}),
        "a single letter",
    );
    refused(
        "length_constraints:nth_paragraph_first_word",
        json!({"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"}),
        "of the 2",
    );
    refused("keywords:existence", json!({"keywords": ["("]}), "cannot be read");
    refused("punctuation:no_comma", json!({"num_words": 3}), "takes no `num_words`");
    refused("punctuation:no_dots", json!({}), "no kind of instruction called `punctuation:no_dots`");
    let row = json!({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []});
    assert!(data(row.as_object().unwrap()).unwrap_err().to_string().contains("as many `kwargs`"));
}
