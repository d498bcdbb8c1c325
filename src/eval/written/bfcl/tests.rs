//! Compares the verdicts with those of the official checker, which `tests/fixtures/eval/bfcl.py` recorded.

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Case {
    category: String,
    function: Json,
    ground_truth: Json,
    answer: String,
    valid: bool,
}

/// 210 answers: types, defaults, order, valid and invalid Python. `DIAGNOSE_BFCL_CASES` names another file of such rows.
#[test]
fn verdicts_are_those_of_the_official_checker() {
    let path = std::env::var("DIAGNOSE_BFCL_CASES")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/eval/bfcl.jsonl").to_owned());
    let text = std::fs::read_to_string(path).unwrap();
    let cases: Vec<Case> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(cases.len() >= 200);
    let mut wrong = Vec::new();
    for case in &cases {
        let category = Category::of(&case.category).unwrap();
        let data = data(category, &case.function, &case.ground_truth).unwrap();
        let verdicts = check(&data, &case.answer).unwrap();
        if verdicts != [Verdict::of_answer("acc", case.valid)] {
            wrong.push(format!("{}, {} there: {}", case.category, case.valid, case.answer));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    let right = cases.iter().filter(|case| case.valid).count();
    assert!((cases.len() / 4..cases.len() * 3 / 4).contains(&right), "{right} of {} are right", cases.len());
}

#[test]
fn files_are_of_the_categories_that_their_names_say() {
    for (name, category) in [
        ("simple_python", Some(Category::Simple)),
        ("live_multiple", Some(Category::Multiple)),
        ("parallel_multiple", Some(Category::Parallel)),
        ("live_irrelevance", Some(Category::Irrelevance)),
        ("simple_java", None),
        ("simple_javascript", None),
        ("live_relevance", None),
        ("multi_turn_base", None),
    ] {
        assert_eq!(Category::of(name), category, "{name}");
    }
}

#[test]
fn questions_that_no_answer_could_meet_are_refused() {
    let function = json!([{"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}}]);
    let refused = |function: &Json, ground_truth: Json, expected: &str| {
        let error = data(Category::Simple, function, &ground_truth).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(&function, json!([{"g": {"a": [1]}}]), "no function is called `g`");
    refused(&function, json!([]), "a list of calls");
    refused(&function, json!([{"f": {"a": 1}}]), "a list of what a parameter may be, found 1");
    let odd = json!([{"name": "f", "parameters": {"properties": {"a": {"type": "long"}}, "required": ["a"]}}]);
    refused(&odd, json!([{"f": {"a": [1]}}]), "found \"long\"");
}

#[test]
fn expressions_are_written_as_python_writes_them() {
    for (text, expected) in [
        ("f( a,b = 2 , *c, **d )", "f(a, *c, b=2, **d)"),
        ("(a + b) * c - (d - e)", "(a + b) * c - (d - e)"),
        ("a - b - c", "a - b - c"),
        ("a ** -b ** c", "a ** (-b ** c)"),
        ("(-a) ** 2", "(-a) ** 2"),
        ("x[1, 2][(3,)]", "x[1, 2][3,]"),
        ("{'a': [1.50, 1e20, 1e-7], **b}", "{'a': [1.5, 1e+20, 1e-07], **b}"),
        ("'it\\'s' \"\\t\"", "\"it's\\t\""),
        ("not (a . b)", "not a.b"),
    ] {
        assert_eq!(python::unparse(&python::parse(text).unwrap()), expected, "{text}");
    }
}

#[test]
fn what_would_take_all_memory_is_neither_built_nor_right() {
    let argument = |text: &str| calls::decode(&format!("f(a={text})")).map(|calls| calls[0].arguments[0].1.repr());
    for text in ["[]*10**18", "''*10**18", "10**18*[]", "['a']*-3"] {
        assert!(argument(text).is_some_and(|found| found == "[]" || found == "''"), "{text}");
    }
    assert_eq!(argument("(1, 'a')*2").as_deref(), Some("(1, 'a', 1, 'a')"));
    // Lists that repeat one value and large sums, which fit into Python's memory, become a value that equals nothing.
    for text in ["['a'*60000]*1000000", "['a'*1000000]*1000000", "'a'*60000+'a'*60000", "[['a'*60000]*1, 'a'*60000]*100"] {
        assert_eq!(argument(text).as_deref(), Some("?"), "{text}");
    }
    // These do not fit into any memory.
    for text in ["'a'*10**18", "[1]*10**18", "[]*10**30"] {
        assert_eq!(argument(text), None, "{text}");
    }
}

#[test]
fn trees_are_as_deep_as_python_has_them_and_no_deeper() {
    let nested = |open: &str, inside: &str, close: &str, n: usize| format!("{}{inside}{}", open.repeat(n), close.repeat(n));
    for (open, close) in [("[", "]"), ("(", ")"), ("{1:", "}"), ("f(", ")"), ("x[", "]"), ("-(", ")")] {
        assert!(python::parse(&nested(open, "1", close, 199)).is_some(), "{open}");
    }
    for (open, close) in [
        ("[", "]"),
        ("(*(", "),)"),
        ("{**", "}"),
        ("[*", "]"),
        ("x[", "]"),
        ("[a for a in ", "]"),
        ("f(*", ")"),
        ("-", ""),
        ("~ ", ""),
        ("not ", ""),
        ("1+", ""),
        ("1**", ""),
        ("1**-", ""),
        ("", ".a"),
        ("", "()"),
        ("", "[0]"),
        ("lambda: ", ""),
        ("1 if 1 else ", ""),
    ] {
        let text = nested(open, "x", close, 100_000);
        assert!(python::parse(&text).is_none() && calls::decode(&text).is_none(), "{open}..{close}");
    }
    // The highest tree passes through everything that walks a tree.
    let highest = nested("-x.a(", &format!("1{}", "+1".repeat(700)), ")", 198);
    assert!(python::unparse(&python::parse(&highest).unwrap()).len() > highest.len());
    // A long list of signed numbers is not a high tree.
    assert!(python::parse(&format!("[{}]", "-1, ".repeat(5000))).is_some());
}
