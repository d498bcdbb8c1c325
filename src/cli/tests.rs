//! Tests the errors for mistaken commands and options.

use std::ffi::OsString;

use clap::FromArgMatches;
use clap::builder::ValueParser;

use super::{Cli, check_command, command, dispatch};

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
    assert!(!told.contains("Did you mean") && told.contains("pass only its files"), "{told}");
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

/// Tests every option of every command that takes a value.
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

/// Every number that a command takes is refused, by the option's name, where it is invalid (for those of `train`, see `train/options/tests.rs`).
#[test]
fn numbers_out_of_range_are_refused_by_name() {
    /// Extreme values that are valid: no sensible limit exists, or the number turns something off.
    const MEANS: &[(&str, &[&str])] = &[
        // A high temperature makes all tokens equally probable; 0 takes the most probable one.
        ("temperature", &["0", "1e30"]),
        ("top-p", &["0"]),
        ("min-p", &["0"]),
        // The model then never repeats a token.
        ("repetition-penalty", &["1e30"]),
        ("fail-on-drop", &["0"]),
        // No examples, no row shown.
        ("fewshot", &["0"]),
        ("show", &["0"]),
        ("seed", &["0"]),
    ];
    const NOTHING: &str = "no-such-file.jsonl";
    fn words(name: &str) -> Vec<&str> {
        match name {
            "" => vec![NOTHING, "--model", NOTHING],
            "diff" => vec!["diff", NOTHING, NOTHING, "--tasks", NOTHING],
            "eval" => vec!["eval", "--model", NOTHING, "--tasks", NOTHING],
            "export" => vec!["export", NOTHING, "--out", "no-such-file-either.jsonl"],
            "check" | "rollout" => vec![name, NOTHING, "--model", NOTHING],
            name => vec![name, NOTHING],
        }
    }
    // Without these, the options have no effect.
    let needs = |option: &str| match option {
        "top-k" | "top-p" | "min-p" => &["--temperature", "1"][..],
        "seed" => &["--sample", "1"],
        "in-flight" | "top-logprobs" => &["--server", "http://127.0.0.1:9"],
        _ => &[],
    };
    let is_a = |argument: &clap::Arg, parser: ValueParser| argument.get_value_parser().type_id() == parser.type_id();
    let all = command();
    let commands = all.get_subcommands().filter(|command| command.get_name() != "train");
    let mut n = 0;
    for (name, of) in commands.map(|command| (command.get_name(), command)).chain([("", &all)]) {
        for argument in of.get_arguments() {
            let Some(option) = argument.get_long() else { continue };
            let whole: [ValueParser; 3] =
                [clap::value_parser!(u64).into(), clap::value_parser!(u32).into(), clap::value_parser!(usize).into()];
            let values: &[&str] = if is_a(argument, clap::value_parser!(f64).into()) {
                &["nan", "inf", "-inf", "-1", "0", "1e30"]
            } else if whole.into_iter().any(|parser| is_a(argument, parser)) {
                &["nan", "inf", "-1", "1.5", "1e30", "99999999999999999999", "0"]
            } else {
                continue;
            };
            n += 1;
            for value in values {
                let given = format!("--{option}={value}");
                let typed = [&["diagnose"], &words(name)[..], needs(option), &[&given]].concat();
                let told = match command().try_get_matches_from(&typed) {
                    Ok(matches) => dispatch(Cli::from_arg_matches(&matches).unwrap(), &[], "").unwrap_err().to_string(),
                    Err(error) => error.to_string(),
                };
                let means = MEANS.iter().any(|(known, values)| *known == option && values.contains(value));
                assert_eq!(told.contains(&format!("--{option}")), !means, "{typed:?}: {told}");
            }
        }
    }
    assert!(n >= 25, "{n} options take numbers");
}
