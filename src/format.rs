//! Numbers as people read them.

/// 1234567 as `1,234,567`.
pub fn thousands(n: u64) -> String {
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

/// `12,345 tokens`, or `1 token`.
pub fn n_tokens(n: u64) -> String {
    format!("{} token{}", thousands(n), if n == 1 { "" } else { "s" })
}

/// A share as per cent with three significant digits at most: `12.3 %`, `0.45 %`, `< 0.01 %`.
pub fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    match percent {
        _ if percent.is_nan() => "–".to_owned(),
        _ if percent > 0.0 && percent < 0.01 => "< 0.01 %".to_owned(),
        _ if percent < 1.0 => format!("{percent:.2} %"),
        _ if percent < 99.95 => format!("{percent:.1} %"),
        _ => format!("{percent:.0} %"),
    }
}

/// A share as per cent with one digit after the point, or two below 0.1 %: `4.2 %`, `0.04 %`. For columns of a table.
pub fn percent_in_table(share: f64) -> String {
    match 100.0 * share {
        x if x != 0.0 && x.abs() < 0.1 => format!("{x:.2} %"),
        x => format!("{x:.1} %"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([thousands(0), thousands(999), thousands(1000), thousands(1234567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([n_tokens(0), n_tokens(1)], ["0 tokens", "1 token"]);
        assert_eq!([percent(0.0), percent(0.00001), percent(0.0045)], ["0.00 %", "< 0.01 %", "0.45 %"]);
        assert_eq!([percent_in_table(0.0), percent_in_table(0.1234), percent_in_table(0.0004)], ["0.0 %", "12.3 %", "0.04 %"]);
        assert_eq!([percent(0.1234), percent(1.0), percent(f64::NAN)], ["12.3 %", "100 %", "–"]);
    }
}
