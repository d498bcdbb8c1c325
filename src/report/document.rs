//! Renders a report, given as blocks, as Markdown or as an HTML fragment. Only this module escapes text against becoming markup.

use std::fmt::Write;

use crate::format::{ISOLATE, harmless};

/// Text of the data or of the user; the renderer escapes it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Inline {
    Plain(String),
    Strong(String),
    Code(String),
}

#[derive(Debug, Clone)]
pub(super) enum Block {
    Title(String),
    Heading(String),
    Paragraph(Vec<Inline>),
    /// Columns whose name begins with `>` contain numbers.
    Table {
        head: Vec<&'static str>,
        rows: Vec<Vec<Inline>>,
    },
    List(Vec<Vec<Inline>>),
    /// The file name of a figure without extension, and its description.
    Figure {
        name: &'static str,
        shows: &'static str,
    },
    /// A command.
    Code(String),
}

pub(super) fn plain(text: impl Into<String>) -> Inline {
    Inline::Plain(text.into())
}

pub(super) fn strong(text: impl Into<String>) -> Inline {
    Inline::Strong(text.into())
}

/// Figures refer to PNG files beside the document.
pub(super) fn markdown(blocks: &[Block]) -> String {
    let inline = |inline: &Inline| match inline {
        Inline::Plain(text) => escaped(text),
        Inline::Strong(text) => format!("**{}**", escaped(text)),
        Inline::Code(text) => format!("`{}`", text.replace('`', "ˋ").replace('|', "\\|").replace('\n', " ")),
    };
    let line = |inlines: &[Inline]| inlines.iter().map(inline).collect::<String>();
    let mut out = String::new();
    for block in blocks {
        // Writing to a String cannot fail.
        let _ = match block {
            Block::Title(text) => writeln!(out, "# {}\n", escaped(text)),
            Block::Heading(text) => writeln!(out, "## {}\n", escaped(text)),
            Block::Paragraph(inlines) => writeln!(out, "{}\n", line(inlines)),
            Block::Table { head, rows } => {
                let names = head.iter().map(|name| escaped(name.trim_start_matches('>'))).collect::<Vec<_>>().join(" | ");
                let rules =
                    head.iter().map(|name| if name.starts_with('>') { "---:" } else { "---" }).collect::<Vec<_>>().join("|");
                let row = |cells: &Vec<Inline>| format!("| {} |\n", cells.iter().map(inline).collect::<Vec<_>>().join(" | "));
                writeln!(out, "| {names} |\n|{rules}|\n{}", rows.iter().map(row).collect::<String>())
            }
            Block::List(items) => {
                writeln!(out, "{}", items.iter().map(|item| format!("- {}\n", line(item))).collect::<String>())
            }
            Block::Figure { name, shows } => writeln!(out, "![{shows}]({name}.png)\n"),
            Block::Code(text) => writeln!(out, "```\n{text}\n```\n"),
        };
    }
    harmless(&out, &ISOLATE)
}

/// One `<section>` to embed in another page; `figure` is the SVG of its figure, which is inlined.
pub(super) fn html(blocks: &[Block], figure: &str) -> String {
    let inline = |inline: &Inline| match inline {
        Inline::Plain(text) => escaped_html(text),
        Inline::Strong(text) => format!("<strong>{}</strong>", escaped_html(text)),
        Inline::Code(text) => format!("<code>{}</code>", escaped_html(text)),
    };
    let line = |inlines: &[Inline]| inlines.iter().map(inline).collect::<String>();
    let mut out = String::from("<section class=\"diagnose\">\n");
    for block in blocks {
        // Writing to a String cannot fail.
        let _ = match block {
            Block::Title(text) => writeln!(out, "<h1>{}</h1>", escaped_html(text)),
            Block::Heading(text) => writeln!(out, "<h2>{}</h2>", escaped_html(text)),
            Block::Paragraph(inlines) => writeln!(out, "<p>{}</p>", line(inlines)),
            Block::Table { head, rows } => {
                let style = |name: &str| if name.starts_with('>') { " style=\"text-align:right\"" } else { "" };
                let name = |name: &&str| format!("<th{}>{}</th>", style(name), escaped_html(name.trim_start_matches('>')));
                let names = head.iter().map(name).collect::<String>();
                let cell = |(cell, name): (&Inline, &&str)| format!("<td{}>{}</td>", style(name), inline(cell));
                let row = |cells: &Vec<Inline>| format!("<tr>{}</tr>\n", cells.iter().zip(head).map(cell).collect::<String>());
                let rows = rows.iter().map(row).collect::<String>();
                writeln!(out, "<table>\n<thead><tr>{names}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>")
            }
            Block::List(items) => {
                let items = items.iter().map(|item| format!("<li>{}</li>\n", line(item))).collect::<String>();
                writeln!(out, "<ul>\n{items}</ul>")
            }
            Block::Figure { name: _, shows } => {
                let figure = figure.replacen("<svg", "<svg style=\"max-width:100%;height:auto\"", 1);
                writeln!(out, "<figure role=\"img\" aria-label=\"{}\">\n{figure}\n</figure>", escaped_html(shows))
            }
            Block::Code(text) => writeln!(out, "<pre><code>{}</code></pre>", escaped_html(text)),
        };
    }
    harmless(&(out + "</section>\n"), &ISOLATE)
}

/// Escapes text for Markdown, on one line.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' | '\r' => escaped.push(' '),
            // Before a name or a number it may be the beginning of an entity, such as `&amp;`.
            '&' if chars.peek().is_some_and(|next| next.is_ascii_alphanumeric() || *next == '#') => escaped.push_str("\\&"),
            '|' | '<' | '*' | '_' | '`' | '[' | '#' | '\\' => {
                escaped.push('\\');
                escaped.push(c);
            }
            c => escaped.push(c),
        }
    }
    escaped
}

fn escaped_html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_blocks_in_both_languages_and_no_markup_from_the_text() {
        let blocks = [
            Block::Title("a_b <i>".into()),
            Block::Paragraph(vec![strong("5 < 6"), plain(" & [x](y) &amp;")]),
            Block::Table { head: vec!["task", ">n"], rows: vec![vec![plain("a|b\nc"), Inline::Code("`<script>".into())]] },
            Block::List(vec![vec![plain("x"), Inline::Code("y".into())]]),
            Block::Figure { name: "forest", shows: "differences" },
            Block::Code("diagnose diff a b".into()),
        ];
        let expected = "# a\\_b \\<i>\n\n**5 \\< 6** & \\[x](y) \\&amp;\n\n| task | n |\n|---|---:|\n| a\\|b c | `ˋ<script>` |\n\n- x`y`\n\n\
                        ![differences](forest.png)\n\n```\ndiagnose diff a b\n```\n\n";
        assert_eq!(markdown(&blocks), expected);
        let html = html(&blocks, "<svg>forest</svg>");
        let expected = "<section class=\"diagnose\">\n<h1>a_b &lt;i&gt;</h1>\n<p><strong>5 &lt; 6</strong> &amp; [x](y) &amp;amp;</p>\n<table>\n\
            <thead><tr><th>task</th><th style=\"text-align:right\">n</th></tr></thead>\n<tbody>\n\
            <tr><td>a|b\nc</td><td style=\"text-align:right\"><code>`&lt;script&gt;</code></td></tr>\n</tbody>\n</table>\n\
            <ul>\n<li>x<code>y</code></li>\n</ul>\n<figure role=\"img\" aria-label=\"differences\">\n\
            <svg style=\"max-width:100%;height:auto\">forest</svg>\n</figure>\n\
            <pre><code>diagnose diff a b</code></pre>\n</section>\n";
        assert_eq!(html, expected);
    }
}
