use super::*;
use crate::engine::remote::LEAST_TOP_K;
use crate::files::shared;

const IDS: [u32; 4] = [7, 3, 5, 2];

/// Two entries of a prompt of four tokens: one with the target among the two most probable tokens, one with
/// it in addition to them.
const VLLM: &str = r#"{"id":"x","model":"m","choices":[{"index":0,"text":" a","prompt_logprobs":[null,
    {"3":{"logprob":-0.5,"rank":1,"decoded_token":"c"},"4":{"logprob":-1.25,"rank":2,"decoded_token":"d"}},
    {"5":{"logprob":-9.5,"rank":41,"decoded_token":"e"},"9":{"logprob":-0.25,"rank":1,"decoded_token":"i"},"8":{"logprob":-2,"rank":2,"decoded_token":"h"}},
    {"2":{"logprob":-9999.0,"rank":64,"decoded_token":"b"},"6":{"logprob":0.0,"rank":1,"decoded_token":"f"},"1":{"logprob":-9999.0,"rank":2,"decoded_token":"a"}}],
    "prompt_token_ids":[7,3,5,2],"token_ids":[1]}],"usage":{"prompt_tokens":4,"total_tokens":5}}"#;

const SGLANG: &str = r#"{"text":" a","output_ids":[1],"meta_info":{"id":"y","finish_reason":{"type":"length","length":1},"prompt_tokens":4,
    "input_token_logprobs":[[null,3,null],[-9.5,5,null],[-3.0,2,null]],
    "input_top_logprobs":[null,[[-0.25,9,null],[-2.0,8,null]],[[-0.1,6,null],[-3.0,2,null]]],
    "output_token_logprobs":[[-0.3,1,null]],"completion_tokens":1}}"#;

fn expected<'a>(wanted: &'a [bool], start: usize) -> Expected<'a> {
    Expected { ids: &IDS, wanted, start, top_k: 2, vocab: 64, key: None }
}

fn vllm(json: &str) -> Result<Vec<Position>, Fault> {
    read_vllm(json.as_bytes(), &expected(&[false, true, true, true], 0), None)
}

fn sglang(json: &str) -> Result<Vec<Position>, Fault> {
    read_sglang(json.as_bytes(), &expected(&[false, false, true, true], 1))
}

fn choice(id: u32, logprob: f32) -> Choice {
    Choice { id, logprob }
}

#[track_caller]
fn wrong(read: Result<Vec<Position>, Fault>, message: &str) {
    match read {
        Err(Fault::Wrong(error)) => assert!(error.to_string().contains(message), "{error}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn positions_of_both_protocols() {
    let mut texts = HashMap::new();
    let found = read_vllm(VLLM.as_bytes(), &expected(&[false, true, true, true], 0), Some(&mut texts)).unwrap();
    assert_eq!(found[0], Position { target: choice(3, -0.5), rank: Some(1), top: vec![choice(3, -0.5), choice(4, -1.25)] });
    assert_eq!(found[1], Position { target: choice(5, -9.5), rank: Some(41), top: vec![choice(9, -0.25), choice(8, -2.0)] });
    assert_eq!(found[2].target.logprob, f32::NEG_INFINITY);
    assert_eq!((texts.len(), texts[&8].as_str()), (8, "h"));
    // Only wanted positions are kept.
    let one = read_vllm(VLLM.as_bytes(), &expected(&[false, false, true, false], 0), None).unwrap();
    assert_eq!(one, [found[1].clone()]);

    let found = sglang(SGLANG).unwrap();
    assert_eq!(found[0], Position { target: choice(5, -9.5), rank: None, top: vec![choice(9, -0.25), choice(8, -2.0)] });
    assert_eq!(found[1], Position { target: choice(2, -3.0), rank: None, top: vec![choice(6, -0.1), choice(2, -3.0)] });
    // The two lists may come in either order.
    let (head, rest) = SGLANG.split_once("\"input_token_logprobs\"").unwrap();
    let (targets, rest) = rest.split_once(",\n").unwrap();
    let (tops, rest) = rest.split_once(",\n").unwrap();
    assert_eq!(sglang(&format!("{head}{tops},\"input_token_logprobs\"{targets},{rest}")).unwrap(), found);
}

#[test]
fn what_a_real_server_answered_is_read() {
    let reply = include_str!("../../../../tests/fixtures/vllm/answer.json");
    let ids = [1, 4093, 198, 2744, 253, 9353, 30, 2, 198, 1, 520, 9531, 198, 3726, 30, 2];
    let wanted: Vec<bool> = (0..ids.len()).map(|i| i > 0).collect();
    let expected = Expected { ids: &ids, wanted: &wanted, start: 0, top_k: 3, vocab: 49_152, key: None };
    let found = read_vllm(reply.as_bytes(), &expected, None).unwrap();
    assert_eq!(found.len(), ids.len() - 1);
    // The first target is far from the three most probable tokens, the second is the first of them.
    assert_eq!((found[0].target.id, found[0].rank, found[0].has_target()), (4093, Some(11_259), false));
    assert_eq!(found[1].top, [choice(198, -3.321208), choice(260, -3.481885), choice(253, -3.566392)]);
    for position in &found {
        let mass: f32 = position.top.iter().map(|choice| choice.logprob.exp()).sum();
        assert!(mass > 0.01 && mass < 1.00001, "{position:?}");
    }
}

/// A recorded request and its answer: the prompt, the number of most probable tokens, and the body of the
/// answer.
fn recorded(name: &str) -> Option<(Vec<u32>, usize, String)> {
    let path = shared(&format!("reference/vllm/{name}"))?;
    let pair: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let request = &pair["request"]["body"];
    let ids = serde_json::from_value(request["prompt"].clone()).unwrap_or_default();
    Some((ids, request["prompt_logprobs"].as_u64().unwrap_or_default() as usize, pair["response"]["body"].to_string()))
}

#[test]
fn recorded_answers_are_read_as_what_they_are() {
    for name in [
        "head40_row0_f32",
        "head40_row0_bf16",
        "row32_f32",
        "row32_bf16",
        "row167_f32",
        "row167_bf16",
        "neg_inf_clamped_f32",
        "finite_below_9999_f32",
    ] {
        let Some((ids, top_k, body)) = recorded(&format!("{name}.json")) else { return };
        let wanted: Vec<bool> = (0..ids.len()).map(|i| i > 0).collect();
        let expected = Expected { ids: &ids, wanted: &wanted, start: 0, top_k, vocab: 49_152, key: None };
        let found = read_vllm(body.as_bytes(), &expected, None).unwrap();
        assert_eq!(found.len(), ids.len() - 1, "{name}");
        for position in found.iter().filter(|_| top_k == LEAST_TOP_K) {
            let (statistics, bounds) = position.statistics(49_152).unwrap();
            assert!(bounds.entropy.lo <= statistics.entropy && statistics.entropy <= bounds.entropy.hi, "{name}: {position:?}");
        }
        let last = found.last().unwrap().target.logprob;
        match name {
            "neg_inf_clamped_f32" => assert_eq!(last, f32::NEG_INFINITY),
            // A finite number, although far below the stand-in for infinity.
            "finite_below_9999_f32" => assert!(last.is_finite() && last < -9999.0, "{last}"),
            _ => assert!(last > -20.0, "{name}: {last}"),
        }
    }
    // Two prompts in one request, which this program does not send; and the answer to another prompt.
    let Some((_, top_k, body)) = recorded("batch2_k3_f32.json") else { return };
    let ids = [1, 9690, 198, 2683, 359, 253];
    let expected =
        |ids| Expected { ids, wanted: &[false, true, true, true, true, true], start: 0, top_k, vocab: 49_152, key: None };
    wrong(read_vllm(body.as_bytes(), &expected(&ids), None), "expected the reply to one prompt, found several");
    wrong(read_vllm(body.as_bytes(), &expected(&[1, 9690, 198, 2683, 253, 359]), None), "does not name it");
}

#[test]
fn a_wrong_answer_says_how_it_is_wrong() {
    let without = |from: &str, to: &str| {
        assert!(VLLM.contains(from) || SGLANG.contains(from), "{from}");
        (VLLM.replacen(from, to, 1), SGLANG.replacen(from, to, 1))
    };
    // The last entry is missing.
    let last = VLLM.find(",\n    {\"2\"").unwrap();
    let end = VLLM.find("],\n    \"prompt_token_ids\"").unwrap();
    wrong(vllm(&format!("{}{}", &VLLM[..last], &VLLM[end..])), "of 4 tokens, found 3: entries are missing");
    // One entry more than there are tokens.
    let more = "{\"1\":{\"logprob\":-1},\"6\":{\"logprob\":-1}}";
    wrong(vllm(&format!("{},{more}{}", &VLLM[..end], &VLLM[end..])), "found more");
    // Shifted: no null at the beginning, or two.
    wrong(vllm(&VLLM.replacen("[null,\n", "[", 1)), "shifted by one");
    wrong(vllm(&VLLM.replacen("[null,", "[null,null,", 1)), "the entry of token 1 is null, and only the first may be");
    // Reordered, or for another prompt.
    wrong(vllm(&without("\"3\":", "\"11\":").0), "the entry at token 1 does not name it (id 3)");
    wrong(
        vllm(&VLLM.replace("\"prompt_token_ids\":[7,3,5,2]", "\"prompt_token_ids\":[7,3,2,5]")),
        "different tokens than were sent",
    );
    wrong(vllm(&VLLM.replace("\"prompt_tokens\":4", "\"prompt_tokens\":3")), "4 tokens were sent, but the server read 3");
    // Too few or too many of the most probable tokens.
    wrong(
        vllm(&VLLM.replacen(",\"4\":{\"logprob\":-1.25,\"rank\":2,\"decoded_token\":\"d\"}", "", 1)),
        "expected the 2 most probable tokens",
    );
    wrong(vllm(&without("\"8\":{", "\"12\":{\"logprob\":-1},\"8\":{").0), "found more");
    // The additional target would belong among them.
    wrong(vllm(&without("\"logprob\":-9.5", "\"logprob\":-0.3").0), "is not among the 2 most probable ones");
    wrong(vllm(&without("\"4\":", "\"64\":").0), "has a token 64");
    wrong(vllm(&VLLM.replacen("{\"index\":0", "{},{\"index\":0", 1)), "found several");
    wrong(vllm(r#"{"choices":[{"prompt_logprobs":null}]}"#), "returns no log-probabilities of the prompt");
    wrong(vllm(r#"{"choices":[{}]}"#), "returns no log-probabilities of the prompt");
    wrong(vllm(r#"{"choices":[{"prompt_logprobs":[]}]}"#), "returns no log-probabilities of the prompt");
    wrong(
        vllm(&VLLM.replace("\"prompt_token_ids\":[7,3,5,2]", "\"prompt_token_ids\":[7,3,5]")),
        "different tokens than were sent",
    );

    wrong(sglang(&SGLANG.replace("[-9.5,5,null]", "[null,5,null]")), "its log-probability is missing, infinite or not a number");
    wrong(sglang(&SGLANG.replace("[-9.5,5,null]", "[-9.5,4,null]")), "the entry at token 2 does not name it (id 5)");
    wrong(sglang(&SGLANG.replace("[-2.0,8,null]", "[-2.0,8,null],[-3.0,11,null]")), "of each position, found more");
    wrong(sglang(&SGLANG.replace(",[-3.0,2,null]],\n", "],\n")), "entries are missing");
    wrong(
        sglang(&SGLANG.replace("{\"type\":\"length\",\"length\":1}", "{\"type\":\"abort\",\"message\":\"busy\"}")),
        "aborted the request",
    );
    wrong(sglang(r#"{"meta_info":{}}"#), "returns no log-probabilities of the prompt");
}

#[test]
fn numbers_that_json_does_not_have_are_named() {
    for number in ["NaN", "Infinity", "-Infinity"] {
        let of_vllm = VLLM.replace("\"logprob\":-9.5", &format!("\"logprob\":{number}"));
        wrong(
            vllm(&of_vllm),
            &format!("the server returned {number} in the entry of token 2 of the prompt; expected a finite number"),
        );
        let of_sglang = SGLANG.replace("[-9.5,5,null]", &format!("[{number},5,null]"));
        wrong(sglang(&of_sglang), &format!("the server returned {number} at line 2 column "));
        // Also in a part that is skipped, and after more bytes than are kept of a reply.
        let beside = VLLM.replace("\"total_tokens\":5", &format!("\"total_tokens\":{number}"));
        wrong(vllm(&beside), &format!("the server returned {number} at line 5 column "));
        for between in [",", ",\n"] {
            let long = vec!["1"; 300_000].join(between);
            let of_vllm = of_vllm.replacen("\"id\":\"x\"", &format!("\"id\":[{long}]"), 1);
            wrong(vllm(&of_vllm), &format!("the server returned {number} in the entry of token 2"));
        }
    }
}

#[test]
fn a_key_in_what_the_server_says_is_not_shown() {
    let said = r#"{"meta_info":{"finish_reason":{"type":"abort","message":"no more\nfor sk-12345"}}}"#;
    let found = read_sglang(said.as_bytes(), &Expected { key: Some("sk-12345"), ..expected(&[false, true, true, true], 0) });
    wrong(found, "aborted the request: no more for (the key)");
}

#[test]
fn what_breaks_off_is_worth_another_try() {
    for n in [0, 1, 40, VLLM.len() / 2, VLLM.len() - 1] {
        assert!(matches!(vllm(&VLLM[..n]), Err(Fault::Broken(_))), "{n}");
    }
    for n in [0, 60, SGLANG.len() / 2, SGLANG.len() - 1] {
        assert!(matches!(sglang(&SGLANG[..n]), Err(Fault::Broken(_))), "{n}");
    }
    for noise in ["<html>bad gateway</html>", "[]", "{\"choices\":5}", "null"] {
        assert!(matches!(vllm(noise), Err(Fault::Broken(_))), "{noise}");
    }
}

/// A generated reply of hundreds of megabytes.
struct Endless {
    entry: Vec<u8>,
    left: usize,
    at: usize,
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        let n = buffer.len().min(self.entry.len() - self.at);
        buffer[..n].copy_from_slice(&self.entry[self.at..self.at + n]);
        self.at += n;
        if self.at == self.entry.len() {
            (self.at, self.left) = (0, self.left - 1);
        }
        Ok(n)
    }
}

#[test]
fn a_reply_longer_than_the_prompt_is_refused_before_it_is_read() {
    let entry = b"{\"3\":{\"logprob\":-0.5,\"rank\":1,\"decoded_token\":\"c\"},\"4\":{\"logprob\":-1.25,\"rank\":2}},".to_vec();
    let mut endless = Endless { entry, left: usize::MAX, at: 0 };
    let reply = b"{\"choices\":[{\"prompt_logprobs\":[null,".chain(&mut endless);
    let ids = [3; 1000];
    let expected = Expected { ids: &ids, wanted: &[true; 1000], start: 0, top_k: 2, vocab: 64, key: None };
    wrong(read_vllm(reply, &expected, None), "found more");
    assert!(usize::MAX - endless.left < 2000, "{}", usize::MAX - endless.left);
    // Lists, strings and keys of any length are not kept, either.
    for (begin, entry, message) in [
        (r#"{"choices":[{"prompt_token_ids":[3"#, ",3", "different tokens than were sent"),
        (r#"{"choices":[{"text":""#, "text", "longer than possible for this request"),
        (r#"{""#, "key", "longer than possible for this request"),
        (r#"{"choices":[{"prompt_logprobs":[null,{"3":{"decoded_token":""#, "text", "longer than possible for this request"),
    ] {
        let mut endless = Endless { entry: entry.repeat(1000).into_bytes(), left: usize::MAX, at: 0 };
        wrong(read_vllm(begin.as_bytes().chain(&mut endless), &expected, None), message);
        let bytes = (usize::MAX - endless.left) * 1000 * entry.len();
        assert!(bytes < 12 << 20, "{begin}: {bytes}");
    }
    let begin = r#"{"meta_info":{"finish_reason":{"type":"abort","message":""#;
    let mut endless = Endless { entry: b"text".repeat(1000), left: usize::MAX, at: 0 };
    let found = read_sglang(begin.as_bytes().chain(&mut endless), &expected);
    wrong(found, "longer than possible for this request");
}
