//! What an assistant writes beside the content of its turn, reasoning and tool calls, found in the text that a template has made of the turn.
//!
//! A template prints reasoning as it is, and a call in a form of its own: `{"name": "f", "arguments": {"x": 1}}`, XML, a line of code. Whatever the
//! form, the names, keys and values of the call stand in it one after the other, with little between them, and are looked for in that way.
//! What lies between them is the template's, except the signs between two keys or values, such as `": "`, and those that close them: whether
//! another argument follows is for the call to say.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::own::thought;
use crate::dataset::{Call, Role, Turn, dumps, verbatim};

/// What of a turn a text is, where it is not its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// What the assistant thinks before it answers or calls.
    Reasoning,
    /// The name, a key or a value of a call, or its id.
    ToolCall,
    /// What the template puts around all of these.
    Template,
}

/// Bytes of a text that are a turn's own, and none of its content: the reasoning, or one name, key or value of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// What they are.
    pub part: Part,
    /// Where they stand.
    pub range: Range<usize>,
}

/// What of a turn stands in a text.
#[derive(Debug, Default)]
pub struct FoundParts {
    /// In the order of the text; no two of them overlap.
    pub stretches: Vec<Stretch>,
    /// The signs between the keys and values of one call, and those that close them; in the order of the text, and no two of them overlap.
    pub signs: Vec<Range<usize>>,
    /// The calls of the turn, in their order.
    pub calls: Vec<FoundCall>,
}

/// What of a call stands in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundCall {
    /// Its name does.
    pub has_name: bool,
    /// One of the keys and values of its arguments does, or it has none.
    pub has_arguments: bool,
}

/// Does the turn write anything beside its content?
pub fn writes_beside_content(turn: &Turn) -> bool {
    turn.role == Role::Assistant && (turn.calls().next().is_some() || reasonings(turn).next().is_some())
}

/// Finds the turn's reasoning and calls in `text`, which may be cut off at its end. `taken` are the bytes that are something else: the pieces of its
/// content, of which no two overlap.
pub fn find_parts(text: &str, taken: &[Range<usize>], turn: &Turn) -> FoundParts {
    let taken = taken.iter().map(|range| (range.start, range.end)).collect();
    let mut search = Search { text, taken, stretches: Vec::new() };
    let mut from = 0;
    for reasoning in reasonings(turn) {
        if let Some(place) = search.place(&[reasoning.to_owned()], 0..text.len(), text.len()) {
            from = from.max(place.end);
            search.take(Part::Reasoning, place);
        }
    }
    // All names first: the arguments of a call stand beside its name, and not beside that of another one.
    let mut names = Vec::new();
    let mut cursor = from;
    for call in turn.calls() {
        let name = name_of(&call).and_then(|name| search.place(&[name.to_owned()], cursor..text.len(), text.len()));
        cursor = name.as_ref().map_or(cursor, |name| name.end);
        names.push(name);
    }
    names.iter().flatten().for_each(|name| search.take(Part::ToolCall, name.clone()));
    let (mut found, mut signs) = (Vec::new(), Vec::<Range<usize>>::new());
    for (idx, call) in turn.calls().enumerate() {
        let own = &names[idx];
        let leaves = leaves(&call.arguments);
        let next = names[idx + 1..].iter().flatten().next().map_or(text.len(), |next| next.start);
        let behind = search.in_order(&leaves, own.as_ref().map_or(from, |name| name.end)..next);
        // A template may print the arguments before the name.
        let before = own.as_ref().map(|name| search.in_order(&leaves, from..name.start));
        let (mut places, skipped) = match before {
            Some(before) if before.0.len() > behind.0.len() => before,
            _ => behind,
        };
        places.iter().for_each(|place| search.take(Part::ToolCall, place.clone()));
        // Those that stand in another order.
        for leaf in skipped {
            if let Some(place) = search.place(&leaf, from..next, next) {
                search.take(Part::ToolCall, place.clone());
                places.push(place);
            }
        }
        signs.extend(signs_around(text, &mut places));
        let has_name = own.is_some() || name_of(&call).is_none();
        found.push(FoundCall { has_name, has_arguments: !places.is_empty() || leaves.is_empty() });
        // Some templates print the id, before the name or behind the arguments.
        if let Some(place) = call.id.and_then(|id| search.place(&forms(id), from..next, next)) {
            search.take(Part::ToolCall, place.clone());
            places.push(place);
        }
        from = places.iter().chain(own).map(|place| place.end).max().unwrap_or(from);
    }
    search.stretches.sort_by_key(|stretch| stretch.range.start);
    signs.sort_by_key(|signs| signs.start);
    let mut end = 0;
    for own in &mut signs {
        own.start = own.start.max(end);
        end = end.max(own.end);
    }
    signs.retain(|own| !own.is_empty());
    FoundParts { stretches: search.stretches, signs, calls: found }
}

/// What an assistant may say before its answer: as a field of its own, as Command R's `tool_plan`, or within the content, from where a template may
/// take it out to write it its own way.
fn reasonings(turn: &Turn) -> impl Iterator<Item = &str> {
    let plan = turn.written.others.get("tool_plan").and_then(Value::as_str);
    let own = [turn.reasoning.as_deref(), plan, thought(&turn.content)];
    own.into_iter().flatten().map(str::trim).filter(|text| !text.is_empty())
}

fn name_of<'a>(call: &Call<'a>) -> Option<&'a str> {
    Some(call.name).filter(|name| !name.trim().is_empty())
}

/// The signs between neighbours of these places, and those that close the last one.
fn signs_around(text: &str, places: &mut [Range<usize>]) -> Vec<Range<usize>> {
    places.sort_by_key(|place| place.start);
    let mut signs: Vec<Range<usize>> = places.windows(2).map(|two| two[0].end..two[1].start).collect();
    signs.retain(|between| text.get(between.clone()).is_some_and(|text| text.chars().all(|c| is_sign(c) || c.is_whitespace())));
    if let Some(last) = places.last() {
        let behind = &text[last.end..];
        signs.push(last.end..last.end + behind.find(|c| !is_sign(c)).unwrap_or(behind.len()));
    }
    signs.retain(|between| !between.is_empty());
    signs
}

/// Does JSON, or Python, divide or enclose keys and values by this character?
fn is_sign(c: char) -> bool {
    "{}[]()\"'\\,:=".contains(c)
}

/// The forms of each key and value of a call's arguments, in their order.
fn leaves(arguments: &Value) -> Vec<Vec<String>> {
    fn add(value: &Value, leaves: &mut Vec<Vec<String>>) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    leaves.push(forms_of_text(key));
                    add(value, leaves);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| add(item, leaves)),
            leaf => leaves.push(forms(leaf)),
        }
    }
    let mut leaves = Vec::new();
    if !arguments.is_null() {
        add(arguments, &mut leaves);
    }
    leaves.retain(|forms| !forms.is_empty());
    leaves
}

/// The forms in which templates print a value: as JSON, as Python, and a text also as it is.
fn forms(leaf: &Value) -> Vec<String> {
    match leaf {
        Value::String(text) if verbatim(leaf).is_none() => forms_of_text(text),
        Value::Null => vec!["null".to_owned(), "None".to_owned()],
        Value::Bool(true) => vec!["true".to_owned(), "True".to_owned()],
        Value::Bool(false) => vec!["false".to_owned(), "False".to_owned()],
        number => vec![dumps(number)],
    }
}

/// A text as it is, with the escapes of JSON, with those of JSON within a string of JSON, and with letters beyond ASCII as escapes, too; the same
/// form once. None of a text of nothing but white space.
pub(super) fn forms_of_text(text: &str) -> Vec<String> {
    let escaped = |text: &str| {
        let quoted = serde_json::to_string(text).unwrap_or_default();
        quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default().to_owned()
    };
    let ascii = |text: &str| {
        let unit = |unit: u16| match char::from_u32(u32::from(unit)).filter(char::is_ascii) {
            Some(c) => c.to_string(),
            None => format!("\\u{unit:04x}"),
        };
        text.encode_utf16().map(unit).collect::<String>()
    };
    let once = escaped(text);
    let mut forms = vec![text.to_owned(), once.clone(), escaped(&once), ascii(&once)];
    forms.dedup();
    forms.retain(|form| !form.trim().is_empty());
    forms
}

/// So many bytes of the template may stand between two neighbouring names, keys or values of a call, its tags among them.
const REACH: usize = 100;

struct Search<'a> {
    text: &'a str,
    /// Bytes that are known to be something, from each key to its value. No two such ranges overlap.
    taken: BTreeMap<usize, usize>,
    stretches: Vec<Stretch>,
}

impl Search<'_> {
    fn take(&mut self, part: Part, range: Range<usize>) {
        self.taken.insert(range.start, range.end);
        self.stretches.push(Stretch { part, range });
    }

    /// The places of the leaves that follow one another within a region, and the leaves that do not.
    fn in_order(&self, leaves: &[Vec<String>], region: Range<usize>) -> (Vec<Range<usize>>, Vec<Vec<String>>) {
        let (mut places, mut skipped) = (Vec::new(), Vec::new());
        let (mut from, mut reach) = (region.start, REACH);
        for leaf in leaves {
            match self.place(leaf, from..region.end, from + reach) {
                Some(place) => {
                    (from, reach) = (place.end, REACH);
                    places.push(place);
                }
                // It may stand there in a form that is not known.
                None => {
                    reach += leaf.iter().map(String::len).max().unwrap_or(0);
                    skipped.push(leaf.clone());
                }
            }
        }
        (places, skipped)
    }

    /// The first place of one of these forms within a region that begins before `latest`; where none stands there whole, that of one with which the
    /// text ends before the form does.
    fn place(&self, forms: &[String], region: Range<usize>, latest: usize) -> Option<Range<usize>> {
        let text = self.text;
        let region = text.floor_char_boundary(region.start)..text.floor_char_boundary(region.end.max(region.start));
        let is_own = |place: &Range<usize>| {
            let is_free = self.taken.range(..place.end).next_back().is_none_or(|(_, end)| *end <= place.start);
            is_free && is_whole_word(text, place)
        };
        let whole = |form: &String| {
            // No place that ends behind this begins before `latest`.
            let end = text.ceil_char_boundary(latest.saturating_add(form.len())).clamp(region.start, region.end);
            let places = text[region.start..end].match_indices(form.as_str());
            let mut places = places.map(|(at, _)| region.start + at..region.start + at + form.len());
            places.find(|place| place.start < latest && is_own(place))
        };
        let begun = |form: &String| {
            let begins = region.start.max(text.len().saturating_sub(form.len()))..text.len().min(latest);
            let mut places = begins.filter(|at| text.is_char_boundary(*at)).map(|at| at..text.len());
            places.find(|place| form.starts_with(&text[place.clone()]) && is_own(place))
        };
        let is_cut = region.end == text.len();
        let first = forms.iter().filter_map(whole).min_by_key(|place| (place.start, std::cmp::Reverse(place.end)));
        first.or_else(|| forms.iter().filter(|_| is_cut).find_map(begun))
    }
}

/// Does no word of the text reach over the edges of this place?
fn is_whole_word(text: &str, place: &Range<usize>) -> bool {
    let is_inner = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    let joins = |at: usize| is_inner(text[..at].chars().next_back()) && is_inner(text[at..].chars().next());
    !joins(place.start) && !joins(place.end)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn calling(calls: Value) -> Turn {
        Turn { tool_calls: Some(calls), ..Turn::plain(Role::Assistant, "") }
    }

    fn call(name: &str, arguments: Value) -> Value {
        json!({ "id": "c9", "type": "function", "function": { "name": name, "arguments": arguments } })
    }

    /// What is found, in its order: reasoning in brackets.
    fn found(text: &str, turn: &Turn) -> Vec<String> {
        let FoundParts { stretches, .. } = find_parts(text, &[], turn);
        let shown = |stretch: &Stretch| match stretch.part {
            Part::Reasoning => format!("({})", &text[stretch.range.clone()]),
            _ => text[stretch.range.clone()].to_owned(),
        };
        stretches.iter().map(shown).collect()
    }

    #[test]
    fn a_call_is_found_in_every_form() {
        let turn = calling(json!([call("get_weather", json!({ "city": "New York", "days": 3, "name": true }))]));
        let own = ["get_weather", "city", "New York", "days", "3", "name"];
        for (text, last) in [
            (
                r#"<tool_call>{"name": "get_weather", "arguments": {"city": "New York", "days": 3, "name": true}}</tool_call>"#,
                "true",
            ),
            (
                r#"<tool_call>{"arguments": {"city": "New York", "days": 3, "name": true}, "name": "get_weather"}</tool_call>"#,
                "true",
            ),
            (r#"[{"name": "get_weather", "arguments": "{\"city\": \"New York\", \"days\": 3, \"name\": true}"}]"#, "true"),
            (
                "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>New York</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n<arg_key>name</arg_key>\n<arg_value>True</arg_value>",
                "True",
            ),
            (
                " to=functions.get_weather<|channel|>commentary json<|message|>{\"city\": \"New York\", \"days\": 3, \"name\": true}<|call|>",
                "true",
            ),
            ("get_weather(city='New York', days=3, name=True)", "True"),
        ] {
            let mut expected: Vec<&str> = own.into_iter().chain([last]).collect();
            if text.contains("}, \"name\": \"get_weather\"") {
                expected.rotate_left(1);
            }
            assert_eq!(found(text, &turn), expected, "{text}");
        }
        // The id, where the template prints it, and arguments that are text.
        let text = r#"[{"id": "c9", "name": "f", "arguments": {"x": "a"}}]"#;
        assert_eq!(found(text, &calling(json!([call("f", json!("{\"x\": \"a\"}"))]))), ["c9", "f", "x", "a"]);
    }

    /// A text without its brackets « and », and what they enclose.
    fn enclosed(text: &str) -> (String, Vec<Range<usize>>) {
        let (mut plain, mut ranges) = (String::new(), Vec::new());
        for (idx, piece) in text.split(['«', '»']).enumerate() {
            if idx % 2 == 1 {
                ranges.push(plain.len()..plain.len() + piece.len());
            }
            plain.push_str(piece);
        }
        (plain, ranges)
    }

    #[test]
    fn short_names_are_no_part_of_other_words() {
        // `n` and `a` begin `name` and `arguments`, `m` is within them, and 1 begins 12.
        let turn = calling(json!([call("n", json!({ "a": 12, "m": 1, "deep": { "list": ["x", null, { "y": "" }] } }))]));
        for text in [
            r#"{"name": "«n»", "arguments": {"«a»": «12», "«m»": «1», "«deep»": {"«list»": ["«x»", «null», {"«y»": ""}]}}}"#,
            "call_n_ame «n»(«a»=«12», «m»=«1», «deep»={'«list»': ['«x»', «None», {'«y»': ''}]})",
            "12 names: «n»\nmain «a» 112 «12» amm «m» 12 «1» «deep» «list» xx «x» «null» y_ «y»",
        ] {
            let (text, places) = enclosed(text);
            let found: Vec<Range<usize>> = find_parts(&text, &[], &turn).stretches.into_iter().map(|own| own.range).collect();
            assert_eq!(found, places, "{text}");
        }
    }

    #[test]
    fn the_signs_between_arguments_are_the_calls() {
        let turn =
            calling(json!([call("f", json!({ "a": "x", "b": [1, 2] })), call("f", json!({ "a": "y" })), call("g", json!({}))]));
        for text in [
            r#"{"name": "f", "arguments": {"a«": "»x«", "»b«": [»1«, »2«]}}» {"name": "f", "arguments": {"a«": "»y«"}},» {"name": "g", "arguments": {}}"#,
            r#"{"arguments": "{\"a«\": \"»x«\", \"»b«\": [»1«, »2«]}",» "name": "f"}"#,
            "f(a«='»x«', »b«=[»1«, »2«])»; f(a«='»y«')»; g()",
            "<function=f>\n<parameter=a>\nx\n</parameter>\n<parameter=b>\n[1«, »2«]»\n</parameter>\n</function>",
        ] {
            let (text, places) = enclosed(text);
            assert_eq!(find_parts(&text, &[], &turn).signs, places, "{text}");
        }
    }

    #[test]
    fn each_call_has_its_own_arguments() {
        let turn = calling(json!([call("add", json!({ "x": 1.50, "y": 2 })), call("add", json!({ "x": 2, "y": 1.5 }))]));
        // The first x is printed in a form that no rule knows: the 2 of the second call is not taken for the y of the first.
        let text = r#"{"name": "add", "arguments": {"x": 1.50, "y": 2}}{"name": "add", "arguments": {"x": 2, "y": 1.5}}"#;
        assert_eq!(found(text, &turn), ["add", "x", "y", "2", "add", "x", "2", "y", "1.5"]);
        let swapped = r#"{"arguments": {"x": 1.5, "y": 2}, "name": "add"}{"arguments": {"x": 2, "y": 1.5}, "name": "add"}"#;
        assert_eq!(found(swapped, &turn), ["x", "1.5", "y", "2", "add", "x", "2", "y", "1.5", "add"]);
        assert_eq!(find_parts(text, &[], &turn).calls, [FoundCall { has_name: true, has_arguments: true }; 2]);
    }

    #[test]
    fn texts_are_found_with_escapes_and_cut_off() {
        let turn = calling(json!([call("write", json!({ "text": "Grüße\nan \"alle\" 你" }))]));
        for text in [
            "write(text=\"Grüße\nan \"alle\" 你\")",
            r#"{"name": "write", "arguments": {"text": "Grüße\nan \"alle\" 你"}}"#,
            r#"{"name": "write", "arguments": {"text": "Gr\u00fc\u00dfe\nan \"alle\" \u4f60"}}"#,
            r#"{"name": "write", "arguments": "{\"text\": \"Grüße\\nan \\\"alle\\\" 你\"}"}"#,
        ] {
            let found = found(text, &turn);
            assert_eq!((found.len(), found[1].as_str()), (3, "text"), "{text}");
            assert!(found[2].starts_with("Gr") && !found[2].ends_with('"'), "{text}");
        }
        assert_eq!(found(r#"{"name": "write", "arguments": {"text": "Grü"#, &turn), ["write", "text", "Grü"]);
        assert_eq!(found(r#"{"name": "wri"#, &turn), ["wri"]);
    }

    #[test]
    fn reasoning_is_found_and_content_is_not_taken_for_it() {
        let turn = Turn { reasoning: Some("\nWe call f.\n".into()), ..calling(json!([call("f", json!({}))])) };
        let text = "f. <think>\nWe call f.\n</think>\n\nSo we call f. <tool_call>\n{\"name\": \"f\", \"arguments\": {}}";
        assert_eq!(found(text, &turn), ["(We call f.)", "f"]);
        let content = text.find("So we call f.").map(|at| at..at + 13).unwrap();
        let parts = find_parts(text, std::slice::from_ref(&content), &turn);
        assert_eq!(parts.stretches[1].range.start, text.rfind("f\"").unwrap());
        // The reasoning of a row that is cut off, and one that the template takes out of the content.
        assert_eq!(found("<think>\nWe ca", &turn), ["(We ca)"]);
        let within = Turn::plain(Role::Assistant, "<think>\n\nSo it is. </think> Yes.");
        assert_eq!(found("<think>\nSo it is.\n</think>\n\nYes.", &within), ["(So it is.)"]);
        let plan = Turn {
            written: crate::dataset::Written {
                others: serde_json::from_value(json!({"tool_plan": "I look."})).unwrap(),
                ..Default::default()
            },
            ..Turn::plain(Role::Assistant, "")
        };
        assert_eq!(found("<|START_THINKING|>I look.<|END_THINKING|>", &plan), ["(I look.)"]);
        assert!(writes_beside_content(&turn) && writes_beside_content(&within) && writes_beside_content(&plan));
        assert!(!writes_beside_content(&Turn::plain(Role::Assistant, "Yes.")) && !writes_beside_content(&calling(json!([]))));
        assert!(!writes_beside_content(&Turn { reasoning: Some(" \n".into()), ..Turn::plain(Role::Assistant, "Yes.") }));
    }

    /// The time grows with the length of the text, not with its square: half a minute for this call is that of the square.
    #[test]
    fn long_calls_are_found_in_time() {
        let n = 100_000;
        let numbers: serde_json::Map<String, Value> = (0..n).map(|i| (format!("k{i}"), json!(null))).collect();
        let turn = calling(json!([call("f", Value::Object(numbers))]));
        let text = format!("{{\"name\": \"f\", \"arguments\": {}}}", dumps(&turn.calls().next().unwrap().arguments));
        let began = std::time::Instant::now();
        let found = find_parts(&text, &[], &turn);
        assert_eq!((found.stretches.len(), found.signs.len()), (2 * n + 1, 2 * n));
        assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    }

    #[test]
    fn what_a_template_leaves_out_is_not_found() {
        let turn = calling(json!([call("search", json!({ "q": "towers" })), call("search", json!({}))]));
        let none = FoundCall { has_name: false, has_arguments: false };
        assert_eq!(find_parts("<|im_end|>\n", &[], &turn).calls, [none, FoundCall { has_arguments: true, ..none }]);
        let first = r#"{"name": "search", "arguments": {"q": "towers"}}<|im_end|>"#;
        let whole = FoundCall { has_name: true, has_arguments: true };
        assert_eq!(find_parts(first, &[], &turn).calls, [whole, FoundCall { has_arguments: true, ..none }]);
        let bare = calling(json!([call("search", json!({ "q": "towers" }))]));
        assert_eq!(find_parts("search()", &[], &bare).calls, [FoundCall { has_arguments: false, ..whole }]);
    }
}
