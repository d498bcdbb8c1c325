//! Translates the source of a chat template so that minijinja interprets it as Jinja does.
//!
//! Most templates pass through unchanged. Constructs that minijinja silently interprets differently are translated token by token, or refused:
//!
//! | source | Jinja | here |
//! |---|---|---|
//! | `a ~ b` | Python's `str` of both; minijinja formats floats and lists differently | `(a)\|string ~ (b)\|string` |
//! | `schema['items']` | the method of that name if the dictionary has no such key | `(schema\|item('items'))` |
//! | `schema.items` without parentheses | the method of that name if the value has one, whatever its keys are | `(schema\|attribute('items'))` |
//! | `list[1:]` | an error for generators, `none` and undefined values | `(list\|sliceable)[1:]` |
//! | `'\/'`, `'\a'`, `'\U0001f600'` | Python's escapes | the characters |
//! | line ends `\r\n` and `\r` | `\n` | `\n` |
//! | `{% generation %}` | a tag that Transformers adds | two marks, since minijinja does not support custom tags |
//! | `x\|safe + b` | escapes `b` as HTML | `(x\|safe)\|plus(b)` |
//! | `{% autoescape true %}` | escapes everything as HTML | refused |

use minijinja::value::{Value, ValueKind};

use super::iterables::is_dictionary;
use super::marks::{GENERATION_BEGIN, GENERATION_END};
use crate::error::{Error, Result};

/// The translated source of a template.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Translated {
    /// The source for minijinja.
    pub source: String,
    /// Whether the template marks its answers by `{% generation %}`.
    pub has_generation_tags: bool,
}

/// Text, comments and raw blocks, which stay unchanged; or the code between `{{ }}` or `{% %}`.
#[derive(Debug)]
enum Piece<'a> {
    Verbatim(&'a str),
    Code(Code<'a>),
}

#[derive(Debug)]
struct Code<'a> {
    /// The opening delimiter with its white-space control, such as `{%-`.
    open: &'a str,
    tokens: Vec<Token<'a>>,
    /// The white space before the closing delimiter.
    space: &'a str,
    close: &'a str,
}

#[derive(Debug, Clone, Copy)]
struct Token<'a> {
    /// The white space before the token.
    space: &'a str,
    text: &'a str,
    /// The number of brackets that are open around it, not counting the token itself.
    depth: usize,
}

/// Python's methods by kind of value: those that Transformers' sandbox allows, and those that it hides.
const METHODS: [(ValueKind, &[&str], &[&str]); 3] = [
    (
        ValueKind::Map,
        &["copy", "fromkeys", "get", "items", "keys", "values"],
        &["clear", "pop", "popitem", "setdefault", "update"],
    ),
    (ValueKind::Seq, &["copy", "count", "index"], &["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"]),
    (
        ValueKind::String,
        &[
            "capitalize",
            "casefold",
            "center",
            "count",
            "encode",
            "endswith",
            "expandtabs",
            "find",
            "format",
            "format_map",
            "index",
            "isalnum",
            "isalpha",
            "isascii",
            "isdecimal",
            "isdigit",
            "isidentifier",
            "islower",
            "isnumeric",
            "isprintable",
            "isspace",
            "istitle",
            "isupper",
            "join",
            "ljust",
            "lower",
            "lstrip",
            "maketrans",
            "partition",
            "removeprefix",
            "removesuffix",
            "replace",
            "rfind",
            "rindex",
            "rjust",
            "rpartition",
            "rsplit",
            "rstrip",
            "split",
            "splitlines",
            "startswith",
            "strip",
            "swapcase",
            "title",
            "translate",
            "upper",
            "zfill",
        ],
        &[],
    ),
];

/// Whether this is a Python method of the value that the sandbox allows.
pub(super) fn is_method(value: &Value, name: &str) -> bool {
    methods_of(value).any(|(shown, _)| shown.contains(&name))
}

/// Whether this is a Python method of the value that the sandbox hides.
pub(super) fn is_forbidden(value: &Value, name: &str) -> bool {
    methods_of(value).any(|(_, hidden)| hidden.contains(&name))
}

/// Returns the methods of the value. Jinja's namespaces, loops and macros have none of a dictionary's.
fn methods_of(value: &Value) -> impl Iterator<Item = (&'static [&'static str], &'static [&'static str])> {
    let kind = Some(value.kind()).filter(|&kind| kind != ValueKind::Map || is_dictionary(value));
    METHODS.into_iter().filter(move |(of, ..)| kind == Some(*of)).map(|(_, shown, hidden)| (shown, hidden))
}

fn names_a_method(name: &str) -> bool {
    METHODS.iter().any(|(_, shown, hidden)| shown.contains(&name) || hidden.contains(&name))
}

/// Translates `source` for minijinja, or returns an error if this is not possible.
pub(super) fn translate(source: &str) -> Result<Translated> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let pieces = pieces(&source);
    let codes = pieces.iter().filter_map(|piece| if let Piece::Code(code) = piece { Some(code) } else { None });
    let safe = safe_variables(codes);
    let mut translated = Translated { source: String::with_capacity(source.len()), has_generation_tags: false };
    for piece in &pieces {
        match piece {
            Piece::Verbatim(text) => translated.source.push_str(text),
            Piece::Code(code) => match code.tag() {
                "generation" if code.tokens.len() == 1 => {
                    translated.has_generation_tags = true;
                    // `with` because Transformers' tag opens a scope, too; the white-space control stays on its outer sides.
                    let Code { open, close, .. } = code;
                    translated.source.push_str(&format!("{open} with %}}{{{{ '{GENERATION_BEGIN}' }}}}{{% if true {close}"));
                }
                tag @ "autoescape" => {
                    return Err(
                        Error::new(format!("the chat template has a tag that is not supported: `{tag}`")).cure("Leave it out.")
                    );
                }
                "endgeneration" if code.tokens.len() == 1 => {
                    let Code { open, close, .. } = code;
                    translated.source.push_str(&format!("{open} endif %}}{{{{ '{GENERATION_END}' }}}}{{% endwith {close}"));
                }
                _ => code.write(&safe, &mut translated.source)?,
            },
        }
    }
    Ok(translated)
}

impl<'a> Code<'a> {
    fn is_tag(&self) -> bool {
        self.open.starts_with("{%")
    }

    /// Returns the name of a tag, such as `set`, or nothing for an expression.
    fn tag(&self) -> &'a str {
        self.tokens.first().filter(|_| self.is_tag()).map_or("", |token| token.text)
    }

    fn source(&self) -> String {
        let tokens: String = self.tokens.iter().flat_map(|token| [token.space, token.text]).collect();
        [self.open, &tokens, self.space, self.close].concat()
    }

    /// Whether one of its filters makes a `safe` text.
    fn makes_safe(&self) -> bool {
        self.tokens.windows(2).any(|two| two[0].text == "|" && ["safe", "escape", "e"].contains(&two[1].text))
    }

    /// Writes the translated code. `safe` are the variables that may hold a `safe` text.
    fn write(&self, safe: &[&str], out: &mut String) -> Result<()> {
        // The text inserted before each token, from the outermost to the innermost, and after it, from the innermost to the outermost.
        let mut around = vec![(String::new(), String::new()); self.tokens.len()];
        let mut replaced: Vec<Option<String>> = vec![None; self.tokens.len()];
        for (begin, end) in self.concatenated() {
            around[begin].0.insert(0, '(');
            around[end - 1].1.push_str(")|string");
        }
        if self.makes_safe() || self.tokens.iter().any(|token| safe.contains(&token.text)) {
            for sum in self.sums()? {
                around[sum.begin].0.push_str(&"(".repeat(sum.signs.len()));
                for (nth, &sign) in sum.signs.iter().enumerate() {
                    replaced[sign] = Some(if nth == 0 { ")|plus(" } else { "))|plus(" }.to_owned());
                }
                around[sum.end - 1].1.push(')');
            }
        }
        for (idx, token) in self.tokens.iter().enumerate() {
            if token.text.starts_with(['\'', '"']) && token.text.contains('\\') {
                replaced[idx] = Some(minijinja_string(token.text)?);
            }
            let Some(before) = idx.checked_sub(1) else { continue };
            if token.text == "["
                && self.is_slice(idx)
                && let Some(begin) = self.subscripted(idx)
            {
                around[begin].0.push('(');
                replaced[idx] = Some("|sliceable)[".to_owned());
            }
            let name = token.text.trim_matches(['\'', '"']);
            if !names_a_method(name) {
                continue;
            }
            let (is_quoted, after) = (name != token.text, self.text(idx + 1));
            let is_asked = match self.text(before) {
                "." => !is_quoted && after != "(" && idx >= self.targets_end() && self.text(before.saturating_sub(1)) != "loop",
                "[" => is_quoted && after == "]",
                _ => false,
            };
            if let Some(begin) = self.subscripted(before).filter(|_| is_asked) {
                around[begin].0.push('(');
                if is_quoted {
                    replaced[before] = Some("|item(".to_owned());
                    replaced[idx + 1] = Some("))".to_owned());
                } else {
                    replaced[before] = Some("|attribute(".to_owned());
                    replaced[idx] = Some(format!("'{name}'))"));
                }
            }
        }
        out.push_str(self.open);
        for ((token, (before, after)), replaced) in self.tokens.iter().zip(&around).zip(&replaced) {
            for text in [token.space, before, replaced.as_deref().unwrap_or(token.text), after] {
                out.push_str(text);
            }
        }
        out.push_str(self.space);
        out.push_str(self.close);
        Ok(())
    }

    fn text(&self, idx: usize) -> &'a str {
        self.tokens.get(idx).map_or("", |token| token.text)
    }

    /// Returns the end of the targets of a `set`, in which attributes of a namespace are not translated.
    fn targets_end(&self) -> usize {
        let is_assignment = |idx: &usize| self.tokens[*idx].depth == 0 && self.text(*idx) == "=";
        if self.tag() == "set" { (0..self.tokens.len()).find(is_assignment).unwrap_or(self.tokens.len()) } else { 0 }
    }

    /// Whether the bracket that opens here contains a slice.
    fn is_slice(&self, bracket: usize) -> bool {
        let depth = self.tokens[bracket].depth;
        let inside = self.tokens[bracket + 1..].iter().take_while(|token| token.depth > depth);
        inside.into_iter().any(|token| token.depth == depth + 1 && token.text == ":")
    }

    /// Returns the token ranges of the operands of `~`, except strings.
    fn concatenated(&self) -> Vec<(usize, usize)> {
        let mut operands = Vec::new();
        for tilde in (0..self.tokens.len()).filter(|&idx| self.text(idx) == "~") {
            let depth = self.tokens[tilde].depth;
            let is_outside = |idx: usize| {
                let other = self.tokens[idx].depth;
                other < depth || (other == depth && self.binds_weaker(idx))
            };
            let begin = (0..tilde).rev().find(|&idx| is_outside(idx)).map_or(0, |idx| idx + 1);
            let end = (tilde + 1..self.tokens.len()).find(|&idx| is_outside(idx)).unwrap_or(self.tokens.len());
            operands.extend([(begin, tilde), (tilde + 1, end)]);
        }
        operands.sort_by_key(|&(begin, end)| (begin, std::cmp::Reverse(end)));
        operands.dedup();
        operands.retain(|&(begin, end)| begin < end && !(end == begin + 1 && self.text(begin).starts_with(['\'', '"'])));
        operands
    }

    /// Returns the sums of two or more terms.
    fn sums(&self) -> Result<Vec<Sum>> {
        let mut sums: Vec<Sum> = Vec::new();
        for sign in (0..self.tokens.len()).filter(|&idx| self.text(idx) == "+" && self.ends_operand(idx)) {
            let depth = self.tokens[sign].depth;
            let is_outside = |idx: usize| {
                let (other, text) = (self.tokens[idx].depth, self.text(idx));
                other < depth || (other == depth && !["~", "+", "-"].contains(&text) && self.binds_weaker(idx))
            };
            let begin = (0..sign).rev().find(|&idx| is_outside(idx)).map_or(0, |idx| idx + 1);
            let end = (sign + 1..self.tokens.len()).find(|&idx| is_outside(idx)).unwrap_or(self.tokens.len());
            let subtracts = |idx: usize| self.tokens[idx].depth == depth && self.text(idx) == "-" && self.ends_operand(idx);
            if (begin..end).any(subtracts) || end == sign + 1 {
                return Err(Error::new(format!("the chat template adds and subtracts beside a `safe` text: {}", self.source()))
                    .cure("Write `~` instead of `+` there, or leave out `safe`."));
            }
            match sums.iter_mut().find(|sum| (sum.begin, sum.end) == (begin, end)) {
                Some(sum) => sum.signs.push(sign),
                None => sums.push(Sum { begin, end, signs: vec![sign] }),
            }
        }
        Ok(sums)
    }

    /// Whether the token separates expressions, or is an operator that binds no stronger than `~`.
    fn binds_weaker(&self, idx: usize) -> bool {
        let before = idx.checked_sub(1).map_or("", |before| self.text(before));
        match self.text(idx) {
            "~" | "==" | "!=" | "<" | ">" | "<=" | ">=" | "," | ":" | "=" => true,
            "+" | "-" => self.ends_operand(idx),
            // `x is not defined` is one operand, and so is an attribute with the name of an operator.
            "in" if before == "not" && idx > 1 && self.text(idx - 2) == "is" => false,
            "and" | "or" | "not" | "in" | "if" | "else" | "recursive" => !matches!(before, "is" | "." | "|"),
            _ => idx == 0 && self.is_tag(),
        }
    }

    /// Whether an operand ends before this token.
    fn ends_operand(&self, idx: usize) -> bool {
        let Some(before) = idx.checked_sub(1) else { return false };
        let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | ')' | ']' | '}' | '\'' | '"');
        // What follows the name of a test is its argument: `x is in [1, 2]` does not index `in`.
        if is_open(self.text(idx)) && self.names_test(before) {
            return false;
        }
        self.text(before).ends_with(is_word) && self.text(before) != "is" && !self.binds_weaker(before)
    }

    /// Whether the token is the name of a test, after `is` or `is not`.
    fn names_test(&self, idx: usize) -> bool {
        let text_before = |n: usize| idx.checked_sub(n).map_or("", |before| self.text(before));
        match text_before(1) {
            "not" => text_before(2) == "is",
            before => before == "is" && self.text(idx) != "not",
        }
    }

    /// Returns where the expression begins that the bracket at `bracket` indexes, or `None` if the bracket begins a list.
    fn subscripted(&self, bracket: usize) -> Option<usize> {
        let mut end = bracket;
        loop {
            if !self.ends_operand(end) {
                return None;
            }
            let mut begin = end - 1;
            if matches!(self.text(begin), ")" | "]" | "}") {
                let depth = self.tokens[begin].depth;
                begin = (0..begin).rev().find(|&idx| self.tokens[idx].depth == depth && is_open(self.text(idx)))?;
            }
            match begin.checked_sub(1) {
                // A bracket after an operand calls or indexes it.
                Some(_) if is_open(self.text(begin)) && self.ends_operand(begin) => end = begin,
                Some(before) if self.text(before) == "." => end = before,
                _ => return Some(begin),
            }
        }
    }
}

/// A sum in the tokens `begin..end`, with the indices of its plus signs.
struct Sum {
    begin: usize,
    end: usize,
    signs: Vec<usize>,
}

fn is_open(text: &str) -> bool {
    matches!(text, "(" | "[" | "{")
}

/// Returns the variables that are set to a `safe` text somewhere.
fn safe_variables<'a>(codes: impl Iterator<Item = &'a Code<'a>>) -> Vec<&'a str> {
    codes.filter(|code| code.tag() == "set" && code.makes_safe()).map(|code| code.text(1)).collect()
}

/// Translates a quoted string, replacing the escapes that minijinja interprets differently than Python.
fn minijinja_string(quoted: &str) -> Result<String> {
    let mut out = String::with_capacity(quoted.len());
    let mut rest = quoted;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let escaped = rest[at + 1..].chars().next().unwrap_or_default();
        let mut len = 1 + escaped.len_utf8();
        match escaped {
            '/' => out.push_str("\\\\/"),
            'a' => out.push('\u{7}'),
            'v' => out.push('\u{b}'),
            '\n' => {}
            'U' => {
                let digits = rest.get(at + 2..at + 10).unwrap_or_default();
                let c = u32::from_str_radix(digits, 16).ok().and_then(char::from_u32);
                out.push(c.ok_or_else(|| unknown_escape(quoted))?);
                len += 8;
            }
            'N' => return Err(unknown_escape(quoted)),
            _ => out.push_str(&rest[at..at + len]),
        }
        rest = rest.get(at + len..).unwrap_or_default();
    }
    out.push_str(rest);
    Ok(out)
}

fn unknown_escape(quoted: &str) -> Error {
    Error::new(format!("the chat template has a string with an unsupported escape: {quoted}")).cure("Write the character itself.")
}

/// Splits a template into pieces. Unclosed code is left to minijinja, which reports it.
fn pieces(source: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = source;
    let mut begin = 0;
    while let Some(at) = rest[begin..].find('{').map(|at| begin + at) {
        let code = match rest.as_bytes().get(at + 1) {
            Some(b'#') => {
                begin = rest[at + 2..].find("#}").map_or(rest.len(), |end| at + 2 + end + 2);
                continue;
            }
            Some(b'%') => match raw_end(&rest[at..]) {
                Some(end) => {
                    begin = at + end;
                    continue;
                }
                None => code(&rest[at..], "%}"),
            },
            Some(b'{') => code(&rest[at..], "}}"),
            _ => {
                begin = at + 1;
                continue;
            }
        };
        let Some((code, len)) = code else { break };
        pieces.push(Piece::Verbatim(&rest[..at]));
        pieces.push(Piece::Code(code));
        rest = &rest[at + len..];
        begin = 0;
    }
    pieces.push(Piece::Verbatim(rest));
    pieces
}

/// Returns the end of the raw block that begins here, if one does.
fn raw_end(source: &str) -> Option<usize> {
    tag_len(source, "raw")?;
    let ends = source.match_indices("{%").find_map(|(at, _)| Some(at + tag_len(&source[at..], "endraw")?));
    Some(ends.unwrap_or(source.len()))
}

/// Returns the length of the tag with this name that begins here.
fn tag_len(source: &str, name: &str) -> Option<usize> {
    let inside = source.strip_prefix("{%")?.trim_start_matches(['-', '+']).trim_start().strip_prefix(name)?;
    let after = inside.trim_start().trim_start_matches(['-', '+']).strip_prefix("%}")?;
    Some(source.len() - after.len())
}

/// Returns the code that begins here and ends with `close`, and its length.
fn code<'a>(source: &'a str, close: &str) -> Option<(Code<'a>, usize)> {
    let mut at = 2 + usize::from(source[2..].starts_with(['-', '+']));
    let open = &source[..at];
    let (mut tokens, mut depth) = (Vec::new(), 0_usize);
    loop {
        let space = &source[at..source.len() - source[at..].trim_start().len()];
        at += space.len();
        let rest = &source[at..];
        let control = usize::from(rest.starts_with(['-', '+']));
        if depth == 0 && rest[control..].starts_with(close) {
            let end = at + control + close.len();
            return Some((Code { open, tokens, space, close: &source[at..end] }, end));
        }
        let len = token_len(rest)?;
        let text = &rest[..len];
        if matches!(text, ")" | "]" | "}") {
            depth = depth.saturating_sub(1);
        }
        tokens.push(Token { space, text, depth });
        depth += usize::from(is_open(text));
        at += len;
    }
}

/// Returns the length of the token that begins here, or `None` at the end and in an unclosed string.
fn token_len(rest: &str) -> Option<usize> {
    let first = rest.chars().next()?;
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let word = |text: &str| text.len() - text.trim_start_matches(is_word).len();
    match first {
        '\'' | '"' => {
            let mut is_escaped = false;
            let end = rest.char_indices().skip(1).find(|&(_, c)| {
                let ends = c == first && !is_escaped;
                is_escaped = c == '\\' && !is_escaped;
                ends
            });
            end.map(|(at, _)| at + 1)
        }
        '0'..='9' => {
            let mut len = word(rest);
            let fraction = rest[len..].strip_prefix('.').map_or(0, word);
            len += if fraction > 0 { 1 + fraction } else { 0 };
            let is_decimal = !rest.starts_with("0x");
            let exponent = rest[len..].strip_prefix(['-', '+']).map_or(0, word);
            Some(len + if is_decimal && rest[..len].ends_with(['e', 'E']) && exponent > 0 { 1 + exponent } else { 0 })
        }
        c if is_word(c) => Some(word(rest)),
        _ if ["==", "!=", "<=", ">=", "//", "**"].iter().any(|two| rest.starts_with(two)) => Some(2),
        c => Some(c.len_utf8()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(source: &str, expected: &str) {
        assert_eq!(translate(source).unwrap().source, expected, "{source}");
    }

    #[test]
    fn operands_of_tildes_become_text_and_nothing_else_moves() {
        check("{{ 'a' ~ b }}", "{{ 'a' ~ (b)|string }}");
        check(
            "{{- a.b[1] ~ -c * 2 ~ f(x ~ y) -}}",
            "{{- (a.b[1])|string ~ (-c * 2)|string ~ (f((x)|string ~ (y)|string))|string -}}",
        );
        check("{{ 1 + a ~ b - c }}", "{{ 1 + (a)|string ~ (b)|string - c }}");
        check("{% if not a ~ b == c and d %}", "{% if not (a)|string ~ (b)|string == c and d %}");
        check(
            "{% set x = a|join(', ') ~ b if c is not none else d ~ 'e' %}",
            "{% set x = (a|join(', '))|string ~ (b)|string if c is not none else (d)|string ~ 'e' %}",
        );
        check(
            "{{ {'a': b ~ c}['a'] ~ d is defined }}",
            "{{ ({'a': (b)|string ~ (c)|string}['a'])|string ~ (d is defined)|string }}",
        );
        check("{{ x is not in y ~ z not in w }}", "{{ (x is not in y)|string ~ (z)|string not in w }}");
        // A test's argument does not index the test's name.
        check("{{ x is in [1, 2] ~ y is not in ['items'] }}", "{{ (x is in [1, 2])|string ~ (y is not in ['items'])|string }}");
        check("{{ x is in(y) ~ x is in ['items'] }}", "{{ (x is in(y))|string ~ (x is in ['items'])|string }}");
        check("{{ x.not ~ y[a ~ b:] }}", "{{ (x.not)|string ~ ((y|sliceable)[(a)|string ~ (b)|string:])|string }}");
        check("{{ (a ~ b)[1:] ~ 1e-7 }}", "{{ ((((a)|string ~ (b)|string)|sliceable)[1:])|string ~ (1e-7)|string }}");
        check(
            "a ~ b {# c ~ d #}{% raw %}{{ a ~ b }}{%- endraw %}{{ '~' }}",
            "a ~ b {# c ~ d #}{% raw %}{{ a ~ b }}{%- endraw %}{{ '~' }}",
        );
        check("{{ a ~ ", "{{ a ~ ");
    }

    #[test]
    fn keys_of_the_names_of_methods_are_asked_for_as_jinja_does() {
        check("{{ a['items'] }}", "{{ (a|item('items')) }}");
        check("{% if x.y(1)['items']['get'].z %}", "{% if ((x.y(1)|item('items'))|item('get')).z %}");
        check("{{ ['items'] }}{% for x in ['items'] %}", "{{ ['items'] }}{% for x in ['items'] %}");
        check("{{ a.items() ~ b['keys'] }}", "{{ (a.items())|string ~ ((b|item('keys')))|string }}");
        check("{{ a.b.items.title }}{{ a.items() }}", "{{ ((a.b|attribute('items'))|attribute('title')) }}{{ a.items() }}");
        check(
            "{% set n.items = n.items + f(x.index) %}",
            "{% set n.items = (n|attribute('items')) + f((x|attribute('index'))) %}",
        );
        check("{{ loop.index }}{{ x['index'][0] }}", "{{ loop.index }}{{ (x|item('index'))[0] }}");
        check("{{ a.b[1:][0][x:y] + {'a': 1}['a'] }}", "{{ ((a.b|sliceable)[1:][0]|sliceable)[x:y] + {'a': 1}['a'] }}");
    }

    #[test]
    fn strings_have_pythons_escapes_and_lines_end_as_jinjas() {
        check(r"{{ 'a\/b\a\'\U0001f600\d\n' }}", "{{ 'a\\\\/b\u{7}\\'😀\\d\\n' }}");
        check("a\r\nb\rc{{ 'd\r\ne' }}", "a\nb\nc{{ 'd\ne' }}");
        assert!(translate(r"{{ '\N{DASH}' }}").is_err());
    }

    #[test]
    fn sums_with_safe_texts_escape_as_jinjas_do() {
        check("{{ 'a'|safe + b }}", "{{ ('a'|safe )|plus( b) }}");
        check("{{ a + 'b'|e + f(c + d) ~ g }}", "{{ ((a )|plus( 'b'|e ))|plus( (f((c )|plus( d)))|string ~ (g)|string) }}");
        check("{% set x = a | safe %}{{ x + b == c }}{{ b + c }}", "{% set x = a | safe %}{{ (x )|plus( b) == c }}{{ b + c }}");
        check(
            "{{ '+' ~ b | safe }}{{+ b | safe }}{{ 'safe|' + b }}",
            "{{ '+' ~ (b | safe)|string }}{{+ b | safe }}{{ 'safe|' + b }}",
        );
        assert!(translate("{{ 'a'|safe + b - c }}").is_err());
    }

    #[test]
    fn tags_may_hold_their_own_ends_in_strings_and_brackets() {
        check("{{ '}}' ~ a }}", "{{ '}}' ~ (a)|string }}");
        check("{{ {'a': {'b': 1}} }}", "{{ {'a': {'b': 1}} }}");
        check("{% set a = '%}' ~ b %}", "{% set a = '%}' ~ (b)|string %}");
    }
}
