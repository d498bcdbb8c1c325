//! Tells whether Python's `json.loads` accepts a text: JSON, and also `NaN`, `Infinity`, `-Infinity`, numbers of any size and
//! halves of surrogate pairs.

/// Is the whole text one value?
pub(super) fn is_json(text: &str) -> bool {
    let mut reader = Reader { bytes: text.as_bytes(), at: 0 };
    reader.space();
    let is_value = reader.value(0);
    reader.space();
    is_value && reader.at == reader.bytes.len()
}

/// The deepest nesting: Python gives up, too (its recursion limit is a thousand frames).
const DEEPEST: usize = 990;

/// The maximum number of digits that Python converts to an int (`sys.int_info.default_max_str_digits`).
const MOST_DIGITS: usize = 4300;

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn takes(&mut self, text: &[u8]) -> bool {
        let is_next = self.bytes[self.at..].starts_with(text);
        self.at += if is_next { text.len() } else { 0 };
        is_next
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn value(&mut self, depth: usize) -> bool {
        match self.peek() {
            _ if depth > DEEPEST => false,
            Some(b'{') => self.items(depth, b'}', true),
            Some(b'[') => self.items(depth, b']', false),
            Some(b'"') => self.string(),
            Some(b'-' | b'0'..=b'9') => self.takes(b"-Infinity") || self.number(),
            _ => [&b"null"[..], b"true", b"false", b"NaN", b"Infinity"].iter().any(|word| self.takes(word)),
        }
    }

    /// Reads the entries inside brackets, which have keys or not.
    fn items(&mut self, depth: usize, close: u8, has_keys: bool) -> bool {
        self.at += 1;
        self.space();
        if self.takes(&[close]) {
            return true;
        }
        loop {
            self.space();
            if has_keys {
                if self.peek() != Some(b'"') || !self.string() {
                    return false;
                }
                self.space();
                if !self.takes(b":") {
                    return false;
                }
                self.space();
            }
            if !self.value(depth + 1) {
                return false;
            }
            self.space();
            if self.takes(&[close]) {
                return true;
            }
            if !self.takes(b",") {
                return false;
            }
        }
    }

    fn string(&mut self) -> bool {
        self.at += 1;
        while let Some(byte) = self.peek() {
            self.at += 1;
            match byte {
                b'"' => return true,
                b'\\' => match self.peek() {
                    Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
                    Some(b'u') => {
                        let digits = self.bytes.get(self.at + 1..self.at + 5);
                        if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
                            return false;
                        }
                        self.at += 5;
                    }
                    _ => return false,
                },
                0..=0x1f => return false,
                _ => {}
            }
        }
        false
    }

    fn number(&mut self) -> bool {
        self.takes(b"-");
        let begin = self.at;
        if !self.takes(b"0") && self.digits() == 0 {
            return false;
        }
        let whole = self.at - begin;
        let mut is_whole = true;
        let before = self.at;
        // A point or an exponent without digits is not part of the number, and is then an error as what follows it.
        if self.takes(b".") {
            match self.digits() {
                0 => self.at = before,
                _ => is_whole = false,
            }
        }
        let before = self.at;
        if self.takes(b"e") || self.takes(b"E") {
            let _ = self.takes(b"+") || self.takes(b"-");
            match self.digits() {
                0 => self.at = before,
                _ => is_whole = false,
            }
        }
        !is_whole || whole <= MOST_DIGITS
    }

    fn digits(&mut self) -> usize {
        let begin = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        self.at - begin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_python_reads_and_what_it_does_not() {
        for good in [
            "{}",
            " [1, -2.5e+3, \"a\\u00e9\\ud800\"] ",
            "NaN",
            "-Infinity",
            "[Infinity]",
            "0",
            "1e999",
            "{\"a\": {\"b\": [null, true]}}",
            "\"é\"",
        ] {
            assert!(is_json(good), "{good}");
        }
        for bad in [
            "",
            "{",
            "[1,]",
            "{\"a\":1,}",
            "{'a': 1}",
            "01",
            "1.",
            "1e",
            "-",
            "+1",
            "\"a\nb\"",
            "\"\\x\"",
            "\"\\u12g4\"",
            "[1] x",
            "True",
            "{1: 2}",
            "\u{feff}{}",
            "nul",
            "-NaN",
        ] {
            assert!(!is_json(bad), "{bad}");
        }
        assert!(is_json(&format!("{}{}", "[".repeat(500), "]".repeat(500))));
        assert!(is_json(&"1".repeat(4300)) && !is_json(&"1".repeat(4301)) && is_json(&format!("{}.5", "1".repeat(4301))));
    }
}
