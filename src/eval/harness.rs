//! The sample files of lm-evaluation-harness (`--log_samples`) as one side of a comparison, so that nobody has to evaluate again.
//!
//! Written by `lm_eval/loggers/evaluation_tracker.py` (`save_results_samples`): `samples_TASK_TIME.jsonl`, one object per item and
//! filter. A row says itself what came out of it, and nothing is derived again:
//!
//! ```text
//! "filter": "strict-match", "metrics": ["exact_match"], "exact_match": 1.0     -> `exact_match,strict-match`, here 1
//! "acc": 1.0 | true                                                            a share or a mean
//! "perplexity": -3.5                                                           a log-likelihood: exp of minus the mean
//! "word_perplexity": [-120.5, 17], "bits_per_byte": [-120.5, 90]               its sum over that of the second number
//! "inst_level_strict_acc": [true, false]                                       IFEval: the share over all of them
//! "doc_hash", "prompt_hash"                                                    whether both sides were asked the same
//! ```
//!
//! A file that has none of this is named and left out; the others are compared.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::compare::{Asked, OwnMetric, Side, TaskSamples};
use crate::dataset;
use crate::error::{Error, Result};
use crate::stats::{Link, Term};

/// Is this a sample file, or a folder that holds some?
pub fn is_harness(path: &Path) -> bool {
    !sample_files(path).is_empty()
}

/// Of several files of one task, the one with the latest time counts.
pub fn read_side(path: &Path) -> Result<Side> {
    let (mut tasks, mut skipped) = (BTreeMap::new(), Vec::new());
    let mut latest = BTreeMap::new();
    for file in sample_files(path) {
        latest.insert(task_name(&file), file);
    }
    for (name, file) in latest {
        match read_task(&file) {
            Ok(task) => {
                tasks.insert(name, task);
            }
            Err(error) => skipped.push(format!("{}: {}", file.display(), error.reason())),
        }
    }
    if tasks.is_empty() {
        return Err(Error::new("none of the sample files can be compared").at(path).cure(skipped.join("\n  ")));
    }
    Ok(Side { name: path.display().to_string(), tasks, skipped })
}

/// In the order of their times. `--output_path` names a folder in which the harness makes one for each model.
fn sample_files(path: &Path) -> Vec<PathBuf> {
    let is_samples = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with("samples_") && name.ends_with(".jsonl")
    };
    if path.is_file() {
        return if is_samples(path) { vec![path.to_owned()] } else { Vec::new() };
    }
    let entries = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
    };
    let mut files: Vec<PathBuf> = entries(path).into_iter().filter(|path| is_samples(path)).collect();
    if files.is_empty() {
        // One level down, if that is one model's folder: two models' files would be taken for one's.
        let mut folders: Vec<Vec<PathBuf>> = entries(path)
            .into_iter()
            .filter(|path| path.is_dir())
            .map(|folder| entries(&folder).into_iter().filter(|path| is_samples(path)).collect())
            .filter(|files: &Vec<PathBuf>| !files.is_empty())
            .collect();
        if folders.len() == 1 {
            files = folders.remove(0);
        }
    }
    files.sort_by_key(|path| path.file_name().map(ToOwned::to_owned));
    files
}

/// `arc_easy` of `samples_arc_easy_2026-01-02T03-04-05.678901.jsonl`.
fn task_name(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = stem.strip_prefix("samples_").unwrap_or(&stem);
    let is_time =
        |text: &str| text.len() >= 10 && text.as_bytes()[4] == b'-' && text.as_bytes()[..4].iter().all(u8::is_ascii_digit);
    match name.rsplit_once('_') {
        Some((task, time)) if is_time(time) => task.to_owned(),
        _ => name.to_owned(),
    }
}

fn read_task(path: &Path) -> Result<TaskSamples> {
    let mut ids: Vec<String> = Vec::new();
    let mut index: HashMap<String, usize> = HashMap::new();
    let mut asked: Vec<Asked> = Vec::new();
    let mut found: BTreeMap<String, (Meaning, HashMap<usize, Term>)> = BTreeMap::new();
    for row in dataset::rows(path)? {
        let (line, row) = row?;
        let wrong = |what: String| Error::new(what).at_line(path, line);
        // The item's own id pairs with our evaluations of the same file.
        let id = match row.get("doc").and_then(|doc| doc.get("id")).and_then(Value::as_str) {
            Some(id) => id.to_owned(),
            None => row.get("doc_id").map(Value::to_string).ok_or_else(|| wrong("the row has no `doc_id`".to_owned()))?,
        };
        let item = *index.entry(id.clone()).or_insert_with(|| {
            ids.push(id.clone());
            asked.push(Asked { document: text(&row, "doc_hash"), prompt: text(&row, "prompt_hash") });
            ids.len() - 1
        });
        let filter = row.get("filter").and_then(Value::as_str).filter(|filter| *filter != "none");
        for (name, meaning, term) in metrics_of(&row) {
            let name = filter.map_or(name.clone(), |filter| format!("{name},{filter}"));
            let (known, terms) = found.entry(name.clone()).or_insert_with(|| (meaning, HashMap::new()));
            if *known != meaning || terms.insert(item, term).is_some() {
                return Err(wrong(format!("item {id} has `{name}` twice, or in another form than the items above")));
            }
        }
    }
    let own: Vec<OwnMetric> = found
        .into_iter()
        // A metric that some items lack would be a mean over other items than the rest.
        .filter(|(_, (_, terms))| terms.len() == ids.len())
        .map(|(name, (meaning, mut terms))| OwnMetric {
            link: meaning.link(),
            lower_is_better: is_lower_better(&name),
            terms: (0..ids.len()).filter_map(|item| terms.remove(&item)).collect(),
            name,
        })
        .collect();
    if own.is_empty() {
        return Err(Error::new("no metric of its own stands in every row (expected `metrics` and their values)"));
    }
    Ok(TaskSamples { kind: None, ids, samples: Vec::new(), own, asked, data_sha256: None, few_shot: None })
}

fn text(row: &Map<String, Value>, key: &str) -> Option<String> {
    row.get(key).and_then(Value::as_str).map(str::to_owned)
}

/// How the values of a metric become one number.
#[derive(Clone, Copy, PartialEq)]
enum Meaning {
    Mean,
    /// exp of minus the mean of log-likelihoods.
    Perplexity,
    /// The same over words or bytes.
    Weighted,
    /// Minus log-likelihoods in bits over bytes.
    Bits,
    /// The share over the elements of lists.
    Elements,
}

impl Meaning {
    fn link(self) -> Link {
        match self {
            Meaning::Mean | Meaning::Bits | Meaning::Elements => Link::Identity,
            Meaning::Perplexity | Meaning::Weighted => Link::Exp,
        }
    }
}

/// The metrics that the row names, or where it names none (before version 0.4.4), the numbers that are no part of every row.
fn metrics_of(row: &Map<String, Value>) -> Vec<(String, Meaning, Term)> {
    const PARTS: [&str; 13] = [
        "doc_id",
        "doc",
        "target",
        "arguments",
        "resps",
        "filtered_resps",
        "filter",
        "metrics",
        "doc_hash",
        "prompt_hash",
        "target_hash",
        "schema_version",
        "sample_id",
    ];
    let names: Vec<&str> = match row.get("metrics").and_then(Value::as_array) {
        Some(names) => names.iter().filter_map(Value::as_str).collect(),
        None => row.keys().map(String::as_str).filter(|key| !PARTS.contains(key)).collect(),
    };
    let value = |name: &str| {
        let term = |numerator, denominator| Some(Term { numerator, denominator });
        let number = |value: &Value| value.as_f64().or_else(|| value.as_bool().map(|value| f64::from(u8::from(value))));
        let (meaning, term) = match row.get(name)? {
            Value::Array(list) if !list.is_empty() && list.iter().all(Value::is_boolean) => {
                (Meaning::Elements, term(list.iter().filter_map(number).sum(), list.len() as f64)?)
            }
            Value::Array(list) => match (name, &list[..]) {
                ("word_perplexity" | "byte_perplexity", [a, b]) => (Meaning::Weighted, term(-a.as_f64()?, b.as_f64()?)?),
                ("bits_per_byte", [a, b]) => (Meaning::Bits, term(-a.as_f64()? / std::f64::consts::LN_2, b.as_f64()?)?),
                _ => return None,
            },
            single if name == "perplexity" => (Meaning::Perplexity, term(-number(single)?, 1.0)?),
            single => (Meaning::Mean, term(number(single)?, 1.0)?),
        };
        Some((name.to_owned(), meaning, term))
    };
    names.into_iter().filter_map(value).collect()
}

/// As the harness says of its own metrics (`higher_is_better=False`).
fn is_lower_better(name: &str) -> bool {
    let name = name.split(',').next().unwrap_or(name);
    ["perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter", "bypass"].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::compare::compare;

    fn folder(files: &[(&str, &[Value])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, rows) in files {
            let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    fn row(id: u64, filter: &str, metric: &str, value: Value) -> Value {
        serde_json::json!({"doc_id": id, "doc": {}, "filter": filter, "metrics": [metric], metric: value, "doc_hash": format!("d{id}"), "prompt_hash": "p"})
    }

    #[test]
    fn the_rows_own_metrics_count_per_filter() {
        let rows = |values: [f64; 4], other: f64| -> Vec<Value> {
            let strict = (0..4).map(|id| row(id, "strict", "exact_match", values[id as usize].into()));
            strict.chain((0..4).map(|id| row(id, "flexible", "exact_match", other.into()))).collect()
        };
        let (before, after) = (rows([1.0, 1.0, 0.0, 1.0], 1.0), rows([1.0, 0.0, 0.0, 0.0], 0.0));
        let words = [
            row(0, "none", "word_perplexity", serde_json::json!([-8.0, 2])),
            row(1, "none", "word_perplexity", serde_json::json!([-2.0, 3])),
        ];
        let ifeval = [
            row(0, "none", "inst_level_strict_acc", serde_json::json!([true, false])),
            row(1, "none", "inst_level_strict_acc", serde_json::json!([true])),
        ];
        let a = folder(&[
            ("m/samples_gen_2026-01-02T03-04-05.6.jsonl", &before),
            ("m/samples_w.jsonl", &words),
            ("m/samples_i.jsonl", &ifeval),
            ("m/samples_odd.jsonl", &[serde_json::json!({"doc_id": 0})]),
        ]);
        let b = folder(&[
            ("samples_gen_2026-01-02T03-04-05.6.jsonl", &after),
            ("samples_w.jsonl", &words),
            ("samples_i.jsonl", &ifeval),
        ]);
        let (a, b) = (read_side(a.path()).unwrap(), read_side(b.path()).unwrap());
        assert!(a.skipped.len() == 1 && a.skipped[0].contains("samples_odd.jsonl"), "{:?}", a.skipped);
        let found = compare(&a, &b).unwrap();
        let strict = &found.tasks["gen"].metrics["exact_match,strict"];
        assert_eq!((strict.before, strict.after, strict.difference.value), (0.75, 0.25, -0.5));
        // numpy.std([0, -1, 0, -1], ddof=1) / 2
        assert!((strict.difference.stderr.unwrap() - 1f64 / 12f64.sqrt()).abs() < 1e-12);
        assert_eq!(found.tasks["gen"].metrics["exact_match,flexible"].difference.value, -1.0);
        // exp(10 / 5), and 2 of 3 instructions
        assert!((found.tasks["w"].metrics["word_perplexity"].before - 2f64.exp()).abs() < 1e-12);
        assert!((found.tasks["i"].metrics["inst_level_strict_acc"].before - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn other_documents_are_left_out_and_other_prompts_are_said() {
        let rows = |hash: &str, prompt: &str| -> Vec<Value> {
            (0..3)
                .map(|id| serde_json::json!({"doc_id": id, "metrics": ["acc"], "acc": 1.0, "doc_hash": hash, "prompt_hash": prompt}))
                .collect()
        };
        let side =
            |x: Vec<Value>, y: Vec<Value>| read_side(folder(&[("samples_x.jsonl", &x), ("samples_y.jsonl", &y)]).path()).unwrap();
        let found = compare(&side(rows("a", "p"), rows("a", "p")), &side(rows("b", "p"), rows("a", "q"))).unwrap();
        assert!(
            !found.tasks.contains_key("x") && found.skipped[0].contains("`x`") && found.skipped[0].contains("doc_hash"),
            "{:?}",
            found.skipped
        );
        assert_eq!(found.tasks["y"].prompts_differ, 3);
    }
}
