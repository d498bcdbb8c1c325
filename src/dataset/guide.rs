//! Checks the tables of the guide against what the readers support.

use super::container::{Container, ROWS, detect};
use super::example::Role;
use super::files::Store;
use super::format::Format;
use super::options::ReadOptions;
use super::{roles, switches};

#[test]
fn the_guide_has_the_tables_of_what_is_read() {
    let guide = include_str!("../guide/data.md");
    for table in [containers(), formats(), switches(), roles()] {
        assert!(guide.contains(&table), "src/guide/data.md should hold this table:\n{table}");
    }
}

fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Lists each container, and checks that a small example is detected as it.
fn containers() -> String {
    let wrapped =
        format!("an object with the list of rows under {}", list(ROWS.iter().filter_map(|key| str::from_utf8(key).ok())));
    let first_bytes = "its first bytes";
    let rows: [(Container, &str, &[u8], &str, &str); 8] = [
        (Container::JsonLines, "a", b"{\"text\": 1}\n{}", "JSON Lines: one object or list of turns per line", first_bytes),
        (Container::JsonArray, "a", b"[\n{\"text\": 1}]", "a JSON array of objects", first_bytes),
        (
            Container::JsonObjects,
            "a",
            b"{\n\"text\": 1}\n{}",
            "objects that span lines; a table by columns, as written by pandas' `to_json`",
            first_bytes,
        ),
        (Container::JsonWrapped(9), "a", b"{\"data\": [{\"text\": 1}]}", &wrapped, first_bytes),
        (Container::Parquet, "a", b"PAR1", "Parquet", first_bytes),
        (
            Container::Arrow,
            "a",
            b"ARROW1",
            "Arrow streams and files, such as Feather and those of `save_to_disk`, also compressed with LZ4 or zstd",
            first_bytes,
        ),
        (
            Container::Csv,
            "a.tsv",
            b"x\ty",
            "CSV with a header, separated by comma, tab or semicolon",
            "`.csv`, `.tsv`, or known column names",
        ),
        (Container::Text, "a.md", b"# x", "plain text, one row per line", "`.txt`, `.md`, `.text`, or `--format text`"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let row = |(container, name, bytes, holds, by): &(Container, &str, &[u8], &str, &str)| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(detect(&path, &Store::open(&path).unwrap(), &ReadOptions::default()).unwrap(), *container, "{holds}");
        format!("| {holds} | {by} |\n")
    };
    format!("| a file contains | recognised by |\n|---|---|\n{}", rows.iter().map(row).collect::<String>())
}

fn formats() -> String {
    let rows = Format::ALL.iter().map(|format| format!("| `{format}` | {} |\n", format.row_has()));
    format!("| `--format` | a row has |\n|---|---|\n{}", rows.collect::<String>())
}

fn switches() -> String {
    let weights = switches::NAMES.iter().copied().filter(|name| !switches::MASKS.contains(name));
    let rows = [
        (list(weights), "turn, part", "a weight of 0 or more, or true or false; 0 and false exclude from the loss"),
        (list(switches::MASKS), "turn, part", "true excludes from the loss"),
        (
            list(switches::DETAILS),
            "turn",
            "ranges of the text by character, both ends included, each with `train`; text outside all ranges is excluded",
        ),
        (list([switches::LOSS_MASK]), "row", "0 or 1 for each answer, or for each turn"),
        (list(switches::LABELS), "row", "false: a rejected answer"),
        (list([switches::TEMPLATE_SWITCHES]), "row", "variables for the chat template"),
    ];
    let rows = rows.map(|(names, at, meaning)| format!("| {names} | {at} | {meaning} |\n"));
    format!("| key | on a | meaning |\n|---|---|---|\n{}", rows.concat())
}

fn roles() -> String {
    let of = |role: Role| list(roles::NAMES.iter().filter(|(_, known)| *known == role).map(|(name, _)| *name));
    let rows =
        [Role::System, Role::User, Role::Assistant, Role::Tool].map(|role| format!("| `{}` | {} |\n", role.name(), of(role)));
    let calls = list(roles::CALLS.iter().copied());
    format!("| role | names, in any case |\n|---|---|\n{}| a tool call | {calls} |\n", rows.concat())
}
