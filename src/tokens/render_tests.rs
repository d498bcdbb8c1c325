//! Tests every template style in the same way: which text is supervised, and which bytes of the contents the tokens cover.

use serde_json::json;

use super::*;
use crate::dataset::Rollout;
use crate::tokens::template::RENDERED;
use crate::tokens::test_models::*;
use crate::tokens::turns::lay_out_untagged;
use crate::tokens::{GgufVocabulary, fingerprint_of_prompt};

fn renderer(source: &str, options: RenderOptions) -> Renderer {
    let template = ChatTemplate::new(source, Some("<s>"), Some("</s>")).unwrap();
    Renderer::new(byte_tokenizer(), Some(template), options).unwrap()
}

fn options() -> RenderOptions {
    RenderOptions { max_len: 10_000, ..RenderOptions::default() }
}

/// Returns the runs of supervised tokens in a sequence, as text.
fn supervised(tokenizer: &Tokenizer, sequence: &Sequence) -> Vec<String> {
    assert_eq!(sequence.ids.len(), sequence.supervised.len());
    assert_eq!(sequence.ids.len(), sequence.spans.len());
    let mut runs: Vec<Vec<u8>> = Vec::new();
    let mut before = false;
    for (&id, &supervised) in sequence.ids.iter().zip(&sequence.supervised) {
        if supervised {
            if !before {
                runs.push(Vec::new());
            }
            runs.last_mut().unwrap().extend(tokenizer.bytes(id));
        }
        before = supervised;
    }
    runs.into_iter().map(|run| String::from_utf8(run).unwrap()).collect()
}

/// Returns the part of a turn's text that its spans cover, in order; panics if they overlap.
fn covered(sequence: &Sequence, turns: &[Turn], turn: usize) -> String {
    let mut cursor = 0;
    let mut bytes = Vec::new();
    for span in sequence.spans.iter().filter(|span| usize::from(span.turn) == turn && span.begin < span.end) {
        assert!(span.begin >= cursor, "spans overlap at {}", span.begin);
        bytes.extend(&turns[turn].content.as_bytes()[span.begin as usize..span.end as usize]);
        cursor = span.end;
    }
    String::from_utf8(bytes).unwrap()
}

/// Renders `turns` with `source` and compares the supervised text; the spans must cover every content.
fn check(source: &str, turns: Vec<Turn>, expected: &[&str]) -> Rendered {
    let renderer = renderer(source, options());
    let example = example(turns);
    let rendered = renderer.render(7, &example).unwrap();
    assert_eq!(supervised(renderer.tokenizer(), &rendered.sequence), expected);
    assert_eq!(rendered.sequence.row, 7);
    for (idx, turn) in example.turns.iter().enumerate() {
        if turn.reasoning.is_none() && !turn.content.contains("</think>") {
            assert_eq!(covered(&rendered.sequence, &example.turns, idx), turn.content, "turn {idx}");
        }
    }
    rendered
}

fn clean(rendered: &Rendered) {
    clean_audit(&rendered.audit);
}

fn clean_audit(audit: &RowAudit) {
    assert_eq!(*audit, RowAudit::default());
}

fn two_rounds() -> Vec<Turn> {
    vec![user("hello"), assistant("the 12 你好"), user("s"), assistant("user")]
}

#[test]
fn chatml_supervises_content_and_end_but_not_the_newline_after_it() {
    let rendered = check(CHATML, vec![user("hello"), assistant("the\n")], &["the\n<|im_end|>"]);
    clean(&rendered);
    clean(&check(CHATML, two_rounds(), &["the 12 你好<|im_end|>", "user<|im_end|>"]));
    let system = vec![turn(Role::System, "the"), user("hello"), assistant("hell")];
    clean(&check(CHATML, system, &["hell<|im_end|>"]));
}

#[test]
fn an_answer_that_starts_the_conversation_does_not_include_its_header() {
    check(CHATML, vec![assistant("the"), user("hello"), assistant("hell")], &["the<|im_end|>", "hell<|im_end|>"]);
}

#[test]
fn a_template_that_ignores_the_generation_prompt_hides_its_header() {
    clean(&check(UNPROMPTED, two_rounds(), &["the 12 你好<|im_end|>", "user<|im_end|>"]));
    check(UNPROMPTED, vec![assistant("assistant"), user("hello")], &["assistant<|im_end|>"]);
}

#[test]
fn llama3_trims_contents() {
    let rendered = check(LLAMA3, two_rounds(), &["the 12 你好<|eot_id|>", "user<|eot_id|>"]);
    clean(&rendered);
    let renderer = renderer(LLAMA3, options());
    let turns = vec![user(" hello "), assistant("\n the \n")];
    let rendered = renderer.render(0, &example(turns.clone())).unwrap();
    assert_eq!(supervised(renderer.tokenizer(), &rendered.sequence), ["the<|eot_id|>"]);
    assert_eq!(covered(&rendered.sequence, &turns, 1), "the");
    assert_eq!(rendered.sequence.spans.iter().filter(|span| span.turn == 1 && span.begin == 2).count(), 1);
}

#[test]
fn tool_calls_are_supervised_and_count_as_template() {
    let call = json!([{"type": "function", "function": {"name": "look", "arguments": {"at": "the é", "n": 1}}}]);
    let calling = Turn { tool_calls: Some(call), ..assistant("hello") };
    let silent = Turn { content: String::new(), ..calling.clone() };
    let tool = turn(Role::Tool, "12");
    let text = "\n<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"the é\", \"n\": 1}}\n</tool_call><|im_end|>";
    // Qwen2.5's own template makes the newline of the header part of the answer when it renders tool calls.
    let rendered =
        check(QWEN2, vec![user("s"), calling, tool.clone(), assistant("the")], &[&format!("hello{text}"), "the<|im_end|>"]);
    clean(&rendered);
    check(QWEN2, vec![user("s"), silent, tool, assistant("the")], &[&text[1..], "the<|im_end|>"]);

    let renderer = renderer(QWEN2, options());
    let tools = json!([{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]);
    let with_tools = Example { tools: Some(tools), ..example(vec![user("s"), assistant("the")]) };
    let rendered = renderer.render(0, &with_tools).unwrap();
    let bytes: Vec<u8> = rendered.sequence.ids.iter().flat_map(|&id| renderer.tokenizer().bytes(id)).copied().collect();
    let expected = "<|im_start|>system\nTools:\n{\"type\": \"function\", \"function\": {\"name\": \"look\", \"parameters\": {\"type\": \"object\"}}}<|im_end|>\n";
    assert!(String::from_utf8(bytes).unwrap().starts_with(expected));
}

#[test]
fn what_the_template_does_not_render_is_reported() {
    let dropped = RowAudit { dropped_fields: true, ..RowAudit::default() };
    let lost = RowAudit { lost_reasoning: true, ..RowAudit::default() };
    let thinking = Turn { reasoning: Some("hell".into()), ..assistant("the") };
    assert_eq!(check(CHATML, vec![user("s"), thinking.clone()], &["the<|im_end|>"]).audit, lost);
    clean(&check(QWEN3, vec![user("s"), thinking], &["<think>\nhell\n</think>\n\nthe<|im_end|>"]));
    let call = json!([{"type": "function", "function": {"name": "look", "arguments": {}}}]);
    let calling = Turn { tool_calls: Some(call), ..assistant("") };
    assert_eq!(check(CHATML, vec![user("s"), calling], &["<|im_end|>"]).audit, dropped);
}

/// What a template leaves out may stand in another turn, or elsewhere in its own.
#[test]
fn words_that_stand_elsewhere_hide_nothing_that_is_lost() {
    let audit = |source: &str, turns: Vec<Turn>| renderer(source, options()).render(0, &example(turns)).unwrap().audit;
    let system = |content: &str| vec![turn(Role::System, content), user("hello"), assistant("the"), user("s"), assistant("he")];
    for content in ["hello", "hell", "s"] {
        let lost = RowAudit { lost_system: true, unlike_prompt: true, ..RowAudit::default() };
        assert_eq!(audit(MISTRAL_SYSTEM, system(content)), lost, "{content}");
        clean_audit(&audit(CHATML, system(content)));
    }
    let thinking = |reasoning: &str, content: &str| Turn { reasoning: Some(reasoning.into()), ..assistant(content) };
    for reasoning in ["hello", "the", "he"] {
        let turns = vec![user("hello"), thinking(reasoning, "the")];
        assert_eq!(audit(CHATML, turns.clone()), RowAudit { lost_reasoning: true, ..RowAudit::default() }, "{reasoning}");
        clean_audit(&audit(QWEN3, turns));
    }
    // A content beside a call that names it.
    let call = json!([{"type": "function", "function": {"name": "look", "arguments": {"at": "sea"}}}]);
    let calling = vec![user("s"), Turn { tool_calls: Some(call), ..assistant("sea") }];
    let calls_alone = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.tool_calls | tojson if m.tool_calls else m.content }}<|im_end|>\n\
                       {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    assert_eq!(audit(calls_alone, calling.clone()), RowAudit { lost_content: true, ..RowAudit::default() });
    clean_audit(&audit(QWEN2, calling));
    // A text in the form of JSON or Python is printed, whatever its characters.
    for form in ["m.content | tojson", "m.content | tojson(ensure_ascii=true)", "[m.content]"] {
        let template = format!(
            "{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{{{{ m.content if m.role != 'system' else {form} }}}}<|im_end|>\n{{% endfor %}}\
             {{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
        );
        clean_audit(&audit(&template, vec![turn(Role::System, "你\n\"好\""), user("hello"), assistant("the")]));
    }
}

/// The name of a tool stands in prompts, questions, answers and results, too: only an answer tells of its calls, and only a rendering without them of the
/// tools.
#[test]
fn calls_and_tools_are_looked_for_where_they_belong() {
    use std::slice::from_ref;
    let call = |arguments: serde_json::Value| json!({"type": "function", "function": {"name": "look", "arguments": arguments}});
    let tools = json!([{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]);
    let named = |calls: &[serde_json::Value]| {
        let calling =
            Turn { tool_calls: Some(calls.into()), reasoning: Some("I look at the sea".into()), ..assistant("I look at it.") };
        let result = turn(Role::Tool, "look at sea \"{\\\"at\\\": \\\"sea\\\"}\"");
        vec![turn(Role::System, "You may look at the sea."), user("look"), calling, result, assistant("look")]
    };
    let audit = |source: &str, calls: &[serde_json::Value], tools: Option<&serde_json::Value>| {
        let example = Example { tools: tools.cloned(), ..example(named(calls)) };
        let audit = renderer(source, options()).render(0, &example).unwrap().audit;
        (audit.dropped_fields, audit.arguments_quoted)
    };
    let (object, text) = (call(json!({"at": "sea"})), call(json!("{\"at\": \"sea\"}")));
    // The reasoning and the content name the call; the one template prints them, the other the content alone.
    for source in [CHATML, QWEN3] {
        assert_eq!(audit(source, from_ref(&object), None), (true, false), "{source}");
        assert_eq!(audit(source, from_ref(&text), None), (true, false), "{source}");
    }
    assert_eq!(audit(QWEN2, &[object.clone(), object.clone()], Some(&tools)), (false, false));
    assert_eq!(audit(QWEN2, &[text], Some(&tools)), (false, true));
    let changed = |from: &str, to: &str| {
        assert!(QWEN2.contains(from));
        QWEN2.replace(from, to)
    };
    let tools_alone = changed("and message.tool_calls %}", "and message.nothing %}");
    assert_eq!(audit(&tools_alone, from_ref(&object), Some(&tools)), (true, false));
    let calls_alone = changed("{%- if tools %}", "{%- if nothing %}");
    assert_eq!(audit(&calls_alone, from_ref(&object), Some(&tools)), (true, false));
    assert_eq!(audit(&calls_alone, from_ref(&object), Some(&json!([]))), (false, false));
    let first_alone = changed("in message.tool_calls %}", "in message.tool_calls[:1] %}");
    assert_eq!(audit(&first_alone, &[object.clone(), object.clone()], Some(&tools)), (true, false));
    let names_alone = changed("{{- tool_call.arguments | tojson }}", "");
    assert_eq!(audit(&names_alone, &[object], Some(&tools)), (true, false));
}

#[test]
fn qwen3_strips_the_reasoning_of_earlier_turns() {
    let thinking = |reasoning: &str, content: &str| Turn { reasoning: Some(reasoning.into()), ..assistant(content) };
    let turns = vec![user("s"), thinking("hell", "the"), user("t"), thinking("hello", "he")];
    let dropped = RowAudit { earlier_reasoning: true, ..RowAudit::default() };
    let rendered = check(QWEN3, turns, &["the<|im_end|>", "<think>\nhello\n</think>\n\nhe<|im_end|>"]);
    assert_eq!(rendered.audit, dropped);
    // The same conversation, with the reasoning inside the content.
    let turns =
        vec![user("s"), assistant("<think>\nhell\n</think>\n\nthe"), user("t"), assistant("<think>\nhello\n</think>\n\nhe")];
    let rendered = check(QWEN3, turns.clone(), &["the<|im_end|>", "<think>\nhello\n</think>\n\nhe<|im_end|>"]);
    assert_eq!(rendered.audit, dropped);
    assert_eq!(covered(&rendered.sequence, &turns, 1), "the");
    assert_eq!(covered(&rendered.sequence, &turns, 3), turns[3].content);
    // Without any reasoning, the last answer gets an empty block, which is supervised and reported.
    let rendered = check(
        QWEN3,
        vec![user("s"), assistant("the"), user("t"), assistant("k")],
        &["the<|im_end|>", "<think>\n\n</think>\n\nk<|im_end|>"],
    );
    assert_eq!(rendered.audit, RowAudit { empty_think_supervised: true, ..RowAudit::default() });
}

#[test]
fn a_generation_prompt_that_no_answer_follows_is_reported() {
    let turns = vec![user("s"), assistant("<think>\nhell</think>the"), user("t"), assistant("hello")];
    let rendered = check(THINK_PROMPT, turns, &["the<|end|>", "hello<|end|>"]);
    assert_eq!(rendered.audit, RowAudit { unlike_prompt: true, earlier_reasoning: true, ..RowAudit::default() });
}

#[test]
fn equal_text_gives_equal_ids_however_it_came_about() {
    let renderer = renderer(MISTRAL_SYSTEM, options());
    let with_system = [vec![turn(Role::System, "Be brief.")], two_rounds()].concat();
    let (with, without) =
        (renderer.render(0, &example(with_system)).unwrap(), renderer.render(0, &example(two_rounds())).unwrap());
    assert_eq!((&with.sequence.ids, &with.sequence.supervised), (&without.sequence.ids, &without.sequence.supervised));
    assert_eq!(supervised(renderer.tokenizer(), &with.sequence), [" the 12 你好</s>", " user</s>"]);
    assert!(with.audit.lost_system && !without.audit.lost_system);
}

/// For all templates here, equal texts have equal ids and masks, whichever turns they came from.
#[test]
fn text_alone_decides_ids_and_mask() {
    let contents = ["the", "hello", " he ", "<think>\nhell\n</think>\n\nthe", "<think>\nhell\n</think>", "s\n"];
    let mut state = 3_u64;
    let mut draw = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for (_, source, _) in tagged_twins() {
        let renderer = renderer(&source, options());
        let mut seen = std::collections::HashMap::new();
        let mut n_rendered = 0;
        for _ in 0..400 {
            let mut turns = if draw(3) == 0 { vec![turn(Role::System, contents[draw(2)])] } else { Vec::new() };
            for _ in 0..=draw(3) {
                turns.extend([user(contents[draw(3)]), assistant(contents[draw(contents.len())])]);
            }
            let Ok(rendered) = renderer.render(0, &example(turns.clone())) else { continue };
            n_rendered += 1;
            let bytes: Vec<u8> = rendered.sequence.ids.iter().flat_map(|&id| renderer.tokenizer().bytes(id)).copied().collect();
            let found = (rendered.sequence.ids, rendered.sequence.supervised);
            let first = seen.entry(bytes).or_insert_with(|| (found.clone(), turns.clone()));
            assert_eq!(first.0, found, "{source}\n{:?}\n{turns:?}", first.1);
        }
        assert!(n_rendered > 100, "{source}: {n_rendered}");
    }
}

/// In a conversation of any length, with reasoning, calls and their results, exactly the answers are supervised, from begin to end. A twin of the
/// template, which marks its answers by tags, provides the expected result.
#[test]
fn each_answer_of_a_conversation_is_learnt_and_nothing_else() {
    let contents = ["the", "hello", " he ", "s\n", "12 你好", "user", "assistant", "x\n\ny", "<|user|> he", "a<|end|>b"];
    let mut state = 5_u64;
    let mut draw = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for (name, source, tagged) in tagged_twins() {
        let (renderer, twin) = (renderer(&source, options()), renderer(&tagged, options()));
        let (mut n_long, mut n_refused, mut n_clean_refused) = (0, 0, 0);
        for _ in 0..400 {
            let mut turns = Vec::new();
            if draw(4) == 0 {
                turns.push(turn(Role::System, contents[draw(2)]));
            }
            // The last two contents should not occur in real data.
            let n_contents = contents.len() - if draw(4) > 0 { 2 } else { 0 };
            let n_rounds = 1 + draw(4);
            for _ in 0..n_rounds {
                turns.push(user(contents[draw(n_contents)]));
                for _ in 0..[0, 0, 0, 1, 2][draw(5)] {
                    let call = json!([{"type": "function", "function": {"name": "look", "arguments": {"n": draw(3)}}}]);
                    let content = ["", "", "hello"][draw(3)];
                    let reasoning = (content.is_empty() && draw(2) == 0).then(|| "hell".to_owned());
                    turns.push(Turn { tool_calls: Some(call), reasoning, ..assistant(content) });
                    turns.push(turn(Role::Tool, contents[draw(n_contents)]));
                }
                let content = contents[draw(n_contents)];
                turns.push(match draw(4) {
                    0 => Turn { reasoning: Some("hell".into()), ..assistant(content) },
                    1 => assistant(&format!("<think>\nhell\n</think>\n\n{content}")),
                    _ => assistant(content),
                });
            }
            let is_clean = n_contents < contents.len();
            let example = example(turns);
            let Ok(expected) = twin.render(0, &example) else {
                assert!(renderer.render(0, &example).is_err(), "{name}: {:?}", example.turns);
                continue;
            };
            let rendered = match renderer.render(0, &example) {
                Err(error) => {
                    // Refusing is better than masking wrongly, but must be rare.
                    n_clean_refused += usize::from(is_clean);
                    assert!(n_clean_refused <= 20, "{name}: {error}\n{:?}", example.turns);
                    n_refused += 1;
                    continue;
                }
                Ok(rendered) => rendered,
            };
            assert_eq!(rendered.sequence.ids, expected.sequence.ids, "{name}");
            let learnt = |rendered: &Rendered| supervised(renderer.tokenizer(), &rendered.sequence);
            assert_eq!(learnt(&rendered), learnt(&expected), "{name}: {:?}", example.turns);
            assert_eq!(rendered.sequence.supervised, expected.sequence.supervised, "{name}: {:?}", example.turns);
            n_long += usize::from(n_rounds > 1);
        }
        let others = n_refused - n_clean_refused;
        assert!(n_long > 30 && others < 60, "{name}: {n_long} of several rounds, {n_refused} refused");
    }
}

/// For every template here, the answers of a long conversation that are located by seams are where rendering locates them. The tagged twin provides
/// the true positions.
#[test]
fn answers_of_long_conversations_are_where_each_is_found_alone() {
    let contents = ["the", "hello", " he ", "s\n", "12 你好", "user", "assistant", "x\n\ny", "<|user|> he", "a<|end|>b", ""];
    let mut state = 11_u64;
    let mut draw = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for (name, source, tagged) in tagged_twins().into_iter().filter(|(name, ..)| *name != "marked") {
        let (renderer, twin) = (renderer(&source, options()), renderer(&tagged, options()));
        let (mut n_same, mut n_found) = (0, 0);
        for nth in 0..60 {
            // Two in five are as most conversations are, the one plain, the other an agent's; the others contain everything that may occur in one.
            let (is_plain, is_agents) = (nth % 5 == 0, nth % 5 == 1);
            let n_contents = if is_plain || is_agents { 5 } else { contents.len() - [0, 3][draw(2)] };
            let thinks = draw(3);
            let mut call = |with_reasoning: bool, content: &str| {
                let arguments = match draw(4) {
                    0 => json!({}),
                    1 => json!({"n": draw(2)}),
                    2 => json!({"at": contents[draw(n_contents)], "n": draw(100), "all": [true, null, 0.5]}),
                    _ => json!({"to \"x\"": {"name": contents[draw(n_contents)]}}),
                };
                let id = format!("call{:05}", draw(99_999));
                let call = json!([{"id": id, "type": "function", "function": {"name": (["look", "hell", "user"][draw(3)]), "arguments": arguments}}]);
                let result = Turn { tool_call_id: Some(id), ..turn(Role::Tool, contents[draw(n_contents.min(10))]) };
                let reasoning = with_reasoning.then(|| format!("hell {}", draw(100)));
                [Turn { tool_calls: Some(call), reasoning, ..assistant(content) }, result]
            };
            let mut turns = if nth % 3 == 0 { vec![turn(Role::System, "the")] } else { Vec::new() };
            for round in 0..18 + nth % 30 {
                if !is_agents || round % 9 == 0 {
                    turns.push(user(contents[nth % n_contents.min(10)]));
                }
                if is_agents {
                    turns.extend(call(thinks == 0 || (thinks == 1 && round % 4 == 0), ""));
                    continue;
                }
                if !is_plain && round % 6 == nth % 6 {
                    turns.extend(call(false, ["", "hello"][round % 2]));
                }
                turns.push(assistant(""));
            }
            if is_agents {
                turns.push(assistant("the"));
            }
            for answer in turns.iter_mut().filter(|turn| turn.role == Role::Assistant && turn.tool_calls.is_none()) {
                let content = contents[draw(n_contents)];
                *answer = match draw(if is_plain || is_agents { 1 } else { 8 }) {
                    6 => Turn { reasoning: Some("hell".into()), ..assistant(content) },
                    7 => assistant(&format!("<think>\nhell\n</think>\n\n{content}")),
                    _ => assistant(content),
                };
            }
            let example = example(turns);
            let template = renderer.template_of(&example).unwrap();
            let found = renderer.attempts(template, &example, lay_out);
            n_found += usize::from(found.is_ok());
            let by_prefixes = renderer.attempts(template, &example, |template, habits, conversation| {
                lay_out_untagged(template, habits, conversation, false)
            });
            match (by_prefixes, &found) {
                (Ok(expected), Ok(found)) => {
                    assert_eq!(found.text, expected.text, "{name}");
                    assert_eq!(found.answers, expected.answers, "{name}: {:?}", example.turns);
                    assert_eq!(found.contents, expected.contents, "{name}: {:?}", example.turns);
                    assert_eq!(found.unlike_prompt, expected.unlike_prompt, "{name}: {:?}", example.turns);
                    n_same += 1;
                }
                (Ok(_), Err(error)) => panic!("{name}: {error}\n{:?}", example.turns),
                // Seams may find an answer that rendering refuses; it is compared with the twin below.
                (Err(_), _) => {}
            }
            if let (Ok(found), Ok(expected)) = (renderer.render(0, &example), twin.render(0, &example)) {
                assert_eq!(found.sequence.supervised, expected.sequence.supervised, "{name}: {:?}", example.turns);
            }
        }
        assert!(n_found >= 8 && n_same >= 8, "{name}: {n_found} of 60 found, {n_same} as each alone");
    }
}

/// A conversation of ten times the length is rendered hardly more often, be it plain, with reasoning, or an agent's.
#[test]
fn long_conversations_are_rendered_a_few_times() {
    let plain = |n: usize| (0..n).flat_map(|i| [user(&format!("the {i}")), assistant("hello")]).collect::<Vec<_>>();
    let inline = |n: usize| {
        let answer = |i: usize| assistant(&format!("<think>\nhell {i}\n</think>\n\nthe"));
        (0..n).flat_map(|i| [user(&format!("the {i}")), answer(i)]).collect::<Vec<_>>()
    };
    let agents = |n: usize, thinks: bool| {
        let step = |i: usize| {
            let call = json!([{"type": "function", "function": {"name": (["look", "go"][i % 2]), "arguments": {"at": format!("the {i}"), "n": i}}}]);
            let reasoning = thinks.then(|| format!("hell {i}"));
            [Turn { tool_calls: Some(call), reasoning, ..assistant("") }, turn(Role::Tool, &format!("12 {i}"))]
        };
        [user("the")].into_iter().chain((0..n).flat_map(step)).chain([assistant("hello")]).collect::<Vec<_>>()
    };
    type OfLength<'a> = &'a dyn Fn(usize) -> Vec<Turn>;
    let conversations: [(&str, OfLength, &[&str]); 4] = [
        ("plain", &plain, &[CHATML, LLAMA3, QWEN2, QWEN3, GEMMA, MISTRAL, THINK_PROMPT]),
        ("inline", &inline, &[CHATML, QWEN3, THINK_PROMPT]),
        ("agent's", &|n| agents(n, false), &[QWEN2]),
        ("thinking agent's", &|n| agents(n, true), &[QWEN2]),
    ];
    for (name, conversation, sources) in conversations {
        for source in sources {
            let renderer = renderer(source, options());
            let rendered = |n: usize| {
                let before = RENDERED.get();
                renderer.lay_out(&example(conversation(n))).unwrap();
                RENDERED.get() - before
            };
            let (hundred, thousand) = (rendered(50), rendered(500));
            assert!(thousand < 15 * hundred && thousand < 50 * 1000, "{name}, {source}: {hundred} and {thousand} messages");
        }
    }
}

/// Qwen 3.5 and gpt-oss render an answer differently if other turns follow.
#[test]
fn earlier_answers_have_headers_and_ends_of_their_own() {
    let thinking = |reasoning: &str, content: &str| Turn { reasoning: Some(reasoning.into()), ..assistant(content) };
    let turns = || vec![user("s"), thinking("kk", "the"), user("t"), thinking("hello", "he")];
    let rendered = check(&untagged(QWEN35), turns(), &["the<|im_end|>", "hello\n</think>\n\nhe<|im_end|>"]);
    // The first answer loses its reasoning, including the beginning that the generation prompt gives the model.
    assert_eq!(rendered.audit, RowAudit { earlier_reasoning: true, unlike_prompt: true, ..RowAudit::default() });
    // The prompt opens a block that such an answer closes at once.
    let rendered = check(&untagged(QWEN35), vec![user("s"), assistant("the")], &["\n</think>\n\nthe<|im_end|>"]);
    assert_eq!(rendered.audit, RowAudit { empty_think_supervised: true, ..RowAudit::default() });
    let header = " says<|end_header_id|>";
    let last = format!(" thinks<|end_header_id|>hello<|end|><|start_header_id|>assistant{header}he</s>");
    let rendered = check(&untagged(GPT_OSS), turns(), &[&format!("{header}the<|end|>"), &last]);
    assert_eq!(rendered.audit, RowAudit { earlier_reasoning: true, ..RowAudit::default() });
    let rendered = check(&untagged(GLM45), turns(), &["\n<think></think>\nthe", "\n<think>hello</think>\nhe"]);
    assert_eq!(
        rendered.audit,
        RowAudit { earlier_reasoning: true, missing_end_of_turn: true, empty_think_supervised: true, ..RowAudit::default() }
    );
}

#[test]
fn a_turn_whose_content_the_template_empties_is_its_end() {
    let turns = vec![user("s"), assistant("<think>\nhell\n</think>"), user("t"), assistant("<think>\nhe\n</think>\n\nthe")];
    let renderer = renderer(QWEN3, options());
    let rendered = renderer.render(0, &example(turns)).unwrap();
    assert_eq!(supervised(renderer.tokenizer(), &rendered.sequence), ["<|im_end|>", "<think>\nhe\n</think>\n\nthe<|im_end|>"]);
    assert_eq!(rendered.audit, RowAudit { earlier_reasoning: true, ..rendered.audit.clone() });
}

#[test]
fn parts_of_a_turn_can_be_left_out() {
    let mut turns = vec![user("s"), assistant("hello the")];
    turns[1].parts.push(crate::dataset::WeightedPart { begin: 0, end: 6, weight: 0.0 });
    let renderer = renderer(CHATML, options());
    let rendered = renderer.render(0, &example(turns)).unwrap();
    let text = supervised(renderer.tokenizer(), &rendered.sequence).concat();
    assert_eq!(text.trim_start(), "the<|im_end|>");
}

#[test]
fn named_templates_and_switches_are_heard() {
    let source = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let compile = |source: &str| ChatTemplate::new(source, None, None).unwrap();
    let template = compile(&format!("{{{{ '/no' if think is defined and not think else '/yes' }}}}{source}"))
        .with_tool_use(compile(&format!("{{{{ tools | tojson }}}}{source}")));
    let renderer = Renderer::new(byte_tokenizer(), Some(template), options()).unwrap();
    let text = |example: &Example| {
        let rendered = renderer.render(0, example).unwrap();
        let bytes: Vec<u8> = rendered.sequence.ids.iter().flat_map(|&id| renderer.tokenizer().bytes(id)).copied().collect();
        String::from_utf8(bytes).unwrap()
    };
    let plain = example(vec![user("s"), assistant("t")]);
    assert!(text(&plain).starts_with("/yes<|im_start|>user"));
    assert!(text(&Example { template_switches: Some(json!({"think": false})), ..plain.clone() }).starts_with("/no<"));
    assert!(text(&Example { tools: Some(json!([{"name": "f"}])), ..plain.clone() }).starts_with("[{\"name\": \"f\"}]<"));
    let taken = Example { template_switches: Some(json!({"messages": []})), ..plain };
    assert!(renderer.render(0, &taken).unwrap_err().to_string().contains("`messages` is set"));
}

#[test]
fn arguments_keep_their_spelling() {
    let source = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    for (arguments, expected) in [
        (json!("{\"a\":1}"), "{\"a\":1}<|im_end|>"),
        (json!("no JSON"), "no JSON<|im_end|>"),
        (json!({"a": 1}), "{\"a\": 1}<|im_end|>"),
    ] {
        let calls = json!([{"type": "function", "function": {"name": "f", "arguments": arguments}}]);
        let turns = vec![user("s"), Turn { tool_calls: Some(calls), ..assistant("") }];
        let rendered = renderer(source, options()).render(0, &example(turns)).unwrap();
        assert_eq!(supervised(&byte_tokenizer(), &rendered.sequence), [expected]);
    }
    // A template that iterates over the arguments gets the object that a text holds.
    let walking = source.replace(
        "c.function.arguments if c.function.arguments is string else c.function.arguments | tojson",
        "c.function.arguments.items() | list | tojson",
    );
    let calls = json!([{"type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}]);
    let turns = vec![user("s"), Turn { tool_calls: Some(calls), ..assistant("") }];
    let rendered = renderer(&walking, options()).render(0, &example(turns)).unwrap();
    assert_eq!(supervised(&byte_tokenizer(), &rendered.sequence), ["[[\"a\", 1]]<|im_end|>"]);
}

/// Templates for other programs read arguments that are text with a filter that Transformers lacks; as an object they need none.
#[test]
fn a_template_that_parses_arguments_gets_them_parsed() {
    let source = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% for c in m.tool_calls or [] %}\
        {% set given = c.function.arguments %}{% if given is string %}{% set given = given | from_json %}{% endif %}\
        {% for key, value in given | items %}{{ ' ' + key + '=' + value }}{% endfor %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let calling = |arguments: serde_json::Value| {
        let call = json!([{"type": "function", "function": {"name": "look", "arguments": arguments}}]);
        vec![user("s"), Turn { tool_calls: Some(call), ..assistant("hello") }]
    };
    let renderer = renderer(source, options());
    for arguments in [json!({"at": "the"}), json!("{\"at\": \"the\"}")] {
        let rendered = renderer.render(0, &example(calling(arguments))).unwrap();
        assert_eq!(supervised(renderer.tokenizer(), &rendered.sequence), ["hello at=the<|im_end|>"]);
    }
    let error = renderer.render(0, &example(calling(json!("at the")))).unwrap_err().to_string();
    assert!(error.contains("from_json"), "{error}");
}

#[test]
fn mistral_gives_the_answer_its_space_and_needs_alternation() {
    clean(&check(MISTRAL, two_rounds(), &[" the 12 你好</s>", " user</s>"]));
    let error = renderer(MISTRAL, options()).render(0, &example(vec![user("s"), user("t"), assistant("he")])).unwrap_err();
    assert!(error.to_string().contains("roles must alternate"), "{error}");
}

#[test]
fn gemma_calls_the_assistant_model_and_refuses_a_system_turn() {
    clean(&check(GEMMA, two_rounds(), &["the 12 你好<end_of_turn>", "user<end_of_turn>"]));
    let options = RenderOptions { system: Some("the".into()), ..options() };
    let error = renderer(GEMMA, options).render(0, &example(two_rounds())).unwrap_err();
    assert!(error.to_string().contains("System role not supported"), "{error}");
}

#[test]
fn generation_tags_decide_alone() {
    clean(&check(GENERATION, two_rounds(), &["the 12 你好<|end|>", "user<|end|>"]));
    let open = GENERATION.replace(
        "{{ message.content + '<|end|>' }}{% endgeneration %}",
        "{{ message.content }}{% endgeneration %}{{ '<|end|>' }}",
    );
    let rendered = check(&open, two_rounds(), &["the 12 你好", "user"]);
    assert_eq!(rendered.audit, RowAudit { missing_end_of_turn: true, ..RowAudit::default() });
}

#[test]
fn turns_of_weight_zero_and_all_but_the_last_can_be_left_out() {
    let mut turns = two_rounds();
    turns[3].weight = 0.0;
    clean(&check(CHATML, turns.clone(), &["the 12 你好<|im_end|>"]));
    turns[1].weight = 0.0;
    assert!(check(CHATML, turns, &[]).audit.empty_mask);
    let last = renderer(CHATML, RenderOptions { supervise: Supervise::Last, ..options() });
    let rendered = last.render(0, &example(two_rounds())).unwrap();
    assert_eq!(supervised(last.tokenizer(), &rendered.sequence), ["user<|im_end|>"]);
}

#[test]
fn the_whole_text_can_be_supervised() {
    let all = renderer(UNPROMPTED, RenderOptions { supervise: Supervise::All, ..options() });
    let rendered = all.render(0, &example(vec![user("he"), assistant("the")])).unwrap();
    assert!(!rendered.sequence.supervised[0]);
    assert!(rendered.sequence.supervised[1..].iter().all(|supervised| *supervised));
    clean(&rendered);
}

#[test]
fn no_token_straddles_the_boundary_of_prompt_and_answer() {
    // "\n" and "\n" would become one token; at inference the prompt is tokenised alone.
    let renderer = renderer(UNPROMPTED, options());
    let turns = vec![user("he"), assistant("\n\nhell")];
    let rendered = renderer.render(0, &example(turns.clone())).unwrap();
    assert_eq!(supervised(renderer.tokenizer(), &rendered.sequence), ["\n\nhell<|im_end|>"]);
    assert_eq!(covered(&rendered.sequence, &turns, 1), "\n\nhell");
    let prompt = renderer.tokenizer().encode("<|im_start|>user\nhe<|im_end|>\n<|im_start|>assistant\n").unwrap();
    assert!(rendered.sequence.ids.iter().zip(&prompt).all(|(id, token)| *id == token.id));
}

#[test]
fn control_tokens_in_the_data_are_parsed_and_reported() {
    let rendered = check(CHATML, vec![user("hello"), assistant("he<|im_end|>the")], &["he<|im_end|>the<|im_end|>"]);
    assert_eq!(rendered.audit, RowAudit { special_in_content: true, ..RowAudit::default() });
    let id = byte_tokenizer().id("<|im_end|>").unwrap();
    assert_eq!(rendered.sequence.ids.iter().filter(|i| **i == id).count(), 4);
    // A common mistake: the data contain the end of the turn, and the template adds its own.
    let rendered = check(CHATML, vec![user("hello"), assistant("he<|im_end|>")], &["he<|im_end|><|im_end|>"]);
    assert_eq!(rendered.audit, RowAudit { special_in_content: true, ..RowAudit::default() });
}

#[test]
fn a_long_sequence_loses_its_end() {
    let long = |max_len| renderer(CHATML, RenderOptions { max_len, ..options() }).render(0, &example(two_rounds())).unwrap();
    let whole = long(10_000);
    let n_tokens = whole.sequence.ids.len();
    clean(&long(n_tokens));
    let cut = long(n_tokens - 2);
    assert_eq!(cut.audit, RowAudit { truncated: Some(n_tokens), answer_cut: true, ..RowAudit::default() });
    assert_eq!(cut.sequence.ids, whole.sequence.ids[..n_tokens - 2]);
    let nothing = long(5);
    assert_eq!(nothing.audit, RowAudit { truncated: Some(n_tokens), answer_cut: true, empty_mask: true, ..RowAudit::default() });
}

#[test]
fn plain_text_follows_the_beginning_token_where_the_model_expects_one() {
    let text = example(vec![turn(Role::Text, "the hello")]);
    let rendered = renderer(CHATML, options()).render(0, &text).unwrap();
    assert_eq!(supervised(&byte_tokenizer(), &rendered.sequence), ["he hello"]);
    assert_eq!(rendered.audit, RowAudit { missing_end_of_text: true, ..RowAudit::default() });
    let ended = renderer(CHATML, RenderOptions { append_eos: true, ..options() }).render(0, &text).unwrap();
    let end = byte_tokenizer().text(byte_tokenizer().eos().unwrap());
    assert_eq!(supervised(&byte_tokenizer(), &ended.sequence), [format!("he hello{end}")]);
    clean(&ended);

    let vocabulary = GgufVocabulary { add_bos: Some(true), ..byte_vocabulary() };
    let tokenizer = Arc::new(Tokenizer::from_gguf(vocabulary).unwrap());
    let with_bos = Renderer::new(tokenizer, None, options()).unwrap();
    let rendered = with_bos.render(0, &text).unwrap();
    assert_eq!(rendered.sequence.ids[0], 2);
    assert_eq!(supervised(with_bos.tokenizer(), &rendered.sequence), ["the hello"]);
    assert_eq!(rendered.sequence.spans[1], Span { turn: 0, begin: 0, end: 1 });

    let rendered = with_bos.render(0, &example(vec![user("he "), assistant("the")])).unwrap();
    assert_eq!(supervised(with_bos.tokenizer(), &rendered.sequence), ["the</s>"]);
    assert_eq!(rendered.audit, RowAudit { without_template: true, ..RowAudit::default() });
    // Only a template can write who speaks.
    for turns in [two_rounds(), vec![turn(Role::System, "the"), user("he "), assistant("the")]] {
        let error = with_bos.render(0, &example(turns)).unwrap_err().to_string();
        assert!(
            error.contains("but the model has no chat template to render it") && error.contains("--chat-template"),
            "{error}"
        );
    }
}

#[test]
fn a_prefix_space_is_not_put_into_the_middle() {
    let tokenizer = Arc::new(Tokenizer::from_gguf(sentence_vocabulary()).unwrap());
    let source = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}\
                  {% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}";
    let template = ChatTemplate::new(source, Some("<s>"), Some("</s>")).unwrap();
    let renderer = Renderer::new(tokenizer.clone(), Some(template), options()).unwrap();
    let turns = vec![user("hello"), assistant("hello"), user("the"), assistant(" the")];
    let rendered = renderer.render(0, &example(turns)).unwrap();
    let texts: Vec<String> = rendered.sequence.ids.iter().map(|&id| tokenizer.text(id)).collect();
    let expected: [&[&str]; 2] = [
        &["<s>", " [INST", "]", " hello", " ", "[", "/", "INST", "]", "hello", "</s>"],
        &[" [INST", "]", " the", " ", "[", "/", "INST", "]", " the", "</s>"],
    ];
    assert_eq!(texts, expected.concat());
    assert_eq!(supervised(&tokenizer, &rendered.sequence), ["hello</s>", " the</s>"]);

    // The prompt ends in " t": "he" must not become " the", and the text after "</s>" still gets its space.
    let template = ChatTemplate::new(&source.replace("[/INST]", "t"), Some("<s>"), Some("</s>")).unwrap();
    let renderer = Renderer::new(tokenizer.clone(), Some(template), options()).unwrap();
    let rendered = renderer.render(0, &example(vec![user("hello"), assistant("he"), user("hello"), assistant("he")])).unwrap();
    let texts: Vec<String> = rendered.sequence.ids.iter().map(|&id| tokenizer.text(id)).collect();
    let expected: [&[&str]; 2] =
        [&["<s>", " [INST", "]", " hello", " t", "he", "</s>"], &[" [INST", "]", " hello", " t", "he", "</s>"]];
    assert_eq!(texts, expected.concat());
}

#[test]
fn threads_share_a_renderer() {
    fn shared<T: Send + Sync>() {}
    shared::<Renderer>();
}

#[test]
fn rows_that_cannot_be_rendered_are_refused_with_a_reason() {
    let refused =
        |source: &str, turns: Vec<Turn>| renderer(source, options()).render(0, &example(turns)).unwrap_err().to_string();
    assert!(refused(CHATML, vec![user("\u{FDD0}"), assistant("he")]).contains("noncharacter"));
    assert!(refused(CHATML, vec![turn(Role::Text, "he"), assistant("he")]).contains("one turn of plain text"));
    // The template rewrites its contents, so the answer cannot be located.
    let upper = "{% for m in messages %}{{ loop.length ~ m.role ~ '<|user|>' ~ m.content.upper() }}{% endfor %}";
    assert!(refused(upper, vec![user("s"), assistant("he"), user("t")]).contains("rewrites it"));
    // The third answer has a unique header, so an earlier one would be mistaken for it.
    let numbered = "{% for m in messages %}{{ '<|im_start|>' + m.role + (loop.index if loop.index0 == 5 else '') | string + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let rounds = |n: usize| (0..n).flat_map(|_| [user("s"), assistant("he")]).collect::<Vec<_>>();
    assert!(renderer(numbered, options()).render(0, &example(rounds(2))).is_ok());
    assert!(refused(numbered, rounds(3)).contains("rewrites it"));
    let template = ChatTemplate::new("{{ messages[0].content }}", None, None).unwrap();
    assert!(Renderer::new(byte_tokenizer(), Some(template), options()).is_err());
    assert!(Renderer::new(byte_tokenizer(), None, RenderOptions { max_len: 0, ..options() }).is_err());
    let no_template = Renderer::new(byte_tokenizer(), None, options()).unwrap();
    let thinking = Turn { reasoning: Some("he".into()), ..assistant("he") };
    assert!(no_template.render(0, &example(vec![thinking])).is_err());
}

#[test]
fn a_row_is_given_to_the_template_as_transformers_gives_it() {
    let text = |template: &str, turns: Vec<Turn>| {
        let renderer = Renderer::new(
            byte_tokenizer(),
            Some(ChatTemplate::new(template, Some("<s>"), None).unwrap()),
            RenderOptions::default(),
        )
        .unwrap();
        let rendered = renderer.render(0, &example(turns)).unwrap();
        let bytes: Vec<u8> = rendered.sequence.ids.iter().flat_map(|&id| renderer.tokenizer().bytes(id).to_vec()).collect();
        (String::from_utf8(bytes).unwrap(), rendered.audit)
    };
    let called = |role: &str, content: &str| {
        let mut turn = turn(Role::System, content);
        turn.written.role = Some(role.to_owned());
        turn
    };
    // A role that the template knows is kept; another one is reported as renamed.
    let knows = "{% for m in messages %}{{ '<|user|>' + m.role + ':' + m.content + '<|end|>' }}\
                 {% if m.role == 'developer' %}!{% endif %}{% endfor %}{% if add_generation_prompt %}<|user|>assistant:{% endif %}";
    let (known, audit) = text(knows, vec![called("developer", "b"), user("q"), assistant("a")]);
    assert_eq!(known, "<|user|>developer:b<|end|>!<|user|>user:q<|end|><|user|>assistant:a<|end|>");
    assert_eq!(audit.renamed_roles, [""; 0]);
    let (unknown, audit) = text(CHATML, vec![called("developer", "b"), user("q"), assistant("a")]);
    assert!(unknown.starts_with("<|im_start|>system\nb<|im_end|>"), "{unknown}");
    assert_eq!(audit.renamed_roles, ["developer"]);
    // The name in quotes of something else is no role: this one would be left out, written as it is, or refused.
    for other in
        ["", "{% else %}{{ '<|user|>' + m.role + ':' + m.content + '<|end|>' }}", "{% else %}{{ raise_exception('no') }}"]
    {
        let calls = format!(
            "{{% for m in messages %}}{{% if m.tool_calls and m.tool_calls[0].type == 'function' %}}called{{% elif m.role in ['user', 'assistant', 'tool'] %}}\
             {{{{ '<|user|>' + m.role + ':' + m.content + '<|end|>' }}}}{other}{{% endif %}}{{% endfor %}}\
             {{% if add_generation_prompt %}}<|user|>assistant:{{% endif %}}"
        );
        let result = |role: &str| Turn { role: Role::Tool, ..called(role, "r") };
        let (renamed, audit) = text(&calls, vec![user("q"), result("function"), assistant("a")]);
        assert!(renamed.contains("<|user|>tool:r<|end|>"), "{other}: {renamed}");
        assert_eq!(audit.renamed_roles, ["function"]);
        // Where any name is written, one that is listed is told by nothing.
        let knows = calls.replace("'tool']", "'tool', 'function']");
        let name = if other.contains("m.role") { "tool" } else { "function" };
        let (kept, _) = text(&knows, vec![user("q"), result("function"), assistant("a")]);
        assert!(kept.contains(&format!("<|user|>{name}:r<|end|>")), "{other}: {kept}");
    }

    // A template of multimodal models, which supports only lists of parts, and one that supports both forms.
    let parts = "{% for m in messages %}<|user|>{{ m.role }}:{% for part in m.content %}{{ part.text }}{% endfor %}<|end|>{% endfor %}\
                 {% if add_generation_prompt %}<|user|>assistant:{% endif %}";
    let (listed, _) = text(parts, vec![user("q"), assistant("hello")]);
    assert_eq!(listed, "<|user|>user:q<|end|><|user|>assistant:hello<|end|>");
    let both = "{% for m in messages %}<|user|>{{ m.role }}:{% if m.content is string %}{{ m.content }}{% else %}\
                {% for part in m.content %}[{{ part.text }}]{% endfor %}{% endif %}<|end|>{% endfor %}\
                {% if add_generation_prompt %}<|user|>assistant:{% endif %}";
    let mut asked = user("ab");
    asked.written.parts =
        vec![serde_json::json!({"type": "text", "text": "a"}), serde_json::json!({"type": "text", "text": "b"})];
    let (listed, audit) = text(both, vec![asked.clone(), assistant("hello")]);
    assert_eq!(listed, "<|user|>user:[a][b]<|end|><|user|>assistant:hello<|end|>");
    assert!(!audit.joined_parts);
    // Questions and answers are rendered only as parts, whatever the form of the other.
    let picky = "{% for m in messages %}{% if m.role == 'user' %}<|user|>user:{{ m.content | map(attribute='text') | join }}<|end|>\
                 {% else %}<|user|>assistant:{{ m.content[0]['text'] + '<|end|>' }}{% endif %}{% endfor %}\
                 {% if add_generation_prompt %}<|user|>assistant:{% endif %}";
    for turns in [vec![asked.clone(), assistant("hello")], vec![user("ab"), assistant("hello")]] {
        let (listed, audit) = text(picky, turns);
        assert_eq!(listed, "<|user|>user:ab<|end|><|user|>assistant:hello<|end|>");
        assert!(!audit.joined_parts && !audit.lost_content);
    }
    // A template that prints the list as Python or as JSON does not support it: the texts are joined, and this is reported.
    let prints = "{% for m in messages %}<|user|>{{ m.role }}:{{ m.content if m.content is string else m.content | tojson }}<|end|>{% endfor %}\
                  {% if add_generation_prompt %}<|user|>assistant:{% endif %}";
    for template in [prints, &prints.replace(" if m.content is string else m.content | tojson", "")] {
        let (joined, audit) = text(template, vec![asked.clone(), assistant("hello")]);
        assert_eq!((joined.as_str(), audit.joined_parts), ("<|user|>user:ab<|end|><|user|>assistant:hello<|end|>", true));
    }

    // A tool's result is passed unchanged, and as its JSON to a template that expects text.
    let mut result = turn(Role::Tool, r#"{"t": 21.5}"#);
    result.written.value = Some(serde_json::json!({"t": 21.5}));
    let adds = prints.replace("m.content if m.content is string else m.content | tojson", "'' + m.content");
    for (template, expected) in [
        (prints, r#"{"t": 21.5}"#),
        (&prints.replace(" if m.content is string else m.content | tojson", ""), "{'t': 21.5}"),
        (&adds, r#"{"t": 21.5}"#),
    ] {
        let (shown, audit) = text(template, vec![user("q"), assistant("a"), result.clone(), assistant("b")]);
        assert!(shown.contains(&format!("tool:{expected}<|end|>")) && !audit.lost_content, "{shown}");
    }

    // A null content is omitted if the template allows it, and otherwise empty; other keys of the message are kept.
    let mut silent = assistant("");
    silent.written.without_content = true;
    silent.written.others = [("plan".to_owned(), serde_json::json!("p"))].into_iter().collect();
    let asks = "{% for m in messages %}<|user|>{{ m.role }}:{% if m.content is defined %}{{ m.content }}{% else %}none{{ m.plan }}{% endif %}\
                <|end|>{% endfor %}{% if add_generation_prompt %}<|user|>assistant:{% endif %}";
    assert_eq!(text(asks, vec![user("q"), silent.clone()]).0, "<|user|>user:q<|end|><|user|>assistant:nonep<|end|>");
    let (empty, audit) = text(CHATML, vec![user("q"), silent]);
    assert!(empty.ends_with("assistant\n<|im_end|>\n") && audit.empty_answer, "{empty}");
}

#[test]
fn a_variable_that_the_template_does_not_read_is_named() {
    let unused = |template: &str, of_row: serde_json::Value, of_options: serde_json::Value| {
        let template = ChatTemplate::new(template, None, None).unwrap();
        let options = RenderOptions { template_switches: Some(of_options), ..RenderOptions::default() };
        let renderer = Renderer::new(byte_tokenizer(), Some(template), options).unwrap();
        let example = Example { template_switches: Some(of_row), ..example(vec![user("q"), assistant("a")]) };
        renderer.render(0, &example).unwrap().audit.unused_switches
    };
    // A part of a word of the template is no variable, nor is a name that the template assigns before it reads it.
    let found =
        unused(CHATML, serde_json::json!({"enable_thinking": false, "message": 1, "mess": 1}), serde_json::json!({"role": 1}));
    let of_row = ["enable_thinking", "message", "mess"].map(|name| format!("chat_template_kwargs.{name}"));
    assert_eq!(found, [&of_row[..], &["--chat-template-kwargs.role".to_owned()]].concat());
    let reads = "{% macro m() %}{{ in_macro }}{% endmacro %}{% if not date is defined %}{% set date = 'today' %}{% endif %}{{ date }}{{ m() }}\
                 {% set think = think | default(true) %}{% if ns is defined and ns.deep %}x{% endif %}{% for message in messages %}\
                 {{ message.role }}:{{ message.content }}{% if loop.last and effort == 'high' %}!{% endif %}<|end|>{% endfor %}\
                 {% if add_generation_prompt %}assistant:{% endif %}";
    let known = serde_json::json!({"in_macro": 1, "date": "d", "think": false, "ns": {"deep": false}});
    assert_eq!(unused(reads, known, serde_json::json!({"effort": "low"})), Vec::<String>::new());
}

#[test]
fn values_are_printed_as_python_prints_them() {
    // The output of print(v), print([v]) and json.dumps(v) in Python 3.11.
    let check = |json: &str, expected: &str| {
        let template = "{{ v }} {{ [v] }} {{ v | string }} {{ v | tojson }}";
        let template = ChatTemplate::new(template, None, None).unwrap();
        let value: serde_json::Value = serde_json::from_str(&format!("{{\"v\": {json}}}")).unwrap();
        let switches = crate::tokens::python::from_json(&value);
        let around = crate::tokens::template::Surroundings { tools: None, switches: Some(&switches) };
        assert_eq!(template.render(&[], around, false).unwrap(), expected, "{json}");
    };
    check("1e16", "1e+16 [1e+16] 1e+16 1e+16");
    check("2.0", "2.0 [2.0] 2.0 2.0");
    check("0.00001", "1e-05 [1e-05] 1e-05 1e-05");
    check("true", "True [True] True true");
    check("null", "None [None] None null");
    check(
        "\"\\ufdd3123456789012345678901234567890\"",
        "123456789012345678901234567890 [123456789012345678901234567890] \
           123456789012345678901234567890 123456789012345678901234567890",
    );
    check("\"\\ufdd3NaN\"", "nan [nan] nan NaN");
    check("\"\\ufdd3-Infinity\"", "-inf [-inf] -inf -Infinity");
    check("\"it's\\n\\u200b\"", "it's\n\u{200b} [\"it's\\n\\u200b\"] it's\n\u{200b} \"it's\\n\u{200b}\"");
    check(
        "{\"a\": [1, 0.5], \"b\": {}}",
        "{'a': [1, 0.5], 'b': {}} [{'a': [1, 0.5], 'b': {}}] {'a': [1, 0.5], 'b': {}} {\"a\": [1, 0.5], \"b\": {}}",
    );
}

/// The answers are read as drawn: under a template whose `{% generation %}` block holds the header, too, which nobody drew. One that was cut has no end.
#[test]
fn drawn_answers_stand_behind_the_prompt_that_was_asked() {
    let tagged = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}<|user|>assistant:{{ m.content }}<|end|>{% endgeneration %}\
                  {% else %}<|user|>{{ m.role }}:{{ m.content }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|user|>assistant:{% endif %}";
    let plain = tagged.replace("{% generation %}", "").replace("{% endgeneration %}", "");
    for source in [tagged, plain.as_str()] {
        let renderer = renderer(source, options());
        let asked = example(vec![user("q"), assistant("an answer")]);
        let prompt = renderer.prompt(&asked).unwrap();
        let mut ids: Vec<u32> = renderer.tokenizer().encode("an answer").unwrap().iter().map(|token| token.id).collect();
        let mut drawn = |ended: &str| {
            let rollout = Rollout {
                row: 0,
                draw: 0,
                ids: ids.clone(),
                ended: ended.to_owned(),
                prompt: fingerprint_of_prompt(&prompt.ids),
                model: String::new(),
                dtype: String::new(),
                plain: true,
            };
            let rendered = renderer.render(0, &Example { rollout: Some(rollout), ..asked.clone() }).unwrap();
            assert_eq!(rendered.sequence.ids, [&prompt.ids[..], &ids].concat());
            assert!(matches!(rendered.audit.drawn, Some(Drawn::Same)), "{source}");
            ids.extend(renderer.end_of_turn());
            (supervised(renderer.tokenizer(), &rendered.sequence), rendered.audit.missing_end_of_turn)
        };
        assert_eq!(drawn("length"), (vec!["an answer".to_owned()], true));
        assert_eq!(drawn("end_token"), (vec!["an answer<|end|>".to_owned()], false));
    }
}
