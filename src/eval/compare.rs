//! Compares two evaluations of the same items: what changed, and how certain that is.
//!
//! Items are paired by task and id, so that the difficulty of an item cancels out: on the same items, the difference of two
//! accuracies is known far more precisely than from an unpaired test. Accuracies get Tango's interval and McNemar's exact test on
//! their flips, with Holm's correction for the number of tasks; everything else gets a bootstrap interval. Items in groups count
//! by group (`stats/design.rs`): the bootstrap resamples groups, and the exact test uses their net changes.
//!
//! The subjects of a task, and the tasks in one of the harness's groups, are averaged in two ways: with equal weights for all
//! items, as the harness does for MMLU (`weight_by_size`), and with equal weights for all subjects or tasks. A group counts as
//! one task in the macro average.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::metrics::{Metric, Sample, metrics, primary};
use super::results::{Scores, Settings, read_samples};
use super::tasks::{FewShot, TaskKind};
use crate::error::{Error, Result};
use crate::stats::{
    Design, Estimate, Link, Term, detectable_drop, holm, macro_difference, mcnemar_exact, mean_difference_over_parts,
    mean_over_parts, paired_difference, ratio, sign_flip, variance_inflation,
};

/// One side of a comparison.
pub struct Side {
    /// The name of the side, for messages.
    pub name: String,
    /// The model as the user gave it, if known.
    pub model_reference: Option<String>,
    /// The engine that ran the model, if known.
    pub engine: Option<String>,
    /// The tasks by name.
    pub tasks: BTreeMap<String, TaskSamples>,
    /// Groups of tasks that are averaged together, by the group's name.
    pub groups: BTreeMap<String, Vec<String>>,
    /// Files that cannot be compared, with the reason.
    pub skipped: Vec<String>,
}

/// The results of one side on a task.
pub struct TaskSamples {
    /// The kind of task; only known for our own evaluations.
    pub kind: Option<TaskKind>,
    /// The items' ids.
    pub ids: Vec<String>,
    /// The samples of our own evaluations, in the order of `ids`; otherwise empty.
    pub samples: Vec<Sample>,
    /// The metrics with their values per item.
    pub own: Vec<Metric>,
    /// What each item asks, in the order of `ids`; empty if unknown.
    pub asked: Vec<Asked>,
    /// The part and the group of each item, in the order of `ids`.
    pub origins: Vec<Origin>,
    /// SHA-256 of the data file, if known.
    pub data_sha256: Option<String>,
    /// How the questions were asked and the answers written, if known.
    pub settings: Option<Settings>,
    /// The primary metric, if known.
    pub primary: Option<String>,
}

/// The part of its task that an item belongs to, and the group with which it was drawn.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The part of its task.
    pub subject: Option<String>,
    /// The group of items that were drawn together.
    pub group: Option<String>,
}

/// Hashes of what an item asks.
pub struct Asked {
    /// The hash of the item's row, if known.
    pub document: Option<String>,
    /// The hash of the text before the answer, if known.
    pub prompt: Option<String>,
}

impl TaskSamples {
    /// The results of a task in our own evaluation.
    pub fn of(kind: TaskKind, samples: Vec<Sample>) -> TaskSamples {
        TaskSamples {
            kind: Some(kind),
            ids: samples.iter().map(|sample| sample.id.clone()).collect(),
            own: metrics(kind, &samples),
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

    /// The same results with the windows of each text joined.
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
    /// The engines that ran the models, before and after, if they differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engines: Option<[String; 2]>,
    /// The tasks of both sides by name.
    pub tasks: BTreeMap<String, TaskChange>,
    /// The harness's groups of tasks by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, GroupChange>,
    /// The mean over the tasks that have an accuracy, each by its primary metric, with a group as one task; `None` if there is no
    /// such task.
    pub macro_average: Option<MacroChange>,
    /// Tasks that only the side before has.
    pub tasks_only_before: Vec<String>,
    /// Tasks that only the side after has.
    pub tasks_only_after: Vec<String>,
    /// What could not be compared, with the reason.
    #[serde(default)]
    pub skipped: Vec<String>,
}

/// What changed in one task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskChange {
    /// The number of items on both sides.
    pub n: usize,
    /// The number of groups of items that were drawn together, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_groups: Option<usize>,
    /// The name of the primary metric.
    pub primary: String,
    /// The metrics of both sides by name.
    pub metrics: BTreeMap<String, MetricChange>,
    /// The mean of the primary metric with equal weights for all subjects, if it is an accuracy and there are several subjects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_over_subjects: Option<MeanChange>,
    /// The items that flipped by the primary metric, if it is an accuracy.
    pub flips: Option<Flips>,
    /// The smallest drop of the primary metric that a paired test on these items detects with power 0.8, given the share of
    /// flips.
    pub detectable_drop: Option<f64>,
    /// Items that only the side before has.
    pub items_only_before: Vec<String>,
    /// Items that only the side after has.
    pub items_only_after: Vec<String>,
    /// Do the ids agree but the data files differ?
    pub data_differs: bool,
    /// The numbers of few-shot examples before and after, if they differ.
    #[serde(default)]
    pub few_shot: Option<[u32; 2]>,
    /// The options before and after, if both have the same number of examples but from different files or seeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub examples_differ: Option<[String; 2]>,
    /// The number of items with different prompts, for example because of a different number of examples.
    #[serde(default)]
    pub prompts_differ: usize,
    /// Were texts cut into different windows before and after, so that whole texts are compared?
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole_texts: bool,
}

/// The change of a group of tasks, by their primary metric.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GroupChange {
    /// The names of the tasks.
    pub tasks: Vec<String>,
    /// The name of their primary metric.
    pub primary: String,
    /// The number of items on both sides.
    pub n: usize,
    /// The mean with equal weights for all items.
    pub by_items: MeanChange,
    /// The mean with equal weights for all tasks.
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

/// The change of one metric.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MetricChange {
    /// The metric before.
    pub before: f64,
    /// The metric after.
    pub after: f64,
    /// After minus before.
    pub difference: Estimate,
    /// Is a lower value better, as for a perplexity?
    pub lower_is_better: bool,
    /// Is it an accuracy, which is shown in per cent?
    pub is_share: bool,
    /// The two-sided p-value of the change: McNemar's exact test or, for items in groups, random signs of the groups' net
    /// changes. Only for accuracies.
    pub p: Option<f64>,
    /// `p` after Holm's correction for all tasks; only for primary metrics.
    pub p_holm: Option<f64>,
}

/// Items that were answered correctly on one side only.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Flips {
    /// Right before, wrong after.
    pub lost: Vec<String>,
    /// Wrong before, right after.
    pub gained: Vec<String>,
}

/// The change of the mean over several tasks, each by its primary metric.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MacroChange {
    /// The tasks, and groups of tasks.
    pub tasks: Vec<String>,
    /// The mean before.
    pub before: f64,
    /// The mean after.
    pub after: f64,
    /// After minus before.
    pub difference: Estimate,
}

/// The side of an evaluation's `scores`, with the samples in its folder.
pub fn side_of(scores: &Scores, folder: &Path) -> Result<Side> {
    let mut samples = read_samples(folder)?;
    let mut tasks = BTreeMap::new();
    for (name, task) in &scores.tasks {
        let own = samples.remove(name).filter(|own| own.len() == task.n).ok_or_else(|| {
            Error::new(format!("the table lacks the {} items of `{name}` that scores.json lists", task.n))
                .at(folder)
                .cure("Evaluate the task again.")
        })?;
        let (settings, primary) = (Some(task.settings()), Some(task.primary.clone()));
        let data_sha256 = Some(task.data_sha256.clone());
        tasks.insert(name.clone(), TaskSamples { settings, primary, data_sha256, ..TaskSamples::of(task.kind, own) });
    }
    Ok(Side {
        name: scores.identity.model.clone(),
        model_reference: Some(scores.identity.model_reference.clone()),
        engine: Some(scores.engine()),
        tasks,
        groups: BTreeMap::new(),
        skipped: Vec::new(),
    })
}

/// Compares the tasks that both sides have. Returns an error if a task has a different kind on the other side.
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

/// The primary metric of a task, if it is an accuracy.
struct Accuracy {
    metric: String,
    before: Vec<Term>,
    after: Vec<Term>,
    /// The group with which each item was drawn.
    groups: Vec<Option<String>>,
    difference: Estimate,
}

enum Compared {
    Changed(Box<TaskChange>, Option<Accuracy>),
    NothingInCommon,
    /// The reason why the two cannot be compared.
    Unlike(String),
}

fn compare_task(name: &str, old: &TaskSamples, new: &TaskSamples) -> Result<Compared> {
    if matches!((old.kind, new.kind), (Some(a), Some(b)) if a != b) {
        return Err(Error::new(format!("`{name}` is one kind of task before and another one after"))
            .cure("Evaluate both on the same file."));
    }
    // Windows are cut by tokens, so that a different --max-len or tokenizer makes them cover different parts of a text.
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
    let shared: Vec<(&Metric, &Metric)> =
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
        let mut metric = metric_change(x, &before, &after, &design, flips.as_ref());
        metric.is_share &= y.is_share;
        let difference = metric.difference;
        change.metrics.insert(x.name.clone(), metric);
        // The share of several answers that are right is also an accuracy.
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

/// Is every text that both sides have cut into the same windows, by their number and lengths in bytes?
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

/// The id of the text of a window, whose id is `TEXT:NUMBER`.
fn text_of_window(id: &str) -> &str {
    id.rsplit_once(':').map_or(id, |(text, _)| text)
}

/// The reason why the log-likelihoods of a pair of items cannot be compared: different texts or, for losses per token, different
/// tokens.
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
            // Rows with different text are counted in `prompts_differ` instead.
            TaskKind::Rows if before.tokens != after.tokens && prompt(old, x) == prompt(new, y) => Some(format!(
                "`{name}` is measured per token, but row {} has {} tokens before and {} after (another tokenizer, chat template or --max-len): a loss per token cannot be compared",
                old.ids[x], before.tokens, after.tokens
            )),
            _ => None,
        }
    })
}

/// Returns an error if an item has different choices, or a different right one, after than before.
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

/// The number of pairs of items whose hashes are known on both sides and differ.
fn n_other(old: &TaskSamples, new: &TaskSamples, pairs: &[(usize, usize)], hash: impl Fn(&Asked) -> Option<&str>) -> usize {
    let differ = |&&(x, y): &&(usize, usize)| {
        let hashes = old.asked.get(x).and_then(&hash).zip(new.asked.get(y).and_then(&hash));
        hashes.is_some_and(|(x, y)| x != y)
    };
    pairs.iter().filter(differ).count()
}

/// The change of one metric over the items of both sides; `flips` are the items that were right on one side only, if items are
/// right or wrong.
fn metric_change(metric: &Metric, before: &[Term], after: &[Term], design: &Design, flips: Option<&Flips>) -> MetricChange {
    let p = flips.map(|flips| match design.has_groups() {
        true => sign_flip(&design.nets(before, after)),
        false => mcnemar_exact(flips.lost.len() as u64, flips.gained.len() as u64),
    });
    MetricChange {
        before: ratio(before, metric.link),
        after: ratio(after, metric.link),
        difference: paired_difference(before, after, design, metric.link),
        lower_is_better: metric.lower_is_better,
        is_share: metric.is_share,
        p,
        p_holm: None,
    }
}

/// The option by which the two were asked differently. Few-shot examples do not count: their differences are reported beside the
/// numbers.
fn differs(old: &Settings, new: &Settings) -> Option<&'static str> {
    let of_writing = || old.writing.as_ref().zip(new.writing.as_ref()).and_then(|(old, new)| old.differs(new));
    old.asked.differs(&new.asked).or_else(of_writing)
}

/// The primary metric, among those that both sides have.
fn primary_of(task: &str, old: &TaskSamples, new: &TaskSamples, shared: &[(&Metric, &Metric)]) -> String {
    let names: Vec<&str> = shared.iter().map(|(metric, _)| metric.name.as_str()).collect();
    // The samples of the harness do not tell the kind of task; those with several choices have `acc_norm`.
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

/// Sets `p_holm` of the primary metrics.
fn correct(tasks: &mut BTreeMap<String, TaskChange>) {
    let mut primaries: Vec<&mut MetricChange> =
        tasks.values_mut().filter_map(|task| task.metrics.get_mut(&task.primary)).filter(|metric| metric.p.is_some()).collect();
    let p_values: Vec<f64> = primaries.iter().filter_map(|metric| metric.p).collect();
    for (metric, adjusted) in primaries.iter_mut().zip(holm(&p_values)) {
        metric.p_holm = Some(adjusted);
    }
}

/// The change of a group, over those of its tasks that were compared; `None` if there are fewer than two, or if their primary
/// metrics differ.
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
    // Of nested groups, the outermost counts.
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
    /// Returns an error if the average, which `what` names, dropped with confidence by more than `points` (of 100): if even the
    /// upper end of its 95 % interval lies below. An unchanged model thus fails in only 2.5 % of cases.
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
        // Before, 6 of 10 are right; after, 0 to 2 are lost and 9 is gained.
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
        // No flip among 500 items does not prove equality: Tango's interval is then z^2 / (n + z^2).
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
        // Equal windows are compared as items, even if one side has more texts.
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
