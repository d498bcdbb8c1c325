//! Tests completions, manual pages, options from a file, and option names of other programs.

use std::process::Command;

use crate::tiny_model;
use crate::workdir::{Ran, Workdir, absent};

/// What `shell` offers after `words`, the last of which is being typed, in a folder with a data file `rows.jsonl`.
fn offered(shell: &str, words: &[&str]) -> Option<Vec<String>> {
    if Command::new(shell).arg("--version").output().is_err() {
        absent("shells", &format!("{shell} is not installed"));
        return None;
    }
    let workdir = Workdir::new();
    workdir.write("rows.jsonl", "");
    let script = workdir.run(&["completions", shell]).ok().stdout;
    workdir.write("script", &script);
    let line = words.join(" ");
    let (last, before) = (words[words.len() - 1], words[words.len() - 2]);
    let commands = match shell {
        "bash" => format!(
            "source ./script; COMP_WORDS=({line}); COMP_CWORD={}; COMP_TYPE=9; _clap_complete_diagnose diagnose '{last}' '{before}'; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            words.len() - 1
        ),
        "fish" => format!("source ./script; complete -C '{line}'"),
        // zsh completes only at a prompt: type there, and have a key write down what the line has become.
        _ => format!(
            "zmodload zsh/zpty; zpty prompt zsh -f -i
             zpty -w prompt 'autoload -U compinit; compinit -D -u; source ./script'
             zpty -w prompt 'shown() {{ print -r -- $BUFFER > line.part; mv line.part line }}; zle -N shown; bindkey ^X shown'
             zpty -n -w prompt '{line}'$'\\t\\x18'
             for i in {{1..200}}; do [[ -e line ]] && break; sleep 0.1; done; zpty -d prompt; for word in ${{=\"$(<line)\"}}; do print -r -- $word; done"
        ),
    };
    let programs = std::path::Path::new(env!("CARGO_BIN_EXE_diagnose")).parent().unwrap().to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(programs).chain(std::env::split_paths(&path))).unwrap();
    let said = Command::new(shell).args(["-c", &commands]).current_dir(workdir.path("")).env("PATH", path).output().unwrap();
    let said = Ran::of(said);
    assert_eq!(said.code, Some(0), "{shell}: {}", said.stderr);
    Some(said.stdout.split(['\n', '\u{b}']).map(|line| line.split('\t').next().unwrap_or(line).trim_end().to_owned()).collect())
}

#[test]
fn shells_complete_subcommands_options_names_and_paths() {
    for shell in ["bash", "fish", "zsh"] {
        for (words, expected) in [
            (&["diagnose", "tr"][..], "train"),
            (&["diagnose", "--thr"], "--thresholds"),
            (&["diagnose", "rows.jsonl", "--thr"], "--thresholds"),
            (&["diagnose", "rows.jsonl", "--thresholds", "pi"], "pilot"),
            (&["diagnose", "train", "--gate", "df"], "dft"),
            (&["diagnose", "train", "rows.jsonl", "--meth"], "--method"),
            (&["diagnose", "train", "--method", "ea"], "eaft"),
            (&["diagnose", "check", "--fail-on", "empty_m"], "empty_mask"),
            (&["diagnose", "check", "row"], "rows.jsonl"),
            (&["diagnose", "diff", "row"], "rows.jsonl"),
            (&["diagnose", "guide", "rea"], "reading"),
        ] {
            let Some(offered) = offered(shell, words) else { break };
            assert!(offered.iter().any(|word| word == expected), "{shell} {words:?}: {offered:?}");
        }
    }
}

#[test]
fn manual_pages_are_written() {
    let workdir = Workdir::new();
    workdir.run(&["man", "pages"]).ok();
    for (page, word) in [("diagnose.1", "confident"), ("diagnose-train.1", "method"), ("diagnose-eval.1", "tasks")] {
        let text = std::fs::read_to_string(workdir.path("pages").join(page)).unwrap();
        assert!(text.starts_with(".ie") || text.contains(".TH"), "{page}");
        assert!(text.contains(word), "{page}");
    }
}

#[test]
fn options_come_from_a_file_and_the_command_line_goes_over_it() {
    let workdir = Workdir::new();
    workdir.write("rows.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n");
    // `check` of options needs no model: a wrong one is refused before anything is loaded.
    workdir.write("diagnose.toml", "model = 'no-such-model.gguf'\nmax_len = 64\nstrict = true\n");
    let ran = workdir.run(&["rows.jsonl"]);
    assert!(ran.stderr.contains("Options from diagnose.toml") || ran.stderr.contains("diagnose.toml"), "{}", ran.stderr);
    assert!(ran.code != Some(0) && ran.stderr.contains("no-such-model.gguf"), "{}", ran.stderr);
    let ran = workdir.run(&["rows.jsonl", "--model", "another.gguf"]);
    assert!(ran.stderr.contains("another.gguf") && !ran.stderr.contains("no-such-model"), "{}", ran.stderr);
    for (text, expected) in [
        ("modle = 'x'", "there is no option `modle`"),
        ("strict = 3", "strict = 3: expected true or false"),
        ("max_len = [1, 2]", "expected one value"),
        ("max_len = ", "not valid TOML"),
    ] {
        workdir.write("other.toml", text);
        let ran = workdir.run(&["rows.jsonl", "--config", "other.toml"]);
        assert!(
            ran.code == Some(2) && ran.stderr.contains(expected) && ran.stderr.contains("other.toml"),
            "{text}: {}",
            ran.stderr
        );
    }
}

/// `check` reads what scoring would; typed options exclude conflicting ones in the file; other commands report that the file is not for them.
#[test]
fn check_reads_the_options_that_lie_beside_the_data() {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    let row = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b c d"},{"role":"user","content":"e"},{"role":"assistant","content":"f"}]}"#;
    workdir.write("rows.jsonl", format!("{row}\n{row}\n{row}\n"));
    let check = |more: &[&str]| workdir.run(&[&["check", "rows.jsonl", "--model", "tiny.gguf", "--json"], more].concat()).ok();
    let learnt = |ran: &Ran| ran.json()["supervised"].as_u64().unwrap();
    let whole = learnt(&check(&[]));
    workdir.write("diagnose.toml", "supervise = 'last'\nthresholds = 'groups'\nlimit = 1\n");
    let beside = check(&[]);
    assert!(beside.stderr.contains("Options from") && beside.json()["records"] == 1, "{}", beside.stderr);
    assert!(learnt(&beside) < whole / 3);
    // --sample is typed, and `limit` does not go with it.
    assert_eq!(check(&["--sample", "2"]).json()["records"], 2);
    assert_eq!(learnt(&check(&["--supervise", "assistant", "--limit", "3"])), whole);
    let train = workdir.run(&["train", "rows.jsonl", "--model", "tiny.gguf", "--dry-run", "--out", "tuned"]);
    assert!(train.stderr.contains("diagnose.toml is not for `train`"), "{}", train.stderr);
    let eval = workdir.run(&["eval", "--tasks", "rows.jsonl", "--model", "tiny.gguf", "--out", "scores"]).ok();
    assert!(eval.stderr.contains("diagnose.toml is not for `eval`"), "{}", eval.stderr);
    workdir.write("rows.toml", "supervise = 'all'\nmodle = 'x'\n");
    let wrong = workdir.run(&["check", "rows.jsonl", "--config", "rows.toml"]);
    assert!(wrong.code == Some(2) && wrong.stderr.contains("there is no option `modle`"), "{}", wrong.stderr);
}

/// A file that is found beside the data means the same wherever the command is given; one that is named has its paths from there, as typed ones are.
#[test]
fn paths_of_a_found_file_are_from_its_own_folder() {
    let workdir = Workdir::new();
    for folder in ["models", "project"] {
        std::fs::create_dir(workdir.path(folder)).unwrap();
    }
    tiny_model::write(&workdir.path("models"));
    std::fs::copy(workdir.path("models/tiny.gguf"), workdir.path("project/own.gguf")).unwrap();
    workdir.write("project/rows.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n");
    workdir
        .write("project/template.jinja", "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}");
    for model in ["../models/tiny.gguf", "own.gguf"] {
        let options = format!("model = '{model}'\nchat_template = 'template.jinja'\n");
        workdir.write("project/diagnose.toml", &options);
        for (folder, data) in [("", "project/rows.jsonl"), ("project", "rows.jsonl"), ("models", "../project/rows.jsonl")] {
            let out = workdir.path("scored");
            let output =
                workdir.command(&[data, "--out", out.to_str().unwrap()]).current_dir(workdir.path(folder)).output().unwrap();
            Ran::of(output).ok();
            assert!(out.join("run.json").exists());
            std::fs::remove_dir_all(out).unwrap();
        }
    }
    let named = workdir.run(&["project/rows.jsonl", "--config", "project/diagnose.toml", "--model", "models/tiny.gguf"]);
    assert!(named.code == Some(1) && named.stderr.contains("template.jinja"), "{}", named.stderr);
    // What lies nowhere beside the file may be on the hub, or in the current folder.
    workdir.write("project/diagnose.toml", "model = 'models/tiny.gguf'\n");
    workdir.run(&["project/rows.jsonl"]).ok();
}

/// A file that is found may have come with the data, from anyone.
#[test]
fn a_found_file_neither_writes_elsewhere_nor_sends() {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    workdir.write("rows.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n");
    for options in ["out = 'elsewhere'", "output_dir = 'elsewhere'", "server = 'http://127.0.0.1:9'", "answers = 'left'"] {
        workdir.write("diagnose.toml", options);
        let refused = workdir.run(&["rows.jsonl", "--model", "tiny.gguf"]);
        assert!(refused.code == Some(2) && refused.stderr.contains("--config diagnose.toml"), "{options}: {}", refused.stderr);
    }
    workdir.write("diagnose.toml", "out = 'named'\n");
    workdir.run(&["rows.jsonl", "--model", "tiny.gguf", "--out", "typed"]).ok();
    workdir.run(&["rows.jsonl", "--model", "tiny.gguf", "--config", "diagnose.toml"]).ok();
    assert!(workdir.path("typed/run.json").exists() && workdir.path("named/run.json").exists());
}

#[test]
fn other_programs_names_are_taken() {
    let workdir = Workdir::new();
    workdir.write("rows.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n");
    let ran = workdir.run(&["rows.jsonl", "--model_name_or_path", "none.gguf", "--cutoff_len", "64", "--output_dir", "runs/x"]);
    assert!(ran.stderr.contains("none.gguf") && !ran.stderr.contains("unexpected argument"), "{}", ran.stderr);
}

/// The page on PyPI and crates.io is not in a repository, where links to its files would lead somewhere, and a test without its data fails.
#[test]
fn packages_hold_no_link_to_what_they_lack_and_no_tests_without_data() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for manifest in ["Cargo.toml", "pyproject.toml"] {
        let text = std::fs::read_to_string(root.join(manifest)).unwrap();
        let readme = text.lines().find_map(|line| line.strip_prefix("readme = \"")?.strip_suffix('"')).unwrap();
        let page = std::fs::read_to_string(root.join(readme)).unwrap();
        let links: Vec<&str> = page.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect();
        assert!(!links.is_empty() && links.iter().all(|link| link.starts_with("https://")), "{manifest}: {links:?}");
    }
    let listed =
        Command::new(env!("CARGO")).args(["package", "--list", "--allow-dirty", "--offline"]).current_dir(root).output().unwrap();
    let listed = Ran::of(listed);
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
    let packed: Vec<&str> = listed.stdout.lines().collect();
    assert!(packed.contains(&"src/main.rs") && packed.contains(&"packaging/README.md"), "{packed:?}");
    assert_eq!(packed.iter().filter(|file| file.starts_with("tests/")).collect::<Vec<_>>(), [&""; 0]);
}
