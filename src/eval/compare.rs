//! Two evaluations of the same items -> what changed, with its uncertainty.
//!
//! Items are paired by task and id, so that what makes an item easy or hard for both models drops out: with the same items the
//! difference of two accuracies is far better known than by an unpaired test. Accuracies get Tango's interval and McNemar's exact test
//! on their flips, corrected for the number of tasks after Holm; everything else gets a bootstrap interval. Items in groups count by
//! their groups (`stats/design.rs`): a bootstrap over these, and the exact test over their nets.
//!
//! The subjects of a task, and the tasks of one of the harness's groups, are summed up in two ways: every item with the same weight, as
//! the harness does for MMLU (`weight_by_size`), and every subject or task with the same weight. A group counts as one task in the macro
//! average.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::metrics::{Sample, metrics, primary};
use super::results::{Settings, read_samples, read_scores};
use super::tasks::{FewShot, TaskKind};
use crate::error::{Error, Result};
use crate::stats::{
    Design, Estimate, Link, Term, detectable_drop, holm, macro_difference, mcnemar_exact, mean_difference_over_parts,
    mean_over_parts, paired_difference, ratio, sign_flip, variance_inflation,
};

/// One side of a comparison.
pub struct Side {
    /// The name of the side, for people.
    pub name: String,
    /// What the user wrote for the model, where it is known.
    pub model_reference: Option<String>,
    /// What ran the model, where it is known.
    pub engine: Option<String>,
    /// The tasks by their names.
    pub tasks: BTreeMap<String, TaskSamples>,
    /// Tasks that are summed up together, by the group's name.
    pub groups: BTreeMap<String, Vec<String>>,
    /// Files that cannot be compared, with the reason.
    pub skipped: Vec<String>,
}

/// What one side says of a task.
pub struct TaskSamples {
    /// The kind of task; known of our own evaluations alone.
    pub kind: Option<TaskKind>,
    /// The items' ids.
    pub ids: Vec<String>,
    /// The samples of our own evaluations, in the order of `ids`; else empty.
    pub samples: Vec<Sample>,
    /// What came out, item by item.
    pub own: Vec<OwnMetric>,
    /// What each item asks, in the order of `ids`; empty where it is not known.
    pub asked: Vec<Asked>,
    /// Where each item belongs, in the order of `ids`.
    pub origins: Vec<Origin>,
    /// SHA-256 of the data file, where it is known.
    pub data_sha256: Option<String>,
    /// How it was asked and how answers were written, where it is known.
    pub settings: Option<Settings>,
    /// The metric that is usually quoted, where it is known.
    pub primary: Option<String>,
}

/// A metric, item by item.
#[derive(Clone)]
pub struct OwnMetric {
    /// The name of the metric.
    pub name: String,
    /// How the ratio of sums becomes the metric.
    pub link: Link,
    /// Is less better, as of a perplexity?
    pub lower_is_better: bool,
    /// What each item adds to the metric, in the order of the task's ids.
    pub terms: Vec<Term>,
}

/// The part of its task that an item belongs to, and what it shares with others.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The part of its task.
    pub subject: Option<String>,
    /// What the item was drawn together with.
    pub group: Option<String>,
}

/// Hashes of what an item asks.
pub struct Asked {
    /// The hash of the item's row, where it is known.
    pub document: Option<String>,
    /// The hash of the text before the answer, where it is known.
    pub prompt: Option<String>,
}

impl TaskSamples {
    /// What a task of our own evaluations says.
    pub fn of(kind: TaskKind, samples: Vec<Sample>) -> TaskSamples {
        let own = metrics(kind, &samples).into_iter().map(|metric| OwnMetric {
            name: metric.name,
            link: metric.link,
            lower_is_better: metric.lower_is_better,
            terms: metric.terms,
        });
        TaskSamples {
            kind: Some(kind),
            ids: samples.iter().map(|sample| sample.id.clone()).collect(),
            own: own.collect(),
            origins: samples
                .iter()
                .map(|sample| Origin { subject: sample.subject.clone(), group: sample.group.clone() })
                .collect(),
            asked: samples.iter().map(|sample| Asked { document: None, prompt: sample.prompt_sha256.clone() }).collect(),
            samples,
            data_sha256: None,
            settings: None,
            primary: None,
        }
    }
}

impl TaskSamples {
    /// The same of texts that are not cut into windows.
    fn whole_texts(&self) -> TaskSamples {
        let mut texts: Vec<Sample> = Vec::new();
        for window in &self.samples {
            let id = text_of_window(&window.id);
            match texts.last_mut().filter(|text| text.id == id) {
                Some(text) => text.choices[0].join(&window.choices[0]),
                None => texts.push(Sample { id: id.to_owned(), ..window.clone() }),
            }
        }
        let (settings, primary, data_sha256) = (self.settings.clone(), self.primary.clone(), self.data_sha256.clone());
        TaskSamples { settings, primary, data_sha256, ..TaskSamples::of(TaskKind::Text, texts) }
    }
}

/// diff.json of two evaluations.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Comparison {
    /// The name of the side before.
    pub before: String,
    /// The name of the side after.
    pub after: String,
    /// What ran the models, before and after, where the two differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engines: Option<[String; 2]>,
    /// The tasks of both sides, by their names.
    pub tasks: BTreeMap<String, TaskChange>,
    /// Tasks that the harness sums up, by the group's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, GroupChange>,
    /// Mean over the tasks that have an accuracy, each by its primary metric and a group as one; `None` where there is no such task.
    pub macro_average: Option<MacroChange>,
    /// Tasks that the side after does not have.
    pub tasks_only_before: Vec<String>,
    /// Tasks that the side before does not have.
    pub tasks_only_after: Vec<String>,
    /// What could not be compared, with the reason.
    #[serde(default)]
    pub skipped: Vec<String>,
}

/// What changed in one task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskChange {
    /// Items on both sides.
    pub n: usize,
    /// Groups of items that were drawn together, where there are some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_groups: Option<usize>,
    /// The name of the metric that is usually quoted.
    pub primary: String,
    /// The metrics of both sides, by their names.
    pub metrics: BTreeMap<String, MetricChange>,
    /// The mean of the primary metric with the same weight for every subject, where that is an accuracy and the items are of several
    /// subjects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_over_subjects: Option<MeanChange>,
    /// Which items flipped by the primary metric, where that is an accuracy.
    pub flips: Option<Flips>,
    /// The smallest drop of the primary metric that a paired test on these items finds with power 0.8, given how many flipped.
    pub detectable_drop: Option<f64>,
    /// Items that the side after does not have.
    pub items_only_before: Vec<String>,
    /// Items that the side before does not have.
    pub items_only_after: Vec<String>,
    /// The ids agree, but not the data they come from.
    pub data_differs: bool,
    /// Examples before every question, before and after, where the two differ.
    #[serde(default)]
    pub few_shot: Option<[u32; 2]>,
    /// As many examples on both sides, but others: of two files, or drawn by two seeds. In words, before and after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub examples_differ: Option<[String; 2]>,
    /// Items that were asked with another prompt, such as with another number of examples.
    #[serde(default)]
    pub prompts_differ: usize,
    /// Texts were cut into other windows before than after: whole texts are the items.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole_texts: bool,
}

/// Tasks of one group, by their primary metric.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GroupChange {
    /// The names of the tasks.
    pub tasks: Vec<String>,
    /// The name of their primary metric.
    pub primary: String,
    /// Items on both sides.
    pub n: usize,
    /// Every item with the same weight.
    pub by_items: MeanChange,
    /// Every task with the same weight.
    pub mean_over_tasks: MeanChange,
}

/// A mean before and after.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MeanChange {
    /// The mean before.
    pub before: f64,
    /// The mean after.
    pub after: f64,
    /// After minus before.
    pub difference: Estimate,
}

/// What changed in one metric.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MetricChange {
    /// The metric before.
    pub before: f64,
    /// The metric after.
    pub after: f64,
    /// After minus before.
    pub difference: Estimate,
    /// Is less better, as of a perplexity?
    pub lower_is_better: bool,
    /// The probability of a change as large if there were none, two-sided: McNemar's exact test or, where items stand in groups, random signs of
    /// the groups' net changes. For accuracies only.
    pub p: Option<f64>,
    /// `p` after Holm's correction for all tasks; for primary metrics.
    pub p_holm: Option<f64>,
}

/// Items that were answered rightly on one side only.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Flips {
    /// Right before, wrong after.
    pub lost: Vec<String>,
    /// Wrong before, right after.
    pub gained: Vec<String>,
}

/// What changed in the mean over several tasks, each by its primary metric.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MacroChange {
    /// Tasks and groups of tasks.
    pub tasks: Vec<String>,
    /// The mean before.
    pub before: f64,
    /// The mean after.
    pub after: f64,
    /// After minus before.
    pub difference: Estimate,
}

/// Reads an evaluation folder.
pub fn read_side(folder: &Path) -> Result<Side> {
    let scores = read_scores(folder)?;
    let engine = Some(scores.engine());
    let mut samples = read_samples(folder)?;
    let mut tasks = BTreeMap::new();
    for (name, task) in scores.tasks {
        let own = samples.remove(&name).filter(|own| own.len() == task.n).ok_or_else(|| {
            Error::new(format!("the table lacks the {} items of `{name}` that scores.json lists", task.n))
                .at(folder)
                .cure("Evaluate the task again.")
        })?;
        let (settings, primary) = (Some(task.settings()), Some(task.primary));
        let own = TaskSamples { settings, primary, data_sha256: Some(task.data_sha256), ..TaskSamples::of(task.kind, own) };
        tasks.insert(name, own);
    }
    let (name, model_reference) = (scores.identity.model, Some(scores.identity.model_reference));
    Ok(Side { name, model_reference, engine, tasks, groups: BTreeMap::new(), skipped: Vec::new() })
}

/// Compares the tasks that both sides have. An error where a task is of another kind on the other side.
pub fn compare(before: &Side, after: &Side) -> Result<Comparison> {
    let mut tasks = BTreeMap::new();
    let mut accuracies: BTreeMap<String, Accuracy> = BTreeMap::new();
    let mut skipped: Vec<String> = before.skipped.iter().chain(&after.skipped).cloned().collect();
    for (name, old) in &before.tasks {
        let Some(new) = after.tasks.get(name) else { continue };
        match compare_task(name, old, new)? {
            Compared::Changed(change, accuracy) => {
                tasks.insert(name.clone(), *change);
                accuracies.extend(accuracy.map(|accuracy| (name.clone(), accuracy)));
            }
            Compared::NothingInCommon => {}
            Compared::Unlike(reason) => skipped.push(reason),
        }
    }
    if tasks.is_empty() {
        if !skipped.is_empty() {
            return Err(Error::new(format!("nothing in the two can be compared: {}", skipped.join("; ")))
                .cure("Evaluate both models in the same way on the same task files."));
        }
        let names = |side: &Side| side.tasks.keys().cloned().collect::<Vec<_>>().join(", ");
        return Err(Error::new(format!("the two have no items in common: {} here, {} there", names(before), names(after)))
            .cure("Evaluate both models on the same task files."));
    }
    correct(&mut tasks);
    let names: BTreeSet<&String> = before.groups.keys().chain(after.groups.keys()).collect();
    let group = |name: &String| {
        let members = [before, after].into_iter().filter_map(|side| side.groups.get(name)).flatten();
        Some((name.clone(), group_change(members.collect(), &accuracies)?))
    };
    let groups: BTreeMap<String, GroupChange> = names.into_iter().filter_map(group).collect();
    let only = |one: &Side, other: &Side| one.tasks.keys().filter(|name| !other.tasks.contains_key(*name)).cloned().collect();
    Ok(Comparison {
        before: before.name.clone(),
        after: after.name.clone(),
        engines: before.engine.clone().zip(after.engine.clone()).filter(|(a, b)| a != b).map(|(a, b)| [a, b]),
        tasks,
        macro_average: macro_average(&accuracies, &groups),
        groups,
        tasks_only_before: only(before, after),
        tasks_only_after: only(after, before),
        skipped,
    })
}

/// The primary metric of a task, where it is an accuracy.
struct Accuracy {
    metric: String,
    before: Vec<Term>,
    after: Vec<Term>,
    /// The group of each item: what it was drawn together with.
    groups: Vec<Option<String>>,
    difference: Estimate,
}

enum Compared {
    Changed(Box<TaskChange>, Option<Accuracy>),
    NothingInCommon,
    /// The reason why the two are not to be compared.
    Unlike(String),
}

fn compare_task(name: &str, old: &TaskSamples, new: &TaskSamples) -> Result<Compared> {
    if matches!((old.kind, new.kind), (Some(a), Some(b)) if a != b) {
        return Err(Error::new(format!("`{name}` is one kind of task before and another one after"))
            .cure("Evaluate both on the same file."));
    }
    // Windows go by tokens, and so cover other parts of a text with another --max-len or another tokenizer.
    let whole = match old.kind.zip(new.kind) {
        Some((TaskKind::Text, TaskKind::Text)) if !has_equal_windows(old, new) => Some([old.whole_texts(), new.whole_texts()]),
        _ => None,
    };
    let [old, new] = whole.as_ref().map_or([old, new], |[old, new]| [old, new]);
    let by_id: HashMap<&str, usize> = new.ids.iter().enumerate().map(|(idx, id)| (id.as_str(), idx)).collect();
    let (mut pairs, mut items_only_before) = (Vec::new(), Vec::new());
    for (idx, id) in old.ids.iter().enumerate() {
        match by_id.get(id.as_str()) {
            Some(&other) => pairs.push((idx, other)),
            None => items_only_before.push(id.clone()),
        }
    }
    if let (Some(old), Some(new)) = (&old.settings, &new.settings)
        && let Some(option) = differs(old, new)
    {
        return Ok(Compared::Unlike(format!(
            "`{name}` was asked in two ways, which differ in {option}: {old}; and {new}. This hides what the model changed"
        )));
    }
    check_choices(name, old, new, &pairs)?;
    if pairs.is_empty() {
        return Ok(Compared::NothingInCommon);
    }
    if let Some(reason) = unlike_choices(name, old, new, &pairs) {
        return Ok(Compared::Unlike(reason));
    }
    let n_documents = n_other(old, new, &pairs, |asked| asked.document.as_deref());
    if n_documents > 0 {
        return Ok(Compared::Unlike(format!(
            "`{name}`: {n_documents} of {} items of the same number are different documents (doc_hash differs): these are two data sets",
            pairs.len()
        )));
    }
    let own: HashSet<&str> = old.ids.iter().map(String::as_str).collect();
    let only_after = new.ids.iter().filter(|id| !own.contains(id.as_str())).cloned();
    let data_differs = matches!((&old.data_sha256, &new.data_sha256), (Some(a), Some(b)) if a != b);
    let shared: Vec<(&OwnMetric, &OwnMetric)> =
        old.own.iter().filter_map(|x| Some((x, new.own.iter().find(|y| y.name == x.name)?))).collect();
    if shared.is_empty() {
        return Ok(Compared::Unlike(format!("`{name}`: the two sides have no metric in common")));
    }
    let origins: Vec<Origin> = pairs.iter().map(|&(idx, _)| old.origins.get(idx).cloned().unwrap_or_default()).collect();
    let design = Design::of(origins.iter().map(|origin| (origin.subject.as_deref(), origin.group.as_deref())));
    let sides = [old, new].map(|side| side.settings.as_ref().map(|settings| settings.few_shot.as_ref()));
    let n = |few_shot: Option<&FewShot>| few_shot.map_or(0, |few_shot| few_shot.n);
    let n_examples = sides[0].zip(sides[1]).map(|(a, b)| [n(a), n(b)]);
    let differing = sides[0].flatten().zip(sides[1].flatten()).filter(|(a, b)| a != b);
    let examples = differing.map(|(a, b)| [a.words(), b.words()]);
    let mut change = TaskChange {
        n: pairs.len(),
        n_groups: design.n_groups(),
        primary: primary_of(name, old, new, &shared),
        metrics: BTreeMap::new(),
        mean_over_subjects: None,
        flips: None,
        detectable_drop: None,
        items_only_before,
        items_only_after: only_after.collect(),
        data_differs,
        few_shot: n_examples.filter(|[a, b]| a != b),
        examples_differ: examples.filter(|_| n_examples.is_some_and(|[a, b]| a == b)),
        prompts_differ: n_other(old, new, &pairs, |asked| asked.prompt.as_deref()),
        whole_texts: whole.is_some(),
    };
    let ids: Vec<&str> = pairs.iter().map(|&(x, _)| old.ids[x].as_str()).collect();
    let mut accuracy = None;
    for (x, y) in shared {
        let before: Vec<Term> = pairs.iter().map(|&(idx, _)| x.terms[idx]).collect();
        let after: Vec<Term> = pairs.iter().map(|&(_, idx)| y.terms[idx]).collect();
        // Only what is right or wrong can flip.
        let can_flip = !x.lower_is_better && before.iter().chain(&after).all(Term::is_right_or_wrong);
        let flips = can_flip.then(|| flips(&ids, &before, &after));
        let metric = metric_change(x, &before, &after, &design, flips.as_ref());
        let difference = metric.difference;
        change.metrics.insert(x.name.clone(), metric);
        // The share of several answers that are right is an accuracy, too.
        let is_accuracy = flips.is_some() || old.kind.or(new.kind) == Some(TaskKind::Written);
        if x.name == change.primary && is_accuracy {
            if let Some(flips) = flips {
                let flipping = (flips.lost.len() + flips.gained.len()) as f64 / change.n as f64;
                let n_alone = change.n as f64 / variance_inflation(&before, &after, &design);
                change.detectable_drop = detectable_drop(n_alone as usize, flipping);
                change.flips = Some(flips);
            }
            change.mean_over_subjects = mean_change_over_parts(&before, &after, &design);
            let groups = origins.iter().map(|origin| origin.group.clone()).collect();
            accuracy = Some(Accuracy { metric: x.name.clone(), before, after, groups, difference });
        }
    }
    Ok(Compared::Changed(Box::new(change), accuracy))
}

/// Is every text that both sides have cut into the same windows, by their number and their bytes?
fn has_equal_windows(old: &TaskSamples, new: &TaskSamples) -> bool {
    let of_texts = |task: &TaskSamples| {
        let mut texts: HashMap<String, Vec<u32>> = HashMap::new();
        for sample in &task.samples {
            texts.entry(text_of_window(&sample.id).to_owned()).or_default().push(sample.choices[0].bytes);
        }
        texts
    };
    let (old, new) = (of_texts(old), of_texts(new));
    old.iter().all(|(text, windows)| new.get(text).is_none_or(|others| others == windows))
}

/// The text of a window, whose id is `TEXT:NUMBER`.
fn text_of_window(id: &str) -> &str {
    id.rsplit_once(':').map_or(id, |(text, _)| text)
}

/// Why the log-likelihoods of a pair of items cannot be set beside each other, where they are of other texts or, per token, of other tokens.
fn unlike_choices(name: &str, old: &TaskSamples, new: &TaskSamples, pairs: &[(usize, usize)]) -> Option<String> {
    let first = |task: &TaskSamples, idx: usize| task.samples.get(idx).and_then(|sample| sample.choices.first().copied());
    let prompt = |task: &TaskSamples, idx: usize| task.asked.get(idx).and_then(|asked| asked.prompt.clone());
    pairs.iter().find_map(|&(x, y)| {
        let (before, after) = (first(old, x)?, first(new, y)?);
        match old.kind.or(new.kind)? {
            TaskKind::Text if before.bytes != after.bytes => Some(format!(
                "`{name}`: text {} has {} bytes before and {} after: these are two texts",
                old.ids[x], before.bytes, after.bytes
            )),
            // Rows of another text are counted as such.
            TaskKind::Rows if before.tokens != after.tokens && prompt(old, x) == prompt(new, y) => Some(format!(
                "`{name}` is measured per token, but row {} has {} tokens before and {} after (another tokenizer, chat template or --max-len): a loss per token cannot be compared",
                old.ids[x], before.tokens, after.tokens
            )),
            _ => None,
        }
    })
}

/// An error where an item has other choices, or another right one, after than before.
fn check_choices(name: &str, old: &TaskSamples, new: &TaskSamples, pairs: &[(usize, usize)]) -> Result<()> {
    for &(x, y) in pairs {
        if let (Some(x), Some(y)) = (old.samples.get(x), new.samples.get(y))
            && (x.answer, x.choices.len()) != (y.answer, y.choices.len())
        {
            return Err(Error::new(format!("item `{}` of `{name}` has different choices before and after", x.id))
                .cure("Evaluate both models on the same task file."));
        }
    }
    Ok(())
}

/// The pairs of items whose hashes are known on both sides and differ.
fn n_other(old: &TaskSamples, new: &TaskSamples, pairs: &[(usize, usize)], hash: impl Fn(&Asked) -> Option<&str>) -> usize {
    let differ = |&&(x, y): &&(usize, usize)| {
        let hashes = old.asked.get(x).and_then(&hash).zip(new.asked.get(y).and_then(&hash));
        hashes.is_some_and(|(x, y)| x != y)
    };
    pairs.iter().filter(differ).count()
}

/// How one metric changed over the items of both sides; `flips` are those that were right on one side only, where they are right or wrong.
fn metric_change(metric: &OwnMetric, before: &[Term], after: &[Term], design: &Design, flips: Option<&Flips>) -> MetricChange {
    let p = flips.map(|flips| match design.has_groups() {
        true => sign_flip(&design.nets(before, after)),
        false => mcnemar_exact(flips.lost.len() as u64, flips.gained.len() as u64),
    });
    MetricChange {
        before: ratio(before, metric.link),
        after: ratio(after, metric.link),
        difference: paired_difference(before, after, design, metric.link),
        lower_is_better: metric.lower_is_better,
        p,
        p_holm: None,
    }
}

/// The option by which the two were asked in different ways. Examples do not count: what differs about them is said beside the numbers.
fn differs(old: &Settings, new: &Settings) -> Option<&'static str> {
    let of_writing = || old.writing.as_ref().zip(new.writing.as_ref()).and_then(|(old, new)| old.differs(new));
    old.asked.differs(&new.asked).or_else(of_writing)
}

/// The metric that is usually quoted, among those that both sides have.
fn primary_of(task: &str, old: &TaskSamples, new: &TaskSamples, shared: &[(&OwnMetric, &OwnMetric)]) -> String {
    let names: Vec<&str> = shared.iter().map(|(metric, _)| metric.name.as_str()).collect();
    // The samples of the harness do not tell their kind; several choices have `acc_norm`.
    let guess = if names.contains(&"bits_per_byte") { TaskKind::Text } else { TaskKind::Choice };
    let of_kind = primary(old.kind.or(new.kind).unwrap_or(guess), task);
    let known = old.primary.as_deref().or(new.primary.as_deref()).or(of_kind);
    let wanted: Vec<&str> =
        known.into_iter().chain(["acc", "exact_match,strict-match", "exact_match", "prompt_level_strict_acc"]).collect();
    let is_called =
        |name: &str, wanted: &str| name == wanted || name.strip_prefix(wanted).is_some_and(|rest| rest.starts_with(','));
    let found = wanted.iter().find_map(|wanted| names.iter().find(|name| is_called(name, wanted)));
    let higher = || shared.iter().find(|(metric, _)| !metric.lower_is_better).map(|(metric, _)| metric.name.as_str());
    found.copied().or_else(higher).unwrap_or(names[0]).to_owned()
}

fn flips(ids: &[&str], before: &[Term], after: &[Term]) -> Flips {
    let mut flips = Flips::default();
    for ((id, before), after) in ids.iter().zip(before).zip(after) {
        match (before.numerator > 0.5, after.numerator > 0.5) {
            (true, false) => flips.lost.push((*id).to_owned()),
            (false, true) => flips.gained.push((*id).to_owned()),
            _ => {}
        }
    }
    flips
}

/// Fills in `p_holm` of the primary metrics.
fn correct(tasks: &mut BTreeMap<String, TaskChange>) {
    let mut primaries: Vec<&mut MetricChange> =
        tasks.values_mut().filter_map(|task| task.metrics.get_mut(&task.primary)).filter(|metric| metric.p.is_some()).collect();
    let p_values: Vec<f64> = primaries.iter().filter_map(|metric| metric.p).collect();
    for (metric, adjusted) in primaries.iter_mut().zip(holm(&p_values)) {
        metric.p_holm = Some(adjusted);
    }
}

/// The tasks of a group that were compared by one metric; `None` where there are fewer than two.
fn group_change(members: BTreeSet<&String>, accuracies: &BTreeMap<String, Accuracy>) -> Option<GroupChange> {
    let members: Vec<(&String, &Accuracy)> = members.into_iter().filter_map(|name| accuracies.get_key_value(name)).collect();
    let primary = &members.first()?.1.metric;
    if members.len() < 2 || members.iter().any(|(_, task)| task.metric != *primary) {
        return None;
    }
    let all = |side: fn(&Accuracy) -> &[Term]| members.iter().flat_map(|(_, task)| side(task)).copied().collect::<Vec<Term>>();
    let (before, after) = (all(|task| &task.before), all(|task| &task.after));
    let design = Design::of(
        members.iter().flat_map(|(name, task)| task.groups.iter().map(|group| (Some(name.as_str()), group.as_deref()))),
    );
    Some(GroupChange {
        tasks: members.iter().map(|(name, _)| (*name).clone()).collect(),
        primary: primary.clone(),
        n: before.len(),
        by_items: MeanChange {
            before: ratio(&before, Link::Identity),
            after: ratio(&after, Link::Identity),
            difference: paired_difference(&before, &after, &design, Link::Identity),
        },
        mean_over_tasks: mean_change_over_parts(&before, &after, &design)?,
    })
}

fn mean_change_over_parts(before: &[Term], after: &[Term], design: &Design) -> Option<MeanChange> {
    Some(MeanChange {
        before: mean_over_parts(before, design)?.value,
        after: mean_over_parts(after, design)?.value,
        difference: mean_difference_over_parts(before, after, design)?,
    })
}

fn macro_average(accuracies: &BTreeMap<String, Accuracy>, groups: &BTreeMap<String, GroupChange>) -> Option<MacroChange> {
    // Groups within groups count by the outermost.
    let is_within = |(name, group): (&String, &GroupChange), (other, outer): (&String, &GroupChange)| {
        let (n, n_outer) = (group.tasks.len(), outer.tasks.len());
        (n_outer > n || (n_outer == n && other < name)) && group.tasks.iter().all(|task| outer.tasks.contains(task))
    };
    let outermost: Vec<(&String, &GroupChange)> =
        groups.iter().filter(|own| !groups.iter().any(|other| is_within(*own, other))).collect();
    let mut of_group = BTreeSet::new();
    let mut units: Vec<(String, MeanChange)> = Vec::new();
    for (name, group) in outermost {
        of_group.extend(&group.tasks);
        units.push((name.clone(), group.by_items.clone()));
    }
    for (name, task) in accuracies.iter().filter(|(name, _)| !of_group.contains(name)) {
        let [before, after] = [&task.before, &task.after].map(|terms| ratio(terms, Link::Identity));
        units.push((name.clone(), MeanChange { before, after, difference: task.difference }));
    }
    units.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mean = |of: fn(&MeanChange) -> f64| units.iter().map(|(_, unit)| of(unit)).sum::<f64>() / units.len() as f64;
    let differences: Vec<Estimate> = units.iter().map(|(_, unit)| unit.difference).collect();
    (!units.is_empty()).then(|| MacroChange {
        tasks: units.iter().map(|(name, _)| name.clone()).collect(),
        before: mean(|unit| unit.before),
        after: mean(|unit| unit.after),
        difference: macro_difference(&differences),
    })
}

impl Comparison {
    /// See [`MacroChange::check_drop`].
    pub fn check_drop(&self, points: f64) -> Result<()> {
        match &self.macro_average {
            Some(average) => average.check_drop("the macro average", points),
            None => Err(Error::usage("--fail-on-drop needs a task with an accuracy; these have perplexities only")
                .cure("Leave it out, or also evaluate a task with choices or written answers.")),
        }
    }
}

impl MacroChange {
    /// Falls short where the average, which `what` names, dropped by more than `points` (of 100) with confidence: where even the
    /// upper end of its 95 % interval lies below. An alarm on an unchanged model is thus as rare as 2.5 %.
    pub fn check_drop(&self, what: &str, points: f64) -> Result<()> {
        let Some([low, high]) = self.difference.ci95 else {
            return Err(Error::usage("--fail-on-drop needs at least two items in every task")
                .cure("Leave it out, or evaluate more items (--limit, --sample)."));
        };
        if 100.0 * high < -points {
            return Err(Error::check(format!(
                "{what} dropped by {:.2} points (95 % interval {:.2} to {:.2}), significantly more than {points}",
                -100.0 * self.difference.value,
                -100.0 * high,
                -100.0 * low
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::metrics::ChoiceScore;

    /// Items `0..n` with two choices; `right(i)` says whether the first, which is the answer, wins.
    fn side(n: usize, right: impl Fn(usize) -> bool) -> Side {
        let item = |i: usize| {
            let score = |logprob| ChoiceScore { logprob, chars: 1, bytes: 1, ..ChoiceScore::default() };
            let choices = vec![score(if right(i) { -1.0 } else { -3.0 }), score(-2.0)];
            Sample { id: i.to_string(), choices, ..Sample::default() }
        };
        let task = TaskSamples::of(TaskKind::Choice, (0..n).map(item).collect());
        Side {
            name: "m".into(),
            model_reference: None,
            engine: None,
            tasks: BTreeMap::from([("t".to_owned(), task)]),
            groups: BTreeMap::new(),
            skipped: Vec::new(),
        }
    }

    #[test]
    fn flips_are_counted_and_listed() {
        // 6 of 10 right before; after, 0 to 2 are lost and 9 is gained.
        let found = compare(&side(10, |i| i < 6), &side(11, |i| (3..6).contains(&i) || i == 9)).unwrap();
        let task = &found.tasks["t"];
        let flips = task.flips.as_ref().unwrap();
        assert_eq!((flips.lost.join(" "), flips.gained.join(" ")), ("0 1 2".to_owned(), "9".to_owned()));
        assert_eq!((task.n, task.items_only_after.join(" ")), (10, "10".to_owned()));
        let acc = &task.metrics["acc"];
        assert!((acc.difference.value + 0.2).abs() < 1e-12);
        // 2 (1 + 4) / 2^4
        assert_eq!((acc.p, acc.p_holm), (Some(0.625), Some(0.625)));
        assert!(found.check_drop(2.0).is_ok(), "10 items show nothing");
    }

    #[test]
    fn a_clear_drop_fails_the_check_and_none_does_not() {
        let before = side(500, |i| i % 4 != 0);
        let after = side(500, |i| i % 4 != 0 && i % 10 != 1);
        let error = compare(&before, &after).unwrap().check_drop(2.0).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        assert!(compare(&after, &before).unwrap().check_drop(2.0).is_ok());
        let same = compare(&before, &before).unwrap();
        // No flip among 500 is no proof: Tango's interval, z^2 / (n + z^2).
        let [low, high] = same.macro_average.as_ref().unwrap().difference.ci95.unwrap();
        let expected = 1.959_963_984_540_054f64.powi(2) / (500.0 + 1.959_963_984_540_054f64.powi(2));
        assert!((high - expected).abs() < 1e-9 && (low + expected).abs() < 1e-9, "{low} {high}");
        assert!(same.check_drop(0.0).is_ok() && same.tasks["t"].flips.as_ref().unwrap().lost.is_empty());
    }

    /// A side with one task of `kind`, whose samples have one choice each: (id, nats, tokens, bytes).
    fn told(kind: TaskKind, samples: &[(&str, f64, u32, u32)]) -> Side {
        let sample = |&(id, nats, tokens, bytes): &(&str, f64, u32, u32)| {
            let score = ChoiceScore { logprob: -nats, tokens, bytes, words: 1, ..ChoiceScore::default() };
            Sample { id: id.to_owned(), choices: vec![score], ..Sample::default() }
        };
        let task = TaskSamples::of(kind, samples.iter().map(sample).collect());
        Side { tasks: BTreeMap::from([("t".to_owned(), task)]), ..side(0, |_| true) }
    }

    #[test]
    fn texts_in_other_windows_are_compared_as_wholes() {
        let before = told(TaskKind::Text, &[("0:0", 4.0, 4, 10), ("0:1", 8.0, 4, 10), ("1:0", 3.0, 2, 10)]);
        let after = told(TaskKind::Text, &[("0:0", 9.0, 6, 15), ("0:1", 1.0, 2, 5), ("1:0", 3.0, 2, 10)]);
        let found = compare(&before, &after).unwrap();
        let task = &found.tasks["t"];
        let bits = &task.metrics["bits_per_byte"];
        assert!((bits.before - 15.0 / 30.0 / 2f64.ln()).abs() < 1e-12 && (bits.after - 13.0 / 30.0 / 2f64.ln()).abs() < 1e-12);
        assert_eq!((task.n, task.whole_texts, task.items_only_after.len()), (2, true, 0));
        // Windows that are the same are items, also where one side has more texts.
        let fewer = told(TaskKind::Text, &[("0:0", 5.0, 4, 10), ("0:1", 8.0, 4, 10)]);
        let found = compare(&before, &fewer).unwrap();
        assert_eq!((found.tasks["t"].n, found.tasks["t"].whole_texts), (2, false));
        let longer = told(TaskKind::Text, &[("0:0", 4.0, 4, 10), ("0:1", 8.0, 4, 11)]);
        assert!(compare(&before, &longer).unwrap_err().to_string().contains("text 0 has 20 bytes before and 21 after"));
    }

    #[test]
    fn losses_of_other_tokens_are_not_compared() {
        let of = |tokens: u32| told(TaskKind::Rows, &[("0", 4.0, 4, 0), ("1", 4.0, tokens, 0)]);
        assert!(compare(&of(3), &of(3)).is_ok());
        let error = compare(&of(3), &of(4)).unwrap_err().to_string();
        assert!(error.contains("row 1 has 3 tokens before and 4 after (another tokenizer"), "{error}");
    }

    #[test]
    fn sides_that_do_not_fit_are_refused() {
        let (a, mut b) = (side(3, |_| true), side(3, |_| true));
        b.tasks.get_mut("t").unwrap().samples[1].answer = 1;
        assert!(compare(&a, &b).unwrap_err().to_string().contains("item `1` of `t`"));
        let other = Side { tasks: BTreeMap::new(), ..side(0, |_| true) };
        assert!(compare(&a, &other).unwrap_err().to_string().contains("no items in common"));
    }
}
