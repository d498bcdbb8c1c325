//! The font of all figures: text widths, glyph outlines, and replacements for characters without a glyph.
//!
//! DejaVu Sans is embedded in the program through the `dejavu` crate (MIT OR Apache-2.0). The font itself is under the Bitstream
//! Vera licence, which allows use, embedding and redistribution free of charge; DejaVu's changes are in the public domain. An SVG
//! keeps its text as text and names this font first, followed by Verdana, from which it takes its widths.

use std::borrow::Cow;
use std::sync::LazyLock;

use ab_glyph::{Font, FontRef, Glyph, PxScale, ScaleFont, point};

/// The `font-family` of an SVG.
pub(super) const FAMILY: &str = "DejaVu Sans, Verdana, sans-serif";

static REGULAR: LazyLock<FontRef<'static>> = LazyLock::new(|| load(dejavu::sans::regular()));
static BOLD: LazyLock<FontRef<'static>> = LazyLock::new(|| load(dejavu::sans::bold()));

#[expect(clippy::expect_used, reason = "the bytes are part of the program, and the tests draw with them")]
fn load(bytes: &'static [u8]) -> FontRef<'static> {
    FontRef::try_from_slice(bytes).expect("the embedded font is a constant of the program and parses")
}

fn face(bold: bool) -> &'static FontRef<'static> {
    if bold { &BOLD } else { &REGULAR }
}

/// The glyphs of `text` on a baseline that starts at (0, 0), and the total advance; `size` is the em in pixels.
fn layout(text: &str, size: f64, bold: bool) -> (Vec<Glyph>, f64) {
    let font = face(bold);
    // ab_glyph's scale is ascent minus descent, not the em as usual.
    let scale = size as f32 * font.height_unscaled() / font.units_per_em().unwrap_or(2048.0);
    let scaled = font.as_scaled(scale);
    let mut glyphs: Vec<Glyph> = Vec::with_capacity(text.len());
    let mut x = 0.0;
    for c in text.chars() {
        let id = scaled.glyph_id(c);
        if let Some(last) = glyphs.last() {
            x += scaled.kern(last.id, id);
        }
        glyphs.push(id.with_scale_and_position(PxScale::from(scale), point(x, 0.0)));
        x += scaled.h_advance(id);
    }
    (glyphs, f64::from(x))
}

/// The advance of `text` in pixels; `size` is the em.
pub(super) fn width(text: &str, size: f64, bold: bool) -> f64 {
    layout(text, size, bold).1
}

/// Calls `pixel(x, y, coverage)` for every pixel that `text` touches, from a baseline that starts at (0, 0), y downwards.
pub(super) fn rasterise(text: &str, size: f64, bold: bool, mut pixel: impl FnMut(i32, i32, f32)) {
    for glyph in layout(text, size, bold).0 {
        if let Some(outline) = face(bold).outline_glyph(glyph) {
            let bounds = outline.px_bounds();
            let (left, top) = (bounds.min.x as i32, bounds.min.y as i32);
            outline.draw(|x, y, coverage| pixel(left + x as i32, top + y as i32, coverage));
        }
    }
}

/// `text`, with an ellipsis in its middle if it is wider than `max_width`: names of a series differ at their ends.
pub(super) fn elide(text: &str, size: f64, bold: bool, max_width: f64) -> Cow<'_, str> {
    if width(text, size, bold) <= max_width {
        return Cow::Borrowed(text);
    }
    let chars: Vec<char> = text.chars().collect();
    for n_kept in (1..chars.len()).rev() {
        let (begin, end) = (&chars[..n_kept.div_ceil(2)], &chars[chars.len() - n_kept / 2..]);
        let candidate = format!("{}…{}", String::from_iter(begin).trim_end(), String::from_iter(end).trim_start());
        if width(&candidate, size, bold) <= max_width {
            return Cow::Owned(candidate);
        }
    }
    Cow::Borrowed("…")
}

/// A name between numbers. Where all of it is wider than `max_width`, the name alone is shortened.
pub(super) fn elide_name([before, name, after]: [&str; 3], size: f64, bold: bool, max_width: f64) -> String {
    let room = max_width - width(before, size, bold) - width(after, size, bold);
    format!("{before}{}{after}", elide(name, size, bold, room))
}

/// `text` with `⟨U+4E2D 6587⟩` in place of characters that this font cannot show: those without a glyph, control and invisible
/// characters, combining marks, and right-to-left or joining scripts, which need a text shaper.
pub(super) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_escape = false;
    for c in text.chars() {
        if is_drawable(c) {
            if std::mem::take(&mut in_escape) {
                out.push('⟩');
            }
            out.push(c);
        } else {
            out.push_str(if in_escape { " " } else { "⟨U+" });
            out.push_str(&format!("{:04X}", c as u32));
            in_escape = true;
        }
    }
    if in_escape {
        out.push('⟩');
    }
    out
}

/// A token's text with visible white space: `␣`, `⏎` (line feed) and `⇥` (tab).
pub(super) fn visible_token(text: &str) -> String {
    let visible = |c| match c {
        ' ' => '␣',
        '\n' => '⏎',
        '\t' => '⇥',
        other => other,
    };
    printable(&text.chars().map(visible).collect::<String>())
}

fn is_drawable(c: char) -> bool {
    let needs_a_shaper = matches!(c, '\u{0590}'..='\u{08ff}' | '\u{fb1d}'..='\u{fdff}' | '\u{fe70}'..='\u{fefe}');
    let combining = matches!(c, '\u{0300}'..='\u{036f}' | '\u{0483}'..='\u{0489}' | '\u{1ab0}'..='\u{1aff}' | '\u{1dc0}'..='\u{1dff}'
        | '\u{20d0}'..='\u{20ff}' | '\u{fe00}'..='\u{fe0f}' | '\u{fe20}'..='\u{fe2f}');
    let invisible = c.is_control()
        || (c.is_whitespace() && c != ' ')
        || matches!(c, '\u{00ad}' | '\u{034f}' | '\u{115f}'..='\u{1160}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{e000}'..='\u{f8ff}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}');
    !needs_a_shaper && !combining && !invisible && REGULAR.glyph_id(c).0 != 0 && BOLD.glyph_id(c).0 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_font_lacks_is_written_as_code_points() {
        let check = |text: &str, expected: &str| assert_eq!(visible_token(text), expected);
        check(" the", "␣the");
        check("\n\n", "⏎⏎");
        check("\t\r", "⇥⟨U+000D⟩");
        check("naïve €5 → x²", "naïve␣€5␣→␣x²");
        check("中文", "⟨U+4E2D 6587⟩");
        check("a中b", "a⟨U+4E2D⟩b");
        check("🦀", "⟨U+1F980⟩");
        check("\u{0}\u{1b}[0m", "⟨U+0000 001B⟩[0m");
        check("e\u{301}", "e⟨U+0301⟩");
        check("\u{202e}abc\u{200b}", "⟨U+202E⟩abc⟨U+200B⟩");
        check("שלום", "⟨U+05E9 05DC 05D5 05DD⟩");
        check("", "");
    }

    #[test]
    fn the_marks_used_by_the_figures_have_glyphs() {
        for c in "␣⏎⇥⟨⟩…–−×·≤≥⁻⁰¹²³⁴⁵⁶⁷⁸⁹τΣ√".chars() {
            assert!(is_drawable(c), "{c}");
        }
    }

    #[test]
    fn long_text_is_elided_to_fit() {
        assert_eq!(elide("short", 16.0, false, 100.0), "short");
        let long = format!("{}end", "x".repeat(500));
        let cut = elide(&long, 16.0, false, 100.0);
        assert!(cut.starts_with("xxx") && cut.ends_with("end") && cut.contains('…'), "{cut}");
        assert!(width(&cut, 16.0, false) <= 100.0 && width(&cut, 16.0, false) > 85.0);
        // Two names of a series.
        let [first, second] =
            ["hendrycks_test_subject_00", "hendrycks_test_subject_01"].map(|name| elide(name, 16.0, false, 150.0));
        assert!(first.ends_with("00") && second.ends_with("01"), "{first} {second}");
        assert_eq!(elide("anything", 16.0, false, 1.0), "…");
        // The numbers around a name.
        let parts = |name| ["12  ", name, ": 92.3 % confident conflicts"];
        let cut = elide_name(parts("a_very_long_name_of_a_run_which_goes_on"), 16.0, false, 320.0);
        assert!(cut.starts_with("12  a_") && cut.ends_with("on: 92.3 % confident conflicts") && cut.contains('…'), "{cut}");
        assert!(width(&cut, 16.0, false) <= 320.0);
        assert_eq!(elide_name(parts("a"), 16.0, false, 320.0), "12  a: 92.3 % confident conflicts");
    }

    /// hmtx of DejaVuSans.ttf: `0` to `9` advance 1303 of 2048 units.
    #[test]
    fn widths_are_those_of_the_font_tables() {
        let expected = 10.0 * 1303.0 / 2048.0 * 16.0;
        assert!((width("0123456789", 16.0, false) - expected).abs() < 1e-3);
    }
}
