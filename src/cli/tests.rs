//! What is answered where a command or an option is not what was meant.

use std::ffi::OsString;

use super::{check_command, command};

fn checked(words: &[&str]) -> Result<(), String> {
    let typed: Vec<OsString> = ["diagnose"].iter().chain(words).map(OsString::from).collect();
    check_command(&command(), &typed).map_err(|error| error.to_string())
}

#[test]
fn a_command_that_nobody_knows_is_answered_with_the_one_that_was_meant() {
    for (typed, meant) in [("evall", "eval"), ("tain", "train"), ("dif", "diff"), ("exprot", "export"), ("rollouts", "rollout")] {
        let told = checked(&[typed, "data.jsonl", "--lora"]).unwrap_err();
        assert!(
            told.contains(&format!("called `{typed}`")) && told.contains(&format!("Did you mean `diagnose {meant}`?")),
            "{told}"
        );
    }
    let told = checked(&["score"]).unwrap_err();
    assert!(!told.contains("Did you mean") && told.contains("name its files alone"), "{told}");
    // Commands, data, options, and a name that is a path. Tests run in the folder of the crate.
    for words in
        [&["eval", "--model", "m"][..], &["help"], &["src"], &["--help"], &["evall.jsonl"], &["./evall"], &["-"], &["man"], &[]]
    {
        assert_eq!(checked(words), Ok(()), "{words:?}");
    }
}

#[test]
fn an_option_of_another_command_is_told_whose_it_is() {
    let told = |words: &[&str]| {
        let typed: Vec<OsString> = ["diagnose"].iter().chain(words).map(OsString::from).collect();
        super::config::matches(&command(), &typed).unwrap_err().to_string()
    };
    for (words, expected) in [
        (&["a.jsonl", "--method", "eaft"][..], "scoring has no option `--method`\n  It is an option of `diagnose train`"),
        (&["a.jsonl", "--lora"], "`diagnose train`"),
        (&["a.jsonl", "--tasks=probe"], "`diagnose eval`"),
        (
            &["train", "a.jsonl", "--thresholds", "tail"],
            "`diagnose train` has no option `--thresholds`\n  It is an option of `diagnose DATA`",
        ),
    ] {
        let told = told(words);
        assert!(told.contains(expected), "{words:?}: {told}");
    }
}

#[test]
fn a_text_in_the_place_of_a_number_is_told_what_was_expected() {
    for (words, expected) in [
        (&["a.jsonl", "--limit", "-3"][..], "--limit <N>: expected a whole number of 0 or more, found `-3`"),
        (&["eval", "--limit", "1e3"], "--limit <N>: expected a whole number of 0 or more, found `1e3`"),
    ] {
        let typed: Vec<OsString> = ["diagnose"].iter().chain(words).map(OsString::from).collect();
        assert_eq!(super::config::matches(&command(), &typed).unwrap_err().to_string(), expected);
    }
}

#[cfg(unix)]
#[test]
fn a_name_that_is_no_text_is_named() {
    use std::os::unix::ffi::OsStringExt;
    let typed = [OsString::from("diagnose"), OsString::from("a.jsonl"), OsString::from_vec(b"nu/\xff.jsonl".to_vec())];
    let told = super::config::matches(&command(), &typed).unwrap_err().to_string();
    assert!(told.starts_with(r#"expected names of valid Unicode, found "nu/\xFF.jsonl""#) && told.contains("Rename"), "{told}");
}

/// Every option of every command that takes a value.
#[test]
fn a_negative_number_behind_an_option_is_its_value() {
    let mut commands = vec![(Vec::new(), command())];
    commands.extend(command().get_subcommands().map(|command| (vec![command.get_name().to_owned()], command.clone())));
    let mut n = 0;
    for (words, of) in commands {
        for argument in of.get_arguments().filter(|argument| argument.get_action().takes_values()) {
            let Some(long) = argument.get_long() else { continue };
            let typed = ["diagnose".to_owned()].into_iter().chain(words.clone()).chain([format!("--{long}"), "-3".to_owned()]);
            if let Err(error) = command().try_get_matches_from(typed) {
                let told = error.to_string();
                assert!(!told.contains("unexpected argument"), "{words:?} --{long}: {told}");
                n += 1;
            }
        }
    }
    assert!(n > 20, "only {n} options were refused at all");
}
