//! Is what I think is trained really trained? Everything that can be said of a data set without the weights of the model.

use std::collections::HashMap;
use std::sync::Arc;

use rayon::prelude::*;
use serde::Serialize;

use crate::dataset::{Choice, DataFile, Dataset, ReadOptions};
use crate::diagnosis::exchanges::{Exchange, LeftOut, exchanges};
use crate::error::{Error, Result};
use crate::format::count;
use crate::jobs::watch::{Watch, fetching};
use crate::model::{ModelName, Reference, text_of};
use crate::tokens::{Audit, Item, RenderOptions, Renderer, Sequence, Tokenizer, rendered};

/// The check as the user asked for it.
pub(crate) struct Job {
    pub inputs: Vec<String>,
    pub read: ReadOptions,
    pub model: ModelName,
    pub render: RenderOptions,
    /// In place of that of `render`; `None` for the usual length, or what the model takes.
    pub max_len: Option<usize>,
    pub choice: Choice,
    /// Rows to show with their supervised parts marked.
    pub shown: usize,
}

/// What was found.
#[derive(Debug, Serialize)]
pub(crate) struct Checked {
    pub model: String,
    pub files: Vec<DataFile>,
    pub records: u64,
    /// Rows with something to learn.
    pub rows: u64,
    pub tokens: u64,
    pub supervised: u64,
    /// Lengths of the rows before they are cut: the smallest, the quartiles, the 95th and 99th of a hundred, the longest.
    pub lengths: [usize; 7],
    /// Rows that are equal to an earlier one, token by token, and of which the same is learnt.
    pub duplicates: Repeated,
    /// Rows one of whose learnt answers is to the same question as one of an earlier row, and says something else.
    pub contradictions: Repeated,
    pub audit: Audit,
    /// The first rows as pieces of text.
    pub shown: Vec<Shown>,
    /// Where rows are cut.
    #[serde(skip)]
    pub max_len: usize,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Repeated {
    pub rows: u64,
    /// The first places, each with that of the earlier row.
    pub examples: Vec<String>,
}

/// A row in the model's own text.
#[derive(Debug, Serialize)]
pub(crate) struct Shown {
    pub place: String,
    pub pieces: Vec<Piece>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Piece {
    pub text: String,
    pub ids: Vec<u32>,
    pub supervised: bool,
}

pub(crate) fn run(job: &Job, watch: &dyn Watch) -> Result<Checked> {
    let dataset = Dataset::open(&job.inputs, &job.read)?;
    let reference = Reference::resolve_text(&job.model, &fetching(watch))?;
    let (tokenizer, template) = text_of(&reference)?;
    let max_len = reference.max_len(job.max_len).map_err(|error| match job.max_len {
        Some(_) => error,
        None => Error::new("the maximum length of a row is unknown, since the model's config is not supported")
            .caused_by(error)
            .cure("Pass --max-len; everything else is checked without it."),
    })?;
    let renderer = Renderer::new(tokenizer, template, RenderOptions { max_len, ..job.render.clone() })?;
    let mut found = Checked {
        model: reference.name.clone(),
        files: dataset.files().to_vec(),
        records: 0,
        rows: 0,
        tokens: 0,
        supervised: 0,
        lengths: [0; 7],
        duplicates: Repeated::default(),
        contradictions: Repeated::default(),
        audit: Audit::of(&dataset),
        shown: Vec::new(),
        max_len,
    };
    let mut lengths = Vec::new();
    let mut rows: HashMap<u64, Arc<str>> = HashMap::new();
    // Of each question: the first row of the first two answers that differ, so that every other one differs from one of them.
    let mut prompts: HashMap<u64, Vec<(u64, Arc<str>)>> = HashMap::new();
    let chosen = dataset.choose(job.choice)?;
    for chunk in rendered(&dataset, &renderer, 0, &chosen) {
        let chunk = chunk?;
        let asked: Vec<_> = chunk.par_iter().map(exchanges_of).collect();
        for (item, exchanges) in chunk.into_iter().zip(asked) {
            found.records += 1;
            let Some(rendered) = found.audit.take(item.row, &item.place, item.rendered, job.read.strict)? else { continue };
            let place = item.place.to_string();
            let sequence = rendered.sequence;
            lengths.push(rendered.audit.truncated.unwrap_or(sequence.ids.len()));
            if found.shown.len() < job.shown {
                found.shown.push(Shown { place: place.clone(), pieces: pieces(&sequence, renderer.tokenizer()) });
            }
            if !sequence.has_targets() {
                continue;
            }
            found.rows += 1;
            found.tokens += sequence.ids.len() as u64;
            found.supervised += sequence.n_targets() as u64;
            let row = sequence.fingerprint();
            if let Some(earlier) = rows.get(&row) {
                found.duplicates.add(&place, earlier);
                continue;
            }
            let place: Arc<str> = place.into();
            rows.insert(row, Arc::clone(&place));
            let mut contradicted = None;
            for exchange in exchanges {
                let (known, own) = (prompts.entry(exchange.asked).or_default(), exchange.answer);
                let other = known.iter().find(|(other, _)| *other != own).map(|(_, place)| Arc::clone(place));
                if known.len() < 2 && known.iter().all(|(other, _)| *other != own) {
                    known.push((own, Arc::clone(&place)));
                }
                contradicted = contradicted.or(other);
            }
            if let Some(earlier) = contradicted {
                found.contradictions.add(&place, &earlier);
            }
        }
    }
    lengths.sort_unstable();
    if let Some(last) = lengths.len().checked_sub(1) {
        let at = |share: f64| lengths[(share * last as f64).round() as usize];
        found.lengths = [0.0, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0].map(at);
    }
    Ok(found)
}

/// In the place of the names of all findings.
const ANY: &str = "any";
const DUPLICATES: &str = "duplicates";
const CONTRADICTIONS: &str = "contradictions";

/// The names of everything that may be found, and [`ANY`].
pub(crate) fn names() -> Vec<String> {
    let audit = Audit::default().findings.into_iter().map(|finding| finding.name);
    [ANY.to_owned()].into_iter().chain(audit).chain([DUPLICATES, CONTRADICTIONS].map(str::to_owned)).collect()
}

impl Checked {
    /// Names and numbers of rows of everything that may be found.
    pub(crate) fn findings(&self) -> Vec<(&str, u64)> {
        let audit = self.audit.findings.iter().map(|finding| (finding.name.as_str(), finding.rows));
        audit.chain([(DUPLICATES, self.duplicates.rows), (CONTRADICTIONS, self.contradictions.rows)]).collect()
    }

    /// An error with exit code 3 if one of the findings that the user names was made; [`ANY`] names all.
    pub(crate) fn fail_on(&self, names: &[String]) -> Result<()> {
        let is_named = |name: &str| names.iter().any(|wanted| wanted == ANY || wanted == name);
        let made: Vec<String> = self
            .findings()
            .iter()
            .filter(|(name, rows)| *rows > 0 && is_named(name))
            .map(|(name, rows)| format!("{name} in {}", count(*rows, "row")))
            .collect();
        match made.is_empty() {
            true => Ok(()),
            false => Err(Error::check(format!("the check found {}", made.join(", ")))),
        }
    }
}

impl Repeated {
    fn add(&mut self, place: &str, earlier: &str) {
        self.rows += 1;
        if self.examples.len() < 3 {
            self.examples.push(format!("{place} as {earlier}"));
        }
    }
}

fn exchanges_of(item: &Item) -> Vec<Exchange> {
    match (&item.example, &item.rendered) {
        (Some(example), Ok(rendered)) => exchanges(example, &rendered.sequence.learnt_turns(), LeftOut::of_row(&rendered.audit)),
        _ => Vec::new(),
    }
}

fn pieces(sequence: &Sequence, tokenizer: &Tokenizer) -> Vec<Piece> {
    let mut runs: Vec<(Vec<u32>, bool)> = Vec::new();
    for (&id, &supervised) in sequence.ids.iter().zip(&sequence.supervised) {
        match runs.last_mut() {
            Some((ids, is)) if *is == supervised => ids.push(id),
            _ => runs.push((vec![id], supervised)),
        }
    }
    let piece = |(ids, supervised): (Vec<u32>, bool)| {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.bytes(id).iter().copied()).collect();
        Piece { text: String::from_utf8_lossy(&bytes).into_owned(), ids, supervised }
    };
    runs.into_iter().map(piece).collect()
}
