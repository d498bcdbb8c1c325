//! Writes the HTML page in which a person reads the rows token by token and decides what to do with them.
//!
//! The page is a single file that needs no server and no network. Its parts are beside this file and used as they are, without a build step:
//!
//! ```text
//! page.html      the frame            style.css    all styles, light and dark
//! data.js        the data block       text.js      bytes -> text with everything visible
//! numbers.js     measures, weights    decisions.js decisions and decisions.jsonl
//! groups.js      the conflicts by kind, and by target and first choice
//! parquet.js     reads table columns  whole.js     the tables of a larger run -> all its rows
//! filters.js     selects and orders rows              compare.js   two runs side by side
//! density.js     (p, H) as a brush    list.js      the ranked rows
//! reader.js      one row in full      details.js   one token
//! draw.js        redraws on changes; acts.js user actions; controls.js fields and buttons
//! keys.js        the keyboard         start.js     the state, and the start of the page
//! ```
//!
//! No data can become markup or code: they are base64 in a block that is no script, the page shows them only as text nodes, and a content security
//! policy allows only this page's style and script, by their hashes, and nothing from elsewhere.
//!
//! The data block is raw deflate, which browsers since 2024 decompress natively (`DecompressionStream`); `block.rs` documents its layout.

mod block;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::dataset::{Example, Role, Turn};
use crate::diagnosis::by_kind::{KindSums, Kinds};
use crate::diagnosis::gate::Weight;
use crate::diagnosis::kinds::ConflictKind;
use crate::diagnosis::quadrants::Resolved;
use crate::diagnosis::shown::{Shown, ShownRow};
use crate::diagnosis::turn_text::{PartPlace, TurnText, TurnToken};
use crate::error::{Context, Error, Result};
use crate::files::{first_bytes, sha256};
use crate::table::{Alternative, KnownConflict, TokenChunk};
use crate::tokens::{Part, writes_beside_content};
use block::Block;

/// A run as the page shows it.
pub(crate) struct Run<'a> {
    /// The title on the page.
    pub title: String,
    pub identity: &'a str,
    /// The data files, with `path`, `sha256` and `format` of each.
    pub data: &'a Value,
    /// How their rows were read: the values of `--map` and `--role`, as `maps` and `roles`.
    pub read: &'a Value,
    /// The settings on which the tokens of a row depend, in any form: the page only asks whether those of two runs are equal.
    pub rendering: String,
    pub data_names: String,
    pub model: &'a str,
    pub vocab_size: usize,
    pub thresholds: &'a Resolved,
    /// A line on which scores are exact, unless all are.
    pub exact: Option<String>,
    /// The selectable gates, by name.
    pub gates: Vec<(String, Weight)>,
    pub shown: &'a Shown,
    /// The second to fifth choices for tokens of shown rows; empty if none are known.
    pub alternatives: &'a [Alternative],
    /// The conflicts of the shown rows with their kinds, and sums per kind; `None` if the run was sorted without its data.
    pub kinds: Option<(&'a [KnownConflict], &'a Kinds)>,
    /// The total loss and gradient of the run's supervised tokens, of which the page shows shares.
    pub totals: [f64; 2],
    /// Each shown row; `None` if the data are not available, so that the page shows tokens only.
    pub examples: Option<&'a HashMap<u32, Example>>,
}

impl Run<'_> {
    pub(crate) fn subject(&self) -> Subject {
        Subject::new(self.identity, self.thresholds, self.examples.is_some())
    }
}

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("style.css");
const SCRIPTS: [&str; 18] = [
    include_str!("data.js"),
    include_str!("text.js"),
    include_str!("numbers.js"),
    include_str!("decisions.js"),
    include_str!("filters.js"),
    include_str!("compare.js"),
    include_str!("density.js"),
    include_str!("list.js"),
    include_str!("reader.js"),
    include_str!("details.js"),
    include_str!("groups.js"),
    include_str!("parquet.js"),
    include_str!("whole.js"),
    include_str!("draw.js"),
    include_str!("acts.js"),
    include_str!("controls.js"),
    include_str!("keys.js"),
    include_str!("start.js"),
];

/// The page for one run, or for two side by side.
pub(crate) fn page(runs: &[Run]) -> Result<String> {
    let mut block = Block::default();
    let headers = runs.iter().map(|run| header(run, &mut block)).collect::<Result<Vec<_>>>()?;
    let data = block.packed(&serde_json::json!({ "runs": headers }))?;
    let script = format!("\"use strict\";\n{}", SCRIPTS.concat());
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; base-uri 'none'; form-action 'none'",
        source_hash(&script),
        source_hash(STYLE)
    );
    let subjects = runs.iter().map(|run| run.subject().to_string()).collect::<Vec<_>>().join(" ");
    let parts = [
        ("{{policy}}", policy.as_str()),
        ("{{subjects}}", &subjects),
        ("{{style}}", STYLE),
        ("{{script}}", &script),
        // The data come last, so that placeholders are not replaced inside them.
        ("{{data}}", &data),
    ];
    Ok(parts.iter().fold(PAGE.to_owned(), |page, (name, part)| page.replacen(name, part, 1)))
}

/// What a page shows, as stated in its head: one per run, in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Subject {
    /// The thresholds as the user named them.
    pub preset: String,
    /// Identifies the scores and the thresholds.
    sorted: String,
    /// Whether the page contains the texts of the rows.
    pub has_texts: bool,
}

impl Subject {
    pub(crate) fn new(identity: &str, thresholds: &Resolved, has_texts: bool) -> Subject {
        let sorted = sha256(format!("{identity}\n{}", thresholds.key()));
        Subject { preset: thresholds.preset.clone(), sorted, has_texts }
    }

    /// Whether both show the same scores under the same thresholds.
    pub(crate) fn is_like(&self, other: &Subject) -> bool {
        self.sorted == other.sorted
    }

    /// The subjects stated by the page at `path`; empty if there is no page, or none stated.
    pub(crate) fn of_page(path: &Path) -> Result<Vec<Subject>> {
        // The element is near the beginning, before anything that may be long.
        let mut start = Vec::new();
        match File::open(path) {
            Ok(file) => file.take(4096).read_to_end(&mut start).context_at(path, "cannot read the page")?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::new("cannot read the page").at(path).caused_by(error)),
        };
        let start = String::from_utf8_lossy(&start);
        let words = start.split_once(SUBJECT).and_then(|(_, rest)| rest.split_once('"')).map_or("", |(words, _)| words);
        let subject = |word: &str| {
            // A preset may contain a colon, such as `tail:0.01`.
            let (preset, sorted) = word.rsplit_once(':')?;
            let (sorted, texts) = sorted.split_once('+').unwrap_or((sorted, ""));
            Some(Subject { preset: preset.to_owned(), sorted: sorted.to_owned(), has_texts: !texts.is_empty() })
        };
        Ok(words.split(' ').filter_map(subject).collect())
    }
}

const SUBJECT: &str = "<meta name=\"diagnose\" content=\"";

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}{}", self.preset, self.sorted, if self.has_texts { "+texts" } else { "" })
    }
}

/// The hash of an inline script or style in a content security policy.
fn source_hash(text: &str) -> String {
    format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text)))
}

/// The header for a run, with the places of its arrays; the scripts read these names.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Header<'a> {
    title: &'a str,
    identity: &'a str,
    data: &'a Value,
    read: &'a Value,
    rendering: &'a str,
    data_names: &'a str,
    model: &'a str,
    vocab_size: usize,
    thresholds: &'a Resolved,
    thresholds_text: String,
    /// The thresholds as the tables of the run store them.
    thresholds_key: String,
    gates: Vec<Value>,
    rows_of_run: usize,
    roles: [&'static str; 5],
    sources: Vec<&'a str>,
    paths: Vec<&'a str>,
    ids: Vec<Option<&'a str>>,
    words: Vec<&'a str>,
    totals: [f64; 2],
    #[serde(skip_serializing_if = "Option::is_none", flatten)]
    kinds: Option<KindsHeader<'a>>,
    arrays: block::Places,
}

/// The header for kinds of conflict; a token's `kind` and `evidence` are indices into these lists.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct KindsHeader<'a> {
    /// The first entry stands for tokens that are no conflict.
    kinds: Vec<&'static str>,
    /// The indices of the kinds that concern form.
    kinds_of_form: Vec<usize>,
    evidences: Vec<&'a str>,
    /// The sums of each kind over the whole run, most conflicts first.
    kind_sums: &'a [KindSums],
}

fn header<'a>(run: &'a Run, block: &mut Block) -> Result<Header<'a>> {
    let Shown { rows, tokens, texts, of_rows, numbers } = run.shown;
    let mut expected = rows.iter().flat_map(|row| std::iter::repeat_n(row.row.row, row.n_tokens));
    if !expected.by_ref().eq(tokens.row.iter().copied()) {
        return Err(Error::new("the tokens of the table are not in the order of its rows")
            .cure("Score the data again, or restore the original order of tokens.parquet."));
    }
    let mut arrays = Arrays { block, places: block::Places::default() };
    let (mut sources, mut paths, mut words) = (Index::default(), Index::default(), Index::default());
    put_rows(&mut arrays, rows, &mut sources, &mut paths);
    arrays.u32("numbers", numbers.iter().flatten().copied());
    put_turns(&mut arrays, rows, run.examples);
    put_tokens(&mut arrays, tokens, &mut words);
    put_parts(&mut arrays, run.shown, run.examples);
    put_alternatives(&mut arrays, tokens, run.alternatives, &mut words);
    let kinds = run.kinds.map(|(conflicts, sums)| put_kinds(&mut arrays, tokens, conflicts, &sums.kinds));

    let other_texts: HashMap<u32, &str> = run.alternatives.iter().map(|own| (own.token_id, own.token.as_str())).collect();
    let text_of = |id: &u32| texts.get(id).map(String::as_str).or_else(|| other_texts.get(id).copied()).unwrap_or("");
    let gate = |(name, weight): &(String, Weight)| -> Result<Value> {
        let weight = serde_json::to_value(weight).context("cannot write down a gate")?;
        Ok(serde_json::json!({ "name": name, "weight": weight }))
    };
    Ok(Header {
        title: &run.title,
        identity: run.identity,
        data: run.data,
        read: run.read,
        rendering: &run.rendering,
        data_names: &run.data_names,
        model: run.model,
        vocab_size: run.vocab_size,
        thresholds: run.thresholds,
        thresholds_text: match &run.exact {
            Some(exact) => format!("{}; {exact}", run.thresholds),
            None => run.thresholds.to_string(),
        },
        thresholds_key: run.thresholds.key(),
        gates: run.gates.iter().map(gate).collect::<Result<_>>()?,
        rows_of_run: *of_rows,
        roles: ROLES,
        sources: sources.keys,
        paths: paths.keys,
        ids: rows.iter().map(|row| row.row.id.as_deref()).collect(),
        words: words.keys.iter().map(text_of).collect(),
        totals: run.totals,
        kinds,
        arrays: arrays.places,
    })
}

/// Adds arrays to the block and records their places under the names that the scripts read.
struct Arrays<'a> {
    block: &'a mut Block,
    places: block::Places,
}

impl Arrays<'_> {
    fn u8(&mut self, name: &'static str, values: impl Iterator<Item = u8>) {
        self.places.insert(name, self.block.u8(values));
    }

    fn u16(&mut self, name: &'static str, values: impl Iterator<Item = u16>) {
        self.places.insert(name, self.block.u16(values));
    }

    fn u32(&mut self, name: &'static str, values: impl Iterator<Item = u32>) {
        self.places.insert(name, self.block.u32(values));
    }

    fn f32(&mut self, name: &'static str, values: impl Iterator<Item = f32>) {
        self.places.insert(name, self.block.f32(values));
    }
}

fn put_rows<'a>(arrays: &mut Arrays, rows: &'a [ShownRow], sources: &mut Index<&'a str>, paths: &mut Index<&'a str>) {
    arrays.u32("row", rows.iter().map(|row| row.row.row));
    arrays.u32("source", rows.iter().map(|row| sources.of(row.row.source.as_str())));
    arrays.u32("path", rows.iter().map(|row| paths.of(row.row.path.as_str())));
    // No text editor counts further.
    arrays.u32("line", rows.iter().map(|row| u32::try_from(row.row.line).unwrap_or(u32::MAX)));
    arrays.u32("tokens", rows.iter().map(|row| row.row.tokens));
    arrays.u32("supervised", rows.iter().map(|row| row.row.supervised));
    arrays.u8("truncated", rows.iter().map(|row| u8::from(row.row.truncated)));
    arrays.u8("sampled", rows.iter().map(|row| u8::from(row.is_sampled)));
    arrays.u32("conflicts", rows.iter().map(|row| row.row.conflicts));
    arrays.f32("conflictLoss", rows.iter().map(|row| row.row.conflict_loss));
    arrays.f32("conflictSurplus", rows.iter().map(|row| row.row.conflict_surplus));
    arrays.f32("conflictGrad", rows.iter().map(|row| row.row.conflict_grad));
    arrays.f32("meanLogprob", rows.iter().map(|row| row.row.mean_logprob.unwrap_or(f32::NAN)));
    arrays.u32("tokenFrom", ends(rows.iter().map(|row| row.n_tokens)));
    // Tables of earlier programs have none. Half the bits tell two rows apart well enough.
    let fingerprints: Option<Vec<u32>> = rows.iter().map(|row| row.row.ids_fingerprint.map(|hash| hash as u32)).collect();
    if let Some(fingerprints) = fingerprints {
        arrays.u32("fingerprint", fingerprints.into_iter());
    }
}

/// The turns of the rows; none if the data are not available.
fn put_turns(arrays: &mut Arrays, rows: &[ShownRow], examples: Option<&HashMap<u32, Example>>) {
    let none = Example::default();
    let example = |row: &ShownRow| examples.and_then(|examples| examples.get(&row.row.row)).unwrap_or(&none);
    let turns = || rows.iter().flat_map(|row| &example(row).turns);
    arrays.u32("turnFrom", ends(rows.iter().map(|row| example(row).turns.len())));
    arrays.u8("role", turns().map(|turn| turn.role as u8));
    arrays.u32("textFrom", ends(turns().map(|turn| turn.content.len())));
    arrays.u8("text", turns().flat_map(|turn| turn.content.bytes()));
    arrays.u32("beside", rows.iter().flat_map(|row| (0..example(row).turns.len()).map(|idx| beside(example(row), idx))));
}

/// A hash of all that a template may put before the end of this turn, apart from contents and earlier turns: the page does not hold it, but
/// two rows are the same only as far as it is. Tools and template variables count as part of the first turn.
fn beside(example: &Example, turn_idx: usize) -> u32 {
    let Turn { reasoning, tool_calls, tool_call_id, name, written, .. } = &example.turns[turn_idx];
    let of_row = [&example.tools, &example.template_switches].map(|value| value.as_ref().filter(|_| turn_idx == 0));
    let all = serde_json::json!([of_row, reasoning, tool_calls, tool_call_id, name, written.role, written.others]);
    first_bytes(&Sha256::digest(all.to_string())) as u32
}

fn put_tokens(arrays: &mut Arrays, tokens: &TokenChunk, words: &mut Index<u32>) {
    arrays.u16("turn", tokens.turn.iter().copied());
    arrays.u32("pos", tokens.pos.iter().copied());
    arrays.u32("begin", tokens.begin.iter().copied());
    arrays.u32("end", tokens.end.iter().copied());
    arrays.u32("word", tokens.token_id.iter().map(|&id| words.of(id)));
    arrays.f32("logprob", tokens.logprob.iter().copied());
    arrays.f32("entropy", tokens.entropy.iter().copied());
    arrays.f32("entropyTopk", tokens.entropy_topk.iter().copied());
    arrays.u32("rank", tokens.rank.iter().copied());
    arrays.f32("tail", tokens.tail.iter().copied());
    arrays.f32("varentropy", tokens.varentropy.iter().copied());
    arrays.f32("grad", tokens.grad.iter().copied());
    arrays.u32("top", tokens.top_id.iter().map(|&id| words.of(id)));
    arrays.f32("topLogprob", tokens.top_logprob.iter().copied());
    arrays.u8("quadrant", tokens.quadrant.iter().map(|quadrant| quadrant.index() as u8));
}

/// What the tokens are part of, in the turns that write something beside their content: 1 for reasoning, 2 for a tool call, 3 for what the template
/// puts around them. 0 for all others.
fn put_parts(arrays: &mut Arrays, Shown { tokens, texts, .. }: &Shown, examples: Option<&HashMap<u32, Example>>) {
    let own: Vec<(u32, u16, TurnToken)> = (0..tokens.len())
        .map(|i| {
            let is_content = tokens.begin[i] < tokens.end[i];
            (tokens.row[i], tokens.turn[i], TurnToken { pos: tokens.pos[i], id: tokens.token_id[i], is_content })
        })
        .collect();
    let word = |id: u32| texts.get(&id).map_or("", String::as_str);
    let part = |place: Option<PartPlace>| match place.map(|place| place.part) {
        None => 0,
        Some(Part::Reasoning) => 1,
        Some(Part::ToolCall) => 2,
        Some(Part::Template) => 3,
    };
    let mut parts: Vec<u8> = Vec::with_capacity(own.len());
    for of_turn in own.chunk_by(|(row, turn, _), (next_row, next_turn, _)| (row, turn) == (next_row, next_turn)) {
        let (row, number, _) = of_turn[0];
        let turn = examples.and_then(|examples| examples.get(&row)?.turns.get(usize::from(number)));
        let turn = turn.filter(|turn| writes_beside_content(turn));
        let tokens: Vec<TurnToken> = of_turn.iter().map(|(_, _, token)| *token).collect();
        match turn.map(|turn| TurnText::of(turn, &tokens, word)) {
            Some(text) => parts.extend(tokens.iter().map(|token| part(text.place(token.pos)))),
            None => parts.resize(parts.len() + tokens.len(), 0),
        }
    }
    arrays.u8("part", parts.into_iter());
}

/// The alternatives to the first choice, for tokens that have some; adds nothing if none has.
fn put_alternatives(arrays: &mut Arrays, tokens: &TokenChunk, alternatives: &[Alternative], words: &mut Index<u32>) {
    if alternatives.is_empty() {
        return;
    }
    let mut by_place: HashMap<(u32, u32), Vec<&Alternative>> = HashMap::new();
    for alternative in alternatives {
        by_place.entry((alternative.row, alternative.pos)).or_default().push(alternative);
    }
    let of_token =
        || tokens.row.iter().zip(&tokens.pos).map(|(&row, &pos)| by_place.get(&(row, pos)).map_or(&[][..], Vec::as_slice));
    arrays.u32("alternativesFrom", ends(of_token().map(<[_]>::len)));
    arrays.u32("alternative", of_token().flatten().map(|alternative| words.of(alternative.token_id)));
    // Thousandths of a nat take a third of the bytes, and have more digits than are shown.
    let thousandths = |alternative: &&Alternative| (-1000.0 * alternative.logprob).round() as u16;
    arrays.u16("alternativeSurprise", of_token().flatten().map(thousandths));
}

/// The kind of each conflict, and its evidence.
fn put_kinds<'a>(
    arrays: &mut Arrays,
    tokens: &TokenChunk,
    conflicts: &'a [KnownConflict],
    sums: &'a [KindSums],
) -> KindsHeader<'a> {
    let by_place: HashMap<(u32, u32), &KnownConflict> =
        conflicts.iter().map(|conflict| ((conflict.row, conflict.pos), conflict)).collect();
    let of_token = || tokens.row.iter().zip(&tokens.pos).map(|(&row, &pos)| by_place.get(&(row, pos)).copied());
    let kind_of =
        |conflict: &KnownConflict| ConflictKind::ALL.iter().position(|kind| kind.name() == conflict.kind).map_or(0, |at| at + 1);
    let mut evidences = Index::default();
    arrays.u8("kind", of_token().map(|conflict| conflict.map_or(0, kind_of) as u8));
    let evidence = |conflict: Option<&'a KnownConflict>| conflict.map_or("", |conflict| conflict.evidence.as_str());
    arrays.u32("evidence", of_token().map(|conflict| evidences.of(evidence(conflict))));
    KindsHeader {
        kinds: std::iter::once("").chain(ConflictKind::ALL.map(ConflictKind::name)).collect(),
        kinds_of_form: (1..).zip(ConflictKind::ALL).filter(|(_, kind)| kind.is_of_form()).map(|(at, _)| at).collect(),
        evidences: evidences.keys,
        kind_sums: sums,
    }
}

/// In the order of [`Role`].
const ROLES: [&str; 5] = {
    const { assert!(Role::System as usize == 0 && Role::Text as usize == 4) };
    ["system", "user", "assistant", "tool", "text"]
};

/// Numbers things in order of first appearance.
struct Index<K> {
    places: HashMap<K, u32>,
    keys: Vec<K>,
}

impl<K> Default for Index<K> {
    fn default() -> Self {
        Index { places: HashMap::new(), keys: Vec::new() }
    }
}

impl<K: Copy + Eq + std::hash::Hash> Index<K> {
    fn of(&mut self, key: K) -> u32 {
        *self.places.entry(key).or_insert_with(|| {
            self.keys.push(key);
            self.keys.len() as u32 - 1
        })
    }
}

/// 0, and the running sum after each length.
fn ends(lengths: impl Iterator<Item = usize>) -> impl Iterator<Item = u32> {
    let mut end = 0;
    std::iter::once(0).chain(lengths.map(move |length| {
        end += length as u32;
        end
    }))
}

#[cfg(test)]
mod tests;
