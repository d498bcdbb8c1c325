//! Reads the sample files of lm-evaluation-harness (`--log_samples`) as one side of a comparison, so that nothing must be
//! evaluated again.
//!
//! `lm_eval/loggers/evaluation_tracker.py` (`save_results_samples`) writes `samples_TASK_TIME.jsonl`, with one object per item
//! and filter. Each row contains its own metrics, and nothing is recomputed:
//!
//! ```text
//! "filter": "strict-match", "metrics": ["exact_match"], "exact_match": 1.0     -> `exact_match,strict-match`, here 1
//! "acc": 1.0 | true                                                            a share or a mean
//! "perplexity": -3.5                                                           a log-likelihood: exp of minus the mean
//! "word_perplexity": [-120.5, 17], "bits_per_byte": [-120.5, 90]               the sum of the first over the sum of the second number
//! "inst_level_strict_acc": [true, false]                                       IFEval: the share over all of them
//! "doc_hash", "prompt_hash"                                                    whether both sides were asked the same
//! ```
//!
//! A file without any of these is reported and skipped; the others are compared. The tasks of a group, such as `mmlu`, are listed
//! in the `results_TIME.json` beside the samples (`group_subtasks`), or follow from documents whose subject matches the end of
//! the task's name.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::compare::{Asked, Origin, Side, TaskSamples};
use super::metrics::Metric;
use crate::dataset;
use crate::error::{Error, Result};
use crate::files::file_name;
use crate::stats::{Link, Term};

/// Is this a sample file, or a folder with sample files?
pub fn is_harness(path: &Path) -> bool {
    !sample_files(path).is_empty()
}

/// Reads the sample files at `path`. If a task has several files, the one with the latest time counts.
pub fn read_side(path: &Path) -> Result<Side> {
    let (mut tasks, mut skipped) = (BTreeMap::new(), Vec::new());
    let mut latest = BTreeMap::new();
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in sample_files(path) {
        latest.insert(task_name(&file), file);
    }
    for (name, file) in latest {
        match read_task(&file) {
            Ok(Read { task, group, left_out }) => {
                if !left_out.is_empty() {
                    let names = left_out.into_iter().collect::<Vec<_>>().join(", ");
                    skipped
                        .push(format!("{}: {names} (not a number for each row); its other metrics are compared", file.display()));
                }
                groups.entry(group.unwrap_or_default()).or_default().push(name.clone());
                tasks.insert(name, task);
            }
            Err(error) => skipped.push(format!("{}: {}", file.display(), error.reason())),
        }
    }
    if tasks.is_empty() {
        return Err(Error::new("none of the sample files can be compared").at(path).cure(skipped.join("\n  ")));
    }
    groups.remove("");
    groups.extend(groups_of_results(path));
    for members in groups.values_mut() {
        members.retain(|name| tasks.contains_key(name));
    }
    groups.retain(|_, members| members.len() > 1);
    Ok(Side { name: path.display().to_string(), model_reference: None, engine: None, tasks, groups, skipped })
}

/// `group_subtasks` of the newest results beside the samples: all tasks of each group, including those of nested groups.
fn groups_of_results(path: &Path) -> BTreeMap<String, Vec<String>> {
    let folder = sample_files(path).first().and_then(|file| file.parent()).map(Path::to_owned).unwrap_or_default();
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let is_results = |path: &PathBuf| {
        let name = file_name(path);
        name.starts_with("results") && name.ends_with(".json")
    };
    let newest = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_results).max();
    // Python writes NaN if there is no standard error.
    let read = |path: PathBuf| -> Option<Value> { dataset::embedded_json(&std::fs::read_to_string(path).ok()?) };
    let Some(results) = newest.and_then(read) else { return BTreeMap::new() };
    let Some(subtasks) = results.get("group_subtasks").and_then(Value::as_object) else { return BTreeMap::new() };
    let all = |name: &String| {
        let (mut found, mut left) = (BTreeSet::new(), vec![name.as_str()]);
        while let Some(name) = left.pop() {
            if found.insert(name) {
                left.extend(subtasks.get(name).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str));
            }
        }
        (name.clone(), found.into_iter().map(str::to_owned).collect())
    };
    subtasks.keys().map(all).collect()
}

/// The sample files in the order of their times. `--output_path` names a folder in which the harness creates one folder per
/// model.
fn sample_files(path: &Path) -> Vec<PathBuf> {
    let is_samples = |path: &Path| {
        let name = file_name(path);
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
        // One level down, but only if there is a single model's folder: the files of two models would otherwise be mixed.
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

/// `arc_easy` for `samples_arc_easy_2026-01-02T03-04-05.678901.jsonl`.
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

/// The contents of a file.
struct Read {
    task: TaskSamples,
    /// The group that its documents name.
    group: Option<String>,
    /// Metrics in the rows that do not have a number for each item, such as the pairs from which F1 is computed.
    left_out: BTreeSet<String>,
}

fn read_task(path: &Path) -> Result<Read> {
    let name = task_name(path);
    let mut group: Option<Option<String>> = None;
    let (mut ids, mut own_ids): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    let mut index: HashMap<String, usize> = HashMap::new();
    let mut asked: Vec<Asked> = Vec::new();
    let mut origins: Vec<Origin> = Vec::new();
    let mut found: BTreeMap<String, (Meaning, HashMap<usize, Term>)> = BTreeMap::new();
    let mut named: BTreeSet<String> = BTreeSet::new();
    for row in dataset::rows(path)? {
        let (line, row) = row?;
        let wrong = |what: String| Error::new(what).at_line(path, line);
        let id = row.get("doc_id").map(Value::to_string).ok_or_else(|| wrong("the row has no `doc_id`".to_owned()))?;
        let item = *index.entry(id.clone()).or_insert_with(|| {
            ids.push(id.clone());
            own_ids.extend(row.get("doc").and_then(|doc| doc.get("id")).and_then(Value::as_str).map(str::to_owned));
            let of_doc = |key: &str| row.get("doc").and_then(|doc| doc.get(key)).and_then(Value::as_str);
            origins.push(Origin { subject: None, group: of_doc("group").map(str::to_owned) });
            let own = of_doc("subject").and_then(|subject| name.strip_suffix(subject)?.strip_suffix('_')).map(str::to_owned);
            group = Some(if group.as_ref().is_none_or(|group| *group == own) { own } else { None });
            asked.push(Asked { document: text(&row, "doc_hash"), prompt: text(&row, "prompt_hash") });
            ids.len() - 1
        });
        let filter = row.get("filter").and_then(Value::as_str).filter(|filter| *filter != "none");
        named.extend(names_of(&row).map(|name| filter.map_or(name.to_owned(), |filter| format!("{name},{filter}"))));
        for (name, meaning, term) in metrics_of(&row) {
            let name = filter.map_or(name.clone(), |filter| format!("{name},{filter}"));
            let (known, terms) = found.entry(name.clone()).or_insert_with(|| (meaning, HashMap::new()));
            if *known != meaning || terms.insert(item, term).is_some() {
                return Err(wrong(format!("item {id} has `{name}` twice, or in a different form than the items above")));
            }
        }
    }
    let metrics: Vec<Metric> = found
        .into_iter()
        // A metric that some items lack would be a mean over different items from the others.
        .filter(|(_, (_, terms))| terms.len() == ids.len())
        .map(|(name, (meaning, mut terms))| {
            let terms: Vec<Term> = (0..ids.len()).filter_map(|item| terms.remove(&item)).collect();
            let (link, lower_is_better) = (meaning.link(), is_lower_better(&name));
            let in_reach = |term: &Term| (0.0..=term.denominator).contains(&term.numerator);
            let is_share = link == Link::Identity && !lower_is_better && terms.iter().all(in_reach);
            Metric { name, link, lower_is_better, is_share, terms }
        })
        .collect();
    if metrics.is_empty() {
        let names = if named.is_empty() {
            String::new()
        } else {
            format!("; found {}", named.into_iter().collect::<Vec<_>>().join(", "))
        };
        return Err(Error::new(format!("no metric is a number for each row (expected `metrics` and their values){names}")));
    }
    // The items' own ids match those of our evaluations of the same file, provided that every item has a unique one.
    if own_ids.iter().collect::<BTreeSet<_>>().len() == ids.len() {
        ids = own_ids;
    }
    let left_out = named.into_iter().filter(|name| metrics.iter().all(|metric| metric.name != *name)).collect();
    let task = TaskSamples {
        kind: None,
        ids,
        samples: Vec::new(),
        metrics,
        asked,
        origins,
        data_sha256: None,
        settings: None,
        primary: None,
    };
    Ok(Read { task, group: group.flatten(), left_out })
}

fn text(row: &Map<String, Value>, key: &str) -> Option<String> {
    row.get(key).and_then(Value::as_str).map(str::to_owned)
}

/// How the values of a metric are combined.
#[derive(Clone, Copy, PartialEq)]
enum Meaning {
    Mean,
    /// exp of minus the mean log-likelihood.
    Perplexity,
    /// exp of minus the sum of log-likelihoods per word or byte.
    Weighted,
    /// Minus the sum of log-likelihoods in bits per byte.
    Bits,
    /// The share over all elements of the lists.
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

/// The names of the row's metrics, if it lists them.
fn names_of(row: &Map<String, Value>) -> impl Iterator<Item = &str> {
    row.get("metrics").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// The metrics that the row names; if it names none (before version 0.4.4), all numbers that are not standard fields.
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
    let names: Vec<&str> = match row.contains_key("metrics") {
        true => names_of(row).collect(),
        false => row.keys().map(String::as_str).filter(|key| !PARTS.contains(key)).collect(),
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

/// The harness declares these metrics with `higher_is_better=False`.
fn is_lower_better(name: &str) -> bool {
    let name = name.split(',').next().unwrap_or(name);
    [
        "perplexity",
        "word_perplexity",
        "byte_perplexity",
        "bits_per_byte",
        "brier_score",
        "ter",
        "likelihood_diff",
        "pct_stereotype",
        "bypass",
    ]
    .contains(&name)
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
        // An accuracy is shown in per cent, BLEU, with its own scale up to 100, is not.
        let bleu = [row(0, "none", "bleu_max", 12.5.into()), row(1, "none", "bleu_max", 0.5.into())];
        let bleu = folder(&[("samples_b.jsonl", &bleu)]);
        let bleu = compare(&read_side(bleu.path()).unwrap(), &read_side(bleu.path()).unwrap()).unwrap();
        assert!(strict.is_share && !bleu.tasks["b"].metrics["bleu_max"].is_share && bleu.macro_average.is_none());
        assert!(!found.tasks["w"].metrics["word_perplexity"].is_share);
        // exp(10 / 5), and 2 of 3 instructions
        assert!((found.tasks["w"].metrics["word_perplexity"].before - 2f64.exp()).abs() < 1e-12);
        assert!((found.tasks["i"].metrics["inst_level_strict_acc"].before - 2.0 / 3.0).abs() < 1e-12);
    }

    /// Three subjects with 2, 4 and 6 documents.
    #[test]
    fn a_group_of_tasks_weighs_its_documents_and_its_tasks() {
        let subject = |name: &str, n: u64, right: u64| -> (String, Vec<Value>) {
            let row = |id| {
                let acc = f64::from(u8::from(id < right));
                serde_json::json!({"doc_id": id, "doc": {"subject": name}, "metrics": ["acc"], "acc": acc, "doc_hash": format!("{name}{id}")})
            };
            (format!("samples_mmlu_{name}_2026-01-02T03-04-05.6.jsonl"), (0..n).map(row).collect())
        };
        let side = |right: [u64; 3], results: Option<&str>| {
            let mut files: Vec<(String, Vec<Value>)> = ["law", "virology", "logic"]
                .iter()
                .zip([2, 4, 6])
                .zip(right)
                .map(|((name, n), right)| subject(name, n, right))
                .collect();
            files.push(("samples_other.jsonl".to_owned(), (0..4).map(|id| row(id, "none", "acc", 1.0.into())).collect()));
            let files: Vec<(&str, &[Value])> = files.iter().map(|(name, rows)| (name.as_str(), rows.as_slice())).collect();
            let folder = folder(&files);
            if let Some(results) = results {
                std::fs::write(folder.path().join("results_2026-01-02T03-04-05.6.json"), results).unwrap();
            }
            read_side(folder.path()).unwrap()
        };
        let found = compare(&side([2, 2, 3], None), &side([1, 2, 6], None)).unwrap();
        let mmlu = &found.groups["mmlu"];
        assert_eq!((mmlu.n, mmlu.tasks.join(" ")), (12, "mmlu_law mmlu_logic mmlu_virology".to_owned()));
        let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found} for {expected}");
        // 7 and 9 of 12; 1, 1/2 and 1/2 against 1/2, 1/2 and 1.
        close(mmlu.by_items.before, 7.0 / 12.0);
        close(mmlu.by_items.difference.value, 2.0 / 12.0);
        close(mmlu.mean_over_tasks.before, 2.0 / 3.0);
        close(mmlu.mean_over_tasks.difference.value, 0.0);
        // The group counts as one task, like the other task.
        let average = found.macro_average.unwrap();
        assert_eq!(average.tasks, ["mmlu", "other"]);
        close(average.difference.value, 1.0 / 12.0);
        // The results file also names groups, including nested ones.
        let results = r#"{"results": {"mmlu": {"acc_stderr,none": NaN}}, "group_subtasks": {"mmlu": ["mmlu_law", "mmlu_stem"], "mmlu_stem": ["mmlu_virology", "mmlu_logic"], "other": []}}"#;
        let found = compare(&side([2, 2, 3], Some(results)), &side([1, 2, 6], Some(results))).unwrap();
        assert_eq!(found.groups.keys().collect::<Vec<_>>(), ["mmlu", "mmlu_stem"]);
        assert_eq!(
            (found.groups["mmlu_stem"].n, found.macro_average.unwrap().tasks),
            (10, vec!["mmlu".to_owned(), "other".to_owned()])
        );
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
