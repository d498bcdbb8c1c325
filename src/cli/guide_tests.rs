//! Checks that the program accepts every command in the README and in the guide.

use clap::CommandFactory;

use super::Cli;
use super::guide::PAGES;

/// The lines of the `sh` blocks of a Markdown text, without comments and with continued lines joined.
fn commands(markdown: &str) -> Vec<String> {
    let blocks = markdown.split("```").skip(1).step_by(2).filter_map(|block| block.strip_prefix("sh\n"));
    let lines = blocks.flat_map(|block| {
        let joined = block.replace("\\\n", " ");
        joined.lines().map(str::to_owned).collect::<Vec<_>>()
    });
    lines.map(|line| line.split(" #").next().unwrap().trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

/// Splits words as a shell does: at spaces outside single quotes.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut quoted, mut open) = (vec![String::new()], false, false);
    for c in command.chars() {
        match c {
            '\'' => (quoted, open) = (!quoted, true),
            ' ' if !quoted => {
                if open {
                    words.push(String::new());
                }
                open = false;
            }
            c => {
                words.last_mut().unwrap().push(c);
                open = true;
            }
        }
    }
    words
}

#[test]
fn every_documented_command_is_understood() {
    let pages = [include_str!("../../README.md")].into_iter().chain(PAGES.map(|(_, text)| text));
    let mut n = 0;
    for command in pages.flat_map(commands) {
        // A command may read another's output: `cat data.jsonl | diagnose -`.
        for part in command.split(" | ").filter(|part| part.starts_with("diagnose ")) {
            // Users copy commands as they stand.
            let left_open = |word: &String| ["..", "..."].contains(&word.as_str());
            assert!(!words(part).iter().any(left_open), "{part}: `..` is the folder above this one");
            let parsed = Cli::command().try_get_matches_from(words(part));
            assert!(parsed.is_ok(), "{part}: {}", parsed.unwrap_err());
            n += 1;
        }
    }
    assert!(n >= 25, "only {n} commands were found");
}

#[test]
fn the_program_has_every_page_that_cargo_doc_has() {
    let declared = include_str!("../guide/mod.rs").lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(" {}"));
    assert_eq!(PAGES.map(|(name, _)| name).to_vec(), declared.collect::<Vec<_>>());
    let help = Cli::command().find_subcommand_mut("guide").unwrap().render_help().to_string();
    assert!(PAGES.iter().all(|(name, _)| help.contains(name)), "{help}");
}
