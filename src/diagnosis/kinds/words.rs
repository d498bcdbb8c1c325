//! Finds words in a text, and recognises small words, numbers, scripts and names.

/// An answer of at most this many words only states its point.
pub(super) const SHORT_ANSWER: usize = 3;

/// Words that build a sentence and state nothing: without negations, quantities, modal verbs, and prepositions of place and time.
pub(super) const SMALL_WORDS: &str = "\
    a about also am an and are as at be because been being but by did do does for had has have here how i if in \
    into is it its just me my of on or our own so such than that the their them then there these they this those \
    to too upon us very was we were what when where which while who whom whose with you your yours ours theirs \
    itself themselves yourself";

const CONTRACTIONS: [&str; 6] = ["'s", "'m", "'re", "'ve", "'ll", "'d"];

pub(super) fn is_listed(word: &str, list: &str) -> bool {
    list.split_whitespace().any(|listed| listed == word)
}

/// Is the word one of [`SMALL_WORDS`], in lower case or capitalised at the beginning of a sentence, and not a name (`US`)? Only if the token
/// begins the word or is a contraction.
pub(super) fn is_small_word(text: &str, word: &str, token: &str) -> bool {
    if CONTRACTIONS.contains(&token.replace('’', "'").as_str()) {
        return true;
    }
    let lower = word.to_lowercase();
    let is_begun = token.trim_start().starts_with(word) && !word.is_empty();
    let as_written = word == lower || (word.chars().skip(1).all(char::is_lowercase) && !is_name(text, word));
    is_begun && as_written && is_listed(&lower, SMALL_WORDS)
}

/// The word that contains the byte `at`: letters, digits, and signs between digits; of Chinese numerals the whole run.
pub(super) fn word_around(text: &str, at: usize) -> &str {
    let at = text.floor_char_boundary(at.min(text.len()));
    let Some(here) = text[at..].chars().next().filter(|c| c.is_alphanumeric()) else { return "" };
    let fits = |c: char, beyond: Option<char>| {
        let between_digits = ".,:".contains(c) && beyond.is_some_and(|beyond| beyond.is_ascii_digit());
        match is_han(here) {
            true => is_han_numeral(here) && is_han_numeral(c),
            false => (c.is_alphanumeric() && !is_han(c)) || between_digits,
        }
    };
    let mut begin = at;
    let mut before = text[..at].char_indices().rev().peekable();
    while let Some((idx, c)) = before.next() {
        let beyond = before.peek().map(|(_, c)| *c);
        if !fits(c, beyond) {
            break;
        }
        begin = idx;
    }
    let mut end = at + here.len_utf8();
    let mut after = text[end..].char_indices().peekable();
    let from = end;
    while let Some((idx, c)) = after.next() {
        let beyond = after.peek().map(|(_, c)| *c);
        if !fits(c, beyond) {
            break;
        }
        end = from + idx + c.len_utf8();
    }
    &text[begin..end]
}

pub(super) fn first_word(text: &str) -> &str {
    let begin = text.find(char::is_alphanumeric).unwrap_or(text.len());
    word_around(text, begin)
}

pub(super) fn has_word(text: &str, word: &str) -> bool {
    let is_inner = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() && !is_han(c));
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (text[..at].chars().next_back(), text[at + word.len()..].chars().next());
        word.chars().next().is_some_and(is_han) || (!is_inner(before) && !is_inner(after))
    })
}

const NUMBER_WORDS: &str = "\
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen \
    seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million \
    billion half dozen twice thrice";

/// Is the word a number? `one` is more often a pronoun or an article, so that it counts only if the model expected a number as well.
pub(super) fn is_counted(word: &str, expected: &str) -> bool {
    is_number(word) && (!word.eq_ignore_ascii_case("one") || is_number(expected))
}

/// Does the word contain digits, or is it a number in words?
pub(super) fn is_number(word: &str) -> bool {
    let lower = word.to_lowercase();
    word.chars().any(char::is_numeric)
        || is_listed(&lower, NUMBER_WORDS)
        || (!word.is_empty() && word.chars().all(is_han_numeral))
}

fn is_han_numeral(c: char) -> bool {
    "零〇一二三四五六七八九十百千万亿两".contains(c)
}

pub(super) fn is_han(c: char) -> bool {
    matches!(c, '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}' | '\u{F900}'..='\u{FAFF}' | '\u{20000}'..='\u{3FFFF}')
}

/// The script of the first letter.
pub(super) fn script(word: &str) -> Option<&'static str> {
    word.chars().find_map(|c| match c {
        'A'..='Z' | 'a'..='z' | '\u{C0}'..='\u{24F}' | '\u{1E00}'..='\u{1EFF}' => Some("Latin"),
        '\u{370}'..='\u{3FF}' => Some("Greek"),
        '\u{400}'..='\u{52F}' => Some("Cyrillic"),
        '\u{590}'..='\u{5FF}' => Some("Hebrew"),
        '\u{600}'..='\u{6FF}' | '\u{750}'..='\u{77F}' => Some("Arabic"),
        '\u{900}'..='\u{97F}' => Some("Devanagari"),
        '\u{E00}'..='\u{E7F}' => Some("Thai"),
        '\u{3040}'..='\u{30FF}' => Some("Japanese"),
        '\u{AC00}'..='\u{D7AF}' => Some("Korean"),
        c if is_han(c) => Some("Chinese"),
        _ => None,
    })
}

/// Is the word capitalised where only a name is? The first word of a sentence is a name if the text also has it within a sentence, or if the
/// answer has only a few words.
pub(super) fn is_name(text: &str, word: &str) -> bool {
    let is_capitalised = word.chars().next().is_some_and(char::is_uppercase) && word != "I";
    if !is_capitalised {
        return false;
    }
    let within_sentence = |at: usize| {
        let before = text[..at].trim_end_matches([' ', '"', '“', '\'', '(', '*', '`']);
        before
            .chars()
            .next_back()
            .is_some_and(|c| c.is_alphanumeric() || ",;-–—/&@".contains(c) || (c == '.' && is_list_number(before)))
    };
    text.split_whitespace().count() <= SHORT_ANSWER || text.match_indices(word).any(|(at, _)| within_sentence(at))
}

/// Does the text end with the number of a list item, such as `8.`?
fn is_list_number(text: &str) -> bool {
    let item = text.rsplit(char::is_whitespace).next().unwrap_or_default();
    item.strip_suffix('.').is_some_and(|number| !number.is_empty() && number.chars().all(|c| c.is_ascii_digit()))
}
