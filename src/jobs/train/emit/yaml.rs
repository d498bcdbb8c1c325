//! Writes the YAML of a flat configuration: comments, sections, and scalars that YAML 1.1 and 1.2 read alike.

use std::fmt::Write;

use serde_json::Value;

/// The lines of a YAML file.
#[derive(Default)]
pub(super) struct Yaml {
    text: String,
}

impl Yaml {
    /// Adds one or more lines of comment.
    pub(super) fn comment(&mut self, text: &str) -> &mut Yaml {
        for line in text.lines() {
            // Writing to a String cannot fail.
            let _ = writeln!(self.text, "{}", format!("# {line}").trim_end());
        }
        self
    }

    pub(super) fn blank(&mut self) -> &mut Yaml {
        self.text.push('\n');
        self
    }

    /// Adds `key: value`, with a value from one of the functions below. The key may be indented or begin a list item.
    pub(super) fn set(&mut self, key: &str, value: impl AsRef<str>) -> &mut Yaml {
        let _ = writeln!(self.text, "{}", format!("{key}: {}", value.as_ref()).trim_end());
        self
    }

    pub(super) fn finish(self) -> String {
        self.text
    }
}

/// Formats a text as JSON, which is also a double-quoted YAML text once the characters are escaped that YAML takes for no text or for a line's end.
pub(super) fn text(text: &str) -> String {
    let is_unsafe = |c: char| matches!(c, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}');
    let escaped = |c: char| if is_unsafe(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    Value::from(text).to_string().chars().map(escaped).collect()
}

/// Formats a number with a point and the sign of its exponent: YAML 1.1 reads `1e-5` as a text.
pub(super) fn number(x: f64) -> String {
    if x == 0.0 || (1e-3..1e6).contains(&x.abs()) {
        return format!("{x:?}");
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let point = if digits.contains('.') { "" } else { ".0" };
    let sign = if exponent.starts_with('-') { "" } else { "+" };
    format!("{digits}{point}e{sign}{exponent}")
}

/// Formats a JSON value, which is also one in YAML except for numbers such as 1e-5 and for control characters beyond ASCII.
pub(crate) fn json(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(key, value)| format!("{}: {}", text(key), json(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(json).collect::<Vec<_>>().join(", ")),
        Value::String(own) => text(own),
        Value::Number(own) if own.is_f64() => own.as_f64().map_or_else(|| own.to_string(), number),
        other => other.to_string(),
    }
}

/// `[a, b]`
pub(super) fn list(items: &[String]) -> String {
    format!("[{}]", items.iter().map(|item| text(item)).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_texts_that_every_reader_takes_alike() {
        assert_eq!([1e-5, 2.5e-5, 0.1, 1.0, 1e-8, 3e10].map(number), ["1.0e-5", "2.5e-5", "0.1", "1.0", "1.0e-8", "3.0e+10"]);
        assert_eq!(text("C:\\a \"b\": #"), r##""C:\\a \"b\": #""##);
        assert_eq!(text("a\u{85}\u{2028}🙂\n"), r#""a\u0085\u2028🙂\n""#);
        let value = serde_json::json!({"x": 1e-5, "n": [1, -2.5, null, true], "a: b": {"é": "1e-5"}});
        assert_eq!(json(&value), r#"{"x": 1.0e-5, "n": [1, -2.5, null, true], "a: b": {"é": "1e-5"}}"#);
        let mut yaml = Yaml::default();
        yaml.comment("one\n\ntwo").set("key", number(0.0)).set("section", "").blank();
        assert_eq!(yaml.finish(), "# one\n#\n# two\nkey: 0.0\nsection:\n\n");
    }
}
