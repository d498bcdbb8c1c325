//! The tables of the guide, made from what the readers know.

use super::example::Role;
use super::format::Format;
use super::{roles, switches};

#[test]
fn the_guide_has_the_tables_of_what_is_read() {
    let guide = include_str!("../guide/data.md");
    for table in [formats(), switches(), roles()] {
        assert!(guide.contains(&table), "src/guide/data.md should hold this table:\n{table}");
    }
}

fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn formats() -> String {
    let rows = Format::ALL.iter().map(|format| format!("| `{format}` | {} |\n", format.row_has()));
    format!("| `--format` | a row has |\n|---|---|\n{}", rows.collect::<String>())
}

fn switches() -> String {
    let weights = switches::NAMES.iter().copied().filter(|name| !switches::MASKS.contains(name));
    let rows = [
        (list(weights), "turn, part", "a weight from 0, or true or false; 0 and false are not learnt"),
        (list(switches::MASKS), "turn, part", "true: not learnt"),
        (list(switches::DETAILS), "turn", "pieces of the text by character, both ends included, each with `train`"),
        (list([switches::LOSS_MASK]), "row", "0 or 1 for each answer, or for each turn"),
        (list(switches::LABELS), "row", "false: an answer that is not wanted"),
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
