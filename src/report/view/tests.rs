use std::io::Read;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use flate2::read::DeflateDecoder;
use serde_json::{Value, json};

use super::*;
use crate::diagnosis::quadrants::{Thresholds, resolve};
use crate::diagnosis::shown::ShownRow;
use crate::table::{Quadrant, Row, TokenChunk};

/// A page whose data contain `text` wherever a text is allowed.
fn page_of(text: &str) -> String {
    let row =
        Row { row: 3, id: Some(text.to_owned()), source: text.to_owned(), path: text.to_owned(), line: 7, ..Row::default() };
    let tokens = chunk(1, |tokens| {
        (tokens.row, tokens.pos, tokens.turn, tokens.logprob) = (vec![3], vec![5], vec![0], vec![-2.5]);
        (tokens.token_id, tokens.top_id, tokens.quadrant) = (vec![9], vec![9], vec![Quadrant::Uncertain]);
        (tokens.begin, tokens.end) = (vec![0], vec![0]);
    });
    let shown = Shown {
        rows: vec![ShownRow { row, is_sampled: false, n_tokens: 1 }],
        tokens,
        texts: HashMap::from([(9, text.to_owned())]),
        of_rows: 1,
        numbers: vec![[3, 3]],
    };
    let examples = HashMap::from([(3, example(&[Turn::plain(Role::User, text)]))]);
    let alternatives = [Alternative { row: 3, pos: 5, rank: 2, token_id: 8, token: text.to_owned(), logprob: -1.25 }];
    let conflicts = [KnownConflict { row: 3, pos: 5, kind: "number".to_owned(), evidence: text.to_owned(), group: 0 }];
    let (data, thresholds) = (json!([{ "path": text, "sha256": "ab" }]), resolve(Thresholds::Fixed, &[]).unwrap());
    page(&[Run {
        title: text.to_owned(),
        identity: "x",
        data: &data,
        read: &Value::Null,
        rendering: String::new(),
        data_names: text.to_owned(),
        model: text,
        vocab_size: 10,
        thresholds: &thresholds,
        exact: None,
        gates: vec![(text.to_owned(), Weight::One)],
        shown: &shown,
        alternatives: &alternatives,
        kinds: Some((&conflicts, &Kinds::default())),
        totals: [1.0, 1.0],
        examples: Some(&examples),
    }])
    .unwrap()
}

fn example(turns: &[Turn]) -> Example {
    Example { turns: turns.to_vec(), ..Example::default() }
}

fn chunk(len: usize, fill: impl FnOnce(&mut TokenChunk)) -> TokenChunk {
    let mut chunk = TokenChunk::default().with_len(len);
    fill(&mut chunk);
    chunk
}

fn between<'a>(page: &'a str, begin: &str, end: &str) -> &'a str {
    page.split(begin).nth(1).unwrap().split(end).next().unwrap()
}

#[test]
fn the_block_holds_what_was_put_in() {
    let page = page_of("héé");
    let packed = BASE64_STANDARD.decode(between(&page, "id=\"data\">", "</script>")).unwrap();
    let mut bytes = Vec::new();
    DeflateDecoder::new(&packed[..]).read_to_end(&mut bytes).unwrap();
    let n = u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[4..4 + n]).unwrap();
    let run = &header["runs"][0];
    assert_eq!((run["words"][0].as_str(), run["thresholds"]["entropy"].as_f64()), (Some("héé"), Some(1.0)));
    let arrays = &bytes[(4 + n).next_multiple_of(8)..];
    let place = |name: &str| {
        let place = &run["arrays"][name];
        (place[0].as_str().unwrap(), place[1].as_u64().unwrap() as usize, place[2].as_u64().unwrap() as usize)
    };
    let (kind, at, count) = place("logprob");
    assert_eq!((kind, count, f32::from_le_bytes(arrays[at..at + 4].try_into().unwrap())), ("f32", 1, -2.5));
    let (kind, at, count) = place("text");
    assert_eq!((kind, at % 8, &arrays[at..at + count]), ("u8", 0, "héé".as_bytes()));
    let (_, at, _) = place("kind");
    assert_eq!(run["kinds"][usize::from(arrays[at])], "number");
    let (_, at, _) = place("alternative");
    assert_eq!(run["words"][usize::from(arrays[at])], "héé");
    let (kind, at, count) = place("alternativeSurprise");
    assert_eq!((kind, count, u16::from_le_bytes([arrays[at], arrays[at + 1]])), ("u16", 1, 1250));
    let (_, at, _) = place("evidence");
    assert_eq!((arrays[at], run["evidences"][0].as_str()), (0, Some("héé")));
    assert_eq!(
        run["kindsOfForm"].as_array().unwrap().iter().map(|at| &run["kinds"][at.as_u64().unwrap() as usize]).collect::<Vec<_>>(),
        ["template", "format", "wording"]
    );
    let (_, at, count) = place("textFrom");
    let ends: Vec<u32> =
        arrays[at..at + 4 * count].chunks(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect();
    assert_eq!(ends, [0, 5]);
}

#[test]
fn the_policy_names_the_style_and_the_script_of_the_page() {
    let page = page_of("a");
    let policy = between(&page, "Content-Security-Policy\" content=\"", "\"");
    let style = between(&page, "<style>", "</style>");
    let script = page.rsplit("<script>").next().unwrap().split("</script>").next().unwrap();
    assert!(policy.starts_with("default-src 'none'; "));
    assert!(
        policy.contains(&format!("style-src {}", source_hash(style)))
            && policy.contains(&format!("script-src {}", source_hash(script)))
    );
    assert_eq!(page.matches("{{").count(), 0, "a place was left empty");
}

#[test]
fn nothing_of_the_data_stands_in_the_page_as_it_is() {
    let hostile = "</script><script>alert(1)</script><img src=x onerror=alert(1)>{{script}}\u{2028}";
    let page = page_of(hostile);
    assert_eq!(page.matches("<script").count(), 2);
    assert!(!page.contains("alert(") && !page.contains("onerror=") && !page.contains('\u{2028}'));
    // The page's own markup contains no handler and no address either.
    assert!(!PAGE.contains(" on") && !PAGE.contains("http:") && !PAGE.contains("https:"));
}

#[test]
fn the_scripts_never_make_markup_of_text() {
    for script in SCRIPTS {
        for way in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser", "fetch("]
        {
            assert!(!script.contains(way), "{way}");
        }
    }
}

/// The scripts share one scope, so a second function of the same name would replace the first.
#[test]
fn no_two_functions_of_the_scripts_have_one_name() {
    let mut seen = std::collections::HashSet::new();
    for line in SCRIPTS.iter().flat_map(|script| script.lines()) {
        let declared = line.strip_prefix("async ").unwrap_or(line);
        let declared = ["function* ", "function ", "const ", "let "].iter().find_map(|word| declared.strip_prefix(word));
        if let Some(name) = declared.and_then(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next())
            && !name.is_empty()
        {
            assert!(seen.insert(name), "{name} is declared twice");
        }
    }
    assert!(seen.len() > 100);
}

#[test]
fn what_stands_beside_the_content_is_told_from_the_template() {
    let words = ["<think>", "Hm", "</think>", "Yes", "{\"name\": \"", "f", "<|im_end|>"];
    let tokens = chunk(9, |tokens| {
        (tokens.row, tokens.pos) = ([vec![3; 8], vec![4]].concat(), [(1..9).collect(), vec![1]].concat());
        (tokens.turn, tokens.token_id) = ([vec![0], vec![1; 7], vec![1]].concat(), vec![3, 0, 1, 2, 3, 4, 5, 6, 6]);
        (tokens.begin, tokens.end) = (vec![0; 9], vec![3, 0, 0, 0, 3, 0, 0, 0, 0]);
    });
    let shown = Shown { tokens, texts: (0..).zip(words.map(str::to_owned)).collect(), ..Shown::default() };
    let calling = Turn {
        reasoning: Some("Hm".to_owned()),
        tool_calls: Some(json!([{ "function": { "name": "f", "arguments": {} } }])),
        ..Turn::plain(Role::Assistant, "Yes")
    };
    let asked = Turn::plain(Role::User, "Yes");
    let rows = [(3, example(&[asked.clone(), calling])), (4, example(&[asked, Turn::plain(Role::Assistant, "")]))];
    let parts = |examples: Option<&HashMap<u32, Example>>| {
        let mut block = Block::default();
        let mut arrays = Arrays { block: &mut block, places: block::Places::default() };
        put_parts(&mut arrays, &shown, examples);
        let packed = BASE64_STANDARD.decode(block.packed(&json!({})).unwrap()).unwrap();
        let mut bytes = Vec::new();
        DeflateDecoder::new(&packed[..]).read_to_end(&mut bytes).unwrap();
        // A header of two bytes behind its length, and one array, each padded to 8.
        bytes[8..17].to_vec()
    };
    assert_eq!(parts(Some(&HashMap::from(rows))), [0, 3, 1, 3, 0, 3, 2, 3, 0]);
    assert_eq!(parts(None), [0; 9]);
}

#[test]
fn tokens_in_another_order_than_their_rows_are_refused() {
    let rows = [4, 3].map(|row| ShownRow { row: Row { row, ..Row::default() }, is_sampled: false, n_tokens: 1 });
    let tokens = chunk(2, |tokens| tokens.row = vec![3, 4]);
    let shown = Shown { rows: rows.to_vec(), tokens, texts: HashMap::new(), of_rows: 2, numbers: Vec::new() };
    let (data, thresholds) = (json!([]), resolve(Thresholds::Fixed, &[]).unwrap());
    let run = Run {
        title: String::new(),
        identity: "",
        data: &data,
        read: &Value::Null,
        rendering: String::new(),
        data_names: String::new(),
        model: "",
        vocab_size: 2,
        thresholds: &thresholds,
        exact: None,
        gates: Vec::new(),
        shown: &shown,
        alternatives: &[],
        kinds: None,
        totals: [1.0, 1.0],
        examples: None,
    };
    assert!(page(&[run]).unwrap_err().to_string().contains("order of its rows"));
}
