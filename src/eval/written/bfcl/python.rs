//! Parses Python expressions into trees. It reads the whole grammar of expressions, so that it distinguishes valid from invalid
//! Python, but keeps only the kinds of expression that occur in a call's arguments.
//!
//! Grammar: docs.python.org/3/reference/grammar.html, 3.11. Not supported: the expressions in an f-string's braces, and named
//! characters (`\N{..}`).

use super::value::Value;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Expr {
    Constant(Value),
    Ellipsis,
    Name(String),
    Attribute(Box<Expr>, String),
    Call(Box<Call>),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Set(Vec<Expr>),
    /// The entries of a dictionary; the key of `**more` is `None`.
    Dict(Vec<(Option<Expr>, Expr)>),
    Unary(&'static str, Box<Expr>),
    Binary(&'static str, Box<Expr>, Box<Expr>),
    Subscript(Box<Expr>, Box<Expr>),
    /// An expression of another kind, as its source text.
    Other(String),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    /// The called expression.
    pub function: Expr,
    /// The positional arguments.
    pub positional: Vec<Expr>,
    /// The named arguments; the name of `**more` is `None`.
    pub named: Vec<(Option<String>, Expr)>,
}

/// Positional arguments, and named ones.
type Arguments = (Vec<Expr>, Vec<(Option<String>, Expr)>);

/// Parses a text that is one expression, like `ast.parse(text, mode="eval")`; `None` where Python reports a syntax error.
pub(super) fn parse(text: &str) -> Option<Expr> {
    let tokens = tokens(text)?;
    let mut parser = Parser { text, tokens, at: 0, depth: 0, links: 0 };
    let expr = parser.several()?;
    (parser.at == parser.tokens.len()).then_some(expr)
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Name,
    Number(Value),
    /// The value of a literal; `None` for an f-string.
    Text(Option<Value>),
    Op,
}

#[derive(Debug, Clone)]
struct Token {
    kind: Kind,
    begin: usize,
    end: usize,
}

const KEYWORDS: [&str; 35] = [
    "False", "None", "True", "and", "as", "assert", "async", "await", "break", "class", "continue", "def", "del", "elif", "else",
    "except", "finally", "for", "from", "global", "if", "import", "in", "is", "lambda", "nonlocal", "not", "or", "pass", "raise",
    "return", "try", "while", "with", "yield",
];

/// The operators, the longest first.
const OPS: [&str; 33] = [
    "...", "**", "//", "<<", ">>", "<=", ">=", "==", "!=", ":=", "->", "(", ")", "[", "]", "{", "}", ",", ":", ".", "=", "+",
    "-", "*", "/", "%", "@", "&", "|", "^", "~", "<", ">",
];

fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let (mut at, mut open) = (0, 0i64);
    while let Some(c) = text[at..].chars().next() {
        let begin = at;
        let rest = &text[at..];
        match c {
            ' ' | '\t' | '\u{c}' => at += 1,
            // Line breaks only matter outside brackets, where nothing may follow them.
            '\n' | '\r' if open > 0 => at += 1,
            '\n' | '\r' => return rest.trim_matches([' ', '\t', '\n', '\r', '\u{c}']).is_empty().then_some(tokens),
            '\\' => at += ["\\\n", "\\\r\n"].iter().find(|end| rest.starts_with(**end))?.len(),
            '#' => at += rest.find(['\n', '\r']).unwrap_or(rest.len()),
            _ => {
                let kind = if let Some((value, n)) = literal(rest) {
                    at += n;
                    Kind::Text(value?)
                } else if c.is_ascii_digit() || c == '.' && rest[1..].starts_with(|c: char| c.is_ascii_digit()) {
                    let (value, n) = number(rest)?;
                    at += n;
                    Kind::Number(value)
                } else if c == '_' || c.is_alphabetic() {
                    at += rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
                    Kind::Name
                } else {
                    let op = OPS.iter().find(|op| rest.starts_with(**op))?;
                    open += i64::from("([{".contains(*op)) - i64::from(")]}".contains(*op));
                    if open > DEEPEST as i64 {
                        return None;
                    }
                    at += op.len();
                    Kind::Op
                };
                tokens.push(Token { kind, begin, end: at });
            }
        }
    }
    Some(tokens)
}

/// A number and the length of its text.
fn number(text: &str) -> Option<(Value, usize)> {
    let digits_of = |text: &str, radix: u32| -> Option<(String, usize)> {
        // Single underscores may separate digits.
        let n = text.find(|c: char| c != '_' && !c.is_digit(radix)).unwrap_or(text.len());
        let written = &text[..n];
        let is_wrong = written.is_empty() || written.starts_with('_') || written.ends_with('_') || written.contains("__");
        (!is_wrong).then(|| (written.replace('_', ""), n))
    };
    let ends = |n: usize| !text[n..].starts_with(|c: char| c == '_' || c.is_alphanumeric());
    for (prefix, radix) in [("0x", 16), ("0o", 8), ("0b", 2)] {
        if text.get(..2).is_some_and(|start| start.eq_ignore_ascii_case(prefix)) {
            let rest = text[2..].strip_prefix('_').unwrap_or(&text[2..]);
            let (digits, n) = digits_of(rest, radix)?;
            let n = n + text.len() - rest.len();
            let value = i128::from_str_radix(&digits, radix).map_or(Value::Opaque, Value::Int);
            return ends(n).then_some((value, n));
        }
    }
    let (mut digits, mut n) = if text.starts_with('.') { (String::new(), 0) } else { digits_of(text, 10)? };
    let mut is_whole = true;
    if text[n..].starts_with('.') {
        is_whole = false;
        digits.push('.');
        n += 1;
        if text[n..].starts_with(|c: char| c.is_ascii_digit()) {
            let (decimals, more) = digits_of(&text[n..], 10)?;
            digits.push_str(&decimals);
            n += more;
        }
    }
    if text[n..].starts_with(['e', 'E']) {
        let sign = usize::from(text[n + 1..].starts_with(['+', '-']));
        let (exponent, more) = digits_of(&text[n + 1 + sign..], 10)?;
        digits.push_str(&text[n..n + 1 + sign]);
        digits.push_str(&exponent);
        n += 1 + sign + more;
        is_whole = false;
    }
    if text[n..].starts_with(['j', 'J']) {
        return ends(n + 1).then_some((Value::Opaque, n + 1));
    }
    if !ends(n) || is_whole && digits.len() > 1 && digits.starts_with('0') && !digits.trim_matches('0').is_empty() {
        return None;
    }
    let value = match is_whole {
        true => digits.parse().map_or(Value::Opaque, Value::Int),
        false => Value::Float(digits.parse().ok()?),
    };
    Some((value, n))
}

/// A string literal and the length of its text, if the text starts with one. The inner option is `None` for an invalid literal,
/// the innermost for an f-string.
fn literal(text: &str) -> Option<(Option<Option<Value>>, usize)> {
    let n_prefix = text.find(|c: char| !c.is_ascii_alphabetic())?;
    let prefix = text[..n_prefix].to_ascii_lowercase();
    if !["", "r", "u", "b", "f", "br", "rb", "fr", "rf"].contains(&prefix.as_str()) {
        return None;
    }
    let rest = &text[n_prefix..];
    let quote = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quote| rest.starts_with(*quote))?;
    let inside = &rest[quote.len()..];
    let mut end = None;
    let mut chars = inside.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            '\n' if quote.len() == 1 => break,
            _ if inside[at..].starts_with(quote) => {
                end = Some(at);
                break;
            }
            _ => {}
        }
    }
    let Some(end) = end else { return Some((None, text.len())) };
    let n = n_prefix + quote.len() + end + quote.len();
    let inside = &inside[..end];
    let value = if prefix.contains('f') {
        Some(None)
    } else if prefix.contains('b') {
        inside.is_ascii().then_some(Some(Value::Opaque))
    } else if prefix.contains('r') {
        Some(Some(Value::Text(inside.to_owned())))
    } else {
        unescaped(inside).map(|text| Some(Value::Text(text)))
    };
    Some((value, n))
}

fn unescaped(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let c = rest.chars().next()?;
        let hex = |rest: &str, n: usize| {
            let digits = rest.get(1..1 + n).filter(|digits| digits.chars().all(|c| c.is_ascii_hexdigit()))?;
            let code = u32::from_str_radix(digits, 16).ok()?;
            // Half of a surrogate pair is a character in Python.
            (code <= 0x10_ffff).then(|| char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER))
        };
        let (written, n) = match c {
            '\n' => (None, 1),
            '\\' | '\'' | '"' => (Some(c), 1),
            'a' => (Some('\u{7}'), 1),
            'b' => (Some('\u{8}'), 1),
            'f' => (Some('\u{c}'), 1),
            'n' => (Some('\n'), 1),
            'r' => (Some('\r'), 1),
            't' => (Some('\t'), 1),
            'v' => (Some('\u{b}'), 1),
            'x' => (Some(hex(rest, 2)?), 3),
            'u' => (Some(hex(rest, 4)?), 5),
            'U' => (Some(hex(rest, 8)?), 9),
            'N' => {
                let n = rest.strip_prefix("N{")?.find('}')?;
                (Some(char::REPLACEMENT_CHARACTER), n + 3)
            }
            '0'..='7' => {
                let n = rest.bytes().take(3).take_while(|byte| (b'0'..=b'7').contains(byte)).count();
                (u32::from_str_radix(&rest[..n], 8).ok().and_then(char::from_u32), n)
            }
            other => {
                out.push('\\');
                (Some(other), other.len_utf8())
            }
        };
        out.extend(written);
        rest = &rest[n..];
    }
    out.push_str(rest);
    Some(out)
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    at: usize,
    /// The nesting depth of the current expression.
    depth: usize,
    /// The number of operators and the like that have made the tree higher without brackets.
    links: usize,
}

/// The deepest nesting of expressions, and of brackets, where Python's tokenizer also gives up.
const DEEPEST: usize = 200;
/// The maximum number of links in chains without brackets: Python gives up on trees 3,000 high, and everything here that walks a
/// tree is recursive.
const LONGEST: usize = 1000;

impl Parser<'_> {
    fn word(&self, at: usize) -> &str {
        self.tokens
            .get(at)
            .filter(|token| matches!(token.kind, Kind::Name | Kind::Op))
            .map_or("", |token| &self.text[token.begin..token.end])
    }

    fn is(&self, word: &str) -> bool {
        self.word(self.at) == word
    }

    fn takes(&mut self, word: &str) -> bool {
        let is_next = self.is(word);
        self.at += usize::from(is_next);
        is_next
    }

    /// Counts another link of a chain; the first link of a kind is free where brackets already limit how often it occurs.
    fn links(&mut self, is_free: bool) -> Option<()> {
        self.links += usize::from(!is_free);
        (self.links <= LONGEST).then_some(())
    }

    fn expects(&mut self, word: &str) -> Option<()> {
        self.takes(word).then_some(())
    }

    /// Reads a name that is not a keyword of Python.
    fn name(&mut self) -> Option<String> {
        let is_name = self.tokens.get(self.at).is_some_and(|token| token.kind == Kind::Name);
        let name = self.word(self.at);
        if !is_name || KEYWORDS.contains(&name) {
            return None;
        }
        let name = name.to_owned();
        self.at += 1;
        Some(name)
    }

    /// The source text from the token `first` on, as an expression of another kind.
    fn other(&self, first: usize) -> Expr {
        let end = self.at.checked_sub(1).and_then(|last| self.tokens.get(last)).map_or(0, |token| token.end);
        let begin = self.tokens.get(first).map_or(end, |token| token.begin);
        Expr::Other(self.text.get(begin..end).unwrap_or_default().to_owned())
    }

    /// Reads one expression, or several separated by commas, which form a tuple.
    fn several(&mut self) -> Option<Expr> {
        let first = self.item()?;
        if !self.is(",") {
            return (!matches!(first, Item::Starred(_))).then(|| first.into());
        }
        let mut items = vec![first.into()];
        while self.takes(",") {
            if self.ends() {
                break;
            }
            items.push(self.item()?.into());
        }
        Some(Expr::Tuple(items))
    }

    /// Does a list end here?
    fn ends(&self) -> bool {
        self.at >= self.tokens.len() || [")", "]", "}", "=", ":"].contains(&self.word(self.at))
    }

    fn item(&mut self) -> Option<Item> {
        let first = self.at;
        if self.takes("*") {
            self.binary(0)?;
            return Some(Item::Starred(self.other(first)));
        }
        self.named().map(Item::Plain)
    }

    /// Reads `name := value`, or an expression.
    fn named(&mut self) -> Option<Expr> {
        let first = self.at;
        if self.word(self.at + 1) == ":=" {
            self.name()?;
            self.at += 1;
            self.expression()?;
            return Some(self.other(first));
        }
        self.expression()
    }

    fn expression(&mut self) -> Option<Expr> {
        self.depth += 1;
        let expr = if self.depth > DEEPEST { None } else { self.expression_inside() };
        self.depth -= 1;
        expr
    }

    fn expression_inside(&mut self) -> Option<Expr> {
        let first = self.at;
        if self.takes("lambda") {
            self.parameters()?;
            self.expects(":")?;
            self.expression()?;
            return Some(self.other(first));
        }
        let value = self.disjunction()?;
        if self.takes("if") {
            self.disjunction()?;
            self.expects("else")?;
            self.expression()?;
            return Some(self.other(first));
        }
        Some(value)
    }

    /// Reads the parameters of a lambda.
    fn parameters(&mut self) -> Option<()> {
        while !self.is(":") {
            let _ = self.takes("**") || self.takes("*") || self.takes("/");
            if !self.is(",") && !self.is(":") {
                self.name()?;
                if self.takes("=") {
                    self.expression()?;
                }
            }
            if !self.takes(",") {
                break;
            }
        }
        Some(())
    }

    fn disjunction(&mut self) -> Option<Expr> {
        self.joined("or", |parser| parser.joined("and", Parser::inversion))
    }

    fn joined(&mut self, word: &str, part: impl Fn(&mut Self) -> Option<Expr>) -> Option<Expr> {
        let first = self.at;
        let value = part(self)?;
        if !self.is(word) {
            return Some(value);
        }
        while self.takes(word) {
            part(self)?;
        }
        Some(self.other(first))
    }

    fn inversion(&mut self) -> Option<Expr> {
        let mut n = 0;
        while self.takes("not") {
            self.links(n == 0)?;
            n += 1;
        }
        let value = self.comparison()?;
        Some((0..n).fold(value, |value, _| Expr::Unary("not", Box::new(value))))
    }

    fn comparison(&mut self) -> Option<Expr> {
        let first = self.at;
        let value = self.binary(0)?;
        let mut compares = false;
        loop {
            let word = self.word(self.at);
            if ["==", "!=", "<", "<=", ">", ">=", "in"].contains(&word) {
                self.at += 1;
            } else if word == "is" {
                self.at += 1;
                self.takes("not");
            } else if word == "not" && self.word(self.at + 1) == "in" {
                self.at += 2;
            } else {
                break;
            }
            self.binary(0)?;
            compares = true;
        }
        Some(if compares { self.other(first) } else { value })
    }

    /// Reads the binary operators of this level and of those that bind more tightly.
    fn binary(&mut self, level: usize) -> Option<Expr> {
        let Some(ops) = LEVELS.get(level) else { return self.factor() };
        let mut value = self.binary(level + 1)?;
        while let Some(op) = ops.iter().copied().find(|op| self.is(op)) {
            self.at += 1;
            self.links(false)?;
            value = Expr::Binary(op, Box::new(value), Box::new(self.binary(level + 1)?));
        }
        Some(value)
    }

    fn factor(&mut self) -> Option<Expr> {
        let mut signs = Vec::new();
        while let Some(sign) = ["+", "-", "~"].into_iter().find(|sign| self.is(sign)) {
            self.at += 1;
            self.links(signs.is_empty())?;
            signs.push(sign);
        }
        let mut value = self.power()?;
        while let Some(sign) = signs.pop() {
            value = Expr::Unary(sign, Box::new(value));
        }
        Some(value)
    }

    fn power(&mut self) -> Option<Expr> {
        let first = self.at;
        let awaits = self.takes("await");
        let mut base = self.primary()?;
        if awaits {
            base = self.other(first);
        }
        if self.takes("**") {
            self.links(false)?;
            self.depth += 1;
            let exponent = if self.depth > DEEPEST { None } else { self.factor() };
            self.depth -= 1;
            return Some(Expr::Binary("**", Box::new(base), Box::new(exponent?)));
        }
        Some(base)
    }

    fn primary(&mut self) -> Option<Expr> {
        let mut value = self.atom()?;
        let mut n = 0;
        loop {
            if [".", "(", "["].contains(&self.word(self.at)) {
                self.links(n == 0)?;
                n += 1;
            }
            if self.takes(".") {
                value = Expr::Attribute(Box::new(value), self.name()?);
            } else if self.takes("(") {
                let (positional, named) = self.arguments()?;
                value = Expr::Call(Box::new(Call { function: value, positional, named }));
            } else if self.takes("[") {
                let index = self.index()?;
                self.expects("]")?;
                value = Expr::Subscript(Box::new(value), Box::new(index));
            } else {
                return Some(value);
            }
        }
    }

    /// Reads the arguments of a call up to the closing bracket.
    fn arguments(&mut self) -> Option<Arguments> {
        let (mut positional, mut named) = (Vec::new(), Vec::new());
        let mut has_mapping = false;
        while !self.takes(")") {
            let first = self.at;
            if self.takes("**") {
                named.push((None, self.expression()?));
                has_mapping = true;
            } else if self.takes("*") {
                // `*more` may follow named arguments, but not `**more`.
                self.expression()?;
                if has_mapping {
                    return None;
                }
                positional.push(self.other(first));
            } else if self.word(self.at + 1) == "=" {
                let name = self.name()?;
                self.at += 1;
                named.push((Some(name), self.expression()?));
            } else {
                let value = self.named()?;
                if self.begins_loop() {
                    self.loops()?;
                    // A generator without its own brackets must be the only argument.
                    if !positional.is_empty() || !named.is_empty() || !self.is(")") {
                        return None;
                    }
                    positional.push(self.other(first));
                } else if named.is_empty() {
                    positional.push(value);
                } else {
                    return None;
                }
            }
            if !self.takes(",") {
                self.expects(")")?;
                break;
            }
        }
        Some((positional, named))
    }

    /// Reads the index between the brackets of a subscript.
    fn index(&mut self) -> Option<Expr> {
        let first = self.at;
        let (mut items, mut is_tuple, mut has_slice) = (Vec::new(), false, false);
        loop {
            let start = self.at;
            let mut value = None;
            if !self.is(":") {
                value = Some(match self.item()? {
                    Item::Starred(starred) => {
                        is_tuple = true;
                        starred
                    }
                    Item::Plain(value) => value,
                });
            }
            let mut colons = 0;
            while colons < 2 && self.takes(":") {
                colons += 1;
                if !self.is(":") && !self.is(",") && !self.is("]") {
                    self.expression()?;
                }
            }
            has_slice |= colons > 0;
            items.push(if colons > 0 { self.other(start) } else { value? });
            if !self.takes(",") {
                break;
            }
            is_tuple = true;
            if self.is("]") {
                break;
            }
        }
        match (is_tuple, has_slice) {
            (false, _) => items.pop(),
            (true, false) => Some(Expr::Tuple(items)),
            (true, true) => Some(self.other(first)),
        }
    }

    fn begins_loop(&self) -> bool {
        self.is("for") || self.is("async") && self.word(self.at + 1) == "for"
    }

    /// Reads `for target in values if condition`, once or more.
    fn loops(&mut self) -> Option<()> {
        while self.begins_loop() {
            self.takes("async");
            self.expects("for")?;
            loop {
                self.takes("*");
                let target = self.binary(0)?;
                if !matches!(target, Expr::Name(_) | Expr::Attribute(..) | Expr::Subscript(..) | Expr::Tuple(_) | Expr::List(_)) {
                    return None;
                }
                if !self.takes(",") || self.is("in") {
                    break;
                }
            }
            self.expects("in")?;
            self.disjunction()?;
            while self.takes("if") {
                self.disjunction()?;
            }
        }
        Some(())
    }

    fn atom(&mut self) -> Option<Expr> {
        let first = self.at;
        let token = self.tokens.get(self.at)?.clone();
        match token.kind {
            Kind::Number(value) => {
                self.at += 1;
                return Some(Expr::Constant(value));
            }
            Kind::Text(_) => return self.texts(),
            Kind::Name | Kind::Op => {}
        }
        match &self.text[token.begin..token.end] {
            "True" => self.constant(Value::Bool(true)),
            "False" => self.constant(Value::Bool(false)),
            "None" => self.constant(Value::None),
            "..." => {
                self.at += 1;
                Some(Expr::Ellipsis)
            }
            "(" => {
                self.at += 1;
                if self.takes(")") {
                    return Some(Expr::Tuple(Vec::new()));
                }
                if self.takes("yield") {
                    if self.takes("from") {
                        self.expression()?;
                    } else if !self.is(")") {
                        self.several()?;
                    }
                    self.expects(")")?;
                    return Some(self.other(first));
                }
                let value = self.item()?;
                if self.begins_loop() {
                    self.loops()?;
                    self.expects(")")?;
                    return matches!(value, Item::Plain(_)).then(|| self.other(first));
                }
                if self.takes(")") {
                    return match value {
                        Item::Plain(value) => Some(value),
                        Item::Starred(_) => None,
                    };
                }
                Some(Expr::Tuple(self.rest(value, ")")?))
            }
            "[" => {
                self.at += 1;
                if self.takes("]") {
                    return Some(Expr::List(Vec::new()));
                }
                let value = self.item()?;
                if self.begins_loop() {
                    self.loops()?;
                    self.expects("]")?;
                    return matches!(value, Item::Plain(_)).then(|| self.other(first));
                }
                Some(Expr::List(self.rest(value, "]")?))
            }
            "{" => {
                self.at += 1;
                self.braces(first)
            }
            _ => self.name().map(Expr::Name),
        }
    }

    fn constant(&mut self, value: Value) -> Option<Expr> {
        self.at += 1;
        Some(Expr::Constant(value))
    }

    /// Joins adjacent string literals.
    fn texts(&mut self) -> Option<Expr> {
        let first = self.at;
        let (mut joined, mut n_bytes, mut n_format) = (String::new(), 0, 0);
        while let Some(Token { kind: Kind::Text(value), .. }) = self.tokens.get(self.at) {
            match value {
                Some(Value::Text(text)) => joined.push_str(text),
                Some(_) => n_bytes += 1,
                None => n_format += 1,
            }
            self.at += 1;
        }
        match (n_bytes, n_format) {
            (0, 0) => Some(Expr::Constant(Value::Text(joined))),
            (0, _) => Some(self.other(first)),
            (n, _) if n == self.at - first => Some(Expr::Constant(Value::Opaque)),
            // Bytes and strings cannot be joined.
            _ => None,
        }
    }

    /// Reads the other elements up to the closing bracket.
    fn rest(&mut self, first: Item, close: &str) -> Option<Vec<Expr>> {
        let mut items = vec![first.into()];
        loop {
            if self.takes(close) {
                return Some(items);
            }
            self.expects(",")?;
            if self.takes(close) {
                return Some(items);
            }
            items.push(self.item()?.into());
        }
    }

    /// Reads a dictionary or a set after its opening brace.
    fn braces(&mut self, first: usize) -> Option<Expr> {
        if self.takes("}") {
            return Some(Expr::Dict(Vec::new()));
        }
        let mut entries = Vec::new();
        let is_mapping = self.is("**");
        if !is_mapping {
            let value = self.item()?;
            if !self.takes(":") {
                if self.begins_loop() {
                    self.loops()?;
                    self.expects("}")?;
                    return matches!(value, Item::Plain(_)).then(|| self.other(first));
                }
                return Some(Expr::Set(self.rest(value, "}")?));
            }
            let Item::Plain(key) = value else { return None };
            entries.push((Some(key), self.expression()?));
            if self.begins_loop() {
                self.loops()?;
                self.expects("}")?;
                return Some(self.other(first));
            }
            if !self.takes(",") {
                self.expects("}")?;
                return Some(Expr::Dict(entries));
            }
        }
        while !self.takes("}") {
            if self.takes("**") {
                entries.push((None, self.binary(0)?));
            } else {
                let key = self.expression()?;
                self.expects(":")?;
                entries.push((Some(key), self.expression()?));
            }
            if !self.takes(",") {
                self.expects("}")?;
                break;
            }
        }
        Some(Expr::Dict(entries))
    }
}

/// An element of a list.
enum Item {
    Plain(Expr),
    Starred(Expr),
}

impl From<Item> for Expr {
    fn from(item: Item) -> Expr {
        match item {
            Item::Plain(expr) | Item::Starred(expr) => expr,
        }
    }
}

/// The binary operators, those that bind least tightly first; `**` is handled separately.
const LEVELS: [&[&str]; 6] = [&["|"], &["^"], &["&"], &["<<", ">>"], &["+", "-"], &["*", "/", "//", "%", "@"]];

/// The expression as `ast.unparse` writes it.
pub(super) fn unparse(expr: &Expr) -> String {
    written(expr, 0)
}

/// How tightly an expression binds; 0 for one that gets brackets inside any operator.
fn binding(expr: &Expr) -> usize {
    match expr {
        Expr::Binary("**", ..) => LEVELS.len() + 3,
        Expr::Binary(op, ..) => LEVELS.iter().position(|ops| ops.contains(op)).unwrap_or(0) + 2,
        Expr::Unary("not", _) => 1,
        Expr::Unary(..) => LEVELS.len() + 2,
        Expr::Other(_) => 0,
        _ => usize::MAX,
    }
}

/// The expression as text, in brackets if it binds less tightly than `least`.
fn written(expr: &Expr, least: usize) -> String {
    let list = |items: &[Expr]| items.iter().map(|item| written(item, 0)).collect::<Vec<_>>().join(", ");
    let text = match expr {
        Expr::Constant(value) => value.repr(),
        Expr::Ellipsis => "...".to_owned(),
        Expr::Name(name) => name.clone(),
        Expr::Attribute(value, name) => format!("{}.{name}", written(value, usize::MAX)),
        Expr::Call(call) => {
            let named = call.named.iter().map(|(name, value)| match name {
                Some(name) => format!("{name}={}", written(value, 0)),
                None => format!("**{}", written(value, 0)),
            });
            let all: Vec<String> = call.positional.iter().map(|value| written(value, 0)).chain(named).collect();
            format!("{}({})", written(&call.function, usize::MAX), all.join(", "))
        }
        Expr::List(items) => format!("[{}]", list(items)),
        Expr::Set(items) => format!("{{{}}}", list(items)),
        Expr::Tuple(items) if items.len() == 1 => format!("({},)", list(items)),
        Expr::Tuple(items) => format!("({})", list(items)),
        Expr::Dict(entries) => {
            let entry = |(key, value): &(Option<Expr>, Expr)| match key {
                Some(key) => format!("{}: {}", written(key, 0), written(value, 0)),
                None => format!("**{}", written(value, 0)),
            };
            format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
        Expr::Unary("not", value) => format!("not {}", written(value, 1)),
        Expr::Unary(sign, value) => format!("{sign}{}", written(value, binding(expr))),
        Expr::Binary(op, left, right) => {
            let own = binding(expr);
            let is_power = *op == "**";
            format!("{} {op} {}", written(left, own + usize::from(is_power)), written(right, own + usize::from(!is_power)))
        }
        Expr::Subscript(value, index) => format!("{}[{}]", written(value, usize::MAX), index_written(index)),
        Expr::Other(text) => text.clone(),
    };
    if binding(expr) < least { format!("({text})") } else { text }
}

/// The index of a subscript as text: a tuple there has no brackets of its own.
pub(super) fn index_written(index: &Expr) -> String {
    match index {
        Expr::Tuple(items) if items.len() == 1 => format!("{},", written(&items[0], 0)),
        Expr::Tuple(items) if !items.is_empty() => items.iter().map(|item| written(item, 0)).collect::<Vec<_>>().join(", "),
        other => written(other, 0),
    }
}
