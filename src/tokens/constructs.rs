//! Tests that every construct of chat templates renders as in Jinja or is refused by name: tests/fixtures/templates/constructs.json.

use serde_json::Value as Json;

use super::python;
use super::template::{ChatTemplate, Surroundings};

/// Constructs that Jinja renders and this program refuses, with part of the error.
const REFUSED: &[(&str, &str)] = &[
    (r#"{{ {'b': 1, 'A': 2} | dictsort(true) }}"#, "too many arguments"),
    (r#"{{ v.nested | attr('b') | default('none') }}"#, "unknown filter: filter attr is unknown"),
    (r#"{{ v.s.swapcase() }}"#, "unknown method: string has no method named swapcase"),
    (r#"{{ v.s.startswith('W', 6) }}"#, "too many arguments"),
    (r#"{{ '12'.isdecimal() }}"#, "unknown method: string has no method named isdecimal"),
    (r#"{{ '%s and %s' % (v.n, v.s) }}"#, "invalid operation: tried to use % operator on unsupported types string and sequence"),
    (r#"{{ v.s.center(15) }}"#, "unknown method: string has no method named center"),
    (r#"{{ v.s.ljust(13) }}"#, "unknown method: string has no method named ljust"),
    (r#"{{ v.s.rjust(13) }}"#, "unknown method: string has no method named rjust"),
    (r#"{{ v.s.encode() }}"#, "unknown method: string has no method named encode"),
    (r#"{{ v.n is callable }}"#, "unknown test: test callable is unknown"),
    (r#"{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}"#, "too many arguments"),
    (r#"{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, a=3) }}"#, "too many arguments"),
    (r#"{% set j = joiner(', ') %}{{ j() }}a{{ j() }}b"#, "unknown function: joiner is unknown"),
    (
        r#"{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}"#,
        "unknown function: cycler is unknown",
    ),
    (r#"{{ v.s | wordcount }}"#, "unknown filter: filter wordcount is unknown"),
    (r#"{{ v.s | center(15) }}"#, "unknown filter: filter center is unknown"),
    (r#"{{ v.s | truncate(8) }}"#, "unknown filter: filter truncate is unknown"),
    (r#"{{ v.s | wordwrap(6) }}"#, "unknown filter: filter wordwrap is unknown"),
    (r#"{{ v.nested | pprint }}"#, "unknown filter: filter pprint is unknown"),
    (r#"{{ v.html | striptags }}"#, "unknown filter: filter striptags is unknown"),
    (r#"{{ v.html | urlencode }}"#, "unknown filter: filter urlencode is unknown"),
    (r#"{{ 1500 | filesizeformat }}"#, "unknown filter: filter filesizeformat is unknown"),
    (r#"{{ v.nested | xmlattr }}"#, "unknown filter: filter xmlattr is unknown"),
    (r#"{{ v.s | random }}"#, "unknown filter: filter random is unknown"),
    (r#"{{ range(10)[2:4] }}"#, "a `range`, which is not a list here, cannot be sliced"),
    (r#"{% set ns = namespace(a=1, b=[1.0]) %}{{ ns }}"#, "has no text"),
    (r#"{% macro m() %}{% endmacro %}{{ m }}"#, "has no text"),
    (r#"{% for x in [1] %}{{ loop }}{% endfor %}"#, "has no text"),
    (
        r#"{{ '²'.isdigit() }} {{ '½'.isdigit() }} {{ '½'.isnumeric() }} {{ 'é'.isalpha() }} {{ 'कि'.isalpha() }} {{ 'é1'.isalnum() }}"#,
        "isdigit: the character ² is not supported",
    ),
    (r#"{{ 'कि'.isalpha() }}"#, "isalpha: the character क is not supported"),
    (r#"{{ 'कि'.isalnum() }}"#, "isalnum: the character क is not supported"),
    (r#"{{ '一'.isnumeric() }}"#, "isnumeric: the character 一 is not supported"),
    (r#"{% autoescape true %}{{ v.html }}{% endautoescape %}"#, "`autoescape`"),
];

#[test]
fn constructs_give_jinjas_text_or_are_refused_by_name() {
    let fixture: Json = serde_json::from_str(include_str!("../../tests/fixtures/templates/constructs.json")).unwrap();
    let mut values = fixture["values"].clone();
    // serde_json would read this integer as a float; the data readers do not.
    values["long"] = "\u{FDD3}123456789012345678901234567890".into();
    let values = python::from_json(&values);
    let switches = minijinja::context! { v => values };
    let constructs = fixture["constructs"].as_array().unwrap();
    assert!(constructs.len() > 200);
    let (mut others, mut refused, mut n_same) = (Vec::new(), Vec::new(), 0);
    for construct in constructs {
        let source = construct["template"].as_str().unwrap();
        let around = Surroundings { tools: None, switches: Some(&switches) };
        let found = ChatTemplate::new(source, None, None).and_then(|template| template.render(&[], around, false));
        match (construct["text"].as_str(), found) {
            (Some(expected), Ok(found)) if expected == found => n_same += 1,
            (Some(expected), Ok(found)) => others.push(format!("{source}\n  jinja {expected:?}\n  ours  {found:?}")),
            (Some(_), Err(error)) => refused.push((source, error.to_string())),
            // Where Jinja refuses, any output is acceptable; most of these are refused here, too.
            (None, _) => {}
        }
    }
    assert!(others.is_empty(), "{} of {} differ:\n{}", others.len(), constructs.len(), others.join("\n"));
    let listed: Vec<&str> = REFUSED.iter().map(|(source, _)| *source).collect();
    let unlisted: Vec<String> =
        refused.iter().filter(|(source, _)| !listed.contains(source)).map(|(source, why)| format!("{source}\n  {why}")).collect();
    assert!(unlisted.is_empty(), "{} are refused and not listed:\n{}", unlisted.len(), unlisted.join("\n"));
    for (source, why) in REFUSED {
        let message = refused.iter().find(|(other, _)| other == source).map(|(_, message)| message.as_str());
        assert!(message.is_some_and(|message| message.contains(why)), "{source}: {message:?} does not say {why}");
    }
    assert_eq!(n_same, constructs.iter().filter(|construct| construct["text"].is_string()).count() - REFUSED.len());
}
