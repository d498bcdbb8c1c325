//! Enforces the map of the code: a room uses only rooms above it, no files depend on each other in a cycle, and foreign crates stay in their rooms.
//!
//! The source is read token by token, so comments and strings do not count. Paths are resolved as the compiler does, through re-exports: a `mod.rs`
//! that only re-exports names is a table of contents and uses none of them. Test code may use anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The rooms in the reading order of lib.rs.
const ORDER: &[&str] = &[
    "error",
    "files",
    "format",
    "json",
    "provenance",
    "random",
    "spelling",
    "stats",
    "fetch",
    "dataset",
    "tokens",
    "kernels",
    "model",
    "engine",
    "table",
    "diagnosis",
    "eval",
    "train",
    "maps",
    "report",
    "jobs",
    "cli",
    "guide",
];

/// Crates that may be named in a few rooms only, and those rooms or files. `error` turns foreign errors into ours.
const WORLDS: &[(&str, &[&str])] = &[
    ("candle_core", &["error", "kernels", "model", "engine", "train", "jobs/train/result.rs"]),
    // The readers of Parquet and Arrow are the table library's.
    (
        "polars",
        &["error", "dataset/frame.rs", "dataset/parquet.rs", "dataset/arrow.rs", "dataset/write/parquet.rs", "table", "eval"],
    ),
    ("plotters", &["maps"]),
    ("png", &["maps"]),
    ("clap", &["cli"]),
    ("indicatif", &["cli"]),
    ("tokenizers", &["tokens"]),
    ("minijinja", &["tokens"]),
];

/// The remaining cycles, with the files and folders that they span and the reason.
const KNOWN_CIRCLES: &[(&[&str], &str)] = &[];

#[test]
fn a_room_uses_only_rooms_above_it() {
    assert_eq!(wrong_rooms(&Source::of_the_crate()), [""; 0]);
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    let keeps_to =
        |circle: &[String], places: &[&str]| circle.iter().all(|file| places.iter().any(|place| file.starts_with(place)));
    let circles = circles(&Source::of_the_crate());
    let new = circles.iter().filter(|circle| !KNOWN_CIRCLES.iter().any(|(places, _)| keeps_to(circle, places)));
    assert_eq!(new.collect::<Vec<_>>(), [&[""; 0]; 0]);
    for (places, _) in KNOWN_CIRCLES {
        assert!(
            circles.iter().any(|circle| keeps_to(circle, places)),
            "there is no circle in {places:?} any more: strike it from the list"
        );
    }
}

#[test]
fn foreign_worlds_stay_in_their_rooms() {
    assert_eq!(wrong_worlds(&Source::of_the_crate()), [""; 0]);
}

#[test]
fn unsafe_stays_in_the_kernels() {
    for (file, text) in files_of_the_crate() {
        assert!(!mentions(tokens(&file, &text), "unsafe") || room(&file) == "kernels", "src/{file} holds unsafe code");
    }
}

#[test]
fn lib_rs_declares_the_rooms_in_reading_order() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let declared = lib.lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod "));
    assert_eq!(declared.map(|name| name.trim_end_matches(';')).collect::<Vec<_>>(), ORDER);
}

/// The head of every room with five or more files must mention each of them.
#[test]
fn every_room_names_its_files() {
    let mut checked = 0;
    for (file, text) in files_of_the_crate().into_iter().filter(|(file, _)| file.ends_with("mod.rs") || file == "lib.rs") {
        let head: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("//!")).collect();
        // A family is a row of a table below instead.
        let is_named = |name: &str| {
            let first = |line: &&str| line.split_whitespace().any(|word| word == name);
            [format!("{name}.rs"), format!("{name}/")].iter().any(|name| head.iter().any(|line| line.contains(name)))
                || head.iter().any(first)
                || text.contains(&format!("{name}::FAMILY"))
        };
        let declared = text.lines().zip(text.lines().skip(1)).filter(|(before, _)| *before != "#[cfg(test)]");
        let names = declared.filter_map(|(_, line)| line.split_once("mod ")?.1.strip_suffix(';').map(str::to_owned));
        let names: Vec<String> = names.filter(|name| name.chars().all(|c| c.is_alphanumeric() || c == '_')).collect();
        if names.len() >= 5 {
            checked += names.len();
            let missing: Vec<&String> = names.iter().filter(|name| !is_named(name)).collect();
            assert!(missing.is_empty(), "the head of {file} says nothing of {missing:?}");
        }
    }
    assert!(checked > 150, "{checked}");
}

#[test]
fn the_readme_shows_the_rooms_in_reading_order() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let tree = readme.split_once("```text\nsrc/\n").unwrap().1.split_once("```").unwrap().0;
    let (ground, rooms) = tree.split_once('\n').unwrap();
    let first_word = |line: &str| line.split_whitespace().next().unwrap().to_owned();
    let shown =
        ground.split_whitespace().take_while(|word| *word != "the").map(str::to_owned).chain(rooms.lines().map(first_word));
    assert_eq!(shown.collect::<Vec<_>>(), ORDER);
}

/// A crate of a few lines: `files` are names and texts.
fn planted(files: &[(&str, &str)]) -> Source {
    Source::new(files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect())
}

#[test]
fn a_planted_violation_is_found() {
    let check = |text: &str, expected: &[&str]| {
        let source = planted(&[
            ("table/mod.rs", "mod read;\npub use read::read_chunks;\npub struct Row;"),
            ("table/read.rs", "use super::Row;\npub fn read_chunks() -> Row {}"),
            ("maps/mod.rs", "pub mod plane;"),
            ("maps/plane.rs", "pub fn draw() {}"),
            ("diagnosis/summary.rs", text),
        ]);
        assert_eq!(wrong_rooms(&source), expected, "{text}");
    };
    let found = ["src/diagnosis/summary.rs uses src/maps/plane.rs"];
    check("use crate::maps::plane::draw;", &found);
    check("use crate::{error::Result, maps::{plane::{self, draw}}};", &found);
    check("fn f() { crate::maps::plane::draw() }", &found);
    check("use crate::maps;\nfn f() { if true { maps::plane::draw() } }", &found);
    check("use crate::maps::plane as p;\nfn f() { p::draw() }", &found);
    check("mod inner { use super::super::super::maps::plane::draw; }", &found);
    check("use crate::table::read_chunks;", &[]);
    check("// use crate::maps::plane::draw;\nconst S: &str = \"crate::maps::plane::draw\";", &[]);
    check("#[cfg(test)]\nmod tests { use crate::maps::plane::draw; }\n#[cfg(test)]\nuse crate::maps::plane::draw;", &[]);
    check("pub(in crate::diagnosis) fn maps() {}", &[]);
}

#[test]
fn a_planted_circle_is_found() {
    let check = |a: &str, b: &str, expected: &[&[&str]]| {
        let source =
            planted(&[("model/mod.rs", "mod a;\nmod b;\npub use a::A;\npub use b::B;"), ("model/a.rs", a), ("model/b.rs", b)]);
        assert_eq!(circles(&source), expected, "{a} | {b}");
    };
    check("use super::b::B; pub struct A(B);", "pub struct B;", &[]);
    check("use super::b::B; pub struct A(B);", "use super::a::A; pub struct B;", &[&["model/a.rs", "model/b.rs"]]);
    // By way of the re-exports.
    check("pub struct A(super::B);", "use crate::model::A; pub struct B;", &[&["model/a.rs", "model/b.rs"]]);
    let source =
        planted(&[("model/mod.rs", "mod a;\nuse a::A;\npub struct Model(A);"), ("model/a.rs", "pub struct A(super::Model);")]);
    assert_eq!(circles(&source), [["model/a.rs", "model/mod.rs"]]);
    let ring = [("a.rs", "use crate::b::B;"), ("b.rs", "use crate::c::C;"), ("c.rs", "use crate::a::A;")];
    assert_eq!(circles(&planted(&ring)), [["a.rs", "b.rs", "c.rs"]]);
}

#[test]
fn a_planted_foreign_world_is_found() {
    let check =
        |file: &str, text: &str, n_wrong: usize| assert_eq!(wrong_worlds(&planted(&[(file, text)])).len(), n_wrong, "{text}");
    check("report/mod.rs", "use plotters::prelude::*;", 1);
    check("report/mod.rs", "fn f() { plotters::draw() }", 1);
    check("report/mod.rs", "// plotters::draw()", 0);
    check("maps/scene.rs", "use plotters::prelude::*;", 0);
}

/// The crate as this test sees it.
struct Source {
    /// The files that each file uses.
    uses: BTreeMap<String, BTreeSet<String>>,
    /// The crates and modules that each file's paths begin with.
    first_names: BTreeMap<String, BTreeSet<String>>,
}

type Names = Vec<String>;

/// A path in the source.
struct Named {
    /// The module in which it stands.
    module: Names,
    path: Names,
    /// The name that a `use` gives it.
    alias: Option<String>,
    is_reexport: bool,
}

impl Source {
    fn of_the_crate() -> Source {
        Source::new(files_of_the_crate())
    }

    fn new(files: Vec<(String, String)>) -> Source {
        let modules: BTreeMap<Names, String> = files.iter().map(|(file, _)| (module(file), file.clone())).collect();
        let (mut reexports, mut aliases) = (BTreeMap::new(), BTreeMap::new());
        let mut named_in = Vec::new();
        for (file, text) in files.iter().filter(|(file, _)| !file.contains("test")) {
            let mut named = Vec::new();
            walk(tokens(file, text), &module(file), &mut named);
            for name in &named {
                let Some(alias) = &name.alias else { continue };
                let key = (name.module.clone(), alias.clone());
                if name.is_reexport {
                    reexports.insert(key.clone(), (name.module.clone(), name.path.clone()));
                }
                aliases.insert(key, (name.module.clone(), name.path.clone()));
            }
            named_in.push((file.clone(), named));
        }
        let look_up = LookUp { modules, reexports, aliases };
        let (mut uses, mut first_names) = (BTreeMap::new(), BTreeMap::new());
        for (file, named) in named_in {
            let own = named.iter().filter(|name| !name.is_reexport);
            let used = own.filter_map(|name| look_up.file_of(&name.module, &name.path, 0)).filter(|used| *used != file);
            uses.insert(file.clone(), used.collect());
            first_names.insert(file, named.iter().map(|name| name.path[0].clone()).collect());
        }
        Source { uses, first_names }
    }
}

struct LookUp {
    modules: BTreeMap<Names, String>,
    /// What each `use` that passes a name on names, by module and name: the module in which it stands, and its path.
    reexports: BTreeMap<(Names, String), (Names, Names)>,
    aliases: BTreeMap<(Names, String), (Names, Names)>,
}

impl LookUp {
    /// The file that declares the item that `path` names in `module`; `None` for a foreign one, and for a module itself.
    fn file_of(&self, module: &[String], path: &[String], depth: usize) -> Option<String> {
        // Longer than any chain of re-exports.
        if depth > 16 {
            return None;
        }
        let mut at = module.to_vec();
        let mut rest = path;
        match rest[0].as_str() {
            "crate" => (at, rest) = (Vec::new(), &rest[1..]),
            "self" => rest = &rest[1..],
            "super" => {
                while rest.first().is_some_and(|name| name == "super") {
                    at.pop();
                    rest = &rest[1..];
                }
            }
            first => {
                let is_child = self.modules.contains_key(&[module, &[first.to_owned()]].concat());
                if !is_child {
                    let (module, known) = self.aliases.get(&(at, first.to_owned()))?;
                    // The `use` itself counts for what it names.
                    return match (path.len() > 1, known[0] == first) {
                        (true, false) => self.file_of(module, &[known, &path[1..]].concat(), depth + 1),
                        _ => None,
                    };
                }
            }
        }
        for (idx, name) in rest.iter().enumerate() {
            let inner = [&at[..], std::slice::from_ref(name)].concat();
            if self.modules.contains_key(&inner) {
                at = inner;
                continue;
            }
            if let Some((module, path)) = self.reexports.get(&(at.clone(), name.clone())) {
                return self.file_of(module, &[path, &rest[idx + 1..]].concat(), depth + 1);
            }
            // An item of the module, or of one that stands within a file.
            while !at.is_empty() && !self.modules.contains_key(&at) {
                at.pop();
            }
            return self.modules.get(&at).cloned();
        }
        None
    }
}

fn wrong_rooms(source: &Source) -> Vec<String> {
    let position = |file: &str| ORDER.iter().position(|name| *name == room(file));
    let mut wrong = Vec::new();
    for (file, used) in &source.uses {
        let Some(own) = position(file) else {
            assert!(["lib.rs", "main.rs"].contains(&file.as_str()), "src/{file} is in no room that this test knows");
            continue;
        };
        let below = used.iter().filter(|used| position(used).is_some_and(|used| used > own));
        wrong.extend(below.map(|used| format!("src/{file} uses src/{used}")));
    }
    wrong
}

/// Sets of files that all depend on each other, directly or indirectly.
fn circles(source: &Source) -> Vec<Vec<String>> {
    let reached = |from: &String| {
        let mut reached = BTreeSet::new();
        let mut next = vec![from];
        while let Some(file) = next.pop() {
            for used in source.uses.get(file).into_iter().flatten() {
                if reached.insert(used.clone()) {
                    next.push(used);
                }
            }
        }
        reached
    };
    let reached: BTreeMap<&String, BTreeSet<String>> = source.uses.keys().map(|file| (file, reached(file))).collect();
    let circle_of = |(file, of_file): (&&String, &BTreeSet<String>)| -> Vec<String> {
        of_file.iter().filter(|other| reached.get(other).is_some_and(|back| back.contains(*file))).cloned().collect()
    };
    let circles: BTreeSet<Vec<String>> = reached.iter().map(circle_of).filter(|circle| circle.len() > 1).collect();
    circles.into_iter().collect()
}

fn wrong_worlds(source: &Source) -> Vec<String> {
    let mut wrong = Vec::new();
    for (file, names) in &source.first_names {
        for (world, rooms) in WORLDS {
            if names.contains(*world) && !rooms.iter().any(|allowed| *allowed == room(file) || allowed == file) {
                wrong.push(format!("src/{file} uses {world}"));
            }
        }
    }
    wrong
}

/// Collects the paths of `stream`, which stands in `module`.
fn walk(stream: TokenStream, module: &[String], named: &mut Vec<Named>) {
    let trees: Vec<TokenTree> = stream.into_iter().collect();
    let mut i = 0;
    let mut is_public = false;
    while i < trees.len() {
        let was_public = std::mem::take(&mut is_public);
        match &trees[i] {
            TokenTree::Punct(punct) if punct.as_char() == '#' && is_for_tests(trees.get(i + 1)) => {
                i += 2;
                while i < trees.len() && !ends_item(&trees[i]) {
                    i += 1;
                }
            }
            TokenTree::Ident(ident) => match ident.to_string().as_str() {
                "pub" => {
                    is_public = true;
                    // `pub(in crate::model)` uses nothing.
                    i += usize::from(
                        matches!(trees.get(i + 1), Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Parenthesis),
                    );
                }
                "use" => {
                    let end = (i..trees.len()).find(|&end| is_punct(trees.get(end), ';')).unwrap_or(trees.len());
                    use_tree(&trees[i + 1..end], &[], &mut |path, alias| {
                        named.push(Named { module: module.to_vec(), path, alias: Some(alias), is_reexport: was_public });
                    });
                    i = end;
                }
                "mod" => {
                    if let (Some(TokenTree::Ident(name)), Some(TokenTree::Group(body))) = (trees.get(i + 1), trees.get(i + 2)) {
                        walk(body.stream(), &[module, &[name.to_string()]].concat(), named);
                        i += 2;
                    }
                }
                first => {
                    // Not what follows a value: `x.table::<T>()`.
                    let follows = i > 0 && (is_punct(trees.get(i - 1), '.') || is_punct(trees.get(i - 1), ':'));
                    let mut path = vec![first.to_owned()];
                    while is_punct(trees.get(i + 1), ':') && is_punct(trees.get(i + 2), ':') {
                        let Some(TokenTree::Ident(next)) = trees.get(i + 3) else { break };
                        path.push(next.to_string());
                        i += 3;
                    }
                    if path.len() > 1 && !follows {
                        named.push(Named { module: module.to_vec(), path, alias: None, is_reexport: false });
                    }
                }
            },
            TokenTree::Group(group) => walk(group.stream(), module, named),
            _ => {}
        }
        i += 1;
    }
}

/// Calls `leaf` with each path of a `use`, and the name that it gets.
fn use_tree(trees: &[TokenTree], before: &[String], leaf: &mut dyn FnMut(Names, String)) {
    for branch in trees.split(|tree| is_punct(Some(tree), ',')) {
        let mut path = before.to_vec();
        let mut alias = None;
        let mut is_branch = false;
        for (i, tree) in branch.iter().enumerate() {
            match tree {
                TokenTree::Ident(ident) if ident == "as" => {
                    alias = branch.get(i + 1).map(ToString::to_string);
                    break;
                }
                TokenTree::Ident(ident) => path.push(ident.to_string()),
                TokenTree::Group(group) => {
                    is_branch = true;
                    use_tree(&group.stream().into_iter().collect::<Vec<_>>(), &path, leaf);
                }
                TokenTree::Punct(punct) if punct.as_char() == '*' => path.push("*".to_owned()),
                _ => {}
            }
        }
        // `{self}` names what stands before the braces.
        if path.len() > 1 && path.last().is_some_and(|name| name == "self") {
            path.pop();
        }
        if let (false, Some(last)) = (is_branch, path.last().cloned()) {
            leaf(path, alias.unwrap_or(last));
        }
    }
}

fn is_punct(tree: Option<&TokenTree>, wanted: char) -> bool {
    matches!(tree, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

/// `[cfg(test)]`
fn is_for_tests(attribute: Option<&TokenTree>) -> bool {
    attribute.is_some_and(|attribute| attribute.to_string().replace(' ', "") == "[cfg(test)]")
}

fn ends_item(tree: &TokenTree) -> bool {
    is_punct(Some(tree), ';') || matches!(tree, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
}

fn mentions(stream: TokenStream, wanted: &str) -> bool {
    stream.into_iter().any(|tree| match tree {
        TokenTree::Ident(ident) => ident == wanted,
        TokenTree::Group(group) => mentions(group.stream(), wanted),
        _ => false,
    })
}

fn tokens(file: &str, text: &str) -> TokenStream {
    text.parse().unwrap_or_else(|error| panic!("src/{file}: {error}"))
}

/// `kernels` for `kernels/matmul/mod.rs`.
fn room(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap()
}

/// `[kernels, matmul]` for `kernels/matmul/mod.rs`, and for `kernels/matmul.rs`.
fn module(file: &str) -> Names {
    let name = file.trim_end_matches(".rs").trim_end_matches("/mod");
    if ["lib", "main"].contains(&name) { Vec::new() } else { name.split('/').map(str::to_owned).collect() }
}

/// Names below `src`, and texts.
fn files_of_the_crate() -> Vec<(String, String)> {
    fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    let name = |path: &PathBuf| path.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
    files.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}
