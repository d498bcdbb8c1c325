//! Formats numbers and excerpts of text for people to read.

/// The first `n` characters of a text, followed by `..` if it is longer, so that nobody takes the excerpt for the whole.
pub(crate) fn beginning(text: &str, n: usize) -> String {
    match text.char_indices().nth(n) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text.to_owned(),
    }
}

/// The marks that isolate the direction of right-to-left text from the text around it (Unicode, UAX 9): first strong isolate, and
/// pop directional isolate.
pub(crate) const ISOLATE: [char; 2] = ['\u{2068}', '\u{2069}'];

/// Makes text safe to show on one line: replaces line ends, tabs and control characters by visible signs, and also the invisible
/// characters that could reorder the text (Unicode's bidirectional controls) or hide in it.
pub(crate) fn visible(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
        match c {
            '\n' => shown.push('⏎'),
            '\t' => shown.push('⇥'),
            '\u{A0}' | '\u{2007}' | '\u{202F}' => shown.push('⍽'),
            '\u{AD}'
            | '\u{180E}'
            | '\u{200B}'..='\u{200D}'
            | '\u{2060}'..='\u{206F}'
            | '\u{FEFF}'
            | '\u{FFF9}'..='\u{FFFB}'
            | '\u{E0000}'..='\u{E007F}' => push_sign(&mut shown, c),
            c if acts(c) => push_sign(&mut shown, c),
            c => shown.push(c),
        }
        shown
    })
}

/// Makes text of several lines safe to show: like [`visible`], but keeps line ends, tabs and merely invisible characters.
/// Everything that goes to a terminal or into a report passes through here, since it may quote untrusted data: control characters
/// could command the terminal, and bidirectional controls could reorder a line so that it reads differently. `kept` are the
/// program's own marks, which stay.
pub(crate) fn harmless(text: &str, kept: &[char]) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
        match acts(c) && !kept.contains(&c) {
            true => push_sign(&mut shown, c),
            false => shown.push(c),
        }
        shown
    })
}

/// Does a terminal act on the character, or can it reorder a line? Line ends and tabs are harmless.
pub(crate) fn acts(c: char) -> bool {
    let turns = matches!(c, '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
    turns || c.is_control() && !matches!(c, '\n' | '\t')
}

fn push_sign(shown: &mut String, c: char) {
    match c {
        '\0'..='\u{1F}' => shown.push(char::from_u32(0x2400 + c as u32).unwrap_or('�')),
        '\u{7F}' => shown.push('␡'),
        c => shown.push_str(&format!("⟨U+{:04X}⟩", c as u32)),
    }
}

/// How many columns of a terminal the text takes: two for a Chinese character, none for a combining mark.
pub(crate) fn n_columns(text: &str) -> usize {
    unicode_width::UnicodeWidthStr::width(text)
}

/// Formats 1234567 as `1,234,567`.
pub(crate) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (idx, digit) in digits.chars().enumerate() {
        if idx > 0 && (digits.len() - idx).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `12,345 rows`, or `1 row`.
pub(crate) fn count(n: u64, what: &str) -> String {
    counted(n, what, &format!("{what}s"))
}

/// `12,345 rows were cut`, or `1 row was cut`: a number followed by the words for the singular or the plural.
pub(crate) fn counted(n: u64, one: &str, several: &str) -> String {
    format!("{} {}", thousands(n), if n == 1 { one } else { several })
}

/// `2 of 6 rows have`, `1 of 6 rows has`, `1 of 1 row has`: a part of some things, and the verb for one and for several of them.
pub(crate) fn part_of(n: u64, of: u64, what: &str, [one, several]: [&str; 2]) -> String {
    format!("{} of {} {}", thousands(n), count(of, what), if n == 1 { one } else { several })
}

/// `12,345 tokens`, or `1 token`.
pub(crate) fn n_tokens(n: u64) -> String {
    count(n, "token")
}

/// A share in per cent, with at most three significant digits and two decimals: `12.3 %`, `0.45 %`, `< 0.01 %`.
pub(crate) fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    match percent.abs() {
        size if size.is_nan() => "–".to_owned(),
        0.0 => "0 %".to_owned(),
        size if size < 0.01 => if percent > 0.0 { "< 0.01 %" } else { "> -0.01 %" }.to_owned(),
        size if size < 0.995 => format!("{percent:.2} %"),
        size if size < 99.95 => format!("{percent:.1} %"),
        _ => format!("{percent:.0} %"),
    }
}

/// A share with its interval, `4.2 % (3.6 to 4.9)`, or the share alone if there is no interval.
pub(crate) fn percent_with_interval(share: f64, ci95: Option<[f64; 2]>) -> String {
    let end = |share: f64| percent(share).trim_end_matches(" %").to_owned();
    let interval = ci95.map(|[low, high]| format!(" ({} to {})", end(low), end(high)));
    percent(share) + &interval.unwrap_or_default()
}

/// A number with `digits` decimals, from a million on with an exponent, since nobody reads two hundred digits. `-` for an
/// infinite number or NaN.
pub(crate) fn number(value: f64, digits: usize) -> String {
    match value.abs() {
        size if !size.is_finite() => "-".to_owned(),
        size if size < 1e6 => format!("{value:.digits$}"),
        _ => format!("{value:.digits$e}"),
    }
}

/// `1.20 to 1.35`; `-` if there is no interval or one of its ends is not finite.
pub(crate) fn ends(ci95: Option<[f64; 2]>, digits: usize) -> String {
    let finite = ci95.filter(|ends| ends.iter().all(|end| end.is_finite()));
    finite.map_or_else(|| "-".to_owned(), |[low, high]| format!("{} to {}", number(low, digits), number(high, digits)))
}

/// A [`number`] with its interval, `1.27 (1.20 to 1.35)`; `-` if there is no number.
pub(crate) fn number_with_interval(value: Option<f64>, ci95: Option<[f64; 2]>, digits: usize) -> String {
    let Some(value) = value else { return "-".to_owned() };
    match ends(ci95, digits).as_str() {
        "-" => number(value, digits),
        ends => format!("{} ({ends})", number(value, digits)),
    }
}

/// A divergence in nats with its interval: four decimals, or two significant digits below 0.001: `0.0183`, `9.7e-7`.
pub(crate) fn divergence(value: f64, ci95: Option<[f64; 2]>) -> String {
    let number = |x: f64| if x == 0.0 || x.abs() >= 1e-3 { format!("{x:.4}") } else { format!("{x:.1e}") };
    let interval = ci95.map(|[low, high]| format!(" ({} to {})", number(low), number(high)));
    number(value) + &interval.unwrap_or_default()
}

/// Seconds since 1970 as a time in UTC: `2026-01-31T23:59:59Z` (RFC 3339).
pub(crate) fn utc(seconds: u64) -> String {
    let second = seconds % 86_400;
    let [year, month, day] = date(seconds / 86_400);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// Days since 1970 as year, month and day.
pub(crate) fn date(days: u64) -> [u64; 3] {
    // Converts days to a calendar date by eras of 400 years that begin in March: Hinnant, chrono-compatible low-level date
    // algorithms (https://howardhinnant.github.io/date_algorithms.html), `civil_from_days`.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    [400 * era + year_of_era + u64::from(month <= 2), month, day]
}

/// A float as Python's `json.dumps` writes it: the shortest digits that round-trip, with an exponent below 1e-4 and from 1e16 on.
pub(crate) fn python_float(x: f64) -> String {
    if !x.is_finite() {
        return if x.is_nan() {
            "NaN"
        } else if x > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
        .to_owned();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        -4..=15 => {
            let plain = format!("{x}");
            if plain.contains('.') { plain } else { format!("{plain}.0") }
        }
        exponent => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}

/// Python's `repr(str)`: in single quotes, or in double quotes if the text contains single and no double quotes.
pub(crate) fn python_quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        let code = c as u32;
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            _ if !is_printable(c) && code <= 0xff => out.push_str(&format!("\\x{code:02x}")),
            _ if !is_printable(c) && code <= 0xffff => out.push_str(&format!("\\u{code:04x}")),
            _ if !is_printable(c) => out.push_str(&format!("\\U{code:08x}")),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// Python's `str.isprintable`, except that unassigned code points count as printable.
fn is_printable(c: char) -> bool {
    let is_format = matches!(c,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}' | '\u{891}' | '\u{8e2}' | '\u{180e}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{110bd}' | '\u{110cd}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0001}' | '\u{e0020}'..='\u{e007f}');
    let is_private = matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..);
    let is_noncharacter = (c as u32) & 0xfffe == 0xfffe || matches!(c, '\u{fdd0}'..='\u{fdef}');
    c == ' ' || !(c.is_control() || c.is_whitespace() || is_format || is_private || is_noncharacter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_calendar() {
        // date -u -d @N +%Y-%m-%dT%H:%M:%SZ
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_769_903_999, "2026-01-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), expected);
        }
    }

    #[test]
    fn nothing_that_is_shown_acts_on_the_terminal_or_turns_the_line_round() {
        let text = "a\u{1B}[31m\r\u{202E}b\u{0}c\u{2028}\u{9B}2J\u{7F}";
        let shown = "a␛[31m␍⟨U+202E⟩b␀c⟨U+2028⟩⟨U+009B⟩2J␡";
        assert_eq!([visible(text), harmless(text, &[])], [shown, shown]);
        // An emoji of three people, a Persian word with a zero-width non-joiner, and line ends stay as they are.
        let plain = "👨\u{200D}👩\u{200D}👧 می\u{200C}خواهم\n\tb";
        assert_eq!(harmless(plain, &[]), plain);
        assert_eq!(visible("a\u{200D}\n\tb\u{A0}"), "a⟨U+200D⟩⏎⇥b⍽");
        assert_eq!(harmless("\u{2068}\u{1B}\u{2069}", &ISOLATE), "\u{2068}␛\u{2069}");
        let all: String = (0..=0x10FFFF).filter_map(char::from_u32).collect();
        let is_dangerous =
            |c: char| c.is_control() || ('\u{202A}'..='\u{202E}').contains(&c) || ('\u{2066}'..='\u{2069}').contains(&c);
        assert!(!visible(&all).chars().any(is_dangerous));
        assert!(!harmless(&all, &[]).chars().any(|c| is_dangerous(c) && !"\n\t".contains(c)));
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(divergence(0.01834, Some([0.0, 0.02])), "0.0183 (0.0000 to 0.0200)");
        assert_eq!(divergence(9.7e-7, Some([7.54e-7, 1.24e-6])), "9.7e-7 (7.5e-7 to 1.2e-6)");
        assert_eq!([thousands(0), thousands(999), thousands(1000), thousands(1234567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([n_tokens(0), n_tokens(1), count(1200, "row")], ["0 tokens", "1 token", "1,200 rows"]);
        assert_eq!([counted(1, "row was", "rows were"), counted(2, "row was", "rows were")], ["1 row was", "2 rows were"]);
        let part = |n, of| part_of(n, of, "row", ["has", "have"]);
        assert_eq!([part(1, 1), part(1, 6), part(2000, 6000)], ["1 of 1 row has", "1 of 6 rows has", "2,000 of 6,000 rows have"]);
        assert_eq!([percent(0.0), percent(0.00001), percent(0.0045)], ["0 %", "< 0.01 %", "0.45 %"]);
        // What rounds to 1.00 has one decimal less; a change may be negative.
        assert_eq!([percent(0.00996), percent(-0.0123), percent(-0.00001)], ["1.0 %", "-1.2 %", "> -0.01 %"]);
        assert_eq!(percent_with_interval(0.042, Some([0.036, 0.0009])), "4.2 % (3.6 to 0.09)");
        assert_eq!([percent_with_interval(0.042, None), number_with_interval(None, None, 2)], ["4.2 %", "-"]);
        assert_eq!(number_with_interval(Some(1.266), Some([1.2, 1.35]), 2), "1.27 (1.20 to 1.35)");
        assert_eq!([percent(0.1234), percent(1.0), percent(f64::NAN)], ["12.3 %", "100 %", "–"]);
        let shown = [12.3456, 4.6117e183, f64::INFINITY, f64::NAN].map(|value| number(value, 2));
        assert_eq!(shown, ["12.35", "4.61e183", "-", "-"]);
        assert_eq!([Some([1.0, 2.5]), Some([1.0, f64::INFINITY]), None].map(|ci95| ends(ci95, 1)), ["1.0 to 2.5", "-", "-"]);
    }
}
